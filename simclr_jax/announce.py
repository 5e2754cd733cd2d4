"""Lines that a run prints about itself: its plan, its memory, and how long it waits for input."""

from typing import Any

import jax
import optax
from ml_collections import ConfigDict

from simclr_jax import optim, recipe
from simclr_jax.config import every_steps
from simclr_jax.data.sources import Source
from simclr_jax.resolve import Run
from simclr_jax.state import TrainState
from simclr_jax.tasks import Task


def describe(run: Run, task: Task, state: TrainState) -> None:
    """Prints what is about to run."""
    if jax.process_index():
        return
    config, mesh, first = run.config, run.mesh, run.first
    for note in run.notes:
        print(note)
    count = {name: optax.tree.size(part) for name, part in state.params.items()}
    parts = ", ".join(f"{name} {size:,}" for name, size in count.items() if size)
    learns = optim.path_mask(state.params, task.trainable)
    trained = sum(jax.tree.leaves(jax.tree.map(lambda x, yes: x.size * yes, state.params, learns)))
    frozen = "" if trained == sum(count.values()) else f"; {trained:,} are trained"
    train, test = run.splits
    tested = f"{test.size:,} to test on" if test else "no test split"
    labels = f"{len(train.classes)} classes" if train.classes else "no labels"
    print(f"{train.noun}: {train.size:,} to train on ({train.name}), {tested}, {labels}")
    if not isinstance(train, Source):
        print(
            "note: TFRecord is read in sequence: the order of images depends on the number of processes, "
            "and resuming reads and skips what came before; with ArrayRecord neither is so"
        )
    print(f"parameters: {sum(count.values()):,} ({parts}){frozen}")
    kind, share = mesh.devices.flat[0].device_kind, config.train.batch_size // mesh.size
    print(f"mesh: {mesh.size} × {kind}, {share} {train.noun} on each")
    done = f", going on after step {first}" if first else ""
    periods = ", ".join(
        f"{name} every {every_steps(node.every, train.size, config.train.batch_size) or 'never'}"
        for name, node in (("log", config.log), ("save", config.checkpoint), ("evaluate", config.eval))
    )
    print(f"steps: {run.steps:,}{done}; {periods}".replace("every never", "never"))
    print(recipe.describe(config, train.size), flush=True)


def memory_line(compiled: Any) -> str:
    """A line about the compiled step's memory on each device, if the backend reports it."""
    stats = compiled.memory_analysis()
    if stats is None:
        return "memory not reported"
    sizes = (stats.argument_size_in_bytes, stats.temp_size_in_bytes)
    return "memory per device: {:.1f} MB state and batch, {:.1f} MB temporary".format(
        *(size / 1e6 for size in sizes)
    )


class _Once:
    """Counts consecutive logs with a problem, to warn once."""

    LOGS = 2  # consecutive logs before the warning

    def __init__(self) -> None:
        self._logs, self._said = 0, False

    def due(self, wrong: bool) -> bool:
        """Whether to warn the user now."""
        self._logs = self._logs + 1 if wrong else 0
        due = self._logs >= self.LOGS and not self._said
        self._said = self._said or due
        return due


class Collapse:
    """Watches the deviation of normalised features (SimSiam, arXiv 2011.10566, section 4.1)."""

    LEAST = 0.02  # below it images look alike

    def __init__(self) -> None:
        self._once = _Once()

    def line(self, deviation: float | None) -> str:
        """What to do about it, when that is to be said."""
        if not self._once.due(deviation is not None and deviation < self.LEAST):
            return ""
        return (
            f"collapse: the features of all images are nearly the same (feature_std {deviation:.3f}, healthy "
            "ones 0.1 and more); lower config.optimizer.learning_rate, or raise config.loss.temperature"
        )


class Hunger:
    """Watches the share of the time in which the device waits for input."""

    SHARE = 0.2  # above it the input is too slow

    def __init__(self, config: ConfigDict):
        self._config, self._once = config, _Once()

    def line(self, waited: float) -> str:
        """What to do about it, when that is to be said."""
        if not self._once.due(waited > self.SHARE):
            return ""
        device = self._config.augment.device
        remedy = {
            "none": "--config.augment.device=photometric does colour and blur on the device, all the rest "
            "too, with the images in its memory",
            "photometric": "images that fit are faster in the device's memory: --config.augment.device=all",
            "all": "raise --config.train.steps_per_call",
        }[device]
        also = "" if device == "all" else "; smaller image files, ArrayRecord and more CPU cores help too"
        return f"input: the device waits {waited:.0%} of the time; {remedy}{also}"
