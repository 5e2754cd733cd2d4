"""The command: `simclr serve --artefact=encoder.onnx --index=features.parquet`."""

import argparse
import ipaddress
import math
import os
import sys
from pathlib import Path

from simclr_jax import cli
from simclr_jax.errors import SimclrError, one_line
from simclr_jax.index.ends import ends, need

VARIABLE = "SIMCLR_TOKEN"
NEEDS = ("fastapi", "uvicorn", "onnxruntime", "onnx", "prometheus_client", "python_multipart", "PIL")
ABOUT = f"""POST an image to /embed: its embedding, neighbours and classes come back. / is a page to try it,
/openapi.json describes it. The service listens to this machine alone unless --host says otherwise; then it
asks for a token (--token-file, or the variable {VARIABLE}). After Ctrl-C or SIGTERM it finishes what is being
answered, and exits with 0."""


def parser() -> argparse.ArgumentParser:
    """The options."""
    top = cli.parser("simclr_jax.serve", "Serves an exported encoder over HTTP.", ABOUT)
    add = top.add_argument
    add("--artefact", metavar="FILE", help="ONNX that `simclr export` wrote")
    add("--index", metavar="FILE", help="what `simclr embed` wrote: neighbours are found in it")
    add("--images-root", metavar="DIR", default="", help="folder of the index's images (the one it names)")
    add("--host", default="127.0.0.1", help="address to listen to (127.0.0.1: this machine alone)")
    add("--port", type=int, default=8000, metavar="N", help="0: a free one (8000)")
    add("--token-file", metavar="FILE", help=f"holds the token that clients send (the variable {VARIABLE})")
    add("--no-token", action="store_true", help="no token although --host lets others in")
    add("--batch", type=int, default=32, metavar="N", help="most images through the encoder at once (32)")
    add("--wait", type=float, default=5.0, metavar="MS", help="wait so long for a batch to fill (5)")
    add("--threads", type=int, default=0, metavar="N", help="of the encoder, and that decode (the cores)")
    add("--body", type=float, default=16, metavar="MB", help="largest body of a request (16)")
    add("--pixels", type=float, default=25, metavar="M", help="millions of pixels of an image (25)")
    add("--images", type=int, default=16, metavar="N", help="most images in a request (16)")
    add("--timeout", type=float, default=30, metavar="S", help="seconds for a request (30)")
    add("--requests", type=int, default=64, metavar="N", help="requests answered at a time (64)")
    add("--queue", type=int, default=256, metavar="N", help="images decoded or waiting at a time (256)")
    return top


def main(argv: list[str] | None = None) -> None:
    """Serves until a signal comes."""
    args, rest = parser().parse_known_args(sys.argv[1:] if argv is None else argv)
    with ends("begins anew"):
        check(args, rest)
        token = read_token(args)
        # Before NumPy is imported: its threads spin while the search waits for memory.
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
        for module in NEEDS:
            need(module, "serve")
        run(args, token)


def run(args: argparse.Namespace, token: str) -> None:
    """Loads, listens, answers."""
    from PIL import Image

    from simclr_jax.index import search, table
    from simclr_jax.index.artefact import matching
    from simclr_jax.serve import app, artefact, server
    from simclr_jax.serve.door import Limits
    from simclr_jax.serve.service import Settings

    Image.MAX_IMAGE_PIXELS = None  # --pixels is the limit, and is looked at first
    threads = args.threads or (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    path = Path(args.artefact).expanduser()
    encoder, index, endpoint = artefact.load(path, threads), None, "features"
    if args.index:
        index = search.Index(table.read(args.index))
        endpoint = matching(encoder.about, index.embeddings, args.index)
        # One copy of the table is enough.
        index.embeddings = index.embeddings._replace(features=index.unit)
    limits = Limits(
        int(args.body * 2**20), int(args.pixels * 1e6), args.images, args.timeout, args.requests, args.queue
    )
    local = is_local(args.host)
    settings = Settings(
        encoder, index, endpoint, os.path.expanduser(args.images_root), token, local and not token, limits,
        args.batch, args.wait / 1000, threads,
    )  # fmt: skip
    try:
        listening = server.bound(args.host, args.port)
    except OSError as error:
        why = error.strerror or error
        raise SimclrError(
            f"--host={args.host} --port={args.port}: {why}; --port=0 takes a free port"
        ) from None
    service = server.Server(app.create(settings))
    shown = f"[{args.host}]" if ":" in args.host else args.host
    print(f"serving {path.name} on http://{shown}:{listening.getsockname()[1]}/", flush=True)
    service.run(sockets=[listening])
    if service.service.failure:
        raise SimclrError(f"{path}: its first image failed: {one_line(service.service.failure)}")


def check(args: argparse.Namespace, rest: list[str]) -> None:
    """Raises SimclrError for options that are missing or do not go together."""
    if rest:
        raise SimclrError(f"{rest[0]!r}: not understood; see --help")
    if not args.artefact:
        raise SimclrError("--artefact is missing: for example --artefact=encoder.onnx")
    if args.images_root and not args.index:
        raise SimclrError("--images-root: is the folder of the images of an index: add --index")
    if args.images_root and not Path(args.images_root).expanduser().is_dir():
        raise SimclrError(f"--images-root={args.images_root}: no such folder")
    if not 0 <= args.port < 2**16:
        raise SimclrError(f"--port={args.port}: must be from 0 to 65535")
    for name in ("batch", "body", "pixels", "images", "timeout", "requests", "queue"):
        if not 0 < getattr(args, name) < math.inf:
            raise SimclrError(f"--{name}={getattr(args, name):g}: must be a number above 0")
    for name in ("wait", "threads"):
        if not 0 <= getattr(args, name) < math.inf:
            raise SimclrError(f"--{name}={getattr(args, name):g}: must be a number, 0 or more")
    if args.images > args.queue:
        raise SimclrError(f"--images={args.images}: must be at most --queue={args.queue}")


def read_token(args: argparse.Namespace) -> str:
    """The token, "" for none.

    Raises:
      SimclrError: it is missing and others are let in, or is no token.
    """
    token = os.environ.get(VARIABLE, "")
    if args.token_file:
        token = Path(args.token_file).expanduser().read_text(encoding="utf-8", errors="replace").strip()
        if not token:
            raise SimclrError(f"--token-file={args.token_file}: is empty")
    if not token.isascii() or not token.isprintable() or " " in token:
        raise SimclrError("the token must be of printable ASCII characters, without blanks")
    if not token and not args.no_token and not is_local(args.host):
        raise SimclrError(
            f"--host={args.host}: lets others in: add --token-file=FILE or set {VARIABLE}, or say --no-token"
        )
    return token


def is_local(host: str) -> bool:
    """Whether an address is of this machine alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


if __name__ == "__main__":
    main()
