"""Where in an image a prediction or a similarity comes from, of the last block group's maps.

Features are linear in these maps, as pooling is; so a score that is linear in the features is a sum over the
places of the map, and what every place adds to it is exact.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from simclr_jax import geometry

Pool = Callable[[jax.Array], jax.Array]  # maps [n, h, w, k] to features [n, d]: the encoder's `pool`


def class_map(
    maps: jax.Array, pool: Pool, weights: jax.Array | np.ndarray, classes: jax.Array | np.ndarray
) -> jax.Array:
    """Grad-CAM (Selvaraju et al., arXiv 1610.02391, section 3) of a linear classifier on pooled features.

    The gradient is taken at every place instead of averaged over the map (HiResCAM, Draelos & Carin, arXiv
    2011.08891). Where the pooling is one mean that is the same; where it is of quadrants, which have
    weights of their own, the average would mix them.

    Args:
      maps: `[n, h, w, k]`; pool: linear.
      weights: `[d, classes]`, for features as the pool gives them (divide by the deviation what was fitted
        on standardised ones).
      classes: `[n]` int, of each image the class to explain.

    Returns:
      `[n, h, w]` in [0, 1]: what speaks for the class, the most of each image being 1; 0 where nothing does.
    """
    return relative(contributions(maps, pool, weights.T[classes]))


def similarity_maps(maps_a: jax.Array, maps_b: jax.Array, pool: Pool) -> tuple[jax.Array, jax.Array]:
    """What makes image a similar to b, and b to a (Stylianou et al., arXiv 1901.00536, section 3).

    Args:
      maps_a, maps_b: `[n, h, w, k]`, compared row by row by the cosine of their pooled features.

    Returns:
      Two `[n, h, w]` in [0, 1], the most of each image being 1.
    """
    a, b = (jnp.asarray(pool(maps), jnp.float32) for maps in (maps_a, maps_b))
    lengths = jnp.linalg.norm(a, axis=1, keepdims=True) * jnp.linalg.norm(b, axis=1, keepdims=True)
    scale = 1 / jnp.maximum(lengths, 1e-12)
    return (
        relative(contributions(maps_a, pool, b * scale)),
        relative(contributions(maps_b, pool, a * scale)),
    )


def contributions(maps: jax.Array, pool: Pool, directions: jax.Array) -> jax.Array:
    """What each place of maps `[n, h, w, k]` adds to the product of features and directions `[n, d]`.

    `[n, h, w]`, whose sum over the map is that product.
    """
    maps = maps.astype(jnp.float32)
    back = jax.vjp(pool, maps)[1]
    return jnp.sum(maps * back(directions.astype(jnp.float32))[0], axis=-1)


def heat(maps: jax.Array, size: int) -> jax.Array:
    """Maps `[n, h, w]` as `[n, size, size]` for drawing over the images, bilinear."""
    return geometry.resize(maps[..., None], (size, size), "bilinear")[..., 0]


def relative(maps: jax.Array) -> jax.Array:
    """What is positive in maps `[n, h, w]`, the most of each being 1."""
    maps = jnp.maximum(maps, 0)
    most = jnp.max(maps, axis=(1, 2), keepdims=True)
    return maps / jnp.where(most > 0, most, 1)
