"""kNN against brute force, logistic regression against scikit-learn, features over padded batches."""

import jax
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.neighbors import KNeighborsClassifier

from simclr_jax import sharding
from simclr_jax.config import default
from simclr_jax.data import pipeline, sources
from simclr_jax.measures import knn, linear
from simclr_jax.measures.choice import L2, limited, validation_rows
from simclr_jax.measures.features import Features, extract
from simclr_jax.protocols import scores


@pytest.fixture(scope="module", params=[1, 8])
def mesh(request):
    return sharding.make_mesh(request.param)


def clusters(n, d=6, classes=4, spread=0.8, seed=0):
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % classes
    centres = np.random.default_rng(1).standard_normal((classes, d))
    return (centres[labels] + spread * rng.standard_normal((n, d))).astype(np.float32), labels


@pytest.mark.parametrize(("bank_size", "k", "bank_chunk"), [(50, 7, 16), (50, 50, 64), (33, 40, 5)])
def test_nearest_is_exact(mesh, bank_size, k, bank_chunk):
    bank, _ = clusters(bank_size)
    queries, _ = clusters(19, seed=3)
    similarity, index = knn.nearest(bank, queries, k, mesh, query_chunk=8, bank_chunk=bank_chunk)
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (queries, bank)]
    all_pairs = unit[0] @ unit[1].T
    k = min(k, bank_size)
    expected = np.argsort(-all_pairs, axis=1)[:, :k]
    np.testing.assert_allclose(similarity, np.take_along_axis(all_pairs, expected, 1), atol=1e-6)
    np.testing.assert_array_equal(index, expected)


@pytest.mark.parametrize(("n", "k"), [(1000, 3), (1003, 20), (64, 60), (900, 1)])
def test_top_k_by_blocks_is_exact(n, k):
    """Some equal numbers too: values agree, and every number points at its value."""
    values = np.random.default_rng(0).integers(0, 5000, (7, n)).astype(np.float32)
    found, where = jax.jit(knn.top_k, static_argnums=1)(values, k)
    np.testing.assert_array_equal(found, -np.sort(-values, axis=1)[:, :k])
    np.testing.assert_array_equal(np.take_along_axis(values, np.asarray(where), 1), found)
    assert all(len(set(row)) == k for row in where.tolist())


@pytest.mark.parametrize("temperature", [0.005, 0.1, 1.0])
def test_vote_is_the_weighted_sum(temperature):
    rng = np.random.default_rng(0)
    similarity = -np.sort(-rng.uniform(-1, 1, (9, 12)), axis=1)
    labels = rng.integers(0, 3, (9, 12))
    scores = knn.vote(similarity, labels, 8, temperature, 3)
    for i in range(9):
        weight = np.exp((similarity[i, :8] - similarity[i, 0]) / temperature)
        expected = [weight[labels[i, :8] == c].sum() for c in range(3)]
        np.testing.assert_allclose(scores[i], expected, rtol=1e-6)


def test_top_k_accuracy():
    scores = np.array([[0.1, 0.5, 0.2], [0.9, 0.0, 0.1], [0.3, 0.3, 0.4]])
    assert knn.top_k_accuracy(scores, np.array([1, 1, 0]), 1) == pytest.approx(1 / 3)
    assert knn.top_k_accuracy(scores, np.array([1, 1, 0]), 2) == pytest.approx(2 / 3)
    assert knn.top_k_accuracy(scores, np.array([1, 1, 0]), 5) == 1


@pytest.mark.parametrize("l2", [1e-2, 1.0])
def test_logistic_regression_finds_scikit_learns_optimum(l2):
    x, y = clusters(120)
    x = x.astype(np.float64)
    with jax.enable_x64(True):
        weights = linear.fit(
            x, y, np.ones(120, bool), np.array([l2]),
            classes=4, iterations=300, tolerance=1e-9,
        )  # fmt: skip
        mine = jax.nn.softmax(linear.logits(jax.tree.map(lambda w: w[0], weights), x), axis=1)
    theirs = LogisticRegression(C=1 / (l2 * 120), tol=1e-10, max_iter=5000).fit(x, y)
    np.testing.assert_allclose(mine, theirs.predict_proba(x), atol=1e-5)


def test_fit_ignores_masked_rows_and_solves_every_l2():
    x, y = clusters(64)
    l2s = np.array([1e-3, 1e-1], np.float32)
    mask = np.arange(64) < 50
    settings = {"classes": 4, "iterations": 200}
    masked = linear.fit(x, y, mask, l2s, **settings)
    cut = linear.fit(x[:50], y[:50], mask[:50], l2s, **settings)
    one = linear.fit(x[:50], y[:50], mask[:50], l2s[1:], **settings)
    for a, b in zip(jax.tree.leaves(masked), jax.tree.leaves(cut), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-3)
    for a, b in zip(jax.tree.leaves(cut), jax.tree.leaves(one), strict=True):
        np.testing.assert_allclose(a[1], b[0], atol=2e-3)


@pytest.mark.parametrize("backend", ["cpu", "gpu"])
def test_several_sets_at_once_are_each_by_itself(backend, monkeypatch):
    """In a loop, as on CPUs, and side by side, as on accelerators."""
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    jax.clear_caches()
    rng = np.random.default_rng(0)
    x = rng.normal(size=(3, 40, 6)).astype(np.float32)
    y = (x @ rng.normal(size=(6, 3))).argmax(-1).astype(np.int32)
    l2s, settings = [1e-3, 1e-1], {"classes": 3, "iterations": 200}
    together = linear.fit(x, y, np.ones((3, 40), bool), l2s, **settings)
    assert together["kernel"].shape == (2, 3, 6, 3)
    for i in range(3):
        alone = linear.fit(x[i], y[i], np.ones(40, bool), l2s, **settings)
        jax.tree.map(
            lambda several, one, i=i: np.testing.assert_allclose(several[:, i], one, atol=2e-3),
            together,
            alone,
        )


def test_standardize():
    x = np.random.default_rng(0).normal(5, 3, (100, 4)).astype(np.float32)
    x[:, 2] = 7
    a, b = linear.standardize(x, x[:10])
    np.testing.assert_allclose(a.mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(a.std(axis=0), [1, 1, 0, 1], atol=1e-5)
    np.testing.assert_array_equal(b, a[:10])


@pytest.mark.parametrize("count", [5, 12, 30])
def test_balanced_draw(count):
    labels = np.array([0] * 20 + [1] * 20 + [2] * 3)
    rows = linear.balanced_draw(labels, count, np.random.default_rng(0))
    assert len(set(rows)) == count
    per_class = np.bincount(labels[rows], minlength=3)
    assert per_class.max() - per_class[:2].min() <= 1
    assert per_class[2] >= min(3, count // 3)


def test_features_of_padded_batches(mesh):
    images = np.random.default_rng(0).integers(0, 256, (27, 8, 8, 1)).astype(np.uint8)
    source = sources.from_arrays(images, np.arange(27) % 3)
    batches = pipeline.eval_batches(source, batch=16, size=8, crop=1.0, channels=1)
    found = extract(jax.jit(lambda x: x.reshape(len(x), -1)), batches, mesh)
    np.testing.assert_allclose(found.features, images.reshape(27, -1) / 255, atol=1e-6)
    np.testing.assert_array_equal(found.labels, np.arange(27) % 3)


def score(train, test, groups=None, *, draws=2, iterations=5, **kwargs):
    """`scores.score` with other options than the default ones."""
    options = default().eval
    options.linear.draws, options.linear.iterations = draws, iterations
    return scores.score(scores.Contender("simclr", train, test, groups), options=options, **kwargs)


def test_the_penalties_are_the_papers_and_those_of_a_run_among_them():
    assert np.logspace(-6, 5, 45).tolist() == list(L2)
    assert scores.L2 == (1e-4, 1e-3, 1e-2, 1e-1, 1.0)


@pytest.mark.slow
def test_scores_prefer_the_better_features(mesh):
    kwargs = {"classes": 4, "mesh": mesh, "draws": 3, "iterations": 30}
    data = {
        spread: [Features(*clusters(n, spread=spread, seed=s)) for n, s in ((260, 0), (101, 1))]
        for spread in (0.3, 3.0)
    }
    good, bad = (score(*data[spread], **kwargs) for spread in (0.3, 3.0))
    assert set(good) == {"knn", "linear_100", "linear_all"}  # too few examples for linear_1000
    for metric, one in good.items():
        assert one.cell.value > bad[metric].cell.value + 0.2
        assert 0 <= one.cell.error < 0.1
        assert one.cell.low <= one.cell.value <= one.cell.high
    assert good["linear_all"].cell.value > 0.97
    assert set(good["knn"].choice) == {"k", "temperature"}


def test_scores_of_one_in_fifty():
    """Features that are all alike: accuracy is the share of the large class, the other scores say chance."""
    labels = np.repeat([0, 1], [196, 4]).astype(np.int32)
    same = Features(np.ones((200, 3), np.float32), labels)
    found = score(same, same, classes=2, mesh=sharding.make_mesh(1))
    for name in ("knn", "linear_all"):
        assert found[name].cell.value == pytest.approx(0.98), name
        values = {each: one.value for each, one in found[name].cell.alike.items()}
        assert values == pytest.approx({"balanced_accuracy": 0.5, "auroc": 0.5, "average_precision": 0.5})
    assert found["linear_100"].cell.alike == {}


def test_scores_in_float64(mesh):
    with jax.enable_x64(True):
        few = Features(*clusters(40))
        score(few, few, classes=4, mesh=mesh)


def test_nothing_to_score(mesh):
    one = Features(*clusters(1))
    assert score(one, one, classes=4, mesh=mesh) == {}


def test_fewer_examples_than_k(mesh):
    few = Features(*clusters(12))
    found = score(few, Features(*clusters(1, seed=5)), classes=4, mesh=mesh)
    assert set(found) == {"knn", "linear_all"}


@pytest.mark.parametrize("distance", knn.DISTANCES)
def test_votes_are_scikit_learns(mesh, distance):
    """Same predictions as KNeighborsClassifier with the same weights, but for ties within 1e-6."""
    temperature, k = 0.07, 20
    bank, labels = clusters(300, d=16, spread=2.0)
    queries, _ = clusters(101, d=16, spread=2.0, seed=3)
    queries[:3] = bank[:3]  # at distance zero
    similarity, index = knn.nearest(bank, queries, k, mesh, distance=distance)
    mine = knn.vote(similarity, labels[index], k, temperature if distance == "cosine" else None, 4)
    weights = (lambda d: np.exp((1 - d) / temperature)) if distance == "cosine" else "distance"
    theirs = KNeighborsClassifier(k, weights=weights, metric=distance, algorithm="brute")
    expected = theirs.fit(bank.astype(np.float64), labels).predict_proba(queries.astype(np.float64))
    mine /= mine.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(mine, expected, atol=1e-4)
    top = np.sort(expected, axis=1)
    clear = top[:, -1] - top[:, -2] > 1e-6
    assert clear.sum() > 90
    np.testing.assert_array_equal(mine.argmax(1)[clear], expected.argmax(1)[clear])


@pytest.mark.slow
def test_forty_five_penalties_of_scikit_learn(mesh):
    """The whole path in float64, gradients below 1e-6: probabilities within 1e-4 of LogisticRegression's."""
    x, y = clusters(160, d=8, spread=1.5)
    x, l2s, held = x.astype(np.float64), np.logspace(-6, 5, 45), np.arange(0, 160, 5)
    with jax.enable_x64(True):
        everyone = np.ones(160, bool)
        found = linear.fit(x, y, everyone, l2s, classes=4, iterations=2000, tolerance=1e-7)
        for i in (0, 12, 24, 36, 44):
            weights = jax.tree.map(lambda w: w[i], found)  # noqa: B023
            gradient = jax.grad(linear.objective)(weights, x, y, everyone, l2s[i])
            assert np.sqrt(sum(float((g**2).sum()) for g in jax.tree.leaves(gradient))) < 1e-6
            theirs = LogisticRegression(C=1 / (l2s[i] * 160), tol=1e-10, max_iter=20_000).fit(x, y)
            np.testing.assert_allclose(
                linear.probabilities(weights, x), theirs.predict_proba(x), atol=1e-4, err_msg=str(l2s[i])
            )
        chosen = linear.fit_chosen(mesh, x, y, held, l2s, classes=4, iterations=300)
    rest = ~np.isin(np.arange(160), held)
    losses = [
        log_loss(
            y[~rest],
            LogisticRegression(C=1 / (l2 * 128), max_iter=5000).fit(x[rest], y[rest]).predict_proba(x[~rest]),
        )
        for l2 in l2s[::4]
    ]
    np.testing.assert_allclose(chosen.loss[::4], losses, rtol=2e-3)
    assert chosen.best == np.argmin(chosen.loss)


def test_a_classifier_of_standardised_features_for_plain_ones():
    x, y = clusters(60)
    x = 5 + 3 * x
    x[:, 2] = 7  # constant
    (scaled,) = linear.standardize(x)
    weights = jax.tree.map(
        lambda w: np.asarray(w[0]), linear.fit(scaled, y, np.ones(60, bool), [0.1], classes=4, iterations=20)
    )
    plain = linear.for_plain(weights, x)
    np.testing.assert_allclose(linear.logits(plain, x), linear.logits(weights, scaled), atol=1e-4)


@pytest.mark.parametrize("seed", [0, 1])
def test_a_hold_out_divides_no_group(seed):
    groups = np.random.default_rng(7).integers(100, 140, 1000)
    held, rest = validation_rows(1000, seed, groups)
    assert sorted([*held, *rest]) == list(range(1000))
    assert not set(groups[held]) & set(groups[rest])
    assert abs(len(held) - 200) < 30
    assert (np.diff(rest) < 0).any()  # a part of it is a fair sample
    for a, b in zip(validation_rows(1000, seed, groups), (held, rest), strict=True):
        np.testing.assert_array_equal(a, b)
    # A group each is no restriction; one group alone has to be divided.
    held, rest = validation_rows(1000, seed, np.arange(1000))
    assert (len(held), len(rest)) == (200, 800)
    for a, b in zip(validation_rows(1000, seed, np.zeros(1000)), validation_rows(1000, seed), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_hold_out_of_groups_is_at_most_20_000_images_or_so():
    held, _ = validation_rows(300_000, 0, np.arange(300_000) // 10)
    assert len(held) == 20_000


def test_scores_choose_between_patients(mesh, monkeypatch):
    """Every example of a patient is the same: whoever divides patients finds their copies again."""
    rng = np.random.default_rng(0)
    patients, examples = rng.standard_normal((30, 4)).astype(np.float32), np.repeat(np.arange(30), 8)
    train = Features(patients[examples], (examples % 2).astype(np.int32))
    searched, fitted = [], []

    def votes(bank, bank_labels, queries, **kwargs):
        searched.append((bank, queries, len(kwargs["settings"])))
        return original_votes(bank, bank_labels, queries, **kwargs)

    def fit_chosen(mesh, features, labels, held, *args, **kwargs):
        fitted.append((features, held))
        return original_fit(mesh, features, labels, held, *args, **kwargs)

    original_votes, original_fit = knn.votes, linear.fit_chosen
    monkeypatch.setattr(knn, "votes", votes)
    monkeypatch.setattr(linear, "fit_chosen", fit_chosen)
    monkeypatch.setattr(scores, "LABELS", ())
    score(train, train, examples, classes=2, mesh=mesh, iterations=2)
    (bank, queries, count), (features, held) = searched[0], fitted[0]
    assert count > 1
    assert len(bank) + len(queries) == 240
    assert not set(map(bytes, bank)) & set(map(bytes, queries))
    rest = np.delete(np.arange(240), held)
    assert not set(map(bytes, features[held])) & set(map(bytes, features[rest]))


def test_limited_rows_hold_out_their_share():
    held, rest = validation_rows(1000)
    rows, which = limited(held, rest, 100)
    assert len(rows) == len(set(rows.tolist())) == 100
    assert len(which) == 20
    assert set(rows[which]) <= set(held)
    assert set(rows[20:]) <= set(rest)
    assert len(limited(held, rest, 0)[0]) == len(limited(held, rest, 5000)[0]) == 1000
