"""Multinomial logistic regression on frozen features, by L-BFGS in JAX."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.lax import Precision
from jax.sharding import Mesh

from simclr_jax import sharding

BUDGET = 1 << 28  # logits at a time while fitting


def standardize(features: np.ndarray, *others: np.ndarray) -> list[np.ndarray]:
    """All of them with the mean and deviation of `features [n, d]` taken out."""
    mean, scale = moments(features)
    return [((x - mean) * scale).astype(features.dtype) for x in (features, *others)]


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


def objective(weights, features, labels, mask, l2):
    """Mean cross entropy of softmax(x·kernel + bias) over the rows in `mask`, + l2/2·‖kernel‖²."""
    losses = optax.softmax_cross_entropy_with_integer_labels(logits(weights, features), labels)
    mean = jnp.sum(jnp.where(mask, losses, 0)) / jnp.sum(mask)
    return mean + 0.5 * l2 * jnp.sum(weights["kernel"] ** 2)


@functools.partial(jax.jit, static_argnames=("classes", "iterations"))
def fit(features, labels, mask, l2s, *, classes: int, iterations: int = 100, tolerance=1e-5):
    """Minimises `objective` for every l2 by L-BFGS, the largest from zero, every other from the next larger.

    Args:
      features: `[n, d]`, labels: `[n]` int, mask: `[n]` bool; may be split over a mesh by rows.
      l2s: `[m]`, in any order.
      tolerance: of the gradient's norm; or stop after `iterations`.

    Returns:
      {"kernel": [m, d, classes], "bias": [m, classes]}.
    """
    dtype = jnp.result_type(float)  # float64 where it is enabled
    features, l2s = features.astype(dtype), l2s.astype(dtype)
    zero = {
        "kernel": jnp.zeros((features.shape[1], classes), dtype),
        "bias": jnp.zeros((classes,), dtype),
    }
    # The problem is convex: backtracking finds a step in about one evaluation, zoom takes several.
    # atol: near the optimum a decrease drowns in rounding, and no step at all would look good enough.
    search = optax.scale_by_backtracking_linesearch(
        max_backtracking_steps=15,
        decrease_factor=0.5,
        atol=4 * jnp.finfo(dtype).eps,
        store_grad=True,
    )
    optimizer = optax.lbfgs(memory_size=10, linesearch=search)

    def fit_one(nearby, l2):
        f = lambda weights: objective(weights, features, labels, mask, l2)  # noqa: E731
        value_and_grad = optax.value_and_grad_from_state(f)

        def step(carry):
            weights, state, i, _ = carry
            value, gradient = value_and_grad(weights, state=state)
            updates, state = optimizer.update(
                gradient, state, weights, value=value, grad=gradient, value_fn=f
            )
            norm = optax.tree.norm(gradient).astype(dtype)
            return optax.apply_updates(weights, updates), state, i + 1, norm

        def unfinished(carry):
            return (carry[2] < iterations) & (carry[3] > tolerance)

        start = (nearby, optimizer.init(nearby), 0, jnp.asarray(jnp.inf, dtype))
        found = jax.lax.while_loop(unfinished, step, start)[0]
        return found, found

    # One after the other: side by side, every line search would wait for the longest.
    order = jnp.argsort(-l2s)
    _, weights = jax.lax.scan(fit_one, zero, l2s[order])
    return jax.tree.map(lambda w: jnp.zeros_like(w).at[order].set(w), weights)


def fit_over(
    mesh: Mesh,
    features: np.ndarray,
    labels: np.ndarray,
    l2s: Sequence[float],
    *,
    classes: int,
    iterations: int,
) -> dict[str, np.ndarray]:
    """`fit` on rows split over the mesh; as many penalties at a time as memory allows."""
    filling = -len(labels) % mesh.size
    mask = np.arange(len(labels) + filling) < len(labels)
    features = np.pad(features, [(0, filling), (0, 0)])
    labels = np.pad(labels, (0, filling))
    data = sharding.put_same([features, labels, mask], sharding.by_batch(mesh))
    l2s = np.asarray(l2s, features.dtype)
    groups = np.array_split(l2s, -(-len(l2s) * len(labels) * classes // BUDGET))
    fits = [fit(*data, group, classes=classes, iterations=iterations) for group in groups]
    return jax.tree.map(lambda *w: np.concatenate([np.asarray(x) for x in w]), *fits)


@jax.jit
def evaluate(weights, features, labels) -> tuple[jax.Array, jax.Array]:
    """(top-1 accuracy `[m]`, mean cross entropy `[m]`) of m stacked classifiers on features `[n, d]`."""

    def one(w):
        outputs = logits(w, features)
        right = jnp.mean(jnp.argmax(outputs, axis=1) == labels, dtype=jnp.float32)
        return right, jnp.mean(optax.softmax_cross_entropy_with_integer_labels(outputs, labels))

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
