"""NT-Xent in O(N) memory: value and gradient equal the dense loss, without all logits at once.

Every device compares its own rows with all columns, tile by tile, with a running logsumexp; the backward
pass recomputes the tiles. Similarities are symmetric, so a row's gradient needs the logsumexp of the other
rows, not the gradients of all columns: one all-gather of the embeddings and one of 2n numbers. In a ring,
each device passes its columns from neighbour to neighbour, and no device ever holds all of them.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.lax import Precision, PrecisionLike
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
    one_view: bool = False,
    mesh: Mesh,
    axis: str = "data",
    tile: int = TILE,
    ring: bool = False,
    precision: PrecisionLike = Precision.HIGHEST,
) -> Result:
    """`contrastive.nt_xent` in tiles: same arguments, same value, gradient and metrics.

    Args:
      z: embeddings `[n, 2, d]`; n must be divisible by the devices of `axis`.
      temperature: τ, a Python number.
      mesh, axis: over whose devices the images are split.
      tile: rows and columns of the logits that exist at a time, on each device; even.
      ring: pass the columns round instead of gathering them: for embeddings that fill a device's memory.
      precision: of the products of rows and columns.
    """
    z = z.astype(jnp.promote_types(z.dtype, jnp.float32))
    rows = (unit(z) if normalize else z).reshape(2 * z.shape[0], -1)
    return _nt_xent(rows, _How(float(temperature), one_view, mesh, axis, tile, ring, precision))


class _How(NamedTuple):
    """The arguments of `nt_xent` that are no arrays."""

    temperature: float
    one_view: bool
    mesh: Mesh
    axis: str
    tile: int
    ring: bool
    precision: PrecisionLike


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _nt_xent(rows: jax.Array, how: _How) -> Result:
    return _forward(rows, how)[0]


def _forward(rows, how):
    count, temperature, axis = len(rows), how.temperature, how.axis

    def local(mine):
        first = jax.lax.axis_index(axis) * len(mine)
        of_tile = functools.partial(_statistics, how)
        seen = _over_columns(of_tile, _nothing_seen(mine), mine, mine, how)
        lse = seen.top + jnp.log(seen.total)
        partner = mine.reshape(-1, 2, mine.shape[1])[:, ::-1].reshape(mine.shape)
        positive = jnp.sum(mine * partner, axis=1) / temperature
        right = seen.ab_best == first + 1 + 2 * jnp.arange(len(seen.ab_best), dtype=jnp.int32)
        entropy = jnp.log(seen.ab_total) + seen.ab_top - seen.ab_weighted / seen.ab_total
        sums = (jnp.sum(lse - positive), 2 * jnp.sum(right, dtype=lse.dtype), 2 * jnp.sum(entropy))
        loss, accuracy, entropy = (jax.lax.psum(x, axis) / count for x in sums)
        return loss, accuracy, entropy, lse

    split, whole = jax.P(axis), jax.P()
    loss, accuracy, entropy, lse = _on(how.mesh, local, (split,), (whole, whole, whole, split))(rows)
    metrics = {"contrast_accuracy": accuracy, "contrast_entropy": entropy}
    return (loss, metrics), (rows, lse)


def _backward(how, kept, cotangents):
    count = len(kept[0])

    def local(mine, lse):
        of_tile, both = functools.partial(_gradient, how), (mine, lse)
        pulled = _over_columns(of_tile, jnp.zeros_like(mine), both, both, how)
        partner = mine.reshape(-1, 2, mine.shape[1])[:, ::-1].reshape(mine.shape)
        return (pulled - 2 * partner) / (count * how.temperature)

    split = jax.P(how.axis)
    gradient = _on(how.mesh, local, (split, split), split)(*kept)
    return (gradient * cotangents[0],)  # the metrics have no gradient


_nt_xent.defvjp(_forward, _backward)


def _on(mesh: Mesh, function: Any, inputs: Any, outputs: Any) -> Any:
    # Unchecked: JAX cannot see that a gathered array is the same everywhere.
    return jax.shard_map(function, mesh=mesh, in_specs=inputs, out_specs=outputs, check_vma=False)


def _over_columns(of_tile: Any, start: Any, mine: Any, columns: Any, how: _How) -> Any:
    """`of_tile` of this device's rows and everyone's columns, from `start`; all `[rows of a device, ...]`."""
    axis, tile = how.axis, how.tile
    devices, me = jax.lax.axis_size(axis), jax.lax.axis_index(axis)
    rows = len(jax.tree.leaves(mine)[0])
    if not how.ring:
        columns = jax.tree.map(lambda x: jax.lax.all_gather(x, axis, tiled=True), columns)
        return _by_tiles(of_tile, start, mine, me * rows, columns, jnp.int32(0), tile)
    to_next = [(i, (i + 1) % devices) for i in range(devices)]

    def turn(carry: tuple, k: jax.Array) -> tuple[tuple, None]:
        seen, visiting = carry
        visiting = jax.tree.map(lambda x: jax.lax.ppermute(x, axis, to_next), visiting)
        first_column = (me - k) % devices * rows
        return (_by_tiles(of_tile, seen, mine, me * rows, visiting, first_column, tile), visiting), None

    own = _by_tiles(of_tile, start, mine, me * rows, columns, me * rows, tile)
    return jax.lax.scan(turn, (own, columns), jnp.arange(1, devices, dtype=jnp.int32))[0][0]


def _by_tiles(
    of_tile: Any, start: Any, mine: Any, first: jax.Array, columns: Any, first_column: jax.Array, tile: int
) -> Any:
    """`of_tile(start, rows, number of the first, columns, ...)` of each tile of the rows, put together."""
    count = len(jax.tree.leaves(mine)[0])
    size = min(tile, count)
    tiles = -(-count // size)  # the last one is filled up

    def split(x: jax.Array) -> jax.Array:
        return _filled(x, size).reshape(tiles, -1, *x.shape[1:])

    def halves(x: jax.Array) -> jax.Array:
        # Arrays that have one entry for a pair of rows are half as long.
        return split(jnp.repeat(x, count // len(x), axis=0))[:, :: count // len(x)]

    begins = first + size * jnp.arange(tiles, dtype=jnp.int32)
    each = (jax.tree.map(halves, start), jax.tree.map(split, mine), begins)
    found = jax.lax.map(lambda e: of_tile(*e, columns, first_column), each)
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[: count * x.shape[1] // size], found)


def _filled(x: jax.Array, size: int) -> jax.Array:
    """`x` with zero rows up to a multiple of `size`."""
    return jnp.pad(x, [(0, -len(x) % size)] + [(0, 0)] * (x.ndim - 1)) if len(x) % size else x


def _scan_columns(step: Any, start: Any, columns: Any, tile: int) -> Any:
    """`step(carry, columns of a tile, number of the first)` over all tiles of columns."""
    count = len(jax.tree.leaves(columns)[0])
    size = min(tile, count)
    tiles = jax.tree.map(lambda x: _filled(x, size).reshape(-1, size, *x.shape[1:]), columns)
    begins = size * jnp.arange(-(-count // size), dtype=jnp.int32)
    return jax.lax.scan(lambda carry, each: (step(carry, *each), None), start, (tiles, begins))[0]


def _logits(rows: jax.Array, columns: jax.Array, how: _How) -> jax.Array:
    return jnp.matmul(rows, columns.T, precision=how.precision) / how.temperature


def _masked(
    how: _How, first_row: jax.Array, first: jax.Array, within: jax.Array, shape: tuple, count: int
) -> jax.Array:
    """Where a row meets itself, its own view for `one_view`, or a column that fills the tile.

    `first + within` is the tile's first column; tiles begin with a view a.
    """
    row, column = (jax.lax.broadcasted_iota(jnp.int32, shape, axis) for axis in (0, 1))
    masked = (first_row + row == first + within + column) | (within + column >= count)
    return masked | ((row ^ column) % 2 == 0) if how.one_view else masked


def _nothing_seen(rows: jax.Array) -> _Running:
    every, half = jnp.full(len(rows), LOW, rows.dtype), jnp.full(len(rows) // 2, LOW, rows.dtype)
    nothing = jnp.zeros_like
    return _Running(every, nothing(every), half, nothing(half), nothing(half), nothing(half, jnp.int32))


def _statistics(how, seen, rows, first_row, columns, first) -> _Running:
    """What was `seen` of the rows before, and these columns."""

    def step(seen: _Running, part: jax.Array, within: jax.Array) -> _Running:
        logits = _logits(rows, part, how)
        masked = _masked(how, first_row, first, within, logits.shape, len(columns))
        logits = jnp.where(masked, -jnp.inf, logits)
        top = jnp.maximum(seen.top, jnp.max(logits, axis=1))
        total = seen.total * jnp.exp(seen.top - top) + jnp.sum(jnp.exp(logits - top[:, None]), axis=1)
        ab = logits[::2, 1::2]  # tiles begin with a view a
        ab_top = jnp.maximum(seen.ab_top, jnp.max(ab, axis=1))
        shrink, weight = jnp.exp(seen.ab_top - ab_top), jnp.exp(ab - ab_top[:, None])
        best = first + within + 1 + 2 * jnp.argmax(ab, axis=1).astype(jnp.int32)
        return _Running(
            top,
            total,
            ab_top,
            seen.ab_total * shrink + jnp.sum(weight, axis=1),
            seen.ab_weighted * shrink + jnp.sum(jnp.where(weight > 0, ab, 0) * weight, axis=1),
            jnp.where(ab_top > seen.ab_top, best, seen.ab_best),
        )

    return _scan_columns(step, seen, columns, how.tile)


def _gradient(how, pulled, rows_and_lse, first_row, columns_and_lse, first) -> jax.Array:
    """`pulled` + Σⱼ (Pᵢⱼ + Pⱼᵢ) zⱼ for the rows i of a tile; P: the softmax of each row without itself."""
    (rows, row_lse), count = rows_and_lse, len(columns_and_lse[0])

    def step(pulled: jax.Array, part: Any, within: jax.Array) -> jax.Array:
        columns, lse = part
        logits = _logits(rows, columns, how)
        weight = jnp.exp(logits - row_lse[:, None]) + jnp.exp(logits - lse[None, :])
        weight = jnp.where(_masked(how, first_row, first, within, logits.shape, count), 0, weight)
        return pulled + jnp.matmul(weight, columns, precision=how.precision)

    return _scan_columns(step, pulled, columns_and_lse, how.tile)
