"""What a run reads; which feeds there are stands in registry.py."""

from collections.abc import Mapping
from typing import Any

from jax.sharding import Mesh
from ml_collections import ConfigDict

from simclr_jax import registry
from simclr_jax.data.sources import Splits
from simclr_jax.feeds.feed import Feed, Kind, Reader

__all__ = ["Feed", "Kind", "Reader", "create_feed", "hold", "kind", "load_splits"]


def kind(config: ConfigDict) -> Kind:
    """The kind of examples that `config.data.source` names."""
    return registry.load(registry.FEEDS, registry.kind_of(config.data.source), "data.source")


def load_splits(config: ConfigDict, stored: Mapping[str, Any] | None = None) -> Splits:
    """The examples of a config.

    Args:
      stored: what config.json says of the examples of the run whose encoder sees these, where there is one.

    Raises:
      SimclrError: nothing is there, or it is not what the source says.
    """
    fields: dict[str, Any] = dict(config.data)
    return kind(config).load(**fields, stored=stored or {})


def hold(config: ConfigDict, splits: Splits) -> Splits:
    """The splits as a run keeps them: in memory, where the accelerator augments; else as they are."""
    return kind(config).hold(config, splits)


def create_feed(config: ConfigDict, splits: Splits, mesh: Mesh, views: int) -> Feed:
    """The feed of a config, with `views` augmented views of each example while training."""
    return kind(config).create(config, splits, mesh, views)
