"""Classifiers trained together equal classifiers trained alone, and held-out labels do not leak."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import tiny_config, tiny_splits, untrained_run

from simclr_jax import checkpoint, sharding, train
from simclr_jax.config import total_steps
from simclr_jax.data import sources
from simclr_jax.data.splits import Splits
from simclr_jax.errors import SimclrError
from simclr_jax.measures.choice import validation_rows
from simclr_jax.step import batch_loss
from simclr_jax.tasks import create_task, linear_sweep

GRID = {"eval__linear__rates": (0.05, 2.0), "eval__linear__decays": (0.0, 1e-2), "eval__linear__epochs": 3.0}


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    return untrained_run(tmp_path_factory.mktemp("runs") / "pretrained", tiny_config())


def heads_config(pretrained, **fields):
    config = tiny_config(**{"augment__device": "all", "augment__jitter": 0.0, **GRID, **fields})
    return linear_sweep.config_of(config, str(pretrained), 0)


def trained(pretrained, workdir, splits, **fields):
    """(weights of the classifiers, their grid of rates and decays)."""
    config = heads_config(pretrained, **fields)
    train.run(config, workdir, splits=splits)
    _, params, _ = checkpoint.read_parameters(workdir / "checkpoints")
    grid = linear_sweep.heads_of(config, splits.train)
    return linear_sweep.effective(params["heads"], grid, config), grid


def test_every_head_is_plain_sgd(pretrained):
    """Compares ten steps with Nesterov SGD in float64 NumPy, head by head."""
    splits, rng = tiny_splits(), np.random.default_rng(0)
    config = heads_config(pretrained)
    with jax.enable_x64(True):
        task = create_task(config, splits, sharding.make_mesh(1))
        grid = linear_sweep.heads_of(config, splits.train)
        optimizer, rate = train.build_optimizer(config, 80, 15, task)
        d, m, classes = 5, len(grid.rate), 4
        stored = {"heads": {"kernel": jnp.zeros((d, m, classes)), "bias": jnp.zeros((m, classes))}}
        state = optimizer.init(stored)
        batches = [
            (rng.standard_normal((16, d)), rng.integers(-1, classes, 16), rng.random(16) < 0.3)
            for _ in range(10)
        ]
        for h, label, held in batches:

            def loss(p, h=h, label=label, held=held):
                outputs = linear_sweep.apply(p["heads"], jnp.asarray(h), grid, config)
                batch = {"label": jnp.asarray(label), "held": jnp.asarray(held)}
                return batch_loss(task, {}, {}, outputs, batch, 0)[0][0]

            updates, state = optimizer.update(jax.grad(loss)(stored), state, stored)
            stored = optax.apply_updates(stored, updates)
        found = jax.device_get(linear_sweep.effective(stored["heads"], grid, config))
    assert m == 1 + 2 * 4
    for i in range(m):
        kernel, bias = plain_sgd(batches, grid, i, [float(rate(t)) for t in range(10)], classes, config)
        np.testing.assert_allclose(found["kernel"][:, i], kernel, atol=1e-7)
        np.testing.assert_allclose(found["bias"][i], bias, atol=1e-7)


def plain_sgd(batches, grid, i, rates, classes, config):
    """SGD with Nesterov momentum 0.9 and the rate and decay of head i; returns (kernel, bias)."""
    scale = grid.rate[i] / config.eval.linear.learning_rate
    w, v = np.zeros((batches[0][0].shape[1] + 1, classes)), 0
    for (h, label, held), rate in zip(batches, rates, strict=True):
        known = (label >= 0) & (grid.everything[i] | ~held)
        x = np.concatenate([h, np.ones((len(h), 1))], axis=1)[known]
        logits = x @ w
        p = np.exp(logits - logits.max(axis=1, keepdims=True))
        p /= p.sum(axis=1, keepdims=True)
        p[np.arange(len(x)), label[known]] -= 1
        gradient = x.T @ p / len(x)
        gradient[:-1] += grid.decay[i] * w[:-1]
        v = 0.9 * v + gradient
        w = w - rate * scale * (gradient + 0.9 * v)
    return w[:-1], w[-1]


@pytest.mark.parametrize("groups", [None, np.arange(80) // 10])
def test_held_out_labels_reach_only_those_who_see_everything(pretrained, tmp_path, groups):
    splits = tiny_splits()
    images, labels = splits.train.fetch(np.arange(80))
    splits = splits._replace(train=dataclasses.replace(splits.train, groups=groups))
    held, _ = validation_rows(80, groups=groups)
    lied = labels.copy()
    lied[held] = (lied[held] + 1) % 4
    other = splits._replace(train=dataclasses.replace(sources.from_arrays(images, lied), groups=groups))
    one, grid = trained(pretrained, tmp_path / "a", splits)
    two, _ = trained(pretrained, tmp_path / "b", other)
    same = [np.array_equal(one["kernel"][:, i], two["kernel"][:, i]) for i in range(len(grid.rate))]
    assert same == (~grid.everything).tolist()


def test_without_rates_the_standard_one_is_alone(pretrained, tmp_path):
    weights, grid = trained(pretrained, tmp_path, tiny_splits(), eval__linear__rates=())
    assert weights["kernel"].shape[1] == len(grid.rate) == 1
    assert grid.everything.all()


def test_a_sequence_cannot_hold_out():
    stream = sources.Stream("s", 80, ("a", "b"), None, "", 1)
    assert len(linear_sweep.heads_of(tiny_config(**GRID), stream).rate) == 1


@pytest.mark.slow
def test_eight_devices_train_the_same_heads(pretrained, tmp_path):
    fields = {"model__dtype": "float64"}
    with jax.enable_x64(True):
        found = [
            trained(pretrained, tmp_path / str(n), tiny_splits(), mesh__devices=n, **fields)[0]
            for n in (1, 8)
        ]
    for a, b in zip(*map(jax.tree.leaves, found), strict=True):
        assert a.dtype == np.float64
        np.testing.assert_allclose(a, b, atol=1e-12)


def test_no_labels_or_no_encoder(pretrained):
    unlabelled = Splits(sources.from_arrays(tiny_splits().train.fetch(np.arange(40))[0]), None)
    with pytest.raises(SimclrError, match="no labels"):
        create_task(heads_config(pretrained), unlabelled, sharding.make_mesh(1))
    config = heads_config(pretrained)
    config.start.workdir = ""
    with pytest.raises(SimclrError, match=r"start\.workdir is empty"):
        create_task(config, tiny_splits(), sharding.make_mesh(1))
    assert total_steps(heads_config(pretrained), 80) == 3 * 80 // 16 + 1
