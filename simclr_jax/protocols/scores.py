"""The scores that end a run and begin a report: kNN and linear probes, choices made on a hold-out."""

import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from simclr_jax.measures import choice, knn, linear
from simclr_jax.measures.features import Features, some
from simclr_jax.protocols import protocol
from simclr_jax.results import Cell, Result, Row, plain

L2 = choice.L2[8:25:4]  # 1e-4, 1e-3, ..., 1
LABELS = (100, 1000)
FEW = {f"linear_{count}": f"linear, {count:,} labels" for count in LABELS}
TITLES = {"knn": "kNN, all labels", **FEW, "linear_all": "linear, all labels"}  # in this order


def _silent(who: str, title: str) -> None:
    """Announces nothing."""


class Contender(NamedTuple):
    """Features of a training and a test set, all labelled."""

    who: str  # of `results.WHO`
    train: Features
    test: Features
    groups: np.ndarray | None  # of the training examples, as `validation_rows` takes them


class Score(NamedTuple):
    """On test, with what the hold-out chose; of kNN also its accuracy there, [K][T]."""

    cell: Cell
    choice: dict[str, float]
    tried: Sequence[Sequence[float]] = ()


def scores(
    contenders: Iterable[Contender],
    classes: int,
    mesh: Mesh,
    options: ConfigDict,
    announce: Callable = _silent,
) -> Result:
    """Rows knn, linear_100, linear_1000, linear_all; {metric: {who: what was chosen}} in `more["choices"]`.

    Args:
      contenders: made one at a time, as they are needed.
      options: `config.eval`.
      announce: is told who comes next, and which of TITLES.
    """
    found = {one.who: score(one, classes, mesh, options, announce) for one in contenders}
    table = {name: {who: each[name] for who, each in found.items() if name in each} for name in TITLES}
    table = {name: row for name, row in table.items() if row}
    cells = {name: {who: one.cell for who, one in row.items()} for name, row in table.items()}
    choices = {name: {who: one.choice for who, one in row.items()} for name, row in table.items()}
    tried = {who: one.tried for who, one in table.get("knn", {}).items()}
    rows = [Row(name, TITLES[name], row) for name, row in cells.items()]
    return Result(rows=rows, more={"choices": choices, "tried": tried})


def summarized(result: Result) -> dict[str, Any]:
    """What summary.json keeps: rows, scores/METRIC/WHO, standard_errors/METRIC/WHO and choices."""
    found: dict[str, Any] = {"rows": plain(result.rows), "choices": result.more["choices"]}
    for row in result.rows:
        for who, cell in row.cells.items():
            for name, one in {"": cell, **{f"_{name}": one for name, one in cell.alike.items()}}.items():
                found[f"scores/{row.id}{name}/{who}"] = one.value
                if one.error is not None:
                    found[f"standard_errors/{row.id}{name}/{who}"] = one.error
    return found


def score(
    contender: Contender, classes: int, mesh: Mesh, options: ConfigDict, announce: Callable = _silent
) -> dict[str, Score]:
    """{knn, linear_100, linear_1000, linear_all: Score} of one representation.

    A fixed fifth of train (at most 20,000 examples) is the hold-out. k and T of the vote are the most
    accurate there; the l2 penalty of each linear probe has the lowest cross entropy there (accuracies tie
    too often). Test is looked at once, with the choice made. The probes on 100 and 1,000 labels are means
    over `linear.draws` class-balanced draws from the rest of train, with Student's interval of that mean; knn
    and linear_all then use all of train (at most `knn.bank` and, unless 0, `linear.examples`), with the
    intervals of `classified.evaluate`. A probe that finds too few labels to draw from is left out; with 0
    draws both are.
    """
    from simclr_jax.measures.classified import cell, evaluate  # here, as scikit-learn takes seconds to import

    who, train, test, groups = contender
    held, rest = choice.validation_rows(len(train.labels), groups=groups)
    if not len(rest) or not len(test.labels):
        return {}
    found = {}

    announce(who, TITLES["knn"])
    tried = neighbour_grid(train, groups, options.knn.bank, mesh, classes)
    best = np.unravel_index(np.argmax(tried), np.shape(tried))
    chosen = {"k": choice.K[best[0]], "temperature": choice.T[best[1]]}
    bank, search = some(train, options.knn.bank), {"mesh": mesh, "classes": classes}
    ((_, votes),) = knn.votes(*bank, test.features, settings=[tuple(chosen.values())], **search)
    found["knn"] = Score(cell(evaluate(knn.shares(votes), test.labels)), chosen, tried)

    train_x, test_x = linear.standardize(train.features, test.features)
    scaled, scaled_test = Features(train_x, train.labels), Features(test_x, test.labels)
    rng, settings = np.random.default_rng(0), {"classes": classes, "iterations": options.linear.iterations}
    for count in LABELS:
        if options.linear.draws and classes <= count <= len(rest):
            announce(who, TITLES[f"linear_{count}"])
            draws = range(options.linear.draws)
            drawn = [rest[linear.balanced_draw(train.labels[rest], count, rng)] for _ in draws]
            found[f"linear_{count}"] = _few_labels(scaled, scaled_test, drawn, held, **settings)

    announce(who, TITLES["linear_all"])
    rows, held = choice.limited(held, rest, options.linear.examples)
    fitted = linear.fit_chosen(mesh, *scaled.rows(rows), held, L2, **settings)
    probabilities = np.asarray(linear.probabilities(fitted.weights, scaled_test.features))
    found["linear_all"] = Score(cell(evaluate(probabilities, test.labels)), {"l2": L2[fitted.best]})
    return found


def neighbour_grid(
    train: Features, groups: np.ndarray | None, bank: int, mesh: Mesh, classes: int, distance: str = "cosine"
) -> list[list[float]]:
    """Accuracy [K][T] on the hold-out with at most `bank` of the rest as bank; Euclidean: [K][1]."""
    held, rest = choice.validation_rows(len(train.labels), groups=groups)
    settings = list(itertools.product(choice.K, choice.T if distance == "cosine" else (None,)))
    queries, search = train.rows(held), {"mesh": mesh, "classes": classes, "settings": settings}
    votes = knn.votes(*some(train.rows(rest), bank), queries.features, **search, distance=distance)
    accuracy = [knn.top_k_accuracy(one, queries.labels, 1) for _, one in votes]
    return np.reshape(accuracy, (len(choice.K), -1)).tolist()


def _few_labels(
    pool: Features,
    test: Features,
    drawn: Sequence[np.ndarray],
    held: np.ndarray,
    classes: int,
    iterations: int,
) -> Score:
    """Probes on each draw (rows of the pool, `[count]`) with every l2; the best l2's mean."""
    from scipy.stats import t

    draws = len(drawn)
    few = jax.device_put(pool.rows(np.stack(drawn)))  # once, for all penalties
    everyone = np.ones(few.labels.shape, bool)
    fits = linear.fit(few.features, few.labels, everyone, L2, classes=classes, iterations=iterations)
    every = jax.tree.map(lambda w: w.reshape(-1, *w.shape[2:]), fits)
    losses = np.asarray(linear.evaluate(every, *pool.rows(held))[1])
    best = int(np.argmin(np.mean(losses.reshape(-1, draws), axis=1)))
    accuracy = linear.evaluate(jax.tree.map(lambda w: w[best], fits), *test)[0]
    accuracy = np.asarray(accuracy, np.float64)
    mean, error, ends = float(accuracy.mean()), 0.0, ()
    if draws > 1:
        error = float(accuracy.std(ddof=1) / np.sqrt(draws))
        ends = np.clip(mean + t.ppf(0.975, draws - 1) * error * np.array([-1, 1]), 0, 1).tolist()
    return Score(Cell(mean, *ends, error=error), {"l2": L2[best]})


@protocol("scores", "labels", options=("linear.draws", "linear.iterations"))
def of_subject(subject: Any) -> Result:
    """`scores` of an evaluation's subject."""
    return scores(subject.contenders(), len(subject.classes), subject.mesh, subject.config.eval)
