"""A small residual CNN for 28×28 to 64×64 images, quick to train on two CPU cores."""

import flax.linen as nn
import jax
import jax.numpy as jnp


class CNN(nn.Module):
    """Images `[n, h, w, c]` to endpoints: initial_conv, block_group1..3 and final_avg_pool `[n, d]`.

    The stem is a 4×4 convolution of stride 2: it quarters the area at once, for convolutions over many
    pixels with few channels are what CPUs are slowest at.
    """

    widths: tuple[int, ...] = (32, 64, 128)
    dtype: jnp.dtype = jnp.float32
    param_dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> dict[str, jax.Array]:
        kwargs = {"dtype": self.dtype, "param_dtype": self.param_dtype}

        def conv_norm_relu(x, features, kernel, stride, name):
            x = nn.Conv(
                features, (kernel, kernel), (stride, stride), use_bias=False, name=name, **kwargs
            )(x)
            x = nn.BatchNorm(
                use_running_average=not train,
                momentum=0.9,
                epsilon=1e-5,
                name=f"{name}_norm",
                **kwargs,
            )(x)
            return nn.relu(x)

        ends = {}
        x = ends["initial_conv"] = conv_norm_relu(x, self.widths[0], 4, 2, "stem")
        for group, features in enumerate(self.widths, 1):
            x = conv_norm_relu(x, features, 3, 1 if group == 1 else 2, f"group{group}_conv1")
            x = x + conv_norm_relu(x, features, 3, 1, f"group{group}_conv2")
            ends[f"block_group{group}"] = x
        ends["final_avg_pool"] = jnp.mean(x, axis=(1, 2))
        return ends


def create(*, width: float, dtype, param_dtype, **_) -> CNN:
    """The small CNN, every width multiplied by `width`; `depth` and `stem` are the ResNet's."""
    widths = tuple(round(features * width) for features in CNN.widths)
    return CNN(widths, dtype, param_dtype)
