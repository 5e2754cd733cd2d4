"""Which images are kept for testing, where nothing says it: the same ones every time."""

import numpy as np


def holdout_rows(
    examples: int, share: float, groups: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """(train, test) index for a set without a test split; the same `share` is tested on every time.

    Args:
      groups: a number `[examples]` for each image. Images with the same one stay on one side, so that a
        patient who is tested on was never trained on; the share is met as nearly as whole groups allow.
    """
    order = np.random.Generator(np.random.Philox(key=0))
    if groups is None:
        test = min(max(1, round(examples * share)), examples - 1) if share else 0
        order = order.permutation(examples)
        return np.sort(order[test:]), np.sort(order[:test])
    chosen = whole_groups(groups, share, order)
    return np.flatnonzero(~chosen), np.flatnonzero(chosen)


def whole_groups(groups: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    """Which images `[n]` bool to hold out so that no group is divided: about `share` of them, never all.

    Args:
      groups: `[n]`, a number for each image; a single group is not held out.
    """
    names, group = np.unique(groups, return_inverse=True)
    order = rng.permutation(len(names))
    held = np.cumsum(np.bincount(group)[order])
    nearest = int(np.argmin(np.abs(held - len(groups) * share))) + 1
    count = min(nearest, len(names) - 1) if share else 0
    return np.isin(group, order[:count])
