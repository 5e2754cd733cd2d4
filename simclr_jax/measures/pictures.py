"""Scores of restored images, and their intervals over images."""

from collections.abc import Sequence

import numpy as np
from scipy.ndimage import correlate1d

from simclr_jax.losses.reconstruction import C1, C2, LEAST, SIGMA, WINDOW

DRAWS = 10_000  # of the bootstrap
LEVEL = 0.95


def psnr(found: np.ndarray, clean: np.ndarray) -> float:
    """The peak signal-to-noise ratio of an image in [0, 1], dB, in float64; at most 100."""
    error = np.mean((np.asarray(found, np.float64) - np.asarray(clean, np.float64)) ** 2)
    return float(-10 * np.log10(max(error, LEAST)))


def ssim(found: np.ndarray, clean: np.ndarray) -> float:
    """The structural similarity of images `[h, w, c]` in [0, 1]: `losses.reconstruction.ssim` in float64.

    By filters instead of matrix products, whose cost grows with the cube of a side.
    """
    x, y = np.asarray(found, np.float64), np.asarray(clean, np.float64)
    shortest = min(x.shape[:2])
    length = min(WINDOW, shortest - (shortest + 1) % 2)
    taps = np.exp(-((np.arange(length) - length // 2) ** 2) / (2 * SIGMA**2))
    edge = length // 2

    def mean(image: np.ndarray) -> np.ndarray:
        for axis in (0, 1):
            image = correlate1d(image, taps / taps.sum(), axis)
        return image[edge : image.shape[0] - edge, edge : image.shape[1] - edge]

    mx, my = mean(x), mean(y)
    spread, both = mean(x * x) - mx**2 + mean(y * y) - my**2, mean(x * y) - mx * my
    similar = (2 * mx * my + C1) * (2 * both + C2) / ((mx**2 + my**2 + C1) * (spread + C2))
    return float(similar.mean())


def interval(values: np.ndarray | Sequence[float], seed: int = 0) -> tuple[float, float, float]:
    """(mean, low, high): the mean of numbers `[n]` with its 95 % percentile bootstrap interval over images.

    Efron & Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13. Of paired differences it is the
    interval of the mean difference.
    """
    values = np.asarray(values, np.float64)
    rng, means = np.random.default_rng(seed), np.empty(DRAWS)
    for i in range(DRAWS):  # one by one: 10,000 draws of a large set would take gigabytes
        means[i] = values[rng.integers(0, len(values), len(values))].mean()
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(values.mean()), float(low), float(high)
