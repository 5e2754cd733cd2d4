"""The checkpoints that Google released, and the command: `python -m simclr_jax.convert.released`.

Facts and figures are those of the tables in google-research/simclr's README (SimCLR, arXiv 2002.05709;
SimCLRv2, arXiv 2006.10029, Table 1), the head's those of the papers. The weights are Google's: nothing here
downloads them.
"""

import argparse
import json
from collections.abc import Iterator
from typing import Any, NamedTuple

from simclr_jax import cli, text
from simclr_jax.errors import SimclrError
from simclr_jax.index.ends import ends, parsed

SK_RATIO = 0.0625  # of the selective kernels
BUCKET = "gs://simclr-checkpoints/simclrv2"
OF_SECOND = "gs://simclr-checkpoints-tf2"  # the same as SavedModels of TensorFlow 2
# What was trained: (its title, the layer of the projection head that the classifier reads).
KINDS = {
    "pretrained": ("linear evaluation", 0),
    "finetuned_1pct": ("fine-tuned, 1 % of labels", 1),
    "finetuned_10pct": ("fine-tuned, 10 % of labels", 1),
    "finetuned_100pct": ("fine-tuned, all labels", 0),
    "supervised": ("supervised", 0),
}
# ImageNet top-1 in %, of SimCLR: (width, millions of parameters, linear evaluation).
FIRST = ((1, 24, 69.1), (2, 94, 74.2), (4, 375, 76.6))
# Of SimCLRv2: (depth, width, selective kernels, millions of parameters, by fine-tuning on 1, 10 and 100 %,
# by linear evaluation, supervised).
SECOND = (
    (50, 1, False, 24, 57.9, 68.4, 76.3, 71.7, 76.6),
    (50, 1, True, 35, 64.5, 72.1, 78.7, 74.6, 78.5),
    (50, 2, False, 94, 66.3, 73.9, 79.1, 75.6, 77.8),
    (50, 2, True, 140, 70.6, 77.0, 81.3, 77.7, 79.3),
    (101, 1, False, 43, 62.1, 71.4, 78.2, 73.6, 78.0),
    (101, 1, True, 65, 68.3, 75.1, 80.6, 76.3, 79.6),
    (101, 2, False, 170, 69.1, 75.8, 80.7, 77.0, 78.9),
    (101, 2, True, 257, 73.2, 78.8, 82.4, 79.0, 80.1),
    (152, 1, False, 58, 64.0, 73.0, 79.3, 74.5, 78.3),
    (152, 1, True, 89, 70.0, 76.5, 81.3, 77.2, 79.9),
    (152, 2, False, 233, 70.2, 76.6, 81.1, 77.4, 79.1),
    (152, 2, True, 354, 74.2, 79.4, 82.9, 79.4, 80.4),
    (152, 3, True, 795, 74.9, 80.1, 83.1, 79.8, 80.5),
)
BESIDE = (
    "Google has more, without a table of figures, in its folders distill_1pct, distill_10pct and simclrv1."
)


class Released(NamedTuple):
    """A checkpoint.

    Attributes:
      name: ours, unique: "v2/pretrained/r50_1x_sk0".
      version: 1 or 2, of SimCLR.
      kind: of KINDS.
      sk: whether it has selective kernels.
      head: layers of the projection head that it was pretrained with; None: there is none, or nobody says.
      probe_layer: the one that the classifier reads; 0 is the encoder's output.
      parameters: millions of the encoder's.
      top1: % of ImageNet's validation images right, as Google published it.
      source: TensorFlow 1 checkpoint; savedmodel: the same for TensorFlow 2.
      download, convert: the commands.
    """

    name: str
    version: int
    kind: str
    depth: int
    width: int
    sk: bool
    head: int | None
    probe_layer: int
    parameters: int
    top1: float
    source: str
    savedmodel: str
    download: str
    convert: str

    def model(self) -> dict[str, Any]:
        """The fields of config.model that a conversion infers for its encoder."""
        return {
            "depth": self.depth,
            "width": float(self.width),
            "sk_ratio": SK_RATIO * self.sk,
            "stem": "imagenet",
        }


def released() -> list[Released]:
    """All 68 of them: three of SimCLR, 65 of SimCLRv2."""
    return [*map(_first, FIRST), *_second()]


def _first(row: tuple[int, int, float]) -> Released:
    width, parameters, top1 = row
    folder = f"ResNet50_{width}x"
    source = f"gs://simclr-gcs/checkpoints/{folder}.zip"
    return Released(
        f"v1/pretrained/r50_{width}x", 1, "pretrained", 50, width, False, None, 0, parameters, top1, source,
        f"{OF_SECOND}/simclrv1/pretrain/{width}x",
        f"gcloud storage cp {source} . && unzip {folder}.zip",
        f"simclr convert google {folder} --out runs/v1_r50_{width}x",
    )  # fmt: skip


def _second() -> Iterator[Released]:
    order = ("finetuned_1pct", "finetuned_10pct", "finetuned_100pct", "pretrained", "supervised")
    for kind, (_, layer) in KINDS.items():
        for depth, width, sk, parameters, *scores in SECOND:
            model = f"r{depth}_{width}x_sk{int(sk)}"
            source, folder = f"{BUCKET}/{kind}/{model}", f"simclrv2/{kind}"
            head = None if kind == "supervised" else 3
            chosen = f" --probe-layer={layer}" * bool(layer)
            yield Released(
                f"v2/{kind}/{model}", 2, kind, depth, width, sk, head, layer, parameters,
                scores[order.index(kind)], source, f"{OF_SECOND}/{folder}/{model}/saved_model",
                f"mkdir -p {folder} && gcloud storage cp -r {source} {folder}",
                f"simclr convert google {folder}/{model}{chosen} --out runs/v2_{kind}_{model}",
            )  # fmt: skip


# ---- the command ----------------------------------------------------------------------------------


def parser() -> argparse.ArgumentParser:
    """The options."""
    top = cli.parser(
        "simclr_jax.convert.released",
        "Lists the checkpoints that Google released, with the command that converts each.",
        "Where one is left it is told whole, with the command that downloads it.",
        argparse.HelpFormatter,
    )
    add = top.add_argument
    add("name", nargs="?", default="", help="a part of the names: v1, finetuned_1pct, r50_1x_sk1")
    add("--depth", type=int, metavar="N", help="50, 101 or 152")
    add("--width", type=int, metavar="N", help="1, 2, 3 or 4")
    add("--sk", action=argparse.BooleanOptionalAction, help="with selective kernels, or without")
    add("--kind", choices=KINDS, help="what was trained")
    add("--json", action="store_true", help="as JSON, all that is known of each")
    return top


def main(argv: list[str] | None = None) -> None:
    """Prints the table, or one line that says why there is none."""
    with ends():
        args = parsed(parser(), argv)
        rows = chosen(args)
        if args.json:
            print(json.dumps([row._asdict() for row in rows], indent=2))
        elif len(rows) == 1:
            print("\n".join(whole(rows[0])))
        else:
            show(rows)


def chosen(args: argparse.Namespace) -> list[Released]:
    """The checkpoints that the options leave.

    Raises:
      SimclrError: they leave none.
    """
    wanted = {field: getattr(args, field) for field in ("depth", "width", "sk", "kind")}
    wanted = {field: value for field, value in wanted.items() if value is not None}
    rows = [
        row
        for row in released()
        if args.name in row.name and all(getattr(row, field) == value for field, value in wanted.items())
    ]
    if not rows:
        said = [*([args.name] if args.name else []), *(f"{field}={value}" for field, value in wanted.items())]
        raise SimclrError(f"{', '.join(said)}: Google released no such checkpoint; leave an option out")
    return rows


def show(rows: list[Released]) -> None:
    """Prints a line for each checkpoint."""
    columns = ("checkpoint", "depth", "width", "SK", "head", "reads", "M", "top-1", "")
    lines = []
    for row in rows:
        head = "" if row.head is None else str(row.head)
        cells = (f"{row.width}×", "yes" if row.sk else "no", head, str(row.probe_layer), str(row.parameters))
        lines.append((row.name, str(row.depth), *cells, f"{row.top1:.1f}", row.convert))
    notes = (
        "head: layers of the projection head; reads: the layer of it that the classifier reads, 0 is the",
        "encoder; M: millions of parameters; top-1: % of ImageNet, by Google; then what converts it.",
        f"{cli.name('simclr_jax.convert.released')} {rows[0].name} tells how to download that one.",
        BESIDE,
    )
    text.show_table(f"{len(rows)} checkpoints", columns, lines, notes)


def whole(row: Released) -> list[str]:
    """All that is known of one, a fact a line, then the two commands."""
    head = f"{row.head} layers, nonlinear, to 128 features"
    if row.head is None:
        head = "not in the checkpoint" if row.version == 1 else "not published"
    reads = f"layer {row.probe_layer} of the head" if row.probe_layer else "the encoder's output"
    facts = {
        "checkpoint": row.name,
        "encoder": f"ResNet-{row.depth}, width {row.width}×, {'with' if row.sk else 'no'} selective kernels",
        "parameters": f"{row.parameters} million",
        "head": head,
        "classifier": f"reads {reads}",
        "top-1": f"{row.top1} % of ImageNet, {KINDS[row.kind][0]}, as Google published it",
        "TensorFlow 1": row.source,
        "TensorFlow 2": row.savedmodel,
    }
    return [*(f"{name:13}{fact}" for name, fact in facts.items()), "", row.download, row.convert]


if __name__ == "__main__":
    main()
