"""Decoding image files in TensorFlow: JPEG, PNG, BMP, GIF and WebP, to RGB uint8."""

from simclr_jax.data.tf import load
from simclr_jax.errors import SimclrError

EXTENSIONS = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".gif", ".webp")


def _bmp(data):
    """TensorFlow shows a palette's indices as gray values, so the palette is applied here."""
    tf = load()

    def uint(start, size, dtype):
        number = tf.io.decode_raw(tf.strings.substr(data, start, size), dtype)[0]
        return tf.cast(number, tf.int32)

    def palette():
        table = tf.strings.substr(data, 14 + uint(14, 4, tf.int32), 4 * 256)
        # BGRA rows; a short table is followed by pixels, which no valid index reaches.
        colours = tf.reshape(tf.io.decode_raw(table, tf.uint8), [-1, 4])[:, 2::-1]
        return tf.gather(colours, tf.cast(tf.io.decode_bmp(data)[..., 0], tf.int32))

    return tf.cond(tf.equal(uint(28, 2, tf.int16), 8), palette, lambda: tf.io.decode_bmp(data)[..., :3])


def _webp(data):
    """Still images only: on animated ones TensorFlow's decoder corrupts its memory."""
    tf = load()
    flags = tf.io.decode_raw(tf.strings.substr(data, 20, 1), tf.uint8)[0]
    extended = tf.equal(tf.strings.substr(data, 12, 4), b"VP8X")
    animated = extended & tf.not_equal(tf.bitwise.bitwise_and(flags, 2), 0)
    with tf.control_dependencies([tf.debugging.Assert(~animated, ["an animated WebP"])]):
        frames = tf.image.decode_webp(tf.identity(data), channels=3)
    return tf.reshape(frames, tf.shape(frames)[-3:])


def to_channels(image, channels: int):
    """An image `[h, w, c]` uint8 with `channels` channels: gray to RGB, RGB to gray (luma), or as it is."""
    tf = load()
    if image.shape[-1] == channels:
        return image
    if (image.shape[-1], channels) == (1, 3):
        return tf.image.grayscale_to_rgb(image)
    if (image.shape[-1], channels) == (3, 1):
        # Weights that add up to 1, so that gray stays what it is.
        luma = tf.tensordot(tf.cast(image, tf.float32), [0.299, 0.587, 0.114], axes=1)
        return tf.cast(tf.round(luma), tf.uint8)[..., None]
    raise SimclrError(
        f"config.data.channels={channels}: the images have {image.shape[-1]}, "
        "and only gray and RGB are converted into each other"
    )


def decode(data):
    """Encoded bytes (scalar string) to an RGB image `[h, w, 3]` uint8.

    Gray, palette, CMYK and RGBA become RGB (transparency is dropped), of an animated GIF the first frame
    is taken. Fails with InvalidArgumentError where the bytes are no whole image, or an animated WebP.
    """
    tf = load()
    head = tf.strings.substr(data, 0, 2)

    def other():
        return tf.case(
            [(tf.equal(head, b"BM"), lambda: _bmp(data)), (tf.equal(head, b"RI"), lambda: _webp(data))],
            default=lambda: tf.io.decode_image(data, channels=3, expand_animations=False),
        )

    # Most are JPEGs, and the other branches' operations would cost a quarter of the decoding.
    image = tf.cond(tf.equal(head, b"\xff\xd8"), lambda: tf.io.decode_jpeg(data, channels=3), other)
    image.set_shape([None, None, 3])
    return image
