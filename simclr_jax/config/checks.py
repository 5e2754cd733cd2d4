"""Whether a config makes sense: every field of its type and range, and fit for the data and devices.

Nothing here imports JAX or TensorFlow, so that a mistyped field is answered at once.
"""

import math
import re
from collections.abc import Iterable
from typing import Any

from ml_collections import ConfigDict

from simclr_jax.config import bounds, check_field, default, flatten, total_steps
from simclr_jax.data import formats
from simclr_jax.errors import SimclrError

# The names a field may take. Tests compare them with the dicts of constructors they stand for.
TASKS = ("pretrain", "supervised", "distill", "linear_sweep")
SOURCES = ("tfds:NAME", "folder:PATH", "list:FILE", "npz:PATH", "builtin:mnist5k", "arrays")
PLACES = {  # kinds of sources that name one, with an example
    "tfds": "cifar10",
    "folder": "/my/images",
    "list": "/my/images.csv",
    "npz": "/my/images.npz",
}
ENCODERS = ("resnet", "cnn")
DEPTHS = (18, 34, 50, 101, 152, 200)
STEMS = ("imagenet", "cifar", "cifar_pad2")
VARIANTS = ("original", "torch")
DTYPES = ("float32", "bfloat16", "float64")
PROJECTIONS = ("none", "linear", "nonlinear")
LOSSES = ("nt_xent", "nt_logistic", "margin", "supcon", "dcl", "dclw")
OPTIMIZERS = ("lars", "sgd", "adam", "adamw")
SCALINGS = ("none", "linear", "sqrt")
BRIGHTNESS = ("v1", "v2")
AUGMENT_DEVICES = ("none", "photometric", "all")
RESIZES = ("bicubic", "bilinear")
INTENSITIES = ("full", "percentiles", "window")
REMAT_KEEPS = ("inputs", "convolutions")


PASSWORD = re.compile(r"://[^/\s@]*:[^/\s@]*@")  # of scheme://user:password@host
PATTERNS = ("optimizer.decay_exclude", "optimizer.adapt_exclude")  # fields


def _require(ok: bool, flat: dict[str, Any], field: str, allowed: str) -> None:
    if not ok:
        raise SimclrError(f"config.{field}={bounds.shown(flat[field])}: must be {allowed}")


def _is_number(value: Any) -> bool:
    """Whether it is a whole number, of any length, or a finite float."""
    return type(value) is int or (isinstance(value, float) and math.isfinite(value))


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _check_types(flat: dict[str, Any]) -> None:
    expected = flatten(default())
    for field, value in flat.items():
        if field not in expected:
            check_field(field)
        kind = type(expected[field])
        if field == "data.data_dir":
            _require(value is None or isinstance(value, str), flat, field, "a path")
        elif kind is float:
            _require(_is_number(value), flat, field, "a finite number")
        elif kind is int:
            _require(type(value) is int, flat, field, "a whole number")
        elif kind is tuple:
            if field in PATTERNS:
                fits, what = _is_text, "a tuple of patterns, like ('/bias$',)"
            else:
                fits, what = _is_number, "a tuple of finite numbers, like (0.1,2.0)"
            _require(isinstance(value, tuple) and all(map(fits, value)), flat, field, what)
        else:
            _require(isinstance(value, kind), flat, field, f"of type {kind.__name__}")
    for field in expected:
        if field not in flat:
            raise SimclrError(f"config.{field} is missing: start from simclr_jax.config.default()")


def _check_values(flat: dict[str, Any]) -> None:
    one_of = {
        "task": TASKS,
        "model.encoder": ENCODERS,
        "model.depth": DEPTHS,
        "model.stem": STEMS,
        "model.variant": VARIANTS,
        "model.dtype": DTYPES,
        "model.remat_keep": REMAT_KEEPS,
        "model.projection": PROJECTIONS,
        "loss.name": LOSSES,
        "optimizer.name": OPTIMIZERS,
        "optimizer.scaling": SCALINGS,
        "augment.brightness": BRIGHTNESS,
        "augment.device": AUGMENT_DEVICES,
        "augment.resize": RESIZES,
        "eval.resize": RESIZES,
        "data.intensity": INTENSITIES,
    }
    for field, names in one_of.items():
        _require(flat[field] in names, flat, field, "one of " + ", ".join(map(str, names)))
    positive = ("train.batch_size", "loss.temperature", "loss.scale", "model.width",
                "model.projection_layers", "model.projection_dim", "checkpoint.keep",
                "eval.batch_size", "eval.knn.k", "eval.knn.temperature", "eval.knn.bank",
                "eval.linear.draws", "eval.linear.iterations", "optimizer.learning_rate",
                "data.image_size", "data.channels", "data.shuffle_buffer", "data.max_pixels", "optimizer.eta",
                "augment.blur_kernel", "model.norm_groups", "model.dropblock_size", "loss.sigma",
                "distill.temperature", "optimizer.eps", "eval.linear.epochs",
                "eval.linear.learning_rate", "eval.finetune.learning_rate",
                "eval.robustness.images")  # fmt: skip
    for field in positive:
        _require(flat[field] > 0, flat, field, "above 0")
    for field in ("flip", "jitter", "grayscale", "blur", "crop_min_covered"):
        field = f"augment.{field}"
        _require(0 <= flat[field] <= 1, flat, field, "a probability, between 0 and 1")
    for field in ("optimizer.momentum", "optimizer.b1", "optimizer.b2", "data.holdout"):
        _require(0 <= flat[field] < 1, flat, field, "at least 0 and below 1")
    _require(0 <= flat["distill.alpha"] <= 1, flat, "distill.alpha", "a weight, between 0 and 1")
    _require(0 < flat["eval.crop"] <= 1, flat, "eval.crop", "above 0, at most 1")
    for field in ("crop_area", "crop_aspect", "zoom", "blur_sigma"):
        field = f"augment.{field}"
        pair = flat[field]
        ordered = len(pair) == 2 and 0 < pair[0] <= pair[1]
        _require(ordered, flat, field, "two numbers above 0, the smaller first")
    largest = flat["augment.crop_area"][1]
    _require(largest <= 1, flat, "augment.crop_area", "at most 1")
    covered = flat["augment.crop_min_covered"] <= largest
    _require(covered, flat, "augment.crop_min_covered", f"at most crop_area's {largest}")
    for field in ("data.mean", "data.std"):
        ok = len(flat[field]) in (0, flat["data.channels"])
        _require(ok, flat, field, f"empty or {flat['data.channels']} numbers, one a channel")
    _require(all(v > 0 for v in flat["data.std"]), flat, "data.std", "above 0")
    both = bool(flat["data.mean"]) == bool(flat["data.std"])
    _require(both, flat, "data.std", "given together with data.mean")
    lengths = (".epochs", ".steps", ".examples")
    never_negative = [f for f in flat if f.endswith(lengths) and f != "eval.finetune.epochs"]
    never_negative += ["mesh.devices", "data.threads", "seed", "optimizer.weight_decay",
                       "start.step", "distill.step", "loss.dense_mb", "loss.gather_mb",
                       "loss.margin", "model.sk_ratio", "model.se_ratio",
                       "data.memory_gb", "data.stored_size", "data.max_unreadable", "augment.rotation",
                       "augment.jitter_strength", "train.steps_per_call"]  # fmt: skip
    for field in never_negative:
        _require(flat[field] >= 0, flat, field, "0 or more")
    _require(flat["seed"] < 2**31, flat, "seed", "below 2**31")
    if not any(flat[f"train.{unit}"] for unit in ("steps", "examples", "epochs")):
        raise SimclrError("config.train.epochs=0: give the length of the run, in epochs or steps")


def _check_evaluation(flat: dict[str, Any]) -> None:
    for field in ("eval.linear.rates", "eval.finetune.epochs"):
        _require(all(v > 0 for v in flat[field]), flat, field, "numbers above 0")
    _require(all(v >= 0 for v in flat["eval.linear.decays"]), flat, "eval.linear.decays", "numbers from 0 up")
    shares = flat["eval.finetune.shares"]
    _require(all(0 < v <= 1 for v in shares), flat, "eval.finetune.shares", "shares above 0, at most 1")
    same = len(shares) == len(flat["eval.finetune.epochs"])
    _require(
        same, flat, "eval.finetune.epochs", f"{len(shares)} numbers, one for each of eval.finetune.shares"
    )


def _check_model(flat: dict[str, Any]) -> None:
    blocks, keep = flat["model.blocks"], flat["model.dropblock_keep"]
    counts = all(type(count) is int and count > 0 for count in blocks) and len(blocks) in (0, 4)
    _require(counts, flat, "model.blocks", "empty or four whole numbers above 0, like (3,4,6,3)")
    kept = len(keep) in (0, 4) and all(0 < p <= 1 for p in keep)
    _require(kept, flat, "model.dropblock_keep", "empty or four probabilities, like (1,1,0.9,0.9)")
    plain = not (flat["model.sk_ratio"] or flat["model.se_ratio"])
    original = flat["model.variant"] == "original"
    _require(plain or original, flat, "model.variant", "original for model.sk_ratio or model.se_ratio")
    resnet = flat["model.encoder"] == "resnet"
    for field in ("sk_ratio", "se_ratio", "dropblock_keep", "blocks"):
        field = f"model.{field}"
        _require(resnet or not flat[field], flat, field, "left at its default: only a ResNet has it")
    layers = {"none": 0, "linear": 1}.get(flat["model.projection"], flat["model.projection_layers"])
    between = 0 <= flat["model.probe_layer"] <= layers
    _require(between, flat, "model.probe_layer", f"from 0 to {layers}, the projection head's layers")
    groups, batch = flat["model.norm_groups"], flat["train.batch_size"]
    _require(batch % groups == 0, flat, "model.norm_groups", f"a divisor of config.train.batch_size={batch}")


def _check_microbatch(flat: dict[str, Any]) -> None:
    batch, micro, groups = (flat[f] for f in ("train.batch_size", "train.microbatch", "model.norm_groups"))
    divides = micro >= 0 and (not micro or batch % micro == 0)
    _require(divides, flat, "train.microbatch", f"0 or a divisor of config.train.batch_size={batch}")
    fits = not micro or micro % groups == 0
    _require(fits, flat, "train.microbatch", f"divisible by config.model.norm_groups={groups}")


def _check_calls(flat: dict[str, Any]) -> None:
    calls, device = flat["train.steps_per_call"], flat["augment.device"]
    _require(
        calls < 2 or device == "all", flat, "train.steps_per_call", "0 or 1 but for augment.device='all'"
    )


def _check_task(flat: dict[str, Any]) -> None:
    task, block, batch = flat["task"], "finetune.after_block", "train.batch_size"
    alone = task == "pretrain" and flat[batch] == 1
    _require(not alone, flat, batch, "2 or more for task='pretrain': one image has no others to differ from")
    _require(-1 <= flat[block] <= 4, flat, block, "a block group from 1 to 4, 0 for the stem, -1 for nothing")
    if task != "pretrain":
        _require(flat["model.probe"], flat, "model.probe", f"True for task={task!r}: it is the classifier")
    labels = flat["loss.name"] in ("supcon",) and flat["loss.one_view"]
    _require(not labels, flat, "loss.one_view", "False for loss.name='supcon'")
    hard = not flat["loss.semi_hard"] or flat["loss.name"] in ("nt_logistic", "margin")
    _require(hard, flat, "loss.semi_hard", "False but for loss.name='nt_logistic' and 'margin'")
    for field in PATTERNS:
        for pattern in flat[field]:
            try:
                re.compile(pattern)
            except re.error as error:
                raise SimclrError(f"config.{field}: {pattern!r} is no regular expression ({error})") from None


def _check_pixels(flat: dict[str, Any]) -> None:
    """How image files become pixels."""
    try:
        formats.colour(flat["data.background"])
        known = True
    except ValueError:
        known = False
    _require(known, flat, "data.background", "an opaque colour: white, say, or #ff8800")
    low_high = flat["data.percentiles"]
    ordered = len(low_high) == 2 and 0 <= low_high[0] < low_high[1] <= 100
    _require(ordered, flat, "data.percentiles", "two numbers from 0 to 100, the smaller first")
    window = flat["data.window"]
    ordered = not window or (len(window) == 2 and window[0] < window[1])
    _require(ordered, flat, "data.window", "two numbers, black and white, the smaller first")
    if flat["data.intensity"] == "window":
        _require(window != (), flat, "data.window", "two numbers, black and white, for data.intensity=window")
    if flat["data.intensity"] == "full":
        _require(not window, flat, "data.window", "empty, or data.intensity=window")


def _check_source(flat: dict[str, Any]) -> None:
    kind, _, rest = flat["data.source"].partition(":")
    allowed = "one of " + ", ".join(SOURCES)
    if not kind:
        raise SimclrError(f"config.data.source is empty: must be {allowed}")
    known = kind in PLACES or flat["data.source"] in SOURCES
    _require(known, flat, "data.source", allowed)
    if kind in PLACES and not rest:
        raise SimclrError(
            f"config.data.source={kind + ':'!r}: say which one, "
            f"for example --config.data.source={kind}:{PLACES[kind]}"
        )


def _check_secrets(flat: dict[str, Any]) -> None:
    # The value itself is not repeated: what is printed ends up in logs.
    for field, value in flat.items():
        if isinstance(value, str) and PASSWORD.search(value):
            raise SimclrError(
                f"config.{field}: has a password in its URL, which config.json and summary.json would keep; "
                "leave it out, and give credentials by the environment or the cloud's own login"
            )


def check_size(flat: dict[str, Any]) -> None:
    """Raises SimclrError where images are smaller than the encoder's stride."""
    # The encoders' total stride: below it the last feature map would be less than a pixel.
    if flat["model.encoder"] == "cnn":
        least, why = 8, "the small CNN"
    else:
        least = 32 if flat["model.stem"] == "imagenet" else 8
        why = f"the {flat['model.stem']} stem"
    _require(flat["data.image_size"] >= least, flat, "data.image_size", f"{least} or more for {why}")


def validate(config: ConfigDict) -> None:
    """Raises SimclrError for the first field that is unknown, of the wrong type or out of range."""
    flat = flatten(config)
    _check_types(flat)
    bounds.check(flat)
    _check_values(flat)
    _check_model(flat)
    _check_microbatch(flat)
    _check_calls(flat)
    _check_task(flat)
    _check_evaluation(flat)
    _check_pixels(flat)
    _check_source(flat)
    _check_secrets(flat)
    check_size(flat)
    bounds.check_together(flat)


def validate_run(config: ConfigDict, examples: int, devices: int) -> None:
    """Raises SimclrError where the batch does not fit the images or the devices, or the run its counters."""
    batch = config.train.batch_size
    if batch > examples:
        most, least = examples // devices * devices, 2 if config.task == "pretrain" else 1
        remedy = f"at most --config.train.batch_size={most}"
        if most < least:
            more = "give more images"
            remedy = more if examples < least else f"{more}, or take fewer of the {devices} devices"
        raise SimclrError(
            f"config.train.batch_size={batch}: larger than the training set ({examples} images); {remedy}"
        )
    check_divisible(config, ("train.batch_size", "train.microbatch", "eval.batch_size"), devices)
    bounds.check_run(flatten(config), total_steps(config, examples))


def check_divisible(config: ConfigDict, fields: Iterable[str], devices: int) -> None:
    """Raises SimclrError where a batch size cannot be shared out evenly."""
    flat = flatten(config)
    for field in fields:
        value = flat[field]
        if value % devices:
            near = value // devices * devices or devices
            raise SimclrError(
                f"config.{field}={value}: must be divisible by the {devices} devices, for example {near}"
            )
