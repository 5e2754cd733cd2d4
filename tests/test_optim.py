"""LARS and the schedule against their formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from simclr_jax import optim


def variables(seed):
    rng = np.random.default_rng(seed)
    shapes = {
        "encoder": {"conv": {"kernel": (3, 3, 2, 4)}, "norm": {"scale": (4,), "bias": (4,)}},
        "probe": {"dense": {"kernel": (4, 3), "bias": (3,)}},
    }
    return jax.tree.map(
        lambda shape: rng.standard_normal(shape).astype(np.float32),
        shapes,
        is_leaf=lambda x: isinstance(x, tuple),
    )


def flatten(tree):
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(k, simple=True, separator="/"): np.asarray(v) for k, v in leaves}


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("weight_decay", [0.0, 1e-2])
def test_lars(weight_decay, nesterov):
    rate = [0.0, 0.1, 0.4, 0.3]
    tx = optim.create("lars", lambda i: jnp.asarray(rate)[i], weight_decay=weight_decay, nesterov=nesterov)
    params, update = variables(0), jax.jit(tx.update)
    state = tx.init(params)
    exact = {k: v.astype(np.float64) for k, v in flatten(params).items()}
    momentum = {k: np.zeros_like(v) for k, v in exact.items()}
    for i in range(4):
        gradient = variables(10 + i)
        updates, state = update(gradient, state, params)
        params = jax.tree.map(np.add, params, updates)
        for k, g in flatten(gradient).items():  # the original's order: decay, trust, momentum
            kernel = k.endswith("kernel")
            g = g + weight_decay * exact[k] * kernel
            trust = 0.001 * np.linalg.norm(exact[k]) / np.linalg.norm(g)
            step = rate[i] * (trust if kernel and not k.startswith("probe") else 1.0) * g
            momentum[k] = 0.9 * momentum[k] + step
            exact[k] = exact[k] - (0.9 * momentum[k] + step if nesterov else momentum[k])
    for k, v in flatten(params).items():
        np.testing.assert_allclose(v, exact[k], rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("warmup", [0, 10])
def test_schedule(warmup):
    rate = optim.schedule(0.8, warmup, 50)
    for step in range(55):
        if step < warmup:
            expected = step / warmup * 0.8
        else:
            done = min(step - warmup, 50 - warmup) / (50 - warmup)
            expected = 0.4 * (1 + np.cos(np.pi * done))
        assert float(rate(step)) == pytest.approx(expected, abs=1e-6)


def test_a_run_shorter_than_its_warmup():
    rate = optim.schedule(1.0, 100, 20)
    assert float(rate(20)) == pytest.approx(0.2)


def test_scaling():
    assert optim.scaled_rate(0.3, "linear", 512) == pytest.approx(0.6)
    assert optim.scaled_rate(0.075, "sqrt", 4096) == pytest.approx(4.8)
    assert optim.scaled_rate(0.3, "none", 512) == 0.3


@pytest.mark.parametrize("name", optim.OPTIMIZERS)
def test_frozen_parameters_do_not_move_and_biases_do_not_decay(name):
    params = variables(0)
    zero = jax.tree.map(jnp.zeros_like, params)
    tx = optim.create(name, lambda i: 0.1, weight_decay=0.1, trainable=lambda path: path.startswith("probe/"))
    updates, _ = tx.update(zero, tx.init(params), params)
    moved = {k: bool(np.any(v)) for k, v in flatten(updates).items()}
    assert moved == {k: k == "probe/dense/kernel" for k in moved}
