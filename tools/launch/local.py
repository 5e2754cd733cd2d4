"""Starts a run as several processes on this machine, each with its share of the GPUs.

    python tools/launch/local.py --processes=2 -- python -m simclr_jax.main --config=configs/imagenet.py

With --devices=4 it rehearses a pod on the CPU: every process has 4 CPU devices. Process 0 prints as if it
were alone; the lines of the others begin with [1], [2], ... SIGINT, SIGTERM and SIGHUP reach all of them.
When one fails, the others have --grace seconds to end. The exit code is 0, or that of the first that failed.
"""

import argparse
import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import sys
import threading
import time

FAILED = 2  # exit code of a mistake in the command line, as simclr_jax.main's
PATIENCE = 10.0  # seconds from SIGTERM to SIGKILL
POLL = 0.02  # seconds
PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class LaunchError(Exception):
    """What is wrong with the command line or the machine, in one line."""


class Parser(argparse.ArgumentParser):
    """Raises instead of printing the usage."""

    def error(self, message):
        raise LaunchError(message)


def parse(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """Options before `--`, and the command after it."""
    parser = Parser(
        usage="local.py [options] -- COMMAND ...",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--processes", type=int, default=2, help="how many (default: 2)")
    parser.add_argument("--devices", type=int, help="run on the CPU, with so many devices a process")
    parser.add_argument("--grace", type=float, default=60, help="seconds the others have (default: 60)")
    at = argv.index("--") if "--" in argv else len(argv)
    options, command = parser.parse_args(argv[:at]), argv[at + 1 :]
    if options.processes < 1:
        raise LaunchError(f"--processes={options.processes}: must be at least 1")
    if options.devices is not None and options.devices < 1:
        raise LaunchError(f"--devices={options.devices}: must be at least 1")
    if not 0 <= options.grace < float("inf"):
        raise LaunchError(f"--grace={options.grace:g}: must be a number of seconds, not negative")
    if not command:
        raise LaunchError(
            "the command is missing: local.py --processes=2 -- python -m simclr_jax.main --config=..."
        )
    return options, command


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def visible_gpus() -> list[str]:
    """The GPUs that CUDA may use, as CUDA_VISIBLE_DEVICES names them."""
    if os.environ.get("JAX_PLATFORMS", "").startswith("cpu"):
        return []
    if (chosen := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [name for name in chosen.replace(" ", "").split(",") if name not in ("", "-1")]
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return []
    return [str(i) for i in range(sum(line.startswith("GPU ") for line in listed.splitlines()))]


def environments(processes: int, devices: int | None) -> list[dict[str, str]]:
    """One environment a process: where they meet, who it is and what it may use."""
    address = f"127.0.0.1:{free_port()}"
    shared = dict(
        os.environ,
        JAX_COORDINATOR_ADDRESS=address,
        JAX_COORDINATOR_BIND_ADDRESS=address,  # otherwise jax listens to the whole network
        JAX_NUM_PROCESSES=str(processes),
    )
    if devices:
        flags = f"{shared.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
        shared.update(XLA_FLAGS=flags.strip(), JAX_PLATFORMS="cpu")
    each = [dict(shared, JAX_PROCESS_ID=str(i)) for i in range(processes)]
    gpus = [] if devices else visible_gpus()
    if gpus and processes > 1:
        share, rest = divmod(len(gpus), processes)
        if rest or not share:
            raise LaunchError(f"{len(gpus)} GPUs do not divide among {processes} processes (--processes)")
        for i, environment in enumerate(each):
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(gpus[i * share : (i + 1) * share])
    for environment in each[1:]:
        environment.setdefault("PYTHONUNBUFFERED", "1")  # a pipe would hold their lines back
    return each


def die_with_parent():
    """What a child does before it starts: Linux sends it SIGTERM should the launcher be killed."""
    if sys.platform != "linux":
        return None
    prctl, set_death_signal = ctypes.CDLL(None).prctl, 1
    return lambda: prctl(set_death_signal, signal.SIGTERM)


class Process:
    """A child with all that it starts: a process group, so that Ctrl-C reaches it once, through us."""

    def __init__(self, command: list[str], environment: dict[str, str], piped: bool):
        output = subprocess.PIPE if piped else None
        self.child = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            process_group=0,
            preexec_fn=die_with_parent(),
        )
        self.gone = False  # the whole group; from then on its number may belong to others

    @property
    def code(self) -> int | None:
        """The child's exit code as a shell gives it; None while it runs."""
        result = self.child.poll()
        return 128 - result if result is not None and result < 0 else result

    def send(self, number: int) -> None:
        """Sends a signal to the group; 0 only asks whether anything is left of it."""
        if not self.gone:
            try:
                os.killpg(self.child.pid, number)
            except (ProcessLookupError, PermissionError):
                self.gone = self.code is not None


def copy_lines(source, target, prefix: bytes) -> None:
    """Passes lines on; of a progress bar, what a terminal would show in the end."""
    # Where nobody reads us any more the child hears of it, as it would without a launcher.
    with source, contextlib.suppress(OSError):
        for line in source:
            target.write(prefix + line.rstrip(b"\r\n").rsplit(b"\r", 1)[-1] + b"\n")
            target.flush()


def say(text: str) -> None:
    print(f"launch: {text}", file=sys.stderr, flush=True)


def wait(processes: list[Process], grace: float, received: list[int]) -> int:
    """Waits for all, passing signals on; the exit code of the first that failed, or 0."""
    code, passed, ending = 0, 0, None
    while True:
        codes = [process.code for process in processes]
        running = codes.count(None)
        failed = [(i, result) for i, result in enumerate(codes) if result]
        if failed and not code:
            i, code = failed[0]
            if running:
                say(f"process {i} ended with exit code {code}; the others have {grace:g} s")
        if ending is None and (failed or not running):
            now = time.monotonic()
            ending = [(now + grace, signal.SIGTERM), (now + grace + PATIENCE, signal.SIGKILL)]
        for process in processes:
            process.send(0)
        if not running and (not ending or all(process.gone for process in processes)):
            return code
        due = received[passed:]  # a second one, too: it ends what the first one asks to end
        passed += len(due)
        while ending and time.monotonic() >= ending[0][0]:
            due.append(ending.pop(0)[1])
            say(f"sends {due[-1].name} to what still runs")
        for number in due:
            for process in processes:
                process.send(number)
        time.sleep(POLL)


def launch(options: argparse.Namespace, command: list[str]) -> int:
    """Runs the command in every process; the exit code."""
    received, processes, copiers = [], [], []
    for number in PASSED_ON:
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup ignores SIGHUP; so it stays
            signal.signal(number, lambda number, _: received.append(number))
    try:
        for i, environment in enumerate(environments(options.processes, options.devices)):
            processes.append(Process(command, environment, piped=i > 0))
    except OSError as error:
        for process in processes:
            process.send(signal.SIGKILL)
        wait(processes, 0, received)
        raise LaunchError(f"{command[0]}: {error.strerror or error}") from error
    for i, process in enumerate(processes[1:], 1):  # only now: to fork beside threads is not safe
        for source, target in ((process.child.stdout, sys.stdout), (process.child.stderr, sys.stderr)):
            work = (source, target.buffer, f"[{i}] ".encode())
            copiers.append(threading.Thread(target=copy_lines, args=work, daemon=True))
            copiers[-1].start()
    try:
        return wait(processes, options.grace, received)
    finally:
        for copier in copiers:
            copier.join(timeout=PATIENCE)


def main(argv: list[str]) -> int:
    """The command; a mistake is one line and exit code 2."""
    try:
        return launch(*parse(argv))
    except LaunchError as error:
        print(f"error: {error}", file=sys.stderr)
        return FAILED


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
