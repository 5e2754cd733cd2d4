"""Files beside an ONNX model that those who serve it need: requirements for pip, and Triton's config."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from simclr_jax.version import __version__

# `simclr serve` needs these, and neither JAX nor TensorFlow. setup.py has the same as extra "serve".
REQUIREMENTS = (
    "fastapi>=0.115",
    "numpy>=2.0",
    "onnx>=1.17",
    "onnxruntime>=1.20",
    "pillow>=10.1",
    "prometheus-client>=0.20",
    "pyarrow>=17.0",
    "python-multipart>=0.0.18",
    "uvicorn>=0.30",
)
BATCH = 32  # images that Triton may join into one call


def write(model: Path, channels: int, outputs: Mapping[str, Sequence[int]]) -> list[Path]:
    """Writes encoder.requirements.txt and encoder.config.pbtxt beside encoder.onnx.

    Args:
      outputs: {name: shape without the batch's axis}.
    """
    texts = {".requirements.txt": requirements(), ".config.pbtxt": triton(model.stem, channels, outputs)}
    files = [model.with_name(model.stem + suffix) for suffix in texts]
    for file, text in zip(files, texts.values(), strict=True):
        file.write_text(text)
    return files


def requirements() -> str:
    """For `pip install -r`, before `simclr serve`."""
    head = f"# for simclr serve, with: pip install --no-deps simclr_jax=={__version__}"
    return "\n".join([head, *REQUIREMENTS, ""])


def triton(name: str, channels: int, outputs: Mapping[str, Sequence[int]]) -> str:
    """A model configuration of the Triton Inference Server, whose repository calls the file 1/model.onnx."""
    given = [
        f'  {{ name: "{output}", data_type: TYPE_FP32, dims: [ {", ".join(map(str, shape))} ] }}'
        for output, shape in outputs.items()
    ]
    listed = ",\n".join(given)
    return f"""# Triton: models/{name}/config.pbtxt is this file, models/{name}/1/model.onnx the model.
name: "{name}"
backend: "onnxruntime"
max_batch_size: {BATCH}
input [
  {{ name: "images", data_type: TYPE_UINT8, dims: [ -1, -1, {channels} ] }}
]
output [
{listed}
]
dynamic_batching {{ }}
"""
