"""What is done to images on the accelerator, as pure JAX functions."""

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
