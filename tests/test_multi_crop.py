"""Large and small views: the loss against its formula, the views, and a run."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys
from conftest import tiny_config, tiny_splits
from test_losses import embeddings

from simclr_jax import metrics, registry, sharding, train
from simclr_jax.config import checks
from simclr_jax.doctor import ahead
from simclr_jax.errors import SimclrError
from simclr_jax.feeds import create_feed
from simclr_jax.losses import multi_crop
from simclr_jax.losses.contrastive import nt_xent
from simclr_jax.models import simclr
from simclr_jax.tasks import create_task


def views(n, v, d=3, seed=0):
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((n, 1, d)) + rng.standard_normal((n, v, d))).astype(np.float32)


def slow(z, temperature, normalize=True, one_view=False):
    """Pair by pair in float64."""
    z = z.astype(np.float64)
    if normalize:
        z = z / np.linalg.norm(z, axis=-1, keepdims=True)
    n, v = z.shape[:2]
    losses = []
    for i, view in np.ndindex(n, v):
        for large in (0, 1):
            if view == large:
                continue
            positive = z[i, view] @ z[i, large] / temperature
            columns = [(k, w) for k in range(n) for w in (0, 1) if k != i and (w == large or not one_view)]
            others = [z[i, view] @ z[each] / temperature for each in columns]
            losses.append(np.logaddexp.reduce([positive, *others]) - positive)
    assert len(losses) == n * (2 * v - 2)
    return np.mean(losses)


@pytest.mark.parametrize("options", [{}, {"one_view": True}, {"normalize": False}], ids=str)
@pytest.mark.parametrize("v", [2, 5])
def test_value_and_gradient(v, options):
    z = views(4, v).astype(np.float64)
    with jax.enable_x64(True):
        f = jax.jit(jax.value_and_grad(lambda z: multi_crop.nt_xent(z, 0.3, **options), has_aux=True))
        (value, told), gradient = f(z)
        expected = jax.jit(lambda z: nt_xent(z, 0.3, **options))(z[:, :2])
    assert float(value) == pytest.approx(slow(z, 0.3, **options), rel=1e-12)
    for metric, number in expected[1].items():
        assert float(told[metric]) == pytest.approx(float(number), rel=1e-12)
    if v == 2:
        assert float(value) == pytest.approx(float(expected[0]), rel=1e-12)
    for i in np.ndindex(z.shape):
        change = np.zeros(z.shape)
        change[i] = 1e-6
        slope = slow(z + change, 0.3, **options) - slow(z - change, 0.3, **options)
        assert float(gradient[i]) == pytest.approx(slope / 2e-6, abs=1e-8)


def test_two_views_are_nt_xent_in_float32():
    z = embeddings(16)
    two = (nt_xent, multi_crop.nt_xent)
    one, other = (jax.jit(jax.value_and_grad(lambda z, f=f: f(z, 0.1)[0]))(z) for f in two)
    for a, b in zip(one, other, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)


def test_finite_at_low_temperature_and_zero_rows():
    z = views(4, 4, d=16)
    z[1, 0] = z[2] = 0
    value, gradient = jax.jit(jax.value_and_grad(lambda z: multi_crop.nt_xent(z, 0.01)[0]))(z)
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()


def test_eight_devices_give_the_value_and_gradient_of_one():
    mesh, z = sharding.make_mesh(8), views(32, 5, d=16)
    gather = lambda x: jax.lax.with_sharding_constraint(x, sharding.replicated(mesh))  # noqa: E731
    split = jax.jit(jax.value_and_grad(lambda z: multi_crop.nt_xent(z, 0.2, gather=gather)[0]))(
        jax.device_put(z, sharding.by_batch(mesh))
    )
    whole = jax.jit(jax.value_and_grad(lambda z: multi_crop.nt_xent(z, 0.2)[0]))(z)
    np.testing.assert_allclose(split[0], whole[0], rtol=1e-6)
    np.testing.assert_allclose(split[1], whole[1], atol=2e-7)


# ---- views and runs ---------------------------------------------------------------------------------

SMALL = {"augment__small_views": 2, "augment__small_size": 10, "augment__small_area": (0.2, 0.4)}


def views_of(count=2, **fields):
    """(large, small) views of the first batch, as a feed makes them."""
    config, mesh = tiny_config(**fields), sharding.make_mesh(1)
    feed = create_feed(config, tiny_splits(), mesh, views=count)
    fixed, batch = feed.fixed(), sharding.put_batch(next(feed.batches(0)), mesh)
    batch = feed.fetch(fixed, batch)
    # Programs of their own: the one of the large views is the same with small ones and without.
    found = [jax.jit(lambda b, make=make: make({}, b))(batch) for make in (feed.views, feed.small)]
    return [None if x is None else np.asarray(x) for x in found]


@pytest.mark.parametrize("device", ["none", pytest.param("photometric", marks=pytest.mark.slow), "all"])
def test_small_views_have_numbers_of_their_own(device):
    """The large ones are unchanged to the bit, the small ones those of a feed of four views of their size."""
    large, small = views_of(augment__device=device, **SMALL)
    alone, nothing = views_of(augment__device=device)
    np.testing.assert_array_equal(large, alone)
    assert nothing is None
    assert small.shape == (16, 2, 10, 10, 1)
    same = {"augment__crop_area": (0.2, 0.4), "augment__crop_min_covered": 0.0, "data__image_size": 10}
    four, _ = views_of(count=4, augment__device=device, **same)
    np.testing.assert_allclose(small, four[:, 2:], atol=1e-6)
    assert np.abs(small - four[:, :2]).max() > 0.1


@pytest.fixture
def toy(monkeypatch):
    """An encoder without BatchNorm, which takes each microbatch apart."""
    monkeypatch.setitem(registry.ENCODERS, "toy", registry.Entry("toys:create", toys.ENCODER_FACTS))
    return {"model__encoder": "toy", "model__toy__patch": 2, "model__projection": "none",
            "model__dtype": "float64", "train__steps": 5}  # fmt: skip


@pytest.mark.slow
def test_a_run_is_the_same_on_eight_devices_in_microbatches(toy, tmp_path):
    with jax.enable_x64(True):
        for name, more in (("one", {}), ("eight", {"mesh__devices": 8, "train__microbatch": 8})):
            train.run(tiny_config(**toy, **SMALL, **more), tmp_path / name, splits=tiny_splits())
    one, eight = (metrics.read_rows(tmp_path / name) for name in ("one", "eight"))
    assert len(one) == 5
    for a, b in zip(one, eight, strict=True):
        for key in ("loss", "grad_norm", "probe_loss", "feature_std", "contrast_entropy"):
            assert a[key] == pytest.approx(b[key], rel=1e-9)


def test_the_encoder_takes_each_size_apart_and_the_head_all_together():
    """The loss of a task is that of features by size, joined by image, through one head."""
    config = tiny_config(**SMALL)
    task = create_task(config, tiny_splits(), sharding.make_mesh(1))
    model = simclr.create(config.model, classes=4)
    batch, variables = next(task.input(0)), jax.jit(task.init)(jax.random.key(0))
    params = variables.pop("params")

    def both():
        return task.forward(params, variables, batch, jax.random.key(0), 0)[0]

    def of_size(x):
        x = x.reshape(-1, *x.shape[2:])
        h, _ = model.apply(
            {"params": params, **variables}, x, True, method="features", mutable=["batch_stats"]
        )
        return h.reshape(16, 2, -1)

    def head(h):
        projection = params["projection"], variables["batch_stats"]["projection"]
        given = dict(zip(("params", "batch_stats"), projection, strict=True))
        return model.projection.apply(given, h.reshape(64, -1), True, mutable=["batch_stats"])[0][-1]

    outputs = jax.jit(both)()
    h = jnp.concatenate([jax.jit(of_size)(batch[name]) for name in ("views", "small")], axis=1)
    np.testing.assert_allclose(outputs["features"], h, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(outputs["projection"].reshape(64, -1), jax.jit(head)(h), rtol=1e-3, atol=1e-4)
    assert outputs["logits"].shape == (16, 2, 4)


def test_what_the_doctor_expects_is_what_a_feed_gives():
    for device in ("none", "photometric", "all"):
        config = tiny_config(augment__device=device, **SMALL)
        batch = next(create_feed(config, tiny_splits(), sharding.make_mesh(1), views=2).batches(0))
        shapes = ahead.batch_shapes(config)
        assert {k: (v.shape, v.dtype) for k, v in batch.items()} == {
            k: (v.shape, v.dtype) for k, v in shapes.items()
        }


VIT = {"model__encoder": "vit", "model__vit__patch": 4, "model__vit__size": "Ti", "augment__small_views": 2}


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"augment__small_views": 2}, r"small_size: comes to 6, must be 8 or more for the small CNN"),
        ({"augment__small_size": 9, **VIT}, r"small_size: comes to 9, must be a multiple of .*patch=4"),
        ({"augment__small_size": 8, "model__vit__positions": "learned", **VIT}, "small_views: must be 0 for"),
        ({"data__source": "table:x.csv", "model__encoder": "mlp", **SMALL}, "small_views=2: must be 0: rows"),
    ],
    ids=["cnn", "patches", "learned", "table"],
)
def test_what_does_not_fit_is_told(fields, told):
    checks.validate(tiny_config(**SMALL))
    with pytest.raises(SimclrError, match=rf"^config\.augment\.{told}"):
        checks.validate(tiny_config(**fields))


@pytest.mark.parametrize("name", ["supcon", "hcl", "queue"])
def test_losses_of_two_views_refuse_small_ones(name):
    with pytest.raises(SimclrError, match=rf"loss\.name='{name}': takes two views, and .*small_views=2 adds"):
        create_task(tiny_config(loss__name=name, **SMALL), tiny_splits(), sharding.make_mesh(1))


def test_sizes_of_which_the_encoder_makes_other_features_are_told():
    config = tiny_config(**{**SMALL, "augment__small_size": 8})
    task = create_task(config, tiny_splits(), sharding.make_mesh(1))
    batch = next(task.input(0))

    def forward():
        variables = task.init(jax.random.key(0))
        return task.forward(variables.pop("params"), variables, batch, jax.random.key(0), 0)

    with pytest.raises(SimclrError, match=r"comes to 8, of which this encoder makes 32 numbers and not 128"):
        jax.eval_shape(forward)
