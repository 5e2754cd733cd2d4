"""A small CNN for images of 28 to 64 pixels, quick to train on two CPU cores."""

import flax.linen as nn
import jax
import jax.numpy as jnp


class CNN(nn.Module):
    """Images `[n, h, w, c]` to endpoints: initial_conv, block_group1..3 and final_avg_pool `[n, d]`.

    Three convolutions of stride 2, each with BatchNorm and ReLU: on CPU, arithmetic is what costs, and
    most of it is spent where the map is large. The last map is averaged over its quadrants, not over
    the whole: on digits, where a stroke is matters as much as that it is there (kNN +3 points).
    """

    widths: tuple[int, ...] = (32, 64, 128)
    kernels: tuple[int, ...] = (4, 4, 3)
    dtype: jnp.dtype = jnp.float32
    param_dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> dict[str, jax.Array]:
        kwargs = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        ends = {}
        for i, (features, kernel) in enumerate(zip(self.widths, self.kernels, strict=True), 1):
            x = nn.Conv(features, (kernel, kernel), (2, 2), use_bias=False, name=f"conv{i}", **kwargs)(x)
            ends.setdefault("initial_conv", x)
            x = nn.BatchNorm(
                use_running_average=not train,
                momentum=0.9,
                epsilon=1e-5,
                name=f"norm{i}",
                **kwargs,
            )(x)
            x = ends[f"block_group{i}"] = nn.relu(x)
        n, h, w, _ = x.shape
        # Quadrants of an odd map overlap in its middle row and column.
        top, left = -(-h // 2), -(-w // 2)
        x = nn.avg_pool(x, window_shape=(top, left), strides=(h // 2 or 1, w // 2 or 1))
        ends["final_avg_pool"] = x.reshape(n, -1)
        return ends


def create(*, depth: int, width: float, stem: str, dtype, param_dtype) -> CNN:
    """The small CNN, every width multiplied by `width`; it has one depth and one stem."""
    del depth, stem
    widths = tuple(max(1, round(features * width)) for features in CNN.widths)
    return CNN(widths, dtype=dtype, param_dtype=param_dtype)
