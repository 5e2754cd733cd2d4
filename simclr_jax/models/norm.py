"""BatchNorm over the global batch or over groups of it."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp


class BatchNorm(nn.Module):
    """x `[n, ..., c]`, each channel normalised (Ioffe & Szegedy, arXiv 1502.03167).

    With `train` the mean and the biased variance are the batch's, and the moving ones take a tenth of
    them; without, the moving ones are used. `groups` > 1 normalises each of that many contiguous parts
    of the batch by itself, as the original does on that many replicas without `global_bn`; the moving
    statistics then take the mean over groups. A number of groups, not "per device": the result does not
    depend on the devices.
    """

    train: bool
    groups: int = 1
    use_bias: bool = True
    scale_init: Callable = nn.initializers.ones
    dtype: jnp.dtype = jnp.float32
    param_dtype: jnp.dtype = jnp.float32
    momentum: float = 0.9
    epsilon: float = 1e-5

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        c = x.shape[-1]
        moving_mean = self.variable("batch_stats", "mean", jnp.zeros, (c,), self.param_dtype)
        moving_var = self.variable("batch_stats", "var", jnp.ones, (c,), self.param_dtype)
        scale = self.param("scale", self.scale_init, (c,), self.param_dtype)
        bias = self.param("bias", nn.initializers.zeros, (c,), self.param_dtype) if self.use_bias else None

        # Initial values need no groups, and the two images they are made with would not fill them.
        groups = 1 if self.is_initializing() else self.groups
        y = x if groups == 1 else x.reshape(groups, x.shape[0] // groups, *x.shape[1:])
        rank = y.ndim
        if self.train:
            axes = tuple(range(0 if groups == 1 else 1, rank - 1))
            high = y.astype(jnp.promote_types(y.dtype, jnp.float32))
            mean = jnp.mean(high, axes, keepdims=True)
            var = jnp.maximum(jnp.mean(high * high, axes, keepdims=True) - mean * mean, 0)
            if not self.is_initializing():
                for moving, now in ((moving_mean, mean), (moving_var, var)):
                    now = jnp.mean(now.reshape(-1, c), axis=0).astype(self.param_dtype)
                    moving.value = self.momentum * moving.value + (1 - self.momentum) * now
        else:
            mean, var = (m.value.reshape((1,) * (rank - 1) + (c,)) for m in (moving_mean, moving_var))
        y = (y - mean) * (jax.lax.rsqrt(var + self.epsilon) * scale.reshape((1,) * (rank - 1) + (c,)))
        if bias is not None:
            y = y + bias.reshape((1,) * (rank - 1) + (c,))
        return y.reshape(x.shape).astype(self.dtype)
