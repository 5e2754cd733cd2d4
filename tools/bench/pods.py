"""The train step of a config as TPU's own compiler makes it for slices that are not here.

Needs libtpu and no TPU. Says whether the step fits, what a chip holds and moves, and the roofline's time. How
fast the step is, only a TPU can say.
"""

import sys
import time

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from bench import hlo, table
from bench.collectives import lower
from bench.step import network_name
from simclr_jax import memory_error, run_summary
from simclr_jax.config import checks
from simclr_jax.doctor import chips, slices
from simclr_jax.errors import SimclrError, one_line


def measure(config: ConfigDict, *, topology: tuple[str, ...] = ("v5e:2x2",)) -> dict:
    """A row for each topology, which are called as TPU's compiler calls them: v5e:4x8, v5p:2x2x2.

    Raises:
      SimclrError: libtpu is not installed, or there is no such slice.
    """
    config = config.copy_and_resolve_references()
    meshes = {name: slices.mesh_of(name) for name in topology}
    rows = []
    for name, mesh in meshes.items():
        print(f"compiling for {name}, which can take many minutes ...", file=sys.stderr, flush=True)
        rows.append({"topology": name, "chips": mesh.size, **compiled(config, name, mesh)})
    return {
        "part": "pods",
        "batch_size": config.train.batch_size,
        "rows": rows,
        "config": config.to_dict(),
        **run_summary.environment(),
    }


def compiled(config: ConfigDict, topology: str, mesh: Mesh) -> dict:
    """What the compiler says of the step on `mesh`, or why it does not fit."""
    config = config.copy_and_resolve_references()
    # Of no account here.
    config.mesh.devices, config.train.steps_per_call, config.eval.batch_size = 0, 1, mesh.size
    try:
        checks.validate_run(config, config.train.batch_size, mesh.size)
    except SimclrError as error:
        raise SimclrError(f"{error}; or give another --topology") from None
    chip, begin = chips.of(topology), time.perf_counter()
    lowered, params, flops = lower(config, mesh)
    try:
        program = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        found = memory_error.shortage(error)
        if found is None:
            raise
        return {
            "fits": False,
            "compile_seconds": time.perf_counter() - begin,
            "memory_bytes": chip.memory,
            "needed_bytes": found.needed,
            "why": one_line(error),
        }
    seconds = time.perf_counter() - begin
    text, memory, cost = program.as_text(), program.memory_analysis(), program.cost_analysis()
    if not (memory and cost and flops):
        raise SimclrError(f"--topology={topology}: this version of libtpu tells nothing of its program")
    collectives = hlo.collectives(text)
    traffic, moved = cost["bytes accessed"] * hlo.repeats(text), hlo.bytes_by_kind(collectives)
    roofline = chips.roofline(chip, mesh.size, flops, traffic, moved)
    return {
        "fits": True,
        "compile_seconds": seconds,
        "argument_bytes": memory.argument_size_in_bytes,
        "temporary_bytes": memory.temp_size_in_bytes,
        "memory_bytes": chip.memory,
        "traffic_bytes": traffic,
        "flops": flops,
        "parameters": sum(x.size for x in jax.tree.leaves(params)),
        "collectives": {kind: sum(c.times for c in collectives if c.kind == kind) for kind in hlo.KINDS},
        "bytes": moved,
        "roofline_seconds": roofline,
        "bound": max(roofline, key=roofline.get),
        "images_per_second_by_roofline": config.train.batch_size / max(roofline.values()),
    }


def show(result: dict) -> None:
    """A row a slice."""
    model, train = result["config"]["model"], result["config"]["train"]
    network, batch = f"{network_name(model)} {model['width']:g}×", f"batch {result['batch_size']:,}"
    split = f" in microbatches of {train['microbatch']:,}" if train["microbatch"] else ""
    columns = (
        "slice", "chips", "state + temporary, GB", "of", "traffic, GB", "collectives", "moved, MB",
        "roofline, ms", "bound by", "images/s by it", "compiled in, s",
    )  # fmt: skip
    table.show(
        f"train step: {network}, {batch}{split}, compiled",
        columns,
        [_row(r) for r in result["rows"]],
        [
            "of one chip and one step, but for images/s; nothing was run",
            "traffic: of a chip's memory, as the compiler counts it, with what stays on the chip in between",
            "roofline: the slowest of arithmetic, that traffic and the links, at published rates",
        ],
    )


def _row(r: dict) -> tuple:
    took, of = table.number(r["compile_seconds"]), table.number(r["memory_bytes"] / 1e9)
    if not r["fits"]:
        needed = f"needs {table.number(r['needed_bytes'] / 1e9)}" if r["needed_bytes"] else "does not fit"
        return r["topology"], r["chips"], needed, of, *[""] * 6, took
    kinds = " + ".join(f"{n} {kind}" for kind, n in r["collectives"].items() if n)
    held, bound = (r["argument_bytes"], r["temporary_bytes"]), r["roofline_seconds"][r["bound"]]
    return (
        r["topology"], r["chips"], " + ".join(table.number(x / 1e9) for x in held),
        of, table.number(r["traffic_bytes"] / 1e9), kinds,
        table.number(sum(r["bytes"].values()) / 1e6), table.number(1e3 * bound), r["bound"],
        table.number(r["images_per_second_by_roofline"]), took,
    )  # fmt: skip
