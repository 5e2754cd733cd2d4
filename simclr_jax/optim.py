"""LARS, SGD and AdamW with warm-up and cosine decay; masks by parameter path."""

import math
from collections.abc import Callable
from typing import Any

import jax
import optax

EXCLUDED = ("bias", "scale")  # leaf names that are neither decayed nor adapted: biases, BatchNorm


def path_mask(params: Any, keep: Callable[[str], bool]) -> Any:
    """A pytree of booleans like `params`: `keep('encoder/conv/kernel')` for each leaf."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: keep(jax.tree_util.keystr(path, simple=True, separator="/")), params
    )


def decayed(path: str) -> bool:
    """Weight decay: every kernel, the supervised head's included; no bias, no BatchNorm."""
    return path.rsplit("/", 1)[-1] not in EXCLUDED


def adapted(path: str) -> bool:
    """LARS's trust ratio: what is decayed but the supervised head, which learns at the raw rate."""
    return decayed(path) and not path.startswith("probe/")


def scaled_rate(rate: float, scaling: str, batch_size: int) -> float:
    """The learning rate for a batch: linear rate·n/256, sqrt rate·√n (SimCLR, B.1), or as given."""
    factors = {"linear": batch_size / 256, "sqrt": math.sqrt(batch_size), "none": 1.0}
    return rate * factors[scaling]


def schedule(peak: float, warmup_steps: int, total_steps: int) -> optax.Schedule:
    """Linear warm-up from 0 to `peak`, then cosine decay to 0 at `total_steps` (SimCLR, B.6)."""
    if not warmup_steps:
        return optax.cosine_decay_schedule(peak, total_steps)
    # A run shorter than its warm-up (a trial of a few steps) climbs and stops.
    total = max(total_steps, warmup_steps + 1)
    return optax.warmup_cosine_decay_schedule(0.0, peak, warmup_steps, total)


def _lars(rate, *, weight_decay, momentum, nesterov, eta, **_):
    return optax.lars(
        rate,
        weight_decay=weight_decay,
        weight_decay_mask=lambda params: path_mask(params, decayed),
        trust_coefficient=eta,
        trust_ratio_mask=lambda params: path_mask(params, adapted),
        momentum=momentum,
        nesterov=nesterov,
    )


def _sgd(rate, *, weight_decay, momentum, nesterov, **_):
    decay = optax.add_decayed_weights(weight_decay, lambda params: path_mask(params, decayed))
    return optax.chain(decay, optax.sgd(rate, momentum, nesterov))


def _adamw(rate, *, weight_decay, b1, b2, **_):
    mask = lambda params: path_mask(params, decayed)  # noqa: E731
    return optax.adamw(rate, b1=b1, b2=b2, weight_decay=weight_decay, mask=mask)


OPTIMIZERS = {"lars": _lars, "sgd": _sgd, "adamw": _adamw}


def create(
    name: str,
    rate: optax.Schedule,
    *,
    trainable: Callable[[str], bool] = lambda path: True,
    weight_decay: float = 0.0,
    momentum: float = 0.9,
    nesterov: bool = False,
    eta: float = 0.001,
    b1: float = 0.9,
    b2: float = 0.999,
) -> optax.GradientTransformation:
    """The optimiser `name` (lars, sgd or adamw) at the rate `rate(step)`.

    LARS is You et al. 2017 (arXiv 1708.03888) as the original SimCLR applies it: decay before the
    trust ratio `eta·‖w‖/‖g‖`, momentum over the scaled update, biases, BatchNorm and the supervised
    head at the raw rate. Parameters whose path is not `trainable` stay as they are.
    """
    optimizer = OPTIMIZERS[name](
        rate,
        weight_decay=weight_decay,
        momentum=momentum,
        nesterov=nesterov,
        eta=eta,
        b1=b1,
        b2=b2,
    )
    return optax.partition(
        {"train": optimizer, "freeze": optax.set_to_zero()},
        lambda params: jax.tree.map(
            lambda train: "train" if train else "freeze", path_mask(params, trainable)
        ),
    )
