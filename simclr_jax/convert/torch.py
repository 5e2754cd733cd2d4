"""Converts ResNets and ViTs from and to PyTorch.

`convert` reads state dicts with torchvision's names, with or without a prefix: torchvision, lightly,
solo-learn, VISSL and others. `export` writes torchvision's names for models of variant "torch". Models of
variant "original" have layers that torchvision lacks; these get names of their own, and a PyTorch module that
loads the file is written next to it.
"""

import contextlib
import json
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from etils import epath
from ml_collections import ConfigDict

from simclr_jax import encoder, files, paths
from simclr_jax.convert import names, torch_vit
from simclr_jax.convert.architectures import recognise, refusal
from simclr_jax.convert.infer import depth_of
from simclr_jax.convert.torch_files import (
    COUNTER,
    MARK,
    OURS,
    choose,
    import_torch,
    is_solo_learn,
    left_out,
    open_file,
    scope_of,
)
from simclr_jax.convert.workdir import assemble, check_free, config_of, describe, expected, write
from simclr_jax.errors import SimclrError, one_line
from simclr_jax.geometry import RESIZES
from simclr_jax.models.projection import PROJECTIONS
from simclr_jax.models.resnet_fields import STEMS, VARIANTS

MARK_VERSION = 1
MODULE = "simclr_resnet.py"  # copy of torch_module.py, written next to a file of variant "original"
SUFFIXES = (".pth", ".safetensors")
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, as in torchvision


def convert(
    checkpoint: epath.PathLike,
    out: epath.PathLike,
    *,
    prefix: str | None = None,
    image_size: int = 0,
    heads: int = 0,
) -> str:
    """Writes the workdir `out` from a PyTorch state dict; returns a text about the model that it inferred.

    Weights do not tell how images were normalised, so config.json gets ImageNet's mean and std, which
    torchvision, lightly and VISSL use. If the model was trained with other values, correct `data.mean` and
    `data.std` there. Files of `export` contain their own values.

    Args:
      checkpoint: a .safetensors file, or a file of `torch.save` (.pth, .pt, .ckpt; needs torch). Code in it
        is never run.
      prefix: prefix of the encoder's keys, for example "backbone."; needed if there are several encoders.
      image_size: pixels; 0: 224, or 32 with a CIFAR stem, or the ViT's own size.
      heads: attention heads of a ViT; 0: the usual number for its width in timm and torchvision.

    Raises:
      SimclrError: the file has another format, or a variable that fits no model.
    """
    check_free(out)
    where = str(checkpoint)
    found = open_file(where)
    if torch_vit.is_vit(found):
        return torch_vit.convert(found, out, where, prefix=prefix, image_size=image_size, heads=heads)
    prefix = choose(found, prefix, where)
    scope = scope_of(found, prefix, where)
    shapes = {name: found.shapes[key] for name, key in scope.items()}
    try:
        if found.marker:
            config, classes, step, notes = _config_of_marker(found.marker, image_size, where)
        else:
            stem, step = "cifar_pad2" if is_solo_learn(found, prefix) else "cifar", 0
            config, classes, notes = _config_of_shapes(shapes, stem, image_size, where)
        wanted = expected(config, classes)
        arrays = {name: _to_ours(found.read(key)) for name, key in scope.items()}
        variables = assemble(arrays, wanted, "torch", where)
    except SimclrError:  # prefer to name the architecture over the first variable that differs
        if not found.marker and (what := recognise(shapes)):
            raise SimclrError(refusal(where, what)) from None
        raise
    write(out, config, variables, step=step, origin=where)
    lines = [describe(config, classes), *notes, *left_out(found, prefix, set(scope.values()))]
    return "\n".join(lines)


def _to_ours(array: np.ndarray) -> np.ndarray:
    """[out, in, h, w] to [h, w, in, out], [out, in] to [in, out]."""
    order = {4: (2, 3, 1, 0), 2: (1, 0)}.get(array.ndim)
    return np.ascontiguousarray(array.transpose(order)) if order else array


def to_torch(array: np.ndarray) -> np.ndarray:
    """A kernel or vector of ours as PyTorch has it, float32."""
    order = {4: (3, 2, 0, 1), 2: (1, 0)}.get(array.ndim)
    return np.ascontiguousarray(array.transpose(order) if order else array, np.float32)


# ---- the config, from the shapes or from the marker -----------------------------------------------


def _config_of_shapes(
    shapes: Mapping[str, tuple[int, ...]], cifar: str, image_size: int, where: str
) -> tuple[ConfigDict, int, list[str]]:
    """(config, classes, notes) from the shapes; `cifar`: the name of the stem if conv1 is 3×3."""
    if any(OURS.match(name) for name in shapes):
        raise SimclrError(f"{where}: comes from to-torch; put the .json beside it that was written with it")
    conv = shapes["conv1.weight"]
    if len(conv) != 4 or conv[2:] not in ((7, 7), (3, 3)) or not all(conv):
        raise SimclrError(f"{where}: conv1.weight has the shape {list(conv)}; stems are 7×7 or 3×3")
    groups: dict[int, set[int]] = {}
    for name in shapes:
        if match := re.match(r"layer(\d+)\.(\d+)\.", name):
            groups.setdefault(int(match[1]), set()).add(int(match[2]))
    if sorted(groups) != [1, 2, 3, 4]:
        raise SimclrError(f"{where}: has the groups {sorted(groups)} of blocks (layer1 and so on), not four")
    bottleneck = "layer1.0.conv3.weight" in shapes
    projects = any(name.startswith("layer1.0.downsample.") for name in shapes)
    stem = "imagenet" if conv[2] == 7 else cifar
    if not bottleneck and projects and stem == "imagenet":
        # The weights do not tell whether its max-pool pads like torchvision's or like the original's.
        raise SimclrError(
            f"{where}: has a shortcut in layer1.0, which torchvision's ResNets of basic blocks have not; "
            "if to-torch wrote it, put the .json beside it"
        )
    classes = (shapes.get("fc.weight") or (0,))[0]
    model = {
        **depth_of(tuple(len(groups[g]) for g in (1, 2, 3, 4)), bottleneck),
        "width": conv[0] / 64,
        "stem": stem,
        "variant": "torch" if bottleneck or not projects else "original",
        "projection": "none",
        "projection_layers": 1,
        "probe": bool(classes),
    }
    task = "supervised" if classes else "pretrain"
    config = config_of(model, task=task, image_size=image_size, channels=conv[1])
    config.eval.resize, config.eval.crop = "bilinear", 0.875
    size = f"images of {config.data.image_size} pixels"
    if conv[1] == 3:
        config.data.mean, config.data.std = MEAN, STD
        how = "by ImageNet's mean and std (else correct data.mean and data.std in config.json)"
    else:
        how = "not at all (else set data.mean and data.std in config.json)"
    notes = [f"{size}, taken to be normalised {how}"]
    if stem == "cifar_pad2":
        notes.append("3×3 stem padded by two, as solo-learn has it")
    if classes:
        notes.append(f"fc is taken for a classifier of {classes} classes")
    return config, classes, notes


def _config_of_marker(
    marker: Mapping[str, Any], image_size: int, where: str
) -> tuple[ConfigDict, int, int, list[str]]:
    """(config, classes, step, notes) from the marker that `export` wrote."""
    if marker[MARK] != MARK_VERSION:
        raise SimclrError(f"{where}: is of format {marker[MARK]!r}, not {MARK_VERSION}: update simclr_jax")
    try:
        blocks = tuple(int(count) for count in marker["blocks"])
        classes, layers = int(marker["classes"]), int(marker["projection_layers"])
        model = {
            **depth_of(blocks, bool(marker["bottleneck"])),
            **{field: float(marker[field]) for field in ("width", "sk_ratio", "se_ratio")},
            **{field: str(marker[field]) for field in ("stem", "variant", "projection")},
            "projection_layers": layers or 1,
            "projection_dim": int(marker["projection_dim"]),
            "probe": bool(classes),
            "probe_layer": int(marker["probe_layer"]),
        }
        task = "supervised" if marker["task"] == "supervised" and classes else "pretrain"
        channels, image_size = int(marker["channels"]), image_size or int(marker["image_size"])
        config = config_of(model, task=task, image_size=image_size, channels=channels)
        for field in ("mean", "std"):
            config.data[field] = tuple(float(value) for value in marker[field])
        config.eval.crop, config.eval.resize = float(marker["crop"]), str(marker["resize"])
        step = min(max(0, int(marker["step"])), 2**31 - 1)
        known = (
            model["stem"] in STEMS
            and model["variant"] in VARIANTS
            and model["projection"] in PROJECTIONS
            and len(blocks) == 4
            and min(*blocks, channels, model["projection_dim"], config.data.image_size) > 0
            and 0 < model["width"] < 1000
            and len(config.data.mean) == len(config.data.std)
            and len(config.data.mean) in (0, channels)
            and all(0 <= model[field] <= 100 for field in ("sk_ratio", "se_ratio"))
            and classes >= 0
            and 0 <= layers <= 100
            and 0 <= model["probe_layer"] <= PROJECTIONS[model["projection"]](layers)
            and sum(blocks) <= 1000
            and channels <= 1000
            and 0 < config.eval.crop <= 1
            and config.eval.resize in RESIZES
        )
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise SimclrError(f"{where}: what to-torch wrote about it is damaged ({one_line(error)})") from None
    if not known:
        raise SimclrError(f"{where}: what to-torch wrote about it describes no model of this version")
    how = "normalised by the same mean and std" if config.data.mean else "in [0, 1]"
    note = f"step {step}, images of {config.data.image_size} pixels, {how}, as to-torch wrote beside them"
    return config, classes, step, [note]


# ---- writing --------------------------------------------------------------------------------------


def export(workdir: epath.PathLike, out: epath.PathLike, *, step: int = 0, naming: str = "") -> str:
    """Writes a state dict and a .json of the same name; returns a text that says how to load them.

    A ResNet of variant "torch" is written with torchvision's names: the encoder, and the classifier if it
    reads the encoder's features. Any other ResNet is written whole, together with the PyTorch module
    `simclr_resnet.py` that loads it. Of a ViT, the encoder and a classifier on its features are written.

    Args:
      out: a new file, .pth (needs torch) or .safetensors.
      step: the checkpoint to read; 0: the newest.
      naming: for a ViT: "timm" or "torchvision"; "": timm.

    Raises:
      SimclrError: the model is neither ResNet nor ViT, or the file exists.
    """
    path = pathlib.Path(paths.local(out, "--out"))
    if path.suffix not in SUFFIXES:
        raise SimclrError(f"--out={out}: must end in {' or '.join(SUFFIXES)}")
    if path.suffix == ".pth":
        import_torch(f"--out={out}: writing it")
    beside, module = path.with_suffix(".json"), path.with_name(MODULE)
    if path.exists():
        raise SimclrError(f"--out={out}: exists already; choose another, or remove it")
    config, _, step, variables = encoder.read(workdir, step)
    if config.model.encoder == "vit":
        return _export_vit(path, config, step, variables, naming or "timm")
    if naming:
        raise SimclrError(f"--names={naming}: only a ViT can be written by several names")
    plain = config.model.variant == "torch"
    tensors, marker, notes = state_of(config, variables, step, plain)
    texts = {beside: json.dumps(marker, indent=2) + "\n"}
    if not plain:
        texts[module] = pathlib.Path(__file__).with_name("torch_module.py").read_text()
    _write(path, tensors, marker, texts)
    if plain:
        lines = ["state dict with torchvision's names"]
        if config.model.stem != "imagenet":
            lines.append(f"{config.model.stem} stem: replace conv1 and maxpool of torchvision's model")
    else:
        lines = [f"state dict for {MODULE}: load({path.name!r})"]
    # The module normalises by itself.
    normalised = plain and config.data.mean
    lines += [
        f"takes images {f'normalised by the mean and std of {beside.name}' if normalised else 'in [0, 1]'}"
    ]
    lines += notes
    lines.append(f"{beside.name} says what the weights do not: keep it beside them")
    return "\n".join(lines)


def _export_vit(
    path: pathlib.Path, config: ConfigDict, step: int, variables: Mapping[str, Any], naming: str
) -> str:
    """Like `export`, for the run of a ViT."""
    beside = path.with_suffix(".json")
    tensors, marker, notes = torch_vit.tensors_of(config, variables, step, naming)
    _write(path, tensors, marker, {beside: json.dumps(marker, indent=2) + "\n"})
    seen = f"normalised by the mean and std of {beside.name}" if config.data.mean else "in [0, 1]"
    kept = f"{beside.name} says what the weights do not: keep it beside them"
    return "\n".join([*notes, f"takes images {seen}", kept])


def state_of(
    config: ConfigDict, variables: dict[str, Any], step: int, plain: bool
) -> tuple[dict[str, np.ndarray], dict[str, Any], list[str]]:
    """(state dict, marker, notes) of a ResNet's run.

    Args:
      plain: only what torchvision's ResNets have; else also what torch_module.py has.
    """
    arrays = {leaf: names.get(variables, leaf.path) for leaf in names.leaves(config.model, variables)}
    tensors, held, notes = _tensors(config, arrays, plain)
    return tensors, _marker_of(config, tensors, held, step, plain), notes


def _tensors(
    config: ConfigDict, arrays: Mapping[names.Leaf, np.ndarray], plain: bool
) -> tuple[dict[str, np.ndarray], int, list[str]]:
    """(state dict, layers of the projection head in it, notes)."""
    tensors: dict[str, np.ndarray] = {}
    dropped = set()
    for leaf, array in arrays.items():
        part = leaf.path[1]
        if plain and (part == "projection" or (part == "probe" and config.model.probe_layer)):
            dropped.add(part)
            continue
        tensors[leaf.torch] = to_torch(array)
        if plain and leaf.path[-1] == "var":
            counter = f"{leaf.torch.rpartition('.')[0]}.{COUNTER}"
            tensors[counter] = np.zeros((), np.int64)
    held = sum(name.startswith("projection.dense") for name in tensors)
    parts = {"projection": "the projection head", "probe": "the classifier that reads it"}
    said = " and ".join(text for part, text in parts.items() if part in dropped)
    return tensors, held, [f"left out: {said}, as torchvision has no place for it"] if said else []


def _marker_of(
    config: ConfigDict, tensors: Mapping[str, np.ndarray], held: int, step: int, plain: bool
) -> dict[str, Any]:
    """The metadata that `convert` and torch_module.py need in addition to the tensors."""
    model, data = config.model, config.data
    blocks, bottleneck = names.blocks_of(model)
    classes = len(tensors["fc.bias"]) if "fc.bias" in tensors else 0
    # torchvision has no projection head. A supervised model has only the layers below its classifier.
    projection = "none" if plain else model.projection
    return {
        MARK: MARK_VERSION,
        "task": "supervised" if config.task != "pretrain" and classes else "pretrain",
        "step": step,
        "blocks": list(blocks),
        "bottleneck": bottleneck,
        **{field: model[field] for field in ("width", "stem", "variant", "sk_ratio", "se_ratio")},
        "projection": projection,
        "projection_layers": PROJECTIONS[projection](model.projection_layers),
        "projection_held": held,
        "projection_dim": model.projection_dim,
        "classes": classes,
        "probe_layer": model.probe_layer if classes else 0,
        "channels": next(iter(tensors.values())).shape[1],  # input channels of the stem
        "image_size": data.image_size,
        "mean": list(data.mean),
        "std": list(data.std),
        "crop": config.eval.crop,
        "resize": config.eval.resize,
    }


def _write(
    path: pathlib.Path,
    tensors: Mapping[str, np.ndarray],
    marker: Mapping[str, Any],
    texts: Mapping[pathlib.Path, str],
) -> None:
    """Writes the weights and the texts; if one cannot be written, it removes the others."""
    from safetensors import SafetensorError

    there = [each for each in texts if each.exists()]
    for each in there:  # for example from the same weights in the other format
        if each.read_bytes() != texts[each].encode():
            raise SimclrError(f"{each}: exists already and is another; choose another --out")
    texts = {each: text for each, text in texts.items() if each not in there}
    halves = {each: each.with_name(each.name + ".half") for each in (*texts, path)}
    done: list[pathlib.Path] = []
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for each, text in texts.items():
            halves[each].write_text(text)
        if path.suffix == ".safetensors":
            metadata = {"format": "pt", MARK: json.dumps(marker)}
            files.write_arrays(halves[path], tensors, metadata)
        else:
            torch = import_torch(f"--out={path}: writing it")
            torch.save({name: torch.tensor(array) for name, array in tensors.items()}, halves[path])
        for each, half in halves.items():
            half.rename(each)
            done.append(each)
    except (OSError, RuntimeError, SafetensorError) as error:
        raise SimclrError(f"--out={path}: cannot be written ({one_line(error)})") from None
    finally:
        whole = len(done) == len(halves)
        for each in [*halves.values(), *([] if whole else done)]:
            with contextlib.suppress(OSError):
                each.unlink(missing_ok=True)
