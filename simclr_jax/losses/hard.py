"""Contrastive cross entropies that estimate the negatives they want: debiased, and hard ones."""

import jax
import jax.numpy as jnp

from simclr_jax.losses.contrastive import Gather, Pairs, Result, all_here, compare, metrics, negatives


def _weights(logits: jax.Array, kept: jax.Array, count: jax.Array, beta: float) -> jax.Array:
    """Importance weights `[2n, 2n]` ∝ exp(β · logit) of each row's `kept` negatives; their mean is 1."""
    # A finite number below every logit: a row without negatives would be all -inf, whose softmax is NaN.
    return count * jax.nn.softmax(jnp.where(kept, beta * logits, -1e30), axis=1)


def _against_estimate(
    pairs: Pairs, temperature: float, tau_plus: float, beta: float, one_view: bool
) -> jax.Array:
    """−log(e^p / (e^p + N·g)) of each row `[2n]`, p being its positive's logit; N·g is `hcl`'s."""
    kept = negatives(pairs, one_view)
    count = jnp.sum(kept, axis=1, keepdims=True, dtype=pairs.logits.dtype)
    # All terms are relative to the row's largest, as in a logsumexp: exp(1/τ) itself overflows at small τ.
    others = jnp.where(kept | (pairs.apart == 1), pairs.logits, -jnp.inf)
    top = jax.lax.stop_gradient(jnp.max(others, axis=1))
    terms = jnp.where(kept, jnp.exp(others - top[:, None]), 0)
    if beta:
        terms = terms * _weights(pairs.logits, kept, count, beta)
    positive, count = jnp.exp(pairs.positive - top), count[:, 0]
    estimate = (jnp.sum(terms, axis=1) - tau_plus * count * positive) / (1 - tau_plus)
    least = count * jnp.exp(-1 / temperature - top)
    return jnp.log(positive + jnp.maximum(estimate, least)) + top - pairs.positive


def debiased(
    z: jax.Array,
    temperature: float,
    *,
    tau_plus: float = 0.1,
    one_view: bool = False,
    gather: Gather = all_here,
) -> Result:
    """The debiased contrastive loss: NT-Xent less what negatives of the row's own class add.

    For row i, its positive j and its N negatives N(i), with s = sim / τ and sim the cosine,

        ℓ(i, j) = −log( e^{s(i, j)} / (e^{s(i, j)} + N·g) ),
        g = max( (1/N Σ_{k ∈ N(i)} e^{s(i, k)} − τ⁺ e^{s(i, j)}) / (1 − τ⁺), e^{−1/τ} ),

    averaged over all 2n rows (Chuang et al., arXiv 2007.00224, equations 7 and 8 with M = 1 positive).
    e^{−1/τ} is the smallest value of e^s, so the loss compares by cosines only. At τ⁺ = 0 the maximum is
    always its first argument: value and gradient are those of `nt_xent`, apart from rounding.

    Args:
      z, temperature, one_view, gather: as for `nt_xent`.
      tau_plus: τ⁺ in [0, 1), the probability that a negative is of the row's own class.

    Returns:
      the loss and the metrics of `nt_xent`.
    """
    return hcl(z, temperature, beta=0.0, tau_plus=tau_plus, one_view=one_view, gather=gather)


def hcl(
    z: jax.Array,
    temperature: float,
    *,
    beta: float = 1.0,
    tau_plus: float = 0.1,
    one_view: bool = False,
    gather: Gather = all_here,
) -> Result:
    """The loss with hard negative sampling: `debiased`, with more weight on similar negatives.

    In g the mean over the N negatives has the weights

        w_k = e^{β·s(i, k)} / (1/N Σ_{m ∈ N(i)} e^{β·s(i, m)}),

    whose own mean is 1 (Robinson et al., arXiv 2010.04592, equation 4 with the importance weights below it;
    their embeddings have the length τ^{−1/2}, which puts the temperature into s). As in the authors' code a
    gradient flows through w. β = 0 is `debiased`, to the bit.

    Args:
      z, temperature, tau_plus, one_view, gather: as for `debiased`.
      beta: β ≥ 0, the concentration on hard negatives.

    Returns:
      the loss and the metrics of `nt_xent`.
    """
    pairs = compare(z, temperature, True, gather)
    return jnp.mean(_against_estimate(pairs, temperature, tau_plus, beta, one_view)), metrics(pairs)
