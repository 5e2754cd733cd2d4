"""Runs small trainings of every kind and compares them, bit by bit, with those of another version.

    python tools/golden.py --write=before.json        # in the version to hold on to
    python tools/golden.py --compare=before.json      # after a change that must change no result

Each case trains 12 steps on a few digits. The losses and a checksum of every array of the last checkpoint are
kept, of one case the predictions of an evaluation. Run both commands on the same machine with the same JAX
and flags: other processors round differently. --cases=quickstart,supcon runs these alone.
"""

import contextlib
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import numpy as np
from absl import app, flags, logging
from ml_collections import ConfigDict

from simclr_jax import checkpoint, metrics, paths, storage, train
from simclr_jax import main as command
from simclr_jax.config import default, duration, flatten, set_field
from simclr_jax.data import splits
from simclr_jax.data.splits import Splits
from simclr_jax.errors import SimclrError, one_line

WRITE = flags.DEFINE_string("write", None, "file to write the checksums to")
COMPARE = flags.DEFINE_string("compare", None, "file to compare with")
CASES_FLAG = flags.DEFINE_list("cases", None, "cases to run; left out: all")

STEPS, BATCH = 12, 16
TRAIN, TEST = 160, 80  # digits
LAUNCH = Path(__file__).parent / "launch" / "local.py"
DEFAULTS = Path(__file__).parent / "bench" / "defaults.py"


def small(**overrides: Any) -> ConfigDict:
    """The quickstart, tiny; overrides are dotted fields with __ for dots."""
    c = default()
    c.data.source = "builtin:mnist5k"
    c.data.image_size, c.data.channels = 28, 1
    c.augment.device, c.augment.flip, c.augment.rotation = "all", 0.0, 15.0
    c.augment.crop_area = (0.35, 1.0)
    c.model.encoder, c.model.width, c.model.projection_dim = "cnn", 0.25, 16
    c.optimizer.name, c.optimizer.learning_rate, c.optimizer.scaling = "adamw", 1e-2, "none"
    c.optimizer.warmup = duration(steps=2)
    c.train.steps, c.train.batch_size = STEPS, BATCH
    c.mesh.devices = 1
    c.log.every, c.checkpoint.every = duration(steps=1), duration(steps=6)
    c.log.tensorboard = c.eval.final = c.eval.figures = False
    c.eval.every, c.eval.batch_size = duration(), 40
    c.eval.linear.iterations = 10
    for name, value in overrides.items():
        set_field(c, name.replace("__", "."), value)
    return c


RESNET = {"model__encoder": "resnet", "model__depth": 18, "model__stem": "cifar"}
PRETRAINING = {
    "quickstart": {},
    "resnet18": {**RESNET, "train__steps_per_call": 1},
    "resnet18_calls": {**RESNET, "train__steps_per_call": 16},
    "photometric": {"augment__device": "photometric"},
    "host": {"augment__device": "none"},
    "microbatches": {"train__microbatch": 8, "loss__name": "nt_xent"},
    "simclrv2": {
        **RESNET, "model__depth": 50, "model__sk_ratio": 0.0625,
        "model__projection_layers": 3, "model__dropblock_keep": (1.0, 1.0, 0.9, 0.9),
        "optimizer__name": "lars", "optimizer__learning_rate": 0.1,
    },
    "supcon": {"loss__name": "supcon"},
}  # fmt: skip
FOLLOWING = {  # these begin with the encoder of "quickstart"
    "supervised": {"task": "supervised"},
    "distill": {"task": "distill"},
    "heads": {"task": "linear_sweep"},
}


def digits() -> Splits:
    """A few digits for training and a few others for tests."""
    whole = splits.load(**small().data)
    return Splits(whole.train.subset(np.arange(TRAIN)), whole.test.subset(np.arange(TEST)))


def pretrained(fields: dict[str, Any], folder: Path) -> dict[str, Any]:
    """A case of PRETRAINING."""
    train.run(small(**fields), folder, splits=digits())
    return sums(folder)


def following(fields: dict[str, Any], folder: Path) -> dict[str, Any]:
    """A case of FOLLOWING; its start is trained beside it."""
    start = folder.with_name(f"{folder.name}_start")
    train.run(small(), start, splits=digits())
    if fields["task"] == "distill":  # a teacher needs a classifier
        first, start = start, folder.with_name(f"{folder.name}_teacher")
        train.run(small(task="supervised", start__workdir=str(first)), start, splits=digits())
        fields = {**fields, "distill__teacher": str(start)}
    else:
        fields = {**fields, "start__workdir": str(start)}
    train.run(small(**fields), folder, splits=digits())
    return sums(folder)


def two_processes(folder: Path) -> dict[str, Any]:
    """The quickstart on two processes of one device each, all digits."""
    ours, defaults = flatten(small(mesh__devices=0)), flatten(default())
    fields = [f"--config.{name}={value}" for name, value in ours.items() if defaults[name] != value]
    options = [f"--config={DEFAULTS}", *fields, f"--workdir={folder}"]
    run = [sys.executable, "-m", "simclr_jax.main", *options]
    command_line("two_processes", str(LAUNCH), "--processes=2", "--devices=1", "--", *run)
    return sums(folder)


def evaluated(folder: Path) -> dict[str, Any]:
    """The predictions of an evaluation of the quickstart, all digits."""
    train.run(small(), folder)
    command_line(
        "evaluation", "-m", "simclr_jax.evaluate", f"--workdir={folder}", "--protocols=features,knn,lbfgs"
    )
    found = {}
    for path in sorted(folder.glob("**/predictions/*.npz")):
        with np.load(path) as arrays:
            found |= {f"{path.stem}/{name}": checksum(arrays[name]) for name in arrays.files}
    return {"arrays": found}


def command_line(case: str, *words: str) -> None:
    """Runs Python with these words, for a case.

    Raises:
      SimclrError: it fails; the case, and the last line that was said.
    """
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SimclrError(f"{case}: {(done.stderr.strip().splitlines() or ['failed'])[-1]}")


def sums(folder: Path) -> dict[str, Any]:
    """{losses: as hexadecimal floats, arrays: {name: checksum}} of a run."""
    arrays = checkpoint.read(folder / "checkpoints", STEPS).arrays
    rows = metrics.read_rows(folder)
    return {
        "losses": [float(row["loss"]).hex() for row in rows if "loss" in row],
        "arrays": {name: checksum(array) for name, array in sorted(arrays.items())},
    }


def checksum(array: np.ndarray) -> str:
    """Of dtype, shape and bytes."""
    array = np.ascontiguousarray(array)
    return hashlib.sha256(f"{array.dtype} {array.shape} ".encode() + array.tobytes()).hexdigest()[:16]


def cases() -> dict[str, Callable[[Path], dict[str, Any]]]:
    """{name: function of an empty folder}."""
    found: dict[str, Callable] = {n: lambda f, c=c: pretrained(c, f) for n, c in PRETRAINING.items()}
    found |= {n: lambda f, c=c: following(c, f) for n, c in FOLLOWING.items()}
    return {**found, "two_processes": two_processes, "evaluation": evaluated}


def differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What differs in a case, by name; [] where all bits are equal."""
    found = []
    if before.get("losses") != now.get("losses"):
        pairs = zip(before.get("losses", []), now.get("losses", []), strict=False)
        step = next((i for i, (a, b) in enumerate(pairs, 1) if a != b), None)
        found.append(f"losses from step {step} on" if step else "the number of losses")
    for name in sorted(before["arrays"].keys() | now["arrays"].keys()):
        if before["arrays"].get(name) != now["arrays"].get(name):
            found.append(name)
    return found


def read(name: str) -> dict[str, Any]:
    """The cases of a file that --write made.

    Raises:
      SimclrError: it is not one, or another version of JAX made it.
    """
    try:
        found = json.loads(Path(paths.local(name, "--compare")).read_text())
        cases, version = found["cases"], found["jax"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SimclrError(f"--compare={name}: not a file that --write made ({one_line(error)})") from None
    if version != jax.__version__:
        raise SimclrError(
            f"--compare={name}: made with jax {version}, this is {jax.__version__}; write it anew"
        )
    return cases


def main(argv: list[str]) -> None:
    """Runs the cases, and writes or compares."""
    del argv
    logging.set_verbosity(logging.WARNING)
    if bool(WRITE.value) == bool(COMPARE.value):
        raise SimclrError("give either --write=FILE or --compare=FILE")
    every = cases()
    wanted = list(every) if CASES_FLAG.value is None else CASES_FLAG.value
    if not wanted:
        raise SimclrError(f"--cases: must name some of {', '.join(every)}")
    if unknown := [name for name in wanted if name not in every]:
        raise SimclrError(f"--cases={unknown[0]}: must be among {', '.join(every)}")
    before = read(COMPARE.value) if COMPARE.value else {}
    if missing := [name for name in wanted if before and name not in before]:
        raise SimclrError(f"--compare={COMPARE.value}: has no case {missing[0]}; --cases={','.join(before)}")
    if WRITE.value:
        where = Path(paths.local(WRITE.value, "--write"))
        storage.probe(str(where.parent))
    now, differ = {}, 0
    for name in wanted:
        # Runs print; here the cases alone are of interest.
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
            now[name] = every[name](Path(folder) / name)
        if before:
            found = differences(before[name], now[name])
            differ += bool(found)
            said = "equal to the bit" if not found else f"DIFFERS in {len(found)}: {', '.join(found[:4])}"
        else:
            said = f"{len(now[name]['arrays'])} arrays"
        print(f"{name}: {said}", flush=True)
    if WRITE.value:
        where.write_text(json.dumps({"jax": jax.__version__, "cases": now}, indent=1) + "\n")
        print(where)
    if differ:
        raise SimclrError(f"{differ} of {len(wanted)} cases differ")


if __name__ == "__main__":
    try:
        app.run(main)
    except SimclrError as error:
        command.fail(error)
