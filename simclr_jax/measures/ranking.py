"""Scores that count every class alike, however rare: balanced accuracy, and AUROC and average precision.

The last two are of one class against all others: how well scores rank, whatever the threshold.
"""

from typing import NamedTuple

import numpy as np

RANKED = ("auroc", "average_precision")


class Ranking(NamedTuple):
    """Figures of every class; NaN of a class that has no image, or all of them."""

    auroc: np.ndarray  # [classes]
    average_precision: np.ndarray  # [classes]
    standard_error: float  # of the mean AUROC; NaN where nothing tells it

    def means(self) -> dict[str, float | None]:
        """{auroc, average_precision}: over the classes that have one; None where none has."""
        known = [(name, figures[~np.isnan(figures)]) for name, figures in zip(RANKED, self[:2], strict=True)]
        return {name: float(figures.mean()) if len(figures) else None for name, figures in known}


def one_vs_rest(scores: np.ndarray, labels: np.ndarray) -> Ranking:
    """Ranks all images by their score for each class in turn, in float64.

    Both figures are scikit-learn's: equal scores count half in the AUROC, and share a threshold in the
    average precision. Here they come from one sort, a tenth of the time with 1,000 classes.

    The standard error is that of DeLong et al. (Biometrics 44, 1988), for the mean over classes: what an
    image adds to the AUROC of every class is summed before it is squared. It is NaN where a class, or the
    rest, has one image only, and where every order is perfect.

    Args:
      scores: `[n, classes]`, finite; labels: `[n]`, all known.
    """
    classes, n = scores.shape[1], len(labels)
    counts = np.bincount(labels, minlength=classes)
    ranked = np.flatnonzero((counts > 0) & (counts < n))
    auroc, precision = np.full(classes, np.nan), np.full(classes, np.nan)
    influence = np.zeros(n)
    for c in ranked:
        positive = labels == c
        place, precision[c] = _placed(scores[:, c], positive)
        auroc[c] = place[positive].mean()
        own = np.where(positive, counts[c], n - counts[c])  # images on the image's own side
        influence += (place - auroc[c]) / np.sqrt(own * np.maximum(own - 1.0, 1))
    told = influence.any() and min(counts[ranked].min(), (n - counts[ranked]).min()) > 1
    error = np.sqrt(np.sum(influence**2)) / len(ranked) if told else np.nan
    return Ranking(auroc, precision, float(error))


def _placed(score: np.ndarray, positive: np.ndarray) -> tuple[np.ndarray, float]:
    """(share of the other side that each image is on the right side of `[n]`, average precision).

    Right is above the others for a positive image, below the positive ones for another.
    """
    everyone, inside = np.sort(score), np.sort(score[positive])
    low, high = (np.searchsorted(inside, score, side) for side in ("left", "right"))
    place = 1 - (low + high) / (2 * len(inside))  # of the others; overwritten for the positive ones
    first, last = (np.searchsorted(everyone, score[positive], side) for side in ("left", "right"))
    below, tied = first - low[positive], (last - first) - (high - low)[positive]
    place[positive] = (below + tied / 2) / (len(score) - len(inside))
    found, all_found = len(inside) - low[positive], len(score) - first  # at the image's score or above
    return place, float(np.mean(found / all_found))
