"""`list:FILE`: image files that a table names, with their labels, splits and groups."""

import csv
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from simclr_jax.data.formats import EXTENSIONS, Reading
from simclr_jax.data.holdout import holdout_rows
from simclr_jax.data.labels import NO_LABEL, number
from simclr_jax.data.sources import Source, Splits, from_files
from simclr_jax.data.split_names import TEST, TRAIN, first_named, lines_of
from simclr_jax.errors import SimclrError
from simclr_jax.text import printable

COLUMNS = {  # accepted names in the header
    "file": ("file", "path", "filename", "image"),
    "label": ("label", "class"),
    "split": ("split", "subset"),
    "group": ("group", "patient", "subject", "patient_id", "patientid", "subject_id", "subjectid"),
}
EXAMPLE = "file,label"


class Row(NamedTuple):
    """A line of the table; empty cells are ""."""

    file: str
    label: str = ""
    split: str = ""
    group: str = ""


def load(
    path: Path, train_split: str, test_split: str, holdout: float, reading: Reading | None = None
) -> Splits:
    """The splits of the images that the table `path` names.

    The first line names the columns, in any order. `file` is required and relative to the table's folder.
    `label` (empty: no label), `split` and `group` are optional. Without `split`, a share `holdout` of the
    images becomes the test split; a group is never divided.

    Raises:
      SimclrError: there is no such table, it cannot be read, or none of its files is there.
    """
    where = f"list:{path}"
    columns, rows, notes = table(path)
    if "label" not in columns:
        notes += (f"{where}: no labels: there is no column label",)
    train, test, told = _divide(rows, columns, train_split, test_split, where)
    notes += told
    labels = number([row.label for row in train], len(train), where, own_names=True)
    classes = labels.classes
    if "label" in columns:
        notes += labels.notes

    def source(part: list[Row], ids: np.ndarray, told: tuple[str, ...] = ()) -> Source:
        return from_files(
            [row.file for row in part],
            ids,
            classes,
            root=str(path.parent),
            name=where,
            groups=_groups(part) if "group" in columns else None,
            notes=notes + told,
            reading=reading,
        )

    if test:
        found = number([row.label for row in test], len(test), where, classes=classes or None)
        ids = found.ids if classes else np.full(len(test), NO_LABEL)
        return Splits(source(train, labels.ids), source(test, ids, found.notes if classes else ()))
    whole = source(train, labels.ids)
    if not classes:  # nothing to score: train on all
        return Splits(whole, None)
    kept, held = holdout_rows(whole.size, holdout, whole.groups)
    return Splits(whole.subset(kept), whole.subset(held) if len(held) else None)


def _groups(rows: list[Row]) -> np.ndarray:
    """A number for each row's group; a row without one is a group of its own."""
    numbers = {name: i for i, name in enumerate(sorted({row.group for row in rows}))}
    alone = iter(range(len(numbers), len(numbers) + len(rows)))
    return np.array([numbers[row.group] if row.group else next(alone) for row in rows])


# ---- reading the table --------------------------------------------------------------------------


def table(path: Path) -> tuple[set[str], list[Row], tuple[str, ...]]:
    """(columns, rows whose image is there, notes) of the table `path`, whatever their split.

    Raises:
      SimclrError: as `load`.
    """
    where = f"list:{path}"
    columns, rows, notes = _read(path, where)
    rows, told = _present(rows, path.parent, where)
    return columns, rows, notes + told


def _read(path: Path, where: str) -> tuple[set[str], list[Row], tuple[str, ...]]:
    """(present columns, rows, notes)"""
    try:
        # utf-8-sig skips Excel's mark at the beginning. File names may contain bytes that are no UTF-8.
        with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            header = file.readline()
            marks = [mark for mark in ("\t", ";", ",") if mark in header]
            lines = csv.reader(file, delimiter=marks[0] if marks else ",", strict=True)
            at, other = _columns(header, marks[0] if marks else ",", where)
            rows = list(_rows(lines, at, where))
    except FileNotFoundError:
        raise SimclrError(f"{where}: no such file") from None
    except (OSError, csv.Error) as error:
        raise SimclrError(f"{where}: cannot be read as a table ({error})") from None
    if not rows:
        raise SimclrError(f"{where}: names no file")
    ignored = f"{where}: columns that are not read: {', '.join(map(printable, other))}"
    return set(at), rows, (ignored,) if other else ()


def _columns(header: str, mark: str, where: str) -> tuple[dict[str, int], list[str]]:
    """({column: index}, names of other columns)"""
    names = [name.strip() for name in next(csv.reader([header], delimiter=mark), [])]
    at: dict[str, int] = {}
    other = []
    for place, name in enumerate(names):
        column = next((c for c, known in COLUMNS.items() if name.lower() in known), None)
        if column in at:
            raise SimclrError(f"{where}: two columns say the {column}: {names[at[column]]}, {name}")
        if column is None:
            other.append(name)
        else:
            at[column] = place
    if "file" not in at:
        raise SimclrError(
            f"{where}: the first line must name the columns, {EXAMPLE} for example (also split, group), "
            f"not {printable(header.strip())!r}"
        )
    return at, other


def _rows(lines: Iterable[list[str]], at: dict[str, int], where: str) -> Iterator[Row]:
    for count, cells in enumerate(lines, start=2):
        if not any(cells):
            continue
        if len(cells) <= at["file"] or not cells[at["file"]] or "\0" in cells[at["file"]]:
            raise SimclrError(f"{where}: row {count} names no file: {printable(','.join(cells))!r}")
        cut = {name: cells[i].strip() for name, i in at.items() if name != "file" and i < len(cells)}
        yield Row(cells[at["file"]], **cut)


def _present(rows: list[Row], folder: Path, where: str) -> tuple[list[Row], tuple[str, ...]]:
    """(rows whose image exists and is readable, without duplicates; notes on the others)."""
    found: dict[str, Row] = {}
    missing, repeated, kinds = [], 0, Counter()
    for row in rows:
        file = os.path.normpath(row.file)  # ./a.jpg is a.jpg
        before = found.get(file)
        suffix = os.path.splitext(row.file)[1].lower()
        if before is not None and before[1:] != row[1:]:
            raise SimclrError(
                f"{where}: says two things of {printable(row.file)}: {before[1:]} and {row[1:]}"
            )
        if before is not None:
            repeated += 1
        elif suffix and suffix not in EXTENSIONS:
            kinds[suffix] += 1
        elif not os.path.isfile(os.path.join(folder, row.file)):
            missing.append(row.file)
        else:
            found[file] = row
    if not found:
        raise SimclrError(
            f"{where}: none of its {len(rows):,} files is an image in {folder}, for example "
            f"{printable(rows[0].file)}; give paths relative to the folder of the list"
        )
    notes = []
    if missing:
        shown = ", ".join(map(printable, missing[:3]))
        notes.append(f"{where}: {len(missing):,} of {len(rows):,} files are missing and left out: {shown}")
    if kinds:
        counts = ", ".join(f"{count:,} {printable(kind)}" for kind, count in kinds.most_common())
        notes.append(f"{where}: not read: {counts}; {', '.join(EXTENSIONS)} are")
    if repeated:
        notes.append(f"{where}: {repeated:,} rows repeat another and are left out")
    return list(found.values()), tuple(notes)


# ---- splits -------------------------------------------------------------------------------------


def _divide(
    rows: list[Row], columns: set[str], train_split: str, test_split: str, where: str
) -> tuple[list[Row], list[Row], tuple[str, ...]]:
    """(training rows, test rows, notes); no test rows if the table has no `split`."""
    if "split" not in columns:
        return rows, [], ()
    counts = Counter(row.split for row in rows)
    train = first_named(counts, (train_split, *TRAIN))
    test = first_named([name for name in counts if name != train], (test_split, *TEST))
    there = ", ".join(f"{printable(name) or '(empty)'} {count:,}" for name, count in counts.most_common(5))
    if train is None:
        raise SimclrError(
            f"{where}: no row has the split {train_split!r}; there are {there} (--config.data.train_split)"
        )
    notes = [f"{where}: {line}" for line in lines_of("split", train, test, (train_split, test_split))]
    if other := sum(count for name, count in counts.items() if name not in (train, test)):
        notes.append(f"{where}: {other:,} images of other splits are not read; there are {there}")
    parts = [[row for row in rows if row.split == name] for name in (train, test)]
    both = {row.group for row in parts[0]} & {row.group for row in parts[1]} - {""}
    if both:
        shown = ", ".join(map(printable, sorted(both)[:3]))
        notes.append(f"{where}: {len(both):,} groups are trained and tested on, as the list says: {shown}")
    return parts[0], parts[1], tuple(notes)
