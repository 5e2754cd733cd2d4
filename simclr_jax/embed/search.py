"""The command: `python -m simclr_jax.embed.search --index=features.parquet --query=IMAGE`."""

import argparse
import json
import os
from pathlib import Path

from simclr_jax import signals

if __name__ == "__main__":  # before what takes a second to import
    signals.take("begins anew")

import numpy as np

from simclr_jax import cli, text
from simclr_jax.data import formats
from simclr_jax.errors import SimclrError
from simclr_jax.index import table
from simclr_jax.index.ends import ends, need, parsed
from simclr_jax.index.search import Index
from simclr_jax.index.table import Embeddings

LUMA = (0.299, 0.587, 0.114)  # of `data.decode.to_channels`


def parser() -> argparse.ArgumentParser:
    """The options."""
    top = argparse.ArgumentParser(
        prog=cli.name("simclr_jax.embed.search"),
        description="Prints the images of a table of embeddings that are most similar to one.",
        epilog="An image that is in the table needs no encoder. Another one is embedded by the run that the "
        "table names, or without JAX by --artefact.",
        allow_abbrev=False,
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
    """The row of a path, as the table has it or on this machine; -1 if it is not there."""
    root = embeddings.meta.get("images") or ""
    below = os.path.relpath(os.path.abspath(query), root) if os.path.isabs(root) else query
    for name in (query, below):
        if name in embeddings.paths:
            return embeddings.paths.index(name)
    return -1


def _embedded(args: argparse.Namespace, embeddings: Embeddings) -> np.ndarray:
    """The features `[1, d]` of the query's file.

    Raises:
      SimclrError: there is no such file, or no encoder to embed it.
    """
    if not Path(args.query).expanduser().is_file():
        raise SimclrError(f"--query={args.query}: no such file, and no path of {args.index}")
    meta = embeddings.meta
    if args.artefact:
        return by_artefact(args.artefact, args.query, meta.get("endpoint", "final_avg_pool"))
    workdir = args.workdir or meta.get("workdir")
    if not workdir:
        raise SimclrError(f"{args.index}: names no run: give --workdir=RUN or --artefact=encoder.onnx")
    from simclr_jax.encoder import load
    from simclr_jax.train import use_compile_cache

    print(f"embedding {args.query} by {workdir}", flush=True)
    found = load(workdir, int(meta.get("step") or 0))
    use_compile_cache(found.config.compile_cache)
    return found(args.query, endpoint=meta.get("endpoint", "final_avg_pool"))


def by_artefact(artefact: str, query: str, endpoint: str) -> np.ndarray:
    """The features `[1, d]` of an image file by an exported encoder.

    Raises:
      SimclrError: the artefact is not there or lacks the endpoint, or the file cannot be read.
    """
    runtime, path = need("onnxruntime", "onnx"), Path(artefact).expanduser()
    about = path.with_name(path.name + ".json")
    if not path.is_file() or not about.is_file():
        raise SimclrError(
            f"--artefact={artefact}: needs this file and {about.name} beside it: `simclr export`"
        )
    image = read(query)
    if json.loads(about.read_text())["input"]["channels"] == 1:
        image = np.rint(image @ np.array(LUMA)).astype(np.uint8)[..., None]
    session = runtime.InferenceSession(str(path))
    names = [output.name for output in session.get_outputs()]
    wanted = "features" if endpoint in ("final_avg_pool", "features") else endpoint
    if wanted not in names:
        raise SimclrError(f"--artefact={artefact}: has {', '.join(names)}; the table is of {endpoint}")
    return session.run([wanted], {"images": image[None]})[0]


def read(path: str | os.PathLike) -> np.ndarray:
    """An image file as `[h, w, 3]` uint8.

    Raises:
      SimclrError: it cannot be read.
    """
    try:
        return formats.read(Path(path).expanduser().read_bytes(), formats.Reading())
    except formats.UnreadableError as error:
        raise SimclrError(f"{path}: cannot be read as an image ({error})") from None


def _draw(path: Path, query: str, row: int, found: list[tuple[int, float]], embeddings: Embeddings) -> None:
    from simclr_jax.evaluate import charts

    files = [embeddings.file(i) for i, _ in found]
    first = embeddings.file(row) if row >= 0 else Path(query).expanduser()
    if first is None or None in files:
        missing = query if first is None else embeddings.paths[found[files.index(None)][0]]
        raise SimclrError(f"--picture: {missing} is no file below {embeddings.meta.get('images') or '.'}")
    shown = [read(file).astype(np.float32) / 255 for file in (first, *filter(None, files))]
    titles = ["query", *(f"{x:.3f} {embeddings.label[i]}" for i, x in found)]
    charts.grid(path, shown, titles, f"Most similar to {Path(query).name}", columns=7)
    print(path)


if __name__ == "__main__":
    main()
