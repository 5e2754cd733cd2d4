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


def oracle(name, gradients, rate, weight_decay, nesterov=False, **options):
    """Parameters after the steps, in float64, one variable at a time as the original's code goes."""
    exact = {k: v.astype(np.float64) for k, v in flatten(variables(0)).items()}
    first, second = ({k: np.zeros_like(v) for k, v in exact.items()} for _ in range(2))
    for i, gradient in enumerate(gradients):
        for k, g in flatten(gradient).items():
            w, kernel = exact[k], k.endswith("kernel")
            decay = kernel if options.get("biases") is None else "norm" not in k
            g = g + weight_decay * w * decay
            if name == "adam":
                first[k] = 0.9 * first[k] + 0.1 * g
                second[k] = 0.999 * second[k] + 0.001 * g**2
                step = rate[i] * np.sqrt(1 - 0.999 ** (i + 1)) / (1 - 0.9 ** (i + 1))
                exact[k] = w - step * first[k] / (np.sqrt(second[k]) + options["eps"])
                continue
            inside = rate[i] if options.get("rate_in_momentum") else 1.0
            first[k] = v = 0.9 * first[k] + inside * g
            update = 0.9 * v + inside * g if nesterov else v
            trust = 1.0
            if name == "lars" and kernel and not k.startswith("probe"):
                trust = 0.001 * np.linalg.norm(w) / np.linalg.norm(update)
            exact[k] = w - trust * update * (1.0 if options.get("rate_in_momentum") else rate[i])
    return exact


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("lars", {"classic": False}),
        ("sgd", {}),
        ("sgd", {"rate_in_momentum": True}),  # TensorFlow 2's Keras
        ("adam", {"eps": 1e-7}),  # decay through the loss, as the original
    ],
    ids=str,
)
def test_the_other_optimisers(name, options, nesterov):
    rate = [0.0, 0.1, 0.4, 0.3]
    gradients = [variables(10 + i) for i in range(4)]
    tx = optim.create(name, lambda i: jnp.asarray(rate)[i], weight_decay=1e-2, nesterov=nesterov, **options)
    params, update = variables(0), jax.jit(tx.update)
    state = tx.init(params)
    for gradient in gradients:
        updates, state = update(gradient, state, params)
        params = jax.tree.map(np.add, params, updates)
    exact = oracle(name, gradients, rate, 1e-2, nesterov, **options)
    for k, v in flatten(params).items():
        # Adam's 1 - 0.999^i loses four digits in float32.
        np.testing.assert_allclose(v, exact[k], rtol=2e-5, atol=1e-5 if name == "adam" else 2e-6)


def test_exclusion_lists_are_patterns():
    """The original's loss under SGD and Adam decays biases too, BatchNorm alone is left out."""
    tx = optim.create("sgd", lambda i: 0.1, weight_decay=1e-2, decay_exclude=("/norm",))
    params, gradient = variables(0), variables(10)
    updates, _ = tx.update(gradient, tx.init(params), params)
    exact = oracle("sgd", [gradient], [0.1], 1e-2, biases=True)
    for k, v in flatten(jax.tree.map(np.add, params, updates)).items():
        np.testing.assert_allclose(v, exact[k], rtol=1e-5, atol=1e-6)


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


@pytest.mark.parametrize("name", optim.OPTIMIZERS)
def test_every_optimiser_warms_up(name):
    tx = optim.create(name, optim.schedule(0.1, 3, 10))
    params, update = variables(0), jax.jit(tx.update)
    state = tx.init(params)
    for step in range(3):
        updates, state = update(variables(10 + step), state, params)
        moves = [bool(np.any(u)) for u in jax.tree.leaves(updates)]
        assert all(moves) if step else not any(moves)  # the rate of the first step is 0


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
