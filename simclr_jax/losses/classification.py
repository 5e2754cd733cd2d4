"""Losses of a classifier: from labels, from a teacher."""

import jax
import jax.numpy as jnp
import optax


def classification(logits: jax.Array, label: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean cross entropy and accuracy of logits `[n, v, classes]`; label `[n]`; -1 is ignored."""
    label = jnp.broadcast_to(label[:, None], logits.shape[:2])
    known = label >= 0
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.maximum(label, 0))
    count = jnp.maximum(jnp.sum(known), 1)
    right = known & (jnp.argmax(logits, axis=-1) == label)
    return jnp.sum(jnp.where(known, losses, 0)) / count, jnp.sum(right) / count


def distillation(student: jax.Array, teacher: jax.Array, temperature: float = 1.0) -> jax.Array:
    """The mean over images of T² · CE(softmax(teacher / T), softmax(student / T)).

    SimCLRv2 (arXiv 2006.10029), equation 2, with the factor T² of Hinton et al. (arXiv 1503.02531), as in
    the original: it makes the size of the gradient independent of T.

    Args:
      student, teacher: logits `[n, classes]`; no gradient flows to the teacher.
      temperature: T > 0.
    """
    dtype = jnp.promote_types(student.dtype, jnp.float32)
    student, teacher = student.astype(dtype), jax.lax.stop_gradient(teacher).astype(dtype)
    labels = jax.nn.softmax(teacher / temperature, axis=-1)
    return temperature**2 * jnp.mean(optax.softmax_cross_entropy(student / temperature, labels))
