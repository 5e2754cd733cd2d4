"""Builds ONNX graphs: constants, operators, and the layers that encoders share. Maps are `[n, c, h, w]`."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Self

import numpy as np
import onnx
from onnx import helper, numpy_helper

OPSET, IR_VERSION = 17, 8  # the first with LayerNormalization; read by onnxruntime 1.12 and later
INTS = np.int64


class Map(NamedTuple):
    """A square map `[n, channels, side, side]`; its size is known when the graph is built."""

    name: str
    side: int


class Graph:
    """Nodes and constants, in the order in which they were added."""

    def __init__(self) -> None:
        self._nodes: list[onnx.NodeProto] = []
        self._constants: dict[str, np.ndarray] = {}

    def constant(self, value: Any, dtype: Any = np.float32, name: str = "") -> str:
        """The name of a constant: the given one, or one like it that is free."""
        name = name or f"constant{len(self._constants)}"
        while name in self._constants:
            name += "_"
        self._constants[name] = np.ascontiguousarray(np.asarray(value, dtype)).reshape(np.shape(value))
        return name

    def ops(self, kind: str, *inputs: str, outputs: int, **attributes: Any) -> list[str]:
        """The names of an operator's outputs."""
        number = len(self._nodes)
        names = [f"{kind}{number}_{i}" if outputs > 1 else f"{kind}{number}" for i in range(outputs)]
        self._nodes.append(helper.make_node(kind, list(inputs), names, f"{kind}{number}", **attributes))
        return names

    def op(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """The name of an operator's only output."""
        return self.ops(kind, *inputs, outputs=1, **attributes)[0]

    def rename(self, old: str, new: str) -> str:
        """Calls a tensor by another name."""
        self._nodes.append(helper.make_node("Identity", [old], [new], f"Identity_{new}"))
        return new

    def model(
        self,
        inputs: Sequence[onnx.ValueInfoProto],
        outputs: Sequence[onnx.ValueInfoProto],
        metadata: Mapping[str, str],
    ) -> onnx.ModelProto:
        """The model, without the nodes and constants that no output depends on."""
        needed, nodes = {each.name for each in outputs}, []
        for node in reversed(self._nodes):
            if needed.intersection(node.output):
                needed.update(node.input)
                nodes.append(node)
        constants = [
            numpy_helper.from_array(value, name) for name, value in self._constants.items() if name in needed
        ]
        graph = helper.make_graph(nodes[::-1], "encoder", inputs, outputs, constants)
        version = {"opset_imports": [helper.make_opsetid("", OPSET)], "ir_version": IR_VERSION}
        model = helper.make_model(graph, producer_name="simclr_jax", **version)
        helper.set_model_props(model, dict(metadata))
        return model


class Layers:
    """The layers of a Flax module, by the names of its parameters, as nodes of a graph.

    Attributes:
      graph: where the nodes go.
      params, stats: trees of the module's parameters and of its moving averages.
    """

    def __init__(self, graph: Graph, params: Mapping[str, Any], stats: Mapping[str, Any], place: str = ""):
        self.graph, self.params, self.stats, self._place = graph, params, stats, place

    def inside(self, name: str) -> Self:
        """The layers of a submodule."""
        return type(self)(self.graph, self.params[name], self.stats.get(name, {}), f"{self._place}{name}/")

    def weight(self, value: Any, name: str) -> str:
        """The name of a constant that is called as the parameter it came from."""
        return self.graph.constant(value, name=self._place + name)

    def folded(self, name: str, norm: str = "") -> tuple[np.ndarray, np.ndarray]:
        """(kernel `[..., c]`, bias `[c]`), float64, of a layer and the BatchNorm behind it, if any.

        y = (Wx - mean)·s + beta with s = gamma / sqrt(variance + epsilon) is (W·s)x + (beta - mean·s).
        """
        kernel = np.asarray(self.params[name]["kernel"], np.float64)
        bias = np.asarray(self.params[name].get("bias", np.zeros(kernel.shape[-1])), np.float64)
        if not norm:
            return kernel, bias
        scale, shift = affine(self.params[norm], self.stats[norm])
        return kernel * scale, bias * scale + shift

    def conv(
        self, x: Map, name: str, norm: str = "", *, stride: int = 1, pad: tuple[int, int] = (0, 0)
    ) -> Map:
        """A convolution, with the BatchNorm `norm` in it; `pad` pixels before and after each line."""
        kernel, bias = self.folded(name, norm)
        size = kernel.shape[0]
        inputs = [x.name, self.weight(kernel.transpose(3, 2, 0, 1), f"{name}/kernel")]
        if bias.any():
            inputs.append(self.weight(bias, f"{name}/bias"))
        window = {"kernel_shape": [size] * 2, "strides": [stride] * 2, "pads": both_axes(pad)}
        return Map(self.graph.op("Conv", *inputs, **window), outcome(x.side, size, stride, pad))

    def relu(self, x: Map) -> Map:
        """What is above 0."""
        return x._replace(name=self.graph.op("Relu", x.name))

    def dense(self, x: str, name: str, norm: str = "") -> str:
        """A dense layer on the last axis, with the BatchNorm `norm` in it."""
        kernel, bias = self.folded(name, norm)
        y = self.graph.op("MatMul", x, self.weight(kernel, f"{name}/kernel"))
        return self.graph.op("Add", y, self.weight(bias, f"{name}/bias")) if bias.any() else y

    def mean(self, x: Map, keep: bool = False) -> str:
        """The means over the places of a map: `[n, c]`, or `[n, c, 1, 1]` to `keep` the axes."""
        return self.graph.op("ReduceMean", x.name, axes=[2, 3], keepdims=int(keep))


def affine(params: Mapping[str, Any], stats: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """(scale, shift) `[c]` float64 that a BatchNorm is, by its moving averages."""
    from simclr_jax.models.norm import EPSILON

    mean, var = (np.asarray(stats[name], np.float64) for name in ("mean", "var"))
    scale = np.asarray(params.get("scale", np.ones_like(var)), np.float64) / np.sqrt(var + EPSILON)
    return scale, np.asarray(params.get("bias", np.zeros_like(mean)), np.float64) - mean * scale


def same(side: int, size: int, stride: int) -> tuple[int, int]:
    """The pixels that TensorFlow's and Flax's SAME adds before and after a line of `side` pixels."""
    total = max((-(-side // stride) - 1) * stride + size - side, 0)
    return total // 2, total - total // 2


def outcome(side: int, size: int, stride: int, pad: tuple[int, int]) -> int:
    """The side of the map behind a window."""
    return (side + sum(pad) - size) // stride + 1


def both_axes(pad: tuple[int, int]) -> list[int]:
    """ONNX's `pads` of both axes."""
    return [pad[0], pad[0], pad[1], pad[1]]
