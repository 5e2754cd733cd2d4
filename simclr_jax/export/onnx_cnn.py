"""The small CNN and the tutorials' encoder as ONNX operators."""

from typing import Any

from simclr_jax.export.onnx_graph import INTS, Layers, Map, outcome, same


def cnn(layers: Layers, network: Any, x: Map) -> dict[str, Map | str]:
    """The endpoints of `models.cnn.CNN`."""
    found: dict[str, Map | str] = {}
    for i, kernel in enumerate(network.kernels, 1):
        before, window = x, {"stride": 2, "pad": same(x.side, kernel, 2)}
        x = found[f"block_group{i}"] = layers.relu(layers.conv(x, f"conv{i}", f"norm{i}", **window))
        found.setdefault("initial_conv", layers.conv(before, f"conv{i}", **window))  # without BatchNorm
    # Quadrants of an odd map overlap in its middle row and column.
    size, stride = -(-x.side // 2), x.side // 2 or 1
    window = {"kernel_shape": [size] * 2, "strides": [stride] * 2}
    quarters = Map(layers.graph.op("AveragePool", x.name, **window), outcome(x.side, size, stride, (0, 0)))
    count = quarters.side**2 * network.widths[-1]
    return {**found, "final_avg_pool": flat(layers, quarters, count)}


def tutorial(layers: Layers, network: Any, x: Map) -> dict[str, Map | str]:
    """The endpoints of `models.tutorial.Tutorial`."""
    found: dict[str, Map | str] = {}
    for i in range(1, len(network.widths) + 1):
        size = len(layers.params[f"conv{i}"]["kernel"])
        x = layers.relu(layers.conv(x, f"conv{i}", stride=2, pad=same(x.side, size, 2)))
        found[f"block_group{i}"] = x
    rows = flat(layers, x, len(layers.params["dense"]["kernel"]))
    return {**found, "features": layers.dense(rows, "dense")}


def flat(layers: Layers, x: Map, count: int) -> str:
    """Maps as rows `[n, count]`, the channel running fastest."""
    turned = layers.graph.op("Transpose", x.name, perm=[0, 2, 3, 1])
    return layers.graph.op("Reshape", turned, layers.graph.constant([-1, count], INTS))
