"""Measures this installation; prints a table to read and writes JSON to compare.

    python tools/benchmark.py PART [--config=FILE] [--config.FIELD=VALUE ...] [--json=FILE] [OPTIONS]

Parts, with their options:
  step      the train step of --config: images/s, share of the peak. --steps --data=synthetic|real --peer
            --trace: the kinds of kernels that take the time of a GPU
  loss      NT-Xent's value and gradient, dense, tiled, ring. --sizes=1024,4096 --dim --steps --peer
  passes    how exact NT-Xent stays with passes of low precision, emulated. --images=2048 --dim
  augment   augmentation on the device. --images=64 --steps --peer
  input     a folder of JPEGs to batches of views, by the core. --images=400 --batch=32 --steps --peer
  embed     a folder of small PNGs to a file of embeddings. --images=10000 --steps --peer
  knn       exact weighted kNN. --bank=50000 --queries=2048 --dim=512 --k=200 --classes=10,1000 --steps --peer
  linear_sweep  linear evaluation of --config's encoder: a sweep of classifiers beside one. --steps
  checksums  a checkpoint of --config's model and optimiser saved and read, with and without. --steps
  startup   from the command to the first step of --config, cold and warm
  scaling   what the step of --config moves between 1 to 8 devices. --devices=1,2,4,8 --images_per_device=0
  pods      the step of --config compiled for TPU slices that are not here, as v5e:4x8; needs libtpu.
            --topology=v5e:2x2
  collectives  one row of scaling, for the devices that are here. --images_per_device=0
  smoke     most of these, tiny

step, linear_sweep, checksums, startup, scaling, pods and collectives need --config. --steps is the number of
timed repeats. --peer=PYTHON names the interpreter of an environment with torch, torchvision and lightly:
theirs and ours then take turns.
"""

import inspect
import json
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from absl import app, flags, logging
from bench import (
    augment,
    checksums,
    collectives,
    defaults,
    embed,
    input,
    knn,
    linear_sweep,
    loss,
    passes,
    pods,
    scaling,
    smoke,
    startup,
    step,
)

from simclr_jax import main as command
from simclr_jax import paths
from simclr_jax.config import adopt_start, checks
from simclr_jax.errors import SimclrError


class Numbers(flags.ArgumentParser):
    """Parses 1024,4096 into a tuple."""

    def parse(self, argument: str | tuple) -> tuple[int, ...]:
        """The numbers, each above 0."""
        if isinstance(argument, tuple):
            return argument
        words = argument.split(",")
        if not all(word.isdecimal() and int(word) for word in words):
            raise ValueError("must be whole numbers above 0, like 1024,4096")
        return tuple(map(int, words))


def _numbers(name: str, help_text: str) -> None:
    flags.DEFINE(Numbers(), name, None, help_text)


def _count(name: str, help_text: str) -> None:
    flags.DEFINE_integer(name, None, help_text, lower_bound=1)


# None: the default of the part's measure().
JSON = flags.DEFINE_string("json", None, "file to write the figures to")
PEER = flags.DEFINE_string("peer", None, "python of an environment with torch, torchvision and lightly")
_count("steps", "timed repeats of each contender, after those to warm up")
flags.DEFINE_boolean("trace", None, "step: print what kinds of kernels take the time")
flags.DEFINE_enum("data", None, step.DATA, "step: where batches come from")
_numbers("sizes", "loss: images a batch")
_count("dim", "loss, passes, knn: width of the embeddings")
_count("images", "augment, passes: images at a time; input, embed: files")
_count("batch", "input: images a batch")
_count("bank", "knn: features to search")
_count("queries", "knn: features to classify")
_count("k", "knn: neighbours")
_numbers("classes", "knn: classes that the neighbours vote for, one table row each")
_numbers("devices", "scaling: device counts to compile for")
_count("images_per_device", "scaling, collectives: weak scaling; left out: the config's batch, shared out")
flags.DEFINE_list("topology", None, "pods: slices to compile for, as v5e:4x8")


class Part(NamedTuple):
    """The functions of a part, and whether it needs --config."""

    measure: Callable[..., dict]
    show: Callable[[dict], None]
    needs_config: bool = False


PARTS = {
    "step": Part(step.measure, step.show, needs_config=True),
    "loss": Part(loss.measure, loss.show),
    "passes": Part(passes.measure, passes.show),
    "augment": Part(augment.measure, augment.show),
    "input": Part(input.measure, input.show),
    "embed": Part(embed.measure, embed.show),
    "knn": Part(knn.measure, knn.show),
    "linear_sweep": Part(linear_sweep.measure, linear_sweep.show, needs_config=True),
    "checksums": Part(checksums.measure, checksums.show, needs_config=True),
    "startup": Part(startup.measure, startup.show, needs_config=True),
    "scaling": Part(scaling.measure, scaling.show, needs_config=True),
    "pods": Part(pods.measure, pods.show, needs_config=True),
    "collectives": Part(collectives.measure, collectives.show, needs_config=True),
    "smoke": Part(smoke.measure, smoke.show),
}


def parse(argv: list[str]) -> list[str]:
    """Parses the command line; a part that needs no config gets the default one."""
    if {"-h", "--help", "-help"} & set(argv):
        print(__doc__.strip())
        sys.exit(0)
    name = next((arg for arg in argv[1:] if not arg.startswith("-")), "(none)")
    if name not in PARTS:
        command.fail(f"part {name!r}: must be one of {', '.join(PARTS)}")
    given = any(arg.lstrip("-").split("=")[0] == "config" for arg in argv)
    if not given and not PARTS[name].needs_config:
        argv = [argv[0], f"--config={defaults.__file__}", *argv[1:]]
    return command.parse(argv, words=1)


def options(name: str) -> dict[str, Any]:
    """The given flags as arguments of the part's `measure`; refuses flags that it does not take."""
    taken = _takes(name)
    known = {flag for part in PARTS for flag in _takes(part)} - {"command"}
    given = {flag: flags.FLAGS[flag].value for flag in sorted(known) if flags.FLAGS[flag].present}
    for flag in given:
        if flag not in taken:
            those = ", ".join(f"--{t}" for t in taken if t != "command") or "none but --json"
            raise SimclrError(f"--{flag}: the part {name} does not take it; it takes {those}")
    if "command" in taken:  # the options with which a new process reads the same config
        fields = [arg for arg in sys.argv[1:] if arg.lstrip("-").startswith("config.")]
        given["command"] = [f"--config={flags.FLAGS['config'].config_filename}", *fields]
    return given


def _takes(name: str) -> list[str]:
    return list(inspect.signature(PARTS[name].measure).parameters)[1:]


def main(argv: list[str]) -> None:
    """Runs the named part."""
    logging.set_verbosity(logging.WARNING)
    name = argv[1]
    part, given = PARTS[name], options(name)
    config = adopt_start(command.CONFIG.value)
    if PARTS[name].needs_config:
        checks.validate(config)
    if PEER.value:  # our arrays and the peer's must fit on the accelerator together
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    result = part.measure(config, **given)
    where = Path(
        paths.local(JSON.value, "--json")
        if JSON.value
        else Path(tempfile.gettempdir()) / f"simclr_jax_{name}.json"
    )
    where.write_text(json.dumps(result, indent=2) + "\n")
    part.show(result)
    print(f"\n{where}")


if __name__ == "__main__":
    try:
        app.run(main, flags_parser=parse)
    except SimclrError as error:
        command.fail(error)
