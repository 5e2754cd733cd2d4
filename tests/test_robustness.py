"""Corruptions against scipy, matplotlib and Pillow; attacks against what is provably the strongest."""

import io
import itertools

import jax
import numpy as np
import pytest
from matplotlib.colors import hsv_to_rgb, rgb_to_hsv
from PIL import Image
from scipy.ndimage import gaussian_filter

from simclr_jax.errors import SimclrError
from simclr_jax.evals import corruptions

SIZES = {"small": (28, 20), "large": (64, 70)}


def photos(size="small", channels=3, n=4, seed=0):
    """Smooth random images, as photographs are, `[n, h, w, channels]`."""
    x = np.random.default_rng(seed).random((n, *SIZES[size], channels))
    x = gaussian_filter(x, (0, 2, 2, 0))
    return ((x - x.min()) / (x.max() - x.min())).astype(np.float32)


def corrupted(name, images, severity, seed=0, position=None):
    position = np.arange(len(images), dtype=np.uint32) if position is None else position
    f = corruptions.CORRUPTIONS[name]
    if name not in corruptions.HOST:
        f = jax.jit(f, static_argnames="severity")
    return np.asarray(f(images, severity=severity, position=position, seed=seed))


@pytest.mark.parametrize(("size", "channels"), [("small", 1), ("small", 3), ("large", 3), ("large", 5)])
def test_every_corruption_keeps_shape_and_range_and_gets_worse(size, channels):
    images = photos(size, channels)
    for name in corruptions.available(channels):
        errors = []
        for severity in (1, 5):
            found = corrupted(name, images, severity)
            assert found.shape == images.shape
            assert found.dtype == np.float32
            assert found.min() >= 0
            assert found.max() <= 1
            errors.append(np.abs(found - images).mean())
        assert 0 < errors[0] < errors[1], name


def test_which_are_available():
    assert corruptions.available(1) == corruptions.available(3) == tuple(corruptions.CORRUPTIONS)
    assert corruptions.available(5) == ("gaussian_noise", "gaussian_blur", "pixelate")


@pytest.mark.parametrize("severity", [0, 6])
def test_severities_are_one_to_five(severity):
    for f in corruptions.CORRUPTIONS.values():
        with pytest.raises(SimclrError, match="1 to 5"):
            f(photos(), severity, np.arange(4, dtype=np.uint32), 0)


def test_noise_is_an_images_own():
    """By its number in the set and the seed, whatever is beside it in the batch; by the right deviation."""
    grey = np.full((6, 28, 28, 1), 0.5, np.float32)
    whole = corrupted("gaussian_noise", grey, 2)
    part = corrupted("gaussian_noise", grey[:2], 2, position=np.array([4, 1], np.uint32))
    np.testing.assert_array_equal(part, whole[[4, 1]])
    assert np.abs(whole[0] - whole[1]).mean() > 0.01
    assert np.abs(whole - corrupted("gaussian_noise", grey, 2, seed=1)).mean() > 0.01
    assert whole.std() == pytest.approx(0.06, rel=0.05)
    large = np.full((1, 64, 64, 3), 0.5, np.float32)
    assert corrupted("gaussian_noise", large, 1).std() == pytest.approx(0.08, rel=0.05)


@pytest.mark.parametrize(("size", "severity", "sigma"), [("small", 1, 0.4), ("small", 5, 1), ("large", 5, 6)])
def test_blur_is_scipys(size, severity, sigma):
    images = photos(size)
    expected = gaussian_filter(images.astype(np.float64), (0, sigma, sigma, 0), mode="nearest")
    np.testing.assert_allclose(corrupted("gaussian_blur", images, severity), expected, atol=2e-6)


@pytest.mark.parametrize("name", ["gaussian_blur", "pixelate"])
def test_constant_images_stay_constant(name):
    for size, channels in itertools.product(SIZES, (1, 3)):
        images = np.full_like(photos(size, channels), 0.7)
        np.testing.assert_allclose(corrupted(name, images, 5), images, atol=1e-6)


@pytest.mark.parametrize(("size", "severity", "amount"), [("small", 2, 0.1), ("large", 5, 0.5)])
def test_brightness_is_added_to_the_value(size, severity, amount):
    images = photos(size)
    images[0, :3] = 0
    images[1, :3] = 1
    hsv = rgb_to_hsv(images)
    hsv[..., 2] = np.clip(hsv[..., 2] + amount, 0, 1)
    np.testing.assert_allclose(corrupted("brightness", images, severity), hsv_to_rgb(hsv), atol=1e-6)
    gray = images[..., :1]
    np.testing.assert_allclose(
        corrupted("brightness", gray, severity), np.minimum(gray + amount, 1), atol=1e-6
    )


@pytest.mark.parametrize("channels", [1, 3])
def test_jpeg_is_pillows(channels):
    images = photos("large", channels)
    file = io.BytesIO()
    pixels = np.rint(images[1] * 255).astype(np.uint8)
    Image.fromarray(pixels[..., 0] if channels == 1 else pixels).save(file, "JPEG", quality=10)
    expected = np.asarray(Image.open(file)).reshape(images.shape[1:]) / 255
    found = corrupted("jpeg_compression", images, 4)
    np.testing.assert_allclose(found[1], expected, atol=1e-6)
    assert corrupted("jpeg_compression", images[:0], 4).shape == (0, *images.shape[1:])


@pytest.mark.parametrize(
    ("size", "severity", "scale"), [("small", 1, 0.95), ("small", 4, 0.75), ("large", 5, 0.25)]
)
def test_pixelate_is_pillows(size, severity, scale):
    images = photos(size)
    height, width = images.shape[1:3]
    pixels = np.rint(images * 255).astype(np.uint8)
    small = Image.fromarray(pixels[2]).resize((int(width * scale), int(height * scale)), Image.Resampling.BOX)
    expected = np.asarray(small.resize((width, height), Image.Resampling.BOX)) / 255
    found = corrupted("pixelate", (pixels / 255).astype(np.float32), severity)
    np.testing.assert_allclose(found[2], expected, atol=1.1 / 255)  # Pillow rounds twice
