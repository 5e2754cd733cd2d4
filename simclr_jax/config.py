"""The whole configuration of a run: defaults, validation, durations and config.json.

A file in `configs/` starts from `default()` and states only what it changes. Nothing here imports
JAX or TensorFlow, so that `--help` and a mistyped field answer at once.
"""

import difflib
import json
import math
from typing import Any

from ml_collections import ConfigDict, config_dict

from simclr_jax.errors import SimclrError

SCHEMA = 1  # of config.json; raise it when a field is added, renamed or changes its meaning
FILE = "config.json"

# The names a field may take. Tests compare them with the dicts of constructors they stand for.
TASKS = ("pretrain",)
SOURCES = ("tfds:NAME", "folder:PATH", "npz:PATH", "builtin:mnist5k", "arrays")
ENCODERS = ("resnet", "cnn")
DEPTHS = (18, 34, 50, 101, 152, 200)
STEMS = ("imagenet", "cifar")
DTYPES = ("float32", "bfloat16", "float64")
PROJECTIONS = ("none", "linear", "nonlinear")
LOSSES = ("nt_xent",)
OPTIMIZERS = ("lars", "sgd", "adamw")
SCALINGS = ("none", "linear", "sqrt")
BRIGHTNESS = ("v1", "v2")

# What may differ between a run and its resumption: it does not decide the trained parameters.
FREE = (
    "checkpoint",
    "compile_cache",
    "data.data_dir",
    "data.download",
    "data.threads",
    "eval",
    "log",
    "mesh",
)

# Fields added after schema 1, with the value that keeps the behaviour older workdirs had.
OLD_BEHAVIOUR: dict[str, Any] = {}


def duration(*, epochs: float = 0.0, steps: int = 0, examples: int = 0) -> ConfigDict:
    """A length or a period of training. The finest unit set wins: steps, then examples, then epochs.

    So `--config.train.steps=10` shortens any run, whatever unit its config file uses. All zero means
    never.
    """
    return ConfigDict({"epochs": float(epochs), "steps": steps, "examples": examples})


def default() -> ConfigDict:
    """The default configuration: SimCLR v1 on ImageNet's settings, data not chosen."""
    c = ConfigDict()
    c.task = "pretrain"
    c.seed = 0  # of the initial parameters, the order of data and every augmentation

    c.data = data = ConfigDict()
    data.source = ""  # tfds:NAME, folder:PATH, npz:PATH, builtin:mnist5k, or arrays given to run()
    data.data_dir = config_dict.placeholder(str)  # of TFDS (default ~/tensorflow_datasets), folders
    data.download = False  # whether TFDS may download and prepare what data_dir lacks
    data.train_split = "train"
    data.test_split = "test"
    data.holdout = 0.1  # share of the images kept for testing where a folder has no test split
    data.image_size = 224  # side of the square the encoder sees, pixels
    data.channels = 3  # gray and RGB images are converted to 1 or 3; arrays may have others
    data.mean = ()  # subtracted from images in [0, 1], one value a channel; () for none, as in SimCLR
    data.std = ()
    data.memory_gb = 2.0  # TFDS sets up to this size (decoded) are held in memory
    data.shuffle_buffer = 16384  # images; sequential (TFRecord) sources only
    data.threads = 0  # of the input pipeline; 0: all cores

    c.augment = augment = ConfigDict()
    augment.crop_area = (0.08, 1.0)  # share of the image, range
    augment.crop_aspect = (3 / 4, 4 / 3)  # width over height, range
    augment.crop_min_covered = 0.1  # the original's: no crop below this share, so 0.1 wins over 0.08
    augment.flip = 0.5  # probability of a left-right flip
    augment.rotation = 0.0  # degrees, drawn from ±rotation; before the crop, black outside
    augment.scaling = (1.0, 1.0)  # range of a zoom, drawn with the rotation
    augment.jitter = 0.8  # probability of the colour jitter
    augment.jitter_strength = 1.0  # 0.5 on CIFAR
    augment.brightness = "v2"  # v2 multiplies (SimCLR v2 and its released code), v1 adds
    augment.grayscale = 0.2  # probability
    augment.blur = 0.5  # probability
    augment.blur_kernel = 0.1  # of the image's side
    augment.blur_sigma = (0.1, 2.0)  # pixels, drawn per view

    c.model = model = ConfigDict()
    model.encoder = "resnet"
    model.depth = 50  # of the ResNet
    model.width = 1.0  # multiplies every channel count
    model.stem = "imagenet"  # 7×7 stride 2 and max-pool, or "cifar": 3×3 stride 1
    model.dtype = "float32"  # of the computation; parameters and statistics are at least float32
    model.projection = "nonlinear"
    model.projection_layers = 2  # 2 in SimCLR v1, 3 in v2
    model.projection_dim = 128
    model.probe = True  # online linear classifier behind stop-gradient, where there are labels

    c.loss = loss = ConfigDict()
    loss.name = "nt_xent"
    loss.temperature = 0.1
    loss.scale = 1.0  # the original's loss is twice the paper's: 2 reproduces its learning rates

    c.optimizer = optimizer = ConfigDict()
    optimizer.name = "lars"
    optimizer.learning_rate = 0.3  # before scaling
    optimizer.scaling = "linear"  # linear: × batch / 256; sqrt: × √batch; none
    optimizer.warmup = duration(epochs=10)
    optimizer.weight_decay = 1e-6
    optimizer.momentum = 0.9  # LARS and SGD
    optimizer.nesterov = False  # LARS and SGD
    optimizer.eta = 0.001  # LARS trust coefficient
    optimizer.b1 = 0.9  # AdamW
    optimizer.b2 = 0.999  # AdamW

    c.train = duration(epochs=100)
    c.train.batch_size = 4096  # source images a step, over all devices; each gives two views

    c.mesh = ConfigDict({"devices": 0})  # accelerators of the data mesh; 0: all

    c.checkpoint = ConfigDict({"every": duration(epochs=1), "keep": 3})

    c.log = log = ConfigDict()
    log.every = duration(steps=50)
    log.tensorboard = True
    log.wandb = False  # needs the extra [wandb]
    log.wandb_project = "simclr_jax"

    c.eval = evaluation = ConfigDict()
    evaluation.every = duration(epochs=10)  # weighted kNN while training
    evaluation.batch_size = 256
    evaluation.crop = 0.875  # central share of the shorter side that is seen, above 32 px
    evaluation.final = True  # scores beside the untrained encoder and raw pixels, at the end
    evaluation.figures = True
    evaluation.knn = ConfigDict({"k": 200, "temperature": 0.1, "bank": 200_000})
    evaluation.linear = linear = ConfigDict()
    linear.examples = 0  # training examples of linear_all at most; 0: all
    linear.draws = 10  # balanced draws of 100 and of 1,000 labels
    linear.iterations = 100  # of L-BFGS

    c.compile_cache = "auto"  # directory of compiled programs; auto: ~/.cache/simclr_jax; "" for none
    return c.lock()


# ---- durations ----------------------------------------------------------------------------------


def count_steps(node: ConfigDict, examples: int, batch: int) -> int:
    """Steps in the duration `node`, for a training set of `examples` images and `batch` a step."""
    if node.steps:
        return node.steps
    if node.examples:
        return math.ceil(node.examples / batch)
    return round(node.epochs * examples // batch) if node.epochs else 0


def every_steps(node: ConfigDict, examples: int, batch: int) -> int:
    """Steps in the period `node`: an epoch is a whole number of batches; 0 means never."""
    if node.steps or node.examples or not node.epochs:
        return count_steps(node, examples, batch)
    return max(1, round(node.epochs * (examples // batch)))


def total_steps(config: ConfigDict, examples: int) -> int:
    """Steps of the whole run: n·epochs // batch + 1 for epochs, as the original counts them."""
    by_epochs = not (config.train.steps or config.train.examples)
    return count_steps(config.train, examples, config.train.batch_size) + by_epochs


# ---- validation ---------------------------------------------------------------------------------


def flatten(config: ConfigDict | dict, prefix: str = "") -> dict[str, Any]:
    """{'train.batch_size': 4096, ...}, tuples kept."""
    tree = config.to_dict() if isinstance(config, ConfigDict) else config
    flat = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = tuple(value) if isinstance(value, list) else value
    return flat


def _require(ok: bool, flat: dict[str, Any], field: str, allowed: str) -> None:
    if not ok:
        raise SimclrError(f"config.{field}={flat[field]!r}: must be {allowed}")


def check_field(field: str) -> None:
    """Raises SimclrError where no field 'a.b' exists, with the nearest name that does."""
    expected = flatten(default())
    if field not in expected:
        close = difflib.get_close_matches(field, expected, n=1)
        hint = f"; did you mean config.{close[0]}?" if close else ""
        raise SimclrError(f"config.{field}: no such field{hint}")


def _check_types(flat: dict[str, Any]) -> None:
    expected = flatten(default())
    for field, value in flat.items():
        check_field(field)
        kind = type(expected[field])
        if field == "data.data_dir":
            _require(value is None or isinstance(value, str), flat, field, "a path")
        elif kind is float:
            ok = isinstance(value, int | float) and not isinstance(value, bool)
            _require(ok and math.isfinite(value), flat, field, "a finite number")
        elif kind is int:
            _require(type(value) is int, flat, field, "a whole number")
        elif kind is tuple:
            numbers = isinstance(value, tuple) and all(type(v) in (int, float) for v in value)
            _require(numbers, flat, field, "a tuple of numbers, like (0.1,2.0)")
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
        "model.dtype": DTYPES,
        "model.projection": PROJECTIONS,
        "loss.name": LOSSES,
        "optimizer.name": OPTIMIZERS,
        "optimizer.scaling": SCALINGS,
        "augment.brightness": BRIGHTNESS,
    }
    for field, names in one_of.items():
        _require(flat[field] in names, flat, field, "one of " + ", ".join(map(str, names)))
    positive = ("train.batch_size", "loss.temperature", "loss.scale", "model.width",
                "model.projection_layers", "model.projection_dim", "checkpoint.keep",
                "eval.batch_size", "eval.knn.k", "eval.knn.temperature", "eval.knn.bank",
                "eval.linear.draws", "eval.linear.iterations", "optimizer.learning_rate",
                "data.image_size", "data.channels", "data.shuffle_buffer", "optimizer.eta",
                "augment.blur_kernel")  # fmt: skip
    for field in positive:
        _require(flat[field] > 0, flat, field, "above 0")
    for field in ("flip", "jitter", "grayscale", "blur", "crop_min_covered"):
        field = f"augment.{field}"
        _require(0 <= flat[field] <= 1, flat, field, "a probability, between 0 and 1")
    for field in ("optimizer.momentum", "optimizer.b1", "optimizer.b2", "data.holdout"):
        _require(0 <= flat[field] < 1, flat, field, "at least 0 and below 1")
    _require(0 < flat["eval.crop"] <= 1, flat, "eval.crop", "above 0, at most 1")
    for field in ("crop_area", "crop_aspect", "scaling", "blur_sigma"):
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
    never_negative = [f for f in flat if f.endswith((".epochs", ".steps", ".examples"))]
    never_negative += ["mesh.devices", "data.threads", "seed", "optimizer.weight_decay",
                       "data.memory_gb", "augment.rotation", "augment.jitter_strength"]  # fmt: skip
    for field in never_negative:
        _require(flat[field] >= 0, flat, field, "0 or more")
    _require(flat["seed"] < 2**31, flat, "seed", "below 2**31")
    if not any(flat[f"train.{unit}"] for unit in ("steps", "examples", "epochs")):
        raise SimclrError("config.train.epochs=0: give the length of the run, in epochs or steps")


def _check_source(flat: dict[str, Any]) -> None:
    kind, _, rest = flat["data.source"].partition(":")
    allowed = "one of " + ", ".join(SOURCES)
    if not kind:
        raise SimclrError(f"config.data.source is empty: must be {allowed}")
    known = kind in ("tfds", "folder", "npz") or flat["data.source"] in SOURCES
    _require(known, flat, "data.source", allowed)
    if kind in ("tfds", "folder", "npz") and not rest:
        example = {"tfds": "cifar10", "folder": "/my/images", "npz": "/my/images.npz"}[kind]
        raise SimclrError(
            f"config.data.source={kind + ':'!r}: say which one, "
            f"for example --config.data.source={kind}:{example}"
        )


def _check_size(flat: dict[str, Any]) -> None:
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
    _check_values(flat)
    _check_source(flat)
    _check_size(flat)


def validate_run(config: ConfigDict, examples: int, devices: int) -> None:
    """Raises SimclrError where the batch does not fit the training set or the devices."""
    batch = config.train.batch_size
    if batch > examples:
        raise SimclrError(
            f"config.train.batch_size={batch}: larger than the training set ({examples} images); "
            f"at most --config.train.batch_size={examples // devices * devices}"
        )
    for field, value in (("train.batch_size", batch), ("eval.batch_size", config.eval.batch_size)):
        if value % devices:
            near = value // devices * devices or devices
            raise SimclrError(
                f"config.{field}={value}: must be divisible by the {devices} devices, for example {near}"
            )


# ---- config.json --------------------------------------------------------------------------------


def to_json(config: ConfigDict, data: dict[str, Any]) -> str:
    """The text of config.json; `data` identifies the training set (its size and a fingerprint)."""
    tree = {"schema": SCHEMA, "config": config.to_dict(), "data": data}
    return json.dumps(tree, indent=2) + "\n"


def from_json(text: str) -> tuple[ConfigDict, dict[str, Any]]:
    """Reads config.json; a field that an older one lacks gets the behaviour it had then.

    Returns:
      the config and what identifies its training set.

    Raises:
      SimclrError: the text is not a config.json, or is from a newer version.
    """
    try:
        tree = json.loads(text)
        schema, stored, data = int(tree["schema"]), flatten(tree["config"]), tree.get("data") or {}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise SimclrError(f"{FILE} is damaged ({error}): choose another --workdir") from None
    if schema > SCHEMA:
        raise SimclrError(f"{FILE} has schema {schema}, this version reads up to {SCHEMA}: update simclr_jax")
    config = default()
    known = flatten(config)
    for field, value in {**OLD_BEHAVIOUR, **stored}.items():
        if field in known:
            set_field(config, field, value)
    return config, data


def set_field(config: ConfigDict, field: str, value: Any) -> None:
    """Sets `config.a.b` for the field 'a.b'."""
    *parents, name = field.split(".")
    for parent in parents:
        config = config[parent]
    config[name] = tuple(value) if isinstance(value, list) else value


def adopt_old_behaviour(config: ConfigDict, text: str) -> None:
    """Gives `config` the old behaviour of every field that the stored config.json lacks.

    A value other than today's default was chosen by the user and stays, to be refused if it matters.
    """
    stored, today, mine = flatten(json.loads(text)["config"]), flatten(default()), flatten(config)
    for field, value in OLD_BEHAVIOUR.items():
        if field not in stored and mine[field] == today[field]:
            set_field(config, field, value)


def differences(old: ConfigDict, new: ConfigDict) -> list[str]:
    """One line for each field that decides the result and differs, as `field: old -> new`."""
    old, new = flatten(old), flatten(new)
    return [
        f"config.{field}: {old.get(field)!r} -> {new.get(field)!r}"
        for field in sorted({*old, *new})
        if old.get(field) != new.get(field)
        and not any(field == free or field.startswith(free + ".") for free in FREE)
    ]
