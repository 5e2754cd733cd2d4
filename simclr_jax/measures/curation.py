"""A set seen through its features: what is in it twice, and what is like nothing else.

For looking, not for deciding: an encoder that sees little difference finds duplicates everywhere.
"""

import numpy as np
from jax.sharding import Mesh

from simclr_jax.index import curate
from simclr_jax.measures import knn


def near_duplicates(
    features: np.ndarray, mesh: Mesh, *, threshold: float = 0.98, most: int = 100
) -> list[tuple[int, int, float]]:
    """The most similar pairs (i, j, cosine) of rows of `[n, d]`, i < j, the most similar first.

    Args:
      threshold: the least similarity; most: how many pairs at most.
    """
    n = len(features)
    if n < 2 or most < 1:
        return []
    # Of the `most` best pairs no row has more than that many others; and it finds itself.
    similarity, index = knn.nearest(features, features, most + 1, mesh)
    rows = np.broadcast_to(np.arange(n)[:, None], index.shape)
    chosen = (index != rows) & (similarity >= threshold)
    i, j, s = rows[chosen], index[chosen], similarity[chosen]
    i, j = np.minimum(i, j), np.maximum(i, j)
    order = np.lexsort((j, i, -s))
    _, first = np.unique(i[order].astype(np.int64) * n + j[order], return_index=True)  # found from both sides
    best = order[np.sort(first)][:most]
    return [(int(i[p]), int(j[p]), float(s[p])) for p in best]


def outliers(features: np.ndarray, mesh: Mesh, *, k: int = 10, most: int = 50) -> list[tuple[int, float]]:
    """The rows (i, similarity) of `[n, d]` least like their k nearest others, the least similar first.

    `simclr_jax.index.curate.outliers` says how.
    """
    if len(features) < 2:
        return []
    return curate.outliers(*knn.nearest(features, features, k + 1, mesh), most)
