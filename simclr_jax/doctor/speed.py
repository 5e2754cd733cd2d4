"""Measures the speed of the input and of the train step, and estimates the duration of the run."""

import math
import os
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from simclr_jax.data import pipeline, tf
from simclr_jax.data.sources import Source
from simclr_jax.doctor import ahead, memory
from simclr_jax.doctor.chips import Chip
from simclr_jax.doctor.findings import Finding, note, ok, warning
from simclr_jax.doctor.plan import Plan, tell
from simclr_jax.feeds.images import in_memory
from simclr_jax.storage import told

LONGEST = 10.0  # seconds of reading at most, including the first batch
ENOUGH = 4.0  # seconds of reading after the first batch
PIXELS = 64 * 224**2  # in a test batch at most: the rate hardly depends on the batch size
READ = 2048  # images to read if the run keeps its images in memory
CALLS = 3  # timed calls of the compiled program
PATIENCE = 5.0  # on CPU, a step that should take more seconds is estimated and not run
CORE = 2e10  # rough FLOP/s of a core, for that estimate


class Reading(NamedTuple):
    """Measured rate of reading images."""

    rate: float  # images per second of this process
    count: int  # images read


class Step(NamedTuple):
    """Duration of a step."""

    seconds: float | None  # None: unknown
    why: str = ""  # why `seconds` is not a measurement; empty if it is one

    @property
    def measured(self) -> float | None:
        """The seconds, if they were measured; else None."""
        return None if self.why else self.seconds


def check(plan: Plan) -> Iterator[Finding]:
    """Reports images per second of input and step, and the expected duration."""
    step, batch = time_step(plan), plan.config.train.batch_size
    if measured := step.measured:
        yield ok(f"a step takes {_time(measured)}: {batch / measured:,.0f} images/s")
    else:
        yield note(step.why)
    read = None
    if not plan.here:
        yield note("how fast the images are read is unknown, as they are not here")
    elif not ahead.of_images(plan.config):
        yield ok(f"the {plan.train.noun} are in memory")
    elif in_memory(plan.config):
        yield from _reading_once(plan)
    else:
        read = input_rate(plan)
        yield from _input(plan, read, step.measured)
    yield from _duration(plan, step, read)


# ---- the step -----------------------------------------------------------------------------------


def time_step(plan: Plan) -> Step:
    """Times some steps; if they cannot be run here, estimates them and says why."""
    has, _ = memory.room(plan)
    needed = memory.need(plan)
    if plan.program.compiled is None or (needed and has is not None and needed.total > has):
        return Step(None, "the step's speed is unknown, as it does not fit")
    if chip := plan.chip:
        least = _least(plan, chip)
        return Step(least, f"a step takes {_time(least)} or more, by the chip's published rates; how much "
                    "more, only the slice itself can say")  # fmt: skip
    if plan.on_cpu and (guess := _guess(plan)) > PATIENCE:
        return Step(guess, f"a step takes roughly {_time(guess)} on these cores, too long to try one")
    tell("timing the train step ...")
    compiled, each = plan.program.compiled, plan.built.task.steps_per_call
    state, call = ahead.sample(plan.built, plan.arguments, plan.config.seed, plan.mesh)

    def seconds(calls: int) -> float:
        nonlocal state
        begin = time.perf_counter()
        for _ in range(calls):
            state, numbers = compiled(state, *call)
        jax.block_until_ready((state, numbers))
        return time.perf_counter() - begin

    seconds(1)
    return Step(seconds(CALLS) / (CALLS * each))


def _cost(plan: Plan, what: str) -> float:
    """The compiler's cost figure `what` for a step on one device; it counts a loop's body once."""
    return (plan.program.compiled.cost_analysis() or {}).get(what, 0.0)


def _guess(plan: Plan) -> float:
    """Estimated seconds of a step on this host's cores."""
    micro = plan.config.train.microbatch
    loops = plan.config.train.batch_size // micro if micro else 1
    return loops * plan.mesh.size * _cost(plan, "flops") / (CORE * (os.cpu_count() or 1))


def _least(plan: Plan, chip: Chip) -> float:
    """Lower bound of a step in seconds, from the chip's published FLOP/s and memory bandwidth."""
    return max(_cost(plan, "flops") / chip.peak, _cost(plan, "bytes accessed") / chip.bandwidth)


# ---- the input ----------------------------------------------------------------------------------


def input_rate(plan: Plan) -> Reading:
    """Measures images per second of the run's own pipeline."""
    tf.load()  # the import takes seconds; keep it out of the measurement
    tell(f"timing the input, at most {LONGEST:.0f} s ...")
    config, processes = plan.config.copy_and_resolve_references(), jax.process_count()
    share = min(config.train.batch_size // processes, max(1, PIXELS // config.data.image_size**2))
    config.train.batch_size, config.train.microbatch, config.train.steps = share * processes, 0, 10**6
    task = ahead.build(config, plan.splits, plan.mesh).task
    return timed(task.input(0), lambda batch: len(batch["position"]))


def timed(batches: Iterator[Any], count: Callable[[Any], int]) -> Reading:
    """Reads some of `batches` and returns their rate; leaves out the first, which builds the pipeline."""
    begin, images, first, in_first = time.perf_counter(), 0, 0.0, 0
    for batch in batches:
        now = time.perf_counter()
        if first:
            images += count(batch)
        else:
            first, in_first = now, count(batch)
        if now - begin > LONGEST or (images and now - first > ENOUGH):
            break
    if close := getattr(batches, "close", None):
        close()
    if images:
        return Reading(images / max(now - first, math.ulp(now)), images + in_first)
    return Reading(in_first / max(first - begin, math.ulp(first)), in_first)  # only one batch in time


def _input(plan: Plan, read: Reading, step: float | None) -> Iterator[Finding]:
    rate, batch = read.rate * jax.process_count(), plan.config.train.batch_size
    line = f"the input makes {rate:,.0f} images/s, of {read.count:,} that were read on {os.cpu_count()} cores"
    yield from unreadable(plan)
    if step is None or plan.topology:
        yield ok(line)
    elif rate * step < batch:
        waits = 1 - rate * step / batch
        yield warning(f"{line}: the device would wait {waits:.0%} of the time", _remedy(plan))
    else:
        yield ok(f"{line}, {rate * step / batch:.1f} times what the step takes")


def _remedy(plan: Plan) -> str:
    """Ways to make the input faster, the best first."""
    config, found = plan.config, []
    if config.data.threads and config.data.threads < (os.cpu_count() or 1):
        found.append("--config.data.threads=0 takes all cores")
    fits = isinstance(plan.train, Source) and _held_bytes(plan) < config.data.memory_gb * 2**30
    if fits:
        found.append("--config.augment.device=all: the images fit in memory")
    if config.augment.device == "none" and not plan.on_cpu:
        found.append("--config.augment.device=photometric: colour and blur on the device")
    found += ["more CPU cores", "smaller image files"]
    return ", or ".join(found)


def _held_bytes(plan: Plan) -> float:
    side = plan.config.data.stored_size or plan.config.data.image_size
    size = sum(split.size for split in plan.splits if split)
    return float(size) * side**2 * plan.config.data.channels


def _reading_once(plan: Plan) -> Iterator[Finding]:
    """For a run that keeps its images in memory: how long it takes to read them once."""
    train, data = plan.train, plan.config.data
    if isinstance(train, Source) and train.kind == "array":
        yield ok(f"the images lie in memory, {told(_held_bytes(plan))}: there is no input to wait for")
        return
    tf.load()
    tell(f"timing how fast images are read, at most {LONGEST:.0f} s ...")
    side, some = data.stored_size or data.image_size, np.arange(min(train.size, READ))
    reading = {"size": side, "crop": 1.0, "resize": "bilinear", "threads": data.threads}
    batches = pipeline.eval_batches(train, batch=64, channels=data.channels, index=some, **reading)
    read = timed(batches, lambda batch: int(batch["mask"].sum()))
    yield from unreadable(plan)
    total = sum(split.size for split in plan.splits if split)
    yield ok(
        f"the images are read once, into {told(_held_bytes(plan))} of memory: about "
        f"{_time(total / read.rate)}, then there is no input to wait for"
    )


def unreadable(plan: Plan) -> Iterator[Finding]:
    """The files that could not be read so far."""
    if found := plan.splits.unreadable():
        name, why = min(found.items())
        yield warning(
            f"{len(found):,} of the files read cannot be read: {name} ({why}) ...",
            "repair or remove them; the run replaces each by the next one",
        )


# ---- both ---------------------------------------------------------------------------------------


def _duration(plan: Plan, step: Step, read: Reading | None) -> Iterator[Finding]:
    """Estimated duration of the remaining steps; the slower of input and step decides."""
    left, batch = plan.steps - plan.first, plan.config.train.batch_size
    reading = batch / (read.rate * jax.process_count()) if read and not plan.topology else 0.0
    slower = max(step.seconds or 0.0, reading)
    if not slower or not left:
        return
    line = f"the {left:,} steps take {{}} {_time(left * slower)}, without evaluations"
    if step.measured:
        yield ok(line.format("about"))
    else:
        yield note(line.format("roughly" if plan.on_cpu and step.seconds else "at least"))


def _time(seconds: float) -> str:
    """The duration as text with a unit: 1.5 ms, 12 s, 3 hours."""
    for unit, size in (("days", 86_400), ("hours", 3600), ("minutes", 60), ("s", 1)):
        if seconds >= 2 * size:
            return f"{seconds / size:.3g} {unit}"
    return f"{1e3 * seconds:.3g} ms"
