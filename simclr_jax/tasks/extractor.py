"""Features of whole splits: of the encoder with any variables, and of the pixels themselves."""

from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np

from simclr_jax import metrics
from simclr_jax.data.sources import Source, Stream
from simclr_jax.feeds import Feed
from simclr_jax.measures.features import Features, extract
from simclr_jax.models import simclr

MAIN = simclr.FEATURES[0]
RAW_EXAMPLES = 50_000  # of the raw-pixel baseline, at most


class Extractor:
    """What `model` makes of a feed's examples; compiled once for all variables and splits.

    Args:
      endpoints: names of `SimCLR.endpoints`, MAIN: the representation; maps are averaged over their places.
    """

    def __init__(self, feed: Feed, model: simclr.SimCLR, endpoints: Sequence[str] = (MAIN,)):
        self.feed = feed

        def encode(variables: Any, x: jax.Array) -> dict[str, jax.Array]:
            ends = simclr.endpoints(model, variables, feed.prepare(feed.see(x)))
            return {name: simclr.read_endpoint(model.encoder, ends, name) for name in endpoints}

        self._encode = jax.jit(encode)
        self._pixels = jax.jit(feed.raw)

    def __call__(
        self, variables: dict[str, Any], split: Source | Stream, index: np.ndarray | None = None
    ) -> Features:
        """{endpoint: `[n, d]`} of every image of a split, or of those in `index`, in order."""
        return extract(lambda x: self._encode(variables, x), self._batches(split, index), self.feed.mesh)

    def raw_pixels(self, split: Source | Stream, index: np.ndarray | None = None) -> Features:
        """The evaluation views, resized to at most 32 px a side, `[n, d]`."""
        return extract(self._pixels, self._batches(split, index), self.feed.mesh)

    def _batches(self, split: Source | Stream, index: np.ndarray | None) -> Iterator[Any]:
        """With progress where it takes longer than a moment."""
        examples, size = split.size if index is None else len(index), self.feed.config.eval.batch_size
        first = jax.process_index() == 0
        return metrics.watched(self.feed.every(split, index), -(-examples // size), "batch", first)


def sample(split: Source | Stream, limit: int) -> np.ndarray | None:
    """Rows of a fixed sample of at most `limit` examples, None for all; a Stream's are its first."""
    if not limit or limit >= split.size:
        return None
    return np.sort(np.random.default_rng(0).permutation(split.size)[:limit])


def labelled(found: Features) -> Features:
    """Those whose label is known."""
    return found.rows(found.labels >= 0)


def groups_of(split: Source | Stream, index: np.ndarray | None, labels: np.ndarray) -> np.ndarray | None:
    """The groups of the images that `labelled` leaves; None where there are no groups.

    Args:
      index: of the images in the split, None for all; labels: theirs, -1 for none.
    """
    groups = split.groups if isinstance(split, Source) else None
    if groups is None:
        return None
    return (groups if index is None else groups[index])[labels >= 0]
