"""NT-Xent's value and gradient, dense, in tiles and in a ring: time and temporary memory by batch size."""

import functools
import sys
from collections.abc import Callable

import jax
import numpy as np
from ml_collections import ConfigDict

from bench import passes, table
from bench.contest import compiled_to_fit, contest, peers, rate, timed
from simclr_jax import run_summary, sharding
from simclr_jax.losses import contrastive, tiled

EXACT_IMAGES = 512  # at least, to compare with float64
TF32_FROM = 8.0  # CUDA's compute capability, Ampere


def measure(
    config: ConfigDict, *, sizes: tuple[int, ...] = (1024, 4096), dim: int = 128, steps: int = 10,
    peer: str | None = None,
) -> dict:  # fmt: skip
    """A row for each number of images in `sizes` and each way to compute the loss."""
    mesh, temperature = sharding.make_mesh(config.mesh.devices), config.loss.temperature
    off = exactness(temperature, mesh, dim)
    rows, notes, full = [], [], []
    for n in sizes:
        rng = np.random.default_rng(0)
        z = sharding.put_batch(rng.standard_normal((n, 2, dim), np.float32), mesh)
        compiled: dict[str, jax.stages.Compiled] = {}

        def call(name: str, loss: Callable, z: jax.Array = z, compiled: dict = compiled) -> None:
            if name not in compiled:
                lowered = jax.jit(jax.value_and_grad(loss, has_aux=True)).lower(z)
                compiled[name] = compiled_to_fit(lowered)
            jax.block_until_ready(compiled[name](z))

        print(f"loss: {n:,} images ...", file=sys.stderr, flush=True)
        own = {
            name: timed(functools.partial(call, name, loss)) for name, loss in ways(temperature, mesh).items()
        }
        with peers(peer, part="loss", n=n, dim=dim, temperature=temperature) as (others, said):
            found = contest(own | others, steps)
        notes = said
        full += [f"{n:,}, {k}: {v['out_of_memory']}" for k, v in found.items() if "out_of_memory" in v]
        for name, times in found.items():
            if name in compiled and (memory := compiled[name].memory_analysis()):
                times["memory_bytes"] = memory.temp_size_in_bytes
            speed = rate(n, times["seconds"])
            rows.append(
                {"images": n, "name": name, "peer": name in others, "images_per_second": speed, **times}
            )
    notes = [
        *(f"{k}: value {v['value']:.0e}, gradient {v['gradient']:.0e} off float64's" for k, v in off.items()),
        *full,
        *notes,
    ]
    return {"part": "loss", "dim": dim, "temperature": temperature, "rows": rows, "off_float64": off,
            "notes": notes, **run_summary.environment()}  # fmt: skip


def ways(temperature: float, mesh: jax.sharding.Mesh) -> dict[str, Callable]:
    """{name: loss of z [n, 2, d]}; on a GPU that has TF32 also with products of three passes."""

    def gather(z):
        return jax.lax.with_sharding_constraint(z, sharding.replicated(mesh))

    dense = functools.partial(contrastive.nt_xent, temperature=temperature, gather=gather)
    in_tiles = functools.partial(tiled.nt_xent, temperature=temperature, mesh=mesh, axis=sharding.AXIS)
    found = {"dense": dense, "tiled": in_tiles, "ring": functools.partial(in_tiles, ring=True)}
    if float(getattr(mesh.devices.flat[0], "compute_capability", 0)) >= TF32_FROM:
        three = jax.lax.DotAlgorithmPreset.TF32_TF32_F32_X3
        found |= {
            f"{name}, TF32 × 3": functools.partial(found[name], precision=three)
            for name in ("dense", "tiled")
        }
    return found


def exactness(temperature: float, mesh: jax.sharding.Mesh, dim: int) -> dict[str, dict[str, float]]:
    """{way: how far value and gradient are from float64's}, relative to the value and largest gradient."""
    n, rng = -(-EXACT_IMAGES // mesh.size) * mesh.size, np.random.default_rng(0)
    z = (rng.standard_normal((n, 1, dim)) + rng.standard_normal((n, 2, dim))).astype(np.float32)
    exact, found = in_float64(z.astype(np.float64), temperature), {}
    placed = sharding.put_batch(z, mesh)
    for name, loss in ways(temperature, mesh).items():
        (value, _), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(placed)
        found[name] = passes.off((float(value), np.asarray(gradient)), exact)
    return found


def in_float64(z: np.ndarray, temperature: float) -> tuple[float, np.ndarray]:
    """(value, gradient) of NT-Xent (SimCLR, equation 1) of z `[n, 2, d]`, not normalised."""
    norm = np.linalg.norm(z, axis=-1, keepdims=True)
    unit = z / norm
    value, of_unit = passes.nt_xent(unit.reshape(-1, z.shape[-1]), temperature, None)
    of_unit = of_unit.reshape(z.shape)
    return value, (of_unit - unit * np.sum(unit * of_unit, axis=-1, keepdims=True)) / norm


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
