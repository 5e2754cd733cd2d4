"""How every command ends: exit codes, one line for what the user can put right, no traceback."""

import contextlib
import os
import sys
import traceback
from collections.abc import Iterator

from simclr_jax.errors import SimclrError, Stopped, one_line

# Exit codes: a mistake of the user's, try again (sysexits.h), and the shell's of two signals.
FAILED, LOST, INTERRUPTED, TERMINATED = 2, 75, 128 + 2, 128 + 15


def fail(error: object, code: int = FAILED) -> None:
    """Prints the error, without a traceback, and exits."""
    print(f"error: {str(error).strip()}", file=sys.stderr, flush=True)
    sys.stdout.flush()
    if _several():  # at once: an orderly end would wait for the others, who wait for this one
        os._exit(code)
    sys.exit(code)


def misread(error: object, argv: list[str]) -> None:
    """Fails by a mistake in the command line, whose option the error itself may not name."""
    given = [arg for arg in argv if "=" in arg and repr(arg.split("=", 1)[1]) in str(error)]
    named = not given or given[0].split("=")[0].lstrip("-") in str(error)
    fail(error if named else f"{given[0]}: {error}")


@contextlib.contextmanager
def ends(goes_on: str) -> Iterator[None]:
    """Around what a command does: the right exit code for every way it can fail.

    Args:
      goes_on: what the same command will do, "goes on from the last checkpoint" say.
    """
    try:
        yield
    except SimclrError as error:
        fail(error)
    except Stopped as stop:
        print(stop, flush=True)
        sys.exit(TERMINATED)
    except KeyboardInterrupt:
        fail(f"interrupted; the same command {goes_on}", INTERRUPTED)
    except RuntimeError as error:  # JAX's, of a collective operation for example
        if not _several():
            raise
        fail(
            f"a process of this run has ended, see what it said ({one_line(error)}); the same command on "
            f"all of them {goes_on}", LOST,
        )  # fmt: skip
    except Exception:
        if _several():  # the traceback, and the end without waiting for the others
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(1)
        raise


def _several() -> bool:
    distributed = sys.modules.get("simclr_jax.distributed")
    return distributed is not None and distributed.several()
