"""Measures this installation; prints a line to read and writes JSON to compare.

    python tools/benchmark.py step --config=configs/quickstart.py [--steps=20] [--data=real]
        [--json=FILE] [--config.FIELD=VALUE ...]

Parts:
  step   the train step of any config: source images a second, from synthetic batches that are already on
         the device, or with --data=real through the input pipeline of the config.
  loss   NT-Xent's value and gradient, dense and in tiles side by side: time and temporary memory for each
         number of images in --sizes=1024,4096.
"""

import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import jax
import numpy as np
from absl import app, flags, logging

from simclr_jax import config as cfg
from simclr_jax import losses, report, sharding, train, validation
from simclr_jax import main as command
from simclr_jax.data import sources, splits
from simclr_jax.data.prefetch import Prefetch
from simclr_jax.errors import SimclrError
from simclr_jax.losses import tiled
from simclr_jax.tasks import TASKS

STEPS = flags.DEFINE_integer("steps", 20, "steps to time, after two to warm up", lower_bound=1)
DATA = flags.DEFINE_enum("data", "synthetic", ["synthetic", "real"], "where batches come from")
JSON = flags.DEFINE_string("json", None, "file to write the figures to")
SIZES = flags.DEFINE_list("sizes", ["1024", "4096"], "images a batch, of the part loss")
PARTS = ("step", "loss")


def synthetic_splits(config) -> splits.Splits:
    """Random images of the config's size, a batch of them, ten classes."""
    side, batch = config.data.image_size, config.train.batch_size
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (batch, side, side, config.data.channels), np.uint8)
    return splits.Splits(sources.from_arrays(images, np.arange(batch) % 10), None)


def synthetic_batch(config) -> dict[str, np.ndarray]:
    """A batch as the pipeline makes it, of noise."""
    side, batch = config.data.image_size, config.train.batch_size
    views = 2 if config.task == "pretrain" else 1
    rng = np.random.default_rng(0)
    return {
        "views": rng.random((batch, views, side, side, config.data.channels), np.float32),
        "position": np.arange(batch, dtype=np.uint32),
        "label": (np.arange(batch) % 10).astype(np.int32),
        "mask": np.ones(batch, bool),
    }


def benchmark_step(config) -> dict:
    """Seconds of single steps, the median's source images a second, compile time and memory."""
    real, steps = DATA.value == "real", STEPS.value + 2
    config.train.steps = steps
    data = splits.load(**config.data) if real else synthetic_splits(config)
    mesh = sharding.make_mesh(config.mesh.devices)
    validation.validate_run(config, data.train.size, mesh.size)
    task = TASKS[config.task](config, data, mesh)
    optimizer, rate = train.build_optimizer(config, data.train.size, steps, task)
    state = train.init_state(task, optimizer, config.seed, mesh)
    put = lambda batch: sharding.put_batch(batch, mesh)  # noqa: E731
    fixed = put(synthetic_batch(config))
    prefetch = Prefetch(map(put, task.input(0))) if real else None

    begin = time.perf_counter()
    step_fn = train.make_step(task, optimizer, rate, config.seed, cfg.microbatches(config))
    compiled = jax.jit(step_fn, donate_argnums=0).lower(state, fixed).compile()
    compile_seconds = time.perf_counter() - begin
    seconds = []
    for _ in range(steps):
        begin = time.perf_counter()
        state, numbers = compiled(state, prefetch.next() if real else fixed)
        jax.block_until_ready(numbers)
        seconds.append(time.perf_counter() - begin)
    if real:
        prefetch.close()
    median = statistics.median(seconds[2:])
    memory = compiled.memory_analysis()
    return {
        "part": "step",
        "data": DATA.value,
        "batch_size": config.train.batch_size,
        "images_per_second": config.train.batch_size / median,
        "step_seconds": {"median": median, "min": min(seconds[2:]), "max": max(seconds[2:])},
        "compile_seconds": compile_seconds,
        "temporary_bytes_per_device": memory.temp_size_in_bytes if memory else None,
        "config": config.to_dict(),
        **report.environment(),
    }


def benchmark_loss(config) -> dict:
    """Seconds and temporary memory of NT-Xent's value and gradient, dense and in tiles, side by side."""
    mesh = sharding.make_mesh(config.mesh.devices)
    gather = lambda z: jax.lax.with_sharding_constraint(z, sharding.replicated(mesh))  # noqa: E731
    ways = {
        "dense": lambda z: losses.nt_xent(z, config.loss.temperature, gather=gather),
        "tiled": lambda z: tiled.nt_xent(z, config.loss.temperature, mesh=mesh, axis=sharding.AXIS),
    }
    rows = []
    for n in map(int, SIZES.value):
        rng = np.random.default_rng(0)
        z = sharding.put_batch(rng.standard_normal((n, 2, config.model.projection_dim), np.float32), mesh)
        compiled = {
            name: jax.jit(jax.value_and_grad(loss, has_aux=True)).lower(z).compile()
            for name, loss in ways.items()
        }
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(STEPS.value + 1):
            for name, run in compiled.items():
                begin = time.perf_counter()
                jax.block_until_ready(run(z))
                seconds[name].append(time.perf_counter() - begin)
        for name, run in compiled.items():
            memory = run.memory_analysis().temp_size_in_bytes / 1e6
            rows.append(
                {
                    "images": n,
                    "loss": name,
                    "seconds": statistics.median(seconds[name][1:]),
                    "temporary_mb": memory,
                }
            )
    return {"part": "loss", "rows": rows, **report.environment()}


def show_step(result: dict) -> None:
    """One line."""
    times = result["step_seconds"]
    print(
        f"step, {result['data']} data, {result['device']['count']} × {result['device']['kind']}: "
        f"{result['images_per_second']:.1f} images/s "
        f"(step {1e3 * times['median']:.1f} ms, {1e3 * times['min']:.1f} to "
        f"{1e3 * times['max']:.1f}; compile {result['compile_seconds']:.1f} s)"
    )


def show_loss(result: dict) -> None:
    """A table."""
    for row in result["rows"]:
        print(
            f"{row['images']:>7} images, {row['loss']}: {1e3 * row['seconds']:.1f} ms, "
            f"{row['temporary_mb']:.1f} MB temporary a device"
        )


def main(argv: list[str]) -> None:
    """Runs the part that is named."""
    logging.set_verbosity(logging.WARNING)
    part = argv[1] if len(argv) > 1 else "(none)"
    if part not in PARTS:
        raise SimclrError(f"part {part!r}: must be one of {', '.join(PARTS)}")
    config = cfg.adopt_start(command.CONFIG.value)
    validation.validate(config)
    result = {"step": benchmark_step, "loss": benchmark_loss}[part](config)
    {"step": show_step, "loss": show_loss}[part](result)
    where = Path(JSON.value or Path(tempfile.gettempdir()) / f"simclr_jax_{part}.json")
    where.write_text(json.dumps(result, indent=2) + "\n")
    print(where)


if __name__ == "__main__":
    try:
        app.run(main, flags_parser=lambda argv: command.parse(argv, words=1))
    except SimclrError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
