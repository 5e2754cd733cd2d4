"""The command: `python -m simclr_jax.compress --artefact=encoder.onnx --out=encoder.int8.onnx`, and so on."""

import argparse
import sys

from simclr_jax import signals

GOES_ON = "begins anew"
if __name__ == "__main__":  # before what takes a second to import
    signals.take(GOES_ON)

from simclr_jax import cli, command
from simclr_jax.errors import SimclrError
from simclr_jax.index.ends import demand

TARGETS = ("x86", "x86-vnni", "arm")
BY = ("bn", "l1")
ABOUT = """--artefact: the ONNX of `simclr export` with weights and activations of 8 bits, where maps are
computed; images for their ranges come from the run's training data, or from --images.

--workdir --keep: a run of the same architecture and a smaller width, which has the most important channels.
Fine-tune it by `simclr train --config.start.workdir=OUT`, as the run itself was trained.

--compare: megabytes, milliseconds an image, kNN and linear probe of several artefacts, by onnxruntime."""


def parser() -> argparse.ArgumentParser:
    """The options."""
    top = cli.parser("simclr_jax.compress", "Makes a smaller encoder: int8, or fewer channels.", ABOUT)
    add = top.add_argument
    add("--out", default="", metavar="PATH", help="new .onnx, new workdir; of --compare: JSON, if any")
    add("--artefact", metavar="FILE", help="encoder.onnx, to quantise")
    add("--images", default="", metavar="DIR", help="for the ranges of activations (training images)")
    add("--target", default="", metavar="NAME", help=f"{', '.join(TARGETS)} (this machine)")
    add("--again", action="store_true", help="of --artefact: replace --out if it is there")
    add("--workdir", default="", metavar="RUN", help="to prune; of --compare: whose images to score on")
    add("--keep", type=float, metavar="SHARE", help="of the channels: 0.5, say")
    add(
        "--by",
        default="bn",
        metavar="NAME",
        help="importance: bn, the BatchNorm scales; l1, the filters (bn)",
    )
    add("--step", type=int, default=0, metavar="N", help="of the run's checkpoints (the newest)")
    add("--compare", nargs="+", metavar="FILE", help="artefacts, one after the other")
    add("--register", metavar="FILE", help="Python file that registers the run's own encoder")
    return top


def main(argv: list[str] | None = None) -> None:
    """Compresses or compares, and prints what came of it."""
    args, rest = parser().parse_known_args(sys.argv[1:] if argv is None else argv)
    with command.started(args, rest, check, GOES_ON):
        print("\n".join(["", *run(args)]))


def run(args: argparse.Namespace) -> list[str]:
    """Does what the options ask for; returns lines for the user.

    Raises:
      SimclrError: among others, where the libraries are not installed.
    """
    if args.keep is not None:
        from simclr_jax.compress import prune

        return prune.prune(args.workdir, args.keep, args.out, args.step, args.by)
    try:
        from simclr_jax.compress import compare, int8
    except ImportError as error:
        raise SimclrError(f'{error.name} is missing: pip install "simclr_jax[onnx]"') from None
    if args.compare:
        return compare.compare(args.compare, args.workdir, args.out)
    return int8.quantise(args.artefact, args.out, args.images, args.target, args.again)


def check(args: argparse.Namespace, rest: list[str]) -> None:
    """Raises SimclrError for options that are missing or do not go together."""
    demand(args, rest)
    wanted = [name for name in ("artefact", "compare", "keep") if getattr(args, name) is not None]
    if len(wanted) != 1:
        raise SimclrError(
            "give one of --artefact=encoder.onnx (int8), --workdir=RUN --keep=0.5 (fewer channels) and "
            "--compare FILE FILE"
        )
    if args.keep is not None and not args.workdir:
        raise SimclrError("--workdir is missing: for example --workdir=runs/imagenet")
    if not args.out and not args.compare:
        raise SimclrError(
            f"--out is missing: for example --out={'runs/half' if args.keep else 'encoder.int8.onnx'}"
        )
    for option, value, known in (("target", args.target, ("", *TARGETS)), ("by", args.by, BY)):
        if value not in known:
            raise SimclrError(f"--{option}={value}: must be one of {', '.join(filter(None, known))}")


if __name__ == "__main__":
    main()
