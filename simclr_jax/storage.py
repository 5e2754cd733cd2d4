"""Turns write errors of a full, read-only or broken disk into one line."""

import contextlib
import errno
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from simclr_jax import paths
from simclr_jax.errors import SimclrError, StorageError, one_line

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
CLOSED = (errno.EROFS, errno.EACCES, errno.EPERM)
# Never a programmer's mistake: where such an error gets through, it still ends a command with one line.
DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ESTALE)
WRITING = re.compile(r"error writing|failed writing|failed to write", re.I)
NUMBER = re.compile(r"os_error_code='(\d+)'|OS error (\d+)")


@contextlib.contextmanager
def writing(path: str | os.PathLike, needs: int = 0) -> Iterator[None]:
    """Context manager to write `path`: raises StorageError, one line, if the disk is the cause.

    Args:
      needs: the bytes that have to fit, if known.
    """
    try:
        yield
    except StorageError:
        raise
    except Exception as error:
        if not is_storage(error):
            raise
        raise StorageError(line(path, error, needs)) from error


def is_storage(error: BaseException) -> bool:
    """Whether this error of a write is a disk error; TensorStore raises ValueError with a text."""
    return isinstance(error, OSError) or bool(WRITING.search(str(error)) or NUMBER.search(str(error)))


def line(path: str | os.PathLike, error: BaseException, needs: int = 0) -> str:
    """What cannot be written, why, and what to do."""
    number = _number(error)
    why = os.strerror(number) if number else one_line(error)
    if number in FULL:
        room = free(path)
        why += f", {told(room)} free" if room is not None else ""
        why += f", {told(needs)} needed" if needs else ""
    remedy = "put that right"
    if number in FULL:
        remedy = "make room there"
    elif number in CLOSED:
        remedy = "make it writable"
    return f"{os.fspath(path)}: cannot be written ({why}); {remedy}, and the same command goes on"


def check_room(workdir: str | os.PathLike, size: int, kept: int, keep: int, saves: int) -> None:
    """Raises SimclrError if the disk has no room for the checkpoints of a run.

    Args:
      size: bytes of a checkpoint.
      kept: how many there are already.
      keep: how many are kept; one more exists while it is written.
      saves: how many will be written.
    """
    room, more = free(workdir), min(saves, keep + 1 - min(kept, keep))
    if room is None or room >= more * size:
        return
    raise SimclrError(
        f"--workdir={os.fspath(workdir)}: {told(room)} free, and {more} more checkpoints of {told(size)} "
        f"have to fit; lower config.checkpoint.keep={keep}, choose another --workdir, or make room there"
    )


def probe(folder: str | os.PathLike, size: int = 2**16) -> None:
    """Raises StorageError where a file of `size` bytes cannot be written; leaves none. Never for gs://."""
    if paths.is_remote(folder):
        return
    with writing(folder, size):
        os.makedirs(folder, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(size))


def free(path: str | os.PathLike) -> int | None:
    """Free bytes on the file system of `path`, which need not exist; None if unknown (gs://)."""
    if paths.is_remote(path):
        return None
    place = Path(path).absolute()
    for folder in (place, *place.parents):
        with contextlib.suppress(OSError):
            return shutil.disk_usage(folder).free
    return None


def told(size: float) -> str:
    """Bytes as text with a unit: '4.2 MB'."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def _number(error: BaseException) -> int:
    """The system's error number, 0 where there is none."""
    if isinstance(error, OSError) and error.errno:
        return error.errno
    found = NUMBER.search(str(error))
    return int(found[1] or found[2]) if found else 0
