"""An encoder and a decoder that take a corrupted image and give a clean one."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from simclr_jax import registry
from simclr_jax.models import decoder as decoders
from simclr_jax.models import simclr
from simclr_jax.models.encoder import Encoder


class Restorer(nn.Module):
    """Its parameters are {encoder, decoder}.

    Attributes:
      mean, std: of images, as the encoder takes them; () for none.
      output: `config.model.decoder.output`.
    """

    encoder: Encoder
    decoder: nn.Module
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    output: str = "unit"

    def __call__(
        self, images: jax.Array, train: bool = False, frozen: int = -1, frozen_train: bool = False
    ) -> jax.Array:
        """Images `[m, h, w, c]` about [0, 1] (noise may leave it) to the decoder's output, not clipped.

        Args:
          train, frozen, frozen_train: as in `models.encoder.Encoder`.
        """
        x = simclr.normalize_images(images, self.mean, self.std, self.encoder.dtype)
        return self.decoder(self.encoder(x, train, frozen, frozen_train), images)

    def restored(self, images: jax.Array) -> jax.Array:
        """Restored images `[m, h, w, c]` in [0, 1], float32; BatchNorm uses its moving averages."""
        found = self(images)
        found = nn.sigmoid(found) if self.output == "logits" else found
        return jnp.clip(found, 0, 1).astype(jnp.float32)


def create(
    model: Mapping[str, Any],
    example: jax.ShapeDtypeStruct,
    mean: tuple[float, ...] = (),
    std: tuple[float, ...] = (),
) -> Restorer:
    """The encoder and the decoder of a config's `model` tree.

    Args:
      example: one image `[h, w, c]` as in training.

    Raises:
      SimclrError: the decoder does not fit the encoder.
    """
    dtype = jnp.dtype(model["dtype"])
    dtypes: dict[str, Any] = {"dtype": dtype, "param_dtype": jnp.promote_types(dtype, jnp.float32)}
    encoder = registry.load(registry.ENCODERS, model["encoder"], "model.encoder")(model, **dtypes)
    ends = simclr.ends_of(encoder, example)
    decoder = decoders.create(model["decoder"], encoder, ends, example, **dtypes)
    return Restorer(encoder, decoder, tuple(mean), tuple(std), model["decoder"]["output"])
