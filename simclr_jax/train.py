"""The one train loop. `run` reads from top to bottom as the story of a run."""

import collections
import contextlib
import itertools
import os
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from etils import epath
from jax.sharding import Mesh
from ml_collections import ConfigDict

from simclr_jax import checkpoint, figures, metrics, optim, report, sharding
from simclr_jax import config as cfg
from simclr_jax.data import splits as data_splits
from simclr_jax.data.prefetch import Prefetch
from simclr_jax.data.splits import Splits
from simclr_jax.errors import Preempted, SimclrError
from simclr_jax.state import TrainState
from simclr_jax.tasks import TASKS, Context, Task


def run(
    config: ConfigDict,
    workdir: epath.PathLike,
    *,
    splits: Splits | None = None,
    force: bool = False,
) -> dict[str, Any]:
    """Trains what `config` describes in `workdir`, or goes on where an earlier call stopped.

    Args:
      splits: the images, for the source "arrays"; otherwise the config says where they are.
      force: resume although the config differs in what decides the result.

    Returns:
      the summary, as written to summary.json.

    Raises:
      SimclrError: something the user can put right; one line that says what.
      Preempted: SIGTERM came; the state is saved.
    """
    workdir, clock = epath.Path(workdir), Clock()
    cfg.validate(config)
    if config.model.dtype == "float64" and not jax.config.jax_enable_x64:
        raise SimclrError("config.model.dtype='float64': set JAX_ENABLE_X64=1")
    mesh = sharding.make_mesh(config.mesh.devices)
    with clock.phase("data"):
        splits = splits or data_splits.load(**config.data)
    cfg.validate_run(config, splits.train.size, mesh.size)
    config = claim_workdir(workdir, config, splits, force)
    use_compile_cache(config.compile_cache)

    task = TASKS[config.task](config, splits, mesh)
    steps = cfg.total_steps(config, splits.train.size)
    optimizer, rate = build_optimizer(config, splits.train.size, steps, task)
    with clock.phase("start"):
        state = init_state(task, optimizer, config.seed, mesh)
        checkpoints = checkpoint.Checkpoints(workdir / "checkpoints", config.checkpoint.keep)
        latest = checkpoints.latest()
        if latest is not None:
            state = checkpoints.restore(latest, state)
    first = int(state.step)
    describe(config, splits, mesh, state, first, steps)

    if first < steps:
        with contextlib.ExitStack() as stack:
            stack.callback(checkpoints.close)
            writers = start_writers(workdir, first, config)
            stack.callback(writers.close)
            sigterm = stack.enter_context(checkpoint.Sigterm())
            state = train(
                state, first, steps, make_step(task, optimizer, rate, config.seed),
                config=config, task=task, mesh=mesh, workdir=workdir, clock=clock,
                writers=writers, checkpoints=checkpoints, sigterm=sigterm,
                examples=splits.train.size,
            )  # fmt: skip
    results = {}
    for name, (period, evaluate) in task.evals.items():
        if period == 0:
            with clock.phase(name):
                results |= evaluate(state, Context(steps, workdir))
    return finish(workdir, config, first, steps, results, task, clock)


def train(
    state: TrainState, first: int, steps: int, step_fn: Callable, *, config: ConfigDict, task: Task,
    mesh: Mesh, workdir: epath.Path, clock: "Clock", writers: metrics.Writers,
    checkpoints: checkpoint.Checkpoints, sigterm: checkpoint.Sigterm, examples: int,
) -> TrainState:  # fmt: skip
    """Steps `first` to `steps`: batches in, logs, evaluations and checkpoints out."""
    batch_size = config.train.batch_size
    period = lambda node: cfg.every_steps(node, examples, batch_size)  # noqa: E731
    log_every, save_every = period(config.log.every), period(config.checkpoint.every)

    with clock.phase("first_batch"):
        host_batches = task.input(first)
        host_batch = next(host_batches)
        if jax.process_index() == 0:
            task.preview(workdir, host_batch)
        batch = sharding.put_batch(host_batch, mesh)
    with clock.phase("compile"):
        compiled = jax.jit(step_fn, donate_argnums=0).lower(state, batch).compile()
    print(f"compiled in {clock.seconds['compile']:.1f} s (lower + compile); "
          f"{memory_line(compiled)}", flush=True)  # fmt: skip

    batches = Prefetch(
        itertools.chain([host_batch], host_batches), lambda b: sharding.put_batch(b, mesh)
    )
    progress = metrics.Progress(first, steps)
    meter = Meter(batch_size, batches)
    in_flight: collections.deque = collections.deque()  # the numbers of the steps under way
    waiting: tuple | None = None  # a log whose numbers are read once the next step runs

    def write_log(log: tuple, **more: float) -> None:
        step, numbers, speed = log
        row = {k: float(v) for k, v in jax.device_get(numbers).items()} | speed | more
        writers.write(step, row)
        progress.note(row)
        note_unreadable(workdir, task, progress.say)
        check_finite(row, step, checkpoints)

    try:
        for step in range(first + 1, steps + 1):
            batch = batches.next(lambda: jax.block_until_ready(in_flight))
            with jax.transfer_guard("disallow"):
                state, numbers = compiled(state, batch)
            in_flight.append(numbers)
            if len(in_flight) > 2:  # never more than two steps ahead of the device
                jax.block_until_ready(in_flight.popleft())
            progress.step(step)
            if waiting:
                write_log(waiting)
                waiting = None
            context = Context(step, workdir)
            due = [
                fn for every, fn in task.evals.values() if every and (step % every == 0 or step == steps)
            ]
            if (log_every and step % log_every == 0) or step == steps or due:
                if step == steps or due:
                    jax.block_until_ready(state)
                waiting = (step, numbers, meter.read(step - first))
            stop = sigterm.received or checkpoints.preempted(step)
            if due and not stop:
                with clock.phase("eval"):
                    scores = {k: v for evaluate in due for k, v in evaluate(state, context).items()}
                progress.say(f"step {step}: " + "  ".join(f"{k} {v:.4f}" for k, v in scores.items()))
                write_log(waiting, **scores)
                waiting = None
                meter.resume()
            if stop or step == steps or (save_every and step % save_every == 0):
                if waiting:  # also checks that what is saved is finite
                    write_log(waiting)
                    waiting = None
                checkpoints.save(state)
                meter.resume()
            if stop and step < steps:
                raise Preempted(step, steps)
    finally:
        batches.close()
        progress.close()
        clock.seconds["train"] = meter.seconds
        clock.rates = meter.totals(step - first)
    return state


def make_step(
    task: Task, optimizer: optax.GradientTransformation, rate: optax.Schedule, seed: int
) -> Callable:
    """(state, batch) -> (state after one update, metrics): the function that is compiled."""

    def step_fn(state: TrainState, batch: Any) -> tuple[TrainState, dict[str, jax.Array]]:
        rng = jax.random.fold_in(jax.random.key(seed), state.step)

        def loss_fn(params):
            outputs, model_state = task.forward(params, state.model_state, batch, rng, state.step)
            loss, numbers = task.loss(outputs, batch, state.step)
            return loss, (numbers, model_state)

        gradients, (numbers, model_state) = jax.grad(loss_fn, has_aux=True)(state.params)
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        numbers |= {"grad_norm": optax.tree.norm(gradients), "learning_rate": rate(state.step)}
        return state.replace(
            step=state.step + 1,
            params=optax.apply_updates(state.params, updates),
            model_state=model_state,
            opt_state=opt_state,
        ), numbers

    return step_fn


def init_state(task: Task, optimizer: optax.GradientTransformation, seed: int, mesh: Mesh) -> TrainState:
    """The state before the first step, replicated over the mesh."""

    def init() -> TrainState:
        variables = task.init(jax.random.key(seed))
        params = variables.pop("params")
        return TrainState(jnp.zeros((), jnp.int32), params, variables, optimizer.init(params))

    return jax.jit(init, out_shardings=sharding.replicated(mesh))()


def build_optimizer(
    config: ConfigDict, examples: int, steps: int, task: Task
) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """The optimiser of `config.optimizer` and its learning rate as a function of the step."""
    fields = config.optimizer.to_dict()
    name, scaling = fields.pop("name"), fields.pop("scaling")
    peak = optim.scaled_rate(fields.pop("learning_rate"), scaling, config.train.batch_size)
    fields.pop("warmup")
    warmup = cfg.count_steps(config.optimizer.warmup, examples, config.train.batch_size)
    rate = optim.schedule(peak, warmup, steps)
    return optim.create(name, rate, trainable=task.trainable, **fields), rate


# ---- the workdir ----------------------------------------------------------------------------------


def claim_workdir(workdir: epath.Path, config: ConfigDict, splits: Splits, force: bool) -> ConfigDict:
    """Writes config.json, or compares with the one that is there.

    Raises:
      SimclrError: what is there was made by another config or from other images.
    """
    config, path = config.copy_and_resolve_references(), workdir / cfg.FILE
    data = {"examples": splits.train.size, "fingerprint": splits.train.fingerprint}
    if path.exists():
        text = path.read_text()
        cfg.adopt_old_behaviour(config, text)
        old, old_data = cfg.from_json(text)
        changed = cfg.differences(old, config)
        if old_data != data:
            changed.append(f"training images: {old_data} -> {data}")
        if changed and not force:
            raise SimclrError(
                f"{workdir} holds a run that differs in:\n  " + "\n  ".join(changed)
                + "\nChoose another --workdir, or go on all the same with --resume=force"
            )  # fmt: skip
    elif workdir.exists() and (workdir / "checkpoints").exists():
        raise SimclrError(f"{workdir} has checkpoints but no {cfg.FILE}: choose another --workdir")
    if jax.process_index() == 0:
        workdir.mkdir(parents=True, exist_ok=True)
        path.write_text(cfg.to_json(config, data))
    return config


def use_compile_cache(where: str) -> None:
    """Keeps compiled programs on disk; an explicit JAX_COMPILATION_CACHE_DIR wins."""
    if not where or os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        return
    if where == "auto":
        where = os.path.join(os.environ.get("XDG_CACHE_HOME", "~/.cache"), "simclr_jax", "xla")
    jax.config.update("jax_compilation_cache_dir", os.path.expanduser(where))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def start_writers(workdir: epath.Path, first: int, config: ConfigDict) -> metrics.Writers:
    """Where process 0 writes its measurements; the others write nowhere."""
    project = config.log.wandb_project if config.log.wandb else None
    return metrics.Writers(
        workdir,
        first,
        tensorboard=config.log.tensorboard,
        wandb_project=project,
        config=config.to_dict(),
        enabled=jax.process_index() == 0,
    )


def note_unreadable(workdir: epath.Path, task: Task, say: Callable[[str], None] = print) -> list[str]:
    """Keeps the names of unreadable files over interruptions, and tells each once; all names so far."""
    path = workdir / "unreadable_files.txt"
    before = path.read_text().splitlines() if path.exists() else []
    new = sorted(set(task.unreadable()) - set(before))
    if new and jax.process_index() == 0:
        path.write_text("".join(f"{name}\n" for name in before + new))
        for name in new:
            say(f"unreadable, replaced by the next file: {name}")
    return sorted(before + new)


def finish(
    workdir: epath.Path, config: ConfigDict, first: int, steps: int, results: dict, task: Task,
    clock: "Clock",
) -> dict[str, Any]:  # fmt: skip
    """Draws the curves, writes summary.json and prints the table."""
    rows, unreadable = metrics.read_rows(workdir), note_unreadable(workdir, task)
    summary = {
        "config": config.to_dict(),
        "steps": steps,
        "resumed_from": first,
        "last": rows[-1] if rows else {},
        **report.nest(results),
        "rates": clock.rates,
        "seconds": {k: round(v, 2) for k, v in clock.all().items()},
        "unreadable_files": {"count": len(unreadable), "names": unreadable},
        **report.environment(),
    }
    if jax.process_index() == 0:
        if config.eval.figures:
            figures.curves(workdir / "figures" / "curves.png", rows)
        report.write(workdir, summary)
        print(f"\n{report.table(summary)}\n\n{workdir}", flush=True)
        for path in sorted(workdir.iterdir()):
            if path.is_dir():
                inside = ", ".join(sorted(child.name for child in path.iterdir()))
                print(f"  {path.name}/  {inside}")
            else:
                print(f"  {path.name}")
        if unreadable:
            print(f"{len(unreadable)} unreadable files were replaced: {', '.join(unreadable[:5])}")
    return summary


# ---- telling and measuring --------------------------------------------------------------------------


def check_finite(row: dict[str, float], step: int, checkpoints: checkpoint.Checkpoints) -> None:
    """Stops a run whose numbers are no longer numbers."""
    broken = [name for name, value in row.items() if not np.isfinite(value)]
    if broken:
        raise SimclrError(
            f"{broken[0]} is {row[broken[0]]} at step {step}: lower config.optimizer.learning_rate "
            f"or raise config.loss.temperature (last checkpoint: {checkpoints.latest()})"
        )


def describe(
    config: ConfigDict, splits: Splits, mesh: Mesh, state: TrainState, first: int, steps: int
) -> None:
    """Prints what is about to run."""
    count = {name: sum(x.size for x in jax.tree.leaves(part)) for name, part in state.params.items()}
    parts = ", ".join(f"{name} {size:,}" for name, size in count.items() if size)
    train, test = splits
    print(f"images: {train.size:,} to train on ({train.name})"
          + (f", {test.size:,} to test on" if test else ", no test split")
          + (f", {len(train.classes)} classes" if train.classes else ", no labels"))  # fmt: skip
    if not isinstance(train, data_splits.Source):
        print(
            "note: TFRecord is read in sequence: the order of images depends on the number of processes "
            "and resuming reads and skips what came before; with ArrayRecord neither is so"
        )
    print(f"parameters: {sum(count.values()):,} ({parts})")
    print(f"mesh: {mesh.size} × {mesh.devices.flat[0].device_kind}, "
          f"{config.train.batch_size // mesh.size} images on each")  # fmt: skip
    done = f", going on after step {first}" if first else ""
    print(f"steps: {steps:,}{done}", flush=True)


def memory_line(compiled: Any) -> str:
    """What the compiled step holds on each device, where the backend says."""
    stats = compiled.memory_analysis()
    if stats is None:
        return "memory not reported"
    sizes = (stats.argument_size_in_bytes, stats.temp_size_in_bytes)
    return "memory per device: {:.1f} MB state and batch, {:.1f} MB temporary".format(
        *(size / 1e6 for size in sizes)
    )


class Clock:
    """Wall-clock seconds by phase."""

    def __init__(self) -> None:
        self._begin = time.perf_counter()
        self.seconds: dict[str, float] = {}
        self.rates: dict[str, float] = {}

    @contextlib.contextmanager
    def phase(self, name: str):
        """Adds the time inside `with` to the phase `name`."""
        begin = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - begin

    def all(self) -> dict[str, float]:
        """The phases and the total so far."""
        return {**self.seconds, "total": time.perf_counter() - self._begin}


class Meter:
    """Speed of training proper: evaluations and saving stop the watch."""

    def __init__(self, batch_size: int, batches: Prefetch):
        self._batch_size, self._batches = batch_size, batches
        self.seconds = 0.0
        self._mark, self._done, self._waited = time.perf_counter(), 0, 0.0

    def read(self, done: int) -> dict[str, float]:
        """Source images a second and input-wait share since the last reading."""
        now = time.perf_counter()
        elapsed, steps = now - self._mark, done - self._done
        wait = self._batches.wait_seconds - self._waited
        self.seconds += elapsed
        self._mark, self._done, self._waited = now, done, self._batches.wait_seconds
        return {
            "images_per_second": steps * self._batch_size / elapsed,
            "data_wait": wait / elapsed,
        }

    def resume(self) -> None:
        """Starts the watch again after something that is not training."""
        self._mark, self._waited = time.perf_counter(), self._batches.wait_seconds

    def totals(self, done: int) -> dict[str, float]:
        """Over all steps since the start of this process."""
        seconds = max(self.seconds, 1e-9)
        return {
            "images_per_second": done * self._batch_size / seconds,
            "data_wait": self._batches.wait_seconds / seconds,
        }
