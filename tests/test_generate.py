"""Densities and the Fréchet distance against formulas; the command that generates images."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.linalg import sqrtm
from scipy.stats import multivariate_normal

from simclr_jax.measures import density, frechet

# ---- densities ------------------------------------------------------------------------------------------

WEIGHTS, CENTRES = np.array([0.3, 0.7]), np.array([[-2.0, 1.0], [2.0, 0.0]])
COVARIANCES = np.array([[[0.5, 0.4], [0.4, 0.6]], [[1.0, -0.3], [-0.3, 0.2]]])


def known(count, seed):
    """(rows of a mixture of two Gaussians, log p of each), from SciPy."""
    rng = np.random.default_rng(seed)
    which = rng.choice(2, count, p=WEIGHTS)
    parts = [rng.multivariate_normal(m, c, count) for m, c in zip(CENTRES, COVARIANCES, strict=True)]
    x = np.where(which[:, None] == 0, *parts)
    each = [multivariate_normal(m, c).pdf(x) for m, c in zip(CENTRES, COVARIANCES, strict=True)]
    return x, np.log(WEIGHTS @ each)


def wide(n=400, d=7, seed=0):
    """Correlated rows, one number constant and one the sum of two others."""
    x = np.random.default_rng(seed).standard_normal((n, d)) @ np.random.default_rng(1).standard_normal((d, d))
    return np.concatenate([x, np.full((n, 1), 3.0), x[:, :1] + x[:, 1:2]], axis=1)


def random_params(flow, scale=0.3):
    """Parameters with which no coupling is the identity, in the widest float there is."""
    leaves, tree = jax.tree.flatten(jax.eval_shape(flow.init, jax.random.key(0)))
    rng = np.random.default_rng(0)
    return jax.tree.unflatten(tree, [jnp.asarray(scale * rng.standard_normal(x.shape)) for x in leaves])


def test_axes_leave_out_what_does_not_vary():
    x = wide()
    axes = density.Axes.fit(x)
    y = axes.apply(x)
    assert y.shape == (400, 7)
    np.testing.assert_allclose(np.cov(y.T), np.eye(7), atol=1e-10)
    np.testing.assert_allclose(axes.back(y), x, atol=1e-10)
    fewer = density.Axes.fit(x, keep=0.9)
    variance = np.sort(np.linalg.eigvalsh(np.cov(x.T)))[::-1]
    count = len(fewer.scale)
    assert variance[: count - 1].sum() < 0.9 * variance.sum() <= variance[:count].sum()
    with pytest.raises(ValueError, match="all alike"):
        density.Axes.fit(np.ones((5, 3)))


@pytest.mark.parametrize("width", [2, 5])
def test_a_flow_is_exact(width):
    """In float64: the inverse, and log |∂z/∂x| against that of the whole Jacobian."""
    with jax.enable_x64(True):
        flow = density.Couplings(width, layers=4, hidden=8, seed=3)
        params = random_params(flow)
        x = jnp.asarray(np.random.default_rng(1).standard_normal((6, width)))
        z, log_det = flow.forward(params, x)
        assert not np.allclose(np.sort(z), np.sort(x), atol=0.1)
        np.testing.assert_allclose(flow.inverse(params, z), x, atol=1e-12)
        jacobians = jax.vmap(jax.jacfwd(lambda row: flow.forward(params, row[None])[0][0]))(x)
        _, expected = np.linalg.slogdet(np.asarray(jacobians))
        np.testing.assert_allclose(log_det, expected, atol=1e-12)
        normal = multivariate_normal(np.zeros(width)).logpdf(np.asarray(z))
        np.testing.assert_allclose(flow.log_prob(params, x), normal + expected, atol=1e-12)


def test_a_flow_inverts_in_float32():
    flow = density.Couplings(16)
    params = jax.tree.map(jnp.float32, random_params(flow, 0.03))
    x = jnp.asarray(np.random.default_rng(1).standard_normal((50, 16)), jnp.float32)
    z, _ = flow.forward(params, x)
    assert not np.allclose(np.sort(z), np.sort(x), atol=0.1)
    np.testing.assert_allclose(flow.inverse(params, z), x, atol=1e-5)


def fitted(name, x, choice, **more):
    axes = density.Axes.fit(x)
    if name == "flow":
        return density.fit_flow(x, choice, axes, epochs=60, **more)
    return density.fit_mixture(x, choice, axes, (1, 2), **more)


@pytest.mark.parametrize(("name", "bound"), [("mixture", 0.01), ("flow", 0.1)])
def test_a_known_mixture_is_found(name, bound):
    """Held-out nats within a bound of the truth's own; a single Gaussian is further away."""
    (x, _), (choice, _), (test, truth) = known(3000, 0), known(1000, 1), known(4000, 2)
    found = fitted(name, x, choice)
    gap = float(np.mean(truth - found.log_prob(test)))
    single = density.fit_mixture(x, choice, density.Axes.fit(x), (1,))
    assert gap < bound < 0.3 < float(np.mean(truth - single.log_prob(test)))
    drawn = found.sample(4000, seed=5)
    np.testing.assert_allclose(drawn.mean(axis=0), WEIGHTS @ CENTRES, atol=0.12)
    assert frechet.distance(drawn, test) < 0.02
    np.testing.assert_allclose(found.sample(10, seed=5), drawn[:10], atol=1e-5)
    assert not np.allclose(found.sample(10, seed=6), drawn[:10])


def test_a_density_is_one_of_latents():
    """The axes' determinant is in it: numerically, ∫ p = 1 over latents of another scale."""
    x = known(1500, 0)[0] * [3.0, 0.2] + [5.0, -1.0]
    side = [np.linspace(mean - 6 * std, mean + 6 * std, 150) for mean, std in zip(x.mean(0), x.std(0))]  # noqa: B905
    points = np.stack(np.meshgrid(*side, indexing="ij"), axis=-1).reshape(-1, 2)
    cell = np.prod([one[1] - one[0] for one in side])
    axes = density.Axes.fit(x)
    couplings = density.Couplings(2, layers=4, hidden=8)
    flow = density.Flow(axes, couplings, jax.tree.map(jnp.float32, random_params(couplings)), 0)
    for found in (flow, density.fit_mixture(x[:1000], x[1000:], axes, (2,))):
        np.testing.assert_allclose(np.exp(found.log_prob(points)).sum() * cell, 1, atol=0.02)


def test_shrinkage_is_chosen_where_rows_are_few():
    """Two components of 30 rows each in 10 dimensions overfit; of 2,000 rows they need no help."""
    rng = np.random.default_rng(0)
    made = [rng.standard_normal((n, 10)) + 4 * rng.integers(0, 2, (n, 1)) for n in (60, 4000, 1000)]
    found = [density.fit_mixture(x, made[2], density.Axes.fit(x), (2,)) for x in made[:2]]
    assert found[0].shrinkage > 0.05 >= found[1].shrinkage
    plain = density.mixtures(made[0], found[0].axes, 2)[0]  # which has the same traces
    traces = [np.sum(one.roots**2, axis=(1, 2)) for one in (plain, found[0])]
    np.testing.assert_allclose(*traces, rtol=1e-9)


# ---- Fréchet distance -----------------------------------------------------------------------------------


def gaussian(mean, covariance):
    return frechet.Moments(np.asarray(mean, float), np.linalg.cholesky(covariance).T)


def test_frechet_of_gaussians_that_commute():
    """Covariances with the same axes: ‖μ₁ - μ₂‖² + Σ (σ₁ - σ₂)²."""
    axes = np.linalg.qr(np.random.default_rng(0).standard_normal((5, 5)))[0]
    one, other = np.array([1.0, 2, 3, 4, 5]), np.array([2.0, 2, 1, 0.5, 3])
    a, b = (gaussian(np.full(5, m), axes * s**2 @ axes.T) for m, s in ((0, one), (0.5, other)))
    assert frechet.between(a, b) == pytest.approx(5 * 0.25 + np.sum((one - other) ** 2), rel=1e-12)
    assert frechet.between(a, b) == pytest.approx(frechet.between(b, a), rel=1e-12)


@pytest.mark.parametrize("rows", [60, 5], ids=["regular", "singular"])
def test_frechet_against_the_root_of_a_matrix(rows):
    """SciPy's sqrtm, as the original takes it; with fewer rows than numbers covariances are singular."""
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((rows, 8)), rng.standard_normal((rows + 3, 8)) @ rng.standard_normal((8, 8))
    s, t = np.cov(a.T), np.cov(b.T)
    tiny = 1e-12 * np.eye(8)
    root = np.trace(sqrtm((s + tiny) @ (t + tiny)).real)
    expected = np.sum((a.mean(0) - b.mean(0)) ** 2) + np.trace(s + t) - 2 * root
    assert frechet.distance(a, b) == pytest.approx(expected, rel=1e-4 if rows == 5 else 1e-9)
    assert frechet.distance(a, a) == pytest.approx(0, abs=1e-11)
    assert frechet.distance(a.astype(np.float32), a + [1.0] * 8) == pytest.approx(8, rel=1e-5)


def test_frechet_needs_two_rows():
    with pytest.raises(ValueError, match="two rows"):
        frechet.distance(np.zeros((1, 3)), np.zeros((4, 3)))
