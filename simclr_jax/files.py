"""Files that survive a kill at any moment."""

import contextlib
import errno
import itertools
import json
import os
import pathlib
import shutil
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from etils import epath

from simclr_jax import storage
from simclr_jax.errors import SimclrError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

OLD = ".old"  # ends the name of what `move` replaces


def write(path: epath.Path, text: str) -> None:
    """Replaces a file as a whole: a kill leaves the old or the new one, never half of it.

    Raises:
      StorageError: the disk is full or read-only; the old file is still there.
    """
    with replacing(path, len(text.encode())) as half:
        half.write_text(text)


@contextlib.contextmanager
def replacing(path: epath.Path, needs: int = 0) -> Iterator[epath.Path]:
    """Yields a temporary path, which replaces `path` if the `with` block succeeds.

    Args:
      needs: the bytes that will be written, where they are known.
    """
    half = path.with_name(path.name + ".tmp")
    with storage.writing(path, needs):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield half
            half.replace(path)
        except OSError:
            with contextlib.suppress(OSError):
                half.unlink(missing_ok=True)
            raise


@contextlib.contextmanager
def staged(out: pathlib.Path) -> Iterator[pathlib.Path]:
    """A folder beside `out`, from which finished files `move` to their places; it vanishes at the end.

    After a kill it stays, and the same command clears it away.

    Raises:
      SimclrError: another command is writing `out`.
      StorageError: the disk is full or read-only.
    """
    place = out.with_name(f".{out.name}.tmp")
    with storage.writing(out):
        place.mkdir(parents=True, exist_ok=True)
        with _alone(place, out):
            _put_back(place, out)  # after a kill
            for each in place.iterdir():
                if each.is_dir() and not each.is_symlink():
                    shutil.rmtree(each)
                else:
                    each.unlink()
            try:
                yield place
            finally:
                _put_back(place, out)
                shutil.rmtree(place, ignore_errors=True)


def _put_back(place: pathlib.Path, out: pathlib.Path) -> None:
    """Undoes a `move` that ended between its two renames."""
    old = place / (out.name + OLD)
    if os.path.lexists(old) and not os.path.lexists(out):
        old.replace(out)


@contextlib.contextmanager
def _alone(folder: pathlib.Path, out: pathlib.Path) -> Iterator[None]:
    """Holds a folder, where the system can (not on Windows, and not on every mount)."""
    if fcntl is None:
        yield
        return
    held = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SimclrError(f"{out}: another command is writing it; wait for its end") from None
        except OSError as error:
            if error.errno not in (errno.ENOTSUP, errno.ENOSYS, errno.ENOLCK):
                raise
        if not folder.exists() or not os.path.samestat(os.fstat(held), os.stat(folder)):
            raise SimclrError(f"{out}: another command has just written it; start again")
        yield
    finally:
        os.close(held)


def move(file: pathlib.Path, folder: pathlib.Path) -> pathlib.Path:
    """Moves a file or folder into another folder, in place of what had its name; returns the new path."""
    place = folder / file.name
    if not place.is_dir() and not (file.is_dir() and place.exists()):
        return file.replace(place)
    old = place.replace(file.with_name(file.name + OLD))  # one rename does not replace a folder
    try:
        return file.replace(place)  # the old one vanishes with the folder of `staged`
    except BaseException:
        old.replace(place)
        raise


def write_arrays(path: os.PathLike, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> None:
    """Writes a .safetensors file that others may read as the umask says; the library's own they may not."""
    from safetensors.numpy import save_file

    save_file({name: np.asarray(x, order="C") for name, x in arrays.items()}, path, dict(metadata))
    mask = os.umask(0)
    os.umask(mask)
    os.chmod(path, 0o666 & ~mask)


def set_aside(path: epath.Path, workdir: epath.Path) -> epath.Path:
    """Moves something damaged into `workdir/damaged`, under a name that is free there; nothing is deleted."""
    folder = workdir / "damaged"
    with storage.writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    names = (f"{path.name}.{number}" if number else path.name for number in itertools.count())
    place = next(folder / name for name in names if not (folder / name).exists())
    with storage.writing(place):
        path.rename(place)
    return place


def read_text(path: epath.Path) -> str:
    """A file's text; bytes that are no UTF-8 become replacement characters instead of an exception."""
    return path.read_bytes().decode(errors="replace")


def read_json(path: epath.Path) -> dict[str, Any]:
    """The JSON object in a file, {} if the file is missing or damaged."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}
