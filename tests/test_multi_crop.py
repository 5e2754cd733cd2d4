"""Large and small views: the loss against its formula, the views, and a run."""

import jax
import numpy as np
import pytest
from test_losses import embeddings

from simclr_jax import sharding
from simclr_jax.losses import multi_crop
from simclr_jax.losses.contrastive import nt_xent


def views(n, v, d=3, seed=0):
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((n, 1, d)) + rng.standard_normal((n, v, d))).astype(np.float32)


def slow(z, temperature, normalize=True, one_view=False):
    """Pair by pair in float64."""
    z = z.astype(np.float64)
    if normalize:
        z = z / np.linalg.norm(z, axis=-1, keepdims=True)
    n, v = z.shape[:2]
    losses = []
    for i, view in np.ndindex(n, v):
        for large in (0, 1):
            if view == large:
                continue
            positive = z[i, view] @ z[i, large] / temperature
            columns = [(k, w) for k in range(n) for w in (0, 1) if k != i and (w == large or not one_view)]
            others = [z[i, view] @ z[each] / temperature for each in columns]
            losses.append(np.logaddexp.reduce([positive, *others]) - positive)
    assert len(losses) == n * (2 * v - 2)
    return np.mean(losses)


@pytest.mark.parametrize("options", [{}, {"one_view": True}, {"normalize": False}], ids=str)
@pytest.mark.parametrize("v", [2, 5])
def test_value_and_gradient(v, options):
    z = views(4, v).astype(np.float64)
    with jax.enable_x64(True):
        f = jax.jit(jax.value_and_grad(lambda z: multi_crop.nt_xent(z, 0.3, **options), has_aux=True))
        (value, metrics), gradient = f(z)
        expected = jax.jit(lambda z: nt_xent(z, 0.3, **options))(z[:, :2])
    assert float(value) == pytest.approx(slow(z, 0.3, **options), rel=1e-12)
    for metric, number in expected[1].items():
        assert float(metrics[metric]) == pytest.approx(float(number), rel=1e-12)
    if v == 2:
        assert float(value) == pytest.approx(float(expected[0]), rel=1e-12)
    for i in np.ndindex(z.shape):
        change = np.zeros(z.shape)
        change[i] = 1e-6
        slope = slow(z + change, 0.3, **options) - slow(z - change, 0.3, **options)
        assert float(gradient[i]) == pytest.approx(slope / 2e-6, abs=1e-8)


def test_two_views_are_nt_xent_in_float32():
    z = embeddings(16)
    two = (nt_xent, multi_crop.nt_xent)
    one, other = (jax.jit(jax.value_and_grad(lambda z, f=f: f(z, 0.1)[0]))(z) for f in two)
    for a, b in zip(one, other, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)


def test_finite_at_low_temperature_and_zero_rows():
    z = views(4, 4, d=16)
    z[1, 0] = z[2] = 0
    value, gradient = jax.jit(jax.value_and_grad(lambda z: multi_crop.nt_xent(z, 0.01)[0]))(z)
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()


def test_eight_devices_give_the_value_and_gradient_of_one():
    mesh, z = sharding.make_mesh(8), views(32, 5, d=16)
    gather = lambda x: jax.lax.with_sharding_constraint(x, sharding.replicated(mesh))  # noqa: E731
    split = jax.jit(jax.value_and_grad(lambda z: multi_crop.nt_xent(z, 0.2, gather=gather)[0]))(
        jax.device_put(z, sharding.by_batch(mesh))
    )
    whole = jax.jit(jax.value_and_grad(lambda z: multi_crop.nt_xent(z, 0.2)[0]))(z)
    np.testing.assert_allclose(split[0], whole[0], rtol=1e-6)
    np.testing.assert_allclose(split[1], whole[1], atol=2e-7)
