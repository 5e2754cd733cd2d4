"""Cropping, resizing, flipping and turning images on the accelerator, as pure JAX functions.

A crop and its resize are two products with resampling matrices, one pair per image. Accelerators multiply
matrices fast, and no pixel is gathered.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.lax import Precision
from jax.scipy.ndimage import map_coordinates

from simclr_jax.errors import SimclrError

RESIZES = ("bicubic", "bilinear", "none")
GATHERED = 64 * 64  # pixels; larger images are gathered on TPUs too: the cost of products grows quadratically
ATTEMPTS = 100  # to find a crop's box, the original's number


def center_view(images: jax.Array, size: int, crop: float = 0.875, method: str = "bicubic") -> jax.Array:
    """The evaluation view `[n, size, size, c]` of images `[n, h, w, c]`, float in [0, 1].

    Above 32 px it is the central square of `crop` times the shorter side, resized; for `method` "none" the
    central `size` × `size` pixels, or the largest square that fits, enlarged. The same as
    `data.host_augment.center_view` on the host.
    """
    return center_crop(images, size, crop if size > 32 else None, method)


def center_crop(images: jax.Array, size: int, crop: float | None, method: str = "bicubic") -> jax.Array:
    """The central square of `crop` times the shorter side, or the whole, as `[n, size, size, c]`."""
    height, width = images.shape[1:3]
    if method == "none":
        crop = min(size / min(height, width), 1.0)
    if crop is not None:
        side = round(crop * min(height, width))
        if not side:
            raise SimclrError(f"images of {height} × {width} pixels are too small to crop")
        top, left = (height - side + 1) // 2, (width - side + 1) // 2
        images = images[:, top : top + side, left : left + side]
    if images.shape[1:3] != (size, size):
        images = resize(images, (size, size), method)
    return jnp.clip(images, 0, 1)


def resize(images: jax.Array, size: tuple[int, int], method: str = "bicubic") -> jax.Array:
    """Images `[n, h, w, c]` resized to `[n, *size, c]`.

    Args:
      method: "bicubic", TensorFlow's (it may overshoot), or "bilinear", antialiased as PyTorch's.
    """
    rows, columns = (
        resampling(n, out, jnp.int32(0), jnp.int32(n), method)
        for n, out in zip(images.shape[1:3], size, strict=True)
    )
    return jax.vmap(resample, (0, None, None))(images, rows, columns)


def resample(image: jax.Array, rows: jax.Array, columns: jax.Array) -> jax.Array:
    """Image `[h, w, c]` as `[a, b, c]` by the matrices rows `[a, h]` and columns `[b, w]`."""
    rows, columns = rows.astype(image.dtype), columns.astype(image.dtype)
    image = jnp.einsum("ah,hwc->awc", rows, image, precision=Precision.HIGHEST)
    return jnp.einsum("bw,awc->abc", columns, image, precision=Precision.HIGHEST)


def resampling(
    size: int, out: int, begin: jax.Array, extent: jax.Array, method: str = "bicubic"
) -> jax.Array:
    """The matrix `[out, size]` that resizes the pixels from `begin` on, `extent` of them, to `out`.

    "bicubic" is Keys' cubic convolution (1981, a = -1/2) between pixel centres. TensorFlow takes its weights
    from a table with 1024 entries per pixel, which changes an image by up to 1e-3; this function does the
    same. "bilinear" is a triangle as wide as an output pixel, the antialiasing of PyTorch and TensorFlow.
    "none" is bicubic, which leaves an extent of `out` pixels as it is.
    Taps outside the extent get no weight; the others sum to one.
    """
    scale = extent.astype(jnp.float32) / out
    at = (jnp.arange(out, dtype=jnp.float32)[:, None] + 0.5) * scale - 0.5
    pixel = jnp.arange(size, dtype=jnp.int32)[None, :] - begin
    if method != "bilinear":
        first = jnp.floor(at)
        x = jnp.abs(jnp.rint((at - first) * 1024) / 1024 - (pixel - first))
        near, far = (1.5 * x - 2.5) * x**2 + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2
        weights = jnp.where(x <= 1, near, jnp.where(x < 2, far, 0))
    else:
        weights = jnp.maximum(1 - jnp.abs(at - pixel) / jnp.maximum(scale, 1), 0)
    weights = jnp.where((pixel >= 0) & (pixel < extent), weights, 0)
    return weights / jnp.sum(weights, axis=1, keepdims=True)


def crop_box(
    key: jax.Array,
    height: int,
    width: int,
    *,
    area: tuple[float, float],
    aspect: tuple[float, float],
    min_covered: float,
) -> tuple[jax.Array, jax.Array]:
    """(begin, extent) `[2]` int32 each, (y, x), of a random crop of an image of `height` × `width`.

    Samples like the original, with TensorFlow's `sample_distorted_bounding_box`. The aspect is uniform,
    and the height is uniform over the range that the area allows. The result is the first of 100 attempts
    that covers at least `min_covered` of the image, or else the whole image.
    """
    u = jax.random.uniform(key, (4, ATTEMPTS), jnp.float32)
    ratio = aspect[0] + (aspect[1] - aspect[0]) * u[0]
    low, high = area[0] * height * width, area[1] * height * width
    tallest = jnp.rint(jnp.sqrt(high / ratio))
    tallest = jnp.where(jnp.rint(tallest * ratio) > width, jnp.floor((width + 0.5) / ratio), tallest)
    tallest = jnp.where(jnp.rint(tallest * ratio) > width, tallest - 1, tallest)  # rounding
    tallest = jnp.minimum(tallest, height)
    least = jnp.minimum(jnp.rint(jnp.sqrt(low / ratio)), tallest)
    h = least + jnp.floor(u[1] * (tallest - least + 1))
    h = jnp.where(h * jnp.rint(h * ratio) < low, h + 1, h)  # rounding again, down and up
    h = jnp.where(h * jnp.rint(h * ratio) > high, h - 1, h)
    w = jnp.rint(h * ratio)
    good = (h * w >= jnp.maximum(low, min_covered * height * width)) & (h * w <= high)
    good &= (h <= height) & (w <= width) & (h > 0) & (w > 0)
    chosen = jnp.argmax(good)
    found = jnp.any(good)
    # As in TensorFlow the last offset is never drawn.
    y, x = jnp.floor(u[2] * (height - h)), jnp.floor(u[3] * (width - w))
    begin = jnp.where(found, jnp.stack([y[chosen], x[chosen]]), 0)
    extent = jnp.where(found, jnp.stack([h[chosen], w[chosen]]), np.array([height, width], np.float32))
    return begin.astype(jnp.int32), extent.astype(jnp.int32)


def square(key: jax.Array, height: int, width: int, size: int) -> tuple[jax.Array, jax.Array]:
    """(begin, extent) as of `crop_box`: `size` × `size` pixels at random, or the largest square that fits."""
    side = min(size, height, width)
    begin = jax.random.randint(key, (2,), 0, np.array([height - side + 1, width - side + 1]))
    return begin, jnp.full(2, side, jnp.int32)


def rotate_and_scale(image: jax.Array, angle: jax.Array, scale: jax.Array) -> jax.Array:
    """Image `[h, w, c]` turned about its centre by `angle` radians and zoomed; bilinear, black outside."""
    height, width = image.shape[:2]
    cy, cx = (height - 1) / 2, (width - 1) / 2
    y, x = jnp.meshgrid(jnp.arange(height) - cy, jnp.arange(width) - cx, indexing="ij")
    # Output pixel (x, y) is read at centre + R(angle)·((x, y) - centre) / scale.
    cos, sin = jnp.cos(angle) / scale, jnp.sin(angle) / scale
    rows, columns = sin * x + cos * y + cy, cos * x - sin * y + cx
    if height * width > GATHERED:
        return read_by_gathers(image, rows, columns)
    # TPUs gather pixel by pixel; on CPUs the products take 5 to 40 times as long as gathers.
    return jax.lax.platform_dependent(image, rows, columns, tpu=read_by_products, default=read_by_gathers)


def read_by_gathers(image: jax.Array, rows: jax.Array, columns: jax.Array) -> jax.Array:
    """The image `[h, w, c]` between its pixels, at rows and columns `[a, b]`: `[a, b, c]`, bilinear."""

    def turn(channel):
        return map_coordinates(channel, [rows, columns], order=1, mode="constant")

    return jax.vmap(turn, 2, 2)(image)


def read_by_products(image: jax.Array, rows: jax.Array, columns: jax.Array) -> jax.Array:
    """`read_by_gathers` by products with all pixels: (w + 1)·h multiplications per pixel and channel."""

    def weights(at: jax.Array, size: int) -> jax.Array:
        pixel = jnp.arange(size, dtype=at.dtype)[None, :]
        return jnp.maximum(1 - jnp.abs(at.reshape(-1, 1) - pixel), 0).astype(image.dtype)

    high: dict[str, Any] = {"precision": Precision.HIGHEST}
    lines = jnp.einsum("pw,hwc->phc", weights(columns, image.shape[1]), image, **high)
    found = jnp.einsum("ph,phc->pc", weights(rows, image.shape[0]), lines, **high)
    return found.reshape(*rows.shape, image.shape[2])
