"""Sends SIGTERM and SIGINT in every phase; checks the exit code, the output, and that the run resumes."""

import os
import random
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from tortures import damage, runs
from tortures.results import Faults, Outcome
from tortures.runs import Lab, Started

FIELDS = {"eval__final": True, "eval__baselines": False}
PHASES = ("start-up", "compile", "steps", "save", "scores", "evaluate")
SIGNALS = (signal.SIGTERM, signal.SIGINT)


def faults(lab: Lab, tries: int, rng: random.Random) -> Faults:
    """Sends each signal once and twice in each phase, at random moments."""
    jobs = [(phase, number, twice) for phase in PHASES for number in SIGNALS for twice in (False, True)]
    rng.shuffle(jobs)
    while len(jobs) < tries:
        jobs += jobs
    return Faults(tries, _all(lab, jobs[:tries], rng))


def _all(lab: Lab, jobs: list, rng: random.Random) -> Iterator[Outcome]:
    whole = runs.reference(lab, "stored_scores", **FIELDS)
    for phase, number, twice in jobs:
        workdir = lab.fresh("signalled")
        name = f"{number.name}{', twice' if twice else ''}"
        wrong, code = _one(lab, workdir, whole, phase, number, twice, rng)
        yield Outcome(name, not wrong, f"{phase}: {wrong}" if wrong else f"{code} in {phase}")


def _one(
    lab: Lab, workdir: Path, whole: Path, phase: str, number: signal.Signals, twice: bool, rng: random.Random
) -> tuple[str, int]:
    """(what is wrong, "" if nothing; the exit code as a shell reports it)."""
    if phase == "evaluate":
        damage.copy(whole, workdir)
        words = [sys.executable, "-m", "simclr_jax.evaluate", f"--workdir={workdir}", "--protocols=knn,lbfgs"]
        started = Started(lab, words)
        _sleep(started, rng.uniform(0.5, 15))
    else:
        started = runs.start(lab, workdir, **FIELDS)
        _wait(started, workdir, phase, rng)
    for _ in range(1 + twice):
        if started.running():
            os.kill(started.process.pid, number)
            _sleep(started, rng.uniform(0.05, 0.4))
    ended = started.end()
    code = 128 - ended.code if ended.code < 0 else ended.code
    time.sleep(0.1)
    if started.left():
        started.kill()
        return "something of it still runs", code
    if code not in (0, 128 + number):
        return f"exit code {code}: {(ended.err or ended.out)[-300:]}", code
    if ended.tidy:
        return ended.tidy, code
    if code == 0 and phase != "evaluate" and (wrong := runs.difference(workdir, whole)):
        return f"exit code 0 before the end: {wrong}", code
    if phase == "evaluate":
        again = Started(lab, words).end()
        wrong = f"the next evaluation ends with {again.code}: {again.err[-300:]}" if again.code else ""
        return wrong, code
    return runs.went_on(lab, workdir, whole, **FIELDS), code


def _wait(started: Started, workdir: Path, phase: str, rng: random.Random) -> None:
    if phase == "start-up":
        return _sleep(started, rng.choice((0.05, 0.1, 0.2, 0.5, rng.uniform(0.5, 8))))
    word, most = {"compile": ("steps: ", 3), "scores": ("scores ...", 4)}.get(phase, ("", 0.1))
    while started.running() and word not in started.said():
        time.sleep(0.005)
    if phase in ("steps", "save"):
        step = rng.randint(1, 100)
        while started.running() and runs.last_step(workdir) < step:
            time.sleep(0.002)
    while phase == "save" and started.running() and not any((workdir / "checkpoints").glob("*tmp*")):
        time.sleep(0.001)
    return _sleep(started, rng.uniform(0, most))


def _sleep(started: Started, seconds: float) -> None:
    end = time.monotonic() + seconds
    while started.running() and time.monotonic() < end:
        time.sleep(0.005)
