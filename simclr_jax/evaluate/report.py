"""The report as data: the verdict, the table, and what every protocol found."""

import time
from collections.abc import Mapping
from typing import Any

from simclr_jax import figures, metrics, run_summary
from simclr_jax.evaluate import charts, published
from simclr_jax.evaluate.subject import Subject
from simclr_jax.run_summary import ALIKE, figure, uneven

SCHEMA = 1  # of report.json
HEAD = "%, with 95 % interval"
COLUMNS = {**charts.NAMES, "untrained": "untrained encoder"}
TELLS = ("lbfgs", "sgd", "knn_200")  # rows that the verdict rests on, the first there is


def make(subject: Subject, results: Mapping[str, Any], unscorable: str) -> dict[str, Any]:
    """What report.json holds; draws the curves of training."""
    own, mine = subject.trained.data, subject.config.data
    same = own.source == mine.source and own.test_split == mine.test_split
    theirs = published.figures(subject.trained) if same else {}
    rows = [row for result in results.values() for row in result.get("rows", ())]
    for row in rows:
        if row["id"] in theirs:
            row["published"] = theirs[row["id"]]
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
        "verdict": verdict(rows, results.get("health"), unscorable, subject.config.task),
        "rows": rows,
        "left_out": left_out(results),
        "classes": list(subject.classes),
        "images": {"train": [train.name, train.size], "test": [test.name, test.size] if test else None},
        "curves": [["curves.png", "What was measured over the steps of training"]] if drawn else [],
        "protocols": dict(results),
        "seconds": round(sum(result["seconds"] for result in results.values()), 2),
        "config": subject.config.to_dict(),
        "environment": run_summary.environment(),
    }


def verdict(
    rows: list[dict[str, Any]], health: Mapping[str, Any] | None, unscorable: str, task: str = "pretrain"
) -> str:
    """One line: how good the encoder is, and whether that is more than without training.

    Of a run that learned from labels or a teacher its own classifier comes first.
    """
    collapsed = health and health["simclr"]["collapsed"]
    alarm = "The representation has COLLAPSED: images look nearly alike to it. " if collapsed else ""
    tells = ("classifier", *TELLS) if task in ("supervised", "distill") else (*TELLS, "classifier")
    named = [row for tell in tells for row in rows if row["id"] == tell]
    others = [row for row in rows if "low" in row["cells"]["simclr"]]
    row = next(iter([*named, *others]), None)
    if row is None:
        why = f"No score: {unscorable}." if unscorable else "No classifier was evaluated."
        sound = " No sign of a collapse." if health and not collapsed else ""
        return f"{alarm}{why}{sound}"
    mine, others = row["cells"]["simclr"], row["cells"]
    text = f"{row['title']}: {percent(mine['value'])} of the test images right{_interval(mine)}"
    if uneven_row(row):
        text += ", " + ", ".join(f"{ALIKE[name]} {alike(mine, name)}" for name in ALIKE if name in mine)
    told = []
    for who, name in (("untrained", "the untrained encoder"), ("raw_pixels", "raw pixels")):
        if who in others:
            told.append(f"{_compared(mine, others[who])} {name} ({percent(others[who]['value'])})")
    return alarm + text + ("; " + ", ".join(told) if told else "") + "."


def _compared(mine: Mapping[str, float], other: Mapping[str, float]) -> str:
    if mine["low"] > other["high"]:
        return "better than"
    if mine["high"] < other["low"]:
        return "WORSE than"
    return "not clearly better than" if mine["value"] > other["value"] else "no better than"


def percent(value: float) -> str:
    """0.979 as 97.9 %."""
    return f"{100 * value:.1f} %"


def _interval(one: Mapping[str, float]) -> str:
    if "low" not in one:
        return ""
    return f" (95 %: {100 * one['low']:.1f} to {100 * one['high']:.1f})"


def table(made: Mapping[str, Any]) -> list[str]:
    """The rows as lines of text, and an empty one."""
    rows = made["rows"]
    if not rows:
        return []
    title = max(len(row["title"]) for row in rows) + 2
    columns = [who for who in COLUMNS if any(who in row["cells"] for row in rows)]
    theirs = any("published" in row for row in rows)
    lines = [f"{HEAD:<{title}}" + "".join(f"{COLUMNS[who]:>22}" for who in columns)]
    lines[0] += "  published (theirs)" if theirs else ""
    for row in rows:
        cells = "".join(f"{shown(row['cells'].get(who)):>22}" for who in columns)
        other = row.get("published")
        lines.append(
            f"{row['title']:<{title}}{cells}" + (f"  {shown(other)}, {other['by']}" if other else "")
        )
    return [*lines, *_table_alike(made, title), ""]


def _table_alike(made: Mapping[str, Any], title: int) -> list[str]:
    """Of this encoder, where it differs from accuracy."""
    rows = [row for row in made["rows"] if uneven_row(row)]
    if not rows:
        return []
    names = [name for name in ALIKE if any(name in row["cells"]["simclr"] for row in rows)]
    lines = ["", f"{'every class alike':<{title}}" + "".join(f"{ALIKE[name]:>22}" for name in names)]
    for row in rows:
        cells = "".join(f"{alike(row['cells']['simclr'], name):>22}" for name in names)
        lines.append(f"{row['title']:<{title}}{cells}")
    return [*lines, *filter(None, [made["left_out"]])]


def uneven_row(row: Mapping[str, Any]) -> bool:
    """Whether accuracy hides something: the balanced one of a contender is a point or more away from it."""
    cells = [one for one in row["cells"].values() if "balanced_accuracy" in one]
    return any(uneven(one["value"], one["balanced_accuracy"]["value"]) for one in cells)


def alike(one: Mapping[str, Any], name: str) -> str:
    """A score of ALIKE in a cell: 97.9 % [97.0, 98.7], or 0.979 [0.970, 0.987]."""
    if name not in one:
        return ""
    found, unit = one[name], " %" if name == "balanced_accuracy" else ""
    interval = f" [{figure(name, found['low'])}, {figure(name, found['high'])}]" if "low" in found else ""
    return f"{figure(name, found['value'])}{unit}{interval}"


def left_out(results: Mapping[str, Any]) -> str:
    """Which classes the figures of ALIKE do not count; "" where they count all."""
    found = next((m for result in results.values() for m in result.get("metrics", {}).values()), None)
    if found is None:
        return ""
    supports = [one["support"] for one in found["per_class"]]
    if found["images"] in supports:
        return "All test images are of one class: no AUROC, no average precision."
    empty = supports.count(0)
    if not empty:
        return ""
    names = ", ".join(ALIKE.values())
    return f"Classes without test images, left out of {names}: {empty:,} of {len(supports):,}."


def shown(one: Mapping[str, float] | None) -> str:
    """A cell: 97.9 [97.0, 98.7]."""
    if one is None:
        return ""
    interval = f" [{100 * one['low']:.1f}, {100 * one['high']:.1f}]" if "low" in one else ""
    return f"{100 * one['value']:.1f}{interval}"
