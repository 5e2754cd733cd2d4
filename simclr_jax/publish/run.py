"""Writes the folder that is published, as a whole or not at all."""

import json
import os
import pathlib
import re
from typing import Any, NamedTuple

import numpy as np
from etils import epath
from ml_collections import ConfigDict

from simclr_jax import checkpoint, encoder, files, hub, paths, published, run_summary
from simclr_jax.config import to_json
from simclr_jax.errors import SimclrError
from simclr_jax.publish import card, private

ONNX = "encoder.onnx"
OURS = {
    hub.CONFIG_FILE, hub.WEIGHTS, hub.CARD, ONNX, f"{ONNX}.json", f"{ONNX}.data", "encoder.requirements.txt",
    "encoder.config.pbtxt",
}  # fmt: skip


class Options(NamedTuple):
    """How to publish.

    Attributes:
      out: the folder.
      licence: of the weights, as the Hub writes it.
      name: OWNER/NAME on the Hub, for the card; "" for a name still to be chosen.
      step: of the run's checkpoints; 0: the newest.
      again: replace a folder that is there.
      onnx: whether to write encoder.onnx; None: where the encoder has a writer.
    """

    out: epath.PathLike
    licence: str
    name: str = ""
    step: int = 0
    again: bool = False
    onnx: bool | None = None


def publish(workdir: epath.PathLike, options: Options) -> list[str]:
    """Writes the folder `options.out`; returns lines that tell what is in it.

    Raises:
      SimclrError: there is no such run, or the folder is there already; nothing is left behind.
    """
    out = pathlib.Path(paths.absolute(paths.local(options.out, "--out")))
    _check_free(out, options.again)
    found = encoder.load(workdir, options.step)
    config, data = private.reduced(found.config, found.data)
    with files.staged(out) as place:
        folder = place / out.name
        folder.mkdir()
        written = published.write(folder, checkpoint.named(found.variables), _described(found, config, data))
        notes = _write_onnx(folder, options.onnx)
        facts = card.facts(found, config, data, paths.expand(hub.local(workdir)))
        there = sorted(path.name for path in folder.iterdir())
        text = card.render(facts, options.licence, options.name or out.name, there)
        files.write(epath.Path(folder) / hub.CARD, text)
        _check(folder, found, (paths.absolute(workdir), folder, pathlib.Path.home()))
        files.move(folder, out.parent)
        lines = [f"  {path.name}  {path.stat().st_size:,} bytes" for path in sorted(out.iterdir())]
    return [*notes, f"step {written['step']} of {workdir}", str(options.out), *lines]


def _described(found: encoder.Encoder, config: ConfigDict, data: dict[str, Any]) -> dict[str, Any]:
    """What config.json says beside the weights."""
    versions = run_summary.environment()["versions"]
    return {**json.loads(to_json(config, data)), "step": found.step, "versions": versions}


def _check(folder: pathlib.Path, found: encoder.Encoder, places: tuple[os.PathLike, ...]) -> None:
    """Raises SimclrError where what was written is another encoder, or tells one of `places`."""
    _, params, state = published.read(folder)
    mine, theirs = (checkpoint.named(x) for x in (found.variables, {"params": params, **state}))
    same = (np.array_equal(mine[name], theirs[name], equal_nan=True) for name in mine.keys() & theirs.keys())
    if mine.keys() != theirs.keys() or not all(same):
        raise SimclrError(f"{hub.WEIGHTS} holds other weights than the run; nothing was published")
    for path in folder.iterdir():
        text = path.read_bytes() if path.name != hub.WEIGHTS else b""
        for place in map(os.fspath, places):
            spelt = {re.escape(each.encode()) for each in (place, json.dumps(place)[1:-1])}
            if len(place) > 1 and re.search(rb"(?<!\w)(" + b"|".join(spelt) + rb")(?!\w)", text):
                raise SimclrError(f"{path.name} would tell {place}: take it out of the run's config.json")


# ---- the folder -----------------------------------------------------------------------------------


def _check_free(out: pathlib.Path, again: bool) -> None:
    """Raises SimclrError where something is there that this command may not replace."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not out.is_dir():
        raise SimclrError(f"--out={out}: is a file; give a folder")
    if not again:
        raise SimclrError(f"--out={out}: exists already; choose another, or replace it with --again")
    others = {each.name for each in out.iterdir()} - OURS
    if others or not published.holds(out):
        what = min(others, default="no encoder")
        raise SimclrError(
            f"--out={out}: holds {what}, which this command did not write; choose another folder"
        )


def _write_onnx(folder: pathlib.Path, wanted: bool | None) -> list[str]:
    """Writes encoder.onnx beside the weights, which it is made of: nothing private is there any more.

    Returns:
      lines on how exact it is, or why there is none.

    Raises:
      SimclrError: it is `wanted`, and cannot be written.
    """
    if wanted is False:
        return []
    from simclr_jax.export import run as exporting

    try:
        told = exporting.export(folder, 0, exporting.Wish(out=str(folder / ONNX)))
    except SimclrError as error:
        if wanted:
            raise
        return [f"without {ONNX}: {error}"]
    path = folder / f"{ONNX}.json"
    about = json.loads(path.read_text())
    about["run"].pop("workdir", None)  # a folder that is gone
    files.write(epath.Path(path), json.dumps(about, indent=2) + "\n")
    return [line for line in told if str(folder) not in line]
