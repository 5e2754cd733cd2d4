"""The train loop of every task: it reads batches and writes logs, evaluations and checkpoints."""

import collections
import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from simclr_jax import announce, checkpoint, memory_error, metrics, nonfinite, sharding
from simclr_jax import workdir as folder
from simclr_jax.config import every_steps
from simclr_jax.data.prefetch import Prefetch
from simclr_jax.errors import Preempted, SimclrError
from simclr_jax.resolve import Run
from simclr_jax.signals import Signals
from simclr_jax.state import TrainState
from simclr_jax.step import repeated
from simclr_jax.tasks import Context, Task


class Outlets(NamedTuple):
    """The destinations of the loop's results, and the signals that stop it."""

    checkpoints: checkpoint.Checkpoints
    writers: metrics.Writers
    signals: Signals
    clock: metrics.Clock
    on_eval: Callable[[int, dict[str, float]], None] | None = None


class Log(NamedTuple):
    """Numbers of a step, which the host reads while the next step runs."""

    step: int
    numbers: dict[str, Any]
    speed: dict[str, float]


class Loop:
    """Runs the remaining steps of `run`. Start reading at `train`, which calls the other methods."""

    def __init__(self, run: Run, task: Task, outlets: Outlets):
        self.run, self.task, self.out = run, task, outlets
        examples, batch = run.splits.train.size, run.config.train.batch_size
        self.log_every = every_steps(run.config.log.every, examples, batch)
        self.save_every = every_steps(run.config.checkpoint.every, examples, batch)
        self.hunger, self.collapse = announce.Hunger(run.config), announce.Collapse()
        self.waiting: Log | None = None

    def train(self, state: TrainState, step_fn: Callable) -> tuple[TrainState, dict[str, float]]:
        """The state after the last step, and the mean rates.

        Raises:
          Preempted: SIGTERM came; the state is saved.
          DivergedError: a number of the training is not finite.
        """
        run, clock = self.run, self.out.clock
        step, steps = run.first, run.steps
        inputs = self._inputs()
        compiled, inputs = self._compile(state, step_fn, inputs)
        run.write_config(self.task.classes)

        batches = Prefetch(inputs)
        self.progress = metrics.Progress(step, steps, enabled=jax.process_index() == 0)
        self.meter = metrics.Meter(run.config.train.batch_size, lambda: batches.wait_seconds)
        in_flight: collections.deque = collections.deque()  # the numbers of the calls under way
        # On CPUs a collective blocks one of few threads: several calls in flight could deadlock.
        ahead = 0 if jax.process_count() > 1 and jax.default_backend() == "cpu" else 2
        self.out.signals.hear()  # from here on there is something to save
        try:
            for call, count in enumerate(self._plan()):
                self.out.signals.check()
                self.out.checkpoints.check()
                self.run.check_owner()
                arguments = batches.next(lambda: jax.block_until_ready(list(in_flight)))
                with jax.transfer_guard("disallow"):
                    state, numbers = compiled(state, *arguments)
                step += count
                in_flight.append(numbers)
                if len(in_flight) > ahead:  # never further ahead of the device
                    jax.block_until_ready(in_flight.popleft())
                self.progress.step(step)
                self._write_log(state)
                self._after(state, numbers, step, call)
        finally:
            batches.close()
            self.progress.close()
            rates = self.meter.totals(step - run.first)
            clock.seconds["train"] = self.meter.seconds
        return state, rates

    def _plan(self) -> Iterator[int]:
        """How many steps each call makes."""
        periods = [self.log_every, self.save_every, *(every for every, _ in self.task.evals.values())]
        return calls(self.run.first, self.run.steps, self.task.steps_per_call, periods)

    def _inputs(self) -> Iterator[tuple]:
        """The arguments of each call after the state, on the mesh; draws a preview of the first batch."""
        with self.out.clock.phase("first_batch"):
            host_batches = self.task.input(self.run.first)
            host_batch = next(host_batches)
            if jax.process_index() == 0:
                self.task.preview(self.run.workdir, host_batch)
            host_batches = itertools.chain([host_batch], host_batches)
            inputs = call_inputs(host_batches, self._plan(), self.task.steps_per_call, self.run.mesh)
            first = next(inputs, None)
        if first is None:
            raise SimclrError("the input ended before the run did")
        return itertools.chain([first], inputs)

    def _compile(
        self, state: TrainState, step_fn: Callable, inputs: Iterator[tuple]
    ) -> tuple[Callable, Iterator[tuple]]:
        """(compiled program, inputs); it reads the first input for its shapes and puts it back."""
        arguments = next(inputs)
        if jax.process_index() == 0:
            print("compiling the step: seconds for a small model, minutes for a large one", flush=True)
        with self.out.clock.phase("compile"):
            compiled = program(self.task, step_fn).lower(state, *arguments).compile()
        if jax.process_index() == 0:
            compile_time = f"compiled in {self.out.clock.seconds['compile']:.1f} s (lower + compile)"
            print(f"{compile_time}; {announce.memory_line(compiled)}", flush=True)
        return compiled, itertools.chain([arguments], inputs)

    def _after(self, state: TrainState, numbers: dict[str, Any], step: int, call: int) -> None:
        """Does whatever is due after `step` updates: a log, an evaluation, a checkpoint, the end."""
        last, out = step == self.run.steps, self.out
        evals = self.task.evals.values()
        due = [fn for every, fn in evals if every and (last or step % every == 0)]
        stop = out.signals.received or out.checkpoints.preempted(call)
        save = last or stop or (self.save_every and step % self.save_every == 0)
        if due or save:  # drain the device and pause the timer
            jax.block_until_ready(state)
            self.meter.pause()
        if last or due or (self.log_every and step % self.log_every == 0):
            self.waiting = Log(step, numbers, self.meter.read(step - self.run.first))
        if due:
            with out.clock.phase("eval"), memory_error.explained(memory_error.evaluation, self.run.config):
                scores = {k: v for fn in due for k, v in fn(state, Context(step, self.run.workdir)).items()}
            self.progress.say(f"step {step}: " + "  ".join(f"{k} {v:.4f}" for k, v in scores.items()))
            self._write_log(state, **scores)
            if out.on_eval:
                out.on_eval(step, scores)
        if save:  # last: a resumed run does not repeat saved steps, so their rows must be written first
            self._write_log(state)
            nonfinite.check(self.run, self.task, state, jax.device_get(numbers), step, out.writers)
            with out.clock.phase("save"), out.signals.deferred():
                out.checkpoints.save(state)
        if due or save:
            self.meter.resume()
        if stop:
            raise Preempted(step, self.run.steps)

    def _write_log(self, state: TrainState, **more: float) -> None:
        """Writes the log that waits, if one does."""
        if self.waiting is None:
            return
        (step, numbers, speed), self.waiting = self.waiting, None
        numbers = jax.device_get(numbers)
        nonfinite.check(self.run, self.task, state, numbers, step, self.out.writers)
        row = {k: float(v) for k, v in numbers.items() if k != nonfinite.KEY} | speed | more
        self.out.writers.write(step, row)
        self.progress.note(row)
        for line in (self.hunger.line(speed["data_wait"]), self.collapse.line(row.get("feature_std"))):
            if line:
                self.progress.say(line)
        if found := self.run.splits.unreadable():  # otherwise no file is read at every log
            folder.note_unreadable(self.run.workdir, found, self.progress.say, jax.process_index())


def program(task: Task, step_fn: Callable) -> Any:
    """The function to compile: one step, or several steps per call; it donates the state."""
    return jax.jit(step_fn if task.steps_per_call == 1 else repeated(step_fn), donate_argnums=0)


def calls(first: int, steps: int, most: int, periods: Iterable[int]) -> Iterator[int]:
    """The number of steps of each call: at most `most`, and never beyond a step at which something is due."""
    while first < steps:
        after = min(first + most, steps, *(first + p - first % p for p in periods if p))
        yield after - first
        first = after


def call_inputs(host_batches: Iterator[Any], plan: Iterable[int], most: int, mesh: Mesh) -> Iterator[tuple]:
    """The arguments of each call of the program after the state, on the mesh."""
    for count in plan:
        group = list(itertools.islice(host_batches, count))
        if len(group) < count:
            return  # Prefetch says so
        if most == 1:
            yield (sharding.put_batch(group[0], mesh),)
        else:  # always of one shape; the program stops after `count`
            group += group[-1:] * (most - count)
            stacked = jax.tree.map(lambda *x: np.stack(x), *group)
            yield (
                sharding.put_batch(stacked, mesh, axis=1),
                sharding.put_same(np.int32(count), sharding.replicated(mesh)),
            )
