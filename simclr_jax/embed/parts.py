"""The rows done so far: files BEGIN-END.npz in a folder beside the result, each written as a whole."""

import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from simclr_jax import files, storage
from simclr_jax.errors import SimclrError
from simclr_jax.index import table
from simclr_jax.index.table import Embeddings

NAME = re.compile(r"(\d{12})-(\d{12})\.npz")
PLAN = "plan.json"
WORDS = {
    "encoder": "run or checkpoint",
    "endpoint": "endpoint",
    "view": "preprocessing",
    "files": "way of reading files",
    "images": "list of images",
}


class Part(NamedTuple):
    """Rows `begin` to `end` of the images; those that could not be read are named in its meta."""

    begin: int
    end: int
    path: Path


class Parts:
    """The folder of parts of `n` rows; begun by one plan, which every later call has to have too."""

    def __init__(self, folder: Path, n: int):
        self.folder, self.n = folder, n

    def begin(self, plan: dict[str, Any], out: str) -> None:
        """Writes the plan, or compares it with the one that is there.

        Raises:
          SimclrError: the parts were made by another plan.
        """
        path = self.folder / PLAN
        if path.is_file():
            told = told_apart(files.read_json(epath.Path(path)), plan)
            if told:
                raise SimclrError(
                    f"--out={out}: was begun with another {told}; give another --out, or remove {self.folder}"
                )
            return
        with storage.writing(path):
            self.folder.mkdir(parents=True, exist_ok=True)
            with table.replacing(path, "w") as file:
                file.write(json.dumps(plan))

    def done(self) -> list[Part]:
        """The parts in order; one that repeats rows of another (two commands at once) is removed."""
        found = sorted(
            Part(int(name[1]), int(name[2]), path)
            for path in self.folder.glob("*.npz")
            if (name := NAME.fullmatch(path.name))
        )
        kept, at = [], 0
        for part in found:
            if part.begin < at:
                part.path.unlink(missing_ok=True)
            else:
                kept.append(part)
                at = part.end
        return kept

    def gaps(self) -> list[tuple[int, int]]:
        """(begin, end) of the rows that are not done."""
        done = self.done()
        ends = [0, *(part.end for part in done)]
        begins = [*(part.begin for part in done), self.n]
        return [(a, b) for a, b in zip(ends, begins, strict=True) if a < b]

    def awaited(self) -> bool:
        """Whether another process has rows to do; no longer once the first one has merged them all."""
        return (self.folder / PLAN).is_file() and bool(self.gaps())

    def write(self, begin: int, end: int, rows: Embeddings) -> None:
        """Adds a part.

        Raises:
          StorageError: the disk is full or read-only.
        """
        path = self.folder / f"{begin:012d}-{end:012d}.npz"
        with storage.writing(path, rows.features.nbytes):
            table.write(path, rows)

    def read(self) -> Iterator[Embeddings]:
        """The parts, one at a time.

        Raises:
          SimclrError: a part is damaged.
        """
        for part in self.done():
            try:
                yield table.read(part.path)
            except SimclrError as error:
                raise SimclrError(f"{error}; remove this file, and the same command does it again") from None

    def unreadable(self) -> dict[str, str]:
        """{name: why} of the images that could not be read."""
        return {name: why for part in self.done() for name, why in _about(part)["unreadable"].items()}


def _about(part: Part) -> dict[str, Any]:
    return {"unreadable": {}, **table.meta_of(part.path)}


def told_apart(one: dict[str, Any], other: dict[str, Any]) -> str:
    """What differs between two plans, in words; "" if nothing does."""
    return ", ".join(word for key, word in WORDS.items() if one.get(key) != other.get(key))


def shared(gaps: list[tuple[int, int]], process: int, processes: int) -> list[tuple[int, int]]:
    """A process's share of the gaps: neighbouring rows, so that what is read in order is read once."""
    total = sum(b - a for a, b in gaps)
    low, high = (total * i // processes for i in (process, process + 1))
    mine, at = [], 0
    for a, b in gaps:
        begin, end = max(a, a + low - at), min(b, a + high - at)
        if begin < end:
            mine.append((begin, end))
        at += b - a
    return mine


def runs(positions: np.ndarray) -> list[tuple[int, int]]:
    """(first, last + 1) into `positions` of each stretch without a gap."""
    cuts = np.flatnonzero(np.diff(positions) != 1) + 1
    edges = [0, *cuts.tolist(), len(positions)]
    return [(a, b) for a, b in itertools.pairwise(edges) if a < b]
