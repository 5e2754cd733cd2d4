"""Finds the train and test split that `config.data` names."""

import importlib.resources
from typing import Any

import numpy as np

from simclr_jax.data import arrays, folders, lists, survey, tfds
from simclr_jax.data.formats import Reading
from simclr_jax.data.holdout import holdout_rows
from simclr_jax.data.sources import Source, Splits
from simclr_jax.errors import SimclrError
from simclr_jax.paths import local_source

__all__ = ["Splits", "check_channels", "holdout_rows", "load"]


def load(
    source: str,
    *,
    data_dir: str | None = None,
    download: bool = False,
    train_split: str = "train",
    test_split: str = "test",
    holdout: float = 0.1,
    channels: int = 0,
    memory_gb: float = 2.0,
    shuffle_buffer: int = 16384,
    **more: Any,  # fields of Reading, and messages about the pipeline
) -> Splits:
    """The splits of `tfds:NAME`, `folder:PATH`, `list:FILE`, `npz:PATH` or `builtin:mnist5k`.

    The arguments are the fields of `config.data`, explained there.

    Raises:
      SimclrError: the path is missing, or its content does not fit the kind of source.
    """
    reading = Reading.of(**more)
    names = (train_split, test_split)
    splits = _load(source, names, data_dir, download, holdout, memory_gb, shuffle_buffer, reading)
    check_channels(splits, channels)
    return survey.look(splits, reading)


def _load(
    source: str,
    names: tuple[str, str],
    data_dir: str | None,
    download: bool,
    holdout: float,
    memory_gb: float,
    shuffle_buffer: int,
    reading: Reading,
) -> Splits:
    kind, _, where = source.partition(":")
    if kind == "builtin":
        with importlib.resources.as_file(importlib.resources.files("simclr_jax.data")) as here:
            return arrays.load(here / f"{where}.npz", None, holdout)
    if kind == "npz":
        return arrays.load(where, data_dir, holdout)
    if kind == "folder":
        return folders.load(local_source(kind, where, data_dir), *names, holdout, reading)
    if kind == "list":
        return lists.load(local_source(kind, where, data_dir), *names, holdout, reading)
    if kind == "tfds":
        splits = tfds.load(where, data_dir, download, names, memory_gb, shuffle_buffer, reading)
        _check_classes(splits)
        return splits
    raise SimclrError(f"config.data.source={source!r}: give the arrays to run(), or see --help")


def check_channels(splits: Splits, channels: int) -> None:
    """Raises SimclrError if arrays have other channels than `config.data.channels`; 0: not yet known.

    Only gray and RGB are converted into each other.
    """
    for split in splits:
        if not channels or not isinstance(split, Source) or split.kind != "array":
            continue
        have = split.fetch(np.zeros(1, int))[0].shape[-1]
        if have != channels and {have, channels} != {1, 3}:
            raise SimclrError(
                f"{split.name}: the images have {have} channels: set --config.data.channels={have}, or save "
                "gray or RGB images"
            )


def _check_classes(splits: Splits) -> None:
    """Raises SimclrError if a TFDS test split names classes that the train split does not."""
    known = set(splits.train.classes)
    if splits.test and known and (unknown := [c for c in splits.test.classes if c not in known]):
        raise SimclrError(
            f"{splits.test.name}: the test split has classes that the train split lacks: "
            + ", ".join(unknown[:5])
        )
