"""The models against the original's counts, shapes and initial values."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from simclr_jax.models import heads, resnet, simclr


def build(depth=18, width=1.0, stem="cifar", encoder="resnet", dtype="float32", **kwargs):
    fields = {"projection": "nonlinear", "projection_layers": 2, "projection_dim": 128} | kwargs
    return simclr.create(encoder=encoder, depth=depth, width=width, stem=stem, dtype=dtype, **fields)


def shapes(model, size=32, channels=3):
    return jax.eval_shape(
        lambda: model.init(jax.random.key(0), jnp.zeros((2, size, size, channels)), train=True)
    )


def count(tree):
    return sum(np.prod(x.shape) for x in jax.tree.leaves(tree))


@pytest.mark.parametrize(
    ("depth", "width", "stem", "millions"),
    [  # backbone with BatchNorm's statistics, as counted on the original's code
        (18, 1, "cifar", 11.183),
        (50, 1, "imagenet", 23.561),
        (50, 2, "imagenet", 94.013),
        (50, 4, "imagenet", 375.591),
        (101, 1, "imagenet", 42.606),
        (101, 2, "imagenet", 169.982),
        (152, 1, "imagenet", 58.295),
        (152, 2, "imagenet", 232.556),
        (200, 2, "imagenet", 250.481),
    ],
)
def test_parameter_counts(depth, width, stem, millions):
    variables = shapes(build(depth, width, stem), size=64)
    encoder = count([variables[kind]["encoder"] for kind in ("params", "batch_stats")])
    assert encoder / 1e6 == pytest.approx(millions, abs=5.1e-4)


@pytest.mark.parametrize("depth", resnet.DEPTHS)
def test_endpoints(depth):
    model = build(depth, width=0.125, stem="imagenet").encoder
    x = jax.ShapeDtypeStruct((2, 64, 64, 3), jnp.float32)
    variables = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), x)
    ends = jax.eval_shape(lambda v, x: model.apply(v, x, train=False), variables, x)
    out = 4 if resnet.DEPTHS[depth][1] else 1
    assert {k: v.shape for k, v in ends.items()} == {
        "initial_conv": (2, 32, 32, 8),
        "initial_max_pool": (2, 16, 16, 8),
        "block_group1": (2, 16, 16, 8 * out),
        "block_group2": (2, 8, 8, 16 * out),
        "block_group3": (2, 4, 4, 32 * out),
        "block_group4": (2, 2, 2, 64 * out),
        "final_avg_pool": (2, 64 * out),
    }


def test_every_block_starts_as_the_identity():
    model = build(width=0.125)
    variables = jax.jit(lambda x: model.init(jax.random.key(0), x, train=True))(jnp.zeros((2, 16, 16, 3)))
    encoder = variables["params"]["encoder"]
    for name, block in encoder.items():
        if name.startswith("group"):
            assert not np.any(block["norm1"]["scale"])
            assert np.all(block["norm0"]["scale"] == 1)
    assert "shortcut_conv" in encoder["group1_block1"]
    assert "shortcut_conv" not in encoder["group1_block2"]


def test_strided_convolution_pads_by_the_kernel_not_the_size():
    """(k-1)//2 in front: the first output of a 3×3 stride 2 sees one row of zeros, not none."""
    conv = resnet._conv(1, 3, 2, jnp.float32, jnp.float32, "c")
    variables = {"params": {"kernel": jnp.ones((3, 3, 1, 1))}}
    out = conv.apply(variables, jnp.ones((1, 4, 4, 1)))
    np.testing.assert_array_equal(out[0, :, :, 0], [[4, 6], [6, 9]])


@pytest.mark.parametrize(("kind", "dense"), [("none", 0), ("linear", 1), ("nonlinear", 3)])
def test_projection_heads(kind, dense):
    model = build(width=0.125, projection=kind, projection_layers=3)
    params = shapes(model)["params"].get("projection", {})
    assert sorted(params) == sorted([f"{k}{i}" for i in range(dense) for k in ("dense", "norm")])
    for i in range(dense):
        assert params[f"dense{i}"].keys() == {"kernel"}
        last = i == dense - 1
        assert params[f"norm{i}"].keys() == ({"scale"} if last else {"scale", "bias"})
        assert params[f"dense{i}"]["kernel"].shape == (64, 128 if last else 64)


def test_dense_layers_start_at_the_originals_scale():
    head = heads.Projection(layers=2, dim=128)
    params = head.init(jax.random.key(0), jnp.zeros((2, 512)), train=True)["params"]
    assert float(jnp.std(params["dense0"]["kernel"])) == pytest.approx(0.01, rel=0.02)


def test_statistics_use_biased_variance_and_momentum_0_9():
    head = heads.Projection(layers=1, dim=4)
    x = np.random.default_rng(0).standard_normal((8, 4)).astype(np.float32)
    variables = head.init(jax.random.key(0), x, train=True)
    _, state = head.apply(variables, x, train=True, mutable=["batch_stats"])
    y = x @ variables["params"]["dense0"]["kernel"]
    expected = 0.9 * np.ones(4) + 0.1 * y.var(axis=0)
    np.testing.assert_allclose(state["batch_stats"]["norm0"]["var"], expected, rtol=1e-5)


@pytest.mark.parametrize("encoder", ["resnet", "cnn"])
def test_bfloat16_computes_low_and_keeps_high(encoder):
    model = build(width=0.25, encoder=encoder, dtype="bfloat16", classes=3)
    variables = shapes(model)
    assert {x.dtype for x in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    x = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.bfloat16)
    out, _ = jax.eval_shape(lambda v, x: model.apply(v, x, train=True, mutable=["batch_stats"]), variables, x)
    assert out["projection"].dtype == jnp.bfloat16
    assert out["logits"].dtype == jnp.float32


def test_probe_does_not_teach_the_encoder():
    model = build(encoder="cnn", width=0.25, classes=3)
    x = np.random.default_rng(0).random((4, 12, 12, 1), np.float32)
    variables = jax.jit(lambda x: model.init(jax.random.key(0), x, train=True))(x)

    def loss(params):
        out, _ = model.apply({**variables, "params": params}, x, train=True, mutable=["batch_stats"])
        return jnp.sum(out["logits"] ** 2)

    gradient = jax.jit(jax.grad(loss))(variables["params"])
    assert not any(np.any(g) for g in jax.tree.leaves(gradient["encoder"]))
    assert any(np.any(g) for g in jax.tree.leaves(gradient["probe"]))


def test_normalize_images():
    images = np.full((1, 2, 2, 3), 51, np.uint8)
    out = simclr.normalize_images(images, (0.1, 0.2, 0.3), (0.1, 0.1, 0.1), jnp.float32)
    np.testing.assert_allclose(out[0, 0, 0], [1, 0, -1], atol=1e-6)
