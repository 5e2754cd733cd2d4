"""Contenders that take turns: ours in this process, a peer's in an interpreter of its own.

What disturbs a machine then disturbs all of them alike; medians are compared.
"""

import contextlib
import functools
import json
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax

from simclr_jax import memory_error
from simclr_jax.errors import SimclrError, one_line

PIPELINED = ", pipelined"  # ends the name of a contender of which not every repeat is waited for
SERVER = Path(__file__).with_name("peers.py")


class Reading(NamedTuple):
    """One repeat."""

    seconds: float
    cpu_seconds: float  # of all threads
    memory_bytes: float | None = None  # at the peak, above what was held before


Contender = Callable[[], Reading]


def timed(run: Callable[[], Any], items: int = 1) -> Contender:
    """A contender of our own: `run` returns when its `items` are done; the times are an item's."""

    def go() -> Reading:
        begin, cpu = time.perf_counter(), time.process_time()
        run()
        return Reading((time.perf_counter() - begin) / items, (time.process_time() - cpu) / items)

    return go


def contest(contenders: dict[str, Contender], repeats: int, warm_up: int = 1) -> dict[str, dict[str, Any]]:
    """Every contender once a round; one that memory has no room for drops out.

    Returns:
      {name: {"seconds": {"median", "min", "max"}, "cpu_seconds": median, "memory_bytes": largest or None}},
      all but memory without the rounds to warm up; {"out_of_memory": why, others: None} of one that fell out.
    """
    readings: dict[str, list[Reading]] = {name: [] for name in contenders}
    full: dict[str, str] = {}
    for _ in range(warm_up + repeats):
        for name, go in contenders.items():
            if (alone := name.removesuffix(PIPELINED)) in full:  # what it held may be gone
                full[name] = full[alone]
            if name in full:
                continue
            try:
                readings[name].append(go())
            except (RuntimeError, ValueError, MemoryError) as error:
                if memory_error.shortage(error) is None:
                    raise
                full[name] = one_line(error)
    return {
        name: {"out_of_memory": full[name], "seconds": None, "cpu_seconds": None, "memory_bytes": None}
        if name in full
        else _summary(all_of_it, warm_up)
        for name, all_of_it in readings.items()
    }


def rate(items: int, seconds: float | dict[str, float] | None) -> float | None:
    """Items a second, of seconds or the median of {"median", ...}; None where there is no time."""
    if isinstance(seconds, dict):
        seconds = seconds["median"]
    return items / seconds if seconds else None


def compiled_to_fit(lowered: jax.stages.Lowered) -> jax.stages.Compiled:
    """The program; MemoryError on a CPU whose free memory the plan exceeds: Linux would kill the process."""
    compiled = lowered.compile()
    plan, free = compiled.memory_analysis(), memory_error.host_free()
    if jax.default_backend() == "cpu" and plan and free and plan.temp_size_in_bytes > free:
        raise MemoryError(f"out of memory: {plan.temp_size_in_bytes:,} bytes needed, {free:,} free")
    return compiled


def _summary(readings: list[Reading], warm_up: int) -> dict[str, Any]:
    counted = readings[warm_up:]
    seconds = [r.seconds for r in counted]
    memory = [r.memory_bytes for r in readings if r.memory_bytes is not None]
    return {
        "seconds": {"median": statistics.median(seconds), "min": min(seconds), "max": max(seconds)},
        "cpu_seconds": statistics.median(r.cpu_seconds for r in counted),
        "memory_bytes": max(memory, default=None),
    }


class Peer:
    """A peer's contender behind tools/bench/peers.py: one JSON line asks, one answers."""

    def __init__(self, python: str, **settings: Any):
        self.python = python
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed with the process
        command = [python, str(SERVER)]
        # Its own packages only, whatever of ours is on the path.
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        try:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True,
                env=environment,
            )  # fmt: skip
        except OSError as error:
            raise SimclrError(
                f"--peer={python}: {error.strerror}; give the python of an environment with torch and lightly"
            ) from None
        try:
            answer = self._ask(settings)
        except (SimclrError, MemoryError):
            self.close()
            raise
        self.name, self.missing, self.notes = (
            answer.get("name"),
            answer.get("missing"),
            answer.get("notes", []),
        )

    def __call__(self, times: int = 1) -> Reading:
        """One repeat; of several times in a row, of which the last alone is waited for."""
        return Reading(**self._ask({"go": times}))

    def _ask(self, question: dict[str, Any]) -> dict[str, Any]:
        try:
            self._process.stdin.write(json.dumps(question) + "\n")
            self._process.stdin.flush()
            answer = json.loads(self._process.stdout.readline())
        except (BrokenPipeError, ValueError):
            raise SimclrError(f"--peer={self.python}: stopped: {self._last_words()}") from None
        if "out_of_memory" in answer:
            raise MemoryError(answer["out_of_memory"])
        if "error" in answer:
            raise SimclrError(f"--peer={self.python}: {answer['error']}")
        return answer

    def _last_words(self) -> str:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=10)
        self._errors.seek(0)
        lines = self._errors.read().strip().splitlines()
        return one_line(Exception(lines[-1])) if lines else f"exit code {self._process.poll()}"

    def close(self) -> None:
        """Ends the process."""
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        self._errors.close()


@contextlib.contextmanager
def peers(python: str | None, **settings: Any) -> Iterator[tuple[dict[str, Contender], list[str]]]:
    """({name: contender}, notes) of the peer for a part; none without --peer or where it lacks a package."""
    if not python:
        yield {}, []
        return
    try:
        peer = Peer(python, **settings)
    except MemoryError as error:
        yield {}, [f"no peer: {one_line(error)}"]
        return
    try:
        if peer.missing:
            yield {}, [f"no peer: {peer.missing}"]
        else:
            yield {peer.name: peer}, peer.notes
    finally:
        peer.close()


def pipelined(contenders: dict[str, Contender], times: int) -> dict[str, Contender]:
    """The same, and each once more as "NAME, pipelined": of `times` repeats the last alone is waited for.

    Args:
      contenders: of items that take a number of repeats, as `Peer` does.
    """
    more = {f"{name}{PIPELINED}": functools.partial(go, times) for name, go in contenders.items()}
    return {**contenders, **more}
