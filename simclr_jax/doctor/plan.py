"""The run to check: config, workdir, images, devices, compiled program."""

import functools
import sys
import time
from typing import Any, NamedTuple

import jax
from etils import epath
from jax.sharding import Mesh
from ml_collections import ConfigDict

from simclr_jax import memory_error, recipe
from simclr_jax.data.sources import Source
from simclr_jax.data.splits import Splits
from simclr_jax.doctor import ahead, chips


class Program(NamedTuple):
    """The compiled program of a run, or why there is none."""

    compiled: Any  # None: it does not fit
    shortage: memory_error.Shortage | None
    seconds: float  # of the compilation


class Plan:
    """A run before it starts. Slow parts are computed once, when a check first asks for them.

    Attributes:
      config: with the architecture of `config.start`, and a warm-up shorter than the run.
      workdir: the workdir that the run would use.
      splits: the images; if they are not on this machine (`here` is False), only their number and classes.
      mesh: of this machine, or of the `topology` to compile for.
      first: the number of steps that are done.
    """

    def __init__(
        self,
        config: ConfigDict,
        workdir: epath.Path,
        splits: Splits,
        mesh: Mesh,
        *,
        here: bool = True,
        topology: str | None = None,
        first: int = 0,
    ):
        self.config, self.workdir, self.splits, self.mesh = config, workdir, splits, mesh
        self.here, self.topology, self.first = here, topology, first

    @property
    def train(self) -> Source | Any:
        """The training images."""
        return self.splits.train

    @functools.cached_property
    def lengths(self) -> tuple[int, int]:
        """(steps of the warm-up, steps of the run)."""
        return recipe.lengths(self.config, self.train.size)

    @property
    def steps(self) -> int:
        """The number of steps of the whole run."""
        return self.lengths[1]

    @property
    def on_cpu(self) -> bool:
        """Whether the devices are the host's own cores."""
        return self.mesh.devices.flat[0].platform == "cpu"

    @property
    def chip(self) -> chips.Chip | None:
        """The chip's published figures; None without a `topology`."""
        return chips.of(self.topology) if self.topology else None

    @functools.cached_property
    def built(self) -> ahead.Built:
        """The task and its step."""
        return ahead.build(self.config, self.splits, self.mesh)

    @functools.cached_property
    def arguments(self) -> ahead.Arguments:
        """The shapes of the program's arguments."""
        return ahead.arguments(self.config, self.splits, self.built, self.mesh)

    @functools.cached_property
    def program(self) -> Program:
        """The program, compiled; that can take minutes."""
        where = self.topology or f"{self.mesh.size} × {self.mesh.devices.flat[0].device_kind}"
        tell(f"compiling the train step for {where}, which can take minutes ...")
        lowered, begin = ahead.lower(self.built, self.arguments), time.perf_counter()
        try:
            return Program(lowered.compile(), None, time.perf_counter() - begin)
        except (RuntimeError, ValueError, MemoryError) as problem:
            found = memory_error.shortage(problem)
            if found is None:
                raise
            return Program(None, found, time.perf_counter() - begin)

    def changed(self, **train: int) -> "Plan":
        """The same run with other fields of config.train, not compiled yet."""
        config = self.config.copy_and_resolve_references()
        config.train.update(train)
        more = {"here": self.here, "topology": self.topology, "first": self.first}
        return Plan(config, self.workdir, self.splits, self.mesh, **more)


def tell(line: str) -> None:
    """Prints the progress of slow checks to stderr, apart from the report."""
    if jax.process_index() == 0:
        print(line, file=sys.stderr, flush=True)
