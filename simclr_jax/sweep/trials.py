"""One trial: the config with its settings, trained and scored in a workdir of its own."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import jax
import optuna
from ml_collections import ConfigDict
from optuna.trial import FrozenTrial, Trial, TrialState

from simclr_jax import train
from simclr_jax.config import every_steps, total_steps
from simclr_jax.data import splits as data_splits
from simclr_jax.data.sources import Stream
from simclr_jax.data.splits import Splits
from simclr_jax.errors import DivergedError, OutOfMemoryError, Preempted, SimclrError, StorageError
from simclr_jax.feeds import hold, load_splits
from simclr_jax.sweep import space as spaces
from simclr_jax.sweep import study as studies

SHARE = 0.1  # of the training images, kept to score trials on
CLEAR_EVERY = 10  # trials: their compiled programs would fill the memory
COPIED = ("scores", "standard_errors", "steps", "seconds", "error")  # notes of a trial


class Sweep(NamedTuple):
    """What all trials share."""

    config: ConfigDict
    space: spaces.Space
    listed: bool  # the settings come from the space's points, not from its suggest()
    out: Path
    metric: str
    test: bool
    limit: int  # trials in all


class FailedError(Exception):
    """The trial has failed and says why in its notes; the sweep goes on."""


class SuperfluousError(Exception):
    """Another process had the last trial: this one counts for nothing."""


def load(config: ConfigDict, *, test: bool) -> Splits:
    """The images of a trial: unless `test`, a tenth of those to train on takes the place of the test split.

    Raises:
      SimclrError: there is nothing to score a trial on.
    """
    train_images, test_images = load_splits(config)
    if not train_images.classes:
        raise SimclrError(f"{train_images.name}: has no labels, and a sweep compares scores")
    if test and test_images is None:
        raise SimclrError(f"--test: {train_images.name} has no test split; leave it out")
    if not test:
        if isinstance(train_images, Stream):
            raise SimclrError(
                f"{train_images.name}: no part of a sequential source can be held out; prepare it as "
                "ArrayRecord, raise config.data.memory_gb, or score on the test split with --test"
            )
        kept, held = data_splits.holdout_rows(train_images.size, SHARE, train_images.groups)
        train_images, test_images = train_images.subset(kept), train_images.subset(held)
    splits = Splits(train_images, test_images)
    return hold(config, splits)


def run(sweep: Sweep, study: optuna.Study) -> None:
    """Runs the remaining trials of the study, and waits for the trials of other processes."""
    if sweep.listed:
        studies.enqueue(study, sweep.space.points, sweep.limit)
    function = objective(sweep, study)
    while studies.wait_for_work(study, sweep.limit, listed=sweep.listed):
        study.optimize(function, n_trials=1, catch=(FailedError, SuperfluousError))


def objective(sweep: Sweep, study: optuna.Study) -> Callable[[Trial], float]:
    """The function of a trial that Optuna maximises; images are kept as long as no trial changes them."""
    images: dict[str, Splits] = {}
    count = 0

    def splits_of(config: ConfigDict) -> Splits:
        key = json.dumps([config.data.to_dict(), config.augment.device])
        if key not in images:
            images.clear()
            images[key] = load(config, test=sweep.test)
        return images[key]

    def run(trial: Trial) -> float:
        nonlocal count
        settings, name = _claim(sweep, study, trial)
        same = studies.twin(study, trial.number, name)
        if same is not None:
            return _copy(same, trial)
        count += 1
        if count % CLEAR_EVERY == 0:
            jax.clear_caches()
        try:
            print(f"\n== trial {trial.number}: {name.replace(',', ', ')}", flush=True)
            config = spaces.apply(sweep.config, settings)
            splits = splits_of(config)
            on_eval = _report(trial, config, splits.train.size)
            started = time.perf_counter()
            workdir = sweep.out / "trials" / name
            summary = train.run(config, workdir, splits=splits, on_eval=on_eval)
            trial.set_user_attr("seconds", round(time.perf_counter() - started, 1))
            return _note(trial, summary, sweep)
        except (DivergedError, OutOfMemoryError) as error:  # others may do well, or fit
            _fail(trial, str(error))
        except StorageError:
            studies.again(study, trial)
            raise
        except SimclrError as error:
            raise SimclrError(f"trial {name}: {error}") from None
        except (KeyboardInterrupt, Preempted):
            studies.again(study, trial)
            raise

    return run


def _claim(sweep: Sweep, study: optuna.Study, trial: Trial) -> tuple[spaces.Settings, str]:
    """The trial's settings and their name; raises SuperfluousError where they are no more wanted."""
    if sweep.listed:
        wanted = {spaces.name(point) for point in sweep.space.points}
        if trial.user_attrs.get("name") not in wanted:
            raise SuperfluousError
        return trial.user_attrs["settings"], trial.user_attrs["name"]
    if sum(other.number < trial.number for other in studies.counted(study)) >= sweep.limit:
        raise SuperfluousError
    settings = spaces.drawn(sweep.space, trial)
    trial.set_user_attr("settings", settings)
    trial.set_user_attr("name", spaces.name(settings))
    return settings, spaces.name(settings)


def _copy(same: FrozenTrial, trial: Trial) -> float:
    """The result of a trial with the same settings."""
    if same.state == TrialState.WAITING:
        raise SuperfluousError
    for note in COPIED:
        if note in same.user_attrs:
            trial.set_user_attr(note, same.user_attrs[note])
    if same.state == TrialState.COMPLETE and same.value is not None:
        return same.value
    raise optuna.TrialPruned if same.state == TrialState.PRUNED else FailedError


def _report(trial: Trial, config: ConfigDict, examples: int) -> Callable[[int, dict[str, float]], None]:
    """Hands the top-1 accuracy of every evaluation while training to the pruner.

    Evaluations are numbered from 1: their steps differ between batch sizes.
    """
    steps = total_steps(config, examples)
    period = every_steps(config.eval.every, examples, config.train.batch_size)

    def on_eval(step: int, scores: dict[str, float]) -> None:
        key = "knn_top1" if config.task == "pretrain" else "test_top1"
        trial.set_user_attr("steps", step)
        if key in scores:
            trial.report(scores[key], -(-step // period))
            if step < steps and trial.should_prune():
                raise optuna.TrialPruned

    return on_eval


def _note(trial: Trial, summary: dict[str, Any], sweep: Sweep) -> float:
    """Keeps all scores with the trial; the one that counts."""
    if "test" in summary:  # tasks supervised and distill
        scores = {"top1": summary["test"]["top1"]}
        errors = {"top1": summary["test"]["top1_standard_error"]}
    else:
        found = summary.get("scores", {})
        scores = {metric: by_contender["simclr"] for metric, by_contender in found.items()}
        errors = {
            metric: by_contender["simclr"]
            for metric, by_contender in summary.get("standard_errors", {}).items()
            if "simclr" in by_contender
        }
    if sweep.metric not in scores:
        raise SimclrError(
            f"--metric={sweep.metric}: must be one of those there are, {', '.join(scores) or 'none'}"
        )
    for name, value in (("scores", scores), ("standard_errors", errors), ("steps", summary["steps"])):
        trial.set_user_attr(name, value)
    return scores[sweep.metric]


def _fail(trial: Trial, line: str) -> NoReturn:
    print(f"trial {trial.number} failed: {line}", flush=True)
    trial.set_user_attr("error", line)
    raise FailedError
