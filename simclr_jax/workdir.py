"""The folder of a run: whose it is, and what is noted in it."""

from collections.abc import Callable, Iterable
from typing import Any

from etils import epath
from ml_collections import ConfigDict

from simclr_jax import config as cfg
from simclr_jax import files
from simclr_jax.errors import SimclrError

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


def claim(
    workdir: epath.Path,
    config: ConfigDict,
    data: dict[str, Any],
    *,
    trained: bool,
    force: bool = False,
) -> ConfigDict:
    """Compares the config with the config.json that is there.

    Args:
      data: identifies the training images: {examples, fingerprint}.
      trained: there is a checkpoint, so that another config must not go on from it.
      force: go on all the same.

    Returns:
      the config, with the old behaviour of fields that the workdir's own version did not have.

    Raises:
      SimclrError: what is there was made by another config or from other images.
    """
    config, path = config.copy_and_resolve_references(), workdir / cfg.FILE
    if trained and not path.exists():
        raise SimclrError(f"{workdir} has checkpoints but no {cfg.FILE}: choose another --workdir")
    if trained:
        text = path.read_text()
        old, old_data = cfg.from_json(text)
        cfg.adopt_old_behaviour(config, text)
        changed = cfg.differences(old, config)
        changed += [
            f"training images, {name}: {old_data.get(name)!r} -> {value!r}"
            for name, value in data.items()
            if old_data and old_data.get(name) != value
        ]
        if changed and not force:
            differences = "\n  ".join(changed)
            raise SimclrError(
                f"{workdir} holds a run that differs in:\n  {differences}\n"
                "Choose another --workdir, or go on all the same with --resume=force"
            )
    return config


def note_unreadable(
    workdir: epath.Path, names: Iterable[str], say: Callable[[str], None], process: int = 0
) -> list[str]:
    """Keeps the names of unreadable files over interruptions, says each once; all names so far."""
    path = workdir / UNREADABLE.format(f".{process}" if process else "")
    before = path.read_text().splitlines() if path.exists() else []
    new = sorted(set(names) - set(before))
    if new:
        files.write(path, "".join(f"{name}\n" for name in before + new))
        for name in new:
            say(f"unreadable, replaced by the next file: {name}")
    everyones = workdir.glob(UNREADABLE.format("*"))
    return sorted({name for each in everyones for name in each.read_text().splitlines()})
