"""Planted duplicates and outliers; maps of features; the files of TensorBoard's projector."""

import subprocess
import sys
import types

import numpy as np
import pytest
from google.protobuf import text_format
from PIL import Image
from tensorboard.plugins.projector.projector_config_pb2 import ProjectorConfig

from simclr_jax import figures, sharding
from simclr_jax.measures import curation, embedding


@pytest.fixture(scope="module", params=[1, 8])
def mesh(request):
    return sharding.make_mesh(request.param)


def cloud(n=60, d=16, seed=0):
    return np.random.default_rng(seed).standard_normal((n, d)).astype(np.float32)


def cosines(x):
    unit = x.astype(np.float64) / np.linalg.norm(x, axis=1, keepdims=True)
    return unit @ unit.T


def test_planted_duplicates_are_found(mesh):
    x = cloud()
    x[40] = 3 * x[7]
    x[12] = x[51] + 0.02 * x[3]
    found = curation.near_duplicates(x, mesh)
    assert [pair[:2] for pair in found] == [(7, 40), (12, 51)]
    for i, j, similarity in found:
        assert similarity == pytest.approx(cosines(x)[i, j], abs=1e-5)


def test_most_similar_pairs_by_brute_force(mesh):
    x = cloud()
    pairs = np.stack(np.triu_indices(60, 1), axis=1)
    values = cosines(x)[tuple(pairs.T)]
    order = np.argsort(-values)[:25]
    found = curation.near_duplicates(x, mesh, threshold=-1, most=25)
    assert [pair[:2] for pair in found] == [tuple(p) for p in pairs[order].tolist()]
    np.testing.assert_allclose([pair[2] for pair in found], values[order], atol=1e-5)
    above = curation.near_duplicates(x, mesh, threshold=0.5, most=10_000)
    assert len(above) == np.sum(values >= 0.5)


def test_more_exact_duplicates_than_neighbours_looked_at():
    """A row need not be among its own nearest then; still no pair of a row with itself, and none twice."""
    mesh = sharding.make_mesh(1)
    x = cloud()
    x[20:50] = x[20]
    found = curation.near_duplicates(x, mesh, most=5)
    assert len({pair[:2] for pair in found}) == 5
    for i, j, similarity in found:
        assert 20 <= i < j < 50
        assert similarity == pytest.approx(1, abs=1e-5)
    assert len(curation.near_duplicates(x, mesh, most=1000)) == 30 * 29 // 2
    rows = curation.outliers(x, mesh, k=4, most=60)
    assert len({i for i, _ in rows}) == 60
    assert {i for i, _ in rows[-30:]} == set(range(20, 50))
    np.testing.assert_allclose([s for _, s in rows[-30:]], 1, atol=1e-5)


def test_planted_outliers_are_found(mesh):
    x = 4 + cloud()
    x[[5, 33]] = [[1] * 8 + [-1] * 8, [-1] * 16]
    found = curation.outliers(x, mesh, k=3, most=7)
    assert len(found) == 7
    assert {i for i, _ in found[:2]} == {5, 33}
    assert [s for _, s in found] == sorted(s for _, s in found)
    others = cosines(x) - 2 * np.eye(60)
    for i, similarity in found:
        assert similarity == pytest.approx(-np.sort(-others[i])[:3].mean(), abs=1e-5)


def test_fewer_examples_than_neighbours():
    mesh, x = sharding.make_mesh(1), cloud(3)
    found = dict(curation.outliers(x, mesh, k=10))
    others = cosines(x)
    assert found[0] == pytest.approx((others[0, 1] + others[0, 2]) / 2, abs=1e-5)
    assert len(curation.near_duplicates(x, mesh, threshold=-1)) == 3
    for few in (x[:1], x[:0]):
        assert curation.outliers(few, mesh) == []
        assert curation.near_duplicates(few, mesh) == []


# ---- maps and the projector -------------------------------------------------------------------------


def two_groups(n=60):
    x = cloud(n, 70)
    x[: n // 2] += 5
    return x


def apart(points):
    """The distance of the two groups' centres in deviations."""
    half = len(points) // 2
    a, b = points[:half], points[half:]
    return np.linalg.norm(a.mean(axis=0) - b.mean(axis=0)) / (a.std() + b.std())


def test_tsne_separates_groups_and_repeats_itself():
    points = embedding.tsne(two_groups())
    assert points.shape == (60, 2)
    # How far the groups lie apart moves with the processor, not who is next to whom.
    distances = np.linalg.norm(points[:, None] - points[None], axis=-1) + 1e9 * np.eye(60)
    assert np.mean((np.argmin(distances, axis=1) < 30) == (np.arange(60) < 30)) > 0.95
    np.testing.assert_array_equal(points, embedding.tsne(two_groups()))


@pytest.mark.parametrize("method", [embedding.tsne, embedding.umap])
def test_maps_of_little(method, monkeypatch):
    monkeypatch.setitem(sys.modules, "umap", types.SimpleNamespace(UMAP=FakeUMAP))
    assert method(cloud(4)) is None
    assert method(cloud() * np.nan) is None
    np.testing.assert_array_equal(method(np.ones((9, 16), np.float32)), np.zeros((9, 2)))
    assert method(cloud(5, 3)).shape == (5, 2)


class FakeUMAP:
    """umap-learn takes half a minute to import and compile."""

    def __init__(self, **options):
        self.options = options

    def fit_transform(self, x):
        assert self.options["n_neighbors"] < len(x)
        assert x.dtype == np.float32
        return x[:, :2]


def test_umap(monkeypatch):
    monkeypatch.setitem(sys.modules, "umap", types.SimpleNamespace(UMAP=FakeUMAP))
    assert apart(embedding.umap(two_groups())) > 1
    monkeypatch.setitem(sys.modules, "umap", None)  # not installed
    assert embedding.umap(two_groups()) is None


@pytest.mark.parametrize(("channels", "most"), [(1, 8192), (3, 8192), (5, 8192), (3, 20)])
def test_projector(tmp_path, channels, most, monkeypatch):
    """Seven images in a square of three by three; with room for 20 px a side they are made smaller."""
    monkeypatch.setattr(embedding, "SPRITE", most)
    features, labels = cloud(7, 4), np.array([0, 1, 2, 1, -1, 5, 0])
    images = np.random.default_rng(0).random((7, 8, 10, channels))
    embedding.projector(tmp_path / "projector", features, labels, ("cat", "big\tdog", ""), images)
    config = text_format.Parse((tmp_path / "projector/projector_config.pbtxt").read_text(), ProjectorConfig())
    (found,) = config.embeddings
    files = {name: tmp_path / "projector" / getattr(found, name) for name in ("tensor_path", "metadata_path")}
    np.testing.assert_allclose(np.loadtxt(files["tensor_path"], delimiter="\t"), features, rtol=1e-5)
    header, *rows = files["metadata_path"].read_text().splitlines()
    assert header == "index\tlabel"
    names = ["cat", "big dog", "none", "big dog", "none", "5", "cat"]
    assert rows == [f"{i}\t{name}" for i, name in enumerate(names)]
    width, height = found.sprite.single_image_dim
    sheet = Image.open(tmp_path / "projector" / found.sprite.image_path)
    assert sheet.size == (3 * width, 3 * height)
    assert max(sheet.size) <= most
    if most > 20:
        assert (width, height) == (10, 8)
        shown = np.asarray(sheet).reshape(24, 30, -1)[8:16, 10:20]  # the fifth: second row, second column
        expected = images[4] if channels == 1 else images[4, ..., :3]
        np.testing.assert_allclose(shown / 255, expected[..., : shown.shape[-1]], atol=1 / 255)


def test_nothing_here_imports_tensorflow():
    code = "import sys, simclr_jax.measures.embedding; sys.exit('tensorflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_figure_of_a_map(tmp_path):
    figures.embedding(tmp_path / "umap.png", cloud(30, 2), np.arange(30) % 3 - 1, ("a", "b"), method="UMAP")
    assert Image.open(tmp_path / "umap.png").size[0] > 300
