"""The ResNet as ONNX operators: the original's and torchvision's, with selective kernels and gates."""

from typing import Any

from simclr_jax.export.onnx_graph import Layers, Map, both_axes, outcome, same
from simclr_jax.models.resnet_fields import STEMS

ENTIRE = {1: (0, 0), 3: (1, 1)}  # size of a convolution: the pixels that its lines get before and after


def resnet(layers: Layers, network: Any, x: Map) -> dict[str, Map | str]:
    """The endpoints of `models.resnet.ResNet`."""
    found: dict[str, Map | str] = {}
    x = found["initial_max_pool"] = stem(layers, network, x, found)
    for group, count in enumerate(network.blocks, 1):
        for i in range(count):
            stride = 2 if group > 1 and i == 0 else 1
            x = block(layers.inside(f"group{group}_block{i + 1}"), network, x, stride)
        found[f"block_group{group}"] = x
    return {**found, "final_avg_pool": layers.mean(x)}


def stem(layers: Layers, network: Any, x: Map, found: dict[str, Map | str]) -> Map:
    """What is before the first block; adds initial_conv, which is before BatchNorm, to `found`."""
    size, stride, pad = STEMS[network.stem]
    if network.sk_ratio and network.stem == "imagenet":  # ResNet-D: three 3×3 instead of one 7×7
        for i, step in enumerate((2, 1)):
            x = layers.relu(layers.conv(x, f"stem_conv{i}", f"stem_norm{i}", stride=step, pad=(1, 1)))
        size, stride = 3, 1
    around = ((size - 1) // 2, size // 2) if pad is None else (pad, pad)
    before, window = x, {"stride": stride, "pad": around}
    x = layers.relu(layers.conv(x, "stem_conv", "stem_norm", **window))
    found["initial_conv"] = layers.conv(before, "stem_conv", **window)
    if network.stem != "imagenet":
        return x
    around = same(x.side, 3, 2) if network.variant == "original" else (1, 1)
    return pool(layers, x, "MaxPool", 3, 2, around)


def pool(layers: Layers, x: Map, kind: str, size: int, stride: int, pad: tuple[int, int], **more: int) -> Map:
    """MaxPool or AveragePool over windows of `size` pixels."""
    window = {"kernel_shape": [size] * 2, "strides": [stride] * 2, "pads": both_axes(pad)}
    return Map(layers.graph.op(kind, x.name, **window, **more), outcome(x.side, size, stride, pad))


def block(layers: Layers, network: Any, x: Map, stride: int) -> Map:
    """A residual block."""
    kernels, shortcut = (1, 3, 1) if network.bottleneck else (3, 3), x
    if "shortcut_conv" in layers.params:
        shortcut = project(layers, network, x, stride)
    strided = kernels.index(3)  # v1.5: the first 3×3 convolution strides
    for i, size in enumerate(kernels):
        step = stride if i == strided else 1
        if "sk_conv" in layers.params and size == 3:
            x = select(layers, x, step)
            continue
        x = layers.conv(x, f"conv{i}", f"norm{i}", stride=step, pad=ENTIRE[size])
        x = x if i == len(kernels) - 1 else layers.relu(x)
    if "se_reduce" in layers.params:
        x = excite(layers, x)
    return layers.relu(x._replace(name=layers.graph.op("Add", x.name, shortcut.name)))


def project(layers: Layers, network: Any, x: Map, stride: int) -> Map:
    """The shortcut with a convolution, behind ResNet-D's mean of 2×2 pixels where kernels are selected."""
    if network.sk_ratio:
        # At stride 2 the mean includes the padded zeros, at stride 1 it does not.
        x = pool(layers, x, "AveragePool", 2, stride, (0, 1), count_include_pad=int(stride > 1))
        stride = 1
    return layers.conv(x, "shortcut_conv", "shortcut_norm", stride=stride)


def select(layers: Layers, x: Map, stride: int) -> Map:
    """Two 3×3 convolutions mixed by a softmax of their pooled sum, which for two is a sigmoid."""
    op = layers.graph.op
    x = layers.relu(layers.conv(x, "sk_conv", "sk_norm", stride=stride, pad=(1, 1)))
    one, other = layers.graph.ops("Split", x.name, outputs=2, axis=1)
    pooled = Map(layers.mean(Map(op("Add", one, other), x.side), keep=True), 1)
    mixing = layers.relu(layers.conv(pooled, "sk_reduce", "sk_reduce_norm"))
    mixing = layers.graph.ops("Split", layers.conv(mixing, "sk_expand").name, outputs=2, axis=1)
    share = op("Sigmoid", op("Sub", *mixing))
    rest = op("Sub", layers.graph.constant(1.0), share)
    return x._replace(name=op("Add", op("Mul", one, share), op("Mul", other, rest)))


def excite(layers: Layers, x: Map) -> Map:
    """Channels weighted by a gate of their means."""
    pooled = layers.relu(layers.conv(Map(layers.mean(x, keep=True), 1), "se_reduce"))
    gate = layers.graph.op("Sigmoid", layers.conv(pooled, "se_expand").name)
    return x._replace(name=layers.graph.op("Mul", x.name, gate))
