"""NT-Xent of more than two views: every view is compared with the large ones."""

import jax
import jax.numpy as jnp
from jax.lax import Precision

from simclr_jax.losses.contrastive import Gather, Result, agreement, all_here, unit


def nt_xent(
    z: jax.Array,
    temperature: float,
    *,
    normalize: bool = True,
    one_view: bool = False,
    gather: Gather = all_here,
) -> Result:
    """`contrastive.nt_xent` of v views, of which the first two are large.

    The columns are the 2n large views. Row i is any of the v·n views; its positives P(i) are the large
    views of its own image other than itself (one for a large view, two for a small one), its negatives N(i)
    the large views of other images. With s = sim/τ

        ℓ(i, p) = −log( e^{s(i, p)} / (e^{s(i, p)} + Σ_{k ∈ N(i)} e^{s(i, k)}) ),

    averaged over all pairs (i, p). This is ours, in the spirit of SwAV's multi-crop (Caron et al., arXiv
    2006.09882, section 3.2), where only the full-resolution crops give codes and all others predict them.
    For v = 2 it is `contrastive.nt_xent`, apart from rounding.

    Args:
      z: embeddings `[n, v, d]`, v ≥ 2.
      temperature, normalize, gather: as for `contrastive.nt_xent`; only the large views are gathered.
      one_view: True keeps only the negatives from the positive's view.

    Returns:
      the loss and the metrics of `contrastive.nt_xent`, of the large views.
    """
    n, v = z.shape[:2]
    z = z.astype(jnp.promote_types(z.dtype, jnp.float32))
    z = unit(z) if normalize else z
    columns = gather(z[:, :2].reshape(2 * n, -1))
    logits = jnp.matmul(z.reshape(v * n, -1), columns.T, precision=Precision.HIGHEST) / temperature
    logits = logits.reshape(n, v, n, 2)
    own, view, other, large = (jax.lax.broadcasted_iota(jnp.int32, logits.shape, axis) for axis in range(4))
    positive = jnp.sum(jnp.where(own == other, logits, 0), axis=2)
    pushed = jax.nn.logsumexp(jnp.where(own == other, -jnp.inf, logits), axis=2)
    if not one_view:
        pushed = jnp.broadcast_to(jax.nn.logsumexp(pushed, axis=2, keepdims=True), positive.shape)
    pairs = view[:, :, 0] != large[:, :, 0]  # a large view is not its own positive
    losses = jnp.where(pairs, jnp.logaddexp(positive, pushed) - positive, 0)
    return jnp.sum(losses) / (n * (2 * v - 2)), agreement(logits[:, 0, :, 1])
