"""The contract of a feed: what a task does with a config's examples. It reads, augments and shows them.

`registry.FEEDS` names a `Kind` for the part of `config.data.source` before the colon (`table:PATH`); every
other source is one of images. Tasks, evaluation and loaded encoders know examples by this contract alone.
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

    A batch is a dict of arrays `[n, ...]`: what `batches` yields are this process's rows on the host, what
    `fetch` returns is the whole batch on the mesh. All random draws are keyed by (seed, position, view).
    """

    config: ConfigDict
    splits: Splits
    mesh: Mesh
    steps_per_call: int  # steps that the accelerator makes by itself, at most
    pictures: bool  # `see` gives images [n, h, w, c] in [0, 1]
    dtype: Any  # of what the encoder takes

    def spec(self) -> jax.ShapeDtypeStruct:
        """Shape and type of one example as the encoder takes it, without the batch's axis."""
        ...

    def fixed(self) -> dict[str, Any]:
        """Constant arrays on the mesh that steps read, each with its own sharding; not checkpointed."""
        ...

    def batches(self, step: int) -> Iterator[Batch]:
        """The training batches from `step` on: {position, ..., label where there is one}."""
        ...

    def fetch(self, fixed: dict[str, Any], batch: Batch) -> Batch:
        """The whole batch, from what `batches` gave and what lives on the accelerators; may communicate."""
        ...

    def views(self, fixed: dict[str, Any], batch: Batch) -> jax.Array:
        """Augmented views `[n, v, ...]`, row by row."""
        ...

    def prepare(self, views: jax.Array) -> jax.Array:
        """Views `[n, ...]`, of `views` or of `see`, as the encoder takes them."""
        ...

    def every(self, split: Source | Stream, index: np.ndarray | None = None) -> Iterator[Batch]:
        """Every example of a split once, or those in `index`, in order: {example, label, mask}."""
        ...

    def see(self, examples: jax.Array) -> jax.Array:
        """The evaluation view of what `every` gives as example."""
        ...

    def raw(self, examples: jax.Array) -> jax.Array:
        """Baseline features `[n, d]` of what `every` gives: the examples themselves."""
        ...

    def change(self, seen: jax.Array, position: jax.Array, seed: int, **fields: Any) -> jax.Array:
        """One augmentation of evaluation views; `fields` in the place of those of `config.augment`."""
        ...

    def preview(self, workdir: epath.Path, batch: Batch) -> None:
        """Draws the first host batch, before training."""
        ...


class Reader(Protocol):
    """How a loaded encoder takes examples; hashable, as programs are compiled for it."""

    def spec(self) -> jax.ShapeDtypeStruct:
        """Shape and type of one example as the encoder was trained on it."""
        ...

    def check(self, examples: Any) -> np.ndarray:
        """Examples `[n, ...]` as an array; raises SimclrError where they are not what the encoder takes."""
        ...

    def host(self, part: np.ndarray) -> np.ndarray:
        """What is done on the host with some of them."""
        ...

    def prepare(self, examples: jax.Array, preprocess: bool, dtype: Any) -> jax.Array:
        """What is done on the device; `preprocess`: as the run does for its evaluation."""
        ...


def _nothing_more(splits: Splits) -> dict[str, Any]:
    return {}


class Kind(NamedTuple):
    """A kind of examples."""

    name: str  # of many of them, in what is told: "images"
    load: Callable[..., Splits]  # the fields of config.data -> Splits
    check: Callable[..., None]  # (config, splits): raises SimclrError where they do not fit together
    hold: Callable[..., Splits]  # (config, splits) -> the splits as a run keeps them in memory
    create: Callable[..., Feed]  # (config, splits, mesh, views)
    reader: Callable[..., Reader]  # (config, the `data` of config.json)
    identity: Callable[..., dict[str, Any]] = _nothing_more  # more that config.json keeps of the examples
