"""Infers the architecture in a TensorFlow checkpoint of the original from its variables' shapes."""

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from simclr_jax.convert.workdir import config_of
from simclr_jax.errors import SimclrError
from simclr_jax.models.resnet import DEPTHS


class Found(NamedTuple):
    """A checkpoint's variables by the names of its format ("tf1" or "tf2"), in order of creation."""

    format: str
    shapes: dict[str, tuple[int, ...]]
    read: Callable[[str], np.ndarray]
    step: int
    left_out: list[str]  # variables that are no part of the model
    note: str = ""  # line for the user about how the file was read


def infer(
    found: Found, where: str, *, image_size: int = 0, probe_layer: int | None = None
) -> tuple[ConfigDict, int]:
    """(config, number of classes) of the model that the variables' shapes describe.

    Raises:
      SimclrError: the shapes fit no model.
    """
    head = _infer_head(found)
    classes, cut = head.pop("classes"), head.pop("cut", 0)
    layers = 0 if head["projection"] == "none" else head["projection_layers"]
    if cut and not classes:
        raise SimclrError(f"{where}: lacks the last layer of its projection head, and has no classifier")
    wanted = probe_layer
    if wanted is None:
        wanted = cut or int(bool(re.search(r"finetuned_10?pct", where)) and layers > 1)
    layer = wanted + (layers + 1) * (wanted < 0)  # -1: the last
    if not 0 <= layer <= layers or (cut and layer != cut):
        there = f"the classifier reads layer {cut}" if cut else f"the projection head has {layers} layers"
        raise SimclrError(f"--probe-layer={wanted}: {there}")
    channels, fields = _infer_encoder(found, where)
    config = config_of(
        {**fields, **head, "probe": bool(classes), "probe_layer": layer},
        task="supervised" if cut or (classes and not layers) else "pretrain",
        image_size=image_size,
        channels=channels,
    )
    return config, classes


def _infer_encoder(found: Found, where: str) -> tuple[int, dict[str, Any]]:
    """(channels of the images, architecture fields of config.model) from the convolutions in order."""
    convs = [
        (name, shape, f"{name.removesuffix('kernel')}bias" in found.shapes)
        for name, shape in found.shapes.items()
        if name.startswith(("base_model/", "resnet_model/")) and name.endswith("/kernel")
    ]
    for name, shape, _ in convs:
        if len(shape) != 4 or shape[0] != shape[1] or not all(shape):
            raise SimclrError(f"{where}: {name} has the shape {list(shape)}, which is no convolution's")
    at = 0

    def peek(offset: int = 0) -> tuple[int, int, int]:
        """(kernel size, channels in, channels out) of the next convolution."""
        if at + offset >= len(convs):
            raise SimclrError(f"{where}: its {len(convs)} convolutions end in the middle of a block")
        _, shape, _ = convs[at + offset]
        return shape[0], shape[2], shape[3]

    kernel, channels, out = peek()
    stem = "imagenet" if kernel == 7 else "cifar"
    if kernel == 3 and peek(1)[0] == 3:  # ResNet-D: three 3×3, the last to twice the width
        stem, out, at = "imagenet", peek(2)[2], 2
    elif kernel not in (3, 7):
        raise SimclrError(f"{where}: the first convolution is {kernel}×{kernel}, no stem of the original's")
    at += 1
    width = out / 64
    first = at
    bottleneck = peek(1)[0] == 1
    inner = peek(1)[2] if bottleneck else peek()[2]
    selective = bottleneck and peek(2)[2] == 2 * inner
    main = (5 if selective else 3) if bottleneck else 2
    excite = at + 1 + main < len(convs) and convs[at + 1 + main][2]
    blocks: list[int] = []
    while at < len(convs):
        kernel, before, after = peek()
        shortcut = kernel == 1 and (after >= before if bottleneck else True)
        if shortcut:
            blocks.append(0)
        elif not blocks:
            raise SimclrError(f"{where}: {convs[at][0]}: the first block has no shortcut convolution")
        blocks[-1] += 1
        size = main + shortcut + 2 * excite
        peek(size - 1)
        at += size
    if len(blocks) != 4:
        raise SimclrError(f"{where}: has {len(blocks)} groups of blocks, not 4")
    fields: dict[str, Any] = {"width": width, "stem": stem}
    last = len(convs) - main - 2 * excite  # of the last block, without a shortcut
    inner = convs[last][1][3]
    if selective:
        low = convs[last + 2][1][3]
        fields["sk_ratio"] = _ratio(inner, low, 32, (0.0625,))
    elif not bottleneck and (first == 3 or any("shortcut_layers/1/conv2d" in name for name in found.shapes)):
        fields["sk_ratio"] = 0.0625  # basic blocks have only the stem and the pooling
    elif first == 3:
        raise SimclrError(f"{where}: has the stem of selective kernels, but none in its blocks")
    if excite:
        fields["se_ratio"] = _ratio(inner, convs[-2][1][3], 1, (0.0625, 0.25))
    return channels, fields | depth_of(tuple(blocks), bottleneck)


def depth_of(blocks: tuple[int, ...], bottleneck: bool) -> dict[str, Any]:
    """The fields depth and blocks for the blocks of each group."""
    for depth, kind in DEPTHS.items():
        if kind == (blocks, bottleneck):
            return {"depth": depth, "blocks": ()}
    return {"depth": 50 if bottleneck else 18, "blocks": blocks}


def _ratio(inner: int, low: int, least: int, usual: tuple[float, ...]) -> float:
    """A ratio with `low` = max(least, int(inner · ratio)); a usual one if several fit."""
    possible = (*usual, low / inner, (low + 0.5) / inner)  # low / inner may round to less
    return next((r for r in possible if max(least, int(inner * r)) == low), low / inner)


def _head_name(found: Found, i: int) -> str:
    if found.format == "tf2":
        return f"_projection_head/linear_layers/{i}/dense"
    linear = any(name.startswith("head_contrastive/l_") for name in found.shapes)
    return f"head_contrastive/{'l' if linear else 'nl'}_{i}/dense"


def _infer_head(found: Found) -> dict[str, Any]:
    """Fields of config.model for the projection head, and {classes, cut}: a head without its last layers."""
    count = 0
    while f"{_head_name(found, count)}/kernel" in found.shapes:
        count += 1
    probe = "supervised_head" if found.format == "tf2" else "head_supervised"
    classes = found.shapes.get(f"{probe}/linear_layer/dense/kernel", (0, 0))[-1]
    if not count:
        return {"projection": "none", "projection_layers": 1, "classes": classes}
    norm = "bn_relu/bn/beta" if found.format == "tf2" else "batch_normalization/beta"
    beta = f"{_head_name(found, count - 1).removesuffix('dense')}{norm}" in found.shapes
    kind = "linear" if count == 1 and not beta else "nonlinear"
    head = {"projection": kind, "projection_layers": count, "classes": classes}
    if beta:  # the last layer has no beta, so layers of the head are missing
        return {**head, "projection_layers": count + 1, "cut": count}
    dim = found.shapes[f"{_head_name(found, count - 1)}/kernel"][-1]
    return {**head, "projection_dim": dim}
