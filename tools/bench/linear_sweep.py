"""Linear evaluation (task linear_sweep): compares the cost of training many classifiers at once with one."""

import tempfile

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from bench import step, table
from bench.contest import Contender, contest, timed
from simclr_jax import run_summary, sharding, train
from simclr_jax.convert import workdir as workdirs
from simclr_jax.data.splits import Splits
from simclr_jax.models import simclr
from simclr_jax.step import make_step
from simclr_jax.tasks import Task, create_task, linear_sweep

WHERE = ("augmented images, encoder included", "cached features")


def measure(config: ConfigDict, *, steps: int = 20) -> dict:
    """Times steps of one standard classifier and of the config's sweep, each with and without the encoder."""
    mesh = sharding.make_mesh(config.mesh.devices)
    splits = step.synthetic_splits(config)
    with tempfile.TemporaryDirectory() as folder:
        _write_encoder(f"{folder}/encoder", config)
        sweep = linear_sweep.config_of(config, f"{folder}/encoder", 0)
        alone = sweep.copy_and_resolve_references()
        alone.eval.linear.rates = ()
        counts = {
            name: len(linear_sweep.heads_of(c, splits.train).rate)
            for name, c in (("one", alone), ("all", sweep))
        }
        calls = {}
        for name, of_run in (("one", alone), ("all", sweep)):
            task = create_task(of_run, splits, mesh)
            calls[WHERE[0], name] = _call(task, of_run, splits, mesh)
            calls[WHERE[1], name] = _call(_on_features(task, of_run, splits), of_run, splits, mesh)
    found = contest({f"{where}, {name}": call for (where, name), call in calls.items()}, steps)
    rows = []
    for where, name in sorted(calls, key=lambda each: WHERE.index(each[0])):
        times, one = (found[f"{where}, {which}"] for which in (name, "one"))
        fits = times["seconds"] and one["seconds"]
        ratio = times["seconds"]["median"] / one["seconds"]["median"] if fits else None
        rows.append({"where": where, "classifiers": counts[name], "times_one": ratio, **times})
    return {
        "part": "linear_sweep",
        "batch_size": config.train.batch_size,
        "rows": rows,
        **run_summary.environment(),
    }


def _write_encoder(workdir: str, config: ConfigDict) -> None:
    """Writes a workdir with an untrained encoder of the config."""
    data, model = config.data, simclr.create(config.model)
    images = np.zeros((2, data.image_size, data.image_size, data.channels), np.float32)
    variables = jax.jit(lambda key: simclr.init(model, key, images))(jax.random.key(0))
    workdirs.write(workdir, config, jax.device_get(variables), step=0, origin="random")


def _on_features(task: Task, config: ConfigDict, splits: Splits) -> Task:
    """The same classifiers, but trained on precomputed features."""
    grid, width = (
        linear_sweep.heads_of(config, splits.train),
        task.init(jax.random.key(0))["params"]["heads"]["kernel"],
    )
    rng, batch = np.random.default_rng(0), config.train.batch_size
    rows = {
        "h": rng.random((batch, width.shape[0]), np.float32),
        "label": (np.arange(batch) % step.CLASSES).astype(np.int32),
        "held": np.zeros(batch, bool),
    }

    def forward(params, model_state, batch, rng, step):
        return linear_sweep.apply(params["heads"], batch["h"], grid, config), model_state

    return task._replace(
        forward=forward, input=lambda _: iter([rows]), fixed=dict, fetch=lambda _, batch: batch
    )


def _call(task: Task, config: ConfigDict, splits: Splits, mesh: Mesh) -> Contender:
    """Times one training step on a batch that is already on the device."""
    optimizer, rate = train.build_optimizer(config, splits.train.size, 1000, task)
    state = train.init_state(task, optimizer, config.seed, mesh)
    batch = sharding.put_batch(next(task.input(0)), mesh)
    compiled = jax.jit(make_step(task, optimizer, rate, config.seed), donate_argnums=0)
    compiled = compiled.lower(state, batch).compile()

    def go() -> None:
        nonlocal state
        state, numbers = compiled(state, batch)
        jax.block_until_ready(numbers)

    return timed(go)


def show(result: dict) -> None:
    """Prints the table."""
    device = result["device"]
    table.show(
        f"linear evaluation: a step, batch {result['batch_size']:,}, {device['count']} × {device['kind']}",
        ("", "classifiers", "ms (range)", "× one"),
        [
            (
                r["where"],
                str(r["classifiers"]),
                table.milliseconds(r["seconds"]),
                table.number(r["times_one"]),
            )
            for r in result["rows"]
        ],
    )
