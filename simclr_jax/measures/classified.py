"""How good predictions are: with their uncertainty, class by class, and whether confidence is earned."""

from typing import Any

import numpy as np
from scipy.sparse import csr_array
from scipy.stats import binomtest
from sklearn.metrics import precision_recall_fscore_support, recall_score

from simclr_jax.errors import SimclrError
from simclr_jax.measures import ranking
from simclr_jax.measures.knn import top_k_accuracy
from simclr_jax.results import ALIKE, Cell

BINS = 15  # of the calibration error, as in its paper
DRAWN = 1 << 22  # counts of the bootstrap that exist at a time
Z = 1.959964  # standard errors on either side: 95 %


def evaluate(
    scores: np.ndarray, labels: np.ndarray, *, resamples: int = 1000, seed: int = 0
) -> dict[str, Any]:
    """All that is reported of a classifier on a test set, as JSON takes it; {} without labelled images.

    Precision, recall and F1 are scikit-learn's, 0 where there is nothing to divide by. "macro" averages them
    over the classes that labels or predictions name; "mean_per_class" is the recall averaged over those that
    labels name (balanced accuracy), and differs when a class is predicted that the test set lacks. AUROC and
    average precision are those of one class against all others, averaged over the classes that labels name;
    None where all labels name one class.

    Args:
      scores: probabilities `[n, classes]`; labels: `[n]`, those with -1 (none) are left out.
      resamples: of the test images, for the 95 % intervals (top1's is Wilson's where all or none are right;
        auroc's is of `ranking.one_vs_rest`). Left out where nothing tells them: auroc's as there,
        mean_per_class's where of every class all images or none are right.

    Returns:
      {images, top1, top5 (with more than five classes), interval {top1, macro_f1, mean_per_class, auroc:
      [low, high]}, standard_error {top1, mean_per_class, auroc (where it is known)}, mean_per_class, auroc,
      average_precision, macro and weighted {precision, recall, f1}, per_class [{precision, recall (None
      without support), f1, support, auroc, average_precision (None without support, or with that of all
      images)}], confusion `[classes, classes]` (rows: the truth), ece, calibration}.

    Raises:
      SimclrError: a label that scores have no column for, or scores that are not numbers.
    """
    scores, labels = scores[labels >= 0], labels[labels >= 0]
    if not len(labels):
        return {}
    classes = scores.shape[1]
    if labels.max() >= classes:
        raise SimclrError(f"label {labels.max()} of a classifier with {classes} classes, which start at 0")
    if not np.isfinite(scores).all():
        raise SimclrError("the classifier's scores are not all finite numbers")
    predicted = np.argmax(scores, axis=1)
    cells = np.bincount(labels.astype(np.int64) * classes + predicted, minlength=classes**2)
    confusion = cells.reshape(classes, classes)
    calibration = _calibration(scores.max(axis=1), predicted == labels)
    report = {"images": len(labels), "top1": float(np.mean(predicted == labels))}
    if classes > 5:
        report["top5"] = top_k_accuracy(scores, labels, 5)
    ranks = ranking.one_vs_rest(scores, labels)
    gaps = [b["count"] * abs(b["confidence"] - b["accuracy"]) for b in calibration if b["count"]]
    return report | {
        "interval": _intervals(confusion, resamples, seed) | _interval_of_auroc(ranks),
        "standard_error": _standard_errors(confusion, ranks),
        "mean_per_class": mean_per_class(predicted, labels),
        **ranks.means(),
        "macro": _averaged(predicted, labels, "macro"),
        "weighted": _averaged(predicted, labels, "weighted"),
        "per_class": _per_class(predicted, labels, ranks),
        "confusion": confusion.tolist(),
        "ece": float(sum(gaps) / len(labels)),
        "calibration": calibration,
    }


def cell(measured: dict[str, Any]) -> Cell:
    """The accuracy among what `evaluate` found, with the scores of ALIKE that there are."""

    def one(key: str) -> dict[str, Any]:
        ends = dict(zip(("low", "high"), measured["interval"].get(key, ()), strict=False))
        return {"value": measured[key], **ends, "error": measured["standard_error"].get(key)}

    keys = {name: "mean_per_class" if name == "balanced_accuracy" else name for name in ALIKE}
    found: dict[str, Any] = {
        name: Cell(**one(key)) for name, key in keys.items() if measured[key] is not None
    }
    return Cell(**one("top1"), **found)


def mean_per_class(predicted: np.ndarray, labels: np.ndarray) -> float:
    """Recall averaged over the classes among `labels [n]`, n ≥ 1: each counts alike, however rare."""
    present = np.unique(labels)
    return float(recall_score(labels, predicted, labels=present, average="macro", zero_division=0))


def eleven_point_map(scores: np.ndarray, targets: np.ndarray) -> float:
    """VOC2007's mean average precision (Everingham et al., 2010, section 4.2), where images have many labels.

    For each class the images are sorted by score; its average precision is the mean, over the recalls 0, 0.1,
    ..., 1, of the best precision at that recall or a higher one. Equal scores stay in the images' order.

    Args:
      scores: `[n, classes]`; targets: `[n, classes]` bool. A class without a positive is left out.

    Returns:
      The mean over the classes; 0 if none has a positive.
    """
    found = []
    for score, target in zip(scores.T, targets.T, strict=True):
        hits = np.cumsum(target[np.argsort(-score, kind="stable")].astype(np.int64))
        if not len(hits) or not hits[-1]:
            continue
        precision = hits / np.arange(1, len(hits) + 1)
        best = np.maximum.accumulate(precision[::-1])[::-1]  # at this rank or further down
        # The first rank whose recall is at least t/10, in whole numbers: 3/10 < 0.1 * 3 in floats.
        first = [np.argmax(10 * hits >= t * hits[-1]) for t in range(11)]
        found.append(np.mean(best[first]))
    return float(np.mean(found)) if found else 0.0


def _interval_of_auroc(ranks: ranking.Ranking) -> dict[str, list[float]]:
    mean = ranks.means()["auroc"]
    if mean is None or np.isnan(ranks.standard_error):
        return {}
    ends = mean + Z * ranks.standard_error * np.array([-1, 1])
    return {"auroc": np.clip(ends, 0, 1).tolist()}


def _standard_errors(confusion: np.ndarray, ranks: ranking.Ranking) -> dict[str, float]:
    """Of a proportion, of the mean of the classes' proportions, and `Ranking.standard_error`."""
    counts, right = confusion.sum(axis=1), np.diag(confusion)
    top1, recall = right.sum() / counts.sum(), right[counts > 0] / counts[counts > 0]
    of_mean = np.sqrt(np.sum(recall * (1 - recall) / counts[counts > 0])) / len(recall)
    found = {"top1": np.sqrt(top1 * (1 - top1) / counts.sum()), "mean_per_class": of_mean}
    found |= {} if np.isnan(ranks.standard_error) else {"auroc": ranks.standard_error}
    return {name: float(error) for name, error in found.items()}


def _averaged(predicted: np.ndarray, labels: np.ndarray, average: str) -> dict[str, float]:
    values = precision_recall_fscore_support(labels, predicted, average=average, zero_division=0)
    return {name: float(x) for name, x in zip(("precision", "recall", "f1"), values, strict=False)}


def _per_class(predicted: np.ndarray, labels: np.ndarray, ranks: ranking.Ranking) -> list[dict[str, Any]]:
    classes = np.arange(len(ranks.auroc))
    columns = precision_recall_fscore_support(labels, predicted, labels=classes, zero_division=0)
    found = [
        {"precision": float(p), "recall": float(r) if n else None, "f1": float(f), "support": int(n)}
        for p, r, f, n in zip(*columns, strict=True)
    ]
    for one, *ranked in zip(found, ranks.auroc, ranks.average_precision, strict=True):
        one |= {
            name: None if np.isnan(x) else float(x) for name, x in zip(ranking.RANKED, ranked, strict=True)
        }
    return found


def _calibration(confidence: np.ndarray, right: np.ndarray) -> list[dict[str, Any]]:
    """Reliability in the bins (0, 1/15], (1/15, 2/15], ... (Guo et al., arXiv 1706.04599, section 2)."""
    index = np.clip(np.ceil(confidence.astype(np.float64) * BINS).astype(int) - 1, 0, BINS - 1)
    counts = np.bincount(index, minlength=BINS)
    sums = [np.bincount(index, x, minlength=BINS) for x in (confidence, right)]
    return [
        {"confidence": float(c / n) if n else None, "accuracy": float(a / n) if n else None, "count": int(n)}
        for c, a, n in zip(*sums, counts, strict=True)
    ]


def _intervals(confusion: np.ndarray, resamples: int, seed: int) -> dict[str, list[float]]:
    """95 % percentile intervals of the bootstrap (Efron & Tibshirani, 1993, section 13.3).

    To draw n images with replacement is to draw how many fall into each cell of the confusion matrix, from a
    multinomial distribution. Cells without an image are never drawn. Recalls, of the classes alike, are drawn
    within each class.
    """
    truth, predicted = np.nonzero(confusion)
    counts = confusion[truth, predicted].astype(np.int64)
    n, classes, cells = counts.sum(), len(confusion), len(counts)

    def one(rows, chosen):
        return csr_array((np.ones(len(chosen), np.int64), (rows[chosen], chosen)), (classes, cells))

    of_truth, of_prediction = (one(rows, np.arange(cells)) for rows in (truth, predicted))
    of_hits = one(truth, np.flatnonzero(truth == predicted))
    rng = np.random.default_rng(seed)
    top1, macro_f1 = [], []
    step = max(1, DRAWN // cells)
    for begin in range(0, resamples, step):
        drawn = rng.multinomial(n, counts / n, size=min(step, resamples - begin)).T
        hits, named = of_hits @ drawn, of_truth @ drawn + of_prediction @ drawn
        top1.append(hits.sum(axis=0) / n)
        f1 = 2 * hits / np.maximum(named, 1)
        macro_f1.append(f1.sum(axis=0) / np.count_nonzero(named, axis=0))

    def bounds(x):
        return np.percentile(np.concatenate(x), [2.5, 97.5]).tolist()

    right = int(np.trace(confusion))
    sure = right in (0, n)  # whatever is drawn is then the same, however few images there are
    wilson = binomtest(right, int(n)).proportion_ci(method="wilson")
    found = {
        "top1": [float(wilson.low), float(wilson.high)] if sure else bounds(top1),
        "macro_f1": bounds(macro_f1),
    }
    right, images = np.diag(confusion), confusion.sum(axis=1)
    right, images = right[images > 0].astype(np.int64), images[images > 0].astype(np.int64)
    if not ((right > 0) & (right < images)).any():
        return found
    # Within each class: in a draw from all images a rare class may not occur.
    drawn = np.random.default_rng([seed, 1]).binomial(images, right / images, (resamples, len(images)))
    return found | {"mean_per_class": bounds([(drawn / images).mean(axis=1)])}
