"""Protocols that leave the encoder as it is and classify its features: kNN, L-BFGS, linear heads, its own."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from etils import epath

from simclr_jax import checkpoint, train
from simclr_jax.data.sources import Source
from simclr_jax.evaluate import charts
from simclr_jax.evaluate.subject import Subject
from simclr_jax.measures import choice, classified, knn, linear
from simclr_jax.measures.classified import cell
from simclr_jax.measures.features import Features, some
from simclr_jax.protocols import protocol
from simclr_jax.protocols.scores import neighbour_grid
from simclr_jax.results import WHO, Result, Row
from simclr_jax.tasks import linear_sweep
from simclr_jax.tasks.extractor import labelled

STANDARD = ((200, 0.1), (20, 0.07))  # (k, T): of InstDisc, and of DINO and solo-learn
FIT = ("linear.iterations",)  # field of config.eval that `fit_l2` reads


@protocol("features")
def features(subject: Subject) -> Result:
    """Every image's features, float32, once: the encoder's, those of the same untrained, raw pixels."""
    if subject.again:
        subject.forget_features()
    parts = ["train", "test"] if subject.splits.test else ["train"]
    shapes = {}
    for who in WHO:
        for part in parts:
            found = subject.features(who, part).features
            shapes[f"{who}, {part}"] = {name: list(x.shape) for name, x in found.items()}
    return Result(more={"shapes": shapes})


def draw_quality(subject: Subject, name: str, title: str, measured: dict[str, Any]) -> list[list[str]]:
    """[file, caption] of the figures of the classifier `title`: confusions, classes, calibration."""
    subject.draw(f"{name}_confusion.png", charts.confusion, measured["confusion"], subject.classes)
    subject.draw(f"{name}_classes.png", charts.per_class, measured["per_class"], subject.classes)
    subject.draw(f"{name}_calibration.png", charts.calibration, measured["calibration"], measured["ece"])
    return [
        [f"{name}_confusion.png", f"{title}: rows the truth, columns the prediction, in %"],
        [f"{name}_classes.png", f"{title}: class by class"],
        [f"{name}_calibration.png", f"{title}: how often it is right, by how sure it is"],
    ]


@protocol("knn", "labels")
def nearest_neighbours(subject: Subject) -> Result:
    """Weighted kNN (Wu et al., arXiv 1805.01978, section 3.4), the whole training set as bank.

    k = 200, T = 0.1 and k = 20, T = 0.07 from one search. The best of the grid (k, T, distance, encoder or
    projection) is the most accurate on a hold-out of train; test is looked at once.
    """
    standard = {who: _votes(subject, who, STANDARD) for who in WHO}
    rows, predictions = [], {}
    for i, (k, temperature) in enumerate(STANDARD):
        cells = {who: cell(found[i][0]) for who, found in standard.items()}
        rows.append(Row(f"knn_{k}", f"kNN, k = {k}, T = {temperature:g}", cells))
        predictions[f"k{k}"] = standard["simclr"][i][1]
    grids = _grids(subject)
    chosen = max(grids, key=lambda g: np.max(g["accuracy"]))
    at = np.unravel_index(np.argmax(chosen["accuracy"]), np.shape(chosen["accuracy"]))
    k, temperature = choice.K[at[0]], chosen["temperatures"][at[1]]
    features, distance = chosen["features"], chosen["distance"]
    ((best, predictions["chosen"]),) = _votes(subject, "simclr", [(k, temperature)], features, distance)
    what = f"k = {k}, " + (f"T = {temperature:g}, " if temperature else "1/distance, ")
    what += f"{distance}, {features}"
    rows.append(Row("knn_chosen", "kNN, chosen on hold-out", {"simclr": cell(best)}, what))
    subject.predicted("knn", subject.labelled("simclr", "test").labels, **predictions)
    subject.draw("knn_grid.png", charts.knn_grids, choice.K, grids)
    metrics = {rows[0].title: standard["simclr"][0][0]}
    figures = [["knn_grid.png", "kNN on the hold-out of train, top-1 in %, over k and T"]]
    return Result(rows=rows, metrics=metrics, figures=figures, more={"grids": grids})


def _votes(
    subject: Subject, who: str, settings: Sequence[tuple], name: str = "encoder", distance: str = "cosine"
) -> list[tuple[dict[str, Any], np.ndarray]]:
    """(what is measured, predictions) of a contender for every (k, T), all from one search."""
    bank, queries = (subject.labelled(who, part, name) for part in ("train", "test"))
    bank = some(bank, subject.config.eval.knn.bank)
    search = {"mesh": subject.mesh, "classes": len(subject.classes), "settings": settings}
    found = [knn.shares(x) for _, x in knn.votes(*bank, queries.features, **search, distance=distance)]
    return [(classified.evaluate(x, queries.labels), np.argmax(x, axis=1)) for x in found]


def _grids(subject: Subject) -> list[dict[str, Any]]:
    """Accuracy `[k][T]` on the hold-out, for every kind of features and distance."""
    grids, known = [], subject.results.get("scores", {}).get("tried")
    settings = (subject.config.eval.knn.bank, subject.mesh, len(subject.classes))
    for name in ("encoder", "projection"):
        if name not in subject.features("simclr", "train").features:
            continue
        train, groups = subject.labelled("simclr", "train", name), subject.groups("simclr")
        for distance in knn.DISTANCES:
            if known and (name, distance) == ("encoder", "cosine"):
                accuracy = known["simclr"]
            else:
                accuracy = neighbour_grid(train, groups, *settings, distance)
            temperatures = list(choice.T) if distance == "cosine" else [None]
            grid = {"features": name, "distance": distance, "temperatures": temperatures}
            grids.append({**grid, "accuracy": accuracy})
    return grids


@protocol("lbfgs", "labels", options=FIT)
def logistic_regression(subject: Subject) -> Result:
    """L-BFGS on features of the evaluation views, 45 penalties from 1e-6 to 1e5 (SimCLR, B.8).

    The penalty has the lowest cross entropy on a hold-out of train; the classifier of all of train with it is
    what test sees. Features are standardised, which the paper does not say it does: L-BFGS then converges.
    """
    cells, curves, measured = {}, {}, {}
    for who in WHO:
        train_set, test = (subject.labelled(who, part) for part in ("train", "test"))
        weights, curves[who] = fit_l2(subject, train_set, len(subject.classes), subject.groups(who))
        scores = np.asarray(linear.probabilities(weights, test.features))
        measured[who] = classified.evaluate(scores, test.labels)
        cells[who] = cell(measured[who])
        if who == "simclr":
            subject.predicted("lbfgs", test.labels, predicted=np.argmax(scores, axis=1))
            subject.keep(_classifier_path(subject), **weights)
            subject.weights = weights
    subject.draw("penalties.png", charts.penalties, curves)
    figures = [["penalties.png", "Which penalty: accuracy and cross entropy on the hold-out of train"]]
    figures += draw_quality(subject, "lbfgs", "linear, L-BFGS", measured["simclr"])
    rows, metrics = [Row("lbfgs", "linear, L-BFGS", cells)], {"linear, L-BFGS": measured["simclr"]}
    return Result(rows=rows, metrics=metrics, figures=figures, more={"penalties": curves})


def fit_l2(
    subject: Subject, found: Features, classes: int, groups: np.ndarray | None
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """(weights {kernel [d, classes], bias}, accuracy and loss for every penalty) chosen on a hold-out.

    Args:
      groups: `[n]`, of the images of `found`; the hold-out divides none. None: there are no groups.
    """
    options = subject.config.eval.linear
    held, rest = choice.validation_rows(len(found.labels), groups=groups)
    if 0 < options.examples < len(found.labels):
        rows, held = choice.limited(held, rest, options.examples)
        found = found.rows(rows)
    (scaled,) = linear.standardize(found.features)
    settings = {"classes": classes, "iterations": options.iterations}
    chosen = linear.fit_chosen(subject.mesh, scaled, found.labels, held, choice.L2, **settings)
    weights = linear.for_plain(chosen.weights, found.features)
    curves = {"accuracy": chosen.accuracy.tolist(), "loss": chosen.loss.tolist()}
    return weights, {"l2": list(choice.L2), "best": chosen.best, **curves}


def _classifier_path(subject: Subject) -> epath.Path:
    key = subject.key_of(subject.key, subject.config.eval.linear.iterations)
    return subject.folder / f"classifier-{key}.npz"


def classifier_weights(subject: Subject) -> dict[str, np.ndarray]:
    """{kernel [d, classes], bias [classes]} of the L-BFGS protocol, this call's or an earlier one's."""
    if subject.weights is None:
        with _classifier_path(subject).open("rb") as file:
            subject.weights = dict(np.load(file))
    return subject.weights


@protocol(
    "linear", "labels", options=("linear.epochs", "linear.learning_rate", "linear.rates", "linear.decays")
)
def linear_heads(subject: Subject) -> Result:
    """Linear evaluation on augmented images (SimCLR, B.6), a sweep of rates and decays in the same pass.

    SGD with Nesterov momentum, 90 epochs, batch of the run, cosine. The best of the sweep is the most
    accurate on a hold-out of train; the one with its settings that learned from all of train is tested.
    """
    config = linear_sweep.config_of(subject.config, str(subject.workdir), subject.encoder.step)
    config.train.batch_size = subject.batch_size(subject.splits.train.size)
    rundir = subject.run_folder("linear", config)
    train.run(config, rundir, splits=subject.splits)
    _, params, _ = checkpoint.read_parameters(rundir / "checkpoints")
    grid = linear_sweep.heads_of(config, subject.splits.train)
    weights = linear_sweep.effective(params["heads"], grid, config)
    stacked = {"kernel": np.moveaxis(weights["kernel"], 1, 0), "bias": weights["bias"]}
    test = subject.labelled("simclr", "test")

    def tested(number: int) -> tuple[dict[str, Any], np.ndarray]:
        one = jax.tree.map(lambda x: x[number], stacked)
        scores = np.asarray(linear.probabilities(one, test.features))
        return classified.evaluate(scores, test.labels), np.argmax(scores, axis=1)

    epochs = config.eval.linear.epochs
    standard, predicted = tested(0)
    note = f"{epochs:g} epochs, rate {grid.rate[0]:g} · batch / 256"
    rows = [Row("sgd", "linear, SGD", {"simclr": cell(standard)}, note)]
    metrics, figures, more = {"linear, SGD, standard": standard}, [], {}
    predictions = {"standard": predicted}
    if count := len(grid.rate) // 2:
        sweep = jax.tree.map(lambda x: x[1 : 1 + count], stacked)
        source = subject.splits.train
        groups = source.groups if isinstance(source, Source) else None
        chosen_on, _ = choice.validation_rows(source.size, groups=groups)
        held = labelled(_train_rows(subject, np.sort(chosen_on)))
        accuracy, loss = (
            np.asarray(x) for x in linear.evaluate(sweep, held.features["encoder"], held.labels)
        )
        best = min(range(count), key=lambda i: (-accuracy[i], loss[i]))
        chosen, predictions["chosen"] = tested(1 + count + best)
        rate, decay = grid.rate[1 + best], grid.decay[1 + best]
        note, title = f"rate {rate:g}, decay {decay:g}", f"linear, SGD, best of {count} on hold-out"
        rows.append(Row("sgd_chosen", title, {"simclr": cell(chosen)}, note))
        shape = (len(config.eval.linear.rates), len(config.eval.linear.decays))
        more["sweep"] = {
            "rates": list(config.eval.linear.rates),
            "decays": list(config.eval.linear.decays),
            "accuracy": accuracy.reshape(shape).tolist(),
        }
        metrics["linear, SGD, chosen"] = chosen
        subject.draw("sweep.png", charts.sweep, **more["sweep"])
        figures.append(["sweep.png", "Linear classifiers trained at once: top-1 in % on the hold-out"])
    subject.predicted("linear", test.labels, **predictions)
    return Result(rows=rows, metrics=metrics, figures=figures, more=more)


def _train_rows(subject: Subject, rows: np.ndarray) -> Features:
    """Features of the training images `rows`, from those of all where they are there."""
    whole = subject.features("simclr", "train")
    complete = len(whole.labels) == subject.splits.train.size
    return whole.rows(rows) if complete else subject.features("simclr", "train", rows)


def _columns(mine: tuple[str, ...], wanted: tuple[str, ...]) -> list[int] | None:
    """Where the classes `wanted` are among `mine`; numbers say nothing, names must be the same ones."""
    if set(mine) == set(wanted):
        return [mine.index(name) for name in wanted]
    numbered = all(name.isdigit() for name in mine) and len(mine) == len(wanted)
    return list(range(len(mine))) if numbered and all(name.isdigit() for name in wanted) else None


@protocol("classifier", "labels")
def own_classifier(subject: Subject) -> Result:
    """The classifier that the run itself trained: a fine-tuned or distilled one, or the online probe."""
    encoder = subject.encoder
    if "logits" not in subject.features("simclr", "test").features:
        return Result(skipped="the run has no classifier of its own")
    columns = _columns(encoder.classes, subject.classes)
    if columns is None:
        others = ", ".join(encoder.classes[:3])
        return Result(skipped=f"the run's classifier knows other classes ({others} ...)")
    found = subject.labelled("simclr", "test", "logits")
    scores = np.asarray(jax.nn.softmax(found.features[:, columns], axis=1))
    measured = classified.evaluate(scores, found.labels)
    title = "online probe" if subject.config.task == "pretrain" else "its own classifier"
    subject.predicted("classifier", found.labels, predicted=np.argmax(scores, axis=1))
    row = Row("classifier", title, {"simclr": cell(measured)})
    figures = draw_quality(subject, "classifier", title, measured)
    return Result(rows=[row], metrics={title: measured}, figures=figures)
