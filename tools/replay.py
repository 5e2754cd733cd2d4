"""Makes the step again that ended a run with NaN or infinity, and says where it comes from.

    python tools/replay.py --workdir=RUN [--step=N]

The run kept the state before that step, and the numbers of its batch, in RUN/nonfinite. The same program as
the run's makes the step from them. Exit code 0: the same numbers came out; 1: others. On a GPU set
XLA_FLAGS=--xla_gpu_deterministic_ops=true for the run and for this.
"""

import argparse
from typing import Any

import jax
import jax.numpy as jnp
from absl import logging
from etils import epath

from simclr_jax import checkpoint, command, files, loop, nonfinite, sharding, step, train
from simclr_jax.config import load_config, microbatches, total_steps
from simclr_jax.data.splits import Splits
from simclr_jax.errors import SimclrError
from simclr_jax.feeds import hold, load_splits
from simclr_jax.tasks import create_task

SHOWN = 10  # most arrays to print


def replay(workdir: epath.PathLike, number: int = 0, splits: Splits | None = None) -> dict[str, Any]:
    """Repeats the saved step.

    Args:
      number: the step to repeat, counted from 1; 0: the newest one in the workdir.
      splits: the images, for the source "arrays".

    Returns:
      {step, expected: {loss, grad_norm}, found: {loss, grad_norm}, same_batch, gradients: names of the arrays
      that are not finite, arrays: number of gradient arrays}.

    Raises:
      SimclrError: the workdir holds no such step, or the images differ from the run's.
    """
    folder = epath.Path(workdir) / nonfinite.FOLDER
    at, kept = _kept(folder, number)
    config, data = load_config(workdir)
    splits = splits or load_splits(config)
    if data.get("fingerprint") != splits.train.fingerprint:
        raise SimclrError(f"{workdir}: {splits.train.name} holds other images than the run had")
    splits = hold(config, splits)
    mesh = sharding.make_mesh(config.mesh.devices)
    task = create_task(config, splits, mesh)
    optimizer, rate = train.build_optimizer(
        config, splits.train.size, total_steps(config, splits.train.size), task
    )
    like = train.init_state(task, optimizer, config.seed, mesh, fresh=False)
    saved = checkpoint.read(folder, at)

    host_batch = next(task.input(at))
    batch = nonfinite.numbers_of(host_batch)
    arguments = next(loop.call_inputs(iter([host_batch]), [1], task.steps_per_call, mesh))
    gradient = step.make_gradient(task, config.seed, microbatches(config))
    finite = jax.jit(
        lambda state, batch: jax.tree.map(lambda g: jnp.all(jnp.isfinite(g)), gradient(state, batch)[0])
    )
    fine = finite(checkpoint.fill(like, saved, str(folder)), sharding.put_batch(host_batch, mesh))
    step_fn = step.make_step(task, optimizer, rate, config.seed, microbatches(config))
    _, numbers = loop.program(task, step_fn)(checkpoint.fill(like, saved, str(folder)), *arguments)
    return {
        "step": at + 1,
        "expected": kept["numbers"],
        "found": {name: repr(float(numbers[nonfinite.KEY][name])) for name in kept["numbers"]},
        "same_batch": kept["batch"] in (None, batch),
        "gradients": [name for name, good in checkpoint.named(fine).items() if not good],
        "arrays": len(jax.tree.leaves(fine)),
    }


def _kept(folder: epath.Path, number: int) -> tuple[int, dict[str, Any]]:
    """(the number of steps before it, the saved numbers)."""
    steps = checkpoint.saved_steps(folder)
    if not steps or (number and number - 1 not in steps):
        there = f"; there are: {', '.join(str(s + 1) for s in steps)}" if steps else ""
        raise SimclrError(f"{folder}: no step {number or ''} is kept there{there}".replace("step  ", "step "))
    at = number - 1 if number else steps[-1]
    kept = files.read_json(folder / f"{at}.json")
    if not {"numbers", "batch"} <= kept.keys():
        raise SimclrError(f"{folder / f'{at}.json'}: missing or damaged")
    return at, kept


def show(made: dict[str, Any]) -> bool:
    """Prints the numbers of both steps; returns whether they are equal."""
    for name, value in made["expected"].items():
        print(f"step {made['step']}: {name} {made['found'][name]}, in the run {value}")
    print("the batch is " + ("the same" if made["same_batch"] else "another"))
    bad = made["gradients"]
    print(f"gradients that are not finite: {len(bad)} of {made['arrays']} arrays")
    for name in bad[:SHOWN]:
        print(f"  {name}")
    return made["same_batch"] and made["found"] == made["expected"]


def main(argv: list[str] | None = None) -> None:
    """Repeats the step that the command line names."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--workdir", required=True, help="of the run")
    options.add_argument("--step", type=int, default=0, help="as the run named it (default: the newest)")
    args = options.parse_args(argv)
    logging.set_verbosity(logging.WARNING)
    with command.ends("starts again"):
        train.use_compile_cache(load_config(args.workdir)[0].compile_cache)
        same = show(replay(args.workdir, args.step))
        print("reproduced" if same else "NOT reproduced")
    raise SystemExit(0 if same else 1)


if __name__ == "__main__":
    main()
