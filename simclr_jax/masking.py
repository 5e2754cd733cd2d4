"""Masks of patches and blocks, which hide parts of images from an encoder, and noise.

Every function takes a key for each image, `[m]`, so that what it draws does not depend on the batch's other
images.
"""

import jax
import jax.numpy as jnp


def kept_patches(keys: jax.Array, patches: int, ratio: float) -> jax.Array:
    """The numbers of the patches that stay visible, `[m, t']` int32, ascending; each set is as likely.

    Random masking of MAE (He et al., arXiv 2111.06377, section 3) and CAN (arXiv 2210.16870).

    Args:
      patches: t, those of an image.
      ratio: the share that is hidden; t' = round(t (1 - ratio)), at least 1.
    """
    count = max(1, round(patches * (1 - ratio)))
    return jnp.sort(jax.vmap(lambda key: _some(key, patches, count))(keys), axis=1)


def hidden_by(kept: jax.Array, grid: tuple[int, int], patch: tuple[int, int]) -> jax.Array:
    """The pixels that are in none of the patches `kept`: `[m, h, w, 1]`, 1 if hidden, else 0.

    Args:
      kept: `[m, t']`, numbers of patches, row by row.
      grid: (rows, columns) of patches.
      patch: (height, width) of a patch, pixels.
    """
    everywhere = jnp.ones(grid[0] * grid[1], jnp.float32)
    # Image by image, or a mesh would gather the batch.
    hidden = jax.vmap(lambda row: everywhere.at[row].set(0))(kept)
    return _pixels(hidden, grid, patch)


def blocks(keys: jax.Array, image: tuple[int, ...], block: int, ratio: float) -> jax.Array:
    """Random blocks of a grid, `[m, h, w, 1]`: 1 if hidden, else 0.

    As in SimMIM (Xie et al., arXiv 2111.09886, section 3.2): the blocks are cells of a grid, and
    round(cells · ratio) of them are hidden, each set as likely. At the right and lower edge blocks are cut.

    Args:
      image: (h, w, ...).
      block: side of a block, pixels.
    """
    rows, columns = (-(-side // block) for side in image[:2])
    count = min(max(1, round(rows * columns * ratio)), rows * columns - 1)

    def one(key: jax.Array) -> jax.Array:
        return jnp.zeros(rows * columns, jnp.float32).at[_some(key, rows * columns, count)].set(1)

    return _pixels(jax.vmap(one)(keys), (rows, columns), (block, block))[:, : image[0], : image[1]]


def filled(images: jax.Array, hidden: jax.Array) -> jax.Array:
    """Images `[m, h, w, c]` whose hidden pixels are the mean of the visible ones, channel by channel.

    So hidden pixels have no influence on the result, and fillings no color of their own.

    Args:
      hidden: `[m, h, w, 1]`, 1 if hidden, else 0.
    """
    visible = (1 - hidden).astype(images.dtype)
    count = jnp.maximum(jnp.sum(visible, axis=(1, 2), keepdims=True), 1)
    mean = jnp.sum(images * visible, axis=(1, 2), keepdims=True) / count
    return images * visible + mean * (1 - visible)


def noise(keys: jax.Array, image: tuple[int, ...], most: float, dtype) -> tuple[jax.Array, jax.Array]:
    """(σ e `[m, *image]`, σ `[m]`): normal noise e of a level σ that is uniform in [0, most].

    The noise of CAN (arXiv 2210.16870, section 3: σ up to 0.05), one level for each view.
    """

    def one(key: jax.Array) -> tuple[jax.Array, jax.Array]:
        of_level, of_noise = jax.random.split(key)
        level = most * jax.random.uniform(of_level, (), dtype)
        return level * jax.random.normal(of_noise, image, dtype), level

    return jax.vmap(one)(keys)


def _some(key: jax.Array, total: int, count: int) -> jax.Array:
    """`count` of the numbers 0 .. total - 1, int32."""
    return jax.random.permutation(key, jnp.arange(total, dtype=jnp.int32))[:count]


def _pixels(cells: jax.Array, grid: tuple[int, int], cell: tuple[int, int]) -> jax.Array:
    """A value for each cell of a grid, `[m, rows · columns]`, as pixels `[m, h, w, 1]`."""
    cells = cells.reshape(len(cells), *grid)
    return jnp.repeat(jnp.repeat(cells, cell[0], axis=1), cell[1], axis=2)[..., None]
