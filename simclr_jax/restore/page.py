"""The page of `--corrupt`: a table with intervals, images before and after."""

import html
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from simclr_jax import figures
from simclr_jax.evaluate.page import document, figure, grid
from simclr_jax.text import with_interval

HEADS = ("", "PSNR, dB", "restored is better by, dB", "SSIM", "restored is better by")
PLAIN = "clean"


def verdict(report: Mapping[str, Any]) -> str:
    """One sentence: the run's score, and how far it is from each other way."""
    *others, mine = report["rows"]
    gains = ", ".join(
        f"{with_interval(row['psnr_gain'], '+.2f')} against {row['title']}"
        + (" (not separated)" if _has_zero(*row["psnr_gain"]) else "")
        for row in others
    )
    n = len(report["images"]["names"])
    return f"PSNR {with_interval(mine['psnr'], '.2f')} dB on {n} image{'s' * (n != 1)}; {gains}."


def _has_zero(mean: float, low: float = 0.0, high: float = -1.0) -> bool:
    """Whether an interval has 0 in it; where there is none, nothing is said."""
    return low <= 0 <= high


def table(report: Mapping[str, Any]) -> list[str]:
    """The table as lines of text."""
    lines = [HEADS, *map(_cells, report["rows"])]
    widths = [max(len(line[i]) for line in lines) for i in range(len(HEADS))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines]


def _cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    gains = (
        with_interval(row[f"{score}_gain"], form) if f"{score}_gain" in row else ""
        for score, form in (("psnr", "+.2f"), ("ssim", "+.3f"))
    )
    psnr, ssim = with_interval(row["psnr"], ".2f"), with_interval(row["ssim"], ".3f")
    return row["title"], psnr, next(gains), ssim, next(gains)


def draw(path: epath.Path, parts: Sequence[Mapping[str, np.ndarray]], report: Mapping[str, Any]) -> None:
    """The central parts of some images: clean, and by each contender in its best way, with their PSNR."""
    figures.attempt(print, path, _draw, parts, report)


def _draw(path: epath.Path, parts: Sequence[Mapping[str, np.ndarray]], report: Mapping[str, Any]) -> None:
    rows = report["rows"]
    figure = figures.new(figsize=(2.1 * (1 + len(rows)), 2.3 * len(parts) + 0.5))
    axes = figure.subplots(len(parts), 1 + len(rows), squeeze=False)
    for i, (line, part) in enumerate(zip(axes, parts, strict=True)):
        figures.show(line[0], part[PLAIN])
        line[0].set_title(f"{PLAIN}\n" if not i else "", color=figures.INK, fontsize=9)
        line[0].set_ylabel(figures.text(report["images"]["names"][i], 24), color=figures.INK, fontsize=8)
        for one, row in zip(line[1:], rows, strict=True):
            figures.show(one, part[f"{row['who']}\n{row['way']}"])
            title = f"{figures.text(row['title'], 26)}\n" if not i else ""
            one.set_title(f"{title}{row['psnr_each'][i]:.2f} dB", color=figures.INK, fontsize=9)
    figure.suptitle(f"{report['corruption']}: central parts, PSNR of the whole image", color=figures.INK)
    figures.save(figure, path)


def render(report: Mapping[str, Any], out: epath.Path) -> str:
    """report.html, one file that opens offline."""
    title = html.escape(f"{epath.Path(report['workdir']).name}: restored images")
    lines = [[html.escape(cell) for cell in line] for line in (HEADS, *map(_cells, report["rows"]))]
    for line, row in zip(lines[1:], report["rows"], strict=True):
        if row["ways"] > 1:
            line[0] += (
                f"<small>best of {row['ways']} settings on these images: {html.escape(row['way'])}</small>"
            )
    names = report["images"]["names"]
    each = [["PSNR, dB", *(html.escape(row["title"]) for row in report["rows"])]]
    for i, name in enumerate(names):
        each.append([html.escape(name), *(f"{row['psnr_each'][i]:.2f}" for row in report["rows"])])
    left_out = report["images"].get("unreadable")
    note = f"<p>Could not be read: {html.escape(', '.join(left_out))}</p>" if left_out else ""
    about = (
        f"{report['corruption']}; step {report['step']:,} of {report['workdir']}. Whole images, nothing cut "
        "from their borders. Intervals: 95 %, bootstrap over images; differences are paired, image by image. "
        "Other ways get the settings that are best on these very images, and the true sigma if it is fixed."
    )
    return document(
        title,
        f"<h1>{title}</h1>\n<p class=soft>{html.escape(about)}</p>\n"
        f"<p class=verdict>{html.escape(report['verdict'])}</p>\n{grid(lines)}\n{note}"
        f"<h2>Before and after</h2>{figure(out, 'before_after', 'Central parts of the first images')}"
        f"<h2>Image by image</h2>{grid(each)}\n",
    )
