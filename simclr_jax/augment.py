"""What is done to images on the accelerator, as pure JAX functions.

The random ones are keyed by (seed, position in the run, view), so that a view does not depend on the devices,
on the batch around it, or on whether the run was interrupted.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
from jax.lax import Precision

from simclr_jax.errors import SimclrError

RESIZES = ("bicubic", "bilinear")


def center_view(images: jax.Array, size: int, crop: float = 0.875, method: str = "bicubic") -> jax.Array:
    """The evaluation view `[n, size, size, c]` of images `[n, h, w, c]`, float in [0, 1].

    Above 32 px the central square of `crop` times the shorter side, then resized; as the original does
    it on the host (`data.host_augment.center_view`).
    """
    return center_crop(images, size, crop if size > 32 else None, method)


def center_crop(images: jax.Array, size: int, crop: float | None, method: str = "bicubic") -> jax.Array:
    """The central square of `crop` times the shorter side, or the whole, as `[n, size, size, c]`."""
    height, width = images.shape[1:3]
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
    if method == "bilinear":
        shape = (images.shape[0], *size, images.shape[3])
        return jax.image.resize(images, shape, "linear", antialias=True)
    rows, columns = (
        jnp.asarray(bicubic_weights(n, out), images.dtype)
        for n, out in zip(images.shape[1:3], size, strict=True)
    )
    images = jnp.einsum("ah,nhwc->nawc", rows, images, precision=Precision.HIGHEST)
    return jnp.einsum("bw,nawc->nabc", columns, images, precision=Precision.HIGHEST)


def bicubic_weights(size: int, out: int) -> np.ndarray:
    """The `[out, size]` matrix of Keys' cubic convolution (1981, a = -1/2) between pixel centres.

    TensorFlow takes its weights from a table of 1024 steps a pixel, which moves an image by up to 1e-3:
    so does this. Taps outside the image get no weight, the others sum to one.
    """
    at = ((np.arange(out, dtype=np.float32) + np.float32(0.5)) * np.float32(size / out)) - np.float32(0.5)
    first = np.floor(at).astype(int)
    offset = np.rint((at - first) * 1024) / 1024
    weights = np.zeros((out, size))
    for tap in range(-1, 3):
        x = np.abs(offset - tap)
        near, far = (1.5 * x - 2.5) * x**2 + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2
        inside = (first + tap >= 0) & (first + tap < size)
        weight = np.where(x <= 1, near, far)
        weights[np.arange(out)[inside], (first + tap)[inside]] += weight[inside]
    return weights / weights.sum(axis=1, keepdims=True)


# ---- colour and blur of training views ----------------------------------------------------------


def photometric(
    views: jax.Array,
    position: jax.Array,
    seed: int,
    *,
    jitter: float = 0.8,
    jitter_strength: float = 1.0,
    brightness: str = "v2",
    grayscale: float = 0.2,
    blur: float = 0.5,
    blur_kernel: float = 0.1,
    blur_sigma: tuple[float, float] = (0.1, 2.0),
) -> jax.Array:
    """Colour jitter, grayscale and blur (SimCLR, arXiv 2002.05709, appendix A), as in `data.host_augment`.

    Args:
      views: cropped and flipped, `[n, v, h, w, c]`, float in [0, 1].
      position: `[n]` uint32, step · batch + row.
      seed, ...: the fields of a config.

    Returns:
      views of the same shape, in [0, 1]. Images of one channel get no saturation, hue or grayscale; those
      with neither one nor three get the blur only.
    """
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
    of_view = lambda p, v: jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), p), v)  # noqa: E731
    numbers = jnp.arange(views.shape[1], dtype=jnp.uint32)
    keys = jax.vmap(jax.vmap(of_view, (None, 0)), (0, None))(position, numbers)
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
