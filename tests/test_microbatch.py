"""Gradients of a big batch from the activations of a small one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import tiny_config, tiny_splits

from simclr_jax import sharding, step, train
from simclr_jax.config import checks, default, total_steps
from simclr_jax.errors import SimclrError
from simclr_jax.models import resnet
from simclr_jax.tasks import create_task


def prepared(devices=1, **fields):
    """(task, state, optimizer, rate, a batch of the pipeline) of a small run."""
    config = tiny_config(mesh__devices=devices, **fields)
    mesh, splits = sharding.make_mesh(devices), tiny_splits()
    task = create_task(config, splits, mesh)
    optimizer, rate = train.build_optimizer(config, 80, total_steps(config, 80), task)
    state = train.init_state(task, optimizer, 0, mesh)
    return task, state, optimizer, rate, sharding.put_batch(next(task.input(0)), mesh)


def apart(a, b):
    """The largest difference over the largest value."""
    leaves = list(zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))
    return max(float(np.max(np.abs(np.asarray(x) - np.asarray(y)))) for x, y in leaves) / max(
        float(np.max(np.abs(x))) for x, _ in leaves
    )


@pytest.mark.parametrize("devices", [1, pytest.param(4, marks=pytest.mark.slow)])
def test_equal_to_the_whole_batch_with_grouped_batch_norm(devices):
    """In float64: gradient, metrics and moving statistics. Groups are contiguous, microbatches are not."""
    with jax.enable_x64(True):
        float64 = {"model__dtype": "float64"}
        task, state, *_, batch = prepared(devices, **float64)
        rng, count = jax.random.key(0), 4
        cached = jax.jit(lambda s, b: step.cached_gradient(task, s, b, rng, count))(state, batch)
        grouped_task, *_ = prepared(**float64, model__norm_groups=count)
        order = np.arange(16).reshape(-1, count).T.reshape(-1)
        permuted = jax.tree.map(lambda x: jnp.asarray(np.asarray(x)[order]), batch)
        here = jax.tree.map(lambda x: jnp.asarray(np.asarray(x)), state)
        whole = jax.jit(lambda s, b: step.whole_gradient(grouped_task, s, b, rng))(here, permuted)
        for one, other in zip(cached[:3], whole[:3], strict=True):  # outputs come in another order
            assert apart(one, other) < 1e-9
        # Contrast reaches across microbatches: one of them by itself has another gradient.
        alone = jax.tree.map(lambda x: x[::count], permuted)
        other, *_ = jax.jit(lambda s, b: step.whole_gradient(task, s, b, rng))(here, alone)
        assert apart(cached[0], other) > 1e-2


def temporaries(batch, microbatch, **fields):
    """Bytes of activations and the like of a compiled step, ResNet-18 at 32 px."""
    config = tiny_config(
        model__encoder="resnet", model__depth=18, model__stem="cifar", data__image_size=32, data__channels=3,
        **fields,
    )  # fmt: skip
    task = create_task(config, tiny_splits(), sharding.make_mesh(1))
    optimizer, rate = train.build_optimizer(config, 80, 12, task)

    def init():
        variables = task.init(jax.random.key(0))
        own, extra = train.init_objectives(task, 0)
        params = variables.pop("params") | ({step.OBJECTIVES: own} if own else {})
        return train.TrainState(jnp.int32(0), params, variables, optimizer.init(params), extra)

    shapes = {
        "views": jax.ShapeDtypeStruct((batch, 2, 32, 32, 3), jnp.float32),
        "label": jax.ShapeDtypeStruct((batch,), jnp.int32),
        "position": jax.ShapeDtypeStruct((batch,), jnp.uint32),
    }
    step_fn = step.make_step(task, optimizer, rate, 0, batch // microbatch)
    compiled = jax.jit(step_fn, donate_argnums=0).lower(jax.eval_shape(init), shapes).compile()
    return compiled.memory_analysis().temp_size_in_bytes


@pytest.mark.slow
def test_activations_are_of_one_microbatch():
    """4096 images in microbatches of 256 need what 256 need, but for the input itself."""
    batch_itself, fields = 4096 * 2 * 32 * 32 * 3 * 4, {"model__width": 1.0, "loss__dense_mb": 0.0}
    whole = temporaries(4096, 256, **fields)
    assert whole - batch_itself < 1.3 * temporaries(256, 256, **fields)


@pytest.mark.slow
def test_a_decoder_costs_one_microbatch_too():
    """Reconstructions never exist for the whole batch."""
    fields = {
        "loss__name": "nt_xent+reconstruction",
        "model__decoder__start": "features",
        "model__width": 0.5,
    }
    assert temporaries(1024, 64, **fields) < 1.1 * temporaries(64, 64, **fields)


def test_a_run_in_microbatches(tmp_path):
    config = tiny_config(train__microbatch=4, train__steps=6)
    summary = train.run(config, tmp_path, splits=tiny_splits())
    assert np.isfinite(summary["last"]["loss"])


def test_a_microbatch_that_does_not_fit():
    config = tiny_config(train__microbatch=4, train__steps=6)
    for microbatch, message in ((3, "a divisor of"), (-4, "a divisor of")):
        with pytest.raises(SimclrError, match=rf"train\.microbatch={microbatch}: must be 0 or {message}"):
            checks.validate(tiny_config(train__microbatch=microbatch))
    with pytest.raises(SimclrError, match=r"train\.microbatch=4: must be divisible by the 8 devices"):
        checks.validate_run(config, 80, 8)
    with pytest.raises(SimclrError, match=r"divisible by config\.model\.norm_groups=8"):
        checks.validate(tiny_config(train__microbatch=4, model__norm_groups=8))


@pytest.mark.parametrize("keep", resnet.REMAT_POLICIES)
def test_rematerialised_blocks_have_the_same_gradient(keep):
    x = np.random.default_rng(0).random((4, 8, 8, 3), np.float32)
    small = {"depth": 18, "blocks": (1, 1, 1, 1), "width": 0.125, "stem": "cifar"}
    models = [
        resnet.create(
            {**default().model, **small, "remat": r, "remat_keep": keep},
            dtype=jnp.float32,
            param_dtype=jnp.float32,
        )
        for r in (False, True)
    ]
    variables = jax.jit(lambda: models[0].init(jax.random.key(0), x, train=False))()
    gradients = []
    for model in models:

        def loss(params, model=model):
            ends, state = model.apply({**variables, "params": params}, x, train=True, mutable=["batch_stats"])
            return jnp.sum(ends["final_avg_pool"] ** 2), state

        gradients.append(jax.jit(jax.grad(loss, has_aux=True))(variables["params"]))
    assert apart(*gradients) < 1e-5
