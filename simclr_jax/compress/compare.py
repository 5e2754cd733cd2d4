"""Several artefacts side by side: size, time an image, and how good their features are."""

import dataclasses
import json
import statistics
import time
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from simclr_jax import files, paths, sharding
from simclr_jax.compress import artefact as artefacts
from simclr_jax.compress.artefact import Artefact
from simclr_jax.compress.int8 import here
from simclr_jax.errors import SimclrError
from simclr_jax.measures.features import Features
from simclr_jax.metrics import watched
from simclr_jax.protocols import scores
from simclr_jax.results import HEAD, Cell, shown
from simclr_jax.tasks.extractor import labelled
from simclr_jax.text import show_table

ROUNDS = 30  # timed calls of each artefact and batch
BATCHES = (1, 32)
AT_ONCE = 64  # images, for features
COLUMNS = ("artefact", "MB", "ms at 1", "ms at 32", "kNN", "linear")


class Line(NamedTuple):
    """What is known of an artefact; no scores without labels.

    Attributes:
      size: bytes; ms: milliseconds an image, by batch.
      scores: {knn, linear_all: top-1 on test with all training labels, as `protocols.scores` chooses them}.
    """

    name: str
    size: int
    ms: dict[int, float]
    scores: dict[str, Cell]


def compare(names: Sequence[str], workdir: str = "", out: str = "") -> list[str]:
    """Measures the artefacts on the images of their run, or of the run `workdir`; prints the table.

    Args:
      out: JSON with the same, "" for none.

    Raises:
      SimclrError: an artefact or the images are not there, or they do not fit together.
    """
    found = [artefacts.read(name, "--compare") for name in names]
    config, splits = artefacts.splits_of(found[0], workdir)
    channels = {each.about["input"]["channels"] for each in found}
    if len(channels) > 1:
        raise SimclrError(
            f"--compare: the artefacts take images of {' and '.join(map(str, channels))} channels"
        )
    if splits.test is None:
        raise SimclrError(f"{splits.train.name}: has no test images; name a run that has, by --workdir=RUN")
    parts = [artefacts.whole(split, config) for split in (splits.train, splits.test)]
    quick = timed(found, parts[1][0])
    groups = getattr(splits.train, "groups", None)
    lines = []
    for name, each, ms in zip(names, found, quick, strict=True):
        train, test = (labelled(Features(features(each, images), labels)) for images, labels in parts)
        known = groups if groups is None else groups[parts[0][1] >= 0]
        scored = score(scores.Contender(name, train, test, known), len(splits.train.classes), config)
        lines.append(Line(name, each.size, ms, scored))
    tell(lines, f"{splits.train.name}, {splits.test.size:,} test images")
    if out:
        rows = [
            {**line._asdict(), "scores": {name: dataclasses.asdict(one) for name, one in line.scores.items()}}
            for line in lines
        ]
        text = json.dumps({"schema": 1, "machine": here(), "rows": rows}, indent=2)
        files.write(paths.local(out, "--out"), f"{text}\n")
    return [out] if out else []


def features(artefact: Artefact, images: np.ndarray) -> np.ndarray:
    """The artefact's features `[n, d]` of images `[n, h, w, c]`."""
    parts = np.array_split(images, -(-len(images) // AT_ONCE))
    found = [artefact.run(part)["features"] for part in watched(parts, len(parts), "batch")]
    return np.concatenate(found)


def score(contender: scores.Contender, classes: int, config: ConfigDict) -> dict[str, Cell]:
    """{knn, linear_all: on test}; {} without labels."""
    if classes < 2:
        return {}
    config = config.copy_and_resolve_references()
    config.eval.linear.draws = 0  # no probes on few labels
    found = scores.score(contender, classes, sharding.make_mesh(1), config.eval)
    return {name: one.cell for name, one in found.items()}


def timed(found: Sequence[Artefact], images: np.ndarray) -> list[dict[int, float]]:
    """{batch: median milliseconds an image} of each, on one thread; their calls take turns.

    It is the thread's own time, which other programs on the machine do not lengthen.
    """
    runs = [each.session(threads=1) for each in found]
    times: list[dict[int, list[float]]] = [{batch: [] for batch in BATCHES} for _ in found]
    for batch in BATCHES:
        some = np.resize(images, (batch, *images.shape[1:]))
        for turn in range(ROUNDS + 2):  # two to warm up
            for run, of in zip(runs, times, strict=True):
                begin = time.thread_time()
                run(some)
                if turn > 1:
                    of[batch].append(1e3 * (time.thread_time() - begin) / batch)
    return [{batch: statistics.median(each) for batch, each in of.items()} for of in times]


def tell(lines: Sequence[Line], title: str) -> None:
    """Prints the table."""
    rows = []
    for line in lines:
        quality = [shown(line.scores.get(name)) for name in ("knn", "linear_all")]
        rows.append([line.name, f"{line.size / 1e6:.2f}", *(f"{line.ms[n]:.2f}" for n in BATCHES), *quality])
    note = f"ms an image: one thread of this CPU ({here()}) in onnxruntime, median of {ROUNDS} calls in turns"
    show_table(title, COLUMNS, rows, [note, f"kNN and linear, all labels: {HEAD}"])
