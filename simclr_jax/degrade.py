"""Corruptions of images: noise, salt and pepper, JPEG, fewer pixels, holes. Pure functions.

All take images `[m, h, w, c]`, float in [0, 1], and keys `[m]` of `draws.view_keys`: a corruption depends on
(seed, position, view) alone. Results of noise and of bicubic resizing are neither clipped nor rounded. The
benchmarks of denoising do the same (DnCNN, arXiv 1608.03981): clipped noise has a mean and is less than its
sigma says.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.lax import Precision

from simclr_jax import masking
from simclr_jax.errors import SimclrError

NOISE = ("gaussian", "poisson")  # may leave [0, 1], and is scored as it is
UNIT = 255  # sigmas are in units of 1/255, the steps of 8 bits
BLOCK = 8  # pixels of a block's side, in JPEG

# ISO/IEC 10918-1 (ITU-T T.81), tables K.1 and K.2: luminance, chrominance; rows from the lowest frequency.
LUMINANCE = (
    16, 11, 10, 16, 24, 40, 51, 61, 12, 12, 14, 19, 26, 58, 60, 55, 14, 13, 16, 24, 40, 57, 69, 56,
    14, 17, 22, 29, 51, 87, 80, 62, 18, 22, 37, 56, 68, 109, 103, 77, 24, 35, 55, 64, 81, 104, 113, 92,
    49, 64, 78, 87, 103, 121, 120, 101, 72, 92, 95, 98, 112, 100, 103, 99,
)  # fmt: skip
CHROMINANCE = (
    17, 18, 24, 47, 99, 99, 99, 99, 18, 21, 26, 66, 99, 99, 99, 99, 24, 26, 56, 99, 99, 99, 99, 99,
    47, 66, 99, 99, 99, 99, 99, 99, *(99,) * 32,
)  # fmt: skip
# RGB to luma and two chromas about 0 (JFIF 1.02, ITU-R BT.601), and back.
TO_YCC = np.array(
    [[0.299, 0.587, 0.114], [-0.168735892, -0.331264108, 0.5], [0.5, -0.418687589, -0.081312411]]
)
FROM_YCC = np.array([[1, 0, 1.402], [1, -0.344136286, -0.714136286], [1, 1.772, 0]])


def each(draw: Callable[[jax.Array], jax.Array], keys: jax.Array) -> jax.Array:
    """`draw(key)` of every key `[m]`."""
    return jax.vmap(draw)(keys)


def gaussian(
    images: jax.Array, keys: jax.Array, *, sigma: float, sigma_range: tuple[float, ...] = ()
) -> jax.Array:
    """Adds normal noise of `sigma` / 255, not clipped.

    Args:
      sigma_range: (least, largest): each image's sigma is uniform between them; () for `sigma`.
    """
    low, high = sigma_range or (sigma, sigma)

    def noise(key: jax.Array) -> jax.Array:
        for_sigma, for_noise = jax.random.split(key)
        drawn = low + (high - low) * jax.random.uniform(for_sigma, dtype=images.dtype)
        return drawn / UNIT * jax.random.normal(for_noise, images.shape[1:], images.dtype)

    return images + each(noise, keys)


def poisson(images: jax.Array, keys: jax.Array, *, peak: float) -> jax.Array:
    """Counts of photons: Poisson(peak · x) / peak, of mean x and variance x / peak, not clipped.

    Args:
      peak: photons where an image is white.
    """

    def count(key: jax.Array, image: jax.Array) -> jax.Array:
        return jax.random.poisson(key, peak * jnp.clip(image, 0, 1)).astype(images.dtype)

    return jax.vmap(count)(keys, images) / peak


def salt_and_pepper(images: jax.Array, keys: jax.Array, *, share: float) -> jax.Array:
    """Replaces a `share` of all values, every channel by itself: half of them by 0, half by 1."""
    u = each(functools.partial(jax.random.uniform, shape=images.shape[1:], dtype=images.dtype), keys)
    return jnp.where(u < share / 2, 0, jnp.where(u < share, 1, images)).astype(images.dtype)


def fewer_pixels(images: jax.Array, *, scale: int) -> jax.Array:
    """1/`scale` of the pixels a side, and as many as before again; bicubic, not clipped.

    Both are Keys' cubic convolution (1981, a = -1/2), and the way down is antialiased, as in MATLAB's
    imresize and Pillow. Where `scale` does not divide a side, the small image's is rounded up.
    """
    n, h, w, c = images.shape
    return _bicubic(_bicubic(images, (n, -(-h // scale), -(-w // scale), c)), images.shape)


def more_pixels(images: jax.Array, *, scale: int) -> jax.Array:
    """`scale` times as many pixels a side, bicubic as in `fewer_pixels`, not clipped."""
    n, h, w, c = images.shape
    return _bicubic(images, (n, scale * h, scale * w, c))


def _bicubic(images: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    return jax.image.resize(images, shape, "cubic", antialias=True, precision=Precision.HIGHEST)


def holes(images: jax.Array, keys: jax.Array, *, share: float, side: int) -> tuple[jax.Array, jax.Array]:
    """Squares of `side` pixels become the mean colour of all other pixels.

    Of the squares of a grid, which begins at a random place, round(share · their number) are hidden: at
    least one and never all.

    Returns:
      (images, known `[m, h, w, 1]`: 1 where a pixel is itself, 0 in a hole).
    """
    h, w = images.shape[1:3]
    rows, columns = -(-h // side) + 1, -(-w // side) + 1  # one more: the grid begins outside
    hidden = min(max(round(share * rows * columns), 1), rows * columns - 1)

    def mask(key: jax.Array) -> jax.Array:
        for_place, for_choice = jax.random.split(key)
        top, left = jax.random.randint(for_place, (2,), 0, side)
        seen = (jax.random.permutation(for_choice, rows * columns) >= hidden).reshape(rows, columns)
        whole = jnp.repeat(jnp.repeat(seen, side, axis=0), side, axis=1)
        return jax.lax.dynamic_slice(whole, (top, left), (h, w))

    known = each(mask, keys)[..., None].astype(images.dtype)
    return masking.filled(images, 1 - known), known


def completed(restored: jax.Array, spoilt: jax.Array, known: jax.Array) -> jax.Array:
    """Restored images with the known pixels of the spoilt ones, in [0, 1]."""
    return jnp.where(known > 0, jnp.clip(spoilt, 0, 1), restored)


# ---- JPEG ---------------------------------------------------------------------------------------


def jpeg(images: jax.Array, *, quality: int, subsample: bool = True) -> jax.Array:
    """What JPEG keeps at `quality` 1 to 100, of gray or RGB; in [0, 1], of 8 bits.

    The lossy part of the baseline (ITU-T T.81) by libjpeg's conventions: its scale of qualities, the standard
    tables, chroma of half the side by means and back by triangles. Files of Pillow differ by rounding.

    Raises:
      SimclrError: images have neither one channel nor three.
    """
    h, w, c = images.shape[1:]
    if c not in (1, 3):
        raise SimclrError(f"JPEG is for images of 1 or 3 channels, these have {c}")
    levels = jnp.rint(jnp.clip(images, 0, 1) * UNIT)
    side = BLOCK * (2 if c == 3 and subsample else 1)
    levels = jnp.pad(levels, [(0, 0), (0, -h % side), (0, -w % side), (0, 0)], mode="edge")
    table = functools.partial(quantization, quality=quality)
    if c == 1:
        coded = _levels(_blocks(levels[..., 0] - 128, table(LUMINANCE)) + 128)[..., None]
        return coded[:, :h, :w] / UNIT
    ycc = jnp.rint(
        jnp.einsum("ab,nhwb->nhwa", TO_YCC.astype(np.float32), levels, precision=Precision.HIGHEST)
    )
    luma = _levels(_blocks(ycc[..., 0] - 128, table(LUMINANCE)) + 128)
    chroma = [_chroma(ycc[..., i], table(CHROMINANCE), subsample) for i in (1, 2)]
    planes = jnp.stack([luma, *chroma], axis=-1)
    rgb = jnp.einsum("ab,nhwb->nhwa", FROM_YCC.astype(np.float32), planes, precision=Precision.HIGHEST)
    return (_levels(rgb)[:, :h, :w] / UNIT).astype(images.dtype)


def quantization(table: tuple[int, ...], quality: int) -> np.ndarray:
    """The steps `[8, 8]` of a quality, 1 to 100, as libjpeg scales a table (jpeg_quality_scaling)."""
    scale = 5000 // quality if quality < 50 else 200 - 2 * quality
    steps = (np.array(table) * scale + 50) // 100
    return np.clip(steps, 1, 255).reshape(BLOCK, BLOCK).astype(np.float32)


def _chroma(plane: jax.Array, steps: np.ndarray, subsample: bool) -> jax.Array:
    n, h, w = plane.shape
    if not subsample:
        return _levels(_blocks(plane, steps) + 128) - 128
    small = jnp.rint(jnp.mean(plane.reshape(n, h // 2, 2, w // 2, 2), axis=(2, 4)))
    small = _levels(_blocks(small, steps) + 128) - 128
    return jnp.rint(jax.image.resize(small, plane.shape, "linear", precision=Precision.HIGHEST))


def _levels(values: jax.Array) -> jax.Array:
    return jnp.clip(jnp.rint(values), 0, UNIT)


def _cosines() -> np.ndarray:
    """The orthonormal DCT-II of 8 numbers, `[frequency, place]`."""
    k, x = np.arange(BLOCK)[:, None], np.arange(BLOCK)[None, :]
    rows = np.sqrt(2 / BLOCK) * np.cos((2 * x + 1) * k * np.pi / (2 * BLOCK))
    rows[0] /= np.sqrt(2)
    return rows.astype(np.float32)


def _blocks(plane: jax.Array, steps: np.ndarray) -> jax.Array:
    """A plane `[n, h, w]` about 0 with the coefficients of its blocks rounded to multiples of `steps`."""
    n, h, w = plane.shape
    high: dict[str, Any] = {"precision": Precision.HIGHEST}
    dct = _cosines()
    blocks = plane.reshape(n, h // BLOCK, BLOCK, w // BLOCK, BLOCK)
    found = jnp.einsum("ua,vb,niajb->niujv", dct, dct, blocks, **high)
    scale = jnp.asarray(steps[None, None, :, None, :])
    found = jnp.rint(found / scale) * scale
    return jnp.einsum("ua,vb,niujv->niajb", dct, dct, found, **high).reshape(n, h, w)


# ---- by name ------------------------------------------------------------------------------------


def corrupt(images: jax.Array, keys: jax.Array, options: Mapping[str, Any]) -> tuple[jax.Array, jax.Array]:
    """The corruption that `config.restore` names: (images, known `[m, h, w, 1]`, 0 in holes and else 1)."""
    name, known = options["corruption"], jnp.ones((*images.shape[:3], 1), images.dtype)
    if name == "gaussian":
        sigmas = {"sigma": options["sigma"], "sigma_range": tuple(options["sigma_range"])}
        return gaussian(images, keys, **sigmas), known
    if name == "poisson":
        return poisson(images, keys, peak=options["peak"]), known
    if name == "salt_and_pepper":
        return salt_and_pepper(images, keys, share=options["share"]), known
    if name == "jpeg":
        return jpeg(images, quality=options["quality"]), known
    if name == "fewer_pixels":
        return fewer_pixels(images, scale=options["scale"]), known
    if name == "holes":
        return holes(images, keys, share=options["share"], side=options["hole"])
    raise SimclrError(f"config.restore.corruption={name!r}: no such corruption")


def scored(spoilt: jax.Array, name: str) -> jax.Array:
    """Spoilt images as they are compared with clean ones: in [0, 1], but for noise."""
    return spoilt if name in NOISE else jnp.clip(spoilt, 0, 1)
