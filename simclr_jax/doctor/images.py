"""Checks the images: their number and classes, the files left out, and whether scores are possible."""

import functools
import io
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import Image

from simclr_jax.data import memory, notes
from simclr_jax.data.sources import Source, Splits
from simclr_jax.data.survey import HEAD
from simclr_jax.doctor import ahead
from simclr_jax.doctor.findings import Finding, note, ok, warning
from simclr_jax.doctor.plan import Plan
from simclr_jax.feeds.images import in_memory
from simclr_jax.text import printable

LOOKED_AT = 64  # files whose size is read
RARE = 10  # images; with fewer a class can hardly be tested
UNEVEN = 10  # times as many images as the smallest class has
FEW = 100  # images to test on; the standard error of an accuracy is then up to 5 %

# Well-known data sets: (training images, classes), for a check on a machine without them.
KNOWN = {
    "tfds:imagenet2012": (1_281_167, 1000),
    "tfds:cifar10": (50_000, 10),
    "tfds:cifar100": (50_000, 100),
    "tfds:mnist": (60_000, 10),
    "tfds:fashion_mnist": (60_000, 10),
}


def stand_in(config: Any) -> Splits | None:
    """Facts about well-known images that are not here; None if unknown."""
    source, split = config.data.source, config.data.train_split
    if source not in KNOWN or split != "train":
        return None
    return ahead.unread(*KNOWN[source], name=source)


def check(plan: Plan) -> Iterator[Finding]:
    """Reports counts, classes, notes of the reader, and whether there will be scores."""
    train, data = plan.train, plan.config.data
    if not plan.here:
        yield note(f"the rest of this page takes {train.size:,} images of {len(train.classes):,} classes")
        return
    classes = f"{len(train.classes):,} classes" if train.classes else "no labels"
    yield ok(f"{train.size:,} {train.noun} to train on ({train.name}), {classes}")
    for line in notes.describe(plan.splits):
        yield note(line.removeprefix("note: "))
    yield from _classes(plan)
    yield from _tested(plan)
    if in_memory(plan.config) and getattr(train, "kind", "") != "array":
        side = data.stored_size or data.image_size
        memory.check_size(train, side=side, channels=data.channels, memory_gb=data.memory_gb)


def _classes(plan: Plan) -> Iterator[Finding]:
    """Compares the smallest class with the largest."""
    ids, names = getattr(plan.train, "ids", None), plan.train.classes
    if ids is None or not names:
        return
    counts = np.bincount(ids[ids >= 0], minlength=len(names))
    small, large = int(np.argmin(counts)), int(np.argmax(counts))
    smallest, largest = (f"{counts[i]:,} ({printable(names[i])})" for i in (small, large))
    line = f"{plan.train.noun} of a class: {smallest} to {largest}"
    if counts[small] < RARE:
        yield warning(f"{line}: too few to score it", "add images, or merge classes; docs/imbalance.md")
    elif counts[large] > UNEVEN * counts[small]:
        yield note(f"{line}: read the balanced accuracy (docs/imbalance.md)")
    elif len(names) > notes.SHOWN:  # otherwise the reader's note has counted all
        yield ok(line)


def _tested(plan: Plan) -> Iterator[Finding]:
    """Says which images the encoder will be scored on."""
    train, test = plan.splits
    if not train.classes:
        yield note("no labels: the encoder trains, and gets figures but no scores")
    elif test is None:
        yield warning(
            "no test split: the encoder trains, and gets no scores",
            "--config.data.holdout=0.1 keeps a tenth of the images for testing",
        )
    elif not test.classes:
        yield warning(f"{test.name} has no labels: no scores", "give the test images their classes")
    else:
        held = test.name == train.name and plan.config.data.source != "arrays"
        kept = "kept for testing" if held else f"to test on ({test.name})"
        line = f"{test.size:,} {test.noun} {kept}: the encoder can be scored"
        yield note(f"{line}, to ± {50 / test.size**0.5:.0f} %") if test.size < FEW else ok(line)


# ---- sizes --------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=1)
def shorter_side(train: Any) -> int | None:
    """The median of the shorter sides in a sample of the images, in pixels; None if unknown."""
    if not isinstance(train, Source) or not train.fetch or not train.size:
        return None
    if train.kind == "array":
        return min(train.fetch(np.zeros(1, int))[0].shape[1:3])
    if train.path is None:
        return None
    some = np.linspace(0, train.size - 1, min(train.size, LOOKED_AT)).round().astype(int)
    sides = [side for i in some if (side := _side(train.path(int(i))))]
    return int(np.median(sides)) if sides else None


def _side(path: bytes) -> int | None:
    """The shorter side of one image file, from its first bytes; None if they do not contain it."""
    try:
        with open(path, "rb") as file:
            head = io.BytesIO(file.read(HEAD))
        with warnings.catch_warnings(action="ignore"), Image.open(head) as image:
            return min(image.size)
    except Exception:  # the run reports unreadable files itself
        return None
