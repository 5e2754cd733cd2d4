"""`tfds:NAME`: data sets that TensorFlow Datasets has prepared."""

import itertools
import os
from collections.abc import Callable
from typing import Any

import numpy as np

from simclr_jax.data import pixels
from simclr_jax.data.formats import Reading
from simclr_jax.data.labels import Labels
from simclr_jax.data.sources import Source, Splits, Stream, from_records, of_arrays
from simclr_jax.data.tf import load as load_tensorflow
from simclr_jax.errors import SimclrError
from simclr_jax.paths import expand


def size_of(builder: Any, split: str) -> int:
    """How many examples a split has."""
    try:
        return builder.info.splits[split].num_examples
    except (KeyError, ValueError):
        raise SimclrError(
            f"tfds:{builder.info.full_name}/{split}: no such split; there are "
            f"{', '.join(sorted(builder.info.splits))} "
            "(config.data.train_split, config.data.test_split; an empty test_split for none)"
        ) from None


def builder_of(name: str, data_dir: str | None, download: bool) -> Any:
    """The builder of a prepared data set; prepares it first if it may `download`."""
    load_tensorflow()
    import tensorflow_datasets as tfds

    where = os.fspath(expand(data_dir or os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")))
    remedy = f"prepare it in {where}, or let TFDS download it with --config.data.download=True"
    try:
        builder = tfds.builder(name, data_dir=where)
    except (tfds.core.registered.DatasetNotFoundError, ValueError, ImportError) as error:
        line = str(error).strip().splitlines()[0] if str(error) else type(error).__name__
        raise SimclrError(f"config.data.source='tfds:{name}': {line}; {remedy}") from None
    if not builder.info.splits:
        if not download:
            raise SimclrError(f"config.data.source='tfds:{name}': not in {where}; {remedy}")
        print(f"tfds:{name}: downloading {builder.info.download_size} into {where}", flush=True)
        try:
            builder.download_and_prepare()
        except Exception as error:  # no network, no space, files to be fetched by hand: TFDS says which
            line = " ".join(str(error).split())
            raise SimclrError(f"tfds:{name}: TFDS could not prepare it: {line}") from None
    return builder


def load(
    name: str,
    data_dir: str | None,
    download: bool,
    splits: tuple[str, str],
    memory_gb: float,
    buffer: int,
    reading: Reading,
) -> Splits:
    """The splits of a data set that TFDS has prepared; kept in memory if they fit."""
    builder = builder_of(name, data_dir, download)
    features = builder.info.features
    if "image" not in features:
        raise SimclrError(f"tfds:{name}: has {', '.join(features)}, but no feature named image")
    classes = tuple(getattr(features["label"], "names", ())) if "label" in features else ()
    options = (classes, memory_gb, buffer, reading)
    train, test = splits
    return Splits(
        _tfds_split(builder, train, *options), _tfds_split(builder, test, *options) if test else None
    )


def _tfds_split(
    builder: Any, split: str, classes: tuple[str, ...], memory_gb: float, buffer: int, reading: Reading
) -> Source | Stream:
    import tensorflow_datasets as tfds

    name, size = f"tfds:{builder.info.full_name}/{split}", size_of(builder, split)
    shape = builder.info.features["image"].shape
    records = builder.info.file_format is tfds.core.FileFormat.ARRAY_RECORD
    if None not in shape and size * np.prod(shape) <= memory_gb * 2**30:
        images, labels = _read_all(_open(builder, split, records), size, shape, bool(classes))
        images, notes = pixels.read(images, name)
        # They are numbers of the classes already.
        named = None if labels is None or not (labels >= 0).any() else Labels(labels, classes, ())
        return of_arrays(images, named, name=name, notes=notes)
    first = [row["label"] for row in itertools.islice(_open(builder, split, records), 16)] if classes else ()
    classes = classes if any(label >= 0 for label in first) else ()  # some splits have names but no labels
    if records:
        raw = {"image": tfds.decode.SkipDecoding()}
        rows = builder.as_data_source(split, decoders=raw)
        return from_records(rows, name=name, classes=classes, reading=reading)
    return Stream(
        name=name,
        size=size,
        classes=classes,
        open=_open_stream(builder, split, bool(classes)),
        fingerprint=f"{name} {size}",
        buffer=buffer,
        reading=reading,
    )


def _open(builder: Any, split: str, records: bool) -> Any:
    import tensorflow_datasets as tfds

    if records:
        return builder.as_data_source(split)
    return tfds.as_numpy(builder.as_dataset(split=split, shuffle_files=False))


def _read_all(rows: Any, size: int, shape: tuple[int, ...], labelled: bool) -> tuple:
    images = np.empty((size, *shape), np.uint8)
    labels = np.empty(size, np.int32) if labelled else None
    for i, row in enumerate(rows):
        images[i] = row["image"]
        if labels is not None:
            labels[i] = row["label"]
    return images, labels


def _open_stream(builder: Any, split: str, labelled: bool) -> Callable[..., Any]:
    def open_split(seed: int | None, process: int, processes: int) -> Any:
        tf = load_tensorflow()
        import tensorflow_datasets as tfds

        shares = tfds.even_splits(split, processes) if processes > 1 else [split]
        dataset = builder.as_dataset(
            split=shares[process],
            shuffle_files=seed is not None,
            decoders={"image": tfds.decode.SkipDecoding()},
            read_config=tfds.ReadConfig(shuffle_seed=seed, interleave_cycle_length=16),
        )
        no_label = tf.constant(-1, tf.int32)
        return dataset.map(
            lambda row: (row["image"], tf.cast(row["label"], tf.int32) if labelled else no_label)
        )

    return open_split
