"""Tries settings of a config's fields with Optuna; the same command goes on, and several processes share it.

    simclr sweep --config=NAME --space=FILE [--trials=N] [--metric=knn] [--test] [OPTIONS]
                 [--config.FIELD=VALUE ...]

  --config   a recipe's name or a Python file, as for training
  --space    Python file with suggest(trial) -> {"loss.temperature": trial.suggest_float(...), ...}, or
             GRID = {"loss.temperature": (0.1, 0.5), ...}, or POINTS = [{"loss.temperature": 0.1}, ...]
  --trials   in all, over all calls and processes (default: 20; of a grid all points)
  --metric   top-1 accuracy to maximise: knn (default), linear_all, linear_1000, linear_100; top1 for the
             tasks supervised and distill
  --test     scores on the test split, to reproduce published tables; without it on a tenth of the training
             images, kept from training, and the test split is left alone
  --sampler  tpe, random, or grid for GRID and POINTS (default: what the space has; tpe)
  --pruner   median ends trials whose accuracy while training (config.eval.every) is below the median of the
             others' at the same evaluation, none does not (default: median; of a grid none)
  --out      folder of trials/, study.db, trials.csv, history.png, importance.png
             (default: runs/sweeps/CONFIG_SPACE)
  --storage  database URL of the study, for several hosts (default: sqlite:///OUT/study.db)
  --study    its name in the database (default: CONFIG_SPACE)

`python -m simclr_jax.sweep` is the same command. A trial takes all devices its process sees. One process a
device, all with the same command:

    for gpu in 0 1; do CUDA_VISIBLE_DEVICES=$gpu simclr sweep ... & done; wait
"""

import importlib.util
import sys
from pathlib import Path
from typing import Any, cast

from absl import app, flags, logging
from ml_collections import ConfigDict

from simclr_jax import command, main, paths
from simclr_jax.config import adopt_start, checks
from simclr_jax.errors import SimclrError
from simclr_jax.sweep import space as spaces

SPACE = flags.DEFINE_string("space", None, "Python file that says what to try")
TRIALS = flags.DEFINE_integer("trials", None, "trials in all", lower_bound=1)
OUT = flags.DEFINE_string("out", None, "folder of the sweep")
STORAGE = flags.DEFINE_string("storage", None, "database URL")
STUDY = flags.DEFINE_string("study", None, "name in the database")
SAMPLER = flags.DEFINE_enum("sampler", None, ["tpe", "random", "grid"], "who chooses the settings")
PRUNER = flags.DEFINE_enum("pruner", None, ["median", "none"], "who ends hopeless trials")
METRIC = flags.DEFINE_string("metric", None, "accuracy to maximise")
TEST = flags.DEFINE_bool("test", False, "score on the test split")

FOREIGN = ("workdir", "resume", "coordinator", "processes", "process")  # options of main
METRICS = ("knn", "linear_all", "linear_1000", "linear_100")  # of pretraining
DEFAULT_TRIALS = 20


def parse(argv: list[str]) -> list[str]:
    """The command line."""
    if {"-h", "--help", "-help"} & set(argv):
        print((__doc__ or "").strip())
        sys.exit(0)
    return main.parse(argv)


def prepare() -> tuple:
    """The sweep and the study that the flags describe."""
    if SPACE.value is None:
        raise SimclrError("--space is missing: a Python file with suggest(trial), GRID or POINTS")
    for name in FOREIGN:
        if flags.FLAGS[name].present:
            raise SimclrError(f"--{name}: not of a sweep; --out says where its trials are kept")
    if importlib.util.find_spec("optuna") is None:
        raise SimclrError("optuna is missing: pip install 'simclr_jax[sweep]'")
    space, config = spaces.load(str(paths.local(SPACE.value, "--space"))), base_config()
    sampler, metric = choose_sampler(space), choose_metric(config)
    listed = sampler == "grid"
    for point in space.points if listed else ():
        spaces.apply(config, point)

    from simclr_jax.sweep import study as studies  # late: a mistake is answered at once
    from simclr_jax.sweep import trials

    name = f"{Path(cast(Any, flags.FLAGS['config']).config_filename).stem}_{Path(space.path).stem}"
    out = Path(paths.local(OUT.value or f"runs/sweeps/{name}", "--out"))
    limit = TRIALS.value or (len(space.points) if listed else DEFAULT_TRIALS)
    sweep = trials.Sweep(config, space, listed, out, metric, TEST.value, limit)
    url = STORAGE.value or f"sqlite:///{out / 'study.db'}"
    pruner = PRUNER.value or ("none" if listed else "median")
    study = studies.open_study(STUDY.value or name, url, sampler, pruner)
    studies.claim(study, config, "test split" if sweep.test else "held-out", metric, str(out))
    return sweep, study


def base_config() -> ConfigDict:
    """The config that all trials share."""
    config = main.CONFIG.value.copy_and_resolve_references()
    if not config.eval.final:
        raise SimclrError("config.eval.final=False: a sweep compares the final scores; set it True")
    config.eval.baselines = False  # the same in every trial: the best one's config shows them
    checks.validate(adopt_start(config))
    return config


def choose_sampler(space: spaces.Space) -> str:
    """The sampler that is asked for, or that the space is made for."""
    sampler = SAMPLER.value or ("tpe" if space.suggest else "grid")
    if sampler == "grid" and not space.points:
        raise SimclrError(f"--sampler=grid: {space.path} has neither GRID nor POINTS")
    if sampler != "grid" and not space.suggest:
        raise SimclrError(f"--sampler={sampler}: {space.path} has no suggest(trial); leave it out")
    return sampler


def choose_metric(config: ConfigDict) -> str:
    """The metric that is asked for, or the first one of the task."""
    names = METRICS if config.task == "pretrain" else ("top1",)
    metric = METRIC.value or names[0]
    if metric not in names:
        raise SimclrError(f"--metric={metric}: must be {', '.join(names)}")
    return metric


def sweep(argv: list[str]) -> None:
    """Runs the trials that are left, then reports."""
    del argv
    logging.set_verbosity(logging.WARNING)  # Orbax tells every step of a save
    with command.ends("goes on from the trial's last checkpoint"):
        what, study = prepare()
        from simclr_jax.sweep import results, trials

        trials.run(what, study)
        results.report(what, study)


def start() -> None:
    """Runs the process's command line."""
    app.run(sweep, flags_parser=parse)


if __name__ == "__main__":
    start()
