"""The Fréchet distance between two sets of features (Heusel et al., arXiv 1706.08500), in float64."""

from typing import NamedTuple, Self

import numpy as np


class Moments(NamedTuple):
    """Mean `[d]`, and a root `[m, d]` of the covariance: root.T @ root."""

    mean: np.ndarray
    root: np.ndarray

    @classmethod
    def of(cls, features: np.ndarray) -> Self:
        """Those of features `[n, d]`, n ≥ 2; the covariance has the denominator n - 1."""
        x = np.asarray(features, np.float64)
        mean = x.mean(axis=0)
        return cls(mean, np.linalg.qr(x - mean, mode="r") / np.sqrt(len(x) - 1))


def between(a: Moments, b: Moments) -> float:
    """‖μ₁ - μ₂‖² + tr(Σ₁ + Σ₂ - 2 (Σ₁ Σ₂)^½) of two Gaussians, their squared 2-Wasserstein distance.

    With Σ = RᵀR, tr (Σ₁ Σ₂)^½ is the sum of the singular values of R₁ R₂ᵀ: no root of a matrix is taken, so
    singular covariances lose no digits.
    """
    product = np.linalg.svd(a.root @ b.root.T, compute_uv=False).sum()
    spread = np.sum(a.root**2) + np.sum(b.root**2)
    return max(float(np.sum((a.mean - b.mean) ** 2) + spread - 2 * product), 0.0)


def distance(a: np.ndarray, b: np.ndarray) -> float:
    """The Fréchet distance between features `[n, d]` and `[m, d]`.

    The estimate is too large where rows are few: compare sets of one size alone.

    Raises:
      ValueError: one of the sets has fewer than two rows.
    """
    if min(len(a), len(b)) < 2:
        raise ValueError("a covariance needs two rows or more")
    return between(Moments.of(a), Moments.of(b))
