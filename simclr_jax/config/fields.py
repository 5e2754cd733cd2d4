"""The fields of a config, with their defaults.

A file in `configs/` starts from `default()` and states only what it changes.
"""

import difflib
from collections.abc import Iterable
from typing import Any

from ml_collections import ConfigDict, config_dict

from simclr_jax.config.durations import duration
from simclr_jax.errors import SimclrError

# Fields that may differ between a run and its resumption: they do not change the parameters beyond float32
# rounding (another mesh, or another program: steps_per_call 1 or more).
FREE = (
    "checkpoint",
    "compile_cache",
    "data.data_dir",
    "data.download",
    "data.max_unreadable",
    "data.threads",
    "eval",
    "log",
    "mesh",
    "train.steps_per_call",
)

# Old names of fields, and of what a field may say: {field: {old: new}}.
RENAMED = {"augment.scaling": "augment.zoom"}
RENAMED_VALUES = {"task": {"heads": "linear_sweep"}}

# Fields of `model` that say which parameters there are.
ARCHITECTURE = (
    "encoder",
    "depth",
    "blocks",
    "width",
    "stem",
    "variant",
    "sk_ratio",
    "se_ratio",
    "projection",
    "projection_layers",
    "projection_dim",
)

# Fields of `data` that say how files become pixels; a run that starts from another has those.
PIXELS = ("background", "intensity", "percentiles", "window", "exif")


def default() -> ConfigDict:
    """The default configuration: SimCLR v1 on ImageNet's settings, data not chosen."""
    c = ConfigDict()
    c.task = (
        "pretrain"  # or supervised (linear evaluation, fine-tuning, from scratch), distill, or linear_sweep
    )
    c.seed = 0  # of the initial parameters, the order of data and every augmentation

    c.start = start = ConfigDict()  # where the first parameters come from
    start.workdir = ""  # of another run, own or converted; "" for random parameters
    start.step = 0  # of its checkpoints; 0: the newest when the run began

    c.data = data = ConfigDict()
    data.source = ""  # tfds:NAME, folder:PATH, list:FILE, npz:PATH, builtin:mnist5k, arrays given to run()
    data.data_dir = config_dict.placeholder(str)  # of TFDS (default ~/tensorflow_datasets), folders
    data.download = False  # whether TFDS may download and prepare what data_dir lacks
    data.train_split = "train"
    data.test_split = "test"
    data.holdout = 0.1  # share of the images kept for testing where there is no test split
    data.image_size = 224  # side of the square the encoder sees, pixels; 0: that of start or teacher
    data.channels = 3  # gray and RGB images are converted to 1 or 3; arrays may have others; 0: likewise
    data.mean = ()  # subtracted from images in [0, 1], one value a channel; () for none, as in SimCLR
    data.std = ()
    data.memory_gb = 2.0  # sets up to this size (decoded) are held in memory
    data.stored_size = 0  # augment.device=all: side of the squares that image files become; 0: image_size
    data.shuffle_buffer = 16384  # images; sequential (TFRecord) sources only
    data.threads = 0  # of the input pipeline; 0: all cores
    data.background = "white"  # what lies under transparent pixels of image files: a name, or #rrggbb
    data.intensity = "full"  # what becomes black and white in files of more than 8 bits: the whole range of
    #   their type (DICOM: their own window), the "percentiles" of the training files, or a "window"
    data.percentiles = (0.5, 99.5)  # of data.intensity=percentiles
    data.window = ()  # (black, white) of data.intensity=window; of percentiles, measured as a run begins
    data.exif = False  # whether files are turned as their EXIF says
    data.max_pixels = 89_478_485  # of an image file; a larger one counts as unreadable
    data.max_unreadable = 0.05  # share of the files, or one, that others may replace; above, the run stops

    c.augment = augment = ConfigDict()
    augment.device = "none"  # what the accelerator does: none, photometric (colour and blur), or all, on
    #   images that it holds in memory: no TensorFlow, many steps a call
    augment.crop_area = (0.08, 1.0)  # share of the image, range
    augment.crop_aspect = (3 / 4, 4 / 3)  # width over height, range
    augment.crop_min_covered = 0.1  # the original's: no crop below this share, so 0.1 wins over 0.08
    augment.resize = "bicubic"  # of the crop; or "bilinear", antialiased as in PyTorch
    augment.flip = 0.5  # probability of a left-right flip
    augment.rotation = 0.0  # degrees, drawn from ±rotation; before the crop, black outside
    augment.zoom = (1.0, 1.0)  # range of its factor, drawn with the rotation
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
    model.blocks = ()  # of each group, (2,1,1,1) say; () for those of the depth
    model.width = 1.0  # multiplies every channel count; fractions too
    model.stem = "imagenet"  # 7×7 stride 2 and max-pool; "cifar": 3×3 stride 1; "cifar_pad2": solo-learn's
    model.variant = "original"  # or "torch": torchvision's shortcuts and padding
    model.sk_ratio = 0.0  # selective kernels and their ResNet-D stem and shortcuts; 0.0625 in SimCLRv2
    model.se_ratio = 0.0  # squeeze-and-excitation
    model.dropblock_keep = ()  # probability of keeping a unit, for each group; () for no DropBlock
    model.dropblock_size = 7  # pixels of the feature map
    model.norm_groups = 1  # parts of the batch that BatchNorm takes apart; 1: the whole global batch
    model.remat = False  # a ResNet's blocks keep less and are computed again backwards
    model.remat_keep = "inputs"  # of a block: those alone, or "convolutions" too, which cost the most
    model.dtype = "float32"  # of the computation; parameters and statistics are at least float32
    model.projection = "nonlinear"
    model.projection_layers = 2  # 2 in SimCLR v1, 3 in v2
    model.projection_dim = 128
    model.probe = True  # online linear classifier behind stop-gradient, where there are labels
    model.probe_layer = 0  # of the projection head, that the classifier reads (ft_proj_selector); 0: h

    c.loss = loss = ConfigDict()
    loss.name = "nt_xent"
    loss.temperature = 0.1
    loss.scale = 1.0  # the original's loss is twice the paper's: 2 reproduces its learning rates
    loss.normalize = True  # embeddings to unit length
    loss.one_view = False  # negatives from the positive's view only
    loss.semi_hard = False  # nt_logistic, margin: one semi-hard negative a row instead of all
    loss.margin = 0.8  # margin
    loss.sigma = 0.5  # dclw
    loss.dense_mb = 512.0  # logits a device may hold at once; above, nt_xent goes tile by tile
    loss.gather_mb = 512.0  # embeddings that tiles may gather on a device; above, they pass round a ring

    c.finetune = finetune = ConfigDict()  # tasks supervised and distill
    finetune.after_block = -1  # freeze the encoder up to this block group; 0: the stem; 4: all; -1: nothing
    finetune.frozen_norm = True  # BatchNorm stands still in what is frozen
    finetune.zero_init = True  # the classifier starts at zero

    c.distill = distill = ConfigDict()  # task distill
    distill.teacher = ""  # workdir with a classifier: task supervised, or converted
    distill.step = 0  # of its checkpoints; 0: the newest when the run began
    distill.temperature = 1.0  # SimCLRv2: 1 from big to small, 0.1 to itself
    distill.alpha = 1.0  # weight of the teacher's labels; 1 - alpha that of the true ones, where known

    c.optimizer = optimizer = ConfigDict()
    optimizer.name = "lars"
    optimizer.learning_rate = 0.3  # before scaling
    optimizer.scaling = "linear"  # linear: × batch / 256; sqrt: × √batch; none
    optimizer.warmup = duration(epochs=10)
    optimizer.weight_decay = 1e-6
    optimizer.momentum = 0.9  # LARS and SGD
    optimizer.nesterov = False  # LARS and SGD
    optimizer.eta = 0.001  # LARS trust coefficient
    optimizer.classic = True  # LARS: momentum over scaled updates; False: the trust ratio scales momentum
    optimizer.rate_in_momentum = False  # SGD: the rate enters the buffer, as TensorFlow 2's Keras has it
    optimizer.b1 = 0.9  # Adam, AdamW
    optimizer.b2 = 0.999  # Adam, AdamW
    optimizer.eps = 1e-8  # Adam, AdamW; 1e-7 in Keras
    optimizer.decay_exclude = ("/bias$", "/scale$")  # patterns of parameters that are not decayed
    optimizer.adapt_exclude = ("/bias$", "/scale$", "^probe/")  # ... that LARS takes at the raw rate

    c.train = duration(epochs=100)
    c.train.batch_size = 4096  # source images a step, over all devices; each gives two views
    c.train.steps_per_call = 0  # augment.device=all: steps that the accelerator makes by itself, at most;
    #   0: 16, and 1 on CPU, where XLA's convolutions are slow within a loop
    c.train.microbatch = 0  # images whose activations exist at a time, a divisor; 0: the whole batch

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
    evaluation.resize = "bicubic"  # or "bilinear", antialiased as in PyTorch
    evaluation.endpoint = "final_avg_pool"  # whose features the evaluation command takes; maps are averaged
    evaluation.final = True  # scores beside the untrained encoder and raw pixels, at the end
    evaluation.baselines = True  # these two as well; False: the encoder alone, in a third of the time
    evaluation.figures = True
    evaluation.knn = ConfigDict({"k": 200, "temperature": 0.1, "bank": 200_000})
    evaluation.linear = linear = ConfigDict()
    linear.examples = 0  # training examples of linear_all at most; 0: all
    linear.draws = 10  # balanced draws of 100 and of 1,000 labels
    linear.iterations = 100  # of L-BFGS
    linear.epochs = 90.0  # of classifiers trained on augmented images (paper, B.6), by task linear_sweep
    linear.learning_rate = 0.1  # of the standard one, without decay; × batch / 256
    linear.rates = (
        0.01,
        0.02,
        0.05,
        0.1,
        0.2,
        0.5,
        1.0,
        2.0,
        5.0,
        10.0,
    )  # learning rates to sweep, each with every decay; () turns the sweep off
    linear.decays = (0.0, 1e-5, 1e-4, 1e-3)
    evaluation.finetune = finetuning = ConfigDict()  # protocol finetune (paper, B.5)
    finetuning.shares = (0.01, 0.1, 1.0)  # of the labels, balanced over the classes
    finetuning.epochs = (60.0, 30.0, 30.0)  # for each share
    finetuning.learning_rate = 0.05  # × batch / 256
    evaluation.robustness = ConfigDict({"images": 2000})  # of the test split that are corrupted and attacked

    c.compile_cache = "auto"  # directory of compiled programs; auto: ~/.cache/simclr_jax; "" for none
    return c.lock()


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
    """Raises SimclrError where no field 'a.b' exists, with its new or the nearest name."""
    expected = flatten(default())
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
