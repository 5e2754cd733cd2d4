"""PyTorch's ResNets, in and out: torchvision's names and what other projects wrap around them.

In: state dicts of torchvision, lightly, solo-learn, VISSL and whoever else keeps torchvision's names. Out:
torchvision's names for models of variant "torch"; for the original's, the same names with more where they
have none, beside a PyTorch module that reads them.
"""

import json
import pathlib
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
from etils import epath
from ml_collections import ConfigDict

from simclr_jax import encoder
from simclr_jax.convert import names, run
from simclr_jax.errors import SimclrError
from simclr_jax.models.heads import PROJECTIONS
from simclr_jax.models.resnet import DEPTHS, STEMS, VARIANTS

MARK, MARK_VERSION = "simclr_jax", 1
MODULE = "simclr_resnet.py"  # copy of torch_module.py beside a file of the original's kind
SUFFIXES = (".pth", ".safetensors")
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, as torchvision has them
COUNTER = "num_batches_tracked"
# What lies in an encoder's way from image to features; whatever else stands beside it is a head.
INSIDE = re.compile(r"(?:conv|bn|norm|layer|stem)\w*\.")
OURS = re.compile(r"(?:stem_conv0|projection\.dense0)\.|layer1\.0\.s[ek]_")
HEADS = re.compile(r"head|projector|projection|predictor|classifier|neck|prototypes|\.fc$|^fc$")


class Found(NamedTuple):
    """A state dict; nested ones are flattened with dots."""

    shapes: dict[str, tuple[int, ...]]
    read: Callable[[str], np.ndarray]
    marker: dict[str, Any] | None  # what `export` said of its file


def convert(
    checkpoint: epath.PathLike, out: epath.PathLike, *, prefix: str | None = None, image_size: int = 0
) -> str:
    """Writes the workdir `out` from a PyTorch state dict; returns what it inferred, as text.

    Weights do not tell how images were normalised: ImageNet's mean and std are put into config.json, as
    torchvision, lightly and VISSL use them. Whoever trained on CIFAR with others corrects `data.mean` and
    `data.std` there. Files of `export` say it themselves.

    Args:
      checkpoint: .safetensors, or what `torch.save` wrote (.pth, .pt, .ckpt; needs torch). Nothing in it
        is ever run.
      prefix: of the encoder's keys, "backbone." say, where there are several encoders.
      image_size: pixels; 0: 224, or 32 with a CIFAR stem.

    Raises:
      SimclrError: it is no such file, or holds what has no place in a model.
    """
    run.check_free(out)
    where = str(checkpoint)
    found = _open(where)
    prefix = _choose(found, prefix, where)
    scope = _scope(found, prefix, where)
    shapes = {name: found.shapes[key] for name, key in scope.items()}
    if found.marker:
        config, channels, classes, notes = _config_of_marker(found.marker, image_size, where)
        step = int(found.marker.get("step", 0))
    else:
        stem = "cifar_pad2" if _is_solo_learn(found, prefix) else "cifar"
        config, channels, classes, notes = _config_of_shapes(shapes, stem, image_size, where)
        step = 0
    wanted = run.expected(config, channels, classes)
    arrays = {name: _to_ours(_float32(found.read(key))) for name, key in scope.items()}
    run.write(out, config, run.assemble(arrays, wanted, "torch", where), step=step, origin=where)
    lines = [run.describe(config, classes), *notes, *_left_out(found, prefix, set(scope.values()))]
    return "\n".join(lines)


# ---- reading --------------------------------------------------------------------------------------


def _open(where: str) -> Found:
    path = pathlib.Path(where)
    if not path.is_file():
        what = "is a folder; give the file of a state dict" if path.is_dir() else "no such file"
        raise SimclrError(f"{where}: {what}")
    found = _open_safetensors(where) if path.suffix == ".safetensors" else _open_torch(where)
    if found.marker is None and path.with_suffix(".json").is_file():
        try:
            text = path.with_suffix(".json").read_text()
        except (OSError, ValueError):
            text = ""
        found = found._replace(marker=_marker(text))
    return found


def _marker(text: str | None) -> dict[str, Any] | None:
    """The fields that `export` wrote, None where it is somebody else's JSON."""
    try:
        fields = json.loads(text or "")
    except ValueError:
        return None
    return fields if isinstance(fields, dict) and MARK in fields else None


def _line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def _open_safetensors(where: str) -> Found:
    from safetensors import SafetensorError, safe_open

    try:
        file = safe_open(where, framework="np")
        shapes = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
        metadata = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise SimclrError(f"{where}: cannot be read; is the file whole? ({_line(error)})") from None

    def read(key: str) -> np.ndarray:
        try:
            return file.get_tensor(key)
        # NumPy lacks the type; bfloat16 it has from JAX.
        except (SafetensorError, TypeError, AttributeError, KeyError, ValueError):
            kind = file.get_slice(key).get_dtype()
            raise SimclrError(f"{where}: {key} is stored as {kind}; store it as float32") from None

    return Found(shapes, read, _marker(metadata.get(MARK)))


def _import_torch(why: str) -> Any:
    try:
        import torch
    except ImportError:
        raise SimclrError(f"{why} needs PyTorch: pip install torch, or give .safetensors") from None
    return torch


def _open_torch(where: str) -> Found:
    import pickle

    torch = _import_torch(f"{where}: reading it")
    try:
        # Never without weights_only: a pickle can run any code.
        tree = torch.load(where, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        unknown = re.search(r"(?:GLOBAL|Unsupported \w+:?|global) `?([\w.]+)`?", str(error))
        what = f" ({unknown[1]})" if unknown else ""
        raise SimclrError(
            f"{where}: is no checkpoint, or holds more than tensors{what}, which is not unpickled, as that can "
            "run code; where you trust it, save its state dict by itself, as .safetensors say"
        ) from None
    except Exception as error:  # a damaged file can fail anywhere in the reader
        raise SimclrError(f"{where}: cannot be read as a checkpoint ({_line(error)})") from None
    tensors = dict(_flatten(tree, torch.Tensor))

    def read(key: str) -> np.ndarray:
        tensor = tensors[key].detach()
        try:
            return (tensor.float() if tensor.is_floating_point() else tensor).numpy()
        except (RuntimeError, TypeError) as error:
            raise SimclrError(f"{where}: {key} is no ordinary tensor ({_line(error)})") from None

    return Found({key: tuple(tensor.shape) for key, tensor in tensors.items()}, read, None)


def _flatten(tree: Any, kind: type, prefix: str = "", seen: set[int] | None = None) -> Iterable:
    """(key, tensor) of nested dicts; a dict that occurs twice, within itself even, counts once."""
    seen = set() if seen is None else seen
    if not isinstance(tree, Mapping) or id(tree) in seen:
        return
    seen.add(id(tree))
    for key, value in tree.items():
        if isinstance(value, kind):
            yield f"{prefix}{key}", value
        else:
            yield from _flatten(value, kind, f"{prefix}{key}.", seen)


def _float32(array: np.ndarray) -> np.ndarray:
    if array.dtype.kind == "f" or array.dtype.name == "bfloat16":
        with np.errstate(over="ignore"):  # infinity is refused later
            return array.astype(np.float32)
    return array


def _to_ours(array: np.ndarray) -> np.ndarray:
    """[out, in, h, w] to [h, w, in, out], [out, in] to [in, out]."""
    order = {4: (2, 3, 1, 0), 2: (1, 0)}.get(array.ndim)
    return np.ascontiguousarray(array.transpose(order)) if order else array


def _to_torch(array: np.ndarray) -> np.ndarray:
    order = {4: (3, 2, 0, 1), 2: (1, 0)}.get(array.ndim)
    return np.ascontiguousarray(array.transpose(order) if order else array, np.float32)


# ---- finding the encoder --------------------------------------------------------------------------


def _prefixes(shapes: Mapping[str, Any]) -> list[str]:
    """Of every encoder: named as torchvision does, or numbered by nn.Sequential."""
    found = []
    for last, first, second in (
        ("layer1.0.conv1.weight", "conv1.weight", "bn1.weight"),
        ("4.0.conv1.weight", "0.weight", "1.weight"),
    ):
        for key in shapes:
            p = key.removesuffix(last)
            if p != key and (not p or p.endswith(".")) and p + first in shapes and p + second in shapes:
                found.append(p)
    return found


def _choose(found: Found, prefix: str | None, where: str) -> str:
    there = _prefixes(found.shapes)
    if not there:
        some = ", ".join(list(found.shapes)[:3]) or "no tensor at all"
        raise SimclrError(
            f"{where}: no ResNet in it (conv1.weight, bn1.weight, layer1.0.conv1.weight and so on, or the same "
            f"numbered by nn.Sequential); it holds {some}"
        )
    listed = ", ".join(each or '""' for each in there)
    if prefix is None:
        if len(there) > 1:
            raise SimclrError(f"{where}: holds {len(there)} encoders, {listed}: say which with --prefix")
        return there[0]
    for each in (prefix, f"{prefix}."):
        if each in there:
            return each
    raise SimclrError(f"--prefix={prefix}: no encoder's in {where}; there is {listed}")


def _scope(found: Found, prefix: str, where: str) -> dict[str, str]:
    """{torchvision's name: key} of the encoder's variables and of a classifier `fc` beside them.

    In a file of `export`, of all there is.
    """
    shapes = found.shapes
    numbered = f"{prefix}conv1.weight" not in shapes
    # With ReLU and max-pool among the children the groups are 4 to 7, in lightly's own ResNet 2 to 5.
    first = 2 if f"{prefix}2.0.conv1.weight" in shapes else 4
    numbers = {"0": "conv1", "1": "bn1"} | {str(first + i): f"layer{i + 1}" for i in range(4)}
    scope: dict[str, str] = {}
    for key in shapes:
        name = key.removeprefix(prefix)
        if not key.startswith(prefix) or name.endswith(COUNTER):
            continue
        part, _, rest = name.partition(".")
        if numbered and part.isdigit():
            inside = int(part) < first + 4
            name = f"{numbers.get(part, part)}.{rest}"
        else:
            inside = bool(INSIDE.match(name)) and not numbered
        fc = part == "fc" and f"{prefix}fc.weight" in shapes and f"{prefix}fc.bias" in shapes
        if not (inside or (fc and rest in ("weight", "bias")) or found.marker):
            continue
        if not found.marker:
            name = re.sub(r"^(layer\d+\.\d+)\.shortcut\.", r"\1.downsample.", name)  # lightly's own ResNet
        if name in scope:
            raise SimclrError(f"{where}: {key} and {scope[name]} would be the same variable")
        scope[name] = key
    return scope


def _is_solo_learn(found: Found, prefix: str) -> bool:
    """solo-learn pads the 3×3 stem by two; the encoder was called `encoder` in its first versions."""
    parent, _, own = prefix.removesuffix(".").rpartition(".")
    beside = {"backbone": ("projector",), "encoder": ("projector", "classifier")}.get(own, ("",))
    parent = parent and f"{parent}."
    return all(any(key.startswith(f"{parent}{each}.") for key in found.shapes) for each in beside)


def _left_out(found: Found, prefix: str, taken: set[str]) -> list[str]:
    """What the text says of tensors that were not taken, by the first part of the key that is not shared."""
    counts: Counter[str] = Counter()
    for key in found.shapes:
        if key in taken or key.endswith(COUNTER):
            continue
        parts = key.split(".")
        shared = 0
        for mine, theirs in zip(prefix.split(".")[:-1], parts[:-1], strict=False):
            if mine != theirs:
                break
            shared += 1
        counts[".".join(parts[: shared + 1])] += 1
    if not counts:
        return []
    listed = [f"{group} ({count})" for group, count in counts.items()]
    more = f" and {len(listed) - 8} more" if len(listed) > 8 else ""
    line = f"left out: {sum(counts.values())} tensors that are no part of the encoder, "
    line += f"{', '.join(listed[:8])}{more}"
    if any(HEADS.search(group) for group in counts):
        line += "; heads of other projects have biases or other BatchNorms than the one here"
    return [line]


# ---- what the shapes tell, or the marker ----------------------------------------------------------


def _depth(blocks: tuple[int, ...], bottleneck: bool) -> dict[str, Any]:
    depths = [depth for depth, kind in DEPTHS.items() if kind == (blocks, bottleneck)]
    return {
        "depth": depths[0] if depths else 50 if bottleneck else 18,
        "blocks": () if depths else blocks,
    }


def _config_of_shapes(
    shapes: Mapping[str, tuple[int, ...]], cifar: str, image_size: int, where: str
) -> tuple[ConfigDict, int, int, list[str]]:
    """(config, channels, classes, notes) of PyTorch's shapes; `cifar`: what stem 3×3 stands for."""
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
    classes = shapes.get("fc.weight", (0,))[0]
    model = {
        **_depth(tuple(len(groups[g]) for g in (1, 2, 3, 4)), bottleneck),
        "width": conv[0] / 64,
        "stem": stem,
        "variant": "torch" if bottleneck or not projects else "original",
        "projection": "none",
        "projection_layers": 1,
        "probe": bool(classes),
    }
    config = run.config_of(model, task="supervised" if classes else "pretrain", image_size=image_size)
    config.data.channels = conv[1]
    config.eval.resize, config.eval.crop = "bilinear", 0.875
    notes = [
        f"images of {config.data.image_size} pixels in [0, 1]; weights do not tell how to normalise them"
    ]
    if conv[1] == 3:
        config.data.mean, config.data.std = MEAN, STD
        notes = [
            f"images of {config.data.image_size} pixels, normalised by ImageNet's mean and std; weights do not "
            "tell, so correct data.mean and data.std in config.json if others were used"
        ]
    if stem == "cifar_pad2":
        notes.append("3×3 stem padded by two, as solo-learn has it")
    if classes:
        notes.append(f"fc is taken for a classifier of {classes} classes")
    return config, conv[1], classes, notes


def _config_of_marker(
    marker: Mapping[str, Any], image_size: int, where: str
) -> tuple[ConfigDict, int, int, list[str]]:
    """The same of what `export` wrote."""
    if marker[MARK] != MARK_VERSION:
        raise SimclrError(f"{where}: is of format {marker[MARK]!r}, not {MARK_VERSION}: update simclr_jax")
    try:
        blocks = tuple(int(count) for count in marker["blocks"])
        classes, layers = int(marker["classes"]), int(marker["projection_layers"])
        model = {
            **_depth(blocks, bool(marker["bottleneck"])),
            **{field: float(marker[field]) for field in ("width", "sk_ratio", "se_ratio")},
            **{field: str(marker[field]) for field in ("stem", "variant", "projection")},
            "projection_layers": layers or 1,
            "projection_dim": int(marker["projection_dim"]),
            "probe": bool(classes),
            "probe_layer": int(marker["probe_layer"]),
        }
        task = "supervised" if marker["task"] == "supervised" and classes else "pretrain"
        config = run.config_of(model, task=task, image_size=image_size or int(marker["image_size"]))
        config.data.channels = channels = int(marker["channels"])
        for field in ("mean", "std"):
            config.data[field] = tuple(float(value) for value in marker[field])
        config.eval.crop, config.eval.resize = float(marker["crop"]), str(marker["resize"])
        known = (
            model["stem"] in STEMS
            and model["variant"] in VARIANTS
            and model["projection"] in PROJECTIONS
            and len(blocks) == 4
            and min(*blocks, channels, model["projection_dim"], config.data.image_size) > 0
            and model["width"] > 0
            and min(classes, model["sk_ratio"], model["se_ratio"]) >= 0
            and 0 <= model["probe_layer"] <= layers
        )
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise SimclrError(f"{where}: what to-torch wrote about it is damaged ({_line(error)})") from None
    if not known:
        raise SimclrError(f"{where}: what to-torch wrote about it describes no model of this version")
    normalised = "normalised as its .json says" if config.data.mean else "in [0, 1]"
    return config, channels, classes, [f"images of {config.data.image_size} pixels, {normalised}"]


# ---- writing --------------------------------------------------------------------------------------


def export(workdir: epath.PathLike, out: epath.PathLike, *, step: int = 0) -> str:
    """Writes a state dict and, beside it, a .json of the same name; returns what they are for, as text.

    Of variant "torch": encoder and a classifier that reads it, with torchvision's names. Otherwise all of
    the model, and the PyTorch module `simclr_resnet.py` that loads it.

    Args:
      out: a new file, .pth (needs torch) or .safetensors.
      step: of the workdir's checkpoints; 0: the newest.

    Raises:
      SimclrError: the model is no ResNet, or there is something already.
    """
    path = pathlib.Path(out)
    if path.suffix not in SUFFIXES:
        raise SimclrError(f"--out={out}: must end in {' or '.join(SUFFIXES)}")
    if path.suffix == ".pth":
        _import_torch(f"--out={out}: writing it")
    beside, module = path.with_suffix(".json"), path.with_name(MODULE)
    for each in (path, beside):
        if each.exists():
            raise SimclrError(f"--out={each}: exists already; choose another, or remove it")
    config, _, step, variables = encoder.read(workdir, step)
    arrays = {leaf: names.get(variables, leaf.path) for leaf in names.leaves(config.model, variables)}
    plain = config.model.variant == "torch"
    tensors, held, notes = _tensors(config, arrays, plain)
    marker = _marker_of(config, tensors, held, step)
    texts = {beside: json.dumps(marker, indent=2) + "\n"}
    if not plain:
        code = pathlib.Path(__file__).with_name("torch_module.py").read_text()
        if not module.exists():
            texts[module] = code
        elif module.read_text() != code:
            raise SimclrError(f"{module}: exists already and is another; choose another folder for --out")
    _write(path, tensors, marker, texts)
    if plain:
        lines = ["state dict with torchvision's names"]
        if config.model.stem != "imagenet":
            lines.append(f"{config.model.stem} stem: replace conv1 and maxpool of torchvision's model")
    else:
        lines = [f"state dict for {MODULE}: load({path.name!r})"]
    normalised = (
        f"normalised by {beside.name}'s mean and std" if config.data.mean else "in [0, 1] as they are"
    )
    # The module normalises by itself.
    lines += [f"takes images {normalised if plain else 'in [0, 1]'}", *notes]
    lines.append(f"{beside.name} says what the weights do not: keep it beside them")
    return "\n".join(lines)


def _tensors(
    config: ConfigDict, arrays: Mapping[names.Leaf, np.ndarray], plain: bool
) -> tuple[dict[str, np.ndarray], int, list[str]]:
    """(state dict, layers of the projection head in it, notes)."""
    tensors: dict[str, np.ndarray] = {}
    left_out = set()
    for leaf, array in arrays.items():
        part = leaf.path[1]
        if plain and (part == "projection" or (part == "probe" and config.model.probe_layer)):
            left_out.add(part)
            continue
        tensors[leaf.torch] = _to_torch(array)
        if plain and leaf.path[-1] == "var":
            counter = f"{leaf.torch.rpartition('.')[0]}.{COUNTER}"
            tensors[counter] = np.zeros((), np.int64)
    held = sum(name.startswith("projection.dense") for name in tensors)
    names_ = {"projection": "the projection head", "probe": "the classifier that reads it"}
    said = " and ".join(text for part, text in names_.items() if part in left_out)
    return tensors, held, [f"left out: {said}, as torchvision has no place for it"] if said else []


def _marker_of(config: ConfigDict, tensors: Mapping[str, np.ndarray], held: int, step: int) -> dict[str, Any]:
    """What `convert` and torch_module.py need to know beside the tensors."""
    model, data = config.model, config.data
    blocks, bottleneck = names.blocks_of(model)
    classes = len(tensors["fc.bias"]) if "fc.bias" in tensors else 0
    # Of variant "torch" no head is written, of a supervised model only what lies below its classifier.
    projection = "none" if model.variant == "torch" else model.projection
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
        "channels": data.channels,
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
    """Writes the weights and the texts beside them: all of them or, on a failure, none."""
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    halves = {each: each.with_name(each.name + ".half") for each in (*texts, path)}
    done: list[pathlib.Path] = []
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for each, text in texts.items():
            halves[each].write_text(text)
        if path.suffix == ".safetensors":
            metadata = {"format": "pt", MARK: json.dumps(marker)}
            save_file(dict(tensors), halves[path], metadata=metadata)
        else:
            torch = _import_torch(f"--out={path}: writing it")
            torch.save({name: torch.tensor(array) for name, array in tensors.items()}, halves[path])
        for each, half in halves.items():
            half.rename(each)
            done.append(each)
    except (OSError, RuntimeError, SafetensorError) as error:
        raise SimclrError(f"--out={path}: cannot be written ({_line(error)})") from None
    finally:
        whole = len(done) == len(halves)
        for each in [*halves.values(), *([] if whole else done)]:
            each.unlink(missing_ok=True)
