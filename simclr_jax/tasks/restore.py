"""Restoration: a corrupted image in, the clean image out.

`config.restore` says what spoils the images (`degrade`) and what is minimised; `start.workdir` and
`finetune.after_block` say whose encoder it is and how much of it stands still.
"""

import functools
import itertools
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from simclr_jax import degrade, draws, encoder, figures
from simclr_jax.config import every_steps
from simclr_jax.data.sources import Source, Stream
from simclr_jax.data.splits import Splits
from simclr_jax.feeds import Feed, create_feed
from simclr_jax.losses import reconstruction
from simclr_jax.losses.objective import ROWS, Objective
from simclr_jax.measures import pictures
from simclr_jax.measures.features import extract
from simclr_jax.models import restorer, simclr
from simclr_jax.tasks.task import Context, Task

KEY, TEST_KEY = "restore", "restore/test"  # of its random numbers: noise of tests is never that of training
SHOWN = 6  # test images in the figure


def create(config: ConfigDict, splits: Splits, mesh: Mesh) -> Task:
    """The task of `config`, on the images of `splits`; labels are not needed.

    Raises:
      SimclrError: the decoder does not fit the encoder.
    """
    options, start = config.restore.to_dict(), config.start
    feed = create_feed(config, splits, mesh, views=options["crops"])
    model = restorer.create(config.model, feed.spec(), config.data.mean, config.data.std)
    frozen = config.finetune.after_block
    freezing = {"frozen": frozen, "frozen_train": not config.finetune.frozen_norm}

    def init(rng: jax.Array) -> dict[str, Any]:
        return simclr.init(model, rng, simclr.sample(feed.spec()))

    def forward(params, model_state, batch, rng, step):
        views = feed.views(params, batch)
        n, v = views.shape[:2]
        clean = views.reshape(n * v, *views.shape[2:])
        spoilt, known = degrade.corrupt(clean, keys_of(config, batch["position"], v), options)
        restored, model_state = model.apply(
            {"params": params, **model_state},
            spoilt,
            train=True,
            mutable=[*model_state],
            rngs={"dropblock": rng},
            **freezing,
        )
        outputs = {"restored": restored, "spoilt": spoilt, "clean": clean, "known": known}
        return jax.tree.map(lambda x: x.reshape(n, v, *x.shape[1:]), outputs), model_state

    return Task(
        init=init,
        input=feed.batches,
        forward=forward,
        objectives={"restoration": _objective(options, config.model.decoder.output)},
        trainable=lambda path: simclr.trainable(model.encoder, path, frozen),
        evals=_evals(config, splits, model, feed),
        start=functools.partial(
            encoder.transplant, start=start, encoder=model.encoder, spec=feed.spec(), new_head=True
        ),
        fixed=feed.fixed,
        fetch=feed.fetch,
        steps_per_call=feed.steps_per_call,
        preview=feed.preview,
    )


def keys_of(config: ConfigDict, position: jax.Array, views: int, name: str = KEY) -> jax.Array:
    """A key `[n · views]` for the corruption of every view."""
    return draws.named_keys(draws.view_keys(config.seed, position, views).reshape(-1), name)


def _objective(options: dict[str, Any], output: str) -> Objective:
    """The mean loss of each image's crops; of holes alone, where there are some."""
    distance, inside = reconstruction.LOSSES[options["loss"]], options["corruption"] == "holes"

    def loss(params, extra, outputs, batch, step):
        n, v = outputs["clean"].shape[:2]
        each = {name: x.reshape(n * v, *x.shape[2:]) for name, x in outputs.items()}
        mask = 1 - each["known"] if inside else None
        value = distance(each["restored"], each["clean"], mask)
        seen = jax.lax.stop_gradient(each["restored"])
        seen = jnp.clip(jax.nn.sigmoid(seen) if output == "logits" else seen, 0, 1)
        seen = degrade.completed(seen, each["spoilt"], each["known"]) if inside else seen
        metrics = {
            "loss": value,
            "psnr": reconstruction.psnr(seen, each["clean"]),
            "input_psnr": reconstruction.psnr(
                degrade.scored(each["spoilt"], options["corruption"]), each["clean"]
            ),
        }
        means = {name: jnp.mean(x.reshape(n, v), axis=1) for name, x in metrics.items()}
        return means["loss"], means

    return Objective(loss, scope=ROWS, needs=("restored", "spoilt", "clean", "known"))


class _Evaluations:
    """PSNR and SSIM of the test split's central crops, beside those of the corrupted crops."""

    def __init__(self, config: ConfigDict, test: Source | Stream, model: restorer.Restorer, feed: Feed):
        self.config, self.test, self.model, self.feed = config, test, model, feed
        self._both = jax.jit(self.both)
        self._scores = jax.jit(self.scores)

    def both(self, variables: Any, examples: jax.Array, first: jax.Array) -> dict[str, jax.Array]:
        """{clean, spoilt, restored} `[n, h, w, c]` of the examples number `first`, `first` + 1 ..."""
        clean = self.feed.see(examples)
        position = first + jnp.arange(len(clean), dtype=jnp.uint32)
        keys = keys_of(self.config, position, 1, TEST_KEY)
        spoilt, known = degrade.corrupt(clean, keys, self.config.restore)
        restored = cast(jax.Array, self.model.apply(variables, spoilt, method="restored"))
        name = self.config.restore.corruption
        if name == "holes":
            restored = degrade.completed(restored, spoilt, known)
        return {"clean": clean, "spoilt": degrade.scored(spoilt, name), "restored": restored}

    def scores(self, variables: Any, examples: jax.Array, first: jax.Array) -> dict[str, jax.Array]:
        """{psnr, ssim, input_psnr, input_ssim} `[n]`."""
        seen, found = self.both(variables, examples, first), {}
        for prefix, name in (("", "restored"), ("input_", "spoilt")):
            found[f"{prefix}psnr"] = reconstruction.psnr(seen[name], seen["clean"])
            found[f"{prefix}ssim"] = reconstruction.ssim(seen[name], seen["clean"])
        return found

    def of_test(self, state) -> dict[str, np.ndarray]:
        """The scores of every test image `[n]`."""
        size = self.config.eval.batch_size
        begin = (np.uint32(i) for i in itertools.count(step=size))
        variables = {"params": state.params, **state.model_state}

        def encode(examples: jax.Array) -> dict[str, jax.Array]:
            return self._scores(variables, examples, next(begin))

        return extract(encode, self.feed.every(self.test), self.feed.mesh).features

    def running(self, state, context: Context) -> dict[str, float]:
        """Means, while training."""
        return {f"test_{name}": float(np.mean(x)) for name, x in self.of_test(state).items()}

    def final(self, state, context: Context) -> dict[str, Any]:
        """Means with intervals, and the gain over the input."""
        found = self.of_test(state)
        found["psnr_gain"] = found["psnr"] - found["input_psnr"]
        results: dict[str, Any] = {"test/images": len(found["psnr"])}
        for name, values in found.items():
            found_of = zip(("", "_low", "_high"), pictures.interval(values), strict=False)
            results |= {f"test/{name}{end}": value for end, value in found_of}
        return results

    def draw(self, state, context: Context) -> dict[str, float]:
        """figures/restored.png: some test crops, corrupted, restored and clean."""
        index = np.arange(min(SHOWN, self.test.size))
        variables = {"params": state.params, **state.model_state}
        seen = extract(
            lambda x: self._both(variables, x, np.uint32(0)),
            self.feed.every(self.test, index),
            self.feed.mesh,
        ).features
        if jax.process_index() == 0:
            rows = [list(seen[name]) for name in ("spoilt", "restored", "clean")]
            names = ("corrupted", "restored", "clean")
            path = context.workdir / "figures" / "restored.png"
            figures.attempt(print, path, figures.rows, rows, names, 1.8)
        return {}


def _evals(config: ConfigDict, splits: Splits, model: restorer.Restorer, feed: Feed) -> dict[str, Any]:
    if splits.test is None:
        return {}
    evaluations, evals = _Evaluations(config, splits.test, model, feed), {}
    if period := every_steps(config.eval.every, splits.train.size, config.train.batch_size):
        evals["psnr"] = (period, evaluations.running)
    if config.eval.final:
        evals["test"] = (0, evaluations.final)
    if config.eval.figures:
        evals["figures"] = (0, evaluations.draw)
    return evals
