"""The most similar rows of a table of embeddings, by cosine; exact, in blocks of NumPy.

`simclr_jax.measures.knn.nearest` is the same on accelerators, for `evaluate`.
"""

from collections.abc import Iterator

import numpy as np

from simclr_jax.errors import SimclrError
from simclr_jax.index.ends import Watch, need
from simclr_jax.index.table import Embeddings

BLOCK = 1 << 24  # similarities at a time: 64 MB


def normalized(features: np.ndarray) -> np.ndarray:
    """Rows `[n, d]` float32 of unit length; zero rows stay zero."""
    features = np.asarray(features, np.float32)
    return features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), np.float32(1e-12))


def best(similarity: np.ndarray, top: int) -> tuple[np.ndarray, np.ndarray]:
    """(similarity, column), both `[q, top]`, of the largest in every row `[q, n]`; the largest first."""
    top = min(top, similarity.shape[1])
    columns = np.argpartition(similarity, similarity.shape[1] - top, axis=1)[:, similarity.shape[1] - top :]
    found = np.take_along_axis(similarity, columns, axis=1)
    order = np.lexsort((columns, -found))  # of equal ones the first row first
    return np.take_along_axis(found, order, axis=1), np.take_along_axis(columns, order, axis=1)


class Index:
    """Search in a table.

    Args:
      embeddings: of n rows.
      approximate: by a graph of usearch (HNSW, arXiv 1603.09320) instead of all rows: it may miss some.

    Raises:
      SimclrError: the table is empty, or `approximate` without usearch.
    """

    def __init__(self, embeddings: Embeddings, approximate: bool = False):
        if not len(embeddings.paths):
            raise SimclrError("the table of embeddings has no row")
        self.embeddings = embeddings
        self.unit = normalized(embeddings.features)
        self._graph = None
        if approximate:
            graphs = need("usearch.index", "index")
            self._graph = graphs.Index(ndim=self.unit.shape[1], metric="ip", dtype="f32")
            self._graph.add(np.arange(len(self.unit)), self.unit)

    def search(self, queries: np.ndarray, top: int, watch: Watch = iter) -> tuple[np.ndarray, np.ndarray]:
        """(cosine, row), both `[q, top]`, of the rows most similar to each of `queries [q, d]`.

        The most similar come first; `top` is at most n.

        Args:
          watch: of an exact search, as `ends.shown`.

        Raises:
          SimclrError: the queries have another size than the rows.
        """
        queries = normalized(queries)
        if queries.ndim != 2 or queries.shape[1] != self.unit.shape[1]:
            raise SimclrError(
                f"the query has {list(queries.shape)[1:]} numbers, the table {self.unit.shape[1]}: "
                "they are of two encoders or endpoints"
            )
        if self._graph is not None:
            found = self._graph.search(queries, min(top, len(self.unit)))
            rows = np.sort(found.keys.reshape(len(queries), -1).astype(np.int64))
            cosine, order = best(np.einsum("qd,qtd->qt", queries, self.unit[rows]), top)
            return cosine, np.take_along_axis(rows, order, axis=1)
        parts = list(self.blocks(queries, top, watch))
        return np.concatenate([s for s, _ in parts]), np.concatenate([i for _, i in parts])

    def blocks(
        self, queries: np.ndarray, top: int, watch: Watch = iter
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """What `search` returns, for some of the queries (of unit length) at a time."""
        step = max(1, BLOCK // len(self.unit))
        for begin in watch(range(0, len(queries), step)):
            yield best(queries[begin : begin + step] @ self.unit.T, top)
