"""Image files from strangers: what they may be is decided before they are decoded."""

import io
from pathlib import Path

import numpy as np
from PIL import Image

from simclr_jax.data import formats
from simclr_jax.data.formats import Reading, UnreadableError

FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "GIF", "TIFF")
SIDE = 32_768  # pixels: resizing makes matrices as long as the longer side
SCANS = 100  # of a progressive JPEG, each of which takes as long as the whole; cameras write ten
TILE_WIDTH, TILE_LENGTH, BITS = 322, 323, 258  # tags of TIFF
THUMBNAIL = 256  # pixels a side


class KindError(UnreadableError):
    """It is none of the formats that are read."""

    code = 415  # of HTTP


class LargeError(UnreadableError):
    """It has more pixels than the service decodes."""

    code = 413


def opened(data: bytes, most: int) -> Image.Image:
    """The image, not yet decoded.

    Args:
      data: the file.
      most: pixels that it may have.

    Raises:
      KindError, LargeError, UnreadableError: it will not be decoded; the text says why.
    """
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.UnidentifiedImageError:
        raise KindError(f"is no image that is read here: {', '.join(FORMATS)}") from None
    except Image.DecompressionBombError:  # Pillow's own limit, which the command takes away
        raise LargeError(f"has more than {most:,} pixels") from None
    except Exception as error:  # plugins raise exceptions of any type at bytes that are no image
        raise UnreadableError(f"cannot be read: {type(error).__name__}") from None
    width, height = image.size
    tags = getattr(image, "tag_v2", {}) if image.format == "TIFF" else {}
    # A tile is decoded whole, however little of it the image has.
    tile = _number(tags.get(TILE_WIDTH)) * _number(tags.get(TILE_LENGTH))
    if max(width * height, tile) > most or max(width, height) > SIDE:
        raise LargeError(f"has {width} × {height} pixels, above {most:,} in all or {SIDE:,} a side")
    if image.format == "JPEG" and data.count(b"\xff\xda") > SCANS:
        raise LargeError(f"has more than {SCANS} scans")
    bits = tags.get(BITS, ())
    deep = max(bits if isinstance(bits, tuple) else (bits,), default=8) > 8
    if deep or formats.kind_of(data) == "png16" or image.mode.startswith(("I", "F")):
        raise UnreadableError("has more than 8 bits a channel, which the service does not read")
    return image


def _number(value: object) -> int:
    return value if isinstance(value, int) else 0


def decode(data: bytes, reading: Reading, channels: int, most: int) -> np.ndarray:
    """An image file as `[h, w, channels]` uint8; the first frame or page, read as in training.

    Args:
      data: the file.
      reading: of the run's config.
      channels: 1 (luma) or 3.
      most: pixels that it may have.

    Raises:
      KindError, LargeError, UnreadableError: it cannot be read; the text says why.
    """
    with opened(data, most) as image:
        try:
            rgb = formats.of_file(image, reading)
        except Exception as error:  # as above
            why = " ".join(str(error).split()).partition(" <_io")[0][:120]
            raise UnreadableError(f"is damaged: {why or type(error).__name__}") from None
    return formats.to_channels(rgb, channels)


def thumbnail(path: Path, reading: Reading, most: int) -> bytes:
    """A small JPEG of an image file.

    Raises:
      UnreadableError: it cannot be read; the text says why.
    """
    small = Image.fromarray(decode(path.read_bytes(), reading, 3, most))
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    to = io.BytesIO()
    small.save(to, "JPEG", quality=85)
    return to.getvalue()
