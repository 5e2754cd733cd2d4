"""What examples come from: arrays, image files, encoded records, or a sequential stream.

A `Source` gives random access by index; a `Stream` (TFRecord that does not fit in memory) can only be
read in file order. `splits.load` makes the two that a config names: the `Splits`.
"""

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np

from simclr_jax.data import decode, pixels
from simclr_jax.data.labels import NO_LABEL, Labels, number
from simclr_jax.data.tf import load as load_tensorflow


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
    ids: np.ndarray | None = field(default=None, compare=False)  # every label [size], where they are at hand
    groups: np.ndarray | None = field(default=None, compare=False)  # [size]: a hold-out divides none
    notes: tuple[str, ...] = ()  # what to tell of how it was read

    def subset(self, index: np.ndarray) -> "Source":
        """The examples `index [m]` as a Source of their own, under the same class names."""
        if self.part is not None:
            return self.part(index)
        fingerprint = _digest(self.fingerprint.encode(), np.asarray(index, np.int64))

        def fetch(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            return self.fetch(index[rows])

        names = tuple(self.names[i] for i in index) if self.names else ()
        ids, groups = (None if x is None else x[index] for x in (self.ids, self.groups))
        made = {"fetch": fetch, "fingerprint": fingerprint, "names": names, "ids": ids, "groups": groups}
        return replace(self, size=len(index), **made)

    def labels(self) -> np.ndarray:
        """Every label `[size]` int32, -1 for none; of records that takes reading them all."""
        if self.ids is not None:
            return self.ids
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
    notes: tuple[str, ...] = ()
    unreadable: set[str] = field(default_factory=set, compare=False)


class Splits(NamedTuple):
    """The images to train on and, where there are any, those to test on."""

    train: Source | Stream
    test: Source | Stream | None


def _digest(*parts: Any) -> str:
    """Of bytes and arrays, without copying them."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(np.ascontiguousarray(part) if isinstance(part, np.ndarray) else part)
        digest.update(b"\0")
    return digest.hexdigest()[:16]


def from_arrays(images: np.ndarray, labels: Any = None, *, name: str = "arrays") -> Source:
    """Examples in memory: images as `pixels.read` takes them, labels as `labels.number` does."""
    images, notes = pixels.read(images, name)
    known = None if labels is None else number(labels, len(images), name)
    return of_arrays(images, known, name=name, notes=notes)


def of_arrays(
    images: np.ndarray, labels: Labels | None = None, *, name: str, notes: tuple[str, ...] = ()
) -> Source:
    """Examples in memory: images uint8 `[n, h, w, c]`, and labels that are read already; None: no labels."""
    if labels is None:
        labels = Labels(np.full(len(images), NO_LABEL, np.int32), (), ())
    ids = labels.ids

    def read(image, label):
        image.set_shape(images.shape[1:])
        return image, label, np.int64(-1)

    return Source(
        kind="array",
        name=name,
        size=len(images),
        classes=labels.classes,
        fetch=lambda index: (images[index], ids[index]),
        read=read,
        fingerprint=_digest(str(images.shape).encode(), images, ids),
        ids=ids,
        notes=notes + labels.notes,
    )


def from_files(
    names: Sequence[str],
    ids: np.ndarray | None,
    classes: tuple[str, ...],
    *,
    root: str,
    name: str = "",
    groups: np.ndarray | None = None,
    notes: tuple[str, ...] = (),
) -> Source:
    """Image files, decoded as they are read; an unreadable one gives way to the next in order.

    Args:
      names: relative to `root`, as the system gives them: bytes that are not UTF-8 are escaped.
      ids: the label of each, -1 for none; None: no labels at all.
      name: of the source; `folder:ROOT` if there is none.
    """
    n = len(names)
    ids = np.full(n, NO_LABEL, np.int32) if ids is None else np.asarray(ids, np.int32)

    def loader():
        tf = load_tensorflow()
        # Left to it, TensorFlow would rewrite the loop and call each name's functions by its own detour.
        paths = tf.autograph.experimental.do_not_convert(_paths)(root, names)
        with tf.init_scope():  # captured once, not copied into the graph
            all_paths, all_labels = tf.constant(paths), tf.constant(ids)
        return lambda at: (decode.decode(tf.io.read_file(all_paths[at])), all_labels[at], at)

    def read_around(index, label):
        # The first of index, index + 1, ... that decodes. A data set inside map is the one construct of
        # TensorFlow that survives a failed op without a detour through Python.
        tf, load = load_tensorflow(), loader()
        candidates = tf.data.Dataset.range(n).map(lambda offset: load((index + offset) % n))
        return candidates.ignore_errors().take(1).get_single_element()

    def part(index: np.ndarray) -> Source:
        its_groups = None if groups is None else groups[index]
        its_names = [names[i] for i in index]
        told = {"root": root, "name": name, "groups": its_groups, "notes": notes}
        return from_files(its_names, ids[index], classes, **told)

    return Source(
        kind="file",
        name=name or f"folder:{root}",
        size=n,
        classes=classes,
        fetch=lambda index: (index, ids[index]),
        read=lambda index, label: loader()(index),
        read_around=read_around,
        fingerprint=_digest(os.fsencode("\n".join(names)), ids),
        names=tuple(map(as_text, names)),
        part=part,
        ids=ids,
        groups=groups,
        notes=notes,
    )


def _paths(root: str, names: Sequence[str]) -> list[bytes]:
    return [os.fsencode(os.path.join(root, name)) for name in names]


def as_text(name: str) -> str:
    """A file's name as text that every encoding takes: bytes that are not UTF-8 become \\xNN."""
    return name if name.isascii() else os.fsencode(name).decode(errors="backslashreplace")


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
