"""SimCLR's random augmentations on the accelerator, as pure JAX functions.

They are keyed by (seed, position in the run, view), so that a view does not depend on the devices, on the
batch around it, or on whether the run was interrupted.
"""

import functools
import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.lax import Precision

from simclr_jax import geometry


def random_views(
    images: jax.Array,
    position: jax.Array,
    seed: int,
    *,
    size: int,
    views: int = 2,
    crop_area: tuple[float, float] = (0.08, 1.0),
    crop_aspect: tuple[float, float] = (3 / 4, 4 / 3),
    crop_min_covered: float = 0.1,
    resize: str = "bicubic",
    flip: float = 0.5,
    rotation: float = 0.0,
    scaling: tuple[float, float] = (1.0, 1.0),
    **colour: Any,
) -> jax.Array:
    """Views `[n, views, size, size, c]` in [0, 1]: the whole of SimCLR's pipeline (appendix A).

    The operations and distributions of `data.host_augment.random_view`, other random numbers.

    Args:
      images: `[n, h, w, c]` uint8.
      position: `[n]` uint32, step · batch + row.
      seed, crop_area, ...: the fields of a config; `colour` those of `photometric`.
    """
    height, width = images.shape[1:3]
    plain = not rotation and tuple(scaling) == (1.0, 1.0)
    radians = math.radians(rotation)

    def one(image: jax.Array, key: jax.Array) -> jax.Array:
        for_box, for_rest = jax.random.split(key)
        u = jax.random.uniform(for_rest, (3,))
        image = image.astype(jnp.float32) / 255
        if not plain:
            zoom = scaling[0] + (scaling[1] - scaling[0]) * u[2]
            image = geometry.rotate_and_scale(image, radians * (2 * u[1] - 1), zoom)
        box = {"area": crop_area, "aspect": crop_aspect, "min_covered": crop_min_covered}
        begin, extent = geometry.crop_box(for_box, height, width, **box)
        rows = geometry.resampling(height, size, begin[0], extent[0], resize)
        columns = geometry.resampling(width, size, begin[1], extent[1], resize)
        columns = jnp.where(u[0] < flip, columns[::-1], columns)
        return geometry.resample(image, rows, columns)

    keys = _view_keys(seed, position, views)
    of_geometry, of_colour = jnp.moveaxis(jax.vmap(jax.vmap(jax.random.split))(keys), 2, 0)
    cropped = jax.vmap(jax.vmap(one, (None, 0)))(images, of_geometry)
    return _coloured(cropped, of_colour, **colour)


def photometric(views: jax.Array, position: jax.Array, seed: int, **colour: Any) -> jax.Array:
    """Colour jitter, grayscale and blur (SimCLR, arXiv 2002.05709, appendix A), as in `data.host_augment`.

    Args:
      views: cropped and flipped, `[n, v, h, w, c]`, uint8, or float in [0, 1].
      position: `[n]` uint32, step · batch + row.
      seed, colour: fields of a config: jitter, jitter_strength, brightness, grayscale, blur, blur_kernel,
        blur_sigma.

    Returns:
      views of the same shape, in [0, 1]. Images of one channel get no saturation, hue or grayscale; those
      with neither one nor three get the blur only.
    """
    if views.dtype == jnp.uint8:
        views = views.astype(jnp.float32) / 255
    return _coloured(views, _view_keys(seed, position, views.shape[1]), **colour)


def _view_keys(seed: int, position: jax.Array, views: int) -> jax.Array:
    """A key `[n, views]` for every view."""
    of_view = lambda p, v: jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), p), v)  # noqa: E731
    numbers = jnp.arange(views, dtype=jnp.uint32)
    return jax.vmap(jax.vmap(of_view, (None, 0)), (0, None))(position, numbers)


def _coloured(
    views: jax.Array,
    keys: jax.Array,
    *,
    jitter: float = 0.8,
    jitter_strength: float = 1.0,
    brightness: str = "v2",
    grayscale: float = 0.2,
    blur: float = 0.5,
    blur_kernel: float = 0.1,
    blur_sigma: tuple[float, float] = (0.1, 2.0),
) -> jax.Array:
    one = functools.partial(
        _photometric,
        jitter=jitter,
        strength=jitter_strength,
        brightness=brightness,
        grayscale=grayscale,
        blur=blur,
        kernel=int(views.shape[2] * blur_kernel),
        sigmas=blur_sigma,
    )
    return jax.vmap(jax.vmap(one))(views, keys)


def _photometric(image, key, *, jitter, strength, brightness, grayscale, blur, kernel, sigmas) -> jax.Array:
    channels = image.shape[-1]
    u = jax.random.uniform(key, (9,), image.dtype)
    if jitter and strength and channels in (1, 3):
        image = jnp.where(u[0] < jitter, color_jitter(image, u[1:5], u[5], strength, brightness), image)
    if grayscale and channels == 3:
        image = jnp.where(u[6] < grayscale, to_grayscale(image), image)
    if blur and kernel // 2:
        sigma = sigmas[0] + (sigmas[1] - sigmas[0]) * u[8]
        image = jnp.where(u[7] < blur, gaussian_blur(image, sigma, kernel), image)
    return jnp.clip(image, 0, 1)


def color_jitter(
    image: jax.Array, amounts: jax.Array, u_order: jax.Array, strength: float, brightness: str = "v2"
) -> jax.Array:
    """Brightness, contrast, saturation and hue in random order, each clipped to [0, 1].

    Args:
      image: `[h, w, c]`, c being 1 (brightness and contrast alone) or 3.
      amounts: `[4]` uniform numbers in [0, 1), for the four in this order.
      u_order: a uniform number that picks one of the orders.
      strength: ±80 % of brightness, contrast and saturation and ±0.2 of hue at 1 (appendix A).
      brightness: "v2" multiplies by a factor, "v1" adds an offset.
    """
    reach = 0.8 * strength
    low, high = max(1 - reach, 0.0), 1 + reach
    factors = low + (high - low) * amounts
    offset, turn = reach * (2 * amounts[0] - 1), 0.2 * strength * (2 * amounts[3] - 1)
    operations = [
        (lambda x: x + offset) if brightness == "v1" else (lambda x: x * factors[0]),
        lambda x: adjust_contrast(x, factors[1]),
    ]
    if image.shape[-1] == 3:
        operations += [lambda x: adjust_saturation(x, factors[2]), lambda x: adjust_hue(x, turn)]
    orders = np.array(list(itertools.permutations(range(len(operations)))), np.int32)
    order = jnp.asarray(orders)[jnp.minimum((u_order * len(orders)).astype(jnp.int32), len(orders) - 1)]
    for i in range(len(operations)):
        image = jnp.clip(jax.lax.switch(order[i], operations, image), 0, 1)
    return image


def adjust_contrast(image: jax.Array, factor: jax.Array) -> jax.Array:
    """Image `[h, w, c]` stretched about each channel's mean."""
    mean = jnp.mean(image, axis=(0, 1), keepdims=True)
    return (image - mean) * factor + mean


def adjust_saturation(image: jax.Array, factor: jax.Array) -> jax.Array:
    """RGB image `[h, w, 3]` in [0, 1] with its HSV saturation multiplied, at most 1."""
    hue, saturation, value = _to_hsv(image)
    return _to_rgb(hue, jnp.clip(saturation * factor, 0, 1), value)


def adjust_hue(image: jax.Array, turn: jax.Array) -> jax.Array:
    """RGB image `[h, w, 3]` in [0, 1] with its HSV hue turned by `turn` of a full circle."""
    hue, saturation, value = _to_hsv(image)
    return _to_rgb(hue + turn, saturation, value)


def to_grayscale(image: jax.Array) -> jax.Array:
    """Luma 0.2989 R + 0.5870 G + 0.1140 B of `[h, w, 3]`, in all three channels."""
    luma = 0.2989 * image[..., 0] + 0.5870 * image[..., 1] + 0.1140 * image[..., 2]
    return jnp.broadcast_to(luma[..., None], image.shape)


def _to_hsv(image: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    red, green, blue = image[..., 0], image[..., 1], image[..., 2]
    value = jnp.max(image, axis=-1)
    spread = value - jnp.min(image, axis=-1)
    some = jnp.where(spread > 0, spread, 1)
    sixth = jnp.where(
        red == value,
        (green - blue) / some,
        jnp.where(green == value, (blue - red) / some + 2, (red - green) / some + 4),
    )
    saturation = spread / jnp.where(value > 0, value, 1)
    return jnp.where(spread > 0, sixth / 6, 0), saturation, value


def _to_rgb(hue: jax.Array, saturation: jax.Array, value: jax.Array) -> jax.Array:
    channels = []
    for start in (5, 3, 1):
        k = jnp.mod(start + 6 * hue, 6)
        channels.append(value - value * saturation * jnp.clip(jnp.minimum(k, 4 - k), 0, 1))
    return jnp.stack(channels, axis=-1)


def gaussian_blur(image: jax.Array, sigma: jax.Array, kernel_size: int) -> jax.Array:
    """Image `[h, w, c]` under a Gaussian of `2·(kernel_size // 2) + 1` taps; zeros outside, as the original.

    Two products with band matrices, which suit matrix units, as every image has a Gaussian of its own.
    """
    height, width = image.shape[:2]
    rows, columns = (_gaussian_band(n, sigma, kernel_size // 2, image.dtype) for n in (height, width))
    image = jnp.einsum("ah,hwc->awc", rows, image, precision=Precision.HIGHEST)
    return jnp.einsum("bw,awc->abc", columns, image, precision=Precision.HIGHEST)


def _gaussian_band(size: int, sigma: jax.Array, radius: int, dtype: jnp.dtype) -> jax.Array:
    taps = np.arange(-radius, radius + 1)
    total = jnp.sum(jnp.exp(-jnp.asarray(taps**2, dtype) / (2 * sigma**2)))
    apart = np.abs(np.arange(size)[:, None] - np.arange(size)[None, :])
    band = jnp.exp(-jnp.asarray(apart**2, dtype) / (2 * sigma**2)) / total
    return jnp.where(jnp.asarray(apart <= radius), band, 0)
