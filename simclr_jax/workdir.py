"""The folder of a run: whether the run may use it, and the notes in it."""

import contextlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from etils import epath
from ml_collections import ConfigDict

from simclr_jax import files, paths
from simclr_jax.config import CONFIG_FILE, adopt_old_behaviour, differences, load_config
from simclr_jax.errors import DamagedError, SimclrError
from simclr_jax.text import printable

MANY = 10_000  # entries of a folder that are looked at
WRITTEN = ("checkpoints", "figures", "eval", "wandb")  # folders in a workdir
UNREADABLE = "bad_images{}.jsonl"  # of the first process; of the others with their number


def check(workdir: epath.Path, config: ConfigDict) -> None:
    """Raises SimclrError if the workdir is a file, or would put figures among the training images."""
    workdir = paths.expand(workdir)
    if workdir.exists() and not workdir.is_dir():
        raise SimclrError(f"--workdir={workdir}: is a file; give a folder")
    if not paths.is_remote(workdir):
        _check_local(workdir)
    kind, _, where = config.data.source.partition(":")
    if kind != "folder":
        return
    images = paths.of_source(where, config.data.data_dir)
    if any(paths.is_within(workdir, folder) for folder in (images, *_linked(images))):
        raise SimclrError(f"--workdir={workdir}: lies in the folder of images {images}; choose one outside")
    for name in WRITTEN:
        if paths.is_within(images, workdir / name):
            raise SimclrError(
                f"--workdir={workdir}: the run writes {name}/ there, and that holds the images {images}; "
                "choose another"
            )


def _check_local(workdir: epath.Path) -> None:
    """Raises SimclrError if the workdir cannot be created or is not writable."""
    there = paths.absolute(workdir)
    try:
        with contextlib.suppress(FileNotFoundError):
            os.stat(there)
    except OSError as error:  # a part of it is a file, a name is too long, links go round
        raise SimclrError(f"--workdir={workdir}: {error.strerror}; choose another") from None
    while not there.exists():
        there = there.parent
    if not os.access(there, os.W_OK | os.X_OK):
        raise SimclrError(f"--workdir={workdir}: you may not write in {there}; choose another")


def _linked(folder: epath.PathLike, depth: int = 2) -> Iterator[str]:
    """Folders elsewhere that are linked from the folder of images or a subfolder."""
    with contextlib.suppress(OSError), os.scandir(folder) as entries:  # lost+found can be read by root only
        for number, entry in enumerate(entries):
            if number == MANY:  # files of a class, not folders: a look at each link would take minutes
                return
            if entry.is_symlink() and entry.is_dir():
                yield entry.path
            elif depth > 1 and entry.is_dir(follow_symlinks=False):
                yield from _linked(entry.path, depth - 1)


def compare(workdir: epath.Path, config: ConfigDict, data: dict[str, Any], trained: bool) -> ConfigDict:
    """Compares the config of a run with the config.json that is in its workdir.

    Args:
      data: identifies the training images: {examples, fingerprint}.
      trained: there is a checkpoint.

    Returns:
      the config, with the old behaviour of fields that the workdir's own version did not have.

    Raises:
      SimclrError: the workdir was made by another config or from other images.
    """
    path = workdir / CONFIG_FILE
    config = config.copy_and_resolve_references()
    if not path.exists():
        if trained:
            raise SimclrError(
                f"{workdir} has checkpoints but no {CONFIG_FILE}: choose another --workdir, or write it anew "
                "with --resume=force"
            )
        return config
    try:
        old, old_data = load_config(workdir)
    except DamagedError as error:
        raise DamagedError(
            f"{error}; bring it back from a copy, choose another --workdir, or write it anew with "
            "--resume=force"
        ) from None
    adopt_old_behaviour(config, files.read_text(path))
    changed = differences(old, config)
    changed += [
        f"training images, {name}: {old_data.get(name)!r} -> {value!r}"
        for name, value in data.items()
        if old_data and old_data.get(name) != value
    ]
    if changed:
        lines = "\n  ".join(changed)
        remedy = "go on all the same" if trained else "begin it anew (nothing is trained there yet)"
        raise SimclrError(
            f"{workdir} holds a run that differs in:\n  {lines}\n"
            f"Choose another --workdir, or {remedy} with --resume=force"
        )
    return config


def note_unreadable(
    workdir: epath.Path, found: Mapping[str, str], say: Callable[[str], None], process: int = 0
) -> list[str]:
    """Records unreadable files {name: why}, reports each one once; returns all names so far."""
    path = workdir / UNREADABLE.format(f".{process}" if process else "")
    before = _unreadable(path) if path.is_file() else {}
    shown = {printable(name, None): printable(found[name], None) for name in sorted(found)}
    new = {name: why for name, why in shown.items() if name not in before}
    if new:
        rows = [{"path": name, "reason": why} for name, why in (before | new).items()]
        files.write(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
        for name, why in new.items():
            say(f"unreadable, replaced by the next file: {name} ({why})")
    return sorted(unreadable(workdir))


def unreadable(workdir: epath.Path) -> dict[str, str]:
    """{name: why} of all processes, since the run began."""
    everyones = [each for each in workdir.glob(UNREADABLE.format("*")) if each.is_file()]
    return {name: why for each in everyones for name, why in _unreadable(each).items()}


def _unreadable(path: epath.Path) -> dict[str, str]:
    """{name: why}, without incomplete lines."""
    found = {}
    for line in files.read_text(path).splitlines():
        with contextlib.suppress(ValueError, KeyError, TypeError):
            row = json.loads(line)
            found[str(row["path"])] = str(row["reason"])
    return found
