"""Losses and scores of images against their formulas in float64, scikit-image and TensorFlow."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys
from conftest import tiny_config, tiny_splits

from simclr_jax import registry, sharding
from simclr_jax.config import checks
from simclr_jax.errors import SimclrError
from simclr_jax.losses import reconstruction
from simclr_jax.tasks import create_task

# scikit-image 0.26.0 on `pair(*shape)` in float64: structural_similarity(y, x, gaussian_weights=True,
# sigma=1.5, use_sample_covariance=False, data_range=1, channel_axis=-1) and peak_signal_noise_ratio(x, y,
# data_range=1). dm-pix 0.4.5 has the same SSIM in float32 to 1e-6.
EXPECTED = [
    ((28, 28, 1, 0), 0.7843135531385291, 25.486678542244043),
    ((32, 32, 3, 1), 0.7559073895866901, 25.505651641817213),
    ((12, 40, 3, 2), 0.867997317623482, 25.47655827009041),
    ((64, 48, 1, 3), 0.636013668995406, 25.492551943053726),
]

# tf.image.ssim_multiscale(y, x, 1.0) of TensorFlow 2.21.0 on pair(178, 190, 3, 5) in float32.
TENSORFLOW_MS_SSIM = 0.9095284938812256


def pair(h, w, c, seed):
    """(a smooth image, the same with noise), float64 in [0, 1]."""
    rng = np.random.default_rng(seed)
    x = np.cumsum(np.cumsum(rng.random((h, w, c)), 0), 1)
    x = (x - x.min()) / (x.max() - x.min())
    return np.clip(0.8 * x + 0.1 * rng.random((h, w, c)), 0, 1), x


def batch(dtype, h=14, w=16, c=3):
    """Three pairs, and a mask."""
    predicted, target = (np.stack(each) for each in zip(*(pair(h, w, c, s) for s in range(3)), strict=True))
    mask = (np.random.default_rng(9).random((3, h, w, 1)) < 0.4).astype(dtype)
    return predicted.astype(dtype), target.astype(dtype), mask


def window(side):
    length = min(11, side - (side + 1) % 2)
    line = np.exp(-((np.arange(length) - length // 2) ** 2) / (2 * 1.5**2))
    return np.outer(line, line) / np.sum(line) ** 2


def maps(x, y):
    """(luminance, contrast) of `[h, w]`, window by window in float64."""
    weights = window(min(x.shape))
    k = len(weights)
    found = np.zeros((2, x.shape[0] - k + 1, x.shape[1] - k + 1))
    for i, j in np.ndindex(found.shape[1:]):
        a, b = x[i : i + k, j : j + k], y[i : i + k, j : j + k]
        ma, mb = np.sum(weights * a), np.sum(weights * b)
        va, vb = np.sum(weights * (a - ma) ** 2), np.sum(weights * (b - mb) ** 2)
        vab = np.sum(weights * (a - ma) * (b - mb))
        found[0, i, j] = (2 * ma * mb + 0.01**2) / (ma**2 + mb**2 + 0.01**2)
        found[1, i, j] = (2 * vab + 0.03**2) / (va + vb + 0.03**2)
    return found


def ssim_formula(x, y, mask):
    found = np.stack([np.prod(maps(x[..., c], y[..., c]), axis=0) for c in range(x.shape[-1])], -1)
    edge = (x.shape[0] - found.shape[0]) // 2
    central = mask[edge : edge + found.shape[0], edge : edge + found.shape[1]]
    return np.sum(found * central) / (np.sum(central) * x.shape[-1])


def ms_ssim_formula(x, y):
    """Of sides that can be halved."""
    count = {28: 2, 32: 2, 48: 3}[min(x.shape[:2])]
    beta = np.array([0.0448, 0.2856, 0.3001, 0.2363, 0.1333])[:count]
    scores = []
    for c in range(x.shape[-1]):
        a, b, score = x[..., c], y[..., c], 1.0
        for i in range(count):
            luminance, contrast = maps(a, b)
            factor = np.mean(luminance * contrast if i == count - 1 else contrast)
            score *= factor ** (beta[i] / beta.sum())
            a, b = (z.reshape(len(z) // 2, 2, -1, 2).mean(axis=(1, 3)) for z in (a, b))
        scores.append(score)
    return np.mean(scores)


FORMULAS = {
    "gaussian": lambda a, x, m: np.sum((a - x) ** 2 * m) / (m.sum() * x.shape[-1]),
    "laplace": lambda a, x, m: np.sum(np.abs(a - x) * m) / (m.sum() * x.shape[-1]),
    "bernoulli": lambda a, x, m: (
        -np.sum(m * (x * np.log(1 / (1 + np.exp(-a))) + (1 - x) * np.log(1 / (1 + np.exp(a)))))
        / (m.sum() * x.shape[-1])
    ),
    "ssim": lambda a, x, m: 1 - ssim_formula(a, x, m),
    "psnr": lambda a, x, m: 10 * np.log10(np.sum((a - x) ** 2 * m) / (m.sum() * x.shape[-1]) + 1e-8),
}


@pytest.mark.parametrize("name", sorted(FORMULAS))
def test_formulas(name):
    """With a mask, in float64 and in float32."""
    a, x, mask = batch(np.float64)
    a = 8 * a - 4 if name == "bernoulli" else a
    expected = [FORMULAS[name](*each) for each in zip(a, x, mask, strict=True)]
    low = [jnp.float32(each) for each in (a, x, mask)]
    np.testing.assert_allclose(reconstruction.LOSSES[name](*low), expected, rtol=2e-5)
    with jax.enable_x64(True):
        found = reconstruction.LOSSES[name](*map(jnp.asarray, (a, x, mask)))
        assert found.dtype == jnp.float64
        np.testing.assert_allclose(found, expected, rtol=1e-10)


@pytest.mark.parametrize("name", reconstruction.LOSSES)
def test_masks_and_types(name):
    """A mask of ones is none; one of zeros gives no infinity; 16 bits are computed in 32."""
    loss = reconstruction.LOSSES[name]
    a, x, mask = batch(np.float32)
    np.testing.assert_allclose(loss(a, x, np.ones_like(mask)), loss(a, x), rtol=1e-6)
    nothing = loss(a, x, np.zeros_like(mask))
    assert np.all(np.isfinite(nothing))
    assert name.endswith("ssim") or not np.any(nothing)
    assert loss(jnp.bfloat16(a), jnp.bfloat16(x)).dtype == jnp.float32
    assert loss(a, x).shape == (3,)


@pytest.mark.parametrize("name", reconstruction.LOSSES)
def test_gradients_against_differences(name):
    with jax.enable_x64(True):
        a, x, mask = (jnp.asarray(each[:1, :12, :12, :1]) for each in batch(np.float64))
        loss = jax.jit(lambda a: reconstruction.LOSSES[name](a, x, mask)[0])
        gradient = jax.jit(jax.grad(loss))(a)
        assert np.any(gradient)
        for i, j in ((0, 0), (5, 6), (6, 6), (11, 3)):
            step = jnp.zeros_like(a).at[0, i, j].set(1e-6)
            slope = (loss(a + step) - loss(a - step)) / 2e-6
            np.testing.assert_allclose(gradient[0, i, j, 0], slope, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("name", reconstruction.LOSSES)
def test_gradients_are_finite_where_formulas_are_not_smooth(name):
    """Equal images, constant ones, and opposite ones."""
    x = jnp.float32(batch(np.float32)[1])
    for a in (x, jnp.zeros_like(x), 1 - x):
        gradient = jax.grad(lambda a: jnp.sum(reconstruction.LOSSES[name](a, x)))(a)
        assert np.all(np.isfinite(gradient))


def test_the_slope_of_decibels_is_bounded():
    """Images that are nearly right do not drown the others of the batch."""
    x = jnp.float32(np.random.default_rng(0).random((1, 48, 48, 3)))
    norms = []
    for error in (1e-2, 1e-3, 1e-4, 1e-5, 1e-6):
        gradient = jax.grad(lambda a: jnp.sum(reconstruction.LOSSES["psnr"](a, x)))(x + error)
        norms.append(float(jnp.linalg.norm(gradient)))
    assert max(norms) < 600
    assert norms[-1] < norms[2]


@pytest.mark.parametrize(("shape", "ssim", "psnr"), EXPECTED)
def test_scores_of_scikit_image(shape, ssim, psnr):
    y, x = pair(*shape)
    with jax.enable_x64(True):
        scores = jax.jit(lambda y, x: (reconstruction.ssim(y, x), reconstruction.psnr(y, x)))
        np.testing.assert_allclose(np.ravel(scores(y[None], x[None])), [ssim, psnr], rtol=1e-12)
    np.testing.assert_allclose(scores(*np.float32([[y], [x]]))[0], [ssim], rtol=1e-5)


@pytest.mark.parametrize("shape", [(28, 32, 1), (48, 48, 2)])
def test_ms_ssim_of_small_images(shape):
    y, x = pair(*shape, 4)
    with jax.enable_x64(True):
        np.testing.assert_allclose(
            jax.jit(reconstruction.ms_ssim)(y[None], x[None]), [ms_ssim_formula(y, x)], rtol=1e-10
        )


def test_ms_ssim_of_tensorflow():
    """Five scales, with odd sides on the way."""
    y, x = (np.float32(each[None]) for each in pair(178, 190, 3, 5))
    np.testing.assert_allclose(jax.jit(reconstruction.ms_ssim)(y, x), [TENSORFLOW_MS_SSIM], rtol=2e-5)


@pytest.mark.parametrize(("side", "count"), [(8, 1), (21, 1), (22, 2), (28, 2), (64, 3), (176, 5), (512, 5)])
def test_scales(side, count):
    assert reconstruction.scales((side, side + 1)) == count


def test_scores_of_equal_images():
    x = batch(np.float32)[1]
    np.testing.assert_allclose(reconstruction.ssim(x, x), 1, rtol=1e-6)
    np.testing.assert_allclose(reconstruction.ms_ssim(x, x), 1, rtol=1e-6)
    np.testing.assert_allclose(reconstruction.psnr(x, x), 100)
    small = x[:, :6, :5]
    np.testing.assert_allclose(reconstruction.ssim(small, small), 1, rtol=1e-6)


# ---- the term of the loss --------------------------------------------------------------------------------


@pytest.mark.parametrize(("loss", "target"), [("laplace", "view"), ("bernoulli", "clean")])
def test_the_term(monkeypatch, loss, target):
    """Weight times the mean over the views, of images that are compared with the target alone."""
    monkeypatch.setitem(registry.ENCODERS, "toy", registry.Entry("toys:create", toys.ENCODER_FACTS))
    config = tiny_config(
        model__encoder="toy", model__decoder__channels=8, augment__device="photometric",
        loss__name="nt_xent+reconstruction", loss__reconstruction__weight=3.0,
        loss__reconstruction__loss=loss, loss__reconstruction__target=target,
    )  # fmt: skip
    checks.validate(config)
    term = create_task(config, tiny_splits(), sharding.make_mesh(1)).objectives["reconstruction"]
    assert term.needs == ("tokens", target)
    assert term.scope == "rows"
    rng = np.random.default_rng(0)
    outputs = {"tokens": rng.standard_normal((2, 2, 3, 3, 24), np.float32)}
    outputs[target] = rng.random((2, 2, 12, 12, 1), np.float32)
    compared, of_images = [], reconstruction.LOSSES[loss]

    def spied(*images):
        compared.append(images)
        return of_images(*images)

    monkeypatch.setitem(reconstruction.LOSSES, loss, spied)

    @jax.jit
    def run(outputs):
        return term.loss(term.init(jax.random.key(0))[0], {}, outputs, {}, 0), compared[0]

    (found, told), (images, x) = run(outputs)
    np.testing.assert_array_equal(x, outputs[target].reshape(4, 12, 12, 1))
    expected = [
        FORMULAS[loss](*each, np.ones((12, 12, 1))) for each in np.float64([images, x]).swapaxes(0, 1)
    ]
    np.testing.assert_allclose(found, 3 * np.mean(np.reshape(expected, (2, 2)), axis=1), rtol=1e-5)
    shown = 1 / (1 + np.exp(-np.float64(images))) if loss == "bernoulli" else np.float64(images)
    assert np.all((shown > 0) & (shown < 1))
    decibels = -10 * np.log10(np.mean((shown - x) ** 2, axis=(1, 2, 3)))
    np.testing.assert_allclose(told["reconstruction_psnr"], decibels.reshape(2, 2).mean(axis=1), rtol=1e-5)


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"loss__reconstruction__target": "clean"}, r"target='clean': needs config\.augment\.device"),
        ({"loss__reconstruction__loss": "l2"}, r"reconstruction\.loss='l2': must be one of gauss"),
        ({"model__decoder__output": "residual"}, r"decoder\.output='residual': must be unit for loss\.name="),
    ],
    ids=["clean", "loss", "residual"],
)  # fmt: skip
def test_fields_are_checked(fields, told):
    with pytest.raises(SimclrError, match=told):
        checks.validate(tiny_config(loss__name="nt_xent+reconstruction", **fields))
