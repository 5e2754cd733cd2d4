"""Damaged checkpoints: what is read is what was saved, or an older one is; a pinned one is never replaced."""

import gc
import random
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

import simclr_jax
from simclr_jax import checkpoint
from simclr_jax.errors import DamagedError, SimclrError
from tortures import damage, runs
from tortures.results import Faults, Outcome
from tortures.runs import Lab

NEWEST, OLDER = 120, 110  # steps of tiny.py's last two checkpoints
WHOLE_COMMANDS = 3
HANGS = 60  # seconds after which a reading counts as hanging


def faults(lab: Lab, tries: int, rng: random.Random) -> Faults:
    """`tries` damaged files read in this process, a tenth of them through a whole run, and a few commands."""
    whole = runs.reference(lab)
    files = sorted(p for p in (whole / "checkpoints" / str(NEWEST)).rglob("*") if p.is_file())
    jobs = [(file, way) for file in files for way in damage.WAYS]
    jobs += [(file, "one bit flipped") for file in files for _ in range(5)]
    rng.shuffle(jobs)
    while len(jobs) < tries:
        jobs += jobs
    commands = min(WHOLE_COMMANDS, tries)
    count = tries + tries // 10 + commands + 2
    return Faults(count, _all(lab, whole, jobs[:tries], commands, rng))


def _all(lab: Lab, whole: Path, jobs: list, commands: int, rng: random.Random) -> Iterator[Outcome]:
    workdir = lab.fresh("damaged")
    damage.copy(whole, workdir)
    saved = {step: runs.arrays(whole, step) for step in (NEWEST, OLDER)}
    folder = workdir / "checkpoints" / str(NEWEST)
    for number, (file, way) in enumerate(jobs):
        target = workdir / file.relative_to(whole)
        damage.WAYS[way](target, rng)
        yield _read(workdir, saved, way, str(file.relative_to(whole)))
        if number % 10 == 0:
            yield _run_again(lab, workdir, whole, way)
            damage.copy(whole, workdir)
        damage.copy(whole / "checkpoints" / str(NEWEST), folder)
    for _ in range(commands):
        yield _command(lab, whole, rng)
    yield from _pinned_commands(lab, whole)


def _read(workdir: Path, saved: dict[int, dict[str, np.ndarray]], way: str, file: str) -> Outcome:
    """Reads the newest checkpoint, and the same one pinned, whose damage must never be passed over."""
    fault = f"file of a checkpoint {way}"
    try:
        with runs.stderr_caught() as said, _alarm():
            found, damaged = checkpoint.newest(workdir / "checkpoints")
            pinned = _pinned(workdir)
            gc.collect()  # what nobody has asked for is told of when it is collected
    except Exception as error:
        return Outcome(fault, False, f"{file}: {type(error).__name__}: {error}")
    if said[0].strip():
        return Outcome(fault, False, f"{file}: stderr says {said[0][-300:]}")
    if found.step not in saved:
        return Outcome(fault, False, f"{file}: step {found.step}")
    if name := runs.differing(found.arrays, saved[found.step]):
        return Outcome(fault, False, f"{file}: {name} has other numbers")
    if found.step == OLDER and damaged and str(NEWEST) not in str(damaged[0]):
        return Outcome(fault, False, f"{file}: the line does not name the folder: {damaged[0]}")
    for name, array in (pinned or {}).items():
        if array.tobytes() != saved[NEWEST][name].tobytes():
            return Outcome(fault, False, f"{file}: pinned, {name} has other numbers")
    return Outcome(fault, True, "as saved" if found.step == NEWEST else "fell back")


def _pinned(workdir: Path) -> dict[str, np.ndarray] | None:
    """The encoder of step NEWEST, None where it is refused as damaged or missing."""
    try:
        found = simclr_jax.load(workdir, step=NEWEST)
    except DamagedError:
        return None
    except SimclrError as error:
        if f"no checkpoint {NEWEST}" not in str(error):
            raise
        return None
    if found.step != NEWEST:
        raise AssertionError(f"asked for step {NEWEST}, got {found.step}")
    variables = {"params": found.variables["params"], "model_state": {**found.variables}}
    del variables["model_state"]["params"]
    return checkpoint.named(variables)


class _alarm:  # noqa: N801 - a context, used like a function
    """Ends what hangs."""

    def __enter__(self) -> None:
        self.before = signal.signal(signal.SIGALRM, self.ring)
        signal.alarm(HANGS)

    def ring(self, *_: Any) -> None:
        raise TimeoutError(f"it hangs for {HANGS} s")

    def __exit__(self, *_: Any) -> None:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, self.before)


def _run_again(lab: Lab, workdir: Path, whole: Path, way: str) -> Outcome:
    """The same run once more, in this process: it ends with the right numbers."""
    fault = f"whole run, file {way}"
    (workdir / "summary.json").unlink()
    try:
        with runs.stderr_caught() as said, _alarm():
            text = runs.inside(lab, workdir)
    except Exception as error:
        return Outcome(fault, False, f"{type(error).__name__}: {error}")
    wrong = runs.difference(workdir, whole)
    if "Traceback" in said[0]:
        wrong = wrong or f"stderr says {said[0][-300:]}"
    aside = (workdir / "damaged" / str(NEWEST)).exists()
    if "moved the damaged" in text and not aside:
        wrong = wrong or "the damaged checkpoint is not in the folder damaged"
    return Outcome(fault, not wrong, wrong or ("set aside, trained again" if aside else "nothing to do"))


def _spoil(folder: Path) -> None:
    """Damages the parameters for certain."""
    for file in (folder / "params").rglob("*"):
        if file.is_file() and file.parent.name == "d":
            file.write_bytes(b"")


def _command(lab: Lab, whole: Path, rng: random.Random) -> Outcome:
    """Through the command: a line names the folder, it is set aside, the numbers are right."""
    fault, workdir = "whole command, parameters emptied", lab.fresh("spoilt")
    damage.copy(whole, workdir)
    folder = workdir / "checkpoints" / str(NEWEST)
    _spoil(folder)
    ended = runs.run(lab, workdir)
    wrong = f"exit code {ended.code}: {ended.err[-300:]}" if ended.code else ended.tidy
    if f"note: {folder}" not in ended.out:
        wrong = wrong or f"no line names {folder}"
    if not (workdir / "damaged" / str(NEWEST)).exists():
        wrong = wrong or "the damaged checkpoint is not in the folder damaged"
    wrong = wrong or runs.difference(workdir, whole)
    return Outcome(fault, not wrong, wrong or "set aside, trained again")


def _pinned_commands(lab: Lab, whole: Path) -> Iterator[Outcome]:
    """`evaluate --step` and `config.start.step` refuse a damaged checkpoint by one line."""
    workdir = lab.fresh("pinned")
    damage.copy(whole, workdir)
    _spoil(workdir / "checkpoints" / str(NEWEST))
    python = runs.command(lab, workdir)[0]
    evaluate = [python, "-m", "simclr_jax.evaluate", f"--workdir={workdir}", f"--step={NEWEST}",
                "--protocols=health"]  # fmt: skip
    fields = {"start__workdir": workdir, "start__step": NEWEST}
    started = runs.command(lab, lab.fresh("student"), **fields)
    for fault, words in (("evaluate --step", evaluate), ("config.start.step", started)):
        ended = runs.Started(lab, words).end()
        wrong = ended.tidy
        if ended.code != 2 or f"/checkpoints/{NEWEST}" not in ended.err:
            wrong = wrong or f"exit code {ended.code}: {ended.err[-300:]}"
        yield Outcome(f"pinned and damaged, {fault}", not wrong, wrong or "refused by one line")
