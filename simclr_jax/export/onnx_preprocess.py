"""The evaluation view as ONNX operators: `feeds.images.ImageReader.prepare(preprocess=True)`."""

from typing import Any

import numpy as np
from onnx import TensorProto

from simclr_jax.export.onnx_graph import INTS, Graph, Map
from simclr_jax.feeds.images import ImageReader

TABLE = 1024  # entries per pixel of the cubic's table, as in `geometry.resampling`


def preprocess(graph: Graph, images: str, reader: ImageReader) -> Map:
    """Maps of images uint8 `[n, h, w, c]`; `pixels` float32 `[n, size, size, c]` is the same, channels last.

    Height and width are of each call: the matrices that crop and resize are computed in the graph.
    """
    # Bytes turn faster than floats.
    x = graph.op("Transpose", images, perm=[0, 3, 1, 2])
    height, width = (graph.op("Shape", x, start=axis, end=axis + 1) for axis in (2, 3))
    if side := cropped(graph, height, width, reader):
        begins = [begin(graph, size, side) for size in (height, width)]
        stops = [graph.op("Add", start, side) for start in begins]
        first, last = (graph.op("Concat", *each, axis=0) for each in (begins, stops))
        x = graph.op("Slice", x, first, last, graph.constant([2, 3], INTS))
        height = width = side
    x = graph.op("Div", graph.op("Cast", x, to=TensorProto.FLOAT), graph.constant(255.0))
    rows = resampling(graph, height, reader.size, reader.resize)
    columns = rows if side else resampling(graph, width, reader.size, reader.resize)
    x = graph.op("MatMul", rows, x)
    x = graph.op("MatMul", x, graph.op("Transpose", columns, perm=[1, 0]))
    x = graph.op("Clip", x, graph.constant(0.0), graph.constant(1.0))
    x = graph.op("Transpose", x, perm=[0, 2, 3, 1])
    if reader.mean:
        x = graph.op("Div", graph.op("Sub", x, graph.constant(reader.mean)), graph.constant(reader.std))
    x = graph.rename(x, "pixels")
    return Map(graph.op("Transpose", x, perm=[0, 3, 1, 2]), reader.size)


def cropped(graph: Graph, height: str, width: str, reader: ImageReader) -> str:
    """The side `[1]` of the central square that is seen; "": the whole image, as in `center_view`."""
    shorter = graph.op("Min", height, width)
    if reader.resize == "none":
        return graph.op("Min", shorter, graph.constant([reader.size], INTS))
    if reader.size <= 32:
        return ""
    exact = graph.op("Cast", shorter, to=TensorProto.DOUBLE)
    share = graph.op("Mul", exact, graph.constant([reader.crop], np.float64))
    side = graph.op("Cast", graph.op("Round", share), to=TensorProto.INT64)  # half to even, as Python
    return graph.op("Max", side, graph.constant([1], INTS))  # of an image that is too small to crop


def begin(graph: Graph, size: str, side: str) -> str:
    """The first pixel `[1]` of the central `side` of `size` pixels."""
    more = graph.op("Add", graph.op("Sub", size, side), graph.constant([1], INTS))
    return graph.op("Div", more, graph.constant([2], INTS))


def resampling(graph: Graph, extent: str, out: int, method: str) -> str:
    """`geometry.resampling`: the matrix `[out, extent]` that resizes `extent` pixels to `out`."""

    def op(kind: str, *inputs: str | float, **attributes: Any) -> str:
        names = (each if isinstance(each, str) else graph.constant(each) for each in inputs)
        return graph.op(kind, *names, **attributes)

    scalar = graph.constant([0], INTS)
    pixels = op("Range", graph.constant(0, INTS), op("Squeeze", extent, scalar), graph.constant(1, INTS))
    pixel = op("Unsqueeze", op("Cast", pixels, to=TensorProto.FLOAT), scalar)
    scale = op("Div", op("Cast", extent, to=TensorProto.FLOAT), float(out))
    centres = graph.constant(np.arange(out, dtype=np.float32)[:, None] + 0.5)
    at = op("Sub", op("Mul", centres, scale), 0.5)
    if method == "bilinear":
        apart = op("Div", op("Abs", op("Sub", at, pixel)), op("Max", scale, 1.0))
        weights = op("Max", op("Sub", 1.0, apart), 0.0)
    else:
        first = op("Floor", at)
        between = op("Div", op("Round", op("Mul", op("Sub", at, first), float(TABLE))), float(TABLE))
        x = op("Abs", op("Sub", between, op("Sub", pixel, first)))
        near = op("Sub", op("Mul", x, 1.5), 2.5)
        near = op("Add", op("Mul", near, op("Mul", x, x)), 1.0)
        far = op("Mul", op("Add", op("Mul", x, -0.5), 2.5), x)
        far = op("Add", op("Mul", op("Sub", far, 4.0), x), 2.0)
        beyond = op("Where", op("Less", x, 2.0), far, 0.0)
        weights = op("Where", op("LessOrEqual", x, 1.0), near, beyond)
    return op("Div", weights, op("ReduceSum", weights, graph.constant([1], INTS), keepdims=1))
