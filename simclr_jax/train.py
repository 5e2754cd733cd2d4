"""Trains: `run` has all parts of a run in order; the loop itself is in loop.py."""

import contextlib
import hashlib
import json
import math
import os
import warnings
from collections.abc import Callable, Iterator
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
    draws,
    figures,
    files,
    memory_error,
    metrics,
    nonfinite,
    optim,
    resolve,
    run_summary,
    sharding,
    storage,
)
from simclr_jax import workdir as folder
from simclr_jax.config import count_steps, every_steps, microbatches
from simclr_jax.data.splits import Splits
from simclr_jax.errors import Preempted, StorageError, UnreadableImagesError
from simclr_jax.feeds import hold
from simclr_jax.loop import Loop, Outlets
from simclr_jax.resolve import Run
from simclr_jax.signals import Signals
from simclr_jax.state import TrainState
from simclr_jax.step import OBJECTIVES, make_step, with_objectives
from simclr_jax.tasks import Context, Task, create_task
from simclr_jax.text import printable


def run(
    config: ConfigDict,
    workdir: epath.PathLike,
    *,
    splits: Splits | None = None,
    force: bool = False,
    on_eval: Callable[[int, dict[str, float]], None] | None = None,
) -> dict[str, Any]:
    """Trains as `config` describes, in `workdir`; resumes if an earlier call stopped there.

    Args:
      splits: the images, for the source "arrays"; otherwise the config says where they are.
      force: resume although the config differs in fields that change the result.
      on_eval: gets (step, scores) of every evaluation while training; its exceptions end the run.

    Returns:
      the summary, as written to summary.json.

    Raises:
      SimclrError: something the user can put right; one line that says what.
      Preempted: SIGTERM came; the state is saved.
    """
    clock, first_process = metrics.Clock(), jax.process_index() == 0
    use_compile_cache(config.compile_cache)
    with contextlib.ExitStack() as stack:
        stack.enter_context(memory_error.explained(memory_error.training, config))
        run = stack.enter_context(resolve.resolved(config, workdir, clock, splits=splits, force=force))
        stack.enter_context(unreadable_noted(run))
        with clock.phase("data"):
            run = run._replace(splits=hold(run.config, run.splits))
        task = create_task(run.config, run.splits, run.mesh)
        optimizer, rate = build_optimizer(run.config, run.splits.train.size, run.steps, task)
        with clock.phase("start"):
            state = init_state(task, optimizer, run.config.seed, run.mesh, fresh=run.saved is None)
            if run.saved:
                state = checkpoint.fill(state, run.saved, str(run.checkpoints / str(run.first)))
                run = run._replace(saved=run.saved._replace(arrays={}))  # on the devices now
        announce.describe(run, task, state)

        rates: dict[str, float] = {}
        if run.first == run.steps:
            run.write_config(task.classes)
        else:
            step_fn = make_step(task, optimizer, rate, run.config.seed, microbatches(run.config))
            state, rates = train(run, task, state, step_fn, clock, on_eval)
        results: dict[str, Any] = {}
        summary: dict[str, Any] = {}
        for name, (period, evaluate) in task.evals.items():
            if period == 0:
                if first_process:
                    print(f"{name} ...", flush=True)
                with clock.phase(name), memory_error.explained(memory_error.evaluation, run.config):
                    results |= evaluate(state, Context(run.steps, run.workdir))
                # Write now, so that a later failure does not lose the scores.
                summary = summarize(run, task, results, rates, clock)
        summary = summary or summarize(run, task, results, rates, clock)
        if first_process and run.config.eval.figures:
            rows = metrics.read_rows(run.workdir)
            figures.attempt(print, run.workdir / "figures" / "curves.png", figures.curves, rows)
        return summary


def train(
    run: Run,
    task: Task,
    state: TrainState,
    step_fn: Callable,
    clock: metrics.Clock,
    on_eval: Callable[[int, dict[str, float]], None] | None = None,
) -> tuple[TrainState, dict[str, float]]:
    """The steps that are left: batches in, logs, evaluations and checkpoints out.

    Returns:
      the state after the last step, and the mean rates.

    Raises:
      Preempted: SIGTERM came; the state is saved.
    """
    with contextlib.ExitStack() as stack:
        signals = Signals(several=jax.process_count() > 1)
        stack.callback(signals.forget)  # the loop hears them, until all is saved
        sharding.from_first(lambda: check_room(run, state))
        run.set_damaged_aside()
        checkpoints = checkpoint.Checkpoints(run.checkpoints, run.config.checkpoint.keep)
        stack.enter_context(checkpoints)
        writers = stack.enter_context(start_writers(run.workdir, run.first, run.config))
        outlets = Outlets(checkpoints, writers, signals, clock, on_eval)
        recall_unreadable(run)
        state, rates = Loop(run, task, outlets).train(state, step_fn)
    if signals.received:
        raise Preempted(run.steps, run.steps)
    signals.end_if_late()
    return state, rates


def init_state(
    task: Task, optimizer: optax.GradientTransformation, seed: int, mesh: Mesh, *, fresh: bool = True
) -> TrainState:
    """The state before the first step, replicated on the mesh; not `fresh`: a checkpoint replaces it."""
    everywhere = sharding.replicated(mesh)
    variables = jax.jit(task.init, out_shardings=everywhere)(jax.random.key(seed))
    if fresh:
        variables = task.start(variables)
    own, extra = jax.jit(lambda: init_objectives(task, seed), out_shardings=everywhere)()
    params, extra = with_objectives(task, variables.pop("params"), own, extra)
    return TrainState(
        step=sharding.put_same(np.int32(0), everywhere),
        params=params,
        model_state=variables,
        opt_state=jax.jit(optimizer.init, out_shardings=everywhere)(params),
        extra=extra,
        fixed=task.fixed(),
        failed=sharding.put_same(nonfinite.nothing(), everywhere),
    )


def init_objectives(task: Task, seed: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """(parameters, state) of the objectives that have some, by name."""
    key = jax.random.fold_in(jax.random.key(seed), 1)[None]
    found = {name: one.init(draws.named_keys(key, name)[0]) for name, one in task.objectives.items()}
    parameters, state = ({name: each[i] for name, each in found.items() if each[i]} for i in (0, 1))
    return parameters, state


def build_optimizer(
    config: ConfigDict, examples: int, steps: int, task: Task
) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """(optimiser of `config.optimizer`, its learning rate as a function of the step)."""
    fields = config.optimizer.to_dict()
    name, scaling = fields.pop("name"), fields.pop("scaling")
    for field in ("decay_exclude", "adapt_exclude"):  # a temperature that is learned is no weight
        fields[field] = (*fields[field], f"^{OBJECTIVES}/(?!.*/kernel$)")
    peak = optim.scaled_rate(fields.pop("learning_rate"), scaling, config.train.batch_size)
    fields.pop("warmup")
    warmup = count_steps(config.optimizer.warmup, examples, config.train.batch_size)
    rate = optim.schedule(peak, warmup, steps)
    return optim.create(name, rate, trainable=task.trainable, **fields), rate


# ---- before and after -------------------------------------------------------------------------


def use_compile_cache(where: str) -> None:
    """Keeps compiled programs on disk; an explicit JAX_COMPILATION_CACHE_DIR wins.

    Without room for them the run works, but starts more slowly.
    """
    if not where or os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        return
    if where == "auto":
        where = os.path.join(os.environ.get("XDG_CACHE_HOME", "~/.cache"), "simclr_jax", "xla")
        # XLA caches its kernel measurements for all flags alike. Without one folder per set of flags, a run
        # with --xla_gpu_deterministic_ops=true would use kernels chosen by a run without it.
        if flags := os.environ.get("XLA_FLAGS"):
            where += "-" + hashlib.sha256(" ".join(sorted(flags.split())).encode()).hexdigest()[:8]
    where = os.path.expanduser(where)
    try:
        storage.probe(where)
    except StorageError as error:
        if jax.process_index() == 0:
            print(f"note: compiled programs are not kept: {str(error).partition('; ')[0]}", flush=True)
        return
    warnings.filterwarnings("ignore", "Error writing persistent compilation cache")  # a line a program
    jax.config.update("jax_compilation_cache_dir", where)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    compilation_cache.reset_cache()  # JAX looks for a cache once, at the first compilation


def check_room(run: Run, state: TrainState) -> None:
    """Raises SimclrError if the run's checkpoints will not fit."""
    kept = len(checkpoint.saved_steps(run.checkpoints)) - len(run.damaged)
    every = every_steps(run.config.checkpoint.every, run.splits.train.size, run.config.train.batch_size)
    saves = 1 if not every else math.ceil((run.steps - run.first) / every)
    storage.check_room(run.workdir, checkpoint.size(state), kept, run.config.checkpoint.keep, saves)


def start_writers(workdir: epath.Path, first: int, config: ConfigDict) -> metrics.Writers:
    """The writers of process 0; other processes write nothing."""
    return metrics.Writers(
        workdir,
        first,
        tensorboard=config.log.tensorboard,
        wandb_project=config.log.wandb_project if config.log.wandb else None,
        config=config.to_dict(),
        enabled=jax.process_index() == 0,
    )


def recall_unreadable(run: Run) -> None:
    """Loads the files that were replaced before an interruption, so that they count too."""
    known = folder.unreadable(run.workdir)
    for split in filter(None, run.splits) if known else ():
        names = {printable(name, None): name for name in getattr(split, "names", ())}
        found = {names[name]: why for name, why in known.items() if name in names}
        split.ledger.unreadable.update(found)


def note_unreadable(run: Run) -> list[str]:
    """Writes the names of replaced files to the workdir."""
    process = jax.process_index()
    say = _nothing if process else print
    return folder.note_unreadable(run.workdir, run.splits.unreadable(), say, process)


def _nothing(line: str) -> None:
    """The first process says it."""


@contextlib.contextmanager
def unreadable_noted(run: Run) -> Iterator[None]:
    """Writes the names even if too many unreadable files end the `with` block."""
    try:
        yield
    except UnreadableImagesError:
        note_unreadable(run)
        raise


def _count_by_pillow(splits: Splits) -> int:
    """Files that TensorFlow could not read, but Pillow."""
    return len({name for split in splits if split for name in split.ledger.by_pillow})


def summarize(
    run: Run, task: Task, results: dict[str, Any], rates: dict[str, float], clock: metrics.Clock
) -> dict[str, Any]:
    """Writes summary.json with the results so far."""
    first_process = jax.process_index() == 0
    rows = metrics.read_rows(run.workdir)
    unreadable = note_unreadable(run)
    # If a finished run is only evaluated again, keep the figures from its training.
    before = files.read_json(run.workdir / run_summary.FILE) if run.first == run.steps else {}
    kept = {name: before[name] for name in ("seconds", "rates") if isinstance(before.get(name), dict)}
    seconds = {**kept.get("seconds", {}), **{k: round(v, 2) for k, v in clock.all().items()}}
    summary = {
        "config": run.config.to_dict(),
        "steps": run.steps,
        "resumed_from": run.first,
        "last": rows[-1] if rows else {},
        **run_summary.nest(results),
        "rates": rates or kept.get("rates", {}),
        "seconds": seconds,
        "unreadable_files": {"count": len(unreadable), "names": unreadable},
        "files_read_by_pillow": _count_by_pillow(run.splits),
        **run_summary.environment(),
    }
    if first_process:
        files.write(run.workdir / run_summary.FILE, json.dumps(summary, indent=2) + "\n")
    return summary
