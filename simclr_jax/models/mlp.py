"""A multi-layer perceptron for the rows of a table: SCARF's encoder (Bahri et al., arXiv 2106.15147)."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from simclr_jax.models.encoder import Plain


class MLP(Plain, nn.Module):
    """Rows `[n, d]` to endpoints: layer1, layer2, ... and features, the last of them, `[n, hidden]` each.

    Every layer is Dense and ReLU (section 4: four of 256, without BatchNorm), then dropout, which is not in
    the paper. Layer i is stage i - 1.
    """

    layers: int = 4
    hidden: int = 256
    dropout: float = 0.0
    dtype: jnp.dtype = jnp.float32
    param_dtype: jnp.dtype = jnp.float32

    features = "features"  # endpoint that is the representation
    last = None  # endpoint with maps: there is none

    @nn.compact
    def __call__(
        self, x: jax.Array, train: bool, frozen: int = -1, frozen_train: bool = False
    ) -> dict[str, jax.Array]:
        """The endpoints.

        Args:
          train: with dropout (needs the rng "dropblock", as all random parts of encoders).
          frozen: no gradient flows into layers up to this stage (-1: nothing is frozen).
          frozen_train: dropout acts in the frozen layers too.
        """
        frozen = min(frozen, self.layers - 1)
        ends = {}
        x = x.astype(self.dtype)
        for stage, name in enumerate(self.stages):
            dense = nn.Dense(self.hidden, dtype=self.dtype, param_dtype=self.param_dtype, name=name)
            x = nn.relu(dense(x))
            if self.dropout:
                moves = train and (stage > frozen or frozen_train)
                x = nn.Dropout(self.dropout, deterministic=not moves, rng_collection="dropblock")(x)
            x = ends[name] = jax.lax.stop_gradient(x) if stage == frozen else x
        return ends | {self.features: x}

    @property
    def stages(self) -> tuple[str, ...]:
        """Names of the stages, in the order of their numbers."""
        return tuple(f"layer{i}" for i in range(1, self.layers + 1))

    def stage_of(self, path: str) -> int:
        """The stage of a parameter, by its path inside the encoder ("layer1/kernel").

        Raises:
          ValueError: the encoder has no such parameter.
        """
        name = path.split("/")[0]
        if name not in self.stages:
            raise ValueError(f"{path}: not a parameter of this MLP, which has {', '.join(self.stages)}")
        return self.stages.index(name)

    @staticmethod
    def maps(name: str, x: jax.Array) -> None:
        """None: rows of a table have no maps."""

    @staticmethod
    def pool(maps: jax.Array) -> None:
        """None: there are no maps."""


def create(model: Mapping[str, Any], *, dtype: jnp.dtype, param_dtype: jnp.dtype) -> MLP:
    """The MLP of a config's `model`, whose fields stand in `model.mlp`; it takes rows of any length."""
    own = model["mlp"]
    return MLP(own["layers"], own["hidden"], own["dropout"], dtype=dtype, param_dtype=param_dtype)
