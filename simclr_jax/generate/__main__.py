"""The command: `python -m simclr_jax.generate --workdir=RUN --out=DIR`."""

import argparse
import sys

from simclr_jax import signals

GOES_ON = "begins again"
if __name__ == "__main__":  # before what takes a second to import
    signals.take(GOES_ON)

from simclr_jax import cli, command
from simclr_jax.errors import SimclrError
from simclr_jax.evaluate.__main__ import only_fields, override

ABOUT = """Draws images from a density of the latents of a run's encoder, by its decoder: DIR/generate.html.

The run needs a decoder (--config.loss.name=nt_xent+reconstruction). The images are pictures of what the
latents hold, and as blurred as reconstructions are; they are no claim about accuracy."""
MORE = """--config.FIELD=VALUE changes a field of the run's config: other images, the mesh.

Exit code: 0, or 2 with one line that says what is wrong."""


def parser() -> argparse.ArgumentParser:
    """The options, but for those of the config."""
    top = cli.parser("simclr_jax.generate", ABOUT, MORE)
    add = top.add_argument
    add("--workdir", help="of a run with a decoder")
    add("--out", metavar="DIR", help="where the page and the images go (WORKDIR/generate)")
    add("--samples", type=int, default=36, metavar="N", help="images of each density to write (36)")
    add("--seed", type=int, default=0, metavar="S", help="of the densities and of what is drawn (0)")
    add("--step", type=int, default=0, metavar="N", help="of its checkpoints (the newest)")
    add("--register", metavar="FILE", help="Python file that registers the run's own encoder or objective")
    return top


def main(argv: list[str] | None = None) -> None:
    """Generates; prints the tables and where the page is."""
    argv = sys.argv[1:] if argv is None else argv
    args, rest = parser().parse_known_args(argv)
    with command.started(args, rest, _check, GOES_ON):
        config = override(args.workdir, rest)
        from simclr_jax.generate import page, run

        options = {"samples": args.samples, "seed": args.seed, "step": args.step}
        made = run.generate(args.workdir, args.out or f"{args.workdir}/generate", config=config, **options)
        print("\n".join(["", *page.lines(made), "", made["page"]]))


def _check(args: argparse.Namespace, rest: list[str]) -> None:
    only_fields(rest)
    if not args.workdir:
        raise SimclrError("--workdir is missing: that of a run with a decoder")
    if args.samples < 1:
        raise SimclrError(f"--samples={args.samples}: must be 1 or more")
    for name, value in (("step", args.step), ("seed", args.seed)):
        if value < 0:
            raise SimclrError(f"--{name}={value}: must be 0 or more")


if __name__ == "__main__":
    main()
