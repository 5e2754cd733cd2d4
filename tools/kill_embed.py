"""Kills `simclr embed` with -9 again and again, lets it end, and counts: every image once, how much memory.

    python tools/kill_embed.py --workdir=runs/mine --images=/my/images --out=/tmp/features.npy --kills=5

Each time it is killed at a moment by chance after it has written some parts, the last time it may end. Prints
a line for each try: rows done, seconds, peak memory of the process.
"""

import argparse
import os
import random
import subprocess
import sys
import time
from pathlib import Path

from simclr_jax.data.scan import scan
from simclr_jax.embed.parts import Parts
from simclr_jax.index import table

COMMAND = (sys.executable, "-m", "simclr_jax.embed")


def peak(pid: int) -> float:
    """The largest memory that a process has held, MB; 0 where it is gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) / 1000 for line in lines if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        return 0.0


def attempt(words: list[str], parts: Parts, until: int | None, later: float) -> tuple[float, float]:
    """Runs the command; kills it `later` seconds after `until` parts are there; (seconds, peak memory)."""
    begin, most, due = time.monotonic(), 0.0, None
    with subprocess.Popen([*COMMAND, *words], stdout=subprocess.DEVNULL) as process:
        while process.poll() is None:
            most = max(most, peak(process.pid))
            if due is None and until is not None and len(parts.done()) >= until:
                due = time.monotonic() + later
            if due is not None and time.monotonic() >= due:
                process.kill()
                break
            time.sleep(0.02)
    return time.monotonic() - begin, most


def check(out: Path, images: Path) -> int:
    """The rows of the table; every image below the folder is one.

    Raises:
      AssertionError: a row is missing, or there twice.
    """
    there = [name for names in scan(images).images.values() for name in names]
    found = table.read(out).paths
    assert len(found) == len(set(found)), "rows are repeated"
    assert set(found) == set(there), f"{len(set(there) - set(found))} rows are lost"
    return len(found)


def main(argv: list[str] | None = None) -> list[tuple[float, float]]:
    """Kills, resumes and checks; (seconds, peak memory) of every try."""
    top = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("workdir", "images", "out"):
        top.add_argument(f"--{name}", required=True)
    top.add_argument("--kills", type=int, default=5)
    top.add_argument("--seed", type=int, default=0)
    args, rest = top.parse_known_args(argv)
    out, rng, tries = Path(args.out), random.Random(args.seed), []
    total = sum(map(len, scan(Path(args.images)).images.values()))
    parts = Parts(out.with_name(out.name + ".parts"), total)
    words = [f"--workdir={args.workdir}", f"--images={args.images}", f"--out={out}", *rest]
    for kill in range(args.kills + 1):
        until = len(parts.done()) + rng.randint(1, 3) if kill < args.kills else None
        tries.append(attempt(words, parts, until, rng.uniform(0, 1)))
        left = sum(b - a for a, b in parts.gaps()) if parts.folder.exists() else 0
        seconds, memory = tries[-1]
        how = "killed" if until else "ended"
        print(f"{how}: {total - left:,} of {total:,} rows, {seconds:.0f} s, {memory:,.0f} MB", flush=True)
        assert until is None or parts.folder.exists(), f"it ended before kill {kill + 1}: give more images"
    print(f"{check(out, Path(args.images)):,} rows, each once; {os.fspath(out)}")
    return tries


if __name__ == "__main__":
    main()
