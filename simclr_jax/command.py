"""How commands end: exit codes, and one line without traceback for mistakes that the user can correct."""

import argparse
import contextlib
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator
from typing import NoReturn

from absl import logging

from simclr_jax import registry, storage
from simclr_jax.errors import SimclrError, Stopped, StorageError, one_line

# Exit codes: user's mistake, disk error, try again (sysexits.h); the signals' codes are the shell's.
FAILED, STORAGE, LOST, INTERRUPTED, TERMINATED = 2, 74, 75, 128 + 2, 128 + 15

# What JAX says of a program that is wrong by itself, whoever else takes part.
OWN_FAULTS = ("INVALID_ARGUMENT", "UNIMPLEMENTED", "RESOURCE_EXHAUSTED")

# What absl says of a value of another kind, and the kind that it wants.
KINDS = {
    r"invalid literal for int\(\)": "a whole number",
    "could not convert string to float": "a number",
    r"\('Non-boolean argument": "true or false",
}


def fail(error: object, code: int = FAILED) -> NoReturn:
    """Prints the error, without a traceback, and exits."""
    with contextlib.suppress(OSError):  # they may be files on a full disk
        print(f"error: {str(error).strip()}", file=sys.stderr, flush=True)
    _leave(code)


def _leave(code: int) -> NoReturn:
    """Ends the process.

    It exits at once if a normal exit would wait for other processes that wait for this one, or for threads of
    Orbax that never finish. It also exits at once after a signal: Python can crash while it ends busy
    threads of libraries.
    """
    with contextlib.suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    if _several() or code in (STORAGE, INTERRUPTED, TERMINATED):
        os._exit(code)
    sys.exit(code)


def add_processes(parser: argparse.ArgumentParser) -> None:
    """Adds the options of a command that several processes do together."""
    add = parser.add_argument_group("several processes").add_argument
    add("--coordinator", metavar="HOST:PORT", help="of the first (a TPU pod and Slurm need none)")
    add("--processes", type=int, metavar="N", help="how many there are")
    add("--process", type=int, metavar="I", help="which of them this is, from 0")


def misread(error: object, argv: list[str]) -> NoReturn:
    """Fails with a mistake in the command line; adds the option if the error does not name it."""
    given = [arg for arg in argv if "=" in arg and repr(arg.split("=", 1)[1]) in str(error)]
    named = not given or given[0].split("=")[0].lstrip("-") in str(error)
    line = _without_traceback(str(error))
    for words, kind in KINDS.items():
        line = re.sub(rf"^flag (--config\..+?): {words}.*", rf"\1: must be {kind}", line)
    fail(line if named else f"{given[0]}: {line}")


def _without_traceback(text: str) -> str:
    """One line with message and place, from an error with a traceback (a mistake in a config file)."""
    head, traceback_follows, trace = text.partition("\n\nTraceback")
    if not traceback_follows:
        return text
    file, line = re.findall(r'File "(.+)", line (\d+)', trace)[-1]
    place = "" if file.endswith("config_flags.py") else f" ({os.path.basename(file)}, line {line})"
    return f"{head.strip()} {trace.strip().splitlines()[-1]}{place}"


@contextlib.contextmanager
def ends(goes_on: str) -> Iterator[None]:
    """Context manager around a command: turns every failure into its exit code and line.

    Args:
      goes_on: what the same command will do, "goes on from the last checkpoint" say.
    """
    try:
        yield
    except StorageError as error:
        fail(error, STORAGE)
    except SimclrError as error:
        fail(error)
    except Stopped as stop:
        print(stop, flush=True)
        _leave(TERMINATED)
    except KeyboardInterrupt:
        fail(f"interrupted; the same command {goes_on}", INTERRUPTED)
    except Exception as error:
        if isinstance(error, OSError) and error.errno in storage.DISK:
            fail(storage.line(error.filename or "a file of this run", error), STORAGE)
        if _several() and _by_another(error):
            fail(
                f"a process of this run has ended, see what it said ({one_line(error)}); the same command on "
                f"all of them {goes_on}", LOST,
            )  # fmt: skip
        if _several():  # print the traceback and exit without waiting for the others
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(1)
        raise


@contextlib.contextmanager
def started(
    args: argparse.Namespace,
    rest: list[str],
    check: Callable[[argparse.Namespace, list[str]], None],
    goes_on: str,
) -> Iterator[None]:
    """`ends`, in which the options are checked and the file of --register has run.

    Args:
      args, rest: the options, and the words that the parser did not understand; check: raises SimclrError
        for mistakes in them.
    """
    logging.set_verbosity(logging.WARNING)
    with ends(goes_on):
        check(args, rest)
        if args.register:
            registry.run_file(args.register)
        yield


def _by_another(error: Exception) -> bool:
    """Whether the end of another process may be the cause: JAX errors, for example in a collective."""
    ours = isinstance(error, (RecursionError, NotImplementedError)) or str(error).startswith(OWN_FAULTS)
    return isinstance(error, RuntimeError) and not ours


def _several() -> bool:
    distributed = sys.modules.get("simclr_jax.distributed")
    return distributed is not None and distributed.several()
