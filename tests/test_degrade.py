"""Corruptions against formulas, and against Pillow."""

import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from simclr_jax import degrade, draws
from simclr_jax.errors import SimclrError


def keys(n, first=0, seed=3):
    return draws.view_keys(seed, jnp.arange(first, first + n, dtype=jnp.uint32), 1)[:, 0]


def photo(h=48, w=64, c=3, n=1, seed=0):
    """Smooth images with edges, of 8 bits."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:h, :w] / 24
    waves = [np.sin(y * a + x * b + p) for a, b, p in rng.uniform(0.5, 3, (n * c, 3))]
    images = np.stack(waves).reshape(n, c, h, w).transpose(0, 2, 3, 1) * 0.4 + 0.5
    images[:, h // 3 : h // 2, w // 4 : w // 2] = 0.9
    return (np.rint(255 * np.clip(images, 0, 1)) / 255).astype(np.float32)


def test_gaussian_noise_has_its_sigma_and_is_not_clipped():
    clean = np.zeros((64, 32, 32, 3), np.float32)
    noise = 255 * (np.asarray(degrade.gaussian(clean, keys(64), sigma=25.0)) - clean)
    n = noise.size
    assert abs(noise.mean()) < 5 * 25 / np.sqrt(n)
    assert abs(noise.std() / 25 - 1) < 5 / np.sqrt(2 * n)
    assert abs(np.mean(noise**4) / 25**4 - 3) < 5 * np.sqrt(96 / n)  # the fourth moment of a normal
    assert (noise < 0).mean() == pytest.approx(0.5, abs=5 * 0.5 / np.sqrt(n))


def test_each_image_draws_its_own_sigma():
    clean = np.full((400, 24, 24, 1), 0.5, np.float32)
    noisy = np.asarray(degrade.gaussian(clean, keys(400), sigma=1.0, sigma_range=(10.0, 50.0)))
    found = np.sort(255 * (noisy - clean).std(axis=(1, 2, 3)))
    assert found[0] > 9
    assert found[-1] < 54
    wanted = 10 + 40 * (np.arange(400) + 0.5) / 400  # quantiles of the uniform distribution
    assert np.abs(found - wanted).max() < 5


def test_poisson_noise_has_the_variance_of_counts():
    levels, peak = np.array([0.05, 0.2, 0.5, 1.0], np.float32), 30.0
    clean = np.broadcast_to(levels[:, None, None, None], (4, 100, 100, 3))
    noisy = np.asarray(degrade.poisson(clean, keys(4), peak=peak))
    counts, n = noisy * peak, 30_000
    assert np.abs(counts - np.rint(counts)).max() < 1e-4
    mean, variance = noisy.mean(axis=(1, 2, 3)), noisy.var(axis=(1, 2, 3))
    assert np.all(np.abs(mean - levels) < 5 * np.sqrt(levels / peak / n))
    assert np.all(np.abs(variance / (levels / peak) - 1) < 5 * np.sqrt((2 + 1 / (peak * levels)) / n))


def test_salt_and_pepper_replaces_a_share_half_and_half():
    clean = np.full((8, 64, 64, 3), 0.5, np.float32)
    noisy = np.asarray(degrade.salt_and_pepper(clean, keys(8), share=0.2))
    n = noisy.size
    for value, share in ((0.0, 0.1), (1.0, 0.1), (0.5, 0.8)):
        assert (noisy == value).mean() == pytest.approx(share, abs=5 * np.sqrt(share * (1 - share) / n))
    mixed = (noisy[..., 0] != 0.5) & (noisy[..., 1] == 0.5)
    assert mixed.mean() == pytest.approx(0.2 * 0.8, rel=0.1)  # channels are drawn by themselves


@pytest.mark.parametrize("quality", [5, 30, 75, 95])
@pytest.mark.parametrize(("channels", "subsample"), [(1, True), (3, False), (3, True)], ids=str)
def test_jpeg_is_pillows(quality, channels, subsample):
    """But for roundings inside libjpeg, which move single coefficients; 16 does not divide the sides."""
    image = photo(45, 67, channels)
    file, levels = io.BytesIO(), np.rint(255 * image[0])
    Image.fromarray(levels.astype(np.uint8)[..., 0] if channels == 1 else levels.astype(np.uint8)).save(
        file, "JPEG", quality=quality, subsampling=2 if subsample else 0
    )
    theirs = np.asarray(Image.open(file), np.float64).reshape(image.shape[1:])
    mine = 255 * np.asarray(degrade.jpeg(image, quality=quality, subsample=subsample), np.float64)[0]
    assert np.abs(mine - theirs).mean() < 0.75
    lost = [10 * np.log10(np.mean((each - levels) ** 2)) for each in (mine, theirs)]
    assert abs(lost[0] - lost[1]) < 0.25  # decibels
    assert np.abs(mine - np.rint(mine)).max() < 1e-4


def test_quantisation_tables_are_libjpegs():
    file = io.BytesIO()
    Image.new("RGB", (16, 16)).save(file, "JPEG", quality=37)
    theirs = Image.open(file).quantization
    for i, table in enumerate((degrade.LUMINANCE, degrade.CHROMINANCE)):
        assert np.array_equal(degrade.quantization(table, 37).reshape(-1), theirs[i])


def test_jpeg_of_other_channels_is_refused():
    with pytest.raises(SimclrError, match="1 or 3 channels, these have 2"):
        degrade.jpeg(np.zeros((1, 8, 8, 2), np.float32), quality=50)


@pytest.mark.parametrize(("scale", "size"), [(2, (48, 64)), (4, (48, 64)), (2, (37, 51))], ids=str)
def test_fewer_pixels_is_pillows_bicubic_twice(scale, size):
    image = photo(*size)
    mine = np.asarray(degrade.fewer_pixels(image, scale=scale))[0]
    h, w = size
    for c in range(3):
        small = Image.fromarray(image[0, ..., c]).resize(
            (-(-w // scale), -(-h // scale)), Image.Resampling.BICUBIC
        )
        theirs = np.asarray(small.resize((w, h), Image.Resampling.BICUBIC))
        assert np.abs(mine[..., c] - theirs).max() < 1e-5


def test_holes_hide_a_share_and_take_the_mean_of_the_rest():
    images = photo(60, 60, n=32)
    changed, known = jax.jit(lambda x, k: degrade.holes(x, k, share=0.25, side=7))(images, keys(32))
    changed, known = np.asarray(changed, np.float64), np.asarray(known)
    assert set(np.unique(known)) == {0.0, 1.0}
    assert 1 - known.mean() == pytest.approx(0.25, abs=0.02)
    for image, now, seen in zip(images, changed, known[..., 0] == 1, strict=True):
        assert np.array_equal(now[seen], image[seen].astype(np.float64))
        assert np.abs(now[~seen] - image[seen].astype(np.float64).mean(axis=0)).max() < 1e-5
    assert len({tuple(m.reshape(-1)) for m in known}) == 32  # every image has its own
    for each in known[..., 0]:  # squares of 7 pixels on a grid: borders are multiples of 7 apart
        for axis in (0, 1):
            borders = np.nonzero(np.diff(each, axis=axis))[axis]
            assert len({*(borders % 7)}) == 1


@pytest.mark.parametrize("share", [1e-4, 0.9999])
def test_holes_are_one_cell_at_least_and_never_all(share):
    _, known = degrade.holes(photo(21, 21, n=64), keys(64), share=share, side=7)
    seen = np.asarray(known).mean(axis=(1, 2, 3))
    rare = 1 - seen if share < 0.5 else seen
    assert rare.max() == pytest.approx(7**2 / 21**2)  # one whole square; in some images it is cut


OPTIONS = {"sigma": 25.0, "sigma_range": (), "peak": 20.0, "share": 0.2, "quality": 20, "scale": 2, "hole": 5}
NAMES = ("gaussian", "poisson", "salt_and_pepper", "jpeg", "fewer_pixels", "holes")


@pytest.mark.parametrize("name", NAMES)
def test_a_corruption_depends_on_its_key_alone(name):
    """The rest of the batch and the place in it do not matter; the seed does, where there is chance."""
    images = photo(20, 28, n=6)
    options = {**OPTIONS, "corruption": name}
    corrupt = jax.jit(lambda x, k: degrade.corrupt(x, k, options))
    changed, known = corrupt(images, keys(6))
    order = np.array([3, 0, 0, 5, 1, 2])
    turned, seen = corrupt(images[order], keys(6)[order])
    assert np.allclose(turned, changed[order], atol=1e-6)
    assert np.array_equal(seen, known[order])
    assert changed.shape == images.shape
    assert np.abs(np.asarray(changed) - images).max() > 0.01
    other, _ = corrupt(images, keys(6, seed=4))
    assert np.allclose(other, changed, atol=1e-6) == (name in ("jpeg", "fewer_pixels"))


def test_an_unknown_corruption_is_refused():
    with pytest.raises(SimclrError, match="'rain': no such corruption"):
        degrade.corrupt(photo(), keys(1), {**OPTIONS, "corruption": "rain"})
