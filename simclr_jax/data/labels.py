"""Converts labels from users (class numbers, names, one-hot rows) to class numbers, or refuses them.

Unusual labels give a note, which the run prints when it starts.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from simclr_jax.errors import SimclrError
from simclr_jax.text import printable

NO_LABEL = -1
UNREADABLE = -2  # of a blank image in the place of one that cannot be read
MOST_CLASSES = 1_000_000  # a larger classifier fits on no device
KEPT_BELOW = 1000  # smaller numbers are class numbers, even if some do not occur
KEPT_SHARE = 10  # so are larger ones, if at least one in KEPT_SHARE occurs


class Labels(NamedTuple):
    """A number for each image (-1: none), the numbers' meaning, and notes on how the labels were read."""

    ids: np.ndarray  # [n] int32
    classes: tuple[str, ...]  # () where no image has a label
    notes: tuple[str, ...]


class _Values(NamedTuple):
    """Labels before they become class numbers."""

    values: np.ndarray  # [n] whole numbers, or names
    known: np.ndarray  # [n] bool
    least: int = 0  # least number of classes: the columns of one-hot rows
    notes: tuple[str, ...] = ()


def number(
    labels: Any,
    examples: int,
    where: str,
    *,
    classes: Sequence[str] | None = None,
    own_names: bool = False,
) -> Labels:
    """Class numbers of `labels`; there must be one label for each of `examples` images.

    Numbers below KEPT_BELOW are used as class numbers, and so are larger ones if at least a tenth of the
    range occurs. Other numbers and names are sorted and numbered; they become the names of the classes.

    Args:
      where: the file or array, named first in messages.
      classes: for test images: the class names of the training images, in the order of their numbers. Any
        other class becomes -1, with a note.
      own_names: treat numbers as names, as in a list, so that every class has an image.

    Raises:
      SimclrError: the values are no labels, or their number differs from the number of images.
    """
    found = _read(labels, examples, where)
    distinct, inverse = np.unique(found.values[found.known], return_inverse=True)
    ids = np.full(examples, NO_LABEL, np.int32)
    notes = found.notes
    if classes is not None:
        numbers = {name: i for i, name in enumerate(classes)}
        table = np.array([numbers.get(name, NO_LABEL) for name in map(str, distinct)], np.int32)
        counts = np.bincount(inverse, minlength=len(distinct))
        unknown = {str(name): int(n) for name, n, i in zip(distinct, counts, table, strict=True) if i < 0}
        ids[found.known] = table[inverse]
        return Labels(ids, tuple(classes), notes + strangers(where, unknown, len(distinct)))
    if len(distinct) > MOST_CLASSES:
        raise SimclrError(
            f"{where}: {len(distinct):,} different labels are no classes; a classifier takes at most "
            f"{MOST_CLASSES:,}"
        )
    if not len(distinct):
        return Labels(ids, (), (*notes, f"{where}: no labels: each is -1, NaN or empty, which means none"))
    if _are_class_numbers(distinct) and not own_names:
        ids[found.known] = found.values[found.known]
        count = max(int(distinct[-1]) + 1, found.least)
        told = (
            (f"{where}: all labels are 1, or -1, which means none; number two classes 0 and 1",)
            if len(distinct) == 1 and distinct[0] == 1 and not found.known.all()
            else ()
        )
        return Labels(ids, tuple(map(str, range(count))), notes + told)
    ids[found.known] = inverse
    names = tuple(map(str, distinct))
    if not own_names:
        shown = ", ".join(map(printable, names[:3])) + (", ..." if len(names) > 3 else "")
        notes += (f"{where}: the labels {shown} are numbered from 0 to {len(names) - 1:,}",)
    return Labels(ids, names, notes)


def _are_class_numbers(distinct: np.ndarray) -> bool:
    """Whether sorted values are numbers from 0 up with few holes, not names or codes."""
    if distinct.dtype.kind not in "iu":
        return False
    return int(distinct[-1]) < max(KEPT_BELOW, min(KEPT_SHARE * len(distinct), MOST_CLASSES))


def strangers(where: str, unknown: dict[str, int], classes: int) -> tuple[str, ...]:
    """A note on test images whose class has no training image, counted by class.

    Raises:
      SimclrError: no class of the test images has training images.
    """
    if not unknown:
        return ()
    names = ", ".join(printable(name) for name in list(unknown)[:5]) + (", ..." if len(unknown) > 5 else "")
    if len(unknown) == classes:
        raise SimclrError(
            f"{where}: the test split has classes that the train split lacks: {names}, and no other; "
            "give both the same names"
        )
    return (
        f"{where}: {sum(unknown.values()):,} test images are of {len(unknown):,} classes that the train "
        f"split lacks: {names}; they stay without a label and do not count in scores",
    )


# ---- kinds of labels ----------------------------------------------------------------------------


def _read(labels: Any, examples: int, where: str) -> _Values:
    try:
        array = np.asarray(labels)
    except ValueError:
        raise SimclrError(f"{where}: labels must be one an image; some have several, some do not") from None
    if array.dtype == object:
        array = _of_objects(array, where)
    if array.ndim == 2 and array.shape[0] == examples and array.shape[1] > 1:
        return _one_hot(array, where)
    if array.ndim == 0 or array.size != max(array.shape):
        raise _refused(where, array, examples)
    array = array.reshape(-1)
    if len(array) != examples:
        raise SimclrError(
            f"{where}: labels must be one an image, and there are {len(array):,} labels for "
            f"{examples:,} images"
        )
    if array.dtype.kind in "US":
        return _of_names(array, where)
    if array.dtype.kind == "b":
        note = f"{where}: labels are true or false: read as the classes False and True"
        return _Values(array.astype(str), np.ones(examples, bool), notes=(note,))
    if array.dtype.kind == "f":
        return _of_floats(array, where, examples)
    if array.dtype.kind in "iu":
        return _of_numbers(array, where, examples)
    raise _refused(where, array, examples)


def _refused(where: str, array: np.ndarray, examples: int, why: str = "") -> SimclrError:
    return SimclrError(
        f"{where}: labels must be {examples:,} class numbers from 0 up (-1: none), names, or one-hot rows, "
        f"not {array.dtype} {list(array.shape)}{why}"
    )


def _of_numbers(array: np.ndarray, where: str, examples: int) -> _Values:
    if array.dtype.kind == "i" and len(array) and array.min() < NO_LABEL:
        raise _refused(where, array, examples, f" with the number {array.min()}")
    known = array != NO_LABEL if array.dtype.kind == "i" else np.ones(len(array), bool)
    return _Values(array, known)


def _of_floats(array: np.ndarray, where: str, examples: int) -> _Values:
    missing = np.isnan(array)
    whole = np.where(missing, NO_LABEL, array)
    if not (np.abs(whole) < 2**53).all() or (whole != np.rint(whole)).any():
        strange = whole[~(np.abs(whole) < 2**53) | (whole != np.rint(whole))][0]
        raise _refused(where, array, examples, f" with the number {strange:g}, which is no class")
    also = f"; {int(missing.sum()):,} are NaN, which means none" if missing.any() else ""
    note = f"{where}: labels are {array.dtype}: read as whole numbers{also}"
    return _of_numbers(whole.astype(np.int64), where, examples)._replace(notes=(note,))


def _of_names(array: np.ndarray, where: str) -> _Values:
    if array.dtype.kind == "S":
        array = np.array([name.decode(errors="backslashreplace") for name in array.tolist()], str)
    array = np.char.strip(array)
    known = array != ""
    distinct = np.unique(array[known])
    numbers = [_as_number(name) for name in distinct.tolist()]
    if len(numbers) and None not in numbers:  # sorted as numbers; the text -1 means none, too
        table = dict(zip(distinct.tolist(), numbers, strict=True))
        values = np.array([table.get(name, NO_LABEL) for name in array.tolist()], np.int64)
        return _of_numbers(values, where, len(array))
    return _Values(array, known)


def _as_number(text: str) -> int | None:
    """The number, if the text is its canonical form: 007 is a name."""
    digits = text.removeprefix("-")
    number = int(text) if digits.isascii() and digits.isdecimal() and len(digits) < 19 else None
    return number if number is not None and str(number) == text else None


def _of_objects(array: np.ndarray, where: str) -> np.ndarray:
    """Python objects as names, where all are text or missing (None, NaN)."""
    items = ["" if one is None or one != one else one for one in array.reshape(-1).tolist()]
    items = [one.decode(errors="backslashreplace") if isinstance(one, bytes) else one for one in items]
    if all(isinstance(one, str) for one in items):
        return np.array(items, str).reshape(array.shape)
    kinds = sorted({type(one).__name__ for one in items if not isinstance(one, str)})
    if kinds == ["int"]:
        return np.array(["" if one == "" else str(one) for one in items], str).reshape(array.shape)
    raise SimclrError(
        f"{where}: labels must be numbers or names, not Python objects ({', '.join(kinds[:3])})"
    )


def is_one_hot(array: np.ndarray) -> bool:
    """Whether every row of `array [n, k]` is one-hot or zero."""
    if array.dtype.kind not in "biuf" or array.ndim != 2 or not ((array == 0) | (array == 1)).all():
        return False
    ones = np.count_nonzero(array, axis=1)
    return bool((ones <= 1).all() and ones.any())


def _one_hot(array: np.ndarray, where: str) -> _Values:
    if not is_one_hot(array):
        raise _refused(
            where, array, len(array), ": a row has several classes or none; only an evaluation's --transfer "
            "takes images with several classes each",
        )  # fmt: skip
    known = np.count_nonzero(array, axis=1) == 1
    values = np.where(known, np.argmax(array, axis=1), NO_LABEL)
    empty = f"; {int((~known).sum()):,} rows of zeros mean none" if not known.all() else ""
    last = array.shape[1] - 1
    note = f"{where}: labels are one-hot, {list(array.shape)}: read as the classes 0 to {last:,}{empty}"
    return _Values(values, known, array.shape[1], (note,))
