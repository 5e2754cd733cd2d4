"""What examples come from: arrays, image files, encoded records, or a sequential stream.

A `Source` gives random access by index; a `Stream` (TFRecord that does not fit in memory) can only be
read in file order. `splits.load` makes the two that a config names: the `Splits`.
"""

import functools
import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np

from simclr_jax.data import decode, formats, pixels
from simclr_jax.data.columns import Columns
from simclr_jax.data.formats import Reading
from simclr_jax.data.labels import NO_LABEL, UNREADABLE, Labels, number
from simclr_jax.data.tf import load as load_tensorflow
from simclr_jax.errors import UnreadableImagesError
from simclr_jax.text import printable

TELLING = 256  # least number of images on disk in a fingerprint
AHEAD = 1000  # most files to try in place of an unreadable one


@dataclass
class Ledger:
    """What happened to files that TensorFlow could not read."""

    unreadable: dict[str, str] = field(default_factory=dict)  # {name: why}; another file took its place
    by_pillow: set[str] = field(default_factory=set)  # names of files that Pillow read instead
    reasons: dict[str, str] = field(default_factory=dict)  # {name: why}, for every file that failed
    root: str = ""  # the folder of the files

    def gone(self) -> bool:
        """Whether the folder no longer exists."""
        return bool(self.root) and not os.path.isdir(self.root)


@dataclass(frozen=True)
class Source:
    """Random access to `size` examples.

    `fetch(index [m])` is plain Python and returns (payload [m, ...], label [m] int32, -1 for none);
    `read(payload, label)` is TensorFlow, runs in parallel, one example at a time, and returns
    (image [h, w, c] uint8, label, index actually read or -1). `kind` is "array", "file" or "record".
    `read_around` is a slower `read` that skips unreadable examples, `read_marked` one that marks them.
    """

    kind: str
    name: str
    size: int
    classes: tuple[str, ...]  # () for no labels
    fetch: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
    read: Callable[[Any, Any], tuple[Any, Any, Any]]
    fingerprint: str  # changes with the examples or their order
    read_around: Callable[[Any, Any], tuple[Any, Any, Any]] | None = None
    read_marked: Callable[[Any, Any], tuple[Any, Any, Any]] | None = None
    names: tuple[str, ...] = ()  # names of the files; () for other kinds
    ledger: Ledger = field(default_factory=Ledger, compare=False)
    reading: Reading | None = field(default=None, compare=False)  # of files, records
    path: Callable[[int], bytes] | None = None  # files: index -> path
    part: Callable[[np.ndarray], "Source"] | None = None  # files: index -> the Source of those alone
    ids: np.ndarray | None = field(default=None, compare=False)  # every label [size]; None: not read yet
    groups: np.ndarray | None = field(default=None, compare=False)  # [size]; a hold-out divides no group
    notes: tuple[str, ...] = ()  # lines for the user about how the files were read
    columns: Columns | None = None  # tables only: describes the features of a row

    @property
    def noun(self) -> str:
        """The word for its examples in messages."""
        return "rows" if self.columns else "images"

    def subset(self, index: np.ndarray) -> "Source":
        """A Source of the examples `index [m]`, with the same class names."""
        if self.part is not None:
            return self.part(index)
        fingerprint = _digest(self.fingerprint.encode(), np.asarray(index, np.int64))

        def fetch(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            return self.fetch(index[rows])

        names = tuple(self.names[i] for i in index) if self.names else ()
        ids, groups = (None if x is None else x[index] for x in (self.ids, self.groups))
        made = {"fetch": fetch, "fingerprint": fingerprint, "names": names, "ids": ids, "groups": groups}
        return replace(self, size=len(index), **made)

    def marking(self) -> "Source":
        """The same, but in the place of an unreadable file is a blank image of the label UNREADABLE.

        `ledger.reasons` says why it cannot be read.
        """
        return replace(self, read_around=self.read_marked)

    def labels(self) -> np.ndarray:
        """Every label `[size]` int32, -1 for none; for records this reads all of them."""
        if self.ids is not None:
            return self.ids
        chunks = np.array_split(np.arange(self.size), -(-self.size // 1024))
        return np.concatenate([self.fetch(chunk)[1] for chunk in chunks])

    def note_replaced(self, wanted: np.ndarray, used: np.ndarray) -> None:
        """Records the files that were skipped between index `wanted` and index `used`.

        Raises:
          UnreadableImagesError: there are more than the config allows.
        """
        bad = self.ledger.unreadable
        for first, last in zip(wanted.tolist(), used.tolist(), strict=True):
            while last >= 0 and first != last:
                name = self.names[first]
                bad[name] = self.ledger.reasons.get(name, "cannot be decoded")
                first = (first + 1) % self.size
        most = self.reading.max_unreadable if self.reading else 1.0
        if len(bad) > (max(1, most * self.size) if most else 0):
            shown = "; ".join(f"{printable(name)}: {why}" for name, why in sorted(bad.items())[:3])
            raise UnreadableImagesError(
                f"{self.name}: {len(bad):,} of {self.size:,} files cannot be read so far, more than "
                f"config.data.max_unreadable={most:g} allows ({shown}); repair or remove them, or raise it"
            )


@dataclass(frozen=True)
class Stream:
    """Sequential examples: `open(seed, process, processes)` gives a tf.data set of (bytes, label).

    A seed shuffles the files; without one they keep their order.
    """

    name: str
    size: int
    classes: tuple[str, ...]
    open: Callable[..., Any]
    fingerprint: str
    buffer: int  # images in the shuffle buffer
    notes: tuple[str, ...] = ()
    reading: Reading | None = field(default=None, compare=False)
    ledger: Ledger = field(default_factory=Ledger, compare=False)  # stays empty
    noun = "images"


class Splits(NamedTuple):
    """The training images and, if there are any, the test images."""

    train: Source | Stream
    test: Source | Stream | None

    def unreadable(self) -> dict[str, str]:
        """The files replaced so far, and why."""
        return {name: why for split in self if split for name, why in split.ledger.unreadable.items()}


def _digest(*parts: Any) -> str:
    """Of bytes and arrays, without copying them."""
    digest = hashlib.sha256()
    for part in parts:
        whole = np.ascontiguousarray(part) if isinstance(part, np.ndarray) else part
        digest.update(whole)  # pyright: ignore[reportArgumentType]  # arrays are buffers
        digest.update(b"\0")
    return digest.hexdigest()[:16]


def from_arrays(images: np.ndarray, labels: Any = None, *, name: str = "arrays") -> Source:
    """Examples in memory: images as `pixels.read` takes them, labels as `labels.number` does."""
    images, notes = pixels.read(images, name)
    known = None if labels is None else number(labels, len(images), name)
    return of_arrays(images, known, name=name, notes=notes)


def of_arrays(
    images: np.ndarray,
    labels: Labels | None = None,
    *,
    name: str,
    notes: tuple[str, ...] = (),
    on_disk: bool = False,
    columns: Columns | None = None,
) -> Source:
    """Examples in memory: images uint8 `[n, h, w, c]`, and labels that are read already; None: no labels.

    Or rows of a table, float32 `[n, d]`, with their `columns`.

    The fingerprint of arrays mapped from disk uses some images only: reading all takes too long.
    """
    if labels is None:
        labels = Labels(np.full(len(images), NO_LABEL, np.int32), (), ())
    ids = labels.ids
    step = len(images) // TELLING if on_disk else 1

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
        fingerprint=_digest(str(images.shape).encode(), images[:: max(1, step)], ids),
        ids=ids,
        notes=notes + labels.notes,
        columns=columns,
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
    reading: Reading | None = None,
) -> Source:
    """Image files, decoded on reading; the next file replaces an unreadable one.

    Args:
      names: relative to `root`, as the system gives them: bytes that are not UTF-8 are escaped.
      ids: the label of each, -1 for none; None: no labels at all.
      name: of the source; `folder:ROOT` if there is none.
    """
    reading, ledger = reading or Reading(), Ledger(root=root)
    ids = np.full(len(names), NO_LABEL, np.int32) if ids is None else np.asarray(ids, np.int32)
    files = _Files(root, names, ids, reading, ledger)

    def part(index: np.ndarray) -> Source:
        its_groups = None if groups is None else groups[index]
        its_names = [names[int(i)] for i in index]
        told = {"root": root, "name": name, "groups": its_groups, "notes": notes, "reading": reading}
        return from_files(its_names, ids[index], classes, **told)

    return Source(
        kind="file",
        name=name or f"folder:{root}",
        size=len(names),
        classes=classes,
        fetch=lambda index: (index, ids[index]),
        read=files.read,
        read_around=files.read_around,
        read_marked=files.read_marked,
        fingerprint=_digest(os.fsencode("\n".join(names)), ids),
        names=tuple(map(as_text, names)),
        ledger=ledger,
        reading=reading,
        path=files.path,
        part=part,
        ids=ids,
        groups=groups,
        notes=notes,
    )


@dataclass(frozen=True, eq=False)
class _Files:
    """How the files of a `from_files` are read."""

    root: str
    names: Sequence[str]
    ids: np.ndarray
    reading: Reading
    ledger: Ledger

    @functools.cached_property
    def _tensors(self) -> tuple[Any, Any]:
        """(paths, labels), made once: they are large."""
        tf = load_tensorflow()
        # Otherwise TensorFlow's autograph rewrites the loop and slows down every function call.
        paths = tf.autograph.experimental.do_not_convert(_paths)(self.root, self.names)
        with tf.init_scope():  # captured, not copied into the graph
            return tf.constant(paths), tf.constant(self.ids)

    def path(self, at: int) -> bytes:
        return os.fsencode(os.path.join(self.root, self.names[at]))

    def read(self, at: Any, label: Any = None) -> tuple[Any, Any, Any]:
        tf = load_tensorflow()
        paths, labels = self._tensors
        return decode.decode(tf.io.read_file(paths[at]), self.reading), labels[at], at

    def read_around(self, index: Any, label: Any) -> tuple[Any, Any, Any]:
        # The first of index, index + 1, ... that decodes, by TensorFlow or by Pillow.
        tf, n = load_tensorflow(), len(self.names)

        def attempt(k):
            at = (index + k // 2) % n
            return tf.cond(tf.equal(k % 2, 0), lambda: self.read(at), lambda: self._second(at))

        return _first_of(2 * min(n, AHEAD), attempt)

    def read_marked(self, index: Any, label: Any) -> tuple[Any, Any, Any]:
        tf = load_tensorflow()

        def blank():
            image = tf.ensure_shape(tf.zeros([1, 1, 3], tf.uint8), [None, None, 3])
            return image, tf.constant(UNREADABLE, tf.int32), index

        ways = [lambda: self.read(index), lambda: self._second(index), blank]
        return _first_of(3, lambda k: tf.switch_case(tf.cast(k, tf.int32), ways))

    def _second(self, at: Any) -> tuple[Any, Any, Any]:
        return decode.by_python(self._rescue, at), self._tensors[1][at], at

    def _rescue(self, at: int) -> np.ndarray | None:
        """Reads with Pillow a file that TensorFlow cannot read; None if Pillow fails too."""
        name = as_text(self.names[at])
        try:
            image = formats.read_file(os.fsdecode(self.path(at)), self.reading)
        except formats.UnreadableError as error:
            self.ledger.reasons[name] = str(error)
        else:
            self.ledger.by_pillow.add(name)
            return image
        return None


def _first_of(count: int, attempt: Callable[[Any], tuple[Any, Any, Any]]) -> tuple[Any, Any, Any]:
    """What the first of `attempt(0)`, `attempt(1)`, ... gives that does not fail."""
    # A data set inside map is the one construct of TensorFlow that survives a failed op without a detour
    # through Python.
    candidates = load_tensorflow().data.Dataset.range(count).map(attempt)
    return candidates.ignore_errors().take(1).get_single_element()


def _paths(root: str, names: Sequence[str]) -> list[bytes]:
    return [os.fsencode(os.path.join(root, name)) for name in names]


def as_text(name: str) -> str:
    """A file's name as text that every encoding takes: bytes that are not UTF-8 become \\xNN."""
    return name if name.isascii() else os.fsencode(name).decode(errors="backslashreplace")


def from_records(
    records: Any, *, name: str, classes: tuple[str, ...], reading: Reading | None = None
) -> Source:
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
        return decode.decode(data, reading), label, np.int64(-1)

    return Source(
        kind="record",
        name=name,
        size=len(records),
        classes=classes,
        fetch=fetch,
        read=read,
        fingerprint=_digest(f"{name} {len(records)}".encode()),
    )
