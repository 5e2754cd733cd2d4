"""The run that is tortured: its command, its end, and whether two runs are equal to the bit."""

import atexit
import contextlib
import io
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from simclr_jax import checkpoint, metrics, train
from simclr_jax.config import set_field
from tortures import machine, tiny

ROOT = Path(__file__).parents[2]
DECISIVE = ("step", "loss", "grad_norm", "learning_rate", "contrast_accuracy", "contrast_entropy",
            "probe_loss", "knn_top1")  # fmt: skip
LONG = 240.0  # seconds that a command may take on a busy machine


class Lab(NamedTuple):
    """Where the runs are made."""

    out: Path
    images: Path

    def fresh(self, name: str) -> Path:
        """An empty place for a run."""
        path = self.out / "runs" / name
        shutil.rmtree(path, ignore_errors=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        return path


class Ended(NamedTuple):
    """How a command ended; `code` is negative for a signal that killed it."""

    code: int
    out: str
    err: str

    @property
    def tidy(self) -> str:
        """What an end must not look like, "" where all is well: a traceback, many lines."""
        lines = [line for line in self.err.splitlines() if line.strip()]
        if "Traceback" in self.out + self.err:
            return f"a traceback: {lines[-1] if lines else self.out[-200:]}"
        return f"{len(lines)} lines on stderr: {self.err[:300]!r}" if len(lines) > 3 else ""


def make_lab(out: Path) -> Lab:
    """The folder of all runs, with the images; the compiled programs are kept in it too."""
    out.mkdir(parents=True, exist_ok=True)
    out = out.resolve()
    images = out / "images.npz"
    rng, labels = np.random.default_rng(0), np.arange(96) % 4
    pixels = rng.integers(0, 256, (96, 8, 8, 1)).astype(np.uint8)
    np.savez(images, x_train=pixels[:64], y_train=labels[:64], x_test=pixels[64:], y_test=labels[64:])
    return Lab(out, images)


# ---- as a command -------------------------------------------------------------------------------


def environment(lab: Lab, **more: str) -> dict[str, str]:
    """Of a command: one CPU device, compiled programs from the folder."""
    own = machine.variables(lab.out) | {"PYTHONUNBUFFERED": "1", "PYTHONPATH": str(ROOT)}
    return os.environ | own | more


def command(lab: Lab, workdir: Path, **fields: Any) -> list[str]:
    """The command that trains the tiny run; __ in the fields stands for dots."""
    options = [f"--config.{name.replace('__', '.')}={value}" for name, value in fields.items()]
    program = [sys.executable, "-m", "simclr_jax.main", f"--config={tiny.__file__}"]
    return [*program, f"--config.data.source=npz:{lab.images}", f"--workdir={workdir}", *options]


class Started:
    """A command under way, in a session of its own, so that what it leaves behind is found."""

    def __init__(self, lab: Lab, words: list[str], **environ: str):
        atexit.register(self.kill)  # where this tool ends before it
        logs = lab.out / "logs"
        logs.mkdir(exist_ok=True)
        self._paths = [logs / f"{time.time_ns()}.{kind}" for kind in ("out", "err")]
        with self._paths[0].open("wb") as out, self._paths[1].open("wb") as err:
            self.process = subprocess.Popen(
                words,
                cwd=ROOT,
                env=environment(lab, **environ),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
            )
        self.ended = False

    def said(self) -> str:
        """Its standard output so far."""
        return self._paths[0].read_text(errors="replace")

    def running(self) -> bool:
        """Whether the command itself is still there."""
        return self.process.poll() is None

    def left(self) -> bool:
        """Whether anything of its session is still there."""
        try:
            os.killpg(self.process.pid, 0)
        except (ProcessLookupError, PermissionError):
            return False
        return True

    def kill(self) -> None:
        """SIGKILL to all of it, as a power cut."""
        if self.ended:  # its number may be another's by now
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)

    def end(self, seconds: float = LONG) -> Ended:
        """Waits for the end; a command that takes longer is killed and has the code 124, as of `timeout`."""
        try:
            code = self.process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            self.process.wait()
            code = 124
        self.ended = not self.left()
        out, err = (path.read_text(errors="replace") for path in self._paths)
        for path in self._paths:
            path.unlink()
        return Ended(code, out, err)


def start(lab: Lab, workdir: Path, **fields: Any) -> Started:
    """The training command, under way."""
    return Started(lab, command(lab, workdir, **fields))


def run(lab: Lab, workdir: Path, **fields: Any) -> Ended:
    """The training command, from start to end."""
    return start(lab, workdir, **fields).end()


def reference(lab: Lab, name: str = "never", **fields: Any) -> Path:
    """The workdir of a run that nothing happened to; made once."""
    workdir = lab.out / "reference" / name
    if not (workdir / "summary.json").exists():
        shutil.rmtree(workdir, ignore_errors=True)
        ended = run(lab, workdir, **fields)
        if ended.code:
            raise RuntimeError(f"the run that nothing happens to fails: {ended.err or ended.out}")
    return workdir


# ---- in this process ----------------------------------------------------------------------------


def config(lab: Lab, **fields: Any) -> ConfigDict:
    """The config that `command` gives; a later `config.start` or duration is set likewise."""
    c = tiny.get_config()
    c.data.source = f"npz:{lab.images}"
    for name, value in fields.items():
        set_field(c, name.replace("__", "."), value)
    return c


def inside(lab: Lab, workdir: Path, **fields: Any) -> str:
    """Trains in this process; what it printed. What `train.run` raises passes."""
    text = io.StringIO()
    with contextlib.redirect_stdout(text):
        train.run(config(lab, **fields), workdir)
    return text.getvalue()


@contextlib.contextmanager
def stderr_caught() -> Iterator[list[str]]:
    """Within `with` everything that is written to the file descriptor 2, by C++ too, goes into the list."""
    said: list[str] = []
    sys.stderr.flush()
    before, read = os.dup(2), os.memfd_create("stderr")
    os.dup2(read, 2)
    try:
        yield said
    finally:
        sys.stderr.flush()
        os.dup2(before, 2)
        os.close(before)
        os.lseek(read, 0, os.SEEK_SET)
        said.append(os.fdopen(read, "r", errors="replace").read())


# ---- equal to the bit ---------------------------------------------------------------------------


def rows(workdir: Path) -> list[dict[str, Any]]:
    """Of metrics.jsonl what does not depend on the clock."""
    return [{key: row.get(key) for key in DECISIVE} for row in metrics.read_rows(workdir)]


def last_step(workdir: Path) -> int:
    """The step of the last row written, 0 before the first."""
    try:
        found = metrics.read_rows(workdir)
        return found[-1]["step"] if found else 0
    except (OSError, UnicodeDecodeError):
        return 0


def arrays(workdir: Path, step: int) -> dict[str, np.ndarray]:
    """Every array of a checkpoint."""
    return checkpoint.read(workdir / "checkpoints", step).arrays


def differing(mine: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> str:
    """The first array that is not equal to the bit, "" for none."""
    if mine.keys() != theirs.keys():
        return f"{min(mine.keys() ^ theirs.keys())} is only in one of them"
    return next((name for name, array in mine.items() if array.tobytes() != theirs[name].tobytes()), "")


def difference(workdir: Path, whole: Path) -> str:
    """How a run differs from one that nothing happened to, "" where it is equal to the bit."""
    steps = [checkpoint.saved_steps(path / "checkpoints") for path in (workdir, whole)]
    if not steps[0] or steps[0][-1] != steps[1][-1]:
        return f"its checkpoints are {steps[0]}, not {steps[1]}"
    name = differing(arrays(workdir, steps[0][-1]), arrays(whole, steps[1][-1]))
    if name:
        return f"{name} differs at step {steps[0][-1]}"
    mine, theirs = rows(workdir), rows(whole)
    if mine != theirs:
        at = next((i for i, pair in enumerate(zip(mine, theirs, strict=False)) if pair[0] != pair[1]), -1)
        return f"metrics.jsonl differs: {len(mine)} rows for {len(theirs)}, first in row {at}"
    return ""


def went_on(lab: Lab, workdir: Path, whole: Path, **fields: Any) -> str:
    """Runs the command again, to the end; what is wrong then, "" for nothing."""
    ended = run(lab, workdir, **fields)
    if ended.code:
        return f"the same command does not go on (exit code {ended.code}): {(ended.err or ended.out)[-300:]}"
    return difference(workdir, whole)
