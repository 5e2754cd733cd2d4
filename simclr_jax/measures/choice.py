"""What choices are made from: the settings to try, and a hold-out of train to try them on."""

import numpy as np

from simclr_jax.data.holdout import whole_groups

K = (1, 2, 5, 10, 20, 50, 100, 200)
T = (0.01, 0.02, 0.05, 0.07, 0.1, 0.2, 0.5, 1.0)
L2 = tuple(10.0 ** (-6 + i / 4) for i in range(45))  # the paper's (B.8)
HOLDOUT, HOLDOUT_MOST = 0.2, 20_000  # of the training examples


def limited(held: np.ndarray, rest: np.ndarray, limit: int) -> tuple[np.ndarray, np.ndarray]:
    """(rows, which of them are held out): of both the share, at most `limit` rows in all; 0: all."""
    if limit and limit < len(held) + len(rest):
        cut = min(len(held), max(1, round(HOLDOUT * limit)))
        held, rest = held[:cut], rest[: limit - cut]
    return np.concatenate([held, rest]), np.arange(len(held))


def validation_rows(
    examples: int, seed: int = 0, groups: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """(validation, rest): rows of a fixed fifth of the training examples, at most 20,000, and of the others.

    Args:
      groups: a number `[examples]` for each one. Those with the same number stay together: the fifth is met
        as nearly as whole groups allow. A single group is divided, or nothing could be chosen.

    Returns:
      Both in random order.
    """
    rng = np.random.default_rng(seed)
    order = rng.permutation(examples)
    if groups is not None and len(np.unique(groups)) > 1:
        held = whole_groups(groups, min(HOLDOUT, HOLDOUT_MOST / examples), rng)[order]
        return order[held], order[~held]
    cut = min(max(1, round(HOLDOUT * len(order))), HOLDOUT_MOST)
    return order[:cut], order[cut:]
