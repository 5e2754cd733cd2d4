"""Images with several labels each, for evaluation (VOC2007): `npz:PATH` and `tfds:NAME`."""

from typing import Any, NamedTuple

import numpy as np

from simclr_jax.data import arrays as npz
from simclr_jax.data import tfds as prepared
from simclr_jax.data.formats import Reading
from simclr_jax.data.labels import is_one_hot
from simclr_jax.data.sources import Source, Splits, from_arrays, from_records
from simclr_jax.errors import SimclrError


class MultiLabel(NamedTuple):
    """Images and the classes that each contains: `{train, test: [n, classes] bool}`."""

    splits: Splits
    targets: dict[str, np.ndarray]


def load(
    source: str,
    *,
    data_dir: str | None = None,
    download: bool = False,
    train_split: str = "train",
    test_split: str = "test",
    **more: Any,
) -> MultiLabel | None:
    """The set that `source` names, or None if its images have one label each.

    In an .npz file the labels are `[n, classes]` of 0 and 1, in a TFDS set a sequence of classes (`labels`).

    Raises:
      SimclrError: nothing is there, or a split of it is missing.
    """
    kind, _, where = source.partition(":")
    if kind == "npz":
        return _npz(where, data_dir)
    if kind == "tfds":
        names = {"train": train_split, "test": test_split}
        return _tfds(where, data_dir, download, names, Reading.of(**more))
    return None


def _npz(where: str, data_dir: str | None) -> MultiLabel | None:
    path, arrays = npz.open_npz(where, data_dir)
    keys = npz.npz_keys(path, arrays)
    (train_x, train_y), (test_x, test_y) = keys
    if train_y not in arrays:
        return None
    labels = npz.npz_array(path, arrays, train_y)
    if labels.ndim != 2 or labels.shape[1] < 2 or is_one_hot(labels):
        return None
    if test_x not in arrays:
        raise SimclrError(f"npz:{path}: has labels of several classes and needs a test split")
    found = {"train": (train_x, labels), "test": (test_x, npz.npz_array(path, arrays, test_y))}
    npz.check_room(path, [train_x, train_y, test_x, test_y])
    images = {
        part: from_arrays(npz.npz_array(path, arrays, x), name=f"npz:{path.name}/{x}")
        for part, (x, _) in found.items()
    }
    targets = {part: y.astype(bool) for part, (_, y) in found.items()}
    for part, source in images.items():
        if targets[part].shape != (source.size, targets["train"].shape[1]):
            raise SimclrError(
                f"npz:{path}: the labels of {part} should be [{source.size}, classes] of 0 and 1"
            )
    return MultiLabel(Splits(**images), targets)


def _tfds(
    where: str, data_dir: str | None, download: bool, names: dict[str, str], reading: Reading
) -> MultiLabel | None:
    builder = prepared.builder_of(where, data_dir, download)
    features = dict(builder.info.features.items())
    feature = features.get("labels")
    classes = getattr(getattr(feature, "feature", None), "num_classes", None)
    if not classes or "image" not in features:
        return None
    found = {part: _read(builder, name, classes, reading) for part, name in names.items()}
    return MultiLabel(
        Splits(**{part: source for part, (source, _) in found.items()}),
        {part: targets for part, (_, targets) in found.items()},
    )


def _read(builder: Any, split: str, classes: int, reading: Reading) -> tuple[Source, np.ndarray]:
    """The encoded images of a split, held in memory, and their classes."""
    import tensorflow_datasets as tfds

    prepared.size_of(builder, split)
    raw = {"image": tfds.decode.SkipDecoding()}
    if builder.info.file_format is tfds.core.FileFormat.ARRAY_RECORD:
        rows = builder.as_data_source(split, decoders=raw)
    else:
        rows = tfds.as_numpy(builder.as_dataset(split=split, decoders=raw, shuffle_files=False))
    records, targets = [], []
    for row in rows:
        records.append({"image": row["image"]})
        targets.append(np.isin(np.arange(classes), row["labels"]))
    name = f"tfds:{builder.info.full_name}/{split}"
    return from_records(records, name=name, classes=(), reading=reading), np.stack(targets)
