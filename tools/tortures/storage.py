"""A full disk and a read-only one, at each kind of write: one line, an exit code, and later the right end."""

import contextlib
import os
import random
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from tortures import runs
from tortures.results import Faults, Outcome
from tortures.runs import Ended, Lab

FIELDS = {"eval__final": True, "eval__baselines": False, "eval__figures": True}
ENDS = 60.0  # seconds on an idle machine, start-up and compilation counted
SIZE = 16 << 20  # bytes of the disk
KINDS = (
    "disk full",
    "no inodes left",
    "disk full while it trains",
    "workdir read-only",
    "checkpoints read-only",
)


def faults(lab: Lab, tries: int, rng: random.Random) -> Faults:
    """Each kind in turn; how much room is left is random."""
    return Faults(tries, _all(lab, tries, rng))


def _all(lab: Lab, tries: int, rng: random.Random) -> Iterator[Outcome]:
    try:
        with _disk(lab, "size=1m"):
            pass
    except (OSError, subprocess.CalledProcessError) as error:
        yield Outcome("all", None, f"skipped: no file system can be mounted here ({error})")
        return
    whole = runs.reference(lab, "stored", **FIELDS)
    used = sum(path.stat().st_size + 4096 for path in whole.rglob("*"))
    makers = (_full, _inodes, _filled, _read_only, _checkpoints_read_only)
    for number in range(tries):
        kind = number % len(KINDS)
        wrong = makers[kind](lab, whole, used, rng)
        ok = not wrong.startswith("!")
        yield Outcome(KINDS[kind], ok, wrong.removeprefix("!"))


@contextlib.contextmanager
def _disk(lab: Lab, options: str) -> Iterator[Path]:
    """A file system of its own in memory."""
    where = lab.fresh("disk")
    where.mkdir()
    _sh("mount", "-t", "tmpfs", "-o", options, "tmpfs", str(where))
    try:
        yield where
    finally:
        _sh("umount", "-l", str(where))


def _sh(*words: str) -> None:
    subprocess.run(words, check=True, capture_output=True)


def _fill(disk: Path, room: int) -> Path:
    """Leaves so many bytes."""
    ballast, system = disk / "ballast", os.statvfs(disk)
    size = max(0, system.f_bavail * system.f_frsize - room)
    with ballast.open("ab") as file, contextlib.suppress(OSError):  # the run takes some of it meanwhile
        if size:
            os.posix_fallocate(file.fileno(), 0, size)
    return ballast


def _judge(ended: Ended, seconds: float) -> str:
    """What is wrong with the end of a command that could not write, "" for nothing."""
    if ended.code == 0:
        return ""  # what it had sufficed
    if ended.code < 0 or ended.code == 124:
        return f"exit code {ended.code}, after {seconds:.0f} s: {ended.err[-300:]}"
    if seconds > ENDS * 2:
        return f"it took {seconds:.0f} s"
    return ended.tidy or ("" if ended.err.strip() else "it fails without a word")


def _then_goes_on(lab: Lab, ended: Ended, begin: float, workdir: Path, whole: Path, make_room) -> str:
    wrong = _judge(ended, time.monotonic() - begin)
    if wrong:
        return f"!{wrong}"
    make_room()
    wrong = runs.went_on(lab, workdir, whole, **FIELDS)
    if wrong:
        return f"!with room again: {wrong}"
    return "one line, later the right end" if ended.code else "room sufficed"


def _full(lab: Lab, whole: Path, used: int, rng: random.Random) -> str:
    """From the start, with room for some of what the run writes."""
    with _disk(lab, f"size={SIZE}") as disk:
        ballast = _fill(disk, rng.choice((0, rng.randrange(used), rng.randrange(used))))
        begin, workdir = time.monotonic(), disk / "run"
        ended = runs.run(lab, workdir, **FIELDS)
        return _then_goes_on(lab, ended, begin, workdir, whole, ballast.unlink)


def _inodes(lab: Lab, whole: Path, used: int, rng: random.Random) -> str:
    """Room enough, but for so many files only."""
    count = rng.randrange(2, len(list(whole.rglob("*"))) + 20)
    with _disk(lab, f"size={SIZE},nr_inodes={count}") as disk:
        begin, workdir = time.monotonic(), disk / "run"
        ended = runs.run(lab, workdir, **FIELDS)

        def make_room() -> None:
            _sh("mount", "-o", f"remount,size={SIZE},nr_inodes=10000", str(disk))

        return _then_goes_on(lab, ended, begin, workdir, whole, make_room)


def _filled(lab: Lab, whole: Path, used: int, rng: random.Random) -> str:
    """The disk fills up at a random step."""
    with _disk(lab, f"size={SIZE}") as disk:
        begin, workdir, step = time.monotonic(), disk / "run", rng.randint(1, 119)
        started = runs.start(lab, workdir, **FIELDS)
        while started.running() and runs.last_step(workdir) < step:
            time.sleep(0.005)
        begin = time.monotonic()
        ballast = _fill(disk, rng.choice((0, rng.randrange(100_000))))
        ended = started.end()
        return _then_goes_on(lab, ended, begin, workdir, whole, ballast.unlink)


def _read_only(lab: Lab, whole: Path, used: int, rng: random.Random) -> str:
    """Before the start; the workdir is there, or not yet."""
    with _disk(lab, f"size={SIZE}") as disk:
        workdir = disk / "run"
        if rng.random() < 0.5:
            workdir.mkdir()
        _sh("mount", "-o", "remount,ro", str(disk))
        begin = time.monotonic()
        ended = runs.run(lab, workdir, **FIELDS)
        if ended.code == 0:
            return "!it says that it could write"

        def make_room() -> None:
            _sh("mount", "-o", "remount,rw", str(disk))

        return _then_goes_on(lab, ended, begin, workdir, whole, make_room)


def _checkpoints_read_only(lab: Lab, whole: Path, used: int, rng: random.Random) -> str:
    """Everything can be written but checkpoints."""
    with _disk(lab, f"size={SIZE}") as disk:
        workdir, folder = disk / "run", disk / "run" / "checkpoints"
        folder.mkdir(parents=True)
        _sh("mount", "--bind", str(folder), str(folder))
        _sh("mount", "-o", "remount,bind,ro", str(folder))
        begin = time.monotonic()
        ended = runs.run(lab, workdir, **FIELDS)

        def make_room() -> None:
            _sh("umount", "-l", str(folder))

        if ended.code == 0:
            make_room()
            return "!it says that it saved"
        return _then_goes_on(lab, ended, begin, workdir, whole, make_room)
