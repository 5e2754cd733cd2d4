"""The final scores of a representation, every choice made on a hold-out of train."""

from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from simclr_jax import sharding
from simclr_jax.evals import knn, linear
from simclr_jax.evals.features import Features

L2 = tuple(10.0**e for e in range(-4, 1))
K = (1, 5, 10, 20, 50, 100, 200)
TEMPERATURES = (0.05, 0.1, 0.2, 0.5)
HOLDOUT = 0.2
LABELS = (100, 1000)
BUDGET = 1 << 28  # logits at a time while fitting


class Score(NamedTuple):
    """Top-1 accuracy on test as a fraction, its standard error, and what the hold-out chose."""

    accuracy: float
    standard_error: float
    choice: dict[str, float]


def score(
    train: Features,
    test: Features,
    *,
    classes: int,
    mesh: Mesh,
    draws: int = 10,
    iterations: int = 100,
    linear_examples: int = 0,
    seed: int = 0,
) -> dict[str, Score]:
    """{knn, linear_100, linear_1000, linear_all: Score} of one representation.

    A fixed fifth of train is the hold-out. k and T of the vote, and the l2 penalty of each linear
    probe, are what does best there; test is looked at once. The probes on 100 and 1,000 labels are
    means over `draws` class-balanced draws from the rest of train, their standard error that of the
    mean; knn and linear_all then use all of train, with the standard error of a proportion. A probe
    that has fewer labels to draw from than it needs is left out.
    """
    order = np.random.default_rng(seed).permutation(len(train.labels))
    cut = max(1, round(HOLDOUT * len(order)))
    held, rest = order[:cut], order[cut:]
    scores = {}

    def proportion(p: float, choice: dict[str, float]) -> Score:
        return Score(p, float(np.sqrt(p * (1 - p) / len(test.labels))), choice)

    settings = [(k, t) for k in K for t in TEMPERATURES]
    search = {"mesh": mesh, "classes": classes, "settings": settings}
    tried = knn.evaluate(*_rows(train, rest), *_rows(train, held), **search)
    best = max(settings, key=lambda s: tried[s][0])
    found = knn.evaluate(*train, *test, **{**search, "settings": [best]})[best][0]
    scores["knn"] = proportion(found, {"k": best[0], "temperature": best[1]})

    pool, test_x = linear.standardize(train.features, test.features)
    scaled = Features(pool, train.labels)
    rng = np.random.default_rng(seed)
    for count in LABELS:
        if classes <= count <= len(rest):
            drawn = np.stack(
                [rest[linear.balanced_draw(train.labels[rest], count, rng)] for _ in range(draws)]
            )
            scores[f"linear_{count}"] = _few_labels(
                scaled, Features(test_x, test.labels), drawn, held, classes, iterations
            )

    limit = linear_examples or len(order)
    fit_all = _fit_all(mesh, classes, iterations)
    weights = fit_all(*_rows(scaled, rest[:limit]))
    l2 = L2[int(np.argmax(linear.accuracies(weights, *_rows(scaled, held))))]
    weights = fit_all(*_rows(scaled, order[:limit]), l2s=(l2,))
    accuracy = float(linear.accuracies(weights, test_x, test.labels)[0])
    scores["linear_all"] = proportion(accuracy, {"l2": l2})
    return scores


def _rows(data: Features, index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return data.features[index], data.labels[index]


def _few_labels(
    pool: Features,
    test: Features,
    drawn: np.ndarray,
    held: np.ndarray,
    classes: int,
    iterations: int,
) -> Score:
    """Probes on each draw `[draws, count]` of the pool's rows with every l2; the best l2's mean."""
    draws, l2s = len(drawn), np.asarray(L2, pool.features.dtype)
    everyone = np.ones(drawn.shape[1], bool)
    fits = [
        linear.fit(*_rows(pool, rows), everyone, l2s, classes=classes, iterations=iterations)
        for rows in drawn
    ]
    on_held = np.stack([linear.accuracies(weights, *_rows(pool, held)) for weights in fits])
    best = int(np.argmax(on_held.mean(axis=0)))
    chosen = jax.tree.map(lambda *w: np.stack([x[best] for x in w]), *fits)
    accuracy = np.asarray(linear.accuracies(chosen, *test), np.float64)
    error = accuracy.std(ddof=1) / np.sqrt(draws) if draws > 1 else 0.0
    return Score(float(accuracy.mean()), float(error), {"l2": L2[best]})


def _fit_all(mesh: Mesh, classes: int, iterations: int):
    """A probe for every l2 on rows split over the mesh; weights stacked `[l2, ...]`."""

    def fit(features, labels, l2s=L2):
        filling = -len(labels) % mesh.size
        mask = np.arange(len(labels) + filling) < len(labels)
        features = np.pad(features, [(0, filling), (0, 0)])
        labels = np.pad(labels, (0, filling))
        place = sharding.by_batch(mesh)
        data = [jax.device_put(x, place) for x in (features, labels, mask)]
        l2s = np.asarray(l2s, features.dtype)
        groups = np.array_split(l2s, -(-len(l2s) * len(labels) * classes // BUDGET))
        fits = [linear.fit(*data, g, classes=classes, iterations=iterations) for g in groups]
        return jax.tree.map(lambda *w: np.concatenate([np.asarray(x) for x in w]), *fits)

    return fit
