"""Maps of what a score comes from: against class activation maps, and for objects planted in the images."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from simclr_jax.config import default
from simclr_jax.measures import saliency
from simclr_jax.models import simclr
from simclr_jax.models.cnn import CNN
from simclr_jax.models.resnet import ResNet

POOLS = {"mean": ResNet.pool, "quadrants": CNN.pool}


def maps_of(n=3, h=6, w=5, k=4, seed=0):
    return np.random.default_rng(seed).random((n, h, w, k), np.float32)


def weights_of(pool, classes=7, k=4, seed=1):
    d = pool(jnp.zeros((1, 6, 5, k))).shape[1]
    return np.random.default_rng(seed).standard_normal((d, classes)).astype(np.float32)


def test_class_map_of_a_mean_is_the_class_activation_map():
    """CAM: relu(Σ_k w_kc A_k), up to its scale."""
    maps, weights, classes = maps_of(), weights_of(ResNet.pool), np.array([2, 6, 2])
    weights[0] += 1  # so that something speaks for every class
    cam = np.maximum(np.einsum("nhwk,kn->nhw", maps, weights[:, classes]), 0)
    found = saliency.class_map(maps, ResNet.pool, weights, classes)
    np.testing.assert_allclose(found, cam / cam.max(axis=(1, 2), keepdims=True), atol=1e-5)
    # And Grad-CAM: channels weighted by the mean of the logit's gradient.
    logits = lambda x: jnp.sum((ResNet.pool(x) @ weights)[jnp.arange(3), classes])  # noqa: E731
    alpha = np.mean(jax.grad(logits)(maps), axis=(1, 2), keepdims=True)
    grad_cam = np.maximum(np.sum(alpha * maps, axis=-1), 0)
    np.testing.assert_allclose(found, grad_cam / grad_cam.max(axis=(1, 2), keepdims=True), atol=1e-5)


@pytest.mark.parametrize("name", POOLS)
def test_contributions_add_up_to_the_score(name):
    """Maps of odd sides too, whose quadrants overlap."""
    pool, maps = POOLS[name], maps_of()
    directions = weights_of(pool)[:, :3].T
    found = saliency.contributions(maps, pool, directions)
    expected = np.sum(np.asarray(pool(maps)) * directions, axis=1)
    np.testing.assert_allclose(np.sum(found, axis=(1, 2)), expected, rtol=1e-4, atol=1e-5)


def test_similarity_maps_of_a_mean():
    """Place by place the product with the other image's features (Stylianou et al., equation 2)."""
    a, b = maps_of(), maps_of(seed=5)
    for found, own, other in zip(saliency.similarity_maps(a, b, ResNet.pool), (a, b), (b, a), strict=True):
        expected = np.einsum("nhwk,nk->nhw", own, other.mean(axis=(1, 2)))
        np.testing.assert_allclose(found, expected / expected.max(axis=(1, 2), keepdims=True), atol=1e-5)


def photo_with_squares(places, side=5, size=32):
    """Dim noise with a bright square at (row, column) of each image, `[n, size, size, 1]`."""
    images = 0.2 * np.random.default_rng(0).random((len(places), size, size, 1), np.float32)
    for image, (row, column) in zip(images, places, strict=True):
        image[row : row + side, column : column + side] = 1
    return images


def one_layer_net(images):
    """A detector of bright squares, one of edges and one of darkness, at half the resolution."""
    bright = np.full((3, 3), 1 / 9)
    edge = np.array([[-1, 0, 1]] * 3) / 3
    kernel = np.stack([bright, edge, -bright], axis=-1)[:, :, None, :].astype(np.float32)
    dimensions = ("NHWC", "HWIO", "NHWC")
    x = jax.lax.conv_general_dilated(images, kernel, (2, 2), "SAME", dimension_numbers=dimensions)
    return jax.nn.relu(x + jnp.array([-0.5, 0, 0.3]).reshape(1, 1, 1, 3))


def inside(heat, places, side=5):
    """Whether the maximum of every heat map lies in its square."""
    for one, (row, column) in zip(np.asarray(heat), places, strict=True):
        y, x = np.unravel_index(np.argmax(one), one.shape)
        if not (row <= y < row + side and column <= x < column + side):
            return False
    return True


@pytest.mark.parametrize("name", POOLS)
def test_planted_object_is_found(name):
    pool, places = POOLS[name], [(3, 4), (20, 9), (12, 25), (26, 26)]
    maps = one_layer_net(photo_with_squares(places))
    d = pool(maps).shape[1]
    bright = (np.arange(d) % 3 == 0).astype(np.float32)
    weights = np.stack([-bright, bright], axis=1)  # class 1: there is a bright square
    heat = saliency.heat(saliency.class_map(maps, pool, weights, np.ones(4, int)), 32)
    assert heat.shape == (4, 32, 32)
    assert inside(heat, places)
    # Against: nothing speaks for class 0, and a map of nothing is 0, not NaN.
    nothing = saliency.class_map(maps, pool, weights, np.zeros(4, int))
    np.testing.assert_array_equal(nothing, np.zeros_like(nothing))


def test_what_two_images_share_is_found():
    """Both have a bright square, at other places; edges count less, and what is dark does not."""
    here, there = [(3, 4), (20, 9)], [(15, 20), (2, 25)]
    channels = np.array([1, 0.1, 0], np.float32).reshape(1, 1, 1, 3)
    a, b = (channels * one_layer_net(photo_with_squares(places)) for places in (here, there))
    found = saliency.similarity_maps(a, b, ResNet.pool)
    for one, places in zip(found, (here, there), strict=True):
        assert inside(saliency.heat(one, 32), places)


def test_of_zero_maps():
    zero = jnp.zeros((2, 4, 4, 3))
    for found in saliency.similarity_maps(zero, zero, ResNet.pool):
        np.testing.assert_array_equal(found, np.zeros((2, 4, 4)))


def test_heat_keeps_the_range():
    maps = maps_of(2)[..., 0]
    heat = np.asarray(saliency.heat(maps, 40))
    assert heat.min() >= maps.min() - 1e-6
    assert heat.max() <= maps.max() + 1e-6
    np.testing.assert_allclose(saliency.heat(np.full((1, 3, 3), 0.4, np.float32), 10), 0.4, atol=1e-6)


@pytest.mark.parametrize(
    "architecture",
    [
        {"encoder": "cnn", "width": 0.25},
        {"encoder": "resnet", "depth": 18, "blocks": (1,), "width": 0.125, "stem": "cifar"},
    ],
    ids=["cnn", "resnet"],
)
def test_pooled_last_maps_are_the_features(architecture):
    fields = {"projection": "none", "projection_layers": 0, "projection_dim": 8, "dtype": "float32"}
    model = simclr.create({**default().model, **architecture, **fields})

    @jax.jit
    def endpoints(images):
        variables = model.init(jax.random.key(0), images, train=False, method="features")
        return model.apply(variables, images, method="endpoints")

    ends = endpoints(np.random.default_rng(0).random((2, 20, 20, 1), np.float32))
    found = model.encoder.pool(ends[model.encoder.last])
    np.testing.assert_allclose(found, ends["final_avg_pool"], rtol=1e-5, atol=1e-6)
