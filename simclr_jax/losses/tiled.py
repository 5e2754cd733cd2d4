"""NT-Xent in O(N) memory: the dense loss's value and gradient, never all logits at once.

Every device takes its own rows against all columns, tile by tile, with a running logsumexp; the backward
pass computes the tiles again. Similarities are symmetric, so that a row's gradient needs the logsumexp of the
other rows instead of the gradients of all columns: one all-gather of the embeddings and one of 2n numbers.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.lax import Precision
from jax.sharding import Mesh

from simclr_jax.losses.contrastive import Result, unit

TILE = 2048  # rows and columns of a tile: 16 MB of float32 logits
LOW = -1e30  # below every logit, and finite: -inf - -inf would be NaN


class _Running(NamedTuple):
    """Of each row, over the columns seen so far; `ab_*`: of view a's rows against view b's columns."""

    top: jax.Array  # the largest logit
    total: jax.Array  # Σ exp(logit - top)
    ab_top: jax.Array
    ab_total: jax.Array
    ab_weighted: jax.Array  # Σ logit · exp(logit - ab_top)
    ab_best: jax.Array  # number of the column with the largest logit


def nt_xent(
    z: jax.Array,
    temperature: float,
    *,
    normalize: bool = True,
    mesh: Mesh,
    axis: str = "data",
    tile: int = TILE,
) -> Result:
    """`contrastive.nt_xent` in tiles: same arguments, same value, gradient and metrics.

    Args:
      z: embeddings `[n, 2, d]`; n must be divisible by the devices of `axis`.
      temperature: τ, a Python number.
      mesh, axis: over whose devices the images are split.
      tile: rows and columns of the logits that exist at a time, on each device; even.
    """
    z = z.astype(jnp.promote_types(z.dtype, jnp.float32))
    rows = (unit(z) if normalize else z).reshape(2 * z.shape[0], -1)
    return _nt_xent(rows, float(temperature), mesh, axis, tile)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3, 4))
def _nt_xent(rows: jax.Array, temperature: float, mesh: Mesh, axis: str, tile: int) -> Result:
    return _forward(rows, temperature, mesh, axis, tile)[0]


def _forward(rows, temperature, mesh, axis, tile):
    count = len(rows)

    def local(mine):
        columns = jax.lax.all_gather(mine, axis, tiled=True)
        first = jax.lax.axis_index(axis) * len(mine)
        seen = _by_tiles(functools.partial(_statistics, temperature, count, tile), mine, first, columns, tile)
        lse = seen.top + jnp.log(seen.total)
        partner = mine.reshape(-1, 2, mine.shape[1])[:, ::-1].reshape(mine.shape)
        positive = jnp.sum(mine * partner, axis=1) / temperature
        right = seen.ab_best == first + 1 + 2 * jnp.arange(len(seen.ab_best), dtype=jnp.int32)
        entropy = jnp.log(seen.ab_total) + seen.ab_top - seen.ab_weighted / seen.ab_total
        sums = (jnp.sum(lse - positive), 2 * jnp.sum(right, dtype=lse.dtype), 2 * jnp.sum(entropy))
        loss, accuracy, entropy = (jax.lax.psum(x, axis) / count for x in sums)
        return loss, accuracy, entropy, columns, lse

    split, whole = jax.P(axis), jax.P()
    loss, accuracy, entropy, columns, lse = _on(mesh, local, (split,), (whole, whole, whole, whole, split))(
        rows
    )
    metrics = {"contrast_accuracy": accuracy, "contrast_entropy": entropy}
    return (loss, metrics), (rows, columns, lse)


def _backward(temperature, mesh, axis, tile, kept, cotangents):
    count = len(kept[0])

    def local(mine, columns, lse):
        all_lse = jax.lax.all_gather(lse, axis, tiled=True)
        first = jax.lax.axis_index(axis) * len(mine)
        of_tile = functools.partial(_gradient, temperature, tile)
        pulled = _by_tiles(of_tile, (mine, lse), first, (columns, all_lse), tile)
        partner = mine.reshape(-1, 2, mine.shape[1])[:, ::-1].reshape(mine.shape)
        return (pulled - 2 * partner) / (count * temperature)

    split, whole = jax.P(axis), jax.P()
    gradient = _on(mesh, local, (split, whole, split), split)(*kept)
    return (gradient * cotangents[0],)  # the metrics have no gradient


_nt_xent.defvjp(_forward, _backward)


def _on(mesh: Mesh, function: Any, inputs: Any, outputs: Any) -> Any:
    # Unchecked: JAX cannot see that a gathered array is the same everywhere.
    return jax.shard_map(function, mesh=mesh, in_specs=inputs, out_specs=outputs, check_vma=False)


def _by_tiles(of_tile: Any, mine: Any, first: jax.Array, columns: Any, tile: int) -> Any:
    """`of_tile(rows, number of the first, columns)` of each tile of this device's rows, put together."""
    count = len(jax.tree.leaves(mine)[0])
    size = min(tile, count)
    if count % size:  # the last tile is filled up
        mine = jax.tree.map(lambda x: jnp.pad(x, [(0, -count % size)] + [(0, 0)] * (x.ndim - 1)), mine)
    tiles = jax.tree.map(lambda x: x.reshape(-1, size, *x.shape[1:]), mine)
    begins = first + size * jnp.arange(-(-count // size), dtype=jnp.int32)
    found = jax.lax.map(lambda each: of_tile(each[0], each[1], columns), (tiles, begins))
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[: count * x.shape[1] // size], found)


def _scan_columns(step: Any, start: Any, columns: Any, tile: int) -> Any:
    """`step(carry, columns of a tile, number of the first)` over all tiles of columns."""
    count = len(jax.tree.leaves(columns)[0])
    size = min(tile, count)
    columns = jax.tree.map(lambda x: jnp.pad(x, [(0, -count % size)] + [(0, 0)] * (x.ndim - 1)), columns)
    tiles = jax.tree.map(lambda x: x.reshape(-1, size, *x.shape[1:]), columns)
    begins = size * jnp.arange(-(-count // size), dtype=jnp.int32)
    return jax.lax.scan(lambda carry, each: (step(carry, *each), None), start, (tiles, begins))[0]


def _logits(rows: jax.Array, columns: jax.Array, temperature: float) -> jax.Array:
    return jnp.matmul(rows, columns.T, precision=Precision.HIGHEST) / temperature


def _numbers(logits: jax.Array, first_row: jax.Array, first_column: jax.Array) -> tuple[jax.Array, jax.Array]:
    row, column = (jax.lax.broadcasted_iota(jnp.int32, logits.shape, axis) for axis in (0, 1))
    return first_row + row, first_column + column


def _statistics(temperature, count, tile, rows, first_row, columns) -> _Running:
    def step(seen: _Running, part: jax.Array, first_column: jax.Array) -> _Running:
        logits = _logits(rows, part, temperature)
        row, column = _numbers(logits, first_row, first_column)
        logits = jnp.where((row == column) | (column >= count), -jnp.inf, logits)
        top = jnp.maximum(seen.top, jnp.max(logits, axis=1))
        total = seen.total * jnp.exp(seen.top - top) + jnp.sum(jnp.exp(logits - top[:, None]), axis=1)
        ab = logits[::2, 1::2]  # tiles begin with a view a
        ab_top = jnp.maximum(seen.ab_top, jnp.max(ab, axis=1))
        shrink, weight = jnp.exp(seen.ab_top - ab_top), jnp.exp(ab - ab_top[:, None])
        best = first_column + 1 + 2 * jnp.argmax(ab, axis=1).astype(jnp.int32)
        return _Running(
            top,
            total,
            ab_top,
            seen.ab_total * shrink + jnp.sum(weight, axis=1),
            seen.ab_weighted * shrink + jnp.sum(jnp.where(weight > 0, ab, 0) * weight, axis=1),
            jnp.where(ab_top > seen.ab_top, best, seen.ab_best),
        )

    every, half = jnp.full(len(rows), LOW, rows.dtype), jnp.full(len(rows) // 2, LOW, rows.dtype)
    nothing = jnp.zeros_like
    start = _Running(every, nothing(every), half, nothing(half), nothing(half), nothing(half, jnp.int32))
    return _scan_columns(step, start, columns, tile)


def _gradient(temperature, tile, rows_and_lse, first_row, columns_and_lse) -> jax.Array:
    """Σⱼ (Pᵢⱼ + Pⱼᵢ) zⱼ for the rows i of a tile, P being the softmax of each row without itself."""
    (rows, row_lse), (columns, column_lse) = rows_and_lse, columns_and_lse
    count = len(columns)

    def step(pulled: jax.Array, part: Any, first_column: jax.Array) -> jax.Array:
        columns, lse = part
        logits = _logits(rows, columns, temperature)
        row, column = _numbers(logits, first_row, first_column)
        weight = jnp.exp(logits - row_lse[:, None]) + jnp.exp(logits - lse[None, :])
        weight = jnp.where((row == column) | (column >= count), 0, weight)
        return pulled + jnp.matmul(weight, columns, precision=Precision.HIGHEST)

    return _scan_columns(step, jnp.zeros_like(rows), (columns, column_lse), tile)
