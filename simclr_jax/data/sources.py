"""What examples come from: arrays, image files, encoded records, or a sequential stream.

A `Source` gives random access by index; a `Stream` (TFRecord that does not fit in memory) can only be
read in file order. `splits.load` makes the two that a config names.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from simclr_jax.data import decode
from simclr_jax.data.tf import load as load_tensorflow
from simclr_jax.errors import SimclrError

NO_LABEL = -1
MOST_CLASSES = 1_000_000  # a larger label is no number of a class, but something else


@dataclass(frozen=True)
class Source:
    """Random access to `size` examples.

    `fetch(index [m])` is plain Python and returns (payload [m, ...], label [m] int32, -1 for none);
    `read(payload, label)` is TensorFlow, runs in parallel, one example at a time, and returns
    (image [h, w, c] uint8, label, index actually read or -1). `kind` is "array", "file" or "record".
    `read_around` is a slower `read` that goes past what cannot be read.
    """

    kind: str
    name: str
    size: int
    classes: tuple[str, ...]  # () for no labels
    fetch: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
    read: Callable[[Any, Any], tuple[Any, Any, Any]]
    fingerprint: str  # changes with the examples or their order
    read_around: Callable[[Any, Any], tuple[Any, Any, Any]] | None = None
    names: tuple[str, ...] = ()  # of the files, where there are files
    unreadable: set[str] = field(default_factory=set, compare=False)  # files found bad so far
    part: Callable[[np.ndarray], "Source"] | None = None  # files: index -> the Source of those alone

    def subset(self, index: np.ndarray) -> "Source":
        """The examples `index [m]` as a Source of their own, under the same class names."""
        if self.part is not None:
            return self.part(index)
        fingerprint = _digest(self.fingerprint.encode(), np.asarray(index, np.int64))
        fetch = lambda rows: self.fetch(index[rows])  # noqa: E731
        names = tuple(self.names[i] for i in index) if self.names else ()
        return replace(self, size=len(index), fetch=fetch, fingerprint=fingerprint, names=names)

    def labels(self) -> np.ndarray:
        """Every label `[size]` int32, -1 for none; of records that takes reading them all."""
        chunks = np.array_split(np.arange(self.size), -(-self.size // 1024))
        return np.concatenate([self.fetch(chunk)[1] for chunk in chunks])

    def note_replaced(self, wanted: np.ndarray, used: np.ndarray) -> None:
        """Enters the files that were skipped on the way from index `wanted` to index `used`."""
        for first, last in zip(wanted.tolist(), used.tolist(), strict=True):
            while last >= 0 and first != last:
                self.unreadable.add(self.names[first])
                first = (first + 1) % self.size


@dataclass(frozen=True)
class Stream:
    """Sequential examples: `open(seed, process, processes)` gives a tf.data set of (bytes, label).

    With a seed the files are read in an order that it decides, without one in their own.
    """

    name: str
    size: int
    classes: tuple[str, ...]
    open: Callable[..., Any]
    fingerprint: str
    buffer: int  # images in the shuffle buffer
    unreadable: set[str] = field(default_factory=set, compare=False)


def _digest(*parts: Any) -> str:
    """Of bytes and arrays, without copying them."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(np.ascontiguousarray(part) if isinstance(part, np.ndarray) else part)
        digest.update(b"\0")
    return digest.hexdigest()[:16]


def from_arrays(images: np.ndarray, labels: np.ndarray | None = None, *, name: str = "arrays") -> Source:
    """Examples in memory: images `[n, h, w]` or `[n, h, w, c]` uint8, labels `[n]` or `[n, 1]`."""
    images = np.asarray(images)
    if images.ndim == 3:
        images = images[..., None]
    if images.ndim != 4 or images.dtype != np.uint8 or not len(images):
        raise SimclrError(
            f"{name}: images must be uint8 [n, h, w] or [n, h, w, c] with n > 0, "
            f"not {images.dtype} {list(images.shape)}"
        )
    if labels is None:
        ids, classes = np.full(len(images), NO_LABEL, np.int32), ()
    else:
        ids = np.asarray(labels).reshape(-1)
        whole = np.issubdtype(ids.dtype, np.integer)
        if len(ids) != len(images) or not whole or ids.min() < NO_LABEL:
            raise SimclrError(
                f"{name}: labels must be {len(images)} class numbers from 0 up (-1: none), "
                f"not {np.asarray(labels).dtype} {list(np.shape(labels))}"
            )
        if ids.max() >= MOST_CLASSES:
            raise SimclrError(
                f"{name}: the label {ids.max()} would make {ids.max() + 1:,} classes, and a classifier takes "
                f"at most {MOST_CLASSES:,}; number the classes from 0"
            )
        ids = ids.astype(np.int32)
        classes = tuple(map(str, range(ids.max() + 1)))  # () where all are -1

    def read(image, label):
        image.set_shape(images.shape[1:])
        return image, label, np.int64(-1)

    return Source(
        kind="array",
        name=name,
        size=len(images),
        classes=classes,
        fetch=lambda index: (images[index], ids[index]),
        read=read,
        fingerprint=_digest(str(images.shape).encode(), images, ids),
    )


def from_files(
    paths: list[str],
    labels: list[int] | None,
    classes: tuple[str, ...],
    *,
    root: str,
) -> Source:
    """Image files, decoded as they are read; an unreadable one gives way to the next in order."""
    n = len(paths)
    ids = np.array([NO_LABEL] * n if labels is None else labels, np.int32)
    names = tuple(str(Path(p).relative_to(root)) for p in paths)

    def loader():
        tf = load_tensorflow()
        with tf.init_scope():  # captured once, not copied into the graph
            all_paths, all_labels = tf.constant(paths), tf.constant(ids)
        return lambda at: (decode.decode(tf.io.read_file(all_paths[at])), all_labels[at], at)

    def read_around(index, label):
        # The first of index, index + 1, ... that decodes. A data set inside map is the one construct of
        # TensorFlow that survives a failed op without a detour through Python.
        tf, load = load_tensorflow(), loader()
        candidates = tf.data.Dataset.range(n).map(lambda offset: load((index + offset) % n))
        return candidates.ignore_errors().take(1).get_single_element()

    return Source(
        kind="file",
        name=f"folder:{root}",
        size=n,
        classes=classes,
        fetch=lambda index: (index, ids[index]),
        read=lambda index, label: loader()(index),
        read_around=read_around,
        fingerprint=_digest("\n".join(names).encode(), ids),
        names=names,
        part=lambda index: from_files([paths[i] for i in index], ids[index].tolist(), classes, root=root),
    )


def from_records(records: Any, *, name: str, classes: tuple[str, ...]) -> Source:
    """Encoded images with random access: `records[i]` is {"image": bytes, "label": int}."""

    def fetch(index):
        # One call for the whole batch: ArrayRecord reads it in parallel, outside Python.
        if hasattr(records, "__getitems__"):
            rows = records.__getitems__(index.tolist())
        else:
            rows = [records[i] for i in index.tolist()]
        payload = np.array([row["image"] for row in rows], object)
        labels = [row["label"] if classes else NO_LABEL for row in rows]
        return payload, np.array(labels, np.int32)

    def read(data, label):
        return decode.decode(data), label, np.int64(-1)

    return Source(
        kind="record",
        name=name,
        size=len(records),
        classes=classes,
        fetch=fetch,
        read=read,
        fingerprint=_digest(f"{name} {len(records)}".encode()),
    )
