"""Who may import whom; every config builds."""

import ast
import importlib.util
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from simclr_jax import encoder, registry, sharding, train
from simclr_jax.config import bounds, checks, default, flatten, microbatches, total_steps
from simclr_jax.data import sources
from simclr_jax.data.splits import Splits
from simclr_jax.feeds import load_splits
from simclr_jax.models import simclr
from simclr_jax.step import with_objectives
from simclr_jax.tasks import create_task

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "simclr_jax"
CONFIGS = sorted((ROOT / "configs").glob("*.py"))

# Each room may import those on lower floors, and within itself.
FLOORS = (
    ("errors", "version", "signals", "text"),
    ("paths", "orbax_threads", "field", "cli"),
    ("registry", "index"),
    ("storage",),
    ("files", "memory_error", "command"),
    ("geometry", "draws", "masking", "sharding", "distributed", "lock", "results", "hub"),
    ("wandb_run",),
    ("state", "models", "optim", "augment", "corruption", "degrade", "tiles", "data", "metrics",
     "figures", "run_summary"),
    ("losses",),
    ("config", "checkpoint", "measures"),
    ("workdir", "recipe", "feeds", "protocols", "published"),
    ("encoder",),
    ("decoding",),
    ("tasks", "convert", "resolve"),
    ("nonfinite",),
    ("step", "announce"),
    ("loop",),
    ("train",),
    ("main", "evaluate"),
    ("sweep", "doctor", "generate", "restore", "embed", "export"),
    ("serve", "compress", "publish"),
)  # fmt: skip
FLOOR = {room: i for i, rooms in enumerate(FLOORS) for room in rooms}
# Never TensorFlow, flags or the config.
PURE = ("losses", "models", "optim", "augment", "corruption", "degrade", "tiles", "geometry", "draws",
        "masking")  # fmt: skip
TENSORFLOW = ("data/tf.py", "data/tfds.py", "data/multilabel.py", "convert/google_tf.py")


def imports(path):
    """(module, at top level) of every import in a file."""
    tree = ast.parse(path.read_text())
    top = {id(node) for node in tree.body}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, id(node) in top) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module, id(node) in top
            yield from ((f"{node.module}.{alias.name}", id(node) in top) for alias in node.names)


def room(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


FILES = [path for path in sorted(PACKAGE.rglob("*.py")) if path != PACKAGE / "__init__.py"]


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_import_direction(path):
    here = room(path)
    for module, top in imports(path):
        parts = module.split(".")
        if parts[0] == "simclr_jax" and len(parts) > 1 and parts[1] != "__version__":
            there = parts[1]
            assert there == here or FLOOR[there] < FLOOR[here], f"{here} imports {there}"
        if here in PURE:
            assert parts[0] not in ("tensorflow", "absl", "ml_collections")
        if parts[0] in ("tensorflow", "tensorflow_datasets"):
            assert str(path.relative_to(PACKAGE)) in TENSORFLOW
            assert not top, "TensorFlow is imported late: it takes 10 seconds"


def test_nothing_but_a_pipeline_imports_tensorflow():
    code = "import sys, simclr_jax.train; sys.exit('tensorflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def load_config(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def small_teacher():
    config = default()
    config.model.encoder, config.model.projection = "cnn", "none"
    model = simclr.create(config.model, classes=10)
    variables = jax.eval_shape(
        lambda: model.init(jax.random.key(0), jnp.zeros((2, 224, 224, 3)), train=False)
    )
    variables = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), variables)
    return encoder.Encoder(config, tuple("abcdefghij"), 0, variables)


def traced_step(config, n=100_000, devices=8):
    """(state, state after, metrics) of a step of `config` on `n` images, as shapes: nothing is computed."""
    batch, size = config.train.batch_size, config.data.image_size
    source = sources.Source("array", "none", n, tuple("abcdefghij"), None, None, "")
    channels, views = config.data.channels, bounds.views(flatten(config))
    shapes = {
        "views": jax.ShapeDtypeStruct((batch, views, size, size, channels), jnp.float32),
        "label": jax.ShapeDtypeStruct((batch,), jnp.int32),
        "position": jax.ShapeDtypeStruct((batch,), jnp.uint32),
    }
    if config.augment.device == "all":  # the images are there, a batch is their numbers
        images = np.zeros((20, min(size, 64), min(size, 64), channels), np.uint8)
        source = sources.from_arrays(images, np.arange(20) % 10)
        shapes = {"index": shapes["label"], "position": shapes["position"]}
    splits = Splits(source, source)
    if not registry.of_images(config.data.source):  # that ships with a package
        splits, shapes = load_splits(config), {"index": shapes["label"], "position": shapes["position"]}
    task = create_task(config, splits, sharding.make_mesh(devices))
    optimizer, rate = train.build_optimizer(config, n, total_steps(config, n), task)

    def init():
        variables = task.init(jax.random.key(0))
        params, extra = with_objectives(task, variables.pop("params"), *train.init_objectives(task, 0))
        opt_state = optimizer.init(params)
        return train.TrainState(jnp.int32(0), params, variables, opt_state, extra, task.fixed())

    state = jax.eval_shape(init)
    step = train.make_step(task, optimizer, rate, 0, microbatches(config))
    return state, *jax.eval_shape(step, state, shapes)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_config_builds_its_model_and_one_step(path, monkeypatch):
    module = load_config(path)
    assert "python -m simclr_jax.main --config=configs/" + path.name in module.__doc__
    assert "Expected" in module.__doc__
    config = module.get_config()
    if config.data.source == "folder:":
        config.data.source = "folder:/images"
    if config.start.workdir or config.task != "pretrain":  # of another run: architecture and image size
        config.start.workdir, config.data.image_size, config.data.channels = "", 224, 3
    if config.task == "distill":
        monkeypatch.setattr(encoder, "load", lambda workdir, step: small_teacher())
    checks.validate(config)
    state, after, metrics = traced_step(config)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), after) == jax.tree.map(
        lambda x: (x.shape, x.dtype), state
    )
    assert metrics["loss"].dtype == jnp.float32
