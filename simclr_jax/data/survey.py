"""Inspects some files before a run: how their pixels are converted, and the window of percentiles."""

import dataclasses
import io
import warnings
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from simclr_jax import sharding
from simclr_jax.data import formats
from simclr_jax.data.formats import Reading
from simclr_jax.data.sources import Source, Splits
from simclr_jax.errors import SimclrError

HEAD = 65_536  # bytes to read first of a file
FILES = 256  # files to inspect, in equal steps through the sorted names
DEEP = 64  # files with more than 8 bits to decode
VALUES = 4096  # values of a deep image in the percentiles
HEADED = (b"\xff\xd8", b"\x89P", b"BM")  # JPEG, PNG, BMP: their first bytes tell enough
TRANSPARENT, MORE_BITS = "transparency", "more than 8 bits"  # in notes
FLOAT = (0.0, 1.0)  # the full range of floating point numbers
DARK = 0.25  # images below this share of the full range are reported as dark


class File(NamedTuple):
    """What one file is."""

    turned: bool  # by EXIF
    transparent: bool
    frames: int
    is_deep: bool  # more than 8 bits, or DICOM
    deep: formats.Deep | None  # such an image, where it was decoded


def look(splits: Splits, reading: Reading) -> Splits:
    """Looks at some image files; returns the splits with notes on how their pixels will be converted.

    If the config asks for percentiles and has no window yet, `reading.window` is set from the training files
    in the sample. Only the first process looks at files, so that all processes get the same result.

    Raises:
      SimclrError: percentiles of records, which are not inspected.
    """
    train = splits.train
    if not isinstance(train, Source) or train.path is None:
        in_memory = isinstance(train, Source) and train.kind == "array"  # of 8 bits
        if reading.intensity == "percentiles" and not reading.window and not in_memory:
            raise SimclrError(
                f"config.data.intensity='percentiles': {train.name} is no folder and no list of files: say "
                "--config.data.intensity=window and --config.data.window=(LOW,HIGH)"
            )
        if in_memory and reading.intensity != "full":
            note = f"{train.name}: arrays have 8 bits: config.data.intensity changes nothing"
            return splits._replace(train=dataclasses.replace(train, notes=(*train.notes, note)))
        return splits
    told = sharding.from_first(lambda: _ask(train, reading))
    reading.window = tuple(told["window"])
    return splits._replace(train=dataclasses.replace(train, notes=train.notes + tuple(told["notes"])))


def other_before(splits: Splits) -> tuple[str, ...]:
    """A line where schemas before 5 saw other pixels than are seen now."""
    if not any(sign in note for note in splits.train.notes for sign in (TRANSPARENT, MORE_BITS)):
        return ()
    return (
        f"note: an older version began this run. It dropped {TRANSPARENT} and the low bits of 16; from here "
        "on pixels are read as said above. For a run of one kind choose another --workdir",
    )


def _ask(train: Source, reading: Reading) -> dict[str, Any]:
    """{notes, window}, as JSON takes them."""
    files: list[File] = []
    assert train.path is not None  # they are files
    for i in _spread(train.size, FILES):
        decode = sum(file.deep is not None for file in files) < DEEP
        files += [found] if (found := _look(train.path(i), reading, decode)) else []
    notes = _notes(files, reading, train.name)
    return {"notes": notes, "window": reading.window}


def _spread(size: int, most: int) -> list[int]:
    """At most so many of the numbers below `size`, in equal steps."""
    return np.linspace(0, size - 1, min(size, most)).round().astype(int).tolist()


def _look(path: bytes, reading: Reading, decode: bool) -> File | None:
    """Inspects a file; None if it cannot be read."""
    try:
        with open(path, "rb") as file:
            data = file.read(HEAD)
            if data[:2] not in HEADED or formats.kind_of(data) or not _opens(data):
                data += file.read()
        turned, kind = formats.orientation(data) != 1, formats.kind_of(data)
        if kind and decode and (deep := formats.read_deep(data, reading)) is not None:
            few = deep._replace(values=_some(deep.values), alpha=None)
            return File(turned, deep.alpha is not None, deep.frames, True, few)
        if kind == "dicom":
            return File(False, False, 1, True, None)
        with warnings.catch_warnings(action="ignore"), Image.open(io.BytesIO(data)) as image:
            frames = 1 if data[:2] in HEADED else getattr(image, "n_frames", 1)
            is_deep = kind == "png16" or image.mode[0] in "IF"
            return File(turned, image.has_transparency_data, frames, is_deep, None)
    except formats.MissingError as error:
        raise SimclrError(str(error)) from None
    except MemoryError:
        raise
    except Exception:  # reading it reports the error
        return None


def _opens(data: bytes) -> bool:
    """Whether the beginning of a file is enough for Pillow: a JPEG can have megabytes before its image."""
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(io.BytesIO(data)):
            return True
    except Exception:
        return False


def _notes(files: list[File], reading: Reading, where: str) -> tuple[str, ...]:
    some = f"of {len(files):,} files looked at"
    lines = []
    if turned := sum(file.turned for file in files):
        how = "turned" if reading.exif else "read as they are stored; --config.data.exif=True turns them"
        lines.append(f"{some}, {turned:,} are rotated by EXIF: {how}")
    if transparent := sum(file.transparent for file in files):
        colour = "#{:02x}{:02x}{:02x}".format(*reading.background)
        lines.append(f"{some}, {transparent:,} have {TRANSPARENT}, over {colour} (config.data.background)")
    if several := sum(file.frames > 1 for file in files):
        lines.append(f"{some}, {several:,} have several pages or frames: the first is read")
    if deep := [file.deep for file in files if file.deep is not None]:
        count = sum(file.is_deep for file in files)
        lines.append(f"{some}, {count:,} have {MORE_BITS} or are DICOM: {_intensity(deep, reading)}")
    elif reading.intensity != "full":
        window = "" if reading.window else "; a file that has cannot be read without config.data.window"
        lines.append(f"{some}, none has more than 8 bits: config.data.intensity changes nothing{window}")
    return tuple(f"{where}: {line}" for line in lines)


def _intensity(deep: list[formats.Deep], reading: Reading) -> str:
    """Notes on the range of values; sets the window of percentiles."""
    values = np.concatenate([one.values for one in deep])
    if not values.size:
        return "they hold no finite numbers"
    low, high = values.min(), values.max()
    span = f"the values of {len(deep):,} lie in {low:g} to {high:g}"
    if reading.intensity == "percentiles" and not reading.window:
        a, b = (float(v) for v in np.percentile(values, reading.percentiles))
        reading.window = (a, b) if a < b else (float(low), float(max(high, low + 1)))
    ranges = {one.full for one in deep}
    if reading.window:
        line = f"{span}, and {reading.window[0]:g} to {reading.window[1]:g} become black to white"
        mixed = len(ranges) > 1 and FLOAT in ranges
        return line + "; some are floating point numbers, perhaps in [0, 1], and have the same window" * mixed
    dark = False
    for black, white in ranges:
        of_type = np.concatenate([one.values for one in deep if one.full == (black, white)])
        dark |= bool(of_type.size) and of_type.max() - black < DARK * (white - black)
    several = "the whole range of each file's type (of DICOM, its window) becomes"
    line = f"{span}, and {several if len(ranges) > 1 else f'{black:g} to {white:g} become'} black to white"
    if dark:
        some = "some are " * (len(ranges) > 1)
        line += f": {some}nearly black; --config.data.intensity=percentiles stretches them, or window"
    return line


def _some(values: np.ndarray) -> np.ndarray:
    """A fixed number of values of an image, so that large images have no more weight."""
    flat = values.reshape(-1).astype(np.float64)
    flat = flat[np.isfinite(flat)]
    return flat[_spread(len(flat), VALUES)]
