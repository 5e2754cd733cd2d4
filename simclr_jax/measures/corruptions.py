"""Corrupted test images (ImageNet-C and CIFAR-10-C: Hendrycks & Dietterich, arXiv 1903.12261, section 4).

Five corruptions of that paper in five severities, as pure functions. Images of 64 px a side or more use
ImageNet-C's parameters, smaller images use CIFAR-10-C's.
"""

import io

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter1d

from simclr_jax import geometry
from simclr_jax.errors import SimclrError

SMALL = 64  # px a side; smaller images use CIFAR-10-C's parameters
# (ImageNet-C's, CIFAR-10-C's), by severity
NOISE = (0.08, 0.12, 0.18, 0.26, 0.38), (0.04, 0.06, 0.08, 0.09, 0.10)
BLUR = (1, 2, 3, 4, 6), (0.4, 0.6, 0.7, 0.8, 1.0)
BRIGHTNESS = (0.1, 0.2, 0.3, 0.4, 0.5), (0.05, 0.1, 0.15, 0.2, 0.3)
JPEG = (25, 18, 15, 10, 7), (80, 65, 58, 50, 40)
PIXELATE = (0.6, 0.5, 0.4, 0.3, 0.25), (0.95, 0.9, 0.85, 0.75, 0.65)


def gaussian_noise(images: jax.Array, severity: int, position: jax.Array, seed: int = 0) -> jax.Array:
    """Normal noise of σ 0.04 to 0.38, the same pattern at every severity.

    Args:
      position: `[n]` uint32, positions in the test set. The noise depends only on them and `seed`.
    """

    def one(number: jax.Array) -> jax.Array:
        key = jax.random.fold_in(jax.random.key(seed), number)
        return jax.random.normal(key, images.shape[1:], images.dtype)

    return jnp.clip(images + _amount(NOISE, images, severity) * jax.vmap(one)(position), 0, 1)


def gaussian_blur(images: jax.Array, severity: int, position: jax.Array | None = None, seed: int = 0):
    """A Gaussian of σ 0.4 to 6 px, cut at 4 σ; repeats edge pixels, so that the border does not darken."""
    sigma = _amount(BLUR, images, severity)
    # Apply the filter to the unit vectors to get its matrix: matrix products are fast on accelerators.
    matrices = [gaussian_filter1d(np.eye(n), sigma, axis=0, mode="nearest") for n in images.shape[1:3]]
    return _resampled(images, *matrices)


def brightness(images: jax.Array, severity: int, position: jax.Array | None = None, seed: int = 0):
    """Adds 0.05 to 0.5 to HSV's value, clipped at 1; for gray images the value is the gray level."""
    value = jnp.max(images, axis=-1, keepdims=True)
    brighter = jnp.minimum(value + _amount(BRIGHTNESS, images, severity), 1)
    # At constant hue and saturation RGB is proportional to the value; black has no saturation.
    return jnp.where(value > 0, images * (brighter / jnp.where(value > 0, value, 1)), brighter)


def jpeg_compression(images: np.ndarray, severity: int, position: np.ndarray | None = None, seed: int = 0):
    """JPEG compression at quality 80 to 7 by Pillow; takes NumPy arrays on the host, not under `jit`."""
    images, quality = np.asarray(images), _amount(JPEG, images, severity)

    def one(image: np.ndarray) -> np.ndarray:
        file = io.BytesIO()
        Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(file, "JPEG", quality=quality)
        return np.asarray(Image.open(file)).reshape(image.shape)

    coded = [one(image) for image in np.rint(np.clip(images, 0, 1) * 255).astype(np.uint8)]
    return np.stack(coded).astype(images.dtype) / images.dtype.type(255) if coded else images


def pixelate(images: jax.Array, severity: int, position: jax.Array | None = None, seed: int = 0):
    """Shrinks images to 0.95 to 0.25 of their size and enlarges them again, both with Pillow's box filter."""
    scale = _amount(PIXELATE, images, severity)

    def matrix(size: int) -> np.ndarray:
        small = max(1, int(size * scale))
        return _box(small, size) @ _box(size, small)

    return _resampled(images, *(matrix(n) for n in images.shape[1:3]))


# All take (images [n, h, w, c] float in [0, 1], severity 1..5, position [n] uint32, seed) and return images
# of the same shape in [0, 1]. The severity is static; the functions in HOST do not work under `jit`.
CORRUPTIONS = {
    "gaussian_noise": gaussian_noise,
    "gaussian_blur": gaussian_blur,
    "brightness": brightness,
    "jpeg_compression": jpeg_compression,
    "pixelate": pixelate,
}
HOST = ("jpeg_compression",)


def available(channels: int) -> tuple[str, ...]:
    """The names of CORRUPTIONS for images of so many channels: JPEG and HSV exist only for gray and RGB."""
    if channels in (1, 3):
        return tuple(CORRUPTIONS)
    return tuple(name for name in CORRUPTIONS if name not in ("brightness", "jpeg_compression"))


def _amount(table: tuple[tuple[float, ...], ...], images: jax.Array | np.ndarray, severity: int) -> float:
    if severity not in range(1, 6):
        raise SimclrError(f"a corruption's severity is 1 to 5, not {severity}")
    return table[min(images.shape[1:3]) < SMALL][severity - 1]


def _resampled(images: jax.Array, rows: np.ndarray, columns: np.ndarray) -> jax.Array:
    """Multiplies images `[n, h, w, c]` by the matrices rows `[h, h]` and columns `[w, w]`."""
    matrices = (jnp.asarray(x, images.dtype) for x in (rows, columns))
    return jnp.clip(jax.vmap(geometry.resample, (0, None, None))(images, *matrices), 0, 1)


def _box(size: int, out: int) -> np.ndarray:
    """The matrix `[out, size]` of Pillow's box filter, from its output on the unit vectors."""
    unit = Image.fromarray(np.eye(size, dtype=np.float32))
    return np.asarray(unit.resize((size, out), Image.Resampling.BOX), np.float64)
