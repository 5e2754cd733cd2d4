"""From a run to an artefact: write it, compare it with the run, tell about it."""

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath
from PIL import Image

from simclr_jax import encoder as encoders
from simclr_jax import files, paths
from simclr_jax.data import formats
from simclr_jax.data.scan import find
from simclr_jax.encoder import Encoder
from simclr_jax.errors import SimclrError
from simclr_jax.export import card
from simclr_jax.export.contract import Options, Runner
from simclr_jax.export.formats import writer
from simclr_jax.feeds.images import ImageReader
from simclr_jax.metrics import Progress

IMAGES = 16  # drawn, where no real ones are given
REAL = 100  # images of --check, at most
BATCH = 16  # images compared at a time
SIZES = ((37, 53), (96, 64), (301, 200), (480, 640))  # of drawn images for the resizing: (height, width)
# Resizing may differ more: where a position lies between two entries of the cubic's table, the last bit of a
# float decides.
RESIZED = 1e-2


class Wish(NamedTuple):
    """The options of the command.

    Attributes:
      out: the artefact; form: its format; check: folder of images, "" for drawn ones.
      endpoints: outputs beside the features; (): the logits, if the run has a classifier.
      tolerance: largest difference over the root mean square of the run's own values.
    """

    out: str
    form: str = "onnx"
    endpoints: tuple[str, ...] = ()
    check: str = ""
    tolerance: float = 1e-4
    again: bool = False
    options: Options = Options()  # of the format


def export(workdir: epath.PathLike, step: int, wish: Wish) -> list[str]:
    """Writes the artefact of a run and its JSON; returns lines for the user.

    Raises:
      SimclrError: the run, the format or an endpoint does not exist, `out` is in the way, or the artefact
        computes something else than the run.
    """
    out = target(wish)
    write = writer(wish.form)
    encoder = in_float32(encoders.load(workdir, step))
    shapes = card.shapes(encoder, outputs(encoder, wish.endpoints))
    native, others = samples(encoder, wish.check)
    with files.staged(out) as place:
        written = write(encoder, tuple(shapes), epath.Path(place / out.name), wish.options)
        parity = compare((written.run, reference(encoder, tuple(shapes))), native, others)
        check(parity, tuple(shapes), wish.tolerance)
        about = card.describe(encoder, wish.form, shapes)
        about["versions"] |= written.notes.pop("versions", {})
        about["run"] = {"workdir": paths.absolute(workdir).as_posix(), **about["run"]}
        about |= {"file": out.name, "sha256": card.digest(written.files[0]), "parity": parity}
        about |= written.notes
        beside = place / f"{out.name}.json"
        beside.write_text(json.dumps(about, indent=2) + "\n")
        finished = [*written.files[1:], written.files[0], beside]
        there = [each.name for each in finished if (out.parent / each.name).exists()]
        if there and not wish.again:
            raise SimclrError(f"--out={wish.out}: {there[0]} is there; give another name, or --again")
        moved = [files.move(file, out.parent) for file in finished]
    return [*told(parity, tuple(shapes)), *map(str, moved)]


def outputs(encoder: Encoder, wanted: Sequence[str]) -> tuple[str, ...]:
    """The names of the outputs, the features first."""
    usual = ("logits",) if encoder.model.probe is not None else ()
    return tuple(dict.fromkeys(("features", *(wanted or usual))))


def in_float32(encoder: Encoder) -> Encoder:
    """The same encoder, computing in float32 as every artefact does."""
    config = encoder.config.copy_and_resolve_references()
    config.model.dtype = "float32"
    variables = jax.tree.map(lambda x: np.asarray(x, np.float32), encoder.variables)
    return Encoder(config, encoder.classes, encoder.step, variables, encoder.data)


def target(wish: Wish) -> Path:
    """The path of the artefact.

    Raises:
      SimclrError: something is there that must stay.
    """
    out = Path(paths.absolute(paths.local(wish.out, "--out")))
    if not out.name:
        raise SimclrError(f"--out={wish.out}: must name the file to write")
    beside = out.with_name(f"{out.name}.json")
    if out.is_dir() and any(out.iterdir()) and not is_ours(beside):
        raise SimclrError(f"--out={wish.out}: is a folder of something else; give another name")
    there = [each for each in (out, beside) if each.exists()]
    if there and not wish.again:
        raise SimclrError(f"--out={wish.out}: {there[0].name} is there; give another name, or --again")
    return out


def is_ours(beside: Path) -> bool:
    """Whether a JSON is what `export` writes: a folder may lie beside one of another kind."""
    try:
        return json.loads(beside.read_text())["file"] == beside.stem
    except (OSError, ValueError, KeyError, TypeError):
        return False


# ---- parity -------------------------------------------------------------------------------------------


def native_side(reader: ImageReader) -> int:
    """The side of the square images that the run's evaluation view only crops, without resizing."""
    if reader.resize == "none" or reader.size <= 32:
        return reader.size
    return next(side for side in itertools.count(reader.size) if round(reader.crop * side) == reader.size)


def samples(encoder: Encoder, check: str) -> tuple[np.ndarray, list[np.ndarray]]:
    """(images `[n, h, w, c]` uint8 that are not resized, images `[h, w, c]` of other sizes).

    Args:
      check: folder of image files, of which up to REAL are taken; "": images are drawn at random.

    Raises:
      SimclrError: there are no images, or one cannot be read.
    """
    reader = card.reader(encoder)
    side = native_side(reader)
    if not check:
        rng = np.random.default_rng(0)
        same = rng.integers(0, 256, (IMAGES, side, side, reader.channels), np.uint8)
        return same, [rng.integers(0, 256, (*size, reader.channels), np.uint8) for size in SIZES]
    folder, names = find(check, "--check")
    images = [read(folder / name, encoder) for name in names[:: -(-len(names) // REAL)]]
    return np.stack([square(image, side) for image in images]), images


def read(path: Path, encoder: Encoder) -> np.ndarray:
    """An image file as uint8 `[h, w, c]`, with the encoder's channels."""
    channels = card.reader(encoder).channels
    if channels not in (1, 3):
        raise SimclrError(f"--check: files have 1 or 3 channels, the encoder takes {channels}")
    try:
        return formats.read_file(path, formats.Reading.of(**encoder.config.data), channels)
    except formats.UnreadableError as error:
        raise SimclrError(f"--check: {path} cannot be read ({error}); take it out") from None


def square(image: np.ndarray, side: int) -> np.ndarray:
    """The central square of an image, resized by Pillow to `side` pixels."""
    picture = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
    shorter = min(picture.size)
    left, top = ((length - shorter) // 2 for length in picture.size)
    box = (left, top, left + shorter, top + shorter)
    return np.asarray(picture.resize((side, side), box=box)).reshape(side, side, -1)


def reference(encoder: Encoder, endpoints: Sequence[str]) -> Runner:
    """The run itself, in JAX, as a function of images."""

    @jax.jit
    def prepare(images: jax.Array) -> jax.Array:
        return encoder.reader.prepare(images, True, np.float32)

    @jax.jit
    def encode(variables: Any, pixels: jax.Array) -> dict[str, jax.Array]:
        found = card.ends(encoder, variables, pixels)
        return {name: found[name] for name in endpoints}

    def run(images: np.ndarray) -> dict[str, np.ndarray]:
        return jax.device_get(encode(encoder.on_device, prepare(images)))

    return run


def compare(runs: tuple[Runner, Runner], native: np.ndarray, others: list[np.ndarray]) -> dict[str, Any]:
    """The parity report of (artefact, run); images as `samples` gives them."""
    parts = [native[i : i + BATCH] for i in range(0, len(native), BATCH)]
    pairs, done = [], 0
    progress = Progress(0, len(native) + len(others), unit="image")
    try:
        for images in [*parts, *(image[None] for image in others)]:
            pairs.append(tuple(run(images) for run in runs))
            done += len(images)
            progress.step(done)
    finally:
        progress.close()
    resized = {"images": len(others), **differences(pairs[len(parts) :])}
    return {"images": len(native), **differences(pairs[: len(parts)]), "resized": resized}


def check(parity: dict[str, Any], endpoints: Sequence[str], tolerance: float) -> None:
    """Raises SimclrError if an output differs by more than the tolerance."""
    resized = max(tolerance, RESIZED)
    for about, report, limit in (("", parity, tolerance), (" of resized images", parity["resized"], resized)):
        for name in endpoints:
            found = report[name]["max_over_rms"]
            if not found <= limit:  # also NaN
                raise SimclrError(
                    f"{name}{about} differ from the run's by {found:.2g} of their root mean square, above "
                    f"{limit:g}; nothing was written (--tolerance={tolerance:g})"
                )


def differences(pairs: Sequence[tuple[dict[str, np.ndarray], dict[str, np.ndarray]]]) -> dict[str, Any]:
    """{output: its largest difference over the root mean square, its smallest cosine}."""
    found = {}
    for name in pairs[0][1]:
        ours, right = (np.concatenate([each[i][name].astype(np.float64) for each in pairs]) for i in (0, 1))
        if ours.shape != right.shape:
            raise SimclrError(f"{name}: the artefact gives {list(ours.shape)}, the run {list(right.shape)}")
        ours, right = (each.reshape(len(each), -1) for each in (ours, right))
        norms = np.linalg.norm(ours, axis=1) * np.linalg.norm(right, axis=1)
        cosine = np.sum(ours * right, axis=1) / np.where(norms > 0, norms, 1)
        rms = float(np.sqrt(np.mean(right**2))) or 1.0
        found[name] = {
            "max_over_rms": float(np.max(np.abs(ours - right)) / rms),
            "cosine_min": float(np.min(np.where(norms > 0, cosine, 1.0))),
        }
    return found


def told(parity: dict[str, Any], endpoints: Sequence[str]) -> list[str]:
    """The report in lines."""
    lines = ["largest difference from the run, over the root mean square; smallest cosine:"]
    for about, each in (("at the encoder's size", parity), ("resized", parity["resized"])):
        for name in endpoints:
            lines.append(
                f"  {name}, {each['images']} images {about}: {each[name]['max_over_rms']:.1e}; "
                f"{each[name]['cosine_min']:.7f}"
            )
    return lines
