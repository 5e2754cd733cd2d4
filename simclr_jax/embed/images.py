"""What `--images` names: a folder, a glob, a table of files, or a set of TFDS."""

import glob
import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from simclr_jax import paths
from simclr_jax.data import lists, tfds
from simclr_jax.data.formats import EXTENSIONS, Reading
from simclr_jax.data.labels import NO_LABEL
from simclr_jax.data.scan import scan
from simclr_jax.data.sources import Source, Stream, as_text, from_files
from simclr_jax.errors import SimclrError

TABLES = (".csv", ".tsv", ".txt")
MAGIC = "*?["


class Images(NamedTuple):
    """Images in order.

    Attributes:
      source: gives access to them; files that cannot be read are marked.
      root: the folder of the files, or the name of a set.
      notes: lines for the user.
    """

    source: Source | Stream
    root: str
    notes: tuple[str, ...] = ()

    def name(self, row: int) -> str:
        """The file's name below `root`; of images without files the set's name and a number."""
        names = getattr(self.source, "names", ())
        return names[row] if names else f"{self.root}#{row}"

    def label(self, number: int) -> str:
        """The name of a class, "" for none."""
        return self.source.classes[number] if 0 <= number < len(self.source.classes) else ""


def find(where: str, split: str, data: Any) -> Images:
    """The images of `--images`.

    The class of a file is the first folder of its name; of a table, what the table says.

    Args:
      split: of a set of TFDS; data: the `config.data` of the run, which says how files are read.

    Raises:
      SimclrError: nothing is there, or no image in it.
    """
    reading = Reading.of(**data)
    kind, _, name = where.partition(":")
    if kind == "tfds":
        fits = (data.memory_gb, data.shuffle_buffer, reading)
        source = tfds.load(name, data.data_dir, data.download, (split, ""), *fits).train
        return Images(source, source.name, source.notes)
    path = Path(paths.local(where, "--images"))
    if path.is_dir():
        return _of_folder(path, where, reading)
    if path.is_file() and path.suffix.lower() in TABLES:
        _, rows, notes = lists.table(path)
        return _files([(row.file, row.label) for row in rows], path.parent, reading, notes)
    if path.is_file():
        return _files([(path.name, "")], path.parent, reading)
    if any(sign in where for sign in MAGIC):
        return _of_glob(path, where, reading)
    raise SimclrError(f"--images={where}: no such folder, file or tfds:NAME")


def _of_folder(folder: Path, where: str, reading: Reading) -> Images:
    found = scan(folder)
    rows = [(name, label) for label in sorted(found.images) for name in found.images[label]]
    return _files(rows, folder, reading, found.notes(f"--images={where}"))


def _of_glob(pattern: Path, where: str, reading: Reading) -> Images:
    parts = pattern.parts
    first = next(i for i, part in enumerate(parts) if any(sign in part for sign in MAGIC))
    root = Path(*parts[:first])
    below = str(Path(*parts[first:]))
    found = sorted(set(glob.glob(below, root_dir=root, recursive=True)))  # **/**/x finds x several times
    names = [name for name in found if name.lower().endswith(EXTENSIONS) and (root / name).is_file()]
    if not names:
        raise SimclrError(f"--images={where}: no image ({', '.join(EXTENSIONS)}) fits the pattern")
    return _files([(name, name.split("/")[0] if "/" in name else "") for name in names], root, reading)


def _files(rows: list[tuple[str, str]], root: Path, reading: Reading, notes: tuple[str, ...] = ()) -> Images:
    """(name, class) of every file."""
    if not rows:
        raise SimclrError("; ".join((f"--images={root}: no image ({', '.join(EXTENSIONS)}) in it", *notes)))
    classes = tuple(sorted({as_text(label) for _, label in rows if label}))
    number = {label: i for i, label in enumerate(classes)}
    ids = np.array([number.get(as_text(label), NO_LABEL) for _, label in rows], np.int32)
    names, where = [name for name, _ in rows], os.path.abspath(root)
    source = from_files(names, ids, classes, root=where, notes=notes, reading=reading)
    return Images(source.marking(), as_text(where), notes)
