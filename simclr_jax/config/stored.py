"""config.json, the config in a workdir; and the fields that a run adopts from another run's config."""

import contextlib
import json
from collections.abc import Mapping
from typing import Any

from etils import epath
from ml_collections import ConfigDict

from simclr_jax import files, hub, paths, registry
from simclr_jax.config.fields import RENAMED, RENAMED_VALUES, deciding, declared, default, flatten, set_field
from simclr_jax.errors import DamagedError, SimclrError
from simclr_jax.field import ARCHITECTURE, NOTHING, PIXELS

SCHEMA = 7  # of config.json; raise it when a field is added, renamed or changes its meaning
CONFIG_FILE = "config.json"

# Fields added after schema 1, with the value that keeps the behaviour older workdirs had.
OLD_BEHAVIOUR: dict[str, Any] = {"data.max_unreadable": 1.0}

# Fields that tell about a person or machine, and nothing about an encoder. They are not published, and those
# of a stranger's config.json are not obeyed: programs of a `compile_cache` are executed.
PERSONAL = ("compile_cache", "data.data_dir", "distill.teacher", "log.wandb_project", "start.workdir")


def to_json(config: ConfigDict, data: dict[str, Any]) -> str:
    """The text of config.json; `data` identifies the training set (its size and a fingerprint)."""
    tree = {"schema": SCHEMA, "config": config.to_dict(), "data": data}
    return json.dumps(tree, indent=2) + "\n"


def from_json(text: str) -> tuple[ConfigDict, dict[str, Any]]:
    """Reads config.json; a field that an older file lacks gets the value that keeps the old behaviour.

    In that of a published encoder the fields of PERSONAL count as their defaults.

    Returns:
      the config and what identifies its training set.

    Raises:
      SimclrError: the text is not a config.json, or is from a newer version.
    """
    try:
        tree = json.loads(text)
        schema, stored, data = int(tree["schema"]), flatten(tree["config"]), tree.get("data") or {}
        if not isinstance(data, dict):
            raise ValueError("its data is no object")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DamagedError(f"{CONFIG_FILE} is damaged ({error})") from None
    if schema > SCHEMA:
        raise SimclrError(
            f"{CONFIG_FILE} has schema {schema}, this version reads up to {SCHEMA}: update simclr_jax"
        )
    config = from_tree(stored)
    if tree.get("model_type") == hub.MODEL_TYPE:
        usual = flatten(default())
        for field in PERSONAL:
            set_field(config, field, usual[field])
    return config, data


def from_tree(tree: Mapping[str, Any]) -> ConfigDict:
    """The config that a tree of fields describes, of this version or of an older one.

    Raises:
      DamagedError: a field has a value of another type.
      SimclrError: it names an encoder that is not registered.
    """
    stored = flatten(dict(tree))
    config = default()
    known = flatten(config)
    for field, value in {**OLD_BEHAVIOUR, **_renamed(stored)}.items():
        if field in known:
            try:
                set_field(config, field, value)
            except (TypeError, ValueError, KeyError, AttributeError) as error:
                raise DamagedError(f"{CONFIG_FILE} is damaged ({field}: {error})") from None
    registry.entry(registry.ENCODERS, config.model.encoder, "model.encoder")
    return config


def _renamed(stored: dict[str, Any]) -> dict[str, Any]:
    """The fields of an older config.json under today's names."""
    found = {RENAMED.get(field, field): value for field, value in stored.items()}
    for field, names in RENAMED_VALUES.items():
        if isinstance(found.get(field), str):
            found[field] = names.get(found[field], found[field])
    return found


def examples_of(config: ConfigDict, workdir: epath.PathLike | None = None) -> dict[str, Any]:
    """What config.json says of the examples that decide how new ones are read; {} for none.

    That is the run's own where it goes on in `workdir`, else that of its start or teacher.
    """
    source = config.start.workdir or (config.distill.teacher if config.task == "distill" else "")
    if going_on(workdir) is not None:
        source = workdir
    return load_config(source)[1] if source else {}


def load_config(workdir: epath.PathLike) -> tuple[ConfigDict, dict[str, Any]]:
    """Reads the config.json of a workdir, or of a published encoder, by `from_json`.

    Raises:
      SimclrError: there is none, or it is damaged or from a newer version.
    """
    path = paths.expand(hub.local(workdir)) / CONFIG_FILE
    if not path.is_file():
        raise SimclrError(f"{workdir}: no {CONFIG_FILE} there; give the workdir of a run")
    try:
        return from_json(files.read_text(path))
    except SimclrError as error:
        raise type(error)(f"{workdir}: {error}") from None


def adopt_start(config: ConfigDict, workdir: epath.PathLike | None = None) -> ConfigDict:
    """Adopts the fields of `config.start.workdir` that describe its encoder and its images.

    These are the architecture, mean and std of images, the conversion of files to pixels, and crop and resize
    for evaluation (if the config has the defaults); also image size and channels if they are 0. A restorer
    has its start's encoder whatever the config says, and a decoder from another restorer alone. A student
    without a start takes size and channels from its teacher. A run that resumes in `workdir` reads all this
    from its own config.json, with the steps of start and teacher, and no longer needs its start.

    Raises:
      SimclrError: there is no run, or the config says otherwise.
    """
    flat = flatten(config)
    for field in ("start.workdir", "distill.teacher"):  # read before anything is validated
        if not isinstance(flat.get(field), str):
            raise SimclrError(f"config.{field}={flat.get(field)!r}: must be the path of a run, '' for none")
    start, config = config.start.workdir, config.copy_and_resolve_references()
    own = going_on(workdir)
    if own is not None and own.start.workdir == start:
        config.start.step = config.start.step or own.start.step
    if own is not None and _measured(own) == _measured(config):
        config.data.window = config.data.window or own.data.window
    if own is not None and own.distill.teacher == config.distill.teacher:
        config.distill.step = config.distill.step or own.distill.step
    if start:
        same = own if own is not None and own.start.workdir == start else None
        source = _stored(start, "start.workdir") if same is None else same
        _adopt_model(config, source)
    elif config.task == "distill":
        if not config.distill.teacher:
            raise SimclrError(
                "config.distill.teacher is empty: give the workdir of an encoder with a classifier"
            )
        source = _stored(config.distill.teacher, "distill.teacher")
    else:
        return config
    _adopt_pixels(config, source, start or config.distill.teacher)
    for field in ("image_size", "channels"):
        set_field(config, f"data.{field}", config.data[field] or source.data[field])
    return config


def _adopt_model(config: ConfigDict, source: ConfigDict) -> None:
    """Fields of `source` that are left at their defaults in `config`; a contradiction is refused."""
    restores = config.task == "restore"  # its recipe has an encoder, for runs without a start
    headless = source.model.projection == "none" and config.task == "pretrain"  # it gets a new head
    today, mine, theirs = flatten(default()), flatten(config), flatten(source)
    new = ("model.projection",) * (headless or restores)
    new += ("model.decoder.",) * (not restores or source.task != "restore")  # no other decoder is taken
    architecture = [field for field in deciding(ARCHITECTURE) if not field.startswith(new)]
    of_encoder = {field for field in architecture if restores and not field.startswith("model.decoder.")}
    for field in (*architecture, "data.mean", "data.std", "eval.crop", "eval.resize"):
        if mine[field] == today[field] or field in of_encoder:
            set_field(config, field, theirs[field])
        elif mine[field] != theirs[field] and not field.startswith("eval."):
            start = config.start.workdir
            raise SimclrError(f"config.{field}={mine[field]!r}: {start} has {theirs[field]!r}; leave it out")


def told_of_start(given: ConfigDict, config: ConfigDict) -> list[str]:
    """Lines about what `config`, adopted from `given`, has of its start in another way than one may think."""
    start, mine, now = config.start.workdir, flatten(given), flatten(config)
    if not start:
        return []
    lines, today = [], flatten(default())
    fields = [field for field in deciding(ARCHITECTURE) if mine[field] not in (today[field], now[field])]
    if fields:
        used = ", ".join(f"{field}={now[field]!r}" for field in fields)
        lines.append(f"the encoder is that of {start}: {used}")
    with contextlib.suppress(SimclrError):  # a run that goes on needs no start
        theirs = flatten(load_config(start)[0])
        if config.task == "pretrain" and registry.decodes(now) and registry.decodes(theirs):
            lines.append(f"the decoder of loss.name={config.loss.name} begins anew")
    return lines


def _adopt_pixels(config: ConfigDict, source: ConfigDict, where: str) -> None:
    """Adopts another run's fields for the conversion of files to pixels, if the config has the defaults.

    Refuses a value that is neither the default nor that run's.
    """
    today, mine, theirs = flatten(default()), flatten(config), flatten(source)
    for field in deciding(PIXELS):
        if mine[field] == today[field]:
            set_field(config, field, theirs[field])
        elif theirs[field] not in (mine[field], today[field]):
            raise SimclrError(f"config.{field}={mine[field]!r}: {where} has {theirs[field]!r}; leave it out")


def _measured(config: ConfigDict) -> tuple:
    """The fields that determine the window that a run measures."""
    return config.data.intensity, tuple(config.data.percentiles)


def going_on(workdir: epath.PathLike | None) -> ConfigDict | None:
    """The config of a workdir that has a checkpoint."""
    if not workdir:
        return None
    checkpoints = paths.expand(workdir) / "checkpoints"
    if checkpoints.is_dir() and any(child.name.isdigit() for child in checkpoints.iterdir()):
        with contextlib.suppress(SimclrError):  # resolving the run reports it
            return load_config(workdir)[0]
    return None


def _stored(workdir: str, field: str) -> ConfigDict:
    try:
        return load_config(workdir)[0]
    except SimclrError as error:
        why = str(error).removeprefix(f"{workdir}: ")
        raise SimclrError(f"config.{field}={workdir!r}: {why}") from None


def adopt_old_behaviour(config: ConfigDict, text: str) -> None:
    """Gives `config` the old behaviour of every field that the stored config.json lacks.

    A value other than today's default was the user's choice and stays; `differences` then refuses it.
    """
    stored, today, mine = _renamed(flatten(json.loads(text)["config"])), flatten(default()), flatten(config)
    for field, value in OLD_BEHAVIOUR.items():
        if field not in stored and mine[field] == today[field]:
            set_field(config, field, value)


def _comparable(config: ConfigDict) -> dict[str, Any]:
    """The fields as they are compared: more frozen stages than the encoder has are all of them."""
    flat = flatten(config)
    stages = registry.encoder_facts(flat).stages
    if stages is not None:
        with contextlib.suppress(KeyError, TypeError):  # damaged by hand; told where it is validated
            flat["finetune.after_block"] = min(flat["finetune.after_block"], stages(flat))
    return flat


def differences(old: ConfigDict, new: ConfigDict) -> list[str]:
    """One line `field: old -> new` for each differing field that changes the result.

    Ignores fields of encoders, objectives and feeds that neither config uses.
    """
    was, now, known = _comparable(old), _comparable(new), declared()
    idle = tuple(f"{place}." for place in {*registry.idle(was)} & {*registry.idle(now)})
    return [
        f"config.{field}: {was.get(field)!r} -> {now.get(field)!r}"
        for field in sorted({*was, *now})
        if was.get(field) != now.get(field)
        and not field.startswith(idle)
        and not (field in known and known[field].decides == NOTHING)
    ]
