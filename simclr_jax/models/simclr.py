"""The whole model: encoder, projection head, linear classifier."""

import re
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from simclr_jax.models import ENCODERS
from simclr_jax.models.projection import PROJECTIONS, Probe, Projection


class SimCLR(nn.Module):
    """f, g and a linear classifier (`probe`), if any; its parameters are {encoder, projection, probe}.

    Methods take images `[n, h, w, c]`, normalised as the encoder was trained. The classifier reads layer
    `probe_layer` of the projection head (SimCLRv2, arXiv 2006.10029, section 2; 0 is h itself, the original's
    `ft_proj_selector`).
    """

    encoder: nn.Module
    projection: Projection
    probe: Probe | None
    probe_layer: int = 0

    def __call__(self, images: jax.Array, train: bool) -> dict[str, jax.Array]:
        """For pretraining: {features [n, d], projection [n, dim], logits [n, classes] with a probe}.

        The classifier learns online, behind a stop-gradient.
        """
        hidden = self.projection(self.features(images, train), train)
        outputs = {"features": hidden[0], "projection": hidden[-1]}
        if self.probe is not None:
            outputs["logits"] = self.probe(jax.lax.stop_gradient(hidden[self.probe_layer]))
        return outputs

    def classify(
        self, images: jax.Array, train: bool = False, frozen: int = -1, frozen_train: bool = False
    ) -> jax.Array:
        """Logits `[n, classes]`, with a gradient to all that is not `frozen` (see `ResNet`)."""
        h = self.encoder(images, train, frozen, frozen_train)["final_avg_pool"]
        return self.probe(self.projection(h, train, self.probe_layer)[-1])

    def features(self, images: jax.Array, train: bool = False) -> jax.Array:
        """The representation h, `[n, d]`: the encoder's final_avg_pool."""
        return self.encoder(images, train)["final_avg_pool"]

    def endpoints(self, images: jax.Array, train: bool = False) -> dict[str, jax.Array]:
        """The encoder's endpoints, projection_1 .. (its layers), projection (z) and logits.

        Only as many layers of the projection head as the model has parameters of.
        """
        ends = self.encoder(images, train)
        present = len(self.variables["params"].get("projection", {})) // 2  # a dense and a norm each
        hidden = self.projection(ends["final_avg_pool"], train, min(present, self.projection.layers))
        ends |= {f"projection_{i}": x for i, x in enumerate(hidden) if i}
        if present == self.projection.layers:
            ends["projection"] = hidden[-1]
        if self.probe is not None:
            ends["logits"] = self.probe(hidden[self.probe_layer])
        return ends


def init(model: SimCLR, rng: jax.Array, images: jax.Array, method: str = "__call__") -> dict[str, Any]:
    """The first variables of a model, for images `[n, h, w, c]`: {"params": ..., "batch_stats": ...}."""
    variables = model.init(rng, images, train=True, method=method)
    # Flax starts statistics in float32 whatever param_dtype says.
    keep = jnp.promote_types(images.dtype, jnp.float32)
    return jax.tree.map(lambda x: x.astype(keep), variables)


def part(path: str) -> int:
    """What of the encoder a parameter belongs to: 0 the stem, g block group g; heads come after all."""
    if not path.startswith("encoder/"):
        return 1 << 30
    group = re.match(r"encoder/(?:group|conv|norm)(\d+)", path)
    return int(group[1]) if group else 0


def last_maps(endpoints: dict[str, jax.Array]) -> jax.Array:
    """The last block group's output `[n, h, w, k]`; the encoder's `pool` turns it into the features."""
    groups = [name for name in endpoints if re.fullmatch(r"block_group\d+", name)]
    return endpoints[max(groups, key=lambda name: int(name.removeprefix("block_group")))]


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
    dtype: str,
    projection: str,
    projection_layers: int,
    projection_dim: int,
    norm_groups: int = 1,
    probe: bool = True,
    probe_layer: int = 0,
    probe_zero: bool = False,
    classes: int = 0,
    **architecture: Any,
) -> SimCLR:
    """The model of a config's `model` tree (`architecture`: the encoder's own); no classes, no probe."""
    dtypes = {"dtype": jnp.dtype(dtype)}
    dtypes["param_dtype"] = jnp.promote_types(dtypes["dtype"], jnp.float32)
    layers = PROJECTIONS[projection](projection_layers)
    return SimCLR(
        ENCODERS[encoder](norm_groups=norm_groups, **dtypes, **architecture),
        Projection(layers, projection_dim, norm_groups, **dtypes),
        Probe(classes, probe_zero, dtypes["param_dtype"]) if probe and classes else None,
        probe_layer,
    )
