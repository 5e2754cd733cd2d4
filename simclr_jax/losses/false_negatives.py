"""NT-Xent without the negatives that look like positives."""

import jax
import jax.numpy as jnp

from simclr_jax.losses.contrastive import Gather, Pairs, Result, all_here, compare, metrics, negatives


def find(cosines: Pairs, kept: jax.Array, threshold: float, most: int) -> jax.Array:
    """Mask `[2n, 2n]` of the false negatives among the `kept` ones, without gradient; see `fnc`."""
    n = len(cosines.logits) // 2
    # Both views of an image are the support of both its rows. Rounding can lift a cosine above 1.
    by_image = jnp.max(cosines.logits.reshape(n, 2, 2 * n), axis=1)
    scores = jnp.minimum(jnp.repeat(by_image, 2, axis=0), 1)
    scores = jax.lax.stop_gradient(jnp.where(kept, scores, -jnp.inf))
    if most < 2 * n:
        least = jax.lax.top_k(scores, most)[0][:, -1:]
        kept &= scores >= least
    return kept & (scores > threshold)


def fnc(
    z: jax.Array,
    temperature: float,
    *,
    threshold: float = 0.7,
    most: int = 10,
    attract: bool = False,
    normalize: bool = True,
    one_view: bool = False,
    gather: Gather = all_here,
) -> Result:
    """NT-Xent with false negative cancellation: likely positives leave the denominator, or become positives.

    The score of an embedding z_k for image m is its larger cosine with the image's two views, its support.
    The false negatives F of the image's rows are the negatives that are among the `most` with the highest
    scores and score above `threshold`. Elimination takes them from the denominator, with s = sim/τ:

        ℓ(i) = −log( e^{s(i, j)} / Σ_{k ≠ i, k ∉ F} e^{s(i, k)} );

    attraction takes them as further positives:

        ℓ(i) = −1/(1 + |F|) Σ_{p ∈ F ∪ {j}} log( e^{s(i, p)} / Σ_{k ≠ i} e^{s(i, k)} ),

    averaged over all 2n rows (Huynh et al., arXiv 2011.11765, false negative elimination and attraction; the
    largest similarity, top 10 and threshold 0.7 are the authors' code, whose support has further views). No
    gradient flows through the choice of F. Threshold 1 or `most` = 0 leaves F empty: the loss is `nt_xent`.

    Args:
      z, temperature, normalize, one_view, gather: as for `nt_xent`.
      threshold: a cosine, also where normalize is False.
      most: negatives of a row in F at most; more where several have the same score.
      attract: True for attraction.

    Returns:
      the loss, the metrics of `nt_xent`, and false_negatives, the mean size of F.
    """
    pairs = compare(z, temperature, normalize, gather)
    kept = negatives(pairs, one_view)
    false = find(compare(z, 1.0, True, gather), kept, threshold, most) if most else jnp.zeros_like(kept)
    counted = (pairs.apart == 1) | (kept if attract else kept & ~false)
    log_sum = jax.nn.logsumexp(jnp.where(counted, pairs.logits, -jnp.inf), axis=1)
    positive, size = pairs.positive, jnp.sum(false, axis=1, dtype=pairs.logits.dtype)
    if attract:
        positive = (positive + jnp.sum(jnp.where(false, pairs.logits, 0), axis=1)) / (1 + size)
    return jnp.mean(log_sum - positive), metrics(pairs) | {"false_negatives": jnp.mean(size)}
