"""Reports on predictions against scikit-learn, plain loops and cases worked out by hand."""

import json
import warnings

import numpy as np
import pytest
from scipy.stats import binomtest
from sklearn import metrics

from simclr_jax.errors import SimclrError
from simclr_jax.measures import classified


def predictions(n, classes, sharpness=2.0, seed=0, labels=None):
    """Probabilities `[n, classes]` that favour the label, and the labels."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, n) if labels is None else np.asarray(labels)
    logits = rng.standard_normal((n, classes))
    logits[np.arange(n), labels] += sharpness
    scores = np.exp(logits)
    return (scores / scores.sum(axis=1, keepdims=True)).astype(np.float32), labels


def report(*args, **kwargs):
    """`evaluate`, which must not warn and whose result JSON must take without NaN."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = classified.evaluate(*args, **kwargs)
    json.dumps(found, allow_nan=False)
    return found


def test_scores_are_scikit_learns():
    scores, labels = predictions(300, 7)
    found, predicted = report(scores, labels), scores.argmax(axis=1)
    assert found["images"] == 300
    assert found["top1"] == pytest.approx(metrics.accuracy_score(labels, predicted))
    assert found["top5"] == pytest.approx(metrics.top_k_accuracy_score(labels, scores, k=5))
    assert found["mean_per_class"] == pytest.approx(metrics.balanced_accuracy_score(labels, predicted))
    np.testing.assert_array_equal(found["confusion"], metrics.confusion_matrix(labels, predicted))
    table = metrics.classification_report(labels, predicted, output_dict=True)
    rename = {"f1": "f1-score"}
    for average in ("macro", "weighted"):
        for name, value in found[average].items():
            assert value == pytest.approx(table[f"{average} avg"][rename.get(name, name)])
    for c, row in enumerate(found["per_class"]):
        for name in ("precision", "recall", "f1", "support"):
            assert row[name] == pytest.approx(table[str(c)][rename.get(name, name)])


def test_intervals_are_those_of_resampled_images():
    """The same distribution as a bootstrap that draws the images one by one."""
    scores, labels = predictions(120, 4, sharpness=1.0)
    predicted = scores.argmax(axis=1)
    rng = np.random.default_rng(5)
    top1, macro, recall = [], [], []
    for _ in range(1500):
        rows = rng.integers(0, 120, 120)
        within = [rng.choice(np.flatnonzero(labels == c), np.sum(labels == c)) for c in range(4)]
        recall.append(np.mean([np.mean(predicted[of_c] == c) for c, of_c in enumerate(within)]))
        top1.append(np.mean(predicted[rows] == labels[rows]))
        macro.append(metrics.f1_score(labels[rows], predicted[rows], average="macro", zero_division=0))
    found = report(scores, labels, resamples=4000)
    for name, values in (("top1", top1), ("macro_f1", macro), ("mean_per_class", recall)):
        np.testing.assert_allclose(found["interval"][name], np.percentile(values, [2.5, 97.5]), atol=0.02)
    assert found["interval"]["top1"][0] < found["top1"] < found["interval"]["top1"][1]
    assert report(scores, labels) == report(scores, labels)
    assert report(scores, labels, seed=1)["interval"] != report(scores, labels)["interval"]


def test_a_rare_class_is_in_every_draw():
    """3 of 89 images: a draw from all of them would often have none, and the recall of the others alone."""
    labels = np.repeat([0, 1], [86, 3])
    predicted = np.zeros(89, int)
    predicted[0] = 1
    low, high = report(np.eye(2)[predicted], labels)["interval"]["mean_per_class"]
    assert 0.47 < low < high <= 0.5


def test_intervals_in_small_pieces(monkeypatch):
    scores, labels = predictions(60, 5)
    whole = report(scores, labels, resamples=200)["interval"]
    monkeypatch.setattr(classified, "DRAWN", 50)
    assert report(scores, labels, resamples=200)["interval"] == whole


def test_calibration_by_loops():
    scores, labels = predictions(500, 3)
    confidence, right = scores.max(axis=1).astype(np.float64), scores.argmax(axis=1) == labels
    found, ece = report(scores, labels), 0.0
    assert len(found["calibration"]) == 15
    for m, row in enumerate(found["calibration"]):
        inside = (confidence > m / 15) & (confidence <= (m + 1) / 15)
        assert row["count"] == inside.sum()
        if inside.any():
            assert row["confidence"] == pytest.approx(confidence[inside].mean())
            assert row["accuracy"] == pytest.approx(right[inside].mean())
            ece += inside.mean() * abs(confidence[inside].mean() - right[inside].mean())
        else:
            assert row == {"confidence": None, "accuracy": None, "count": 0}
    assert found["ece"] == pytest.approx(ece)


def test_certain_and_right_is_calibrated():
    found = report(np.eye(4), np.arange(4))
    assert found["ece"] == 0
    assert found["calibration"][-1] == {"confidence": 1.0, "accuracy": 1.0, "count": 4}
    # Four of four say little: Wilson's interval, which scipy has too.
    wilson = binomtest(4, 4).proportion_ci(method="wilson")
    assert found["interval"]["top1"] == pytest.approx([wilson.low, wilson.high], abs=1e-4)
    assert found["interval"]["macro_f1"] == [1.0, 1.0]
    wrong = report(np.roll(np.eye(4), 1, axis=1), np.arange(4))
    assert (wrong["ece"], wrong["top1"], wrong["macro"]["f1"]) == (1, 0, 0)


def test_class_missing_from_test():
    """Class 2 is predicted but never right to; class 3 is neither in test nor predicted."""
    scores = np.eye(4)[[0, 0, 1, 2]]
    found = report(scores, np.array([0, 0, 1, 1]))
    assert found["mean_per_class"] == pytest.approx((1 + 0.5) / 2)
    assert found["macro"]["recall"] == pytest.approx((1 + 0.5 + 0) / 3)
    assert found["macro"]["precision"] == pytest.approx((1 + 1 + 0) / 3)
    assert [row["recall"] for row in found["per_class"]] == [1, 0.5, None, None]
    assert [row["support"] for row in found["per_class"]] == [2, 2, 0, 0]
    assert found["confusion"][1] == [0, 1, 1, 0]
    assert "top5" not in found


@pytest.mark.parametrize(("n", "classes"), [(1, 10), (1, 1), (5, 1), (7, 2), (40, 300)])
def test_small_sets(n, classes):
    scores, labels = predictions(n, classes)
    found = report(scores, labels)
    assert found["images"] == n
    assert len(found["per_class"]) == len(found["confusion"]) == classes
    for low, high in found["interval"].values():
        assert 0 <= low <= high <= 1


def test_one_class_only():
    scores, labels = predictions(20, 3, labels=np.full(20, 1))
    found = report(scores, labels)
    assert found["mean_per_class"] == found["top1"] == found["per_class"][1]["recall"]


def test_images_without_labels():
    scores, labels = predictions(30, 3)
    labels[20:] = -1
    assert report(scores, labels) == report(scores[:20], labels[:20])
    assert report(scores, np.full(30, -1)) == {}
    assert report(scores[:0], labels[:0]) == {}


def test_what_cannot_be_scored():
    scores, labels = predictions(5, 3)
    with pytest.raises(SimclrError, match="label 3"):
        classified.evaluate(scores, labels * 0 + 3)
    with pytest.raises(SimclrError, match="finite"):
        classified.evaluate(scores * np.nan, labels)


def test_eleven_point_map_by_hand():
    """Hits at ranks 1, 3 and 6: precision 1 up to recall 0.3, 2/3 up to 0.6, 1/2 up to 1."""
    first = np.array([True, False, True, False, False, True])
    ranked = -np.arange(6.0)
    expected = (4 * 1 + 3 * 2 / 3 + 4 * 1 / 2) / 11
    assert classified.eleven_point_map(ranked[:, None], first[:, None]) == pytest.approx(expected)
    # A class all of whose images come first has 1, one without a positive does not count.
    targets = np.stack([first, [True] * 2 + [False] * 4, [False] * 6], axis=1)
    found = classified.eleven_point_map(np.stack([ranked] * 3, axis=1), targets)
    assert found == pytest.approx((expected + 1) / 2)
    shuffled = np.random.default_rng(0).permutation(6)
    again = classified.eleven_point_map(np.stack([ranked] * 3, axis=1)[shuffled], targets[shuffled])
    assert again == pytest.approx(found)


def test_eleven_point_map_reaches_every_tenth():
    """Ten positives, the last seven behind as many others: recall 0.3 is reached with precision 1."""
    target = np.array([1] * 3 + [0] * 7 + [1] * 7, bool)
    expected = (4 * 1 + 7 * 10 / 17) / 11
    assert classified.eleven_point_map(-np.arange(17.0)[:, None], target[:, None]) == pytest.approx(expected)


def test_nothing_to_rank():
    assert classified.eleven_point_map(np.zeros((4, 2)), np.zeros((4, 2), bool)) == 0
    assert classified.eleven_point_map(np.zeros((0, 2)), np.zeros((0, 2), bool)) == 0


def test_a_useless_classifier_of_one_in_fifty():
    """It says "healthy" of everyone: right 98 times of 100, and worth nothing."""
    labels = np.repeat([0, 1], [980, 20])
    found = report(np.tile([0.9, 0.1], (1000, 1)), labels)
    assert found["top1"] == 0.98
    assert (found["mean_per_class"], found["auroc"]) == (0.5, 0.5)
    assert [row["recall"] for row in found["per_class"]] == [1, 0]
    # The average precision of chance is the class's share of the images.
    assert [row["average_precision"] for row in found["per_class"]] == pytest.approx([0.98, 0.02])
    assert found["average_precision"] == pytest.approx(0.5)
    assert set(found["interval"]) == {"top1", "macro_f1"}  # nothing tells how uncertain the other two are
    # Scores that know nothing but are not equal: half again, give or take three standard errors.
    scores = np.random.default_rng(0).uniform(0, 0.4, 1000)
    noise = report(np.stack([1 - scores, scores], axis=1), labels)
    (low, high), p = noise["interval"]["auroc"], noise["auroc"]
    assert noise["top1"] == 0.98
    assert noise["mean_per_class"] == 0.5
    assert abs(p - 0.5) < 3 * (high - low) / (2 * 1.96)
    # One that ranks the sick first but never says so.
    scores = np.where(labels == 1, 0.4, 0.1)
    ranks = report(np.stack([1 - scores, scores], axis=1), labels)
    assert (ranks["top1"], ranks["mean_per_class"], ranks["auroc"]) == (0.98, 0.5, 1)
    assert ranks["average_precision"] == 1


def test_a_long_tail():
    """256, 128, ..., 1 images: a classifier of the three large classes alone is right nine times of ten."""
    counts = 2 ** np.arange(8, -1, -1)
    labels = np.repeat(np.arange(9), counts)
    scores = np.full((len(labels), 9), 0.01)
    scores[np.arange(len(labels)), np.where(labels < 3, labels, 0)] = 0.92
    found = report(scores, labels)
    assert found["top1"] == pytest.approx(448 / 511)
    assert found["mean_per_class"] == pytest.approx(3 / 9)
    # The 63 images of the tail stand level with those of class 0; 1 and 2 are perfect, the others chance.
    assert found["per_class"][0]["auroc"] == pytest.approx((192 + 63 / 2) / 255)
    assert found["per_class"][0]["average_precision"] == pytest.approx(256 / 319)
    assert [row["auroc"] for row in found["per_class"][1:]] == [1, 1] + [0.5] * 6
    chance = [count / 511 for count in counts[3:]]
    assert [row["average_precision"] for row in found["per_class"][3:]] == pytest.approx(chance)
    assert found["auroc"] == pytest.approx(((192 + 63 / 2) / 255 + 2 + 3) / 9)
    alike = classified.cell(found).alike
    assert {name: one.value for name, one in alike.items()} == pytest.approx(
        {"balanced_accuracy": 3 / 9, "auroc": found["auroc"], "average_precision": found["average_precision"]}
    )
    assert "auroc" not in found["interval"]  # one image of the last class tells no spread
    assert alike["auroc"].error is None


def test_classes_alike_are_scikit_learns():
    scores, labels = predictions(400, 6, sharpness=1.0, labels=np.minimum(np.arange(400) // 40, 5))
    whole, predicted = report(scores, labels), scores.argmax(axis=1)
    found = classified.cell(whole).alike
    assert found["balanced_accuracy"].value == pytest.approx(
        metrics.balanced_accuracy_score(labels, predicted)
    )
    assert found["auroc"].value == pytest.approx(metrics.roc_auc_score(labels, scores, multi_class="ovr"))
    assert found["average_precision"].value == pytest.approx(
        metrics.average_precision_score(np.eye(6)[labels], scores, average="macro")
    )
    recall = metrics.recall_score(labels, predicted, average=None)
    variances = [r * (1 - r) / n for r, n in zip(recall, np.bincount(labels), strict=True)]
    assert found["balanced_accuracy"].error == pytest.approx(np.sqrt(np.sum(variances)) / 6)
    low, high = whole["interval"]["auroc"]
    assert (high - low) / 2 == pytest.approx(1.96 * found["auroc"].error, rel=1e-4)


def test_one_class_in_test_cannot_be_ranked():
    scores, labels = predictions(20, 3, labels=np.full(20, 1))
    found = report(scores, labels)
    assert found["auroc"] is found["average_precision"] is None
    assert all(row["auroc"] is row["average_precision"] is None for row in found["per_class"])
    assert set(classified.cell(found).alike) == {"balanced_accuracy"}


def test_mean_per_class_counts_rare_classes_alike():
    labels = np.array([0] * 8 + [5] * 2)
    predicted = np.array([0] * 8 + [5, 3])
    assert classified.mean_per_class(predicted, labels) == pytest.approx(0.75)
