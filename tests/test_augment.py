"""The tf.data augmentations against their formulas and distributions."""

import itertools

import numpy as np
import pytest

from simclr_jax.data import host_augment
from simclr_jax.data.host_augment import Options
from simclr_jax.data.tf import load


@pytest.fixture(scope="module")
def tf():
    return load()


def image(h=40, w=30, c=3, seed=0):
    return np.random.default_rng(seed).random((h, w, c), np.float32)


def many_views(tf, x, options, n, size=8, seed=0):
    def view(i):
        return host_augment.random_view(x, host_augment.view_key(seed, i, 0), size, options)

    positions = tf.data.Dataset.range(n)
    return np.stack(list(positions.map(view, num_parallel_calls=2).as_numpy_iterator()))


PLAIN = Options(flip=0.0, jitter=0.0, grayscale=0.0, blur=0.0)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_a_view_depends_on_its_key_alone(tf, channels):
    x = tf.constant(image(c=channels))
    key = lambda *k: host_augment.view_key(k[0], tf.constant(k[1], tf.int64), k[2])  # noqa: E731
    options = Options(rotation=20.0, zoom=(0.8, 1.2))
    view = lambda *k: host_augment.random_view(x, key(*k), 16, options).numpy()  # noqa: E731
    first = view(3, 2**33 + 5, 0)
    assert first.shape == (16, 16, channels)
    assert first.min() >= 0
    assert first.max() <= 1
    np.testing.assert_array_equal(first, view(3, 2**33 + 5, 0))
    for other in ((4, 2**33 + 5, 0), (3, 5, 0), (3, 2**33 + 5, 1)):
        assert np.abs(first - view(*other)).max() > 0.01


def test_uint8_and_float_images_give_the_same_view(tf):
    bytes_ = (image() * 255).astype(np.uint8)
    key = tf.constant([1, 2], tf.int64)
    views = [
        host_augment.random_view(tf.constant(x), key, 16, Options()).numpy()
        for x in (bytes_, bytes_.astype(np.float32) / 255)
    ]
    np.testing.assert_allclose(*views, atol=1e-6)


def test_crop_follows_area_and_aspect(tf):
    """The corners of a cropped coordinate ramp give the box; the original's boxes cover ≥ 0.1."""
    rows, columns = np.meshgrid(np.arange(200), np.arange(300), indexing="ij")
    ramp = np.stack([rows / 200, columns / 300, 0 * rows], axis=-1).astype(np.float32)
    options = PLAIN._replace(crop_area=(0.08, 0.5))
    views = many_views(tf, tf.constant(ramp), options, 400, size=4)
    # Four samples span 3/4 of the box.
    height = (views[:, -1, 0, 0] - views[:, 0, 0, 0]) * 4 / 3
    width = (views[:, 0, -1, 1] - views[:, 0, 0, 1]) * 4 / 3
    area, aspect = height * width, width * 300 / (height * 200)
    assert 0.09 < area.min() < 0.13
    assert 0.45 < area.max() < 0.53
    assert 0.72 < aspect.min() < 0.85
    assert 1.2 < aspect.max() < 1.37


def test_probabilities(tf):
    x = np.zeros((8, 8, 3), np.float32)
    x[:, :4] = [0.9, 0.5, 0.1]  # a red left half
    whole = PLAIN._replace(crop_area=(1.0, 1.0), crop_aspect=(1.0, 1.0))
    flipped = many_views(tf, tf.constant(x), whole._replace(flip=0.5), 400)
    assert np.mean(flipped[:, 4, 1, 0] < 0.5) == pytest.approx(0.5, abs=0.08)
    gray = many_views(tf, tf.constant(x), whole._replace(grayscale=0.2), 400)
    colourless = np.ptp(gray[:, 4, 1], axis=-1) < 1e-3
    assert colourless.mean() == pytest.approx(0.2, abs=0.06)
    luma = 0.9 * 0.2989 + 0.5 * 0.587 + 0.1 * 0.114
    np.testing.assert_allclose(gray[colourless][:, 4, 1], luma, atol=2e-3)
    jittered = many_views(tf, tf.constant(x), whole._replace(jitter=0.8), 400)
    changed = np.abs(jittered[:, 4, 1] - x[4, 1]).max(axis=-1) > 1e-4
    assert changed.mean() == pytest.approx(0.8, abs=0.06)


@pytest.mark.parametrize(("version", "expected"), [("v2", [0.06, 0.54]), ("v1", [-0.5, 1.1])])
def test_brightness(tf, version, expected):
    """A gray image of one pixel equals its mean, so only brightness changes it."""
    x = tf.constant(np.full((1, 1, 1), 0.3, np.float32))
    u = [0.0, 0.999999]
    values = [float(host_augment.color_jitter(x, [v, 0.5, 0.5, 0.5], 0.0, 1.0, version)[0, 0, 0]) for v in u]
    np.testing.assert_allclose(values, np.clip(expected, 0, 1), atol=1e-5)


def test_jitter_applies_the_four_in_every_order(tf):
    x = image(4, 4)
    operations = [
        lambda v: v * 1.72,
        lambda v: tf.image.adjust_contrast(v, 1.72),
        lambda v: tf.image.adjust_saturation(v, 0.36),
        lambda v: tf.image.adjust_hue(v, 0.12),
    ]
    for i, permutation in enumerate(itertools.permutations(range(4))):
        expected = x
        for k in permutation:
            expected = tf.clip_by_value(operations[k](expected), 0, 1)
        u_order = tf.constant((i + 0.5) / 24)
        out = host_augment.color_jitter(tf.constant(x), [0.95, 0.95, 0.1, 0.8], u_order, 1.0)
        np.testing.assert_allclose(out, expected, atol=1e-5)


@pytest.mark.parametrize(("size", "sigma", "kernel"), [(32, 0.7, 3), (50, 1.9, 22), (28, 1.0, 2)])
def test_blur_is_a_convolution_with_zeros_outside(tf, size, sigma, kernel):
    x = image(size, size)
    radius = kernel // 2
    taps = np.exp(-(np.arange(-radius, radius + 1) ** 2) / (2 * sigma**2))
    taps /= taps.sum()
    expected = x.astype(np.float64)
    for axis in (0, 1):
        expected = np.apply_along_axis(lambda line: np.convolve(line, taps, "same"), axis, expected)
    blurred = host_augment.gaussian_blur(tf.constant(x), sigma, kernel)
    np.testing.assert_allclose(blurred, expected, atol=1e-6)


def test_rotation_turns_about_the_centre(tf):
    x = np.zeros((21, 21, 1), np.float32)
    x[10, 17] = 1  # seven pixels to the right of the centre
    turned = host_augment.rotate_and_scale(tf.constant(x), 1.0, 0.0, 90.0, (1.0, 1.0)).numpy()
    assert {tuple(i) for i in np.argwhere(turned[..., 0] > 0.9)} <= {(3, 10), (17, 10)}
    assert turned.max() > 0.9
    x = np.zeros((21, 21, 1), np.float32)
    x[10, 13] = 1
    zoomed = host_augment.rotate_and_scale(tf.constant(x), 0.5, 0.0, 0.0, (2.0, 2.0)).numpy()
    assert np.unravel_index(zoomed.argmax(), zoomed.shape)[:2] == (10, 16)
    assert host_augment.rotate_and_scale(x, 0.1, 0.1, 0.0, (1.0, 1.0)) is x


def test_centre_view(tf):
    x = image(96, 64)
    side, top, left = 56, 20, 4  # rint(0.875 · 64), ((96 - 56) + 1) // 2, ((64 - 56) + 1) // 2
    expected = tf.image.resize(x[top : top + side, left : left + side], [48, 48], method="bicubic")
    view = host_augment.center_view(tf.constant(x), 48, 0.875)
    np.testing.assert_allclose(view, np.clip(expected, 0, 1), atol=1e-6)
    same = host_augment.center_view(tf.constant(image(32, 32)), 32, 0.875)
    np.testing.assert_array_equal(same, image(32, 32))  # at or below 32 px: no crop
