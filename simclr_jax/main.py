"""The command: `python -m simclr_jax.main --config=configs/quickstart.py`."""

import os
import sys
import traceback

from absl import app, flags, logging
from ml_collections import config_flags

from simclr_jax import config as cfg
from simclr_jax import validation
from simclr_jax.errors import Preempted, SimclrError, one_line

CONFIG = config_flags.DEFINE_config_file(
    "config", help_string="file that defines the run, for example configs/quickstart.py"
)
WORKDIR = flags.DEFINE_string(
    "workdir", None, "where the run is kept, local or gs:// (default: runs/NAME of the config)"
)
RESUME = flags.DEFINE_enum(
    "resume", "auto", ["auto", "force"],
    "going on in a workdir that another config made: auto refuses, force does it",
)  # fmt: skip
COORDINATOR = flags.DEFINE_string(
    "coordinator", None, "of several processes: HOST:PORT of the first (a TPU pod and Slurm need none)"
)
PROCESSES = flags.DEFINE_integer("processes", None, "how many processes there are")
PROCESS = flags.DEFINE_integer("process", None, "which of them this is, from 0")

HELP = """Trains an encoder without labels (SimCLR) and scores it.

usage: python -m simclr_jax.main --config=FILE [--workdir=DIR] [--resume=force]
                                 [--config.FIELD=VALUE ...]
                                 [--coordinator=HOST:PORT --processes=N --process=I]

  --config       {config}
  --workdir      {workdir}
  --resume       {resume}
  --coordinator  {coordinator}
  --processes    {processes}
  --process      {process}

The same command goes on where a run stopped. Fields, with their defaults (explained in
simclr_jax/config.py; of a duration, steps win over examples, and examples over epochs):

{fields}"""

# Exit codes: a mistake of the user's, try again (sysexits.h), and the shell's of two signals.
FAILED, LOST, INTERRUPTED, TERMINATED = 2, 75, 128 + 2, 128 + 15
OPTIONS = ("config", "workdir", "resume", "coordinator", "processes", "process")


def show_help() -> None:
    """Prints the options and every field of the config."""
    texts = {name: flags.FLAGS[name].help for name in OPTIONS}
    fields = "\n".join(f"  --config.{field}={value}" for field, value in cfg.flatten(cfg.default()).items())
    print(HELP.format(fields=fields, **texts))


def parse(argv: list[str], words: int = 0) -> list[str]:
    """Parses a command line of options and `words` other words; a mistake in it becomes one line."""
    names = [arg.split("=", 1)[0].lstrip("-") for arg in argv[1:]]
    if {"help", "h", "helpfull", "helpshort"} & set(names):
        show_help()
        sys.exit(0)
    try:
        if "config" not in names:
            raise SimclrError("--config is missing: for example --config=configs/quickstart.py")
        for name in names:
            if name.startswith("config."):
                cfg.check_field(name.removeprefix("config."))
        rest = flags.FLAGS(argv)
        if len(rest) > 1 + words:
            raise SimclrError(f"{rest[1 + words]!r}: not understood; options start with --")
        CONFIG.value.to_dict()  # a file that cannot be loaded says so only when it is used
        return rest
    except OSError as error:
        given = next(arg for arg in argv if arg.split("=")[0].endswith("config"))
        fail(f"{given}: {str(error).strip().splitlines()[-1].strip()}")
    except (SimclrError, flags.Error, AttributeError, KeyError, TypeError, ValueError) as error:
        # What only says that 'abc' is no number does not say of which field.
        given = [arg for arg in argv if "=" in arg and repr(arg.split("=", 1)[1]) in str(error)]
        named = not given or given[0].split("=")[0].lstrip("-") in str(error)
        fail(error if named else f"{given[0]}: {error}")


def fail(error: object, code: int = FAILED) -> None:
    """Prints the error, without a traceback, and exits."""
    print(f"error: {str(error).strip()}", file=sys.stderr, flush=True)
    sys.stdout.flush()
    if _several():  # at once: an orderly end would wait for the others, who wait for this one
        os._exit(code)
    sys.exit(code)


def _several() -> bool:
    distributed = sys.modules.get("simclr_jax.distributed")
    return distributed is not None and distributed.several()


def main(argv: list[str]) -> None:
    """Runs the config in the workdir."""
    del argv
    logging.set_verbosity(logging.WARNING)  # Orbax tells every step of a save
    name = flags.FLAGS["config"].config_filename
    workdir = WORKDIR.value or f"runs/{name.rsplit('/', 1)[-1].removesuffix('.py')}"
    try:
        validation.validate(cfg.adopt_start(CONFIG.value, workdir))
        from simclr_jax import distributed, train  # late: --help and a wrong field answer at once

        distributed.start(COORDINATOR.value, PROCESSES.value, PROCESS.value)
        train.run(CONFIG.value, workdir, force=RESUME.value == "force")
    except SimclrError as error:
        fail(error)
    except Preempted as stop:
        print(stop, flush=True)
        sys.exit(TERMINATED)
    except KeyboardInterrupt:
        fail("interrupted; the same command goes on from the last checkpoint", INTERRUPTED)
    except RuntimeError as error:  # JAX's, of a collective operation for example
        if not _several():
            raise
        fail(
            f"a process of this run has ended, see what it said ({one_line(error)}); the same command on "
            "all of them goes on from the last checkpoint", LOST,
        )  # fmt: skip
    except Exception:
        if _several():  # the traceback, and the end without waiting for the others
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(1)
        raise


if __name__ == "__main__":
    app.run(main, flags_parser=parse)
