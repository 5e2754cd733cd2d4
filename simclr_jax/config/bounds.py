"""How large a number in a config may be: what no machine holds is refused before anything is allocated.

A bound is generous: it lies where the program would end in a traceback, in a hang or in infinity, or where no
one has a use for the value. Nothing here imports JAX or TensorFlow.
"""

import math
from typing import Any, NamedTuple

from simclr_jax.errors import SimclrError

UNITS = ("optimizer.warmup", "train", "checkpoint.every", "log.every", "eval.every")  # durations
BYTES = 2**40  # of the views of a batch, over all devices
PARAMETERS = 2**36  # of a model: float32 takes 256 GiB, and every device holds all of them
POSITIONS = 2**32  # source images of a run, counted with repeats
STEPS = 2**31 - 1

# Blocks of each group, and whether they are bottlenecks; a test compares them with the ResNet's.
BLOCKS = {
    18: ((2, 2, 2, 2), False),
    34: ((3, 4, 6, 3), False),
    50: ((3, 4, 6, 3), True),
    101: ((3, 4, 23, 3), True),
    152: ((3, 8, 36, 3), True),
    200: ((3, 24, 36, 3), True),
}


class Bound(NamedTuple):
    """The largest magnitude of a number, the smallest beside 0, and why."""

    most: float
    why: str
    least: float = 0.0


def _names(group: str, names: str) -> list[str]:
    return [f"{group}.{name}" for name in names.split()]


STEP = Bound(STEPS, "steps are counted in 32 bits")
NUMBER = Bound(2**31 - 1, "images are numbered in 32 bits")
EPOCHS = Bound(1e6, "no training takes so many epochs")
PIXELS = Bound(2**14, "one image would take gigabytes")
SHARE = Bound(1.0, "it is a share")
RATE = Bound(1e38, "float32 ends at 3.4e38")
FACTOR = Bound(1e6, "products with it leave float32", 1e-6)
DIVISOR = Bound(1e6, "float32 divides by it", 1e-6)

BOUNDS: dict[str, Bound] = {
    "seed": Bound(2**31 - 1, "random keys are made of 32 bits"),
    "start.step": STEP,
    "distill.step": STEP,
    "distill.temperature": DIVISOR,
    "distill.alpha": SHARE,
    "data.holdout": SHARE,
    "data.image_size": PIXELS,
    "data.stored_size": PIXELS,
    "data.channels": Bound(4096, "no image has more"),
    "data.mean": Bound(1e6, "images lie in [0, 1]"),
    "data.std": DIVISOR,
    "data.memory_gb": Bound(1e6, "no machine has a petabyte of memory"),
    "data.shuffle_buffer": Bound(10**8, "so many images lie in memory at a time"),
    "data.percentiles": Bound(100, "they are percent"),
    "data.window": Bound(1e12, "float32 counts no further"),
    "data.max_pixels": Bound(178_956_970, "Pillow reads no more"),
    "data.max_unreadable": SHARE,
    "data.threads": Bound(4096, "no machine has more cores"),
    "model.depth": Bound(200, "the deepest ResNet"),
    "model.width": Bound(1000, "the first convolution would have 64,000 channels"),
    "model.blocks": Bound(1000, "compiling takes hours"),
    "model.sk_ratio": Bound(4, "it is a share of the channels"),
    "model.se_ratio": Bound(4, "it is a share of the channels"),
    "model.dropblock_keep": SHARE,
    "model.dropblock_size": PIXELS,
    "model.norm_groups": Bound(2**24, "it divides the batch"),
    "model.projection_layers": Bound(100, "compiling takes hours"),
    "model.projection_dim": Bound(2**20, "no embedding is so long"),
    "model.probe_layer": Bound(100, "it is one of the projection head's layers"),
    "loss.temperature": DIVISOR,
    "loss.scale": FACTOR,
    "loss.margin": FACTOR,
    "loss.sigma": DIVISOR,
    "loss.dense_mb": Bound(1e9, "no device has a petabyte of memory"),
    "loss.gather_mb": Bound(1e9, "no device has a petabyte of memory"),
    "finetune.after_block": Bound(4, "there are no more block groups"),
    "optimizer.learning_rate": RATE,
    "optimizer.weight_decay": RATE,
    "optimizer.momentum": SHARE,
    "optimizer.eta": Bound(1e6, "products with it leave float32"),
    "optimizer.b1": SHARE,
    "optimizer.b2": SHARE,
    "optimizer.eps": Bound(1e6, "float32 has nothing smaller to divide by, and no use for more", 1e-30),
    "train.batch_size": Bound(2**24, "no mesh holds so many images a step"),
    "train.microbatch": Bound(2**24, "it divides the batch"),
    "train.steps_per_call": Bound(4096, "a run can be saved and stopped only between two calls"),
    "mesh.devices": Bound(10**6, "no mesh has more"),
    "checkpoint.keep": Bound(10**6, "no disk holds more"),
    "eval.batch_size": Bound(2**24, "no mesh holds so many images a step"),
    "eval.crop": SHARE,
    "eval.knn.k": Bound(10**5, "so many neighbours of every image lie in memory"),
    "eval.knn.temperature": DIVISOR,
    "eval.knn.bank": NUMBER,
    "eval.linear.examples": NUMBER,
    "eval.linear.draws": Bound(10**4, "each draw is a training"),
    "eval.linear.iterations": Bound(10**5, "L-BFGS ends before"),
    "eval.linear.epochs": EPOCHS,
    "eval.linear.learning_rate": RATE,
    "eval.linear.rates": RATE,
    "eval.linear.decays": RATE,
    "eval.finetune.shares": SHARE,
    "eval.finetune.epochs": EPOCHS,
    "eval.finetune.learning_rate": RATE,
    "eval.robustness.images": NUMBER,
    "augment.rotation": Bound(360, "it is an angle in degrees"),
    "augment.jitter_strength": Bound(100, "colours are in [0, 1]"),
    "augment.blur_kernel": Bound(2, "it is a share of the image's side"),
    "augment.blur_sigma": Bound(1e4, "it is in pixels", 1e-3),
    **dict.fromkeys(_names("augment", "crop_area crop_min_covered flip jitter grayscale blur"), SHARE),
    **dict.fromkeys(_names("augment", "crop_aspect zoom"), Bound(1000, "no image is left then", 1e-3)),
}  # fmt: skip
for _duration in UNITS:
    BOUNDS[f"{_duration}.epochs"] = EPOCHS
    BOUNDS[f"{_duration}.steps"] = STEP
    BOUNDS[f"{_duration}.examples"] = Bound(2**53, "a float counts no further")


def shown(value: Any, most: int = 60) -> str:
    """A value as Python writes it, cut where it is long; Python does not write thousands of digits."""
    try:
        text = repr(value)
    except ValueError:
        return "a number of thousands of digits"
    return text if len(text) <= most else f"{text[: most - 1]}…"


def check(flat: dict[str, Any]) -> None:
    """Raises SimclrError for the first number that is too large, or too small beside 0, and says why."""
    for field, bound in BOUNDS.items():
        value = flat[field]
        several = isinstance(value, tuple)
        for number in value if several else (value,):
            which = "numbers of " if several else ""
            if abs(number) > bound.most:
                limit = f"{which}at {'least -' if number < 0 else 'most '}{_number(bound.most)}"
            elif number and abs(number) < bound.least:
                limit = f"{which}at least {_number(bound.least)}"
            else:
                continue
            raise SimclrError(f"config.{field}={shown(value)}: must be {limit}: {bound.why}")
    for field in ("eval.linear.rates", "eval.linear.decays", "eval.finetune.shares", "data.mean", "data.std"):
        if len(flat[field]) > 4096:
            raise SimclrError(f"config.{field}={shown(flat[field])}: must be at most 4,096 numbers")


def check_together(flat: dict[str, Any]) -> None:
    """Raises SimclrError where numbers that pass by themselves ask together for what no machine holds."""
    pixels = flat["data.image_size"] ** 2 * flat["data.channels"]
    for field, views in (
        ("train.batch_size", 2 if flat["task"] == "pretrain" else 1),
        ("eval.batch_size", 1),
    ):
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
    if peak > RATE.most:
        raise SimclrError(
            f"config.optimizer.learning_rate={flat['optimizer.learning_rate']}: must be smaller: "
            f"config.optimizer.scaling makes it {peak:g}, and {RATE.why}"
        )


def check_run(flat: dict[str, Any], steps: int) -> None:
    """Raises SimclrError where the training set makes a run of more `steps` than can be counted."""
    if steps > STEPS:
        raise SimclrError(f"config.train: comes to {steps:,} steps, must be at most {STEPS:,}: {STEP.why}")
    images = steps * flat["train.batch_size"]
    if flat["augment.device"] != "none" and images > POSITIONS:
        raise SimclrError(
            f"config.train: {steps:,} steps of {flat['train.batch_size']:,} images are {images:,}, must be "
            f"at most {POSITIONS:,}: the device counts them in 32 bits; shorten the run, or set "
            "config.augment.device=none"
        )


def parameters(flat: dict[str, Any]) -> float:
    """About how many parameters the encoder and the projection head have; within a tenth of their number."""
    width = flat["model.width"]
    if flat["model.encoder"] == "cnn":
        count, features = 1e5 * width**2, 4 * 128 * width
    else:
        blocks, bottleneck = BLOCKS[flat["model.depth"]]
        count, features = 0.0, 64 * width
        for group, repeats in enumerate(flat["model.blocks"] or blocks):
            inner = 64 * 2**group * width
            out = inner * (4 if bottleneck else 1)
            spatial = 9 * inner**2 * (2 if flat["model.sk_ratio"] and bottleneck else 1)
            gates = flat["model.sk_ratio"] * 3 * inner**2 + flat["model.se_ratio"] * inner * (
                inner / 4 + 2 * out
            )
            for block in range(repeats):
                first = features * out if block == 0 and features != out else 0  # the shortcut
                ends = (features + out) * inner if bottleneck else 9 * features * inner
                count, features = count + first + ends + spatial + gates, out
    layers = {"none": 0, "linear": 1}.get(flat["model.projection"], flat["model.projection_layers"])
    head = max(layers - 1, 0) * features**2 + bool(layers) * features * flat["model.projection_dim"]
    return count + head


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:g}"
