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
from simclr_jax.models.decoder import Tokens
from simclr_jax.state import TrainState
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


def prepared(batch=8, **fields):
    """(task, state, a batch) of a small run; nothing of it is compiled for training."""
    config, mesh = tiny_config(**fields), sharding.make_mesh(1)
    checks.validate(config)
    task = create_task(config, tiny_splits(), mesh)

    @jax.jit
    def init():
        variables = task.init(jax.random.key(0))
        own, extra = train.init_objectives(task, 0)
        return TrainState(
            jnp.int32(0), variables.pop("params") | {step.OBJECTIVES: own}, variables, (), extra
        )

    views = np.random.default_rng(0).random((batch, 2, 12, 12, 1), np.float32)
    numbers = np.arange(batch)
    return task, init(), {"views": views, "label": numbers % 4, "position": numbers.astype(np.uint32)}


def keys(m, seed=0):
    return jax.random.split(jax.random.key(seed), m)


kept_patches = jax.jit(masking.kept_patches, static_argnums=(1, 2))
blocks = jax.jit(masking.blocks, static_argnums=(1, 2, 3))
noise_of = jax.jit(masking.noise, static_argnums=(1, 2, 3))
filled = jax.jit(masking.filled)


@pytest.mark.parametrize(
    ("patches", "ratio", "count"), [(9, 0.5, 4), (49, 0.75, 12), (64, 0.5, 32), (4, 0.9, 1)]
)
def test_kept_patches(patches, ratio, count):
    """Ascending, each once, as many as asked for; whatever the other images of the batch are."""
    kept = np.asarray(kept_patches(keys(6), patches, ratio))
    assert kept.shape == (6, count)
    assert kept.dtype == np.int32
    assert np.all(np.diff(kept, axis=1) > 0)
    assert kept.min() >= 0
    assert kept.max() < patches
    np.testing.assert_array_equal(kept_patches(keys(6)[2:4], patches, ratio), kept[2:4])


def test_all_patches_are_hidden_as_often():
    """4,000 draws of 8 of 16; the deviation of a share is 0.008."""
    kept = np.asarray(kept_patches(keys(4000), 16, 0.5))
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
    hidden = np.asarray(blocks(keys(5), (12, 9, 3), block, ratio))
    rows, columns = -(-12 // block), -(-9 // block)
    corners = hidden[:, ::block, ::block, 0]
    assert corners.shape == (5, rows, columns)
    expected = min(max(1, round(rows * columns * ratio)), rows * columns - 1)
    np.testing.assert_array_equal(corners.sum(axis=(1, 2)), expected)
    full = np.repeat(np.repeat(corners, block, 1), block, 2)[:, :12, :9]
    np.testing.assert_array_equal(hidden[..., 0], full)
    np.testing.assert_array_equal(blocks(keys(5)[1:2], (12, 9, 3), block, ratio), hidden[1:2])


def test_hidden_pixels_get_the_mean_of_the_visible():
    images = np.random.default_rng(0).random((3, 12, 8, 2), np.float32)
    hidden = np.asarray(blocks(keys(3), (12, 8), 4, 0.5))
    found = np.asarray(filled(images, hidden))
    for image, mask, one in zip(images, hidden[..., 0] > 0, found, strict=True):
        np.testing.assert_array_equal(one[~mask], image[~mask])
        expected = np.broadcast_to(image[~mask].mean(axis=0, dtype=np.float64), one[mask].shape)
        np.testing.assert_allclose(one[mask], expected, rtol=1e-5)
    slopes = jax.jit(jax.grad(lambda x: jnp.sum(filled(x, hidden) ** 2)))(images)
    np.testing.assert_array_equal(slopes * hidden, 0)
    assert np.isfinite(filled(images, np.ones_like(hidden))).all()


def test_no_device_waits_for_anothers_masks():
    by_batch = sharding.by_batch(sharding.make_mesh(8))

    def hide(numbers, tokens):
        keys = jax.vmap(jax.random.key)(numbers)
        kept = masking.kept_patches(keys, 9, 0.5)
        hidden = masking.hidden_by(kept, (3, 3), (4, 4)) + masking.blocks(keys, (12, 12), 4, 0.5)
        return hidden, decoder.apply(params, {"tokens": tokens}, kept=kept)

    decoder = Tokens((4, 4), 1, 1, "tokens", (12, 12, 1), "unit", jnp.float32, jnp.float32)
    shapes = (((16,), jnp.uint32), ((16, 4, 8), jnp.float32))
    given = [jax.ShapeDtypeStruct(*each, sharding=by_batch) for each in shapes]
    kept = jnp.zeros((2, 4), jnp.int32)
    params = decoder.init(jax.random.key(0), {"tokens": jnp.zeros((2, 4, 8))}, kept=kept)
    text = jax.jit(hide).lower(*given).compile().as_text()
    assert not any(op in text for op in ("all-gather", "all-reduce", "all-to-all", "collective-permute"))


def test_noise():
    """Levels uniform in [0, 0.05]; the noise of an image has its level as deviation."""
    noise, level = noise_of(keys(400), (20, 20, 1), 0.05, jnp.float32)
    assert np.all((level >= 0) & (level < 0.05))
    assert abs(np.mean(level) - 0.025) < 0.003
    np.testing.assert_allclose(np.std(noise, axis=(1, 2, 3)), level, rtol=0.2)
    np.testing.assert_allclose(np.mean(noise), 0, atol=5e-4)
    again, _ = noise_of(keys(400)[7:9], (20, 20, 1), 0.05, jnp.float32)
    np.testing.assert_array_equal(again, noise[7:9])


def test_the_level_as_sines_and_cosines():
    found = jax.jit(masked.waves, static_argnums=1)(np.float32([0, 1, 750.5]), 8)
    angles = np.outer([0, 1, 750.5], 10_000.0 ** -np.array([0, 0.25, 0.5, 0.75]))
    np.testing.assert_allclose(found, np.hstack([np.sin(angles), np.cos(angles)]), atol=1e-4)


def test_normalised_patches():
    x = np.random.default_rng(0).random((2, 6, 8, 3))
    with jax.enable_x64(True):
        found = jax.jit(masked.normalized, static_argnums=1)(x, (3, 4))
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
    term, own = task.objectives["masked"], state.params["objectives"]["masked"]

    def of_features(views):
        batch_of = {**batch, "views": views}
        outputs, _ = task.forward(state.params, state.model_state, batch_of, jax.random.key(0), 0)
        return jnp.sum(outputs["features"] ** 2), outputs

    def of_target(view, outputs):
        return jnp.sum(term.loss(own, {}, {**outputs, "view": view}, batch, 0)[0])

    @jax.jit
    def slopes(views):
        of_views, outputs = jax.grad(of_features, has_aux=True)(views)
        hidden = outputs.get("hidden")
        if hidden is None:
            hidden = masking.hidden_by(outputs["kept"].reshape(16, -1), (3, 3), (4, 4)).reshape(
                8, 2, 12, 12, 1
            )
        return of_views, jax.grad(of_target)(outputs["view"], outputs), hidden

    of_views, of_view, hidden = slopes(batch["views"])
    assert 0.4 < np.mean(hidden) < 0.6
    np.testing.assert_array_equal(of_views * hidden, 0)
    np.testing.assert_array_equal(of_view * (1 - hidden), 0)
    assert np.all(np.any(of_views, axis=(2, 3, 4)))
    assert np.all(np.any(of_view, axis=(2, 3, 4)))


def test_the_loss_of_can(monkeypatch):
    """0.67 · the error of hidden patches + 0.3 · that of the noise of visible ones."""
    compared, gaussian = [], masked.LOSSES["gaussian"]

    def spied(*images):
        compared.append(images)
        return gaussian(*images)

    monkeypatch.setitem(masked.LOSSES, "gaussian", spied)

    with jax.enable_x64(True):
        task, state, batch = prepared(loss__name="nt_xent+masked", model__dtype="float64", **VIT)
        own = state.params["objectives"]["masked"]

        @jax.jit
        def losses(batch):
            outputs, _ = task.forward(state.params, state.model_state, batch, jax.random.key(0), 0)
            return *task.objectives["masked"].loss(own, {}, outputs, batch, 0), compared, outputs

        found, told, images, outputs = jax.device_get(losses(batch))
        target_of = jax.jit(masked.normalized, static_argnums=1)
        of_view = target_of(outputs["view"].astype(np.float64).reshape(16, 12, 12, 1), (4, 4))
    (predicted, target, hidden), (same, noise, visible) = images
    np.testing.assert_array_equal(predicted, same)
    np.testing.assert_array_equal(visible, 1 - hidden)
    np.testing.assert_array_equal(hidden.sum(axis=(1, 2, 3)), 5 * 16)  # round(9 / 2) = 4 of 9 stay
    np.testing.assert_allclose(target, of_view, rtol=1e-9, atol=1e-9)
    np.testing.assert_array_equal(noise, outputs["noise"].reshape(noise.shape))
    of_patches = np.sum((predicted - target) ** 2 * hidden, axis=(1, 2, 3)) / hidden.sum(axis=(1, 2, 3))
    of_noise = np.sum((predicted - noise) ** 2 * visible, axis=(1, 2, 3)) / visible.sum(axis=(1, 2, 3))
    expected = (0.67 * of_patches + 0.3 * of_noise).reshape(8, 2).mean(axis=1)
    np.testing.assert_allclose(found, expected, rtol=1e-10)
    np.testing.assert_allclose(told["masked_noise"], of_noise.reshape(8, 2).mean(axis=1), rtol=1e-10)


@pytest.mark.parametrize(
    ("name", "fields", "apart"),
    [
        ("nt_xent+reconstruction+masked", TOY, (1e-10, 1e-13)),
        pytest.param("nt_xent+masked", VIT, (1e-5, 1e-8), marks=pytest.mark.slow),
    ],
    ids=["blocks", "patches"],
)
def test_microbatches_on_eight_devices_have_the_gradient_of_the_whole_on_one(toy, name, fields, apart):
    """In float64; no encoder has BatchNorm, but JAX's attention has a softmax in float32."""
    with jax.enable_x64(True):
        task, state, batch = prepared(
            16, loss__name=name, model__dtype="float64", model__projection="none", **fields
        )
        rng, mesh = jax.random.key(0), sharding.make_mesh(8)
        whole = jax.jit(lambda s, b: step.whole_gradient(task, s, b, rng))(state, batch)
        task = create_task(tiny_config(loss__name=name, model__dtype="float64", mesh__devices=8,
                           model__projection="none", **fields), tiny_splits(), mesh)  # fmt: skip
        spread = jax.device_put(state, sharding.replicated(mesh)), sharding.put_batch(batch, mesh)
        parts = jax.jit(lambda s, b: step.cached_gradient(task, s, b, rng, 2))(*spread)
        for one, other in zip(jax.tree.leaves(whole[:2]), jax.tree.leaves(parts[:2]), strict=True):
            np.testing.assert_allclose(one, other, *apart)
        assert all(np.any(leaf) for leaf in jax.tree.leaves(whole[0]["objectives"]["masked"]["out"]))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "fields", "apart"),
    [("nt_xent+reconstruction+masked", {}, 1e-9), ("nt_xent+masked", VIT, 1e-6)],
    ids=["blocks", "patches"],
)
def test_float64_losses_are_equal_on_one_and_eight_devices(tmp_path, name, fields, apart):
    """As those of the contrastive step; JAX's attention has a softmax in float32."""
    fields = {**fields, "loss__name": name, "model__dtype": "float64"}
    with jax.enable_x64(True):
        for devices in (1, 8):
            config = tiny_config(mesh__devices=devices, train__steps=20, **fields)
            train.run(config, tmp_path / str(devices), splits=tiny_splits())
    one, eight = ([*metrics.read_rows(tmp_path / str(devices))] for devices in (1, 8))
    one, eight = ([row for row in rows if "loss" in row] for rows in (one, eight))
    assert len(one) == 20
    for a, b in zip(one, eight, strict=True):
        for key in ("loss", "nt_xent_loss", "masked_loss", "grad_norm", "probe_loss"):
            assert a[key] == pytest.approx(b[key], rel=apart)


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"ratio": 1.0}, r"loss\.masked\.ratio=1\.0: must be above 0 and below 1"),
        ({"block": 12}, r"loss\.masked\.block=12: must be smaller than config\.data\.image_size=12"),
        ({"loss": "ssim"}, r"loss\.masked\.loss='ssim': must be one of gaussian, laplace"),
    ],
    ids=["all", "block", "loss"],
)
def test_fields_are_checked(fields, told):
    fields = {f"loss__masked__{name}": value for name, value in fields.items()}
    with pytest.raises(SimclrError, match=told):
        checks.validate(tiny_config(loss__name="nt_xent+masked", **fields))


def test_what_cannot_be():
    residual = tiny_config(loss__name="nt_xent+masked", model__decoder__output="residual")
    with pytest.raises(SimclrError, match=r"model\.decoder\.output='residual': must be unit for loss\.name="):
        checks.validate(residual)
    nothing = tiny_config(loss__name="nt_xent+masked", loss__masked__ratio=0.01, **VIT)
    with pytest.raises(SimclrError, match=r"loss\.masked\.ratio=0\.01: must be larger: it hides none of 9"):
        create_task(nothing, tiny_splits(), sharding.make_mesh(1))
    dots = tiny_config(loss__name="nt_xent+masked", **{**VIT, "model__vit__patch": 1})
    with pytest.raises(SimclrError, match=r"masked\.normalize: must be False where a patch is one number"):
        create_task(dots, tiny_splits(), sharding.make_mesh(1))
    both = create_task(
        tiny_config(loss__name="nt_xent+reconstruction+masked", **VIT), tiny_splits(), sharding.make_mesh(1)
    )
    with pytest.raises(SimclrError, match="reconstruction must not be beside a term that hides patches"):
        both.objectives["reconstruction"].loss({}, {}, {"kept": None}, {}, 0)
