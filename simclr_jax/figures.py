"""The figures of a run, drawn with matplotlib from plain arrays."""

import contextlib
import functools
import io
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from simclr_jax import files
from simclr_jax.errors import one_line

LONGEST = 32  # characters of a name from outside
UNKNOWN = "□"  # for characters that the font does not have
INK, BLUE, ORANGE = "#333333", "#2166ac", "#d95f02"
GOOD, BAD = "#1a9850", "#d73027"
GAP = 2  # pixels between the images of a sheet


def new(*args: Any, **kwargs: Any):
    """An empty figure."""
    from matplotlib.figure import Figure  # without pyplot: no global state, no display needed

    figure = Figure(*args, layout="constrained", **kwargs)
    return figure


def write_png(path: epath.PathLike, image: np.ndarray, profile: bytes | None = None) -> None:
    """Writes an image `[h, w, c]` in [0, 1] as PNG, rounded to 8 bits; makes its folder.

    Of other channels than one and three: the first three, or the first.

    Args:
      profile: ICC profile of its colours.
    """
    from PIL import Image  # late, as matplotlib above

    levels = np.rint(255 * np.clip(image, 0, 1)).astype(np.uint8)
    with files.replacing(epath.Path(path)) as half, half.open("wb") as file:
        picture = Image.fromarray(levels[..., :3] if levels.shape[-1] >= 3 else levels[..., 0])
        picture.save(file, "PNG", icc_profile=profile)


def save(figure, path: epath.PathLike | io.BytesIO) -> None:
    """Writes a figure as PNG into a file, whose folder is made, or into memory."""
    picture = path if isinstance(path, io.BytesIO) else io.BytesIO()
    figure.savefig(picture, format="png", dpi=120)
    if picture is path:
        return
    with files.replacing(epath.Path(path), len(picture.getvalue())) as half:
        half.write_bytes(picture.getvalue())


# ---- what comes from outside ----------------------------------------------------------------------


def text(value: Any, most: int = LONGEST) -> str:
    """A name from outside (of a class, a file, a workdir, a field) as matplotlib shows it literally.

    Matplotlib reads `$` as mathematics, leaves names that begin with `_` out of legends, and warns of
    characters that its font lacks. Names of more than `most` characters lose their middle.
    """
    known = _characters()
    shown = "".join(_character(c, known) for c in str(value))
    shown = " ".join(shown.split()) or "(no name)"
    if len(shown) > most:
        tail = (most - 1) // 3
        shown = f"{shown[: most - 1 - tail]}…{shown[len(shown) - tail :]}"
    shown = shown.replace("$", r"\$")
    return f" {shown}" if shown.startswith("_") else shown


def _character(c: str, known: frozenset[int]) -> str:
    kind = unicodedata.category(c)
    if c.isspace() or kind in ("Cc", "Zl", "Zp"):
        return " "
    if kind == "Cf":  # invisible: the direction of writing, say
        return ""
    return c if ord(c) in known else UNKNOWN


@functools.cache
def _characters() -> frozenset[int]:
    """The characters of matplotlib's font."""
    from matplotlib import font_manager

    font = font_manager.findfont(font_manager.FontProperties())
    return frozenset(font_manager.get_font(font).get_charmap())


# ---- a figure never costs a score -----------------------------------------------------------------


@contextlib.contextmanager
def guard(say: Callable[[str], Any], name: str) -> Iterator[None]:
    """Context manager to draw the figure `name`: a failure prints one line, and the run continues."""
    try:
        yield
    except Exception as error:  # of every kind: matplotlib's, a full disk, no memory
        say(f"{name}: not drawn, the rest goes on ({type(error).__name__}: {one_line(error)})")


def attempt(say: Callable[[str], Any], path: epath.PathLike | io.BytesIO, draw: Callable[..., Any],
            *args: Any, **kwargs: Any) -> bool:  # fmt: skip
    """Calls `draw(path, *args, **kwargs)` under `guard`; returns whether the figure exists.

    A failure deletes an older figure of that name, which would be outdated. `draw` returns False if it has
    nothing to draw.
    """
    in_memory = isinstance(path, io.BytesIO)
    with guard(say, draw.__name__ if in_memory else epath.Path(path).name):
        return draw(path, *args, **kwargs) is not False
    if not in_memory:
        with contextlib.suppress(OSError):
            epath.Path(path).unlink(missing_ok=True)
    return False


# ---- the figures ----------------------------------------------------------------------------------


def show(axes, image: np.ndarray, frame: str | None = None) -> None:
    """Draws an image `[h, w, c]` in [0, 1]: gray if it has one channel, else the first three as RGB."""
    image = np.clip(image.astype(np.float32), 0, 1)
    image = image[..., :3] if image.shape[-1] >= 3 else image[..., :1]
    gray = image.shape[-1] == 1
    axes.imshow(image[..., 0] if gray else image, cmap="gray" if gray else None, vmin=0, vmax=1)
    axes.set_xticks([])
    axes.set_yticks([])
    for side in axes.spines.values():
        side.set(visible=frame is not None, color=frame, linewidth=3)


MATCHED = "What the encoder is asked to match: two random views of each image"
CROPS = "Random crops of each image, before they are spoilt"


def views(
    path: epath.PathLike, originals: np.ndarray | None, pairs: np.ndarray, title: str = MATCHED
) -> None:
    """Originals `[n, h, w, c]` (or None) in the first row, their views `[n, v, h, w, c]` below."""
    n, v = pairs.shape[:2]
    named = [(f"view {'abcdefgh'[i]}", pairs[:, i]) for i in range(v)]
    if originals is not None:
        named.insert(0, ("image", originals))
    figure = new(figsize=(1.25 * n + 0.6, 1.3 * len(named) + 0.5))
    grid = figure.subplots(len(named), n, squeeze=False)
    for row, (name, images) in zip(grid, named, strict=True):
        row[0].set_ylabel(name, color=INK)
        for axes, image in zip(row, images, strict=True):
            show(axes, image)
    title = title if pairs.shape[1] > 1 else "What the encoder sees of each image"
    figure.suptitle(title, color=INK, wrap=True)
    save(figure, path)


def rows(
    path: epath.PathLike,
    images: Sequence[Sequence[np.ndarray | None]],
    names: Sequence[str],
    width: float = 0.8,
) -> None:
    """Rows of images `[h, w, c]` of one size, `width` inches each, every row with a name; None is empty.

    They are one picture: hundreds of axes would take matplotlib a minute.
    """
    columns = max(map(len, images))
    h, w, channels = next(image.shape for row in images for image in row if image is not None)
    sheet = np.ones((len(images), h + GAP, columns, w + GAP, channels), np.float32)
    for i, row in enumerate(images):
        for j, image in enumerate(row):
            if image is not None:
                sheet[i, :h, j, :w] = image
    figure = new(figsize=(width * columns + 1.4, width * len(images) * h / w + 0.2))
    axes = figure.subplots()
    show(axes, sheet.reshape(len(images) * (h + GAP), columns * (w + GAP), channels))
    axes.set_yticks([(i + 0.5) * (h + GAP) for i in range(len(images))], [text(name) for name in names])
    axes.tick_params(length=0, labelcolor=INK, labelsize=9)
    save(figure, path)


def curves(path: epath.PathLike, rows: Sequence[Mapping[str, Any]]) -> bool:
    """Draws loss and accuracies over the steps of metrics.jsonl; returns False if there are none."""
    contrastive = bool(rows) and "contrast_accuracy" in rows[-1]
    panels = (
        ("loss", "contrastive loss × config.loss.scale" if contrastive else "loss", 1),
        ("contrast_accuracy", "contrastive accuracy (%)", 100),
        ("knn_top1", "kNN while training, top-1 (%)", 100),
        ("probe_accuracy", "online probe, views of train (%)", 100),
        ("accuracy", "accuracy, views of train (%)", 100),
        ("agreement", "agreement with the teacher (%)", 100),
        ("test_top1", "test, top-1 (%)", 100),
        ("test_psnr", "PSNR of test crops (dB)", 1),
        ("feature_std", "deviation of features (0: collapse)", 1),
    )
    series = []
    for key, title, factor in panels:
        points = [(r["step"], r[key] * factor) for r in rows if r.get(key) is not None]
        if points:
            series.append((title, np.array(points)))
    if not series:
        return False
    figure = new(figsize=(4 * len(series), 3.2))
    for axes, (title, points) in zip(figure.subplots(1, len(series), squeeze=False)[0], series,
                                     strict=True):  # fmt: skip
        axes.plot(*points.T, color=BLUE, marker="o" if len(points) < 30 else None, markersize=3)
        axes.plot(*points[-1], color=ORANGE, marker="o", markersize=5)
        axes.set_title(f"{title}: {points[-1, 1]:.3g} at the end", color=INK, fontsize=10)
        axes.set_xlabel("step", color=INK)
        axes.grid(color="#dddddd")
    save(figure, path)
    return True


def neighbours(
    path: epath.PathLike, images: np.ndarray, near: np.ndarray, labels: np.ndarray, rows: int = 10
) -> bool:
    """Draws query images and their nearest neighbours; a green frame means the same label, red another.

    Returns False if there are no neighbours.

    Args:
      images: `[n, h, w, c]`; near: `[n, k]` indices, each row including the query itself.
      labels: `[n]`, -1 for none (no frames then).
    """
    queries = spread(labels, rows)
    shown = near.shape[1] - 1
    if not shown:
        return False
    figure = new(figsize=(1.1 * (shown + 1) + 0.3, 1.15 * len(queries) + 0.8))
    grid = figure.subplots(len(queries), shown + 1, squeeze=False)
    for row, query in zip(grid, queries, strict=True):
        show(row[0], images[query])
        others = [i for i in near[query] if i != query][:shown]
        for axes, other in zip(row[1:], others, strict=False):
            same = GOOD if labels[other] == labels[query] else BAD
            show(axes, images[other], None if labels[query] < 0 else same)
    grid[0, 0].set_title("query", color=INK, fontsize=10)
    grid[0, 1].set_title("nearest first", color=INK, fontsize=10)
    frames = "" if labels.max() < 0 else " (green: same label, red: another)"
    figure.suptitle(f"What the encoder finds similar{frames}", color=INK)
    save(figure, path)
    return True


def spread(labels: np.ndarray, rows: int) -> list[int]:
    """The first row of each label, then the next ones, `rows` in all."""
    rank = {}
    keys = []
    for i, label in enumerate(labels.tolist()):
        rank[label] = rank.get(label, -1) + 1
        keys.append((rank[label], label, i))
    return [i for *_, i in sorted(keys)[:rows]]


def embedding(
    path: epath.PathLike,
    points: np.ndarray,
    labels: np.ndarray,
    classes: Sequence[str],
    method: str = "t-SNE",
) -> None:
    """A map of features, points `[n, 2]` (see `measures.embedding`), coloured by label."""
    figure = new(figsize=(7, 6))
    axes = figure.subplots()
    import matplotlib

    few = matplotlib.colormaps["tab10" if len(classes) <= 10 else "tab20"]
    for label in np.unique(labels):
        chosen = points[labels == label]
        name = text(classes[label]) if 0 <= label < len(classes) else None
        colour = few(int(label) % few.N) if label >= 0 else BLUE
        axes.scatter(*chosen.T, s=9, color=colour, label=name)
    if 0 < len(classes) <= 20:
        axes.legend(title="class", frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    axes.set_title(f"{text(method)} of the encoder's features, {len(points)} images", color=INK)
    axes.set_axis_off()
    save(figure, path)
