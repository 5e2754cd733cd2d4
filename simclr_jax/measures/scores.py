"""The final scores of a representation, every choice made on a hold-out of train."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from simclr_jax.data.holdout import whole_groups
from simclr_jax.measures import knn, linear, ranking
from simclr_jax.measures.features import Features

L2 = tuple(10.0**e for e in range(-4, 1))
K = (1, 5, 10, 20, 50, 100, 200)
TEMPERATURES = (0.05, 0.1, 0.2, 0.5)
HOLDOUT, HOLDOUT_MOST = 0.2, 20_000  # of the training examples
LABELS = (100, 1000)


def _part(count: int) -> str:
    return f"linear, {count:,} labels"


PARTS = ("kNN", *map(_part, LABELS), "linear, all labels")  # in this order


class Score(NamedTuple):
    """Top-1 accuracy on test as a fraction, its standard error, what the hold-out chose, and more scores."""

    accuracy: float
    standard_error: float
    choice: dict[str, float]
    alike: dict[str, tuple[float, float | None]]  # what `ranking.alike` gives; {} of few labels


def score(
    train: Features,
    test: Features,
    *,
    classes: int,
    mesh: Mesh,
    draws: int = 10,
    iterations: int = 100,
    knn_bank: int = 200_000,
    linear_examples: int = 0,
    seed: int = 0,
    groups: np.ndarray | None = None,
    announce: Callable[[str], None] = lambda what: None,
) -> dict[str, Score]:
    """{knn, linear_100, linear_1000, linear_all: Score} of one representation.

    A fixed fifth of train (at most 20,000 examples) is the hold-out. k and T of the vote are the most
    accurate there; the l2 penalty of each linear probe has the lowest cross entropy there (accuracies tie
    too often). Test is looked at once, with the choice made. The probes on 100 and 1,000 labels are means
    over `draws` class-balanced draws from the rest of train, with the standard error of that mean; knn and
    linear_all then use all of train (at most `knn_bank` and, unless 0, `linear_examples`), with the
    standard error of a proportion. A probe that finds too few labels to draw from is left out.

    Args:
      groups: of the training examples, as `validation_rows` takes them.
      announce: is told what comes next, one of PARTS.
    """
    held, rest = validation_rows(len(train.labels), seed, groups)
    order = np.concatenate([held, rest])
    if not len(rest) or not len(test.labels):
        return {}
    scores = {}

    def proportion(p: float, choice: dict[str, float], found: np.ndarray) -> Score:
        error = float(np.sqrt(p * (1 - p) / len(test.labels)))
        return Score(p, error, choice, ranking.alike(found, test.labels))

    announce(PARTS[0])
    settings = [(k, t) for k in K for t in TEMPERATURES]
    search = {"mesh": mesh, "classes": classes}
    tried = knn.evaluate(*train.rows(rest[:knn_bank]), *train.rows(held), settings=settings, **search)
    best = max(settings, key=lambda s: tried[s][0])
    bank = train.rows(order[:knn_bank])
    ((_, found),) = knn.votes(*bank, test.features, settings=[best], **search)
    accuracy = knn.top_k_accuracy(found, test.labels, 1)
    scores["knn"] = proportion(accuracy, {"k": best[0], "temperature": best[1]}, knn.shares(found))

    train_x, test_x = linear.standardize(train.features, test.features)
    scaled, scaled_test = Features(train_x, train.labels), Features(test_x, test.labels)
    rng = np.random.default_rng(seed)
    for count in LABELS:
        if classes <= count <= len(rest):
            announce(_part(count))
            drawn = [rest[linear.balanced_draw(train.labels[rest], count, rng)] for _ in range(draws)]
            scores[f"linear_{count}"] = _few_labels(scaled, scaled_test, drawn, held, classes, iterations)

    announce(PARTS[-1])
    rows, held = limited(held, rest, linear_examples)
    data = scaled.rows(rows)
    chosen = linear.fit_chosen(mesh, *data, held, L2, classes=classes, iterations=iterations)
    accuracy, _ = linear.evaluate(jax.tree.map(lambda w: w[None], chosen.weights), *scaled_test)
    found = np.asarray(linear.probabilities(chosen.weights, scaled_test.features))
    scores["linear_all"] = proportion(float(accuracy[0]), {"l2": L2[chosen.best]}, found)
    return scores


def limited(held: np.ndarray, rest: np.ndarray, limit: int) -> tuple[np.ndarray, np.ndarray]:
    """(rows, which of them are held out): of both the share, at most `limit` rows in all; 0: all."""
    if limit and limit < len(held) + len(rest):
        cut = min(len(held), max(1, round(HOLDOUT * limit)))
        held, rest = held[:cut], rest[: limit - cut]
    return np.concatenate([held, rest]), np.arange(len(held))


def validation_rows(
    examples: int, seed: int = 0, groups: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """(validation, rest): rows of a fixed fifth of the training examples, at most 20,000, and of the others.

    Args:
      groups: a number `[examples]` for each one. Those with the same number stay together: the fifth is met
        as nearly as whole groups allow. A single group is divided, or nothing could be chosen.

    Returns:
      Both in random order.
    """
    rng = np.random.default_rng(seed)
    order = rng.permutation(examples)
    if groups is not None and len(np.unique(groups)) > 1:
        held = whole_groups(groups, min(HOLDOUT, HOLDOUT_MOST / examples), rng)[order]
        return order[held], order[~held]
    cut = min(max(1, round(HOLDOUT * len(order))), HOLDOUT_MOST)
    return order[:cut], order[cut:]


def _few_labels(
    pool: Features,
    test: Features,
    drawn: list[np.ndarray],
    held: np.ndarray,
    classes: int,
    iterations: int,
) -> Score:
    """Probes on each draw (rows of the pool, `[count]`) with every l2; the best l2's mean."""
    draws = len(drawn)
    few = jax.device_put(pool.rows(np.stack(drawn)))  # once, for all penalties
    everyone = np.ones(few.labels.shape, bool)
    fits = linear.fit(*few, everyone, L2, classes=classes, iterations=iterations)
    every = jax.tree.map(lambda w: w.reshape(-1, *w.shape[2:]), fits)
    losses = np.asarray(linear.evaluate(every, *pool.rows(held))[1])
    best = int(np.argmin(np.mean(losses.reshape(-1, draws), axis=1)))
    accuracy = linear.evaluate(jax.tree.map(lambda w: w[best], fits), *test)[0]
    accuracy = np.asarray(accuracy, np.float64)
    error = accuracy.std(ddof=1) / np.sqrt(draws) if draws > 1 else 0.0
    return Score(float(accuracy.mean()), float(error), {"l2": L2[best]}, {})
