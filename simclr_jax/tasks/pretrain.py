"""SimCLR pretraining: views, encoder, projection, contrastive loss, online probe, scores."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from etils import epath
from jax.sharding import Mesh
from ml_collections import ConfigDict

from simclr_jax import config as cfg
from simclr_jax import figures, sharding
from simclr_jax.data import order, pipeline
from simclr_jax.data.host_augment import Options
from simclr_jax.data.sources import Source
from simclr_jax.data.splits import Splits
from simclr_jax.evals import knn
from simclr_jax.evals.features import Features, extract
from simclr_jax.evals.scores import score
from simclr_jax.losses import LOSSES
from simclr_jax.models import simclr
from simclr_jax.tasks.task import Context, Task

RAW_SIDE, RAW_EXAMPLES = 32, 50_000  # of the raw-pixel baseline, at most
GALLERY = 1000  # images in the retrieval and t-SNE figures, at most
NEIGHBOURS = 8  # beside each query in the retrieval figure
PAIRS = 8  # images in the figure of views


def create(config: ConfigDict, splits: Splits, mesh: Mesh) -> Task:
    """The task of `config`, on the images of `splits`."""
    train = splits.train
    data, steps = config.data, cfg.total_steps(config, train.size)
    model = simclr.create(**config.model, classes=len(train.classes))
    dtype = jnp.dtype(config.model.dtype)
    share = {"process": jax.process_index(), "processes": jax.process_count()}
    reading = {"size": data.image_size, "channels": data.channels, "threads": data.threads, **share}
    options = Options(**config.augment)
    # With the columns replicated the step has one all-gather and moves no images.
    gather = lambda z: jax.lax.with_sharding_constraint(z, sharding.replicated(mesh))  # noqa: E731

    def prepare(images: jax.Array) -> jax.Array:
        return simclr.normalize_images(images, data.mean, data.std, dtype)

    def init(rng: jax.Array) -> dict[str, Any]:
        shape = (2, data.image_size, data.image_size, data.channels)
        variables = model.init(rng, jnp.zeros(shape, dtype), train=True)
        # Flax starts statistics in float32 whatever param_dtype says.
        keep = jnp.promote_types(dtype, jnp.float32)
        return jax.tree.map(lambda x: x.astype(keep), variables)

    def batches(step: int):
        return pipeline.train_batches(
            train,
            start=step,
            stop=steps,
            batch=config.train.batch_size,
            seed=config.seed,
            options=options,
            **reading,
        )

    def forward(params, model_state, batch, rng, step):
        views = batch["views"]
        n, v = views.shape[:2]
        variables = {"params": params, **model_state}
        images = prepare(views.reshape(n * v, *views.shape[2:]))
        outputs, model_state = model.apply(variables, images, train=True, mutable=[*model_state])
        return jax.tree.map(lambda x: x.reshape(n, v, *x.shape[1:]), outputs), model_state

    def loss(outputs, batch, step):
        value, metrics = LOSSES[config.loss.name](
            outputs["projection"], config.loss.temperature, gather=gather
        )
        total = value * config.loss.scale
        metrics["loss"] = total
        if "logits" in outputs:
            probe, accuracy = probe_loss(outputs["logits"], batch["label"])
            metrics |= {"probe_loss": probe, "probe_accuracy": accuracy}
            total = total + probe
        return total, metrics

    return Task(
        init=init,
        input=batches,
        forward=forward,
        loss=loss,
        trainable=lambda path: True,
        evals=_Evaluations(config, splits, mesh, model, init, prepare, reading).evals(),
        preview=lambda workdir, batch: _draw_views(workdir, batch, config, train, reading),
        unreadable=lambda: sorted(train.unreadable | (splits.test or train).unreadable),
    )


def probe_loss(logits: jax.Array, label: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean cross entropy and accuracy of logits `[n, v, classes]`; label `[n]`, -1 counts nowhere."""
    label = jnp.broadcast_to(label[:, None], logits.shape[:2])
    known = label >= 0
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.maximum(label, 0))
    count = jnp.maximum(jnp.sum(known), 1)
    right = known & (jnp.argmax(logits, axis=-1) == label)
    return jnp.sum(jnp.where(known, losses, 0)) / count, jnp.sum(right) / count


class _Evaluations:
    """kNN while training; at the end the scores beside the baselines, and the figures."""

    def __init__(self, config, splits, mesh, model, init, prepare, reading):
        self.config, self.splits, self.mesh = config, splits, mesh
        self.init, self.reading = init, reading
        self.classes = len(splits.train.classes)
        self.labelled = bool(splits.test and splits.test.classes and self.classes)  # can be scored

        def encode(state, images):
            variables = {"params": state[0], **state[1]}
            return model.apply(variables, prepare(images), method="features")

        self.encode = jax.jit(encode)

    def evals(self):
        config, evals = self.config, {}
        period = cfg.every_steps(config.eval.every, self.splits.train.size, config.train.batch_size)
        if self.labelled and period:
            evals["knn"] = (period, self.knn)
        if self.labelled and config.eval.final:
            evals["scores"] = (0, self.scores)
        if config.eval.figures:
            evals["figures"] = (0, self.figures)
        return evals

    def batches(self, split, index=None):
        return pipeline.eval_batches(
            split,
            batch=self.config.eval.batch_size,
            crop=self.config.eval.crop,
            index=index,
            **self.reading,
        )

    def features(self, variables, split, limit: int = 0) -> Features:
        """Of the encoder with `variables` = (params, model_state); raw pixels for None."""
        index = _sample(split, limit)
        if variables is None:
            found = extract(_raw_pixels, self.batches(split, index), self.mesh)
        else:
            found = extract(
                lambda images: self.encode(variables, images), self.batches(split, index), self.mesh
            )
        known = found.labels >= 0
        return Features(found.features[known], found.labels[known])

    def knn(self, state, context: Context) -> dict[str, float]:
        options = self.config.eval.knn
        variables = (state.params, state.model_state)
        bank = self.features(variables, self.splits.train, options.bank)
        queries = self.features(variables, self.splits.test)
        if not len(bank.labels) or not len(queries.labels):
            return {}
        setting = (options.k, options.temperature)
        found = knn.evaluate(*bank, *queries, mesh=self.mesh, classes=self.classes, settings=[setting])
        return {"knn_top1": found[setting][0], "knn_top5": found[setting][1]}

    def scores(self, state, context: Context) -> dict[str, float]:
        variables = jax.jit(self.init)(jax.random.key(self.config.seed))
        params = variables.pop("params")
        contenders = {
            "simclr": ((state.params, state.model_state), 0),
            "untrained": ((params, variables), 0),
            "raw_pixels": (None, RAW_EXAMPLES),
        }
        limit = max(self.config.eval.knn.bank, self.config.eval.linear.examples or 2**62)
        results = {}
        for who, (encoder, at_most) in contenders.items():
            found = score(
                self.features(encoder, self.splits.train, min(limit, at_most or limit)),
                self.features(encoder, self.splits.test),
                classes=self.classes,
                mesh=self.mesh,
                draws=self.config.eval.linear.draws,
                iterations=self.config.eval.linear.iterations,
                knn_bank=self.config.eval.knn.bank,
                linear_examples=self.config.eval.linear.examples,
            )
            for metric, one in found.items():
                results[f"scores/{metric}/{who}"] = one.accuracy
                results[f"standard_errors/{metric}/{who}"] = one.standard_error
                for name, value in one.choice.items():
                    results[f"choices/{metric}/{who}/{name}"] = value
        return results

    def figures(self, state, context: Context) -> dict[str, float]:
        split = self.splits.test or self.splits.train
        kept = list(self.batches(split, _sample(split, GALLERY)))
        variables = (state.params, state.model_state)
        found = extract(lambda x: self.encode(variables, x), kept, self.mesh)
        pixels = extract(lambda x: x.reshape(len(x), -1), kept, self.mesh).features
        images = pixels.reshape(-1, *kept[0]["image"].shape[1:])
        _, near = knn.nearest(found.features, found.features, NEIGHBOURS + 1, self.mesh)
        if jax.process_index() == 0:
            folder = context.workdir / "figures"
            figures.neighbours(folder / "neighbours.png", images, near, found.labels)
            figures.embedding(folder / "tsne.png", found.features, found.labels, split.classes)
        return {}


def _sample(split: Source, limit: int) -> np.ndarray | None:
    """Rows of a fixed sample of at most `limit` examples, None for all; a Stream's are its first."""
    if not limit or limit >= split.size:
        return None
    return np.sort(np.random.default_rng(0).permutation(split.size)[:limit])


@jax.jit
def _raw_pixels(images: jax.Array) -> jax.Array:
    """Images `[n, h, w, c]` resized to at most 32 px a side, flattened."""
    n, h, w, c = images.shape
    side = min(h, RAW_SIDE)
    if side != h or side != w:
        images = jax.image.resize(images, (n, side, side, c), "linear", antialias=True)
    return images.reshape(n, -1)


def _draw_views(workdir: epath.Path, batch, config: ConfigDict, train: Source, reading) -> None:
    """figures/views.png: images of a batch beside their views; of a Stream the views alone."""
    path = workdir / "figures" / "views.png"
    if not config.eval.figures or path.exists():
        return
    views, originals = batch["views"][:PAIRS], None
    if isinstance(train, Source):
        step = int(batch["position"][0]) // config.train.batch_size
        index, _ = order.step_examples(
            step, examples=train.size, batch=config.train.batch_size, seed=config.seed
        )
        crop = config.eval.crop
        reading = {**reading, "process": 0, "processes": 1}
        shown = pipeline.eval_batches(
            train, batch=len(views), index=index[: len(views)], crop=crop, **reading
        )
        originals = next(shown)["image"]
    figures.views(path, originals, views)
