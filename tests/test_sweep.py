"""Sweeps: every setting once, on held-out images, and on again after whatever ended it."""

import csv
import json
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import optuna
import pytest
from conftest import tiny_arrays, tiny_config

from simclr_jax.config import flatten
from simclr_jax.errors import DivergedError, SimclrError
from simclr_jax.sweep import results, trials
from simclr_jax.sweep import space as spaces
from simclr_jax.sweep import study as studies

KEEPS = ({"checkpoint.keep": 1}, {"checkpoint.keep": 2})  # one compiled program for both
SEEDS = ({"seed": 0}, {"seed": 1})


@pytest.fixture
def config(tmp_path):
    """A tiny run from an .npz, scored at the end."""
    train, test = tiny_arrays(), tiny_arrays(n=40, seed=7)
    names = ("train_images", "train_labels", "test_images", "test_labels")
    np.savez(tmp_path / "images.npz", **dict(zip(names, (*train, *test), strict=True)))
    return tiny_config(
        data__source=f"npz:{tmp_path / 'images.npz'}", augment__device="all", eval__final=True,
        eval__baselines=False, log__tensorboard=False, augment__jitter=0.0,
    )  # fmt: skip


def start(config, out, points=(), *, suggest=None, limit=None, pruner="none", test=False):
    """(sweep, study) as the command makes them."""
    listed = suggest is None
    space = spaces.Space("space.py", suggest, tuple(points))
    sweep = trials.Sweep(config, space, listed, out, "knn", test, limit or len(points))
    study = studies.open_study("study", f"sqlite:///{out / 'study.db'}", "grid" if listed else "tpe", pruner)
    studies.claim(study, config, "test split" if test else "held-out", "knn", str(out))
    return sweep, study


def pretend(monkeypatch, score):
    """Trials whose score is a function of their config, without training; the list of their workdirs."""
    ran = []

    def run(config, workdir, *, splits, on_eval):
        ran.append(Path(workdir).name)
        scores = {"knn": {"simclr": score(config)}}
        return {"scores": scores, "standard_errors": {"knn": {"simclr": 0.01}}, "steps": 12}

    monkeypatch.setattr(trials.train, "run", run)
    return ran


def states(study):
    return [trial.state.name for trial in study.get_trials()]


# ---- whole sweeps -----------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_grid_runs_every_point_once_on_images_held_out_of_train(config, tmp_path, monkeypatch, capsys):
    seen, train_run = [], trials.train.run

    def spy(config, workdir, *, splits, on_eval):
        seen.append(splits)
        return train_run(config, workdir, splits=splits, on_eval=on_eval)

    monkeypatch.setattr(trials.train, "run", spy)
    sweep, study = start(config, tmp_path, KEEPS)
    trials.run(sweep, study)
    results.report(sweep, study)

    images = [splits.train.fetch(np.arange(splits.train.size))[0] for splits in seen]
    held = [splits.test.fetch(np.arange(splits.test.size))[0] for splits in seen]
    assert [len(images[0]), len(held[0])] == [72, 8]
    of_train = {image.tobytes() for image in tiny_arrays()[0]}
    assert {image.tobytes() for image in (*images[0], *held[0])} == of_train  # disjoint, and no test image
    assert seen[0] is seen[1]  # read once

    output = capsys.readouterr().out
    assert "knn, top-1 on a tenth of the training images, kept from training" in output
    with (tmp_path / "trials.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["workdir"] for row in rows} == {"trials/checkpoint.keep=1", "trials/checkpoint.keep=2"}
    for row in rows:
        summary = json.loads((tmp_path / row["workdir"] / "summary.json").read_text())
        assert summary["config"]["checkpoint"]["keep"] == int(row["checkpoint.keep"])
        assert set(summary["scores"]["knn"]) == {"simclr"}  # no baselines
        assert float(row["scores/knn"]) == summary["scores"]["knn"]["simclr"] == float(row["value"])
    assert (tmp_path / "history.png").exists()
    assert "no importance.png: it takes two parameters" in output

    trials.run(*start(config, tmp_path, KEEPS))
    assert len(seen) == 2


@pytest.mark.slow
def test_an_interrupted_trial_goes_on_from_its_checkpoint(config, tmp_path, monkeypatch):
    def interrupt(step, scores):
        raise KeyboardInterrupt

    config.eval.every.steps = 8
    monkeypatch.setattr(trials, "_report", lambda *_: interrupt)
    with pytest.raises(KeyboardInterrupt):
        trials.run(*start(config, tmp_path, SEEDS[:1]))
    monkeypatch.undo()
    sweep, study = start(config, tmp_path, SEEDS[:1])
    assert states(study) == ["FAIL", "WAITING"]
    trials.run(sweep, study)
    assert states(study) == ["FAIL", "COMPLETE"]
    assert [trial.number for trial in results.ranked(study)] == [1]
    assert [folder.name for folder in (tmp_path / "trials").iterdir()] == ["seed=0"]
    assert json.loads((tmp_path / "trials" / "seed=0" / "summary.json").read_text())["resumed_from"] == 4


def test_a_hopeless_trial_is_pruned(config, tmp_path):
    config.eval.every.steps = 4
    sweep, study = start(config, tmp_path, suggest=lambda trial: KEEPS[0], limit=6, pruner="median")
    for _ in range(5):
        study.add_trial(optuna.create_trial(value=1.1, intermediate_values={1: 1.1, 2: 1.1, 3: 1.1}))
    trials.run(sweep, study)
    assert states(study)[5:] == ["PRUNED"]
    assert list(study.get_trials()[5].intermediate_values) == [1]
    assert not (tmp_path / "trials" / "checkpoint.keep=1" / "summary.json").exists()


def test_a_diverging_trial_fails_with_its_line_and_the_sweep_goes_on(config, tmp_path, monkeypatch, capsys):
    def diverge_at_seed_0(config):
        if config.seed == 0:
            raise DivergedError("loss is nan at step 3: lower config.optimizer.learning_rate")
        return 0.5

    ran = pretend(monkeypatch, diverge_at_seed_0)
    sweep, study = start(config, tmp_path, SEEDS)
    for _ in range(2):
        trials.run(sweep, study)
    results.report(sweep, study)
    assert ran == ["seed=0", "seed=1"]
    assert states(study) == ["FAIL", "COMPLETE"]
    assert "seed=0: loss is nan at step 3: lower config.opt" in capsys.readouterr().out


# ---- several processes, and what was killed ------------------------------------------------------------


def test_a_killed_trial_is_run_again_until_it_has_killed_many(config, tmp_path, monkeypatch):
    monkeypatch.setattr(studies, "HEARTBEAT", 1)
    monkeypatch.setattr(studies, "PATIENCE", 1)
    ran = pretend(monkeypatch, lambda config: 0.5)
    sweep, study = start(config, tmp_path, SEEDS)
    studies.enqueue(study, SEEDS, 2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that what is asked for so has no heartbeat
        killed = study.ask()
    study._storage.record_heartbeat(killed._trial_id)  # and never again
    assert killed.user_attrs["name"] == "seed=0"
    trials.run(sweep, study)  # does the other one, then waits
    assert ran == ["seed=1", "seed=0"]
    assert states(study) == ["FAIL", "COMPLETE", "COMPLETE"]

    often = study.get_trials()[2]
    often.user_attrs["deaths"] = studies.MOST_DEATHS - 1
    studies.bury(study, often)
    assert "killed" in studies.counted(study)[-1].user_attrs["error"]


def test_the_same_settings_twice_run_once(config, tmp_path, monkeypatch):
    ran = pretend(monkeypatch, lambda config: 0.25 * config.seed)

    def suggest(trial):
        seed = 1 + trial.number % 2  # by turns: by chance all six could be the same
        return {"seed": trial.suggest_int("seed", seed, seed)}

    sweep, study = start(config, tmp_path, suggest=suggest, limit=6)
    trials.run(sweep, study)
    assert sorted(ran) == ["seed=1", "seed=2"]
    assert states(study) == ["COMPLETE"] * 6
    assert [trial.value for trial in results.ranked(study)] == [0.5, 0.25]  # the best one first
    assert results.ranked(study)[0].value == study.best_value

    sweep, study = start(config, tmp_path, suggest=suggest, limit=7)  # --trials is that of the study
    trials.run(sweep, study)
    assert len(states(study)) == 7


def test_two_processes_that_queue_the_same_points_run_each_once(config, tmp_path, monkeypatch):
    ran = pretend(monkeypatch, lambda config: 0.5)
    sweep, study = start(config, tmp_path, SEEDS)
    studies.enqueue(study, SEEDS, 2)
    monkeypatch.setattr(studies, "counted", lambda study: [])
    studies.enqueue(study, SEEDS, 2)  # the other one, which has not seen them yet
    monkeypatch.undo()
    ran = pretend(monkeypatch, lambda config: 0.5)
    trials.run(sweep, study)
    assert ran == ["seed=0", "seed=1"]


def test_a_classifier_is_scored_by_its_test_accuracy(config, tmp_path, monkeypatch):
    summary = {"test": {"top1": 0.25, "top1_standard_error": 0.1}, "steps": 12}
    monkeypatch.setattr(trials.train, "run", lambda *_, **__: summary)
    config.task = "supervised"
    sweep, study = start(config, tmp_path, SEEDS[:1])
    trials.run(sweep._replace(metric="top1"), study)
    assert study.best_value == 0.25


def test_points_may_be_added(config, tmp_path, monkeypatch):
    ran = pretend(monkeypatch, lambda config: 0.5)
    trials.run(*start(config, tmp_path, SEEDS[:1]))
    trials.run(*start(config, tmp_path, ({"seed": 9}, *SEEDS)))
    assert ran == ["seed=0", "seed=9", "seed=1"]


# ---- spaces and mistakes --------------------------------------------------------------------------------


def test_names_are_readable_and_tell_settings_apart():
    assert spaces.name({"seed": 1, "loss.temperature": 0.1}) == "loss.temperature=0.1,seed=1"
    assert spaces.name({"augment.crop_area": (0.3, 1.0)}) == "augment.crop_area=0.3-1"
    assert spaces.name({"augment.crop_area": [0.3, 1.0]}) == spaces.name({"augment.crop_area": (0.3, 1.0)})
    close = [spaces.name({"loss.temperature": value}) for value in (0.123456, 0.1234561)]
    assert close[0].startswith("loss.temperature=0.1235,")
    assert len({*close}) == 2
    assert "/" not in spaces.name({"data.source": "npz:/a/b.npz"})
    assert len(spaces.name({f"field{i}": i for i in range(100)})) < 200


def test_a_grid_is_every_combination(tmp_path):
    (tmp_path / "space.py").write_text(
        "GRID = {'seed': (0, 1), 'augment.crop_area': [(0.3, 1.0), (1.0, 1.0)]}"
    )
    points = spaces.load(str(tmp_path / "space.py")).points
    assert [(point["seed"], point["augment.crop_area"][0]) for point in points] == [
        (0, 0.3), (0, 1.0), (1, 0.3), (1, 1.0)
    ]  # fmt: skip
    kinds = spaces.distributions(points)
    assert kinds["augment.crop_area"].choices == ("(0.3, 1.0)", "(1.0, 1.0)")
    assert (kinds["seed"].low, kinds["seed"].high) == (0, 1)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", "must have suggest(trial), or GRID or POINTS; it has neither"),
        ("GRID = {}\nPOINTS = []", "it has GRID and POINTS"),
        ("GRID = {'loss.temprature': (1,)}", "config.loss.temprature: no such field; did you mean"),
        ("GRID = {'loss.temperature': 0.1}", "GRID must be a dict from field to a tuple of values"),
        ("import nothing_of_the_kind", "ModuleNotFoundError: No module named"),
    ],
)
def test_a_wrong_space_is_one_line(tmp_path, text, line):
    (tmp_path / "space.py").write_text(text)
    with pytest.raises(SimclrError) as error:
        spaces.load(str(tmp_path / "space.py"))
    assert str(error.value).startswith(f"--space={tmp_path / 'space.py'}: ")
    assert line in str(error.value)


def test_a_mistake_in_a_trial_ends_the_sweep(config, tmp_path):
    wrong = (
        ({"loss.temperature": "warm"}, r"config\.loss\.temperature='warm': must be of type float"),
        ({"loss.temperature": -1.0}, r"config\.loss\.temperature=-1\.0: must be above 0"),
        ({"loss.hotness": 1.0}, r"--space=space\.py: config\.loss\.hotness: no such field"),
        (7, r"suggest\(\) must return a dict"),
    )
    for settings, line in wrong:
        sweep, study = start(config, tmp_path, suggest=lambda trial, s=settings: s, limit=1)
        with pytest.raises(SimclrError, match=line):
            trials.run(sweep, study)
        assert not studies.counted(study)  # put right, the same command goes on


def test_another_sweep_in_the_same_folder_is_refused(config, tmp_path, monkeypatch):
    pretend(monkeypatch, lambda config: 0.5)
    trials.run(*start(config, tmp_path, SEEDS))
    config.train.steps = 13
    with pytest.raises(SimclrError, match=r"images: held-out -> test split; config\.train\.steps: 12 -> 13"):
        start(config, tmp_path, SEEDS, test=True)


# ---- the command ------------------------------------------------------------------------------------------


def command(*more):
    return [sys.executable, "-m", "simclr_jax.sweep", "--config=configs/quickstart.py", *more]


@pytest.mark.slow
def test_the_command_is_interrupted_and_goes_on(config, tmp_path):
    (tmp_path / "config.py").write_text(
        "from simclr_jax import config\n\n\ndef get_config():\n    c = config.default()\n"
        f"    for field, value in {flatten(config)!r}.items():\n"
        "        config.set_field(c, field, value)\n    return c\n"
    )
    (tmp_path / "space.py").write_text("suggest = lambda trial: {'seed': trial.suggest_int('seed', 0, 0)}")
    given = [
        sys.executable, "-m", "simclr_jax.sweep",
        f"--config={tmp_path / 'config.py'}", f"--space={tmp_path / 'space.py'}",
        f"--out={tmp_path / 'out'}", "--trials=1", "--test",
    ]  # fmt: skip
    process = subprocess.Popen(given, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    while not process.stdout.readline().startswith("== trial 0: seed=0"):
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    output = process.communicate(timeout=60)[0]
    assert process.returncode == 130, output
    assert output.strip().endswith(
        "error: interrupted; the same command goes on from the trial's last checkpoint"
    )
    done = subprocess.run(given, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "knn, top-1 on the test split" in done.stdout
    assert [path.name for path in (tmp_path / "out" / "trials").iterdir()] == ["seed=0"]


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ([], "--space is missing"),
        (["--space=nowhere.py"], "--space=nowhere.py: no such file"),
        (["--space=tools/ablations/projection.py", "--sampler=tpe"], "has no suggest(trial)"),
        (["--space=tools/ablations/projection.py", "--metric=speed"], "--metric=speed: must be knn, "),
        (["--space=tools/ablations/projection.py", "--workdir=here"], "--workdir: not of a sweep"),
    ],
)
def test_a_wrong_command_is_one_line(given, line):
    done = subprocess.run(command(*given), capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert line in done.stderr
    assert done.stderr.count("\n") == 1


def test_without_optuna_the_extra_is_named():
    code = (
        "import importlib.util as u, runpy, sys; found = u.find_spec\n"
        "u.find_spec = lambda name, *more: None if name == 'optuna' else found(name, *more)\n"
        "runpy.run_path('tools/sweep.py', run_name='__main__')"
    )
    given = ["--config=configs/quickstart.py", "--space=tools/ablations/projection.py"]
    done = subprocess.run([sys.executable, "-c", code, *given], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == "error: optuna is missing: pip install 'simclr_jax[sweep]'\n"
