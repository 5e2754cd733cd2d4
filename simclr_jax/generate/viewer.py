"""A viewer: features, pixels and latents of images, read or made, by the encoder and decoder of a run."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from simclr_jax import encoder, metrics, sharding
from simclr_jax.data.sources import Source
from simclr_jax.data.splits import Splits
from simclr_jax.decoding import Autoencoder
from simclr_jax.feeds import create_feed
from simclr_jax.feeds.images import shrunk
from simclr_jax.measures import knn
from simclr_jax.measures.features import extract
from simclr_jax.models import simclr


class Read(NamedTuple):
    """n images of a split, which can be read again."""

    features: np.ndarray  # the encoder's, [n, k]
    pixels: np.ndarray  # at most 32 px a side, [n, p]
    latents: np.ndarray  # [n, d]
    labels: np.ndarray  # [n], -1 for none
    rows: np.ndarray  # [n], numbers in the split


class Made(NamedTuple):
    """n images of the decoder."""

    features: np.ndarray
    pixels: np.ndarray
    images: np.ndarray  # [n, h, w, c]


class Near(NamedTuple):
    """The nearest of other images to each of n images."""

    away: np.ndarray  # [n] root mean square of the difference of pixels
    by_pixels: np.ndarray  # [n] number of the nearest by pixels
    alike: np.ndarray  # [n] cosine of the features
    by_features: np.ndarray  # [n] number of the nearest by features


class Viewer:
    """Looks at the images of `splits`, and at those that the decoder makes."""

    def __init__(self, autoencoder: Autoencoder, splits: Splits):
        self.autoencoder, config = autoencoder, autoencoder.encoder.config
        self.mesh = sharding.make_mesh(config.mesh.devices)
        self.feed = create_feed(config, splits, self.mesh, views=1)
        self._variables = sharding.put_same(autoencoder.variables, sharding.replicated(self.mesh))
        self._look = jax.jit(self._looked)
        self._shrunk = jax.jit(shrunk)

    def _looked(self, variables: Any, examples: jax.Array) -> dict[str, jax.Array]:
        views, model = self.feed.see(examples), self.autoencoder.encoder.model
        ends = simclr.endpoints(model, variables, self.feed.prepare(views))
        return {
            "features": ends[model.encoder.features],
            "pixels": shrunk(views),
            "latents": self.autoencoder.to_latents(variables, views),
        }

    def read(self, split: Source, rows: np.ndarray) -> Read:
        """Images of a split."""
        batches = self._watched(split, rows)
        found = extract(lambda x: self._look(self._variables, x), batches, self.mesh)
        return Read(**found.features, labels=found.labels, rows=rows)

    def pictures(self, split: Source, rows: np.ndarray) -> np.ndarray:
        """Evaluation views `[n, h, w, c]` of images of a split."""
        return extract(self.feed.see, self.feed.every(split, rows), self.mesh).features

    def made(self, latents: np.ndarray) -> Made:
        """The images that the decoder makes."""
        images = self.autoencoder.decode(latents)
        pixels = encoder.in_batches(self._shrunk, images, 256)
        return Made(self.autoencoder.encoder(images), pixels, images)

    def near(self, bank: Read, looks: Read | Made, most: int) -> Near:
        """The nearest images of a bank to each of the first images, at most `most`."""
        pixels, features = looks.pixels[:most], looks.features[:most]
        away, by_pixels = knn.nearest(bank.pixels, pixels, 1, self.mesh, distance="euclidean")
        alike, by_features = knn.nearest(bank.features, features, 1, self.mesh)
        per_pixel = -away[:, 0] / np.sqrt(pixels.shape[1])
        return Near(per_pixel, by_pixels[:, 0], alike[:, 0], by_features[:, 0])

    def _watched(self, split: Source, rows: np.ndarray) -> Iterator[Any]:
        size = self.feed.config.eval.batch_size
        return metrics.watched(self.feed.every(split, rows), -(-len(rows) // size), "batch")
