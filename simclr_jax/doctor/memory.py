"""Compares the memory of the compiled train step with the device's; suggests a microbatch that fits."""

from collections.abc import Iterator
from typing import NamedTuple

import jax

from simclr_jax import memory_error
from simclr_jax.doctor.findings import Finding, error, note, ok, warning
from simclr_jax.doctor.plan import Plan
from simclr_jax.storage import told

WAITING = 3  # batches prefetched on the device, in addition to the one in use
FULL = 0.9  # warn above this share of a device's memory: allocators fragment and evaluations need some
TRIES = 3  # at most so many compilations to find a microbatch that fits


class Need(NamedTuple):
    """Bytes that a device needs."""

    state: int  # parameters, optimiser state, images in device memory
    batch: int  # including the prefetched ones
    temporary: int

    @property
    def total(self) -> int:
        """The sum."""
        return self.state + self.batch + self.temporary


def check(plan: Plan) -> Iterator[Finding]:
    """Whether the step fits, and how much is left."""
    has, where = room(plan)
    needed, shortage = need(plan), plan.program.shortage
    if needed is None:
        if shortage is None:
            yield note("how much memory a step takes, this backend does not tell")
        else:
            yield too_large(plan, has, where, shortage.needed)
        return
    if has is not None and needed.total > has:
        yield too_large(plan, has, where, needed.total)
        return
    parts = f"state {told(needed.state)}, batches {told(needed.batch)}, temporary {told(needed.temporary)}"
    line = f"a step takes {told(needed.total)} {where}: {parts}"
    if has is None:
        yield note(f"{line}; how much there is, this backend does not tell")
    elif needed.total > FULL * has:
        yield warning(
            f"{line}; of {told(has)} only {told(has - needed.total)} are left",
            "; or ".join(memory_error.training(plan.config, plan.on_cpu)[:2]),
        )
    else:
        left = f"{told(has - needed.total)} of {told(has)} are left"
        yield ok(f"{line}; {left} (compiled in {plan.program.seconds:.0f} s)")
    if plan.on_cpu:
        yield note("of another machine's memory this says little: ask there, or give --topology=v5e:4x8")


def need(plan: Plan) -> Need | None:
    """Memory of the compiled step on each device; None: it does not compile.

    On CPU all devices share the host's memory, so the figures are their sum. The state is donated: the output
    reuses its memory.
    """
    compiled = plan.program.compiled
    stats = compiled.memory_analysis() if compiled is not None else None
    if stats is None:
        return None
    state, batch = plan.arguments.bytes_a_device()
    output = max(0, stats.output_size_in_bytes - stats.alias_size_in_bytes)
    times = plan.mesh.size // jax.process_count() if plan.on_cpu else 1
    parts = (state, (1 + WAITING) * batch, stats.temp_size_in_bytes + output)
    return Need(*(times * part for part in parts))


def room(plan: Plan) -> tuple[int | None, str]:
    """(available bytes, None if the backend does not report them; text that says where)."""
    if plan.chip:
        return plan.chip.memory, "on each chip"
    if plan.on_cpu:
        return memory_error.host_free(), "of this host's memory"
    stats = [device.memory_stats() or {} for device in plan.mesh.local_devices]
    limits = [each["bytes_limit"] for each in stats if "bytes_limit" in each]
    return min(limits, default=None), "on each device"


def too_large(plan: Plan, has: int | None, where: str, needed: int | None) -> Finding:
    """The error; it proposes a microbatch that fits, or else smaller settings."""
    size = f"needs {told(needed)}" if needed else "needs more than there is"
    text = f"the step {size} {where}" + (f", which has {told(has)}" if has else "")
    batch, found = plan.config.train.batch_size, fitting_microbatch(plan, has)
    if found:
        micro, takes = found
        return error(
            text,
            f"--config.train.microbatch={micro} takes {told(takes)} (compiled), for a third more time; "
            f"or a smaller batch than {batch:,}",
        )
    return error(text, ", or ".join(memory_error.training(plan.config, plan.on_cpu)) + ", or more devices")


def fitting_microbatch(plan: Plan, has: int | None) -> tuple[int, int] | None:
    """(microbatch, bytes) of a compiled step that fits in `has` bytes; None if none was found.

    Temporary memory grows with the microbatch, so each compiled step tells which size to try next.
    """
    train, now = plan.config.train, plan
    step = plan.mesh.size * plan.config.model.norm_groups
    sizes = [n for n in range(step, train.batch_size, step) if train.batch_size % n == 0]
    below = train.microbatch or train.batch_size
    for _ in range(TRIES):
        takes, state = need(now), sum(plan.arguments.bytes_a_device())
        share = 0.5
        if takes and has:
            share = min(0.5, max(0.0, FULL * has - state) / max(1, takes.total - state))
        sizes = [n for n in sizes if n <= share * below]
        if not sizes or not has:
            return None
        below = sizes[-1]
        now = plan.changed(microbatch=below)
        takes = need(now)
        if takes and takes.total <= FULL * has:
            return below, takes.total
    return None
