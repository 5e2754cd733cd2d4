"""The train step of any config: images a second, share of the device's peak, compile time, memory."""

import contextlib
import functools
import itertools
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from bench import kernels, table
from bench.contest import Reading, contest, peers, pipelined, rate, timed
from bench.peak import matmul_rate
from simclr_jax import loop, memory_error, run_summary, sharding, train
from simclr_jax.config import checks
from simclr_jax.data import memory, sources, splits
from simclr_jax.data.prefetch import Prefetch
from simclr_jax.doctor.ahead import CLASSES, batch_shapes, build, model_flops
from simclr_jax.errors import SimclrError
from simclr_jax.step import repeated

WARM_UP = 2  # calls
PIPELINED = 5  # calls of which the last alone is waited for
TRACED = 2  # calls
DATA = ("synthetic", "real")


def measure(
    config: ConfigDict,
    *,
    steps: int = 20,
    data: str = "synthetic",
    peer: str | None = None,
    trace: bool = False,
) -> dict:
    """Steps from synthetic batches that are on the device, or through the config's input pipeline.

    On an accelerator once more pipelined: not every step is waited for, as in training.
    """
    config, real = config.copy_and_resolve_references(), data == "real"
    if real and peer:
        raise SimclrError("--peer: is compared on synthetic batches; leave out --data=real")
    if trace and jax.default_backend() != "gpu":
        raise SimclrError("--trace: reads the kernels of GPUs; leave it out here")
    accelerator = jax.default_backend() != "cpu"
    rounds = (steps + WARM_UP) * (1 + PIPELINED * accelerator) + TRACED * trace
    config.train.steps = rounds * (config.train.steps_per_call or 16)
    images = load(config) if real else synthetic_splits(config)
    mesh = sharding.make_mesh(config.mesh.devices)
    checks.validate_run(config, images.train.size, mesh.size)
    built = build(config, images, mesh)
    state = train.init_state(built.task, built.optimizer, config.seed, mesh)
    each = built.task.steps_per_call
    batches = built.task.input(0) if real or config.augment.device == "all" else noise(config)
    inputs = loop.call_inputs(batches, itertools.repeat(each), each, mesh)
    fixed = next(inputs)

    begin = time.perf_counter()
    program = built.step_fn if each == 1 else repeated(built.step_fn)
    with memory_error.explained(memory_error.training, config):
        compiled = jax.jit(program, donate_argnums=0).lower(state, *fixed).compile()
    compile_seconds = time.perf_counter() - begin
    flops = model_flops(built, state, batch_shapes(config))
    peak = matmul_rate(config.model.dtype)
    prefetch = Prefetch(inputs) if real else None

    def call(times: int = 1) -> None:
        nonlocal state
        for _ in range(times):
            state, numbers = compiled(state, *(prefetch.next() if real else fixed))
        jax.block_until_ready((state, numbers))

    def reading(times: int = 1) -> Reading:
        return timed(functools.partial(call, times), each * times)()

    with contextlib.ExitStack() as stack:
        if prefetch:
            stack.callback(prefetch.close)
        others, notes = {}, []
        for together in (True, False) if peer else ():
            more, said = stack.enter_context(peers(peer, **peer_settings(config), together=together))
            others, notes = others | more, [*notes, *(note for note in said if note not in notes)]
        contenders = {"simclr_jax": reading, **others}
        found = contest(pipelined(contenders, PIPELINED) if accelerator else contenders, steps, WARM_UP)
        kinds = kernels.shares(lambda: call(TRACED)) if trace else None
    peak = mesh.size * max(peak, matmul_rate(config.model.dtype))
    rows = [
        row(name, not name.startswith("simclr_jax"), times, config.train.batch_size, flops)
        for name, times in found.items()
    ]
    stats, own = compiled.memory_analysis(), rows[0]
    own["memory_bytes"] = stats.temp_size_in_bytes if stats else None
    return {
        "part": "step",
        "data": data,
        "batch_size": config.train.batch_size,
        "steps_per_call": each,
        "images_per_second": own["images_per_second"],
        "step_seconds": own["seconds"],
        "compile_seconds": compile_seconds,
        "temporary_bytes_per_device": own["memory_bytes"],
        "flops_per_step": flops,
        "compiled_flops_per_device": (compiled.cost_analysis() or {}).get("flops"),
        "peak_flops_per_second": peak,
        "rows": rows,
        "kernels": kinds,
        "notes": notes,
        "config": config.to_dict(),
        **run_summary.environment(),
    }


def row(name: str, is_peer: bool, times: dict, batch: int, flops: float | None) -> dict:
    """The figures of a contender; the model's FLOPs are the same for all of them."""
    images, speed = rate(batch, times["seconds"]), rate(flops, times["seconds"]) if flops else None
    return {"name": name, "peer": is_peer, "images_per_second": images, "flops_per_second": speed, **times}


def load(config: ConfigDict) -> splits.Splits:
    """The images of `config`, in memory where it wants them there."""
    data, found = config.data, splits.load(**config.data)
    if config.augment.device != "all":
        return found
    return memory.hold(found, data)


def synthetic_splits(config: ConfigDict) -> splits.Splits:
    """Random images of the config's size, a batch of them, ten classes."""
    data, batch = config.data, config.train.batch_size
    side = data.stored_size if config.augment.device == "all" and data.stored_size else data.image_size
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (batch, side, side, data.channels), np.uint8)
    return splits.Splits(sources.from_arrays(images, np.arange(batch) % CLASSES), None)


def noise(config: ConfigDict) -> Iterator[dict[str, np.ndarray]]:
    """A random batch, again and again."""
    views, batch = batch_shapes(config)["views"], config.train.batch_size
    rng, as_bytes = np.random.default_rng(0), views.dtype == np.uint8
    random = rng.integers(0, 256, views.shape, np.uint8) if as_bytes else rng.random(views.shape, np.float32)
    return itertools.repeat(
        {
            "views": random,
            "position": np.arange(batch, dtype=np.uint32),
            "label": (np.arange(batch) % CLASSES).astype(np.int32),
            "mask": np.ones(batch, bool),
        }
    )


def peer_settings(config: ConfigDict) -> dict[str, Any]:
    """What the peer must know to build the same network."""
    return {
        "part": "step",
        "encoder": config.model.encoder,
        "depth": config.model.depth,
        "stem": config.model.stem,
        "dtype": config.model.dtype,
        "layers": config.model.projection_layers,
        "dim": config.model.projection_dim,
        "temperature": config.loss.temperature,
        "batch": config.train.batch_size,
        "size": config.data.image_size,
        "channels": config.data.channels,
    }


def network_name(model: dict[str, Any]) -> str:
    """ResNet-50, or CNN, of a config's model."""
    return f"ResNet-{model['depth']}" if model["encoder"] == "resnet" else model["encoder"].upper()


def show(result: dict) -> None:
    """The table."""
    config, device, peak = result["config"], result["device"], result["peak_flops_per_second"]
    model = config["model"]
    side = config["data"]["image_size"]
    rows = result["rows"]
    table.show(
        f"train step: {network_name(model)}, {side} px, batch {result['batch_size']:,}, {model['dtype']}, "
        f"{result['data']} data, {device['count']} × {device['kind']}",
        ("", "images/s", "ms (range)", "TFLOP/s", "of the peak", "temporary MB", "× peer"),
        [
            (
                r["name"],
                table.number(r["images_per_second"]),
                table.milliseconds(r["seconds"]),
                table.number(r["flops_per_second"] and r["flops_per_second"] / 1e12),
                r["flops_per_second"] and f"{100 * r['flops_per_second'] / peak:.1f} %",
                table.megabytes(r["memory_bytes"]),
                table.times_peer(rows, r, "images_per_second"),
            )
            for r in rows
        ],
        [
            f"compiled in {result['compile_seconds']:.2f} s; images are source images, two views each in "
            "pretraining",
            f"peak: {table.number(peak / 1e12)} TFLOP/s, the best of XLA's square products before and after",
            *result["notes"],
        ],
    )
    if result["kernels"]:
        kernels.show(result["kernels"])
