"""`table:PATH.csv`, `table:PATH.npz` and `table:sklearn/NAME`: rows of numbers, one example each."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from simclr_jax import memory_error
from simclr_jax.data import arrays, columns
from simclr_jax.data.holdout import holdout_rows
from simclr_jax.data.labels import Labels, number
from simclr_jax.data.sources import Source, Splits, of_arrays
from simclr_jax.data.split_names import TEST, TRAIN, first_named
from simclr_jax.errors import SimclrError
from simclr_jax.paths import local_source
from simclr_jax.text import printable

BUNDLED = ("digits", "breast_cancer", "wine")  # with scikit-learn
LABEL_NAMES = ("label", "target", "class")  # of the column, where config.data.table.label is ""
NO_LABELS = "none"  # config.data.table.label of a table without labels
NPZ_KEYS: tuple[
    tuple[tuple[str, str], tuple[str | None, str | None]], ...
] = (  # rows, labels; the first pair found counts
    (("x_train", "y_train"), ("x_test", "y_test")),
    (("features", "labels"), (None, None)),
)
CSV_ROOM = 12  # bytes of memory per byte of a file while reading
EXAMPLE = "table:PATH.csv, table:PATH.npz or " + ", ".join(f"table:sklearn/{name}" for name in BUNDLED)


class Table(NamedTuple):
    """One split before standardisation."""

    name: str
    cells: columns.Cells
    labels: Labels | None
    notes: tuple[str, ...] = ()
    texts: tuple[str, ...] = ()  # names of the text columns, including the label column
    label: str = NO_LABELS  # the column of labels

    def rows(self, index: np.ndarray) -> "Table":
        """The rows `index` alone."""
        cells = {name: found[index] for name, found in self.cells.items()}
        labels = self.labels and self.labels._replace(ids=self.labels.ids[index])
        return self._replace(cells=cells, labels=labels)


def load(
    where: str,
    data_dir: str | None,
    holdout: float,
    label: str = "",
    known: columns.Columns | None = None,
) -> Splits:
    """The splits of a table, rows float32 `[n, d]` each; their `columns` describe the d features.

    The test split is x_test in an .npz file, or test.csv next to train.csv; otherwise a share `holdout` of
    the labelled rows. Means, medians and text categories are computed from the training rows only.

    Args:
      where: what follows "table:"; a relative path begins in `data_dir`.
      label: the column of a .csv file with the classes; "" for the first of LABEL_NAMES, or else the last
        column; NO_LABELS for none.
      known: columns of another table, by whose statistics these rows are encoded; None: by their own.

    Raises:
      SimclrError: there is no such table, or it cannot be read as one.
    """
    train, test = _read(where, data_dir, label)
    if test is None and train.labels and train.labels.classes:  # without: nothing to score, train on all
        kept, held = holdout_rows(len(train.labels.ids), holdout)
        train, test = train.rows(kept), train.rows(held) if len(held) else None
    if known is None:
        found, notes = columns.fit(train.cells, train.name)
    else:
        found, notes = known, (f"{train.name}: columns and statistics are those that the encoder knows",)

    def source(table: Table, told: tuple[str, ...]) -> Source:
        rows, strange = found.encode(table.cells, table.name)
        notes = (*table.notes, *told, *strange)
        return of_arrays(rows, table.labels, name=table.name, notes=notes, columns=found)

    return Splits(source(train, notes), source(test, ()) if test else None)


def _read(where: str, data_dir: str | None, label: str) -> tuple[Table, Table | None]:
    kind, _, name = where.partition("/")
    if kind == "sklearn" and name in BUNDLED:
        return _bundled(name), None
    suffix = Path(where).suffix.lower()
    if suffix not in (".csv", ".npz"):
        raise SimclrError(f"config.data.source=table:{where}: must be {EXAMPLE}")
    if suffix == ".npz":
        return _read_npz(where, data_dir)
    path = local_source("table", where, data_dir)
    train = _read_csv(path, label)
    beside = _test_beside(path)
    if beside is None:
        return train, None
    test = _read_csv(beside, train.label, train)
    return train, test._replace(notes=(*test.notes, f"{test.name}: the rows to test on"))


def _bundled(name: str) -> Table:
    """A set that scikit-learn brings along."""
    from sklearn import datasets  # late: takes a second

    found = getattr(datasets, f"load_{name}")()
    cells = {str(key): found.data[:, i] for i, key in enumerate(found.feature_names)}
    labels = number(found.target, len(found.target), f"table:sklearn/{name}")
    return Table(f"table:sklearn/{name}", cells, labels._replace(classes=tuple(map(str, found.target_names))))


def _texts(cells: columns.Cells) -> tuple[str, ...]:
    return tuple(name for name, found in cells.items() if found.dtype == object)


def _classes(train: Table | None) -> tuple[str, ...] | None:
    """The class names of the training rows, if there are any."""
    return (train.labels.classes or None) if train and train.labels else None


# ---- .npz ---------------------------------------------------------------------------------------


def _read_npz(where: str, data_dir: str | None) -> tuple[Table, Table | None]:
    path, found = arrays.open_npz(where, data_dir, kind="table")
    keys = list(found.keys())
    pairs = next((pairs for pairs in NPZ_KEYS if pairs[0][0] in keys), None)
    if pairs is None:
        raise SimclrError(
            f"table:{path}: holds {', '.join(keys) or 'nothing'}; name the rows x_train (and y_train, "
            "x_test, y_test), or features and labels"
        )
    (train_x, train_y), (test_x, test_y) = pairs
    used = [key for key in (train_x, train_y, test_x, test_y) if key is not None and key in keys]
    arrays.check_room(path, used, copies=2, kind="table", remedy="save fewer rows, or float32")
    train = _npz_table(path, found, train_x, train_y)
    if test_x is None or test_x not in keys:
        return train, None
    return train, _npz_table(path, found, test_x, test_y, train)


def _npz_table(
    path: Path, found: Mapping[str, Any], x: str, y: str | None, train: Table | None = None
) -> Table:
    """The table of two arrays; for test rows, `train` is the table of the training rows."""
    remedy = "save rows as numbers [n, d], labels as numbers or as labels.astype(str)"
    name, told = f"table:{path.name}/{x}", {"kind": "table", "remedy": remedy}
    rows = arrays.npz_array(path, found, x, **told)
    if rows.ndim != 2 or not rows.size or rows.dtype.kind not in "biufU":
        raise SimclrError(f"{name}: rows must be numbers or text [n, d], not {rows.dtype} {list(rows.shape)}")
    cells = {str(i): rows[:, i] for i in range(rows.shape[1])}
    if rows.dtype.kind == "U":
        cells = {
            key: columns.parse(cell.tolist(), train is not None and key in train.texts)
            for key, cell in cells.items()
        }
    if y is None or y not in found:
        why = f"{name}: no labels: the file has no {y}; it holds {', '.join(found.keys())}"
        return Table(name, cells, None, (why,), _texts(cells))
    labels = arrays.npz_array(path, found, y, **told)
    if labels.ndim and len(labels) != len(rows):
        raise SimclrError(
            f"table:{path.name}: {y} has {len(labels):,} labels for the {len(rows):,} rows of {x}"
        )
    known = number(labels, len(rows), f"table:{path.name}/{y}", classes=_classes(train))
    return Table(name, cells, known, texts=_texts(cells))


# ---- .csv ---------------------------------------------------------------------------------------


def _test_beside(path: Path) -> Path | None:
    """The file of the test split next to a training file: test.csv for train.csv, or another usual name."""
    if path.stem.casefold() not in TRAIN:
        return None
    there = {other.stem: other for other in path.parent.iterdir() if other.suffix == path.suffix}
    name = first_named(there, TEST)
    return there[name] if name else None


def _read_csv(path: Path, label: str, train: Table | None = None) -> Table:
    """The table of a file; for test rows, `train` is the table of the training rows."""
    where = f"table:{path.name}"
    header, lines = _lines(path)
    cells, notes = {}, ()
    nameless = [i + 1 for i, name in enumerate(header) if not name]
    if nameless:
        numbers = columns.listed(list(map(str, nameless)))
        notes += (f"{where}: columns without a name are not read: {numbers}",)
    for i, name in enumerate(header):
        if name:
            as_text = train is not None and name in train.texts
            cells[name] = columns.parse([line[i] for line in lines], as_text)
    texts = _texts(cells)
    if label == NO_LABELS:
        return Table(
            where, cells, None, (*notes, f"{where}: no labels: config.data.table.label is {NO_LABELS}"), texts
        )
    column = _label_column(list(cells), label, where)
    notes += (f"{where}: the labels are the column {printable(column)}",)
    labels = _labels(cells.pop(column), column, where, _classes(train))
    return Table(where, cells, labels, notes, texts, column)


def _label_column(names: list[str], label: str, where: str) -> str:
    if not label:
        return first_named(names, LABEL_NAMES) or names[-1]
    if label not in names:
        raise SimclrError(
            f"{where}: there is no column {printable(label)} for the labels (config.data.table.label); there "
            f"are {columns.listed(names)}"
        )
    return label


def _labels(found: np.ndarray, column: str, where: str, classes: Sequence[str] | None) -> Labels:
    if found.dtype != object and (np.abs(found) < 2**53).all() and (found == np.rint(found)).all():
        found = found.astype(np.int64)  # floats would be told in a note
    try:
        return number(found, len(found), where, classes=classes, own_names=True)
    except SimclrError as error:
        raise SimclrError(
            f"{error}; the labels are the column {printable(column)}: set config.data.table.label to another "
            f"one, or to {NO_LABELS}"
        ) from None


def _lines(path: Path) -> tuple[list[str], list[list[str]]]:
    """(names of the columns, cells of each row) of a file whose first line names the columns."""
    where = f"table:{path}"
    try:
        _check_room(path, where)
        # utf-8-sig: Excel begins a file with a mark.
        with open(path, encoding="utf-8-sig", newline="") as file:
            first = file.readline()
            file.seek(0)
            mark = next((mark for mark in ("\t", ";") if mark in first), ",")
            reader = csv.reader(file, delimiter=mark, strict=True)
            header = [name.strip() for name in next(reader, [])]
            _check_header(header, where)
            lines = []
            for line in reader:
                if len(line) != len(header) and "".join(line).strip():
                    raise SimclrError(
                        f"{where}: line {reader.line_num:,} has {len(line):,} cells, and the first line "
                        f"names {len(header):,} columns"
                    )
                if len(line) == len(header):
                    lines.append(line)
    except FileNotFoundError:
        raise SimclrError(f"{where}: no such file") from None
    except UnicodeDecodeError as error:
        raise SimclrError(f"{where}: is not UTF-8 text (byte {error.start:,}): save it as UTF-8") from None
    except (OSError, csv.Error) as error:
        why = getattr(error, "strerror", None) or error
        raise SimclrError(f"{where}: cannot be read as a table ({why})") from None
    if not lines:
        raise SimclrError(f"{where}: has no rows")
    return header, lines


def _check_room(path: Path, where: str) -> None:
    needs, free = CSV_ROOM * path.stat().st_size, memory_error.host_free()
    if free is not None and needs > free:
        raise SimclrError(
            f"{where}: takes about {needs / 2**30:,.1f} GiB of memory to read, and {free / 2**30:,.1f} are "
            "free; save it as an .npz file"
        )


def _check_header(header: list[str], where: str) -> None:
    if not any(header):
        raise SimclrError(f"{where}: the first line is empty; it must name the columns")
    if columns.parse(header).dtype != object:
        raise SimclrError(f"{where}: the first line must name the columns, and it holds numbers alone")
    twice = sorted({name for name in header if name and header.count(name) > 1})
    if twice:
        raise SimclrError(f"{where}: two columns have the same name: {columns.listed(twice)}")
