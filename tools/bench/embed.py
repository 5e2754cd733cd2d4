"""From a folder of small PNGs to a file of embeddings: `simclr embed`, beside lightly's loop."""

import contextlib
import io
import tempfile
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from bench import table
from bench.contest import contest, peers, rate, timed
from simclr_jax import encoder, run_summary
from simclr_jax.config import flatten
from simclr_jax.data import splits
from simclr_jax.embed import run
from simclr_jax.errors import SimclrError
from simclr_jax.models import simclr

SIDE = 28  # of the files, pixels


def measure(config: ConfigDict, *, images: int = 10_000, steps: int = 2, peer: str | None = None) -> dict:
    """Reading, decoding, resizing, encoding and writing; of ours the part files and the merge too."""
    if images < 1:
        raise SimclrError(f"--images={images}: must be 1 or more")
    config = config.copy_and_resolve_references()
    config.data.source, config.compile_cache = "folder:images", ""
    model, side, channels = simclr.create(config.model), config.data.image_size, config.data.channels
    found = encoder.Encoder(config, (), 0, {})
    found.variables = jax.device_get(
        jax.jit(lambda key: simclr.init(model, key, simclr.sample(found.reader.spec())))(jax.random.key(0))
    )
    with tempfile.TemporaryDirectory() as folder:
        make_folder(Path(folder, "images"), images)

        def embed() -> None:
            out = Path(folder, "features.npy")
            out.unlink(missing_ok=True)
            with contextlib.redirect_stdout(io.StringIO()):
                run.embed(found, folder, run.Options(str(Path(folder, "images")), str(out)))

        fields = flatten(config)
        settings = {
            "folder": str(Path(folder, "images")), "size": side, "channels": channels,
            "batch": config.eval.batch_size, "encoder": fields["model.encoder"],
            "depth": fields["model.depth"], "width": fields["model.width"], "stem": fields["model.stem"],
        }  # fmt: skip
        with peers(peer, part="embed", **settings) as (others, notes):
            times = contest({"simclr_jax": timed(embed, images), **others}, steps)
    rows = [
        {"name": name, "peer": name in others, "images_per_second": rate(1, each["seconds"]),
         "images_per_core_second": rate(1, each["cpu_seconds"]), **each}
        for name, each in times.items()
    ]  # fmt: skip
    return {"part": "embed", "images": images, "size": side, "encoder": settings["encoder"], "rows": rows,
            "notes": notes, **run_summary.environment()}  # fmt: skip


def make_folder(folder: Path, images: int) -> None:
    """`images` gray PNGs of 28 × 28: the digits that ship with the project, over and over, shifted."""
    from PIL import Image

    source = splits.load("builtin:mnist5k").train
    digits, labels = source.fetch(np.arange(source.size))
    for i in range(images):
        round_, digit = divmod(i, len(digits))
        file = folder / str(labels[digit]) / f"{i:07d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.roll(digits[digit, ..., 0], round_, axis=0)).save(file, compress_level=1)


def show(result: dict) -> None:
    """The table."""
    rows, device = result["rows"], result["device"]
    table.show(
        f"embed: {result['images']:,} PNGs of {SIDE}×{SIDE} at {result['size']} px, {result['encoder']}, "
        f"{device['count']} × {device['kind']}",
        ("", "images/s", "images/core-second", "× peer"),
        [
            (
                r["name"],
                table.number(r["images_per_second"]),
                table.number(r["images_per_core_second"]),
                table.times_peer(rows, r, "images_per_second"),
            )
            for r in rows
        ],
        result["notes"],
    )
