"""The contrastive objectives of `config.loss`: dense, tiled or in a ring, whichever fits in memory."""

from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding

from simclr_jax.errors import SimclrError
from simclr_jax.losses import dense, multi_crop, tiled
from simclr_jax.losses.contrastive import Gather, Result
from simclr_jax.losses.objective import Objective, Sizes, of_outputs

OPTIONS = ("temperature", "normalize", "one_view", "semi_hard", "margin", "sigma")


def gather_over(mesh: Mesh) -> Gather:
    """The `gather` of a step: with the columns replicated it has one all-gather and moves no images."""

    def gather(z: jax.Array) -> jax.Array:
        return jax.lax.with_sharding_constraint(z, NamedSharding(mesh, jax.P()))

    return gather


def two_views(name: str, sizes: Sizes) -> None:
    """Raises SimclrError if there are small views, which this loss does not take."""
    if sizes.views != 2:
        raise SimclrError(
            f"config.loss.name={name!r}: takes two views, and config.augment.small_views={sizes.views - 2} "
            "adds small ones; loss.name='nt_xent' takes them"
        )


def check_room(name: str, options: Mapping[str, Any], sizes: Sizes, rows: int, columns: int) -> None:
    """Raises SimclrError if dense logits `[rows, columns]`, float32, pass `dense_mb` on a device."""
    needed = 4e-6 * rows * columns / sizes.mesh.size
    if needed > options["dense_mb"]:
        raise SimclrError(
            f"config.loss.dense_mb={options['dense_mb']:g}: {name} holds {needed:.3g} MB of logits on a "
            "device; raise it, lower config.train.batch_size, or take loss.name='nt_xent' with two views, "
            "which goes tile by tile"
        )


def create(name: str, options: Mapping[str, Any], sizes: Sizes) -> Objective:
    """The objective `name`: a loss of projections `[n, 2, d]` and labels, times `options["scale"]`.

    NT-Xent is tiled if all its logits would take more than `dense_mb` on a device, and runs in a ring if the
    gathered embeddings would take more than `gather_mb`. With small views it is `multi_crop.nt_xent`, dense.
    The other losses here are dense at any size.

    Raises:
      SimclrError: there are small views, and the loss takes two, or their logits pass `dense_mb`.
    """
    if name != "nt_xent":
        two_views(name, sizes)
    scale, mesh = options["scale"], sizes.mesh
    rows = sizes.images * sizes.views
    if sizes.views > 2:
        check_room("nt_xent with small views", options, sizes, rows, 2 * sizes.images)

        def contrast(z: jax.Array, label: jax.Array) -> Result:
            how = {option: options[option] for option in ("normalize", "one_view")}
            return multi_crop.nt_xent(z, options["temperature"], gather=gather_over(mesh), **how)

    elif name == "nt_xent" and 4e-6 * rows**2 / mesh.size > options["dense_mb"]:
        ring = 4e-6 * rows * sizes.dim > options["gather_mb"]
        how = {"mesh": mesh, "axis": mesh.axis_names[0], "ring": ring}
        how |= {option: options[option] for option in ("normalize", "one_view")}

        def contrast(z: jax.Array, label: jax.Array) -> Result:
            return tiled.nt_xent(z, options["temperature"], **how)

    else:
        pairwise = dense.create(name, **{option: options[option] for option in OPTIONS})
        gather = gather_over(mesh)

        def contrast(z: jax.Array, label: jax.Array) -> Result:
            return pairwise(z, label, gather=gather)

    def loss(outputs: Any, batch: Any, step: jax.Array) -> Result:
        value, metrics = contrast(outputs["projection"], batch["label"])
        return value * scale, metrics

    return of_outputs(loss, "projection")
