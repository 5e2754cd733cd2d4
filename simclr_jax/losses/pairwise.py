"""Losses that see a row's negatives one by one: logistic and margin (SimCLR, section 5.1)."""

import jax
import jax.numpy as jnp

from simclr_jax.losses.contrastive import Gather, Pairs, Result, all_here, compare, metrics, negatives


def semi_hard_negatives(pairs: Pairs, kept: jax.Array) -> jax.Array:
    """For each row, the most similar of the `kept` negatives that are less similar than the positive.

    A mask `[2n, 2n]` with one True a row, or none if no negative is less similar; ties go to the
    first. In terms of similarity this is FaceNet's choice: the closest negative that is further away than
    the positive (Schroff et al., arXiv 1503.03832, section 3.2).
    """
    logits, positive = jax.lax.stop_gradient((pairs.logits, pairs.positive))
    easier = kept & (logits < positive[:, None])
    hardest = jnp.argmax(jnp.where(easier, logits, -jnp.inf), axis=1)
    return easier & (jax.lax.broadcasted_iota(jnp.int32, logits.shape, 1) == hardest[:, None])


def _mean_over_negatives(terms: jax.Array, pairs: Pairs, one_view: bool, semi_hard: bool) -> jax.Array:
    """The mean of each row's `terms` `[2n, 2n]` over its negatives, 0 for a row that has none."""
    kept = negatives(pairs, one_view)
    if semi_hard:
        kept = semi_hard_negatives(pairs, kept)
    return jnp.sum(jnp.where(kept, terms, 0), axis=1) / jnp.maximum(jnp.sum(kept, axis=1), 1)


def nt_logistic(
    z: jax.Array,
    temperature: float,
    *,
    normalize: bool = True,
    one_view: bool = False,
    semi_hard: bool = False,
    gather: Gather = all_here,
) -> Result:
    """The normalised temperature-scaled logistic loss, NT-Logistic.

    For row i, its positive j and its negatives N(i)

        ℓ(i) = −log σ(sim(zᵢ, zⱼ)/τ) − 1/|N(i)| Σ_{k ∈ N(i)} log σ(−sim(zᵢ, z_k)/τ),

    σ being the logistic function, averaged over all 2n rows (SimCLR, arXiv 2002.05709, table 2). The
    paper writes it for a single negative; the mean keeps both terms of one size whatever the batch.

    Args:
      z, temperature, normalize, one_view, gather: as for `nt_xent`.
      semi_hard: True keeps one negative a row, the most similar of those that are less similar than the
        positive (section 5.1; "sh" in table 4). A row without one has its positive term alone. No
        gradient flows through the choice.

    Returns:
      the loss and the metrics of `nt_xent`.
    """
    pairs = compare(z, temperature, normalize, gather)
    pushed = _mean_over_negatives(jax.nn.softplus(pairs.logits), pairs, one_view, semi_hard)
    return jnp.mean(jax.nn.softplus(-pairs.positive) + pushed), metrics(pairs)


def margin_triplet(
    z: jax.Array,
    margin: float,
    *,
    normalize: bool = True,
    one_view: bool = False,
    semi_hard: bool = False,
    gather: Gather = all_here,
) -> Result:
    """The margin triplet loss, in similarities.

    For row i, its positive j and its negatives N(i)

        ℓ(i) = 1/|N(i)| Σ_{k ∈ N(i)} max(sim(zᵢ, z_k) − sim(zᵢ, zⱼ) + m, 0),

    averaged over all 2n rows (SimCLR, arXiv 2002.05709, table 2, there for a single negative). The
    squared distance of unit vectors is 2 − 2·sim, so FaceNet's margin α is m = α/2 here.

    Args:
      z, normalize, one_view, gather: as for `nt_xent`.
      margin: m ≥ 0, in units of the similarity; cosines lie in [−1, 1].
      semi_hard: as for `nt_logistic`; a row without such a negative has the loss 0. One outside the
        margin has it too, so what counts is within the margin, as in the papers.

    Returns:
      the loss and the metrics of `nt_xent` at temperature 1.
    """
    pairs = compare(z, 1.0, normalize, gather)
    # relu: maximum would give half a gradient at the hinge.
    hinge = jax.nn.relu(pairs.logits - pairs.positive[:, None] + margin)
    return jnp.mean(_mean_over_negatives(hinge, pairs, one_view, semi_hard)), metrics(pairs)
