"""AUROC and average precision against scikit-learn, loops over pairs, and resampled images."""

import numpy as np
import pytest
from sklearn import metrics

from simclr_jax.measures import ranking


def scored(counts, sharpness=1.0, seed=0, decimals=None):
    """Scores `[n, classes]` float64 that favour the label, and labels; `decimals`: few, for ties."""
    rng, labels = np.random.default_rng(seed), np.repeat(np.arange(len(counts)), counts)
    scores = rng.standard_normal((len(labels), len(counts)))
    scores[np.arange(len(labels)), labels] += sharpness
    shuffled = rng.permutation(len(labels))
    return (scores if decimals is None else scores.round(decimals))[shuffled], labels[shuffled]


def test_by_hand():
    """Class 1 has the ranks 1 and 3 of five, the second level with one of another class."""
    scores = np.array([0.9, 0.5, 0.5, 0.2, 0.1])
    labels = np.array([1, 1, 0, 0, 0])
    found = ranking.one_vs_rest(np.stack([-scores, scores], axis=1), labels)
    assert found.auroc.tolist() == pytest.approx([(3 + 2.5) / 6] * 2)  # 0.9 wins thrice, 0.5 twice and a half
    assert found.average_precision[1] == pytest.approx((1 / 1 + 2 / 3) / 2)
    assert found.average_precision[0] == pytest.approx((1 / 1 + 2 / 2 + 3 / 4) / 3)


@pytest.mark.parametrize("decimals", [None, 1, 0])
@pytest.mark.parametrize("counts", [(50, 1), (7, 5, 90, 3), (2, 2), (1, 1, 1)])
def test_scikit_learns(counts, decimals):
    scores, labels = scored(counts, decimals=decimals)
    found = ranking.one_vs_rest(scores, labels)
    for c in range(len(counts)):
        assert found.auroc[c] == pytest.approx(metrics.roc_auc_score(labels == c, scores[:, c]), abs=1e-14)
        expected = metrics.average_precision_score(labels == c, scores[:, c])
        assert found.average_precision[c] == pytest.approx(expected, abs=1e-14)


def delong(score, positive):
    """The variance of the AUROC by DeLong's formula, pair by pair."""
    x, y = score[positive], score[~positive]
    wins = np.array([[1.0 if a > b else 0.5 if a == b else 0.0 for b in y] for a in x])
    return wins.mean(axis=1).var(ddof=1) / len(x) + wins.mean(axis=0).var(ddof=1) / len(y)


@pytest.mark.parametrize("decimals", [None, 0])
def test_the_standard_error_of_two_classes_is_delongs(decimals):
    scores, labels = scored((40, 15), decimals=decimals)
    scores[:, 0] = -scores[:, 1]
    found = ranking.one_vs_rest(scores, labels)
    assert found.standard_error**2 == pytest.approx(delong(scores[:, 1], labels == 1), rel=1e-12)


def test_the_standard_error_of_a_mean_is_that_of_new_images():
    """Of 600 sets of the same kind."""
    found = [ranking.one_vs_rest(*scored((60, 30, 15), seed=seed)) for seed in range(600)]
    spread = np.std([one.auroc.mean() for one in found])
    assert np.mean([one.standard_error for one in found]) == pytest.approx(spread, rel=0.1)


def test_what_cannot_be_ranked():
    scores, labels = scored((5, 5, 0))
    found = ranking.one_vs_rest(scores[:, :3], labels)
    assert (
        np.isnan(found.auroc).tolist() == np.isnan(found.average_precision).tolist() == [False, False, True]
    )
    alone = ranking.one_vs_rest(scores, np.zeros(10, int))
    assert np.isnan(alone.auroc).all()
    assert np.isnan(alone.standard_error)
    single = ranking.one_vs_rest(*scored((20, 1)))
    assert np.isnan(single.standard_error)
    perfect = ranking.one_vs_rest(np.eye(2)[[0, 0, 1, 1]], np.array([0, 0, 1, 1]))
    assert perfect.auroc.tolist() == perfect.average_precision.tolist() == [1, 1]
    assert np.isnan(perfect.standard_error)


def test_float32_and_the_order_of_images_change_nothing():
    scores, labels = scored((30, 20, 10), decimals=1)
    found, order = ranking.one_vs_rest(scores, labels), np.random.default_rng(1).permutation(60)
    again = ranking.one_vs_rest(scores.astype(np.float32)[order], labels[order])
    np.testing.assert_allclose(again.auroc, found.auroc, rtol=1e-15)
    np.testing.assert_allclose(again.average_precision, found.average_precision, rtol=1e-14)
    assert again.standard_error == pytest.approx(found.standard_error, rel=1e-12)
