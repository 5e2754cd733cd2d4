"""Settings that are known to go wrong. A small function checks each one and gives reason and remedy.

To add one, write a function (plan -> Finding or None) with its source in the docstring, put it in PITFALLS,
and add a case to tests/test_doctor.py. "Paper" is SimCLR, arXiv 2002.05709.
"""

import importlib.util
from collections.abc import Iterator

import numpy as np

from simclr_jax import optim, registry
from simclr_jax.config import bounds, flatten
from simclr_jax.doctor import ahead, images
from simclr_jax.doctor.findings import Finding, error, note, warning
from simclr_jax.doctor.plan import Plan

TINY = 32  # pixels of CIFAR's images
SMALL = 64  # pixels below which the paper's ImageNet settings do not fit
DIGITS = ("mnist", "svhn", "emnist", "kmnist", "omniglot")  # in names of sources: characters


def check(plan: Plan) -> Iterator[Finding]:
    """Runs all of PITFALLS."""
    chosen = [one for one in PITFALLS if one not in OF_IMAGES or ahead.of_images(plan.config)]
    yield from (found for pitfall in chosen if (found := pitfall(plan)))


# ---- optimiser ----------------------------------------------------------------------------------


def lars_on_a_small_batch(plan: Plan) -> Finding | None:
    """Linear scaling makes the rate of a small batch tiny; the root suits it (paper, B.1, Figure B.1)."""
    optimizer, batch = plan.config.optimizer, plan.config.train.batch_size
    if optimizer.name != "lars" or optimizer.scaling != "linear" or batch >= 256:
        return None
    return warning(
        f"LARS and linear scaling are made for batches of 256 and more, not {batch}",
        "--config.optimizer.scaling=sqrt --config.optimizer.learning_rate=0.075 (paper, B.1), or adamw",
    )


def decay_too_small_for_adamw(plan: Plan) -> Finding | None:
    """AdamW takes rate · decay of each weight a step (arXiv 1711.05101); 1e-6 is meant for LARS (paper)."""
    optimizer = plan.config.optimizer
    if optimizer.name != "adamw" or not 0 < optimizer.weight_decay < 1e-5:
        return None
    return warning(
        f"config.optimizer.weight_decay={optimizer.weight_decay:g} is LARS's, and too little for AdamW",
        "--config.optimizer.weight_decay=1e-4, up to 0.1 for long runs",
    )


def rate_too_high_for_adam(plan: Plan) -> Finding | None:
    """Adam's steps are as large as its rate, whatever the gradient (arXiv 1412.6980, section 2.1)."""
    optimizer, batch = plan.config.optimizer, plan.config.train.batch_size
    peak = optim.scaled_rate(optimizer.learning_rate, optimizer.scaling, batch)
    if optimizer.name not in ("adam", "adamw") or peak <= 0.02:
        return None
    return warning(
        f"{optimizer.name} with a peak rate of {peak:.3g}: each step moves every weight by about so much",
        "--config.optimizer.learning_rate=1e-3 --config.optimizer.scaling=none",
    )


def warm_up_takes_the_run(plan: Plan) -> Finding | None:
    """Ten epochs of a hundred in the paper (2.2); at half the run there is little time at the full rate."""
    warmup, steps = plan.lengths
    if 2 * warmup < steps:
        return None
    return warning(
        f"the warm-up takes {warmup:,} of {steps:,} steps", "shorten config.optimizer.warmup to a tenth"
    )


# ---- loss ---------------------------------------------------------------------------------------


def temperature_out_of_range(plan: Plan) -> Finding | None:
    """From 0.05 to 1 the paper found 59.7, 64.4, 60.7 and 58.0 % (Table 5)."""
    loss = plan.config.loss
    if plan.config.task != "pretrain" or not loss.normalize or 0.05 <= loss.temperature <= 1:
        return None
    return warning(
        f"config.loss.temperature={loss.temperature:g} is outside of 0.05 to 1, which the paper tried",
        "--config.loss.temperature=0.1, or 0.5 for small images (paper, Table 5 and B.9)",
    )


def few_positives_for_supcon(plan: Plan) -> Finding | None:
    """Its positives are other images of the class in the batch (arXiv 2004.11362, section 3)."""
    batch, classes = plan.config.train.batch_size, len(plan.train.classes)
    if "supcon" not in registry.terms(plan.config.loss.name) or batch >= 2 * classes:
        return None
    return warning(
        f"supcon: a batch of {batch:,} has {batch / classes:.2g} images of each of the {classes:,} classes",
        f"a batch of {4 * classes:,} or more, or --config.loss.name=nt_xent",
    )


def few_negatives(plan: Plan) -> Finding | None:
    """With fewer negatives short runs get worse (paper, 5.1, Figure 9)."""
    batch = plan.config.train.batch_size
    if plan.config.task != "pretrain" or batch >= 64:
        return None
    return warning(
        f"a batch of {batch}: each image has only {2 * batch - 2} others to differ from",
        "a larger batch; config.train.microbatch makes it fit",
    )


def batch_of_the_whole_set(plan: Plan) -> Finding | None:
    """An epoch of one or two steps: batch statistics and the rate of a large batch, on few images."""
    steps = plan.train.size // plan.config.train.batch_size
    if not 1 <= steps <= 3:
        return None
    return note(f"an epoch has {steps} steps: the batch is a large part of the {plan.train.size:,} images")


# ---- augmentation -------------------------------------------------------------------------------


def crops_of_few_pixels(plan: Plan) -> Finding | None:
    """A crop of 8 % (paper, appendix A) of an image of 28 pixels has 8 pixels a side."""
    augment, side = plan.config.augment, plan.config.data.image_size
    least = max(augment.crop_area[0], augment.crop_min_covered)
    pixels = min(images.shorter_side(plan.train) or side, side) * least**0.5
    if plan.config.task != "pretrain" or pixels >= 10:
        return None
    return warning(
        f"the smallest crops are {pixels:.0f} pixels a side, and show little of an image",
        "'--config.augment.crop_area=(0.3,1.0)'",
    )


def blur_of_small_images(plan: Plan) -> Finding | None:
    """The paper leaves blur out on CIFAR-10 (B.9)."""
    side = plan.config.data.image_size
    if not plan.config.augment.blur or side >= SMALL:
        return None
    return note(f"blur on images of {side} pixels: the paper leaves it out, --config.augment.blur=0.0 (B.9)")


def jitter_of_small_images(plan: Plan) -> Finding | None:
    """The paper halves the strength of the colour jitter on CIFAR-10 (B.9)."""
    augment, data = plan.config.augment, plan.config.data
    coloured, side = data.channels == 3, data.image_size
    if not (augment.jitter and coloured) or augment.jitter_strength <= 0.5 or side > TINY:
        return None
    return warning(
        f"config.augment.jitter_strength={augment.jitter_strength:g} on images of {side} pixels",
        "--config.augment.jitter_strength=0.5 (paper, B.9)",
    )


def flipped_characters(plan: Plan) -> Finding | None:
    """A view must show the same thing as its image (paper, 2.1); a mirrored 2 is none."""
    source, classes = plan.config.data.source.lower(), plan.train.classes
    named = any(name in source for name in DIGITS) and "fashion" not in source
    single = len(classes) > 1 and plan.here and all(len(name) == 1 and name.isalpha() for name in classes)
    if not plan.config.augment.flip or not (named or single):
        return None
    return warning(
        "left-right flips of characters: a mirrored digit or letter is another one, or none",
        "--config.augment.flip=0.0",
    )


# ---- images and network -------------------------------------------------------------------------


def images_made_larger(plan: Plan) -> Finding | None:
    """Pixels that files do not have cost time and memory, and show nothing new."""
    side, wanted = images.shorter_side(plan.train), plan.config.data.image_size
    if side is None or side >= wanted:
        return None
    return warning(
        f"the images are {side} pixels wide or high, and config.data.image_size={wanted} makes them larger",
        f"--config.data.image_size={max(32, side)}" + " and a stem for small images" * (side < SMALL),
    )


def stem_for_large_images(plan: Plan) -> Finding | None:
    """Stride 2 and max-pooling leave a quarter of each side; the paper takes 3×3, stride 1 (B.9)."""
    model, side = plan.config.model, plan.config.data.image_size
    if model.encoder != "resnet" or model.stem != "imagenet" or side >= SMALL:
        return None
    return warning(
        f"the ImageNet stem on images of {side} pixels leaves maps of {side // 4} for the first blocks",
        "--config.model.stem=cifar (paper, B.9)",
    )


def norm_of_few_images(plan: Plan) -> Finding | None:
    """BatchNorm's statistics of few images are noise (arXiv 1803.08494, Figure 1: below 16)."""
    model, train = plan.config.model, plan.config.train
    views = bounds.views(flatten(plan.config))
    count = (train.microbatch or train.batch_size) * views // model.norm_groups
    if count >= 32 or plan.config.task == "restore":  # its maps have thousands of places
        return None
    return warning(
        f"BatchNorm takes its mean and variance of {count} images at a time",
        "fewer config.model.norm_groups, or a larger batch or microbatch",
    )


def numbers_of_another_size(plan: Plan) -> Finding | None:
    """What bfloat16 and float64 cost and bring depends on the device."""
    dtype = plan.config.model.dtype
    if dtype == "float64":
        return warning("float64 is for comparisons: many times slower", "--config.model.dtype=float32")
    if dtype == "bfloat16" and plan.on_cpu:
        return note("bfloat16 is slower than float32 on most CPUs: --config.model.dtype=float32")
    if dtype == "float32" and not plan.on_cpu:
        return note(
            "--config.model.dtype=bfloat16 is faster here and takes less memory; parameters, statistics and "
            "the loss stay float32"
        )
    return None


# ---- evaluation and logs ------------------------------------------------------------------------


def more_neighbours_than_images(plan: Plan) -> Finding | None:
    """kNN counts the votes of k = 200 neighbours (arXiv 1805.01978); where there are fewer, of all."""
    knn, classes = plan.config.eval.knn, plan.train.classes
    count = min(plan.train.size, knn.bank)
    if not classes or knn.k * 2 <= count:
        return None
    return warning(
        f"config.eval.knn.k={knn.k}, of {count:,} images: nearly all of them vote",
        f"--config.eval.knn.k={max(1, min(20, count // 10))}",
    )


def scores_of_a_huge_set(plan: Plan) -> Finding | None:
    """The last scores keep the features of all images in the host's memory and fit all labels."""
    size, linear = plan.train.size, plan.config.eval.linear
    used = min(size, linear.examples or size)
    if not plan.config.eval.final or not plan.train.classes or used <= 200_000:
        return None
    gigabytes = used * features(plan) * 4 / 1e9
    return note(
        f"the scores at the end fit a classifier on the features of {used:,} images, {gigabytes:,.2g} GB on "
        "the host: --config.eval.linear.examples=100000 takes some of them"
    )


def wandb_is_missing(plan: Plan) -> Finding | None:
    """An extra that the config asks for."""
    if not plan.config.log.wandb or importlib.util.find_spec("wandb"):
        return None
    return error("config.log.wandb=True: Weights & Biases is not installed", "pip install -e '.[wandb]'")


def features(plan: Plan) -> int:
    """The length of a feature, by the last kernel of the online probe; 2048, a ResNet-50's, without one."""
    probe = plan.arguments.state.params.get("probe") or {}
    kernels = [x.shape for x in _leaves(probe) if len(x.shape) == 2]
    return int(np.max([shape[0] for shape in kernels])) if kernels else 2048


def _leaves(tree: dict) -> Iterator:
    for value in tree.values():
        yield from _leaves(value) if hasattr(value, "values") else [value]


OF_IMAGES = (
    crops_of_few_pixels,
    blur_of_small_images,
    jitter_of_small_images,
    flipped_characters,
    images_made_larger,
    stem_for_large_images,
    numbers_of_another_size,
)
PITFALLS = (
    lars_on_a_small_batch,
    decay_too_small_for_adamw,
    rate_too_high_for_adam,
    warm_up_takes_the_run,
    temperature_out_of_range,
    few_positives_for_supcon,
    few_negatives,
    batch_of_the_whole_set,
    crops_of_few_pixels,
    blur_of_small_images,
    jitter_of_small_images,
    flipped_characters,
    images_made_larger,
    stem_for_large_images,
    norm_of_few_images,
    numbers_of_another_size,
    more_neighbours_than_images,
    scores_of_a_huge_set,
    wandb_is_missing,
)
