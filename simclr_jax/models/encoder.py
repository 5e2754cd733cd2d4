"""The interface of an encoder: a Flax module that names its stages, its features and its maps.

Freezing, Grad-CAM, probes of middle layers, conversion and validation use only this interface. No other
code contains the names of an encoder's parameters or endpoints.

`registry.ENCODERS` names the function that makes one:

    create(model, *, dtype, param_dtype) -> Encoder

`model` is `config.model`, whose fields are `model["width"]`, and `model["vit"]["patch"]` where an encoder
brings its own.
"""

from typing import Any, Protocol

import jax


class Encoder(Protocol):
    """Inputs `[n, ...]` to named endpoints."""

    features: str  # name of the endpoint [n, d] that is the representation h
    dtype: Any  # of the computation

    @property
    def last(self) -> str | None:
        """The name of the endpoint whose maps Grad-CAM reads; None: there is none."""
        ...

    @property
    def stages(self) -> tuple[str, ...]:
        """Names of the stages in order of computation; a run can freeze the first ones."""
        ...

    def __call__(
        self, x: jax.Array, train: bool, frozen: int = -1, frozen_train: bool = False
    ) -> dict[str, jax.Array]:
        """The endpoints.

        Args:
          train: BatchNorm uses batch statistics, and dropout layers are active (the rng "dropblock").
          frozen: stages up to this number get no gradient; -1: all stages get one.
          frozen_train: frozen stages also use batch statistics; else they use and keep the moving averages.
        """
        ...

    def stage_of(self, path: str) -> int:
        """The number of the stage that a parameter "group1_block1/conv0/kernel" belongs to.

        Raises:
          ValueError: the encoder has no such parameter.
        """
        ...

    def trainable(self, path: str) -> bool:
        """Whether a parameter is trained at all; no optimiser touches the others."""
        ...

    def maps(self, name: str, x: jax.Array) -> jax.Array | None:
        """An endpoint as maps `[n, h, w, c]`; None if it has no grid."""
        ...

    def pool(self, maps: jax.Array) -> jax.Array | None:
        """The maps of `last` as features `[n, d]`; None if the features depend on more than these maps."""
        ...

    def adapt(self, params: Any, old: jax.ShapeDtypeStruct, new: jax.ShapeDtypeStruct) -> Any:
        """Converts parameters for examples of shape `old`, say `[h, w, c]`, to shape `new`."""
        ...


class Plain:
    """Base of encoders that train all parameters and convert none for examples of another size."""

    def trainable(self, path: str) -> bool:
        """All parameters are trained."""
        return True

    def adapt(self, params: Any, old: jax.ShapeDtypeStruct, new: jax.ShapeDtypeStruct) -> Any:
        """The same parameters."""
        return params


class Convolutional(Plain):
    """Base of the convolutional encoders: a stem, block groups, and every endpoint but the features a map."""

    features = "final_avg_pool"

    @property
    def groups(self) -> int:
        """How many block groups there are."""
        raise NotImplementedError

    @property
    def stages(self) -> tuple[str, ...]:
        """The stem, stage 0, and the block groups."""
        return ("stem", *(f"block_group{g}" for g in range(1, self.groups + 1)))

    @property
    def last(self) -> str:
        """The last block group."""
        return self.stages[-1]

    def maps(self, name: str, x: jax.Array) -> jax.Array | None:
        """The endpoint itself if it is a map."""
        return x if x.ndim == 4 else None
