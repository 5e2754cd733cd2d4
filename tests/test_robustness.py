"""Compares corruptions with scipy, matplotlib and Pillow, and attacks with the provably strongest one."""

import io
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.colors import hsv_to_rgb, rgb_to_hsv
from PIL import Image
from scipy.ndimage import gaussian_filter

from simclr_jax.errors import SimclrError
from simclr_jax.measures import corruptions
from simclr_jax.measures.attacks import fgsm, pgd

SIZES = {"small": (28, 20), "large": (64, 70)}


def photos(size="small", channels=3, n=4, seed=0):
    """Smooth random images `[n, h, w, channels]`, like photographs."""
    x = np.random.default_rng(seed).random((n, *SIZES[size], channels))
    x = gaussian_filter(x, (0, 2, 2, 0))
    return ((x - x.min()) / (x.max() - x.min())).astype(np.float32)


def corrupted(name, images, severity, seed=0, position=None):
    position = np.arange(len(images), dtype=np.uint32) if position is None else position
    f = corruptions.CORRUPTIONS[name]
    if name not in corruptions.HOST:
        f = jax.jit(f, static_argnames="severity")
    return np.asarray(f(images, severity=severity, position=position, seed=seed))


@pytest.mark.parametrize(("size", "channels"), [("small", 1), ("small", 3), ("large", 5)])
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
    """Noise depends on the image's number and the seed, not on the batch; its deviation is correct."""
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


# ---- attacks ----------------------------------------------------------------------------------------


def linear_model(classes=2, pixels=8, scale=1.0):
    kernel = scale * np.random.default_rng(3).standard_normal((pixels, classes)).astype(np.float32)
    return lambda x: x.reshape(len(x), -1) @ kernel


def small_net(shape=(8, 8, 1), classes=4, seed=0):
    rng = np.random.default_rng(seed)
    first = rng.standard_normal((np.prod(shape), 32)).astype(np.float32) / 4
    second = rng.standard_normal((32, classes)).astype(np.float32)
    return lambda x: jnp.tanh(x.reshape(len(x), -1) @ first) @ second


def cross_entropy(logits_fn, images, labels):
    return -jax.nn.log_softmax(logits_fn(images))[np.arange(len(labels)), labels]


def examples(n=16, shape=(8, 8, 1), classes=4):
    rng = np.random.default_rng(1)
    return rng.random((n, *shape), np.float32), rng.integers(0, classes, n)


@pytest.mark.parametrize("epsilon", [0.05, 0.4])
def test_fgsm_is_the_strongest_attack_on_a_linear_model(epsilon):
    """With two classes the loss is monotonic in a linear function; no corner of the cube has a larger loss.

    With 0.4 the cubes are cut at 0 and 1.
    """
    model, (images, labels) = linear_model(), examples(5, (2, 4, 1), 2)
    found = fgsm(model, images, labels, epsilon)
    best = np.asarray(cross_entropy(model, found, labels))
    for signs in itertools.product((-1, 1), repeat=8):
        corner = np.clip(images + epsilon * np.float32(signs).reshape(1, 2, 4, 1), 0, 1)
        assert (cross_entropy(model, corner, labels) <= best + 1e-5).all()


def test_attack_on_a_certain_classifier():
    """The cross entropy is 0 in float32; a naive gradient would be 0 too."""
    model, (images, _) = linear_model(3, 64, scale=200.0), examples()
    labels = np.argmax(model(images), axis=1)
    assert np.median(cross_entropy(model, images, labels)) == 0
    weak = linear_model(3, 64, scale=0.1)
    attacked = fgsm(model, images, labels, 0.5)
    assert (cross_entropy(weak, attacked, labels) > cross_entropy(weak, images, labels)).all()


@pytest.mark.parametrize("classes", [1, 4])
def test_attacks_stay_in_range(classes):
    model, (images, labels) = small_net(classes=classes), examples(classes=classes)
    position = np.arange(16, dtype=np.uint32)
    fast = jax.jit(lambda epsilon: fgsm(model, images, labels, epsilon))
    projected = jax.jit(lambda epsilon: pgd(model, images, labels, epsilon, position))
    for attack, epsilon in itertools.product((fast, projected), (0.0, 0.03, 1.0)):
        found = np.asarray(attack(epsilon))
        assert found.dtype == np.float32
        assert np.abs(found - images).max() <= epsilon + 1e-6
        assert found.min() >= 0
        assert found.max() <= 1
        if not epsilon:
            np.testing.assert_array_equal(found, images)


def test_pgd_is_at_least_as_strong_as_fgsm():
    model, (images, labels) = small_net(), examples(64)
    position = np.arange(64, dtype=np.uint32)

    @jax.jit
    def losses():
        attacked = (fgsm(model, images, labels, 0.1), pgd(model, images, labels, 0.1, position, steps=20))
        return [cross_entropy(model, x, labels) for x in (images, *attacked)]

    clean, fast, projected = map(np.asarray, losses())
    assert clean.mean() < fast.mean() < projected.mean() + 1e-4
    assert (projected >= fast - 1e-3).mean() > 0.95


def test_attacks_do_not_depend_on_the_batch():
    model, (images, labels) = small_net(), examples()
    position = np.arange(16, dtype=np.uint32)

    @jax.jit
    def attack(images, labels, position, seed=0):
        return pgd(model, images, labels, 0.1, position, steps=3, seed=seed)

    whole = np.asarray(attack(images, labels, position))
    for rows in ([7], [3, 12, 5], list(range(15, -1, -1))):
        part = np.asarray(attack(images[rows], labels[rows], position[rows]))
        # Another batch may round sums differently, which flips the sign of a gradient near 0.
        assert np.mean(np.abs(part - whole[rows]) < 1e-6) > 0.99
    other = attack(images, labels, position, 1)
    assert np.abs(other - whole).max() > 0.01
