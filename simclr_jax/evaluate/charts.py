"""The figures of an evaluation, drawn from plain numbers and arrays."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from simclr_jax.figures import BAD, BLUE, GOOD, INK, ORANGE, new, save, show, text
from simclr_jax.results import WHO

COLOURS = {"simclr": BLUE, "untrained": ORANGE, "raw_pixels": "#7f7f7f"}
NAMED = 25  # classes, at most, that get a name each on an axis
BRIEF, SENTENCE = 14, 80  # characters over a small picture, and in the title of a figure


def _heat(axes, values: np.ndarray, rows: Sequence[Any], columns: Sequence[Any], fmt: str = "{:.1f}") -> None:
    """Numbers in coloured cells, a name on every row and column."""
    values = np.asarray(values, float)
    axes.imshow(values, cmap="Blues", aspect="auto")
    axes.set_xticks(range(len(columns)), list(map(text, columns)))
    axes.set_yticks(range(len(rows)), list(map(text, rows)))
    dark = np.nanmin(values) + 0.6 * (np.nanmax(values) - np.nanmin(values))
    for i, row in enumerate(values):
        for j, value in enumerate(row):
            axes.text(
                j, i, fmt.format(value), ha="center", va="center", fontsize=8,
                color="white" if value > dark else INK,
            )  # fmt: skip


def knn_grids(path: epath.PathLike, ks: Sequence[int], grids: Sequence[Mapping[str, Any]]) -> None:
    """Accuracy over k and T of every search; those by Euclidean distance, without T, in one panel."""
    panels = [grid for grid in grids if grid["distance"] == "cosine"]
    others = [grid for grid in grids if grid["distance"] == "euclidean"]
    widths = [8] * len(panels) + [max(len(others), 1) + 0.6]
    figure = new(figsize=(0.55 * sum(widths) + 2.4, 4))
    axes = figure.subplots(1, len(panels) + 1, gridspec_kw={"width_ratios": widths}, squeeze=False)[0]
    for axis, grid in zip(axes, panels, strict=False):
        _heat(axis, 100 * np.array(grid["accuracy"]), ks, grid["temperatures"])
        axis.set_title(f"{text(grid['features'])}, cosine", color=INK, fontsize=10)
        axis.set_xlabel("T")
    axes[0].set_ylabel("k")
    stacked = 100 * np.concatenate([grid["accuracy"] for grid in others], axis=1)
    _heat(axes[-1], stacked, ks, [grid["features"] for grid in others])
    axes[-1].set_title("Euclidean, 1/d", color=INK, fontsize=10)
    save(figure, path)


def penalties(path: epath.PathLike, curves: Mapping[str, Mapping[str, Any]]) -> None:
    """Accuracy and cross entropy on the hold-out over the l2 penalty, a line a contender."""
    figure = new(figsize=(9, 3.4))
    left, right = figure.subplots(1, 2)
    for who, curve in curves.items():
        for axes, values in ((left, 100 * np.array(curve["accuracy"])), (right, np.array(curve["loss"]))):
            axes.semilogx(curve["l2"], values, color=COLOURS[who], label=WHO[who])
            axes.plot(curve["l2"][curve["best"]], values[curve["best"]], "o", color=COLOURS[who])
    left.set_ylabel("top-1 (%)")
    right.set_ylabel("cross entropy")
    right.set_yscale("log")
    left.legend(frameon=False)
    for axes in (left, right):
        axes.set_xlabel("l2 penalty (dot: chosen)")
        axes.grid(color="#dddddd")
    save(figure, path)


def sweep(
    path: epath.PathLike, rates: Sequence[float], decays: Sequence[float], accuracy: Sequence[Sequence[float]]
) -> None:
    """Accuracy on the hold-out over rate and decay."""
    figure = new(figsize=(1.2 * len(decays) + 1.8, 0.34 * len(rates) + 1.4))
    axes = figure.subplots()
    _heat(axes, 100 * np.array(accuracy), [f"{r:g}" for r in rates], [f"{d:g}" for d in decays])
    axes.set_ylabel("rate (× batch / 256)")
    axes.set_xlabel("weight decay")
    save(figure, path)


def confusion(path: epath.PathLike, counts: Sequence[Sequence[int]], classes: Sequence[str]) -> None:
    """Rows (the truth) in percent."""
    found = np.array(counts, float)
    share = 100 * found / np.maximum(found.sum(axis=1, keepdims=True), 1)
    few = len(classes) <= NAMED
    side = 0.42 * len(classes) + 2.2 if few else 7
    figure = new(figsize=(side, side))
    axes = figure.subplots()
    if few:
        _heat(axes, share, classes, classes, "{:.0f}")
        if max(map(len, classes), default=0) > 3:
            axes.tick_params(axis="x", rotation=90)
    else:
        axes.imshow(share, cmap="Blues", vmin=0, vmax=100)
    axes.set_ylabel("truth")
    axes.set_xlabel("prediction")
    save(figure, path)


def per_class(path: epath.PathLike, numbers: Sequence[Mapping[str, Any]], classes: Sequence[str]) -> None:
    """F1 of every class present in test, the worst first; of many classes the worst and the best."""
    present = [(one["f1"], name, one) for one, name in zip(numbers, classes, strict=True) if one["support"]]
    present.sort(key=lambda each: each[0])
    if len(present) > NAMED:
        half = NAMED // 2
        present = present[:half] + present[-half:]
    figure = new(figsize=(7, 0.27 * len(present) + 1.3))
    axes = figure.subplots()
    for i, (_, _, one) in enumerate(present):
        axes.plot([100 * one["precision"], 100 * one["recall"]], [i, i], color="#bbbbbb", zorder=1)
        axes.plot(100 * one["precision"], i, "s", color=ORANGE, label="precision" if not i else None)
        axes.plot(100 * one["recall"], i, "o", color=BLUE, label="recall" if not i else None)
    axes.set_yticks(range(len(present)), [f"{text(name)} ({one['support']})" for _, name, one in present])
    axes.set_xlabel("%, images of the class in brackets")
    axes.grid(color="#dddddd", axis="x")
    axes.legend(frameon=False, ncols=2, loc="lower center", bbox_to_anchor=(0.5, 1))
    save(figure, path)


def calibration(path: epath.PathLike, bins: Sequence[Mapping[str, Any]], error: float) -> None:
    """Accuracy over confidence, and how many images have it."""
    figure = new(figsize=(4.2, 4.4))
    top, bottom = figure.subplots(2, 1, height_ratios=(3, 1), sharex=True)
    some = [one for one in bins if one["count"]]
    width = 1 / len(bins)
    middle = [(i + 0.5) * width for i in range(len(bins))]
    top.plot([0, 1], [0, 1], color="#999999", linestyle="--")
    top.plot([one["confidence"] for one in some], [one["accuracy"] for one in some], "o-", color=BLUE)
    top.set_ylabel("accuracy")
    top.set_title(f"expected calibration error {100 * error:.1f} %", color=INK, fontsize=10)
    bottom.bar(middle, [one["count"] for one in bins], width=0.9 * width, color=BLUE)
    bottom.set_xlabel("confidence")
    bottom.set_ylabel("images")
    for axes in (top, bottom):
        axes.grid(color="#dddddd")
    save(figure, path)


def robustness(path: epath.PathLike, found: Mapping[str, Any]) -> None:
    """Accuracy over the severity of corruptions, and over the size of attacks."""
    figure = new(figsize=(9, 3.6))
    left, right = figure.subplots(1, 2)
    for name, accuracy in found["corruptions"].items():
        values = 100 * np.array([found["clean"], *accuracy])
        left.plot(range(len(values)), values, marker="o", markersize=3, label=text(name.replace("_", " ")))
    left.set_xlabel("severity (0: none)")
    left.set_title("Corruptions", color=INK, fontsize=10)
    for (name, accuracy), colour in zip(found["attacks"].items(), (BLUE, ORANGE), strict=True):
        values = 100 * np.array([found["clean_attacked"], *accuracy])
        right.plot(
            [0, *(255 * np.array(found["epsilons"]))], values, color=colour, marker="o", label=text(name)
        )
    right.set_xlabel("ε of the attack, of 255 (ℓ∞)")
    right.set_title("Attacks", color=INK, fontsize=10)
    for axes in (left, right):
        axes.set_ylabel("top-1 (%)")
        axes.set_ylim(0, 102)
        axes.grid(color="#dddddd")
        axes.legend(frameon=False, fontsize=8)
    save(figure, path)


def bars(path: epath.PathLike, values: Mapping[str, float], title: str, unit: str) -> None:
    """A bar for each named value."""
    figure = new(figsize=(7, 0.38 * len(values) + 1.2))
    axes = figure.subplots()
    names = list(values)[::-1]
    axes.barh(range(len(names)), [values[name] for name in names], color=BLUE)
    axes.set_yticks(range(len(names)), list(map(text, names)))
    for i, name in enumerate(names):
        axes.text(max(values[name], 0), i, f" {values[name]:.2f}", va="center", color=INK, fontsize=9)
    axes.set_xlim(min(0, *values.values()), 1.12)
    axes.set_xlabel(text(unit, SENTENCE))
    axes.set_title(text(title, SENTENCE), color=INK, fontsize=10)
    save(figure, path)


def spectra(path: epath.PathLike, values: Mapping[str, np.ndarray]) -> None:
    """Singular values relative to the largest, a line a contender."""
    figure = new(figsize=(6, 3.4))
    axes = figure.subplots()
    for who, sigma in values.items():
        relative = sigma / max(sigma[0], 1e-30)
        axes.semilogy(
            np.arange(1, len(sigma) + 1), np.maximum(relative, 1e-8), color=COLOURS[who], label=WHO[who]
        )
    axes.set_xlabel("dimension")
    axes.set_ylabel("singular value, relative")
    axes.grid(color="#dddddd")
    axes.legend(frameon=False)
    save(figure, path)


def retrieval(
    path: epath.PathLike, queries: np.ndarray, found: np.ndarray, labels: np.ndarray, found_labels: np.ndarray
) -> None:
    """Queries `[q, h, w, c]` beside what was found `[q, k, h, w, c]`; the frame green: same label."""
    rows, columns = found.shape[:2]
    figure = new(figsize=(1.1 * (columns + 1) + 0.3, 1.15 * rows + 0.8))
    grid = figure.subplots(rows, columns + 1, squeeze=False)
    for i, row in enumerate(grid):
        show(row[0], queries[i])
        for j, axes in enumerate(row[1:]):
            known = labels[i] >= 0 and found_labels[i, j] >= 0
            same = GOOD if labels[i] == found_labels[i, j] else BAD
            show(axes, found[i, j], same if known else None)
    grid[0, 0].set_title("query", color=INK, fontsize=10)
    grid[0, 1].set_title("nearest first", color=INK, fontsize=10)
    frames = " (green: same label, red: another)" if (labels >= 0).any() else ""
    figure.suptitle(f"Nearest training images of test images{frames}", color=INK)
    save(figure, path)


def grid(
    path: epath.PathLike,
    images: Sequence[np.ndarray] | np.ndarray,
    titles: Sequence[str],
    title: str,
    columns: int = 8,
) -> None:
    """Images `[n, h, w, c]`, or a list of such of several sizes, each under its title."""
    rows = -(-len(images) // columns)
    figure = new(figsize=(1.25 * min(columns, len(images)) + 0.4, 1.5 * rows + 0.5))
    axes = figure.subplots(rows, min(columns, len(images)), squeeze=False).ravel()
    for axis in axes[len(images) :]:
        axis.set_axis_off()
    for axis, image, name in zip(axes, images, titles, strict=False):
        show(axis, image)
        axis.set_title(text(name, BRIEF), color=INK, fontsize=9)
    figure.suptitle(text(title, SENTENCE), color=INK)
    save(figure, path)


def pairs(path: epath.PathLike, images: np.ndarray, titles: Sequence[str], title: str) -> None:
    """Pairs `[n, 2, h, w, c]`, one above the other."""
    figure = new(figsize=(1.25 * len(images) + 0.4, 3.1))
    rows = figure.subplots(2, len(images), squeeze=False)
    for i, (pair, name) in enumerate(zip(images, titles, strict=True)):
        for axis, image in zip(rows[:, i], pair, strict=True):
            show(axis, image)
        rows[0, i].set_title(text(name, BRIEF), color=INK, fontsize=9)
    figure.suptitle(text(title, SENTENCE), color=INK)
    save(figure, path)


def _overlay(axes, image: np.ndarray, heat: np.ndarray) -> None:
    """An image under a map `[h, w]` in [0, 1]: the redder the more."""
    gray = np.repeat(image.mean(axis=-1, keepdims=True), 3, axis=-1)
    red = np.array([0.84, 0.19, 0.15])
    share = 0.75 * heat[..., None]
    show(axes, (1 - share) * gray + share * red)


def overlays(
    path: epath.PathLike, images: np.ndarray, heat: np.ndarray, titles: Sequence[str], title: str
) -> None:
    """Images `[n, h, w, c]`, and below each its map `[n, h, w]`."""
    figure = new(figsize=(1.25 * len(images) + 0.4, 3.1))
    rows = figure.subplots(2, len(images), squeeze=False)
    for i, name in enumerate(titles):
        show(rows[0, i], images[i])
        rows[0, i].set_title(text(name, BRIEF), color=INK, fontsize=9)
        _overlay(rows[1, i], images[i], heat[i])
    figure.suptitle(text(title, SENTENCE), color=INK)
    save(figure, path)


def overlay_pairs(path: epath.PathLike, images: np.ndarray, heat: np.ndarray) -> None:
    """Pairs `[n, 2, h, w, c]` under their maps `[n, 2, h, w]`, one above the other."""
    figure = new(figsize=(1.25 * len(images) + 0.4, 3.1))
    rows = figure.subplots(2, len(images), squeeze=False)
    for i in range(len(images)):
        for j in range(2):
            _overlay(rows[j, i], images[i, j], heat[i, j])
    figure.suptitle("What makes an image and its nearest neighbour similar", color=INK)
    save(figure, path)


def curves(path: epath.PathLike, runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> bool:
    """Loss, contrastive accuracy and kNN over the steps, a line a run; whether there was anything to draw."""
    panels = (
        ("loss", 1),
        ("contrast_accuracy", 100),
        ("knn_top1", 100),
        ("feature_std", 1),
        ("accuracy", 100),
    )
    titles = {
        "loss": "loss", "contrast_accuracy": "contrastive accuracy (%)", "accuracy": "accuracy (%)",
        "knn_top1": "kNN while training, top-1 (%)", "feature_std": "deviation of features (0: collapse)",
    }  # fmt: skip
    drawn = [
        (key, f)
        for key, f in panels
        if any(row.get(key) is not None for rows in runs.values() for row in rows)
    ]
    if not drawn:
        return False
    columns = min(len(drawn), 2)  # to be read on a phone
    rows_of = -(-len(drawn) // columns)
    figure = new(figsize=(4 * columns, 3 * rows_of))
    grid = figure.subplots(rows_of, columns, squeeze=False).ravel()
    for axes in grid[len(drawn) :]:
        axes.set_axis_off()
    for axes, (key, factor) in zip(grid, drawn, strict=False):
        for name, rows in runs.items():
            points = np.array([(r["step"], factor * r[key]) for r in rows if r.get(key) is not None])
            if len(points):
                axes.plot(*points.T, label=text(name), marker="o" if len(points) < 30 else None, markersize=3)
        axes.set_title(titles[key], color=INK, fontsize=10)
        axes.set_xlabel("step")
        axes.grid(color="#dddddd")
        if len(runs) > 1:
            axes.legend(frameon=False, fontsize=8)
    save(figure, path)
    return True
