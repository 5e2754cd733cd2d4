"""SimCLR's random augmentations on the accelerator, as pure JAX functions.

(seed, position in the run, view) key the random numbers. A view therefore does not depend on the number of
devices, on the rest of the batch, or on an interruption of the run.
"""

import functools
import itertools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.lax import Precision

from simclr_jax import draws, geometry


def random_views(
    images: jax.Array,
    position: jax.Array,
    seed: int,
    *,
    size: int,
    views: int = 2,
    first: int = 0,
    crop_area: tuple[float, float] = (0.08, 1.0),
    crop_aspect: tuple[float, float] = (3 / 4, 4 / 3),
    crop_min_covered: float = 0.1,
    resize: str = "bicubic",
    flip: float = 0.5,
    rotation: float = 0.0,
    zoom: tuple[float, float] = (1.0, 1.0),
    **colour: Any,
) -> jax.Array:
    """Views `[n, views, size, size, c]` in [0, 1]: SimCLR's whole pipeline (appendix A).

    Same operations and distributions as `data.host_augment.random_view`, but other random numbers.

    Args:
      images: `[n, h, w, c]` uint8.
      position: `[n]` uint32, step · batch + row.
      first: number of the first view, which keys its random numbers.
      seed, crop_area, ...: fields of a config; `colour`: the fields that `photometric` takes.
    """
    height, width = images.shape[1:3]
    plain = not rotation and tuple(zoom) == (1.0, 1.0)
    radians = math.radians(rotation)

    def one(image: jax.Array, key: jax.Array) -> jax.Array:
        for_box, for_rest = jax.random.split(key)
        u = jax.random.uniform(for_rest, (3,))
        image = image.astype(jnp.float32) / 255
        if not plain:
            factor = zoom[0] + (zoom[1] - zoom[0]) * u[2]
            image = geometry.rotate_and_scale(image, radians * (2 * u[1] - 1), factor)
        box = {"area": crop_area, "aspect": crop_aspect, "min_covered": crop_min_covered}
        begin, extent = geometry.crop_box(for_box, height, width, **box)
        rows = geometry.resampling(height, size, begin[0], extent[0], resize)
        columns = geometry.resampling(width, size, begin[1], extent[1], resize)
        columns = jnp.where(u[0] < flip, columns[::-1], columns)
        return geometry.resample(image, rows, columns)

    keys = draws.view_keys(seed, position, views, first)
    of_geometry, of_colour = jnp.moveaxis(jax.vmap(jax.vmap(jax.random.split))(keys), 2, 0)
    cropped = jax.vmap(jax.vmap(one, (None, 0)))(images, of_geometry)
    return _coloured(cropped, of_colour, **colour)


def photometric(
    views: jax.Array, position: jax.Array, seed: int, *, first: int = 0, **colour: Any
) -> jax.Array:
    """Colour jitter, grayscale and blur (SimCLR, arXiv 2002.05709, appendix A), as in `data.host_augment`.

    Args:
      views: cropped and flipped, `[n, v, h, w, c]`, uint8, or float in [0, 1].
      position: `[n]` uint32, step · batch + row.
      first: number of the first view, as for `random_views`.
      seed, colour: fields of a config: jitter, jitter_strength, brightness, grayscale, blur, blur_kernel,
        blur_sigma.

    Returns:
      views of the same shape, in [0, 1]. Images of one channel get no saturation, hue or grayscale;
      images with neither one nor three channels get only the blur.
    """
    if views.dtype == jnp.uint8:
        views = views.astype(jnp.float32) / 255
    return _coloured(views, draws.view_keys(seed, position, views.shape[1], first), **colour)


# ---- colour and blur, on planes -------------------------------------------------------------------
#
# A plane is one channel of all views, `[n, v, h, w]`; the strengths of an operation are arrays `[n, v]`. With
# vmap over single images, XLA computed all four jitter operations at each of the four positions, and it
# recomputed the whole chain for the mean in contrast: 19 times slower on a GPU.

Planes = tuple[jax.Array, ...]
BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)


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
    channels, kernel = views.shape[-1], int(views.shape[2] * blur_kernel)
    u = jax.vmap(jax.vmap(lambda key: jax.random.uniform(key, (9,), views.dtype)))(keys)
    planes = tuple(views[..., c] for c in range(channels))
    if jitter and jitter_strength and channels in (1, 3):
        amounts = jitter_amounts(u[..., 1:5], jitter_strength, brightness)
        planes = color_jitter(planes, amounts, u[..., 5], u[..., 0] < jitter)
    if grayscale and channels == 3:
        gray = to_grayscale(planes)
        planes = tuple(jnp.where(_each(u[..., 6] < grayscale), gray, plane) for plane in planes)
    if blur and kernel // 2:
        sigma = blur_sigma[0] + (blur_sigma[1] - blur_sigma[0]) * u[..., 8]
        planes = gaussian_blur(planes, sigma, kernel, u[..., 7] < blur)
    return jnp.clip(jnp.stack(planes, axis=-1), 0, 1)


def _each(numbers: jax.Array) -> jax.Array:
    """Numbers `[n, v]` in a shape that broadcasts with planes."""
    return numbers[..., None, None]


class Amounts(NamedTuple):
    """Strength of each operation, `[n, v]` each."""

    brightness: jax.Array  # factor
    offset: jax.Array  # added by brightness
    contrast: jax.Array  # factor
    saturation: jax.Array  # factor
    turn: jax.Array  # of the hue, in turns


def jitter_amounts(u: jax.Array, strength: float, brightness: str = "v2") -> Amounts:
    """The strengths for uniform numbers `[n, v, 4]` in [0, 1).

    Args:
      strength: 1 means ±80 % of brightness, contrast and saturation and ±0.2 of hue (appendix A).
      brightness: "v2" multiplies by a factor, "v1" adds an offset.
    """
    reach = 0.8 * strength
    low, high = max(1 - reach, 0.0), 1 + reach
    factors = low + (high - low) * u[..., :3]
    factor, offset = factors[..., 0], jnp.zeros_like(u[..., 0])
    if brightness == "v1":
        factor, offset = jnp.ones_like(factor), reach * (2 * u[..., 0] - 1)
    return Amounts(factor, offset, factors[..., 1], factors[..., 2], 0.2 * strength * (2 * u[..., 3] - 1))


def color_jitter(planes: Planes, amounts: Amounts, u_order: jax.Array, on: jax.Array) -> Planes:
    """Brightness, contrast, saturation and hue in random order, each clipped to [0, 1].

    Args:
      planes: one (brightness and contrast only) or three.
      u_order: `[n, v]` uniform numbers that pick one of the orders.
      on: `[n, v]`, the views that get it.
    """
    operations = (BRIGHTNESS, CONTRAST, SATURATION, HUE) if len(planes) == 3 else (BRIGHTNESS, CONTRAST)
    orders = np.array(list(itertools.permutations(operations)), np.int32)
    order = jnp.asarray(orders)[jnp.minimum((u_order * len(orders)).astype(jnp.int32), len(orders) - 1)]
    for i in range(len(operations)):
        planes = adjust(planes, jnp.where(on, order[..., i], -1), amounts)
        # Without the barrier XLA fuses the next operation with this one, and its means recompute this one.
        planes = jax.lax.optimization_barrier(planes)
    return planes


def adjust(planes: Planes, operation: jax.Array, amounts: Amounts) -> Planes:
    """Applies one operation to each view; `operation` is `[n, v]`.

    It is BRIGHTNESS, CONTRAST, SATURATION or HUE; any other number leaves the view unchanged.

    Brightness is x·a + b. Contrast, a stretch about the channel's mean, has the same form.
    Saturation and hue share one conversion to HSV and back.
    """
    is_brightness, is_contrast = operation == BRIGHTNESS, operation == CONTRAST
    scale = jnp.where(is_brightness, amounts.brightness, jnp.where(is_contrast, amounts.contrast, 1))
    none = _each((operation < BRIGHTNESS) | (operation > HUE))

    def affine(plane: jax.Array) -> jax.Array:
        about_mean = jnp.mean(plane, axis=(2, 3)) * (1 - scale)
        shift = jnp.where(is_brightness, amounts.offset, jnp.where(is_contrast, about_mean, 0))
        moved = plane * _each(scale) + _each(shift)
        return jnp.where(none, plane, jnp.clip(moved, 0, 1))

    moved = tuple(map(affine, planes))
    if len(planes) != 3:
        return moved
    hue, saturation, value = _to_hsv(*planes)
    hue += _each(jnp.where(operation == HUE, 6 * amounts.turn, 0))
    factor = jnp.where(operation == SATURATION, amounts.saturation, 1)
    turned = _to_rgb(hue, jnp.clip(saturation * _each(factor), 0, 1), value)
    in_hsv = _each((operation == SATURATION) | (operation == HUE))
    return tuple(jnp.where(in_hsv, jnp.clip(t, 0, 1), m) for t, m in zip(turned, moved, strict=True))


def to_grayscale(planes: Planes) -> jax.Array:
    """Luma 0.2989 R + 0.5870 G + 0.1140 B, one plane."""
    red, green, blue = planes
    return 0.2989 * red + 0.5870 * green + 0.1140 * blue


def _to_hsv(red: jax.Array, green: jax.Array, blue: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(hue in sixths of a circle, saturation, value)"""
    value = jnp.maximum(jnp.maximum(red, green), blue)
    spread = value - jnp.minimum(jnp.minimum(red, green), blue)
    some = jnp.where(spread > 0, spread, 1)
    hue = jnp.where(
        red == value,
        (green - blue) / some,
        jnp.where(green == value, (blue - red) / some + 2, (red - green) / some + 4),
    )
    return jnp.where(spread > 0, hue, 0), spread / jnp.where(value > 0, value, 1), value


def _to_rgb(hue: jax.Array, saturation: jax.Array, value: jax.Array) -> Planes:
    def channel(start: int) -> jax.Array:
        k = start + hue
        k -= 6 * jnp.floor(k / 6)  # jnp.mod would take three quarters of the jitter's time on a CPU
        return value - value * saturation * jnp.clip(jnp.minimum(k, 4 - k), 0, 1)

    return channel(5), channel(3), channel(1)


def gaussian_blur(planes: Planes, sigma: jax.Array, kernel_size: int, on: jax.Array) -> Planes:
    """A Gaussian of `2·(kernel_size // 2) + 1` taps; zero padding as in the original.

    Every view has its own sigma, so the blur is two products with band matrices, which are fast on
    accelerators. Views without blur get the identity matrix.

    Args:
      sigma: `[n, v]`, pixels.
      on: `[n, v]`, the views that get it.
    """
    stacked = jnp.stack(planes, axis=2)
    height, width = stacked.shape[-2:]

    def bands(size: int) -> jax.Array:
        of_view = functools.partial(_gaussian_band, size, radius=kernel_size // 2, dtype=stacked.dtype)
        nothing = jnp.broadcast_to(jnp.eye(size, dtype=stacked.dtype), (*sigma.shape, size, size))
        return jnp.where(_each(on), jax.vmap(jax.vmap(of_view))(sigma), nothing)

    stacked = jnp.einsum("nvah,nvchw->nvcaw", bands(height), stacked, precision=Precision.HIGHEST)
    stacked = jnp.einsum("nvbw,nvcaw->nvcab", bands(width), stacked, precision=Precision.HIGHEST)
    return tuple(jnp.moveaxis(stacked, 2, 0))


def _gaussian_band(size: int, sigma: jax.Array, radius: int, dtype: jnp.dtype) -> jax.Array:
    taps = np.arange(-radius, radius + 1)
    total = jnp.sum(jnp.exp(-jnp.asarray(taps**2, dtype) / (2 * sigma**2)))
    apart = np.abs(np.arange(size)[:, None] - np.arange(size)[None, :])
    band = jnp.exp(-jnp.asarray(apart**2, dtype) / (2 * sigma**2)) / total
    return jnp.where(jnp.asarray(apart <= radius), band, 0)
