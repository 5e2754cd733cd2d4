"""ViTs in files of PyTorch's: to a workdir and back."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from simclr_jax.config import flatten
from simclr_jax.convert import vit as vits
from simclr_jax.convert.torch_files import MARK, Found, choose_prefix
from simclr_jax.convert.workdir import config_of, write
from simclr_jax.errors import SimclrError, one_line
from simclr_jax.models import vit as model
from simclr_jax.models.vit_fields import shape_of
from simclr_jax.registry import ENCODERS, facts

MARK_VERSION = 1
KIND = "vit"  # of the marker beside a file
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet


def is_vit(found: Found) -> bool:
    """Whether there is a ViT by timm's or torchvision's names in a file."""
    return bool(vits.find(found.shapes))


def convert(
    found: Found, out: epath.PathLike, where: str, *, prefix: str | None, image_size: int, heads: int
) -> str:
    """`torch.convert` of a ViT.

    Args:
      image_size: pixels; learned positions are interpolated to it; 0: that of the weights.
      heads: of the attention; 0: those that the libraries' ViTs of this width have.
    """
    prefix = choose_prefix([each for each, _ in vits.find(found.shapes)], prefix, where)
    keys = {key.removeprefix(prefix): key for key in found.shapes if key.startswith(prefix)}
    marker = _checked(found.marker, where)
    state = {name: found.read(key) for name, key in keys.items()}
    weights = vits.read(state, where, heads=heads or marker.get("heads", 0))
    probed = weights.probe is not None
    fields = {"encoder": "vit", "projection": "none", "projection_layers": 1, "probe": probed}
    fields |= {f"vit.{name}": value for name, value in weights.vit.items()}
    task = "supervised" if probed else "pretrain"
    size = image_size or weights.image_size
    config = config_of(fields, task=task, image_size=size, channels=weights.channels)
    facts(ENCODERS, "vit", "model.encoder").check(flatten(config))
    params = {"encoder": _adapted(config, weights), **({"probe": weights.probe} if weights.probe else {})}
    notes = _see(config, marker)
    write(out, config, {"params": params}, step=marker.get("step", 0), origin=where)
    classes = len(weights.probe["dense"]["bias"]) if weights.probe else 0
    said = [f"{describe(config)}, {f'{classes} classes' if classes else 'no classifier'}", *notes]
    beside = len(found.shapes) - len(keys)
    left = [*weights.left_out, *([f"{beside} outside {prefix}"] if beside else [])]
    return "\n".join([*said, *([f"left out: {', '.join(left)}"] if left else [])])


def describe(config: ConfigDict) -> str:
    """What a conversion inferred, in a few words."""
    vit, shape = config.model.vit, shape_of(config.model.vit)
    name = f"ViT-{vit.size}/{vit.patch}" if not vit.width else f"ViT/{vit.patch}"
    numbers = f"width {shape.width}, {shape.depth} blocks of {shape.heads} heads, MLP of {shape.mlp}"
    pool = "class token" if vit.pool == "token" else "mean pooling"
    positions = "fixed" if vit.positions == "sincos" else "learned"
    return f"{name} ({numbers}), {pool}, {positions} positions, images of {config.data.image_size} pixels"


def _adapted(config: ConfigDict, weights: vits.Weights) -> dict[str, Any]:
    """The encoder's parameters for the config's image size."""
    old, new = (
        jax.ShapeDtypeStruct((side, side, weights.channels), np.float32)
        for side in (weights.image_size, config.data.image_size)
    )
    own = model.create(config.model, dtype=np.float32, param_dtype=np.float32)
    return jax.tree.map(np.asarray, own.adapt(weights.encoder, old, new))


def _checked(marker: Mapping[str, Any] | None, where: str) -> dict[str, Any]:
    """What `marker_of` said of the file; {} where it is somebody else's."""
    if not marker:
        return {}
    if marker[MARK] != MARK_VERSION or marker.get("kind") != KIND:
        raise SimclrError(f"{where}: what to-torch wrote about it describes no ViT of this version")
    try:
        read: dict[str, Any] = {name: int(marker[name]) for name in ("heads", "step")}
        read |= {name: tuple(map(float, marker[name])) for name in ("mean", "std")}
        read |= {"crop": float(marker["crop"]), "resize": str(marker["resize"])}
        fits = read["heads"] > 0 and 0 <= read["step"] < 2**31 and len(read["mean"]) == len(read["std"])
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise SimclrError(f"{where}: what to-torch wrote about it is damaged ({one_line(error)})") from None
    if not fits:
        raise SimclrError(f"{where}: what to-torch wrote about it describes no ViT of this version")
    return read


def _see(config: ConfigDict, marker: Mapping[str, Any]) -> list[str]:
    """Sets how images are normalised and cropped; notes where that is a guess."""
    if marker:
        config.data.mean, config.data.std = marker["mean"], marker["std"]
        config.eval.crop, config.eval.resize = marker["crop"], marker["resize"]
        return [f"step {marker['step']}, images normalised as to-torch wrote beside them"]
    notes = []
    if config.data.channels == 3:
        config.data.mean, config.data.std = MEAN, STD
        notes.append(
            "images are taken to be normalised by ImageNet's mean and std, as DeiT, DINO, moco-v3 and "
            "torchvision have them (else correct data.mean and data.std in config.json: timm's own ViTs have "
            "0.5 for all)"
        )
    return notes


def tensors_of(
    config: ConfigDict, variables: Mapping[str, Any], step: int, kind: str
) -> tuple[dict[str, np.ndarray], dict[str, Any], list[str]]:
    """(state dict, marker, notes) of a ViT's run, by the names of `kind`: "timm" or "torchvision"."""
    params, fields = variables["params"], config.model
    probe = params.get("probe") if not fields.probe_layer else None
    vit, side = fields.vit, config.data.image_size
    tensors = vits.write(params["encoder"], vit, side, kind=kind, probe=probe)
    shape = shape_of(vit)
    classes = len(probe["dense"]["bias"]) if probe else 0
    marker = {
        MARK: MARK_VERSION,
        "kind": KIND,
        "heads": shape.heads,
        "step": step,
        "mean": list(config.data.mean),
        "std": list(config.data.std),
        "crop": config.eval.crop,
        "resize": config.eval.resize,
    }
    if kind == "torchvision":
        call = f"torchvision.models.VisionTransformer({side}, {vit.patch}, {shape.depth}, {shape.heads}, "
        call += f"{shape.width}, {shape.mlp}, num_classes={classes})"
    else:
        extra = f", init_values={vit.layer_scale:g}" if vit.layer_scale else ""
        extra += "" if vit.qkv_bias else ", qkv_bias=False"
        if vit.pool == "mean":
            extra += ", global_pool='avg', class_token=False, fc_norm=False, final_norm=False"
        call = (
            f"timm.models.VisionTransformer(img_size={side}, patch_size={vit.patch}, in_chans="
            f"{config.data.channels}, embed_dim={shape.width}, depth={shape.depth}, num_heads={shape.heads}, "
            f"mlp_ratio={shape.mlp / shape.width:g}, num_classes={classes}{extra})"
        )
    dropped = [name for name in ("projection", "probe") if name in params and (name != "probe" or not probe)]
    notes = [f"state dict of {call}"]
    notes += [f"left out: {' and '.join(dropped)}, which its ViT has no place for"] if dropped else []
    return tensors, marker, notes
