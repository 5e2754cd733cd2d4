"""SIGKILL at random moments: the run goes on each time and ends equal to the bit."""

import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from tortures import runs
from tortures.results import Faults, Outcome
from tortures.runs import Lab, Started

PER_RUN = 10  # kills
STEPS, EVAL = 300, 40
# Something is left to do after the last step: the scores.
FIELDS = {"train__steps": STEPS, "eval__every__steps": EVAL, "eval__final": True, "eval__baselines": False}


def faults(lab: Lab, tries: int, rng: random.Random) -> Faults:
    """As many kills as `tries`, at most PER_RUN of them in one run."""
    return Faults(tries, _kills(lab, tries, rng))


def _kills(lab: Lab, tries: int, rng: random.Random) -> Iterator[Outcome]:
    whole = runs.reference(lab, "scored", **FIELDS)
    left, number = tries, 0
    while left:
        kills, number = min(PER_RUN, left), number + 1
        left -= kills
        workdir = lab.fresh(f"killed_{number}")
        phases, wrong = [], ""
        for _ in range(kills):
            started = runs.start(lab, workdir, **FIELDS)
            _wait(started, workdir, rng)
            phases.append(_phase(started, workdir))
            started.kill()
            ended = started.end()
            if ended.code not in (0, -9):
                wrong = wrong or f"exit code {ended.code}: {(ended.err or ended.out)[-300:]}"
        wrong = wrong or runs.went_on(lab, workdir, whole, **FIELDS)
        for phase in phases:
            yield Outcome("SIGKILL, one process", not wrong, wrong or phase)


def _wait(started: Started, workdir: Path, rng: random.Random) -> None:
    """Until a random moment of a random phase, or until the command has ended."""
    phase = rng.choice(("start-up", "compile", "steps", "steps", "save", "evaluation", "end"))
    if phase == "start-up":
        return _sleep(started, rng.uniform(0, 8))
    if phase == "compile":
        _until(started, lambda: "steps: " in started.said())
        return _sleep(started, rng.uniform(0, 3))
    if phase == "end":
        _until(started, lambda: "scores ..." in started.said())
        return _sleep(started, rng.uniform(0, 5))
    step = runs.last_step(workdir) + rng.randint(1, 40)
    if phase == "evaluation":
        step += (EVAL - 1 - step) % EVAL
    _until(started, lambda: runs.last_step(workdir) >= min(step, STEPS - 1))
    if phase == "save":
        _until(started, lambda: any((workdir / "checkpoints").glob("*tmp*")))
    return _sleep(started, rng.uniform(0, 0.2))


def _until(started: Started, happened: Callable[[], bool]) -> None:
    end = time.monotonic() + runs.LONG
    while started.running() and time.monotonic() < end and not happened():
        time.sleep(0.002)


def _sleep(started: Started, seconds: float) -> None:
    end = time.monotonic() + seconds
    _until(started, lambda: time.monotonic() >= end)


def _phase(started: Started, workdir: Path) -> str:
    """Where the command is, by what it has written."""
    said = started.said()
    if not started.running():
        return "after the end"
    if "scores ..." in said:
        return "scores"
    if any((workdir / "checkpoints").glob("*tmp*")):
        return "save"
    if "compiled in" not in said:
        return "compile" if "steps: " in said else "start-up"
    return "evaluation" if runs.last_step(workdir) % EVAL == EVAL - 1 else "steps"
