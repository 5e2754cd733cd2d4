"""What is hidden from an encoder, and the losses on it: counts, formulas, and what must have no influence."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys
from conftest import tiny_config, tiny_splits

from simclr_jax import masking, metrics, registry, sharding, step, train
from simclr_jax.config import checks
from simclr_jax.errors import SimclrError
from simclr_jax.losses import masked
from simclr_jax.tasks import create_task

TOY = {"model__encoder": "toy", "model__decoder__channels": 8, "loss__masked__block": 3}
VIT = {
    "model__encoder": "vit", "model__vit__width": 16, "model__vit__depth": 1, "model__vit__heads": 2,
    "model__vit__patch": 4, "model__vit__pool": "mean",
    "model__decoder__variant": "tokens", "model__decoder__channels": 32,
}  # fmt: skip


@pytest.fixture
def toy(monkeypatch):
    """An encoder without BatchNorm."""
    monkeypatch.setitem(registry.ENCODERS, "toy", registry.Entry("toys:create", toys.ENCODER_FACTS))


def prepared(**fields):
    """(task, state, a batch of the pipeline) of a small run."""
    config, mesh = tiny_config(**fields), sharding.make_mesh(1)
    checks.validate(config)
    task = create_task(config, tiny_splits(), mesh)
    optimizer, _ = train.build_optimizer(config, 80, 12, task)
    state = train.init_state(task, optimizer, 0, mesh)
    return task, state, sharding.put_batch(next(task.input(0)), mesh)


def keys(m, seed=0):
    return jax.random.split(jax.random.key(seed), m)


@pytest.mark.parametrize(
    ("patches", "ratio", "count"), [(9, 0.5, 4), (49, 0.75, 12), (64, 0.5, 32), (4, 0.9, 1)]
)
def test_kept_patches(patches, ratio, count):
    """Ascending, each once, as many as asked for; whatever the other images of the batch are."""
    kept = np.asarray(masking.kept_patches(keys(6), patches, ratio))
    assert kept.shape == (6, count)
    assert kept.dtype == np.int32
    assert np.all(np.diff(kept, axis=1) > 0)
    assert kept.min() >= 0
    assert kept.max() < patches
    np.testing.assert_array_equal(masking.kept_patches(keys(6)[2:4], patches, ratio), kept[2:4])


def test_all_patches_are_hidden_as_often():
    """4,000 draws of 8 of 16; the deviation of a share is 0.008."""
    kept = np.asarray(masking.kept_patches(keys(4000), 16, 0.5))
    shares = np.bincount(kept.ravel(), minlength=16) / 4000
    assert np.all(np.abs(shares - 0.5) < 0.04)


def test_hidden_pixels():
    kept = jnp.int32([[0, 5], [2, 3]])
    hidden = np.asarray(masking.hidden_by(kept, (2, 3), (4, 2)))
    assert hidden.shape == (2, 8, 6, 1)
    for m, i, j in np.ndindex(2, 8, 6):
        assert hidden[m, i, j, 0] == (i // 4 * 3 + j // 2 not in np.asarray(kept[m]))


@pytest.mark.parametrize(("block", "ratio"), [(4, 0.5), (5, 0.5), (12, 0.5), (2, 0.01)])
def test_blocks(block, ratio):
    """A grid over 12 × 9 pixels, cut at its edges."""
    hidden = np.asarray(masking.blocks(keys(5), (12, 9, 3), block, ratio))
    rows, columns = -(-12 // block), -(-9 // block)
    corners = hidden[:, ::block, ::block, 0]
    assert corners.shape == (5, rows, columns)
    expected = min(max(1, round(rows * columns * ratio)), rows * columns - 1)
    np.testing.assert_array_equal(corners.sum(axis=(1, 2)), expected)
    full = np.repeat(np.repeat(corners, block, 1), block, 2)[:, :12, :9]
    np.testing.assert_array_equal(hidden[..., 0], full)
    np.testing.assert_array_equal(masking.blocks(keys(5)[1:2], (12, 9, 3), block, ratio), hidden[1:2])


def test_hidden_pixels_get_the_mean_of_the_visible():
    images = np.random.default_rng(0).random((3, 12, 8, 2), np.float32)
    hidden = np.asarray(masking.blocks(keys(3), (12, 8), 4, 0.5))
    filled = np.asarray(masking.filled(images, hidden))
    for image, mask, found in zip(images, hidden[..., 0] > 0, filled, strict=True):
        np.testing.assert_array_equal(found[~mask], image[~mask])
        expected = np.broadcast_to(image[~mask].mean(axis=0, dtype=np.float64), found[mask].shape)
        np.testing.assert_allclose(found[mask], expected, rtol=1e-5)
    slopes = jax.grad(lambda x: jnp.sum(masking.filled(x, hidden) ** 2))(images)
    np.testing.assert_array_equal(slopes * hidden, 0)
    assert np.isfinite(masking.filled(images, np.ones_like(hidden))).all()


def test_noise():
    """Levels uniform in [0, 0.05]; the noise of an image has its level as deviation."""
    noise, level = masking.noise(keys(400), (20, 20, 1), 0.05, jnp.float32)
    assert np.all((level >= 0) & (level < 0.05))
    assert abs(np.mean(level) - 0.025) < 0.003
    np.testing.assert_allclose(np.std(noise, axis=(1, 2, 3)), level, rtol=0.2)
    np.testing.assert_allclose(np.mean(noise), 0, atol=5e-4)
    again, _ = masking.noise(keys(400)[7:9], (20, 20, 1), 0.05, jnp.float32)
    np.testing.assert_array_equal(again, noise[7:9])


def test_the_level_as_sines_and_cosines():
    found = masked.waves(jnp.float32([0, 1, 750.5]), 8)
    angles = np.outer([0, 1, 750.5], 10_000.0 ** -np.array([0, 0.25, 0.5, 0.75]))
    np.testing.assert_allclose(found, np.hstack([np.sin(angles), np.cos(angles)]), atol=1e-4)


def test_normalised_patches():
    x = np.random.default_rng(0).random((2, 6, 8, 3))
    with jax.enable_x64(True):
        found = masked.normalized(jnp.asarray(x), (3, 4))
    for m, i, j in np.ndindex(2, 2, 2):
        rows, columns = slice(3 * i, 3 * i + 3), slice(4 * j, 4 * j + 4)
        patch = x[m, rows, columns]
        expected = (patch - patch.mean()) / np.sqrt(patch.var(ddof=1) + 1e-6)
        np.testing.assert_allclose(found[m, rows, columns], expected, rtol=1e-10)


# ---- the term of the loss --------------------------------------------------------------------------------


@pytest.mark.parametrize("fields", [TOY, VIT], ids=["blocks", "patches"])
def test_what_is_hidden_has_no_influence(toy, fields):
    """On what the encoder computes; and the loss of what is hidden reads nothing else of the target."""
    task, state, batch = prepared(loss__name="nt_xent+masked", loss__masked__noise=0.0, **fields)
    term = task.objectives["masked"]

    def forward(views):
        outputs, _ = task.forward(
            state.params, state.model_state, {**batch, "views": views}, jax.random.key(0), 0
        )
        return outputs

    def of_features(views):
        outputs = forward(views)
        return jnp.sum(outputs["features"] ** 2), outputs

    (_, outputs), slopes = jax.jit(jax.value_and_grad(of_features, has_aux=True))(batch["views"])

    def of_target(view):
        own = state.params["objectives"]["masked"]
        return jnp.sum(term.loss(own, {}, {**outputs, "view": view}, batch, 0)[0])

    of_view = jax.jit(jax.grad(of_target))(outputs["view"])
    if "kept" in outputs:
        hidden = masking.hidden_by(outputs["kept"].reshape(32, -1), (3, 3), (4, 4)).reshape(16, 2, 12, 12, 1)
    else:
        hidden = outputs["hidden"]
    assert 0.4 < np.mean(hidden) < 0.6
    np.testing.assert_array_equal(slopes * hidden, 0)
    np.testing.assert_array_equal(of_view * (1 - hidden), 0)
    assert np.all(np.any(slopes, axis=(2, 3, 4)))
    assert np.all(np.any(of_view, axis=(2, 3, 4)))


def test_the_loss_of_can():
    """0.67 · the error of hidden patches + 0.3 · that of the noise of visible ones, from the decoder's images."""
    with jax.enable_x64(True):
        task, state, batch = prepared(loss__name="nt_xent+masked", model__dtype="float64", **VIT)
        outputs, _ = jax.jit(task.forward)(state.params, state.model_state, batch, jax.random.key(0), 0)
        term, own = task.objectives["masked"], state.params["objectives"]["masked"]
        images = []  # that the decoder makes: the losses are told apart by what they compare it with
        with pytest.MonkeyPatch.context() as patched:
            patched.setitem(
                masked.LOSSES, "gaussian", lambda p, x, m: images.append((p, x, m)) or p[:, 0, 0, 0]
            )
            term.loss(own, {}, outputs, batch, 0)
        found, told = jax.jit(lambda outputs: term.loss(own, {}, outputs, batch, 0))(outputs)
    (predicted, target, hidden), (same, noise, visible) = [[np.asarray(e) for e in each] for each in images]
    np.testing.assert_array_equal(predicted, same)
    np.testing.assert_array_equal(noise, np.asarray(outputs["noise"]).reshape(noise.shape))
    np.testing.assert_array_equal(visible, 1 - hidden)
    np.testing.assert_array_equal(hidden.sum(axis=(1, 2, 3)), 5 * 16)  # round(9 / 2) = 4 of 9 stay
    view = jnp.asarray(outputs["view"]).reshape(target.shape)
    with jax.enable_x64(True):
        np.testing.assert_allclose(target, masked.normalized(view.astype(jnp.float64), (4, 4)))
    of_patches = np.sum((predicted - target) ** 2 * hidden, axis=(1, 2, 3)) / hidden.sum(axis=(1, 2, 3))
    of_noise = np.sum((predicted - noise) ** 2 * visible, axis=(1, 2, 3)) / visible.sum(axis=(1, 2, 3))
    expected = (0.67 * of_patches + 0.3 * of_noise).reshape(16, 2).mean(axis=1)
    np.testing.assert_allclose(found, expected, rtol=1e-10)
    np.testing.assert_allclose(told["masked_noise"], of_noise.reshape(16, 2).mean(axis=1), rtol=1e-10)


@pytest.mark.parametrize(
    ("name", "fields"),
    [("nt_xent+reconstruction+masked", TOY), ("nt_xent+masked", VIT)],
    ids=["blocks", "patches"],
)
def test_microbatches_have_the_gradient_of_the_whole(toy, name, fields):
    with jax.enable_x64(True):
        task, state, batch = prepared(
            loss__name=name, model__dtype="float64", model__projection="none", **fields
        )
        rng = jax.random.key(0)
        whole = jax.jit(lambda s, b: step.whole_gradient(task, s, b, rng))(state, batch)
        parts = jax.jit(lambda s, b: step.cached_gradient(task, s, b, rng, 4))(state, batch)
        for one, other in zip(jax.tree.leaves(whole[:2]), jax.tree.leaves(parts[:2]), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-10, atol=1e-13)
        assert all(np.any(leaf) for leaf in jax.tree.leaves(whole[0]["objectives"]["masked"]["out"]))


@pytest.mark.parametrize(
    ("name", "fields"),
    [("nt_xent+reconstruction+masked", TOY), pytest.param("nt_xent+masked", VIT, marks=pytest.mark.slow)],
    ids=["blocks", "patches"],
)
def test_float64_losses_are_equal_on_one_and_eight_devices(toy, tmp_path, name, fields):
    fields = {**fields, "loss__name": name, "model__dtype": "float64", "train__steps": 8}
    with jax.enable_x64(True):
        for devices in (1, 8):
            config = tiny_config(mesh__devices=devices, **fields)
            train.run(config, tmp_path / str(devices), splits=tiny_splits())
    one, eight = ([*metrics.read_rows(tmp_path / str(devices))] for devices in (1, 8))
    one, eight = ([row for row in rows if "loss" in row] for rows in (one, eight))
    assert len(one) == 8
    for a, b in zip(one, eight, strict=True):
        for key in ("loss", "masked_loss", "grad_norm", "probe_loss"):
            assert a[key] == pytest.approx(b[key], rel=1e-9)


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"loss__masked__ratio": 1.0}, r"config\.loss\.masked\.ratio=1\.0: must be above 0 and below 1"),
        ({"loss__masked__block": 12}, r"config\.loss\.masked\.block=12: must be smaller than config\.data\.image"),
        ({"loss__masked__loss": "ssim"}, r"config\.loss\.masked\.loss='ssim': must be one of gaussian, laplace"),
        ({"model__decoder__output": "residual"}, r"config\.model\.decoder\.output='residual': must be unit"),
        ({**VIT, "loss__masked__ratio": 0.01}, r"config\.loss\.masked\.ratio=0\.01: must be larger: it hides none"),
    ],
    ids=["all", "block", "loss", "residual", "none"],
)  # fmt: skip
def test_what_cannot_be(fields, told):
    config = tiny_config(loss__name="nt_xent+masked", **fields)
    with pytest.raises(SimclrError, match=told):
        checks.validate(config)
        create_task(config, tiny_splits(), sharding.make_mesh(1))
