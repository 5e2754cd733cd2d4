"""What is done to images on the accelerator, as pure JAX functions."""

import jax
import jax.numpy as jnp

from simclr_jax.errors import SimclrError

# method: arguments of jax.image.resize that give TensorFlow's bicubic and PyTorch's antialiased bilinear.
RESIZES = {
    "bicubic": {"method": "cubic", "antialias": False},
    "bilinear": {"method": "linear", "antialias": True},
}


def center_view(images: jax.Array, size: int, crop: float = 0.875, resize: str = "bicubic") -> jax.Array:
    """The evaluation view `[n, size, size, c]` of images `[n, h, w, c]`, float in [0, 1].

    Above 32 px the central square of `crop` times the shorter side, then resized; as the original does
    it on the host (`data.host_augment.center_view`).
    """
    n, height, width, channels = images.shape
    if size > 32:
        side = round(crop * min(height, width))
        if not side:
            raise SimclrError(f"images of {height} × {width} pixels are too small to crop")
        top, left = (height - side + 1) // 2, (width - side + 1) // 2
        images = images[:, top : top + side, left : left + side]
    if images.shape[1:3] != (size, size):
        images = jax.image.resize(images, (n, size, size, channels), **RESIZES[resize])
    return jnp.clip(images, 0, 1)
