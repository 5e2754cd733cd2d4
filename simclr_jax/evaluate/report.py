"""The report as data: the verdict, the table, and what every protocol found."""

import dataclasses
import time
from collections.abc import Mapping, Sequence
from typing import Any

from simclr_jax import figures, metrics, results, run_summary
from simclr_jax.evaluate import charts, published
from simclr_jax.evaluate.subject import Subject
from simclr_jax.results import ALIKE, Cell, Row, alike

SCHEMA = 1  # of report.json
TELLS = ("lbfgs", "sgd", "linear_all", "knn_200")  # rows that the verdict rests on, the first there is


def make(subject: Subject, found: Mapping[str, Any], unscorable: str) -> dict[str, Any]:
    """What report.json holds; draws the curves of training."""
    own, mine = subject.trained.data, subject.config.data
    same = own.source == mine.source and own.test_split == mine.test_split
    theirs = published.figures(subject.trained) if same else {}
    rows = [Row.of(row) for result in found.values() for row in result.get("rows", ())]
    rows = [dataclasses.replace(row, published=theirs.get(row.id)) for row in rows]
    runs = {subject.workdir.name: metrics.read_rows(subject.workdir)}
    curves = subject.folder / "figures" / "curves.png"
    drawn = subject.first and figures.attempt(print, curves, charts.curves, runs)
    train, test = subject.splits
    return {
        "schema": SCHEMA,
        "workdir": str(subject.workdir),
        "page": str(subject.folder / "report.html"),
        "step": subject.encoder.step,
        "written": time.strftime("%Y-%m-%d %H:%M"),
        "verdict": verdict(rows, found.get("health"), unscorable, subject.config.task),
        "rows": results.plain(rows),
        "left_out": left_out(found),
        "classes": list(subject.classes),
        "images": {"train": [train.name, train.size], "test": [test.name, test.size] if test else None},
        "curves": [["curves.png", "What was measured over the steps of training"]] if drawn else [],
        "protocols": dict(found),
        "seconds": round(sum(result["seconds"] for result in found.values()), 2),
        "config": subject.config.to_dict(),
        "environment": run_summary.environment(),
    }


def verdict(
    rows: Sequence[Row], health: Mapping[str, Any] | None, unscorable: str, task: str = "pretrain"
) -> str:
    """One line: how good the encoder is, and whether that is more than without training.

    Of a run that learned from labels or a teacher its own classifier comes first.
    """
    collapsed = health and health["simclr"]["collapsed"]
    alarm = "The representation has COLLAPSED: images look nearly alike to it. " if collapsed else ""
    tells = ("classifier", *TELLS) if task in ("supervised", "distill") else (*TELLS, "classifier")
    named = [row for tell in tells for row in rows if row.id == tell]
    others = [row for row in rows if row.cells["simclr"].low is not None]
    row = next(iter([*named, *others]), None)
    if row is None:
        why = f"No score: {unscorable}." if unscorable else "No classifier was evaluated."
        sound = " No sign of a collapse." if health and not collapsed else ""
        return f"{alarm}{why}{sound}"
    mine = row.cells["simclr"]
    text = f"{row.title}: {percent(mine.value)} of the test images right{_interval(mine)}"
    if row.uneven:
        text += ", " + ", ".join(f"{ALIKE[name]} {alike(mine, name)}" for name in mine.alike)
    told = []
    for who, name in (("untrained", "the untrained encoder"), ("raw_pixels", "raw pixels")):
        if other := row.cells.get(who):
            told.append(f"{_compared(mine, other)} {name} ({percent(other.value)})")
    return alarm + text + ("; " + ", ".join(told) if told else "") + "."


def _compared(mine: Cell, other: Cell) -> str:
    if mine.low is not None and other.high is not None and mine.low > other.high:
        return "better than"
    if mine.high is not None and other.low is not None and mine.high < other.low:
        return "WORSE than"
    return "not clearly better than" if mine.value > other.value else "no better than"


def percent(value: float) -> str:
    """0.979 as 97.9 %."""
    return f"{100 * value:.1f} %"


def _interval(one: Cell) -> str:
    if one.low is None or one.high is None:
        return ""
    return f" (95 %: {100 * one.low:.1f} to {100 * one.high:.1f})"


def table(made: Mapping[str, Any]) -> list[str]:
    """`results.table` of a report, which classes it does not count, and an empty line; [] without rows."""
    lines = results.table([Row.of(row) for row in made["rows"]])
    return [*lines, *filter(None, [made["left_out"]]), ""] if lines else []


def notes(made: Mapping[str, Any]) -> list[str]:
    """What the protocols say in words, and an empty line; [] if they say nothing."""
    lines = [note for result in made["protocols"].values() for note in result.get("notes", ())]
    return [*lines, ""] if lines else []


def left_out(found: Mapping[str, Any]) -> str:
    """Which classes the figures of ALIKE do not count; "" where they count all."""
    measured = next((m for result in found.values() for m in result.get("metrics", {}).values()), None)
    if measured is None:
        return ""
    supports = [one["support"] for one in measured["per_class"]]
    if measured["images"] in supports:
        return "All test images are of one class: no AUROC, no average precision."
    empty = supports.count(0)
    if not empty:
        return ""
    names = ", ".join(ALIKE.values())
    return f"Classes without test images, left out of {names}: {empty:,} of {len(supports):,}."
