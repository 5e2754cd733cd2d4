"""The JSON beside an exported encoder, and whether a table of embeddings is its own."""

import hashlib
import json
from pathlib import Path
from typing import Any

from simclr_jax.errors import SimclrError
from simclr_jax.index.table import Embeddings

FEATURES = ("final_avg_pool", "features")  # as models.simclr: names of any encoder's representation
WRITE = "`simclr export --format=onnx` writes both"


def described(path: Path) -> dict[str, Any]:
    """What the JSON beside an ONNX file of `simclr export` says of it.

    Raises:
      SimclrError: one of the two is missing or damaged.
    """
    beside = path.with_name(path.name + ".json")
    for file in (path, beside):
        if not file.is_file():
            raise SimclrError(f"{file}: no such file; {WRITE}")
    try:
        told = json.loads(beside.read_text())
        kind, sha, channels = told["format"], told["sha256"], told["input"]["channels"]
        outputs, _ = told["outputs"]["features"], told["run"]["step"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SimclrError(f"{beside}: is not what an export writes ({error!r}); {WRITE}") from None
    if kind != "onnx":
        raise SimclrError(f"{path}: is {kind}, and only ONNX runs here; {WRITE}")
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != sha:
        raise SimclrError(f"{path}: is not the file that {beside.name} describes (sha256); export it again")
    if not channels or not outputs:
        raise SimclrError(f"{beside}: names no channels or no outputs; {WRITE}")
    return told


def of_files(path: Path) -> dict[str, Any]:
    """The same of an encoder that takes what image files hold.

    Raises:
      SimclrError: it takes images of other channels; and as `described`.
    """
    told = described(path)
    if (channels := told["input"]["channels"]) not in (1, 3):
        raise SimclrError(f"{path}: takes images of {channels} channels; image files have 1 or 3")
    return told


def matching(told: dict[str, Any], embeddings: Embeddings, path: object) -> str:
    """The output that a table of embeddings holds.

    Args:
      told: as `described` gives it; path: of the table, for errors.

    Raises:
      SimclrError: the table is of another run, step or endpoint.
    """
    meta, run, outputs = embeddings.meta, told["run"], told["outputs"]
    endpoint, dim = str(meta.get("endpoint") or "features"), embeddings.features.shape[1]
    endpoint = "features" if endpoint in FEATURES else endpoint
    made = "make it again with `simclr embed` from the run that was exported"
    if outputs.get(endpoint) != dim:
        has = ", ".join(f"{name} {size}" for name, size in outputs.items())
        raise SimclrError(f"{path}: holds {endpoint} of {dim} numbers, the artefact gives {has}; {made}")
    for key in ("workdir", "step"):
        ours, theirs = run.get(key), meta.get(key)
        if key == "workdir":  # the same run has another folder on another machine
            ours, theirs = (Path(str(x)).name if x else None for x in (ours, theirs))
        if None not in (ours, theirs) and ours != theirs:
            raise SimclrError(f"{path}: is of {key} {theirs}, the artefact of {ours}; {made}")
    return endpoint
