"""What a decoder does to the representation: contrast alone, reconstruction alone, both, masked, untrained.

    python tools/decoder_table.py --out=/tmp/decoder --data=builtin:mnist5k
    python tools/decoder_table.py --out=/tmp/decoder --data=npz:/my/fashion10k.npz --steps=312

Each row has the same encoder, images, augmentation and number of steps; the probes and kNN are those that
end every run, PSNR is of test images (protocol reconstructions). Finished runs are kept: the same command
goes on.
`docs/decoder.md` shows the result.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import t

from simclr_jax import config, train
from simclr_jax.config.fields import set_field
from simclr_jax.evaluate.run import evaluate
from simclr_jax.results import aligned

BOTH = {"loss.name": "nt_xent+reconstruction"}
ROWS: dict[str, dict[str, Any]] = {
    "contrast": {"loss.name": "nt_xent"},
    "reconstruction": {"loss.name": "reconstruction"},
    "both, weight 1": {**BOTH, "loss.reconstruction.weight": 1.0},
    "both, weight 10": {**BOTH, "loss.reconstruction.weight": 10.0},
    "both, weight 100": {**BOTH, "loss.reconstruction.weight": 100.0},
    "masked": {"loss.name": "nt_xent+masked", "loss.masked.weight": 10.0},
}
UNTRAINED, PIXELS = "untrained", "raw pixels"
SCORES = {"knn": "kNN", "linear_100": "100 labels", "linear_1000": "1,000", "linear_all": "all"}


def recipe(data: str, steps: int) -> Any:
    """The config that all rows share."""
    c = config.default()
    c.data.source = data
    c.data.image_size, c.data.channels = 28, 1
    c.augment.device = "all"
    c.augment.flip, c.augment.jitter, c.augment.blur = 0.0, 0.0, 0.0
    c.augment.crop_area = (0.35, 1.0)
    c.model.encoder, c.model.width, c.model.projection_dim = "cnn", 0.5, 64
    c.model.decoder.start = "features"
    c.loss.temperature = 0.2
    c.optimizer.name, c.optimizer.scaling = "adamw", "none"
    c.optimizer.learning_rate, c.optimizer.weight_decay = 3e-3, 1e-4
    c.optimizer.warmup = config.duration(steps=steps // 10)
    c.train.update(config.duration(steps=steps))
    c.train.batch_size = 128
    c.checkpoint.every, c.checkpoint.keep = config.duration(), 1
    c.eval.every = config.duration()
    c.eval.linear.iterations, c.eval.linear.draws = 50, 5
    c.eval.figures = c.log.tensorboard = False
    return c


def results(out: Path, data: str, steps: int, seeds: int) -> Iterator[tuple[str, dict[str, float]]]:
    """(row, {score: fraction, psnr: dB}) of every run, one by one."""
    for seed in range(seeds):
        for row, fields in ROWS.items():
            c = recipe(data, steps)
            c.seed, c.eval.baselines = seed, row == "contrast"
            for field, value in fields.items():
                set_field(c, field, value)
            workdir = out / f"{row.replace(', ', '_').replace(' ', '_')}-{seed}"
            scores = train.run(c, workdir)["scores"]
            told = {name: scores[name]["simclr"] for name in SCORES}
            if row != "contrast":
                found = evaluate(workdir, protocols=["reconstructions"])["protocols"]["reconstructions"]
                told["psnr"] = found["decoder"]["psnr"][0]
            yield row, told
            for who, name in ((UNTRAINED, "untrained"), (PIXELS, "raw_pixels")) if c.eval.baselines else ():
                yield who, {score: scores[score][name] for score in SCORES}


def main() -> None:
    """Trains what is missing and prints the table: means over seeds with Student's 95 % interval."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs")
    parser.add_argument(
        "--data", default="builtin:mnist5k", help="config.data.source of 28-pixel gray images"
    )
    parser.add_argument("--steps", type=int, default=312, help="of each run, 128 images each")
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    found: dict[str, list[dict[str, float]]] = {}
    for row, told in results(args.out, args.data, args.steps, args.seeds):
        found.setdefault(row, []).append(told)
    lines = [["%, over seeds", *SCORES.values(), "PSNR, dB"]]
    for row in (*ROWS, UNTRAINED, PIXELS):
        lines.append([row, *(_cell(found[row], name, 100) for name in SCORES), _cell(found[row], "psnr", 1)])
    print("\n".join(aligned(lines)))


def _cell(runs: list[dict[str, float]], name: str, factor: float) -> str:
    """97.1 ± 0.3"""
    values = factor * np.array([run[name] for run in runs if name in run])
    if not len(values):
        return ""
    half = t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / len(values) ** 0.5 if len(values) > 1 else 0
    return f"{values.mean():.1f} ± {half:.1f}"


if __name__ == "__main__":
    main()
