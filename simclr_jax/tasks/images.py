"""What every task does with a config's images: read them, augment them, normalise them, show them."""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from simclr_jax import augment, figures
from simclr_jax import config as cfg
from simclr_jax.data import order, pipeline
from simclr_jax.data.host_augment import Options
from simclr_jax.data.sources import Source
from simclr_jax.data.splits import Splits
from simclr_jax.models import simclr

SHOWN = 8  # images in the figure of views
PHOTOMETRIC = (  # fields of config.augment
    "jitter", "jitter_strength", "brightness", "grayscale", "blur", "blur_kernel", "blur_sigma",
)  # fmt: skip


class Images:
    """The images of `splits` as `config` wants them, `views` augmented views of each while training."""

    def __init__(self, config: ConfigDict, splits: Splits, views: int):
        self.config, self.splits, self.views = config, splits, views
        data = config.data
        self.dtype = jnp.dtype(config.model.dtype)
        self.shape = (data.image_size, data.image_size, data.channels)
        self._reading = {"size": data.image_size, "channels": data.channels, "threads": data.threads}
        self._share = {"process": jax.process_index(), "processes": jax.process_count()}

    def augmented(self, batch: pipeline.Batch) -> jax.Array:
        """The views `[n, v, h, w, c]` of a batch; on the accelerator what the config wants done there."""
        if self.config.augment.device == "none":
            return batch["views"]
        fields = {field: self.config.augment[field] for field in PHOTOMETRIC}
        return augment.photometric(batch["views"], batch["position"], self.config.seed, **fields)

    def prepare(self, images: jax.Array) -> jax.Array:
        """Images `[n, h, w, c]` in [0, 1] as the encoder takes them."""
        return simclr.normalize_images(images, self.config.data.mean, self.config.data.std, self.dtype)

    def sample(self) -> jax.Array:
        """Two black images, to initialise a model with."""
        return jnp.zeros((2, *self.shape), self.dtype)

    def batches(self, step: int) -> Iterator[pipeline.Batch]:
        """The training batches from `step` on, this process's rows."""
        return pipeline.train_batches(
            self.splits.train,
            start=step,
            stop=cfg.total_steps(self.config, self.splits.train.size),
            batch=self.config.train.batch_size,
            seed=self.config.seed,
            options=self._host_options(),
            views=self.views,
            **self._reading,
            **self._share,
        )

    def _host_options(self) -> Options:
        fields = self.config.augment.to_dict()
        if fields.pop("device") == "photometric":
            fields |= {"jitter": 0.0, "grayscale": 0.0, "blur": 0.0}
        return Options(**fields)

    def every(self, split: Source, index: np.ndarray | None = None) -> Iterator[pipeline.Batch]:
        """Every image of a split once, or those in `index`, without augmentation; this process's rows."""
        return self._in_order(split, self.config.eval.batch_size, index, **self._share)

    def _in_order(self, split, batch, index, **share) -> Iterator[pipeline.Batch]:
        evaluation = self.config.eval
        return pipeline.eval_batches(
            split,
            batch=batch,
            crop=evaluation.crop,
            resize=evaluation.resize,
            index=index,
            **self._reading,
            **share,
        )

    def unreadable(self) -> list[str]:
        """The files replaced so far."""
        train, test = self.splits
        return sorted(train.unreadable | (test or train).unreadable)

    def preview(self, workdir: epath.Path, batch: pipeline.Batch) -> None:
        """figures/views.png: images of a batch beside their views; of a Stream the views alone."""
        path, train = workdir / "figures" / "views.png", self.splits.train
        if not self.config.eval.figures or path.exists():
            return
        some = {name: batch[name][:SHOWN] for name in ("views", "position")}
        views, originals = np.asarray(jax.jit(self.augmented)(some)), None
        if isinstance(train, Source):
            batch_size = self.config.train.batch_size
            step = int(batch["position"][0]) // batch_size
            index, _ = order.step_examples(step, examples=train.size, batch=batch_size, seed=self.config.seed)
            originals = next(self._in_order(train, len(views), index[: len(views)]))["image"]
        figures.views(path, originals, views)
