"""What the compiled train step moves between this machine's devices, by kind of collective.

Compiles from shapes alone: batches and networks that no memory here could hold are no obstacle.
"""

import math
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from bench import hlo, table
from simclr_jax import run_summary, sharding
from simclr_jax.config import checks
from simclr_jax.data import splits
from simclr_jax.doctor import ahead
from simclr_jax.errors import SimclrError


def measure(config: ConfigDict, *, images_per_device: int = 0) -> dict:
    """Bytes and numbers of collectives; `images_per_device` sets the batch, 0 keeps the config's."""
    config = config.copy_and_resolve_references()
    mesh = sharding.make_mesh(config.mesh.devices)
    if images_per_device:
        config.train.batch_size, config.train.microbatch = images_per_device * mesh.size, 0
    config.eval.batch_size = mesh.size  # of no account here
    try:
        checks.validate_run(config, config.train.batch_size, mesh.size)
    except SimclrError as error:
        raise SimclrError(f"{error}; or set --images_per_device") from None
    lowered, params, whole_flops = lower(config, mesh)
    compiled = lowered.compile()
    found = hlo.collectives(compiled.as_text())
    side, channels = config.data.image_size, config.data.channels
    shapes = [x.shape for x in jax.tree.leaves(params)]
    large = hlo.image_sized(found, (side, side, channels), shapes)
    memory = compiled.memory_analysis()
    return {
        "part": "collectives",
        "devices": mesh.size,
        "batch_size": config.train.batch_size,
        "bytes": hlo.bytes_by_kind(found),
        "count": sum(c.times for c in found),
        "image_sized": [
            {"kind": c.kind, "arrays": list(map(str, c.arrays)), "source": c.source} for c in large
        ],
        "parameters": sum(math.prod(shape) for shape in shapes),
        "flops_per_step": whole_flops,
        "temporary_bytes_per_device": memory.temp_size_in_bytes if memory else None,
        "config": config.to_dict(),
        **run_summary.environment(),
    }


def lower(config: ConfigDict, mesh: Mesh) -> tuple[jax.stages.Lowered, Any, float | None]:
    """The step of `config` on `mesh`, its parameters' shapes and the FLOPs of the whole batch.

    Args:
      mesh: its devices need not be here.

    Raises:
      SimclrError: the config begins with another run.
    """
    if config.start.workdir or config.task != "pretrain":
        raise SimclrError(f"config.task={config.task!r}: give the config of a pretraining that starts afresh")
    config.train.steps, config.train.steps_per_call = config.train.steps or 1, 1
    images = ahead.unread(config.train.batch_size)
    built = ahead.build(config, images, mesh)
    given = ahead.arguments(config, images, built, mesh)
    return ahead.lower(built, given), given.state.params, _whole_flops(config, images)


def _whole_flops(config: ConfigDict, images: splits.Splits) -> float | None:
    """FLOPs of the same step on one device of this machine, without loops."""
    config = config.copy_and_resolve_references()
    config.train.microbatch, config.loss.dense_mb = 0, 1e9
    mesh = sharding.make_mesh(1)
    built = ahead.build(config, images, mesh)
    given = ahead.arguments(config, images, built, mesh)
    return ahead.model_flops(built, given.state, given.call[0])


def show(result: dict) -> None:
    """The table."""
    show_rows([result], f"collectives of a train step, {result['device']['kind']}")


def show_rows(results: list[dict], title: str) -> None:
    """A row a result, a column a kind."""
    absent = [kind for kind in hlo.KINDS if not any(r["bytes"][kind] for r in results)]
    notes = ["bytes are a device's arrays, before or after, whichever is more; loops count every trip"]
    notes += [f"no {', '.join(absent)}"] if absent else []
    named = {(c["kind"], c["source"]) for r in results for c in r["image_sized"]}
    notes += [f"CARRIES IMAGES: {kind} of {source or 'unknown origin'}" for kind, source in sorted(named)]
    if not named:
        notes.append("none carries images or feature maps")
    rows = []
    for r in results:
        sizes = ["" if kind in absent else table.number(r["bytes"][kind] / 1e6) for kind in hlo.KINDS]
        rows.append((r["devices"], f"{r['batch_size']:,}", *sizes, r["count"]))
    columns = ("devices", "batch", *(f"{kind}, MB" for kind in hlo.KINDS), "collectives")
    table.show(title, columns, rows, notes)
