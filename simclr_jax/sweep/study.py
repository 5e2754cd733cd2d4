"""The Optuna study that the processes of a sweep share: its queue, its results and its dead processes.

A trial that ended without a result and without a recorded `error` (killed, interrupted, one too many) does
not count. If it has to run again, a waiting copy with the same name, and so the same workdir, is added.
"""

import re
import time
import warnings
from pathlib import Path
from typing import Any

import optuna
from ml_collections import ConfigDict
from optuna.trial import FrozenTrial, Trial, TrialState
from sqlalchemy.exc import SQLAlchemyError

from simclr_jax.config import differences, from_tree
from simclr_jax.errors import SimclrError, one_line
from simclr_jax.sweep import space as spaces

HEARTBEAT, PATIENCE = 10, 60  # seconds between signs of life; seconds without one after which a trial is dead
MOST_DEATHS = 5  # a trial that died so often is not tried again
POLL = 1.0  # seconds
ATTEMPTS = 5  # attempts to open a database while another process creates it
SAMPLERS = ("tpe", "random", "grid")
PRUNERS = ("median", "none")


def open_study(name: str, url: str, sampler: str, pruner: str) -> optuna.Study:
    """The study `name` at the database URL, made if need be."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    samplers = {
        "tpe": lambda: optuna.samplers.TPESampler(constant_liar=True),  # for several processes
        "random": optuna.samplers.RandomSampler,
        "grid": optuna.samplers.RandomSampler,  # which has nothing to draw: the points are in the queue
    }
    pruners = {"median": optuna.pruners.MedianPruner, "none": optuna.pruners.NopPruner}
    if url.startswith("sqlite:///"):
        Path(url.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
        waits = {"connect_args": {"timeout": 60}}  # for another process's write
    else:
        waits = {"pool_pre_ping": True}
    for left in reversed(range(ATTEMPTS)):
        try:
            storage = optuna.storages.RDBStorage(
                url, engine_kwargs=waits, heartbeat_interval=HEARTBEAT, grace_period=PATIENCE,
                heartbeat_stale_trial_callback=bury,
            )  # fmt: skip
            return optuna.create_study(
                study_name=name, storage=storage, load_if_exists=True, direction="maximize",
                sampler=samplers[sampler](), pruner=pruners[pruner](),
            )  # fmt: skip
        except (SQLAlchemyError, ImportError, ValueError, RuntimeError, OSError) as error:
            line = one_line(error).rstrip(".")
            if not left or not any(word in line.lower() for word in ("exists", "unique", "duplicate")):
                shown = re.sub(r"(://[^/@]*):[^/@]*@", r"\1:...@", f"--storage={url}: {line}")  # no password
                raise SimclrError(f"{shown}; give the URL of a database") from None
        time.sleep(POLL)  # another process makes the tables at this moment
    raise AssertionError


def claim(study: optuna.Study, config: ConfigDict, images: str, metric: str, out: str) -> None:
    """Stores config, images and metric in the study; raises SimclrError if it has different ones."""
    mine = {"config": config.to_dict(), "images": images, "metric": metric}
    theirs = study.user_attrs.get("about")
    begun = any(trial.state != TrialState.WAITING for trial in counted(study))
    if theirs is None or not begun:
        study.set_user_attr("about", mine)
        return
    changed = [f"{k}: {theirs[k]} -> {mine[k]}" for k in ("images", "metric") if theirs[k] != mine[k]]
    changed += differences(from_tree(theirs["config"]), config)
    if changed:
        raise SimclrError(
            f"--out={out}: the study there has other settings ({'; '.join(changed)}); choose another --out"
        )


def enqueue(study: optuna.Study, points: tuple[spaces.Settings, ...], limit: int) -> None:
    """Adds the first `limit` points to the queue, except those that the study already has."""
    kinds, known = spaces.distributions(points), {t.user_attrs.get("name") for t in counted(study)}
    for point in points[:limit]:
        if spaces.name(point) in known:
            continue
        waiting = optuna.create_trial(
            state=TrialState.WAITING,
            params={field: spaces.parameter(value) for field, value in point.items()},
            distributions={field: kinds[field] for field in point},
            user_attrs={"name": spaces.name(point), "settings": point},
        )
        try:
            study.add_trial(waiting)
        except ValueError as error:
            raise SimclrError(
                f"--space: a field has other choices than in the study ({one_line(error)}); "
                "choose another --out"
            ) from None


# ---- trials -------------------------------------------------------------------------------------


def counts(trial: FrozenTrial) -> bool:
    """Whether the trial stands for its settings: not if it was killed, interrupted or one too many."""
    return trial.state != TrialState.FAIL or "error" in trial.user_attrs


def counted(study: optuna.Study) -> list[FrozenTrial]:
    """The trials that count."""
    return [trial for trial in study.get_trials(deepcopy=False) if counts(trial)]


def again(study: optuna.Study, trial: FrozenTrial | Trial, **attrs: Any) -> None:
    """Queues a copy of the trial: the same parameters and name, so the same workdir."""
    study.add_trial(
        optuna.create_trial(
            state=TrialState.WAITING,
            params=trial.params,
            distributions=trial.distributions,
            user_attrs={**trial.user_attrs, **attrs},
        )
    )


def bury(study: optuna.Study, trial: FrozenTrial) -> None:
    """A trial's process has died: another one shall go on, unless many have died of it."""
    deaths = trial.user_attrs.get("deaths", 0) + 1
    if deaths < MOST_DEATHS:
        print(f"trial {trial.number} was killed; it goes on from its checkpoint", flush=True)
        again(study, trial, deaths=deaths)
        return
    error = f"its process was killed {deaths} times"
    study.add_trial(
        optuna.create_trial(
            state=TrialState.FAIL,
            params=trial.params,
            distributions=trial.distributions,
            user_attrs={**trial.user_attrs, "error": error},
        )
    )


def twin(study: optuna.Study, number: int, name: str) -> FrozenTrial | None:
    """An earlier trial with the same settings; one that still runs is waited for."""
    while True:
        optuna.storages.fail_stale_trials(study)
        same = (t for t in counted(study) if t.number < number and t.user_attrs.get("name") == name)
        found = next(same, None)
        if found is None or found.state != TrialState.RUNNING:
            return found
        time.sleep(POLL)


def wait_for_work(study: optuna.Study, limit: int, *, listed: bool) -> bool:
    """True once there is a trial to run, False once all are done; waits for the trials of other processes.

    Args:
      limit: trials in all; `listed`: they come from a list, so all of them are in the queue.
    """
    said = False
    while True:
        optuna.storages.fail_stale_trials(study)
        states = [trial.state for trial in counted(study)]
        if TrialState.WAITING in states or (not listed and len(states) < limit):
            return True
        running = states.count(TrialState.RUNNING)
        if not running:
            return False
        if not said:
            print(
                f"waiting for {running} of other processes; what was killed starts again in {PATIENCE} s",
                flush=True,
            )
            said = True
        time.sleep(POLL)
