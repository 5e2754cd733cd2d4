"""Many steps: memory, handles, threads and the time of a step are sampled; none may grow."""

import itertools
import os
import random
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tortures import runs
from tortures.results import Faults, Outcome
from tortures.runs import Lab, Started

EVERY = 0.25  # seconds between two samples
MOST_MB = 1.0  # growth of resident memory in 1,000 steps
CALLS = (1, 20)  # steps that a call of the program makes


class Sample(NamedTuple):
    """What the system says of the process, at a step."""

    step: int
    seconds: float
    megabytes: float  # resident
    handles: int
    threads: int


def faults(lab: Lab, tries: int, rng: random.Random, steps: int = 20_000) -> Faults:
    """One long run with one step a call, one with many."""
    count = min(tries, len(CALLS))
    return Faults(count, (_soak(lab, steps, calls) for calls in CALLS[:count]))


def _soak(lab: Lab, steps: int, calls: int) -> Outcome:
    workdir = lab.fresh(f"soak_{calls}")
    fields = {
        "train__steps": steps, "train__batch_size": 2, "train__steps_per_call": calls,
        "log__every__steps": max(1, steps // 400), "checkpoint__every__steps": max(1, steps // 40),
        "eval__every__steps": max(1, steps // 10),
    }  # fmt: skip
    started = runs.start(lab, workdir, **fields)
    samples = list(_samples(started, workdir))
    ended = started.end()
    fault = f"{steps:,} steps, {calls} a call"
    if ended.code:
        return Outcome(fault, False, f"exit code {ended.code}: {ended.err[-300:]}")
    (lab.out / f"soak_{calls}.csv").write_text(
        ",".join(Sample._fields) + "\n" + "".join(",".join(map(str, s)) + "\n" for s in samples)
    )
    return judge(fault, samples)


def _samples(started: Started, workdir: Path) -> Iterator[Sample]:
    begin, path = time.monotonic(), workdir / "metrics.jsonl"
    while started.running():
        step = _last(path)
        if step:
            try:
                yield _sample(started.process.pid, step, time.monotonic() - begin)
            except (OSError, KeyError):
                return  # it has just ended
        time.sleep(EVERY)


def _last(path: Path) -> int:
    """The step of the last whole row, without reading them all."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 2000))
            lines = file.read().split(b"\n")[:-1]
        return int(lines[-1].split(b'"step": ')[1].split(b",")[0])
    except (OSError, IndexError, ValueError):
        return 0


def _sample(number: int, step: int, seconds: float) -> Sample:
    process = Path(f"/proc/{number}")
    status = dict(line.split(":", 1) for line in (process / "status").read_text().splitlines())
    megabytes = int(status["VmRSS"].split()[0]) / 1024
    handles = len(os.listdir(process / "fd"))
    return Sample(step, seconds, megabytes, handles, int(status["Threads"]))


def slope(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Least squares: (slope, its standard error); noise that is white is assumed."""
    x = x - x.mean()
    spread = float(x @ x)
    if len(x) < 3 or not spread:
        return 0.0, float("inf")
    rise = float(x @ y) / spread
    rest = y - y.mean() - rise * x
    return rise, float(np.sqrt(rest @ rest / (len(x) - 2) / spread))


def judge(fault: str, samples: list[Sample]) -> Outcome:
    """The slopes over the second half, a thousand steps each; what grows is a fault."""
    half = [sample for sample in samples if sample.step > samples[-1].step / 2] if samples else []
    if len(half) < 8:
        return Outcome(fault, False, f"{len(half)} samples: too few to tell, give more --steps")
    thousands = np.asarray([sample.step for sample in half]) / 1000
    said, slopes = [], {}
    for name, unit in (("megabytes", "MB"), ("handles", "handles"), ("threads", "threads")):
        values = np.asarray([getattr(sample, name) for sample in half], float)
        slopes[name], error = slope(thousands, values)
        said.append(f"{slopes[name]:+.3f} ± {error:.3f} {unit}")
    rates = [
        1e3 * (b.seconds - a.seconds) / (b.step - a.step)
        for a, b in itertools.pairwise(half)
        if b.step > a.step
    ]
    middle = len(rates) // 2
    first, second = (statistics.median(part or [0]) for part in (rates[:middle], rates[middle:]))
    how = f"per 1,000 steps {', '.join(said)}; {first:.2f} ms a step, then {second:.2f}"
    grew = [name for name in ("handles", "threads") if _grew([getattr(s, name) for s in half])]
    if slopes["megabytes"] > MOST_MB:
        grew.append("memory")
    return Outcome(fault, not grew, f"{', '.join(grew)} grew: {how}" if grew else how)


def _grew(values: list[int]) -> bool:
    """Whether the typical value of the end is above that of the middle; a save holds some for a moment."""
    quarter = max(1, len(values) // 2)
    return statistics.median(values[quarter:]) > statistics.median(values[:quarter])
