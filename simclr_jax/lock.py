"""A lock on the workdir, which process 0 holds during a run.

On one host it is a kernel lock (`flock`), which the end of the process always frees. For workdirs that
several hosts share, the file also is a lease: its owner renews it, and another host takes it over if it has
not changed for a while. Without file locks (gs://) there is only the lease, as a best effort.
"""

import contextlib
import functools
import json
import os
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from typing import IO, Any

from etils import epath

from simclr_jax import files, paths, signals, storage
from simclr_jax.errors import SimclrError, StorageError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

FILE = ".lock"
BEAT = 15.0  # seconds between two renewals
DEAD = 60.0  # seconds without a renewal after which the owner counts as gone
LENGTH = 1024  # bytes of the file
SETTLE = 3.0  # seconds after which a lease that nobody else has written is ours


@contextlib.contextmanager
def hold(workdir: epath.PathLike, say: Callable[[str], None] = print) -> Iterator[Callable[[], None]]:
    """Holds the workdir within `with`; makes the folder where there is none.

    Yields a function that raises SimclrError if another host has taken over the lease in the meantime.

    A lease of another host that nobody renews is taken over after DEAD seconds, and `say` tells of the wait.

    Raises:
      SimclrError: another run holds it.
    """
    workdir = epath.Path(workdir)
    path = workdir / FILE
    try:
        made = _make(workdir)
        held = _acquire(path, say)
    except OSError as error:
        raise StorageError(f"--workdir={storage.line(workdir, error, LENGTH)}") from None
    try:
        mine = {"owner": uuid.uuid4().hex, "host": socket.gethostname(), "pid": os.getpid()}
        mine["command"] = " ".join(sys.argv).encode("ascii", "replace").decode()[:300]
        with storage.writing(path, LENGTH):
            _write(path, mine, 0)
        if held is None:  # two may have written: the last one wins
            time.sleep(SETTLE)
            if files.read_json(path).get("owner") != mine["owner"]:
                raise _taken(workdir, files.read_json(path))
        stop, lost = threading.Event(), threading.Event()
        beats = threading.Thread(target=_renew, args=(path, mine, stop, lost), daemon=True)
        beats.start()
        try:
            with signals.last_word(functools.partial(_release, path, mine["owner"])):
                yield functools.partial(_check, workdir, lost)
        finally:
            stop.set()
            beats.join(timeout=10)
            _release(path, mine["owner"])
    finally:
        if held is not None:
            held.close()
        with contextlib.suppress(OSError):
            if made and not any(workdir.iterdir()):
                workdir.rmdir()


def _make(workdir: epath.Path) -> bool:
    """Makes the folder; returns whether it is new."""
    if workdir.exists():
        return False
    workdir.mkdir(parents=True, exist_ok=True)
    return True


def _acquire(path: epath.Path, say: Callable[[str], None]) -> IO[str] | None:
    """The locked file, or None if there is only the lease; waits until no other run owns either.

    Raises:
      SimclrError: another run shows signs of life.
    """
    here, (held, blocked) = socket.gethostname(), _flock(path)
    lease = files.read_json(path)
    if blocked and lease.get("host", here) == here:
        raise _taken(path.parent, lease)
    free = not lease.get("owner") or (held is not None and lease.get("host") == here)
    if free and not blocked:
        return held
    say(f"{os.fspath(path.parent)}: {_whose(lease)} had it; waiting {DEAD:.0f} s for a sign of life")
    try:
        end = time.monotonic() + DEAD
        while time.monotonic() < end:
            time.sleep(min(1.0, DEAD / 10))
            now = files.read_json(path)
            if now.get("owner") and now != lease:
                raise _taken(path.parent, now)
            if blocked:
                held, blocked = _flock(path)
            if not blocked and not now.get("owner"):
                return held
        if blocked:
            raise _taken(path.parent, lease)
    except BaseException:  # Ctrl-C in a notebook, which would keep the file open
        if held is not None:
            held.close()
        raise
    return held


def _flock(path: epath.Path) -> tuple[IO[str] | None, bool]:
    """(the file, open and locked; whether another process has it); (None, False): there are no locks here."""
    if fcntl is None or paths.is_remote(path):
        return None, False
    while True:
        file = open(os.fspath(path), "a+")  # noqa: SIM115 - stays open as long as it is held
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.close()
            return None, isinstance(error, BlockingIOError)  # the others: ENOLCK, EOPNOTSUPP
        try:  # released and removed between the two calls: another file has its name by now
            same = os.path.samestat(os.fstat(file.fileno()), os.stat(path))
        except FileNotFoundError:
            same = False
        if same:
            return file, False
        file.close()


def _renew(path: epath.Path, mine: dict[str, Any], stop: threading.Event, lost: threading.Event) -> None:
    """Writes the lease anew every BEAT seconds, until `stop`; sets `lost` where another has it.

    It first checks early: if two hosts started together, the last writer keeps the lease.
    """
    beat, wait = 0, SETTLE
    while not stop.wait(wait):
        beat, wait = beat + 1, BEAT
        with contextlib.suppress(Exception):  # a full disk, or whatever a bucket's client raises
            if files.read_json(path).get("owner", mine["owner"]) != mine["owner"]:
                lost.set()
                return
            _write(path, mine, beat)


def _check(workdir: epath.Path, lost: threading.Event) -> None:
    if lost.is_set():
        raise _taken(workdir, files.read_json(workdir / FILE))


def _write(path: epath.Path, mine: dict[str, Any], beat: int) -> None:
    """Writes in place, because the lock belongs to the file; the length is fixed, so reads see it whole."""
    text = json.dumps({**mine, "beat": beat}).ljust(LENGTH)
    if paths.is_remote(path) or not path.exists():
        path.write_text(text)
        return
    with open(os.fspath(path), "r+") as file:
        file.write(text)
        file.truncate()


def _release(path: epath.Path, owner: str) -> None:
    with contextlib.suppress(Exception):
        if files.read_json(path).get("owner") == owner:
            path.unlink()


def _whose(lease: dict[str, Any]) -> str:
    return f"another run (process {lease.get('pid', '?')} on {lease.get('host', '?')})"


def _taken(workdir: epath.Path, lease: dict[str, Any]) -> SimclrError:
    return SimclrError(
        f"--workdir={os.fspath(workdir)}: {_whose(lease)} is training there; wait until it ends, or choose "
        "another --workdir"
    )
