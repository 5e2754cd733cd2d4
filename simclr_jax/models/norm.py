"""BatchNorm over the global batch or over groups of it."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

MOMENTUM, EPSILON = 0.9, 1e-5  # the original's


def batch_norm(train: bool, groups: int = 1, **fields: Any) -> nn.Module:
    """Normalises x `[n, ..., c]` by channel (Ioffe & Szegedy, arXiv 1502.03167).

    Args:
      train: True normalises by the batch's mean and biased variance, and moves the moving averages a tenth
        of the way to them. False normalises by the moving averages.
      groups: number of contiguous parts of the batch that are normalised separately, as the original does on
        that many replicas without `global_bn`. The result does not depend on the number of devices.
      fields: use_bias, scale_init, dtype, param_dtype and name.
    """
    if groups == 1:
        return nn.BatchNorm(use_running_average=not train, momentum=MOMENTUM, epsilon=EPSILON, **fields)
    return GroupedBatchNorm(train, groups, **fields)


class GroupedBatchNorm(nn.Module):
    """`batch_norm` in groups, which Flax lacks; the moving averages use the mean over the groups."""

    train: bool
    groups: int
    use_bias: bool = True
    scale_init: Callable = nn.initializers.ones
    dtype: jnp.dtype = jnp.float32
    param_dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        c = x.shape[-1]
        moving_mean = self.variable("batch_stats", "mean", jnp.zeros, (c,), self.param_dtype)
        moving_var = self.variable("batch_stats", "var", jnp.ones, (c,), self.param_dtype)
        scale = self.param("scale", self.scale_init, (c,), self.param_dtype)
        bias = self.param("bias", nn.initializers.zeros, (c,), self.param_dtype) if self.use_bias else None
        grouped = self.train and not self.is_initializing()
        groups = self.groups if grouped else 1
        y = x.reshape(groups, x.shape[0] // groups, -1, c).astype(jnp.promote_types(x.dtype, jnp.float32))
        mean, var, scale = (v.reshape(1, 1, 1, c) for v in (moving_mean.value, moving_var.value, scale))
        if grouped:
            mean = jnp.mean(y, (1, 2), keepdims=True)
            var = jnp.maximum(jnp.mean(y * y, (1, 2), keepdims=True) - mean * mean, 0)
            for moving, now in ((moving_mean, mean), (moving_var, var)):
                moving.value = MOMENTUM * moving.value + (1 - MOMENTUM) * jnp.mean(now, axis=(0, 1, 2))
        y = (y - mean) * (jax.lax.rsqrt(var + EPSILON) * scale)
        y = y if bias is None else y + bias.reshape(1, 1, 1, c)
        return y.reshape(x.shape).astype(self.dtype)
