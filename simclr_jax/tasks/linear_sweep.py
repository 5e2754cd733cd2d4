"""Linear evaluation, many classifiers at once: the standard one, and a sweep of rates and decays.

All read the same augmented batches of a frozen encoder, so that what costs the most is paid once. The
standard protocol is the paper's (SimCLR, arXiv 2002.05709, B.6): SGD with Nesterov momentum, rate
0.1 · batch / 256, no decay, cosine, crop and flip.
"""

import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from simclr_jax import encoder, sharding
from simclr_jax.data import order
from simclr_jax.data.sources import Source, Stream
from simclr_jax.data.splits import Splits
from simclr_jax.errors import SimclrError
from simclr_jax.feeds import create_feed
from simclr_jax.losses.objective import of_outputs
from simclr_jax.measures.choice import validation_rows
from simclr_jax.models import simclr
from simclr_jax.tasks.supervised import plain_recipe
from simclr_jax.tasks.task import Task


class Heads(NamedTuple):
    """The classifiers: learning rate before scaling, decay, and whether it learns from the hold-out too."""

    rate: np.ndarray
    decay: np.ndarray
    everything: np.ndarray


def heads_of(config: ConfigDict, train: Source | Stream) -> Heads:
    """The standard classifier; then every rate × decay without the hold-out; then all those with it.

    The hold-out chooses among the second; test sees the same one of the third. The standard classifier is
    alone where there are no rates, or where images are read in sequence (TFRecord) and none can be held
    out.
    """
    linear = config.eval.linear
    rates, decays = (x.ravel() for x in np.meshgrid(linear.rates, linear.decays, indexing="ij"))
    twice = 2 if isinstance(train, Source) else 0
    return Heads(
        np.concatenate([[linear.learning_rate], *[rates] * twice]),
        np.concatenate([[0.0], *[decays] * twice]),
        np.concatenate([[True], *[np.full(len(rates), number == 1) for number in range(twice)]]),
    )


def create(config: ConfigDict, splits: Splits, mesh: Mesh) -> Task:
    """The task of `config`, on the encoder of `config.start.workdir`.

    Raises:
      SimclrError: there are no labels, or no encoder.
    """
    train, start = splits.train, config.start
    if not train.classes:
        raise SimclrError(f"config.task='linear_sweep': {train.name} has no labels")
    if not start.workdir:
        raise SimclrError("config.start.workdir is empty: give the workdir whose encoder is evaluated")
    feed, source = create_feed(config, splits, mesh, views=1), encoder.load(start.workdir, start.step)
    heads, count = heads_of(config, train), len(train.classes)
    architecture = {**source.config.model.to_dict(), "dtype": config.model.dtype}
    read = functools.partial(
        _read, simclr.create(architecture, classes=len(source.classes)), config.eval.endpoint
    )

    def init(rng: jax.Array) -> dict[str, Any]:
        h = jax.eval_shape(read, source.variables, simclr.sample(feed.spec()))
        m = len(heads.rate)
        zeros = {
            "kernel": jnp.zeros((h.shape[-1], m, count), h.dtype),
            "bias": jnp.zeros((m, count), h.dtype),
        }
        return {"params": {"heads": zeros}}

    def forward(params, model_state, batch, rng, step):
        h = read(params["encoder"], feed.prepare(feed.views(params, batch)[:, 0]))
        return apply(params["heads"], h, heads, config), model_state

    def batches(step: int) -> Iterator[Any]:
        held = np.zeros(train.size, bool)
        if isinstance(train, Source):
            held[validation_rows(train.size, groups=train.groups)[0]] = True
        share = {"process": jax.process_index(), "processes": jax.process_count()}
        for at, batch in enumerate(feed.batches(step), step):
            index, _ = order.step_examples(
                at, examples=train.size, batch=config.train.batch_size, seed=config.seed, **share
            )
            yield {**batch, "held": held[index]}

    def fixed():
        return {
            **feed.fixed(),
            "encoder": sharding.put_same(source.variables, sharding.replicated(mesh)),
        }

    return Task(
        init=init,
        input=batches,
        forward=forward,
        objectives={"labels": of_outputs(functools.partial(_loss, heads))},
        trainable=lambda path: True,
        evals={},
        classes=train.classes,
        fixed=fixed,
        fetch=lambda fixed, batch: {**feed.fetch(fixed, batch), "held": batch["held"]},
        steps_per_call=feed.steps_per_call,
    )


def _loss(heads: Heads, outputs: Any, batch: Any, step: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
    outputs, penalty = outputs["logits"], outputs["penalty"][0]
    known = (batch["label"] >= 0)[:, None] & (jnp.asarray(heads.everything)[None] | ~batch["held"][:, None])
    label = jnp.broadcast_to(jnp.maximum(batch["label"], 0)[:, None], outputs.shape[:2])
    losses = optax.softmax_cross_entropy_with_integer_labels(outputs, label)
    per_head = jnp.sum(jnp.where(known, losses, 0), 0) / jnp.maximum(jnp.sum(known, 0), 1)
    right = known & (jnp.argmax(outputs, -1) == label)
    accuracy = jnp.sum(right, 0) / jnp.maximum(jnp.sum(known, 0), 1)
    # No parameter is shared: the gradient of the sum is each one's own.
    return jnp.sum(per_head) + penalty, {"loss": per_head[0], "accuracy": accuracy[0]}


def _read(model: simclr.SimCLR, endpoint: str, variables: Any, x: jax.Array) -> jax.Array:
    h = simclr.read_endpoint(model.encoder, simclr.endpoints(model, variables, x), endpoint)
    return h.astype(jnp.promote_types(h.dtype, jnp.float32))


def apply(stored: dict[str, Any], h: jax.Array, heads: Heads, config: ConfigDict) -> dict[str, jax.Array]:
    """{logits `[n, m, classes]`, penalty `[n]`, the same in all rows} of features `[n, d]`."""
    weights = effective(stored, heads, config)
    decay = jnp.asarray(heads.decay, h.dtype)[None, :, None]
    penalty = jnp.sum(decay * weights["kernel"] ** 2) / 2
    return {"logits": logits(weights, h), "penalty": jnp.broadcast_to(penalty, h.shape[:1])}


def effective(stored: dict[str, Any], heads: Heads, config: ConfigDict) -> dict[str, Any]:
    """The classifiers {kernel [d, m, classes], bias [m, classes]} from the parameters that are trained.

    One optimiser with one rate trains all: with w = c·v a step of rate r on v is one of rate c²·r on w.
    """
    c = np.sqrt(heads.rate / config.eval.linear.learning_rate)
    kernel, bias = stored["kernel"], stored["bias"]
    return {
        "kernel": kernel * c.astype(kernel.dtype)[None, :, None],
        "bias": bias * c.astype(bias.dtype)[:, None],
    }


def logits(weights: dict[str, Any], h: jax.Array) -> jax.Array:
    """Of features `[n, d]`, `[n, m, classes]`: one matrix product."""
    d, m, classes = weights["kernel"].shape
    product = jnp.matmul(h, weights["kernel"].reshape(d, m * classes))
    return product.reshape(-1, m, classes) + weights["bias"][None]


def config_of(config: ConfigDict, workdir: str, step: int) -> ConfigDict:
    """What trains the heads on the encoder in `workdir`, on the images of `config`."""
    linear = config.eval.linear
    config = plain_recipe(config, linear.learning_rate, linear.epochs)
    config.task, config.start.workdir, config.start.step = "linear_sweep", workdir, step
    return config
