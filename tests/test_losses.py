"""NT-Xent against its formula in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from simclr_jax import sharding
from simclr_jax.losses import nt_xent


def formula(z, temperature):
    """Equation 1 of the paper, row by row, in float64: (loss, contrast accuracy, entropy)."""
    n = len(z)
    unit = z.astype(np.float64) / np.linalg.norm(z.astype(np.float64), axis=-1, keepdims=True)
    rows = unit.reshape(2 * n, -1)
    s = rows @ rows.T / temperature
    losses = []
    for i in range(2 * n):
        others = np.delete(s[i], i)
        top = others.max()
        losses.append(top + np.log(np.exp(others - top).sum()) - s[i, i ^ 1])
    ab = unit[:, 0] @ unit[:, 1].T / temperature
    p = np.exp(ab - ab.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    entropy = -np.mean(np.sum(p * np.log(p + 1e-300), axis=1))
    return np.mean(losses), np.mean(ab.argmax(axis=1) == np.arange(n)), entropy


def embeddings(n, d=16, noise=0.5, seed=0):
    rng = np.random.default_rng(seed)
    base = rng.standard_normal((n, 1, d))
    return (base + noise * rng.standard_normal((n, 2, d))).astype(np.float32)


@pytest.mark.parametrize("temperature", [0.01, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("n", [2, 3, 64])
def test_value_and_metrics(n, temperature):
    z = embeddings(n)
    loss, metrics = jax.jit(nt_xent, static_argnums=1)(z, temperature)
    expected, accuracy, entropy = formula(z, temperature)
    np.testing.assert_allclose(loss, expected, rtol=2e-6, atol=2e-6 / temperature)
    assert float(metrics["contrast_accuracy"]) == pytest.approx(accuracy)
    np.testing.assert_allclose(metrics["contrast_entropy"], entropy, rtol=1e-4, atol=1e-5)


def test_gradient_against_differences_of_the_formula():
    z = embeddings(5, d=4).astype(np.float64)
    gradient = jax.grad(lambda z: nt_xent(z, 0.3)[0])(z.astype(np.float32))
    for i in np.ndindex(z.shape):
        step = np.zeros_like(z)
        step[i] = 1e-6
        slope = (formula(z + step, 0.3)[0] - formula(z - step, 0.3)[0]) / 2e-6
        assert float(gradient[i]) == pytest.approx(slope, abs=2e-6)


@pytest.mark.parametrize("temperature", [0.01, 0.1])
def test_finite_at_zero_rows_and_aligned_views(temperature):
    z = embeddings(4, noise=0.0)
    z[1, 0] = 0
    value, gradient = jax.value_and_grad(lambda z: nt_xent(z, temperature)[0])(z)
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()


def test_low_precision_embeddings_are_computed_in_float32():
    z = jnp.asarray(embeddings(32), jnp.bfloat16)
    loss, metrics = nt_xent(z, 0.1)
    assert loss.dtype == metrics["contrast_entropy"].dtype == jnp.float32
    np.testing.assert_allclose(loss, formula(np.asarray(z, np.float32), 0.1)[0], rtol=1e-5)


def test_eight_devices_give_the_loss_of_one():
    mesh = sharding.make_mesh(8)
    z = embeddings(64)
    gather = lambda x: jax.lax.with_sharding_constraint(x, sharding.replicated(mesh))  # noqa: E731
    f = jax.jit(jax.value_and_grad(lambda z: nt_xent(z, 0.1, gather=gather)[0]))
    split = f(jax.device_put(z, sharding.by_batch(mesh)))
    whole = jax.value_and_grad(lambda z: nt_xent(z, 0.1)[0])(z)
    np.testing.assert_allclose(split[0], whole[0], rtol=1e-6)
    np.testing.assert_allclose(split[1], whole[1], atol=1e-7)
