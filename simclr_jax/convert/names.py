"""Lists the layers in the original's order of creation, with their names in each format."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from simclr_jax.errors import SimclrError
from simclr_jax.models.projection import PROJECTIONS
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
    """A layer with variables; its names lack the last part, the leaf."""

    path: tuple[str, ...]  # ours
    tf1: str  # of the name-based checkpoints
    tf2: str  # of the object-based ones, below model/
    torch: str
    leaves: tuple[tuple[str, str, str, str], ...]


class Leaf(NamedTuple):
    """A variable: `(collection, *path)` in ours, and its names elsewhere."""

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
      SimclrError: the encoder is no ResNet.
    """
    if model.encoder != "resnet":
        raise SimclrError(f"the encoder is a {model.encoder!r}: only ResNets have a place in other formats")
    found = []
    for layer in _layers(model, variables["params"]):
        for collection, ours, tf, torch in layer.leaves:
            names = (f"{layer.tf1}/{tf}", f"{layer.tf2}/{tf}", f"{layer.torch}.{torch}")
            found.append(Leaf((collection, *layer.path, ours), *names))
    return found


def _layers(model: ConfigDict, params: dict[str, Any]) -> Iterator[Layer]:
    yield from _Encoder(model).layers(params["encoder"])
    yield from _heads(model, params)


class _Encoder:
    """Numbers convolutions and BatchNorms as the original creates them."""

    def __init__(self, model: ConfigDict):
        self.model = model
        self.counts, self.bottleneck = blocks_of(model)
        self.numbers = {"conv2d": 0, "batch_normalization": 0}

    def layer(self, kind: str, path: tuple[str, ...], tf2: str, torch: str, leaves: tuple) -> Layer:
        k = self.numbers[kind]
        self.numbers[kind] += 1
        tf1 = f"base_model/{kind}_{k}" if k else f"base_model/{kind}"
        return Layer(("encoder", *path), tf1, f"resnet_model/{tf2}", torch, leaves)

    def conv(self, path: tuple[str, ...], tf2: str, torch: str, leaves: tuple = CONV) -> Layer:
        return self.layer("conv2d", path, tf2, torch, leaves)

    def norm(self, path: tuple[str, ...], tf2: str, torch: str) -> Layer:
        return self.layer("batch_normalization", path, tf2, torch, NORM)

    def layers(self, params: dict[str, Any]) -> Iterator[Layer]:
        yield from self.stem()
        for g, count in enumerate(self.counts):
            for b in range(count):
                yield from self.block(g, b, params)

    def stem(self) -> Iterator[Layer]:
        theirs = "initial_conv_relu_max_pool"
        three = bool(self.model.sk_ratio) and self.model.stem == "imagenet"
        for i in range(2 if three else 0):
            yield self.conv((f"stem_conv{i}",), f"{theirs}/{2 * i}/conv2d", f"stem_conv{i}")
            yield self.norm((f"stem_norm{i}",), f"{theirs}/{2 * i + 1}/bn", f"stem_bn{i}")
        last = 4 if three else 0
        yield self.conv(("stem_conv",), f"{theirs}/{last}/conv2d", "conv1")
        yield self.norm(("stem_norm",), f"{theirs}/{last + 2}/bn", "bn1")

    def block(self, g: int, b: int, params: dict[str, Any]) -> Iterator[Layer]:
        ours, theirs, torch = (
            f"group{g + 1}_block{b + 1}",
            f"block_groups/{g}/layers/{b}",
            f"layer{g + 1}.{b}",
        )
        if "shortcut_conv" in params[ours]:
            unit = f"{theirs}/{'projection' if self.bottleneck else 'shortcut'}_layers"
            at = 0 if not self.model.sk_ratio else 2 if g else 1  # after the pooling, which pads from group 2
            yield self.conv((ours, "shortcut_conv"), f"{unit}/{at}/conv2d", f"{torch}.downsample.0")
            yield self.norm((ours, "shortcut_norm"), f"{unit}/{at + 1}/bn", f"{torch}.downsample.1")
        unit = f"{theirs}/{'conv_relu_dropblock' if self.bottleneck else 'conv2d_bn'}_layers"
        at = 0
        for i in range(3 if self.bottleneck else 2):
            if self.model.sk_ratio and self.bottleneck and i == 1:
                yield from self.selective(ours, f"{unit}/{at}", torch)
                at += 2  # DropBlock follows
                continue
            yield self.conv((ours, f"conv{i}"), f"{unit}/{at}/conv2d", f"{torch}.conv{i + 1}")
            yield self.norm((ours, f"norm{i}"), f"{unit}/{at + 1}/bn", f"{torch}.bn{i + 1}")
            at += 3 if self.bottleneck else 2
        if self.model.se_ratio:
            unit = f"{unit}/{at}" if self.bottleneck else f"{theirs}/se_layer"
            for part in ("se_reduce", "se_expand"):
                yield self.conv((ours, part), f"{unit}/{part}", f"{torch}.{part}", DENSE)

    def selective(self, ours: str, unit: str, torch: str) -> Iterator[Layer]:
        yield self.conv((ours, "sk_conv"), f"{unit}/conv2d_fixed_padding/conv2d", f"{torch}.sk_conv")
        yield self.norm((ours, "sk_norm"), f"{unit}/batch_norm_relu/bn", f"{torch}.sk_bn")
        yield self.conv((ours, "sk_reduce"), f"{unit}/conv2d_0", f"{torch}.sk_reduce")
        yield self.norm((ours, "sk_reduce_norm"), f"{unit}/batch_norm_relu_1/bn", f"{torch}.sk_reduce_bn")
        yield self.conv((ours, "sk_expand"), f"{unit}/conv2d_1", f"{torch}.sk_expand")


def _heads(model: ConfigDict, params: dict[str, Any]) -> Iterator[Layer]:
    layers = PROJECTIONS[model.projection](model.projection_layers)
    kind = "l" if model.projection == "linear" else "nl"
    for i in range(layers):
        if f"dense{i}" not in params.get("projection", {}):
            break  # a classifier in the middle of the head: the later layers are missing
        tf1, tf2 = f"head_contrastive/{kind}_{i}", f"_projection_head/linear_layers/{i}"
        yield Layer(("projection", f"dense{i}"), f"{tf1}/dense", f"{tf2}/dense", f"projection.dense{i}", CONV)
        leaves = NORM if i < layers - 1 else (NORM[0], *NORM[2:])  # the last has no beta
        theirs = (f"{tf1}/batch_normalization", f"{tf2}/bn_relu/bn", f"projection.norm{i}")
        yield Layer(("projection", f"norm{i}"), *theirs, leaves)
    if "probe" in params:
        theirs = ("head_supervised/linear_layer/dense", "supervised_head/linear_layer/dense", "fc")
        yield Layer(("probe", "dense"), *theirs, DENSE)


def get(tree: Mapping[str, Any], path: tuple[str, ...]) -> Any:
    """tree["a"]["b"]["c"] for the path (a, b, c)."""
    for key in path:
        tree = tree[key]
    return tree


def put(tree: dict[str, Any], path: tuple[str, ...], value: Any) -> None:
    """Sets tree["a"]["b"]["c"]; creates missing dicts on the way."""
    for key in path[:-1]:
        tree = tree.setdefault(key, {})
    tree[path[-1]] = value
