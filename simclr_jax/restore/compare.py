"""`--corrupt`: clean images are spoiled, restored in several ways, and compared with themselves."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from etils import epath

from simclr_jax import degrade, figures, files, run_summary
from simclr_jax.config.fields import flatten
from simclr_jax.data import formats
from simclr_jax.errors import SimclrError
from simclr_jax.measures import pictures
from simclr_jax.restore import baselines, page, run
from simclr_jax.tasks.restore import TEST_KEY, keys_of

SHOWN = 6  # images in the figure
PATCH = 128  # side of their central crops, pixels: each is shown as it is
INPUT, MINE = "input", "restored"
SPOILT = {  # what the input is called
    "fewer_pixels": "bicubic (the input)",
    "holes": "input, mean colour in holes",
}


class Contender(NamedTuple):
    """A way to restore: its title, and a function of (image, sigma or None) for each of its settings."""

    title: str
    ways: Mapping[str, Callable[[np.ndarray, np.ndarray], np.ndarray]]  # (spoilt, known [h, w, 1])


class Found(NamedTuple):
    """What was measured: {contender: {way: {"psnr": [n], "ssim": [n]}}}, and parts of images to show."""

    scores: dict[str, dict[str, dict[str, list[float]]]]
    parts: list[dict[str, np.ndarray]]
    names: list[str]


def compare(
    workdir: epath.PathLike, step: int, beside: Sequence[str], names: Sequence[str], options: run.Options
) -> list[str]:
    """Compares, writes report.html, report.json and the images; returns lines for the user.

    Args:
      beside: workdirs of other runs; names: of `baselines`.

    Raises:
      SimclrError: something is not there or does not fit; or, at the end, files were unreadable.
    """
    network = run.Restorer(workdir, step, options.ensemble)
    folder, files_ = run.find(options.images)
    out = run.prepare_out(options)
    contenders = _contenders(network, beside, names, options.tile)
    found, unreadable = Found({}, [], []), []
    targets = run.targets(files_)
    for number, name, image in run.each(files_, lambda name: network.read(folder / name)):
        if isinstance(image, formats.UnreadableError):
            unreadable.append(name)
            continue
        spoilt, known = corrupted(network.config, image, number)
        figures.write_png(out / "corrupted" / targets[name], spoilt)
        restored = _measure(found, contenders, name, (image, spoilt, known))
        figures.write_png(out / targets[name], restored)
    if not found.names:
        run.fail_if(unreadable, len(files_))
    report = summarize(found, contenders, network, str(workdir))
    report["images"]["unreadable"] = unreadable
    files.write(epath.Path(out / "report.json"), json.dumps(report, indent=1) + "\n")
    page.draw(epath.Path(out / "figures" / "before_after.png"), found.parts, report)
    files.write(epath.Path(out / "report.html"), page.render(report, epath.Path(out)))
    lines = [*page.table(report), "", report["verdict"], "", str(out / "report.html")]
    if unreadable:
        print("\n".join(["", *lines]), flush=True)
    run.fail_if(unreadable, len(files_))
    return lines


def corrupted(config: Any, image: np.ndarray, number: int) -> tuple[np.ndarray, np.ndarray]:
    """(spoilt image `[h, w, c]`, known `[h, w, 1]`) of image `number`, as the run's config says."""
    keys = keys_of(config, jnp.asarray([number], jnp.uint32), 1, TEST_KEY)
    spoilt, known = degrade.corrupt(jnp.asarray(image[None]), keys, config.restore)
    return np.asarray(spoilt)[0], np.asarray(known)[0]


def _contenders(
    network: run.Restorer, beside: Sequence[str], names: Sequence[str], tile: int
) -> dict[str, Contender]:
    """The input, the baselines, the other runs, and last the run itself."""
    found, sigma = {INPUT: Contender(SPOILT.get(network.corruption, "input"), {"": _input(network)})}, None
    if network.corruption == "gaussian" and not network.config.restore.sigma_range:
        sigma = network.config.restore.sigma / degrade.UNIT
    for name, (title, ways, function) in baselines.load(list(names)).items():
        settings = baselines.settings(ways, network.config.data.channels)
        found[name] = Contender(title, {way: _by(function, sigma, own) for way, own in settings})
    for other in beside:
        loaded = run.Restorer(other, ensemble=network.ensemble)
        mine, its = (
            {field: value for field, value in flatten(each.config).items() if _must_agree(field)}
            for each in (network, loaded)
        )
        for field in mine:
            if mine[field] != its[field]:
                raise SimclrError(f"--beside={other}: has config.{field}={its[field]!r}, not {mine[field]!r}")
        found[f"beside {other}"] = Contender(Path(other).name, {"": _of(loaded, tile)})
    title = "restored, mean of eight orientations" if network.ensemble else "restored"
    return found | {MINE: Contender(title, {"": _of(network, tile)})}


def _must_agree(field: str) -> bool:
    return field == "data.channels" or (
        field.startswith("restore.") and field not in ("restore.loss", "restore.crops")
    )


def _input(network: run.Restorer) -> Callable:
    def restore(image: np.ndarray, known: np.ndarray) -> np.ndarray:
        return np.asarray(degrade.scored(jnp.asarray(image), network.corruption))

    return restore


def _by(function: Callable, sigma: float | None, options: dict[str, Any]) -> Callable:
    def restore(image: np.ndarray, known: np.ndarray) -> np.ndarray:
        return function(image, sigma, options)

    return restore


def _of(network: run.Restorer, tile: int) -> Callable:
    def restore(image: np.ndarray, known: np.ndarray) -> np.ndarray:
        if network.corruption == "holes":
            return network.complete(image, known, tile)
        return network(image, tile)

    return restore


def _measure(
    found: Found, contenders: dict[str, Contender], name: str, images: tuple[np.ndarray, ...]
) -> np.ndarray:
    """Adds the scores of an image; returns it restored by the run."""
    clean, spoilt, known = images
    shown = {"clean": clean}
    for who, contender in contenders.items():
        for way, function in contender.ways.items():
            result = function(spoilt, known)
            clipped = result if who == INPUT else np.clip(result, 0, 1)  # see degrade.scored
            scores = found.scores.setdefault(who, {}).setdefault(way, {"psnr": [], "ssim": []})
            scores["psnr"].append(pictures.psnr(clipped, clean))
            scores["ssim"].append(pictures.ssim(clipped, clean))
            shown.setdefault(f"{who}\n{way}", clipped)
    found.names.append(name)
    if len(found.parts) < SHOWN:
        found.parts.append({each: _middle(image) for each, image in shown.items()})
    return shown[f"{MINE}\n"]


def _middle(image: np.ndarray) -> np.ndarray:
    top, left = (max(0, (side - PATCH) // 2) for side in image.shape[:2])
    return image[top : top + PATCH, left : left + PATCH]


def summarize(
    found: Found, contenders: dict[str, Contender], network: run.Restorer, workdir: str
) -> dict[str, Any]:
    """The report as JSON: of each contender its best way by mean PSNR, with intervals and differences."""
    mine, rows = found.scores[MINE][""], []
    for who, contender in contenders.items():
        ways = found.scores[who]
        way = max(ways, key=lambda each: np.mean(ways[each]["psnr"]))
        row: dict[str, Any] = {"who": who, "title": contender.title, "way": way, "ways": len(ways)}
        for score in ("psnr", "ssim"):
            row[score] = pictures.interval(ways[way][score])
            row[f"{score}_each"] = ways[way][score]
            if who != MINE:
                apart = np.subtract(mine[score], ways[way][score])
                row[f"{score}_gain"] = pictures.interval(apart)
        rows.append(row)
    config = network.config
    used = {"workdir": workdir, "step": network.step, "corruption": described(config.restore)}
    report = {
        **used,
        "images": {"names": found.names},
        "rows": rows,
        "config": config.to_dict(),
        **run_summary.environment(),
    }
    return report | {"verdict": page.verdict(report)}


def described(options: Any) -> str:
    """What spoils the images, in words."""
    sigmas = f"{options.sigma:g}"
    if options.sigma_range:
        sigmas = f"{options.sigma_range[0]:g} to {options.sigma_range[1]:g}"
    return {
        "gaussian": f"Gaussian noise, sigma {sigmas} of 255, not clipped",
        "poisson": f"Poisson noise, {options.peak:g} photons at white",
        "salt_and_pepper": f"salt and pepper on {options.share:.0%} of the values",
        "jpeg": f"JPEG of quality {options.quality}",
        "fewer_pixels": f"1/{options.scale} of the pixels a side, bicubic",
        "holes": f"holes of {options.hole} pixels on {options.share:.0%}",
    }[options.corruption]
