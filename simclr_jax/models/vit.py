"""Vision transformers (Dosovitskiy et al., arXiv 2010.11929) as moco-v3 trains them (arXiv 2104.02057).

Blocks normalise before attention and MLP; LayerNorm's epsilon is 1e-6 and GELU is exact, as in timm and
torchvision, whose weights `simclr_jax.convert.vit` reads. The initialisation follows moco-v3's released code.
"""

import math
import re
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.lax import Precision

from simclr_jax.errors import SimclrError
from simclr_jax.models.encoder import Encoder
from simclr_jax.models.vit_fields import shape_of

EPSILON = 1e-6  # of LayerNorm
XAVIER = nn.initializers.xavier_uniform()
# Fields of config.model.vit that the ViT takes as they are.
AS_THEY_ARE = ("patch", "positions", "frozen_patch", "drop_path", "layer_scale", "qkv_bias")
# Paths of a block's parameters.
INSIDE = re.compile(
    r"block(\d+)/(?:(?:norm[12]|attention_scale|mlp_scale)/(?:scale|bias)"
    r"|(?:attention/(?:query|key|value|out)|dense[12])/(?:kernel|bias))"
)


def sincos(height: int, width: int, dim: int, temperature: float = 10_000.0) -> np.ndarray:
    """Fixed positions `[height · width, dim]` float32 of a grid, row by row (moco-v3, `vits.py`).

    A quarter of the numbers each: sines and cosines of the row, sines and cosines of the column, at the
    frequencies temperature^(-4k/dim), k = 0, 1, ...
    """
    omega = temperature ** -(np.arange(dim // 4) / (dim // 4))
    rows, columns = np.meshgrid(np.arange(height), np.arange(width), indexing="ij")
    angles = [np.outer(at.ravel(), omega) for at in (rows, columns)]
    waves = [wave(angle) for angle in angles for wave in (np.sin, np.cos)]
    return np.concatenate(waves, axis=1).astype(np.float32)


def bicubic(size: int, out: int) -> np.ndarray:
    """The matrix `[out, size]` float64 that resizes as PyTorch's bicubic without antialiasing does.

    Keys' kernel with a = -3/4 between pixel centres; edges are repeated. DeiT does this to positions.
    """
    at = (np.arange(out) + 0.5) * size / out - 0.5
    first = np.floor(at)
    matrix = np.zeros((out, size))
    for tap in range(-1, 3):
        x = np.abs(at - (first + tap))
        near, far = (1.25 * x - 2.25) * x**2 + 1, ((-0.75 * x + 3.75) * x - 6) * x + 3
        column = np.clip(first + tap, 0, size - 1).astype(int)
        np.add.at(matrix, (np.arange(out), column), np.where(x <= 1, near, far))
    return matrix


class Attention(nn.Module):
    """Self-attention of tokens `[n, t, d]`; can also return the attention weights of the pooled token."""

    heads: int
    bias: bool
    dtype: jnp.dtype
    param_dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, pool: str) -> tuple[jax.Array, jax.Array]:
        """(tokens `[n, t, d]`, attention of the pooled token to all `[n, heads, t]`).

        Args:
          pool: the query of the returned attention: "token", the first token, or "mean", the mean query.
        """
        n, t, d = x.shape
        fields: dict[str, Any] = {"kernel_init": XAVIER, "dtype": self.dtype, "param_dtype": self.param_dtype}

        def split(name: str) -> jax.Array:
            # moco-v3 uses the fan of each of the three; separate layers have that automatically.
            y = nn.Dense(d, use_bias=self.bias, name=name, **fields)(x)
            return y.reshape(n, t, self.heads, d // self.heads)

        query, key, value = split("query"), split("key"), split("value")
        mixed = jax.nn.dot_product_attention(query, key, value)  # softmax in float32 at least
        one = query[:, 0] if pool == "token" else jnp.mean(query, axis=1)
        high = jnp.promote_types(self.dtype, jnp.float32)
        logits = jnp.einsum("nhd,nthd->nht", one, key, preferred_element_type=high)
        picture = jax.nn.softmax(logits * (d // self.heads) ** -0.5, axis=-1)
        return nn.Dense(d, name="out", **fields)(mixed.reshape(n, t, d)), picture


class Scale(nn.Module):
    """A learned factor for each channel (LayerScale, Touvron et al., arXiv 2103.17239)."""

    first: float
    dtype: jnp.dtype
    param_dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        init = nn.initializers.constant(self.first)
        scale = self.param("scale", init, x.shape[-1:], self.param_dtype).astype(self.dtype)
        return x * scale.reshape(1, 1, -1)


class Block(nn.Module):
    """Pre-norm transformer block: attention and an MLP, each with a shortcut. Fields as in `ViT`."""

    heads: int
    mlp: int
    pooling: str
    drop: float  # probability that an example drops a branch
    layer_scale: float
    qkv_bias: bool
    dtype: jnp.dtype
    param_dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """(tokens `[n, t, d]`, attention of the pooled token `[n, heads, t]`)."""
        dtypes: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        attention = Attention(self.heads, self.qkv_bias, name="attention", **dtypes)
        y, picture = attention(norm("norm1", **dtypes)(x), self.pooling)
        x = x + self.branch(y, "attention_scale")
        y = nn.Dense(self.mlp, kernel_init=XAVIER, name="dense1", **dtypes)(norm("norm2", **dtypes)(x))
        y = nn.Dense(x.shape[-1], kernel_init=XAVIER, name="dense2", **dtypes)(nn.gelu(y, approximate=False))
        return x + self.branch(y, "mlp_scale"), picture

    def branch(self, x: jax.Array, name: str) -> jax.Array:
        """The output of a branch, scaled, and dropped for some examples (stochastic depth)."""
        if self.layer_scale:
            x = Scale(self.layer_scale, self.dtype, self.param_dtype, name=name)(x)
        if not self.drop:
            return x
        kept = jax.random.bernoulli(self.make_rng("dropblock"), 1 - self.drop, (len(x), 1, 1))
        return jnp.where(kept, x / (1 - self.drop), 0).astype(x.dtype)


def first(tokens: jax.Array) -> jax.Array:
    """The first of tokens `[n, t, d]`.

    By a slice: for `[:, 0]` with a symbol as n, JAX makes a gather that LiteRT lacks.
    """
    return jax.lax.index_in_dim(tokens, 0, axis=1, keepdims=False)


def norm(name: str, **dtypes: Any) -> nn.LayerNorm:
    """A LayerNorm with statistics in at least float32."""
    return nn.LayerNorm(epsilon=EPSILON, use_fast_variance=False, name=name, **dtypes)


class ViT(nn.Module):
    """Images `[n, h, w, c]` to endpoints. Stage 0 is the embedding, stage k block k.

    embedding, block1 .. blockN: tokens `[n, t, d]`, the class token first; tokens: the same after the last
    LayerNorm; features `[n, d]`; attention `[n, heads, h', w']`: that of the class token to the patches in
    the last block, as DINO draws it (arXiv 2104.14294).

    With mean pooling there is neither a class token nor a last LayerNorm: before a contrastive loss
    LayerNorm and pooling cost 6.8 points of ImageNet (moco-v3, section 6.2). The attention then is that of
    the mean query.

    Parameters: patch, class_token, positions (if learned), block1 .. blockN, norm.
    """

    patch: int
    width: int
    depth: int
    heads: int
    mlp: int
    pooling: str = "token"
    positions: str = "sincos"
    frozen_patch: bool = False
    drop_path: float = 0.0
    layer_scale: float = 0.0
    qkv_bias: bool = True
    remat: bool = False
    dtype: jnp.dtype = jnp.float32
    param_dtype: jnp.dtype = jnp.float32

    features = "features"  # the endpoint that is the representation
    last = "tokens"  # the endpoint whose maps Grad-CAM reads

    @property
    def stages(self) -> tuple[str, ...]:
        """The embedding (patches, class token, positions) and the blocks."""
        return ("embedding", *(f"block{i + 1}" for i in range(self.depth)))

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        train: bool,
        frozen: int = -1,
        frozen_train: bool = False,
        kept: jax.Array | None = None,
    ) -> dict[str, jax.Array]:
        """The endpoints; `train` turns stochastic depth on, `frozen_train` in frozen stages too.

        Args:
          kept: numbers `[n, t']` int32 of the patches that it sees, counted row by row, in the order of their
            tokens (MAE, arXiv 2111.06377, section 3); None: all. Features are of these patches alone. There
            is no endpoint attention then, and tokens stand on no grid: `maps` is not for them.

        Raises:
          SimclrError: no whole number of patches fits the images, or positions were learned for others.
        """
        dtypes: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}

        def done(stage: int, x: jax.Array) -> jax.Array:
            return jax.lax.stop_gradient(x) if stage <= min(frozen, self.depth) else x

        grid = grid_of(x.shape[1:], self.patch)
        x = done(0, self.embed(x, grid, kept))
        ends = {"embedding": x}
        block = nn.remat(Block) if self.remat else Block
        for i in range(self.depth):
            moves = train and not self.is_initializing() and (i + 1 > frozen or frozen_train)
            x, attention = block(
                heads=self.heads,
                mlp=self.mlp,
                pooling=self.pooling,
                drop=self.drop_path * i / max(self.depth - 1, 1) if moves else 0.0,
                layer_scale=self.layer_scale,
                qkv_bias=self.qkv_bias,
                name=f"block{i + 1}",
                **dtypes,
            )(x)
            x = ends[f"block{i + 1}"] = done(i + 1, x)
        if self.pooling == "token":
            x = done(self.depth, norm("norm", **dtypes)(x))
        if kept is None:
            patches = done(self.depth, attention)[:, :, -grid[0] * grid[1] :]
            ends["attention"] = patches.reshape(*patches.shape[:2], *grid)
        ends["tokens"] = x
        ends["features"] = first(x) if self.pooling == "token" else jnp.mean(x, axis=1)
        return ends

    def embed(self, x: jax.Array, grid: tuple[int, int], kept: jax.Array | None) -> jax.Array:
        """Tokens `[n, t, d]` of images: projected patches with their positions, and the class token."""
        n, p = x.shape[0], self.patch  # n can be a symbol, which `len` cannot give
        x = x.reshape(n, grid[0], p, grid[1], p, -1).transpose(0, 1, 3, 2, 4, 5)
        x = x.reshape(n, grid[0] * grid[1], -1)
        # A dense layer instead of a convolution, so that xavier-uniform computes moco-v3's fan.
        dense = nn.Dense(
            self.width, kernel_init=XAVIER, dtype=self.dtype, param_dtype=self.param_dtype, name="patch"
        )
        x = dense(x)
        x = jax.lax.stop_gradient(x) if self.frozen_patch else x
        if self.pooling == "token":
            init = nn.initializers.normal(1e-6)  # moco-v3's
            token = self.param("class_token", init, (self.width,), self.param_dtype)
            token = jnp.broadcast_to(token.astype(x.dtype), (n, 1, self.width))
            x = jnp.concatenate([token, x], axis=1)
        x = x + self.places(grid)[None].astype(x.dtype)
        if kept is None:
            return x
        prefix = x.shape[1] - grid[0] * grid[1]
        seen = jnp.take_along_axis(x[:, prefix:], kept[:, :, None], axis=1)
        return jnp.concatenate([x[:, :prefix], seen], axis=1)

    def places(self, grid: tuple[int, int]) -> jax.Array:
        """Positions `[t, d]`. The class token's comes first; with sines and cosines it is 0."""
        prefix = int(self.pooling == "token")
        if self.positions == "sincos":
            return jnp.asarray(np.pad(sincos(*grid, self.width), [(prefix, 0), (0, 0)]))
        shape = (prefix + grid[0] * grid[1], self.width)
        learned = self.get_variable("params", "positions")
        if learned is not None and learned.shape != shape:
            raise SimclrError(
                f"images of {grid[0] * self.patch} × {grid[1] * self.patch} pixels are {shape[0]} tokens, "
                f"but this ViT learned the positions of {learned.shape[0]}: give images of its own size"
            )
        # The deviation of ViT, timm and torchvision; moco-v3 has no learned positions.
        return self.param("positions", nn.initializers.normal(0.02), shape, self.param_dtype)

    def stage_of(self, path: str) -> int:
        """0 for the embedding, k for block k; the last LayerNorm belongs to the last block.

        Raises:
          ValueError: the encoder has no such parameter.
        """
        if path in ("patch/kernel", "patch/bias", "class_token", "positions"):
            return 0
        if path in ("norm/scale", "norm/bias"):
            return self.depth
        match = INSIDE.fullmatch(path)
        if not match or not 1 <= int(match[1]) <= self.depth:
            raise ValueError(f"a ViT of {self.depth} blocks has no parameter {path!r}")
        return int(match[1])

    def trainable(self, path: str) -> bool:
        """False for a frozen patch projection, which gets no weight decay either; else True."""
        return not (self.frozen_patch and path.startswith("patch/"))

    def maps(self, name: str, x: jax.Array) -> jax.Array | None:
        """An endpoint as maps `[n, h', w', c]` without the class token; None if it has no grid.

        The number of tokens gives the grid only of a square image; for others the result is None. Tokens of
        a part of the patches (`kept`) have no grid, but their number can be a square: do not ask for them.
        """
        if name == "features":
            return None
        if name == "attention":
            return jnp.moveaxis(x, 1, -1)
        x = x[:, int(self.pooling == "token") :]
        side = math.isqrt(x.shape[1])
        return x.reshape(len(x), side, side, -1) if side**2 == x.shape[1] else None

    def pool(self, maps: jax.Array) -> jax.Array | None:
        """Maps of the last tokens `[n, h', w', d]` as features `[n, d]`; None with a class token."""
        return jnp.mean(maps, axis=(1, 2)) if self.pooling == "mean" else None

    def adapt(self, params: Any, old: jax.ShapeDtypeStruct, new: jax.ShapeDtypeStruct) -> Any:
        """The encoder's parameters for images of another size: learned positions are interpolated.

        Bicubic without antialiasing, as in DeiT's code; the class token keeps its position. Sines and cosines
        need no conversion.

        Args:
          old, new: one example each, `[h, w, c]`.
        """
        before, after = (grid_of(spec.shape, self.patch) for spec in (old, new))
        if "positions" not in params or before == after:
            return params
        positions = jnp.asarray(params["positions"])
        prefix = positions.shape[0] - before[0] * before[1]
        high = jnp.promote_types(positions.dtype, jnp.float32)
        grid = positions[prefix:].astype(high).reshape(*before, -1)
        rows, columns = (jnp.asarray(bicubic(a, b), high) for a, b in zip(before, after, strict=True))
        grid = jnp.einsum("ah,bw,hwd->abd", rows, columns, grid, precision=Precision.HIGHEST)
        grid = grid.reshape(after[0] * after[1], -1).astype(positions.dtype)
        return {**params, "positions": jnp.concatenate([positions[:prefix], grid])}


def grid_of(image: tuple[int, ...], patch: int) -> tuple[int, int]:
    """(rows, columns) of patches of an image of this shape (h, w, c).

    Raises:
      SimclrError: a side is no multiple of the patch.
    """
    if image[0] % patch or image[1] % patch:
        raise SimclrError(
            f"config.model.vit.patch={patch}: must divide the sides of the images, {image[0]} × {image[1]}"
        )
    return image[0] // patch, image[1] // patch


def create(model: Mapping[str, Any], *, dtype: Any, param_dtype: Any) -> Encoder:
    """The ViT of `config.model`: its fields `vit` (explained in vit_fields.py) and `remat`.

    Learned positions fit only the image size at initialisation.
    """
    vit = model["vit"]
    return ViT(
        **shape_of(vit)._asdict(),
        pooling=vit["pool"],
        remat=model["remat"],
        dtype=dtype,
        param_dtype=param_dtype,
        **{name: vit[name] for name in AS_THEY_ARE},
    )
