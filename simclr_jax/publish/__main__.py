"""The command: `python -m simclr_jax.publish --workdir=RUN --out=FOLDER --licence=apache-2.0`."""

import argparse
import re
import sys

from simclr_jax import signals

GOES_ON = "begins anew"
if __name__ == "__main__":  # before what takes a second to import
    signals.take(GOES_ON)

from simclr_jax import cli, command, hub
from simclr_jax.errors import SimclrError
from simclr_jax.index.ends import demand

LICENCE = re.compile(r"[a-z0-9][a-z0-9.-]{0,63}")
ABOUT = """The folder holds model.safetensors, config.json, README.md (the model card: data, recipe, scores,
limits, licence) and encoder.onnx, where the encoder has an ONNX writer. No path, user or machine of yours
is in it. `hf upload OWNER/NAME FOLDER` uploads it; nothing here does.

simclr_jax.load("hf:OWNER/NAME") then loads it anywhere, and simclr_jax.load("FOLDER") does so here."""


def parser() -> argparse.ArgumentParser:
    """The options."""
    top = cli.parser(
        "simclr_jax.publish", "Writes a run's encoder as a folder for the Hugging Face Hub.", ABOUT
    )
    add = top.add_argument
    add("--workdir", metavar="RUN", help="of a run, trained here or converted")
    add("--out", metavar="FOLDER", help="new folder, local")
    add(
        "--licence",
        "--license",
        metavar="ID",
        help="of the weights, as the Hub writes it: apache-2.0, mit, ...",
    )
    add("--name", metavar="OWNER/NAME", default="", help="that it will have on the Hub, for the card")
    add("--step", type=int, default=0, metavar="N", help="of the run's checkpoints (the newest)")
    add(
        "--onnx",
        action=argparse.BooleanOptionalAction,
        help="write encoder.onnx; without it, or an error (where the encoder has a writer)",
    )
    add("--again", action="store_true", help="replace a folder that this command wrote")
    add("--register", metavar="FILE", help="Python file that registers the run's own encoder")
    return top


def main(argv: list[str] | None = None) -> None:
    """Publishes, and prints what the folder holds."""
    args, rest = parser().parse_known_args(sys.argv[1:] if argv is None else argv)
    with command.started(args, rest, check, GOES_ON):
        from simclr_jax.publish import run

        options = run.Options(args.out, args.licence, args.name, args.step, args.again, args.onnx)
        print("\n".join(run.publish(args.workdir, options)))


def check(args: argparse.Namespace, rest: list[str]) -> None:
    """Raises SimclrError for options that are missing or make no sense."""
    demand(args, rest, workdir="runs/quickstart", out="published/quickstart", licence="apache-2.0")
    if not LICENCE.fullmatch(args.licence):
        raise SimclrError(
            f"--licence={args.licence}: must be an identifier like apache-2.0, mit or cc-by-4.0"
        )
    if args.name and not args.name.startswith(hub.BUILTIN):
        hub.parse(f"{hub.HUB}{args.name}")


if __name__ == "__main__":
    main()
