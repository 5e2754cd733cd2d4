"""NT-Xent against negatives that gradient ascent has moved."""

import functools

import jax
import jax.numpy as jnp
from jax.lax import Precision

from simclr_jax.losses.contrastive import (
    Gather,
    Pairs,
    Result,
    all_here,
    compare,
    metrics,
    negatives,
    nt_xent,
    unit,
)


def _into_cap(moved: jax.Array, centre: jax.Array, radius: float) -> jax.Array:
    """The points of the unit sphere nearest `moved` that are at most `radius` from `centre`, by the chord."""
    moved = unit(moved)
    along = jnp.sum(moved * centre, axis=-1, keepdims=True)
    least = 1 - radius**2 / 2  # cosine of two unit vectors whose difference has this length
    edge = least * centre + (1 - least**2) ** 0.5 * unit(moved - along * centre)
    return jnp.where(along < least, edge, moved)


def _into_ball(moved: jax.Array, centre: jax.Array, radius: float) -> jax.Array:
    """The points at most `radius` from `centre` that are nearest `moved`."""
    way = moved - centre
    length = jnp.sqrt(jnp.maximum(jnp.sum(way * way, axis=-1, keepdims=True), 1e-12))
    return centre + way * jnp.minimum(1, radius / length)


def _row_losses(
    columns: jax.Array, rows: jax.Array, pairs: Pairs, kept: jax.Array, temperature: float, gather: Gather
) -> jax.Array:
    """NT-Xent of each row `[2n]` where the negatives are `columns`; the positives are those of `pairs`."""
    logits = jnp.matmul(rows, gather(columns).T, precision=Precision.HIGHEST) / temperature
    logits = jnp.where(kept, logits, jnp.where(pairs.apart == 1, pairs.logits, -jnp.inf))
    return jax.nn.logsumexp(logits, axis=1) - pairs.positive


def adversarial(
    z: jax.Array,
    temperature: float,
    *,
    steps: int = 3,
    step: float = 0.05,
    radius: float = 0.1,
    normalize: bool = True,
    one_view: bool = False,
    gather: Gather = all_here,
) -> Result:
    """NT-Xent with adversarial negatives: they move to where the loss is larger, the positives stay.

    For row i, its positive j and its negatives N(i), with s(u, v) = sim(u, v)/τ,

        ℓ(i) = −log( e^{s(zᵢ, zⱼ)} / (e^{s(zᵢ, zⱼ)} + Σ_{k ∈ N(i)} e^{s(zᵢ, z_k + δ_k)}) ),

    averaged over all 2n rows. One δ_k for each embedding, the same for all rows, comes from projected
    gradient ascent (Madry et al., arXiv 1706.06083, section 2.1, with the ℓ₂ norm) on the embeddings
    instead of the images: from δ = 0, `steps` times

        δ_k ← Π( δ_k + step · ∇ / ‖∇‖ ),   ∇ = ∂ Σᵢ ℓ(i) / ∂ δ_k.

    Unit embeddings stay on the sphere: ∇ is its tangent part, and Π projects onto the cap whose chord is
    `radius`. Otherwise Π projects onto the ball ‖δ_k‖ ≤ radius. δ has no gradient; z_k has. To train
    against negatives that maximise the loss is the idea of AdCo (Hu et al., arXiv 2011.08435), which learns
    them instead; steps on the embeddings are the "TAN" of tutorials, and their details here are ours.

    Args:
      z, temperature, normalize, one_view, gather: as for `nt_xent`.
      steps: number of ascents.
      step: length of one, in units of the embeddings (of length 1 if normalised).
      radius: how far a negative may move, in the same units; at most 2 if normalised.

    Returns:
      the loss and the metrics of `nt_xent`, of the negatives before they move. With 0 steps or radius 0
      both are `nt_xent`'s, to the bit.
    """
    if not steps or not radius:
        return nt_xent(z, temperature, normalize=normalize, one_view=one_view, gather=gather)
    pairs = compare(z, temperature, normalize, gather)
    z = z.astype(pairs.logits.dtype)
    rows = (unit(z) if normalize else z).reshape(2 * z.shape[0], -1)
    kept, still = negatives(pairs, one_view), jax.lax.stop_gradient(rows)
    fixed = Pairs(*(jax.lax.stop_gradient(part) for part in pairs))
    total = functools.partial(
        _row_losses, rows=still, pairs=fixed, kept=kept, temperature=temperature, gather=gather
    )

    def ascend(_: int, moved: jax.Array) -> jax.Array:
        slope = jax.grad(lambda columns: jnp.sum(total(columns)))(moved)
        if not normalize:
            return _into_ball(moved + step * unit(slope), still, radius)
        slope -= jnp.sum(slope * moved, axis=-1, keepdims=True) * moved
        return _into_cap(moved + step * unit(slope), still, radius)

    way = jax.lax.stop_gradient(jax.lax.fori_loop(0, steps, ascend, still) - still)
    return jnp.mean(_row_losses(rows + way, rows, pairs, kept, temperature, gather)), metrics(pairs)
