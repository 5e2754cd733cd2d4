"""Contrastive cross entropies over all pairs of the global batch."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.lax import Precision, PrecisionLike

Gather = Callable[[jax.Array], jax.Array]
Result = tuple[jax.Array, dict[str, jax.Array]]


def all_here(z: jax.Array) -> jax.Array:
    """`gather` if one device has all rows: the identity."""
    return z


class Pairs(NamedTuple):
    """The 2n embeddings of a batch, interleaved [a0, b0, a1, b1, ...], compared with each other.

    Interleaving keeps both views of an image on one device, and the positive of row i is row i ^ 1.
    """

    logits: jax.Array  # [2n, 2n], similarity over temperature
    positive: jax.Array  # [2n], the logit of each row with its positive
    apart: jax.Array  # [2n, 2n] int32, row ^ column: 0 itself, 1 the positive, odd in the other view


def unit(z: jax.Array) -> jax.Array:
    """Rows of unit length; a zero row stays zero, with a finite gradient.

    Dividing by the norm would give NaN gradients at zero; this is the original's z·rsqrt(max(Σz², ε)).
    """
    return z * jax.lax.rsqrt(jnp.maximum(jnp.sum(z * z, axis=-1, keepdims=True), 1e-12))


def compare(
    z: jax.Array,
    temperature: float,
    normalize: bool,
    gather: Gather,
    precision: PrecisionLike = Precision.HIGHEST,
) -> Pairs:
    """All pairs of embeddings `[n, 2, d]`, in at least float32; the arguments are `nt_xent`'s."""
    z = z.astype(jnp.promote_types(z.dtype, jnp.float32))
    rows = (unit(z) if normalize else z).reshape(2 * z.shape[0], -1)
    # HIGHEST: accelerators otherwise multiply float32 in lower precision.
    logits = jnp.matmul(rows, gather(rows).T, precision=precision) / temperature
    # Iotas of the full shape need no communication; a sharded vector of indices would be gathered.
    row, column = (jax.lax.broadcasted_iota(jnp.int32, logits.shape, axis) for axis in (0, 1))
    apart = row ^ column
    return Pairs(logits, jnp.sum(jnp.where(apart == 1, logits, 0), axis=1), apart)


def negatives(pairs: Pairs, one_view: bool) -> jax.Array:
    """Mask `[2n, 2n]` of each row's negatives: other images' views, all or only the positive's."""
    other = pairs.apart > 1
    return other & (pairs.apart % 2 == 1) if one_view else other


def metrics(pairs: Pairs) -> dict[str, jax.Array]:
    """contrast_accuracy and contrast_entropy, as `nt_xent` describes them; without gradient."""
    n = len(pairs.logits) // 2
    return agreement(pairs.logits.reshape(n, 2, n, 2)[:, 0, :, 1])


def agreement(ab: jax.Array) -> dict[str, jax.Array]:
    """The metrics of view a's rows against view b's columns, logits `[n, n]`."""
    ab = jax.lax.stop_gradient(ab)
    p = jax.nn.softmax(ab, axis=1)
    return {
        "contrast_accuracy": jnp.mean(jnp.argmax(ab, axis=1) == jnp.arange(len(ab)), dtype=ab.dtype),
        "contrast_entropy": -jnp.mean(jnp.sum(p * jnp.log(p + 1e-8), axis=1)),
    }


def _log_sum_exp(pairs: Pairs, kept: jax.Array) -> jax.Array:
    return jax.nn.logsumexp(jnp.where(kept, pairs.logits, -jnp.inf), axis=1)


def nt_xent(
    z: jax.Array,
    temperature: float,
    *,
    normalize: bool = True,
    one_view: bool = False,
    gather: Gather = all_here,
    precision: PrecisionLike = Precision.HIGHEST,
) -> Result:
    """The normalised temperature-scaled cross entropy loss, NT-Xent.

    For row i of the 2n embeddings and its positive j (the other view of the same image)

        ℓ(i, j) = −log( exp(sim(zᵢ, zⱼ)/τ) / Σ_{k ≠ i} exp(sim(zᵢ, z_k)/τ) ),

    sim being the cosine; the loss is the mean of ℓ over all 2n rows (SimCLR, arXiv 2002.05709,
    equation 1 and algorithm 1). The original code returns twice this value.

    Args:
      z: embeddings `[n, 2, d]`, not normalised, of any float type; computed in at least float32.
      temperature: τ > 0, in units of the similarity.
      normalize: False compares by the dot product instead of the cosine (the paper's table 5).
      one_view: True keeps only the negatives from the positive's view, so a row of view a is compared
        with view b only (the paper's table 4, section 5.1).
      gather: function applied to the embeddings of the columns. On a mesh it is a sharding constraint to
        replicated, the only all-gather of the step.
      precision: of the matrix product of rows and columns. HIGHEST is float32; for the others see
        docs/benchmarks.md.

    Returns:
      the loss, and {contrast_accuracy, contrast_entropy}: over view a's n rows against view b's n
      columns, how often the positive is the most similar, and the entropy (nats) of the softmax.
    """
    pairs = compare(z, temperature, normalize, gather, precision)
    others = negatives(pairs, one_view) | (pairs.apart == 1)
    return jnp.mean(_log_sum_exp(pairs, others) - pairs.positive), metrics(pairs)


def supcon(
    z: jax.Array,
    label: jax.Array,
    temperature: float,
    *,
    normalize: bool = True,
    gather: Gather = all_here,
) -> Result:
    """The supervised contrastive loss: NT-Xent with every view of the same class as a positive.

    For row i and its positives P(i), the other view of its image and both views of its class's images,

        ℓ(i) = −1/|P(i)| Σ_{p ∈ P(i)} log( exp(sim(zᵢ, z_p)/τ) / Σ_{k ≠ i} exp(sim(zᵢ, z_k)/τ) ),

    averaged over all 2n rows (Khosla et al., arXiv 2004.11362, equation 2, L_out). There is no factor
    τ/τ_base as in the authors' code. Where no two images share a class, this is NT-Xent.

    Args:
      z, temperature, normalize: as for `nt_xent`.
      label: class of each image `[n]`, integers; −1 is unlabelled: such an image's one positive is its
        own other view, and it is no other's.
      gather: as for `nt_xent`, applied to the labels too.

    Returns:
      the loss and the metrics of `nt_xent`; the accuracy counts only the image's own other view.
    """
    pairs = compare(z, temperature, normalize, gather)
    rows = jnp.repeat(label, 2)[:, None]
    columns = jnp.repeat(gather(label), 2)[None, :]
    alike = (rows == columns) & (rows >= 0) & (pairs.apart > 0) | (pairs.apart == 1)
    mean = jnp.sum(jnp.where(alike, pairs.logits, 0), axis=1) / jnp.sum(alike, axis=1)
    return jnp.mean(_log_sum_exp(pairs, pairs.apart > 0) - mean), metrics(pairs)


def dcl(
    z: jax.Array,
    temperature: float,
    *,
    normalize: bool = True,
    one_view: bool = False,
    gather: Gather = all_here,
) -> Result:
    """The decoupled contrastive loss: NT-Xent without the positive in the denominator.

    For row i and its positive j

        ℓ(i, j) = −sim(zᵢ, zⱼ)/τ + log Σ_{k ≠ i, j} exp(sim(zᵢ, z_k)/τ),

    averaged over all 2n rows (Yeh et al., arXiv 2110.06848, section 3). The gradient then does not
    vanish where the positive is already close, which helps small batches.

    Args:
      z: as for `nt_xent`, with n ≥ 2: one image has no negatives, and its loss is −∞.
      temperature, normalize, one_view, gather: as for `nt_xent`.

    Returns:
      the loss, which may be negative, and the metrics of `nt_xent`.
    """
    pairs = compare(z, temperature, normalize, gather)
    return jnp.mean(_log_sum_exp(pairs, negatives(pairs, one_view)) - pairs.positive), metrics(pairs)


def dclw(
    z: jax.Array,
    temperature: float,
    *,
    sigma: float = 0.5,
    normalize: bool = True,
    one_view: bool = False,
    gather: Gather = all_here,
) -> Result:
    """The decoupled contrastive loss with more weight on positives that are far apart.

    `dcl` with the positive term of image i's two rows multiplied by the negative von Mises-Fisher weight

        wᵢ = 2 − exp(cᵢ/σ) / meanₖ exp(cₖ/σ),

    cᵢ being the cosine of the image's two views, the mean being over the n images (Yeh et al.,
    arXiv 2110.06848, section 3). No gradient flows through w.

    Args:
      z, temperature, normalize, one_view, gather: as for `dcl`; w is of cosines in any case.
      sigma: σ > 0, in units of the cosine; large values make all weights 1.

    Returns:
      the loss, which may be negative, and the metrics of `nt_xent`.
    """
    pairs = compare(z, temperature, normalize, gather)
    n = z.shape[0]
    a, b = jnp.moveaxis(unit(z.astype(pairs.logits.dtype)), 1, 0)
    # A softmax: exp(c/σ) itself overflows at small σ.
    weight = jax.lax.stop_gradient(2 - n * jax.nn.softmax(jnp.sum(a * b, axis=-1) / sigma))
    positive = jnp.repeat(weight, 2) * pairs.positive
    return jnp.mean(_log_sum_exp(pairs, negatives(pairs, one_view)) - positive), metrics(pairs)
