"""How JAX runs here: one CPU device, programs that compile fast and are kept; said before its import."""

import os
from pathlib import Path

QUICK = "--xla_backend_optimization_level=0"  # a program that runs for a moment takes longest to compile


def variables(out: Path) -> dict[str, str]:
    """The environment of a run; equal bits need equal programs."""
    return {
        "JAX_COMPILATION_CACHE_DIR": str(out.resolve() / "xla"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
        "JAX_PLATFORMS": "cpu",
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "XLA_FLAGS": QUICK,
    }


def prepare(out: Path) -> None:
    """Sets the environment of this process."""
    os.environ.update(variables(out))
