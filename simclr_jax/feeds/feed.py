"""The interface of a feed, which reads, augments and displays the examples of a config.

`registry.FEEDS` names a `Kind` for the part of `config.data.source` before the colon (`table:PATH`); all
other sources hold images. Tasks, evaluation and loaded encoders use examples only through this interface.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh
from ml_collections import ConfigDict

from simclr_jax.data.sources import Source, Splits, Stream

Batch = dict[str, Any]


class Feed(Protocol):
    """The examples of `splits` as a config wants them.

    A batch is a dict of arrays `[n, ...]`. `batches` yields this process's rows on the host; `fetch` returns
    the whole batch on the mesh. (seed, position, view) key all random draws.
    """

    config: ConfigDict
    splits: Splits
    mesh: Mesh
    steps_per_call: int  # most steps in one call of the compiled program
    pictures: bool  # `see` gives images [n, h, w, c] in [0, 1]
    dtype: Any  # of the encoder's input

    def spec(self) -> jax.ShapeDtypeStruct:
        """Shape and type of one example as the encoder takes it, without the batch's axis."""
        ...

    def fixed(self) -> dict[str, Any]:
        """Constant arrays on the mesh that steps read, each with its own sharding; not checkpointed."""
        ...

    def batches(self, step: int) -> Iterator[Batch]:
        """The training batches from `step` on: {position, ..., label if the examples have labels}."""
        ...

    def fetch(self, fixed: dict[str, Any], batch: Batch) -> Batch:
        """The whole batch, from a batch of `batches` and the arrays `fixed`; may use collectives."""
        ...

    def views(self, fixed: dict[str, Any], batch: Batch) -> jax.Array:
        """Augmented views `[n, v, ...]`, row by row."""
        ...

    def small(self, fixed: dict[str, Any], batch: Batch) -> jax.Array | None:
        """Further views `[n, k, ...]` of another size, numbered from 2 on; None: there are none."""
        ...

    def clean(self, fixed: dict[str, Any], batch: Batch) -> jax.Array:
        """The same views before colour and blur; raises SimclrError if the feed cannot give them."""
        ...

    def prepare(self, views: jax.Array) -> jax.Array:
        """Converts views `[n, ...]` from `views` or `see` into the encoder's input."""
        ...

    def every(self, split: Source | Stream, index: np.ndarray | None = None) -> Iterator[Batch]:
        """Every example of a split once, or those in `index`, in order: {example, label, mask}."""
        ...

    def see(self, examples: jax.Array) -> jax.Array:
        """The evaluation views of examples from `every`."""
        ...

    def raw(self, examples: jax.Array) -> jax.Array:
        """Baseline features `[n, d]` of examples from `every`: the examples themselves."""
        ...

    def change(self, seen: jax.Array, position: jax.Array, seed: int, **fields: Any) -> jax.Array:
        """Augments evaluation views once; `fields` override the fields of `config.augment`."""
        ...

    def preview(self, workdir: epath.Path, batch: Batch) -> None:
        """Draws the first host batch, before training."""
        ...


class Reader(Protocol):
    """Prepares examples for a loaded encoder; hashable, because programs are compiled for it."""

    def spec(self) -> jax.ShapeDtypeStruct:
        """Shape and type of one example as the encoder was trained on it."""
        ...

    def check(self, examples: Any) -> np.ndarray:
        """Examples `[n, ...]` as an array; raises SimclrError if they do not fit the encoder."""
        ...

    def host(self, part: np.ndarray) -> np.ndarray:
        """Preprocessing of some examples on the host."""
        ...

    def prepare(self, examples: jax.Array, preprocess: bool, dtype: Any) -> jax.Array:
        """Preprocessing on the device; with `preprocess` it includes the run's own for evaluation."""
        ...


def _nothing_more(splits: Splits) -> dict[str, Any]:
    return {}


class Kind(NamedTuple):
    """A kind of examples."""

    load: Callable[..., Splits]  # the fields of config.data -> Splits
    check: Callable[..., None]  # (config, splits): raises SimclrError if they do not fit together
    hold: Callable[..., Splits]  # (config, splits) -> the splits as a run keeps them in memory
    create: Callable[..., Feed]  # (config, splits, mesh, views)
    reader: Callable[..., Reader]  # (config, the `data` of config.json)
    identity: Callable[..., dict[str, Any]] = _nothing_more  # further data about the examples for config.json
