"""The encoder of the tutorials that join SimCLR and an autoencoder, for images of 28 and 32 pixels."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from simclr_jax.errors import SimclrError
from simclr_jax.models.encoder import Encoder, Plain
from simclr_jax.models.tutorial_fields import KERNEL, WIDTHS


class Tutorial(Plain, nn.Module):
    """Images `[n, h, w, c]` to endpoints: block_group1 .. block_group3 and features `[n, 128]`.

    Three convolutions of 4×4 with stride 2 and ReLU, then a dense layer over all places of the last map: an
    image of 28 pixels becomes maps of 14, 7 and 4, one of 32 pixels maps of 16, 8 and 4 (SAME padding).
    There is no BatchNorm. Convolutions i = 1, 2, 3 are stages i - 1, the dense layer is stage 3.
    `models.decoder` has the other half, `variant` tutorial.
    """

    widths: tuple[int, ...] = WIDTHS
    numbers: int = 128  # features
    dtype: jnp.dtype = jnp.float32
    param_dtype: jnp.dtype = jnp.float32

    features = "features"  # endpoint that is the representation

    @property
    def stages(self) -> tuple[str, ...]:
        """The convolutions and the dense layer."""
        return (*(f"block_group{i}" for i in range(1, len(self.widths) + 1)), self.features)

    @property
    def last(self) -> str:
        """The last convolution, whose maps Grad-CAM reads."""
        return self.stages[-2]

    def stage_of(self, path: str) -> int:
        """The stage of a parameter, by its path inside the encoder ("conv1/kernel").

        Raises:
          ValueError: the encoder has no such parameter.
        """
        names = (*(f"conv{i}" for i in range(1, len(self.widths) + 1)), "dense")
        name, _, leaf = path.partition("/")
        if name not in names or leaf not in ("kernel", "bias"):
            raise ValueError(f"the tutorials' encoder has no parameter {path!r}")
        return names.index(name)

    @nn.compact
    def __call__(
        self, x: jax.Array, train: bool, frozen: int = -1, frozen_train: bool = False
    ) -> dict[str, jax.Array]:
        """The endpoints; arguments as in `models.encoder.Encoder`.

        Raises:
          SimclrError: the images have another size than those that the dense layer was made for.
        """
        dtypes: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}

        def done(stage: int, x: jax.Array) -> jax.Array:
            return jax.lax.stop_gradient(x) if stage == min(frozen, len(self.widths)) else x

        ends: dict[str, jax.Array] = {}
        for i, width in enumerate(self.widths):
            x = nn.relu(nn.Conv(width, (KERNEL, KERNEL), (2, 2), name=f"conv{i + 1}", **dtypes)(x))
            x = ends[self.stages[i]] = done(i, x)
        x = x.reshape(x.shape[0], -1)
        known = (self.get_variable("params", "dense") or {}).get("kernel")
        if known is not None and known.shape[0] != x.shape[1]:
            raise SimclrError(
                f"the tutorials' encoder was made for images whose last map has {known.shape[0]} numbers, "
                f"these have {x.shape[1]}: give images of its own size"
            )
        x = nn.Dense(self.numbers, name="dense", **dtypes)(x)
        return ends | {self.features: done(len(self.widths), x)}

    def maps(self, name: str, x: jax.Array) -> jax.Array | None:
        """The endpoint itself if it is a map."""
        return x if x.ndim == 4 else None

    @staticmethod
    def pool(maps: jax.Array) -> None:
        """None: a dense layer is between the maps and the features."""

    def adapt(self, params: Any, old: jax.ShapeDtypeStruct, new: jax.ShapeDtypeStruct) -> Any:
        """The same parameters.

        Raises:
          SimclrError: the sizes differ; the dense layer is made for one size.
        """
        if old.shape != new.shape:
            raise SimclrError(
                f"config.data.image_size={new.shape[0]}: must be {old.shape[0]}, for which the dense layer "
                "of the tutorials' encoder was trained"
            )
        return params


def create(model: Mapping[str, Any], *, dtype: Any, param_dtype: Any) -> Encoder:
    """The tutorials' encoder; `model["width"]` multiplies the convolutions' channels."""
    widths = tuple(max(1, round(width * model["width"])) for width in WIDTHS)
    return Tutorial(widths, model["tutorial"]["features"], dtype=dtype, param_dtype=param_dtype)
