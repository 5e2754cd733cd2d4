"""Lists of images that the commands write: .csv, which `list:FILE` trains on, or .txt, a path a line."""

import csv
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from simclr_jax.errors import SimclrError
from simclr_jax.index.table import Embeddings, replacing


def checked(path: str) -> Path:
    """The path, expanded.

    Raises:
      SimclrError: it ends in neither .csv nor .txt.
    """
    found = Path(path).expanduser()
    if found.suffix not in (".csv", ".txt"):
        raise SimclrError(f"{path}: must end in .csv or .txt")
    return found


def write(
    path: Path,
    embeddings: Embeddings,
    rows: Sequence[int] | np.ndarray,
    more: Mapping[str, Iterable[object]] | None = None,
) -> None:
    """Writes the images of `rows` in this order: file (from the root on), label, and what is `more`.

    Args:
      more: {column: a value for each of `rows`}, for .csv alone.
    """
    root, more = embeddings.meta.get("images") or "", more or {}
    folder = root if os.path.isdir(root) else ""
    files = [os.path.join(folder, name) for name in embeddings.paths]
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path, "w", encoding="utf-8", newline="") as file:
        if path.suffix == ".txt":
            file.writelines(f"{files[i]}\n" for i in rows)
            return
        lines = csv.writer(file, lineterminator="\n")
        lines.writerow(["file", "label", *more])
        columns = ([files[i] for i in rows], [embeddings.label[i] for i in rows], *more.values())
        lines.writerows(zip(*columns, strict=True))
