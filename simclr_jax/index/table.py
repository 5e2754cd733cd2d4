"""Embeddings as a file: .parquet (pyarrow), .npz, .npy or .csv; written part by part, so that memory is flat.

    .parquet  columns path, label, embedding (a list of fixed size); meta as JSON in the schema
    .npz      arrays path, label, embedding [n, d], meta (JSON)
    .npy      the embeddings [n, d]; beside it NAME.paths.txt, NAME.labels.txt (a line a row), NAME.meta.json
    .csv      path, label, f0 .. f511; beside it NAME.meta.json

A path is relative to the folder `meta["images"]`; of images without files it is a name such as tfds:mnist#7.
"""

import contextlib
import csv
import io
import json
import os
import zipfile
from collections.abc import Callable, Generator, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from simclr_jax.errors import SimclrError
from simclr_jax.index.ends import need

SCHEMA = 1
META = b"simclr"  # the key in Parquet's schema
Part = tuple[list[str], list[str], np.ndarray]  # paths, labels, embeddings [m, d]
Sink = Generator[None, Part | None, None]  # takes parts by `send`, then None


class Embeddings(NamedTuple):
    """Embeddings and where they come from.

    Attributes:
      paths: `[n]`, see above.
      features: `[n, d]` float32.
      label: `[n]`, the folder of the class, or "".
      meta: {"workdir", "step", "endpoint", "images", "dim", "schema"}.
    """

    paths: list[str]
    features: np.ndarray
    label: list[str]
    meta: dict[str, Any]

    def file(self, row: int) -> Path | None:
        """The image file of a row; None if it is not on this machine."""
        path = Path(self.meta.get("images") or "", self.paths[row])
        return path if path.is_file() else None


def write(path: str | os.PathLike, embeddings: Embeddings) -> None:
    """Writes a table in the format that the suffix names; a kill leaves the old or the new file.

    Raises:
      SimclrError: the suffix is none of the four, or pyarrow is missing.
    """
    paths, features, label, meta = embeddings
    write_parts(path, [(paths, label, features)], len(paths), features.shape[1], meta)


def write_parts(
    path: str | os.PathLike, parts: Iterable[Part], n: int, dim: int, meta: dict[str, Any]
) -> None:
    """Like `write`, of `n` rows of `dim` numbers that come in parts; one part is in memory at a time."""
    path = checked(path)
    meta = {**meta, "dim": dim, "schema": SCHEMA}
    path.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        sink = SINKS[path.suffix](stack, path, n, dim, meta)
        next(sink)
        stack.callback(sink.close)
        done = 0
        for part in parts:
            sink.send(part)
            done += len(part[2])
        assert done == n, f"{path}: {done} rows instead of {n}"  # a header says n; the old file stays
        with contextlib.suppress(StopIteration):
            sink.send(None)


def read(path: str | os.PathLike) -> Embeddings:
    """The table in a file.

    Raises:
      SimclrError: there is none, or it is no table of embeddings.
    """
    path = checked(path)
    if not path.is_file():
        raise SimclrError(f"{path}: no such file; `simclr embed` writes one")
    try:
        paths, label, features, meta = READERS[path.suffix](path)
    except (ValueError, LookupError, OSError, EOFError, zipfile.BadZipFile, csv.Error) as error:
        why = " ".join(str(error).split())[:120]
        raise SimclrError(f"{path}: is no table of embeddings ({why}); `simclr embed` writes one") from None
    if features.ndim != 2 or not len(paths) == len(label) == len(features):
        raise SimclrError(
            f"{path}: {len(paths)} paths, {len(label)} labels and embeddings {list(features.shape)} "
            "do not go together; write it again with `simclr embed`"
        )
    if not np.isfinite(features).all():
        raise SimclrError(f"{path}: has embeddings that are no finite numbers")
    return Embeddings(paths, np.ascontiguousarray(features, np.float32), label, meta)


def meta_of(path: str | os.PathLike) -> dict[str, Any]:
    """The `meta` of a table, without its rows; {} where it cannot be read."""
    path = checked(path)
    try:
        if path.suffix == ".parquet":
            schema = need("pyarrow.parquet", "embed").read_schema(path)
            return json.loads((schema.metadata or {}).get(META, b"{}"))
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as file:
                return json.loads(str(file["meta"]))
        return _meta(path)
    except (ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile):
        return {}


def checked(path: str | os.PathLike) -> Path:
    """The path, expanded.

    Raises:
      SimclrError: its suffix is none of the four, or pyarrow is missing.
    """
    path = Path(path).expanduser()
    if path.suffix not in SINKS:
        raise SimclrError(f"{path}: must end in {', '.join(SINKS)}")
    if path.suffix == ".parquet":  # told before the work that ends with it
        need("pyarrow", "embed")
    return path


def beside(path: Path, what: str) -> Path:
    """A file beside a table: features.npy, "meta.json" -> features.meta.json."""
    return path.with_name(f"{path.stem}.{what}")


# ---- writing: a generator takes the parts ---------------------------------------------------------


@contextlib.contextmanager
def replacing(path: Path, mode: str = "wb", **kwargs: Any) -> Iterator[Any]:
    """Opens a temporary file, which replaces `path` if the `with` block succeeds."""
    half = path.with_name(path.name + ".tmp")
    try:
        with open(half, mode, **kwargs) as file:
            yield file
        os.replace(half, path)
    finally:
        half.unlink(missing_ok=True)


def _text(stack: contextlib.ExitStack, path: Path) -> Any:
    return stack.enter_context(replacing(path, "w", encoding="utf-8", newline=""))


def _parquet(stack: contextlib.ExitStack, path: Path, n: int, dim: int, meta: dict[str, Any]) -> Sink:
    arrow, parquet = need("pyarrow", "embed"), need("pyarrow.parquet", "embed")
    types = {"path": arrow.string(), "label": arrow.string(), "embedding": arrow.list_(arrow.float32(), dim)}
    schema = arrow.schema(list(types.items()), metadata={META: json.dumps(meta).encode()})
    file = stack.enter_context(replacing(path))
    # Random bits of mantissas do not compress, and no dictionary of them is worth its memory.
    options: dict[str, Any] = {"use_dictionary": ["label"], "compression": "zstd"}
    writer = stack.enter_context(parquet.ParquetWriter(file, schema, **options))
    while (part := (yield)) is not None:
        paths, label, features = part
        flat = arrow.array(np.ascontiguousarray(features, np.float32).reshape(-1))
        rows = arrow.FixedSizeListArray.from_arrays(flat, dim)
        writer.write_table(
            arrow.table(
                [arrow.array(paths, arrow.string()), arrow.array(label, arrow.string()), rows], schema
            )
        )


def _npy(stack: contextlib.ExitStack, path: Path, n: int, dim: int, meta: dict[str, Any]) -> Sink:
    # The last to enter is the first to be renamed: with the table there is everything beside it.
    file = stack.enter_context(replacing(path))
    paths, labels, about = (
        _text(stack, beside(path, f"{w}")) for w in ("paths.txt", "labels.txt", "meta.json")
    )
    _header(file, n, dim)
    about.write(json.dumps(meta) + "\n")
    while (part := (yield)) is not None:
        file.write(np.ascontiguousarray(part[2], "<f4").data)
        for file_of, names in zip((paths, labels), part[:2], strict=True):
            file_of.writelines(name.replace("\n", "\\n") + "\n" for name in names)


def _npz(stack: contextlib.ExitStack, path: Path, n: int, dim: int, meta: dict[str, Any]) -> Sink:
    archive = stack.enter_context(zipfile.ZipFile(stack.enter_context(replacing(path)), "w"))
    names: tuple[list[str], list[str]] = ([], [])
    with archive.open("embedding.npy", "w", force_zip64=True) as file:
        _header(file, n, dim)
        while (part := (yield)) is not None:
            file.write(np.ascontiguousarray(part[2], "<f4").data)
            names[0].extend(part[0])
            names[1].extend(part[1])
    for key, value in (("path", names[0]), ("label", names[1]), ("meta", json.dumps(meta))):
        with archive.open(f"{key}.npy", "w", force_zip64=True) as file:
            np.lib.format.write_array(file, np.array(value, np.str_))


def _csv(stack: contextlib.ExitStack, path: Path, n: int, dim: int, meta: dict[str, Any]) -> Sink:
    file = _text(stack, path)
    _text(stack, beside(path, "meta.json")).write(json.dumps(meta) + "\n")
    lines = csv.writer(file, lineterminator="\n")
    lines.writerow(["path", "label", *(f"f{i}" for i in range(dim))])
    while (part := (yield)) is not None:
        paths, labels, features = part
        for name, label, row in zip(paths, labels, np.asarray(features, np.float32), strict=True):
            lines.writerow([name, label, *map(str, row)])  # the shortest text that is this float32


def _header(file: Any, n: int, dim: int) -> None:
    np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": (n, dim)})


SINKS: dict[str, Callable[..., Sink]] = {".parquet": _parquet, ".npz": _npz, ".npy": _npy, ".csv": _csv}

# ---- reading --------------------------------------------------------------------------------------

Content = tuple[list[str], list[str], np.ndarray, dict[str, Any]]


def _read_parquet(path: Path) -> Content:
    parquet = need("pyarrow.parquet", "embed")
    table = parquet.read_table(path, columns=["path", "label", "embedding"])
    meta = json.loads((table.schema.metadata or {}).get(META, b"{}"))
    rows = table["embedding"].combine_chunks()
    flat = rows.flatten().to_numpy(zero_copy_only=False)
    return table["path"].to_pylist(), table["label"].to_pylist(), flat.reshape(len(rows), -1), meta


def _read_npy(path: Path) -> Content:
    features = np.load(path, allow_pickle=False)
    paths, labels = beside(path, "paths.txt"), beside(path, "labels.txt")
    names = _lines(paths) if paths.is_file() else [str(i) for i in range(len(features))]
    return names, _lines(labels) if labels.is_file() else [""] * len(names), features, _meta(path)


def _read_npz(path: Path) -> Content:
    with np.load(path, allow_pickle=False) as file:
        meta = json.loads(str(file["meta"])) if "meta" in file else {}
        features, names = file["embedding"], file["path"].tolist()
        return names, file["label"].tolist() if "label" in file else [""] * len(names), features, meta


def _read_csv(path: Path) -> Content:
    with open(path, encoding="utf-8", newline="") as file:
        lines = csv.reader(file)
        header = next(lines, [])
        if header[:2] != ["path", "label"]:
            raise ValueError("the first columns must be path, label")
        names, label, flat = [], [], io.BytesIO()
        for row in lines:
            names.append(row[0])
            label.append(row[1])
            flat.write(np.array(row[2:], np.float32).tobytes())
    features = np.frombuffer(flat.getvalue(), np.float32).reshape(-1, len(header) - 2)
    return names, label, features, _meta(path)


def _lines(path: Path) -> list[str]:
    return path.read_bytes().decode().split("\n")[:-1]  # of text Python makes a line break of \r too


def _meta(path: Path) -> dict[str, Any]:
    file = beside(path, "meta.json")
    return json.loads(file.read_text()) if file.is_file() else {}


READERS: dict[str, Callable[[Path], Content]] = {
    ".parquet": _read_parquet, ".npz": _read_npz, ".npy": _read_npy, ".csv": _read_csv,
}  # fmt: skip
