"""Keys of random numbers, the same on every mesh, in every microbatch and after a resume."""

import zlib

import jax
import jax.numpy as jnp


def view_keys(seed: int, position: jax.Array, views: int, first: int = 0) -> jax.Array:
    """A key `[n, views]` for every view.

    Args:
      position: `[n]` uint32, step · batch + row.
      first: number of the first view.
    """

    def of_view(p, v):
        return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), p), v)

    numbers = first + jnp.arange(views, dtype=jnp.uint32)
    return jax.vmap(jax.vmap(of_view, (None, 0)), (0, None))(position, numbers)


def named_keys(keys: jax.Array, name: str) -> jax.Array:
    """Other keys of the same shape, for draws that belong to `name`."""
    number = jnp.uint32(zlib.crc32(name.encode()))
    folded = jax.vmap(lambda key: jax.random.fold_in(key, number))(keys.reshape(-1))
    return folded.reshape(keys.shape)
