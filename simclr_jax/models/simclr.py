"""The model that pretraining optimises: encoder, projection head, online probe."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from simclr_jax.models import ENCODERS
from simclr_jax.models.heads import PROJECTIONS, Probe, Projection


class SimCLR(nn.Module):
    """f, g and an optional linear probe; its parameters are {encoder, projection, probe}.

    Methods take images `[n, h, w, c]`, normalised as the encoder was trained.
    """

    encoder: nn.Module
    projection: Projection
    probe: Probe | None

    def __call__(self, images: jax.Array, train: bool) -> dict[str, jax.Array]:
        """{features [n, d], projection [n, dim], logits [n, classes] where there is a probe}."""
        h = self.features(images, train)
        outputs = {"features": h, "projection": self.projection(h, train)}
        if self.probe is not None:
            outputs["logits"] = self.probe(jax.lax.stop_gradient(h))
        return outputs

    def features(self, images: jax.Array, train: bool = False) -> jax.Array:
        """The representation h, `[n, d]`: the encoder's final_avg_pool."""
        return self.encoder(images, train)["final_avg_pool"]


def normalize_images(images: jax.Array, mean: tuple[float, ...], std: tuple[float, ...], dtype) -> jax.Array:
    """Images `[n, h, w, c]`, uint8 or float in [0, 1], as the encoder takes them.

    SimCLR's own encoders take [0, 1] as it is; mean and std, one value a channel, are for others.
    """
    if images.dtype == jnp.uint8:
        images = images.astype(jnp.float32) / 255
    if mean:
        mean, std = (jnp.asarray(x, images.dtype).reshape(1, 1, 1, -1) for x in (mean, std))
        images = (images - mean) / std
    return images.astype(dtype)


def create(
    *,
    encoder: str,
    depth: int,
    width: float,
    stem: str,
    dtype: str,
    projection: str,
    projection_layers: int,
    projection_dim: int,
    probe: bool = True,
    classes: int = 0,
) -> SimCLR:
    """The model of a config's `model` tree; without classes there is no probe."""
    dtype = jnp.dtype(dtype)
    param_dtype = jnp.promote_types(dtype, jnp.float32)
    return SimCLR(
        ENCODERS[encoder](depth=depth, width=width, stem=stem, dtype=dtype, param_dtype=param_dtype),
        Projection(PROJECTIONS[projection](projection_layers), projection_dim, dtype, param_dtype),
        Probe(classes, param_dtype) if probe and classes else None,
    )
