"""The contrastive objectives of `config.loss`: dense, tiled or in a ring, whichever fits in memory."""

from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import NamedSharding

from simclr_jax import losses
from simclr_jax.losses import tiled
from simclr_jax.losses.objective import Objective, Sizes, of_outputs

OPTIONS = ("temperature", "normalize", "one_view", "semi_hard", "margin", "sigma")


def create(name: str, options: Mapping[str, Any], sizes: Sizes) -> Objective:
    """The objective `name`: a loss of projections `[n, 2, d]` and labels, times `options["scale"]`.

    NT-Xent is tiled if all its logits would take more than `dense_mb` on a device, and runs in a ring if the
    gathered embeddings would take more than `gather_mb`.
    """
    scale, mesh = options["scale"], sizes.mesh
    rows = sizes.images * sizes.views
    if name == "nt_xent" and 4e-6 * rows**2 / mesh.size > options["dense_mb"]:
        ring = 4e-6 * rows * sizes.dim > options["gather_mb"]
        how = {"mesh": mesh, "axis": mesh.axis_names[0], "ring": ring}
        how |= {option: options[option] for option in ("normalize", "one_view")}

        def contrast(z: jax.Array, label: jax.Array) -> losses.Result:
            return tiled.nt_xent(z, options["temperature"], **how)

    else:
        dense = losses.create(name, **{option: options[option] for option in OPTIONS})

        def gather(z: jax.Array) -> jax.Array:
            # With the columns replicated the step has one all-gather and moves no images.
            return jax.lax.with_sharding_constraint(z, NamedSharding(mesh, jax.P()))

        def contrast(z: jax.Array, label: jax.Array) -> losses.Result:
            return dense(z, label, gather=gather)

    def loss(outputs: Any, batch: Any, step: jax.Array) -> losses.Result:
        value, metrics = contrast(outputs["projection"], batch["label"])
        return value * scale, metrics

    return of_outputs(loss, "projection")
