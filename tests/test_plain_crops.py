"""augment.resize=none and eval.resize=none: crops of pixels as they are, on the host and on the device."""

import jax.numpy as jnp
import numpy as np
import pytest

from simclr_jax import augment, geometry
from simclr_jax.data import host_augment
from simclr_jax.data.tf import load

PLAIN = {"resize": "none", "flip": 0.0, "jitter": 0.0, "grayscale": 0.0, "blur": 0.0}


def numbered(h, w):
    """An image `[h, w, 3]` uint8 whose pixels tell where they are."""
    y, x = np.mgrid[:h, :w]
    return np.stack([y, x, y + x], axis=-1).astype(np.uint8)


def on_host(image, size, count):
    tf = load()
    options = host_augment.Options(**PLAIN)
    keys = [host_augment.view_key(3, tf.constant(i, tf.int64), 0) for i in range(count)]
    return np.stack([host_augment.random_view(tf.constant(image), key, size, options) for key in keys])


def on_device(image, size, count):
    images = np.broadcast_to(image, (count, *image.shape))
    options = {**PLAIN, "size": size, "views": 1}
    return np.asarray(augment.random_views(images, jnp.arange(count, dtype=jnp.uint32), 3, **options))[:, 0]


@pytest.mark.parametrize("make", [on_host, on_device], ids=["host", "device"])
def test_crops_are_parts_of_the_image(make):
    """Every place is drawn, the outermost ones too."""
    image, begin = numbered(12, 15), []
    for view in 255 * make(image, 10, 60):
        top, left = np.rint(view[0, 0, :2]).astype(int)
        assert np.abs(view - image[top : top + 10, left : left + 10]).max() < 1e-4
        begin.append((top, left))
    assert {top for top, _ in begin} == {0, 1, 2}
    assert {left for _, left in begin} == {0, 1, 2, 3, 4, 5}


@pytest.mark.parametrize("make", [on_host, on_device], ids=["host", "device"])
def test_small_images_are_enlarged(make):
    """The largest square that fits, by bicubic."""
    view = make(np.full((8, 5, 3), 51, np.uint8), 10, 2)
    assert view.shape == (2, 10, 10, 3)
    assert np.abs(view - 0.2).max() < 1e-5


@pytest.mark.parametrize("shape", [(40, 51), (20, 30)], ids=str)
def test_evaluation_sees_the_middle(shape):
    image = numbered(*shape)
    host = np.asarray(host_augment.center_view(load().constant(image), 36, 0.875, "none"))
    device = geometry.center_view(image[None].astype(np.float32) / 255, 36, 0.875, "none")[0]
    assert np.abs(host - np.asarray(device)).max() < 2e-3  # enlarged ones differ by rounding
    if shape[0] >= 36:
        top, left = ((side - 36 + 1) // 2 for side in shape)
        assert np.abs(255 * host - image[top : top + 36, left : left + 36]).max() < 1e-4
