"""NT-Xent's value and gradient, dense, in tiles and in a ring: time and temporary memory by batch size."""

import functools
import inspect
from collections.abc import Callable

import jax
import numpy as np
from ml_collections import ConfigDict

from bench import table
from bench.contest import compiled_to_fit, contest, peers, rate, timed
from simclr_jax import losses, report, sharding
from simclr_jax.losses import tiled


def measure(
    config: ConfigDict, *, sizes: tuple[int, ...] = (1024, 4096), dim: int = 128, steps: int = 10,
    peer: str | None = None,
) -> dict:  # fmt: skip
    """A row for each number of images in `sizes` and each way to compute the loss."""
    mesh, temperature = sharding.make_mesh(config.mesh.devices), config.loss.temperature
    rows, notes = [], []
    for n in sizes:
        rng = np.random.default_rng(0)
        z = sharding.put_batch(rng.standard_normal((n, 2, dim), np.float32), mesh)
        compiled: dict[str, jax.stages.Compiled] = {}

        def call(name: str, loss: Callable, z: jax.Array = z, compiled: dict = compiled) -> None:
            if name not in compiled:
                lowered = jax.jit(jax.value_and_grad(loss, has_aux=True)).lower(z)
                compiled[name] = compiled_to_fit(lowered)
            jax.block_until_ready(compiled[name](z))

        own = {
            name: timed(functools.partial(call, name, loss)) for name, loss in ways(temperature, mesh).items()
        }
        with peers(peer, part="loss", n=n, dim=dim, temperature=temperature) as (others, said):
            found = contest(own | others, steps)
        notes = said
        for name, times in found.items():
            if name in compiled and (memory := compiled[name].memory_analysis()):
                times["memory_bytes"] = memory.temp_size_in_bytes
            speed = rate(n, times["seconds"])
            rows.append(
                {"images": n, "name": name, "peer": name in others, "images_per_second": speed, **times}
            )
    return {"part": "loss", "dim": dim, "temperature": temperature, "rows": rows, "notes": notes,
            **report.environment()}  # fmt: skip


def ways(temperature: float, mesh: jax.sharding.Mesh) -> dict[str, Callable]:
    """{name: loss of z [n, 2, d]}; "ring" where this version of the package has it."""
    gather = lambda z: jax.lax.with_sharding_constraint(z, sharding.replicated(mesh))  # noqa: E731
    in_tiles = functools.partial(tiled.nt_xent, temperature=temperature, mesh=mesh, axis=sharding.AXIS)
    found = {"dense": lambda z: losses.nt_xent(z, temperature, gather=gather), "tiled": in_tiles}
    if "ring" in inspect.signature(tiled.nt_xent).parameters:
        found["ring"] = functools.partial(in_tiles, ring=True)
    return found


def show(result: dict) -> None:
    """The table."""
    rows, device = result["rows"], result["device"]
    table.show(
        f"NT-Xent, value and gradient: dim {result['dim']}, float32, {device['count']} × {device['kind']}",
        ("images", "", "ms (range)", "temporary MB", "× peer"),
        [
            (
                f"{r['images']:,}",
                r["name"],
                table.milliseconds(r["seconds"]),
                table.megabytes(r["memory_bytes"]),
                table.times_peer([x for x in rows if x["images"] == r["images"]], r, "images_per_second"),
            )
            for r in rows
        ],
        [
            "memory is a device's: ours as the compiler plans it, the peer's what it takes beyond its inputs",
            *result["notes"],
        ],
    )
