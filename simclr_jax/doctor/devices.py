"""Checks the devices, the processes, and the division of the batch among them."""

import os
from collections.abc import Iterator
from pathlib import Path

import jax

from simclr_jax.doctor.findings import Finding, note, ok, warning
from simclr_jax.doctor.plan import Plan

GPU = "/dev/nvidia0"  # exists if the driver sees a GPU
TPUS = ("/dev/accel0", "/dev/vfio/0")


def check(plan: Plan) -> Iterator[Finding]:
    """Reports the devices, and how many images each one gets."""
    mesh, train = plan.mesh, plan.config.train
    share, kind = train.batch_size // mesh.size, mesh.devices.flat[0].device_kind
    if plan.topology:
        yield ok(f"{plan.topology}: {mesh.size} × {kind}, which need not be here; {share:,} images on each")
    else:
        count = jax.process_count()
        processes = f"{count} processes" if count > 1 else "one process"
        yield ok(f"{mesh.size} × {kind}, {processes}; {share:,} images on each device")
        yield from _left_out(plan)
    if train.microbatch:
        yield note(
            f"microbatches of {train.microbatch:,}: the loss is that of the whole batch, but BatchNorm sees "
            f"{train.microbatch:,} images at a time"
        )


def _left_out(plan: Plan) -> Iterator[Finding]:
    """Warns of accelerators that are present but unused."""
    if unused := jax.device_count() - plan.mesh.size:
        yield note(f"{unused} more devices are not used (config.mesh.devices={plan.config.mesh.devices})")
    if not plan.on_cpu:
        return
    cores = f"the {os.cpu_count()} cores of this machine"
    if (platforms := os.environ.get("JAX_PLATFORMS")) == "cpu":
        yield note(f"JAX_PLATFORMS={platforms}: {cores} compute")
    elif Path(GPU).exists():
        yield warning(
            f"this machine has a GPU, and JAX does not see it: {cores} would compute",
            "pip install -e '.[cuda]'",
        )
    elif any(Path(place).exists() for place in TPUS):
        yield warning(
            f"this machine has a TPU, and JAX does not see it: {cores} would compute",
            "pip install -e '.[tpu]', and end other programs that hold it",
        )
    else:
        yield note(f"no accelerator: {cores} compute")
