"""Reads PyTorch's checkpoint files and finds the encoder in them.

A file never runs code: pickles are read with `weights_only`, and only by PyTorch versions where that is safe.
"""

import json
import os
import pathlib
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from simclr_jax import paths
from simclr_jax.convert.architectures import recognise, refusal
from simclr_jax.errors import SimclrError, one_line

MARK = "simclr_jax"  # key of the metadata that `convert.torch.export` writes
SAFE_TORCH = (2, 10)  # in older versions weights_only is unsafe (CVE-2025-32434, CVE-2026-24747)
COUNTER = "num_batches_tracked"
# Layers of the encoder between image and features; all other layers belong to heads.
INSIDE = re.compile(r"(?:conv|bn|norm|layer|stem)\w*\.")
# Only `convert.torch.export` writes these names.
OURS = re.compile(r"(?:stem_conv0|projection\.dense0|layer1\.0\.s[ek]_(?:reduce|expand))\.")
HEADS = re.compile(r"head|projector|projection|predictor|classifier|neck|prototypes|\.fc$|^fc$")


class Found(NamedTuple):
    """A state dict; nested ones are flattened with dots."""

    shapes: dict[str, tuple[int, ...]]
    read: Callable[[str], np.ndarray]
    marker: dict[str, Any] | None  # metadata of a file that `export` wrote


def open_file(where: str) -> Found:
    path = pathlib.Path(paths.local(where, "checkpoint"))
    where = os.fspath(path)
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
    """The metadata that `export` wrote; None if the JSON has another origin."""
    try:
        fields = json.loads(text or "")
    except ValueError:
        return None
    return fields if isinstance(fields, dict) and MARK in fields else None


def _open_safetensors(where: str) -> Found:
    from safetensors import SafetensorError, safe_open

    try:
        file = safe_open(where, framework="np")
        shapes = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
        metadata = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise SimclrError(f"{where}: cannot be read; is the file whole? ({one_line(error)})") from None

    def read(key: str) -> np.ndarray:
        try:
            return file.get_tensor(key)
        # NumPy lacks the type. It does have bfloat16, from JAX.
        except (SafetensorError, TypeError, AttributeError, KeyError, ValueError):
            kind = file.get_slice(key).get_dtype()
            raise SimclrError(f"{where}: {key} is stored as {kind}; store it as float32") from None

    return Found(shapes, read, _marker(metadata.get(MARK)))


def import_torch(why: str) -> Any:
    try:
        import torch
    except ImportError:
        raise SimclrError(f"{why} needs PyTorch: pip install 'torch>=2.10', or give .safetensors") from None
    return torch


def _open_torch(where: str) -> Found:
    import warnings

    torch = import_torch(f"{where}: reading it")
    if tuple(map(int, re.findall(r"\d+", torch.__version__)[:2])) < SAFE_TORCH:
        raise SimclrError(
            f"{where}: PyTorch {torch.__version__} could be made to run code by a checkpoint: "
            "pip install -U torch, or give .safetensors"
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # Never without weights_only: a pickle can run any code.
            tree = torch.load(where, map_location="cpu", weights_only=True)
        tensors = dict(_flatten(tree, torch.Tensor))
    except (RuntimeError, OSError) as error:
        problem = one_line(error).split(". ")[0]
        raise SimclrError(f"{where}: cannot be read as a checkpoint ({problem})") from None
    except Exception as error:  # a file of another kind can fail anywhere in the reader
        if unknown := re.search(r"GLOBAL ([\w.]+)", str(error)):
            raise SimclrError(
                f"{where}: holds more than tensors ({unknown[1]}), and unpickling that could run code; "
                "where you trust the file, save its state dict by itself (as .safetensors, say)"
            ) from None
        raise SimclrError(f"{where}: is no checkpoint of PyTorch's") from None

    def read(key: str) -> np.ndarray:
        tensor = tensors[key].detach()
        try:
            return (tensor.float() if tensor.is_floating_point() else tensor).numpy()
        except (RuntimeError, TypeError) as error:
            raise SimclrError(f"{where}: {key} is no ordinary tensor ({one_line(error)})") from None

    return Found({key: tuple(tensor.shape) for key, tensor in tensors.items()}, read, None)


def _flatten(tree: Any, kind: type, prefix: str = "", seen: set[int] | None = None) -> Iterable:
    """(key, tensor) of nested dicts; visits a dict once, even if it occurs twice or contains itself."""
    seen = set() if seen is None else seen
    if not isinstance(tree, Mapping) or id(tree) in seen:
        return
    seen.add(id(tree))
    for key, value in tree.items():
        if isinstance(value, kind):
            yield f"{prefix}{key}", value
        else:
            yield from _flatten(value, kind, f"{prefix}{key}.", seen)


# ---- finding the encoder --------------------------------------------------------------------------


def _prefixes(shapes: Mapping[str, Any]) -> list[str]:
    """The key prefix of every encoder, with torchvision's names or numbered by nn.Sequential."""
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


def choose(found: Found, prefix: str | None, where: str) -> str:
    there = _prefixes(found.shapes)
    if not there:
        if what := recognise(found.shapes):
            raise SimclrError(refusal(where, what))
        some = ", ".join(list(found.shapes)[:3]) or "no tensor at all"
        raise SimclrError(
            f"{where}: no ResNet in it (conv1.weight, bn1.weight, layer1.0.conv1.weight and so on, or the "
            f"same numbered by nn.Sequential); it holds {some}"
        )
    return choose_prefix(there, prefix, where)


def choose_prefix(there: list[str], prefix: str | None, where: str) -> str:
    """The prefix that the user gave, or else the only one in the file.

    Raises:
      SimclrError: there are several, or the given one belongs to no encoder.
    """
    listed = ", ".join(each or '""' for each in there)
    if prefix is None:
        if len(there) > 1:
            raise SimclrError(f"{where}: holds {len(there)} encoders, {listed}: say which with --prefix")
        return there[0]
    for each in (prefix, f"{prefix}."):
        if each in there:
            return each
    raise SimclrError(f"--prefix={prefix}: no encoder's in {where}; there is {listed}")


def scope_of(found: Found, prefix: str, where: str) -> dict[str, str]:
    """{torchvision's name: key} of the encoder's variables and of its classifier `fc`.

    A file of `export` gives all its variables.
    """
    shapes = found.shapes
    numbered = f"{prefix}conv1.weight" not in shapes
    # The groups have the numbers 4 to 7, after ReLU and max-pool; in lightly's own ResNet they have 2 to 5.
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
            inside = not numbered and bool(INSIDE.match(name) or OURS.match(name))
        fc = part == "fc" and f"{prefix}fc.weight" in shapes and f"{prefix}fc.bias" in shapes
        if not (inside or (fc and rest in ("weight", "bias")) or found.marker):
            continue
        if not found.marker:
            name = re.sub(r"^(layer\d+\.\d+)\.shortcut\.", r"\1.downsample.", name)  # lightly's own ResNet
        if name in scope:
            raise SimclrError(f"{where}: {key} and {scope[name]} would be the same variable")
        scope[name] = key
    return scope


def is_solo_learn(found: Found, prefix: str) -> bool:
    """Whether solo-learn wrote the file; it pads the 3×3 stem by two. Old versions use the key `encoder`."""
    parent, _, own = prefix.removesuffix(".").rpartition(".")
    beside = {"backbone": ("projector",), "encoder": ("projector", "classifier")}.get(own)
    parent = parent and f"{parent}."
    return bool(beside) and all(
        any(key.startswith(f"{parent}{each}.") for key in found.shapes) for each in beside
    )


def left_out(found: Found, prefix: str, taken: set[str]) -> list[str]:
    """A line for the user about tensors that were left out, grouped by the first key part that differs."""
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
    listed = [f"{group} ({count})" for group, count in sorted(counts.items())]
    more = f" and {len(listed) - 8} more" if len(listed) > 8 else ""
    total = sum(counts.values())
    line = f"left out: {total} {'tensors' if total > 1 else 'tensor'} outside the encoder, "
    line += f"{', '.join(listed[:8])}{more}"
    if any(HEADS.search(group) for group in counts):
        line += "; heads of other projects have biases or other BatchNorms than the one here"
    return [line]
