"""Fields of a ViT (`config.model.vit`); importing them needs no JAX."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from simclr_jax.errors import SimclrError
from simclr_jax.field import (
    ARCHITECTURE,
    BELOW_ONE,
    NOT_NEGATIVE,
    POSITIVE,
    Field,
    one_of,
)
from simclr_jax.registry import Facts, Flat, small_side

# size: (width, blocks, heads), as DeiT (Touvron et al., arXiv 2012.12877, Table 1) and timm have them.
SIZES = {"Ti": (192, 12, 3), "S": (384, 12, 6), "B": (768, 12, 12)}
POOLINGS = ("token", "mean")
POSITIONS = ("sincos", "learned")

FIELDS = {
    "size": Field("S", "preset of width, depth and heads: Ti, S or B", one_of(*SIZES), decides=ARCHITECTURE),
    "width": Field(
        0,
        "numbers in a token; 0: the size's",
        NOT_NEGATIVE,
        most=2**15,
        why="one matrix of a block would take 4 GiB",
        decides=ARCHITECTURE,
    ),
    "depth": Field(
        0,
        "blocks; 0: the size's",
        NOT_NEGATIVE,
        most=1000,
        why="compiling takes hours",
        decides=ARCHITECTURE,
    ),
    "heads": Field(
        0,
        "heads of the attention, a divisor of the width; 0: the size's (moco-v3's ViT-S has 12)",
        NOT_NEGATIVE,
        most=2**15,
        why="it divides the width",
        decides=ARCHITECTURE,
    ),
    "mlp": Field(
        0,
        "hidden width of a block's MLP; 0: four times the width",
        NOT_NEGATIVE,
        most=2**17,
        why="one matrix of a block would take 4 GiB",
        decides=ARCHITECTURE,
    ),
    "patch": Field(
        16,
        "side of the square patches, pixels",
        POSITIVE,
        most=2**14,
        why="no image has a longer side",
        decides=ARCHITECTURE,
    ),
    "pool": Field(
        "token",
        "features: the class token, or the mean of all tokens",
        one_of(*POOLINGS),
        decides=ARCHITECTURE,
    ),
    "positions": Field(
        "sincos",
        "fixed sines and cosines, or learned for one image size",
        one_of(*POSITIONS),
        decides=ARCHITECTURE,
    ),
    "frozen_patch": Field(False, "the patch projection stays as it was drawn (moco-v3, section 4.2)"),
    "drop_path": Field(
        0.0,
        "stochastic depth: probability that the last block drops a branch, 0 in the first",
        BELOW_ONE,
        most=1.0,
        why="it is a probability",
    ),
    "layer_scale": Field(
        0.0,
        "first value of a learned factor for each channel of a branch; 0: no such factor",
        NOT_NEGATIVE,
        most=1e3,
        why="it is a factor near 1 or below",
        least=1e-30,
        decides=ARCHITECTURE,
    ),
    "qkv_bias": Field(True, "whether query, key and value have a bias", decides=ARCHITECTURE),
}


class Shape(NamedTuple):
    """The numbers that `size` stands for, or the fields that override them."""

    width: int
    depth: int
    heads: int
    mlp: int


def shape_of(vit: Mapping[str, Any]) -> Shape:
    """The shape of a `config.model.vit`."""
    width, depth, heads = SIZES[vit["size"]]
    width = vit["width"] or width
    return Shape(width, vit["depth"] or depth, vit["heads"] or heads, vit["mlp"] or 4 * width)


def _own(flat: Flat) -> dict[str, Any]:
    return {name: flat[f"model.vit.{name}"] for name in FIELDS}


def check(flat: Flat) -> None:
    """Raises SimclrError if heads, width, patches and image size do not fit together."""
    vit, side = _own(flat), flat["data.image_size"]
    shape, patch = shape_of(vit), vit["patch"]
    if shape.width % shape.heads:
        raise SimclrError(f"config.model.vit.heads={vit['heads']}: must divide the width, {shape.width}")
    if vit["positions"] == "sincos" and shape.width % 4:
        raise SimclrError(
            f"config.model.vit.width={vit['width']}: must be a multiple of 4 for positions=sincos"
        )
    if side % patch:  # 0: the size of the run that this one starts from
        raise SimclrError(
            f"config.data.image_size={side}: must be a multiple of config.model.vit.patch={patch}"
        )
    small = small_side(flat)
    if small % patch:
        raise SimclrError(
            f"config.augment.small_size: comes to {small}, must be a multiple of "
            f"config.model.vit.patch={patch}"
        )
    if small and vit["positions"] == "learned":
        raise SimclrError(
            "config.augment.small_views: must be 0 for config.model.vit.positions=learned, which fit one size"
        )


def _stages(flat: Flat) -> int:
    return shape_of(_own(flat)).depth


def _smallest(flat: Flat) -> tuple[int, str]:
    patch = flat["model.vit.patch"]
    return patch, f"patches of {patch} pixels"


def _parameters(flat: Flat) -> tuple[float, float]:
    vit = _own(flat)
    shape, patch = shape_of(vit), vit["patch"]
    block = 4 * shape.width**2 + 2 * shape.width * shape.mlp
    learned = vit["positions"] == "learned"
    tokens = (flat["data.image_size"] // patch) ** 2 if learned else 0
    first = (flat["data.channels"] * patch**2 + tokens) * shape.width
    return float(first + shape.depth * block), float(shape.width)


FACTS = Facts(fields=FIELDS, check=check, stages=_stages, smallest=_smallest, parameters=_parameters)
