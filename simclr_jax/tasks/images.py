"""What every task does with a config's images: read them, augment them, normalise them, show them."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.sharding import Mesh
from ml_collections import ConfigDict

from simclr_jax import augment, figures, geometry
from simclr_jax.config import total_steps
from simclr_jax.data import memory, order, pipeline
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

    def __init__(self, config: ConfigDict, splits: Splits, mesh: Mesh, views: int):
        self.config, self.splits, self.mesh, self.views = config, splits, mesh, views
        data = config.data
        self.dtype = jnp.dtype(config.model.dtype)
        self.shape = (data.image_size, data.image_size, data.channels)
        self._in_memory = config.augment.device == "all"
        alone = config.train.steps_per_call or (1 if jax.default_backend() == "cpu" else 16)
        self.steps_per_call = alone if self._in_memory else 1
        self._reading = {"size": data.image_size, "channels": data.channels, "threads": data.threads}
        self._share = {"process": jax.process_index(), "processes": jax.process_count()}

    def fixed(self) -> dict[str, Any]:
        """What lives on the accelerators: the training images of a run from memory."""
        return {"images": memory.put(self.splits.train, self.mesh)} if self._in_memory else {}

    def fetch(self, fixed: dict[str, Any], batch: pipeline.Batch) -> pipeline.Batch:
        """The batch, from its numbers where the images live on the accelerators."""
        return memory.gather(fixed["images"], batch, self.mesh) if self._in_memory else batch

    def augmented(self, batch: pipeline.Batch) -> jax.Array:
        """The views `[n, v, h, w, c]` of a batch; made on the accelerator as far as the config wants it."""
        fields = self.config.augment.to_dict()
        device = fields.pop("device")
        if device == "none":
            return batch["views"]
        if device == "photometric":
            fields = {field: fields[field] for field in PHOTOMETRIC}
            return augment.photometric(batch["views"], batch["position"], self.config.seed, **fields)
        fields |= {"size": self.config.data.image_size, "views": self.views}
        return augment.random_views(batch["image"], batch["position"], self.config.seed, **fields)

    def seen(self, images: jax.Array) -> jax.Array:
        """The evaluation view `[n, h, w, c]` in [0, 1]; images from memory come whole, as uint8."""
        if images.dtype != jnp.uint8:
            return images
        evaluation, images = self.config.eval, images.astype(jnp.float32) / 255
        return geometry.center_view(images, self.config.data.image_size, evaluation.crop, evaluation.resize)

    def prepare(self, images: jax.Array) -> jax.Array:
        """Images `[n, h, w, c]`, views or of `every`, as the encoder takes them."""
        data = self.config.data
        return simclr.normalize_images(self.seen(images), data.mean, data.std, self.dtype)

    def sample(self) -> jax.Array:
        """Two black images, to initialise a model with."""
        return jnp.zeros((2, *self.shape), self.dtype)

    def batches(self, step: int) -> Iterator[pipeline.Batch]:
        """The training batches from `step` on, this process's rows."""
        train, config = self.splits.train, self.config
        steps = {"start": step, "stop": total_steps(config, train.size)}
        which = {**steps, "batch": config.train.batch_size, "seed": config.seed, **self._share}
        if self._in_memory:
            return memory.batches(train, **which)
        fields = config.augment.to_dict()
        dtype = "uint8" if fields.pop("device") == "photometric" else "float32"
        made = {"options": Options(**fields), "views": self.views, "dtype": dtype, **self._reading}
        return pipeline.train_batches(train, **which, **made)

    def every(self, split: Source, index: np.ndarray | None = None) -> Iterator[pipeline.Batch]:
        """Every image of a split once, or those in `index`, without augmentation; this process's rows.

        {image [n, h, w, c], label, mask}; the image as `seen` takes it.
        """
        return self._in_order(split, self.config.eval.batch_size, index, **self._share)

    def _in_order(self, split, batch, index, **share) -> Iterator[pipeline.Batch]:
        if self._in_memory:
            return memory.eval_batches(split, batch=batch, index=index, **share)
        evaluation = self.config.eval
        view = {"crop": evaluation.crop, "resize": evaluation.resize, **self._reading}
        return pipeline.eval_batches(split, batch=batch, index=index, **view, **share)

    def preview(self, workdir: epath.Path, batch: pipeline.Batch) -> None:
        """figures/views.png: images of a batch beside their views; of a Stream the views alone."""
        path = workdir / "figures" / "views.png"
        if self.config.eval.figures and not path.exists():
            figures.attempt(print, path, self._draw_views, batch)

    def _draw_views(self, path: epath.Path, batch: pipeline.Batch) -> None:
        train = self.splits.train
        some = {name: rows[:SHOWN] for name, rows in batch.items()}
        originals = None
        if isinstance(train, Source):
            batch_size = self.config.train.batch_size
            step = int(batch["position"][0]) // batch_size
            index, _ = order.step_examples(step, examples=train.size, batch=batch_size, seed=self.config.seed)
            originals = next(self._in_order(train, SHOWN, index[:SHOWN]))["image"]
            if self._in_memory:
                some["image"] = originals[: len(some["position"])]
            originals = np.asarray(self.seen(jnp.asarray(originals)))[: len(some["position"])]
        views = np.asarray(jax.jit(self.augmented)(some))
        figures.views(path, originals, views)
