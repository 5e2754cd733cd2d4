"""The command: `python -m simclr_jax.restore --workdir=RUN --images=DIR --out=DIR`."""

import argparse
import sys

from simclr_jax import signals

GOES_ON = "with --again begins anew"
if __name__ == "__main__":  # before what takes a second to import
    signals.take(GOES_ON)

from simclr_jax import cli, command
from simclr_jax.errors import SimclrError
from simclr_jax.index.ends import demand

ABOUT = """An image of up to --tile × --tile pixels is restored whole, a larger one in overlapping tiles.
Files become PNG under the same names. A run of restore.corruption=fewer_pixels doubles or quadruples
the pixels a side.

--corrupt takes clean images, spoils each as the run's config says, restores it and compares with the clean
one: report.html has PSNR and SSIM with intervals beside the input, non-local means and wavelets (extra
[restore]), and the runs of --beside. What cannot be read is left out, told, and makes the exit code 2."""


def parser() -> argparse.ArgumentParser:
    """The options."""
    top = cli.parser("simclr_jax.restore", "Restores images by a run of task restore.", ABOUT)
    add = top.add_argument
    add("--workdir", metavar="RUN", help="of a run of task restore")
    add("--images", metavar="DIR", help="folder of image files, subfolders too; or one file")
    add("--out", metavar="DIR", help="new folder for the results")
    add(
        "--masks", metavar="DIR", help="for holes: files of the images' names, white where pixels are missing"
    )
    add("--corrupt", action="store_true", help="the images are clean: spoil them first, and compare")
    add("--beside", metavar="RUN", action="append", default=[], help="of --corrupt: another run, to compare")
    add(
        "--baselines",
        metavar="A,B",
        default="nlm,wavelet",
        help="of --corrupt: nlm, wavelet; '' for none (nlm,wavelet)",
    )
    add("--step", type=int, default=0, metavar="N", help="of the run's checkpoints (the newest)")
    add("--tile", type=int, default=512, metavar="N", help="side of the tiles of larger images, pixels (512)")
    add(
        "--ensemble",
        action="store_true",
        help="mean over eight turns and reflections: noise 0.3 dB better, eight times as slow",
    )
    add("--again", action="store_true", help="write into --out although something is there")
    add("--register", metavar="FILE", help="Python file that registers the run's own encoder")
    return top


def main(argv: list[str] | None = None) -> None:
    """Restores, and prints where the results are."""
    args, rest = parser().parse_known_args(sys.argv[1:] if argv is None else argv)
    with command.started(args, rest, check, GOES_ON):
        from simclr_jax.restore import run

        options = run.Options(
            args.images, args.out, args.masks or "", args.tile, again=args.again, ensemble=args.ensemble
        )
        if args.corrupt:
            from simclr_jax.restore import compare

            names = [name for name in args.baselines.split(",") if name]
            lines = compare.compare(args.workdir, args.step, args.beside, names, options)
        else:
            lines = run.restore(args.workdir, args.step, options)
        print("\n".join(["", *lines]))


def check(args: argparse.Namespace, rest: list[str]) -> None:
    """Raises SimclrError for options that are missing or do not go together."""
    demand(args, rest, workdir="runs/restore", images="/my/photos", out="/my/restored")
    if args.tile < 32:
        raise SimclrError(f"--tile={args.tile}: must be 32 pixels or more")
    if args.beside and not args.corrupt:
        raise SimclrError("--beside: compares restored images with clean ones: add --corrupt")
    if args.masks and args.corrupt:
        raise SimclrError(
            "--masks: tells what is missing; with --corrupt the run's config does: leave it out"
        )


if __name__ == "__main__":
    main()
