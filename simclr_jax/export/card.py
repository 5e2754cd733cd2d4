"""What an artefact tells of itself: the JSON beside it, and the metadata inside where a format has room."""

import hashlib
import importlib.metadata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from simclr_jax import registry
from simclr_jax.config import flatten
from simclr_jax.encoder import Encoder
from simclr_jax.errors import SimclrError
from simclr_jax.feeds.images import ImageReader
from simclr_jax.models import simclr
from simclr_jax.version import __version__

SCHEMA = 1
OF_DATA = (  # fields of config.data: how files become pixels; not where they are, which may be private
    "image_size", "channels", "mean", "std", "background", "exif", "intensity", "percentiles", "window",
    "max_pixels",
)  # fmt: skip
LIBRARIES = ("jax", "flax", "numpy")


def reader(encoder: Encoder) -> ImageReader:
    """How the encoder takes images.

    Raises:
      SimclrError: it takes rows of tables.
    """
    if not isinstance(encoder.reader, ImageReader):
        raise SimclrError("--workdir: its encoder takes rows of tables; only encoders of images are exported")
    return encoder.reader


def shapes(encoder: Encoder, endpoints: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """{endpoint: shape without the batch's axis}: `(d,)`, or `(h, w, c)` of maps.

    Raises:
      SimclrError: the encoder has no such endpoint.
    """
    images = jax.ShapeDtypeStruct((1, *reader(encoder).spec().shape), jnp.float32)
    found = jax.eval_shape(lambda x: ends(encoder, encoder.variables, x), images)
    unknown = [name for name in endpoints if name not in found]
    if unknown:
        raise SimclrError(f"--endpoints: no {unknown[0]!r}; there are {', '.join(found)}")
    return {name: found[name].shape[1:] for name in endpoints}


def ends(encoder: Encoder, variables: Any, pixels: jax.Array) -> dict[str, jax.Array]:
    """All endpoints of preprocessed pixels, in float32; "features" is the representation."""
    found = simclr.endpoints(encoder.model, variables, pixels)
    found = {"features": found[encoder.model.encoder.features], **found}
    return {name: x.astype(jnp.float32) for name, x in found.items()}


def describe(encoder: Encoder, form: str, outputs: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """What is known before the artefact is written; `outputs` as `shapes` gives them."""
    config, of = encoder.config, reader(encoder)
    idle = registry.idle(flatten(config))
    model = {name: value for name, value in config.model.to_dict().items() if f"model.{name}" not in idle}
    installed = {name: importlib.metadata.version(name) for name in LIBRARIES}
    return {
        "schema": SCHEMA,
        "format": form,
        "input": {
            "name": "images",
            "channels": of.channels,
            "size": of.size,
            "crop": of.crop,
            "resize": of.resize,
        },
        "outputs": {name: shape[0] if len(shape) == 1 else list(shape) for name, shape in outputs.items()},
        "classes": list(encoder.classes) if "logits" in outputs else [],
        "run": {
            "step": encoder.step,
            "architecture": model,
            "data": {name: config.data[name] for name in OF_DATA},
        },
        "versions": {"simclr_jax": __version__, **installed},
    }


def digest(path: Path) -> str:
    """SHA-256 of a file; of a folder, over the names and the digests of its files."""
    if path.is_file():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    names = sorted(each.relative_to(path).as_posix() for each in path.rglob("*") if each.is_file())
    text = "".join(f"{name}\0{digest(path / name)}\n" for name in names)
    return hashlib.sha256(text.encode()).hexdigest()
