"""Lines about the images that a run prints before it starts: what it found and how it read unusual files."""

import numpy as np

from simclr_jax.data.sources import Source, Splits, Stream
from simclr_jax.text import printable

SHOWN = 10  # classes, of each split


def describe(splits: Splits) -> tuple[str, ...]:
    """The notes of the splits, each once, and how many images each class has."""
    parts = [split for split in splits if split is not None]
    notes = dict.fromkeys(note for part in parts for note in part.notes)
    groups = getattr(splits.train, "groups", None)
    if groups is not None and len(np.unique(groups)) == 1:
        notes[
            f"the {splits.train.noun} to train on are of one group: hold-outs within the evaluation divide it"
        ] = None
    elif groups is not None:
        others = getattr(splits.test, "groups", None)
        tested = f", {len(np.unique(others)):,} to test on" if others is not None else ""
        notes[f"groups: {len(np.unique(groups)):,} to train on{tested}"] = None
    counts = zip(("train", "test"), splits, strict=True)
    return (*notes, *(line for role, part in counts if (line := _counts(role, part))))


def _counts(role: str, split: Source | Stream | None) -> str:
    """Images per class; "" without labels, or if counting them would read all images."""
    ids = getattr(split, "ids", None)
    if split is None or ids is None or not split.classes:
        return ""
    counts = np.bincount(ids[ids >= 0], minlength=len(split.classes))
    shown = ", ".join(
        f"{printable(name)}: {count:,}" for name, count in zip(split.classes[:SHOWN], counts, strict=False)
    )
    more = len(counts) - SHOWN
    parts = [shown + (f" and {more:,} more classes" if more > 0 else "")]
    if without := int((ids < 0).sum()):
        parts.append(f"{without:,} without a label")
    if empty := int((counts == 0).sum()):
        parts.append(f"{empty:,} of the {len(counts):,} classes have no image")
    return f"{split.noun} of each class to {role} on: " + "; ".join(parts)
