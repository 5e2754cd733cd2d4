"""LARS, SGD, Adam and AdamW with warm-up and cosine decay; masks by parameter path."""

import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

# Patterns of parameter paths. Weight decay: every kernel, the supervised head's included; no bias, no
# BatchNorm. LARS's trust ratio: the same but for the supervised head, which learns at the raw rate.
DECAY_EXCLUDE = ("/bias$", "/scale$")
ADAPT_EXCLUDE = ("/bias$", "/scale$", "^probe/")


def path_mask(params: Any, keep: Callable[[str], bool]) -> Any:
    """A pytree of booleans like `params`: `keep('encoder/conv/kernel')` for each leaf."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: keep(jax.tree_util.keystr(path, simple=True, separator="/")), params
    )


def all_but(patterns: Sequence[str]) -> Callable[[Any], Any]:
    """params -> mask: True for leaves whose path matches none of the regular expressions."""
    return lambda params: path_mask(params, lambda path: not any(re.search(p, path) for p in patterns))


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


def _lars(rate, *, weight_decay, momentum, nesterov, eta, classic, decay_exclude, adapt_exclude, **_):
    decayed, adapted = all_but(decay_exclude), all_but(adapt_exclude)
    if classic:
        return optax.lars(rate, weight_decay, decayed, eta, 0.0, adapted, momentum, nesterov)
    return optax.chain(
        optax.add_decayed_weights(weight_decay, decayed),
        optax.trace(momentum, nesterov),
        optax.masked(optax.scale_by_trust_ratio(trust_coefficient=eta), adapted),
        optax.scale_by_learning_rate(rate),
    )


def _sgd(rate, *, weight_decay, momentum, nesterov, rate_in_momentum, decay_exclude, **_):
    decay = optax.add_decayed_weights(weight_decay, all_but(decay_exclude))
    if rate_in_momentum:
        return optax.chain(decay, optax.scale_by_learning_rate(rate), optax.trace(momentum, nesterov))
    return optax.chain(decay, optax.sgd(rate, momentum, nesterov))


def _adam(rate, *, weight_decay, b1, b2, eps, decay_exclude, **_):
    decay = optax.add_decayed_weights(weight_decay, all_but(decay_exclude))
    return optax.chain(decay, _scale_by_adam(b1, b2, eps), optax.scale_by_learning_rate(rate))


def _scale_by_adam(b1: float, b2: float, eps: float) -> optax.GradientTransformation:
    """Adam as in TensorFlow and the last remark of the paper's section 2: adds eps before v is corrected.

    optax.adam adds eps after the correction, where it is up to 1/√(1 - b2) times smaller relative to √v.
    """

    def init(params):
        zeros = [jax.tree.map(jnp.zeros_like, params) for _ in range(2)]
        return optax.ScaleByAdamState(jnp.zeros((), jnp.int32), *zeros)

    def update(gradients, state, params=None):
        count = state.count + 1
        mean = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, state.mu, gradients)
        square = jax.tree.map(lambda v, g: b2 * v + (1 - b2) * g**2, state.nu, gradients)
        correct = jnp.sqrt(1 - b2**count) / (1 - b1**count)
        updates = jax.tree.map(lambda m, v: correct * m / (jnp.sqrt(v) + eps), mean, square)
        return updates, optax.ScaleByAdamState(count, mean, square)

    return optax.GradientTransformation(init, update)


def _adamw(rate, *, weight_decay, b1, b2, eps, decay_exclude, **_):
    return optax.adamw(rate, b1, b2, eps, weight_decay=weight_decay, mask=all_but(decay_exclude))


OPTIMIZERS = {"lars": _lars, "sgd": _sgd, "adam": _adam, "adamw": _adamw}


def create(
    name: str,
    rate: optax.Schedule,
    *,
    trainable: Callable[[str], bool] = lambda path: True,
    weight_decay: float = 0.0,
    momentum: float = 0.9,
    nesterov: bool = False,
    eta: float = 0.001,
    classic: bool = True,
    rate_in_momentum: bool = False,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    decay_exclude: Sequence[str] = DECAY_EXCLUDE,
    adapt_exclude: Sequence[str] = ADAPT_EXCLUDE,
) -> optax.GradientTransformation:
    """The optimiser `name` (lars, sgd, adam or adamw) at the rate `rate(step)`.

    - lars: You et al. 2017 (arXiv 1708.03888) as the original SimCLR applies it: decay before the trust
      ratio `eta·‖w‖/‖g‖`, momentum over the scaled update, what `adapt_exclude` matches at the raw rate.
      Not `classic`: v ← momentum·v + g, and the trust ratio and the rate scale v.
    - sgd: momentum; with `rate_in_momentum` v ← momentum·v + rate·g, which differs as the rate changes.
    - adam: Kingma & Ba (arXiv 1412.6980) as TensorFlow has it, decay added to the gradient, as an L2 term of
      the loss would be; adamw: Loshchilov & Hutter (arXiv 1711.05101), decay apart from it.

    Parameters whose path matches a pattern of `decay_exclude` get no weight decay. Parameters that are not
    `trainable` are not updated.
    """
    optimizer = OPTIMIZERS[name](
        rate,
        weight_decay=weight_decay,
        momentum=momentum,
        nesterov=nesterov,
        eta=eta,
        classic=classic,
        rate_in_momentum=rate_in_momentum,
        b1=b1,
        b2=b2,
        eps=eps,
        decay_exclude=decay_exclude,
        adapt_exclude=adapt_exclude,
    )
    return optax.partition(
        {"train": optimizer, "freeze": optax.set_to_zero()},
        lambda params: jax.tree.map(
            lambda train: "train" if train else "freeze", path_mask(params, trainable)
        ),
    )
