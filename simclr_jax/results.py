"""Scores as summary.json and report.json keep them, and the one table that shows them."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

WHO = {"simclr": "this encoder", "untrained": "untrained encoder", "raw_pixels": "raw pixels"}
# Scores that count every class alike, however rare; `measures.ranking` makes them.
ALIKE = {"balanced_accuracy": "balanced accuracy", "auroc": "AUROC", "average_precision": "average precision"}
HEAD = "%, with 95 % interval"


@dataclasses.dataclass(frozen=True)
class Cell:
    """A score on test images, accuracy for the most part, as a fraction; None: nothing tells it."""

    value: float
    low: float | None = None  # of the 95 % interval
    high: float | None = None
    error: float | None = None  # standard error
    balanced_accuracy: "Cell | None" = None
    auroc: "Cell | None" = None
    average_precision: "Cell | None" = None
    by: str = ""  # who published it

    @classmethod
    def of(cls, found: Mapping[str, Any]) -> "Cell":
        """The cell that `plain` wrote."""
        fields: dict[str, Any] = {name: cls.of(x) if isinstance(x, dict) else x for name, x in found.items()}
        return cls(**fields)

    @property
    def alike(self) -> dict[str, "Cell"]:
        """{name of ALIKE: score} of those there are."""
        return {name: one for name in ALIKE if (one := getattr(self, name))}

    @property
    def uneven(self) -> bool:
        """Whether accuracy hides how rare classes fare: the balanced one is a point or more away."""
        return bool(self.balanced_accuracy) and abs(self.value - self.balanced_accuracy.value) >= 0.01


@dataclasses.dataclass(frozen=True)
class Row:
    """A classifier: what it scores on the features of each contender of WHO."""

    id: str
    title: str
    cells: dict[str, Cell]
    note: str = ""
    published: Cell | None = None  # for the same setting

    @classmethod
    def of(cls, found: Mapping[str, Any]) -> "Row":
        """The row that `plain` wrote."""
        published = Cell.of(found["published"]) if "published" in found else None
        cells = {who: Cell.of(one) for who, one in found["cells"].items()}
        return cls(**{**found, "cells": cells, "published": published})

    @property
    def uneven(self) -> bool:
        """Whether accuracy hides something, of any contender."""
        return any(one.uneven for one in self.cells.values())


@dataclasses.dataclass(frozen=True)
class Result:
    """What a protocol found."""

    rows: Sequence[Row] = ()
    figures: Sequence[Sequence[str]] = ()  # [file in figures/, caption]
    notes: Sequence[str] = ()  # lines of the page
    metrics: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # title: of `classified.evaluate`
    skipped: str = ""  # why it found nothing
    more: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # its own, as JSON takes it

    def json(self) -> dict[str, Any]:
        """As report.json has it: `more` beside the fields, without those that are empty."""
        found = {"rows": plain(self.rows), "figures": self.figures, "notes": self.notes}
        found |= {"metrics": self.metrics, "skipped": self.skipped}
        return {**self.more, **{name: value for name, value in found.items() if value}}


def plain(rows: Iterable[Row]) -> list[dict[str, Any]]:
    """The rows as JSON takes them, without what is not known."""

    def known(pairs):
        return {name: value for name, value in pairs if value not in (None, "")}

    return [dataclasses.asdict(row, dict_factory=known) for row in rows]


def table(rows: Sequence[Row]) -> list[str]:
    """Lines of text, a column a contender; where accuracy hides something the scores of ALIKE follow."""
    if not rows:
        return []
    columns = [who for who in WHO if any(who in row.cells for row in rows)]
    lines = [[HEAD, *map(WHO.get, columns)]]
    for row in rows:
        cells = list(map(row.cells.get, columns))
        lines.append([row.title, *map(shown, cells)])
        for name, title in ALIKE.items() if row.uneven else ():
            texts = [alike(one, name) for one in cells]
            lines += [[f"  {title}", *texts]] if any(texts) else []
    theirs = {row.title: f"{shown(row.published)}, {row.published.by}" for row in rows if row.published}
    if theirs:
        lines = [[*line, theirs.get(line[0], "")] for line in lines]
        lines[0][-1] = "published (theirs)"
    return aligned(lines)


def aligned(lines: Sequence[Sequence[str]]) -> list[str]:
    """Each line's cells below those of the one before; the first at the left, the others at the right."""
    first, *widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return [
        f"{title:<{first}}"
        + "".join(f"{cell:>{width + 3}}" for cell, width in zip(cells, widths, strict=True))
        for title, *cells in lines
    ]


def shown(one: Cell | None, style: str = "{:.1f}", factor: int = 100, unit: str = "") -> str:
    """A score with its interval: 97.9 [97.0, 98.7]; "" for None."""
    if one is None:
        return ""
    value, *ends = [style.format(factor * x) for x in (one.value, one.low, one.high) if x is not None]
    return f"{value}{unit} [{', '.join(ends)}]" if ends else f"{value}{unit}"


def alike(one: Cell | None, name: str) -> str:
    """A score of ALIKE: 97.9 % [97.0, 98.7], or 0.979 [0.970, 0.987]."""
    found = one and getattr(one, name)
    return shown(found, unit=" %") if name == "balanced_accuracy" else shown(found, "{:.3f}", 1)
