"""One evaluation: protocols in order, each kept when it is done, then the report."""

import contextlib
import importlib.util
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
from etils import epath
from ml_collections import ConfigDict

from simclr_jax import checkpoint, encoder, files, hub, memory_error, paths, sharding
from simclr_jax.config import bounds, checks, flatten
from simclr_jax.config.fields import deciding
from simclr_jax.data import notes
from simclr_jax.data.splits import Splits
from simclr_jax.errors import SimclrError, Stopped, StorageError
from simclr_jax.evaluate import decoded, frozen, inside, learning, page, report, robust
from simclr_jax.evaluate.subject import Subject, differences
from simclr_jax.feeds import load_splits
from simclr_jax.field import ARCHITECTURE
from simclr_jax.protocols import scores
from simclr_jax.results import Result
from simclr_jax.signals import Signals
from simclr_jax.train import use_compile_cache

PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        frozen.features, scores.of_subject, frozen.nearest_neighbours, frozen.logistic_regression,
        frozen.linear_heads, frozen.own_classifier, robust.robustness, robust.invariance,
        inside.representation, inside.neighbourhood, inside.where_it_looks, inside.maps,
        decoded.reconstructions,
        learning.few_labels, learning.transfer,
    )
}  # fmt: skip
DEFAULT = tuple(name for name in PROTOCOLS if name not in ("finetune", "transfer"))


def evaluate(
    workdir: epath.PathLike,
    *,
    protocols: Sequence[str] = DEFAULT,
    config: ConfigDict | None = None,
    step: int = 0,
    transfer: Sequence[str] = (),
    splits: Splits | None = None,
    again: bool = False,
) -> dict[str, Any]:
    """Evaluates the encoder of a run and writes `workdir/eval`: report.html, report.json, figures.

    Other images, another endpoint or another checkpoint than the run's own get a folder of their own below
    it. What an earlier call has found of the same is kept.

    Args:
      workdir: of a run, trained here or converted.
      protocols: names of PROTOCOLS, run in the order of that dict.
      config: the run's own, with changes.
      step: of its checkpoints; 0: the newest.
      transfer: sources of labelled images for the protocol of that name.
      splits: the images, where the config's source is "arrays".
      again: run the protocols although their results are there.

    Returns:
      the report, as written to report.json.

    Raises:
      SimclrError: something the user can put right; one line that says what.
    """
    workdir = paths.expand(hub.local(workdir))
    wanted = ["transfer"] * bool(transfer) + _check(protocols)
    found = encoder.load(workdir, step)
    config = complete(found.config, config, workdir)
    subject, told = _subject(workdir, found, config, splits)
    say = print if subject.first else _say_nothing
    for line in told:
        say(line, flush=True)
    if "transfer" in wanted:  # a mistake in their names is told before the rest begins
        _load_sets(subject, transfer, say)
    chosen = [
        name
        for name in PROTOCOLS
        if name in wanted or any(PROTOCOLS[other].after == name for other in wanted)
    ]
    unscorable = subject.unscorable(look=any("labels" in PROTOCOLS[name].needs for name in chosen))
    if unscorable:
        say(f"no classifier can be scored: {unscorable}")
    results, failed = _found(subject, chosen, wanted, unscorable, again, say)
    made = report.make(subject, {name: results[name] for name in PROTOCOLS if name in results}, unscorable)
    if subject.first:
        subject.write("report.json", made)
        files.write(subject.folder / "report.html", page.render(made, subject.folder))
    if failed:
        raise failed
    return made


def _subject(
    workdir: epath.Path, found: encoder.Encoder, config: ConfigDict, splits: Splits | None
) -> tuple[Subject, list[str]]:
    """(what is evaluated, lines for the user about it) of the encoder `found` and the config wanted."""
    use_compile_cache(config.compile_cache)
    mesh = sharding.make_mesh(config.mesh.devices)
    checks.check_divisible(config, ("eval.batch_size", "train.batch_size"), mesh.size)
    if config.data.percentiles != found.config.data.percentiles:  # the window is measured again
        config.data.window = ()
    splits = splits or load_images(config, found.data)
    if reading := splits.train.reading:
        config.data.window = reading.window
    told = notes.describe(splits)  # now: in memory the images are another source
    mine = encoder.Encoder(config, found.classes, found.step, found.variables, found.data)
    newest = found.step == max(checkpoint.saved_steps(workdir / "checkpoints"), default=found.step)
    changed = [] if newest else [f"step={found.step}"]
    changed += differences(found.config, config)
    with memory_error.explained(memory_error.evaluation, config):
        subject = Subject(workdir, config, mine, splits, mesh, changed, trained=found.config)
    tested = f", {splits.test.size:,} to test on" if splits.test else ""
    images = f"{splits.train.size:,} images to learn from ({splits.train.name}){tested}"
    return subject, [f"{workdir}, step {found.step}, {config.eval.endpoint}; {images}", *told]


def _load_sets(subject: Subject, transfer: Sequence[str], say: Callable) -> None:
    """Loads the sets of the protocol transfer, and tells about them."""
    subject.sets = {source: learning.load(subject.config, source) for source in transfer}
    for source, data in subject.sets.items():
        for line in notes.describe(data.splits):
            say(f"--transfer={source}: {line}", flush=True)


def _found(
    subject: Subject,
    chosen: Sequence[str],
    wanted: Sequence[str],
    unscorable: str,
    again: bool,
    say: Callable,
) -> tuple[dict[str, Any], SimclrError | None]:
    """({protocol: what it found, now or earlier}, the first error of one)."""
    results, failed = _kept(subject), None
    subject.results = results
    signals = Signals()
    # Several processes do not agree on a protocol to stop after: there a signal ends all of them.
    with signals if jax.process_count() == 1 else contextlib.nullcontext():
        for name in chosen:
            if "labels" in PROTOCOLS[name].needs and unscorable:
                continue
            options, new = _options(name, subject), again and name in wanted
            if name in results and results[name]["options"] == options and not new:
                say(f"{name:<12} kept")
                continue
            subject.before = {} if new else results.pop(name, {})
            try:
                results[name] = _run(name, subject, options, new, say)
            except StorageError:  # the others would find the disk full, too
                raise
            except SimclrError as error:  # the others are not lost
                failed = failed or error
                say(f"{name:<12} failed: {error}", flush=True)
            _stop_if_told(signals, name)
    return results, failed


def _say_nothing(*_: Any, **__: Any) -> None:
    """`print` of the processes that are not the first."""


def _options(name: str, subject: Subject) -> dict[str, Any]:
    """What decides the result of a protocol beside the subject."""
    options = {field: _json(subject.config.eval, field) for field in PROTOCOLS[name].options}
    if name == "transfer":
        options["sets"] = {source: learning.key_of(subject, data) for source, data in subject.sets.items()}
    if name == "maps":
        options["umap"] = importlib.util.find_spec("umap") is not None
    return options


def _run(name: str, subject: Subject, options: dict[str, Any], again: bool, say: Callable) -> dict[str, Any]:
    """What a protocol finds, as JSON, which is kept."""
    subject.again = again
    begin = time.perf_counter()
    with memory_error.explained(memory_error.evaluation, subject.config):
        lacks = subject.lacks(PROTOCOLS[name].needs)
        result = Result(skipped=lacks) if lacks else PROTOCOLS[name].run(subject)
    seconds = round(time.perf_counter() - begin, 2)
    found = {"subject": subject.key, "options": options, "seconds": seconds, **result.json()}
    subject.write(f"protocols/{name}.json", found)
    say(f"{name:<12} {result.skipped or f'{seconds:.1f} s'}", flush=True)
    return found


def _stop_if_told(signals: Signals, name: str) -> None:
    signals.check()  # Ctrl-C that came in a destructor
    if signals.received:
        raise Stopped(f"stopped after the protocol {name}; the same command goes on")


def _json(node: ConfigDict, field: str) -> Any:
    """The field 'a.b' as JSON gives it back."""
    for part in field.split("."):
        node = node[part]
    return list(node) if isinstance(node, tuple) else node


def _check(protocols: Sequence[str]) -> list[str]:
    for name in protocols:
        if name not in PROTOCOLS:
            raise SimclrError(f"--protocols={name}: must be one or more of {', '.join(PROTOCOLS)}")
    return list(protocols)


def complete(own: ConfigDict, wanted: ConfigDict | None, workdir: epath.PathLike) -> ConfigDict:
    """The config of the evaluation, with the run's loss, which says what its decoder makes.

    Raises:
      SimclrError: the config names another model than the run's, or does not fit.
    """
    config = (wanted or own).copy_and_resolve_references()
    config.loss.update(own.loss)
    mine, theirs = flatten(own), flatten(config)
    for field in deciding(ARCHITECTURE):
        if mine[field] != theirs[field]:
            raise SimclrError(
                f"config.{field}={theirs[field]!r}: {workdir} has {mine[field]!r}; leave it out"
            )
    if config.data.source not in ("", "arrays"):
        checks.validate(config)
    else:
        bounds.check(flatten(config))
    return config


def load_images(config: ConfigDict, stored: dict[str, Any]) -> Splits:
    """The images of the config of an evaluation; one that names none is refused."""
    if config.data.source in ("", "arrays"):
        raise SimclrError(
            "the run does not say where images are: name those to evaluate on, for example "
            "--config.data.source=folder:/my/images"
        )
    return load_splits(config, stored)


def _kept(subject: Subject) -> dict[str, Any]:
    """What earlier calls found of this subject, by protocol."""
    found = {}
    for name in PROTOCOLS:
        result = files.read_json(subject.folder / "protocols" / f"{name}.json")
        there = bool(result) and result.get("subject") == subject.key
        if sharding.agreed(int(there)) and there:
            found[name] = result
    return found
