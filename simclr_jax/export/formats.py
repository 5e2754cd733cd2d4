"""The formats that `simclr export` writes; each is imported when it is asked for.

A format is `write(encoder, endpoints, path, options) -> Written`:

    encoder: `simclr_jax.encoder.Encoder`.
    endpoints: the outputs, "features" first: then "projection", "logits", "block_group4" and the like.
    path: `epath.Path` of the artefact, a file or (savedmodel) a folder.
    options: `contract.Options`.

The artefact takes `images` uint8 `[n, h, w, c]` of any n, h and w, and has the run's evaluation view inside.
"""

import importlib
from collections.abc import Callable

from simclr_jax.errors import SimclrError
from simclr_jax.export.contract import Written

FORMATS = {
    "onnx": "simclr_jax.export.onnx_model:write",
    "stablehlo": "simclr_jax.export.stablehlo:write",
    "savedmodel": "simclr_jax.export.savedmodel:write",
    "litert": "simclr_jax.export.litert:write",
    "torch": "simclr_jax.export.torch_files:write",
}
EXTRAS = {"onnx": "'simclr_jax[onnx]'", "torch": "'simclr_jax[torch]'"}  # that bring a format's libraries


def writer(name: str) -> Callable[..., Written]:
    """The function of a format.

    Raises:
      SimclrError: there is no such format, or its libraries are not installed.
    """
    if name not in FORMATS:
        raise SimclrError(f"--format={name}: must be one of {', '.join(FORMATS)}")
    module, _, function = FORMATS[name].partition(":")
    try:
        return getattr(importlib.import_module(module), function)
    except ImportError as error:
        raise SimclrError(
            f"--format={name}: {error.name or error} is missing: pip install {EXTRAS.get(name, error.name)}"
        ) from None
