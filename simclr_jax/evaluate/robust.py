"""How features hold when images change: corrupted, attacked, augmented."""

import functools
from typing import Any

import jax
import numpy as np

from simclr_jax.evaluate import charts
from simclr_jax.evaluate.frozen import FIT, classifier_weights
from simclr_jax.evaluate.subject import Subject
from simclr_jax.measures import attacks, corruptions, linear
from simclr_jax.measures.knn import top_k_accuracy
from simclr_jax.protocols import protocol
from simclr_jax.results import Result

EPSILONS = (1 / 255, 2 / 255, 4 / 255, 8 / 255, 16 / 255)  # of the attacks, in images from 0 to 1
SEVERITIES = range(1, 6)
ATTACKED = 500  # images, at most
PIECES = {  # of the augmentation, each alone
    "crop": ("crop_area", "crop_aspect", "crop_min_covered", "resize"),
    "flip": (),
    "rotation": (),
    "colour jitter": ("jitter_strength", "brightness"),
    "grayscale": (),
    "blur": ("blur_kernel", "blur_sigma"),
}
STILL = {"crop_area": (1.0, 1.0), "crop_aspect": (1.0, 1.0), "crop_min_covered": 0.0, "flip": 0.0,
         "jitter": 0.0, "grayscale": 0.0, "blur": 0.0, "rotation": 0.0, "zoom": (1.0, 1.0)}  # fmt: skip


@protocol("robustness", "labels", "pictures", after="lbfgs", options=(*FIT, "robustness.images"))
def robustness(subject: Subject) -> Result:
    """Accuracy of the L-BFGS classifier on corrupted and on attacked test images.

    Corruptions are those of ImageNet-C and CIFAR-10-C (Hendrycks & Dietterich, arXiv 1903.12261) at five
    severities; attacks are FGSM (arXiv 1412.6572) and PGD (arXiv 1706.06083), through the encoder.
    """
    weights = classifier_weights(subject)
    views, labels = subject.gallery(subject.config.eval.robustness.images)
    views, labels = views[labels >= 0], labels[labels >= 0]
    if not len(labels):
        return Result(skipped="no labelled image in the sample: raise --config.eval.robustness.images")

    @jax.jit
    def logits(variables: Any, x: jax.Array) -> jax.Array:
        return linear.logits(weights, subject.h(variables, x))

    positions = np.arange(len(views), dtype=np.uint32)
    right = functools.partial(top_k_accuracy, labels=labels, k=1)
    clean = right(subject.over(logits, views))
    corrupted = {}
    for name in corruptions.available(views.shape[-1]):
        apply = corruptions.CORRUPTIONS[name]
        found = []
        for severity in SEVERITIES:
            changed = np.asarray(apply(views, severity, positions), np.float32)
            found.append(right(subject.over(logits, changed)))
        corrupted[name] = found
    views, labels, positions = views[:ATTACKED], labels[:ATTACKED], positions[:ATTACKED]
    right = functools.partial(top_k_accuracy, labels=labels, k=1)

    def attacked(attack: str, variables: Any, x: jax.Array, y: jax.Array, at: jax.Array, e: jax.Array):
        function = functools.partial(logits, variables)
        if attack == "FGSM":
            return function(attacks.fgsm(function, x, y, e[0]))
        return function(attacks.pgd(function, x, y, e[0], at))

    attack_accuracy = {}
    for name in ("FGSM", "PGD"):
        function = jax.jit(functools.partial(attacked, name))
        attack_accuracy[name] = [
            right(subject.over(function, views, labels, positions, np.full(len(views), e, np.float32)))
            for e in EPSILONS
        ]
    result = {
        "images": len(positions),
        "clean": clean,
        "corruptions": corrupted,
        "epsilons": list(EPSILONS),
        "attacks": attack_accuracy,
        "attacked_images": len(views),
        "clean_attacked": right(subject.over(logits, views)),
    }
    subject.draw("robustness.png", charts.robustness, result)
    mean = float(np.mean(list(corrupted.values())))
    note = f"mean over all corruptions and severities: {100 * mean:.1f} %, clean {100 * clean:.1f} %"
    figures = [["robustness.png", "Accuracy of the linear classifier (L-BFGS) on changed test images"]]
    return Result(notes=[note], figures=figures, more=result)


@protocol("invariance", options=("robustness.images",))
def invariance(subject: Subject) -> Result:
    """How similar the features of an image stay under each augmentation of the run, alone and all together.

    Mean cosine similarity of an image's features with those of its changed self, after the mean of all images
    is taken out; 0 is what two different images have on average.
    """
    limit = subject.config.eval.robustness.images
    (views, _), plain = subject.gallery(limit), subject.h_of_gallery(limit)
    middle = plain.mean(axis=0, keepdims=True)
    fields, found = subject.config.augment.to_dict(), {}
    for name, own in PIECES.items() if subject.feed.pictures else ():
        changed = _alone(name, fields, own, views.shape[-1])
        if changed is not None:
            found[name] = _similarity(plain, subject.h_of(subject.augmented(views, **changed)), middle)
    found["all of the run's"] = _similarity(plain, subject.h_of(subject.augmented(views)), middle)
    found["another image"] = _similarity(plain, np.roll(plain, 1, axis=0), middle)
    title = "What each augmentation leaves of the features"
    subject.draw("invariance.png", charts.bars, found, title, "cosine similarity, mean taken out")
    figures = [["invariance.png", "How much of the features each augmentation leaves unchanged"]]
    return Result(figures=figures, more={"similarity": found})


def _alone(name: str, fields: dict[str, Any], own: tuple[str, ...], channels: int) -> dict[str, Any] | None:
    """Fields of config.augment that make this change to every image; None where it would do nothing."""
    probability = {"flip": "flip", "colour jitter": "jitter", "grayscale": "grayscale", "blur": "blur"}.get(
        name
    )
    changed = {**STILL, **{field: fields[field] for field in own}}
    if probability:
        changed[probability] = 1.0
        idle = {"grayscale": channels != 3, "colour jitter": channels not in (1, 3)}
        return None if not fields[probability] or idle.get(name) else changed
    if name == "rotation":
        return {**changed, "rotation": fields["rotation"]} if fields["rotation"] else None
    return changed


def _similarity(a: np.ndarray, b: np.ndarray, middle: np.ndarray) -> float:
    a, b = a - middle, b - middle
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return float(np.mean(np.sum(a * b, axis=1) / np.maximum(norms, 1e-12)))
