"""Checks a config: type and range of every field, and whether it fits the data and devices.

Nothing here imports JAX or TensorFlow, so that the error for a mistyped field comes at once.
"""

import re
from collections.abc import Iterable
from typing import Any

from ml_collections import ConfigDict

from simclr_jax import registry
from simclr_jax.config import bounds
from simclr_jax.config.durations import total_steps
from simclr_jax.config.fields import PATTERNS, RENAMED_VALUES, SOURCES, check_field, declared, flatten
from simclr_jax.data import formats
from simclr_jax.errors import SimclrError
from simclr_jax.field import is_number, shown

PLACES = {  # kinds of sources that name one, with an example
    "tfds": "cifar10",
    "folder": "/my/images",
    "list": "/my/images.csv",
    "npz": "/my/images.npz",
}
ONLY_RESNET = ("model.sk_ratio", "model.se_ratio", "model.dropblock_keep", "model.blocks")
PASSWORD = re.compile(r"://[^/\s@]*:[^/\s@]*@")  # of scheme://user:password@host


def _require(ok: bool, flat: dict[str, Any], field: str, allowed: str) -> None:
    if not ok:
        raise SimclrError(f"config.{field}={shown(flat[field])}: must be {allowed}")


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _check_types(flat: dict[str, Any]) -> None:
    expected = declared()
    for field, value in flat.items():
        if field not in expected:
            check_field(field)
        default = expected[field].default
        kind = type(default)
        if default is None:
            _require(value is None or isinstance(value, str), flat, field, "a path")
        elif kind is float:
            _require(is_number(value), flat, field, "a finite number")
        elif kind is int:
            _require(type(value) is int, flat, field, "a whole number")
        elif kind is tuple:
            if field in PATTERNS:
                fits, what = _is_text, "a tuple of patterns, like ('/bias$',)"
            else:
                fits, what = is_number, "a tuple of finite numbers, like (0.1,2.0)"
            _require(isinstance(value, tuple) and all(map(fits, value)), flat, field, what)
        else:
            _require(isinstance(value, kind), flat, field, f"of type {kind.__name__}")
    for field in expected:
        if field not in flat:
            raise SimclrError(f"config.{field} is missing: start from simclr_jax.config.default()")


def _check_values(flat: dict[str, Any]) -> None:
    for field, names in RENAMED_VALUES.items():
        if isinstance(flat[field], str) and flat[field] in names:
            raise SimclrError(f"config.{field}={flat[field]!r}: is {names[flat[field]]!r} now")
    for field, one in declared().items():
        if one.rule is not None:
            _require(one.rule.fits(flat[field]), flat, field, one.rule.allowed)


def _check_images(flat: dict[str, Any]) -> None:
    """Fields of images that must go together."""
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


def _check_small_views(flat: dict[str, Any]) -> None:
    views, side = "augment.small_views", registry.small_side(flat)
    if not side:
        return
    _require(registry.of_images(flat["data.source"]), flat, views, "0: rows of a table have no size")
    least, why = registry.encoder_facts(flat).smallest(flat)
    if side < least:
        raise SimclrError(f"config.augment.small_size: comes to {side}, must be {least} or more for {why}")


def _check_evaluation(flat: dict[str, Any]) -> None:
    shares = flat["eval.finetune.shares"]
    same = len(shares) == len(flat["eval.finetune.epochs"])
    _require(
        same, flat, "eval.finetune.epochs", f"{len(shares)} numbers, one for each of eval.finetune.shares"
    )


def _takes(encoder: str) -> str:
    return registry.facts(registry.ENCODERS, encoder, "model.encoder").takes


def _check_model(flat: dict[str, Any]) -> None:
    encoder = registry.encoder_facts(flat)
    for field in ONLY_RESNET if flat["model.encoder"] != "resnet" else ():
        _require(not flat[field], flat, field, "left at its default: only a ResNet has it")
    encoder.check(flat)
    given = registry.facts(registry.FEEDS, registry.kind_of(flat["data.source"]), "data.source").takes
    fit = ", ".join(name for name in registry.ENCODERS if _takes(name) == given)
    _require(
        encoder.takes == given, flat, "model.encoder", f"one that takes {given}, as data.source has: {fit}"
    )
    layers = bounds.layers_of(flat)
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
    images = registry.of_images(flat["data.source"])
    _require(
        calls < 2 or device == "all" or not images,
        flat,
        "train.steps_per_call",
        "0 or 1 but for augment.device='all'",
    )


def _check_task(flat: dict[str, Any]) -> None:
    task, batch = flat["task"], "train.batch_size"
    alone = task == "pretrain" and flat[batch] == 1
    _require(not alone, flat, batch, "2 or more for task='pretrain': one image has no others to differ from")
    if task != "pretrain":
        _require(flat["model.probe"], flat, "model.probe", f"True for task={task!r}: it is the classifier")
    terms = registry.terms(flat["loss.name"])
    _require(len({*terms}) == len(terms), flat, "loss.name", "terms joined by +, each once")
    for term in terms:
        registry.facts(registry.OBJECTIVES, term, "loss.name").check(flat)
    if not any(flat[f"train.{unit}"] for unit in ("steps", "examples", "epochs")):
        raise SimclrError("config.train.epochs=0: give the length of the run, in epochs or steps")
    labels = "supcon" in terms and flat["loss.one_view"]
    _require(not labels, flat, "loss.one_view", "False for loss.name='supcon'")
    hard = not flat["loss.semi_hard"] or {"nt_logistic", "margin"} & {*terms}
    _require(bool(hard), flat, "loss.semi_hard", "False but for loss.name='nt_logistic' and 'margin'")
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
    known = kind in {*PLACES, *registry.FEEDS} - {"images"} or flat["data.source"] in SOURCES
    _require(known, flat, "data.source", allowed)
    if kind not in PLACES and known and ":" in flat["data.source"] and not rest:
        raise SimclrError(f"config.data.source={kind + ':'!r}: say which one, {kind}:PATH")
    if kind in PLACES and not rest:
        raise SimclrError(
            f"config.data.source={kind + ':'!r}: say which one, "
            f"for example --config.data.source={kind}:{PLACES[kind]}"
        )


def _check_secrets(flat: dict[str, Any]) -> None:
    # Do not print the value: printed text ends up in logs.
    for field, value in flat.items():
        if isinstance(value, str) and PASSWORD.search(value):
            raise SimclrError(
                f"config.{field}: has a password in its URL, which config.json and summary.json would keep; "
                "leave it out, and give credentials by the environment or the cloud's own login"
            )


def check_size(flat: dict[str, Any]) -> None:
    """Raises SimclrError if images are smaller than the encoder's stride."""
    least, why = registry.encoder_facts(flat).smallest(flat)
    _require(flat["data.image_size"] >= least, flat, "data.image_size", f"{least} or more for {why}")


def validate(config: ConfigDict) -> None:
    """Raises SimclrError for the first field that is unknown, of the wrong type or out of range."""
    flat = flatten(config)
    _check_types(flat)
    bounds.check(flat)
    _check_values(flat)
    _check_images(flat)
    _check_model(flat)
    _check_small_views(flat)
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
    """Raises SimclrError if the batch does not fit the images or devices, or the run exceeds its counters."""
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
    """Raises SimclrError if a batch size does not divide evenly."""
    flat = flatten(config)
    for field in fields:
        value = flat[field]
        if value % devices:
            near = value // devices * devices or devices
            raise SimclrError(
                f"config.{field}={value}: must be divisible by the {devices} devices, for example {near}"
            )
