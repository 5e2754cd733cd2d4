"""Contrastive losses over all pairs of a global batch, written from the global view."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.lax import Precision


def normalize(z: jax.Array) -> jax.Array:
    """Rows of unit length; a zero row stays zero, with a finite gradient.

    Dividing by the norm would give NaN gradients at zero; this is the original's z·rsqrt(max(Σz², ε)).
    """
    return z * jax.lax.rsqrt(jnp.maximum(jnp.sum(z * z, axis=-1, keepdims=True), 1e-12))


def nt_xent(
    z: jax.Array,
    temperature: float,
    *,
    gather: Callable[[jax.Array], jax.Array] = lambda x: x,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The normalised temperature-scaled cross entropy loss, NT-Xent.

    For row i of the 2n embeddings and its positive j (the other view of the same image)

        ℓ(i, j) = −log( exp(sim(zᵢ, zⱼ)/τ) / Σ_{k ≠ i} exp(sim(zᵢ, z_k)/τ) ),

    sim being the cosine; the loss is the mean of ℓ over all 2n rows (SimCLR, arXiv 2002.05709,
    equation 1 and algorithm 1). The original code returns twice this value.

    Args:
      z: embeddings `[n, 2, d]`, not normalised, of any float type; computed in at least float32.
      temperature: τ > 0.
      gather: applied to the embeddings that rows are compared with; on a mesh, a sharding
        constraint to replicated makes it the one all-gather of the step.

    Returns:
      the loss, and {contrast_accuracy, contrast_entropy}: over view a's n rows against view b's n
      columns, how often the positive is the most similar, and the entropy (nats) of the softmax.
    """
    n = z.shape[0]
    z = normalize(z.astype(jnp.promote_types(z.dtype, jnp.float32)))
    # Interleaved, [a0, b0, a1, b1, ...]: both views of an image stay on one device, and the positive
    # of row i is row i ^ 1. HIGHEST: accelerators otherwise multiply float32 in lower precision.
    rows = z.reshape(2 * n, -1)
    columns = gather(rows)
    logits = jnp.matmul(rows, columns.T, precision=Precision.HIGHEST) / temperature
    # Iotas of the full shape: of a vector of indices, the devices would gather each other's parts.
    row, column = (jax.lax.broadcasted_iota(jnp.int32, logits.shape, axis) for axis in (0, 1))
    itself = row == column
    positive = jnp.sum(jnp.where(row ^ 1 == column, logits, 0), axis=1)
    loss = jnp.mean(jax.nn.logsumexp(jnp.where(itself, -jnp.inf, logits), axis=1) - positive)

    ab = jax.lax.stop_gradient(logits.reshape(n, 2, n, 2)[:, 0, :, 1])
    p = jax.nn.softmax(ab, axis=1)
    metrics = {
        "contrast_accuracy": jnp.mean(jnp.argmax(ab, axis=1) == jnp.arange(n), dtype=z.dtype),
        "contrast_entropy": -jnp.mean(jnp.sum(p * jnp.log(p + 1e-8), axis=1)),
    }
    return loss, metrics
