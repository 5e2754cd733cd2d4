"""Multinomial logistic regression on frozen features, by L-BFGS in JAX."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.lax import Precision


def standardize(features: np.ndarray, *others: np.ndarray) -> list[np.ndarray]:
    """All of them with the mean and deviation of `features [n, d]` taken out."""
    mean, std = features.mean(axis=0), features.std(axis=0)
    scale = 1 / np.where(std > 1e-6 * np.maximum(np.abs(mean), 1), std, np.inf)  # constant: 0
    return [((x - mean) * scale).astype(features.dtype) for x in (features, *others)]


def logits(weights, features) -> jax.Array:
    """x·kernel + bias, `[n, classes]`."""
    product = jnp.matmul(features, weights["kernel"], precision=Precision.HIGHEST)
    return product + weights["bias"][None, :]


def objective(weights, features, labels, mask, l2):
    """Mean cross entropy of softmax(x·kernel + bias) over the rows in `mask`, + l2/2·‖kernel‖²."""
    losses = optax.softmax_cross_entropy_with_integer_labels(logits(weights, features), labels)
    mean = jnp.sum(jnp.where(mask, losses, 0)) / jnp.sum(mask)
    return mean + 0.5 * l2 * jnp.sum(weights["kernel"] ** 2)


@functools.partial(jax.jit, static_argnames=("classes", "iterations"))
def fit(features, labels, mask, l2s, *, classes: int, iterations: int = 100, tolerance=1e-5):
    """Minimises `objective` for every l2 at once, from zero, by L-BFGS.

    Args:
      features: `[n, d]`, labels: `[n]` int, mask: `[n]` bool; may be split over a mesh by rows.
      l2s: `[m]`; all share the features, so that their logits are one matrix product.
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

    def fit_one(l2):
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

        start = (zero, optimizer.init(zero), 0, jnp.asarray(jnp.inf, dtype))
        return jax.lax.while_loop(unfinished, step, start)[0]

    return jax.vmap(fit_one)(l2s)


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
