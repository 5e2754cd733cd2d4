"""Adversarial images: the least flattering accuracy of a classifier, within ±ε of every pixel."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

Logits = Callable[[jax.Array], jax.Array]  # images [n, h, w, c] in [0, 1] to [n, classes], each for itself


def fgsm(logits_fn: Logits, images: jax.Array, labels: jax.Array, epsilon: float | jax.Array) -> jax.Array:
    """The fast gradient sign method (Goodfellow et al., arXiv 1412.6572, section 4).

    Args:
      images: `[n, h, w, c]` float in [0, 1]; labels: `[n]`, of the classes; epsilon: of the same unit.

    Returns:
      images of the same shape, in [0, 1] and at most epsilon away in every pixel.
    """
    return jnp.clip(images + epsilon * _uphill(logits_fn, images, labels), 0, 1)


def pgd(
    logits_fn: Logits,
    images: jax.Array,
    labels: jax.Array,
    epsilon: float | jax.Array,
    position: jax.Array,
    *,
    steps: int = 10,
    seed: int = 0,
) -> jax.Array:
    """Projected gradient descent in ℓ∞ (Madry et al., arXiv 1706.06083, section 2.1), from a random start.

    Steps of 2.5·ε / steps, which reach the border from anywhere inside (section 5 there).

    Args:
      position: `[n]` uint32, of the images in the test set: on it and `seed` the random start depends.
      others: as of `fgsm`, and so is what it returns.
    """

    def start(number: jax.Array) -> jax.Array:
        key = jax.random.fold_in(jax.random.key(seed), number)
        return jax.random.uniform(key, images.shape[1:], images.dtype, -1, 1)

    low, high = jnp.maximum(images - epsilon, 0), jnp.minimum(images + epsilon, 1)

    def step(_, x: jax.Array) -> jax.Array:
        return jnp.clip(x + 2.5 * epsilon / steps * _uphill(logits_fn, x, labels), low, high)

    first = jnp.clip(images + epsilon * jax.vmap(start)(position), low, high)
    return jax.lax.fori_loop(0, steps, step, first)


def _uphill(logits_fn: Logits, images: jax.Array, labels: jax.Array) -> jax.Array:
    """The sign of the cross entropy's gradient by the images.

    Taken of log Σ exp(other logits) - logit of the label, which the cross entropy rises with: its gradient
    has the same sign and does not vanish in rounding where the classifier is certain.
    """

    def loss(x: jax.Array) -> jax.Array:
        logits = logits_fn(x)
        logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
        own = labels[:, None] == jnp.arange(logits.shape[1])[None, :]
        others = jax.nn.logsumexp(logits, axis=1, where=~own)
        return jnp.sum(others - jnp.sum(logits, axis=1, where=own))  # a sum: images do not meet

    return jnp.sign(jax.grad(loss)(images))
