"""Decoders: endpoints of an encoder back to images `[m, h, w, c]`.

They know an encoder by its contract alone (`models.encoder.Encoder`). `variant` chooses:

mirror: convolutions from coarse to fine over the sizes that the encoder's maps have. It upsamples by nearest
    neighbours and a convolution (Odena et al., distill.pub/2016/deconv-checkerboard) or by a sub-pixel
    convolution whose first kernel is ICNR's (Aitken et al., arXiv 1707.02937): neither starts with a
    checkerboard. From maps it is fully convolutional: the same parameters decode images of any size.

tutorial: the other half of `models.tutorial`.

tokens: a small transformer with mask tokens (MAE, He et al., arXiv 2111.06377), for tokens of a ViT.
"""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from simclr_jax.errors import SimclrError
from simclr_jax.models import tutorial_fields
from simclr_jax.models.decoder_fields import LAST
from simclr_jax.models.encoder import Encoder
from simclr_jax.models.simclr import endpoint_name
from simclr_jax.models.vit import XAVIER, Block, norm, sincos

Grid = tuple[int, int]  # rows and columns
Ends = Mapping[str, jax.ShapeDtypeStruct]
HE = nn.initializers.he_normal()
LEAST = 8  # channels
GROUPS = 8  # of GroupNorm, where they divide the channels
HEAD = 32  # numbers of a head of the attention, as in MAE (512 / 16)
TOKENS_MLP = 4  # times the width


class Rung(NamedTuple):
    """Maps of the encoder, by whose size the mirror goes."""

    name: str  # of the endpoint; "": there is none
    maps: tuple[int, int, int]  # rows, columns, channels


class Level(NamedTuple):
    """One step of the mirror up to a finer grid."""

    factor: Grid
    channels: int
    skip: str = ""  # the encoder's maps of this grid, if it has any


# ---- what a decoder is made of ----------------------------------------------------------------------


def _maps(encoder: Encoder, ends: Ends) -> dict[str, tuple[int, int, int]]:
    """{endpoint: (rows, columns, channels)} of those that have a grid."""
    shapes = {name: jax.eval_shape(functools.partial(encoder.maps, name), end) for name, end in ends.items()}
    return {name: maps.shape[1:] for name, maps in shapes.items() if maps is not None}


def _start(options: Mapping[str, Any], encoder: Encoder, ends: Ends) -> str:
    """The endpoint that is decoded.

    Raises:
      SimclrError: the encoder has no such endpoint.
    """
    if options["variant"] == "tutorial" and options["start"] == LAST:
        return encoder.features
    name = encoder.last or encoder.features if options["start"] == LAST else options["start"]
    name = endpoint_name(encoder, name)
    if name not in ends:
        raise SimclrError(
            f"config.model.decoder.start={name!r}: this encoder has {', '.join(ends)}; or give {LAST}"
        )
    return name


def _ladder(encoder: Encoder, ends: Ends, start: str) -> list[Rung]:
    """The maps of each grid from the start's on, coarse to fine.

    Of endpoints on the same grid it is the one that the encoder computes last. From features it begins with
    the coarsest grid of all.
    """
    maps = _maps(encoder, ends)
    order = {name: i for i, name in enumerate(encoder.stages)}
    chosen: dict[Grid, str] = {}
    for name in sorted(maps, key=lambda each: (order.get(each, -1), each)):
        chosen[maps[name][:2]] = name
    if start in maps:
        size = math.prod(maps[start][:2])
        finer = [name for grid, name in chosen.items() if math.prod(grid) > size]
    else:
        finer = list(chosen.values())
    finer.sort(key=lambda name: math.prod(maps[name][:2]))
    return [Rung(name, maps[name]) for name in ([start] if start in maps else []) + finer]


def needs(options: Mapping[str, Any], encoder: Encoder, ends: Ends) -> tuple[str, ...]:
    """The endpoints that the decoder reads.

    Args:
      options: config.model.decoder.
      ends: the encoder's endpoints for a batch.

    Raises:
      SimclrError: the encoder has no endpoint `config.model.decoder.start`.
    """
    start = _start(options, encoder, ends)
    if options["variant"] != "mirror" or not options["skips"]:
        return (start,)
    levels = _levels(options, _ladder(encoder, ends, start))
    return (start, *(level.skip for level in levels if level.skip))


def create(
    options: Mapping[str, Any],
    encoder: Encoder,
    ends: Ends,
    example: jax.ShapeDtypeStruct,
    *,
    dtype: Any,
    param_dtype: Any,
) -> nn.Module:
    """The decoder of `config.model.decoder`; it is called as `Mirror` is, whatever the variant.

    Args:
      options: config.model.decoder.
      ends: the encoder's endpoints `[2, ...]` for a batch of two examples.
      example: one input of the encoder, `[h, w, c]`; outputs have its shape.

    Raises:
      SimclrError: the decoder does not fit this encoder, or the encoder takes no images.
    """
    if len(example.shape) != 3:
        raise SimclrError("config.model.decoder: makes images, and this encoder takes rows of a table")
    start = _start(options, encoder, ends)
    fields = {
        "start": start,
        "example": example.shape,
        "output": options["output"],
        "dtype": dtype,
        "param_dtype": param_dtype,
    }
    if options["variant"] == "mirror":
        return _mirror(options, encoder, ends, fields)
    if options["variant"] == "tokens":
        return _tokens(options, encoder, ends, fields)
    if ends[start].ndim != 2:
        raise SimclrError(f"config.model.decoder.start={start!r}: must be features for variant=tutorial")
    return Tutorial(tuple(_channels(options, width) for width in reversed(tutorial_fields.WIDTHS)), **fields)


def _channels(options: Mapping[str, Any], count: float) -> int:
    return max(LEAST, min(options["channels"], round(count * options["width"])))


def _levels(options: Mapping[str, Any], ladder: Sequence[Rung]) -> list[Level]:
    """The steps up a ladder, each by one prime factor; the steps between two grids halve the channels."""
    levels: list[Level] = []
    channels = ladder[0].maps[2] if ladder else 0
    for below, above in pairwise(ladder):
        factor = [max(1, round(b / a)) for a, b in zip(below.maps[:2], above.maps[:2], strict=True)]
        for step in _primes(factor):
            channels = max(above.maps[2], channels // 2)
            levels.append(Level(step, _channels(options, channels)))
        if above.name and levels:
            channels = above.maps[2]
            levels[-1] = Level(levels[-1].factor, _channels(options, channels), above.name)
    return levels


def _mirror(options: Mapping[str, Any], encoder: Encoder, ends: Ends, fields: dict[str, Any]) -> "Mirror":
    start, (height, width, _) = fields["start"], fields["example"]
    ladder = _ladder(encoder, ends, start)
    if not ladder:  # an encoder without maps: three halvings, as the tutorials have
        stride = tutorial_fields.STRIDE
        ladder = [Rung("", (-(-height // stride), -(-width // stride), tutorial_fields.WIDTHS[-1]))]
    elif ends[start].ndim != 2 and ladder[0].name != start:
        raise SimclrError(f"config.model.decoder.start={start!r}: is neither features nor maps here")
    levels = _levels(options, [*ladder, Rung("", (height, width, 0))])
    return Mirror(
        first=(*ladder[0].maps[:2], _channels(options, ladder[0].maps[2])),
        levels=tuple(levels) or (Level((1, 1), _channels(options, ladder[-1].maps[2])),),
        maps=encoder.maps,
        **{name: options[name] for name in ("skips", "upsample", "blocks", "norm", "activation")},
        **fields,
    )


def _primes(factor: list[int]) -> list[Grid]:
    """Factors of rows and columns as steps by primes: [4, 2] is (2, 2), (2, 1)."""
    steps: list[Grid] = []
    while max(factor) > 1:
        step = [next((p for p in range(2, f + 1) if f % p == 0), 1) for f in factor]
        factor = [f // p for f, p in zip(factor, step, strict=True)]
        steps.append((step[0], step[1]))
    return steps


def _tokens(options: Mapping[str, Any], encoder: Encoder, ends: Ends, fields: dict[str, Any]) -> "Tokens":
    start, (height, width, _) = fields["start"], fields["example"]
    maps = _maps(encoder, ends).get(start)
    if maps is None or ends[start].ndim != 3 or height % maps[0] or width % maps[1]:
        raise SimclrError(
            "config.model.decoder.variant='tokens': is for tokens on a grid that divides the image, as a ViT "
            f"has of a square image; config.model.decoder.start={start!r} is none here"
        )
    heads = max(1, _channels(options, ends[start].shape[2]) // HEAD)
    return Tokens(
        patch=(height // maps[0], width // maps[1]), heads=heads, blocks=options["blocks"], **fields
    )


# ---- layers -------------------------------------------------------------------------------------------


def _size(example: tuple[int, ...], image: jax.Array | None = None) -> Grid:
    """The size of what is made: the image's, if there is one."""
    height, width = example[:2] if image is None else image.shape[1:3]
    return height, width


def _coarser(grid: Grid, factor: Grid) -> Grid:
    """The grid that covers `grid` with pixels of this size."""
    return -(-grid[0] // factor[0]), -(-grid[1] // factor[1])


def fit(x: jax.Array, grid: Grid) -> jax.Array:
    """Maps `[n, h, w, c]` cut to a grid, or their edge repeated up to it; centred, an odd pixel at the end.

    It is where SAME padding places the maps of an image whose side is no multiple of the stride.
    """
    for axis, side in enumerate(grid, 1):
        more = x.shape[axis] - side
        before = abs(more) // 2
        if more > 0:
            x = jax.lax.slice_in_dim(x, before, before + side, axis=axis)
        elif more < 0:
            width = [(0, 0)] * 4
            width[axis] = (before, -more - before)
            x = jnp.pad(x, width, mode="edge")
    return x


def nearest(x: jax.Array, factor: Grid) -> jax.Array:
    """Maps `[n, h, w, c]` with every pixel repeated: `[n, h · rows, w · columns, c]`."""
    return jnp.repeat(jnp.repeat(x, factor[0], axis=1), factor[1], axis=2)


def shuffle(x: jax.Array, factor: Grid) -> jax.Array:
    """Channels to places: `[n, h, w, rows · columns · c]` to `[n, h · rows, w · columns, c]`.

    The sub-pixel layer of Shi et al. (arXiv 1609.05158), section 2.2; the channels of a place are neighbours.
    """
    (n, h, w, _), (rows, columns) = x.shape, factor
    x = x.reshape(n, h, w, rows, columns, -1).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(n, h * rows, w * columns, -1)


def icnr(parts: int) -> Callable[..., jax.Array]:
    """ICNR (arXiv 1707.02937): a kernel drawn for one place, repeated for all `parts` of them.

    So the sub-pixel convolution begins as a convolution followed by nearest neighbours.
    """

    def init(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
        one = HE(key, (*shape[:-1], shape[-1] // parts), dtype)
        return jnp.tile(one, (*[1] * (len(shape) - 1), parts))

    return init


def _conv(
    channels: int, name: str, dtype: Any, param_dtype: Any, init: Callable[..., jax.Array] = HE
) -> nn.Conv:
    """A 3×3 convolution."""
    return nn.Conv(channels, (3, 3), kernel_init=init, name=name, dtype=dtype, param_dtype=param_dtype)


class Up(nn.Module):
    """Maps `[n, h, w, k]` to `[n, h · rows, w · columns, channels]`."""

    factor: Grid
    channels: int
    kind: str  # config.model.decoder.upsample
    dtype: Any
    param_dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        parts = math.prod(self.factor)
        if self.kind == "resize" or parts == 1:
            return _conv(self.channels, "conv", self.dtype, self.param_dtype)(nearest(x, self.factor))
        conv = _conv(parts * self.channels, "conv", self.dtype, self.param_dtype, icnr(parts))
        return shuffle(conv(x), self.factor)


def _finish(x: jax.Array, image: jax.Array | None, output: str) -> jax.Array:
    """The last layer's output as the decoder's, in float32 at least."""
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    if output == "unit":
        return nn.sigmoid(x)
    if output == "logits":
        return x
    if image is None:
        raise SimclrError("config.model.decoder.output='residual': is added to an image, and here is none")
    return image.astype(x.dtype) + x


def _last(output: str) -> Callable[..., jax.Array]:
    """The first kernel of the last layer: a residual begins at 0, so that the image comes out as it is."""
    return nn.initializers.zeros if output == "residual" else nn.initializers.lecun_normal()


class Mirror(nn.Module):
    """Endpoints to images, up the sizes of the encoder's maps; `create` finds them."""

    start: str
    first: tuple[int, int, int]  # the coarsest grid and its channels, to which features are unfolded
    levels: tuple[Level, ...]
    maps: Callable[[str, jax.Array], jax.Array | None]  # Encoder.maps
    example: tuple[int, ...]
    skips: bool
    upsample: str
    blocks: int
    norm: str
    activation: str
    output: str
    dtype: Any
    param_dtype: Any

    @nn.compact
    def __call__(
        self,
        ends: Mapping[str, jax.Array],
        image: jax.Array | None = None,
        kept: jax.Array | None = None,
        condition: jax.Array | None = None,
    ) -> jax.Array:
        """Images `[m, h, w, c]` in [0, 1]; logits or sums with `image` if `output` says so.

        They have the size of `image`, and without one the size of `example`. On sides that are multiples of
        the encoder's stride every map lies over its pixels exactly; on others it is centred.

        Args:
          ends: the endpoints that `needs` names, each `[m, ...]`.
          image: `[m, h, w, c]`, for its size and for output=residual; with skips it is also seen. A decoder
            that was initialised with it always needs it then.
          kept, condition: None; they are of variant=tokens.

        Raises:
          SimclrError: the endpoints do not fit.
        """
        if kept is not None or condition is not None:
            raise SimclrError(
                "config.model.decoder.variant='mirror': must be tokens where patches are hidden"
            )
        size = _size(self.example, image)
        grids = [size]
        for level in reversed(self.levels):
            grids.append(_coarser(grids[-1], level.factor))
        grid, *grids = reversed(grids)
        x = self.begin(ends[self.start], size, grid)
        for i, (level, grid) in enumerate(zip(self.levels, grids, strict=True)):
            up = Up(*level[:2], self.upsample, self.dtype, self.param_dtype, name=f"level{i + 1}_up")
            x = self.climb(i, fit(up(x), grid), [fit(each, grid) for each in self.seen(i, ends, image)])
        x = self.conv(self.example[-1], "out", _last(self.output))(x)
        return _finish(x, image, self.output)

    def begin(self, x: jax.Array, size: Grid, grid: Grid) -> jax.Array:
        """The start as maps on the coarsest grid."""
        if x.ndim == 2:
            if size != _size(self.example):
                raise SimclrError(
                    f"config.model.decoder.start={self.start!r}: makes images of {self.example[0]} × "
                    f"{self.example[1]} pixels alone, not {size[0]} × {size[1]}; maps make images of any size"
                )
            dtypes: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
            x = nn.Dense(math.prod(self.first), name="dense", **dtypes)(x)
            return fit(self.active(x.reshape(-1, *self.first), "dense_norm"), grid)
        maps = self.maps(self.start, x)
        sides = zip(maps.shape[1:3], grid, strict=True) if maps is not None else []
        if maps is None or any(abs(a - b) > max(1, min(a, b) / 2) for a, b in sides):
            raise SimclrError(
                f"config.model.decoder.start={self.start!r}: no maps that fit images of {size[0]} × "
                f"{size[1]} pixels; give multiples of the encoder's stride, here and in training"
            )
        return fit(maps.astype(self.dtype), grid)

    def seen(self, i: int, ends: Mapping[str, jax.Array], image: jax.Array | None) -> list[jax.Array]:
        """What joins at level i: the encoder's maps of its size; at the last level also the image."""
        if not self.skips:
            return []
        name, last = self.levels[i].skip, i + 1 == len(self.levels)
        found = [self.maps(name, ends[name]) if name else None, image if last else None]
        return [each for each in found if each is not None]

    def conv(self, channels: int, name: str, init: Callable[..., jax.Array] = HE) -> nn.Conv:
        return _conv(channels, name, self.dtype, self.param_dtype, init)

    def active(self, x: jax.Array, name: str) -> jax.Array:
        """Normalised, then the activation."""
        dtypes: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype, "name": name}
        if self.norm == "layer":
            x = nn.LayerNorm(epsilon=1e-6, **dtypes)(x)
        elif self.norm == "group":
            x = nn.GroupNorm(math.gcd(GROUPS, x.shape[-1]), **dtypes)(x)
        return nn.relu(x) if self.activation == "relu" else nn.gelu(x)

    def climb(self, i: int, x: jax.Array, seen: list[jax.Array]) -> jax.Array:
        """The rest of level i: what is seen of its size joins, and further convolutions."""
        name, channels = f"level{i + 1}", self.levels[i].channels
        x = self.active(x, f"{name}_norm")
        if seen:
            x = jnp.concatenate([x, *(each.astype(x.dtype) for each in seen)], axis=-1)
            x = self.active(self.conv(channels, f"{name}_join")(x), f"{name}_join_norm")
        for block in range(2, self.blocks + 1):
            x = x + self.active(self.conv(channels, f"{name}_conv{block}")(x), f"{name}_norm{block}")
        return x


class Tutorial(nn.Module):
    """Features `[m, d]` to images, as the tutorials: dense, three 4×4 transposed convolutions of stride 2.

    Between them ReLU, at the end a sigmoid (`output` unit). The maps have the sides of the encoder's: 4, 8,
    16, 32. For images of 28 pixels the last row and column behind the first transposed convolution are cut,
    which gives 4, 7, 14, 28.
    """

    channels: tuple[int, ...]  # of the dense layer's maps and behind all transposed convolutions but the last
    start: str
    example: tuple[int, ...]
    output: str
    dtype: Any
    param_dtype: Any

    @nn.compact
    def __call__(
        self,
        ends: Mapping[str, jax.Array],
        image: jax.Array | None = None,
        kept: jax.Array | None = None,
        condition: jax.Array | None = None,
    ) -> jax.Array:
        """Images `[m, h, w, c]` of the size of `example`; arguments as in `Mirror`."""
        dtypes: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        size = _size(self.example)
        if kept is not None or condition is not None or _size(self.example, image) != size:
            raise SimclrError(
                "config.model.decoder.variant='tutorial': makes images of one size, from all of an image"
            )
        grids = [_coarser(size, (2**i, 2**i)) for i in range(len(self.channels), -1, -1)]
        x = nn.Dense(math.prod(grids[0]) * self.channels[0], name="dense", **dtypes)(ends[self.start])
        x = nn.relu(x).reshape(len(x), *grids[0], self.channels[0])
        widths, kernel = (*self.channels[1:], self.example[-1]), (tutorial_fields.KERNEL,) * 2
        for i, (width, grid) in enumerate(zip(widths, grids[1:], strict=True), 1):
            last = i == len(widths)
            init = _last(self.output) if last else HE
            up = nn.ConvTranspose(width, kernel, (2, 2), kernel_init=init, name=f"conv{i}", **dtypes)
            x = fit(up(x), grid)
            x = x if last else nn.relu(x)
        return _finish(x, image, self.output)


class Tokens(nn.Module):
    """Tokens of a ViT to images by a small transformer (MAE, arXiv 2111.06377, section 3).

    A dense layer to the decoder's width, the learned mask token at hidden patches, fixed positions (0 for a
    class token), pre-norm blocks, LayerNorm, a dense layer to the pixels of each patch.
    """

    patch: Grid
    heads: int
    blocks: int
    start: str
    example: tuple[int, ...]
    output: str
    dtype: Any
    param_dtype: Any

    @nn.compact
    def __call__(
        self,
        ends: Mapping[str, jax.Array],
        image: jax.Array | None = None,
        kept: jax.Array | None = None,
        condition: jax.Array | None = None,
    ) -> jax.Array:
        """Images `[m, h, w, c]`, all patches of them.

        Args:
          ends: tokens `[m, t, d]`, a class token first if the encoder has one.
          image: for its size and for output=residual.
          kept: numbers `[m, t']` int32 of the patches that the encoder saw, in the order of their tokens.
          condition: `[m, k]`, of each image, for example the embedded level of its noise: two dense layers
            with ReLU, then it is added to every token (CAN, arXiv 2210.16870).

        Raises:
          SimclrError: the tokens do not fit the images.
        """
        dtypes: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        width, tokens = self.heads * HEAD, ends[self.start]
        height, across = _size(self.example, image)
        grid = (height // self.patch[0], across // self.patch[1])
        count = math.prod(grid)
        prefix = tokens.shape[1] - (count if kept is None else kept.shape[1])
        if prefix not in (0, 1) or height % self.patch[0] or across % self.patch[1]:
            raise SimclrError(
                f"config.model.decoder.start={self.start!r}: {tokens.shape[1]} tokens do not fit images of "
                f"{height} × {across} pixels in patches of {self.patch[0]} × {self.patch[1]}"
            )
        x = nn.Dense(width, kernel_init=XAVIER, name="embed", **dtypes)(tokens)
        if kept is not None:
            mask = self.param("mask_token", nn.initializers.normal(0.02), (width,), self.param_dtype)
            everywhere = jnp.broadcast_to(mask.astype(x.dtype), (len(x), count, width))
            # Image by image, or a mesh would gather the batch.
            seen = jax.vmap(lambda e, i, v: e.at[i].set(v))(everywhere, kept, x[:, prefix:])
            x = jnp.concatenate([x[:, :prefix], seen], axis=1)
        x = x.at[:, prefix:].add(jnp.asarray(sincos(*grid, width), x.dtype)[None])
        if condition is not None:
            told = nn.relu(nn.Dense(width, name="condition1", **dtypes)(condition))
            x = x + nn.Dense(width, name="condition2", **dtypes)(told)[:, None]
        for i in range(1, self.blocks + 1):
            block = Block(self.heads, TOKENS_MLP * width, "token", 0.0, 0.0, True, name=f"block{i}", **dtypes)
            x, _ = block(x)
        x = norm("norm", **dtypes)(x)[:, prefix:]
        pixels = math.prod(self.patch) * self.example[-1]
        x = nn.Dense(pixels, kernel_init=_last(self.output), name="out", **dtypes)(x)
        return _finish(self.unfolded(x, grid), image, self.output)

    def unfolded(self, x: jax.Array, grid: Grid) -> jax.Array:
        """Pixels of patches `[n, t, p · p · c]` as images `[n, h, w, c]`."""
        x = x.reshape(len(x), *grid, *self.patch, -1).transpose(0, 1, 3, 2, 4, 5)
        return x.reshape(len(x), grid[0] * self.patch[0], grid[1] * self.patch[1], -1)
