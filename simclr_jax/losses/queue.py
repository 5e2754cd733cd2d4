"""NT-Xent with a memory: a queue of a slow encoder's projections as further negatives."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.lax import Precision

from simclr_jax.losses.contrast import gather_over, two_views
from simclr_jax.losses.contrastive import Gather, Result, all_here, compare, metrics, negatives, unit
from simclr_jax.losses.objective import Objective, Sizes

Memory = dict[str, jax.Array]  # {rows [length, d], newest first; filled, scalar int32: how many there are}


def nt_xent(
    z: jax.Array,
    memory: Memory,
    temperature: float,
    *,
    normalize: bool = True,
    one_view: bool = False,
    gather: Gather = all_here,
) -> Result:
    """`contrastive.nt_xent` with the embeddings q in `memory` as further negatives of every row.

    For row i of the 2n embeddings, its positive j and its negatives N(i) in the batch, with s = sim/τ,

        ℓ(i, j) = −log( e^{s(zᵢ, zⱼ)} / (e^{s(zᵢ, zⱼ)} + Σ_{k ∈ N(i)} e^{s(zᵢ, z_k)} + Σ_q e^{s(zᵢ, q)}) ),

    averaged over all rows. SimCLRv2 (arXiv 2006.10029, section 2) adds MoCo's memory so: an encoder whose
    weights are a moving average, whose outputs are kept as negatives. The queue is MoCo's (arXiv 1911.05722,
    section 3.2); unlike there the positive and the batch's negatives are SimCLR's, of the encoder itself.

    Args:
      z, temperature, normalize, gather: as for `contrastive.nt_xent`.
      memory: its rows have unit length if normalize is True; those after the first `filled` do not count.
      one_view: as for `contrastive.nt_xent`, of the batch's negatives; the queue has both views.

    Returns:
      the loss and the metrics of `contrastive.nt_xent`. With an empty memory it is that loss.
    """
    pairs = compare(z, temperature, normalize, gather)
    here = jnp.where(negatives(pairs, one_view) | (pairs.apart == 1), pairs.logits, -jnp.inf)
    z = z.astype(pairs.logits.dtype)
    rows = (unit(z) if normalize else z).reshape(2 * z.shape[0], -1)
    stored = jnp.matmul(rows, memory["rows"].astype(z.dtype).T, precision=Precision.HIGHEST) / temperature
    known = jax.lax.broadcasted_iota(jnp.int32, stored.shape, 1) < memory["filled"]
    # Two sums and not one of joined columns, which a mesh would have to move.
    before = jax.nn.logsumexp(jnp.where(known, stored, -jnp.inf), axis=1)
    return jnp.mean(jnp.logaddexp(jax.nn.logsumexp(here, axis=1), before) - pairs.positive), metrics(pairs)


def enqueue(memory: Memory, keys: jax.Array, normalize: bool) -> Memory:
    """The memory after a step: the embeddings `keys` `[n, 2, d]` come in, the oldest go."""
    rows = memory["rows"]
    keys = keys.astype(rows.dtype)
    keys = (unit(keys) if normalize else keys).reshape(-1, rows.shape[1])
    filled = jnp.minimum(memory["filled"] + len(keys), len(rows)).astype(jnp.int32)
    return {"rows": jnp.concatenate([keys, rows])[: len(rows)], "filled": filled}


def create(name: str, options: Mapping[str, Any], sizes: Sizes) -> Objective:
    """The objective `queue`; its state is the memory, empty at first, and the moving average."""
    two_views(name, sizes)
    own, gather = options[name], gather_over(sizes.mesh)
    how = {option: options[option] for option in ("normalize", "one_view")}

    def init(rng: jax.Array) -> tuple[dict, Memory]:
        dtype = jnp.zeros(0).dtype  # float64 where JAX has it, as moving statistics
        return {}, {"rows": jnp.zeros((own["length"], sizes.dim), dtype), "filled": jnp.int32(0)}

    def loss(params: Any, extra: Memory, outputs: Any, batch: Any, step: jax.Array) -> Result:
        z = outputs["projection"]
        value, found = nt_xent(z, extra, options["temperature"], gather=gather, **how)
        return value * options["scale"], found

    def update(params: Any, extra: Memory, outputs: Any) -> Memory:
        return enqueue(extra, outputs["average"], options["normalize"])

    needs = ("projection", "average")
    return Objective(loss, needs=needs, init=init, update=update, average=own["decay"])
