"""NT-Xent in tiles against the dense loss, which the tests of the losses hold to its formula."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import tiny_config, tiny_splits
from test_losses import embeddings

from simclr_jax import sharding, train
from simclr_jax.losses import contrast, contrastive, tiled
from simclr_jax.losses.objective import Sizes


def both(z, temperature, devices, dtype=np.float32, **options):
    """((value, metrics), gradient) of the dense loss on one device and of the tiled one on several."""
    mesh = sharding.make_mesh(devices)
    same = {name: options[name] for name in ("normalize", "one_view") if name in options}
    dense = functools.partial(contrastive.nt_xent, temperature=temperature, **same)
    tiles = functools.partial(tiled.nt_xent, temperature=temperature, mesh=mesh, **options)
    placed = jax.device_put(z.astype(dtype), sharding.by_batch(mesh))
    return [
        jax.jit(jax.value_and_grad(loss, has_aux=True))(x)
        for loss, x in ((dense, z.astype(dtype)), (tiles, placed))
    ]


@pytest.mark.parametrize(("devices", "ring"), [(1, False), (8, False), (8, True)])
@pytest.mark.parametrize(
    ("n", "temperature", "tile"),
    [(8, 0.1, 6), (40, 0.5, 16), (64, 0.01, 2048), (64, 0.1, 50)],  # whole, filled-up and single tiles
)
def test_value_gradient_and_metrics(n, temperature, tile, devices, ring):
    (dense, dense_gradient), (value, gradient) = both(
        embeddings(n), temperature, devices, tile=tile, ring=ring
    )
    np.testing.assert_allclose(value[0], dense[0], rtol=1e-6, atol=1e-6)  # logits of 10 round to 1e-6
    scale = np.abs(dense_gradient).max()
    np.testing.assert_allclose(gradient, dense_gradient, atol=2e-6 * scale)
    assert value[1]["contrast_accuracy"] == pytest.approx(float(dense[1]["contrast_accuracy"]))
    np.testing.assert_allclose(value[1]["contrast_entropy"], dense[1]["contrast_entropy"], atol=2e-6)


@pytest.mark.parametrize(("devices", "ring"), [(1, False), (4, True)])
def test_negatives_of_one_view_in_float64(devices, ring):
    """CLIP's loss, where the two views are the outputs of two towers."""
    with jax.enable_x64(True):
        (dense, dense_gradient), (value, gradient) = both(
            embeddings(24, d=8), 0.2, devices, dtype=np.float64, tile=10, one_view=True, ring=ring
        )
        np.testing.assert_allclose(value[0], dense[0], rtol=1e-13)
        np.testing.assert_allclose(gradient, dense_gradient, rtol=1e-10, atol=1e-15)
        assert value[1]["contrast_accuracy"] == pytest.approx(float(dense[1]["contrast_accuracy"]))


@pytest.mark.parametrize("ring", [False, True])
def test_float64_and_not_normalised(ring):
    z = 0.3 * embeddings(24, d=8)
    with jax.enable_x64(True):
        (dense, dense_gradient), (value, gradient) = both(
            z, 0.7, 4, dtype=np.float64, tile=10, normalize=False, ring=ring
        )
        np.testing.assert_allclose(value[0], dense[0], rtol=1e-13)
        np.testing.assert_allclose(gradient, dense_gradient, rtol=1e-10, atol=1e-15)


@pytest.mark.slow
def test_zero_rows_and_low_precision():
    z = embeddings(8)
    z[3] = 0
    (dense, dense_gradient), (value, gradient) = both(z, 0.1, 1, tile=4)
    assert np.isfinite(gradient).all()
    np.testing.assert_allclose(value[0], dense[0], rtol=1e-6)
    np.testing.assert_allclose(gradient, dense_gradient, rtol=1e-4, atol=1e-3 * np.abs(dense_gradient).max())
    low = tiled.nt_xent(jnp.asarray(z, jnp.bfloat16), 0.1, mesh=sharding.make_mesh(1))[0]
    assert low.dtype == jnp.float32


def compiled_on_8(images, ring):
    mesh = sharding.make_mesh(8)
    z = jax.ShapeDtypeStruct((images, 2, 128), jnp.float32, sharding=sharding.by_batch(mesh))
    loss = functools.partial(tiled.nt_xent, temperature=0.1, mesh=mesh, ring=ring)
    return jax.jit(jax.value_and_grad(loss, has_aux=True)).lower(z).compile()


def test_a_ring_never_holds_all_embeddings():
    """2 million rows of 128: 1 GB together, 134 MB a device."""
    compiled = compiled_on_8(2**20, ring=True)
    assert compiled.memory_analysis().temp_size_in_bytes < 900e6
    hlo = compiled.as_text()
    assert "collective-permute" in hlo
    assert "all-gather" not in hlo
    assert f"f32[{2**21},128]" not in hlo


def test_131072_rows_need_less_than_200_megabytes_a_device():
    """All logits would be 69 GB."""
    compiled = compiled_on_8(65_536, ring=False)
    assert compiled.memory_analysis().temp_size_in_bytes < 200e6
    hlo = compiled.as_text()
    gathers = [line for line in hlo.splitlines() if " all-gather(" in line or " all-gather-start(" in line]
    assert len(gathers) == 2  # the embeddings, and 2n logsumexps
    assert "all-to-all" not in hlo


@pytest.mark.parametrize("devices", [1, 8])
def test_training_chooses_it_above_the_budget(tmp_path, devices):
    fields = {"train__steps": 3, "mesh__devices": devices}
    dense = train.run(tiny_config(**fields), tmp_path / "dense", splits=tiny_splits())
    text = lambda **budgets: jaxpr_of(tiny_config(**fields, **budgets))  # noqa: E731
    assert "shard_map" not in text(loss__dense_mb=512.0)
    assert "shard_map" in text(loss__dense_mb=1e-6)
    assert "ppermute" not in text(loss__dense_mb=1e-6)
    assert "ppermute" in text(loss__dense_mb=1e-6, loss__gather_mb=1e-6)
    tiles = train.run(tiny_config(**fields, loss__dense_mb=1e-6), tmp_path / "tiles", splits=tiny_splits())
    assert tiles["last"]["loss"] == pytest.approx(dense["last"]["loss"], rel=1e-4)


def jaxpr_of(config):
    """The contrastive loss that pretraining takes, as text."""
    sizes = Sizes(config.train.batch_size, 2, 4, sharding.make_mesh(config.mesh.devices))
    objective = contrast.create(config.loss.name, config.loss, sizes)

    def loss(z):
        return objective.loss({}, {}, {"projection": z}, {"label": jnp.zeros(16, jnp.int32)}, 0)[0]

    return str(jax.make_jaxpr(loss)(jnp.ones((16, 2, 4))))
