"""The command: `python -m simclr_jax.embed --workdir=RUN --images=DIR --out=features.parquet`."""

import argparse
import os
import sys

from simclr_jax import signals

GOES_ON = "goes on where this one stopped"
if __name__ == "__main__":  # before what takes a second to import
    signals.take(GOES_ON)

from simclr_jax import cli, command
from simclr_jax.index.ends import demand

ABOUT = """Each image is cropped and resized as for the run's evaluation. A row of the table has the name of
the file below the folder, the class (its first folder, or what the table says) and the embedding.

The same command goes on after any end, also after kill -9, without repeating or losing a row: what is done
lies in OUT.parts until OUT is written. Several processes (or hosts that see one disk) share the images.

What cannot be read is left out, listed beside OUT in NAME.unreadable.csv, and makes the exit code 2.
--config.FIELD=VALUE changes a field of the run's config: --config.data.exif=True,
--config.eval.batch_size=512, --config.data.data_dir=DIR (of tfds:NAME)."""


def parser() -> argparse.ArgumentParser:
    """The options, but for those of the config."""
    top = cli.parser(
        "simclr_jax.embed", "Writes the embeddings of images by a run's encoder as one file.", ABOUT
    )
    add = top.add_argument
    add("--workdir", metavar="RUN", help="of a run, trained here or converted; or hf:OWNER/NAME")
    add("--images", metavar="DIR", help="folder, subfolders too; 'GLOB'; LIST.csv; or tfds:NAME")
    add(
        "--out", metavar="FILE", help="features.parquet (pip install 'simclr_jax[embed]'), .npz, .npy or .csv"
    )
    add(
        "--endpoint", metavar="NAME", default="final_avg_pool",
        help="what to take: projection, logits, block_group3, ... (final_avg_pool: the representation)",
    )  # fmt: skip
    add("--step", type=int, default=0, metavar="N", help="of the run's checkpoints (the newest)")
    add("--split", default="train", help="of tfds:NAME (train)")
    add("--register", metavar="FILE", help="Python file that registers the run's own encoder")
    command.add_processes(top)
    return top


def main(argv: list[str] | None = None) -> None:
    """Embeds, and prints where the table is."""
    args, rest = parser().parse_known_args(sys.argv[1:] if argv is None else argv)
    with command.started(args, rest, check, GOES_ON):
        from simclr_jax import distributed

        distributed.start(args.coordinator, args.processes, args.process)
        from simclr_jax import encoder, hub
        from simclr_jax.embed import run
        from simclr_jax.evaluate.__main__ import override
        from simclr_jax.evaluate.run import complete

        found = encoder.load(args.workdir, args.step)
        if rest:
            changed = override(os.fspath(hub.local(args.workdir)), rest)
            config = complete(found.config, changed, args.workdir)
            found = encoder.Encoder(config, found.classes, found.step, found.variables, found.data)
        options = run.Options(args.images, args.out, args.endpoint, args.split)
        for line in run.embed(found, args.workdir, options):
            print(line)


def check(args: argparse.Namespace, rest: list[str]) -> None:
    """Raises SimclrError for options that are missing or not understood."""
    from simclr_jax.evaluate.__main__ import only_fields

    only_fields(rest)
    demand(args, workdir="runs/mine", images="/my/images", out="features.parquet")


if __name__ == "__main__":
    main()
