"""An exported encoder as `simclr serve` runs it: the ONNX file and the JSON beside it."""

import hashlib
import itertools
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnxruntime

from simclr_jax.errors import SimclrError, one_line
from simclr_jax.index.table import Embeddings

PIXELS = "pixels"  # what preprocessing makes of images: [n, size, size, c] float32
IMAGES = "images"
FEATURES = ("final_avg_pool", "features")  # as models.simclr: names of any encoder's representation
WRITE = "`simclr export --format=onnx` writes both"


class Artefact(NamedTuple):
    """An encoder that runs.

    Attributes:
      about: the JSON beside it.
      prepare: images `[n, h, w, c]` uint8 to pixels; None if the graph cannot be cut there.
      encode: pixels, or images if `prepare` is None, to the outputs.
    """

    about: dict[str, Any]
    prepare: onnxruntime.InferenceSession | None
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
    about = _about(path)
    try:
        whole = onnx.load(path, load_external_data=False)
        parts = None if _external(whole) else _cut(whole)
        if parts is None:
            return Artefact(about, None, _session(str(path), threads))
        # An arena would keep what the largest image took.
        return Artefact(about, _session(parts[0], 1, arena=False), _session(parts[1], threads))
    except Exception as error:  # the libraries have exceptions of their own, without a common ancestor
        raise SimclrError(f"{path}: onnxruntime cannot run it: {one_line(error)}") from None


def _about(path: Path) -> dict[str, Any]:
    beside = path.with_name(path.name + ".json")
    for file in (path, beside):
        if not file.is_file():
            raise SimclrError(f"{file}: no such file; {WRITE}")
    try:
        about = json.loads(beside.read_text())
        kind, sha, channels = about["format"], about["sha256"], about["input"]["channels"]
        outputs, _ = about["outputs"]["features"], about["run"]["step"]
    except (ValueError, KeyError, TypeError) as error:
        raise SimclrError(f"{beside}: is not what an export writes ({error!r}); {WRITE}") from None
    if kind != "onnx":
        raise SimclrError(f"{path}: is {kind}, and the service runs ONNX; {WRITE}")
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != sha:
        raise SimclrError(f"{path}: is not the file that {beside.name} describes (sha256); export it again")
    if channels not in (1, 3) or not outputs:
        raise SimclrError(f"{path}: takes images of {channels} channels; image files have 1 or 3")
    return about


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


def matching(artefact: Artefact, embeddings: Embeddings, path: Path) -> str:
    """The output that a table of embeddings holds.

    Raises:
      SimclrError: the table is of another run, step or endpoint.
    """
    meta, run = embeddings.meta, artefact.about["run"]
    endpoint, dim = str(meta.get("endpoint") or "features"), embeddings.features.shape[1]
    endpoint = "features" if endpoint in FEATURES else endpoint
    made = "make it again with `simclr embed` from the run that was exported"
    if artefact.outputs.get(endpoint) != dim:
        has = ", ".join(f"{name} {size}" for name, size in artefact.outputs.items())
        raise SimclrError(f"{path}: holds {endpoint} of {dim} numbers, the artefact gives {has}; {made}")
    for key in ("workdir", "step"):
        ours, theirs = run.get(key), meta.get(key)
        if key == "workdir":  # the same run has another folder on another machine
            ours, theirs = (Path(str(x)).name if x else None for x in (ours, theirs))
        if None not in (ours, theirs) and ours != theirs:
            raise SimclrError(f"{path}: is of {key} {theirs}, the artefact of {ours}; {made}")
    return endpoint
