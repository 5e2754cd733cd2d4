"""Builds the program of a run from shapes only, without images or parameters.

It therefore works for batches and networks that do not fit in memory here, and for devices elsewhere.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from ml_collections import ConfigDict

from simclr_jax import loop, nonfinite, registry, sharding, train
from simclr_jax.config import bounds, flatten, microbatches, total_steps
from simclr_jax.data.sources import Source
from simclr_jax.data.splits import Splits
from simclr_jax.feeds.images import crops, in_memory, small_crops
from simclr_jax.step import make_step, with_objectives
from simclr_jax.tasks import create_task

CLASSES = 10  # assumed number of classes if the images are not here


class Built(NamedTuple):
    """A config's step, ready to be lowered."""

    task: Any
    optimizer: Any
    step_fn: Callable
    whole_fn: Callable  # step_fn without microbatches: the compiler counts a loop's body once


class Arguments(NamedTuple):
    """The arguments of a run's program, as shapes on a mesh."""

    state: Any
    call: tuple  # (batch,), or (batches, count) where it makes several steps

    def bytes_a_device(self) -> tuple[int, int]:
        """Bytes on each device: (state, other arguments)."""
        return _share(self.state), _share(self.call)


def build(config: ConfigDict, images: Splits, mesh: Mesh) -> Built:
    """The task of `config` and its step, as train.run makes them."""
    task = create_task(config, images, mesh)
    steps = total_steps(config, images.train.size)
    optimizer, rate = train.build_optimizer(config, images.train.size, steps, task)
    count = microbatches(config)
    step_fn = make_step(task, optimizer, rate, config.seed, count)
    whole_fn = step_fn if count == 1 else make_step(task, optimizer, rate, config.seed)
    return Built(task, optimizer, step_fn, whole_fn)


def model_flops(built: Built, state: Any, shapes: dict[str, jax.ShapeDtypeStruct]) -> float | None:
    """FLOPs of a step on the whole batch, over all devices, as the compiler counts them."""
    return (jax.jit(built.whole_fn).lower(state, shapes).cost_analysis() or {}).get("flops")


def unread(size: int, classes: int = CLASSES, name: str = "none") -> Splits:
    """A placeholder for a training set; reading from it fails."""
    nothing = cast(Any, None)
    return Splits(Source("array", name, size, tuple(map(str, range(classes))), nothing, nothing, ""), None)


def batch_shapes(config: ConfigDict) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of a batch from the input: views, or image numbers if the images are in device memory."""
    batch, of = config.train.batch_size, jax.ShapeDtypeStruct
    common = {"position": of((batch,), np.uint32)}
    if config.task == "linear_sweep":
        common["held"] = of((batch,), bool)
    if in_memory(config):
        return {"index": of((batch,), np.int32), **common}
    dtype = np.float32 if config.augment.device == "none" else np.uint8
    kinds = [crops(config, bounds.views(flatten(config))), *filter(None, [small_crops(config)])]
    return {
        **{
            kind.name: of((batch, kind.count, kind.size, kind.size, config.data.channels), dtype)
            for kind in kinds
        },
        "label": of((batch,), np.int32),
        "mask": of((batch,), bool),
        **common,
    }


def arguments(config: ConfigDict, images: Splits, built: Built, mesh: Mesh) -> Arguments:
    """The arguments of `loop.program` on `mesh`, whose devices need not be here."""

    def init() -> train.TrainState:
        variables = built.task.init(jax.random.key(0))
        own = train.init_objectives(built.task, 0)
        params, extra = with_objectives(built.task, variables.pop("params"), *own)
        opt_state, failed = built.optimizer.init(params), jax.tree.map(jnp.asarray, nonfinite.nothing())
        return train.TrainState(jnp.int32(0), params, variables, opt_state, extra, failed=failed)

    everywhere, by_batch = sharding.replicated(mesh), sharding.by_batch(mesh)
    state = _placed(jax.eval_shape(init), everywhere)
    fixed = _placed(_carried(config, images), everywhere)
    if not of_images(config):
        fixed = _placed(built.task.fixed(), everywhere)
    elif in_memory(config):
        fixed["images"] = _placed(_held(config, images.train, mesh.size), by_batch)
    state, each = state.replace(fixed=fixed), built.task.steps_per_call
    batch = batch_shapes(config) if of_images(config) else _first_batch(built.task)
    if each == 1:
        return Arguments(state, (_placed(batch, by_batch),))
    stacked = jax.tree.map(lambda x: jax.ShapeDtypeStruct((each, *x.shape), x.dtype), batch)
    where = NamedSharding(mesh, jax.P(None, sharding.AXIS))
    count = jax.ShapeDtypeStruct((), np.int32, sharding=everywhere)
    return Arguments(state, (_placed(stacked, where), count))


def lower(built: Built, given: Arguments) -> jax.stages.Lowered:
    """The program that a run compiles, before its compilation."""
    return loop.program(built.task, built.step_fn).lower(given.state, *given.call)


def sample(built: Built, given: Arguments, seed: int, mesh: Mesh) -> tuple[train.TrainState, tuple]:
    """The program's arguments as arrays: an untrained network and random images for every step of a call."""
    state = train.init_state(built.task._replace(fixed=dict), built.optimizer, seed, mesh, fresh=False)
    call = _random(given.call)
    if len(call) > 1:
        count = sharding.put_same(np.int32(built.task.steps_per_call), given.call[1].sharding)
        call = (call[0], count)
    return state.replace(fixed=_random(given.state.fixed)), call


def _random(shapes: Any) -> Any:
    """Random images; labels 0 and 1; other whole numbers count from 0."""

    def make(path: Any, x: jax.ShapeDtypeStruct) -> jax.Array:
        is_label = jax.tree_util.keystr(path).endswith("['label']")

        def values() -> jax.Array:
            if x.dtype == jnp.uint8:
                return jax.random.bits(jax.random.key(0), x.shape, jnp.uint8)
            if jnp.issubdtype(x.dtype, jnp.floating):
                return jax.random.uniform(jax.random.key(0), x.shape, x.dtype)
            numbers = jax.lax.broadcasted_iota(jnp.int32, x.shape or (1,), max(len(x.shape) - 1, 0))
            return (numbers % 2 if is_label else numbers).reshape(x.shape).astype(x.dtype)

        return jax.jit(values, out_shardings=x.sharding)()

    return jax.tree_util.tree_map_with_path(make, shapes)


def _placed(tree: Any, where: NamedSharding) -> Any:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), tree)


def _share(tree: Any) -> int:
    """Bytes on each device."""
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def of_images(config: ConfigDict) -> bool:
    """Whether the examples are images; the task itself gives the shapes of others, which are small."""
    return registry.of_images(config.data.source)


def _first_batch(task: Any) -> dict[str, jax.ShapeDtypeStruct]:
    """The shapes of the whole batch, by this process's rows."""
    count = jax.process_count()
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((count * len(x), *x.shape[1:]), x.dtype), next(task.input(0))
    )


def _carried(config: ConfigDict, images: Splits) -> dict[str, Any]:
    """Constant arrays that every step reads in addition to the images: a teacher, a frozen encoder."""
    if config.task in ("pretrain", "supervised"):
        return {}
    config = config.copy_and_resolve_references()
    config.augment.device, config.train.steps_per_call = "none", 0  # do not load the images
    return create_task(config, images, sharding.make_mesh(1)).fixed()


def _held(config: ConfigDict, train_split: Any, devices: int) -> dict[str, Any]:
    """The shapes of the arrays that `memory.put` puts on the devices."""
    data = config.data
    shape = [data.stored_size or data.image_size] * 2
    if isinstance(train_split, Source) and train_split.kind == "array" and train_split.fetch:
        shape = train_split.fetch(np.zeros(1, int))[0].shape[1:3]
    size, of = -(-train_split.size // devices) * devices, jax.ShapeDtypeStruct
    return {"image": of((size, *shape, data.channels), np.uint8), "label": of((size,), np.int32)}
