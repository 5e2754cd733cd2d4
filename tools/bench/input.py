"""From a folder of JPEGs to batches of views: images a second, and a second of one core.

The second figure is the one to compare: it does not depend on how many threads a pipeline is given.
"""

import math
import tempfile
import time
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from bench import table
from bench.contest import Contender, Reading, contest, peers, rate
from simclr_jax import run_summary
from simclr_jax.data import pipeline, splits
from simclr_jax.data.host_augment import Crops, Options
from simclr_jax.errors import SimclrError
from simclr_jax.feeds.images import crops

WIDTH, HEIGHT, QUALITY = 500, 375, 90  # like ImageNet's
EPOCHS = 3  # of a timed run: long beside the time to start one


def measure(
    config: ConfigDict, *, images: int = 400, batch: int = 32, steps: int = 3, peer: str | None = None
) -> dict:
    """A row for decoding, cropping and flipping alone, and one for the whole of SimCLR's views."""
    if images < batch:
        raise SimclrError(f"--images={images}: less than a batch; give --batch={images} too")
    size, strength = config.data.image_size, config.augment.jitter_strength
    options = crops(config, 2).options
    stages = {"decode, crop, flip": "uint8", "with colour and blur": "float32"}
    rows, notes = [], []
    with tempfile.TemporaryDirectory() as folder:
        make_folder(Path(folder), images, config.seed)
        source = splits.load(f"folder:{folder}").train
        for stage, dtype in stages.items():
            own = reader(source, options, dtype, batch, size, config.seed, config.data.threads)
            settings = {"folder": folder, "size": size, "batch": batch, "strength": strength}
            colour = stage != "decode, crop, flip"
            with peers(peer, part="input", colour=colour, **settings) as (others, said):
                found = contest({"simclr_jax": own, **others}, steps)
            notes = said
            for name, times in found.items():
                rows.append({"stage": stage, "name": name, "peer": name in others, **rates(times), **times})
    return {"part": "input", "images": images, "batch": batch, "size": size, "rows": rows, "notes": notes,
            **run_summary.environment()}  # fmt: skip


def rates(seconds_an_image: dict) -> dict[str, float]:
    """Images a second, and a second of one core."""
    return {
        "images_per_second": rate(1, seconds_an_image["seconds"]),
        "images_per_core_second": rate(1, seconds_an_image["cpu_seconds"]),
    }


def reader(source, options: Options, dtype: str, batch: int, size: int, seed: int, threads: int) -> Contender:
    """Seconds an image of the pipeline under way.

    A run of many batches less a run of one: building the graph costs a second or two, once in a training.
    """
    many = EPOCHS * (source.size // batch)

    def run(steps: int) -> tuple[float, float]:
        begin, cpu = time.perf_counter(), time.process_time()
        batches = pipeline.train_batches(
            source,
            start=0,
            stop=steps,
            batch=batch,
            seed=seed,
            kinds=[Crops("views", size, 2, 0, options)],
            dtype=dtype,
            threads=threads,
        )
        for _ in batches:
            pass
        return time.perf_counter() - begin, time.process_time() - cpu

    def go() -> Reading:
        short, long = run(1), run(many)
        more = (many - 1) * batch
        # On a disturbed machine the short run can be the longer one: then there is nothing to divide by.
        return Reading(*(max(b - a, math.ulp(b)) / more for a, b in zip(short, long, strict=True)))

    return go


def make_folder(folder: Path, images: int, seed: int) -> None:
    """`images` JPEGs of 500 × 375: random parts, half of them mirrored, of scikit-learn's two photographs."""
    from PIL import Image
    from sklearn.datasets import load_sample_images

    photos = [Image.fromarray(photo) for photo in load_sample_images().images]
    rng = np.random.default_rng(seed)
    for i in range(images):
        photo = photos[i % len(photos)]
        share = rng.uniform(0.4, 1.0)
        width = share * min(photo.width, photo.height * WIDTH / HEIGHT)
        height = width * HEIGHT / WIDTH
        left, top = rng.uniform(0, photo.width - width), rng.uniform(0, photo.height - height)
        part = photo.resize(
            (WIDTH, HEIGHT), Image.Resampling.BICUBIC, (left, top, left + width, top + height)
        )
        if rng.random() < 0.5:
            part = part.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        part.save(folder / f"{i:05d}.jpg", quality=QUALITY)


def show(result: dict) -> None:
    """The table."""
    rows = result["rows"]
    table.show(
        f"input: {result['images']} JPEGs of {WIDTH}×{HEIGHT} to two views of {result['size']} px, "
        f"batches of {result['batch']}",
        ("", "", "images/s", "images/core-second", "× peer, per core-second"),
        [
            (
                r["stage"],
                r["name"],
                table.number(r["images_per_second"]),
                table.number(r["images_per_core_second"]),
                table.times_peer([x for x in rows if x["stage"] == r["stage"]], r, "images_per_core_second"),
            )
            for r in rows
        ],
        ["per core-second: by the CPU time of all threads", *result["notes"]],
    )
