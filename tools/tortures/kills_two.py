"""SIGKILL to one or all of several processes: in float64 the losses are those of one device, to 1e-9."""

import os
import random
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from simclr_jax import metrics
from tortures import runs
from tortures.results import Faults, Outcome
from tortures.runs import Lab, Started

STEPS, PER_RUN = 20, 4
FIELDS = {"train__steps": STEPS, "checkpoint__every__steps": 4, "eval__every__steps": 0,
          "model__dtype": "float64", "mesh__devices": 0}  # fmt: skip
DEVICES = " --xla_force_host_platform_device_count={}"
KINDS = ("two processes of two devices", "one process of eight devices")


def faults(lab: Lab, tries: int, rng: random.Random) -> Faults:
    """Half of the kills for each kind of run."""
    return Faults(tries, _kills(lab, tries, rng))


def _start(lab: Lab, workdir: Path, kind: str) -> Started:
    words = runs.command(lab, workdir, **FIELDS)
    if kind == KINDS[0]:
        launcher = runs.ROOT / "tools" / "launch" / "local.py"
        words = [sys.executable, str(launcher), "--processes=2", "--devices=2", "--grace=30", "--", *words]
        return Started(lab, words, JAX_ENABLE_X64="1")
    count = DEVICES.format(8 if kind == KINDS[1] else 1)
    return Started(lab, words, JAX_ENABLE_X64="1", XLA_FLAGS=runs.machine.QUICK + count)


def _losses(workdir: Path) -> list[float]:
    return [row["loss"] for row in metrics.read_rows(workdir)]


def _kills(lab: Lab, tries: int, rng: random.Random) -> Iterator[Outcome]:
    one = lab.out / "reference" / "float64"
    if not (one / "summary.json").exists():
        ended = _start(lab, one, "one device").end()
        if ended.code:
            raise RuntimeError(f"the run that nothing happens to fails: {ended.err or ended.out}")
    left, number = tries, 0
    while left:
        kind, kills, number = KINDS[number % 2], min(PER_RUN, left), number + 1
        left -= kills
        workdir = lab.fresh(f"killed_{number}_{number % 2}")
        moments = [_kill(_start(lab, workdir, kind), workdir, rng) for _ in range(kills)]
        ended = _start(lab, workdir, kind).end()
        wrong = f"exit code {ended.code}: {(ended.err or ended.out)[-400:]}" if ended.code else ""
        if not wrong:
            mine, whole = _losses(workdir), _losses(one)
            if len(mine) != STEPS or not np.allclose(mine, whole, rtol=1e-9, atol=0):
                wrong = f"{len(mine)} losses, {mine[-3:]} for {whole[-3:]}"
        for moment in moments:
            yield Outcome(f"SIGKILL, {kind}", not wrong, wrong or moment)


def _kill(started: Started, workdir: Path, rng: random.Random) -> str:
    """Kills at a random moment, one process or all; where it was."""
    if rng.random() < 0.3:
        end = time.monotonic() + rng.uniform(0, 12)
        while started.running() and time.monotonic() < end:
            time.sleep(0.02)
    else:
        step = min(STEPS - 1, runs.last_step(workdir) + rng.randint(1, 6))
        end = time.monotonic() + runs.LONG
        while started.running() and runs.last_step(workdir) < step and time.monotonic() < end:
            time.sleep(0.002)
    moment = "after the end" if not started.running() else "steps" if runs.last_step(workdir) else "start-up"
    victims = _children(started)
    for victim in [rng.choice(victims)] if victims and rng.random() < 0.5 else victims:
        try:
            os.kill(victim, signal.SIGKILL)
        except ProcessLookupError:
            continue
    if not victims:
        started.kill()
    started.end()
    return moment


def _children(started: Started) -> list[int]:
    """The processes of the launcher; [] where the command trains by itself."""
    number = started.process.pid
    try:
        text = Path(f"/proc/{number}/task/{number}/children").read_text()
        command = Path(f"/proc/{number}/cmdline").read_bytes()
    except OSError:
        return []
    return [int(word) for word in text.split()] if b"local.py" in command else []
