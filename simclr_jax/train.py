"""The one train loop. `run` reads from top to bottom as the story of a run."""

import collections
import contextlib
import itertools
import json
import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import numpy as np
import optax
from etils import epath
from jax.experimental.compilation_cache import compilation_cache
from jax.sharding import Mesh
from ml_collections import ConfigDict

from simclr_jax import (
    announce,
    checkpoint,
    encoder,
    figures,
    files,
    metrics,
    optim,
    report,
    sharding,
    validation,
)
from simclr_jax import config as cfg
from simclr_jax import workdir as folder
from simclr_jax.data import memory
from simclr_jax.data import splits as data_splits
from simclr_jax.data.prefetch import Prefetch
from simclr_jax.data.splits import Splits
from simclr_jax.errors import DivergedError, Preempted, SimclrError
from simclr_jax.state import TrainState
from simclr_jax.step import make_step, repeated
from simclr_jax.tasks import TASKS, Context, Task


def run(
    config: ConfigDict,
    workdir: epath.PathLike,
    *,
    splits: Splits | None = None,
    force: bool = False,
    on_eval: Callable[[int, dict[str, float]], None] | None = None,
) -> dict[str, Any]:
    """Trains what `config` describes in `workdir`, or goes on where an earlier call stopped.

    Args:
      splits: the images, for the source "arrays"; otherwise the config says where they are.
      force: resume although the config differs in what decides the result.
      on_eval: gets (step, scores) of every evaluation while training; what it raises ends the run.

    Returns:
      the summary, as written to summary.json.

    Raises:
      SimclrError: something the user can put right; one line that says what.
      Preempted: SIGTERM came; the state is saved.
    """
    workdir, clock, first_process = epath.Path(workdir), metrics.Clock(), jax.process_index() == 0
    config = cfg.adopt_start(config, workdir)
    validation.validate(config)
    if config.model.dtype == "float64" and not jax.config.jax_enable_x64:
        raise SimclrError("config.model.dtype='float64': set JAX_ENABLE_X64=1")
    mesh = sharding.make_mesh(config.mesh.devices)
    with clock.phase("data"):
        splits = splits or data_splits.load(**config.data)
    validation.validate_run(config, splits.train.size, mesh.size)
    folder.check(workdir, config)
    latest = max(checkpoint.saved_steps(workdir / "checkpoints"), default=None)
    if not sharding.agreed(latest or 0):
        raise SimclrError(f"--workdir={workdir}: the processes see other checkpoints there; share the folder")
    identity = {"examples": splits.train.size, "fingerprint": splits.train.fingerprint}
    config = folder.claim(workdir, config, identity, trained=latest is not None, force=force)
    if latest is None:
        config = encoder.pin_steps(config)
    use_compile_cache(config.compile_cache)
    if config.augment.device == "all":
        with clock.phase("data"):
            splits = memory.hold(splits, config.data)

    task = TASKS[config.task](config, splits, mesh)
    checkpoints = checkpoint.Checkpoints(workdir / "checkpoints", config.checkpoint.keep)
    if first_process:
        files.write(workdir / cfg.FILE, cfg.to_json(config, {**identity, "classes": list(task.classes)}))
    steps = cfg.total_steps(config, splits.train.size)
    optimizer, rate = build_optimizer(config, splits.train.size, steps, task)
    with clock.phase("start"):
        state = init_state(task, optimizer, config.seed, mesh, fresh=latest is None)
        if latest is not None:
            state = checkpoints.restore(latest, state)
    first = int(state.step)
    announce.describe(config, splits, mesh, task, state, first, steps)

    rates: dict[str, float] = {}
    if first < steps:
        with contextlib.ExitStack() as stack:
            signals = stack.enter_context(checkpoint.Signals())  # heard until all is saved
            stack.enter_context(checkpoints)
            writers = start_writers(workdir, first, config)
            stack.callback(writers.close)
            step_fn = make_step(task, optimizer, rate, config.seed, cfg.microbatches(config))
            state, rates = train(
                state, first, steps, step_fn, config=config, task=task, mesh=mesh, workdir=workdir,
                clock=clock, writers=writers, checkpoints=checkpoints, signals=signals,
                examples=splits.train.size, on_eval=on_eval,
            )  # fmt: skip
        if signals.received:
            raise Preempted(steps, steps)
    results = {}
    for name, (period, evaluate) in task.evals.items():
        if period == 0:
            if first_process:
                print(f"{name} ...", flush=True)
            with clock.phase(name):
                results |= evaluate(state, Context(steps, workdir))
    return finish(workdir, config, first, steps, results, rates, task, clock)


def train(
    state: TrainState, first: int, steps: int, step_fn: Callable, *, config: ConfigDict, task: Task,
    mesh: Mesh, workdir: epath.Path, clock: metrics.Clock, writers: metrics.Writers,
    checkpoints: checkpoint.Checkpoints, signals: checkpoint.Signals, examples: int,
    on_eval: Callable[[int, dict[str, float]], None] | None = None,
) -> tuple[TrainState, dict[str, float]]:  # fmt: skip
    """Steps `first` to `steps`: batches in, logs, evaluations and checkpoints out.

    Returns:
      the state after the last step, and the mean rates.
    """
    first_process, batch_size = jax.process_index() == 0, config.train.batch_size
    log_every = cfg.every_steps(config.log.every, examples, batch_size)
    save_every = cfg.every_steps(config.checkpoint.every, examples, batch_size)

    periods = [log_every, save_every, *(every for every, _ in task.evals.values())]
    plan = list(calls(first, steps, task.steps_per_call, periods))

    with clock.phase("first_batch"):
        host_batches = task.input(first)
        host_batch = next(host_batches)
        if first_process:
            task.preview(workdir, host_batch)
        host_batches = itertools.chain([host_batch], host_batches)
        inputs = call_inputs(host_batches, plan, task.steps_per_call, mesh)
        arguments = next(inputs, None)
        if arguments is None:
            raise SimclrError("the input ended before the run did")
    with clock.phase("compile"):
        program = step_fn if task.steps_per_call == 1 else repeated(step_fn)
        compiled = jax.jit(program, donate_argnums=0).lower(state, *arguments).compile()
    if first_process:
        compile_time = f"compiled in {clock.seconds['compile']:.1f} s (lower + compile)"
        print(f"{compile_time}; {announce.memory_line(compiled)}", flush=True)

    batches = Prefetch(itertools.chain([arguments], inputs))
    progress = metrics.Progress(first, steps, enabled=first_process)
    meter = metrics.Meter(batch_size, lambda: batches.wait_seconds)
    in_flight: collections.deque = collections.deque()  # the numbers of the calls under way
    # On CPUs a collective operation holds one of few threads: calls under way would wait for each other.
    ahead = 0 if jax.process_count() > 1 and jax.default_backend() == "cpu" else 2
    step = first
    waiting: tuple | None = None  # a log whose numbers are read once the next step runs
    hunger, collapse = announce.Hunger(config), announce.Collapse()

    def write_log(log: tuple | None, **more: float) -> None:
        if log is None:
            return
        step, numbers, speed = log
        row = {k: float(v) for k, v in jax.device_get(numbers).items()} | speed | more
        writers.write(step, row)
        progress.note(row)
        for line in (hunger.line(speed["data_wait"]), collapse.line(row.get("feature_std"))):
            if line:
                progress.say(line)
        if names := task.unreadable():  # otherwise no file is read at every log
            folder.note_unreadable(workdir, names, progress.say, jax.process_index())
        check_finite(row, step, checkpoints)

    try:
        for call, count in enumerate(plan):
            signals.check()
            arguments = batches.next(lambda: jax.block_until_ready(list(in_flight)))
            with jax.transfer_guard("disallow"):
                state, numbers = compiled(state, *arguments)
            step += count
            in_flight.append(numbers)
            if len(in_flight) > ahead:  # never further ahead of the device
                jax.block_until_ready(in_flight.popleft())
            progress.step(step)
            write_log(waiting)
            waiting = None

            last = step == steps
            due = [fn for every, fn in task.evals.values() if every and (last or step % every == 0)]
            stop = signals.received or checkpoints.preempted(call)
            save = last or stop or (save_every and step % save_every == 0)
            log = last or due or (log_every and step % log_every == 0)
            if due or save:  # what follows is no training: let it finish, stop the watch
                jax.block_until_ready(state)
                meter.pause()
            if log:
                waiting = (step, numbers, meter.read(step - first))
            if save:
                if not due:
                    write_log(waiting)
                    waiting = None
                check_finite(jax.device_get(numbers), step, checkpoints)
                with clock.phase("save"):
                    checkpoints.save(state)
            if due:
                with clock.phase("eval"):
                    scores = {k: v for fn in due for k, v in fn(state, Context(step, workdir)).items()}
                progress.say(f"step {step}: " + "  ".join(f"{k} {v:.4f}" for k, v in scores.items()))
                write_log(waiting, **scores)
                waiting = None
                if on_eval:
                    on_eval(step, scores)
            if due or save:
                meter.resume()
            if stop:
                raise Preempted(step, steps)
    finally:
        batches.close()
        progress.close()
        rates = meter.totals(step - first)
        clock.seconds["train"] = meter.seconds
    return state, rates


def calls(first: int, steps: int, most: int, periods: Iterable[int]) -> Iterator[int]:
    """How many steps each call of the program makes: at most `most`, and none past where something is due."""
    while first < steps:
        after = min(first + most, steps, *(first + p - first % p for p in periods if p))
        yield after - first
        first = after


def call_inputs(host_batches: Iterator[Any], plan: list[int], most: int, mesh: Mesh) -> Iterator[tuple]:
    """What each call of the program takes beside the state, on the mesh."""
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


def init_state(
    task: Task, optimizer: optax.GradientTransformation, seed: int, mesh: Mesh, *, fresh: bool = True
) -> TrainState:
    """The state before the first step, replicated over the mesh; not `fresh`: a checkpoint's will follow."""
    everywhere = sharding.replicated(mesh)
    variables = jax.jit(task.init, out_shardings=everywhere)(jax.random.key(seed))
    if fresh:
        variables = task.start(variables)
    params = variables.pop("params")
    return TrainState(
        step=sharding.put_same(np.int32(0), everywhere),
        params=params,
        model_state=variables,
        opt_state=jax.jit(optimizer.init, out_shardings=everywhere)(params),
        fixed=task.fixed(),
    )


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


# ---- before and after -------------------------------------------------------------------------


def use_compile_cache(where: str) -> None:
    """Keeps compiled programs on disk; an explicit JAX_COMPILATION_CACHE_DIR wins."""
    if not where or os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        return
    if where == "auto":
        where = os.path.join(os.environ.get("XDG_CACHE_HOME", "~/.cache"), "simclr_jax", "xla")
    jax.config.update("jax_compilation_cache_dir", os.path.expanduser(where))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    compilation_cache.reset_cache()  # JAX looks for a cache once, at the first compilation


def start_writers(workdir: epath.Path, first: int, config: ConfigDict) -> metrics.Writers:
    """Where process 0 writes its measurements; the others write nowhere."""
    return metrics.Writers(
        workdir,
        first,
        tensorboard=config.log.tensorboard,
        wandb_project=config.log.wandb_project if config.log.wandb else None,
        config=config.to_dict(),
        enabled=jax.process_index() == 0,
    )


def check_finite(row: dict[str, Any], step: int, checkpoints: checkpoint.Checkpoints) -> None:
    """Stops a run whose numbers are no longer numbers, before they are saved."""
    broken = [name for name, value in row.items() if not np.isfinite(value)]
    if broken:
        contrastive = " or raise config.loss.temperature" if "contrast_accuracy" in row else ""
        raise DivergedError(
            f"{broken[0]} is {row[broken[0]]} at step {step}: lower config.optimizer.learning_rate"
            f"{contrastive} (last checkpoint: {checkpoints.latest()})"
        )


def finish(
    workdir: epath.Path, config: ConfigDict, first: int, steps: int, results: dict[str, Any],
    rates: dict[str, float], task: Task, clock: metrics.Clock,
) -> dict[str, Any]:  # fmt: skip
    """Draws the curves and writes summary.json."""
    first_process = jax.process_index() == 0
    rows = metrics.read_rows(workdir)
    say = print if first_process else lambda line: None
    unreadable = folder.note_unreadable(workdir, task.unreadable(), say, jax.process_index())
    # A finished run that is only evaluated again keeps what it measured while it trained.
    before = files.read_json(workdir / report.FILE) if first == steps else {}
    seconds = {**before.get("seconds", {}), **{k: round(v, 2) for k, v in clock.all().items()}}
    summary = {
        "config": config.to_dict(),
        "steps": steps,
        "resumed_from": first,
        "last": rows[-1] if rows else {},
        **report.nest(results),
        "rates": rates or before.get("rates", {}),
        "seconds": seconds,
        "unreadable_files": {"count": len(unreadable), "names": unreadable},
        **report.environment(),
    }
    if first_process:
        if config.eval.figures:
            figures.curves(workdir / "figures" / "curves.png", rows)
        files.write(workdir / report.FILE, json.dumps(summary, indent=2) + "\n")
    return summary
