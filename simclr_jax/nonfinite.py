"""Handles a NaN or infinite loss or gradient: the step is not applied, and it is saved for inspection.

The host reads numbers late: up to 16 steps a call, two calls under way. So the state has a sticky flag. The
step that fails and all later ones leave the state unchanged. The run then saves the state, the numbers of the
batch and the random key, and ends; `tools/replay.py` repeats the step.
"""

import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from simclr_jax import checkpoint, files, sharding
from simclr_jax.data.sources import Source
from simclr_jax.errors import DivergedError, SimclrError, one_line
from simclr_jax.metrics import Writers
from simclr_jax.resolve import Run
from simclr_jax.state import TrainState
from simclr_jax.tasks import Task

KEY = "failed"  # in the numbers of a step
FOLDER = "nonfinite"  # in the workdir


def nothing() -> dict[str, Any]:
    """The flag of a state without failure: {step that failed, its loss, its gradient norm}."""
    return {"step": np.int32(-1), "loss": np.float32(0), "grad_norm": np.float32(0)}


def guarded(
    before: TrainState, after: TrainState, numbers: dict[str, jax.Array]
) -> tuple[TrainState, dict[str, Any]]:
    """Returns `after`, or `before` with the flag if this step is not finite or an earlier one failed."""
    if not before.failed:  # a state made by hand, without the flag
        return after, numbers
    now = {"step": before.step, **{name: numbers[name].astype(jnp.float32) for name in ("loss", "grad_norm")}}
    finite = jnp.isfinite(numbers["loss"]) & jnp.isfinite(numbers["grad_norm"])
    earlier = before.failed["step"] >= 0
    failed = {
        name: jnp.where(earlier | finite, before.failed[name], value).astype(before.failed[name].dtype)
        for name, value in now.items()
    }
    good = finite & ~earlier

    def keep(new: jax.Array, old: jax.Array) -> jax.Array:
        return jnp.where(good, new, old)

    state = after.replace(
        step=keep(after.step, before.step),
        params=jax.tree.map(keep, after.params, before.params),
        model_state=jax.tree.map(keep, after.model_state, before.model_state),
        opt_state=jax.tree.map(keep, after.opt_state, before.opt_state),
        extra=jax.tree.map(keep, after.extra, before.extra),
        failed=failed,
    )
    return state, numbers | {KEY: failed}


def check(
    run: Run, task: Task, state: TrainState, numbers: dict[str, Any], step: int, writers: Writers
) -> None:
    """Ends the run if the numbers after `step` updates are not finite.

    Raises:
      DivergedError: says which one and at which step; the step is dumped.
    """
    failed = numbers.get(KEY) or nothing()
    contrastive = " or raise config.loss.temperature" if "contrast_accuracy" in numbers else ""
    remedy = f"lower config.optimizer.learning_rate{contrastive}"
    last = f"last checkpoint: {max(checkpoint.saved_steps(run.checkpoints), default=None)}"
    at = int(failed["step"])
    if at >= 0:
        found = {name: float(failed[name]) for name in ("loss", "grad_norm")}
        name = next(name for name, value in found.items() if not np.isfinite(value))
        try:
            writers.write(at + 1, found)
            kept = f"the step is in {dump(run, task, state, at, found)}: tools/replay.py makes it again"
        except (OSError, RuntimeError, ValueError, SimclrError) as error:  # it must not hide why the run ends
            kept = f"the step could not be kept: {one_line(error)}"
        raise DivergedError(f"{name} is {found[name]} at step {at + 1}: {remedy} ({last}; {kept})")
    broken = {name: value for name, value in numbers.items() if name != KEY and not np.isfinite(value)}
    if broken:
        name, value = next(iter(broken.items()))
        raise DivergedError(f"{name} is {value} at step {step}: {remedy} ({last})")


def dump(run: Run, task: Task, state: TrainState, at: int, numbers: dict[str, float]) -> epath.Path:
    """Saves the state before the failed step; `workdir/nonfinite/STEP.json` gets the numbers of its batch."""
    folder = run.workdir / FOLDER
    if jax.process_index() == 0 and folder.exists():  # of an earlier divergence
        files.set_aside(folder, run.workdir)
    sharding.barrier()  # nobody goes on before it is gone
    with checkpoint.Checkpoints(folder) as checkpoints:
        checkpoints.save(state)
    # A Stream would read everything before that step once more.
    batch = numbers_of(next(task.input(at))) if isinstance(run.splits.train, Source) else None
    key = jax.random.fold_in(jax.random.key(run.config.seed), at)
    number = jax.process_index()
    path = folder / (f"{at}.{number}.json" if number else f"{at}.json")
    content = {
        "step": at,
        "numbers": {name: repr(value) for name, value in numbers.items()},
        "seed": run.config.seed,
        "key": np.asarray(jax.random.key_data(key)).tolist(),
        "batch": batch,
    }
    files.write(path, json.dumps(content) + "\n")
    return path


def numbers_of(host_batch: Any) -> dict[str, list]:
    """Leaves of a batch that are one number an example: index, position, label."""
    return {name: np.asarray(x).tolist() for name, x in checkpoint.named(host_batch).items() if x.ndim == 1}
