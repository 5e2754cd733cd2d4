"""Finds the train and test split that `config.data` names."""

import importlib.resources
from typing import Any

from simclr_jax.data import arrays, folders, lists, tfds
from simclr_jax.data.holdout import held_out
from simclr_jax.data.sources import Splits
from simclr_jax.errors import SimclrError
from simclr_jax.paths import local_source

__all__ = ["Splits", "held_out", "load"]


def load(
    source: str,
    *,
    data_dir: str | None = None,
    download: bool = False,
    train_split: str = "train",
    test_split: str = "test",
    holdout: float = 0.1,
    memory_gb: float = 2.0,
    shuffle_buffer: int = 16384,
    **_: Any,  # what config.data says of the pipeline
) -> Splits:
    """The splits of `tfds:NAME`, `folder:PATH`, `list:FILE`, `npz:PATH` or `builtin:mnist5k`.

    The arguments are the fields of `config.data`, explained there.

    Raises:
      SimclrError: nothing is there, or it is not what the source says.
    """
    kind, _, where = source.partition(":")
    names = (train_split, test_split)
    if kind == "builtin":
        with importlib.resources.as_file(importlib.resources.files(__package__)) as here:
            return arrays.load(here / f"{where}.npz", None, holdout)
    if kind == "npz":
        return arrays.load(where, data_dir, holdout)
    if kind == "folder":
        return folders.load(local_source(kind, where, data_dir), *names, holdout)
    if kind == "list":
        return lists.load(local_source(kind, where, data_dir), *names, holdout)
    if kind == "tfds":
        splits = tfds.load(where, data_dir, download, names, memory_gb, shuffle_buffer)
        _check_classes(splits)
        return splits
    raise SimclrError(f"config.data.source={source!r}: give the arrays to run(), or see --help")


def _check_classes(splits: Splits) -> None:
    """Raises SimclrError where a TFDS test split names classes that the train split does not."""
    known = set(splits.train.classes)
    if splits.test and known and (unknown := [c for c in splits.test.classes if c not in known]):
        raise SimclrError(
            f"{splits.test.name}: the test split has classes that the train split lacks: "
            + ", ".join(unknown[:5])
        )
