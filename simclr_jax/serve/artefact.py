"""An exported encoder as `simclr serve` runs it: the ONNX file and the JSON beside it."""

import itertools
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnxruntime

from simclr_jax.errors import SimclrError, one_line
from simclr_jax.index.artefact import of_files

PIXELS = "pixels"  # what preprocessing makes of images: [n, size, size, c] float32
IMAGES = "images"


class Artefact(NamedTuple):
    """An encoder that runs.

    Attributes:
      about: the JSON beside it.
      prepare: images `[n, h, w, c]` uint8 to pixels; None if the graph cannot be cut there.
      encode: pixels, or images if `prepare` is None, to the outputs.
    """

    about: dict[str, Any]
    prepare: "onnxruntime.InferenceSession | None"
    encode: onnxruntime.InferenceSession

    @property
    def outputs(self) -> dict[str, int]:
        """{output: its length}."""
        return self.about["outputs"]

    @property
    def run_name(self) -> str | None:
        """The last part of the run's folder; None where the artefact was published."""
        workdir = self.about["run"].get("workdir")
        return Path(workdir).name if workdir else None

    @property
    def classes(self) -> list[str]:
        """Names of the logits; empty without a classifier."""
        n = self.outputs.get("logits", 0)
        return list(self.about.get("classes") or map(str, range(n)))[:n]

    def pixels(self, image: np.ndarray) -> np.ndarray:
        """What `run` takes of one image `[h, w, c]` uint8: equal sizes where the graph is cut."""
        if self.prepare is None:
            return image
        return np.asarray(self.prepare.run([PIXELS], {IMAGES: image[None]})[0])[0]

    def run(self, batch: np.ndarray) -> dict[str, np.ndarray]:
        """{output: [n, d] float32} of stacked `pixels`."""
        names = list(self.outputs)
        (given,) = self.encode.get_inputs()
        return dict(zip(names, map(np.asarray, self.encode.run(names, {given.name: batch})), strict=True))


def load(path: Path, threads: int) -> Artefact:
    """The encoder in an ONNX file.

    Its graph is cut at the tensor `pixels`, so that images of any size go through the encoder in one batch.

    Args:
      path: the file; PATH.json stands beside it.
      threads: of the encoder, on one batch; each image is prepared by one thread.

    Raises:
      SimclrError: a file is missing, damaged, or no exported encoder.
    """
    about = of_files(path)
    try:
        whole = onnx.load(path, load_external_data=False)
        parts = None if _external(whole) else _cut(whole)
        if parts is None:
            return Artefact(about, None, _session(str(path), threads))
        # An arena would keep what the largest image took.
        return Artefact(about, _session(parts[0], 1, arena=False), _session(parts[1], threads))
    except Exception as error:  # the libraries have exceptions of their own, without a common ancestor
        raise SimclrError(f"{path}: onnxruntime cannot run it: {one_line(error)}") from None


def _external(model: onnx.ModelProto) -> bool:
    """Whether weights are in files beside it: a model above 2 GB, which protobuf cannot cut in memory."""
    return any(t.data_location == onnx.TensorProto.EXTERNAL for t in model.graph.initializer)


def _cut(model: onnx.ModelProto) -> tuple[bytes, bytes] | None:
    """(images to pixels, pixels to the outputs); None if the graph has no such place."""
    if not any(PIXELS in node.output for node in model.graph.node):
        return None
    if all(value.name != PIXELS for value in model.graph.value_info):
        kind = onnx.helper.make_tensor_value_info(PIXELS, onnx.TensorProto.FLOAT, [None] * 4)
        model.graph.value_info.append(kind)
    extractor = onnx.utils.Extractor(model)
    ends = ([IMAGES], [PIXELS], [value.name for value in model.graph.output])
    parts = [extractor.extract_model(*pair) for pair in itertools.pairwise(ends)]
    try:
        for part in parts:
            onnx.checker.check_model(part)
    except onnx.checker.ValidationError:  # what follows uses more than the pixels
        return None
    return parts[0].SerializeToString(), parts[1].SerializeToString()


def _session(model: str | bytes, threads: int, arena: bool = True) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.enable_cpu_mem_arena = arena
    # Threads that wait by spinning take the cores from those that decode: 6 ms a request became 9.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
