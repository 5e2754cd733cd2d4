"""Runs all checks in the order of the report. Writes nothing in the workdir and trains nothing."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, cast

import jax
from etils import epath
from ml_collections import ConfigDict

from simclr_jax import checkpoint, memory_error, recipe, sharding
from simclr_jax.config import adopt_start, checks, examples_of, going_on
from simclr_jax.data.splits import Splits
from simclr_jax.doctor import (
    devices,
    disk,
    images,
    memory,
    pitfalls,
    published,
    schedule,
    slices,
    speed,
)
from simclr_jax.doctor.findings import Finding, note, of_error
from simclr_jax.doctor.plan import Plan
from simclr_jax.errors import SimclrError
from simclr_jax.feeds import kind, load_splits

Sections = dict[str, list[Finding]]
Check = Callable[[Plan], Iterator[Finding]]

CHECKS: Mapping[str, Check] = {
    "devices": devices.check,
    "images": images.check,
    "length and learning rate": schedule.check,
    "known pitfalls": pitfalls.check,
    "memory": memory.check,
    "speed": speed.check,
    "disk": disk.check,
    "what to expect": published.check,
}
SOUND = (  # skipped if the batch does not fit the images or the devices
    "length and learning rate", "memory", "speed", "disk",
)  # fmt: skip


def examine(
    config: ConfigDict,
    workdir: epath.Path,
    *,
    topology: str | None = None,
    splits: Splits | None = None,
) -> Sections:
    """{section: findings} of the run that `config` describes in `workdir`.

    Args:
      topology: a TPU slice that need not be here, v5e:4x8; None: this machine's devices.
      splits: the images, for the source "arrays".

    Raises:
      SimclrError: the config makes no sense by itself, or there are no such devices.
    """
    config = adopt_start(config, workdir)
    checks.validate(config)
    if config.model.dtype == "float64" and not cast(Any, jax.config).jax_enable_x64:
        raise SimclrError("config.model.dtype='float64': set JAX_ENABLE_X64=1")
    mesh = slices.mesh_of(topology) if topology else sharding.make_mesh(config.mesh.devices)
    found: Sections = {name: [] for name in CHECKS}
    plan = _plan(config, workdir, mesh, topology, splits, found)
    if plan is None:
        return found
    try:
        checks.validate_run(plan.config, plan.train.size, mesh.size)
        sound = True
    except SimclrError as problem:
        found["devices"].append(of_error(problem))
        sound = False
    for name, check in CHECKS.items():
        if sound or name not in SOUND:
            found[name] += _attempt(check, plan)
    return found


def _plan(
    config: ConfigDict,
    workdir: epath.Path,
    mesh: jax.sharding.Mesh,
    topology: str | None,
    splits: Splits | None,
    found: Sections,
) -> Plan | None:
    """The plan of the run; None if nothing is known about its images."""
    here = True
    try:
        splits = splits or load_splits(config, examples_of(config, workdir))
        kind(config).check(config, splits)
    except SimclrError as problem:
        found["images"].append(of_error(problem))
        splits, here = images.stand_in(config), False
        if splits is None:
            found["images"].append(note("without images the rest of the page stays empty"))
            return None
    config, told = recipe.settle(config, splits.train.size, going_on(workdir))
    found["length and learning rate"] += [note(line.removeprefix("note: ")) for line in told]
    steps = checkpoint.saved_steps(workdir / "checkpoints")
    options = {"here": here, "topology": topology, "first": steps[-1] if steps else 0}
    return Plan(config, workdir, splits, mesh, **options)


def _attempt(check: Check, plan: Plan) -> list[Finding]:
    """The findings of a check; a SimclrError becomes an error finding."""
    findings = []
    try:
        with memory_error.explained(memory_error.training, plan.config):
            for finding in check(plan):
                findings.append(finding)
    except SimclrError as problem:
        findings.append(of_error(problem))
    return findings
