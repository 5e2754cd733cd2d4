"""What a train step moves between devices as their number grows: compiled for 1 to 8 of them.

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

from bench import collectives
from simclr_jax import run_summary
from simclr_jax.errors import SimclrError

COMMAND = Path(__file__).parents[1] / "benchmark.py"


def measure(
    config: ConfigDict, *, command: list[str], devices: tuple[int, ...] = (1, 2, 4, 8),
    images_per_device: int = 0,
) -> dict:  # fmt: skip
    """The collectives for each of `devices`.

    `command` holds the --config options. The config's batch is shared out among the devices (strong scaling),
    or each gets `images_per_device` (weak scaling).
    """
    del config  # the new processes read their own
    options = [*command, f"--images_per_device={images_per_device}"] if images_per_device else command
    return {
        "part": "scaling",
        "images_per_device": images_per_device,
        "rows": [compiled_for(count, options) for count in sorted(devices)],
        **run_summary.environment(),
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


def show(result: dict) -> None:
    """The table."""
    each = result["images_per_device"]
    shared = f"{each} images a device" if each else "the global batch shared out"
    collectives.show_rows(result["rows"], f"collectives of a train step as compiled, {shared}")
