"""Draws the three figures of docs/ablations.md from the sweeps' trials.csv, and prints their tables.

    python tools/ablations/draw.py --sweeps=runs/sweeps --out=docs

--sweeps holds the folders ablation_temperature, ablation_projection and ablation_augmentation, as
`simclr sweep` names them; one that is missing is left out.
"""

import ast
import csv
import sys
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np
from absl import app, flags
from augmentation import ON

from simclr_jax import main as command
from simclr_jax import paths
from simclr_jax.errors import SimclrError
from simclr_jax.figures import BLUE, INK, ORANGE, attempt, new, save

SWEEPS = flags.DEFINE_string("sweeps", "runs/sweeps", "folder of the sweeps")
OUT = flags.DEFINE_string("out", "docs", "folder of the figures")
METRICS = {"linear_all": ("linear, all labels", BLUE), "knn": ("kNN", ORANGE)}

Row = dict[str, str]


def read(path: Path) -> list[Row]:
    """The finished trials."""
    with path.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["state"] == "complete"]
    if not rows:
        raise SimclrError(f"{path}: no finished trial; run the sweep first")
    return rows


def grouped(rows: list[Row], key: Callable[[Row], tuple], metric: str) -> dict[tuple, list[float]]:
    """The scores of each key, %: one a seed."""
    groups = defaultdict(list)
    for row in sorted(rows, key=lambda row: row.get("seed", "")):
        groups[key(row)].append(100 * float(row[f"scores/{metric}"]))
    return groups


def lines(axes, groups: dict[tuple, list[float]], metric: str, colours: dict[str, str]) -> None:
    """The mean over seeds as a line for each name, every seed as a point; keys are (name, x)."""
    for name, colour in colours.items():
        points = sorted((x, values) for (who, x), values in groups.items() if who == name)
        axes.plot([x for x, _ in points], [np.mean(v) for _, v in points], color=colour, label=name)
        for x, values in points:
            axes.plot([x] * len(values), values, "o", color=colour, markersize=4)
    axes.set_xscale("log")
    axes.set_title(f"{METRICS[metric][0]}, top-1 (%)", color=INK, fontsize=10)
    axes.grid(color="#dddddd")


def ticks(axes, values: list[float]) -> None:
    """Those values alone, as they are written."""
    axes.set_xticks(values, [f"{value:g}" for value in values], fontsize=9)
    axes.minorticks_off()


def table(groups: dict[str, dict[tuple, list[float]]]) -> None:
    """A Markdown row a key: the scores of every seed by metric."""
    for key in sorted(groups["linear_all"]):
        cells = [", ".join(f"{value:.1f}" for value in groups[metric][key]) for metric in METRICS]
        print(f"| {' | '.join(map(str, key))} | {' | '.join(cells)} |")


def temperature(path: Path, rows: list[Row]) -> None:
    """Table 5: normalised and not, over the temperature."""
    names = {"True": "normalised", "False": "not normalised"}

    def key(row):
        return (names[row["loss.normalize"]], float(row["loss.temperature"]))

    groups = {metric: grouped(rows, key, metric) for metric in METRICS}
    figure = new(figsize=(9.2, 3.2))
    panels = figure.subplots(1, 2)
    for axes, metric in zip(panels, METRICS, strict=True):
        lines(axes, groups[metric], metric, {"normalised": BLUE, "not normalised": ORANGE})
        ticks(axes, sorted({x for _, x in groups[metric]}))
        axes.set_xlabel("temperature", color=INK)
    panels[0].legend(frameon=False)
    table(groups)
    save(figure, path)


def projection(path: Path, rows: list[Row]) -> None:
    """Figure 8: the heads over the dimension; none has no dimension and is a level."""

    def key(row):
        return (row["model.projection"], int(row["model.projection_dim"] or 0))

    groups = {metric: grouped(rows, key, metric) for metric in METRICS}
    figure = new(figsize=(9.2, 3.2))
    panels = figure.subplots(1, 2)
    for axes, metric in zip(panels, METRICS, strict=True):
        found = dict(groups[metric])
        for i, value in enumerate(found.pop(("none", 0), [])):
            label = None if i else "none, a line a seed"
            axes.axhline(value, color=INK, linestyle=":", linewidth=1, label=label)
        lines(axes, found, metric, {"linear": ORANGE, "nonlinear": BLUE})
        ticks(axes, sorted({x for _, x in found}))
        axes.set_xlabel("output dimension", color=INK)
    panels[0].legend(frameon=False)
    table(groups)
    save(figure, path)


def augmentation(path: Path, rows: list[Row]) -> None:
    """Figure 5: single augmentations on the diagonal, pairs off it."""
    names, groups = list(ON), {metric: grouped(rows, _augmentations, metric) for metric in METRICS}
    figure = new(figsize=(8.4, 3.9))
    for axes, metric in zip(figure.subplots(1, 2), METRICS, strict=True):
        grid = np.full((len(names), len(names)), np.nan)
        for (first, second), values in groups[metric].items():
            i, j = names.index(first), names.index(second)
            grid[i, j] = grid[j, i] = np.mean(values)
        axes.imshow(grid, cmap="Blues")
        middle = (np.nanmin(grid) + np.nanmax(grid)) / 2
        for (i, j), value in np.ndenumerate(grid):
            if not np.isnan(value):
                colour = "white" if value > middle else INK
                axes.text(j, i, f"{value:.1f}", ha="center", va="center", color=colour, fontsize=9)
        axes.set_xticks(range(len(names)), names)
        axes.set_yticks(range(len(names)), names)
        axes.tick_params(length=0)
        axes.set_title(f"{METRICS[metric][0]}, top-1 (%)", color=INK, fontsize=10)
    table(groups)
    save(figure, path)


def _augmentations(row: Row) -> tuple[str, str]:
    """(first, second) of the augmentations that are on, the same name twice for a single one."""
    on = []
    for name, setting in ON.items():
        ((field, value),) = setting.items()
        if tuple(np.ravel(ast.literal_eval(row[field]))) == tuple(np.ravel(value)):
            on.append(name)
    return on[0], on[-1]


def main(argv: list[str]) -> None:
    """Draws what there is."""
    del argv
    sweeps, out, all_drawn = paths.local(SWEEPS.value, "--sweeps"), paths.local(OUT.value, "--out"), True
    for draw in (temperature, projection, augmentation):
        found = Path(sweeps) / f"ablation_{draw.__name__}" / "trials.csv"
        if not found.exists():
            print(f"{found}: not there; left out")
            continue
        path = Path(out) / f"ablation_{draw.__name__}.png"
        print(f"\n{path}")
        all_drawn &= attempt(print, path, draw, read(found))
    if not all_drawn:
        sys.exit(1)


if __name__ == "__main__":
    try:
        app.run(main)
    except SimclrError as error:
        command.fail(error)
