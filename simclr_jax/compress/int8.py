"""Static quantisation of an ONNX artefact to int8 by onnxruntime, in its QDQ form.

Weights are int8 with a scale for each output channel, activations int8 or uint8 with one for each tensor,
as Krishnamoorthi describes (arXiv 1806.08342, sections 3.1 and 6). The evaluation view stays in float32.
"""

import json
import platform
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx

from simclr_jax import files
from simclr_jax.compress import artefact as artefacts
from simclr_jax.compress.artefact import Artefact
from simclr_jax.errors import SimclrError
from simclr_jax.export import card, service
from simclr_jax.export import run as exporting
from simclr_jax.metrics import Progress

IMAGES = 256  # for the ranges of activations
COMPARED = 64  # further ones, for the parity report
FEWEST = 16  # of both
WEIGHTS = ("Conv", "MatMul", "Gemm")  # operators that are quantised
BETWEEN = ("Add", "Relu", "MaxPool")  # between convolutions as well: maps stay int8


class Target(NamedTuple):
    """What a processor multiplies fast.

    Attributes:
      signed: activations are int8, not uint8.
      reduce_range: weights have 7 bits: without VNNI the sum of two products must fit into 16 bits.
    """

    signed: bool
    reduce_range: bool


TARGETS = {"x86": Target(False, True), "x86-vnni": Target(False, False), "arm": Target(True, False)}


def here(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """The target that this machine is; x86 without VNNI where nothing tells."""
    if platform.machine().lower() in ("arm64", "aarch64"):
        return "arm"
    try:
        flags = cpuinfo.read_text().split()
    except OSError:
        return "x86"
    return "x86-vnni" if {"avx512_vnni", "avx_vnni"}.intersection(flags) else "x86"


def quantise(where: str, out: str, images: str = "", target: str = "", again: bool = False) -> list[str]:
    """Writes the int8 form of an artefact, its JSON and what a service needs; returns lines for the user.

    Args:
      images: folder for the ranges of activations; "": the images that the run was trained on.
      target: of TARGETS; "": this machine.

    Raises:
      SimclrError: the artefact or the images are not there, or `out` is taken.
    """
    source, target = artefacts.read(where), target or here()
    place = exporting.target(exporting.Wish(out, again=again))
    if "quantised" in source.about:
        raise SimclrError(f"--artefact={where}: is quantised already; give the one it came from")
    most = IMAGES + COMPARED
    found = artefacts.from_folder(images, source, most) if images else artefacts.from_training(source, most)
    if len(found) < FEWEST:
        raise SimclrError(f"{len(found)} images: ranges need {FEWEST} or more, {IMAGES} are usual")
    others = found[:: max(2, len(found) // COMPARED)][:COMPARED]
    seen = [image for i, image in enumerate(found) if i % max(2, len(found) // COMPARED)]
    with files.staged(place) as folder:
        half = folder / place.name
        write(source, half, seen, TARGETS[target])
        about = described(source, half, target, len(seen), images)
        about["parity"] = compare(source, Artefact(half, about), others)
        written = [half, *service.write(half, about["input"]["channels"], shapes(about))]
        beside = half.with_name(f"{half.name}.json")
        beside.write_text(json.dumps(about, indent=2) + "\n")
        before, after = (each.size for each in (source, Artefact(half, about)))
        moved = [files.move(file, place.parent) for file in (*written, beside)]
    return [*told(about, before, after), *map(str, moved)]


def shapes(about: dict[str, Any]) -> dict[str, Sequence[int]]:
    """{output: shape without the batch's axis}, from a JSON."""
    return {name: [size] if isinstance(size, int) else size for name, size in about["outputs"].items()}


def write(source: Artefact, out: Path, images: Sequence[np.ndarray], target: Target) -> None:
    """Writes the quantised model; `images` `[h, w, c]` give the ranges of activations."""
    from onnxruntime import quantization as ort

    inferred = out.with_name("inferred.onnx")
    ort.quant_pre_process(source.path, inferred, skip_optimization=True, skip_symbolic_shape=True)
    model = onnx.load(inferred)
    operators = [*WEIGHTS, *BETWEEN] if any(node.op_type == "Conv" for node in model.graph.node) else WEIGHTS
    ort.quantize_static(
        inferred,
        out,
        _reader(images),
        op_types_to_quantize=list(operators),
        per_channel=True,
        reduce_range=target.reduce_range,
        activation_type=ort.QuantType.QInt8 if target.signed else ort.QuantType.QUInt8,
        weight_type=ort.QuantType.QInt8,
        nodes_to_exclude=_in_float32(model),
        # Attention multiplies activations with each other, which stays in float32.
        extra_options={"MatMulConstBOnly": True},
    )


def _in_float32(model: onnx.ModelProto) -> list[str]:
    """The names of the nodes that are not quantised: the evaluation view, and what follows the features."""
    view, encoder = ({node.name for node in upstream(model, tensor)} for tensor in ("pixels", "features"))
    return [node.name for node in model.graph.node if node.name in view or node.name not in encoder]


def upstream(model: onnx.ModelProto, tensor: str) -> Iterator[onnx.NodeProto]:
    """The nodes that a tensor depends on, the last first."""
    needed = {tensor}
    for node in reversed(model.graph.node):
        if needed.intersection(node.output):
            needed.update(node.input)
            yield node


def _reader(images: Sequence[np.ndarray]) -> Any:
    """What onnxruntime takes images from, one at a time, with a bar."""
    from onnxruntime import quantization as ort

    class Images(ort.CalibrationDataReader):
        def __init__(self) -> None:
            self.left, self.progress = iter(images), Progress(0, len(images), unit="image")
            self.done = 0

        def get_next(self) -> dict[str, np.ndarray] | None:  # pyright: ignore[reportIncompatibleMethodOverride]
            image = next(self.left, None)
            if image is None:
                self.progress.close()
                return None
            self.done += 1
            self.progress.step(self.done)
            return {"images": image[None]}

    return Images()


def compare(source: Artefact, made: Artefact, images: Sequence[np.ndarray]) -> dict[str, Any]:
    """The parity report of two artefacts on images `[h, w, c]`, with the mean cosine."""
    pairs = [(made.run(image[None]), source.run(image[None])) for image in images]
    report: dict[str, Any] = {"against": source.path.name, "images": len(images)}
    for name, found in exporting.differences(pairs).items():
        ours, right = (
            np.concatenate([each[i][name] for each in pairs]).reshape(len(pairs), -1) for i in (0, 1)
        )
        norms = np.linalg.norm(ours, axis=1) * np.linalg.norm(right, axis=1)
        cosines = np.where(norms > 0, np.sum(ours * right, axis=1) / np.where(norms > 0, norms, 1), 1.0)
        report[name] = {**found, "cosine_mean": float(np.mean(cosines, dtype=np.float64))}
    return report


def described(source: Artefact, made: Path, target: str, count: int, images: str) -> dict[str, Any]:
    """The JSON of the quantised artefact, but for the parity report."""
    signed, reduced = TARGETS[target]
    quantised = {
        "from": source.path.name,
        "from_sha256": card.digest(source.path),
        "target": target,
        "activations": "int8" if signed else "uint8",
        "weights": "int8, each output channel by itself",
        "reduce_range": reduced,
        "float32": "the evaluation view, up to the tensor pixels, and what follows the features",
        "calibration": {"images": count, "of": images or "the run's training data", "ranges": "minmax"},
    }
    about = {**source.about, "file": made.name, "sha256": card.digest(made), "quantised": quantised}
    return {name: value for name, value in about.items() if name != "parity"}


def told(about: dict[str, Any], before: int, after: int) -> list[str]:
    """The result in lines."""
    parity, how = about["parity"], about["quantised"]
    lines = [
        f"int8 for {how['target']}: {after / 1e6:.2f} MB of {before / 1e6:.2f}; cosine to float32, mean and "
        "least:"
    ]
    for name in about["outputs"]:
        found = parity[name]
        lines.append(
            f"  {name}, {parity['images']} images: {found['cosine_mean']:.5f}; {found['cosine_min']:.5f}"
        )
    if how["target"] != here():
        lines.append(f"  as this machine computes it, which is {here()}: another may round in another way")
    return lines
