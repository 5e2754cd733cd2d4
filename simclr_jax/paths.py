"""Handles paths from users: expands ~, keeps gs:// URLs, and resolves links.

`pathlib` turns gs:// into gs:/, and so do `absolute` and `resolve` of `etils.epath`: every path from outside
goes through this file.
"""

import os
from pathlib import Path

from etils import epath

from simclr_jax.errors import SimclrError


def is_remote(path: epath.PathLike) -> bool:
    """Whether the path is a URL: gs://BUCKET/x, say."""
    return "://" in os.fspath(path)


def expand(path: epath.PathLike) -> epath.Path:
    """The path with ~ and ~USER replaced by that home folder, as shells do only in some places.

    Raises:
      SimclrError: there is no such user, or the path is invalid.
    """
    text = os.fspath(path)
    if "\0" in text:
        raise SimclrError(f"{text!r}: no path has the character 0")
    if is_remote(text) or not text.startswith("~"):
        return epath.Path(text)
    home = os.path.expanduser(text)
    if home.startswith("~"):
        user = text.split("/")[0]
        raise SimclrError(f"{text}: there is no user {user[1:]}; write ./{user} for a folder of that name")
    return epath.Path(home)


def absolute(path: epath.PathLike) -> epath.Path:
    """The path from the root on; a URL is left as it is."""
    path = expand(path)
    return path if is_remote(path) else epath.Path(os.path.abspath(path))


def local(path: epath.PathLike, option: str) -> epath.Path:
    """The expanded path of the command line's `option`, which has to be on this machine.

    Raises:
      SimclrError: it is a URL.
    """
    if is_remote(path):
        raise SimclrError(f"{option}={os.fspath(path)}: must be a local path; copy it from there")
    return expand(path)


def of_source(where: epath.PathLike, data_dir: str | None = None) -> epath.Path:
    """The path of folder:PATH, list:FILE or npz:PATH; a relative one begins in `data_dir`."""
    path = expand(where)
    return expand(data_dir) / path if data_dir and not is_remote(path) and not path.is_absolute() else path


def local_source(kind: str, where: epath.PathLike, data_dir: str | None = None) -> Path:
    """Like `of_source`, for a source `kind`:`where` that has to be on this machine.

    Raises:
      SimclrError: it is a URL.
    """
    path = of_source(where, data_dir)
    if is_remote(path):
        raise SimclrError(f"{kind}:{path}: must be a local path; copy the images from there, or mount it")
    return Path(path)


def real(path: epath.PathLike) -> str:
    """The absolute path with links resolved; a URL is unchanged."""
    path = expand(path)
    return os.fspath(path) if is_remote(path) else os.path.realpath(path)


def is_within(path: epath.PathLike, folder: epath.PathLike) -> bool:
    """Whether `path` (which need not exist) is or is inside `folder`; resolves links, .. and mounts."""
    if is_remote(path) or is_remote(folder):
        here, there = epath.Path(real(path)), epath.Path(real(folder))
        return is_remote(path) == is_remote(folder) and (here == there or there in here.parents)
    here, there = real(path), real(folder)
    while True:
        if here == there or _is_same(here, there):
            return True
        parent = os.path.dirname(here)
        if parent == here:
            return False
        here = parent


def _is_same(path: str, other: str) -> bool:
    """Whether both are the same folder on disk, for example by another mount or in other case."""
    try:
        return os.path.samefile(path, other)
    except OSError:  # one of them does not exist
        return False
