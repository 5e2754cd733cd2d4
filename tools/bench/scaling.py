"""How a train step scales: its collectives as compiled for 1 to 8 devices, then a model on paper of pods.

Each number of devices is compiled in a process of its own, on simulated CPU devices: what moves between
devices is decided by the partitioner, which is the same for all of them.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from ml_collections import ConfigDict

from bench import collectives, paper, table
from bench.paper import Traffic
from simclr_jax import report
from simclr_jax.errors import SimclrError

COMMAND = Path(__file__).parents[1] / "benchmark.py"


def measure(
    config: ConfigDict, *, command: list[str], devices: tuple[int, ...] = (1, 2, 4, 8),
    images_per_device: int = 0, utilisation: float = 0.4, latency_us: float = 20.0,
) -> dict:  # fmt: skip
    """The collectives for each of `devices`, and the time of a step on paper for each machine.

    `command` holds the --config options. The config's batch is shared out among the chips (strong scaling),
    or each gets `images_per_device` (weak scaling).
    """
    if not 0 < utilisation <= 1:
        raise SimclrError(f"--utilisation={utilisation}: must be above 0, at most 1")
    del config  # the new processes read their own
    options = [*command, f"--images_per_device={images_per_device}"] if images_per_device else command
    rows = [compiled_for(count, options) for count in sorted(devices)]
    machines = {
        name: on_paper(rows, machine, images_per_device, utilisation, latency_us * 1e-6)
        for name, machine in paper.MACHINES.items()
    }
    return {
        "part": "scaling",
        "images_per_device": images_per_device,
        "utilisation": utilisation,
        "latency_us": latency_us,
        "flops_per_image": rows[-1]["flops_per_step"] / rows[-1]["batch_size"],
        "rows": rows,
        "on_paper": machines,
        **report.environment(),
    }


def compiled_for(devices: int, options: list[str]) -> dict:
    """The part `collectives` of a process that sees `devices` CPU devices."""
    flag = "--xla_force_host_platform_device_count"
    others = [f for f in os.environ.get("XLA_FLAGS", "").split() if not f.startswith(flag)]
    environment = {
        **os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": " ".join([*others, f"{flag}={devices}"]),
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "collectives.json"
        command = [sys.executable, str(COMMAND), "collectives", *options, f"--json={file}"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
            raise SimclrError(f"{lines[-1].removeprefix('error: ')} (compiled for {devices} devices)")
        return json.loads(file.read_text())


def on_paper(
    rows: list[dict], machine: paper.Machine, images_per_device: int, utilisation: float, latency: float
) -> list[dict]:
    """Steps on more and more chips, as long as each has an image."""
    found = []
    for chips in paper.CHIPS:
        batch = images_per_device * chips or rows[-1]["batch_size"]
        if batch < chips:
            break
        traffic, flops = traffic_of(rows, batch), image_flops(rows, batch) * batch / chips
        times = paper.step(flops, traffic, chips, machine, utilisation=utilisation, latency=latency)
        rate = batch / (times["compute_seconds"] + times["communication_seconds"])
        found.append({"batch_size": batch, "images_per_second": rate, **times})
    return found


def image_flops(rows: list[dict], batch: int) -> float:
    """FLOPs an image at a batch size: each is compared with all others, so they grow with it, by a line."""
    (small, few), (large, many) = (
        (r["batch_size"], r["flops_per_step"] / r["batch_size"]) for r in (rows[0], rows[-1])
    )
    return many + ((many - few) / (large - small) * (batch - large) if large > small else 0.0)


def traffic_of(rows: list[dict], batch: int) -> Traffic:
    """A step's traffic at a batch size: as compiled, or on the line through the two largest batches."""
    *_, before, last = [rows[0], *rows] if len(rows) == 1 else rows
    apart = last["batch_size"] - before["batch_size"]

    def at(*kinds: str) -> float:
        small, large = (sum(r["bytes"][kind] for kind in kinds) for r in (before, last))
        slope = (large - small) / apart if apart and before["devices"] > 1 else 0
        return max(large + slope * (batch - last["batch_size"]), 0)

    return Traffic(
        reduced=at("all-reduce"),
        gathered=at("all-gather", "reduce-scatter"),
        exchanged=at("all-to-all", "collective-permute"),
        count=last["count"],
    )


def show(result: dict) -> None:
    """One table of what was compiled, and one a machine of what was calculated."""
    each = result["images_per_device"]
    shared = f"{each} images a device" if each else "the global batch shared out"
    collectives.show_rows(result["rows"], f"collectives of a train step as compiled, {shared}")
    print(
        f"\nON PAPER, not measured: {table.number(result['flops_per_image'] / 1e9)} GFLOP an image at "
        f"{100 * result['utilisation']:.0f} % of the peak (assumed), rings at published bandwidths, "
        f"\n{result['latency_us']:g} µs a collective (assumed), no overlap, {shared}"
    )
    for name, rows in result["on_paper"].items():
        table.show(
            f"{name}, on paper",
            ("chips", "batch", "compute, ms", "communication, ms", "efficiency", "images/s"),
            [
                (
                    f"{r['chips']:,}",
                    f"{r['batch_size']:,}",
                    table.number(1e3 * r["compute_seconds"]),
                    table.number(1e3 * r["communication_seconds"]),
                    f"{100 * r['efficiency']:.0f} %",
                    table.number(r["images_per_second"]),
                )
                for r in rows
            ],
        )
