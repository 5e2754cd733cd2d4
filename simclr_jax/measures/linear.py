"""Logistic regression on frozen features, by L-BFGS in JAX.

Multinomial; or, where images have several labels each, `[n, classes]` of 0 and 1, one against all others for
every class.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.lax import Precision
from jax.sharding import Mesh, NamedSharding

from simclr_jax import sharding

ALONE = 64 << 20  # bytes of features below which one device beats many: it needs no all-reduce


def standardize(features: np.ndarray, *others: np.ndarray) -> list[np.ndarray]:
    """All of them with the mean and deviation of `features [n, d]` taken out."""
    mean, scale = (x.astype(features.dtype) for x in moments(features))
    return [(x - mean) * scale for x in (features, *others)]


def moments(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(mean, 1 / standard deviation) of every column of `[n, d]`; 0 for one that is constant."""
    mean, std = features.mean(axis=0), features.std(axis=0)
    return mean, 1 / np.where(std > 1e-6 * np.maximum(np.abs(mean), 1), std, np.inf)


def for_plain(weights: dict[str, np.ndarray], features: np.ndarray) -> dict[str, np.ndarray]:
    """The classifier of plain features that equals `weights` on those standardised by `features [n, d]`."""
    mean, scale = (x.astype(np.float64) for x in moments(features))
    kernel = weights["kernel"] * scale[:, None]
    bias = weights["bias"] - mean @ kernel
    return {"kernel": kernel.astype(features.dtype), "bias": bias.astype(features.dtype)}


def logits(weights, features) -> jax.Array:
    """x·kernel + bias, `[n, classes]`."""
    product = jnp.matmul(features, weights["kernel"], precision=Precision.HIGHEST)
    return product + weights["bias"][None, :]


@jax.jit
def probabilities(weights, features) -> jax.Array:
    """softmax(x·kernel + bias), `[n, classes]`."""
    return jax.nn.softmax(logits(weights, features), axis=1)


def cross_entropy(outputs, labels) -> jax.Array:
    """Of softmax(outputs) and labels `[n]`, or summed over classes of sigmoid(outputs) and `[n, classes]`."""
    if labels.ndim == 1:
        return optax.softmax_cross_entropy_with_integer_labels(outputs, labels)
    return jnp.sum(optax.sigmoid_binary_cross_entropy(outputs, labels.astype(outputs.dtype)), axis=1)


def objective(weights, features, labels, mask, l2):
    """Mean `cross_entropy` of x·kernel + bias over the rows in `mask`, + l2/2·‖kernel‖²."""
    losses = cross_entropy(logits(weights, features), labels)
    mean = jnp.sum(jnp.where(mask, losses, 0)) / jnp.sum(mask)
    return mean + 0.5 * l2 * jnp.sum(weights["kernel"] ** 2)


def fit(
    features, labels, mask, l2s, *, classes: int, iterations: int = 100, tolerance=1e-5, start=None
) -> dict[str, np.ndarray]:
    """Minimises `objective` for every l2 by L-BFGS, the largest first, each from where the last one ended.

    Args:
      features: `[n, d]`, labels: `[n]` int or `[n, classes]`, mask: `[n]` bool; may be split over a mesh by
        rows. Or `[b, n, d]`, `[b, n]` and `[b, n]` for b sets of examples, each with classifiers of its own.
      l2s: `[m]`, in any order.
      tolerance: of the gradient's norm; or stop after `iterations`.
      start: {"kernel": [d, classes], "bias": [classes]} to begin with; zero where None.

    Returns:
      {"kernel": [m, d, classes], "bias": [m, classes]}; of b sets [m, b, ...].
    """
    dtype, sets = jnp.result_type(float), features.shape[:-2]  # float64 where it is enabled
    if start is None:
        start = {"kernel": np.zeros((*sets, features.shape[-1], classes)), "bias": np.zeros((*sets, classes))}
    weights = jax.tree.map(lambda x: np.asarray(x, dtype), start)
    if isinstance(features, jax.Array) and isinstance(features.sharding, NamedSharding):
        # As the weights that come out are placed, or all would be compiled twice.
        weights = sharding.put_same(weights, sharding.replicated(features.sharding.mesh))
    descend = _descend_each if sets else _descend
    found = [None] * len(l2s)
    # One after the other: side by side, every line search would wait for the longest.
    for i in np.argsort(-np.asarray(l2s)):
        l2 = np.asarray(l2s[i], dtype)
        found[i] = weights = descend(weights, features, labels, mask, l2, iterations, tolerance)
        if jax.process_count() > 1:  # on CPUs the collectives of two programs under way could deadlock
            jax.block_until_ready(weights)
    return jax.tree.map(lambda *w: np.stack(w), *jax.device_get(found))


@functools.partial(jax.jit, static_argnames="iterations")
def _descend(start, features, labels, mask, l2, iterations, tolerance):
    features, dtype = features.astype(l2.dtype), l2.dtype
    # The problem is convex: backtracking finds a step in about one evaluation, zoom takes several.
    # atol: near the optimum a decrease drowns in rounding, and no step at all would look good enough.
    search = optax.scale_by_backtracking_linesearch(
        max_backtracking_steps=15,
        decrease_factor=0.5,
        atol=4 * jnp.finfo(dtype).eps,
        store_grad=True,
    )
    optimizer = optax.lbfgs(memory_size=10, linesearch=search)

    def f(weights):
        return objective(weights, features, labels, mask, l2)

    value_and_grad = optax.value_and_grad_from_state(f)

    def step(carry):
        weights, state, i, _ = carry
        value, gradient = value_and_grad(weights, state=state)
        updates, state = optimizer.update(gradient, state, weights, value=value, grad=gradient, value_fn=f)
        norm = optax.tree.norm(gradient).astype(dtype)
        return optax.apply_updates(weights, updates), state, i + 1, norm

    def unfinished(carry):
        return (carry[2] < iterations) & (carry[3] > tolerance)

    first = (start, optimizer.init(start), 0, jnp.asarray(jnp.inf, dtype))
    return jax.lax.while_loop(unfinished, step, first)[0]


@functools.partial(jax.jit, static_argnames="iterations")
def _descend_each(start, features, labels, mask, l2, iterations, tolerance):
    """`_descend` of several sets of examples, in one program."""

    def one(each):
        return _descend(*each, l2, iterations, tolerance)

    # An accelerator would mostly wait for the next small operation; on a CPU all would wait for the longest.
    if jax.default_backend() == "cpu":
        return jax.lax.map(one, (start, features, labels, mask))
    return jax.vmap(one)((start, features, labels, mask))


class Chosen(NamedTuple):
    """A classifier {"kernel": [d, classes], "bias": [classes]}, and how each penalty did on the hold-out."""

    weights: dict[str, np.ndarray]
    best: int  # of the penalties
    accuracy: np.ndarray
    loss: np.ndarray


def fit_chosen(
    mesh: Mesh,
    features: np.ndarray,
    labels: np.ndarray,
    held: np.ndarray,
    l2s: Sequence[float],
    *,
    classes: int,
    iterations: int,
) -> Chosen:
    """The classifier of all rows, with the penalty that did best on those `held` out while it was chosen.

    Best is the lowest cross entropy: accuracies tie too often.

    Args:
      features: `[n, d]`, labels: `[n]` or `[n, classes]`; split over the mesh by rows where they are many.
      held: rows.
    """
    alone = features.nbytes < ALONE
    filling = 0 if alone else -len(labels) % mesh.size
    everyone = np.arange(len(labels) + filling) < len(labels)
    rest = everyone.copy()
    rest[held] = False
    data = [features, labels]
    if filling:
        data = [np.pad(x, [(0, filling)] + [(0, 0)] * (x.ndim - 1)) for x in data]
    arrays = [*data, rest, everyone]
    # Not bound to a device where it is alone, as the weights that come out are not: or all is compiled twice.
    placed = jax.device_put(arrays) if alone else sharding.put_same(arrays, sharding.by_batch(mesh))
    h, labelled, rest, everyone = placed
    settings = {"classes": classes, "iterations": iterations}
    tried = fit(h, labelled, rest, l2s, **settings)
    accuracy, loss = (np.asarray(x) for x in evaluate(tried, features[held], labels[held]))
    best = int(np.argmin(loss))
    start = jax.tree.map(lambda w: w[best], tried)
    final = fit(h, labelled, everyone, l2s[best : best + 1], start=start, **settings)
    return Chosen(jax.tree.map(lambda w: np.asarray(w[0]), final), best, accuracy, loss)


@jax.jit
def evaluate(weights, features, labels) -> tuple[jax.Array, jax.Array]:
    """(top-1 accuracy `[m]`, mean cross entropy `[m]`) of m stacked classifiers on features `[n, d]`.

    Of several labels each, accuracy is how often the likeliest class is among them.
    """

    def one(w):
        outputs = logits(w, features)
        best = jnp.argmax(outputs, axis=1)
        right = best == labels if labels.ndim == 1 else jnp.take_along_axis(labels, best[:, None], 1) > 0
        return jnp.mean(right, dtype=jnp.float32), jnp.mean(cross_entropy(outputs, labels))

    return jax.lax.map(one, weights)


def balanced_draw(labels: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """`count` row numbers, as equal a number from every class as there are, `[count]`."""
    order = rng.permutation(len(labels))
    # The r-th example of its class, in the drawn order, comes before every (r + 1)-th.
    by_class = np.argsort(labels[order], kind="stable")
    sizes = np.bincount(labels)
    rank = np.empty(len(labels), int)
    rank[by_class] = np.concatenate([np.arange(size) for size in sizes])
    return order[np.argsort(rank, kind="stable")[:count]]
