"""What a config can name, and where it is: encoders, objectives and feeds, each imported when it is used.

A package or a config file adds its own, from outside:

    from simclr_jax import registry
    registry.add(registry.ENCODERS, "mine", "my_package.mine:create", {"width": Field(64, "channels")})

or declares an entry point of the group `simclr_jax.encoders` (`.objectives`, `.feeds`) that leads to an
`Entry`. Its fields then are `config.model.mine.width`. Nothing here imports JAX or TensorFlow, and nothing
that a config.json names is ever imported unless it is registered.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from simclr_jax.field import Field

Flat = Mapping[str, Any]  # a config as {"model.width": 1.0, ...}


class Facts(NamedTuple):
    """What is known of an entry before JAX is imported; it stands in a file beside it (`vit_fields.py`)."""

    fields: Mapping[str, Field] = {}
    check: Callable[[Flat], None] | None = None  # raises SimclrError where fields do not go together
    stages: Callable[[Flat], int] = lambda flat: 1  # encoders: stages behind the first, which is number 0
    smallest: Callable[[Flat], tuple[int, str]] = lambda flat: (1, "")  # encoders: side of images, and why
    parameters: Callable[[Flat], tuple[float, float]] = lambda flat: (0.0, 0.0)  # about: (count, features)


class Entry(NamedTuple):
    """Something that a config can name."""

    target: str  # "module:attribute"
    facts: str | Facts = Facts()  # "module:attribute" of Facts, or themselves


ENCODERS: dict[str, Entry] = {
    "resnet": Entry("simclr_jax.models.resnet:create", "simclr_jax.models.resnet_fields:FACTS"),
    "cnn": Entry("simclr_jax.models.cnn:create", "simclr_jax.models.cnn_fields:FACTS"),
}
