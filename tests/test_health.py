"""Compares measures of a representation with float64 formulas; tests which features count as collapsed."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial.distance import pdist

from simclr_jax import data
from simclr_jax.config import default
from simclr_jax.measures import health
from simclr_jax.models import simclr


def cloud(n=300, d=16, seed=0):
    return np.random.default_rng(seed).standard_normal((n, d)).astype(np.float32)


def test_rank_me_is_the_papers_formula():
    x = cloud() * np.linspace(0.1, 3, 16, dtype=np.float32)[None, :] + 1
    sigma = np.sqrt(np.linalg.eigvalsh(x.astype(np.float64).T @ x.astype(np.float64)))
    p = sigma / sigma.sum() + 1e-7
    assert health.rank_me(x) == pytest.approx(np.exp(-(p * np.log(p)).sum()), rel=1e-6)


@pytest.mark.parametrize("rank", [1, 3, 10])
def test_rank_me_counts_equal_directions(rank):
    x = np.zeros((40, 10))
    x[:rank, :rank] = 5 * np.eye(rank)
    assert health.rank_me(x) == pytest.approx(rank, abs=1e-3)


def test_rank_me_of_a_sample():
    x = np.repeat(cloud(500), 2, axis=0)
    assert health.rank_me(x, limit=400) == pytest.approx(health.rank_me(x), rel=0.02)
    by_class = np.concatenate([np.ones((500, 4)), cloud(500, 4)])  # the first 500 alone have rank 1
    assert health.rank_me(by_class, limit=500) > 2


def test_alignment():
    a, b = cloud(), cloud(seed=1)
    distances = [
        np.sum((u / np.linalg.norm(u) - v / np.linalg.norm(v)) ** 2)
        for u, v in zip(a.astype(np.float64), b.astype(np.float64), strict=True)
    ]
    assert health.alignment(a, b) == pytest.approx(np.mean(distances))
    assert health.alignment(a, 3 * a) == pytest.approx(0, abs=1e-12)
    assert health.alignment(a, -a) == pytest.approx(4)


@pytest.mark.parametrize("t", [2.0, 0.5, 1000.0])
@pytest.mark.parametrize("chunk", [7, 64, 1024])
def test_uniformity_over_all_pairs(t, chunk, monkeypatch):
    monkeypatch.setattr(health, "CHUNK", chunk)
    x = cloud(129, 3)
    x[5] = 0
    unit = x.astype(np.float64) / np.maximum(np.linalg.norm(x.astype(np.float64), axis=1), 1e-12)[:, None]
    # With t = 1000 only the nearest pairs count; a sum of all exp must not underflow to log 0.
    expected = np.log(np.mean(np.exp(-t * pdist(unit, "sqeuclidean"))))
    assert health.uniformity(x, t) == pytest.approx(expected, rel=1e-6)
    assert health.uniformity(x[:2], 1e6) < -1e4


def test_uniformity_of_points_that_agree_and_of_a_sample():
    assert health.uniformity(np.ones((50, 4))) == pytest.approx(0, abs=1e-9)
    assert health.uniformity(cloud(2000), limit=500) == pytest.approx(
        health.uniformity(cloud(2000)), abs=0.05
    )


def test_feature_std():
    assert health.feature_std(cloud(20_000, 32)) == pytest.approx(1, abs=0.02)
    assert health.feature_std(np.ones((30, 8))) == pytest.approx(0, abs=1e-7)
    x = cloud(50, 6).astype(np.float64) + 1
    unit = x / np.linalg.norm(x, axis=1)[:, None]
    assert health.feature_std(x) == pytest.approx(np.sqrt(6) * np.mean([c.std() for c in unit.T]))


def line(n=200, d=64, noise=0.0):
    """Positive and negative multiples of one direction."""
    rng = np.random.default_rng(0)
    return rng.standard_normal((n, 1)) * rng.standard_normal((1, d)) + noise * rng.standard_normal((n, d))


@pytest.mark.parametrize(
    "features",
    [
        np.ones((200, 64), np.float32),
        np.ones((200, 64)) * cloud(1, 64) + 1e-4 * cloud(200, 64),
        line(),
        line(noise=1e-4),
        np.abs(line()),
        np.zeros((200, 64), np.float32),
        np.full((200, 64), np.nan, np.float32),
        np.where(np.arange(200)[:, None] == 7, np.inf, cloud(200, 64)),
    ],
    ids=["constant", "nearly constant", "line", "noisy line", "ray", "zero", "nan", "inf"],
)
def test_collapsed(features):
    found = health.report(features)
    assert found["collapsed"] is True
    json.dumps(found, allow_nan=False)


@pytest.mark.parametrize(
    "features",
    [
        cloud(),
        np.maximum(cloud(), 0),
        5 + cloud(),  # a large common mean, as ReLU and averaging leave
        np.concatenate([cloud(100, 8), np.zeros((100, 8))]),  # some units and some images are dead
        np.eye(2)[np.arange(100) % 2],  # features that keep only the class, one of two
        cloud(2),
        cloud(1),
        cloud(0),
    ],
    ids=["isotropic", "relu", "mean", "dead", "two classes", "two images", "one image", "none"],
)
def test_not_collapsed(features):
    found = health.report(features, features)
    assert found["collapsed"] is False
    json.dumps(found, allow_nan=False)
    assert set(found) == {
        "dimensions", "rank_me", "feature_std", "uniformity", "alignment", "collapsed"
    }  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    "architecture",
    [
        {"encoder": "cnn", "width": 0.25},
        {"encoder": "resnet", "depth": 18, "width": 0.125, "stem": "cifar"},
    ],
    ids=["cnn", "resnet"],
)
def test_untrained_encoder_on_digits_has_not_collapsed(architecture):
    """ReLU's common mean makes untrained features similar, which is no collapse; a repeated image is one."""
    images = np.load(Path(data.__file__).parent / "mnist5k.npz")["test_images"][:200, :, :, None]
    fields = {"projection": "none", "projection_layers": 0, "projection_dim": 8, "dtype": "float32"}
    model = simclr.create({**default().model, **architecture, **fields})

    @jax.jit
    def untrained(images):
        variables = model.init(jax.random.key(0), images, train=False, method="features")
        return model.apply(variables, images, method="features")

    features = np.asarray(untrained(jnp.asarray(images / 255, jnp.float32)))
    found = health.report(features, features)
    assert found["collapsed"] is False
    assert found["dimensions"] == features.shape[1]
    assert found["alignment"] == 0
    assert health.report(features[:2])["collapsed"] is False
    assert health.report(np.repeat(features[:1], 50, axis=0))["collapsed"] is True
