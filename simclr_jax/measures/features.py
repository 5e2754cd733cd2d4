"""Features of a whole split, every example once."""

import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from simclr_jax import sharding


class Features(NamedTuple):
    """features `[n, d]` float32 (or a dict of such) and labels `[n]` int32, in the order of the batches."""

    features: Any
    labels: np.ndarray

    def rows(self, index: np.ndarray) -> "Features":
        """Those of `index` (numbers, or a mask) alone."""
        return Features(jax.tree.map(lambda x: x[index], self.features), self.labels[index])


def extracted(
    encode: Callable[[jax.Array], Any], batches: Iterable[dict[str, np.ndarray]], mesh: Mesh
) -> Iterator[Features]:
    """What `encode` (images `[b, h, w, c]` to `[b, d]`, or a tree of such) makes of {example, label, mask}.

    Batch by batch; rows where mask is False, the filling of the last batch, are left out. On a mesh of this
    process's devices alone no other process takes part.
    """
    gather = sharding.gather if mesh.is_multi_process else jax.device_get
    pending = None  # the device works on a batch while the previous one is read back
    for batch in itertools.chain(batches, [None]):
        if pending is not None:
            values, label, mask = gather(pending)
            yield Features(jax.tree.map(lambda x: np.asarray(x, np.float32)[mask], values), label[mask])  # noqa: B023
        if batch is None:
            break
        on_device = sharding.put_batch(batch, mesh)
        pending = (encode(on_device["example"]), on_device["label"], on_device["mask"])


def extract(
    encode: Callable[[jax.Array], Any], batches: Iterable[dict[str, np.ndarray]], mesh: Mesh
) -> Features:
    """All that `extracted` yields, in one."""
    features, labels = zip(*extracted(encode, batches, mesh), strict=True)
    return Features(jax.tree.map(lambda *x: np.concatenate(x), *features), np.concatenate(labels))


def some(found: Features, most: int) -> Features:
    """A fixed sample of at most `most` rows, in order: files may be sorted by class."""
    if len(found.labels) <= most:
        return found
    return found.rows(np.sort(np.random.default_rng(0).permutation(len(found.labels))[:most]))
