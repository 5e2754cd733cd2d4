"""Decoding image files in TensorFlow: JPEG, PNG, BMP, GIF and WebP, to gray or RGB uint8."""

from simclr_jax.data.tf import load

EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp")


def _bmp(data, channels: int):
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

    rgb = tf.cond(
        tf.equal(uint(28, 2, tf.int16), 8), palette, lambda: tf.io.decode_bmp(data)[..., :3]
    )
    return tf.image.rgb_to_grayscale(rgb) if channels == 1 else rgb


def decode(data, channels: int):
    """Encoded bytes (scalar string) to an image `[h, w, channels]` uint8.

    Gray, palette, CMYK and RGBA become gray or RGB as asked (transparency is dropped), of an animation
    the first frame is taken. Fails with InvalidArgumentError where the bytes are no whole image.
    """
    tf = load()

    def webp():  # WebP knows no gray
        frame = tf.image.decode_webp(data, channels=3)
        frame = tf.reshape(frame, tf.concat([[-1], tf.shape(frame)[-3:]], 0))[0]
        return tf.image.rgb_to_grayscale(frame) if channels == 1 else frame

    def gif():  # nor does GIF
        frame = tf.io.decode_gif(data)[0]
        return tf.image.rgb_to_grayscale(frame) if channels == 1 else frame

    head = tf.strings.substr(data, 0, 4)
    image = tf.case(
        [
            (tf.equal(tf.strings.substr(data, 0, 2), b"BM"), lambda: _bmp(data, channels)),
            (tf.equal(head, b"RIFF"), webp),
            (tf.equal(head, b"GIF8"), gif),
        ],
        default=lambda: tf.io.decode_image(data, channels=channels, expand_animations=False),
    )
    image.set_shape([None, None, channels])
    return image
