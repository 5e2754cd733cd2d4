"""A trained encoder with its decoder, ready to use: `decoding.load(WORKDIR)`."""

import functools
import math
from collections.abc import Mapping
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from simclr_jax import encoder, sharding
from simclr_jax.encoder import Encoder
from simclr_jax.errors import SimclrError
from simclr_jax.losses import reconstruction
from simclr_jax.losses.objective import Sizes
from simclr_jax.models import simclr

TERMS = ("reconstruction", "masked")  # of the loss, whose parameters can be a decoder's
HOW = "train one that has: --config.loss.name=nt_xent+reconstruction --config.model.decoder.start=features"


class Autoencoder:
    """Images to latents and back; made by `load`.

    Images are views `[n, h, w, c]` of the run's size in [0, 1], as its evaluation sees them. Latents `[n, d]`
    are all that the decoder reads of an image: the encoder's features, or endpoints with a grid as one row.

    Attributes:
      encoder: the encoder alone.
      decoder: the Flax module; `to_images` calls it.
      variables: of both, NumPy.
      term: of the loss, which the decoder belongs to.
      shapes: {endpoint: its shape} of what the decoder reads, in the order of a row.
    """

    def __init__(self, encoder: Encoder):
        config = encoder.config
        self.encoder, self.variables = encoder, encoder.variables
        self.term = cast(str, term_of(encoder))
        self._logits = config.loss[self.term]["loss"] == "bernoulli"
        ends = jax.eval_shape(self._ends, self.variables, self.example(2))
        spec = encoder.reader.spec()
        sizes = Sizes(
            1, 1, 0, sharding.make_mesh(1), encoder.model.encoder, ends, spec, config.model.to_dict()
        )
        self.decoder, reads = reconstruction.decoder_of(sizes, "logits" if self._logits else "unit")
        self.shapes = {name: ends[name].shape[1:] for name in reads}

    @property
    def dim(self) -> int:
        """Numbers in a latent."""
        return sum(map(math.prod, self.shapes.values()))

    def example(self, count: int) -> jax.ShapeDtypeStruct:
        """Shape and type of `count` images."""
        spec = self.encoder.reader.spec()
        return jax.ShapeDtypeStruct((count, *spec.shape), spec.dtype)

    # ---- functions to compile -------------------------------------------------------------------------

    def _ends(self, variables: Mapping[str, Any], images: jax.Array) -> dict[str, jax.Array]:
        model = self.encoder.model
        x = self.encoder.reader.prepare(images, False, model.encoder.dtype)
        return simclr.endpoints(model, variables, x)

    def to_latents(self, variables: Mapping[str, Any], images: jax.Array) -> jax.Array:
        """Latents `[n, d]` of images, differentiable."""
        ends = self._ends(variables, images)
        return jnp.concatenate([ends[name].reshape(len(images), -1) for name in self.shapes], axis=1)

    def to_images(self, variables: Mapping[str, Any], latents: jax.Array) -> jax.Array:
        """Images in [0, 1] of latents `[n, d]`, differentiable."""
        cuts = np.cumsum([math.prod(shape) for shape in self.shapes.values()])[:-1].tolist()
        parts = jnp.split(latents, cuts, axis=1)
        named = zip(self.shapes.items(), parts, strict=True)
        ends = {name: part.reshape(len(part), *shape) for (name, shape), part in named}
        params = {"params": variables["params"]["objectives"][self.term]}
        images = cast(jax.Array, self.decoder.apply(params, ends))
        return jax.nn.sigmoid(images) if self._logits else images

    # ---- of arrays -------------------------------------------------------------------------------------

    def encode(self, images: np.ndarray, batch_size: int = 256) -> np.ndarray:
        """Latents `[n, d]` float32 of images.

        Raises:
          SimclrError: the images do not fit the encoder.
        """
        images = self.encoder.reader.check(images)
        return encoder.in_batches(self._compiled["to_latents"], images, batch_size)

    def decode(self, latents: np.ndarray, batch_size: int = 256) -> np.ndarray:
        """Images `[n, h, w, c]` float32 in [0, 1] of latents `[n, d]`."""
        latents = np.asarray(latents, np.float32)
        return encoder.in_batches(self._compiled["to_images"], latents, batch_size)

    def reconstruct(self, images: np.ndarray, batch_size: int = 256) -> np.ndarray:
        """Images through encoder and decoder."""
        return self.decode(self.encode(images, batch_size), batch_size)

    @functools.cached_property
    def _compiled(self) -> dict[str, Any]:
        on_device = self.encoder.on_device
        both = {"to_latents": self.to_latents, "to_images": self.to_images}
        return {name: functools.partial(jax.jit(one), on_device) for name, one in both.items()}


def term_of(encoder: Encoder) -> str | None:
    """The term of the loss that has a decoder of whole images; None: the run has none."""
    own = encoder.variables["params"].get("objectives", {})
    tokens = encoder.config.model.decoder.variant == "tokens"  # which hidden patches are made by alone
    return next((term for term in TERMS if term in own and not (tokens and term == "masked")), None)


def load(workdir: epath.PathLike, step: int = 0, config: ConfigDict | None = None) -> Autoencoder:
    """The encoder of a run with the decoder of one of TERMS; step 0 is the newest checkpoint.

    Args:
      config: the run's, with changes.

    Raises:
      SimclrError: the workdir holds no run, or no such checkpoint; the run has no decoder.
    """
    found = encoder.load(workdir, step)
    if found.config.task == "restore":
        raise SimclrError(f"{workdir}: is a run of task restore, whose decoder needs an image to mend; {HOW}")
    if term_of(found) is None:
        raise SimclrError(f"{workdir}: has no decoder (config.loss.name={found.config.loss.name!r}); {HOW}")
    if config is not None:
        found = Encoder(config, found.classes, found.step, found.variables, found.data)
    return Autoencoder(found)
