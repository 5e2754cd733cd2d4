"""Learning from labels: linear evaluation, fine-tuning, and training from scratch.

Which it is, three fields say: `start.workdir` (whose encoder), `finetune.after_block` (how much of it
stands still) and `model.probe_layer` (where in the projection head the classifier sits).
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from simclr_jax import encoder
from simclr_jax.config import duration, every_steps
from simclr_jax.data.splits import Splits
from simclr_jax.errors import SimclrError
from simclr_jax.feeds import Feed, create_feed
from simclr_jax.losses.classification import classification
from simclr_jax.losses.objective import of_outputs
from simclr_jax.measures.features import extract
from simclr_jax.measures.knn import top_k_accuracy
from simclr_jax.models import simclr
from simclr_jax.results import Row, plain
from simclr_jax.tasks.task import Context, Task


def create(config: ConfigDict, splits: Splits, mesh: Mesh) -> Task:
    """The task of `config`, on the labelled images of `splits`.

    Raises:
      SimclrError: there are no labels.
    """
    if not splits.train.classes:
        raise SimclrError(
            f"config.task='supervised': {splits.train.name} has no labels; put a folder's images into one "
            "folder a class, or give an .npz file its labels"
        )

    def loss(outputs, batch, step):
        value, accuracy = classification(outputs["logits"][:, None], batch["label"])
        return value, {"loss": value, "accuracy": accuracy}

    return classifier(config, splits, mesh, splits.train.classes, loss)


def classifier(
    config: ConfigDict, splits: Splits, mesh: Mesh, classes: tuple[str, ...], loss: Callable
) -> Task:
    """A task that trains the logits of one view an image, by the `loss` of {logits [n, classes]}."""
    feed, start = create_feed(config, splits, mesh, views=1), config.start
    model = simclr.create(config.model, classes=len(classes), probe_zero=config.finetune.zero_init)
    frozen = config.finetune.after_block
    freezing = {"frozen": frozen, "frozen_train": not config.finetune.frozen_norm}

    def init(rng: jax.Array) -> dict[str, Any]:
        return simclr.init(model, rng, simclr.sample(feed.spec()), method="classify")

    def forward(params, model_state, batch, rng, step):
        logits, model_state = model.apply(
            {"params": params, **model_state},
            feed.prepare(feed.views(params, batch)[:, 0]),
            train=True,
            mutable=[*model_state],
            method="classify",
            rngs={"dropblock": rng},
            **freezing,
        )
        return {"logits": logits}, model_state

    return Task(
        init=init,
        input=feed.batches,
        forward=forward,
        objectives={"labels": of_outputs(loss)},
        trainable=lambda path: simclr.trainable(model.encoder, path, frozen),
        evals=_evals(config, splits, mesh, model, feed),
        classes=classes,
        start=functools.partial(encoder.transplant, start=start, encoder=model.encoder, spec=feed.spec()),
        fixed=feed.fixed,
        fetch=feed.fetch,
        steps_per_call=feed.steps_per_call,
        preview=feed.preview,
    )


def plain_recipe(config: ConfigDict, learning_rate: float, epochs: float) -> ConfigDict:
    """A copy of any run's config that learns from labels as in the paper (SimCLR, B.5 and B.6).

    SGD with Nesterov momentum, rate · batch / 256, no warm-up, no decay, cosine; of the run's augmentation
    the geometry alone. No evaluation, few checkpoints.
    """
    config = config.copy_and_resolve_references()
    augment, optimizer = config.augment, config.optimizer
    augment.jitter = augment.grayscale = augment.blur = 0.0
    optimizer.name, optimizer.nesterov, optimizer.momentum = "sgd", True, 0.9
    optimizer.learning_rate, optimizer.scaling, optimizer.rate_in_momentum = learning_rate, "linear", False
    optimizer.weight_decay, optimizer.warmup = 0.0, duration()
    config.model.probe, config.distill.teacher = True, ""
    config.train.update(duration(epochs=epochs))
    config.train.microbatch = 0
    config.checkpoint.every, config.checkpoint.keep = duration(epochs=10), 1
    config.eval.every, config.eval.final, config.eval.figures = duration(), False, False
    return config


def _evals(config: ConfigDict, splits: Splits, mesh: Mesh, model: simclr.SimCLR, feed: Feed) -> dict:
    """Accuracy on the test split while training, at the end with what counts every class alike.

    BatchNorm goes by its moving statistics.
    """
    test = splits.test
    if test is None or not test.classes:
        return {}

    @jax.jit
    def logits(state, x):
        return model.apply({"params": state[0], **state[1]}, feed.prepare(feed.see(x)), method="classify")

    def classify(state) -> tuple[np.ndarray, np.ndarray]:
        """(logits [n, classes], labels [n]) of the labelled test images."""
        variables = (state.params, state.model_state)
        found = extract(lambda x: logits(variables, x), feed.every(test), mesh)
        known = found.labels >= 0
        return found.features[known], found.labels[known]

    def accuracy(scores: np.ndarray, labels: np.ndarray) -> dict[int, float]:
        ks = [k for k in (1, 5) if k < scores.shape[1] and len(labels)]  # top-5 of 5 classes is no news
        return {k: top_k_accuracy(scores, labels, k) for k in ks}

    def running(state, context: Context) -> dict[str, float]:
        return {f"test_top{k}": p for k, p in accuracy(*classify(state)).items()}

    def final(state, context: Context) -> dict[str, Any]:
        from simclr_jax.measures import classified  # here, as scikit-learn takes seconds to import

        scores, labels = classify(state)
        n = len(labels)
        if not n:
            return {}
        found = classified.cell(classified.evaluate(np.asarray(jax.nn.softmax(scores, axis=1)), labels))
        row = Row("test", f"test, {n:,} {splits.train.noun}", {"simclr": found})
        results: dict[str, Any] = {"test/images": n, "rows": plain([row])}
        for k, p in accuracy(scores, labels).items():
            results |= {f"test/top{k}": p, f"test/top{k}_standard_error": math.sqrt(p * (1 - p) / n)}
        for name, one in found.alike.items():
            results[f"test/{name}"] = one.value
            if one.error is not None:
                results[f"test/{name}_standard_error"] = one.error
        return results

    evals = {}
    if period := every_steps(config.eval.every, splits.train.size, config.train.batch_size):
        evals["accuracy"] = (period, running)
    if config.eval.final:
        evals["test"] = (0, final)
    return evals
