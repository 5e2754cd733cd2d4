"""The fields of a config. Each is declared once: its default, its meaning, its limits, and what it affects.

A file in `configs/` starts from `default()` and sets only the fields that it changes. Encoders, objectives
and feeds may declare fields of their own in their own files (see registry.py).
"""

import difflib
from collections.abc import Callable, Iterable
from typing import Any

from ml_collections import ConfigDict, config_dict

from simclr_jax import registry
from simclr_jax.errors import SimclrError
from simclr_jax.field import (
    ARCHITECTURE,
    BELOW_ONE,
    NOT_NEGATIVE,
    NOTHING,
    PIXELS,
    POSITIVE,
    PROBABILITY,
    RANGE,
    RESULT,
    SHARE,
    Field,
    Rule,
    one_of,
)
from simclr_jax.models import decoder_fields
from simclr_jax.models.resnet_fields import DEPTHS, REMAT_KEEPS, STEMS, VARIANTS

# Names that a field may take; where a dict of constructors has them too, tests compare both.
SOURCES = ("tfds:NAME", "folder:PATH", "list:FILE", "npz:PATH", "builtin:mnist5k", "arrays", "table:PATH")
DTYPES = ("float32", "bfloat16", "float64")
PROJECTIONS = ("none", "linear", "nonlinear")
OPTIMIZERS = ("lars", "sgd", "adam", "adamw")
SCALINGS = ("none", "linear", "sqrt")
BRIGHTNESS = ("v1", "v2")
AUGMENT_DEVICES = ("none", "photometric", "all")
RESIZES = ("bicubic", "bilinear")
INTENSITIES = ("full", "percentiles", "window")
PATTERNS = ("optimizer.decay_exclude", "optimizer.adapt_exclude")  # fields of regular expressions

# Old names of fields, {old: new}, and old values of fields, {field: {old: new}}.
RENAMED = {"augment.scaling": "augment.zoom"}
RENAMED_VALUES = {"task": {"heads": "linear_sweep"}}

# Limits: (largest magnitude, why, smallest magnitude other than 0).
IN_SHARE = (1.0, "it is a share")
STEP = (2**31 - 1, "steps are counted in 32 bits")
NUMBER = (2**31 - 1, "images are numbered in 32 bits")
COUNT = (2**53, "a float counts no further")
EPOCHS = (1e6, "no training takes so many epochs")
SIDE = (2**14, "one image would take gigabytes")
RATE = (1e38, "float32 ends at 3.4e38")
FACTOR = (1e6, "products with it leave float32", 1e-6)
DIVISOR = (1e6, "float32 divides by it", 1e-6)
BYTES = (1e9, "no device has a petabyte of memory")
IN_BATCH = (2**24, "no mesh holds so many images a step")
ZOOM = (1000, "no image is left then", 1e-3)
RATIO = (4, "it is a share of the channels")
DEEP = (100, "compiling takes hours")


def _all(fits: Callable[[float], bool]) -> Callable[[tuple], bool]:
    return lambda values: all(map(fits, values))


ALL_POSITIVE = Rule(_all(lambda value: value > 0), "numbers above 0")
ALL_FROM_ZERO = Rule(_all(lambda value: value >= 0), "numbers from 0 up")
ALL_SHARES = Rule(_all(lambda value: 0 < value <= 1), "shares above 0, at most 1")
FROM_NOTHING = Rule(lambda value: value >= -1, "a stage from 1 up, 0 for the stem, -1 for nothing")
WEIGHT = Rule(lambda value: 0 <= value <= 1, "a weight, between 0 and 1")


def _duration(
    name: str, help_text: str, decides: str = RESULT, *, epochs: float = 0.0, steps: int = 0
) -> dict[str, Field]:
    """The three units of a length or a period of training, see `durations.duration`."""
    return {
        f"{name}.epochs": Field(float(epochs), help_text, NOT_NEGATIVE, *EPOCHS, decides=decides),
        f"{name}.steps": Field(
            steps, "in steps, which win over epochs", NOT_NEGATIVE, *STEP, decides=decides
        ),
        f"{name}.examples": Field(0, "in images; they win too", NOT_NEGATIVE, *COUNT, decides=decides),
    }


FIELDS: dict[str, Field] = {
    "task": Field("pretrain", "pretrain; supervised (linear evaluation, fine-tuning, from scratch), distill, "
        "linear_sweep", one_of(*registry.TASKS)),
    "seed": Field(0, "of the initial parameters, the order of data and every augmentation", NOT_NEGATIVE,
        2**31 - 1, "random keys are made of 32 bits"),
    # where the first parameters come from
    "start.workdir": Field("", "of another run, own or converted; '' for random parameters"),
    "start.step": Field(0, "of its checkpoints; 0: the newest when the run began", NOT_NEGATIVE, *STEP),
    # the images
    "data.source": Field("", "tfds:NAME, folder:PATH, list:FILE, npz:PATH, builtin:mnist5k, table:PATH, "
        "arrays given to run()"),
    "data.data_dir": Field(None, "of TFDS (default ~/tensorflow_datasets), folders", decides=NOTHING),
    "data.download": Field(False, "whether TFDS may download and prepare what data_dir lacks",
        decides=NOTHING),
    "data.train_split": Field("train", "name of the split to train on"),
    "data.test_split": Field("test", "name of the split to test on"),
    "data.holdout": Field(0.1, "share of the images kept for testing where there is no test split", BELOW_ONE,
        *IN_SHARE),
    "data.image_size": Field(224, "side of the square the encoder sees, pixels; 0: that of start or teacher",
        POSITIVE, *SIDE),
    "data.channels": Field(3, "gray and RGB images are converted to 1 or 3; arrays may have others; 0: of "
        "start or teacher", POSITIVE, 4096, "no image has more"),
    "data.mean": Field((), "subtracted from images in [0, 1], one value a channel; () for none, as in SimCLR",
        None, 1e6, "images lie in [0, 1]"),
    "data.std": Field((), "divides them then", None, *DIVISOR),
    "data.memory_gb": Field(2.0, "sets up to this size (decoded) are held in memory", NOT_NEGATIVE, 1e6,
        "no machine has a petabyte of memory"),
    "data.stored_size": Field(0, "augment.device=all: side of the squares that image files become; 0: "
        "image_size", NOT_NEGATIVE, *SIDE),
    "data.shuffle_buffer": Field(16384, "images; sequential (TFRecord) sources only", POSITIVE, 10**8,
        "so many images lie in memory at a time"),
    "data.threads": Field(0, "of the input pipeline; 0: all cores", NOT_NEGATIVE, 4096,
        "no machine has more cores", decides=NOTHING),
    "data.background": Field("white", "what lies under transparent pixels of image files: a name, or #rrggbb",
        decides=PIXELS),
    "data.intensity": Field("full", "black and white in files of more than 8 bits: full (the range of their "
        "type; DICOM: their own window), percentiles (of the training files) or window", one_of(*INTENSITIES),
        decides=PIXELS),
    "data.percentiles": Field((0.5, 99.5), "of data.intensity=percentiles", None, 100, "they are percent",
        decides=PIXELS),
    "data.window": Field((), "(black, white) of data.intensity=window; of percentiles, measured as a run "
        "begins", None, 1e12, "float32 counts no further", decides=PIXELS),
    "data.exif": Field(False, "whether files are turned as their EXIF says", decides=PIXELS),
    "data.max_pixels": Field(89_478_485, "of an image file; a larger one counts as unreadable", POSITIVE,
        178_956_970, "Pillow reads no more"),
    "data.max_unreadable": Field(0.05, "share of the files, or one, that others may replace; above, the run "
        "stops", NOT_NEGATIVE, *IN_SHARE, decides=NOTHING),
    # views
    "augment.device": Field("none", "what the accelerator does: none, photometric (colour and blur), or all, "
        "on images that it holds in memory: no TensorFlow, many steps a call", one_of(*AUGMENT_DEVICES)),
    "augment.crop_area": Field((0.08, 1.0), "share of the image, range", RANGE, *IN_SHARE),
    "augment.crop_aspect": Field((3 / 4, 4 / 3), "width over height, range", RANGE, *ZOOM),
    "augment.crop_min_covered": Field(0.1, "the original's: no crop below this share, so 0.1 wins over 0.08",
        PROBABILITY, *IN_SHARE),
    "augment.resize": Field("bicubic", "of the crop; or bilinear, antialiased as in PyTorch",
        one_of(*RESIZES)),
    "augment.flip": Field(0.5, "probability of a left-right flip", PROBABILITY, *IN_SHARE),
    "augment.rotation": Field(0.0, "degrees, drawn from ±rotation; before the crop, black outside",
        NOT_NEGATIVE, 360, "it is an angle in degrees"),
    "augment.zoom": Field((1.0, 1.0), "range of its factor, drawn with the rotation", RANGE, *ZOOM),
    "augment.jitter": Field(0.8, "probability of the colour jitter", PROBABILITY, *IN_SHARE),
    "augment.jitter_strength": Field(1.0, "0.5 on CIFAR", NOT_NEGATIVE, 100, "colours are in [0, 1]"),
    "augment.brightness": Field("v2", "v2 multiplies (SimCLR v2 and its released code), v1 adds",
        one_of(*BRIGHTNESS)),
    "augment.grayscale": Field(0.2, "probability", PROBABILITY, *IN_SHARE),
    "augment.blur": Field(0.5, "probability", PROBABILITY, *IN_SHARE),
    "augment.blur_kernel": Field(0.1, "of the image's side", POSITIVE, 2,
        "it is a share of the image's side"),
    "augment.blur_sigma": Field((0.1, 2.0), "pixels, drawn per view", RANGE, 1e4, "it is in pixels", 1e-3),
    "augment.small_views": Field(0, "small views of each image beside the two large ones (multi-crop), for "
        "loss.name=nt_xent", NOT_NEGATIVE, 64, "each is a pass of the encoder"),
    "augment.small_size": Field(0, "their side, pixels; 0: half of data.image_size", NOT_NEGATIVE, *SIDE),
    "augment.small_area": Field((0.05, 0.14), "their share of the image, range; crop_min_covered is not of "
        "them", RANGE, *IN_SHARE),
    # encoder and heads
    "model.encoder": Field("resnet", "resnet, vit, cnn, mlp (tables), or another that is registered",
        decides=ARCHITECTURE),
    "model.depth": Field(50, "of the ResNet", one_of(*DEPTHS), 200, "the deepest ResNet",
        decides=ARCHITECTURE),
    "model.blocks": Field((), "of each group, (2,1,1,1) say; () for those of the depth", None, 1000,
        "compiling takes hours", decides=ARCHITECTURE),
    "model.width": Field(1.0, "multiplies every channel count; fractions too", POSITIVE, 1000,
        "the first convolution would have 64,000 channels", decides=ARCHITECTURE),
    "model.stem": Field("imagenet", "7×7 stride 2 and max-pool; cifar: 3×3 stride 1; cifar_pad2: "
        "solo-learn's", one_of(*STEMS), decides=ARCHITECTURE),
    "model.variant": Field("original", "or torch: torchvision's shortcuts and padding", one_of(*VARIANTS),
        decides=ARCHITECTURE),
    "model.sk_ratio": Field(0.0, "selective kernels and their ResNet-D stem and shortcuts; 0.0625 in "
        "SimCLRv2", NOT_NEGATIVE, *RATIO, decides=ARCHITECTURE),
    "model.se_ratio": Field(0.0, "squeeze-and-excitation", NOT_NEGATIVE, *RATIO, decides=ARCHITECTURE),
    "model.dropblock_keep": Field((), "probability of keeping a unit, for each group; () for no DropBlock",
        None, *IN_SHARE),
    "model.dropblock_size": Field(7, "pixels of the feature map", POSITIVE, *SIDE),
    "model.norm_groups": Field(1, "parts of the batch that BatchNorm takes apart; 1: the whole global batch",
        POSITIVE, 2**24, "it divides the batch"),
    "model.remat": Field(False, "blocks keep less and are computed again backwards"),
    "model.remat_keep": Field("inputs", "of a ResNet's block: those alone, or convolutions too, which cost "
        "the most", one_of(*REMAT_KEEPS)),
    "model.dtype": Field("float32", "of the computation; parameters and statistics are at least float32",
        one_of(*DTYPES)),
    "model.projection": Field("nonlinear", "none, linear or nonlinear", one_of(*PROJECTIONS),
        decides=ARCHITECTURE),
    "model.projection_layers": Field(2, "2 in SimCLR v1, 3 in v2", POSITIVE, *DEEP, decides=ARCHITECTURE),
    "model.projection_dim": Field(128, "length of z", POSITIVE, 2**20, "no embedding is so long",
        decides=ARCHITECTURE),
    "model.probe": Field(True, "online linear classifier behind stop-gradient, where there are labels"),
    "model.probe_layer": Field(0, "of the projection head, that the classifier reads (ft_proj_selector); 0: "
        "h", None, 100, "it is one of the projection head's layers"),
    # decoder of images, where a loss or a task has one
    **{f"model.decoder.{name}": field for name, field in decoder_fields.FIELDS.items()},
    # what pretraining minimises
    "loss.name": Field("nt_xent", f"{', '.join(registry.OBJECTIVES)}, or another that is registered; or "
        "several, joined by +"),
    "loss.temperature": Field(0.1, "divides similarities", POSITIVE, *DIVISOR),
    "loss.scale": Field(1.0, "the original's loss is twice the paper's: 2 reproduces its learning rates",
        POSITIVE, *FACTOR),
    "loss.normalize": Field(True, "embeddings to unit length"),
    "loss.one_view": Field(False, "negatives from the positive's view only"),
    "loss.semi_hard": Field(False, "nt_logistic, margin: one semi-hard negative a row instead of all"),
    "loss.margin": Field(0.8, "margin", NOT_NEGATIVE, *FACTOR),
    "loss.sigma": Field(0.5, "dclw", POSITIVE, *DIVISOR),
    "loss.dense_mb": Field(512.0, "logits a device may hold at once; above, nt_xent goes tile by tile",
        NOT_NEGATIVE, *BYTES),
    "loss.gather_mb": Field(512.0, "embeddings that tiles may gather on a device; above, they pass round a "
        "ring", NOT_NEGATIVE, *BYTES),
    # tasks supervised and distill
    "finetune.after_block": Field(-1, "freeze the encoder up to this stage; 0: the stem; of a ResNet 4: all; "
        "1000: all of any; -1: nothing", FROM_NOTHING, 1000, "no encoder has more stages"),
    "finetune.frozen_norm": Field(True, "BatchNorm stands still in what is frozen"),
    "finetune.zero_init": Field(True, "the classifier starts at zero"),
    "distill.teacher": Field("", "workdir with a classifier: task supervised, or converted"),
    "distill.step": Field(0, "of its checkpoints; 0: the newest when the run began", NOT_NEGATIVE, *STEP),
    "distill.temperature": Field(1.0, "SimCLRv2: 1 from big to small, 0.1 to itself", POSITIVE, *DIVISOR),
    "distill.alpha": Field(1.0, "weight of the teacher's labels; 1 - alpha that of the true ones, where "
        "known", WEIGHT, *IN_SHARE),
    # optimiser
    "optimizer.name": Field("lars", "lars, sgd, adam or adamw", one_of(*OPTIMIZERS)),
    "optimizer.learning_rate": Field(0.3, "before scaling", POSITIVE, *RATE),
    "optimizer.scaling": Field("linear", "linear: × batch / 256; sqrt: × √batch; none", one_of(*SCALINGS)),
    **_duration("optimizer.warmup", "length of the linear rise of the rate, epochs", epochs=10),
    "optimizer.weight_decay": Field(1e-6, "times the parameters", NOT_NEGATIVE, *RATE),
    "optimizer.momentum": Field(0.9, "LARS and SGD", BELOW_ONE, *IN_SHARE),
    "optimizer.nesterov": Field(False, "LARS and SGD"),
    "optimizer.eta": Field(0.001, "LARS trust coefficient", POSITIVE, 1e6, "products with it leave float32"),
    "optimizer.classic": Field(True, "LARS: momentum over scaled updates; False: the trust ratio scales "
        "momentum"),
    "optimizer.rate_in_momentum": Field(False, "SGD: the rate enters the buffer, as TensorFlow 2's Keras has "
        "it"),
    "optimizer.b1": Field(0.9, "Adam, AdamW", BELOW_ONE, *IN_SHARE),
    "optimizer.b2": Field(0.999, "Adam, AdamW", BELOW_ONE, *IN_SHARE),
    "optimizer.eps": Field(1e-8, "Adam, AdamW; 1e-7 in Keras", POSITIVE, 1e6, "float32 has nothing smaller "
        "to divide by, and no use for more", 1e-30),
    "optimizer.decay_exclude": Field(("/bias$", "/scale$"), "patterns of parameters that are not decayed"),
    "optimizer.adapt_exclude": Field(("/bias$", "/scale$", "^probe/"), "... that LARS takes at the raw rate"),
    # length, batch and devices
    **_duration("train", "length of the run, epochs", epochs=100),
    "train.batch_size": Field(4096, "source images a step, over all devices; each gives two views", POSITIVE,
        *IN_BATCH),
    "train.steps_per_call": Field(0, "augment.device=all: steps that the accelerator makes by itself, at "
        "most; 0: 16, and 1 on CPU, where XLA's convolutions are slow within a loop", NOT_NEGATIVE, 4096,
        "a run can be saved and stopped only between two calls", decides=NOTHING),
    "train.microbatch": Field(0, "images whose activations exist at a time, a divisor; 0: the whole batch",
        None, 2**24, "it divides the batch"),
    "mesh.devices": Field(0, "accelerators of the data mesh; 0: all", NOT_NEGATIVE, 10**6, "no mesh has more",
        decides=NOTHING),
    # what is kept and told
    **_duration("checkpoint.every", "period of checkpoints, epochs", NOTHING, epochs=1),
    "checkpoint.keep": Field(3, "newest checkpoints that are kept", POSITIVE, 10**6, "no disk holds more",
        decides=NOTHING),
    **_duration("log.every", "period of logs, epochs", NOTHING, steps=50),
    "log.tensorboard": Field(True, "writes TensorBoard's files", decides=NOTHING),
    "log.wandb": Field(False, "needs the extra [wandb]", decides=NOTHING),
    "log.wandb_project": Field("simclr_jax", "there", decides=NOTHING),
    # evaluation
    **_duration("eval.every", "period of weighted kNN while training, epochs", NOTHING, epochs=10),
    "eval.batch_size": Field(256, "images at a time", POSITIVE, *IN_BATCH, decides=NOTHING),
    "eval.crop": Field(0.875, "central share of the shorter side that is seen, above 32 px", SHARE, *IN_SHARE,
        decides=NOTHING),
    "eval.resize": Field("bicubic", "or bilinear, antialiased as in PyTorch", one_of(*RESIZES),
        decides=NOTHING),
    "eval.endpoint": Field("final_avg_pool", "whose features the evaluation command takes; maps are "
        "averaged; final_avg_pool: the encoder's own", decides=NOTHING),
    "eval.final": Field(True, "scores beside the untrained encoder and raw pixels, at the end",
        decides=NOTHING),
    "eval.baselines": Field(True, "these two as well; False: the encoder alone, in a third of the time",
        decides=NOTHING),
    "eval.figures": Field(True, "draws views, curves, neighbours and a map", decides=NOTHING),
    "eval.knn.k": Field(200, "neighbours that vote while training", POSITIVE, 10**5,
        "so many neighbours of every image lie in memory", decides=NOTHING),
    "eval.knn.temperature": Field(0.1, "of their votes", POSITIVE, *DIVISOR, decides=NOTHING),
    "eval.knn.bank": Field(200_000, "training examples among which they are, at most", POSITIVE, *NUMBER,
        decides=NOTHING),
    "eval.linear.examples": Field(0, "training examples of linear_all at most; 0: all", NOT_NEGATIVE, *NUMBER,
        decides=NOTHING),
    "eval.linear.draws": Field(10, "balanced draws of 100 and of 1,000 labels", POSITIVE, 10**4,
        "each draw is a training", decides=NOTHING),
    "eval.linear.iterations": Field(100, "of L-BFGS", POSITIVE, 10**5, "L-BFGS ends before", decides=NOTHING),
    "eval.linear.epochs": Field(90.0, "of classifiers trained on augmented images (paper, B.6), by task "
        "linear_sweep", POSITIVE, *EPOCHS, decides=NOTHING),
    "eval.linear.learning_rate": Field(0.1, "of the standard one, without decay; × batch / 256", POSITIVE,
        *RATE, decides=NOTHING),
    "eval.linear.rates": Field((0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0), "learning rates to "
        "sweep, each with every decay; () turns the sweep off", ALL_POSITIVE, *RATE, decides=NOTHING),
    "eval.linear.decays": Field((0.0, 1e-5, 1e-4, 1e-3), "weight decays to sweep", ALL_FROM_ZERO, *RATE,
        decides=NOTHING),
    "eval.finetune.shares": Field((0.01, 0.1, 1.0), "of the labels, balanced over the classes (protocol "
        "finetune; paper, B.5)", ALL_SHARES, *IN_SHARE, decides=NOTHING),
    "eval.finetune.epochs": Field((60.0, 30.0, 30.0), "for each share", ALL_POSITIVE, *EPOCHS,
        decides=NOTHING),
    "eval.finetune.learning_rate": Field(0.05, "× batch / 256", POSITIVE, *RATE, decides=NOTHING),
    "eval.robustness.images": Field(2000, "of the test split that are corrupted and attacked", POSITIVE,
        *NUMBER, decides=NOTHING),
    "compile_cache": Field("auto", "directory of compiled programs; auto: ~/.cache/simclr_jax; '' for none",
        decides=NOTHING),
}  # fmt: skip


def declared() -> dict[str, Field]:
    """{'train.batch_size': Field, ...}: these fields, and those of every registered encoder and objective."""
    theirs = registry.fields()
    for place in {name.rpartition(".")[0] for name in theirs} & FIELDS.keys():
        raise SimclrError(f"config.{place}: is a field; what is registered by this name needs another one")
    return {**FIELDS, **theirs}


def default() -> ConfigDict:
    """The default configuration: SimCLR v1 on ImageNet's settings, data not chosen."""
    tree: dict[str, Any] = {}
    for name, field in declared().items():
        *parents, last = name.split(".")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = config_dict.placeholder(str) if field.default is None else field.default
    return ConfigDict(tree).lock()


def deciding(what: str) -> list[str]:
    """The fields that affect `what`: RESULT, ARCHITECTURE, PIXELS or NOTHING of field.py."""
    return [name for name, field in declared().items() if field.decides == what]


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


def lies_in(field: str, names: Iterable[str]) -> bool:
    """Whether 'a.b' is one of the fields or subtrees `names`."""
    return any(field == name or field.startswith(name + ".") for name in names)


def check_field(field: str) -> None:
    """Raises SimclrError if no field 'a.b' exists, with its new or the nearest name."""
    expected = declared()
    if field in RENAMED:
        raise SimclrError(f"config.{field}: is config.{RENAMED[field]} now")
    if field not in expected:
        close = difflib.get_close_matches(field, expected, n=1)
        hint = f"; did you mean config.{close[0]}?" if close else ""
        raise SimclrError(f"config.{field}: no such field{hint}")


def set_field(config: ConfigDict, field: str, value: Any) -> None:
    """Sets `config.a.b` for the field 'a.b'."""
    *parents, name = field.split(".")
    for parent in parents:
        config = config[parent]
    config[name] = tuple(value) if isinstance(value, list) else value


def describe() -> str:
    """Every field with its default and its meaning, a line or two each, for --help."""
    lines = []
    for name, field in declared().items():
        shown = f"  --config.{name}={field.default}"
        lines.append(f"{shown:<44} {field.help}" if len(shown) < 44 else f"{shown}\n{'':<44} {field.help}")
    return "\n".join(lines)
