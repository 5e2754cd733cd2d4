"""Chooses test images for a set without a test split; the choice is the same every time."""

import numpy as np


def holdout_rows(
    examples: int, share: float, groups: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Indices (train, test) for a set without a test split; the same `share` of rows is held out every time.

    Args:
      groups: `[examples]`, a group number for each image. A group is never split, so no patient of the test
        split appears in training; the size of the test split is as close to `share` as whole groups allow.
    """
    order = np.random.Generator(np.random.Philox(key=0))
    if groups is None:
        test = min(max(1, round(examples * share)), examples - 1) if share else 0
        order = order.permutation(examples)
        return np.sort(order[test:]), np.sort(order[:test])
    chosen = whole_groups(groups, share, order)
    return np.flatnonzero(~chosen), np.flatnonzero(chosen)


def whole_groups(groups: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    """Mask `[n]` bool of the images to hold out: whole groups, about `share` of the images, never all.

    Args:
      groups: `[n]`, a group number for each image. If there is only one group, nothing is held out.
    """
    names, group = np.unique(groups, return_inverse=True)
    order = rng.permutation(len(names))
    held = np.cumsum(np.bincount(group)[order])
    nearest = int(np.argmin(np.abs(held - len(groups) * share))) + 1
    count = min(nearest, len(names) - 1) if share else 0
    return np.isin(group, order[:count])
