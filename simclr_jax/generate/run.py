"""Fits densities to the latents of a run, draws from them, and tells how near that comes to real images."""

import json
import math
import time
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, cast

import numpy as np
from etils import epath
from ml_collections import ConfigDict

from simclr_jax import decoding, figures, files, metrics, paths, run_summary
from simclr_jax.config import load_config
from simclr_jax.data.sources import Source
from simclr_jax.data.splits import Splits
from simclr_jax.decoding import Autoencoder
from simclr_jax.errors import SimclrError
from simclr_jax.evaluate.run import complete, load_images
from simclr_jax.feeds import hold
from simclr_jax.generate import between, page
from simclr_jax.generate.viewer import Made, Near, Read, Viewer
from simclr_jax.measures import density, frechet
from simclr_jax.measures.choice import validation_rows
from simclr_jax.measures.density import Axes, Density
from simclr_jax.tasks.extractor import RAW_EXAMPLES, sample
from simclr_jax.train import use_compile_cache

KEEP = 0.95  # of the variance of latents, along the axes that a density sees; what is left is hardly seen
FIT = 20_000  # training images whose latents a density learns from, at most
HELD, SHARE = 10_000, 10  # held-out images, at most; of training images a tenth where there is no test split
BYTES = 2 << 30  # of the images that the decoder makes of held-out ones, at most
LATENT = 4096  # numbers in a latent, at most
LEAST = 8  # images of each kind
COPIES = 1000  # images whose nearest training images are looked for, at most
RARE = 1  # percent of reconstructions that are nearer to a training image than what counts as near
NAMES = {"gaussian": "one Gaussian", "mixture": "Gaussian mixture", "flow": "normalising flow"}
DRAWN = ("mixture", "flow")  # those that are shown
COLUMNS, PAIRS, WAY = 12, 5, 8  # of the figures: images in a row, pairs, images from one to the other

Rows = tuple[list[list[np.ndarray]], list[str]]  # of images, and their names


class Found(NamedTuple):
    """What the images are compared by."""

    viewer: Viewer
    train: Source
    test: Source
    bank: Read  # training images
    held: Read  # of test images, or training images that no density learns from; in random order
    axes: Axes
    densities: dict[str, Density]
    numbers: dict[str, Any]  # of the densities


def generate(
    workdir: epath.PathLike,
    out: epath.PathLike,
    *,
    config: ConfigDict | None = None,
    samples: int = 36,
    seed: int = 0,
    step: int = 0,
    splits: Splits | None = None,
) -> dict[str, Any]:
    """Writes `out`: generate.html, generate.json, figures, and samples as PNG files.

    Args:
      workdir: of a run whose loss has the term `reconstruction`.
      config: the run's own, with changes.
      samples: images of each density that are written.
      seed: of the densities and of what is drawn.
      step: of its checkpoints; 0: the newest.
      splits: the images, where the config's source is "arrays".

    Returns:
      what generate.json holds.

    Raises:
      SimclrError: the run has no decoder, or no images, or too few; or its latents cannot be fitted.
    """
    workdir, out, begin = paths.expand(workdir), paths.expand(out), time.perf_counter()
    found = _fit(*_opened(workdir, config, step, splits), seed, workdir)
    half = len(found.held.features) // 2
    count, make = max(half, samples), found.viewer.made
    drawn = {name: make(one.sample(count, seed + 1)) for name, one in found.densities.items()}
    again = make(found.held.latents)
    near = {
        name: found.viewer.near(found.bank, looks, max(COPIES, samples))
        for name, looks in {"held_out": found.held, "reconstructions": again, **drawn}.items()
    }
    made = {
        "workdir": str(workdir),
        "page": str(out / "generate.html"),
        "step": found.viewer.autoencoder.encoder.step,
        "seed": seed,
        "images": {
            "train": [found.train.name, len(found.bank.rows)],
            "held_out": 2 * half,
            "trained_on": found.test is found.train,
        },
        "latents": {"numbers": found.held.latents.shape[1], "axes": len(found.axes.scale), "share": KEEP},
        "likelihood": found.numbers,
        "frechet": _distances(found.held, again, drawn, half),
        "copies": _copies(near),
        "samples": {name: _written(found, drawn[name], near[name], samples, out / name) for name in DRAWN},
        "figures": _drawn(found, again, drawn, near, samples, out / "figures"),
        "environment": run_summary.environment(),
        "written": time.strftime("%Y-%m-%d %H:%M"),
        "seconds": round(time.perf_counter() - begin, 1),
    }
    files.write(out / "generate.json", json.dumps(made, indent=2) + "\n")
    files.write(out / "generate.html", page.render(made, out))
    return made


def _opened(
    workdir: epath.Path, config: ConfigDict | None, step: int, splits: Splits | None
) -> tuple[Autoencoder, Splits]:
    """The encoder and decoder of a run, and the images."""
    config = complete(load_config(workdir)[0], config, workdir)
    autoencoder = decoding.load(workdir, step, config)
    if autoencoder.dim > LATENT:
        raise SimclrError(
            f"{workdir}: its decoder reads {autoencoder.dim:,} numbers of an image, and a density learns "
            f"{LATENT:,} at most; {decoding.HOW}"
        )
    use_compile_cache(config.compile_cache)
    splits = hold(config, splits or load_images(config, autoencoder.encoder.data))
    for split in splits:
        if split is not None and not isinstance(split, Source):
            raise SimclrError(f"{split.name}: is read in sequence; prepare it as ArrayRecord")
    return autoencoder, splits


def _fit(autoencoder: Autoencoder, splits: Splits, seed: int, workdir: epath.Path) -> Found:
    """The densities of the latents of training images, and how likely held-out latents are."""
    train, test = cast(Source, splits.train), cast(Source | None, splits.test)  # by `_opened`
    viewer = Viewer(autoencoder, splits)
    print(f"latents of {train.name}", flush=True)
    rows = np.random.default_rng(seed).permutation(_rows(train, RAW_EXAMPLES))
    most = max(LEAST, min(HELD, BYTES // (4 * math.prod(autoencoder.example(1).shape))))
    held = rows[: min(len(rows) // SHARE, most)]
    if test:
        held = np.random.default_rng(seed).permutation(_rows(test, most))
    rows = rows if test else rows[len(held) :]
    if min(len(rows), len(held)) < LEAST:
        raise SimclrError(
            f"{workdir}: {len(rows)} training images and {len(held)} others: needs {LEAST} each"
        )
    bank, others = viewer.read(train, rows), viewer.read(test or train, held)
    latents = bank.latents[:FIT]
    if not np.isfinite(latents).all():
        raise SimclrError(f"{workdir}: latents that are no finite numbers; train with a lower learning rate")
    choice, rest = (latents[index] for index in validation_rows(len(latents)))
    axes = Axes.fit(rest, KEEP) if np.ptp(rest, axis=0).max() > 0 else None
    if axes is None or len(axes.scale) < 2:
        raise SimclrError(f"{workdir}: its latents vary along one axis at most: the encoder has collapsed")
    densities: dict[str, Density] = {"gaussian": density.fit_mixture(rest, choice, axes, (1,), seed)}
    tried = metrics.watched(density.COMPONENTS, len(density.COMPONENTS), "mixture")
    densities["mixture"] = density.fit_mixture(rest, choice, axes, tried, seed)
    densities["flow"] = density.fit_flow(rest, choice, axes, seed=seed, watch=_watch)
    numbers = {
        name: {
            "held_out": float(np.mean(one.log_prob(others.latents))),
            "fitted": float(np.mean(one.log_prob(rest))),
            **one.about(),
        }
        for name, one in densities.items()
    }
    return Found(viewer, train, test or train, bank, others, axes, densities, numbers)


def _watch(epochs: range) -> Iterator[int]:
    return metrics.watched(epochs, len(epochs), "round")


def _rows(split: Source, most: int) -> np.ndarray:
    """The numbers of a fixed sample of the images of a split."""
    index = sample(split, most)
    return np.arange(split.size) if index is None else index


# ---- what is measured -----------------------------------------------------------------------------------


def _distances(held: Read, again: Made, drawn: Mapping[str, Made], half: int) -> dict[str, float]:
    """Fréchet distances of sets of `half` images each to the first half of the held-out ones."""
    first = held.features[:half]
    sets = {"held_out": held.features[half : 2 * half], "reconstructions": again.features[half : 2 * half]}
    sets |= {name: looks.features[:half] for name, looks in drawn.items()}
    return {name: frechet.distance(first, features) for name, features in sets.items()}


def _copies(near: Mapping[str, Near]) -> dict[str, dict[str, float]]:
    """How near images come to training images, and which share comes nearer than reconstructions do."""
    yard = near["reconstructions"]
    away, alike = np.percentile(yard.away, RARE), np.percentile(yard.alike, 100 - RARE)
    return {
        name: {
            "away": float(np.median(one.away)),
            "least_away": float(np.min(one.away)),
            "near": float(np.mean(one.away < away)),
            "alike": float(np.median(one.alike)),
            "most_alike": float(np.max(one.alike)),
            "similar": float(np.mean(one.alike > alike)),
        }
        for name, one in near.items()
    }


# ---- what is written ------------------------------------------------------------------------------------


def _written(found: Found, drawn: Made, near: Near, count: int, folder: epath.Path) -> list[dict[str, Any]]:
    """Writes the first samples as PNG files; which training images each is nearest to."""
    told = []
    for i, image in enumerate(drawn.images[:count]):
        path = folder / f"{i:04d}.png"
        figures.write_png(path, image)
        told.append({
            "file": f"{folder.name}/{path.name}",
            "nearest_by_pixels": _name(found, near.by_pixels[i]), "away": float(near.away[i]),
            "nearest_by_features": _name(found, near.by_features[i]), "alike": float(near.alike[i]),
        })  # fmt: skip
    return told


def _name(found: Found, number: int) -> str | int:
    """The file of a training image, or its number."""
    row = int(found.bank.rows[number])
    return found.train.names[row] if found.train.names else row


def _drawn(
    found: Found,
    again: Made,
    drawn: Mapping[str, Made],
    near: Mapping[str, Near],
    samples: int,
    folder: epath.Path,
) -> list[list[str]]:
    """Draws the figures; [name, caption] of each."""
    some = figures.spread(found.held.labels, COLUMNS)
    real = found.viewer.pictures(found.test, found.held.rows[some])
    captions = {"reconstructions": "Held-out images, and what the decoder makes of their latents"}
    rows: dict[str, Rows] = {
        "reconstructions": ([list(real), list(again.images[some])], ["image", "decoded"])
    }
    for name in DRAWN:
        sheet, title = f"{name}_samples", NAMES[name]
        captions[sheet] = f"The first {samples} samples of the {title}, each with its nearest training images"
        rows[sheet] = _beside(found, drawn[name], near[name], np.arange(samples))
        for way, order in (("pixels", near[name].away), ("features", -near[name].alike)):
            sheet = f"{name}_nearest_by_{way}"
            captions[sheet] = f"Of {len(order):,} samples the nearest to training images by {way}: {title}"
            rows[sheet] = _beside(found, drawn[name], near[name], np.argsort(order)[:COLUMNS])
    captions["between"] = "From one held-out image to another: the straight way, and around the mean latent"
    rows["between"] = _between(found)
    for name, (images, names) in rows.items():
        figures.attempt(print, folder / f"{name}.png", figures.rows, images, names)
    return [[name, caption] for name, caption in captions.items()]


def _beside(found: Found, looks: Made, near: Near, which: np.ndarray) -> Rows:
    """Rows of images and their names: samples, and the training images nearest by pixels and by features."""
    rows = [looks.images[which]]
    rows += [
        found.viewer.pictures(found.train, found.bank.rows[index[which]])
        for index in (near.by_pixels, near.by_features)
    ]
    blocks = range(0, len(which), COLUMNS)
    images = [list(row[begin : begin + COLUMNS]) for begin in blocks for row in rows]
    return images, ["sample", "by pixels", "by features"] * len(blocks)


def _between(found: Found) -> Rows:
    """Rows of images and their names: the ways between pairs of held-out images."""
    ends = np.array(figures.spread(found.held.labels, 2 * PAIRS)[: len(found.held.labels) // 2 * 2])
    pairs, t, images = ends.reshape(-1, 2), np.linspace(0, 1, WAY), []
    for a, b in pairs:
        left, right = found.viewer.pictures(found.test, found.held.rows[[a, b]])
        one, other = found.held.latents[[a, b]]
        for way in (between.line(one, other, t), between.arc(one, other, t, found.axes.mean)):
            images.append([left, *found.viewer.autoencoder.decode(way), right])
    return images, ["line", "arc"] * len(pairs)
