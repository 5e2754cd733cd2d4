"""The command: `python -m simclr_jax.export --workdir=RUN --format=onnx --out=encoder.onnx`."""

import argparse
import sys

from simclr_jax import signals

GOES_ON = "begins anew"
if __name__ == "__main__":  # before what takes a second to import
    signals.take(GOES_ON)

from simclr_jax import cli, command
from simclr_jax.errors import SimclrError
from simclr_jax.export.contract import Options
from simclr_jax.export.formats import FORMATS
from simclr_jax.index.ends import demand

ABOUT = """The artefact takes uint8 images [n, h, w, c] of any n, h and w. It crops, resizes and normalises
them as the run does for its evaluation, and gives "features" and what else --endpoints names: projection,
logits, block_group4 and the like. It computes in float32.

Before it moves to --out it is compared with the run, on images of the encoder's own size and on others.
OUT.json holds the result and what a service must know."""


def parser() -> argparse.ArgumentParser:
    """The options."""
    top = cli.parser(
        "simclr_jax.export", "Writes the encoder of a run as a file that runs without this project.", ABOUT
    )
    add = top.add_argument
    add("--workdir", metavar="RUN", help="the run")
    add("--format", default="onnx", metavar="NAME", help=f"{', '.join(FORMATS)} (onnx)")
    add("--out", metavar="FILE", help="the artefact: encoder.onnx, say")
    add(
        "--endpoints",
        default="",
        metavar="A,B",
        help="outputs (features, and logits if the run has a classifier)",
    )
    add("--check", default="", metavar="DIR", help="compare on images from here (random ones)")
    add(
        "--tolerance",
        type=float,
        default=1e-4,
        metavar="X",
        help="largest difference over the root mean square (1e-4)",
    )
    add("--step", type=int, default=0, metavar="N", help="of the run's checkpoints (the newest)")
    platforms = ",".join(Options().platforms)
    add("--platforms", default=platforms, metavar="A,B", help=f"of stablehlo: where it runs ({platforms})")
    add("--again", action="store_true", help="replace --out if it is there")
    add("--register", metavar="FILE", help="Python file that registers the run's own encoder")
    return top


def main(argv: list[str] | None = None) -> None:
    """Exports, and prints the parity report and the files."""
    args, rest = parser().parse_known_args(sys.argv[1:] if argv is None else argv)
    with command.started(args, rest, check, GOES_ON):
        from simclr_jax.export import run

        names = tuple(name for name in args.endpoints.split(",") if name)
        options = Options(tuple(args.platforms.split(",")))
        wish = run.Wish(args.out, args.format, names, args.check, args.tolerance, args.again, options)
        print("\n".join(["", *run.export(args.workdir, args.step, wish)]))


def check(args: argparse.Namespace, rest: list[str]) -> None:
    """Raises SimclrError for options that are missing or wrong."""
    demand(args, rest, workdir="runs/imagenet", out="encoder.onnx")
    if args.format not in FORMATS:
        raise SimclrError(f"--format={args.format}: must be one of {', '.join(FORMATS)}")
    if args.format != "stablehlo" and args.platforms != parser().get_default("platforms"):
        raise SimclrError("--platforms: is of --format=stablehlo alone; leave it out")
    if not args.tolerance > 0:
        raise SimclrError(f"--tolerance={args.tolerance}: must be above 0")


if __name__ == "__main__":
    main()
