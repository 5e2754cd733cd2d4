"""Makes faults and tells what became of the run: nothing may be lost, nothing mixed.

    python tools/torture.py [--parts=kills,...] [--tries=N] [--steps=N] [--seed=S] [--out=DIR]

Parts, in this order by default:
  kills        SIGKILL at random moments, from start-up to the last score; equal to the bit afterwards
  kills_two    the same of two processes, and of eight devices; in float64 the losses are those of one device
  storage      a full disk, one without inodes, one that is read-only, at every write
  checkpoints  every file of the newest checkpoint truncated, emptied, deleted, flipped, grown, replaced
  files        config.json, metrics.jsonl and the other small files torn, binary, of another shape, huge
  locks        several commands on one workdir at one moment; owners that died; leases of other hosts
  signals      SIGTERM and SIGINT, once and twice, at every phase
  numbers      a run that diverges: one line, a dump, and the step made again
  mutations    command lines with random mistakes
  soak         many steps: memory, handles and threads do not grow

--tries  faults of each part (default: each part's own); --steps of the soak (default: 20,000)
--out    folder of the runs and of torture.json (default: runs/torture)

Prints a table in Markdown. The exit code is 1 where anything was lost.
"""

import argparse
import importlib
import json
import os
import random
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tortures import machine  # imports no JAX

PARTS = {  # and the tries that each makes by default
    "kills": 50,
    "kills_two": 16,
    "storage": 24,
    "checkpoints": 400,
    "files": 80,
    "locks": 20,
    "signals": 32,
    "numbers": 6,
    "mutations": 2000,
    "soak": 2,
}


def parse(argv: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        usage=__doc__.split("\n\n")[1].strip(), description=__doc__.partition("Parts")[2], allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--parts", default=",".join(PARTS), help=argparse.SUPPRESS)
    parser.add_argument("--tries", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--steps", type=int, default=20_000, help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=Path("runs/torture"), help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    options.parts = options.parts.split(",")
    for name in options.parts:
        if name not in PARTS:
            parser.error(f"--parts: {name!r} must be one of {', '.join(PARTS)}")
    if options.tries is not None and options.tries < 1:
        parser.error(f"--tries={options.tries}: must be at least 1")
    return options


def torture(name: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Makes the faults of one part; the rows of its table."""
    machine.prepare(options.out)
    from tortures import results, runs

    from simclr_jax import metrics

    part, lab = importlib.import_module(f"tortures.{name}"), runs.make_lab(options.out)
    rng = random.Random(f"{name} {options.seed}")
    more = {"steps": options.steps} if name == "soak" else {}
    begin = time.monotonic()
    count, found = part.faults(lab, options.tries or PARTS[name], rng, **more)
    outcomes, progress = [], metrics.Progress(0, count, unit="fault")
    for number, outcome in enumerate(_guarded(found), 1):
        outcomes.append(outcome)
        if outcome.ok is False:
            progress.say(f"lost: {name}, {outcome.fault}: {outcome.how}")
        progress.step(min(number, count))
    progress.close()
    rows = results.rows(name, outcomes)
    print(f"{name}: {len(outcomes)} in {time.monotonic() - begin:.0f} s", flush=True)
    return rows


def _guarded(found: Iterator) -> Iterator:
    """The outcomes; a fault of the harness itself counts as a loss, and the other parts go on."""
    from tortures.results import Outcome

    try:
        yield from found
    except Exception as error:
        traceback.print_exc()
        yield Outcome("the harness itself", False, f"{type(error).__name__}: {error}")


def main(argv: list[str]) -> int:
    """Runs the parts, prints the table, writes torture.json; 1 where anything was lost."""
    options = parse(argv)
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell's `&`; the runs would inherit it
        signal.signal(signal.SIGINT, signal.default_int_handler)
    from tortures import results

    shutil.rmtree(options.out / "reference", ignore_errors=True)  # of another version perhaps
    rows = []
    for name in options.parts:
        rows += torture(name, options)
        content = {"seed": options.seed, "cores": os.cpu_count(), "rows": rows}
        (options.out / "torture.json").write_text(json.dumps(content, indent=2) + "\n")
    print(f"\n{results.table(rows)}\n\n{options.out / 'torture.json'}")
    return int(any(row["lost"] for row in rows))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
