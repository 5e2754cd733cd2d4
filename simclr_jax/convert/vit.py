"""Converts state dicts of vision transformers with timm's or torchvision's names, in NumPy only.

DeiT, DINO and moco-v3 use timm's names. Both libraries compute the same function as `models.vit`. The weights
do not contain the number of heads; a head has width 64, except in ViT-H, ViT-g and moco-v3's ViT-S.
"""

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from simclr_jax.convert.names import get, put
from simclr_jax.errors import SimclrError
from simclr_jax.models.vit import sincos
from simclr_jax.models.vit_fields import SIZES, shape_of

HEADS = {1280: 16, 1408: 16}  # width: heads, for ViT-H and ViT-g; else a head has width 64
MOCO = (384, 12)  # width and heads of moco-v3's ViT-S, which has fixed positions


class Scheme(NamedTuple):
    """One library's names of the layers."""

    patch: str
    summary: str  # the class token
    positions: str
    block: str  # with {} for its number
    inside: tuple[tuple[str, str], ...]  # of a block: (ours, theirs)
    qkv: tuple[str, str]  # weight and bias of query, key and value, stacked
    norm: str
    head: str


TIMM = Scheme(
    patch="patch_embed.proj",
    summary="cls_token",
    positions="pos_embed",
    block="blocks.{}",
    inside=(
        ("norm1", "norm1"),
        ("attention/out", "attn.proj"),
        ("norm2", "norm2"),
        ("dense1", "mlp.fc1"),
        ("dense2", "mlp.fc2"),
    ),
    qkv=("attn.qkv.weight", "attn.qkv.bias"),
    norm="norm",
    head="head",
)
TORCHVISION = Scheme(
    patch="conv_proj",
    summary="class_token",
    positions="encoder.pos_embedding",
    block="encoder.layers.encoder_layer_{}",
    inside=(
        ("norm1", "ln_1"),
        ("attention/out", "self_attention.out_proj"),
        ("norm2", "ln_2"),
        ("dense1", "mlp.0"),
        ("dense2", "mlp.3"),
    ),
    qkv=("self_attention.in_proj_weight", "self_attention.in_proj_bias"),
    norm="encoder.ln",
    head="heads.head",
)
SCHEMES = {"timm": TIMM, "torchvision": TORCHVISION}

# Heads of any kind and the mask token: the features do not depend on them.
LEFT_OUT = re.compile(r"(?:head|heads|pre_logits)\.|mask_token$")
# Parts of other ViTs that `models.vit` lacks: (pattern of a name, description).
UNKNOWN = (
    (r"reg_token|register_tokens", "register tokens"),
    (r"dist_token|head_dist\.", "a distillation token"),
    (r"attn\.[qk]_norm\.", "normalised queries and keys"),
    (r"fc_norm\.", "a LayerNorm behind its pooling"),
    (r"norm_pre\.", "a LayerNorm before its blocks"),
    (r"conv_proj\.\w+\.|patch_embed\.proj\.\d", "a convolutional stem"),
)


class Weights(NamedTuple):
    """A ViT that was read."""

    vit: dict[str, Any]  # fields of config.model.vit
    encoder: dict[str, Any]  # its parameters
    probe: dict[str, Any] | None  # parameters of the linear classifier, if there is one
    image_size: int
    channels: int
    left_out: list[str]  # names


class Dims(NamedTuple):
    """The sizes that determine every variable's shape."""

    width: int
    depth: int
    mlp: int
    patch: int
    channels: int
    tokens: int  # that have a position
    token: bool  # whether there is a class token, and with it the last LayerNorm
    scaled: bool  # whether branches are scaled (LayerScale)
    bias: bool  # of query, key and value


class Leaf(NamedTuple):
    """A variable: our path, their name and shape, and which third of it is ours (query, key, value)."""

    path: str
    name: str
    shape: tuple[int, ...]
    third: int | None = None


def find(names: Iterable[str]) -> list[tuple[str, str]]:
    """(prefix, "timm" or "torchvision") of every ViT among the names of a state dict."""
    names = set(names)
    found = []
    for kind, scheme in SCHEMES.items():
        first, second = f"{scheme.block.format(0)}.{scheme.qkv[0]}", f"{scheme.patch}.weight"
        prefixes = sorted(name.removesuffix(first) for name in names if name.endswith(first))
        found += [(p, kind) for p in prefixes if p + second in names and (not p or p.endswith("."))]
    return found


def read(state: Mapping[str, np.ndarray], where: str, *, heads: int = 0) -> Weights:
    """The ViT of a state dict without prefixes.

    Args:
      state: variables with timm's or torchvision's names.
      where: the file, for messages.
      heads: attention heads; 0: the usual number for this width in timm and torchvision.

    Raises:
      SimclrError: it is no ViT, or one that `models.vit` cannot compute; the line names the variable.
    """
    kinds = [kind for prefix, kind in find(state) if not prefix]
    if not kinds:
        raise SimclrError(f"{where}: no ViT in it, by timm's names or torchvision's")
    scheme = SCHEMES[kinds[0]]
    state = {_modern(name): array for name, array in state.items()}
    dims = _dims(state, scheme, where)
    wanted = list(_leaves(dims, scheme))
    head = [f"{scheme.head}.{leaf}" for leaf in ("weight", "bias")]
    probed = all(name in state for name in head) and not any("pre_logits" in name for name in state)
    taken = {leaf.name for leaf in wanted} | set(head if probed else ())
    left_out = [name for name in state if name not in taken]
    for name in left_out:
        if not LEFT_OUT.match(name):
            raise SimclrError(f"{where}: {_why(name, dims)}")
    encoder: dict[str, Any] = {}
    for leaf in wanted:
        array = _checked(state, leaf, where)
        put(encoder, tuple(leaf.path.split("/")), _to_ours(array, leaf, dims))
    fields, side = _fields(encoder, dims, heads, where)
    if fields["positions"] == "sincos":
        del encoder["positions"]
    probe = None
    if probed:
        weight = Leaf("kernel", head[0], (len(state[head[1]]), dims.width))
        bias = Leaf("bias", head[1], weight.shape[:1])
        kernel = np.ascontiguousarray(_checked(state, weight, where).T)
        probe = {"dense": {"kernel": kernel, "bias": _checked(state, bias, where)}}
    return Weights(fields, encoder, probe, side * dims.patch, dims.channels, left_out)


def write(
    encoder: Mapping[str, Any],
    vit: Mapping[str, Any],
    image_size: int,
    *,
    kind: str = "timm",
    probe: Mapping[str, Any] | None = None,
) -> dict[str, np.ndarray]:
    """The state dict of a ViT, float32.

    Args:
      encoder: its parameters; vit: `config.model.vit`.
      image_size: pixels; fixed positions are written for it.
      kind: "timm" or "torchvision", whose names it gets.
      probe: of a classifier that reads the features.

    Raises:
      SimclrError: torchvision has no such ViT.
    """
    scheme, shape, patch = SCHEMES[kind], shape_of(vit), vit["patch"]
    token, scaled = vit["pool"] == "token", bool(vit["layer_scale"])
    if scheme is TORCHVISION and (scaled or not token):
        what = "layer_scale" if scaled else "pool=mean"
        raise SimclrError(f"torchvision's ViT has no {what}: write it by timm's names")
    side = image_size // patch
    if vit["positions"] == "sincos":
        fixed = np.pad(sincos(side, side, shape.width), [(int(token), 0), (0, 0)])
        encoder = {**encoder, "positions": fixed}
    channels = encoder["patch"]["kernel"].shape[0] // patch**2
    tokens = len(encoder["positions"])
    sizes = (shape.width, shape.depth, shape.mlp, patch, channels)
    dims = Dims(*sizes, tokens, token, scaled, vit["qkv_bias"])
    parts: dict[str, list[np.ndarray]] = {}
    for leaf in _leaves(dims, scheme):
        array = np.asarray(get(encoder, tuple(leaf.path.split("/"))), np.float32)
        parts.setdefault(leaf.name, []).append(_to_theirs(array, leaf, dims))
    state = {name: np.ascontiguousarray(np.concatenate(arrays)) for name, arrays in parts.items()}
    if scheme is TORCHVISION and not vit["qkv_bias"]:  # its blocks always have one
        for i in range(shape.depth):
            state[f"{scheme.block.format(i)}.{scheme.qkv[1]}"] = np.zeros(3 * shape.width, np.float32)
    if probe is not None:
        dense = {name: np.asarray(array, np.float32) for name, array in probe["dense"].items()}
        state |= {
            f"{scheme.head}.weight": np.ascontiguousarray(dense["kernel"].T),
            f"{scheme.head}.bias": dense["bias"],
        }
    return state


def _leaves(dims: Dims, scheme: Scheme) -> Iterator[Leaf]:
    """Every variable of the encoder, in the order of computation."""
    width, mlp = dims.width, dims.mlp
    yield Leaf("patch/kernel", f"{scheme.patch}.weight", (width, dims.channels, dims.patch, dims.patch))
    yield Leaf("patch/bias", f"{scheme.patch}.bias", (width,))
    if dims.token:
        yield Leaf("class_token", scheme.summary, (1, 1, width))
    yield Leaf("positions", scheme.positions, (1, dims.tokens, width))
    kernels = {"attention/out": (width, width), "dense1": (mlp, width), "dense2": (width, mlp)}
    for i in range(dims.depth):
        ours, theirs = f"block{i + 1}", scheme.block.format(i)
        for third, name in enumerate(("query", "key", "value")):
            path, (weight, bias) = f"{ours}/attention/{name}", scheme.qkv
            yield Leaf(f"{path}/kernel", f"{theirs}.{weight}", (3 * width, width), third)
            if dims.bias:
                yield Leaf(f"{path}/bias", f"{theirs}.{bias}", (3 * width,), third)
        for path, name in scheme.inside:
            shape = kernels.get(path, (width,))
            leaf = "kernel" if path in kernels else "scale"
            yield Leaf(f"{ours}/{path}/{leaf}", f"{theirs}.{name}.weight", shape)
            yield Leaf(f"{ours}/{path}/bias", f"{theirs}.{name}.bias", shape[:1])
        for path, name in (("attention_scale", "ls1"), ("mlp_scale", "ls2")) if dims.scaled else ():
            yield Leaf(f"{ours}/{path}/scale", f"{theirs}.{name}.gamma", (width,))
    if dims.token:
        yield Leaf("norm/scale", f"{scheme.norm}.weight", (width,))
        yield Leaf("norm/bias", f"{scheme.norm}.bias", (width,))


def _dims(state: Mapping[str, np.ndarray], scheme: Scheme, where: str) -> Dims:
    """The sizes, from the variables' shapes; raises SimclrError if a variable is missing."""
    first = scheme.block.format(0)
    mlp = f"{first}.{dict(scheme.inside)['dense1']}.weight"
    for name, rank in ((f"{scheme.patch}.weight", 4), (scheme.positions, 3), (mlp, 2)):
        if name not in state:
            raise SimclrError(f"{where}: lacks {name}, which every ViT here has")
        if state[name].ndim != rank or not state[name].size:
            raise SimclrError(f"{where}: {name} has the shape {list(state[name].shape)}, which is no ViT's")
    width, channels, patch, _ = state[f"{scheme.patch}.weight"].shape
    numbers = re.compile(re.escape(scheme.block).replace(r"\{\}", r"(\d+)") + r"\.")
    depth = len({match[1] for name in state if (match := numbers.match(name))})
    sizes = (width, depth, len(state[mlp]), patch, channels, state[scheme.positions].shape[1])
    scaled, biased = f"{first}.ls1.gamma" in state, f"{first}.{scheme.qkv[1]}" in state
    return Dims(*sizes, scheme.summary in state, scaled, biased)


def _fields(encoder: dict[str, Any], dims: Dims, heads: int, where: str) -> tuple[dict[str, Any], int]:
    """(fields of config.model.vit, side of the grid of patches); completes the class token's position."""
    places = dims.tokens - dims.token
    if dims.token and math.isqrt(places) ** 2 != places and math.isqrt(dims.tokens) ** 2 == dims.tokens:
        places = dims.tokens  # timm's no_embed_class: the class token has no position, which is one of 0
        encoder["positions"] = np.pad(encoder["positions"], [(1, 0), (0, 0)])
    side = math.isqrt(places)
    if side**2 != places or not side:
        raise SimclrError(f"{where}: has positions for {dims.tokens} tokens, which are no square image's")
    fixed = False
    if dims.width % 4 == 0:
        table = np.pad(sincos(side, side, dims.width), [(int(dims.token), 0), (0, 0)])
        fixed = np.allclose(encoder["positions"], table, rtol=0, atol=1e-5)
    if not heads:
        moco = fixed and dims.width == MOCO[0]
        heads = MOCO[1] if moco else HEADS.get(dims.width) or dims.width // 64
    if heads < 1 or dims.width % heads:
        raise SimclrError(f"{where}: {heads} heads do not divide its width of {dims.width}; give --heads")
    size = next((size for size, shape in SIZES.items() if shape == (dims.width, dims.depth, heads)), None)
    fields = {
        "size": size or "S",
        "width": 0 if size else dims.width,
        "depth": 0 if size else dims.depth,
        "heads": 0 if size else heads,
        "mlp": 0 if dims.mlp == 4 * dims.width else dims.mlp,
        "patch": dims.patch,
        "pool": "token" if dims.token else "mean",
        "positions": "sincos" if fixed else "learned",
        "layer_scale": 1e-5 if dims.scaled else 0.0,  # any but 0: the factors are there
        "qkv_bias": dims.bias,
    }
    return fields, side


def _why(name: str, dims: Dims) -> str:
    """The reason why a remaining variable cannot be ignored."""
    what = next((what for pattern, what in UNKNOWN if re.search(pattern, name)), None)
    if what is None and not dims.token and name.startswith("norm."):
        what = "mean pooling behind a LayerNorm"
    if what is None:
        return f"{name} has no place in the ViT of simclr_jax"
    return f"{name}: the ViT of simclr_jax does not have {what}"


def _modern(name: str) -> str:
    """torchvision's present name of a layer that early versions named differently."""
    return re.sub(r"\.mlp\.linear_([12])\.", lambda match: f".mlp.{3 * int(match[1]) - 3}.", name)


def _checked(state: Mapping[str, np.ndarray], leaf: Leaf, where: str) -> np.ndarray:
    """The variable as float32; raises SimclrError if it is missing, not finite, or has another shape."""
    if leaf.name not in state:
        raise SimclrError(f"{where}: lacks {leaf.name}")
    array = state[leaf.name]
    if array.shape != leaf.shape:
        raise SimclrError(
            f"{where}: {leaf.name} has the shape {list(array.shape)}, should be {list(leaf.shape)}"
        )
    with np.errstate(over="ignore"):  # infinity is refused below
        array = array.astype(np.float32)
    if not np.isfinite(array).all():
        raise SimclrError(f"{where}: {leaf.name} holds values that are no finite numbers")
    return array


def _to_ours(array: np.ndarray, leaf: Leaf, dims: Dims) -> np.ndarray:
    if leaf.third is not None:
        array = array[leaf.third * dims.width : (leaf.third + 1) * dims.width]
    if array.ndim == 4:  # a convolution is the product with flattened patches
        array = array.transpose(2, 3, 1, 0).reshape(-1, dims.width)
    elif array.ndim == 3:
        array = array[0, 0] if leaf.path == "class_token" else array[0]
    elif array.ndim == 2:
        array = array.T
    return np.ascontiguousarray(array)


def _to_theirs(array: np.ndarray, leaf: Leaf, dims: Dims) -> np.ndarray:
    if len(leaf.shape) == 4:
        return array.reshape(dims.patch, dims.patch, dims.channels, dims.width).transpose(3, 2, 0, 1)
    if len(leaf.shape) == 3:
        return array.reshape(leaf.shape)
    return array.T if len(leaf.shape) == 2 else array
