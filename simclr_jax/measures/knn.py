"""Weighted k-nearest-neighbour classification (Wu et al., InstDisc, arXiv 1805.01978, section 3.4).

By cosine, votes weighted by exp(similarity / T); or by Euclidean distance, votes weighted by its inverse (as
solo-learn and scikit-learn's weights="distance" have it: T plays no part).
"""

import functools
from collections.abc import Iterable, Iterator
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.lax import Precision
from jax.sharding import Mesh

from simclr_jax import sharding


def normalize(features: jax.Array) -> jax.Array:
    """Rows of unit length; zero rows stay zero."""
    return features / jnp.maximum(jnp.linalg.norm(features, axis=1, keepdims=True), 1e-12)


DISTANCES = ("cosine", "euclidean")
Setting = TypeVar("Setting", bound=tuple[int, float | None])
TINY = 1e-12  # distance of what coincides, which then outvotes all else


@functools.partial(jax.jit, static_argnames=("bank_chunk", "distance"))
def _chunks(bank, bank_chunk, distance):
    bank = normalize(bank) if distance == "cosine" else bank
    filled = jnp.pad(bank, [(0, -len(bank) % bank_chunk), (0, 0)])
    return filled.reshape(-1, bank_chunk, bank.shape[1])


@functools.partial(jax.jit, static_argnames=("k", "distance"))
def _nearest(queries, chunks, size, k, distance):
    cosine, bank_chunk = distance == "cosine", chunks.shape[1]
    queries = normalize(queries) if cosine else queries

    def step(best, chunk):
        vectors, offset = chunk
        similarity = jnp.matmul(queries, vectors.T, precision=Precision.HIGHEST)
        if not cosine:  # -distance² but for what all have alike
            similarity = 2 * similarity - jnp.sum(vectors**2, axis=1)[None, :]
        index = offset + jnp.arange(bank_chunk, dtype=jnp.int32)
        similarity = jnp.where(index < size, similarity, -jnp.inf)  # the filling of the last chunk
        near, where = top_k(similarity, min(k, bank_chunk))
        values = jnp.concatenate([best[0], near], axis=1)
        indices = jnp.concatenate([best[1], index[where]], axis=1)
        values, where = jax.lax.top_k(values, k)
        return (values, jnp.take_along_axis(indices, where, axis=1)), None

    rows = queries.shape[0]
    start = (jnp.full((rows, k), -jnp.inf, queries.dtype), jnp.full((rows, k), -1, jnp.int32))
    offsets = jnp.arange(len(chunks), dtype=jnp.int32) * bank_chunk
    similarity, index = jax.lax.scan(step, start, (chunks, offsets))[0]
    if cosine:
        return similarity, index
    # Subtracted as vectors: the difference of squares has no digits left where the distance is small.
    bank = chunks.reshape(-1, chunks.shape[2])
    away = jax.lax.map(lambda i: jnp.linalg.norm(queries - bank[i], axis=1), index.T)
    return -away.T, index


def top_k(values: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    """`jax.lax.top_k` of rows `[q, n]`, several times as fast where n is much larger than k.

    The k largest numbers lie in those k blocks of a row whose maxima are the largest: two short sorts instead
    of a long one. Equal numbers come in any order.
    """
    rows, n = values.shape
    block = 2 ** max(int(np.log2(n / k) / 2), 0)
    if block < 2:
        return jax.lax.top_k(values, k)
    if n % block:
        values = jnp.pad(values, [(0, 0), (0, -n % block)], constant_values=-jnp.inf)
    count = -(-n // block)
    # A block is every count-th number, so that its maximum is one of whole vectors.
    blocks = values.reshape(rows, block, count)
    _, chosen = jax.lax.top_k(jnp.max(blocks, axis=1), k)
    candidates = jnp.take_along_axis(blocks, chosen[:, None, :], axis=2).reshape(rows, block * k)
    found, where = jax.lax.top_k(candidates, k)
    return found, (where // k) * count + jnp.take_along_axis(chosen, where % k, axis=1)


def nearest(
    bank: np.ndarray,
    queries: np.ndarray,
    k: int,
    mesh: Mesh,
    *,
    distance: str = "cosine",
    query_chunk: int = 512,
    bank_chunk: int = 65536,
) -> tuple[np.ndarray, np.ndarray]:
    """The exact k most similar rows of `bank [m, d]` for every row of `queries [q, d]`.

    Queries are split over the mesh; at most query_chunk × bank_chunk similarities exist at a time.

    Args:
      distance: "cosine", or "euclidean", whose similarity is the distance with a minus.

    Returns:
      (similarity [q, k], index [q, k]), the most similar first; k is at most m.
    """
    if distance == "euclidean":  # differences stay, and squares get smaller
        middle = bank.mean(axis=0, keepdims=True)
        bank, queries = bank - middle, queries - middle
    k = min(k, len(bank))
    bank_chunk = min(bank_chunk, -(-len(bank) // 64) * 64)  # that top_k need not fill up
    chunk = -(-min(query_chunk, len(queries)) // mesh.size) * mesh.size
    chunks = _chunks(sharding.put_same(bank, sharding.replicated(mesh)), bank_chunk, distance)
    parts = []
    for begin in range(0, len(queries), chunk):
        part = queries[begin : begin + chunk]
        padded = np.pad(part, [(0, chunk - len(part)), (0, 0)])
        placed = sharding.put_same(padded, sharding.by_batch(mesh))
        found = sharding.gather(_nearest(placed, chunks, len(bank), k, distance))
        parts.append([x[: len(part)] for x in found])
    similarity, index = zip(*parts, strict=True)
    return np.concatenate(similarity), np.concatenate(index)


def vote(
    similarity: np.ndarray, labels: np.ndarray, k: int, temperature: float | None, classes: int
) -> np.ndarray:
    """Class scores `[q, classes]`: each of the k nearest votes with weight exp(similarity / T).

    Args:
      similarity, labels: `[q, ≥ k]`, of the neighbours, the most similar first.
      temperature: T; None for Euclidean distances, which vote with their inverse.
    """
    similarity, labels = similarity[:, :k].astype(np.float64), labels[:, :k]
    if temperature is None:
        weight = 1 / np.maximum(-similarity, TINY)
    else:  # relative to the nearest, or exp would overflow at small T; the order of classes is the same
        weight = np.exp((similarity - similarity[:, :1]) / temperature)
    cell = np.arange(len(similarity))[:, None] * classes + labels
    scores = np.bincount(cell.ravel(), weight.ravel(), minlength=len(similarity) * classes)
    return scores.reshape(-1, classes)


def top_k_accuracy(scores: np.ndarray, labels: np.ndarray, k: int) -> float:
    """How often the label is among the k highest scores."""
    if k == 1:
        return float(np.mean(np.argmax(scores, axis=1) == labels))
    best = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return float(np.mean(np.any(best == labels[:, None], axis=1)))


def evaluate(
    bank: np.ndarray,
    bank_labels: np.ndarray,
    queries: np.ndarray,
    query_labels: np.ndarray,
    *,
    mesh: Mesh,
    classes: int,
    settings: Iterable[tuple[int, float]] = ((200, 0.1),),
) -> dict[tuple[int, float], tuple[float, float]]:
    """{(k, T): (top-1, top-5)} of the weighted vote, all settings from one search."""
    found = votes(bank, bank_labels, queries, mesh=mesh, classes=classes, settings=settings)
    return {s: (top_k_accuracy(x, query_labels, 1), top_k_accuracy(x, query_labels, 5)) for s, x in found}


def votes(
    bank: np.ndarray,
    bank_labels: np.ndarray,
    queries: np.ndarray,
    *,
    mesh: Mesh,
    classes: int,
    settings: Iterable[Setting],
    distance: str = "cosine",
) -> Iterator[tuple[Setting, np.ndarray]]:
    """(setting, what `vote` gives) for every (k, T), all from one search."""
    settings = list(settings)
    similarity, index = nearest(bank, queries, max(k for k, _ in settings), mesh, distance=distance)
    labels = bank_labels[index]
    for setting in settings:
        yield setting, vote(similarity, labels, *setting, classes)


def shares(found: np.ndarray) -> np.ndarray:
    """Votes `[q, classes]` as probabilities: divided by their sum, so that queries can be compared."""
    return found / found.sum(axis=1, keepdims=True)
