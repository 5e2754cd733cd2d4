"""A trained restorer on whole images: files in, files out."""

import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, cast

import flax.errors
import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from PIL import Image

from simclr_jax import degrade, encoder, figures, masking, paths, tiles
from simclr_jax.config import load_config
from simclr_jax.data import formats
from simclr_jax.data.scan import find
from simclr_jax.errors import SimclrError
from simclr_jax.feeds import kind
from simclr_jax.metrics import Progress
from simclr_jax.models import restorer
from simclr_jax.train import use_compile_cache

BATCH = 4  # tiles at a time
FAR = 32  # places of maps: so many tell strides apart
OVERLAP = 64  # pixels that tiles share, at most
STEP = 64  # sides of whole images are multiples of about so many pixels: every size is compiled by itself
SHOWN = 5  # names in an error
Masks = Callable[[str, tuple[int, ...]], np.ndarray | None]  # see `mask_reader`
T = TypeVar("T")


class Options(NamedTuple):
    """The options of the command that do not name a run."""

    images: str
    out: str
    masks: str = ""  # folder of masks, "" for none
    tile: int = 512
    again: bool = False
    ensemble: bool = False  # the mean over eight orientations


class Restorer:
    """The network of a run, as a function of images of any size.

    Attributes:
      config: of the run; step: of the checkpoint.
      stride: pixels that a side must be a multiple of; 0 where the network takes `image_size` alone.
      ensemble: whether a result is the mean over eight orientations of the image.

    Raises:
      SimclrError: the workdir holds no run of task restore.
    """

    def __init__(self, workdir: epath.PathLike, step: int = 0, ensemble: bool = False):
        task = load_config(workdir)[0].task
        if task != "restore":
            raise SimclrError(
                f"{workdir}: is a run of task {task!r}, which restores nothing; train one of task "
                "restore (configs/restore.py), on --config.start.workdir of this one if you like"
            )
        config, data, self.step, self.variables = encoder.read(workdir, step)
        self.config, self.ensemble = config, ensemble
        use_compile_cache(config.compile_cache)
        self.example = kind(config).reader(config, data).spec()
        self.model = restorer.create(config.model, self.example, config.data.mean, config.data.std)
        self.corruption: str = config.restore.corruption
        self.stride = self._stride()
        self._apply = jax.jit(functools.partial(self.model.apply, method="restored"))
        self._on_device = jax.device_put(self.variables)

    def _stride(self) -> int:
        """The pixels that one place of the coarsest maps stands for; 0: another size does not fit."""
        side = self.example.shape[0]
        rows = self._rows(side)
        first, last = -(-side // rows), -(-side // max(rows - 1, 1))  # a side need not be a multiple
        try:
            for stride in range(first, last + 1):
                if rows == side or self._rows(FAR * stride) == FAR:
                    size = (rows + 1) * stride, (rows + 2) * stride
                    other = jax.ShapeDtypeStruct((1, *size, self.example.shape[2]), np.float32)
                    apply = functools.partial(self.model.apply, method="restored")
                    found = cast(Any, jax.eval_shape(apply, self.variables, other))
                    return stride if found.shape == other.shape else 0
        except (flax.errors.FlaxError, SimclrError, TypeError, ValueError):  # shapes that do not fit
            pass
        return 0

    def _rows(self, side: int) -> int:
        """The rows of the encoder's coarsest maps for images of `side` pixels; `side` without maps."""
        network: Any = self.model.encoder  # a Flax module too
        variables = {name: tree["encoder"] for name, tree in self.variables.items() if "encoder" in tree}
        example = jax.ShapeDtypeStruct((1, side, side, self.example.shape[2]), np.float32)
        ends = jax.eval_shape(functools.partial(network.apply, train=False), variables, example)
        maps = [jax.eval_shape(functools.partial(network.maps, name), end) for name, end in ends.items()]
        return min((found.shape[1] for found in maps if found is not None), default=side)

    def __call__(self, image: np.ndarray, tile: int = 512) -> np.ndarray:
        """A restored image `[h, w, c]` in [0, 1] of a corrupted one, float32 about [0, 1]."""
        image, once = np.asarray(image, np.float32), functools.partial(self._once, tile=tile)
        return tiles.ensembled(image, once) if self.ensemble else once(image)

    def _once(self, image: np.ndarray, tile: int) -> np.ndarray:
        def apply(x: np.ndarray) -> np.ndarray:
            return np.asarray(self._apply(self._on_device, x))

        if not self.stride:
            side = self.example.shape[0]
            return tiles.blended(image, apply, side, side // 4, BATCH)
        if max(image.shape[:2]) <= tile:
            return tiles.whole(image, apply, -(-STEP // self.stride) * self.stride)
        tile = max(tile // self.stride, 1) * self.stride
        return tiles.blended(image, apply, tile, min(OVERLAP, tile // 4), BATCH)

    def complete(self, image: np.ndarray, known: np.ndarray, tile: int = 512) -> np.ndarray:
        """The same of an image with holes, `known [h, w, 1]` 0 there: known pixels stay."""
        found = map(jnp.asarray, (self(image, tile), image, known))
        return np.asarray(degrade.completed(*found), np.float32)

    def read(self, path: Path) -> np.ndarray:
        """A file as `[h, w, c]` float32 in [0, 1], with the run's channels.

        Raises:
          UnreadableError: it cannot be read; the text says why.
          SimclrError: the run takes images of other channels than files have.
        """
        return read(path, self.config)


def read(path: Path, config: Any) -> np.ndarray:
    """See `Restorer.read`."""
    channels = config.data.channels
    if channels not in (1, 3):
        raise SimclrError(f"the run takes images of {channels} channels; files have 1 or 3")
    reading = formats.Reading.of(**{**config.data, "exif": True})  # the PNG has no EXIF to turn it by
    return (formats.read_file(path, reading, channels) / 255).astype(np.float32)


# ---- files --------------------------------------------------------------------------------------------


def targets(names: Sequence[str]) -> dict[str, str]:
    """{a/b.jpg: a/b.png}; where several files would have one name, a/b.jpg.png."""
    short = [Path(name).with_suffix(".png").as_posix() for name in names]
    return {
        name: target if short.count(target) == 1 else f"{name}.png"
        for name, target in zip(names, short, strict=True)
    }


def prepare_out(options: Options) -> Path:
    """The folder of `--out`, made.

    Raises:
      SimclrError: it is no folder, has something in it, or is that of the images.
    """
    out = Path(paths.local(options.out, "--out"))
    if out.exists() and not out.is_dir():
        raise SimclrError(f"--out={options.out}: is a file; give a folder")
    if paths.is_within(options.images, out) or paths.is_within(out, options.images):
        raise SimclrError(f"--out={options.out}: must be apart from --images={options.images}")
    if out.is_dir() and any(out.iterdir()) and not options.again:
        raise SimclrError(
            f"--out={options.out}: is not empty; give a new folder, or --again to write into it"
        )
    return out


def each(
    names: Sequence[str], read_one: Callable[[str], T]
) -> Iterator[tuple[int, str, T | formats.UnreadableError]]:
    """(number, name, what `read_one(name)` gives or why it cannot), with a bar that tells rate and ETA."""
    progress = Progress(0, len(names), unit="image")
    try:
        for number, name in enumerate(names):
            progress.tell(name)
            try:
                yield number, name, read_one(name)
            except formats.UnreadableError as error:
                progress.say(f"{name}: left out: {error}")
                yield number, name, error
            progress.step(number + 1)
    finally:
        progress.close()


def fail_if(unreadable: Sequence[str], total: int) -> None:
    """Raises SimclrError where files could not be read: their results are missing."""
    if unreadable:
        more = f" and {len(unreadable) - SHOWN} more" * (len(unreadable) > SHOWN)
        raise SimclrError(
            f"{len(unreadable)} of {total} files could not be read: {', '.join(unreadable[:SHOWN])}{more}; "
            "the others are done"
        )


# ---- the plain command --------------------------------------------------------------------------------


def restore(workdir: epath.PathLike, step: int, options: Options) -> list[str]:
    """Restores files and writes the results; returns lines for the user.

    Raises:
      SimclrError: the run, the images or the folders are not there; or, at the end, files were unreadable.
    """
    folder, names = find(options.images)
    out, target, unreadable, see_through = prepare_out(options), targets(names), [], 0
    network = Restorer(workdir, step, options.ensemble)
    masks = mask_reader(network, options.masks, names)

    def read_one(name: str) -> tuple[np.ndarray, np.ndarray | None]:
        image = network.read(folder / name)
        return image, masks(name, image.shape)

    for _, name, found in each(names, read_one):
        if isinstance(found, formats.UnreadableError):
            unreadable.append(name)
            continue
        image, known = found
        profile, transparent = beside_pixels(folder / name)
        see_through += transparent
        result = _restored(network, image, known, options.tile)
        if is_gray(image):
            result, profile = result.mean(axis=-1, keepdims=True), None  # the profile is of RGB
        figures.write_png(out / target[name], result, profile)
    done = len(names) - len(unreadable)
    print(f"{done} of {len(names)} images restored by {workdir}, step {network.step}: {out}", flush=True)
    if see_through:
        print(f"{see_through} had transparent pixels: they lie over {network.config.data.background} now")
    fail_if(unreadable, len(names))
    return [str(out)]


def is_gray(image: np.ndarray) -> bool:
    """Whether all channels `[h, w, c]` are alike."""
    return bool(np.all(image == image[..., :1]))


def beside_pixels(path: Path) -> tuple[bytes | None, bool]:
    """(colour profile of an RGB file, whether pixels are transparent), where Pillow can tell."""
    try:
        with Image.open(path) as image:
            rgb = image.mode in ("RGB", "RGBA", "P")
            clear = image.has_transparency_data and np.asarray(image.convert("RGBA"))[..., 3].min() < 255
            return image.info.get("icc_profile") if rgb else None, bool(clear)
    except Exception:  # another reader may have read it
        return None, False


def mask_reader(network: Restorer, where: str, names: Sequence[str]) -> Masks:
    """(name, shape `[h, w, c]` of the image) -> `[h, w, 1]`, 1 where a pixel is known; None without masks.

    Raises:
      SimclrError: the run needs masks and gets none, or gets some and has no use for them, or one is missing.
    """
    if bool(where) != (network.corruption == "holes"):
        told = "name the folder of masks" if not where else "are for restore.corruption='holes' alone"
        raise SimclrError(f"--masks={where}: {told}; this run has {network.corruption!r}")
    folder, found = Path(where), {}
    for name in names if where else ():
        there = [p for p in (folder / name, (folder / name).with_suffix(".png")) if p.is_file()]
        if not there:
            raise SimclrError(f"--masks={where}: has no {name}")
        found[name] = there[0]

    def mask(name: str, shape: tuple[int, ...]) -> np.ndarray | None:
        if not where:
            return None
        try:
            hole = read(found[name], network.config)[..., :1]
        except formats.UnreadableError as error:
            raise formats.UnreadableError(f"its mask {found[name]}: {error}") from None
        if hole.shape[:2] != shape[:2]:
            raise formats.UnreadableError(f"its mask {found[name]} has another size")
        return (hole < 0.5).astype(np.float32)

    return mask


def _restored(network: Restorer, image: np.ndarray, known: np.ndarray | None, tile: int) -> np.ndarray:
    if known is not None:
        filled = np.asarray(masking.filled(jnp.asarray(image[None]), jnp.asarray(1 - known[None])))[0]
        return network.complete(filled, known, tile)
    if network.corruption == "fewer_pixels":
        scale = network.config.restore.scale
        image = np.asarray(degrade.more_pixels(jnp.asarray(image[None]), scale=scale))[0]
    return network(image, tile)
