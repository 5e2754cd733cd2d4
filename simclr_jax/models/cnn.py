"""A small CNN for images of 28 to 64 pixels, quick to train on two CPU cores."""

import re
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from simclr_jax.models.encoder import Convolutional, Encoder
from simclr_jax.models.norm import batch_norm


class CNN(Convolutional, nn.Module):
    """Images `[n, h, w, c]` to endpoints: initial_conv, block_group1..3 and final_avg_pool `[n, d]`.

    Three convolutions of stride 2, each with BatchNorm and ReLU: on CPU the time goes into
    arithmetic, mostly on the large maps. The last map is averaged over each of its quadrants and not as a
    whole: on digits the position of a stroke matters as much as its presence (kNN +3 points).
    """

    widths: tuple[int, ...] = (32, 64, 128)
    kernels: tuple[int, ...] = (4, 4, 3)
    norm_groups: int = 1
    dtype: jnp.dtype = jnp.float32
    param_dtype: jnp.dtype = jnp.float32

    @property
    def groups(self) -> int:
        """The convolutions, each a block group; no parameter belongs to stage 0."""
        return len(self.widths)

    def stage_of(self, path: str) -> int:
        """i for convolution i and its BatchNorm.

        Raises:
          ValueError: the encoder has no such parameter.
        """
        found = re.match(r"(?:conv|norm)(\d+)/", path)
        if found is None or not 0 < int(found[1]) < len(self.stages):
            raise ValueError(f"the CNN has no parameter {path!r}")
        return int(found[1])

    @nn.compact
    def __call__(
        self, x: jax.Array, train: bool, frozen: int = -1, frozen_train: bool = False
    ) -> dict[str, jax.Array]:
        """The endpoints; arguments as in `models.encoder.Encoder`."""
        frozen = min(frozen, len(self.widths))
        dtypes: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        ends = {}
        for i, (features, kernel) in enumerate(zip(self.widths, self.kernels, strict=True), 1):
            x = nn.Conv(features, (kernel, kernel), (2, 2), use_bias=False, name=f"conv{i}", **dtypes)(x)
            ends.setdefault("initial_conv", x)
            moves = train and (i > frozen or frozen_train)
            x = nn.relu(batch_norm(moves, self.norm_groups, name=f"norm{i}", **dtypes)(x))
            x = ends[f"block_group{i}"] = jax.lax.stop_gradient(x) if i == frozen else x
        ends["final_avg_pool"] = self.pool(x)
        return ends

    @staticmethod
    def pool(maps: jax.Array) -> jax.Array:
        """The last block group's maps `[n, h, w, k]` as features `[n, d]`: means over quadrants."""
        n, h, w, _ = maps.shape
        # Quadrants of an odd map overlap in its middle row and column.
        top, left = -(-h // 2), -(-w // 2)
        quarters = nn.avg_pool(maps, window_shape=(top, left), strides=(h // 2 or 1, w // 2 or 1))
        return quarters.reshape(n, -1)


def create(model: Mapping[str, Any], *, dtype: Any, param_dtype: Any) -> Encoder:
    """The small CNN, every width multiplied by `model["width"]`; images may have any size."""
    widths = tuple(max(1, round(features * model["width"])) for features in CNN.widths)
    return CNN(widths, norm_groups=model["norm_groups"], dtype=dtype, param_dtype=param_dtype)
