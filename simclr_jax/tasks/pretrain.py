"""SimCLR pretraining: views, encoder, projection, contrastive loss, online probe, scores."""

import contextlib
import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.sharding import Mesh
from ml_collections import ConfigDict

from simclr_jax import draws, encoder, figures, registry, sharding
from simclr_jax.config import every_steps
from simclr_jax.data.splits import Splits
from simclr_jax.errors import SimclrError
from simclr_jax.feeds import Feed, create_feed
from simclr_jax.losses.classification import classification
from simclr_jax.losses.objective import AVERAGE, BATCH, OUTPUTS, Objective, Sizes, of_outputs
from simclr_jax.measures import embedding, knn
from simclr_jax.measures.features import Features, extract
from simclr_jax.metrics import Progress
from simclr_jax.models import simclr
from simclr_jax.protocols import scores as protocol
from simclr_jax.results import WHO
from simclr_jax.tasks.extractor import MAIN, RAW_EXAMPLES, Extractor, groups_of, labelled, sample
from simclr_jax.tasks.task import Context, Task

Ends = dict[str, jax.ShapeDtypeStruct]  # the endpoints of an encoder
GALLERY = 1000  # images in the retrieval and t-SNE figures, at most
NEIGHBOURS = 8  # beside each query in the retrieval figure


def create(config: ConfigDict, splits: Splits, mesh: Mesh) -> Task:
    """The task of `config`, on the images of `splits`.

    Raises:
      SimclrError: the loss needs labels, and there are none.
    """
    if "supcon" in registry.terms(config.loss.name) and not splits.train.classes:
        raise SimclrError(f"config.loss.name='supcon': needs labels, and {splits.train.name} has none")
    classes, start = splits.train.classes, config.start
    feed = create_feed(config, splits, mesh, views=2)
    model = simclr.create(config.model, classes=len(classes))
    ends = simclr.ends_of(model.encoder, feed.spec())
    objectives = _objectives(config, mesh, model, feed, ends)

    def init(rng: jax.Array) -> dict[str, Any]:
        return simclr.init(model, rng, simclr.sample(feed.spec()))

    return Task(
        init=init,
        input=feed.batches,
        forward=_forward(model, feed, objectives, ends),
        objectives=objectives,
        trainable=lambda path: simclr.trainable(model.encoder, path),
        evals=_Evaluations(config, splits, mesh, model, init, feed).evals(),
        classes=classes,
        start=functools.partial(
            encoder.transplant, start=start, encoder=model.encoder, spec=feed.spec(), new_head=True
        ),
        fixed=feed.fixed,
        fetch=feed.fetch,
        steps_per_call=feed.steps_per_call,
        preview=feed.preview,
        average=max(one.average for one in objectives.values()),
    )


def _forward(model: simclr.SimCLR, feed: Feed, objectives: dict[str, Objective], ends: Ends) -> Callable:
    """`Task.forward`: the outputs of the model, and whatever else the objectives need."""
    needs = {name for one in objectives.values() for name in one.needs}
    wanted = tuple(sorted(needs & ends.keys() - set(OUTPUTS)))
    changes = {name: one.change for name, one in objectives.items() if one.change}

    def apply(params: Any, model_state: Any, x: jax.Array, rng: jax.Array, **options: Any) -> Any:
        variables, rngs = {"params": params, **model_state}, {"dropblock": rng}
        return model.apply(variables, x, train=True, mutable=[*model_state], rngs=rngs, **options)

    def forward(params, model_state, batch, rng, step):
        views = feed.views(params, batch)
        n, v = views.shape[:2]
        seen, told, by = views.reshape(n * v, *views.shape[2:]), {}, {}
        for name, change in changes.items():
            keys = draws.view_keys(feed.config.seed, batch["position"], v)
            seen, found = change(draws.named_keys(keys.reshape(-1), name), seen)
            for output in found:
                if by.setdefault(output, name) != name:
                    raise SimclrError(
                        f"config.loss.name: {by[output]} and {name} both change the views and give "
                        f"{output!r}; leave one out"
                    )
            told |= found
        x, small = feed.prepare(seen), feed.small(params, batch)
        more = {"kept": told.get("kept"), "small": None if small is None else feed.prepare(small)}
        outputs, state = apply(params, model_state, x, rng, wanted=wanted, **more)
        outputs |= told
        if AVERAGE in params:
            by_average = apply(params[AVERAGE], model_state, x, rng, **more)[0]
            outputs[AVERAGE] = jax.lax.stop_gradient(by_average["projection"])
        outputs = jax.tree.map(lambda x: x.reshape(n, -1, *x.shape[1:]), outputs)
        outputs |= {"view": views} if "view" in needs else {}
        outputs |= {"clean": feed.clean(params, batch)} if "clean" in needs else {}
        return outputs, state

    return forward


def _objectives(
    config: ConfigDict, mesh: Mesh, model: simclr.SimCLR, feed: Feed, ends: Ends
) -> dict[str, Objective]:
    """The terms that `config.loss.name` names, and the classifier that learns online."""
    dim = config.model.projection_dim
    if config.model.projection == "none":  # z is h
        dim = ends[model.encoder.features].shape[-1]
    facts = mesh, model.encoder, ends, feed.spec(), config.model.to_dict()
    views = 2 + config.augment.small_views
    sizes = Sizes(config.train.batch_size, views, dim, *facts)
    names = registry.terms(config.loss.name)
    creators = [registry.load(registry.OBJECTIVES, name, "loss.name") for name in names]
    found = {name: create(name, config.loss, sizes) for name, create in zip(names, creators, strict=True)}
    if len({one.average for one in found.values() if one.average}) > 1:
        raise SimclrError(f"config.loss.name={config.loss.name!r}: terms want moving averages that differ")
    watched = next((name for name, one in found.items() if one.scope == BATCH), None)
    found = {
        name: _told(_replicated(one, mesh), name if len(names) > 1 else "", name == watched)
        for name, one in found.items()
    }
    return found | ({} if model.probe is None else {"probe": of_outputs(_probe_loss, "logits")})


def _replicated(objective: Objective, mesh: Mesh) -> Objective:
    """The objective; every device keeps its whole state, which else would be split as its rows are."""
    update = objective.update
    if update is None:
        return objective

    def whole(params, extra, outputs):
        return jax.lax.with_sharding_constraint(update(params, extra, outputs), sharding.replicated(mesh))

    return objective._replace(update=whole)


def _told(objective: Objective, name: str, watched: bool) -> Objective:
    """The objective, whose metrics also have its loss.

    Args:
      name: of the loss as one of several; "": there are no others.
      watched: the metrics also tell of a collapse.
    """

    def loss(params, extra, outputs, batch, step):
        value, metrics = objective.loss(params, extra, outputs, batch, step)
        if name and not watched:  # several terms may have an accuracy
            metrics = {key if key.startswith(name) else f"{name}_{key}": x for key, x in metrics.items()}
        metrics = {"loss": value, **metrics} | ({f"{name}_loss": value} if name else {})
        if watched:
            metrics["feature_std"] = _deviation(outputs["features"])
        return value, metrics

    needs = objective.needs
    return objective._replace(loss=loss, needs=(*needs, "features") if needs and watched else needs)


def _probe_loss(outputs, batch, step):
    """Of the linear classifier that learns online."""
    value, accuracy = classification(outputs["logits"], batch["label"])
    return value, {"probe_loss": value, "probe_accuracy": accuracy}


def _deviation(h: jax.Array) -> jax.Array:
    """`measures.health.feature_std` of h `[n, 2, d]`: 0 where all images look alike, of a collapse."""
    h = jax.lax.stop_gradient(h).astype(jnp.promote_types(h.dtype, jnp.float32))
    unit = h * jax.lax.rsqrt(jnp.maximum(jnp.sum(h**2, axis=-1, keepdims=True), 1e-24))
    # Both moments by one collective.
    first, second = jnp.mean(jnp.stack([unit, unit**2]), axis=(1, 2))
    return jnp.mean(jnp.sqrt(jnp.maximum(second - first**2, 0))) * jnp.sqrt(h.shape[-1])


class _Scoring:
    """Shows which contender is scored by what."""

    def __init__(self, contenders: Iterable[str]):
        parts = itertools.product(contenders, ("features", *protocol.TITLES.values()))
        self._places = {each: i for i, each in enumerate(parts)}
        first = jax.process_index() == 0
        self._progress = Progress(0, len(self._places), enabled=first, unit="score")

    def announce(self, who: str, part: str) -> None:
        """All before this part of this contender is done."""
        self._progress.tell(f"{WHO[who]}: {part}")
        self._progress.step(self._places[who, part])

    def close(self) -> None:
        """Ends the bar."""
        self._progress.close()

    def finish(self) -> None:
        """All is done."""
        self._progress.tell("")
        self._progress.step(len(self._places))


class _Evaluations:
    """kNN while training; at the end the scores beside the baselines, and the figures."""

    def __init__(self, config, splits, mesh, model, init, feed):
        self.config, self.splits, self.mesh = config, splits, mesh
        self.init, self.feed = init, feed
        self.classes = len(splits.train.classes)
        self.labelled = bool(splits.test and splits.test.classes and self.classes)  # can be scored
        self.extractor = Extractor(feed, model)

    def evals(self):
        config, evals = self.config, {}
        period = every_steps(config.eval.every, self.splits.train.size, config.train.batch_size)
        if self.labelled and period:
            evals["knn"] = (period, self.knn)
        if self.labelled and config.eval.final:
            evals["scores"] = (0, self.scores)
        if config.eval.figures:
            evals["figures"] = (0, self.figures)
        return evals

    def features(self, variables, split, limit: int = 0) -> tuple[Features, np.ndarray | None]:
        """Of the encoder with `variables`, raw pixels for None; and groups. Labelled images alone."""
        index = sample(split, limit)
        if variables is None:
            found = self.extractor.raw_pixels(split, index)
        else:
            found = self.extractor(variables, split, index)
            found = found._replace(features=found.features[MAIN])
        return labelled(found), groups_of(split, index, found.labels)

    def knn(self, state, context: Context) -> dict[str, float]:
        options = self.config.eval.knn
        variables = {"params": state.params, **state.model_state}
        bank, _ = self.features(variables, self.splits.train, options.bank)
        queries, _ = self.features(variables, self.splits.test)
        if not len(bank.labels) or not len(queries.labels):
            return {}
        setting = (options.k, options.temperature)
        found = knn.evaluate(*bank, *queries, mesh=self.mesh, classes=self.classes, settings=[setting])
        return {"knn_top1": found[setting][0], "knn_top5": found[setting][1]}

    def scores(self, state, context: Context) -> dict[str, Any]:
        variables = {"simclr": {"params": state.params, **state.model_state}}
        if self.config.eval.baselines:
            untrained = jax.jit(self.init)(jax.random.key(self.config.seed))
            variables |= {"untrained": untrained, "raw_pixels": None}
        with contextlib.closing(_Scoring(variables)) as shown:
            contenders, options = self.contenders(variables, shown), self.config.eval
            found = protocol.scores(contenders, self.classes, self.mesh, options, shown.announce)
            shown.finish()
        return protocol.summarized(found)

    def contenders(self, variables, shown: "_Scoring") -> Iterator[protocol.Contender]:
        """One by one, with at most as many training examples as any score takes."""
        limit = max(self.config.eval.knn.bank, self.config.eval.linear.examples or 2**62)
        for who, values in variables.items():
            shown.announce(who, "features")
            most = min(limit, RAW_EXAMPLES) if who == "raw_pixels" else limit
            train, groups = self.features(values, self.splits.train, most)
            yield protocol.Contender(who, train, self.features(values, self.splits.test)[0], groups)

    def figures(self, state, context: Context) -> dict[str, float]:
        # Several processes compute together: one of them must not go on alone.
        alone = jax.process_count() == 1
        with figures.guard(print, "figures") if alone else contextlib.nullcontext():
            self.draw(state, context.workdir / "figures")
        return {}

    def draw(self, state, folder: epath.Path) -> None:
        """What the encoder finds similar, as rows of images and as a map."""
        split = self.splits.test or self.splits.train
        index = sample(split, GALLERY)
        found = self.extractor({"params": state.params, **state.model_state}, split, index)
        features = found.features[MAIN]
        seen = extract(self.feed.see, self.feed.every(split, index), self.mesh).features
        _, near = knn.nearest(features, features, NEIGHBOURS + 1, self.mesh)
        if jax.process_index() == 0:
            if self.feed.pictures:
                neighbours = figures.neighbours
                figures.attempt(print, folder / "neighbours.png", neighbours, seen, near, found.labels)
            figures.attempt(print, folder / "tsne.png", _map, features, found.labels, split.classes)


def _map(path: epath.Path, features: np.ndarray, labels: np.ndarray, classes: Sequence[str]) -> bool:
    """Draws the t-SNE map; False with too few images for one."""
    points = embedding.tsne(features)
    if points is None:
        return False
    figures.embedding(path, points, labels, classes)
    return True
