"""Finds the train and test split that `config.data` names."""

import dataclasses
import importlib.resources
import itertools
import os
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from simclr_jax.data.decode import EXTENSIONS
from simclr_jax.data.sources import NO_LABEL, Source, Stream, from_arrays, from_files, from_records
from simclr_jax.data.tf import load as load_tensorflow
from simclr_jax.errors import SimclrError, one_line
from simclr_jax.paths import expand, is_remote, of_source

UNLABELLED = ("unlabelled", "unlabeled")  # subfolder of images without a label, beside those of classes
TEST_NAMES = ("test", "val", "validation", "valid")  # of a folder's test split, first found


class Splits(NamedTuple):
    """The images to train on and, where there are any, those to test on."""

    train: Source | Stream
    test: Source | Stream | None


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
    """The splits of `tfds:NAME`, `folder:PATH`, `npz:PATH` or `builtin:mnist5k`.

    The arguments are the fields of `config.data`, explained there.

    Raises:
      SimclrError: nothing is there, or it is not what the source says.
    """
    kind, _, where = source.partition(":")
    if kind == "builtin":
        with importlib.resources.as_file(importlib.resources.files(__package__)) as here:
            splits = _npz(here / f"{where}.npz", None, holdout)
    elif kind == "npz":
        splits = _npz(where, data_dir, holdout)
    elif kind == "folder":
        splits = _folder(_resolve(kind, where, data_dir), train_split, test_split, holdout)
    elif kind == "tfds":
        names = (train_split, test_split)
        splits = _tfds(where, data_dir, download, names, memory_gb, shuffle_buffer)
    else:
        raise SimclrError(f"config.data.source={source!r}: give the arrays to run(), or see --help")
    _check_classes(splits)
    return splits


def _resolve(kind: str, where: str, data_dir: str | None) -> Path:
    path = of_source(where, data_dir)
    if is_remote(path):
        raise SimclrError(f"{kind}:{path}: must be a local path; copy the images from there, or mount it")
    return Path(path)


def _check_classes(splits: Splits) -> None:
    if splits.test is None or not splits.train.classes:
        return
    unknown = [name for name in splits.test.classes if name not in splits.train.classes]
    if unknown:
        raise SimclrError(
            f"{splits.test.name}: the test split has classes that the train split lacks: "
            + ", ".join(unknown[:5])
        )


def held_out(examples: int, share: float) -> tuple[np.ndarray, np.ndarray]:
    """(train, test) index for a set without a test split; the same `share` is tested on every time."""
    test = min(max(1, round(examples * share)), examples - 1) if share else 0
    order = np.random.Generator(np.random.Philox(key=0)).permutation(examples)
    return np.sort(order[test:]), np.sort(order[:test])


# ---- npz ----------------------------------------------------------------------------------------

NPZ_KEYS = (  # images, labels; the first pair found counts
    (("train_images", "train_labels"), ("test_images", "test_labels")),
    (("x_train", "y_train"), ("x_test", "y_test")),
    (("images", "labels"), (None, None)),
)


def open_npz(where: str | Path, data_dir: str | None = None) -> tuple[Path, Any]:
    """The path of an .npz file, and its arrays, which are read when they are asked for."""
    path = _resolve("npz", str(where), data_dir)
    try:
        arrays = np.load(path, allow_pickle=False)
        arrays.keys()
    except FileNotFoundError:
        raise SimclrError(f"npz:{path}: no such file") from None
    except (ValueError, OSError, EOFError, AttributeError, zipfile.BadZipFile) as error:
        raise SimclrError(f"npz:{path}: not an .npz file ({one_line(error)})") from None
    return path, arrays


def npz_array(path: Path, arrays: Any, key: str) -> np.ndarray:
    """One array of an open .npz file. Python objects in it are refused: reading them could run code."""
    try:
        return arrays[key]
    except KeyError:
        raise SimclrError(f"npz:{path}: lacks {key}; it holds {', '.join(arrays.keys())}") from None
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        remedy = (
            "; save numbers: images uint8 [n, h, w, c], labels [n]" if "allow_pickle" in str(error) else ""
        )
        line = "it holds Python objects, not numbers" if remedy else f"it is damaged ({one_line(error)})"
        raise SimclrError(f"npz:{path}: {key} cannot be read, {line}{remedy}") from None


def npz_keys(path: Path, arrays: Any) -> tuple:
    """((train images, labels), (test images, labels)) by their names in the file."""
    present = [pairs for pairs in NPZ_KEYS if pairs[0][0] in arrays]
    if not present:
        raise SimclrError(
            f"npz:{path}: holds {', '.join(arrays.keys())}; name the images train_images (and train_labels, "
            "test_images, test_labels), x_train and so on, or images and labels"
        )
    return present[0]


def _npz(where: str | Path, data_dir: str | None, holdout: float) -> Splits:
    path, arrays = open_npz(where, data_dir)
    keys = list(arrays.keys())
    (train_x, train_y), (test_x, test_y) = npz_keys(path, arrays)

    def part(x_key, y_key, index=slice(None)):
        labels = npz_array(path, arrays, y_key)[index] if y_key in keys else None
        return from_arrays(npz_array(path, arrays, x_key)[index], labels, name=f"npz:{path.name}/{x_key}")

    if test_x in keys:
        return Splits(part(train_x, train_y), part(test_x, test_y))
    if train_y not in keys:  # nothing to score: train on all
        return Splits(part(train_x, train_y), None)
    train, test = held_out(len(npz_array(path, arrays, train_x)), holdout)
    return Splits(part(train_x, train_y, train), part(train_x, train_y, test) if len(test) else None)


# ---- folders ------------------------------------------------------------------------------------


def _images_below(folder: Path) -> list[str]:
    found = []
    for where, folders, files in os.walk(folder, followlinks=True):
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        found += [
            os.path.join(where, file)
            for file in files
            if file.lower().endswith(EXTENSIONS) and not file.startswith(".")
        ]
    return sorted(found)


def _scan(root: Path, known: tuple[str, ...] = ()) -> tuple[list[str], list[int] | None, tuple[str, ...]]:
    """(paths, labels, classes) of a folder: its subfolders of images are classes, unless it has images too.

    A single subfolder tells no classes apart, but in a test split it can be one of the `known` ones. What is
    in a subfolder `unlabelled` has no label.
    """
    inside = sorted(p for p in root.iterdir() if not p.name.startswith("."))
    by_class = {p.name: _images_below(p) for p in inside if p.is_dir()}
    by_class = {name: paths for name, paths in by_class.items() if paths}
    loose = any(p.is_file() and p.suffix.lower() in EXTENSIONS for p in inside)
    names = tuple(name for name in by_class if name not in UNLABELLED)
    if known and by_class and not loose and set(names) <= set(known):
        classes = known
    elif loose or len(names) < 2:
        return _images_below(root), None, ()
    else:
        classes = names
    number = dict.fromkeys(UNLABELLED, NO_LABEL) | {name: i for i, name in enumerate(classes)}
    paths = [path for files in by_class.values() for path in files]
    labels = [number[name] for name, files in by_class.items() for _ in files]
    return paths, labels, classes


def _folder(root: Path, train_split: str, test_split: str, holdout: float) -> Splits:
    if not root.is_dir():
        raise SimclrError(f"folder:{root}: no such folder")

    def source(folder, paths, labels, classes):
        if not paths:
            raise SimclrError(f"folder:{folder}: no image ({', '.join(EXTENSIONS)}) in it")
        if strange := [path for path in paths if path != path.encode(errors="replace").decode()]:
            raise SimclrError(f"folder:{folder}: a name is not UTF-8, {strange[0]!a}; rename it")
        return from_files(paths, labels, classes, root=str(root))

    train_folder, tests = root, []
    if (root / train_split).is_dir():
        train_folder = root / train_split
        tests = [root / name for name in (test_split, *TEST_NAMES) if name and (root / name).is_dir()]
    paths, labels, classes = _scan(train_folder)
    if tests:
        train = source(train_folder, paths, labels, classes)
        return Splits(train, source(tests[0], *_scan(tests[0], classes)))
    if not classes:  # nothing to score: train on all
        return Splits(source(train_folder, paths, labels, classes), None)

    def part(index):
        return source(root, [paths[i] for i in index], [labels[i] for i in index], classes)

    train, test = held_out(len(paths), holdout)
    return Splits(part(train), part(test) if len(test) else None)


# ---- TFDS ---------------------------------------------------------------------------------------


def tfds_size(builder: Any, split: str) -> int:
    """How many examples a split has."""
    try:
        return builder.info.splits[split].num_examples
    except (KeyError, ValueError):
        raise SimclrError(
            f"tfds:{builder.info.full_name}/{split}: no such split; there are "
            f"{', '.join(sorted(builder.info.splits))} "
            "(config.data.train_split, config.data.test_split; an empty test_split for none)"
        ) from None


def tfds_builder(name: str, data_dir: str | None, download: bool) -> Any:
    """The builder of a data set that is prepared, or becomes so where it may `download`."""
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


def _tfds(
    name: str,
    data_dir: str | None,
    download: bool,
    splits: tuple[str, str],
    memory_gb: float,
    buffer: int,
) -> Splits:
    builder = tfds_builder(name, data_dir, download)
    features = builder.info.features
    if "image" not in features:
        raise SimclrError(f"tfds:{name}: has {', '.join(features)}, but no feature named image")
    classes = tuple(getattr(features["label"], "names", ())) if "label" in features else ()
    train, test = (_tfds_split(builder, s, classes, memory_gb, buffer) if s else None for s in splits)
    return Splits(train, test)


def _tfds_split(
    builder: Any, split: str, classes: tuple[str, ...], memory_gb: float, buffer: int
) -> Source | Stream:
    import tensorflow_datasets as tfds

    name, size = f"tfds:{builder.info.full_name}/{split}", tfds_size(builder, split)
    shape = builder.info.features["image"].shape
    records = builder.info.file_format is tfds.core.FileFormat.ARRAY_RECORD
    if None not in shape and size * np.prod(shape) <= memory_gb * 2**30:
        images, labels = _read_all(_open(builder, split, records), size, shape, bool(classes))
        made = from_arrays(images, labels, name=name)
        return dataclasses.replace(made, classes=classes if made.classes else ())
    first = [row["label"] for row in itertools.islice(_open(builder, split, records), 16)] if classes else ()
    classes = classes if any(label >= 0 for label in first) else ()  # some splits have names but no labels
    if records:
        raw = {"image": tfds.decode.SkipDecoding()}
        return from_records(builder.as_data_source(split, decoders=raw), name=name, classes=classes)
    return Stream(
        name=name,
        size=size,
        classes=classes,
        open=_open_stream(builder, split, bool(classes)),
        fingerprint=f"{name} {size}",
        buffer=buffer,
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
        if labelled:
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
