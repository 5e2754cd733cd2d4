"""How a command without JAX ends: `simclr_jax.command` needs etils, which a service does not install."""

import argparse
import contextlib
import importlib
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NoReturn

from simclr_jax.errors import SimclrError

FAILED, INTERRUPTED = 2, 128 + 2
Watch = Callable[[range], Iterable[int]]  # what `shown` is: a bar around the steps of a loop


def fail(error: object, code: int = FAILED) -> NoReturn:
    """Prints the error in one line, without a traceback, and exits."""
    with contextlib.suppress(OSError):
        print(f"error: {str(error).strip()}", file=sys.stderr, flush=True)
    sys.exit(code)


@contextlib.contextmanager
def ends(goes_on: str = "begins anew") -> Iterator[None]:
    """Context manager around a command: a mistake, a disk error or Ctrl-C ends it in one line.

    Exit codes are 2 for a mistake or an error of the system, 130 for Ctrl-C.

    Args:
      goes_on: what the same command will do.
    """
    try:
        yield
    except SimclrError as error:
        fail(error)
    except BrokenPipeError:  # `simclr search ... | head`: whoever read has what it wants
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(FAILED)
    except OSError as error:
        fail(f"{error.filename}: {error.strerror}" if error.filename else error)
    except KeyboardInterrupt:
        fail(f"interrupted; the same command {goes_on}", INTERRUPTED)


def parsed(parser: argparse.ArgumentParser, argv: list[str] | None, **examples: str) -> argparse.Namespace:
    """The options of a command.

    Args:
      argv: its words, those of the process by default.
      examples: {option that has to be there: an example}.

    Raises:
      SimclrError: one is missing, or a word is not understood.
    """
    args, rest = parser.parse_known_args(sys.argv[1:] if argv is None else argv)
    demand(args, rest, **examples)
    return args


def demand(args: argparse.Namespace, rest: Sequence[str] = (), **examples: str) -> None:
    """What the options of any command have to be.

    Args:
      rest: words that the parser did not understand; examples: as of `parsed`.

    Raises:
      SimclrError: there is such a word, an option is missing, or --step is negative.
    """
    if rest:
        raise SimclrError(f"{rest[0]!r}: not understood; see --help")
    for name, example in examples.items():
        if not getattr(args, name):
            raise SimclrError(f"--{name} is missing: for example --{name}={example}")
    if getattr(args, "step", 0) < 0:
        raise SimclrError(f"--step={args.step}: must be one of the run's checkpoints, or 0 for the newest")


def shown(steps: range) -> Iterator[int]:
    """The range, with a bar on a terminal where it takes longer than a moment: rows, their rate, ETA.

    The ETA supposes that later rows take as long as earlier ones; those of `dedup` take longer.
    """
    try:
        from tqdm import tqdm
    except ImportError:  # the service does not install it
        yield from steps
        return
    total = steps.stop - steps.start
    with tqdm(total=total, unit=" rows", unit_scale=True, delay=3, leave=False, disable=None) as bar:
        for begin in steps:
            yield begin
            bar.update(min(steps.step, steps.stop - begin))


def need(module: str, extra: str) -> Any:
    """The module, imported.

    Raises:
      SimclrError: it is not installed; the line names the extra that brings it.
    """
    try:
        return importlib.import_module(module)
    except ImportError:
        name = module.partition(".")[0]
        raise SimclrError(f"{name} is missing: pip install 'simclr_jax[{extra}]'") from None
