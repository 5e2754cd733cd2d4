"""The models against the original's counts, shapes and initial values."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from simclr_jax import sharding
from simclr_jax.config import default
from simclr_jax.models import projection, resnet, simclr
from simclr_jax.models.norm import batch_norm


def build(depth=18, width=1.0, stem="cifar", encoder="resnet", dtype="float32", **kwargs):
    probe = {name: kwargs.pop(name) for name in ("classes", "probe_zero") if name in kwargs}
    fields = {"encoder": encoder, "depth": depth, "width": width, "stem": stem, "dtype": dtype, **kwargs}
    return simclr.create({**default().model, **fields}, **probe)


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
    head = projection.Projection(layers=2, dim=128)
    params = head.init(jax.random.key(0), jnp.zeros((2, 512)), train=True)["params"]
    assert float(jnp.std(params["dense0"]["kernel"])) == pytest.approx(0.01, rel=0.02)


def test_statistics_use_biased_variance_and_momentum_0_9():
    head = projection.Projection(layers=1, dim=4)
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


# ---- what SimCLRv2 and others add --------------------------------------------------------------


def test_grouped_batch_norm_is_that_of_separate_batches():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((12, 3, 3, 5)).astype(np.float32) * 3 + 1
    one, three = batch_norm(True), batch_norm(True, groups=3)
    variables = one.init(jax.random.key(0), x)
    call = lambda module, x: module.apply(variables, x, mutable=["batch_stats"])  # noqa: E731
    together, state = call(three, x)
    apart = [call(one, x[i : i + 4]) for i in (0, 4, 8)]
    np.testing.assert_allclose(together, np.concatenate([y for y, _ in apart]), atol=1e-6)
    for name in ("mean", "var"):
        mean = np.mean([s["batch_stats"][name] for _, s in apart], axis=0)
        np.testing.assert_allclose(state["batch_stats"][name], mean, atol=1e-6)
    assert not np.allclose(together, call(one, x)[0], atol=1e-2)


def test_groups_on_their_devices_need_no_collective():
    """As many groups as devices is the original's per-replica BatchNorm."""
    mesh = sharding.make_mesh(8)
    norm = batch_norm(True, groups=8)
    x = jax.device_put(np.ones((16, 4, 4, 5), np.float32), sharding.by_batch(mesh))
    variables = jax.device_put(norm.init(jax.random.key(0), x), sharding.replicated(mesh))

    def forward(v, x):
        return norm.apply(v, x, mutable=["batch_stats"])[0]

    text = jax.jit(forward).lower(variables, x).compile().as_text()
    assert not any(op in text for op in ("all-reduce", "all-gather", "all-to-all", "collective-permute"))


def block(**kwargs):
    """A small bottleneck ResNet, its variables and images."""
    fields = {"depth": 50, "blocks": (2, 1, 1, 1), "width": 0.125, "stem": "cifar", **kwargs}
    types = {"dtype": jnp.float32, "param_dtype": jnp.float32}
    resnet50 = resnet.create({**default().model, **fields}, **types)
    x = np.random.default_rng(0).random((2, 8, 8, 3), np.float32)
    variables = jax.jit(lambda: resnet50.init(jax.random.key(0), x, train=False))()
    return resnet50, variables, x


def test_squeeze_and_excitation():
    """The last block's branch is multiplied by sigmoid(W2 relu(W1 mean + b1) + b2)."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 4, 4, 32)).astype(np.float32)

    class Excite(nn.Module):
        @nn.compact
        def __call__(self, x):
            conv = functools.partial(resnet._conv, dtype=jnp.float32, param_dtype=jnp.float32)
            return resnet.Block(
                features=8, stride=1, project=False, bottleneck=True, sk_ratio=0.0, se_ratio=0.3,
                conv=conv, norm=functools.partial(batch_norm, False), drop=lambda x: x,
            )(x)  # fmt: skip

    variables = Excite().init(jax.random.key(0), x)
    params = jax.tree.map(lambda p: rng.standard_normal(p.shape).astype(np.float32), variables["params"])
    p = params["Block_0"]
    assert p["se_reduce"]["kernel"].shape == (1, 1, 32, 2)  # max(1, int(8 · 0.3)) of the inner width
    with_se = Excite().apply({**variables, "params": params}, x)
    h = x.astype(np.float64)
    for i in range(3):
        kernel = p[f"conv{i}"]["kernel"].astype(np.float64)
        padded = np.pad(h, [(0, 0), (kernel.shape[0] // 2,) * 2, (kernel.shape[0] // 2,) * 2, (0, 0)])
        windows = np.lib.stride_tricks.sliding_window_view(padded, kernel.shape[:2], axis=(1, 2))
        h = np.einsum("nhwcij,ijcd->nhwd", windows, kernel)
        h = h / np.sqrt(1 + 1e-5) * p[f"norm{i}"]["scale"] + p[f"norm{i}"]["bias"]
        h = np.maximum(h, 0) if i < 2 else h
    gate = h.mean(axis=(1, 2)) @ p["se_reduce"]["kernel"][0, 0] + p["se_reduce"]["bias"]
    gate = np.maximum(gate, 0) @ p["se_expand"]["kernel"][0, 0] + p["se_expand"]["bias"]
    expected = np.maximum(h / (1 + np.exp(-gate))[:, None, None] + x, 0)
    np.testing.assert_allclose(with_se, expected, rtol=2e-4, atol=2e-4)


def test_drop_block_drops_squares_and_keeps_the_mean():
    x = np.ones((64, 14, 14, 32), np.float32)
    y = np.asarray(resnet.drop_block(x, 0.9, 3, jax.random.key(0)))
    share = np.mean(y == 0)
    assert share == pytest.approx(0.1, abs=0.015)  # overlaps make it a little less
    assert y.mean() == pytest.approx(1, abs=1e-4)
    np.testing.assert_allclose(np.unique(y)[1:], 1 / (1 - share), rtol=1e-4)
    # Every dropped pixel lies in a dropped 3×3 square inside the map.
    dropped = y == 0
    windows = np.lib.stride_tricks.sliding_window_view(dropped, (3, 3), axis=(1, 2)).all(axis=(-1, -2))
    covered = np.zeros_like(dropped)
    for i in range(3):
        for j in range(3):
            covered[:, i : i + 12, j : j + 12] |= windows
    np.testing.assert_array_equal(covered, dropped)
    assert not np.array_equal(dropped[:, :, :, 0], dropped[:, :, :, 1])


def test_drop_block_in_training_alone():
    model, variables, x = block(dropblock_keep=(1, 1, 0.5, 0.5), dropblock_size=1)

    @functools.partial(jax.jit, static_argnames="frozen")
    def train(i, frozen=-1):
        rngs = {"dropblock": jax.random.key(i)}
        return model.apply(variables, x, train=True, frozen=frozen, mutable=["batch_stats"], rngs=rngs)[0]

    first, second = train(1), train(2)
    np.testing.assert_array_equal(first["block_group2"], second["block_group2"])
    assert not np.array_equal(first["block_group3"], second["block_group3"])
    evaluate = jax.jit(lambda: model.apply(variables, x, train=False))  # needs no rng
    np.testing.assert_allclose(train(1, frozen=4)["block_group4"], evaluate()["block_group4"], atol=1e-6)


@pytest.mark.parametrize("frozen", [0, 2, 4])
def test_no_gradient_below_what_is_frozen(frozen):
    model, variables, x = block()

    def loss(params):
        ends, state = model.apply(
            {**variables, "params": params}, x, train=True, frozen=frozen, mutable=["batch_stats"]
        )
        return jnp.sum(ends["final_avg_pool"] ** 2), state["batch_stats"]

    gradient, moved = jax.jit(jax.grad(loss, has_aux=True))(variables["params"])
    for name in variables["params"]:
        learns = model.stage_of(f"{name}/") > frozen
        assert any(np.any(g) for g in jax.tree.leaves(gradient[name])) == learns
        same = jax.tree.map(np.array_equal, moved.get(name, {}), variables["batch_stats"].get(name, {}))
        assert jax.tree.all(same) != learns or name.endswith("conv")


def test_selective_kernels_with_basic_blocks_build():
    """The original's TF1 code cannot; its TF2 code gives them the stem and the pooled shortcuts."""
    model = build(width=0.125, stem="imagenet", sk_ratio=0.0625)
    encoder = shapes(model, size=64)["params"]["encoder"]
    assert {"stem_conv0", "stem_conv1", "stem_conv"} < set(encoder)
    assert "sk_conv" not in encoder["group1_block1"]


def test_torchvisions_shortcuts():
    names = lambda depth: {  # noqa: E731
        name: "shortcut_conv" in layers
        for name, layers in shapes(build(depth, 0.125, variant="torch"))["params"]["encoder"].items()
        if name.startswith("group")
    }
    assert not names(18)["group1_block1"]
    assert names(18)["group2_block1"]
    assert names(50)["group1_block1"]
