"""Which kernels a device spends its time in, from a trace of JAX's profiler."""

import collections
import gzip
import json
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from bench import table
from simclr_jax.errors import SimclrError

SHOWN = 12  # kernels by themselves
# The first that a name matches. GPU kernels are called by the libraries' names or by what XLA fused.
KINDS = {
    "collective": r"nccl|all-?reduce|all-?gather|reduce-?scatter|collective",
    "convolution": r"conv(?!ert)|wgrad|dgrad|fprop|implicit|nhwc",
    "matrix product": r"gemm|dot|matmul|nvjet|cutlass|cublas|xmma",
    "copy": r"memcpy|copy|transpose",
    "gather, scatter, sort": r"scatter|gather|sort",
    "reduction": r"reduce",
    "elementwise": r"fusion|loop|broadcast|wrapped|select|add|multiply",
}


def shares(run: Callable[[], Any]) -> dict[str, Any]:
    """{seconds, kinds {kind: share}, kernels [{name, calls, share}]} of what `run` does on GPUs.

    Raises:
      SimclrError: the profiler saw no kernels of a GPU.
    """
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            run()
        files = sorted(Path(folder).glob("**/*.trace.json.gz"))
        events = json.loads(gzip.decompress(files[-1].read_bytes()))["traceEvents"] if files else []
    return summary(events)


def summary(events: list[dict]) -> dict[str, Any]:
    """What `shares` returns, of the events of a trace in Chrome's format."""
    named = collections.defaultdict(str)
    for event in events:
        if event.get("ph") == "M" and event.get("name") in ("process_name", "thread_name"):
            place = (event["pid"], event.get("tid") if event["name"] == "thread_name" else None)
            named[place] = event["args"].get("name", "")

    def on_device(event: dict) -> bool:
        thread = named[event["pid"], event["tid"]]
        return "/device:GPU" in named[event["pid"], None] and "Stream" in thread

    seconds, calls = collections.Counter(), collections.Counter()
    for event in events:
        if event.get("ph") == "X" and on_device(event):
            seconds[event["name"]] += event["dur"] / 1e6
            calls[event["name"]] += 1
    whole = sum(seconds.values())
    if not whole:
        raise SimclrError("--trace: the profiler saw no kernels of a GPU; leave it out")
    kinds = collections.Counter()
    for name, time in seconds.items():
        kinds[kind(name)] += time / whole
    return {
        "seconds": whole,
        "kinds": dict(kinds.most_common()),
        "kernels": [
            {"name": name, "calls": calls[name], "share": time / whole}
            for name, time in seconds.most_common(SHOWN)
        ],
    }


def kind(name: str) -> str:
    """The kind of a kernel, by its name."""
    return next((kind for kind, pattern in KINDS.items() if re.search(pattern, name.lower())), "other")


def show(found: dict[str, Any]) -> None:
    """A table of kinds, and one of the kernels that take the most."""

    def share(x):
        return f"{100 * x:.1f} %"

    title = f"kernels: {table.number(1e3 * found['seconds'])} ms on the devices"
    table.show(title, ("kind", "of the time"), [(k, share(x)) for k, x in found["kinds"].items()])
    columns = ("kernel", "calls", "of the time")
    rows = [(k["name"][:80], str(k["calls"]), share(k["share"])) for k in found["kernels"]]
    table.show("those that take the most", columns, rows)
