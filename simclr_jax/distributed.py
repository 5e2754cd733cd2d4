"""Runs with several processes: a TPU pod, a Slurm job, or hosts given by flags or environment."""

import faulthandler
import importlib.util
import os
from typing import Any

import jax

from simclr_jax import signals
from simclr_jax.errors import SimclrError, one_line

HEARTBEAT = 30  # seconds without a sign of life after which a process counts as gone, and the others end
CONNECT = 300  # seconds that processes wait for each other at the start
LEAVE = 900  # ... and at the end, where the first one still draws figures

VARIABLES = {
    "coordinator": "JAX_COORDINATOR_ADDRESS",
    "processes": "JAX_NUM_PROCESSES",
    "process": "JAX_PROCESS_ID",
}


def start(coordinator: str | None = None, processes: int | None = None, process: int | None = None) -> None:
    """Connects to the other processes of the run, if there are any; before JAX is asked for devices.

    Args:
      coordinator: HOST:PORT of process 0, on a port that is free there.
      processes: how many there are.
      process: which one this is, from 0.

    None takes the value from JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES or JAX_PROCESS_ID. Without these,
    it detects a Cloud TPU and a Slurm step of several tasks; otherwise the run has one process.

    Raises:
      SimclrError: something is missing or not a number, or the others cannot be reached.
    """
    given = {"coordinator": coordinator, "processes": processes, "process": process}
    told = {
        name: os.environ.get(VARIABLES[name]) if value is None else value for name, value in given.items()
    }
    told = {name: value for name, value in told.items() if value not in (None, "")}
    if told:
        _connect(**_checked(told), cluster_detection_method="deactivate")
    elif int(os.environ.get("SLURM_STEP_NUM_TASKS", os.environ.get("SLURM_NTASKS", "1"))) > 1:
        if "SLURM_PROCID" in os.environ and "SLURM_STEP_NODELIST" in os.environ:  # within srun
            _connect(cluster_detection_method="slurm")
    elif _on_tpu():
        _connect(alone=True)


def first() -> bool:
    """Whether this process is the one that writes files and prints."""
    return jax.process_index() == 0


def several() -> bool:
    """Whether this process is one of several, which cannot go on without it."""
    return jax.process_count() > 1


def _checked(told: dict[str, str | int]) -> dict[str, Any]:
    """The arguments of JAX's start."""
    for name, variable in VARIABLES.items():
        if name not in told:
            raise SimclrError(f"--{name} is missing, as {', '.join(f'--{n}' for n in told)} is given "
                              f"(or the variable {variable})")  # fmt: skip
    numbers = {}
    for name in ("processes", "process"):
        try:
            numbers[name] = int(told[name])
        except ValueError:
            raise SimclrError(f"{VARIABLES[name]}={told[name]!r}: must be a whole number") from None
    count, number = numbers["processes"], numbers["process"]
    if count < 1:
        raise SimclrError(f"--processes={count}: must be at least 1")
    if not 0 <= number < count:
        raise SimclrError(f"--process={number}: must be from 0 to {count - 1}, below --processes={count}")
    host, colon, port = str(told["coordinator"]).rpartition(":")
    if not (host and colon and port.isdigit()):
        raise SimclrError(f"--coordinator={told['coordinator']}: must be HOST:PORT, for example host0:1234")
    return {"coordinator_address": f"{host}:{port}", "num_processes": count, "process_id": number}


def _connect(alone: bool = False, **arguments: Any) -> None:
    """Starts JAX's service; if the run may be `alone`, it has one process unless JAX finds others."""
    if "cpu" in os.environ.get("JAX_PLATFORMS", "").split(",")[:1]:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
    try:
        with signals.shared_with_jax():
            jax.distributed.initialize(
                **arguments,
                initialization_timeout=CONNECT,
                heartbeat_timeout_seconds=HEARTBEAT,
                shutdown_timeout_seconds=LEAVE,
            )
    except (RuntimeError, ValueError) as error:
        if alone and isinstance(error, ValueError):
            return
        raise SimclrError(f"the processes of this run did not find each other: {one_line(error)}") from None
    faulthandler.disable()  # JAX aborts where another process has died: its line, and no stacks of threads


def _on_tpu() -> bool:
    platform = (os.environ.get("JAX_PLATFORMS") or "tpu").split(",")[0]
    if platform != "tpu" or not importlib.util.find_spec("libtpu"):
        return False
    return os.path.exists("/dev/accel0") or os.path.exists("/dev/vfio/0")
