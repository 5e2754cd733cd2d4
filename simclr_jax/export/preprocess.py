"""The evaluation view of images of any size as one traceable function: their sides may be symbols.

`geometry.center_view` cuts the square out before it resizes it, for which the sides have to be numbers. Here
the cut is part of the resampling matrices: begin and extent are computed on the device.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from simclr_jax import geometry
from simclr_jax.encoder import Encoder
from simclr_jax.errors import SimclrError, one_line
from simclr_jax.export import card
from simclr_jax.feeds.images import ImageReader
from simclr_jax.models import simclr

LARGEST = 1 << 16  # pixels of a shorter side for which `center_crop`'s rounding is known by number


def function(
    encoder: Encoder, endpoints: tuple[str, ...]
) -> Callable[[Any, jax.Array], dict[str, jax.Array]]:
    """(variables, uint8 images `[n, h, w, c]`) to {endpoint: float32}, view and normalisation inside.

    n, h and w may be symbolic dimensions (jax.export). The result is that of `Encoder.__call__` with
    `preprocess=True`.

    Raises:
      SimclrError: when it is traced: the encoder's code wants n as a number.
    """
    reader, dtype = card.reader(encoder), encoder.model.encoder.dtype

    def apply(variables: Any, images: jax.Array) -> dict[str, jax.Array]:
        try:
            found = card.ends(encoder, variables, pixels(images, reader, dtype))
        except Exception as error:  # of JAX and of the encoder, of any type
            raise SimclrError(
                f"config.model.encoder={encoder.config.model.encoder!r}: cannot be traced for any number of "
                f"images; x.shape[0] can be a symbol, len(x) cannot ({one_line(error)})"
            ) from None
        return {name: found[name] for name in endpoints}

    return apply


def needed(encoder: Encoder, endpoints: tuple[str, ...]) -> dict[str, Any]:
    """The variables for `function`: without a projection head that no endpoint needs."""
    behind = encoder.model.probe is not None and encoder.model.probe_layer  # a classifier, always computed
    if behind or any(name.startswith("projection") for name in endpoints):
        return encoder.variables
    return {
        collection: {part: tree for part, tree in parts.items() if part != "projection"}
        for collection, parts in encoder.variables.items()
    }


def pixels(images: jax.Array, reader: ImageReader, dtype: Any = jnp.float32) -> jax.Array:
    """`reader.prepare(images, True, dtype)` of uint8 images `[n, h, w, c]`, `[n, size, size, c]`.

    The two are equal but for float32 rounding. An image that is too small to crop gives one pixel of it,
    where `prepare` raises.
    """
    view = center_view(images.astype(jnp.float32) / 255, reader.size, reader.crop, reader.resize)
    return simclr.normalize_images(view, reader.mean, reader.std, dtype)


def center_view(images: jax.Array, size: int, crop: float, method: str) -> jax.Array:
    """`geometry.center_view` of images `[n, h, w, c]`, float in [0, 1], whose h and w may be symbols."""
    sides = images.shape[1:3]
    lengths = [jnp.asarray(side, jnp.int32) for side in sides]
    shorter = jnp.minimum(*lengths)
    if method == "none":
        extents = [jnp.minimum(size, shorter)] * 2
    elif size > 32:
        extents = [jnp.maximum(side_of(shorter, crop), 1)] * 2
    else:
        extents = lengths
    rows, columns = (
        geometry.resampling(side, size, (length - extent + 1) // 2, extent, method)
        for side, length, extent in zip(sides, lengths, extents, strict=True)
    )
    view = jax.vmap(geometry.resample, (0, None, None))(images, rows, columns)
    return jnp.clip(view, 0, 1)


def side_of(shorter: jax.Array, crop: float) -> jax.Array:
    """Python's `round(crop * shorter)`, int32.

    Python multiplies in float64, which TPUs and LiteRT lack. Float32 rounds the same way for a `crop` like
    7/8; for others the numbers come from a table, up to LARGEST pixels.
    """
    known = np.array([round(crop * n) for n in range(LARGEST)], np.int32)
    if np.array_equal(known, np.rint(np.float32(crop) * np.arange(LARGEST, dtype=np.float32))):
        return jnp.rint(jnp.float32(crop) * shorter.astype(jnp.float32)).astype(jnp.int32)
    return jnp.asarray(known)[jnp.minimum(shorter, LARGEST - 1)]
