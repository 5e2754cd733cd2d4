"""What a config can name, and where it is: encoders, objectives and feeds, each imported when it is used.

A package or a config file adds its own, from outside:

    from simclr_jax import registry
    registry.add(registry.ENCODERS, "mine", "mine:create", Facts(fields={"width": Field(64, "channels")}))

or declares an entry point of the group `simclr_jax.encoders` (`.objectives`, `.feeds`) that leads to an
`Entry`. The field then is `config.model.mine.width`. Nothing here imports JAX or TensorFlow, and nothing
that a config.json names is ever imported unless it is registered.
"""

import functools
import importlib
import importlib.metadata
import runpy
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from simclr_jax.errors import SimclrError, one_line
from simclr_jax.field import Field

Flat = Mapping[str, Any]  # a config as {"model.width": 1.0, ...}


def _always(value: Any) -> Callable[[Flat], Any]:
    def told(flat: Flat) -> Any:
        return value

    return told


class Facts(NamedTuple):
    """Facts about an entry that need no JAX import; they are in a file of their own (`vit_fields.py`)."""

    fields: Mapping[str, Field] = {}  # below config.model.NAME, config.loss.NAME or config.data.NAME
    check: Callable[[Flat], None] = _always(None)  # raises SimclrError where fields do not go together
    takes: str = "images"  # encoders: what they take; feeds: what they give
    decodes: bool = False  # objectives and tasks: whether they have a decoder, `config.model.decoder`
    # Of encoders alone:
    stages: Callable[[Flat], int] | None = None  # number of the last stage; None: known once it is built
    smallest: Callable[[Flat], tuple[int, str]] = _always((1, ""))  # side of images in pixels, and why
    parameters: Callable[[Flat], tuple[float, float]] = _always((0.0, 0.0))  # about: their number, features


class Entry(NamedTuple):
    """Something that a config can name."""

    target: str  # "module:attribute"
    facts: str | Facts = Facts()  # "module:attribute" of Facts, or themselves


ENCODERS: dict[str, Entry] = {  # target: create(model, dtype=, param_dtype=) -> models.encoder.Encoder
    "resnet": Entry("simclr_jax.models.resnet:create", "simclr_jax.models.resnet_fields:FACTS"),
    "cnn": Entry("simclr_jax.models.cnn:create", "simclr_jax.models.cnn_fields:FACTS"),
    "mlp": Entry("simclr_jax.models.mlp:create", "simclr_jax.models.mlp_fields:FACTS"),
    "vit": Entry("simclr_jax.models.vit:create", "simclr_jax.models.vit_fields:FACTS"),
    "tutorial": Entry("simclr_jax.models.tutorial:create", "simclr_jax.models.tutorial_fields:FACTS"),
}
_LOSSES = "simclr_jax.losses"
_CONTRAST = Entry(f"{_LOSSES}.contrast:create")
_NEGATIVE, _FIELDS = f"{_LOSSES}.negative:create", f"{_LOSSES}.negative_fields"
OBJECTIVES: dict[str, Entry] = {  # target: create(name, options, sizes) -> losses.objective.Objective
    **dict.fromkeys(("nt_xent", "nt_logistic", "margin", "supcon", "dcl", "dclw"), _CONTRAST),
    "debiased": Entry(_NEGATIVE, f"{_FIELDS}:DEBIASED"),
    "hcl": Entry(_NEGATIVE, f"{_FIELDS}:HCL"),
    "adversarial": Entry(_NEGATIVE, f"{_FIELDS}:ADVERSARIAL"),
    "fnc": Entry(_NEGATIVE, f"{_FIELDS}:FNC"),
    "queue": Entry(f"{_LOSSES}.queue:create", f"{_FIELDS}:QUEUE"),
    "reconstruction": Entry(f"{_LOSSES}.reconstruction:create", f"{_LOSSES}.reconstruction_fields:FACTS"),
    "masked": Entry(f"{_LOSSES}.masked:create", f"{_LOSSES}.masked_fields:FACTS"),
}
FEEDS: dict[str, Entry] = {  # by the part of config.data.source before the colon; all others are images
    "images": Entry("simclr_jax.feeds.images:KIND"),
    "table": Entry("simclr_jax.feeds.tables:KIND", "simclr_jax.data.table_fields:FACTS"),
}
TASKS: dict[str, Entry] = {  # target: create(config, splits, mesh) -> tasks.task.Task
    "pretrain": Entry("simclr_jax.tasks.pretrain:create"),
    "supervised": Entry("simclr_jax.tasks.supervised:create"),
    "distill": Entry("simclr_jax.tasks.distill:create"),
    "linear_sweep": Entry("simclr_jax.tasks.linear_sweep:create"),
}
OF_IMAGES = ("tfds", "folder", "list", "npz", "builtin", "arrays")  # sources
BROKEN: dict[str, str] = {}  # installed packages' entries that cannot be loaded: why
GROUPS = {  # of entry points, and where in a config the fields of each stand
    "simclr_jax.encoders": (ENCODERS, "model"),
    "simclr_jax.objectives": (OBJECTIVES, "loss"),
    "simclr_jax.feeds": (FEEDS, "data"),
}


def add(where: dict[str, Entry], name: str, target: str, facts: Facts | str | None = None) -> None:
    """Registers something of your own; the same again replaces it.

    Args:
      where: ENCODERS, OBJECTIVES or FEEDS.
      target: "module:attribute" of its constructor; imported when a config names it.

    Raises:
      SimclrError: the name is one of the package's own, or is no word.
    """
    if not name.isidentifier():
        raise SimclrError(f"{name!r}: must be a word of letters, digits and _, to be a name in a config")
    if where is FEEDS and name in OF_IMAGES:
        raise SimclrError(f"{name!r}: is a source of images; choose another name")
    known = where.get(name)
    if known is not None and known.target.startswith("simclr_jax."):
        raise SimclrError(f"{name!r}: is the name of one that simclr_jax has itself; choose another")
    where[name] = Entry(target, facts or Facts())


def run_file(name: str) -> None:
    """Runs a Python file, for example a config file, so that it can register entries.

    Raises:
      SimclrError: it cannot be run.
    """
    try:
        runpy.run_path(name)
    except Exception as error:
        raise SimclrError(f"{name}: {one_line(error)}") from None


@functools.cache
def find_installed() -> None:
    """Registers what installed packages declare as entry points; once."""
    for group, (where, _) in GROUPS.items():
        for point in importlib.metadata.entry_points(group=group):
            try:
                add(where, point.name, *point.load())
            except Exception as error:  # told where it is chosen: it must not end everything else
                BROKEN[point.name] = f"{point.value} cannot be loaded ({one_line(error)})"


def entry(where: dict[str, Entry], name: str, field: str) -> Entry:
    """The entry of this name.

    Raises:
      SimclrError: it is not registered; the line names `field`.
    """
    find_installed()
    if name in BROKEN:
        raise SimclrError(f"config.{field}={name!r}: {BROKEN[name]}")
    if name not in where:
        raise SimclrError(
            f"config.{field}={name!r}: must be one of {', '.join(where)}; register another first, in the "
            "config file (simclr_jax.registry.add) or by installing its package"
        )
    return where[name]


def resolve(reference: Any) -> Any:
    """What "module:attribute" names, imported now; anything else is itself."""
    if not isinstance(reference, str):
        return reference
    module, _, attribute = reference.partition(":")
    return getattr(importlib.import_module(module), attribute)


def facts(where: dict[str, Entry], name: str, field: str) -> Facts:
    """What is known of an entry before JAX is imported."""
    return resolve(entry(where, name, field).facts)


def load(where: dict[str, Entry], name: str, field: str) -> Any:
    """The target of an entry, imported now.

    Raises:
      SimclrError: it is not registered; the line names `field`.
    """
    return resolve(entry(where, name, field).target)


def encoder_facts(flat: Flat) -> Facts:
    """The facts of the encoder that a config chooses."""
    return facts(ENCODERS, flat["model.encoder"], "model.encoder")


def fields() -> dict[str, Field]:
    """{'model.vit.patch': Field, ...} of everything that is registered."""
    find_installed()
    return {
        f"{place}.{name}.{field}": declared
        for where, place in GROUPS.values()
        for name, one in where.items()
        for field, declared in resolve(one.facts).fields.items()
    }


def terms(name: str) -> tuple[str, ...]:
    """The terms of a `config.loss.name`, which + joins."""
    return tuple(name.split("+"))


def decodes(flat: Flat) -> bool:
    """Whether a config has a decoder."""
    used = [(TASKS, flat["task"], "task")]
    if flat["task"] == "pretrain":
        used += [(OBJECTIVES, term, "loss.name") for term in terms(flat["loss.name"])]
    return any(name in where and facts(where, name, field).decodes for where, name, field in used)


def idle(flat: Flat) -> list[str]:
    """Subtrees of fields that belong to what this config does not choose."""
    chosen = {
        "model": (flat["model.encoder"],),
        "loss": terms(flat["loss.name"]),
        "data": (kind_of(flat["data.source"]),),
    }
    found = [f"{at}.{name}" for where, at in GROUPS.values() for name in where if name not in chosen[at]]
    return found if decodes(flat) else [*found, "model.decoder"]


def kind_of(source: str) -> str:
    """The kind of feed of a `config.data.source`: a name of FEEDS, or "images"."""
    kind = source.partition(":")[0]
    return kind if kind in FEEDS else "images"


def small_side(flat: Flat) -> int:
    """The side of small views, in pixels; 0: a config has none."""
    if not flat["augment.small_views"] or flat["task"] != "pretrain":
        return 0
    return flat["augment.small_size"] or flat["data.image_size"] // 2


def of_images(source: str) -> bool:
    """Whether a `config.data.source` holds images."""
    return kind_of(source) == "images"
