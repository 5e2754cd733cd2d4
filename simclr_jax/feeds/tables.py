"""The feed of tables: rows are in device memory, views are SCARF's (arXiv 2106.15147)."""

import json
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.sharding import Mesh
from ml_collections import ConfigDict

from simclr_jax import sharding
from simclr_jax.config import total_steps
from simclr_jax.corruption import random_corruption
from simclr_jax.data import memory, tables
from simclr_jax.data.columns import Columns
from simclr_jax.data.sources import Source, Splits, Stream
from simclr_jax.errors import SimclrError
from simclr_jax.feeds.feed import Batch, Kind

STEPS_PER_CALL = 16  # default: a step of a small MLP takes less time than a call


def table_of(splits: Splits) -> Source:
    """The training rows; a table is never read in sequence."""
    return cast(Source, splits.train)


class Rows:
    """The rows of `splits`; training gets `count` views of each."""

    pictures = False

    def __init__(self, config: ConfigDict, splits: Splits, mesh: Mesh, count: int):
        self.config, self.splits, self.mesh, self.count = config, splits, mesh, count
        self.dtype = jnp.dtype(config.model.dtype)
        self.steps_per_call = config.train.steps_per_call or STEPS_PER_CALL
        self._share = {"process": jax.process_index(), "processes": jax.process_count()}
        self._train = table_of(splits)
        self._rows, self._labels = self._train.fetch(np.arange(self._train.size))

    def spec(self) -> jax.ShapeDtypeStruct:
        """Of one row `[d]`."""
        return jax.ShapeDtypeStruct(self._rows.shape[1:], self.dtype)

    def fixed(self) -> dict[str, Any]:
        """All training rows and labels, replicated: corruption draws from the rows."""
        held = {"rows": self._rows, "labels": self._labels}
        return sharding.put_same(held, sharding.replicated(self.mesh))

    def batches(self, step: int) -> Iterator[Batch]:
        """The numbers of the rows from `step` on: {index, position}."""
        train, config = self._train, self.config
        steps = {"start": step, "stop": total_steps(config, train.size)}
        return memory.batches(train, **steps, batch=config.train.batch_size, seed=config.seed, **self._share)

    def fetch(self, fixed: dict[str, Any], batch: Batch) -> Batch:
        """{rows [n, d], label, position} by their numbers."""
        index = batch["index"]
        held = {"rows": fixed["rows"][index], "label": fixed["labels"][index]}
        return {**held, "position": batch["position"]}

    def views(self, fixed: dict[str, Any], batch: Batch) -> jax.Array:
        """`[n, v, d]`: the row itself, and corrupted ones."""
        return self._corrupted(batch["rows"], fixed["rows"], batch["position"], self.config.seed, self.count)

    def small(self, fixed: dict[str, Any], batch: Batch) -> None:
        """Rows have no size."""

    def clean(self, fixed: dict[str, Any], batch: Batch) -> jax.Array:
        """`[n, v, d]`: the row itself, for every view."""
        return jnp.repeat(batch["rows"][:, None], self.count, axis=1)

    def prepare(self, views: jax.Array) -> jax.Array:
        """Rows are standardised as they are read."""
        return views.astype(self.dtype)

    def every(self, split: Source | Stream, index: np.ndarray | None = None) -> Iterator[Batch]:
        """Every row once, or those in `index`, in order: {example [n, d], label, mask}."""
        split = cast(Source, split)
        return memory.eval_batches(split, batch=self.config.eval.batch_size, index=index, **self._share)

    def see(self, examples: jax.Array) -> jax.Array:
        """The row itself."""
        return examples

    def raw(self, examples: jax.Array) -> jax.Array:
        """The row itself."""
        return examples

    def change(self, seen: jax.Array, position: jax.Array, seed: int, **fields: Any) -> jax.Array:
        """Each row, corrupted."""
        bank = jnp.asarray(self._rows)
        return self._corrupted(seen, bank, position, seed, 1, first_clean=False, **fields)[:, 0]

    def _corrupted(self, rows, bank, position, seed, views, **fields) -> jax.Array:
        columns = self._train.columns
        own = {"rate": self.config.data.table.corruption, "feature": columns.feature if columns else ()}
        return random_corruption(rows, bank, position, seed, views=views, **(own | fields))

    def preview(self, workdir: epath.Path, batch: Batch) -> None:
        """Draws nothing."""


class RowReader(NamedTuple):
    """Prepares rows for a loaded encoder."""

    columns: Columns

    def spec(self) -> jax.ShapeDtypeStruct:
        """Of one row `[d]`."""
        return jax.ShapeDtypeStruct((len(self.columns.feature),), jnp.float32)

    def check(self, examples: Any) -> np.ndarray:
        """Rows `[n, d]` as the table has them (texts as 0 and 1), standardised by the training rows.

        Raises:
          SimclrError: the rows do not fit the columns.
        """
        rows = np.asarray(examples)
        if not rows.size:
            raise SimclrError(f"rows must be numbers [n, {len(self.columns.feature)}]; there are none")
        return self.columns.standardize(rows)

    def host(self, part: np.ndarray) -> np.ndarray:
        """Returns the rows unchanged."""
        return part

    def prepare(self, examples: jax.Array, preprocess: bool, dtype: Any) -> jax.Array:
        """Casts to `dtype`."""
        return examples.astype(dtype)


def load(
    *,
    source: str,
    data_dir: str | None,
    holdout: float,
    table: ConfigDict,
    stored: Mapping[str, Any],
    **_: Any,
) -> Splits:
    """The splits of `table:WHERE`; the arguments are fields of `config.data`.

    Args:
      stored: of the run whose encoder sees these rows, with its columns: they decide what a number means.
    """
    known = Columns.of(stored["columns"]) if stored.get("columns") else None
    return tables.load(source.partition(":")[2], data_dir, holdout, table["label"], known)


def identity(splits: Splits) -> dict[str, Any]:
    """The columns, which config.json keeps for loaded encoders."""
    columns = table_of(splits).columns
    return {"columns": json.loads(json.dumps(columns.features if columns else ()))}


def reader(config: ConfigDict, data: dict[str, Any]) -> RowReader:
    """The reader for the encoder of a run; config.json has the columns."""
    return RowReader(Columns.of(data.get("columns", ())))


def as_they_are(config: ConfigDict, splits: Splits) -> Splits:
    """Tables are in memory."""
    return splits


def check(config: ConfigDict, splits: Splits) -> None:
    """Nothing else has to fit."""


KIND = Kind(load, check, as_they_are, Rows, reader, identity)
