"""The ViT as ONNX operators."""

from typing import Any

import numpy as np

from simclr_jax.export.onnx_graph import INTS, Layers, Map
from simclr_jax.models.vit import EPSILON, sincos


def vit(layers: Layers, network: Any, x: Map) -> dict[str, Map | str]:
    """The endpoints of `models.vit.ViT`; attention is `[n, heads, h', w']`."""
    graph, side = layers.graph, x.side // network.patch
    tokens = embed(layers, network, x)
    found: dict[str, Map | str] = {"embedding": tokens}
    for i in range(1, network.depth + 1):
        tokens, attention = block(layers.inside(f"block{i}"), network, tokens)
        found[f"block{i}"] = tokens
    if network.pooling == "token":
        tokens = norm(layers, "norm", tokens)
        features = graph.op("Gather", tokens, graph.constant(0, INTS), axis=1)
    else:
        features = graph.op("ReduceMean", tokens, axes=[1], keepdims=0)
    far = graph.constant([2**31], INTS)
    patches = graph.op("Slice", attention, graph.constant([-(side**2)], INTS), far, graph.constant([2], INTS))
    grid = graph.constant([-1, network.heads, side, side], INTS)
    attention = graph.op("Reshape", patches, grid)
    return {**found, "tokens": tokens, "features": features, "attention": attention}


def embed(layers: Layers, network: Any, x: Map) -> str:
    """Tokens `[n, t, d]`: projected patches with their positions, behind the class token."""
    graph, patch, side = layers.graph, network.patch, x.side // network.patch
    kernel, bias = layers.folded("patch")  # of a dense layer: as a convolution it needs no turning of pixels
    weight = kernel.reshape(patch, patch, -1, network.width).transpose(3, 2, 0, 1)
    inputs = x.name, layers.weight(weight, "patch/kernel"), layers.weight(bias, "patch/bias")
    maps = graph.op("Conv", *inputs, kernel_shape=[patch] * 2, strides=[patch] * 2)
    rows = graph.op("Reshape", maps, graph.constant([0, network.width, side**2], INTS))
    tokens = graph.op("Transpose", rows, perm=[0, 2, 1])
    if network.positions == "learned":
        places = np.array(layers.params["positions"], np.float32)
    else:
        places = np.pad(sincos(side, side, network.width), [(int(network.pooling == "token"), 0), (0, 0)])
    if network.pooling == "token":  # zeros in front of the others, which the class token is added to
        places[0] += np.asarray(layers.params["class_token"], np.float32)
        tokens = graph.op("Pad", tokens, graph.constant([0, 1, 0, 0, 0, 0], INTS))
    return graph.op("Add", tokens, layers.weight(places, "positions"))


def norm(layers: Layers, name: str, x: str) -> str:
    """A LayerNorm."""
    weights = (layers.weight(layers.params[name][each], f"{name}/{each}") for each in ("scale", "bias"))
    return layers.graph.op("LayerNormalization", x, *weights, axis=-1, epsilon=EPSILON)


def block(layers: Layers, network: Any, x: str) -> tuple[str, str]:
    """(tokens, attention of the pooled token `[n, heads, t]`)."""
    op = layers.graph.op
    y, attention = attend(layers.inside("attention"), network, norm(layers, "norm1", x))
    x = op("Add", x, scaled(layers, "attention_scale", y))
    y = gelu(layers, layers.dense(norm(layers, "norm2", x), "dense1"))
    return op("Add", x, scaled(layers, "mlp_scale", layers.dense(y, "dense2"))), attention


def scaled(layers: Layers, name: str, x: str) -> str:
    """LayerScale, if the block has it."""
    if name not in layers.params:
        return x
    return layers.graph.op("Mul", x, layers.weight(layers.params[name]["scale"], f"{name}/scale"))


def gelu(layers: Layers, x: str) -> str:
    """x/2 · (1 + erf(x/√2))."""
    graph = layers.graph
    inner = graph.op("Erf", graph.op("Div", x, graph.constant(np.sqrt(2.0))))
    outer = graph.op("Mul", x, graph.op("Add", inner, graph.constant(1.0)))
    return graph.op("Mul", outer, graph.constant(0.5))


def attend(layers: Layers, network: Any, x: str) -> tuple[str, str]:
    """(tokens, attention of the pooled token `[n, heads, t]`) of self-attention."""
    graph, op = layers.graph, layers.graph.op
    each = network.width // network.heads
    split = graph.constant([0, 0, network.heads, each], INTS)

    def heads(name: str, perm: list[int]) -> str:
        return op("Transpose", op("Reshape", layers.dense(x, name), split), perm=perm)

    query, key, value = heads("query", [0, 2, 1, 3]), heads("key", [0, 2, 3, 1]), heads("value", [0, 2, 1, 3])

    def weights(query: str) -> str:
        return op("Softmax", op("Mul", op("MatMul", query, key), graph.constant(each**-0.5)), axis=-1)

    mixed = op("Transpose", op("MatMul", weights(query), value), perm=[0, 2, 1, 3])
    y = layers.dense(op("Reshape", mixed, graph.constant([0, 0, network.width], INTS)), "out")
    if network.pooling == "token":
        first = graph.constant([0], INTS)
        pooled = op("Gather", query, first, axis=2)
    else:
        pooled = op("ReduceMean", query, axes=[2], keepdims=1)
    return y, op("Squeeze", weights(pooled), graph.constant([2], INTS))
