"""The command: `python -m simclr_jax.main --config=configs/quickstart.py`."""

import contextlib
import re
import sys
from collections.abc import Callable
from typing import Any, cast

from simclr_jax import signals

GOES_ON = "goes on from the last checkpoint"
if __name__ == "__main__":  # first: the imports below take a second, and Ctrl-C must work then too
    signals.take(GOES_ON)

from absl import app, flags, logging
from ml_collections import config_flags

from simclr_jax import cli, command, paths, registry
from simclr_jax.command import fail
from simclr_jax.config import adopt_start, check_field, checks, declared, describe, recipes
from simclr_jax.config.fields import RENAMED
from simclr_jax.errors import SimclrError

CONFIG = config_flags.DEFINE_config_file(
    "config", help_string="what defines the run: a recipe's name, quickstart say, or a Python file"
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

usage: {command} --config=NAME [--workdir=DIR] [--resume=force]
           [--config.FIELD=VALUE ...]
           [--coordinator=HOST:PORT --processes=N --process=I]

  --config       {config}
  --workdir      {workdir}
  --resume       {resume}
  --coordinator  {coordinator}
  --processes    {processes}
  --process      {process}

The same command goes on where a run stopped. Fields, with their defaults:

{fields}"""

OPTIONS = ("config", "workdir", "resume", "coordinator", "processes", "process")


def show_help() -> None:
    """Prints the options and every field of the config."""
    texts = {name: flags.FLAGS[name].help for name in OPTIONS}
    print(HELP.format(command=cli.name("simclr_jax.main"), fields=describe(), **texts))


def parse(argv: list[str], words: int = 0, tell: Callable[[], None] = show_help) -> list[str]:
    """Parses a command line of options and `words` other words; a mistake in it becomes one line.

    `tell` prints what --help asks for.
    """
    names = [arg.split("=", 1)[0].lstrip("-") for arg in argv[1:]]
    if {"help", "h", "helpfull", "helpshort"} & set(names):
        with contextlib.suppress(SimclrError):
            _register(argv)
        tell()
        sys.exit(0)
    try:
        if "config" not in names:
            raise SimclrError("--config is missing: for example --config=quickstart")
        fields = [name.removeprefix("config.") for name in names if name.startswith("config.")]
        if not declared().keys() >= set(fields):
            _register(argv)
        for field in fields:
            check_field(field)
        rest = flags.FLAGS(recipes.find_in(list(map(_at_home, argv))))
        if len(rest) > 1 + words:
            raise SimclrError(f"{rest[1 + words]!r}: not understood; options start with --")
        CONFIG.value.to_dict()  # a file that cannot be loaded says so only when it is used
        return rest
    except OSError as error:
        given = next(arg for arg in argv if arg.split("=")[0].endswith("config"))
        fail(f"{given}: {str(error).strip().splitlines()[-1].strip()}")
    except (SimclrError, flags.Error, AttributeError, KeyError, TypeError, ValueError) as error:
        for old, new in RENAMED.items():  # in a config file
            if re.search(rf"[\"']{old.rpartition('.')[2]}[\"']", str(error)):
                fail(f"config.{old}: is config.{new} now")
        command.misread(error, argv)


def _register(argv: list[str]) -> None:
    """Runs the config file for what it registers: fields of its own encoder are known from then on."""
    words = recipes.find_in(list(map(_at_home, argv)))
    given = [word.partition("=")[2] for word in words if word.lstrip("-").startswith("config=")]
    if given and given[0].endswith(".py"):
        registry.run_file(given[0])


def _at_home(arg: str) -> str:
    """Expands ~ in --config=~/mine.py; shells expand it only at the start of a word."""
    option, equals, path = arg.partition("=")
    return f"{option}={paths.expand(path)}" if equals and option.lstrip("-") == "config" else arg


def default_workdir(config: str) -> str:
    """runs/NAME of a config file; slashes in the argument of FILE.py:ARGUMENT are replaced."""
    file, colon, argument = config.partition(".py:")
    name = file.rsplit("/", 1)[-1] + colon + argument.replace("/", "_")
    name = name.removesuffix(".py")
    return f"runs/{name if name.strip('.') else 'config'}"


def main(argv: list[str]) -> None:
    """Runs the config in the workdir."""
    del argv
    logging.set_verbosity(logging.WARNING)  # Orbax tells every step of a save
    with command.ends(GOES_ON):
        file = cast(Any, flags.FLAGS["config"]).config_filename
        workdir = paths.expand(WORKDIR.value or default_workdir(file))
        checks.validate(adopt_start(CONFIG.value, workdir))
        from simclr_jax import (  # late, so that --help and wrong fields answer at once
            distributed,
            run_summary,
            train,
        )

        distributed.start(COORDINATOR.value, PROCESSES.value, PROCESS.value)
        summary = train.run(CONFIG.value, workdir, force=RESUME.value == "force")
        if distributed.first():
            run_summary.show(summary, workdir)


if __name__ == "__main__":
    app.run(main, flags_parser=parse)
