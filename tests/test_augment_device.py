"""Colour and blur on the accelerator, operation by operation against TensorFlow's and as distributions."""

import jax
import jax.numpy as jnp
import numpy as np
import parity
import pytest
from conftest import tiny_config, tiny_splits

from simclr_jax import augment, sharding, train
from simclr_jax.data import host_augment
from simclr_jax.data.tf import load


@pytest.fixture(scope="module")
def tf():
    return load()


@pytest.fixture(scope="module")
def image():
    """Colours of every hue, gray and black pixels, and primary ones, where HSV has corners."""
    x = np.random.default_rng(0).random((24, 20, 3), np.float32)
    x[0, :5] = [[0, 0, 0], [1, 1, 1], [0.5, 0.5, 0.5], [1, 0, 0], [0, 0, 1]]
    x[1, :3] = [[0, 1, 0], [1, 1, 0], [0.3, 0.3, 0.7]]
    return x


def planes(image):
    """An image `[h, w, c]` as planes of one view."""
    return tuple(jnp.asarray(image[None, None, ..., c]) for c in range(image.shape[-1]))


def stacked(found):
    return np.stack([np.asarray(plane)[0, 0] for plane in found], axis=-1)


def adjust(image, operation, **amounts):
    nothing = {"brightness": 1.0, "offset": 0.0, "contrast": 1.0, "saturation": 1.0, "turn": 0.0}
    given = augment.Amounts(**{k: jnp.full((1, 1), v, jnp.float32) for k, v in (nothing | amounts).items()})
    return stacked(augment.adjust(planes(image), jnp.full((1, 1), operation), given))


@pytest.mark.parametrize("amount", [0.0, 0.2, 1.0, 1.8])
def test_contrast_and_saturation(tf, image, amount):
    for name, operation in (("contrast", augment.CONTRAST), ("saturation", augment.SATURATION)):
        expected = getattr(tf.image, f"adjust_{name}")(image, amount)
        found = adjust(image, operation, **{name: amount})
        np.testing.assert_allclose(found, np.clip(expected, 0, 1), atol=1e-5)


@pytest.mark.parametrize("turn", [-0.2, -0.05, 0.0, 0.1, 0.2])
def test_hue(tf, image, turn):
    found = adjust(image, augment.HUE, turn=turn)
    np.testing.assert_allclose(found, tf.image.adjust_hue(image, turn), atol=1e-5)


def test_an_operation_takes_its_own_amount_alone(image):
    """Each view of a batch gets another one; none leaves the image as it is, out of range too."""
    many = tuple(jnp.broadcast_to(plane, (6, 1, *plane.shape[2:])) for plane in planes(3 * image - 1))
    amounts = {"brightness": 0.5, "offset": 0.25, "contrast": 2.0, "saturation": 0.5, "turn": 0.1}
    given = augment.Amounts(**{k: jnp.full((6, 1), v, jnp.float32) for k, v in amounts.items()})
    operations = jnp.asarray([0, 1, 2, 3, -1, 4])[:, None]
    found = np.stack(augment.adjust(many, operations, given), -1)[:, 0]
    x = 3 * image - 1
    mean = x.mean(axis=(0, 1))
    np.testing.assert_allclose(found[0], np.clip(0.5 * x + 0.25, 0, 1), atol=1e-6)
    np.testing.assert_allclose(found[1], np.clip((x - mean) * 2 + mean, 0, 1), atol=1e-5)
    np.testing.assert_array_equal(found[4], x)
    np.testing.assert_array_equal(found[5], x)


def test_grayscale(tf, image):
    expected = host_augment.to_grayscale(tf.constant(image))
    np.testing.assert_allclose(
        np.asarray(augment.to_grayscale(planes(image)))[0, 0], expected[..., 0], atol=1e-6
    )


@pytest.mark.parametrize(("kernel", "sigma"), [(2, 0.1), (9, 1.5), (22, 2.0), (3, 0.7)])
@pytest.mark.parametrize("channels", [1, 3, 5])
def test_blur(tf, image, kernel, sigma, channels):
    image = np.concatenate([image, image], -1)[..., :channels]
    sigmas = jnp.full((1, 1), sigma, jnp.float32)
    found = augment.gaussian_blur(planes(image), sigmas, kernel, jnp.ones((1, 1), bool))
    expected = host_augment.gaussian_blur(tf.constant(image), sigma, kernel)
    np.testing.assert_allclose(stacked(found), expected, atol=1e-6)
    left = augment.gaussian_blur(planes(image), sigmas, kernel, jnp.zeros((1, 1), bool))
    np.testing.assert_array_equal(stacked(left), image)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("brightness", ["v1", "v2"])
def test_jitter_in_every_order(tf, image, brightness, channels):
    """The same numbers give the same image, all four operations and their order included."""
    image = image[..., :channels]

    @jax.jit
    def jitter(planes, u, order):
        amounts = augment.jitter_amounts(u, 1.0, brightness)
        return augment.color_jitter(planes, amounts, order, jnp.ones((1, 1), bool))

    rng = np.random.default_rng(1)
    for _ in range(30):
        u, order = rng.random(4).astype(np.float32), np.float32(rng.random())
        expected = host_augment.color_jitter(tf.constant(image), list(u), order, 1.0, brightness)
        found = jitter(planes(image), jnp.asarray(u)[None, None], jnp.full((1, 1), order))
        np.testing.assert_allclose(stacked(found), expected, atol=1e-4)


def views(n, size=12, channels=3):
    return np.random.default_rng(3).random((n, 2, size, size, channels), np.float32)


def test_a_view_depends_on_seed_position_and_view_alone():
    x = np.repeat(views(1), 8, axis=0)
    position = np.arange(8, dtype=np.uint32)
    whole = jax.jit(lambda x, p: augment.photometric(x, p, 5))(x, position)
    some = jax.jit(lambda x, p: augment.photometric(x, p, 5))(x[:3], position[[6, 1, 4]])
    np.testing.assert_allclose(some, whole[jnp.asarray([6, 1, 4])], atol=1e-6)
    by_batch = sharding.by_batch(sharding.make_mesh(8))
    placed = jax.device_put((x, position), by_batch)
    compiled = jax.jit(lambda x, p: augment.photometric(x, p, 5)).lower(*placed).compile()
    np.testing.assert_allclose(compiled(*placed), whole, atol=1e-6)
    text = compiled.as_text()
    assert not any(op in text for op in ("all-gather", "all-reduce", "all-to-all", "collective-permute"))
    other = augment.photometric(x, position, 6)
    assert not np.allclose(other, whole)
    assert len({view.tobytes() for pair in np.asarray(whole) for view in pair}) > 12  # few stay as they are


def test_probabilities():
    """Of 4,000 views of one image: jittered 0.8, gray 0.2, blurred 0.5, each by itself."""
    x = np.repeat(views(1, size=10)[:, :1], 4000, axis=0)
    position = np.arange(4000, dtype=np.uint32)

    def share(changed, **fields):
        options = {"jitter": 0.0, "grayscale": 0.0, "blur": 0.0, "blur_kernel": 0.3} | fields
        out = jax.jit(lambda x, p: augment.photometric(x, p, 0, **options))(x, position)
        return np.mean([changed(view[0], x[0, 0]) for view in np.asarray(out)])

    differs = lambda a, b: not np.allclose(a, b, atol=1e-6)  # noqa: E731
    gray = lambda a, b: np.allclose(a[..., 0], a[..., 1], atol=1e-6)  # noqa: E731
    assert share(differs, jitter=0.8) == pytest.approx(0.8, abs=0.02)
    assert share(gray, grayscale=0.2) == pytest.approx(0.2, abs=0.02)
    assert share(differs, blur=0.5, blur_sigma=(1.0, 2.0)) == pytest.approx(0.5, abs=0.025)
    assert share(differs) == 0


def test_distribution_is_that_of_the_host():
    """Means and spreads of the jittered brightness and contrast agree; the keys are others."""
    tf = load()
    x = views(1, size=10)[0, 0]
    options = host_augment.Options(crop_area=(1.0, 1.0), crop_aspect=(1.0, 1.0), flip=0.0, blur=0.0)

    def host(i):
        return host_augment.random_view(tf.constant(x), host_augment.view_key(0, i, 0), 10, options)

    theirs = np.stack(list(tf.data.Dataset.range(2000).map(host).as_numpy_iterator()))
    many = np.repeat(x[None, None], 2000, axis=0)
    position = np.arange(2000, dtype=np.uint32)
    ours = np.asarray(jax.jit(lambda x, p: augment.photometric(x, p, 0, blur=0.0))(many, position))[:, 0]
    for statistic in (lambda v: v.mean(axis=(1, 2, 3)), lambda v: v.std(axis=(1, 2, 3))):
        # Rounded: a fifth of the views are the image itself.
        assert parity.ks_distance(statistic(ours).round(4), statistic(theirs).round(4)) < 0.05


@pytest.mark.slow
def test_a_run_with_colour_on_the_accelerator(tmp_path):
    """The host sends bytes; the figure shows what the encoder sees."""
    splits = tiny_splits(channels=3)
    fields = {"augment__device": "photometric", "data__channels": 3, "train__steps": 6, "eval__figures": True}
    config = tiny_config(**fields, augment__blur=0.5)
    first = train.run(config, tmp_path / "first", splits=splits)
    assert (tmp_path / "first" / "figures" / "views.png").exists()
    host = train.run(tiny_config(**{**fields, "augment__device": "none"}), tmp_path / "host", splits=splits)
    assert host["last"]["loss"] != first["last"]["loss"]
