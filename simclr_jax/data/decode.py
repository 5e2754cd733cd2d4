"""Decoding image files in TensorFlow, to RGB uint8: JPEG, PNG, BMP, opaque WebP; the rest by `formats`."""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from simclr_jax.data import formats
from simclr_jax.data.formats import Reading
from simclr_jax.data.tf import load
from simclr_jax.errors import SimclrError


def _uint(data, start, dtype, size: int = 4, big: bool = False):
    """The number at a place in encoded bytes, int64."""
    tf = load()
    raw = tf.io.decode_raw(tf.strings.substr(data, start, size), dtype, little_endian=not big)
    return tf.cast(raw[0], tf.int64)


def _python(function: Callable, argument, dtype):
    """A function of a scalar, called from TensorFlow's graph."""

    def called(argument):
        return function(argument.item() if isinstance(argument, np.ndarray) else argument)

    return load().numpy_function(called, [argument], dtype)


def _few_pixels(width, height, reading: Reading):
    """Operations in the `with` block run only if the image is no decompression bomb."""
    tf = load()
    pixels = tf.abs(tf.cast(width, tf.int64)) * tf.abs(tf.cast(height, tf.int64))
    return _only_if(pixels <= reading.max_pixels)


def _only_if(few):
    """Operations in the `with` block fail if the image is too large."""
    # tf.debugging.Assert would add a condition of its own, which costs time.
    tf = load()
    return tf.control_dependencies([tf.raw_ops.Assert(condition=few, data=["above config.data.max_pixels"])])


def _jpeg(data, reading: Reading):
    tf = load()

    def counted():
        height, width, _ = tf.unstack(tf.io.extract_jpeg_shape(data))
        return tf.cast(height, tf.int64) * tf.cast(width, tf.int64) <= reading.max_pixels

    # A block of 64 pixels takes one bit or more; reading the header of every image takes a tenth of decoding.
    small = tf.strings.length(data) <= reading.max_pixels // (8 * 64)
    few = tf.cond(small, lambda: tf.constant(True), counted)
    with _only_if(few):
        image = tf.io.decode_jpeg(tf.identity(data), channels=3)
    return _turn(image, data, reading)


def _turn(image, data, reading: Reading):
    """Turns an image `[h, w, c]` as its EXIF says, if the config asks for it; like `formats.turn`."""
    tf = load()
    if not reading.exif:
        return image
    orientation = _python(lambda data: np.int32(formats.orientation(data)), data, tf.int32)
    image = tf.cond(orientation >= 5, lambda: tf.transpose(image, [1, 0, 2]), lambda: image)
    # After that: 5 and 1 as they are, 6 and 2 left-right, 3 and 7 both, 4 and 8 upside down.
    mirrored = tf.reduce_any(tf.equal(orientation, [2, 3, 6, 7]))
    upside_down = tf.reduce_any(tf.equal(orientation, [3, 4, 7, 8]))
    image = tf.cond(mirrored, lambda: image[:, ::-1], lambda: image)
    return tf.cond(upside_down, lambda: image[::-1], lambda: image)


def _png(data, reading: Reading):
    """Decodes PNGs of 8 and 16 bits; for fewer bits TensorFlow computes a wrong opacity."""
    tf = load()
    bits = _uint(data, 24, tf.uint8, size=1)

    def shallow():
        rgba = tf.io.decode_png(tf.identity(data), channels=4)
        return _over(rgba[..., :3], rgba[..., 3], reading)

    def deep():
        if reading.intensity != "full" and not reading.window:
            return _other(data, reading)  # which refuses it
        low, high = (0, 65535) if reading.intensity == "full" else reading.window
        values = tf.cast(tf.io.decode_png(tf.identity(data), channels=4, dtype=tf.uint16), tf.float64)
        shown = tf.round(255 * tf.clip_by_value((values[..., :3] - low) / (high - low), 0, 1))
        return _over(tf.cast(shown, tf.uint8), tf.cast(tf.round(values[..., 3] / 257), tf.uint8), reading)

    with _few_pixels(_uint(data, 16, tf.int32, big=True), _uint(data, 20, tf.int32, big=True), reading):
        return tf.case(
            [
                (tf.equal(bits, 8), lambda: _turn(shallow(), data, reading)),
                (tf.equal(bits, 16), lambda: _turn(deep(), data, reading)),
            ],
            default=lambda: _other(data, reading),
        )


def _over(colours, alpha, reading: Reading):
    """Like `formats.over`."""
    tf = load()

    def mix():
        a = tf.cast(alpha, tf.int32)[..., None]
        mixed = tf.cast(colours, tf.int32) * a + tf.constant(reading.background) * (255 - a)
        return tf.cast((mixed + 127) // 255, tf.uint8)

    return tf.cond(tf.reduce_all(tf.equal(alpha, 255)), lambda: colours, mix)


def _bmp(data, reading: Reading):
    """Applies the palette: TensorFlow returns the palette's indices as gray values."""
    tf = load()

    def palette():
        table = tf.strings.substr(data, 14 + tf.cast(_uint(data, 14, tf.int32), tf.int32), 4 * 256)
        # BGRA rows; a short table is followed by pixels, which no valid index reaches.
        colours = tf.reshape(tf.io.decode_raw(table, tf.uint8), [-1, 4])[:, 2::-1]
        return tf.gather(colours, tf.cast(tf.io.decode_bmp(data)[..., 0], tf.int32))

    with _few_pixels(_uint(data, 18, tf.int32), _uint(data, 22, tf.int32), reading):
        bits = _uint(data, 28, tf.int16, size=2)
        return tf.cond(tf.equal(bits, 8), palette, lambda: tf.io.decode_bmp(tf.identity(data))[..., :3])


def _webp(data, reading: Reading):
    """Decodes opaque WebP only: TensorFlow fails on transparency, and animations corrupt its memory."""
    tf = load()

    def plain():
        size = tf.cast(tf.io.decode_raw(tf.strings.substr(data, 26, 4), tf.uint16), tf.int32) & 0x3FFF
        with _few_pixels(size[0], size[1], reading):
            frames = tf.image.decode_webp(tf.identity(data), channels=3)
        return tf.reshape(frames, tf.shape(frames)[-3:])

    lossy = tf.equal(tf.strings.substr(data, 12, 4), b"VP8 ")
    return tf.cond(lossy, plain, lambda: _other(data, reading))


def _other(data, reading: Reading):
    """Decodes by `formats.read`, in Python."""

    def read(data: bytes) -> np.ndarray | None:
        try:
            return formats.read(data, reading)
        except formats.UnreadableError:  # an exception here would print its traceback
            return None

    return by_python(read, data)


def by_python(read: Callable[[Any], np.ndarray | None], argument):
    """Calls a Python function that returns an image `[h, w, 3]` uint8; fails if it returns None."""
    tf = load()

    def image_or_nothing(value: Any) -> np.ndarray:
        image = read(value)
        return np.zeros((0, 0, 3), np.uint8) if image is None else image

    image = _python(image_or_nothing, argument, tf.uint8)
    with tf.control_dependencies([tf.debugging.Assert(tf.size(image) > 0, ["no image that can be read"])]):
        return tf.ensure_shape(tf.identity(image), [None, None, 3])


def to_channels(image, channels: int):
    """An image `[h, w, c]` uint8 with `channels` channels: gray to RGB, RGB to gray (luma), or as it is."""
    tf = load()
    if image.shape[-1] == channels:
        return image
    if (image.shape[-1], channels) == (1, 3):
        return tf.image.grayscale_to_rgb(image)
    if (image.shape[-1], channels) == (3, 1):
        # The weights add up to 1, so that gray pixels keep their value.
        luma = tf.tensordot(tf.cast(image, tf.float32), [0.299, 0.587, 0.114], axes=1)
        return tf.cast(tf.round(luma), tf.uint8)[..., None]
    raise SimclrError(
        f"config.data.channels={channels}: the images have {image.shape[-1]}, "
        "and only gray and RGB are converted into each other"
    )


def decode(data, reading: Reading | None = None):
    """Encoded bytes (scalar string) to an RGB image `[h, w, 3]` uint8.

    Gray, palette and CMYK become RGB. Transparent pixels are blended over `reading.background`.
    `reading.intensity` says how more than 8 bits become 8. Only the first frame or page is read. Fails with
    InvalidArgumentError if the image is truncated, damaged or too large.
    """
    tf = load()
    reading = reading or Reading()
    head = tf.strings.substr(data, 0, 2)
    kinds = {b"\x89P": _png, b"BM": _bmp, b"RI": _webp}

    def other(data):
        magic = tf.strings.substr(data, 0, 2)
        cases = [
            (tf.equal(magic, key), functools.partial(kind, data, reading)) for key, kind in kinds.items()
        ]
        return tf.case(cases, default=lambda: _other(data, reading))

    # Most images are JPEGs. Inlined, the operations of the other branches would slow these by an eighth.
    one = {"input_signature": [tf.TensorSpec([], tf.string)], "autograph": False}
    apart = tf.function(other, experimental_attributes={"_noinline": True}, **one)
    image = tf.cond(tf.equal(head, b"\xff\xd8"), lambda: _jpeg(data, reading), lambda: apart(data))
    image.set_shape([None, None, 3])
    return image
