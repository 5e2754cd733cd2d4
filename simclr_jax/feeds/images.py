"""The feed of images: augmented on the host, partly on the accelerator, or from the accelerator's memory."""

import os
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.sharding import Mesh
from ml_collections import ConfigDict
from PIL import Image

from simclr_jax import augment, figures, geometry, registry
from simclr_jax.config import flatten, total_steps
from simclr_jax.data import decode, formats, host_augment, memory, order, pipeline
from simclr_jax.data import splits as data_splits
from simclr_jax.data.host_augment import Crops, Options
from simclr_jax.data.labels import UNREADABLE
from simclr_jax.data.sources import Source, Stream, from_files
from simclr_jax.data.splits import Splits
from simclr_jax.data.tf import load as load_tensorflow
from simclr_jax.errors import SimclrError
from simclr_jax.feeds.feed import Batch, Kind
from simclr_jax.models import simclr

RAW_SIDE = 32  # of the raw-pixel baseline, at most
SHOWN = 8  # images in the figure of views
PHOTOMETRIC = (  # fields of config.augment
    "jitter", "jitter_strength", "brightness", "grayscale", "blur", "blur_kernel", "blur_sigma",
)  # fmt: skip


def in_memory(config: ConfigDict) -> bool:
    """Whether the images live on the accelerators."""
    return config.augment.device == "all"


def crops(config: ConfigDict, views: int) -> Crops:
    """The views of the size that the encoder is for."""
    fields = {field: config.augment[field] for field in Options._fields}
    return Crops("views", config.data.image_size, views, 0, Options(**fields))


def small_crops(config: ConfigDict) -> Crops | None:
    """The small views of pretraining, numbered after the two large ones; None: there are none."""
    side, count = registry.small_side(flatten(config)), config.augment.small_views
    if not side:
        return None
    options = crops(config, 2).options._replace(crop_area=config.augment.small_area, crop_min_covered=0.0)
    return Crops("small", side, count, 2, options)


class Images:
    """The images of `splits`; training gets `views` augmented views of each."""

    pictures = True

    def __init__(self, config: ConfigDict, splits: Splits, mesh: Mesh, views: int):
        self.config, self.splits, self.mesh, self.count = config, splits, mesh, views
        data = config.data
        self.dtype = jnp.dtype(config.model.dtype)
        self._in_memory = in_memory(config)
        alone = config.train.steps_per_call or (1 if jax.default_backend() == "cpu" else 16)
        self.steps_per_call = alone if self._in_memory else 1
        self._reading = {"channels": data.channels, "threads": data.threads}
        self._large, self._small = crops(config, views), small_crops(config) if views == 2 else None
        self._share = {"process": jax.process_index(), "processes": jax.process_count()}

    def spec(self) -> jax.ShapeDtypeStruct:
        """Of one image `[h, w, c]`."""
        data = self.config.data
        return jax.ShapeDtypeStruct((data.image_size, data.image_size, data.channels), self.dtype)

    def fixed(self) -> dict[str, Any]:
        """Arrays in device memory: the training images, if the run keeps them there."""
        return {"images": memory.put(cast(Source, self.splits.train), self.mesh)} if self._in_memory else {}

    def fetch(self, fixed: dict[str, Any], batch: Batch) -> Batch:
        """The batch; gathers the images by number if they are in device memory."""
        return memory.gather(fixed["images"], batch, self.mesh) if self._in_memory else batch

    def views(self, fixed: dict[str, Any], batch: Batch) -> jax.Array:
        """The views `[n, v, h, w, c]` of a batch; `config.augment.device` is the accelerator's part."""
        return self._views(batch, self._large)

    def small(self, fixed: dict[str, Any], batch: Batch) -> jax.Array | None:
        """The small views `[n, k, s, s, c]` of a batch, made as the others; None: the config has none."""
        return self._small and self._views(batch, self._small)

    def clean(self, fixed: dict[str, Any], batch: Batch) -> jax.Array:
        """The same crops before colour and blur.

        Raises:
          SimclrError: the host makes colour and blur, and sends their result alone.
        """
        if self.config.augment.device == "none":
            raise SimclrError(
                "config.augment.device='none': must be photometric or all where a loss compares with the "
                "views before colour and blur"
            )
        return self._views(batch, self._large, jitter=0.0, grayscale=0.0, blur=0.0)

    def _views(self, batch: Batch, of: Crops, **changes: float) -> jax.Array:
        """These views, by their options but for the `changes`."""
        device = self.config.augment.device
        fields: dict[str, Any] = {**of.options._asdict(), **changes}
        if device == "none":
            return batch[of.name]
        where = {"position": batch["position"], "seed": self.config.seed, "first": of.first}
        if device == "photometric":
            colour = {field: fields[field] for field in PHOTOMETRIC}
            return augment.photometric(batch[of.name], **where, **colour)
        return augment.random_views(batch["image"], **where, size=of.size, views=of.count, **fields)

    def see(self, examples: jax.Array) -> jax.Array:
        """The evaluation view `[n, h, w, c]` in [0, 1]; images from memory come whole, as uint8."""
        if not self._in_memory:  # the host has cropped them
            return examples
        evaluation, images = self.config.eval, examples.astype(jnp.float32) / 255
        return geometry.center_view(images, self.config.data.image_size, evaluation.crop, evaluation.resize)

    def prepare(self, views: jax.Array) -> jax.Array:
        """Views `[n, h, w, c]` in [0, 1], normalised as the encoder takes them."""
        data = self.config.data
        return simclr.normalize_images(views, data.mean, data.std, self.dtype)

    def raw(self, examples: jax.Array) -> jax.Array:
        """The evaluation views resized to at most 32 px a side, `[n, d]`."""
        return shrunk(self.see(examples))

    def change(self, seen: jax.Array, position: jax.Array, seed: int, **fields: Any) -> jax.Array:
        """Augments every evaluation view once; `fields` override the fields of `config.augment`."""
        mine = self._large.options._asdict() | fields
        as_bytes = jnp.rint(255 * seen).astype(jnp.uint8)
        return augment.random_views(as_bytes, position, seed, size=self._large.size, views=1, **mine)[:, 0]

    def batches(self, step: int) -> Iterator[Batch]:
        """The training batches from `step` on, this process's rows."""
        train, config = self.splits.train, self.config
        steps = {"start": step, "stop": total_steps(config, train.size)}
        which = {**steps, "batch": config.train.batch_size, "seed": config.seed, **self._share}
        if self._in_memory:
            return memory.batches(cast(Source, train), **which)
        dtype = "uint8" if config.augment.device == "photometric" else "float32"
        kinds = [self._large, *([self._small] if self._small else [])]
        return pipeline.train_batches(train, **which, kinds=kinds, dtype=dtype, **self._reading)

    def every(self, split: Source | Stream, index: np.ndarray | None = None) -> Iterator[Batch]:
        """This process's rows of a split, every image once or only those in `index`, without augmentation.

        A batch is {example [n, h, w, c], label, mask}; `see` takes the examples.
        """
        return self._in_order(split, self.config.eval.batch_size, index, **self._share)

    def _in_order(self, split, batch, index, **share) -> Iterator[Batch]:
        if self._in_memory:
            return memory.eval_batches(split, batch=batch, index=index, **share)
        evaluation = self.config.eval
        view = {
            "size": self._large.size,
            "crop": evaluation.crop,
            "resize": evaluation.resize,
            **self._reading,
        }
        return pipeline.eval_batches(split, batch=batch, index=index, **view, **share)

    def preview(self, workdir: epath.Path, batch: Batch) -> None:
        """Draws figures/views.png: images of a batch and their views; for a Stream only the views."""
        path = workdir / "figures" / "views.png"
        if self.config.eval.figures and not path.exists():
            figures.attempt(print, path, self._draw_views, batch)

    def _draw_views(self, path: epath.Path, batch: Batch) -> None:
        train = self.splits.train
        some = {name: rows[:SHOWN] for name, rows in batch.items()}
        originals = None
        if isinstance(train, Source):
            batch_size = self.config.train.batch_size
            step = int(batch["position"][0]) // batch_size
            index, _ = order.step_examples(step, examples=train.size, batch=batch_size, seed=self.config.seed)
            originals = next(self._in_order(train, SHOWN, index[:SHOWN]))["example"]
            if self._in_memory:
                some["image"] = originals[: len(some["position"])]
            originals = np.asarray(self.see(jnp.asarray(originals)))[: len(some["position"])]
        views = np.asarray(jax.jit(lambda batch: self.views({}, batch))(some))
        title = figures.CROPS if self.config.task == "restore" else figures.MATCHED
        figures.views(path, originals, views, title)


def shrunk(images: jax.Array) -> jax.Array:
    """Images `[n, h, w, c]` resized to at most 32 px a side, `[n, d]`."""
    n, h, w, c = images.shape
    side = min(h, RAW_SIDE)
    if side != h or side != w:
        images = jax.image.resize(images, (n, side, side, c), "linear", antialias=True)
    return images.reshape(n, -1)


class ImageReader(NamedTuple):
    """Prepares images for a loaded encoder."""

    size: int
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    background: tuple[int, int, int]
    crop: float
    resize: str

    def spec(self) -> jax.ShapeDtypeStruct:
        """Of one image `[h, w, c]`."""
        return jax.ShapeDtypeStruct((self.size, self.size, self.channels), jnp.float32)

    def check(self, examples: Any) -> np.ndarray:
        """Images `[n, h, w, c]`, uint8 or float32 in [0, 1]; RGBA too where the encoder takes RGB.

        Raises:
          SimclrError: the images have another shape, type or range.
        """
        try:
            images = np.asarray(examples)
        except ValueError:
            raise SimclrError(
                "images must be of one size: [n, h, w, c]; preprocess=True takes a list of several"
            ) from None
        known = (3, 4) if self.channels == 3 else (self.channels,)
        if images.ndim != 4 or images.shape[-1] not in known or not images.size:
            one = "; images[None] of a single one" if images.ndim == 3 else ""
            raise SimclrError(f"images must be [n, h, w, {self.channels}], not {list(images.shape)}{one}")
        if images.dtype == np.uint8:
            return images
        if not np.issubdtype(images.dtype, np.floating):
            raise SimclrError(f"images must be uint8 or float in [0, 1], not {images.dtype}")
        low, high = float(images.min()), float(images.max())
        if not (low >= -1e-3 and high <= 1 + 1e-3):  # also NaN
            raise SimclrError(f"float images must lie in [0, 1], not [{low:.3g}, {high:.3g}]; or give uint8")
        return images.astype(np.float32)

    def host(self, part: np.ndarray) -> np.ndarray:
        """Blends RGBA over the run's background if the encoder takes RGB."""
        if part.shape[-1] == self.channels:
            return part
        if part.dtype == np.uint8:
            return formats.over(part[..., :3], part[..., 3], self.background)
        alpha = part[..., 3:]
        return part[..., :3] * alpha + np.array(self.background, np.float32) / 255 * (1 - alpha)

    def prepare(self, examples: jax.Array, preprocess: bool, dtype: Any) -> jax.Array:
        """Normalises images; `preprocess` first crops and resizes them as for evaluation."""
        images = simclr.normalize_images(examples, (), (), jnp.float32)
        if preprocess:
            images = geometry.center_view(images, self.size, self.crop, self.resize)
        return simclr.normalize_images(images, self.mean, self.std, dtype)


def one_by_one(examples: Any, preprocess: bool) -> list[Any]:
    """Files, Pillow images and, to `preprocess`, arrays of several sizes as a list; [] for anything else."""
    if isinstance(examples, (str, os.PathLike, Image.Image)):
        return [examples]
    if not isinstance(examples, (list, tuple)):
        return []
    loose = any(isinstance(each, (str, os.PathLike, Image.Image)) for each in examples)
    several = preprocess and len({np.shape(each) for each in examples}) > 1
    return list(examples) if loose or several else []


def views_of(config: ConfigDict, reader: ImageReader, pictures: Sequence[Any]) -> np.ndarray:
    """The evaluation views `[n, s, s, c]` in [0, 1] of paths, Pillow images and arrays `[h, w, c]`, any size.

    They are those of the run's own evaluation: the host decodes, crops and resizes.

    Raises:
      SimclrError: one cannot be read, or does not fit the encoder.
    """
    tf, size, reading = load_tensorflow(), reader.size, formats.Reading.of(**config.data)
    views = np.empty((len(pictures), size, size, reader.channels), np.float32)
    at = [i for i, each in enumerate(pictures) if isinstance(each, (str, os.PathLike))]
    if at:
        views[at] = _views_of_files([os.path.expanduser(pictures[i]) for i in at], reader, reading)
    for i, each in enumerate(pictures):
        if isinstance(each, Image.Image):
            try:
                pixels = decode.to_channels(tf.constant(formats.of_pillow(each, reading)), reader.channels)
            except formats.UnreadableError as error:
                raise SimclrError(f"image {i} of {len(pictures)}: {error}") from None
        elif not isinstance(each, (str, os.PathLike)):
            pixels = tf.constant(reader.host(reader.check(np.asarray(each)[None]))[0])
        else:
            continue
        views[i] = host_augment.center_view(pixels, size, reader.crop, reader.resize)
    return views


def _views_of_files(names: list[str], reader: ImageReader, reading: formats.Reading) -> np.ndarray:
    source = from_files(names, None, (), root="", name="files", reading=reading).marking()
    view = {"size": reader.size, "crop": reader.crop, "resize": reader.resize, "channels": reader.channels}
    (batch,) = pipeline.eval_batches(source, batch=len(names), **view)
    for name, label in zip(names, batch["label"], strict=True):
        if label == UNREADABLE:
            why = source.ledger.reasons.get(source.names[names.index(name)], "it is no image")
            raise SimclrError(f"{name}: cannot be read ({why})")
    return batch["example"]


def reader(config: ConfigDict, data: dict[str, Any]) -> ImageReader:
    """The reader for the encoder of a run."""
    of, evaluation = config.data, config.eval
    return ImageReader(
        of.image_size,
        of.channels,
        tuple(of.mean),
        tuple(of.std),
        formats.colour(of.background),
        evaluation.crop,
        evaluation.resize,
    )


def hold(config: ConfigDict, splits: Splits) -> Splits:
    """Loads the splits into memory if the accelerator makes the views."""
    return memory.hold(splits, config.data) if in_memory(config) else splits


def check(config: ConfigDict, splits: Splits) -> None:
    """Raises SimclrError if the images' channels differ from the config's."""
    data_splits.check_channels(splits, config.data.channels)


KIND = Kind(data_splits.load, check, hold, Images, reader)
