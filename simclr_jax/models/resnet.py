"""ResNet 18 to 200 (He et al., arXiv 1512.03385) as the original SimCLR builds it, or as torchvision does.

The original (v1.5: the 3×3 convolution strides) differs from torchvision's in three ways: the first block
of every group has a projection shortcut, the stem's max-pool pads at the end only, and the last BatchNorm
of a block starts with gamma 0.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from simclr_jax.models.encoder import Convolutional, Encoder
from simclr_jax.models.norm import batch_norm
from simclr_jax.models.resnet_fields import DEPTHS, STEMS

# remat_keep -> JAX's checkpoint policy: which activations a rematerialised block stores


def _is_convolution(primitive: Any, *_: Any, **__: Any) -> bool:
    return primitive.name == "conv_general_dilated"


REMAT_POLICIES = {"inputs": None, "convolutions": _is_convolution}


def _conv(
    features: int, kernel: int, stride: int, dtype, param_dtype, name: str, bias: bool = False, pad=None
) -> nn.Conv:
    # Unlike TensorFlow's SAME, pad (k-1)//2 before and the rest after, for every stride.
    front = (kernel - 1) // 2
    return nn.Conv(
        features,
        (kernel, kernel),
        (stride, stride),
        padding=[(front, kernel - 1 - front) if pad is None else (pad, pad)] * 2,
        use_bias=bias,
        dtype=dtype,
        param_dtype=param_dtype,
        name=name,
    )


def drop_block(x: jax.Array, keep: float, size: int, rng: jax.Array) -> jax.Array:
    """DropBlock (Ghiasi et al., arXiv 1810.12890): zeros squares of `size` pixels in x `[n, h, w, c]`.

    A unit is kept with probability `keep`; the kept units are scaled so that the sum stays the same. Squares
    lie inside the map and, as in the paper, each channel has its own.
    """
    if keep >= 1:
        return x
    height, width = x.shape[1:3]
    size = min(size, height, width)
    # Equation 1: choose the number of centres so that their squares cover 1 - keep of the map.
    room = (height - size + 1) * (width - size + 1)
    gamma = (1 - keep) * height * width / size**2 / room
    centres = jax.random.bernoulli(rng, gamma, (len(x), height - size + 1, width - size + 1, x.shape[3]))
    before, after = size // 2, (size - 1) // 2
    inside = jnp.pad(centres, [(0, 0), (before, after), (before, after), (0, 0)])
    # A centre drops `before` pixels before it and `after` pixels behind it.
    padding = [(0, 0), (after, before), (after, before), (0, 0)]
    dropped = jax.lax.reduce_window(inside, False, jax.lax.bitwise_or, (1, size, size, 1), (1,) * 4, padding)
    share = jnp.maximum(jnp.mean(~dropped, dtype=jnp.promote_types(x.dtype, jnp.float32)), 1e-6)
    return jnp.where(dropped, 0, x / share).astype(x.dtype)


class Block(nn.Module):
    """A residual block: two 3×3 convolutions, or 1×1, 3×3 and 1×1 (bottleneck).

    `sk_ratio` > 0 pools before the shortcut's convolution (ResNet-D, He et al., arXiv 1812.01187) and, in a
    bottleneck, replaces the 3×3 convolution by selective kernels; `se_ratio` > 0 ends the branch with
    squeeze-and-excitation.
    """

    features: int  # inner width
    stride: int
    project: bool  # a 1×1 convolution in the shortcut
    bottleneck: bool
    sk_ratio: float
    se_ratio: float
    conv: Callable
    norm: Callable
    drop: Callable  # DropBlock

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        out = self.features * (4 if self.bottleneck else 1)
        shortcut = x
        if self.project:
            shortcut = self.shortcut(x, out)
        shortcut = self.drop(shortcut)
        if self.bottleneck:
            layers = [(self.features, 1, 1), (self.features, 3, self.stride), (out, 1, 1)]
        else:
            layers = [(self.features, 3, self.stride), (out, 3, 1)]
        for i, (features, kernel, stride) in enumerate(layers):
            if self.sk_ratio and self.bottleneck and kernel == 3:
                x = self.drop(self.select(x, features, stride))
                continue
            last = i == len(layers) - 1
            x = self.conv(features, kernel, stride, name=f"conv{i}")(x)
            # A zero gamma makes every block start as the identity (Goyal et al., arXiv 1706.02677).
            gamma = nn.initializers.zeros if last else nn.initializers.ones
            x = self.norm(scale_init=gamma, name=f"norm{i}")(x)
            x = self.drop(x if last else nn.relu(x))
        if self.se_ratio:
            x = self.excite(x)
        return nn.relu(x + shortcut)

    def shortcut(self, x: jax.Array, out: int) -> jax.Array:
        stride = self.stride
        if self.sk_ratio:
            # As in the original: at stride 2 the average includes the padded zeros, at stride 1 it does not.
            window: dict[str, Any] = {"window_shape": (2, 2), "strides": (stride, stride)}
            if stride > 1:
                x = nn.avg_pool(jnp.pad(x, [(0, 0), (0, 1), (0, 1), (0, 0)]), **window)
            else:
                x = nn.avg_pool(x, padding="SAME", count_include_pad=False, **window)
            stride = 1
        return self.norm(name="shortcut_norm")(self.conv(out, 1, stride, name="shortcut_conv")(x))

    def select(self, x: jax.Array, features: int, stride: int) -> jax.Array:
        """Two 3×3 convolutions mixed by a softmax of their pooled sum (Li et al., arXiv 1903.06586)."""
        x = self.conv(2 * features, 3, stride, name="sk_conv")(x)
        x = nn.relu(self.norm(name="sk_norm")(x))
        streams = x.reshape(*x.shape[:3], 2, features)
        pooled = jnp.mean(jnp.sum(streams, axis=3), axis=(1, 2), keepdims=True)
        low = max(int(features * self.sk_ratio), 32)
        mixing = nn.relu(self.norm(name="sk_reduce_norm")(self.conv(low, 1, 1, name="sk_reduce")(pooled)))
        mixing = self.conv(2 * features, 1, 1, name="sk_expand")(mixing)
        mixing = nn.softmax(mixing.reshape(-1, 1, 1, 2, features), axis=3)
        return jnp.sum(streams * mixing, axis=3)

    def excite(self, x: jax.Array) -> jax.Array:
        """Channels weighted by a gate of their means (Hu et al., arXiv 1709.01507)."""
        low = max(1, int(self.features * self.se_ratio))
        pooled = jnp.mean(x, axis=(1, 2), keepdims=True)
        gate = nn.relu(self.conv(low, 1, 1, bias=True, name="se_reduce")(pooled))
        return x * nn.sigmoid(self.conv(x.shape[-1], 1, 1, bias=True, name="se_expand")(gate))


# Fields of config.model that the ResNet takes as they are.
AS_THEY_ARE = (
    "width", "stem", "variant", "sk_ratio", "se_ratio", "dropblock_size", "norm_groups", "remat", "remat_keep"
)  # fmt: skip


class ResNet(Convolutional, nn.Module):
    """Images `[n, h, w, c]` to endpoints, by the original's names.

    initial_conv (before BatchNorm), initial_max_pool, block_group1..4 `[n, h', w', c']` and
    final_avg_pool `[n, d]`. Stage 0 is the stem, stage g block group g.
    """

    blocks: Sequence[int]
    bottleneck: bool
    width: float = 1.0
    stem: str = "imagenet"
    variant: str = "original"
    sk_ratio: float = 0.0
    se_ratio: float = 0.0
    dropblock_keep: Sequence[float] = ()
    dropblock_size: int = 7
    norm_groups: int = 1
    remat: bool = False
    remat_keep: str = "inputs"
    dtype: jnp.dtype = jnp.float32
    param_dtype: jnp.dtype = jnp.float32

    @property
    def groups(self) -> int:
        """The block groups behind the stem."""
        return len(self.blocks)

    def stage_of(self, path: str) -> int:
        """0 for the stem, g for block group g.

        Raises:
          ValueError: the encoder has no such parameter.
        """
        found = re.match(r"group(\d+)_block\d+/|stem_", path)
        if found is None or int(found[1] or 0) >= len(self.stages):
            raise ValueError(f"the ResNet has no parameter {path!r}")
        return int(found[1] or 0)

    @nn.compact
    def __call__(
        self, x: jax.Array, train: bool, frozen: int = -1, frozen_train: bool = False
    ) -> dict[str, jax.Array]:
        """The endpoints; arguments as in `models.encoder.Encoder`."""
        frozen = min(frozen, len(self.blocks))
        conv = partial(_conv, dtype=self.dtype, param_dtype=self.param_dtype)

        def width(features):
            return max(1, round(features * self.width))

        dtypes: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}

        def moves(part: int) -> bool:
            return train and (part > frozen or frozen_train)

        def norm(part: int) -> Callable:
            return partial(batch_norm, train=moves(part), groups=self.norm_groups, **dtypes)

        def done(part: int, x: jax.Array) -> jax.Array:
            return jax.lax.stop_gradient(x) if part == frozen else x

        block = nn.remat(Block, policy=REMAT_POLICIES[self.remat_keep]) if self.remat else Block
        ends: dict[str, jax.Array] = {}
        x = done(0, self.initial(x, conv, norm(0), width, ends))
        for group, count in enumerate(self.blocks, 1):
            keep = self.dropblock_keep[group - 1] if self.dropblock_keep else 1.0
            for i in range(count):
                features, stride = width(64 * 2 ** (group - 1)), 2 if group > 1 and i == 0 else 1
                changes = stride > 1 or x.shape[-1] != features * (4 if self.bottleneck else 1)
                x = block(
                    features=features,
                    stride=stride,
                    project=i == 0 and (changes or self.variant == "original"),
                    bottleneck=self.bottleneck,
                    sk_ratio=self.sk_ratio,
                    se_ratio=self.se_ratio,
                    conv=conv,
                    norm=norm(group),
                    drop=self.dropper(keep if moves(group) else 1.0),
                    name=f"group{group}_block{i + 1}",
                )(x)
            x = ends[f"block_group{group}"] = done(group, x)
        ends["final_avg_pool"] = self.pool(x)
        return ends

    @staticmethod
    def pool(maps: jax.Array) -> jax.Array:
        """The last block group's maps `[n, h, w, k]` as features `[n, k]`: means over the map."""
        return jnp.mean(maps, axis=(1, 2))

    def initial(
        self, x: jax.Array, conv: Callable, norm: Callable, width: Callable, ends: dict[str, jax.Array]
    ) -> jax.Array:
        """The stem; adds its two endpoints to `ends`."""
        kernel, stride, pad = STEMS[self.stem]
        if self.sk_ratio and self.stem == "imagenet":  # ResNet-D: three 3×3 instead of one 7×7
            for i, step in enumerate((2, 1)):
                x = conv(width(32), 3, step, name=f"stem_conv{i}")(x)
                x = nn.relu(norm(name=f"stem_norm{i}")(x))
            kernel, stride = 3, 1
        x = ends["initial_conv"] = conv(width(64), kernel, stride, pad=pad, name="stem_conv")(x)
        x = nn.relu(norm(name="stem_norm")(x))
        if self.stem == "imagenet":
            padding = "SAME" if self.variant == "original" else [(1, 1), (1, 1)]
            window: dict[str, Any] = {"window_shape": (3, 3), "padding": padding}
            x = nn.max_pool(x, strides=(2, 2), **window)
        ends["initial_max_pool"] = x
        return x

    def dropper(self, keep: float) -> Callable[[jax.Array], jax.Array]:
        if keep >= 1 or self.is_initializing():
            return lambda x: x
        return lambda x: drop_block(x, keep, self.dropblock_size, self.make_rng("dropblock"))


def create(model: Mapping[str, Any], *, dtype: Any, param_dtype: Any) -> Encoder:
    """The ResNet of `config.model`, of 18, 34, 50, 101, 152 or 200 layers; images may have any size.

    Its fields, explained in config/fields.py: depth, blocks, width, stem, variant, sk_ratio, se_ratio,
    dropblock_keep, dropblock_size, norm_groups, remat, remat_keep.
    """
    counts, bottleneck = DEPTHS[model["depth"]]
    return ResNet(
        blocks=tuple(model["blocks"]) or counts,
        bottleneck=bottleneck,
        dropblock_keep=tuple(model["dropblock_keep"]),
        dtype=dtype,
        param_dtype=param_dtype,
        **{name: model[name] for name in AS_THEY_ARE},
    )
