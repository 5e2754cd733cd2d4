"""Converts the columns of a table to numbers with statistics of the training rows."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from simclr_jax.errors import SimclrError
from simclr_jax.text import printable

NO_TEXT = ("", "na", "n/a", "nan", "null", "?")  # missing cells, in upper or lower case
NO_NUMBER = (*NO_TEXT, "none")  # "none" among texts may be a value
MOST_VALUES = 64  # of a column of text; one with more is an identifier or free text
SHOWN = 5  # names in a note

Cells = Mapping[
    str, np.ndarray
]  # {column: float64 [n], NaN for missing; or text as objects [n], "" for missing}


class Feature(NamedTuple):
    """Statistics of one column over the training rows. JSON stores it as a list."""

    name: str
    values: tuple[str, ...] = ()  # categories of a text column, one-hot encoded; () for numbers
    fill: float = 0.0  # replaces missing cells: the median, or the index of the most frequent value
    mean: float = 0.0
    std: float = 1.0  # 0: all numbers are the same

    @property
    def width(self) -> int:
        """The number of encoded columns."""
        return len(self.values) or 1


@dataclass(frozen=True)
class Columns:
    """How a table becomes rows `[n, d]`: numbers standardised, texts one-hot."""

    features: tuple[Feature, ...]

    @classmethod
    def of(cls, stored: Iterable[Sequence[Any]]) -> "Columns":
        """Columns from their `features` as JSON has them."""
        return cls(tuple(Feature(name, tuple(values), *rest) for name, values, *rest in stored))

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the d columns of a row: "age", "colour=red"."""
        return tuple(
            name
            for feature in self.features
            for name in ([f"{feature.name}={v}" for v in feature.values] or [feature.name])
        )

    @property
    def feature(self) -> tuple[int, ...]:
        """The number of the feature that each of the d columns belongs to, for `random_corruption`."""
        return tuple(i for i, feature in enumerate(self.features) for _ in range(feature.width))

    def standardize(self, rows: np.ndarray) -> np.ndarray:
        """Rows `[n, d]` float32 from rows that hold numbers as in the table and texts as 0 and 1.

        NaN becomes the training rows' median or, in all columns of a text, its most frequent value.

        Raises:
          SimclrError: there are not d columns, or a number is infinite.
        """
        wanted = len(self.feature)
        if rows.ndim != 2 or rows.shape[1] != wanted or rows.dtype.kind not in "biuf":
            raise SimclrError(f"rows must be numbers [n, {wanted}], not {rows.dtype} {list(rows.shape)}")
        made = np.empty(rows.shape, np.float32)
        at = 0
        for feature in self.features:
            for place in range(feature.width):
                fill = float(place == feature.fill) if feature.values else feature.fill
                made[:, at] = _scaled(rows[:, at], feature, fill, "rows")
                at += 1
        return made

    def encode(self, cells: Cells, where: str) -> tuple[np.ndarray, tuple[str, ...]]:
        """(rows `[n, d]` float32, notes) of a table that has at least these columns.

        A text that occurs in no training row becomes zeros.

        Raises:
          SimclrError: the table, named `where`, lacks a column or has text in a column of numbers.
        """
        names = [feature.name for feature in self.features]
        if missing := [name for name in names if name not in cells]:
            raise SimclrError(f"{where}: lacks columns that the training rows have: {listed(missing)}")
        size = len(cells[names[0]])
        rows, notes, at = np.zeros((size, len(self.feature)), np.float32), (), 0
        for feature in self.features:
            found = cells[feature.name]
            if not feature.values:
                rows[:, at] = _scaled(_numbers(found, feature.name, where), feature, feature.fill, where)
            else:
                if found.dtype != object:
                    raise SimclrError(
                        f"{where}: column {printable(feature.name)} has numbers, and the training rows have "
                        "texts there"
                    )
                place, strange = _places(found, feature)
                known = np.flatnonzero(place >= 0)
                rows[known, at + place[known]] = 1
                notes += _told_strange(strange, feature.name, where)
            at += feature.width
        return rows, notes


def fit(cells: Cells, where: str) -> tuple[Columns, tuple[str, ...]]:
    """(columns, notes) fitted to the training rows.

    Numbers get mean 0 and standard deviation 1, as SCARF has them (arXiv 2106.15147, section 4); a text
    becomes one-hot. A column without any value is left out.

    Raises:
      SimclrError: no column has a value, or one has infinite numbers or more than MOST_VALUES texts.
    """
    empty = [name for name, found in cells.items() if _missing(found).all()]
    used = {name: found for name, found in cells.items() if name not in empty}
    if not used:
        what = f"all values are missing ({listed(empty)})" if empty else "there is no column but the labels"
        raise SimclrError(f"{where}: nothing to train on: {what}")
    features = tuple(_feature(name, found, where) for name, found in used.items())
    size = len(next(iter(used.values())))
    notes = (
        f"{where}: numbers have mean 0 and standard deviation 1 over the {size:,} training rows",
        *_told_texts(features, where),
    )
    if empty:
        notes += (f"{where}: columns without any value are left out: {listed(empty)}",)
    if same := [feature.name for feature in features if feature.std == 0]:
        notes += (f"{where}: columns with the same number in each training row become 0: {listed(same)}",)
    counts = {name: int(_missing(found).sum()) for name, found in used.items()}
    if lacking := [f"{printable(name)} ({count:,})" for name, count in counts.items() if count]:
        notes += (
            f"{where}: missing values become the training rows' median, in columns of text the most frequent "
            f"value: {listed(lacking)}",
        )
    return Columns(features), notes


def parse(cells: Sequence[str], as_text: bool = False) -> np.ndarray:
    """A column of text: float64 `[n]` where every cell is a number or missing, or else text as objects.

    `as_text` keeps it as text; needed for a test split if the training rows have text there.
    """
    stripped = [cell.strip() for cell in cells]
    if not as_text and all(c.casefold() in NO_NUMBER or _is_number(c) for c in stripped):
        return np.array([math.nan if c.casefold() in NO_NUMBER else float(c) for c in stripped], np.float64)
    return np.array(["" if c.casefold() in NO_TEXT else c for c in stripped], object)


def listed(names: Sequence[str]) -> str:
    """The first few names, and how many more there are."""
    shown = ", ".join(printable(name) for name in names[:SHOWN])
    return shown + (f" and {len(names) - SHOWN:,} more" if len(names) > SHOWN else "")


# ---- one column ---------------------------------------------------------------------------------


def _feature(name: str, found: np.ndarray, where: str) -> Feature:
    if found.dtype == object:
        return _text_feature(name, found, where)
    numbers = _numbers(found, name, where)
    known = numbers[~np.isnan(numbers)]
    fill = float(np.median(known))
    filled = np.where(np.isnan(numbers), fill, numbers)
    with np.errstate(over="ignore", invalid="ignore"):
        mean, std = float(filled.mean()), float(filled.std())
    if not (math.isfinite(mean) and math.isfinite(std)):
        raise SimclrError(
            f"{where}: column {printable(name)} has numbers up to {np.abs(known).max():.3g}, too large to "
            "square: divide them"
        )
    # Not std > 0: the mean of equal numbers may round to another one.
    return Feature(name, (), fill, mean, std if filled.min() < filled.max() else 0.0)


def _text_feature(name: str, found: np.ndarray, where: str) -> Feature:
    values, counts = np.unique(found[~_missing(found)], return_counts=True)
    if len(values) > MOST_VALUES:
        example = next((v for v in values if "," in v and _is_number(v.replace(",", "."))), None)
        remedy = f"write {example.replace(',', '.')} for {example}" if example else "leave the column out"
        raise SimclrError(
            f"{where}: column {printable(name)} has {len(values):,} different texts "
            f"({printable(values[0], 20)}, ...) and at most {MOST_VALUES} are made one-hot: {remedy}"
        )
    return Feature(name, tuple(map(str, values)), float(np.argmax(counts)))


def _numbers(found: np.ndarray, name: str, where: str) -> np.ndarray:
    """A column as float64 `[n]`."""
    if found.dtype == object:
        row = next(i for i, cell in enumerate(found) if cell and not _is_number(cell))
        raise SimclrError(
            f"{where}: column {printable(name)}, row {row + 1:,} is {printable(found[row], 20)!r}, and the "
            "training rows have numbers there"
        )
    numbers = found.astype(np.float64)
    if (infinite := np.isinf(numbers)).any():
        row = int(np.argmax(infinite))
        raise SimclrError(
            f"{where}: column {printable(name)}, row {row + 1:,} is {numbers[row]}: must be finite or missing"
        )
    return numbers


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _scaled(numbers: np.ndarray, feature: Feature, fill: float, where: str) -> np.ndarray:
    """(numbers - mean) / std as float32, computed in float64; 0 where std is 0."""
    numbers = numbers.astype(np.float64)
    numbers = np.where(np.isnan(numbers), fill, numbers)
    if feature.std == 0:
        return np.zeros(len(numbers), np.float32)
    with np.errstate(over="ignore"):
        scaled = ((numbers - feature.mean) / feature.std).astype(np.float32)
    if not np.isfinite(scaled).all():
        row = int(np.argmin(np.isfinite(scaled)))
        raise SimclrError(
            f"{where}: column {printable(feature.name)}, row {row + 1:,} is {numbers[row]:.3g}: too far from "
            f"the training rows, whose mean is {feature.mean:.3g} and standard deviation {feature.std:.3g}"
        )
    return scaled


def _missing(found: np.ndarray) -> np.ndarray:
    if found.dtype == object:
        return np.array([cell == "" for cell in found], bool)
    return np.isnan(found) if found.dtype.kind == "f" else np.zeros(len(found), bool)


def _places(found: np.ndarray, feature: Feature) -> tuple[np.ndarray, list[str]]:
    """(index of each text in `values`, -1 if missing; the missing texts)"""
    places = {value: i for i, value in enumerate(feature.values)} | {"": int(feature.fill)}
    return np.array([places.get(cell, -1) for cell in found], int), sorted(set(found) - places.keys())


def _told_strange(strange: list[str], name: str, where: str) -> tuple[str, ...]:
    if not strange:
        return ()
    return (
        f"{where}: column {printable(name)} has texts that no training row has, which become zeros: "
        f"{listed(strange)}",
    )


def _told_texts(features: tuple[Feature, ...], where: str) -> tuple[str, ...]:
    texts = [f"{printable(f.name)} ({len(f.values)} values)" for f in features if f.values]
    return (f"{where}: columns of text are one-hot: {listed(texts)}",) if texts else ()
