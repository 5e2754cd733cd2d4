"""Converts arrays of images from users to uint8 `[n, h, w, c]`, or refuses them with a remedy."""

from typing import Any

import numpy as np

from simclr_jax.errors import SimclrError

AT_ONCE = 1024  # images converted at a time
CHANNELS = (1, 3, 4)  # possible lengths of the channel axis


def read(images: Any, where: str) -> tuple[np.ndarray, tuple[str, ...]]:
    """(images `[n, h, w, c]` uint8, notes on the conversion).

    uint8 stays as it is. Floats in [0, 1] or [0, 255] and whole numbers in [0, 255] are rounded.

    Args:
      images: `[n, h, w]`, `[n, h, w, c]` or `[n, c, h, w]`.
      where: the file or array, named first in messages.

    Raises:
      SimclrError: the array holds no images, or the range of its values is ambiguous.
    """
    try:
        images = np.asarray(images)
    except ValueError:
        raise SimclrError(f"{where}: images must be of one size: [n, h, w, c]; resize them") from None
    if images.ndim == 3:
        images = images[..., None]
    if images.ndim != 4 or images.dtype.kind not in "iuf" or not images.size:
        raise SimclrError(
            f"{where}: images must be uint8 [n, h, w] or [n, h, w, c] with n > 0, "
            f"not {images.dtype} {list(images.shape)}"
        )
    notes: tuple[str, ...] = ()
    if channels_first(images):
        shape = list(images.shape)
        notes += (
            f"{where}: {shape} is read as [n, c, h, w]: {shape[1]} channels of {shape[2]} × {shape[3]}",
        )
        images = np.moveaxis(images, 1, 3)
    if images.dtype != np.uint8:
        images, told = _to_bytes(images, where)
        notes += told
    return np.ascontiguousarray(images), notes


def channels_first(images: np.ndarray) -> bool:
    """Whether images `[n, ?, ?, ?]` are `[n, c, h, w]`."""
    return images.ndim == 4 and images.shape[1] in CHANNELS and images.shape[3] not in CHANNELS


def _to_bytes(images: np.ndarray, where: str) -> tuple[np.ndarray, tuple[str, ...]]:
    low, high = images.min(), images.max()  # NaN if there is one
    kind, span = images.dtype.kind, f"{images.dtype} from {low:.4g} to {high:.4g}"
    if not (low >= 0 and high <= 255):
        raise SimclrError(
            f"{where}: images are {span}: must be in [0, 255] or, as floats, in [0, 1]; undo a normalisation "
            "before you save them (config.data.mean and config.data.std make it), and scale 16 bits down"
        )
    if kind != "f" and high <= 1:
        raise SimclrError(f"{where}: images are {span}: multiply them by 255 if 1 is white, and save uint8")
    scale = 255 if high <= 1 else 1
    made = np.empty(images.shape, np.uint8)
    for start in range(0, len(images), AT_ONCE):
        part = images[start : start + AT_ONCE]
        made[start : start + AT_ONCE] = np.rint(scale * part.astype(np.float64)) if kind == "f" else part
    unit = ", 1 as 255" if scale == 255 else ""
    return made, (f"{where}: images are {span}: read as uint8{unit}",)
