"""The model card: README.md of a published folder, with the metadata that the Hub reads."""

import functools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
from etils import epath
from ml_collections import ConfigDict

from simclr_jax import files, hub, registry, run_summary
from simclr_jax.config import declared, default, flatten
from simclr_jax.encoder import Encoder
from simclr_jax.field import NOTHING
from simclr_jax.models import simclr
from simclr_jax.publish import private
from simclr_jax.results import WHO, Row, shown
from simclr_jax.version import __version__

REPORT = "eval/report.json"
TASKS = {
    "pretrain": "trained without labels",
    "supervised": "trained with labels",
    "distill": "trained to agree with a teacher",
    "restore": "trained to restore images",
}
TERMS = {  # of data that ships with the project
    "builtin:mnist5k": "MNIST, by Yann LeCun and Corinna Cortes, is licensed under CC BY-SA 3.0",
}
LIMITS = (
    "What lies far from the training data may be told apart badly.",
    "It has learned what its training data show, their gaps and their biases included; nobody has measured "
    "how it treats people or groups of them.",
    "Scores hold for the test images they were measured on. Measure on your own before you decide by it.",
)
KINDS = {1: "gray", 3: "RGB"}  # of images, by channels
# Parts of the config that are no part of the recipe, beside what decides nothing.
SILENT = ("checkpoint.", "eval.", "log.")
PACKAGES = ("python", "simclr_jax", "jax", "flax", "numpy")  # whose versions are told


class Facts(NamedTuple):
    """What the card tells.

    Attributes:
      config, data: without what is private.
      step: of the checkpoint; features: of the encoder; parameters: of the encoder.
      rows: the scores; verdict: a line about them; scored: where they come from, or why there are none.
      versions: of what the run was trained with, or of what is installed here.
      device: that the run was trained on; "" where nobody noted it.
    """

    config: ConfigDict
    data: dict[str, Any]
    step: int
    features: int
    parameters: int
    rows: list[Row]
    verdict: str
    scored: str
    versions: dict[str, str]
    device: str


def facts(found: Encoder, config: ConfigDict, data: dict[str, Any], workdir: epath.Path) -> Facts:
    """Facts about an encoder; config and data are those to be told, scores come from its workdir."""
    summary, report = (files.read_json(workdir / name) for name in (run_summary.FILE, REPORT))
    rows, verdict, scored = _scores(summary, report, found.step)
    spec = found.reader.spec()
    sample = jax.ShapeDtypeStruct((2, *spec.shape), spec.dtype)
    ends = jax.eval_shape(functools.partial(simclr.endpoints, found.model), found.variables, sample)
    features = ends[simclr.endpoint_name(found.model.encoder, "final_avg_pool")].shape[-1]
    count = sum(leaf.size for leaf in jax.tree.leaves(found.variables["params"]["encoder"]))
    versions = _strings(summary.get("versions")) or _strings(run_summary.environment()["versions"])
    device = summary.get("device")
    kind = str(device.get("kind", "")) if isinstance(device, dict) else ""
    return Facts(config, data, found.step, features, count, rows, verdict, scored, versions, kind)


def _strings(found: Any) -> dict[str, str]:
    found = found if isinstance(found, dict) else {}
    return {name: str(found[name]) for name in PACKAGES if name in found}


def _scores(summary: Mapping[str, Any], report: Mapping[str, Any], step: int) -> tuple[list[Row], str, str]:
    """(rows, verdict, where they come from) of this step; the report of `simclr evaluate` comes first."""
    others = []
    for found, own, where in (
        (report, report.get("step"), "`simclr evaluate`"),
        (summary, summary.get("steps"), "the end of its training"),
    ):
        try:
            rows = [Row.of(row) for row in found.get("rows", ())]
        except (TypeError, AttributeError, KeyError):  # of another version, or edited
            rows = []
        if rows and own == step:
            scored = f"Measured by {where}, on the test images of its data.{_choices(found.get('choices'))}"
            return rows, str(found.get("verdict", "")), scored
        others += [str(own)] if rows else []
    why = f"those there are belong to step {', '.join(others)}" if others else "nobody has measured any"
    return [], "", f"No scores: {why}. `simclr evaluate --workdir=RUN` measures them."


def _choices(found: Any) -> str:
    """The settings of this encoder's classifiers, as a sentence; "" where nobody noted them."""
    told = []
    for name, by in found.items() if isinstance(found, dict) else ():
        own = by.get("simclr") if isinstance(by, dict) else None
        if isinstance(own, dict):
            told.append(f"{name} " + ", ".join(f"{field}={value}" for field, value in own.items()))
    return f" Settings, chosen without those images: {'; '.join(told)}." if told else ""


def render(found: Facts, licence: str, name: str, files_there: Sequence[str]) -> str:
    """The text of README.md.

    Args:
      licence: of the weights.
      name: OWNER/NAME, builtin:NAME, or a name alone.
      files_there: in the folder, beside README.md.
    """
    title = re.split("[/:]", name)[-1]
    sections = (
        ("", _about(found)),
        ("Use", _use(found, name, files_there)),
        ("Data", _data(found)),
        ("Recipe", _recipe(found)),
        ("Scores", _table(found)),
        ("Limits", (f"- {line}" for line in _limits(found))),
        ("Licence", _licence(found, licence)),
        ("Versions", [", ".join(f"{name} {version}" for name, version in found.versions.items())]),
    )
    lines = [*_metadata(found, licence, files_there), f"# {title}"]
    for heading, text in sections:
        lines += ["", *([f"## {heading}", ""] if heading else []), *text]
    return "\n".join(lines) + "\n"


def _metadata(found: Facts, licence: str, files_there: Sequence[str]) -> Iterator[str]:
    """The YAML that the Hub reads; JSON's strings are YAML's."""
    tags = ["simclr", "self-supervised-learning", "jax", "flax", found.config.model.encoder]
    tags += [found.config.loss.name] if found.config.task == "pretrain" else []
    tags += ["onnx"] if "encoder.onnx" in files_there else []
    yield from ("---", f"license: {json.dumps(licence)}", "library_name: simclr_jax")
    if registry.of_images(found.config.data.source):
        yield "pipeline_tag: image-feature-extraction"
    yield from ("tags:", *(f"- {json.dumps(tag)}" for tag in dict.fromkeys(tags)), "---", "")


def _architecture(config: ConfigDict) -> str:
    model = config.model
    if model.encoder != "resnet":
        return f"Encoder `{model.encoder}`, width {model.width:g}"
    text = f"ResNet-{model.depth}" if not model.blocks else f"ResNet of {list(model.blocks)} blocks"
    gates = [f"{field}={model[field]:g}" for field in ("sk_ratio", "se_ratio") if model[field]]
    return ", ".join([f"{text}, width {model.width:g}, {model.stem} stem", *gates])


def _about(found: Facts) -> Iterator[str]:
    config = found.config
    how = TASKS.get(config.task, f"of task {config.task}")
    origin = f"trained by {config.loss.name} " if config.task == "pretrain" else f"{how} "
    if "converted_from" in found.data:
        origin = f"converted from {found.data['converted_from']} "
    yield (
        f"{_architecture(config)}: {found.parameters:,} parameters, {found.features} features; {origin}"
        f"with simclr_jax {__version__}, at step {found.step:,}."
    )
    if found.verdict:
        yield from ("", found.verdict)


def _use(found: Facts, name: str, files_there: Sequence[str]) -> Iterator[str]:
    config, data = found.config, found.config.data
    where = name if name.startswith(hub.BUILTIN) else hub.HUB + (name if "/" in name else f"OWNER/{name}")
    yield from (
        "```python",
        "import simclr_jax",
        "",
        f'encoder = simclr_jax.load("{where}")  # or its folder',
    )
    if registry.of_images(data.source):
        yield (
            f"features = encoder(images, preprocess=True)  # uint8 [n, h, w, {data.channels}] to "
            f"float32 [n, {found.features}]"
        )
    else:
        yield f"features = encoder(rows)  # float32 [n, {found.features}]"
    yield from ("```", "")
    if registry.of_images(data.source):
        seen = f"normalised by mean {list(data.mean)} and std {list(data.std)}" if data.mean else "in [0, 1]"
        yield (
            f"`preprocess=True` crops the central {config.eval.crop:g} and resizes it to {data.image_size} "
            f"pixels ({config.eval.resize}); images are {seen}."
        )
    yield "`model.safetensors` holds every array by its path in the model, `config.json` all else."
    if "encoder.onnx" in files_there:
        yield "`encoder.onnx` takes uint8 images of any size; `encoder.onnx.json` says how exact it is."


def _data(found: Facts) -> Iterator[str]:
    data, config = found.data, found.config.data
    images, channels = registry.of_images(config.source), KINDS.get(config.channels)
    channels = channels or f"{config.channels} channels"
    size = f"{data['examples']:,} examples of " if isinstance(data.get("examples"), int) else ""
    yield f"{size}`{config.source or 'data that the run does not name'}`" + (
        f", {config.image_size}×{config.image_size} pixels, {channels}." if images else "."
    )
    if classes := data.get("classes"):
        some = ", ".join(map(str, classes[:20])) + (
            f" and {len(classes) - 20} more" if len(classes) > 20 else ""
        )
        yield from ("", f"{len(classes)} classes: {some}.")


def _recipe(found: Facts) -> Iterator[str]:
    """The fields that differ from the defaults."""
    today, mine = flatten(default()), flatten(found.config)
    idle = tuple(f"{place}." for place in registry.idle(mine))
    known = declared()
    changed = {
        field: value
        for field, value in mine.items()
        if value != today.get(field)
        and not field.startswith((*idle, *SILENT))
        and not (field in known and known[field].decides == NOTHING)
    }
    yield from ("Fields of `config` that differ from their defaults; `config.json` has all.", "")
    yield from ("| field | value |", "|---|---|")
    yield from (f"| {field} | {_cell(value)} |" for field, value in sorted(changed.items()))
    if found.device:
        yield from ("", f"Trained on {found.device}.")


def _cell(value: Any) -> str:
    return re.sub(r"[|\n\r`]", " ", str(list(value) if isinstance(value, tuple) else value))


def _table(found: Facts) -> Iterator[str]:
    """The scores as a table, with their intervals."""
    yield found.scored
    if not found.rows:
        return
    columns = [who for who in WHO if any(who in row.cells for row in found.rows)]
    yield from ("", " | ".join(["| %, with 95 % interval", *map(WHO.__getitem__, columns)]) + " |")
    yield "|---" * (1 + len(columns)) + "|"
    for row in found.rows:
        yield (
            " | ".join(
                [f"| {_cell(private.of_title(row.title))}", *(shown(row.cells.get(who)) for who in columns)]
            )
            + " |"
        )


def _limits(found: Facts) -> Iterator[str]:
    data = found.config.data
    if registry.of_images(data.source):
        colours = KINDS.get(data.channels, f"{data.channels}-channel")
        yield f"Made for {colours} images, seen at {data.image_size} pixels a side: finer detail is lost."
        yield "Other cameras, stains, styles or sizes than the training's make another kind of image."
    yield from LIMITS


def _licence(found: Facts, licence: str) -> Iterator[str]:
    yield f"The weights: {licence}. The training data have terms of their own."
    if terms := TERMS.get(found.config.data.source):
        yield f"{terms}."
