"""Limits on the numbers of a config: sizes that fit no machine are refused before anything is allocated.

Each field's own limits are part of its declaration; this module checks combinations of fields.
"""

import math
from typing import Any

from simclr_jax import registry
from simclr_jax.config.fields import RATE, STEP, declared
from simclr_jax.errors import SimclrError
from simclr_jax.field import shown

BYTES = 2**40  # of the views of a batch, over all devices
PARAMETERS = 2**36  # of a model: float32 takes 256 GiB, and every device holds all of them
POSITIONS = 2**32  # source images of a run, counted with repeats
STEPS = 2**31 - 1
LONG = 4096  # numbers in a tuple


def check(flat: dict[str, Any]) -> None:
    """Raises SimclrError for the first number that is too large, or too close to 0, and says why."""
    for field, one in declared().items():
        value = flat[field]
        several = isinstance(value, tuple)
        for number in value if several else (value,):
            if one.most is None:
                break
            which = "numbers of " if several else ""
            if abs(number) > one.most:
                limit = f"{which}at {'least -' if number < 0 else 'most '}{_number(one.most)}"
            elif number and abs(number) < one.least:
                limit = f"{which}at least {_number(one.least)}"
            else:
                continue
            raise SimclrError(f"config.{field}={shown(value)}: must be {limit}: {one.why}")
        if several and len(value) > LONG:
            raise SimclrError(f"config.{field}={shown(value)}: must be at most {LONG:,} numbers")


def check_together(flat: dict[str, Any]) -> None:
    """Raises SimclrError if numbers that are valid alone are together too large for any machine."""
    pixels = flat["data.image_size"] ** 2 * flat["data.channels"]
    small = flat["augment.small_views"] * (registry.small_side(flat) / flat["data.image_size"]) ** 2
    views_of = {"train.batch_size": 2 + small if flat["task"] == "pretrain" else 1, "eval.batch_size": 1}
    for field, views in views_of.items() if registry.of_images(flat["data.source"]) else ():
        size = 4 * flat[field] * views * pixels
        if size > BYTES:
            raise SimclrError(
                f"config.{field}={flat[field]}: must be smaller: its images of {flat['data.image_size']} "
                f"pixels take {size / 2**40:.3g} TiB, and no mesh has more than 1 for them"
            )
    count = parameters(flat)
    if count > PARAMETERS:
        raise SimclrError(
            f"config.model.width={flat['model.width']:g}: must be smaller: the model has about {count:.1g} "
            f"parameters, and no device holds more than {PARAMETERS:.1g}; or lower depth, blocks or "
            "projection_layers"
        )
    factor = {
        "linear": flat["train.batch_size"] / 256,
        "sqrt": math.sqrt(flat["train.batch_size"]),
        "none": 1,
    }
    peak = flat["optimizer.learning_rate"] * factor[flat["optimizer.scaling"]]
    if peak > RATE[0]:
        raise SimclrError(
            f"config.optimizer.learning_rate={flat['optimizer.learning_rate']}: must be smaller: "
            f"config.optimizer.scaling makes it {peak:g}, and {RATE[1]}"
        )


def check_run(flat: dict[str, Any], steps: int) -> None:
    """Raises SimclrError if the run has more `steps` than the counters can hold."""
    if steps > STEPS:
        raise SimclrError(f"config.train: comes to {steps:,} steps, must be at most {STEPS:,}: {STEP[1]}")
    images = steps * flat["train.batch_size"]
    if flat["augment.device"] != "none" and images > POSITIONS:
        raise SimclrError(
            f"config.train: {steps:,} steps of {flat['train.batch_size']:,} images are {images:,}, must be "
            f"at most {POSITIONS:,}: the device counts them in 32 bits; shorten the run, or set "
            "config.augment.device=none"
        )


def layers_of(flat: dict[str, Any]) -> int:
    """Layers of the projection head."""
    fixed = {"none": 0, "linear": 1}
    name = flat["model.projection"]
    return fixed[name] if name in fixed else flat["model.projection_layers"]


def parameters(flat: dict[str, Any]) -> float:
    """Approximate number of parameters of encoder and projection head, within a tenth."""
    count, features = registry.encoder_facts(flat).parameters(flat)
    layers = layers_of(flat)
    head = max(layers - 1, 0) * features**2 + bool(layers) * features * flat["model.projection_dim"]
    return count + head


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:g}"
