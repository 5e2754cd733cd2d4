"""ONNX: the encoder of a run with its preprocessing, written with `onnx.helper`.

An encoder's operators come from a builder, `build(layers, network, maps) -> endpoints`:

    layers: `onnx_graph.Layers` of the encoder's parameters; network: the Flax module.
    maps: `onnx_graph.Map` of the preprocessed pixels.
    endpoints: {name of an endpoint: Map, or the name of a tensor [n, ...]}.

BUILDERS names the builder of each `config.model.encoder`; a file of `--register` can add one of its own.
"""

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import helper

from simclr_jax import registry
from simclr_jax.encoder import Encoder
from simclr_jax.errors import SimclrError
from simclr_jax.export import card, service
from simclr_jax.export.contract import Options, Runner, Written
from simclr_jax.export.onnx_graph import Graph, Layers, Map
from simclr_jax.export.onnx_preprocess import preprocess
from simclr_jax.models import simclr

BUILDERS = {  # config.model.encoder: "module:function"
    "cnn": "simclr_jax.export.onnx_cnn:cnn",
    "tutorial": "simclr_jax.export.onnx_cnn:tutorial",
    "resnet": "simclr_jax.export.onnx_resnet:resnet",
    "vit": "simclr_jax.export.onnx_vit:vit",
}
MOST = 2**31 - 2**20  # bytes of a file: protobuf's limit, less room for the graph


def write(encoder: Encoder, endpoints: tuple[str, ...], path: Path, options: Options) -> Written:
    """Writes encoder.onnx, and beside it what a service and Triton need; see `formats`.

    The weights of a model above 2 GB stand in a file of their own beside it, encoder.onnx.data.

    Raises:
      SimclrError: there is no builder for this encoder, or no such endpoint.
    """
    path = Path(path)
    model = build(encoder, endpoints)
    files = [path, *save(model, path)]
    files += service.write(path, card.reader(encoder).channels, card.shapes(encoder, endpoints))
    versions = {"onnx": onnx.__version__, "onnxruntime": onnxruntime.__version__}
    return Written(files, runner(path), {"opset": model.opset_import[0].version, "versions": versions})


def build(encoder: Encoder, endpoints: tuple[str, ...]) -> onnx.ModelProto:
    """The model: `images` uint8 `[n, h, w, c]` to the endpoints, in float32."""
    graph = Graph()
    found = ends(encoder, graph)
    unknown = [name for name in endpoints if name not in found]
    if unknown:
        raise SimclrError(f"--endpoints: no {unknown[0]!r} in ONNX; there are {', '.join(found)}")
    shapes = card.shapes(encoder, endpoints)
    outputs = []
    for name in endpoints:
        tensor = found[name]
        if isinstance(tensor, Map):  # as the encoder gives maps: channels last
            tensor = graph.op("Transpose", tensor.name, perm=[0, 2, 3, 1])
        graph.rename(tensor, name)
        outputs.append(helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["n", *shapes[name]]))
    size = ["n", "h", "w", card.reader(encoder).channels]
    images = helper.make_tensor_value_info("images", onnx.TensorProto.UINT8, size)
    about = card.describe(encoder, "onnx", shapes)
    return graph.model([images], outputs, {"simclr_jax": json.dumps(about)})


def ends(encoder: Encoder, graph: Graph) -> dict[str, Map | str]:
    """Everything that can be an output, by name."""
    name = encoder.config.model.encoder
    if name not in BUILDERS:
        raise SimclrError(
            f"config.model.encoder={name!r}: has no ONNX writer; --format=stablehlo needs none, and a "
            "file of --register can add one to simclr_jax.export.onnx_model.BUILDERS"
        )
    model, variables = encoder.model, encoder.variables
    everything = Layers(graph, variables["params"], variables.get("batch_stats", {}))
    maps = preprocess(graph, "images", card.reader(encoder))
    build = registry.resolve(BUILDERS[name])
    found = build(everything.inside("encoder"), model.encoder, maps)
    found["features"] = h = found[model.encoder.features]
    hidden = head(everything.inside("projection"), model, h) if "projection" in variables["params"] else [h]
    found |= {f"projection_{i}": x for i, x in enumerate(hidden) if i}
    if len(hidden) > model.projection.layers:
        found["projection"] = hidden[-1]
    if model.probe is not None:
        found["logits"] = everything.inside("probe").dense(hidden[model.probe_layer], "dense")
    return found


def head(layers: Layers, model: simclr.SimCLR, h: str) -> list[str]:
    """[h, output of layer 1, ..., z] of the projection head, as far as the parameters go."""
    hidden = [h]
    for i in range(min(len(layers.params) // 2, model.projection.layers)):  # a dense and a norm each
        x = layers.dense(hidden[-1], f"dense{i}", f"norm{i}")
        last = i == model.projection.layers - 1
        hidden.append(x if last else layers.graph.op("Relu", x))
    return hidden


def save(model: onnx.ModelProto, path: Path) -> list[Path]:
    """Writes the model; the files beside it that hold its weights, if it is too large for one."""
    if sum(len(each.raw_data) for each in model.graph.initializer) <= MOST:
        path.write_bytes(model.SerializeToString())
        return []
    beside = path.with_name(path.name + ".data")
    onnx.save_model(model, str(path), save_as_external_data=True, location=beside.name, size_threshold=1024)
    return [beside]


def runner(path: Path) -> Runner:
    """The file in onnxruntime, on the CPU."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_outputs()]

    def run(images: np.ndarray) -> dict[str, np.ndarray]:
        return dict(zip(names, session.run(names, {"images": images}), strict=True))

    return run
