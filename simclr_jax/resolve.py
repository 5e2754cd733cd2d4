"""Resolves config, workdir, start and teacher of a run into one record before it starts."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, cast

import jax
from etils import epath
from jax.sharding import Mesh
from ml_collections import ConfigDict

from simclr_jax import checkpoint, encoder, files, lock, paths, recipe, sharding
from simclr_jax import workdir as folder
from simclr_jax.checkpoint import Saved
from simclr_jax.config import (
    CONFIG_FILE,
    SCHEMA,
    adopt_start,
    checks,
    examples_of,
    going_on,
    load_config,
    to_json,
    told_of_start,
    total_steps,
)
from simclr_jax.data import notes as data_notes
from simclr_jax.data import survey
from simclr_jax.data.splits import Splits
from simclr_jax.errors import DamagedError, SimclrError
from simclr_jax.feeds import kind, load_splits
from simclr_jax.metrics import Clock


def _nobody_else() -> None:
    """The lock is another process's."""


class Run(NamedTuple):
    """A resolved run: config, images, workdir, mesh and first step."""

    config: ConfigDict  # whole: the start's architecture adopted, "newest checkpoint" replaced by its number
    workdir: epath.Path
    splits: Splits
    mesh: Mesh
    identity: dict[str, Any]  # of the training images, for config.json
    steps: int  # of the whole run
    saved: Saved | None  # the checkpoint it goes on from; None: a new run
    damaged: tuple[int, ...]  # steps of newer checkpoints that cannot be read
    notes: tuple[str, ...]  # what the user is told before it starts
    check_owner: Callable[[], None] = _nobody_else  # raises SimclrError once another host has the workdir

    @property
    def first(self) -> int:
        """The steps that are done."""
        return self.saved.step if self.saved else 0

    @property
    def checkpoints(self) -> epath.Path:
        """Where its checkpoints are."""
        return self.workdir / "checkpoints"

    def set_damaged_aside(self) -> None:
        """Moves damaged checkpoints out of `checkpoints`, before one is written there."""
        for step in self.damaged if jax.process_index() == 0 else ():
            place = files.set_aside(self.checkpoints / str(step), self.workdir)
            print(f"moved the damaged checkpoint to {place}")
        sharding.barrier()  # nobody goes on before they are gone

    def write_config(self, classes: tuple[str, ...]) -> None:
        """Writes config.json; nothing is written before the run is known to work."""
        if jax.process_index():
            return
        path = self.workdir / CONFIG_FILE
        if path.exists():
            try:
                load_config(self.workdir)
            except DamagedError:
                print(f"moved the damaged {CONFIG_FILE} to {files.set_aside(path, self.workdir)}")
        files.write(path, to_json(self.config, {**self.identity, "classes": list(classes)}))


@contextlib.contextmanager
def resolved(
    config: ConfigDict,
    workdir: epath.PathLike,
    clock: Clock,
    *,
    splits: Splits | None = None,
    force: bool = False,
) -> Iterator[Run]:
    """Yields the run that `config` describes in `workdir`; holds the workdir's lock in the `with` block.

    Changes nothing else in the workdir.

    Args:
      clock: gets the seconds of the phases "data" and "start".
      splits: the images, for the source "arrays"; otherwise the config says where they are.
      force: resume although the config differs in fields that change the result.

    Raises:
      SimclrError: the config makes no sense, another run holds the workdir, or the workdir is another run's.
    """
    workdir = paths.expand(workdir)
    given, config = config, adopt_start(config, workdir)
    checks.validate(config)
    if config.model.dtype == "float64" and not cast(Any, jax.config).jax_enable_x64:
        raise SimclrError("config.model.dtype='float64': set JAX_ENABLE_X64=1")
    mesh = sharding.make_mesh(config.mesh.devices)
    with clock.phase("data"):
        splits = splits or load_splits(config, examples_of(config, workdir))
        kind(config).check(config, splits)
        if reading := splits.train.reading:  # percentiles have been measured
            config.data.window = reading.window
    try:
        checks.validate_run(config, splits.train.size, mesh.size)
    except SimclrError:  # images that were left out may be the cause
        for line in data_notes.describe(splits) if jax.process_index() == 0 else ():
            print(line)
        raise
    folder.check(workdir, config)
    with contextlib.ExitStack() as stack:
        owned: list[Callable[[], None]] = []  # of the first process
        with clock.phase("start"):
            sharding.from_first(lambda: owned.append(stack.enter_context(lock.hold(workdir))))
            run = _resolve(config, workdir, splits, mesh, force)
        run = run._replace(notes=(*told_of_start(given, config), *run.notes))
        yield run._replace(check_owner=owned[0]) if owned else run


def _resolve(config: ConfigDict, workdir: epath.Path, splits: Splits, mesh: Mesh, force: bool) -> Run:
    examples = splits.train.size
    identity = {"examples": examples, "fingerprint": splits.train.fingerprint}
    identity |= kind(config).identity(splits)
    trained = bool(checkpoint.saved_steps(workdir / "checkpoints"))
    if not sharding.agreed(int(trained)):
        raise SimclrError(f"--workdir={workdir}: the processes see other checkpoints there; share the folder")
    config, settled = recipe.settle(config, examples, going_on(workdir))
    if force:
        config = config.copy_and_resolve_references()
        with contextlib.suppress(DamagedError):  # it is written anew; one of a newer version is not
            if (workdir / CONFIG_FILE).is_file():
                load_config(workdir)
    else:
        same = {name: identity[name] for name in ("examples", "fingerprint")}
        config = folder.compare(workdir, config, same, trained)
    steps = total_steps(config, examples)
    saved, damaged, notes = _newest(workdir / "checkpoints")
    if saved is None:
        config = encoder.pin_steps(config)
    elif saved.step > steps:
        raise SimclrError(
            f"config.train: {steps} steps, and {workdir} has done {saved.step} already; give more, or choose "
            "another --workdir"
        )
    told = (*data_notes.describe(splits), *notes, *settled)
    if trained and files.read_json(workdir / CONFIG_FILE).get("schema", SCHEMA) < 5:
        told += survey.other_before(splits)
    return Run(config, workdir, splits, mesh, identity, steps, saved, damaged, told)


def _newest(checkpoints: epath.Path) -> tuple[Saved | None, tuple[int, ...], tuple[str, ...]]:
    """(the newest intact checkpoint as process 0 sees it, steps of damaged ones, lines about them)."""
    found: list[Saved | None] = []

    def ask() -> dict[str, Any]:
        saved, errors = checkpoint.newest(checkpoints)
        found.append(saved)
        step = saved.step if saved else None
        newer = [s for s in checkpoint.saved_steps(checkpoints) if saved and s > saved.step]
        notes = [f"note: {error}; going on from step {step}" for error in errors]
        if saved and not saved.checked:
            notes.append(f"note: {checkpoints / str(step)} has no checksums: an older version wrote it")
        return {"step": step, "damaged": newer, "notes": notes}

    told = sharding.from_first(ask)
    if not found:
        step = told["step"]
        found.append(None if step is None else checkpoint.read(checkpoints, step))
    return found[0], tuple(told["damaged"]), tuple(told["notes"])
