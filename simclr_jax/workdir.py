"""The folder of a run: whose it is, and what is noted in it."""

import itertools
from collections.abc import Callable, Iterable
from typing import Any

from etils import epath
from ml_collections import ConfigDict

from simclr_jax import config as cfg
from simclr_jax import files
from simclr_jax.errors import DamagedError, SimclrError

UNREADABLE = "unreadable_files{}.txt"  # of the first process; of the others with their number


def check(workdir: epath.Path, config: ConfigDict) -> None:
    """Raises SimclrError where the workdir is a file, or would put figures among the training images."""
    if workdir.exists() and not workdir.is_dir():
        raise SimclrError(f"--workdir={workdir}: is a file; give a folder")
    kind, _, where = config.data.source.partition(":")
    images = epath.Path(config.data.data_dir or "") / where
    inside = workdir == images or images in workdir.parents
    if kind == "folder" and (inside or workdir.resolve() == images.resolve()):
        raise SimclrError(f"--workdir={workdir}: lies in the folder of images {images}; choose one outside")


def compare(workdir: epath.Path, config: ConfigDict, data: dict[str, Any], trained: bool) -> ConfigDict:
    """Compares the config of a run with the config.json that is in its workdir.

    Args:
      data: identifies the training images: {examples, fingerprint}.
      trained: there is a checkpoint.

    Returns:
      the config, with the old behaviour of fields that the workdir's own version did not have.

    Raises:
      SimclrError: what is there was made by another config or from other images.
    """
    path = workdir / cfg.FILE
    config = config.copy_and_resolve_references()
    if not path.exists():
        if trained:
            raise SimclrError(
                f"{workdir} has checkpoints but no {cfg.FILE}: choose another --workdir, or write it anew "
                "with --resume=force"
            )
        return config
    try:
        old, old_data = cfg.load(workdir)
    except DamagedError as error:
        raise DamagedError(
            f"{error}; bring it back from a copy, choose another --workdir, or write it anew with "
            "--resume=force"
        ) from None
    cfg.adopt_old_behaviour(config, files.read_text(path))
    changed = cfg.differences(old, config)
    changed += [
        f"training images, {name}: {old_data.get(name)!r} -> {value!r}"
        for name, value in data.items()
        if old_data and old_data.get(name) != value
    ]
    if changed:
        differences = "\n  ".join(changed)
        remedy = "go on all the same" if trained else "begin it anew (nothing is trained there yet)"
        raise SimclrError(
            f"{workdir} holds a run that differs in:\n  {differences}\n"
            f"Choose another --workdir, or {remedy} with --resume=force"
        )
    return config


def set_aside(path: epath.Path, workdir: epath.Path) -> epath.Path:
    """Moves something damaged into `workdir/damaged`, under a name that is free there; nothing is deleted."""
    folder = workdir / "damaged"
    folder.mkdir(parents=True, exist_ok=True)
    names = (f"{path.name}.{number}" if number else path.name for number in itertools.count())
    place = next(folder / name for name in names if not (folder / name).exists())
    path.rename(place)
    return place


def printable(name: str) -> str:
    """A file's name in one line of UTF-8: a line break in it, or a byte that is no text, is spelt out."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in name)


def note_unreadable(
    workdir: epath.Path, names: Iterable[str], say: Callable[[str], None], process: int = 0
) -> list[str]:
    """Keeps the names of unreadable files over interruptions, says each once; all names so far."""
    path = workdir / UNREADABLE.format(f".{process}" if process else "")
    before = files.read_text(path).splitlines() if path.exists() else []
    new = sorted({printable(name) for name in names} - set(before))
    if new:
        files.write(path, "".join(f"{name}\n" for name in before + new))
        for name in new:
            say(f"unreadable, replaced by the next file: {name}")
    everyones = workdir.glob(UNREADABLE.format("*"))
    return sorted({name for each in everyones for name in files.read_text(each).splitlines()})
