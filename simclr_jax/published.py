"""The layout in which encoders are published: reading and writing config.json and model.safetensors.

model.safetensors holds every array of the checkpoint by its path, "params/encoder/conv1/kernel" and
"batch_stats/encoder/norm1/mean", with the type it has there. config.json is that of a workdir, with the step,
and size and SHA-256 of the weights. Nothing in either can run code.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath
from safetensors import SafetensorError
from safetensors.numpy import load

from simclr_jax import files, hub, paths, run_summary
from simclr_jax.errors import DamagedError, SimclrError, one_line


def holds(workdir: epath.PathLike) -> bool:
    """Whether a folder is in the published layout."""
    folder = paths.expand(workdir)
    return (folder / hub.WEIGHTS).is_file() and not (folder / "checkpoints").is_dir()


def read(workdir: epath.PathLike, step: int = 0) -> tuple[int, dict[str, Any], dict[str, Any]]:
    """(step, params, model_state) of a published folder, as NumPy, like `checkpoint.read_parameters`.

    Raises:
      SimclrError: another step than its own is asked for, or config.json is not a published encoder's.
      DamagedError: the weights are not those that config.json names.
    """
    found, path = facts(workdir), paths.expand(workdir) / hub.WEIGHTS
    own, wanted = found["step"], hub.weights(found)
    if step and step != own:
        raise SimclrError(f"{workdir}: holds step {own} alone, not {step}; leave the step out")
    content = path.read_bytes()
    if wanted is None or hub.Weights(len(content), hashlib.sha256(content).hexdigest()) != wanted:
        raise DamagedError(
            f"{path}: is not the file that {hub.CONFIG_FILE} describes; remove both and get them again"
        )
    try:
        tree = run_summary.nest(load(content))
    except (SafetensorError, TypeError, ValueError, LookupError, AttributeError) as error:
        raise SimclrError(f"{path}: cannot be read ({one_line(error)})") from None
    if not isinstance(tree.get("params"), dict):
        raise SimclrError(f"{path}: holds no parameters of an encoder of ours")
    return own, tree.pop("params"), tree


def step(workdir: epath.PathLike) -> int:
    """The step of a published encoder."""
    return facts(workdir)["step"]


def facts(workdir: epath.PathLike) -> dict[str, Any]:
    """What config.json says."""
    path = paths.expand(workdir) / hub.CONFIG_FILE
    if not path.is_file():
        raise SimclrError(f"{workdir}: no {hub.CONFIG_FILE} beside {hub.WEIGHTS}; get both")
    return hub.facts(path.read_bytes(), workdir)


def write(folder: Path, arrays: Mapping[str, np.ndarray], config: Mapping[str, Any]) -> dict[str, Any]:
    """Writes both files into `folder`; returns what config.json says.

    Args:
      arrays: by path; config: what config.json says beside the weights' size and digest.
    """
    path = folder / hub.WEIGHTS
    files.write_arrays(path, arrays, {"format": "flax"})
    content = path.read_bytes()
    weights = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    made = {"library_name": "simclr_jax", "model_type": hub.MODEL_TYPE, **config, "weights": weights}
    files.write(epath.Path(folder) / hub.CONFIG_FILE, json.dumps(made, indent=2) + "\n")
    return made
