"""What checksums cost: the numbers alone, and a checkpoint saved and read with them and without."""

import contextlib
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from bench import table
from simclr_jax import checkpoint, optim, run_summary
from simclr_jax.models import simclr
from simclr_jax.state import TrainState


def measure(config: ConfigDict, *, steps: int = 3) -> dict:
    """Saves and reads a state of the config's model and optimiser, with random numbers in it."""
    state = _state(config)
    items = {name: getattr(state, name) for name in ("params", "model_state", "opt_state")}
    arrays = checkpoint.named(items)
    size = sum(array.nbytes for array in arrays.values())
    sums = [_seconds(lambda: checkpoint.checksums(arrays)) for _ in range(steps)]
    rows = [{"what": "checksums alone", "with": median(sums), "without": 0.0}]
    times: dict[str, dict[str, list[float]]] = {}
    for number in range(steps):
        for kind in ("with", "without") if number % 2 == 0 else ("without", "with"):
            for what, seconds in _save_and_read(state, kind == "with").items():
                times.setdefault(what, {}).setdefault(kind, []).append(seconds)
    for what, kinds in times.items():
        rows.append({"what": what, **{kind: median(seconds) for kind, seconds in kinds.items()}})
    return {
        "part": "checksums",
        "bytes": size,
        "arrays": len(arrays),
        "rows": rows,
        **run_summary.environment(),
    }


def _state(config: ConfigDict) -> TrainState:
    model = simclr.create(config.model, classes=1000)
    side = config.data.image_size
    images = jax.ShapeDtypeStruct((2, side, side, config.data.channels), jnp.float32)
    shapes = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), images)
    rng = np.random.default_rng(0)

    def draw(shape: jax.ShapeDtypeStruct) -> jax.Array:
        return jnp.asarray(rng.standard_normal(shape.shape, np.float32))

    variables = jax.tree.map(draw, shapes)
    params = variables.pop("params")
    optimizer = optim.create(config.optimizer.name, 0.1, momentum=0.9, weight_decay=1e-6)
    return TrainState(jnp.int32(1), params, variables, jax.tree.map(draw_like, optimizer.init(params)))


def draw_like(leaf: jax.Array) -> jax.Array:
    """Numbers that do not compress, as momentum has them."""
    if not jnp.issubdtype(leaf.dtype, jnp.floating):
        return leaf
    return jax.random.normal(jax.random.key(leaf.size), leaf.shape, leaf.dtype)


def _save_and_read(state: TrainState, sums: bool) -> dict[str, float]:
    """Seconds until training may go on, until all is on disk, and to read it all."""
    folder = Path(tempfile.mkdtemp())
    missing = mock.patch.object(checkpoint, "checksums", return_value={})
    try:
        with contextlib.nullcontext() if sums else missing:
            begin = time.perf_counter()
            checkpoints = checkpoint.Checkpoints(folder)
            checkpoints.save(state)
            blocked = time.perf_counter() - begin
            checkpoints.close()
            saved = time.perf_counter() - begin
        if not sums:
            shutil.rmtree(folder / "1" / checkpoint.SUMS)
        read = _seconds(lambda: checkpoint.read(folder, 1))
    finally:
        shutil.rmtree(folder)
    return {"save, training waits": blocked, "save, on disk": saved, "read": read}


def _seconds(work: Callable[[], object]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def show(result: dict) -> None:
    """The table."""
    size, device = f"{result['bytes'] / 1e6:,.0f} MB", result["device"]["kind"]
    title = f"checkpoint of {size}, {result['arrays']} arrays, {device}"
    rows = [
        (row["what"], f"{row['with']:.2f}", f"{row['without']:.2f}" if row["without"] else "")
        for row in result["rows"]
    ]
    table.show(title, ("", "with checksums, s", "without, s"), rows)
