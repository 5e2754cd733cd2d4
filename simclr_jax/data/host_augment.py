"""SimCLR's augmentations as stateless TensorFlow functions: same key, same view, on any machine.

Images are `[h, w, c]`, float32 in [0, 1] or, where a function starts from the source's image, uint8.
Images of one channel get no saturation, hue or grayscale; images with neither one nor three channels get
only geometry and blur.
Sources: SimCLR (arXiv 2002.05709), appendix A, and the released code where the paper is silent.
"""

import itertools
from typing import NamedTuple

from simclr_jax.data.tf import load


class Options(NamedTuple):
    """The fields of `config.augment`, explained in `config.default`."""

    crop_area: tuple[float, float] = (0.08, 1.0)
    crop_aspect: tuple[float, float] = (3 / 4, 4 / 3)
    crop_min_covered: float = 0.1
    resize: str = "bicubic"
    flip: float = 0.5
    rotation: float = 0.0
    zoom: tuple[float, float] = (1.0, 1.0)
    jitter: float = 0.8
    jitter_strength: float = 1.0
    brightness: str = "v2"
    grayscale: float = 0.2
    blur: float = 0.5
    blur_kernel: float = 0.1
    blur_sigma: tuple[float, float] = (0.1, 2.0)


class Crops(NamedTuple):
    """Views of an image that have one size."""

    name: str  # of their array in a batch
    size: int  # side, pixels
    count: int
    first: int  # number of the first; numbers key the random draws
    options: Options


def view_key(seed: int, position, view: int):
    """The key of a view: int64 `[2]` from (seed, position in the run, view)."""
    tf = load()
    return tf.random.fold_in(tf.stack([tf.constant(seed, tf.int64), position]), view)


def random_view(image, key, size: int, options: Options):
    """One random view `[size, size, c]` of `image [h, w, c]`: the whole of SimCLR's pipeline."""
    tf = load()
    channels = image.shape[-1]
    image, u = _cropped_and_flipped(image, key, size, options)
    if options.jitter and options.jitter_strength and channels in (1, 3):
        jitter, amounts, order = next(u) < options.jitter, [next(u) for _ in range(4)], next(u)
        image = tf.cond(
            jitter,
            lambda: color_jitter(image, amounts, order, options.jitter_strength, options.brightness),
            lambda: image,
        )
    if options.grayscale and channels == 3:
        image = tf.cond(next(u) < options.grayscale, lambda: to_grayscale(image), lambda: image)
    if options.blur:
        low, high = options.blur_sigma
        blur, sigma = next(u) < options.blur, low + (high - low) * next(u)
        kernel = int(size * options.blur_kernel)
        image = tf.cond(blur, lambda: gaussian_blur(image, sigma, kernel), lambda: image)
    image = tf.clip_by_value(image, 0.0, 1.0)  # bicubic overshoots
    return tf.ensure_shape(image, [size, size, channels])


def random_crop(image, key, size: int, options: Options):
    """The host's part of a random view (crop and flip), rounded to uint8; the accelerator does the rest."""
    tf = load()
    view, _ = _cropped_and_flipped(image, key, size, options, unit=255.0)
    return tf.ensure_shape(tf.saturate_cast(tf.round(view), tf.uint8), [size, size, image.shape[-1]])


def _cropped_and_flipped(image, key, size: int, options: Options, unit: float = 1.0):
    """(view in [0, unit], apart from bicubic overshoot; unused uniform numbers)."""
    tf = load()
    keys = tf.random.split(key, 2)
    # One draw for all scalar choices: a draw per choice would cost more than the pixels.
    u = iter(tf.unstack(tf.random.stateless_uniform([16], keys[0])))
    image = rotate_and_scale(image, next(u), next(u), options.rotation, options.zoom)
    image = random_resized_crop(image, keys[1], size, options, unit)
    if options.flip:
        flip = next(u) < options.flip
        image = tf.cond(flip, lambda: tf.reverse(image, [1]), lambda: image)
    return image, u


def random_crop_box(shape, key, options: Options):
    """(begin, extent) `[3]` each of a random crop of an image of `shape [3]`; extent's channels are -1.

    Sampled as the original does: of the boxes that `crop_area` and `crop_aspect` allow, one that covers
    at least `crop_min_covered` of the image, uniform in height; the whole image if 100 attempts fail.
    """
    tf = load()
    begin, extent, _ = tf.image.stateless_sample_distorted_bounding_box(
        shape,
        tf.constant([[[0.0, 0.0, 1.0, 1.0]]]),
        seed=key,
        min_object_covered=options.crop_min_covered,
        aspect_ratio_range=options.crop_aspect,
        area_range=options.crop_area,
        max_attempts=100,
        use_image_if_no_bounding_boxes=True,
    )
    return begin, extent


def random_resized_crop(image, key, size: int, options: Options, unit: float = 1.0):
    """A crop of random area and aspect (`random_crop_box`), resized to `[size, size, c]`, in [0, unit]."""
    tf = load()
    begin, extent = random_crop_box(tf.shape(image), key, options)
    extent = tf.stack([extent[0], extent[1], image.shape[-1]])
    crop = tf.slice(image, begin, extent)
    had = 255.0 if image.dtype == tf.uint8 else 1.0  # converted after resizing, which takes bytes too
    view = resize(crop, size, options.resize)
    return view if had == unit else view * (unit / had)


def resize(image, size: int, method: str):
    """Image `[h, w, c]` as `[size, size, c]`: "bicubic", or "bilinear", antialiased as PyTorch's."""
    tf = load()
    if method == "bicubic":  # as tf.image.resize calls it, which asks for shapes with a dozen operations
        return tf.raw_ops.ResizeBicubic(images=image[None], size=[size, size], half_pixel_centers=True)[0]
    return tf.image.resize(image, [size, size], method=method, antialias=True)


def rotate_and_scale(image, u_angle, u_scale, degrees: float, zoom: tuple[float, float]):
    """Rotates by up to ±`degrees` and zooms by a factor in `zoom`; bilinear, black outside."""
    if not degrees and tuple(zoom) == (1.0, 1.0):
        return image
    tf = load()
    angle = (2 * u_angle - 1) * (degrees * 3.141592653589793 / 180)
    scale = zoom[0] + (zoom[1] - zoom[0]) * u_scale
    shape = tf.shape(image)
    cy = tf.cast(shape[0] - 1, tf.float32) / 2
    cx = tf.cast(shape[1] - 1, tf.float32) / 2
    # Output pixel (x, y) is read at centre + R(angle)·((x, y) - centre) / scale.
    cos, sin = tf.cos(angle) / scale, tf.sin(angle) / scale
    transform = [cos, -sin, cx - cos * cx + sin * cy, sin, cos, cy - sin * cx - cos * cy, 0.0, 0.0]
    rotated = tf.raw_ops.ImageProjectiveTransformV3(
        images=tf.image.convert_image_dtype(image, tf.float32)[None],
        transforms=tf.stack(transform)[None],
        output_shape=shape[:2],
        fill_value=0.0,
        interpolation="BILINEAR",
        fill_mode="CONSTANT",
    )[0]
    return tf.ensure_shape(rotated, image.shape)


def color_jitter(image, amounts, u_order, strength: float, brightness: str = "v2"):
    """Brightness, contrast, saturation and hue in random order, each clipped to [0, 1].

    Args:
      amounts: four uniform numbers in [0, 1), for the four in this order.
      u_order: a uniform number that picks one of the orders.
      strength: ±80 % of brightness, contrast and saturation and ±0.2 of hue at 1 (appendix A).
      brightness: "v2" multiplies by a factor, "v1" adds an offset.
    """
    tf = load()
    reach = 0.8 * strength
    low, high = max(1 - reach, 0.0), 1 + reach

    def between(a, b, u):
        return a + (b - a) * u

    def brighten(x):
        if brightness == "v1":
            return x + between(-reach, reach, amounts[0])
        return x * between(low, high, amounts[0])

    operations = [
        brighten,
        lambda x: tf.image.adjust_contrast(x, between(low, high, amounts[1])),
    ]
    if image.shape[-1] == 3:
        operations += [
            lambda x: tf.image.adjust_saturation(x, between(low, high, amounts[2])),
            lambda x: tf.image.adjust_hue(x, between(-0.2, 0.2, amounts[3]) * strength),
        ]
    orders = tf.constant(list(itertools.permutations(range(len(operations)))))
    order = orders[tf.cast(u_order * len(orders), tf.int32)]
    for i in range(len(operations)):
        image = tf.switch_case(order[i], [lambda x=image, f=f: f(x) for f in operations])
        image = tf.clip_by_value(image, 0.0, 1.0)
    return image


def to_grayscale(image):
    """Luma 0.2989 R + 0.5870 G + 0.1140 B, in all three channels."""
    tf = load()
    return tf.tile(tf.image.rgb_to_grayscale(image), [1, 1, 3])


def gaussian_blur(image, sigma, kernel_size: int):
    """Separable Gaussian of `2·(kernel_size // 2) + 1` taps; zeros outside, as in the original."""
    tf = load()
    radius = kernel_size // 2
    if not radius:
        return image
    # Cut at 5.5 sigma, where a tap is below 3e-7 of the middle one.
    radius = tf.minimum(radius, tf.cast(tf.math.ceil(5.5 * sigma), tf.int32))
    x = tf.cast(tf.range(-radius, radius + 1), tf.float32)
    taps = tf.exp(-(x**2) / (2.0 * sigma**2))
    taps /= tf.reduce_sum(taps)
    channels = image.shape[-1]
    taps = tf.tile(taps[:, None], [1, channels])
    for shape in ([1, -1, channels, 1], [-1, 1, channels, 1]):  # horizontal, vertical
        image = tf.nn.depthwise_conv2d(image[None], tf.reshape(taps, shape), [1] * 4, "SAME")[0]
    return image


def center_view(image, size: int, crop: float, method: str = "bicubic"):
    """The evaluation view `[size, size, c]`: above 32 px a central square of `crop`, then resized.

    `method` is "bicubic", the original's, or "bilinear", antialiased as PyTorch's.
    """
    return center_crop(image, size, crop if size > 32 else None, method)


def center_crop(image, size: int, crop: float | None, method: str = "bicubic"):
    """The central square of `crop` times the shorter side, or the whole image, as `[size, size, c]`."""
    tf = load()
    if crop is not None:
        height, width = tf.shape(image)[0], tf.shape(image)[1]
        side = tf.cast(tf.round(crop * tf.cast(tf.minimum(height, width), tf.float32)), tf.int32)
        top, left = (height - side + 1) // 2, (width - side + 1) // 2
        image = image[top : top + side, left : left + side]
    image = tf.image.convert_image_dtype(image, tf.float32)
    if image.shape[0] != size or image.shape[1] != size:
        image = resize(image, size, method)
    return tf.ensure_shape(tf.clip_by_value(image, 0.0, 1.0), [size, size, image.shape[-1]])
