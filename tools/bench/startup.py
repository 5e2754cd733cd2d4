"""Measures the time from the command to the first step and to the exit, with cold and warm compile cache."""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from ml_collections import ConfigDict

from bench import table
from simclr_jax import metrics, run_summary
from simclr_jax.errors import SimclrError, one_line

STACK = {  # each is imported in a fresh interpreter
    "python alone": "pass",
    "jax": "import jax",
    "jax, flax, optax": "import jax, flax.linen, optax",
    "simclr_jax.train": "import simclr_jax.train",
    "tensorflow": "import tensorflow",
}
SHORT = {"train.steps": 1, "eval.every.epochs": 0.0, "eval.every.steps": 0, "eval.every.examples": 0,
         "eval.final": False, "eval.figures": False}  # fmt: skip


def measure(config: ConfigDict, *, command: list[str]) -> dict:
    """Runs one step twice in a row; `command` holds the --config options of the run."""
    del config  # the new process reads its own
    runs = {}
    with tempfile.TemporaryDirectory() as root:
        for name in ("cold", "warm cache"):
            runs[name] = run(command, Path(root) / name, Path(root) / "cache")
    imports = {name: import_seconds(code) for name, code in STACK.items()}
    return {"part": "startup", "runs": runs, "import_seconds": imports, **run_summary.environment()}


def run(command: list[str], workdir: Path, cache: Path) -> dict[str, float]:
    """Seconds from the start of the process to the first step's row and to the exit."""
    fields = {**SHORT, "compile_cache": str(cache)}
    options = [f"--config.{field}={value}" for field, value in fields.items()]
    command = [sys.executable, "-m", "simclr_jax.main", *command, f"--workdir={workdir}", *options]
    environment = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
    first, rows = None, workdir / metrics.JSONL
    begin = time.perf_counter()
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(command, stdout=said, stderr=said, env=environment)
        try:
            while process.poll() is None:
                if first is None and rows.exists() and rows.stat().st_size:
                    first = time.perf_counter() - begin
                time.sleep(0.01)
        finally:
            process.kill()  # an interrupted benchmark leaves no run behind
            process.wait()
        seconds = time.perf_counter() - begin
        said.seek(0)
        if process.returncode or not rows.exists():
            lines = said.read().strip().splitlines() or [f"exit code {process.returncode}"]
            raise SimclrError(f"--config: its run failed: {one_line(Exception(lines[-1]))}")
    return {"first_step_seconds": first or seconds, "exit_seconds": seconds}


def import_seconds(code: str) -> float | None:
    """Seconds of `code` in a fresh interpreter, the better of two runs; None if a package is missing."""
    best = None
    for _ in range(2):
        begin = time.perf_counter()
        if subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode:
            return None
        seconds = time.perf_counter() - begin
        best = seconds if best is None else min(best, seconds)
    return best


def show(result: dict) -> None:
    """Prints two tables."""
    table.show(
        "start of a run of one step, without evaluation: seconds from the command",
        ("", "first step done", "exit"),
        [
            (name, f"{seconds['first_step_seconds']:.2f}", f"{seconds['exit_seconds']:.2f}")
            for name, seconds in result["runs"].items()
        ],
    )
    table.show(
        "imports: seconds of a fresh interpreter",
        ("", "s"),
        [(name, "missing" if s is None else f"{s:.2f}") for name, s in result["import_seconds"].items()],
    )
