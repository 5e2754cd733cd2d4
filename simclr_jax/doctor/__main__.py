"""The command: `python -m simclr_jax.doctor --config=configs/imagenet.py`."""

import sys
from typing import Any, cast

from simclr_jax import signals

GOES_ON = "begins again"
if __name__ == "__main__":  # first: the imports below take a second, and Ctrl-C must work then too
    signals.take(GOES_ON)

from absl import app, flags, logging

from simclr_jax import command, main, paths
from simclr_jax.config import adopt_start, checks
from simclr_jax.doctor import findings

TOPOLOGY = flags.DEFINE_string(
    "topology", None, "a TPU slice that need not be here, v5e:4x8 say: asks TPU's own compiler"
)

HELP = """Looks at a run before it starts: devices, memory, speed, disk, images, known pitfalls.
Trains nothing, and writes nothing in the workdir.

usage: python -m simclr_jax.doctor --config=FILE [--workdir=DIR] [--topology=SLICE]
                                   [--config.FIELD=VALUE ...]

  --config       {config}
  --workdir      {workdir}
  --topology     {topology}

Exit code: 0 all is well, 1 warnings, 2 errors. `python -m simclr_jax.main --help` lists the fields."""


def show_help() -> None:
    """Prints the options."""
    print(HELP.format(**{name: flags.FLAGS[name].help for name in ("config", "workdir", "topology")}))


def parse(argv: list[str]) -> list[str]:
    """Parses the command line; a mistake in it becomes one line."""
    return main.parse(argv, tell=show_help)


def run(argv: list[str]) -> None:
    """Prints the report; exits with the code of the most severe finding."""
    del argv
    logging.set_verbosity(logging.WARNING)
    with command.ends(GOES_ON):
        file = cast(Any, flags.FLAGS["config"]).config_filename
        workdir = paths.expand(main.WORKDIR.value or main.default_workdir(file))
        config = main.CONFIG.value
        checks.validate(adopt_start(config, workdir))
        from simclr_jax import distributed, train  # late, so that --help and wrong fields answer at once
        from simclr_jax.doctor.run import examine

        distributed.start(main.COORDINATOR.value, main.PROCESSES.value, main.PROCESS.value)
        train.use_compile_cache(config.compile_cache)  # so that the run reuses the program compiled here
        found = examine(config, workdir, topology=TOPOLOGY.value)
        if distributed.first():
            print(findings.page(f"{file}, to run in {workdir}", found), flush=True)
    sys.exit(findings.exit_code(finding for section in found.values() for finding in section))


if __name__ == "__main__":
    app.run(run, flags_parser=parse)
