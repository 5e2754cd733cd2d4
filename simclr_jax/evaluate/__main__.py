"""The command: `python -m simclr_jax.evaluate --workdir=RUN`."""

import argparse
import sys

from simclr_jax import signals

GOES_ON = "goes on where this one stopped"
if __name__ == "__main__":  # before what takes a second to import
    signals.take(GOES_ON)

from absl import flags
from ml_collections import ConfigDict, config_flags

from simclr_jax import cli, command, paths
from simclr_jax.config import check_field, checks, load_config
from simclr_jax.errors import SimclrError
from simclr_jax.index.ends import demand

PROTOCOLS = """protocols, in this order; all but the last two are the default:
  features    of every image, once; kept for the others
  scores      the table that ends a run: kNN, linear probes on 100, 1,000 and all labels
  knn         k = 200, T = 0.1; k = 20, T = 0.07; the best of a grid, chosen on a hold-out of train
  lbfgs       logistic regression, 45 penalties, chosen on the hold-out
  linear      SGD on augmented images, 90 epochs: the standard rate, and a sweep of rates and decays at once
  classifier  the run's own: fine-tuned, distilled, or the online probe
  robustness  of the lbfgs classifier: corruptions, FGSM, PGD
  invariance  of the features to each augmentation
  health      RankMe, alignment, uniformity, collapse
  neighbours  retrieval, near-duplicates, outliers
  saliency    Grad-CAM, and what makes two images similar
  maps        t-SNE, UMAP, files for TensorBoard's projector
  reconstructions  PSNR and SSIM of images through encoder and decoder, where the loss has a reconstruction
  finetune    with 1, 10 and 100 % of the labels, beside training from scratch
  transfer    to the labelled sets of --transfer

--config.FIELD=VALUE changes a field of the run's config for the evaluation: images, config.eval, the mesh.
What was found before is kept: the same command goes on where it stopped."""


def parser() -> argparse.ArgumentParser:
    """The options, but for those of the config."""
    top = cli.parser(
        "simclr_jax.evaluate", "Tells how good the encoder of a run is: WORKDIR/eval/report.html.", PROTOCOLS
    )
    add = top.add_argument
    add("--workdir", help="of a run, trained here or converted")
    add("--protocols", metavar="A,B", help="instead of the default ones")
    add(
        "--transfer",
        metavar="SOURCE,SOURCE",
        default="",
        help="labelled sets: tfds:NAME, folder:PATH, list:FILE, npz:PATH",
    )
    add("--step", type=int, default=0, metavar="N", help="of its checkpoints (the newest)")
    add("--again", action="store_true", help="run protocols although their results are there")
    add(
        "--compare", nargs="+", metavar="WORKDIR", help="evaluated runs side by side, with config differences"
    )
    add("--out", metavar="FILE", help="of --compare (the first run's eval/comparison.html)")
    add("--register", metavar="FILE", help="Python file that registers the run's own encoder or objective")
    command.add_processes(top)
    return top


def main(argv: list[str] | None = None) -> None:
    """Evaluates, or compares; prints the table and where the report is."""
    argv = sys.argv[1:] if argv is None else argv
    args, rest = parser().parse_known_args(argv)
    with command.started(args, rest, _check, f"without --again {GOES_ON}" if args.again else GOES_ON):
        if args.compare:
            from simclr_jax.evaluate import compare

            out = args.out or paths.expand(args.compare[0]) / "eval" / "comparison.html"
            print(compare.compare(args.compare, out))
            return
        config = override(args.workdir, rest)
        from simclr_jax import distributed

        distributed.start(args.coordinator, args.processes, args.process)
        from simclr_jax.evaluate import report, run

        names = run.DEFAULT if args.protocols is None else args.protocols.split(",")
        sources = [source for source in args.transfer.split(",") if source]
        made = run.evaluate(
            args.workdir, protocols=names, config=config, step=args.step, transfer=sources, again=args.again
        )
        if distributed.first():
            told = report.table(made) or report.notes(made)
            print("\n".join(["", *told, made["verdict"], "", made["page"]]))


def _check(args: argparse.Namespace, rest: list[str]) -> None:
    only_fields(rest)
    demand(args)
    if args.compare and args.workdir:
        raise SimclrError("--compare names the runs itself: leave --workdir out")
    if not args.compare and not args.workdir:
        raise SimclrError("--workdir is missing: for example --workdir=runs/quickstart")
    if args.protocols == "":
        raise SimclrError("--protocols is empty: name some, or leave it out for the default ones")
    if args.protocols and "transfer" in args.protocols.split(",") and not args.transfer:
        raise SimclrError(
            "--protocols=transfer: name the labelled sets, --transfer=tfds:food101,folder:/my/set"
        )


def only_fields(rest: list[str]) -> None:
    """Raises SimclrError for the first word that is no `--config.FIELD=VALUE`."""
    for word in rest:
        if not word.lstrip("-").startswith("config."):
            raise SimclrError(f"{word!r}: not understood; see --help")


def override(workdir: str, options: list[str]) -> ConfigDict:
    """The config of a run with what the options `--config.FIELD=VALUE` say."""
    config, _ = load_config(workdir)
    for option in options:
        check_field(option.split("=", 1)[0].lstrip("-").removeprefix("config."))
    values, words = flags.FlagValues(), ["evaluate", *options]
    config_flags.DEFINE_config_dict("config", config.unlock(), flag_values=values, sys_argv=words)
    try:
        values(words)
        values.config.to_dict()
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError) as error:
        command.misread(error, options)
    changed = values.config.lock()
    if changed.data.source not in ("", "arrays"):
        checks.validate(changed)
    return changed


if __name__ == "__main__":
    main()
