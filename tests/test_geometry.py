"""Crop, resize, flip and rotation on the accelerator against TensorFlow's."""

import jax
import jax.numpy as jnp
import numpy as np
import parity
import pytest

from simclr_jax import augment, geometry
from simclr_jax.data import host_augment
from simclr_jax.data.tf import load


@pytest.fixture(scope="module")
def tf():
    return load()


def noise(h=40, w=30, c=3, seed=0):
    return np.random.default_rng(seed).random((h, w, c), np.float32)


@pytest.mark.parametrize("method", geometry.RESIZES)
@pytest.mark.parametrize("box", [(0, 0, 40, 30), (3, 5, 17, 11), (30, 2, 9, 28), (39, 0, 1, 30)])
def test_crop_and_resize_is_a_product_of_two_matrices(tf, box, method):
    """Boxes shrunk and blown up to 16 px; one of a single row."""
    x, (y, x0, h, w) = noise(), box
    expected = host_augment.resize(tf.constant(x[y : y + h, x0 : x0 + w]), 16, method)
    rows = geometry.resampling(40, 16, jnp.int32(y), jnp.int32(h), method)
    columns = geometry.resampling(30, 16, jnp.int32(x0), jnp.int32(w), method)
    np.testing.assert_allclose(geometry.resample(x, rows, columns), expected, atol=2e-6)


@pytest.mark.parametrize(("degrees", "scale"), [(0.0, 1.0), (15.0, 1.0), (-40.0, 0.8), (7.0, 1.3)])
def test_rotation(tf, degrees, scale):
    """The host draws angle and zoom from two numbers; these give the wanted ones."""
    x = noise()
    wide = abs(degrees) or 1.0
    u = (degrees / wide + 1) / 2
    expected = host_augment.rotate_and_scale(tf.constant(x), u, 0.0, wide, (scale, scale))
    found = geometry.rotate_and_scale(x, jnp.float32(np.deg2rad(degrees)), jnp.float32(scale))
    np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize(
    ("shape", "area", "aspect", "covered"),
    [
        ((32, 32), (0.08, 1.0), (3 / 4, 4 / 3), 0.1),
        ((90, 300), (0.2, 0.6), (0.5, 2.0), 0.1),
        ((28, 28), (0.5, 1.0), (1.0, 1.0), 0.1),
        ((50, 40), (0.08, 0.4), (3 / 4, 4 / 3), 0.35),  # few attempts cover enough
    ],
)
def test_boxes_are_distributed_as_tensorflows(tf, shape, area, aspect, covered):
    count = 3000
    options = host_augment.Options(crop_area=area, crop_aspect=aspect, crop_min_covered=covered)

    def host(i):
        begin, extent = host_augment.random_crop_box(
            tf.constant([*shape, 3]), host_augment.view_key(0, i, 0), options
        )
        return tf.concat([begin[:2], extent[:2]], 0)

    theirs = np.stack(list(tf.data.Dataset.range(count).map(host).as_numpy_iterator()))
    draw = lambda key: geometry.crop_box(key, *shape, area=area, aspect=aspect, min_covered=covered)  # noqa: E731
    begin, extent = jax.jit(jax.vmap(draw))(jax.random.split(jax.random.key(0), count))
    ours = np.concatenate([begin, extent], axis=1)
    assert (ours[:, 2:] > 0).all()
    assert (ours[:, :2] + ours[:, 2:] <= shape).all()
    statistics = {
        "y": lambda b: b[:, 0], "x": lambda b: b[:, 1], "h": lambda b: b[:, 2], "w": lambda b: b[:, 3],
        "area": lambda b: b[:, 2] * b[:, 3], "aspect": lambda b: b[:, 3] / b[:, 2],
    }  # fmt: skip
    for name, of in statistics.items():
        assert parity.ks_distance(of(ours), of(theirs)) < 0.045, name  # 0.1 % significance: 0.050
        assert len(np.unique(of(ours))) > 1 or len(np.unique(of(theirs))) == 1


def test_an_impossible_box_is_the_whole_image():
    begin, extent = geometry.crop_box(
        jax.random.key(0), 10, 200, area=(0.9, 1.0), aspect=(1.0, 1.0), min_covered=0.1
    )
    assert (begin.tolist(), extent.tolist()) == ([0, 0], [10, 200])


@pytest.mark.parametrize("resize", geometry.RESIZES)
def test_views_are_distributed_as_the_hosts(tf, resize):
    """Mean, spread, left-right and top-bottom contrast of 2,000 views of one photo-like image."""
    smooth = np.cumsum(np.cumsum(noise(24, 20, seed=5) - 0.45, axis=0), axis=1)
    x = (255 * (smooth - smooth.min()) / np.ptp(smooth)).astype(np.uint8)
    options = host_augment.Options(rotation=20.0, zoom=(0.9, 1.2), blur_kernel=0.3, resize=resize)

    def host(i):
        return host_augment.random_view(tf.constant(x), host_augment.view_key(0, i, 0), 12, options)

    theirs = np.stack(list(tf.data.Dataset.range(2000).map(host, num_parallel_calls=2).as_numpy_iterator()))
    images, position = np.repeat(x[None], 2000, axis=0), np.arange(2000, dtype=np.uint32)
    fields = options._asdict()
    make = jax.jit(lambda i, p: augment.random_views(i, p, 0, size=12, views=1, **fields))
    ours = np.asarray(make(images, position))[:, 0]
    assert ours.min() >= 0
    assert ours.max() <= 1
    statistics = {
        "mean": lambda v: v.mean(axis=(1, 2, 3)),
        "spread": lambda v: v.std(axis=(1, 2, 3)),
        "left-right": lambda v: v[:, :, :6].mean(axis=(1, 2, 3)) - v[:, :, 6:].mean(axis=(1, 2, 3)),
        "top-bottom": lambda v: v[:, :6].mean(axis=(1, 2, 3)) - v[:, 6:].mean(axis=(1, 2, 3)),
        "sharpness": lambda v: np.abs(np.diff(v, axis=2)).mean(axis=(1, 2, 3)),
    }
    for name, of in statistics.items():
        assert parity.ks_distance(of(ours), of(theirs)) < 0.055, name


def test_products_read_between_pixels_as_gathers_do():
    """The two ways to turn an image: TPUs take the products."""
    rng = np.random.default_rng(0)
    image = jnp.asarray(rng.random((9, 7, 3), np.float32))
    rows, columns = (jnp.asarray(rng.uniform(-2, 10, (9, 7)), jnp.float32) for _ in range(2))
    found = [read(image, rows, columns) for read in (geometry.read_by_products, geometry.read_by_gathers)]
    np.testing.assert_allclose(*found, atol=1e-6)
    assert np.any(np.asarray(found[0]) == 0)  # some are outside


def test_flip_turns_the_view_over():
    """Of two runs of draws that differ in the flip's probability alone, one has all views mirrored."""
    x = (255 * noise(12, 12)).astype(np.uint8)[None]
    position = np.zeros(1, np.uint32)
    views = [
        augment.random_views(x, position, 3, size=12, flip=p, jitter=0.0, grayscale=0.0, blur=0.0)
        for p in (0.0, 1.0)
    ]
    np.testing.assert_allclose(views[0], views[1][:, :, :, ::-1], atol=1e-6)


def test_a_view_depends_on_seed_position_and_view_alone():
    x = np.random.default_rng(0).integers(0, 256, (16, 14, 18, 3), np.uint8)
    position = np.arange(100, 116, dtype=np.uint32)
    colour = {"jitter": 0.0, "blur": 0.0}  # those are tested by themselves
    make = jax.jit(lambda i, p, s: augment.random_views(i, p, s, size=8, rotation=10.0, **colour))
    whole = make(x, position, 7)
    assert whole.shape == (16, 2, 8, 8, 3)
    some = np.resize(np.array([3, 11, 0]), 16)
    np.testing.assert_allclose(make(x[some], position[some], 7), whole[some], atol=1e-6)
    assert np.abs(whole[:, 0] - whole[:, 1]).max(axis=(1, 2, 3)).min() > 1e-3
    other = make(x, position, 8)
    assert np.abs(whole - other).max(axis=(1, 2, 3, 4)).min() > 1e-3
