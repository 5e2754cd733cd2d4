"""The projection head g(h) and the online linear probe."""

import flax.linen as nn
import jax
import jax.numpy as jnp

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
    dtype: jnp.dtype = jnp.float32
    param_dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, h: jax.Array, train: bool) -> jax.Array:
        for i in range(self.layers):
            last = i == self.layers - 1
            h = nn.Dense(
                self.dim if last else h.shape[-1],
                use_bias=False,
                kernel_init=DENSE_INIT,
                dtype=self.dtype,
                param_dtype=self.param_dtype,
                name=f"dense{i}",
            )(h)
            h = nn.BatchNorm(
                use_running_average=not train,
                momentum=0.9,
                epsilon=1e-5,
                use_bias=not last,
                dtype=self.dtype,
                param_dtype=self.param_dtype,
                name=f"norm{i}",
            )(h)
            if not last:
                h = nn.relu(h)
        return h


class Probe(nn.Module):
    """Features `[n, d]` to logits `[n, classes]`, in at least float32."""

    classes: int
    param_dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, h: jax.Array) -> jax.Array:
        return nn.Dense(
            self.classes,
            kernel_init=DENSE_INIT,
            dtype=self.param_dtype,
            param_dtype=self.param_dtype,
            name="dense",
        )(h)
