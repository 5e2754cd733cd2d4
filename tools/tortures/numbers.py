"""A run that diverges: one line with metric and step, a dump, the step made again, and a way on."""

import random
import re
import sys
from collections.abc import Iterator

from tortures import runs
from tortures.results import Faults, Outcome
from tortures.runs import Lab

RATES = ("1e18", "1e25", "1e30", "1e36")  # SGD's: float32 ends at 3e38
LINE = re.compile(r"error: (loss|grad_norm) is (nan|inf|-inf) at step (\d+):")


def faults(lab: Lab, tries: int, rng: random.Random) -> Faults:
    """Runs with learning rates of which no number comes back, one or several steps a call."""
    return Faults(tries, _diverge(lab, tries, rng))


def _diverge(lab: Lab, tries: int, rng: random.Random) -> Iterator[Outcome]:
    for _ in range(tries):
        calls = rng.choice((1, 7))
        fields = {"optimizer__name": "sgd", "optimizer__warmup__steps": rng.randint(0, 12),
                  "optimizer__learning_rate": rng.choice(RATES), "eval__every__steps": 0,
                  "train__steps_per_call": calls, "log__every__steps": rng.choice((1, 10))}  # fmt: skip
        wrong = _one(lab, fields)
        fault = f"no number any more, {'one step' if calls == 1 else 'several steps'} a call"
        yield Outcome(fault, not wrong, wrong or "one line, dumped, made again by tools/replay.py")


def _one(lab: Lab, fields: dict) -> str:
    """What is wrong, "" for nothing."""
    workdir = lab.fresh("diverged")
    ended = runs.run(lab, workdir, **fields)
    match = LINE.search(ended.err)
    if ended.code != 2 or not match or ended.tidy or len(ended.err.strip().splitlines()) != 1:
        return f"{fields}: exit code {ended.code}: {ended.tidy or ended.err[-400:]}"
    step = int(match[3])
    if not (workdir / "nonfinite" / f"{step - 1}.json").exists():
        return f"no dump of step {step}: {ended.err}"
    again = runs.run(lab, workdir, **fields)
    if again.code != 2 or not (found := LINE.search(again.err)) or found[3] != match[3]:
        return f"the second time it says {again.err[-300:]}, the first {ended.err[-300:]}"
    replay = runs.ROOT / "tools" / "replay.py"
    made = runs.Started(lab, [sys.executable, str(replay), f"--workdir={workdir}"]).end()
    if made.code or "Traceback" in made.err:
        return f"tools/replay.py: exit code {made.code}: {(made.err or made.out)[-300:]}"
    return ""
