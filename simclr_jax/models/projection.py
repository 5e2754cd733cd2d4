"""The projection head g(h) and the linear classifier."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from simclr_jax.models.norm import batch_norm

DENSE_INIT = nn.initializers.normal(0.01)  # the original's, for every dense layer

PROJECTIONS = {  # name: layers, given config.model.projection_layers
    "none": lambda layers: 0,
    "linear": lambda layers: 1,
    "nonlinear": lambda layers: layers,
}


class Projection(nn.Module):
    """h `[n, d]` to z `[n, dim]`; `layers` = 0 is the identity, 1 the linear head.

    Every layer is Dense without bias and BatchNorm; all but the last keep the width d and end in ReLU,
    the last BatchNorm has no beta (the original's head: 2 layers in SimCLR v1, 3 in v2).
    """

    layers: int
    dim: int
    norm_groups: int = 1
    dtype: jnp.dtype = jnp.float32
    param_dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, h: jax.Array, train: bool, layers: int | None = None) -> list[jax.Array]:
        """[h, output of layer 1, ..., z], or only as far as the first `layers` of them."""
        dtypes: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        outputs = [h]
        for i in range(self.layers if layers is None else layers):
            last = i == self.layers - 1
            dim = self.dim if last else h.shape[-1]
            x = nn.Dense(dim, use_bias=False, kernel_init=DENSE_INIT, name=f"dense{i}", **dtypes)(outputs[-1])
            x = batch_norm(train, self.norm_groups, use_bias=not last, name=f"norm{i}", **dtypes)(x)
            outputs.append(x if last else nn.relu(x))
        return outputs


class Probe(nn.Module):
    """Features `[n, d]` to logits `[n, classes]`, in at least float32; `zero`: all logits start at 0."""

    classes: int
    zero: bool = False
    param_dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, h: jax.Array) -> jax.Array:
        return nn.Dense(
            self.classes,
            kernel_init=nn.initializers.zeros if self.zero else DENSE_INIT,
            dtype=self.param_dtype,
            param_dtype=self.param_dtype,
            name="dense",
        )(h)
