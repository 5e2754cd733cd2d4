"""One list of layers in the order the original creates them, with everybody's names for each."""

from collections.abc import Iterator
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from simclr_jax.errors import SimclrError
from simclr_jax.models.heads import PROJECTIONS
from simclr_jax.models.resnet import DEPTHS

# kind: [(our collection, our leaf, TensorFlow's, PyTorch's)]
CONV = (("params", "kernel", "kernel", "weight"),)
DENSE = (*CONV, ("params", "bias", "bias", "bias"))
NORM = (
    ("params", "scale", "gamma", "weight"),
    ("params", "bias", "beta", "bias"),
    ("batch_stats", "mean", "moving_mean", "running_mean"),
    ("batch_stats", "var", "moving_variance", "running_var"),
)


class Layer(NamedTuple):
    """A layer with variables; names without their last part, the leaf."""

    path: tuple[str, ...]  # ours
    tf1: str  # of the name-based checkpoints
    tf2: str  # of the object-based ones, below model/
    torch: str
    leaves: tuple[tuple[str, str, str, str], ...]


class Leaf(NamedTuple):
    """A variable: (collection, *path) in ours, and its names elsewhere."""

    path: tuple[str, ...]
    tf1: str
    tf2: str
    torch: str


def blocks_of(model: ConfigDict) -> tuple[tuple[int, ...], bool]:
    """(blocks of each group, bottleneck) of a `config.model`."""
    counts, bottleneck = DEPTHS[model.depth]
    return tuple(model.blocks) or counts, bottleneck


def leaves(model: ConfigDict, variables: dict[str, Any]) -> list[Leaf]:
    """Every variable in `variables` of a ResNet `config.model`, in the order of creation.

    Raises:
      SimclrError: it is no ResNet.
    """
    if model.encoder != "resnet":
        raise SimclrError(f"model.encoder={model.encoder!r}: only ResNets have a place in other formats")
    found = []
    for layer in _layers(model, variables["params"]):
        for collection, ours, tf, torch in layer.leaves:
            names = (f"{layer.tf1}/{tf}", f"{layer.tf2}/{tf}", f"{layer.torch}.{torch}")
            found.append(Leaf((collection, *layer.path, ours), *names))
    return found


def _layers(model: ConfigDict, params: dict[str, Any]) -> Iterator[Layer]:
    numbers = {"conv2d": 0, "batch_normalization": 0}

    def layer(kind: str, path: tuple[str, ...], tf2: str, torch: str, leaves=None) -> Layer:
        k, numbers[kind] = numbers[kind], numbers[kind] + 1
        tf1 = f"base_model/{kind}_{k}" if k else f"base_model/{kind}"
        leaves = leaves or (NORM if kind == "batch_normalization" else CONV)
        return Layer(("encoder", *path), tf1, f"resnet_model/{tf2}", torch, leaves)

    def pair(conv: tuple[str, ...], norm: tuple[str, ...], tf2: tuple[str, str], torch: tuple[str, str]):
        yield layer("conv2d", conv, tf2[0], torch[0])
        yield layer("batch_normalization", norm, tf2[1], torch[1])

    stem = "initial_conv_relu_max_pool"
    three = bool(model.sk_ratio) and model.stem == "imagenet"
    for i in range(2 if three else 0):
        tf2 = (f"{stem}/{2 * i}/conv2d", f"{stem}/{2 * i + 1}/bn")
        yield from pair((f"stem_conv{i}",), (f"stem_norm{i}",), tf2, (f"stem_conv{i}", f"stem_bn{i}"))
    last = 4 if three else 0
    tf2 = (f"{stem}/{last}/conv2d", f"{stem}/{last + 2}/bn")
    yield from pair(("stem_conv",), ("stem_norm",), tf2, ("conv1", "bn1"))

    counts, bottleneck = blocks_of(model)
    for g, count in enumerate(counts):
        for b in range(count):
            ours, theirs = f"group{g + 1}_block{b + 1}", f"block_groups/{g}/layers/{b}"
            torch = f"layer{g + 1}.{b}"
            if "shortcut_conv" in params["encoder"][ours]:
                group = "projection_layers" if bottleneck else "shortcut_layers"
                at = 0 if not model.sk_ratio else 2 if g else 1  # after the pooling, which pads in group 2 on
                tf2 = (f"{theirs}/{group}/{at}/conv2d", f"{theirs}/{group}/{at + 1}/bn")
                names = (f"{torch}.downsample.0", f"{torch}.downsample.1")
                yield from pair((ours, "shortcut_conv"), (ours, "shortcut_norm"), tf2, names)
            group = "conv_relu_dropblock_layers" if bottleneck else "conv2d_bn_layers"
            at = 0
            for i in range(3 if bottleneck else 2):
                if model.sk_ratio and bottleneck and i == 1:
                    unit, here = f"{theirs}/{group}/{at}", (lambda name, ours=ours: (ours, name))
                    tf2 = (f"{unit}/conv2d_fixed_padding/conv2d", f"{unit}/batch_norm_relu/bn")
                    names = (f"{torch}.sk_conv", f"{torch}.sk_bn")
                    yield from pair(here("sk_conv"), here("sk_norm"), tf2, names)
                    tf2 = (f"{unit}/conv2d_0", f"{unit}/batch_norm_relu_1/bn")
                    names = (f"{torch}.sk_reduce", f"{torch}.sk_reduce_bn")
                    yield from pair(here("sk_reduce"), here("sk_reduce_norm"), tf2, names)
                    yield layer("conv2d", here("sk_expand"), f"{unit}/conv2d_1", f"{torch}.sk_expand")
                    at += 2  # DropBlock follows
                    continue
                tf2 = (f"{theirs}/{group}/{at}/conv2d", f"{theirs}/{group}/{at + 1}/bn")
                names = (f"{torch}.conv{i + 1}", f"{torch}.bn{i + 1}")
                yield from pair((ours, f"conv{i}"), (ours, f"norm{i}"), tf2, names)
                at += 3 if bottleneck else 2
            if model.se_ratio:
                unit = f"{theirs}/{group}/{at}" if bottleneck else f"{theirs}/se_layer"
                for part in ("se_reduce", "se_expand"):
                    yield layer("conv2d", (ours, part), f"{unit}/{part}", f"{torch}.{part}", DENSE)

    layers = PROJECTIONS[model.projection](model.projection_layers)
    kind = "l" if model.projection == "linear" else "nl"
    for i in range(layers):
        if f"dense{i}" not in params.get("projection", {}):
            break  # a classifier that sits in the middle of the head has no more of it
        tf1, tf2 = f"head_contrastive/{kind}_{i}", f"_projection_head/linear_layers/{i}"
        yield Layer(("projection", f"dense{i}"), f"{tf1}/dense", f"{tf2}/dense", f"projection.dense{i}", CONV)
        norm = NORM if i < layers - 1 else (NORM[0], *NORM[2:])
        names = (f"{tf1}/batch_normalization", f"{tf2}/bn_relu/bn", f"projection.norm{i}")
        yield Layer(("projection", f"norm{i}"), *names, norm)
    if "probe" in params:
        names = ("head_supervised/linear_layer/dense", "supervised_head/linear_layer/dense", "fc")
        yield Layer(("probe", "dense"), *names, DENSE)


def get(tree: dict[str, Any], path: tuple[str, ...]) -> Any:
    """tree["a"]["b"]["c"] for the path (a, b, c)."""
    for key in path:
        tree = tree[key]
    return tree


def put(tree: dict[str, Any], path: tuple[str, ...], value: Any) -> None:
    """Sets tree["a"]["b"]["c"], making what lacks on the way."""
    for key in path[:-1]:
        tree = tree.setdefault(key, {})
    tree[path[-1]] = value
