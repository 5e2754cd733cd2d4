"""SimCLR's augmentations as the accelerator does them: source images a second, two views each."""

from collections.abc import Callable

import jax
import numpy as np
from ml_collections import ConfigDict

from bench import table
from bench.contest import contest, peers, rate, timed
from simclr_jax import augment, run_summary, sharding
from simclr_jax.feeds.images import PHOTOMETRIC, crops

VIEWS = 2


def measure(config: ConfigDict, *, images: int = 64, steps: int = 10, peer: str | None = None) -> dict:
    """A row for colour and blur alone, and one for whole views."""
    mesh, size = sharding.make_mesh(config.mesh.devices), config.data.image_size
    stored = (
        size * 8 // 7 if size > 64 else size
    )  # ImageNet's 256 for 224; small images are stored as they are
    rows, notes = [], []
    for stage, (run, given) in stages(config, images, stored).items():
        placed = sharding.put_batch(given, mesh)
        position = sharding.put_batch(np.arange(images, dtype=np.uint32), mesh)
        compiled = jax.jit(run).lower(placed, position).compile()
        own = timed(lambda c=compiled, x=placed, p=position: jax.block_until_ready(c(x, p)))
        settings = {"images": images, "side": given.shape[-2], "size": size, "stage": stage}
        settings["strength"] = config.augment.jitter_strength
        with peers(peer, part="augment", **settings) as (others, said):
            found = contest({"simclr_jax": own, **others}, steps)
        notes = said
        for name, times in found.items():
            if name not in others and (memory := compiled.memory_analysis()):
                times["memory_bytes"] = memory.temp_size_in_bytes
            speed = rate(images, times["seconds"])
            rows.append(
                {"stage": stage, "name": name, "peer": name in others, "images_per_second": speed, **times}
            )
    return {"part": "augment", "images": images, "size": size, "rows": rows, "notes": notes,
            **run_summary.environment()}  # fmt: skip


def stages(config: ConfigDict, images: int, stored: int) -> dict[str, tuple[Callable, np.ndarray]]:
    """{what is done: (function of (images, position), the images it is given)}."""
    rng, size, channels = np.random.default_rng(0), config.data.image_size, config.data.channels
    fields = crops(config, VIEWS).options._asdict()
    colour = {field: fields[field] for field in PHOTOMETRIC}
    whole = {**fields, "size": size, "views": VIEWS}
    return {
        "colour and blur": (
            lambda x, p: augment.photometric(x, p, config.seed, **colour),
            rng.integers(0, 256, (images, VIEWS, size, size, channels), np.uint8),
        ),
        "whole views": (
            lambda x, p: augment.random_views(x, p, config.seed, **whole),
            rng.integers(0, 256, (images, stored, stored, channels), np.uint8),
        ),
    }


def show(result: dict) -> None:
    """The table."""
    rows, device = result["rows"], result["device"]
    table.show(
        f"augmentation on the device: {result['images']} images to {VIEWS} views of {result['size']} px, "
        f"{device['count']} × {device['kind']}",
        ("", "", "images/s", "ms (range)", "temporary MB", "× peer"),
        [
            (
                r["stage"],
                r["name"],
                table.number(r["images_per_second"]),
                table.milliseconds(r["seconds"]),
                "" if r["peer"] else table.megabytes(r["memory_bytes"]),
                table.times_peer([x for x in rows if x["stage"] == r["stage"]], r, "images_per_second"),
            )
            for r in rows
        ],
        result["notes"],
    )
