"""The command: `python -m simclr_jax.convert google CHECKPOINT --out WORKDIR`, and so on."""

import argparse
import sys

from simclr_jax import cli, paths
from simclr_jax.errors import SimclrError

FAILED = 2


def parser() -> argparse.ArgumentParser:
    """The four conversions and their options."""
    top = argparse.ArgumentParser(
        prog=cli.name("simclr_jax.convert"), description="Other projects' weights in, ours out."
    )
    kinds = top.add_subparsers(dest="kind", required=True, metavar="google | torch | to-google | to-torch")

    google = kinds.add_parser("google", help="a google-research/simclr checkpoint to a workdir")
    google.add_argument("checkpoint", help="prefix, folder of a checkpoint, or SavedModel")
    google.add_argument("--ema", action="store_true", help="take the moving average (ema_model/)")

    torch = kinds.add_parser("torch", help="a PyTorch ResNet or ViT (.pth, .ckpt, .safetensors) to a workdir")
    torch.add_argument(
        "checkpoint", help="torchvision's, lightly's, solo-learn's, VISSL's or timm's state dict"
    )
    torch.add_argument("--prefix", help="of the encoder's keys, where there are several encoders")
    torch.add_argument(
        "--heads", type=int, default=0, metavar="N", help="of a ViT's attention (those usual at its width)"
    )

    for each in (google, torch):
        each.add_argument("--out", required=True, metavar="WORKDIR", help="new local folder")
        each.add_argument(
            "--image-size", type=int, default=0, metavar="N", help="pixels (224, CIFAR stem 32, a ViT's own)"
        )
    google.add_argument(
        "--probe-layer",
        type=int,
        metavar="N",
        help="layer of the head the classifier reads (ft_proj_selector)",
    )

    back = kinds.add_parser("to-google", help="a workdir to a checkpoint that the original loads")
    back.add_argument(
        "--format", choices=("tf1", "tf2"), default="tf1", help="name-based (default) or object-based"
    )
    out = kinds.add_parser("to-torch", help="a workdir to a state dict (.pth or .safetensors)")
    out.add_argument(
        "--names", choices=("timm", "torchvision"), default="", help="of a ViT's layers: timm's by default"
    )
    for each, what in ((back, "FOLDER"), (out, "FILE")):
        each.add_argument("workdir")
        each.add_argument("--out", required=True, metavar=what, help="new, local")
        each.add_argument("--step", type=int, default=0, metavar="N", help="of its checkpoints (the newest)")
    return top


def main(argv: list[str] | None = None) -> None:
    """Converts; prints what was inferred and written, or one line that says what is wrong."""
    args = parser().parse_args(argv)
    try:
        if args.kind == "google":
            from simclr_jax.convert import google_tf

            said = google_tf.convert(
                args.checkpoint,
                args.out,
                ema=args.ema,
                image_size=args.image_size,
                probe_layer=args.probe_layer,
            )
        elif args.kind == "torch":
            from simclr_jax.convert import torch

            said = torch.convert(
                args.checkpoint,
                args.out,
                prefix=args.prefix,
                image_size=args.image_size,
                heads=args.heads,
            )
        elif args.kind == "to-google":
            from simclr_jax.convert import google_tf

            said = google_tf.export(args.workdir, args.out, format=args.format, step=args.step)
        else:
            from simclr_jax.convert import torch

            said = torch.export(args.workdir, args.out, step=args.step, naming=args.names)
    except SimclrError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(FAILED)
    print(said)
    print(paths.expand(args.out))


if __name__ == "__main__":
    main()
