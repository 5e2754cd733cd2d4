"""PyTorch: the encoder of a run as a folder that Python imports, with safetensors inside.

`torch_module.py` says how the folder is used; it becomes the folder's `__init__.py`.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from simclr_jax import files
from simclr_jax.convert import torch as resnets
from simclr_jax.convert import vit
from simclr_jax.convert.torch_files import import_torch
from simclr_jax.encoder import Encoder
from simclr_jax.errors import SimclrError
from simclr_jax.export import card
from simclr_jax.export.contract import Options, Runner, Written
from simclr_jax.models.projection import PROJECTIONS
from simclr_jax.models.vit_fields import shape_of

LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
Tensors = dict[str, np.ndarray]


def write(encoder: Encoder, endpoints: tuple[str, ...], path: Path, options: Options) -> Written:
    """Writes the folder; see `formats`.

    Raises:
      SimclrError: PyTorch is missing, or its module has no such encoder or endpoint.
    """
    torch = import_torch("--format=torch: comparing it with the run")
    name, folder = encoder.config.model.encoder, Path(path)
    if name not in STATES:
        raise SimclrError(
            f"config.model.encoder={name!r}: has no PyTorch module, only {', '.join(STATES)} have; "
            "--format=stablehlo needs none"
        )
    tensors, fields = STATES[name](encoder)
    folder.mkdir()
    files.write_arrays(folder / "weights.safetensors", tensors, {"format": "pt"})
    (folder / "fields.json").write_text(json.dumps(fields, indent=2) + "\n")
    ours, theirs = (
        Path(each).with_name("torch_module.py").read_text() for each in (__file__, resnets.__file__)
    )
    (folder / "__init__.py").write_text(
        ours.replace("from simclr_jax.convert.torch_module ", "from .resnet ")
    )
    (folder / "resnet.py").write_text(theirs)
    return Written([folder], runner(folder, endpoints), {"versions": {"torch": torch.__version__}})


def runner(folder: Path, endpoints: tuple[str, ...]) -> Runner:
    """The folder in PyTorch, by the very code that stands in it."""
    import torch

    from simclr_jax.export.torch_module import load

    model = load(folder)

    def run(images: np.ndarray) -> dict[str, np.ndarray]:
        with torch.no_grad():
            found = model(torch.tensor(images))
        missing = [name for name in endpoints if name not in found]
        if missing:
            raise SimclrError(f"--endpoints: no {missing[0]!r} in PyTorch; there are {', '.join(found)}")
        return {name: found[name].numpy() for name in endpoints}

    return run


# ---- the tensors and fields of each encoder -----------------------------------------------------------


def resnet(encoder: Encoder) -> tuple[Tensors, dict[str, Any]]:
    tensors, marker, _ = resnets.state_of(encoder.config, encoder.variables, encoder.step, plain=False)
    return tensors, {**marker, "encoder": "resnet"}


def convolutional(encoder: Encoder) -> tuple[Tensors, dict[str, Any]]:
    """Of the small CNN and the tutorials' encoder: layers have the names that they have here."""
    network: Any = encoder.model.encoder
    tensors = state(encoder, "encoder")
    own: dict[str, Any] = {
        "widths": list(network.widths),
        "kernels": [tensors[f"conv{i}.weight"].shape[-1] for i in range(1, len(network.widths) + 1)],
    }
    if "dense.weight" in tensors:
        features, numbers = tensors["dense.weight"].shape
        own |= {"features": features, "places": numbers // network.widths[-1]}
    return with_heads(encoder, tensors, own)


def transformer(encoder: Encoder) -> tuple[Tensors, dict[str, Any]]:
    """Of the ViT, with timm's names."""
    fields = encoder.config.model.vit
    tensors = vit.write(encoder.variables["params"]["encoder"], fields, card.reader(encoder).size)
    own = {name: fields[name] for name in ("patch", "pool", "qkv_bias", "layer_scale")}
    own |= {**shape_of(fields)._asdict(), "tokens": tensors["pos_embed"].shape[1]}
    return with_heads(encoder, tensors, own)


STATES = {"resnet": resnet, "cnn": convolutional, "tutorial": convolutional, "vit": transformer}


def with_heads(encoder: Encoder, tensors: Tensors, own: Mapping[str, Any]) -> tuple[Tensors, dict[str, Any]]:
    """(tensors, fields) with those of the projection head and the classifier, and of the images."""
    model, reader = encoder.config.model, card.reader(encoder)
    head = {f"projection.{name}": array for name, array in state(encoder, "projection").items()}
    probe = {name.replace("dense", "fc"): array for name, array in state(encoder, "probe").items()}
    images = ("channels", "mean", "std", "crop", "resize")
    fields = {
        "encoder": model.encoder,
        **own,
        "projection_layers": PROJECTIONS[model.projection](model.projection_layers),
        "projection_held": sum(name.startswith("projection.dense") for name in head),
        "projection_dim": model.projection_dim,
        "classes": len(probe["fc.bias"]) if probe else 0,
        "probe_layer": model.probe_layer if probe else 0,
        "image_size": reader.size,
        **{name: getattr(reader, name) for name in images},
    }
    return tensors | head | probe, fields


def state(encoder: Encoder, part: str) -> Tensors:
    """{"conv1.weight": array} of one part of the variables, float32."""
    found = {}
    for collection in ("params", "batch_stats"):
        tree = encoder.variables.get(collection, {}).get(part, {})
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            *layers, last = (key.key for key in path)
            found[".".join((*layers, LEAVES[last]))] = resnets.to_torch(np.asarray(leaf))
    return found
