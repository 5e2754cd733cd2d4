"""ResNet 18 to 200 (He et al., arXiv 1512.03385) as the original SimCLR builds it.

It differs from torchvision's in three ways: the first block of every group has a projection shortcut,
the stem's max-pool pads at the end only, and the last BatchNorm of a block starts with gamma 0.
"""

from collections.abc import Callable, Sequence
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

# depth: (blocks of each group, bottleneck)
DEPTHS = {
    18: ((2, 2, 2, 2), False),
    34: ((3, 4, 6, 3), False),
    50: ((3, 4, 6, 3), True),
    101: ((3, 4, 23, 3), True),
    152: ((3, 8, 36, 3), True),
    200: ((3, 24, 36, 3), True),
}


def _conv(features: int, kernel: int, stride: int, dtype, param_dtype, name: str) -> nn.Conv:
    # (k-1)//2 in front and the rest behind, whatever the stride: not TensorFlow's SAME.
    front = (kernel - 1) // 2
    return nn.Conv(
        features,
        (kernel, kernel),
        (stride, stride),
        padding=[(front, kernel - 1 - front)] * 2,
        use_bias=False,
        dtype=dtype,
        param_dtype=param_dtype,
        name=name,
    )


class Block(nn.Module):
    """A residual block: two 3×3 convolutions, or 1×1, 3×3 and 1×1 (bottleneck)."""

    features: int  # inner width
    stride: int
    project: bool  # a 1×1 convolution in the shortcut
    bottleneck: bool
    conv: Callable
    norm: Callable

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        out = self.features * (4 if self.bottleneck else 1)
        shortcut = x
        if self.project:
            shortcut = self.conv(out, 1, self.stride, name="shortcut_conv")(x)
            shortcut = self.norm(name="shortcut_norm")(shortcut)
        if self.bottleneck:
            layers = [(self.features, 1, 1), (self.features, 3, self.stride), (out, 1, 1)]
        else:
            layers = [(self.features, 3, self.stride), (out, 3, 1)]
        for i, (features, kernel, stride) in enumerate(layers):
            last = i == len(layers) - 1
            x = self.conv(features, kernel, stride, name=f"conv{i}")(x)
            # A zero gamma makes every block start as the identity (Goyal et al., arXiv 1706.02677).
            gamma = nn.initializers.zeros if last else nn.initializers.ones
            x = self.norm(scale_init=gamma, name=f"norm{i}")(x)
            if not last:
                x = nn.relu(x)
        return nn.relu(x + shortcut)


class ResNet(nn.Module):
    """Images `[n, h, w, c]` to endpoints, by the original's names.

    initial_conv (before BatchNorm), initial_max_pool, block_group1..4 `[n, h', w', c']` and
    final_avg_pool `[n, d]`.
    """

    blocks: Sequence[int]
    bottleneck: bool
    width: float = 1.0
    stem: str = "imagenet"
    dtype: jnp.dtype = jnp.float32
    param_dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> dict[str, jax.Array]:
        conv = partial(_conv, dtype=self.dtype, param_dtype=self.param_dtype)
        norm = partial(
            nn.BatchNorm,
            use_running_average=not train,
            momentum=0.9,
            epsilon=1e-5,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
        )
        width = lambda features: max(1, round(features * self.width))  # noqa: E731
        ends = {}
        cifar = self.stem == "cifar"
        x = conv(width(64), 3 if cifar else 7, 1 if cifar else 2, name="stem_conv")(x)
        ends["initial_conv"] = x
        x = nn.relu(norm(name="stem_norm")(x))
        if not cifar:
            x = nn.max_pool(x, window_shape=(3, 3), strides=(2, 2), padding="SAME")
        ends["initial_max_pool"] = x
        for group, count in enumerate(self.blocks):
            for i in range(count):
                x = Block(
                    features=width(64 * 2**group),
                    stride=2 if group > 0 and i == 0 else 1,
                    project=i == 0,
                    bottleneck=self.bottleneck,
                    conv=conv,
                    norm=norm,
                    name=f"group{group + 1}_block{i + 1}",
                )(x)
            ends[f"block_group{group + 1}"] = x
        ends["final_avg_pool"] = jnp.mean(x, axis=(1, 2))
        return ends


def create(*, depth: int, width: float, stem: str, dtype, param_dtype) -> ResNet:
    """A ResNet of 18, 34, 50, 101, 152 or 200 layers, every width multiplied by `width`.

    Args:
      stem: "imagenet" (7×7 stride 2, max-pool) or "cifar" (3×3 stride 1; SimCLR, B.9).
      dtype, param_dtype: of the computation; of parameters and statistics.
    """
    blocks, bottleneck = DEPTHS[depth]
    return ResNet(blocks, bottleneck, width, stem, dtype, param_dtype)
