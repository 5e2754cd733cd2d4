"""Reads image files that TensorFlow cannot read or reads wrongly: GIF, TIFF, DICOM, and others.

Pillow reads most of them, tifffile reads TIFFs of more than 8 bits, and pydicom reads DICOM. All become RGB
uint8.
"""

import io
import os
import struct
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from PIL import Image, ImageColor

from simclr_jax.errors import SimclrError

EXTENSIONS = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".dcm", ".dicom",
)  # fmt: skip
MAX_PIXELS = 89_478_485  # Pillow's own limit
ORIENTATION = 274  # EXIF's tag
BACK = {6: 8, 8: 6}  # orientations that are not their own inverse
WHITE = (255, 255, 255)
LUMA = np.array([0.299, 0.587, 0.114], np.float32)
Default = TypeVar("Default", float, None)


@dataclass
class Reading:
    """How image files become pixels; `config.data` explains the fields.

    With `intensity` "percentiles", `survey.look` sets `window`.
    """

    background: tuple[int, int, int] = WHITE
    intensity: str = "full"
    percentiles: tuple[float, float] = (0.5, 99.5)
    window: tuple[float, ...] = ()
    exif: bool = False
    max_pixels: int = MAX_PIXELS
    max_unreadable: float = 1.0

    @classmethod
    def of(cls, background: str = "white", **data: Any) -> "Reading":
        """Takes the fields of `config.data`."""
        mine = {field.name for field in fields(cls)}
        return cls(colour(background), **{name: value for name, value in data.items() if name in mine})


def colour(name: str) -> tuple[int, int, int]:
    """(red, green, blue) of a CSS name or #rrggbb.

    Raises:
      ValueError: it is no opaque colour.
    """
    found = ImageColor.getrgb(name)
    if len(found) != 3:
        raise ValueError("a background cannot be transparent")
    return found


class UnreadableError(ValueError):
    """A file cannot be read as an image; the text says why."""


class MissingError(UnreadableError):
    """The library for this format is not installed."""


class Deep(NamedTuple):
    """An image of more than 8 bits.

    Attributes:
      values: `[h, w]` or `[h, w, c]`, as stored; DICOM in its own units (CT: Hounsfield).
      full: the values of black and white, unless the config gives a window.
      alpha: `[h, w]` uint8 or None.
      inverted: whether the lowest value is white.
      frames: number of frames in the file; `values` is the first.
    """

    values: np.ndarray
    full: tuple[float, float]
    alpha: np.ndarray | None = None
    inverted: bool = False
    frames: int = 1


def kind_of(data: bytes) -> str:
    """The format from the first bytes: "dicom", "tiff", "png16", or "" for others, which Pillow reads."""
    if data[128:132] == b"DICM":
        return "dicom"
    if data[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return "tiff"
    if data[:4] == b"\x89PNG" and data[24:25] == b"\x10":
        return "png16"
    return ""


def read(data: bytes, reading: Reading) -> np.ndarray:
    """An encoded image as RGB `[h, w, 3]` uint8; of several pages or frames the first.

    Raises:
      UnreadableError: it cannot be read; the text says why.
    """
    try:
        if (deep := read_deep(data, reading)) is not None:
            image = to_bytes(deep, reading)
            return turn(image, orientation(data)) if reading.exif else image
        with Image.open(io.BytesIO(data)) as image:
            _few_pixels(*image.size, reading)
            return of_file(image, reading)
    except UnreadableError:
        raise
    except Exception as error:  # the libraries raise exceptions of any type at bytes that are no image
        why = " ".join(str(error).split()).partition(" <_io")[0]
        raise UnreadableError(why or type(error).__name__) from None


def read_file(path: str | os.PathLike, reading: Reading, channels: int = 3) -> np.ndarray:
    """An image file as `[h, w, channels]` uint8, like `read`; 1 channel is its luma.

    Raises:
      UnreadableError: it cannot be read; the text says why.
    """
    try:
        return to_channels(read(Path(path).read_bytes(), reading), channels)
    except OSError as error:
        raise UnreadableError(error.strerror or str(error)) from None


def to_channels(images: np.ndarray, channels: int) -> np.ndarray:
    """Images `[..., h, w, c]` uint8 with `channels` channels; `decode.to_channels` without TensorFlow.

    Raises:
      SimclrError: they have neither one nor three.
    """
    if images.shape[-1] == channels:
        return images
    if (images.shape[-1], channels) == (1, 3):
        return np.repeat(images, 3, axis=-1)
    if (images.shape[-1], channels) == (3, 1):
        return np.rint(images.astype(np.float32) @ LUMA).astype(np.uint8)[..., None]
    raise SimclrError(
        f"config.data.channels={channels}: the images have {images.shape[-1]}, "
        "and only gray and RGB are converted into each other"
    )


def of_file(image: Image.Image, reading: Reading) -> np.ndarray:
    """An opened file of 8 bits as RGB `[h, w, 3]` uint8: blended and turned as `reading` says."""
    # Pillow applies the orientation while decoding, but only for TIFFs.
    is_turned = image.format == "TIFF"
    way = 1 if is_turned == reading.exif else _orientation_of(image)
    return turn(_pillow(image, reading), BACK.get(way, way) if is_turned else way)


def of_pillow(image: Image.Image, reading: Reading) -> np.ndarray:
    """An image that Pillow has opened as RGB `[h, w, 3]` uint8, like `read`.

    Raises:
      UnreadableError: it has more than 8 bits, or cannot be decoded.
    """
    if image.mode[0] in "IF":
        raise UnreadableError(f"mode {image.mode} has more than 8 bits: give the path of its file")
    try:
        return turn(_pillow(image, reading), _orientation_of(image) if reading.exif else 1)
    except OSError as error:
        raise UnreadableError(" ".join(str(error).split())) from None


def _pillow(image: Image.Image, reading: Reading) -> np.ndarray:
    if not image.has_transparency_data:
        return np.asarray(image.convert("RGB"))
    rgba = np.asarray(image.convert("RGBA"))
    return over(rgba[..., :3], rgba[..., 3], reading.background)


def over(colours: np.ndarray, alpha: np.ndarray, background: tuple[int, ...]) -> np.ndarray:
    """Blends colours `[..., c]` uint8 with opacity `[...]` uint8 over a background colour; rounded."""
    alpha = alpha[..., None].astype(np.int32)
    mixed = colours.astype(np.int32) * alpha + np.array(background, np.int32) * (255 - alpha)
    return ((mixed + 127) // 255).astype(np.uint8)


def _few_pixels(width: int, height: int, reading: Reading) -> None:
    if width * height > reading.max_pixels:
        raise UnreadableError(f"{width:,} × {height:,} pixels, above config.data.max_pixels")


# ---- more than 8 bits ---------------------------------------------------------------------------


def to_bytes(deep: Deep, reading: Reading) -> np.ndarray:
    """The image as RGB uint8: `full` or the window of the config from black to white, linear, rounded."""
    if reading.intensity != "full" and not reading.window:
        raise UnreadableError(
            "it has more than 8 bits, and no file looked at had: set config.data.window (intensity=window)"
        )
    low, high = deep.full if reading.intensity == "full" else reading.window
    values = deep.values.astype(np.float64)
    if not np.isfinite(values).all():
        raise UnreadableError("it has values that are no numbers")
    if reading.intensity == "full" and not (values.min() >= low and values.max() <= high):
        raise UnreadableError(
            f"values from {values.min():g} to {values.max():g} are not in [{low:g}, {high:g}]: "
            "config.data.intensity=window or percentiles"
        )
    image = np.rint(255 * np.clip((values - low) / (high - low), 0, 1)).astype(np.uint8)
    if deep.inverted:
        image = 255 - image
    if image.ndim == 2:
        image = image[..., None]
    if image.shape[-1] not in (1, 3):
        raise UnreadableError(f"it has {image.shape[-1]} channels: gray, RGB and these with alpha are read")
    image = np.repeat(image, 3 // image.shape[-1], axis=-1)
    return image if deep.alpha is None else over(image, deep.alpha, reading.background)


def read_deep(data: bytes, reading: Reading) -> Deep | None:
    """The image if it has more than 8 bits per channel or is DICOM; else None.

    Raises:
      Exception: of every kind, where it cannot be read.
    """
    read = {"dicom": _dicom, "tiff": _tiff, "png16": _png16}.get(kind_of(data))
    return read and read(data, reading)


def _png16(data: bytes, reading: Reading) -> Deep:
    """Pillow would drop the low bits of colours."""
    from simclr_jax.data.tf import load

    _few_pixels(*struct.unpack(">II", data[16:24]), reading)
    values = load().io.decode_png(data, dtype="uint16").numpy()
    return _split_alpha(Deep(values, (0, 65535)), values.shape[-1] in (2, 4))


def _split_alpha(deep: Deep, has_alpha: bool, premultiplied: bool = False) -> Deep:
    """The image `[h, w, c]` without its last channel, which is its opacity."""
    if not has_alpha:
        return deep
    values, white = deep.values, deep.full[1]
    opacity = np.clip(values[..., -1:].astype(np.float64) / white, 0, 1)
    colours = values[..., :-1]
    if premultiplied:
        colours = np.minimum(colours / np.maximum(opacity, 1e-9), white)
    return deep._replace(values=colours, alpha=np.rint(255 * opacity[..., 0]).astype(np.uint8))


def _tiff(data: bytes, reading: Reading) -> Deep | None:
    import tifffile

    with tifffile.TiffFile(io.BytesIO(data)) as file:
        page = file.pages.first
        _few_pixels(page.imagewidth, page.imagelength, reading)
        if page.dtype is None or page.dtype.itemsize == 1:
            return None
        frames, inverted = len(file.pages), page.photometric == tifffile.PHOTOMETRIC.MINISWHITE
        if page.photometric not in (0, 1, 2):  # gray of either kind, RGB
            kind = getattr(page.photometric, "name", page.photometric)
            raise UnreadableError(f"it is {kind} of more than 8 bits; gray and RGB are read")
        try:
            values = page.asarray()
        except ValueError:  # a compression that tifffile cannot decode by itself
            with Image.open(io.BytesIO(data)) as image:
                if len(image.getbands()) > 1 or page.dtype.itemsize > 4:
                    raise
                values = np.asarray(image).astype(page.dtype)
        extra = tuple(page.extrasamples)
        if page.planarconfig == tifffile.PLANARCONFIG.SEPARATE and values.ndim == 3:
            values = np.moveaxis(values, 0, -1)
    whole = values.dtype.kind in "iu"
    full = (np.iinfo(values.dtype).min, np.iinfo(values.dtype).max) if whole else (0.0, 1.0)
    # The meaning of other extra channels (infrared, for example) is unknown: to_bytes refuses them.
    has_alpha = len(extra) == 1 and extra[0] in (1, 2)  # associated: the colours are premultiplied
    deep = Deep(values, full, None, inverted, frames)
    return _split_alpha(deep, has_alpha and values.ndim == 3, premultiplied=extra == (1,))


# ---- DICOM --------------------------------------------------------------------------------------


def _dicom(data: bytes, reading: Reading) -> Deep:
    """The first frame, in the units of the modality.

    The full range is the file's own window (VOI LUT, DICOM PS3.3 C.11.2), or else the range of the stored
    bits. MONOCHROME1 shows low values white.
    """
    try:
        import pydicom
        from pydicom.pixels import utils
    except ImportError:
        raise MissingError("DICOM files need pydicom: pip install 'simclr_jax[dicom]'") from None
    file = pydicom.dcmread(io.BytesIO(data))
    _few_pixels(file.Columns, file.Rows, reading)
    values = utils.pixel_array(file, index=0)
    return _shown(file, values, reading)._replace(
        inverted=file.PhotometricInterpretation == "MONOCHROME1",
        frames=int(file.get("NumberOfFrames", 1)),
    )


def _shown(file, values: np.ndarray, reading: Reading) -> Deep:
    from pydicom.pixels import processing

    bits = file.BitsStored
    if file.SamplesPerPixel > 1:
        return Deep(values, (0, 2**bits - 1))
    if file.PhotometricInterpretation == "PALETTE COLOR":
        values = processing.apply_color_lut(values, file)
        return Deep(values, (0, np.iinfo(values.dtype).max))
    if "ModalityLUTSequence" in file:
        values = processing.apply_modality_lut(values, file)
        full = (0, 2 ** file.ModalityLUTSequence[0].LUTDescriptor[2] - 1)
    else:
        slope, intercept = _number(file, "RescaleSlope", 1.0), _number(file, "RescaleIntercept", 0.0)
        values = values * slope + intercept
        stored = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if file.PixelRepresentation else (0, 2**bits - 1)
        low, high = sorted(slope * value + intercept for value in stored)
        full = (low, high)
    if reading.intensity == "full" and "VOILUTSequence" in file:
        shown = processing.apply_voi(values.astype(np.int64), file)
        return Deep(shown, (0, 2 ** file.VOILUTSequence[0].LUTDescriptor[2] - 1))
    if reading.intensity == "full" and (window := _window(file)):
        low, high = window
        return Deep(np.clip(values, low, high), (low, high))
    return Deep(values, full)


def _number(file: Any, name: str, default: Default) -> float | Default:
    """The first value of an element; `default` where it is missing or empty."""
    value = file.get(name)
    if value is not None and not isinstance(value, (int, float, str)):
        value = value[0] if len(value) else None
    return default if value is None or value == "" else float(value)


def _window(file) -> tuple[float, float] | None:
    """(value shown black, value shown white) of the first window; PS3.3 C.11.2.1.2 and C.11.2.1.3."""
    center, width = _number(file, "WindowCenter", None), _number(file, "WindowWidth", None)
    if center is None or width is None:
        return None
    function = file.get("VOILUTFunction", "LINEAR")
    if function == "SIGMOID":
        raise UnreadableError("its window is a sigmoid: set config.data.intensity=window or percentiles")
    if function == "LINEAR":
        center, width = center - 0.5, width - 1
    return center - width / 2, center + max(width, 1e-9) / 2


# ---- a look at a file ---------------------------------------------------------------------------


def turn(image: np.ndarray, orientation: int) -> np.ndarray:
    """Turns an image `[h, w, c]` by EXIF's orientation, 1 to 8."""
    image = image.swapaxes(0, 1) if orientation >= 5 else image
    image = image[:, ::-1] if orientation in (2, 3, 6, 7) else image
    return np.ascontiguousarray(image[::-1] if orientation in (3, 4, 7, 8) else image)


def orientation(data: bytes) -> int:
    """EXIF's orientation, 1 to 8; 1 where there is none."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            return _orientation_of(image)
    except Exception:  # reading the file reports it
        return 1


def _orientation_of(image: Image.Image) -> int:
    found = image.getexif().get(ORIENTATION, 1)
    return found if isinstance(found, int) and 1 <= found <= 8 else 1
