"""Out of memory, on a device or the host, while a program is compiled or runs: one line with the remedies."""

import contextlib
import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from simclr_jax import storage
from simclr_jax.errors import OutOfMemoryError, SimclrError

UNITS = {unit: 1024**power for power, unit in enumerate(("", "K", "M", "G", "T", "P", "E"))}
SIZE = r"([\d.]+) ?([KMGTPE]?)(?:i?B|bytes)?\b"

# What XLA says on CPUs, GPUs and TPUs (openxla.org/xla/errors E0100, E1000), CUDA, NumPy and C++.
MARKS = re.compile(
    r"out of memory|(failed|unable) to allocate|attempting to (allocate|reserve)|hbm usage|"
    r"resource.exhausted|bad_alloc|CU\w+_STATUS_ALLOC_FAILED",
    re.I,
)
NEEDED = (
    re.compile(r"\((\d+) ?()B(?:ytes)?\)"),  # "request for 2.99GiB (3206250496B)"
    re.compile(r"(?:allocat(?:e|ing)|reserve|request for)(?: a)? " + SIZE, re.I),
    re.compile(r"used " + SIZE + r" of", re.I),
    re.compile(r"hbm usage:? " + SIZE, re.I),
)
FREE = (
    re.compile(r"there are " + SIZE + " free", re.I),
    re.compile(r"free memory/total memory: (\d+)()", re.I),
    re.compile(r"used [\d.]+[KMGTPE]?i?B? of " + SIZE, re.I),
    re.compile(r"available bytes: " + SIZE, re.I),
)


class Shortage(NamedTuple):
    """Bytes from an error message; None: the message does not say."""

    host: bool
    needed: int | None
    free: int | None


def shortage(error: BaseException) -> Shortage | None:
    """The figures in an error message; None if the error is not about memory."""
    text = str(error)
    if isinstance(error, MemoryError):
        return Shortage(True, _size(NEEDED, text), None)
    if not isinstance(error, (RuntimeError, ValueError)):  # JAX raises the one or the other
        return None
    if not MARKS.search(text) or storage.is_storage(error):  # TensorStore calls a full disk exhausted, too
        return None
    return Shortage("bad_alloc" in text, _size(NEEDED, text), _size(FREE, text))


@contextlib.contextmanager
def explained(remedies: Callable[[Any, bool], list[str]], config: Any) -> Iterator[None]:
    """Turns the out-of-memory errors of JAX, NumPy and Python into OutOfMemoryError.

    Args:
      remedies: `training` or `evaluation`.
    """
    try:
        yield
    except SimclrError:
        raise
    except (RuntimeError, ValueError, MemoryError) as error:
        found = shortage(error)
        if found is None:
            raise
        raise OutOfMemoryError(line(found, remedies(config, found.host))) from error


def line(found: Shortage, remedies: list[str]) -> str:
    """The error's one line."""
    device = None if found.host else _device()
    host = device is None or device.platform == "cpu"
    where = "this host" if host or device is None else f"a device ({device.device_kind})"
    room = found.free
    if room is None:
        room = host_free() if host else _device_free()
    sizes = [(found.needed, "needed"), (room, "free")]
    told = ", ".join(f"{storage.told(size)} {word}" for size, word in sizes if size is not None)
    return f"out of memory on {where}{': ' * bool(told)}{told}; {', or '.join(remedies)}"


def training(config: Any, host: bool) -> list[str]:
    """Ways to reduce the memory of a step, the best first."""
    train, model = config.train, config.model
    found = [f"lower config.train.batch_size={train.batch_size}"]
    if host:
        return [*found, f"lower config.data.memory_gb={config.data.memory_gb:g}"]
    if train.microbatch:
        found.append(f"lower config.train.microbatch={train.microbatch}")
    else:
        found.append("set config.train.microbatch to a part of it")
    if not model.remat and model.encoder in ("resnet", "vit"):
        found.append("config.model.remat=True")
    if model.dtype != "bfloat16":
        found.append("config.model.dtype=bfloat16")
    return found


def evaluation(config: Any, host: bool) -> list[str]:
    """Ways to reduce the memory of an evaluation."""
    del host
    found = [f"lower config.eval.batch_size={config.eval.batch_size}"]
    return [*found, f"lower config.eval.knn.bank={config.eval.knn.bank}"]


def _size(patterns: tuple[re.Pattern, ...], text: str) -> int | None:
    for pattern in patterns:
        if found := pattern.search(text):
            with contextlib.suppress(ValueError):
                return int(float(found[1]) * UNITS[found[2].upper()])
    return None


def _device() -> Any:
    """A device of this process, None if JAX has not been started."""
    jax = sys.modules.get("jax")
    return jax.local_devices()[0] if jax else None


def _device_free() -> int | None:
    """Free bytes of the fullest device, if the backend reports them."""
    stats = [device.memory_stats() or {} for device in sys.modules["jax"].local_devices()]
    counted = [each for each in stats if {"bytes_limit", "bytes_in_use"} <= each.keys()]
    return min((each["bytes_limit"] - each["bytes_in_use"] for each in counted), default=None)


def host_free() -> int | None:
    """Bytes of the host's memory that a process can still get; Linux tells."""
    found = []
    with contextlib.suppress(OSError, ValueError, IndexError):
        text = Path("/proc/meminfo").read_text()
        found += [1024 * int(each) for each in re.findall(r"MemAvailable:\s*(\d+)", text)[:1]]
    with contextlib.suppress(ImportError, OSError, ValueError, IndexError):
        import resource

        limit = resource.getrlimit(resource.RLIMIT_AS)[0]
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        if limit != resource.RLIM_INFINITY:
            found.append(max(0, limit - pages * os.sysconf("SC_PAGE_SIZE")))
    return min(found, default=None)
