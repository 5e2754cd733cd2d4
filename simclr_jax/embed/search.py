"""The command: `python -m simclr_jax.embed.search --index=features.parquet --query=IMAGE`."""

import argparse
import os
from pathlib import Path

from simclr_jax import signals

if __name__ == "__main__":  # before what takes a second to import
    signals.take("begins anew")

import numpy as np

from simclr_jax import cli, text
from simclr_jax.data import formats
from simclr_jax.errors import SimclrError, one_line
from simclr_jax.index import artefact, table
from simclr_jax.index.ends import ends, need, parsed
from simclr_jax.index.search import Index
from simclr_jax.index.table import Embeddings


def parser() -> argparse.ArgumentParser:
    """The options."""
    top = cli.parser(
        "simclr_jax.embed.search",
        "Prints the images of a table of embeddings that are most similar to one.",
        "An image that is in the table needs no encoder. Another one is embedded by the run that the "
        "table names, or without JAX by --artefact.",
        argparse.HelpFormatter,
    )
    add = top.add_argument
    add("--index", metavar="FILE", help="table of embeddings, as `simclr embed` writes it")
    add("--query", metavar="IMAGE", help="an image file, or a path of the table")
    add("--top", type=int, default=12, metavar="N", help="how many (12)")
    add("--picture", metavar="FILE", help="draws the query and what was found, as .png")
    add("--workdir", metavar="RUN", help="the run, where it has moved since")
    add("--artefact", metavar="FILE", help="encoder.onnx, as `simclr export` writes it")
    return top


def main(argv: list[str] | None = None) -> None:
    """Searches, prints a table and draws."""
    with ends():
        args = parsed(parser(), argv, index="features.parquet", query="/my/images/one.jpg")
        if args.top < 1:
            raise SimclrError(f"--top={args.top}: must be 1 or more")
        if args.picture and not args.picture.endswith(".png"):
            raise SimclrError(f"--picture={args.picture}: must end in .png")
        embeddings = table.read(args.index)
        row = row_of(embeddings, args.query)
        query = embeddings.features[[row]] if row >= 0 else _embedded(args, embeddings)
        index = Index(embeddings)
        cosine, rows = index.search(query, args.top + (row >= 0))
        found = [(int(i), float(x)) for i, x in zip(rows[0], cosine[0], strict=True) if i != row][: args.top]
        lines = [
            (f"{x:.4f}", embeddings.label[i], text.printable(embeddings.paths[i], None)) for i, x in found
        ]
        text.show_table(f"most similar to {args.query}", ("cosine", "class", ""), lines)
        if args.picture:
            _draw(Path(args.picture).expanduser(), args.query, row, found, embeddings)


def row_of(embeddings: Embeddings, query: str) -> int:
    """The row of a file on this machine, or of a path as the table has it; -1 if it is not there."""
    file = os.path.abspath(os.path.expanduser(query))
    # A file of the same name in another folder is another image.
    below = os.path.relpath(file, embeddings.meta.get("images") or ".")
    names = (file if os.path.isfile(file) else query, below)
    return next((embeddings.paths.index(name) for name in names if name in embeddings.paths), -1)


def _embedded(args: argparse.Namespace, embeddings: Embeddings) -> np.ndarray:
    """The features `[1, d]` of the query's file.

    Raises:
      SimclrError: there is no such file, or no encoder to embed it.
    """
    if not Path(args.query).expanduser().is_file():
        raise SimclrError(f"--query={args.query}: no such file, and no path of {args.index}")
    if args.artefact:
        return by_artefact(args, embeddings)
    meta = embeddings.meta
    workdir = args.workdir or meta.get("workdir")
    if not workdir:
        raise SimclrError(f"{args.index}: names no run: give --workdir=RUN or --artefact=encoder.onnx")
    from simclr_jax.embed import parts, run
    from simclr_jax.encoder import load
    from simclr_jax.train import use_compile_cache

    print(f"embedding {args.query} by {workdir}", flush=True)
    found, endpoint = load(workdir, int(meta.get("step") or 0)), meta.get("endpoint", "final_avg_pool")
    plan = meta.get("plan") or {}
    if plan and (told := parts.told_apart(plan, {**plan, **run.of_encoder(found, endpoint)})):
        raise SimclrError(f"{args.index}: is of another {told} than {workdir}; embed its images again")
    use_compile_cache(found.config.compile_cache)
    return found(args.query, endpoint=endpoint)


def by_artefact(args: argparse.Namespace, embeddings: Embeddings) -> np.ndarray:
    """The features `[1, d]` of the query's file by an exported encoder.

    Raises:
      SimclrError: the artefact is not there or not the table's, or the file cannot be read.
    """
    path = Path(args.artefact).expanduser()
    about = artefact.of_files(path)
    wanted = artefact.matching(about, embeddings, args.index)
    reading = formats.Reading.of(**about["run"].get("data") or {})
    image = read(args.query, reading, about["input"]["channels"])
    try:
        session = need("onnxruntime", "onnx").InferenceSession(str(path))
        return session.run([wanted], {"images": image[None]})[0]
    except SimclrError:
        raise
    except Exception as error:  # the library has exceptions of its own, without a common ancestor
        raise SimclrError(f"{path}: onnxruntime cannot run it: {one_line(error)}") from None


def read(path: str | os.PathLike, reading: formats.Reading, channels: int = 3) -> np.ndarray:
    """An image file as `[h, w, channels]` uint8.

    Raises:
      SimclrError: it cannot be read.
    """
    try:
        return formats.read_file(Path(path).expanduser(), reading, channels)
    except formats.UnreadableError as error:
        raise SimclrError(f"{path}: cannot be read as an image ({error})") from None


def _draw(path: Path, query: str, row: int, found: list[tuple[int, float]], embeddings: Embeddings) -> None:
    from simclr_jax.evaluate import charts

    files = [embeddings.file(i) for i, _ in found]
    first = embeddings.file(row) if row >= 0 else Path(query).expanduser()
    if first is None or None in files:
        missing = query if first is None else embeddings.paths[found[files.index(None)][0]]
        raise SimclrError(f"--picture: {missing} is no file below {embeddings.meta.get('images') or '.'}")
    shown = [read(file, formats.Reading()).astype(np.float32) / 255 for file in (first, *filter(None, files))]
    titles = ["query", *(f"{x:.3f} {embeddings.label[i]}" for i, x in found)]
    charts.grid(path, shown, titles, f"Most similar to {Path(query).name}", columns=7)
    print(path)


if __name__ == "__main__":
    main()
