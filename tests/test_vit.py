"""The ViT: the outputs of torchvision and timm, formulas in float64, and what the contract of encoders asks.

`torch_vit.npz` holds what torchvision 0.28, timm 1.0 and PyTorch's `interpolate` make of `array_of`; written
by `python tests/test_vit.py` where they are installed.
"""

import functools
import math
import zlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import tiny_config, tiny_splits
from safetensors.numpy import load_file, save_file

import simclr_jax
from simclr_jax import checkpoint, sharding, train
from simclr_jax.convert import __main__ as command
from simclr_jax.convert import torch as convert_torch
from simclr_jax.convert import vit as convert_vit
from simclr_jax.errors import SimclrError
from simclr_jax.evaluate import run as evaluation
from simclr_jax.models import vit as vits
from simclr_jax.models.vit_fields import FACTS, FIELDS, SIZES

FIXTURE = Path(__file__).parent / "fixtures" / "torch_vit.npz"
F = np.float32
SIDE, PATCH, WIDTH, HEADS, MLP, CLASSES = 32, 8, 32, 4, 64, 10
TOKENS = (SIDE // PATCH) ** 2
SMALL = {"width": WIDTH, "depth": 2, "heads": HEADS, "mlp": MLP, "patch": PATCH}
# Of timm: arguments of its VisionTransformer beside the sizes.
TIMM = {
    "token": {},
    "scaled": {"init_values": 1e-2, "qkv_bias": False},
    "mean": {"global_pool": "avg", "class_token": False, "fc_norm": False, "final_norm": False},
}


def build(remat=False, dtype="float32", **fields):
    vit = {name: field.default for name, field in FIELDS.items()} | SMALL | fields
    return vits.create({"vit": vit, "remat": remat}, dtype=jnp.dtype(dtype), param_dtype=jnp.float32)


def images_of(n=2, side=SIDE, seed=0):
    return np.random.default_rng(seed).normal(0, 1, (n, side, side, 3)).astype(F)


@functools.cache
def shapes_of(**fields):
    init = functools.partial(build(**fields).init, train=True)
    return jax.eval_shape(init, jax.random.key(1), images_of())["params"]


def random_params(**fields):
    """Parameters of which none is 0 or 1, as the first ones are; made without compiling anything."""
    rng = np.random.default_rng(3)

    def draw(shape):
        if len(shape) == 1:
            return rng.uniform(0.5, 1.5, shape).astype(F)
        return rng.normal(0, shape[0] ** -0.5, shape).astype(F)

    return jax.tree.map(lambda leaf: draw(leaf.shape), shapes_of(**fields))


def apply(model, params, x, train=False, seed=None, **arguments):
    """The endpoints, compiled as a whole."""
    rngs = {} if seed is None else {"dropblock": jax.random.key(seed)}
    forward = jax.jit(functools.partial(model.apply, train=train, rngs=rngs, **arguments))
    return jax.device_get(forward({"params": params}, x))


def paths(params):
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def assert_equal(a, b):
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name, strict=True)


# ---- the libraries' own outputs -------------------------------------------------------------------


def array_of(name, shape):
    """A variable by its name alone."""
    rng, leaf = np.random.default_rng(zlib.crc32(name.encode())), name.rpartition(".")[2]
    if len(shape) == 1:
        return (
            rng.uniform(0.5, 1.5, shape).astype(F) if leaf != "bias" else rng.normal(0, 0.2, shape).astype(F)
        )
    fan = math.prod(shape[1:]) if len(shape) in (2, 4) else 1
    return rng.normal(0, fan**-0.5, shape).astype(F)


def state_of(kind, **fields):
    """A state dict by `array_of`, of the names and shapes that `write` gives."""
    fields = (
        {name: field.default for name, field in FIELDS.items()} | SMALL | {"positions": "learned"} | fields
    )
    encoder = random_params(
        **{name: fields[name] for name in ("pool", "positions", "layer_scale", "qkv_bias")}
    )
    probe = {"dense": {"kernel": np.zeros((WIDTH, CLASSES)), "bias": np.zeros(CLASSES)}}
    shapes = convert_vit.write(encoder, fields, SIDE, kind=kind, probe=probe)
    return {name: array_of(name, array.shape) for name, array in shapes.items()}


def fields_of(name):
    """The fields of config.model.vit that make timm's model of TIMM."""
    return {
        "pool": "mean" if name == "mean" else "token",
        "layer_scale": TIMM[name].get("init_values", 0.0),
        "qkv_bias": TIMM[name].get("qkv_bias", True),
    }


def write_fixture():
    import torch
    from timm.models.vision_transformer import VisionTransformer as TimmViT
    from torchvision.models import VisionTransformer

    def load(model, state):
        assert set(state) == set(model.state_dict())
        model.load_state_dict({name: torch.tensor(array) for name, array in state.items()})
        return model.eval()

    x = torch.tensor(images_of()).permute(0, 3, 1, 2)
    arrays = {}
    with torch.no_grad():
        model = VisionTransformer(SIDE, PATCH, 2, HEADS, WIDTH, MLP, num_classes=CLASSES)
        load(model, state_of("torchvision"))
        arrays["torchvision/logits"] = model(x).numpy()
        model.heads = torch.nn.Identity()
        arrays["torchvision/features"] = model(x).numpy()
        sizes = {"img_size": SIDE, "patch_size": PATCH, "embed_dim": WIDTH, "depth": 2, "num_heads": HEADS,
                 "mlp_ratio": MLP / WIDTH, "num_classes": CLASSES}  # fmt: skip
        for name, fields in TIMM.items():
            model = load(TimmViT(**sizes, **fields), state_of("timm", **fields_of(name)))
            tokens = model.forward_features(x)
            arrays[f"timm_{name}/tokens"] = tokens.numpy()
            arrays[f"timm_{name}/features"] = model.forward_head(tokens, pre_logits=True).numpy()
            arrays[f"timm_{name}/logits"] = model(x).numpy()
        grid = torch.tensor(array_of("grid", (4, 4, 3))).permute(2, 0, 1)[None]
        for side in (3, 7):
            resized = torch.nn.functional.interpolate(grid, (side, side), mode="bicubic", align_corners=False)
            arrays[f"bicubic/{side}"] = resized[0].permute(1, 2, 0).numpy()
    np.savez(FIXTURE, **arrays)


@pytest.mark.parametrize("name", ["torchvision", *(f"timm_{name}" for name in TIMM)])
def test_the_libraries_outputs(name):
    expected, (kind, _, variant) = np.load(FIXTURE), name.partition("_")
    state = state_of(kind, **fields_of(variant or "token"))
    found = convert_vit.read(state, "weights.pth", heads=HEADS)
    assert (found.image_size, found.channels, found.left_out) == (SIDE, 3, [])
    ends = apply(build(**found.vit), found.encoder, images_of())
    logits = ends["features"] @ found.probe["dense"]["kernel"] + found.probe["dense"]["bias"][None]
    ends = {**ends, "logits": logits}
    compared = [each for each in ("tokens", "features", "logits") if f"{name}/{each}" in expected]
    assert compared[-2:] == ["features", "logits"]
    for each in compared:
        np.testing.assert_allclose(ends[each], expected[f"{name}/{each}"], rtol=0, atol=1e-5, strict=True)


@pytest.mark.parametrize("side", [3, 7])
def test_bicubic_is_pytorchs(side):
    matrix = vits.bicubic(4, side)
    resized = np.einsum("ah,bw,hwc->abc", matrix, matrix, array_of("grid", (4, 4, 3)))
    np.testing.assert_allclose(resized, np.load(FIXTURE)[f"bicubic/{side}"], atol=1e-5)


# ---- formulas ------------------------------------------------------------------------------------


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


@pytest.mark.parametrize("pool", ["token", "mean"])
def test_attention_by_its_formula(pool):
    rng = np.random.default_rng(0)
    x = rng.normal(0, 1, (2, 5, 8))
    layer = vits.Attention(heads=2, bias=True, dtype=jnp.float32, param_dtype=jnp.float32)
    init = functools.partial(layer.init, pool=pool)
    params = jax.eval_shape(init, jax.random.key(0), x.astype(F))["params"]
    params = jax.tree.map(lambda p: rng.normal(0, 1, p.shape), params)

    def dense(name, y):
        return y @ params[name]["kernel"] + params[name]["bias"]

    def heads(y):
        return y.reshape(2, 5, 2, 4).transpose(0, 2, 1, 3)

    q, k, v = (heads(dense(name, x)) for name in ("query", "key", "value"))
    weights = softmax(q @ k.transpose(0, 1, 3, 2) / 2)  # √4
    mixed = dense("out", (weights @ v).transpose(0, 2, 1, 3).reshape(2, 5, 8))
    one = q[:, :, :1] if pool == "token" else q.mean(2, keepdims=True)
    picture = softmax(one @ k.transpose(0, 1, 3, 2) / 2)[:, :, 0]

    params = jax.tree.map(F, params)
    out, shown = jax.jit(layer.apply, static_argnums=2)({"params": params}, x.astype(F), pool)
    np.testing.assert_allclose(out, mixed, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(shown, picture, rtol=1e-4, atol=1e-6)


def test_positions_by_their_formula():
    """Row 1, column 2 of a grid of 2 × 3: each wave of moco-v3's, by itself."""
    table = vits.sincos(2, 3, 8)
    slow = 10_000**-0.5
    expected = [wave(at * omega) for at in (1, 2) for wave in (math.sin, math.cos) for omega in (1, slow)]
    np.testing.assert_allclose(table[1 * 3 + 2], expected, rtol=1e-6)
    np.testing.assert_array_equal(table[0], [0, 0, 1, 1, 0, 0, 1, 1])


def test_first_weights_are_moco_v3s():
    model = build(width=0, depth=1, heads=0, mlp=0, patch=16)
    init = jax.jit(functools.partial(model.init, train=True))
    params = paths(jax.device_get(init(jax.random.key(0), np.zeros((1, 32, 32, 3), F)))["params"])
    limits = {
        "patch/kernel": 6 / (3 * 16 * 16 + 384),
        "block1/attention/query/kernel": 6 / (384 + 384),  # a third of qkv's 3 · 384 outputs
        "block1/attention/out/kernel": 6 / (384 + 384),
        "block1/dense1/kernel": 6 / (384 + 1536),
    }
    for name, square in limits.items():
        assert np.abs(params[name]).max() == pytest.approx(square**0.5, rel=1e-3)
        assert np.std(params[name]) == pytest.approx((square / 3) ** 0.5, rel=0.01)  # uniform
    assert 0 < np.std(params["class_token"]) < 2e-6
    for name, leaf in params.items():
        if name.endswith("/bias"):
            assert not np.any(leaf), name


@pytest.mark.parametrize(("size", "millions"), [("Ti", 5.717), ("S", 22.051), ("B", 86.568)])
def test_sizes_and_what_is_known_of_them(size, millions):
    """DeiT's counts (its Table 1: 5, 22 and 86 million), with a linear layer of 1,000 classes."""
    fields = {"width": 0, "depth": 0, "heads": 0, "mlp": 0, "patch": 16, "size": size, "positions": "learned"}
    model, x = build(**fields), jax.ShapeDtypeStruct((2, 224, 224, 3), F)
    params = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=True), x)["params"]
    count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))
    assert (count + 1000 * (model.width + 1)) / 1e6 == pytest.approx(millions, abs=1e-3)
    about, features = FACTS.parameters(flat(**fields))
    assert about == pytest.approx(count, rel=0.1)
    assert features == model.width == SIZES[size][0]
    assert FACTS.stages(flat(**fields)) == len(model.stages) - 1 == 12


def flat(side=224, **fields):
    vit = {name: field.default for name, field in FIELDS.items()} | fields
    images = {"data.image_size": side, "data.channels": 3, "augment.small_views": 0, "task": "pretrain"}
    return images | {f"model.vit.{name}": vit[name] for name in vit}


# ---- what the contract asks ----------------------------------------------------------------------


@pytest.mark.parametrize("pool", ["token", "mean"])
def test_endpoints_and_their_maps(pool):
    model, params = build(pool=pool), random_params(pool=pool)
    ends = apply(model, params, images_of())
    t = TOKENS + (pool == "token")
    tokens = ("embedding", "block1", "block2", "tokens")
    assert {name: end.shape for name, end in ends.items()} == {
        **dict.fromkeys(tokens, (2, t, WIDTH)), "features": (2, WIDTH), "attention": (2, HEADS, 4, 4)
    }  # fmt: skip
    assert model.stages == ("embedding", "block1", "block2")
    for name in tokens:
        patches = np.asarray(ends[name])[:, t - TOKENS :]
        np.testing.assert_array_equal(model.maps(name, ends[name])[:, 1, 2], patches[:, 4 + 2])
    np.testing.assert_array_equal(model.maps("attention", ends["attention"])[..., 1], ends["attention"][:, 1])
    assert model.maps("features", ends["features"]) is None
    shares = np.asarray(ends["attention"]).sum((2, 3))
    assert (shares <= 1 + 1e-6).all()
    np.testing.assert_allclose(shares < 1 - 1e-6, pool == "token")  # the class token sees itself too
    pooled = model.pool(model.maps(model.last, ends[model.last]))
    if pool == "token":
        assert pooled is None
        np.testing.assert_array_equal(ends["features"], ends["tokens"][:, 0])
    else:
        np.testing.assert_allclose(pooled, ends[model.features], atol=1e-6)


def test_images_that_are_no_squares():
    model = build()
    ends = apply(model, random_params(), np.zeros((1, 16, 24, 3), F))
    assert ends["attention"].shape == (1, HEADS, 2, 3)
    assert model.maps("tokens", ends["tokens"]) is None
    with pytest.raises(SimclrError, match=r"config\.model\.vit\.patch=8: must divide .* 20 × 24"):
        apply(model, random_params(), np.zeros((1, 20, 24, 3), F))


@pytest.mark.parametrize("fields", [{}, {"pool": "mean", "positions": "learned", "layer_scale": 0.1}])
def test_every_parameter_has_its_stage(fields):
    model, params = build(**fields), paths(random_params(**fields))
    stages = {name: model.stage_of(name) for name in params}
    assert set(stages.values()) == {0, 1, 2}
    for name, stage in stages.items():
        inside = name.startswith("block")
        assert stage == (int(name[5]) if inside else 2 if name.startswith("norm/") else 0)
    for unknown in ("", "block1", "block0/dense1/kernel", "block3/dense1/kernel", "block1/conv/kernel",
                    "patch", "norm1/scale", "encoder/patch/kernel", "block1/dense1/kernel/x"):  # fmt: skip
        with pytest.raises(ValueError, match="no parameter"):
            model.stage_of(unknown)


@pytest.mark.parametrize("frozen", [0, 1, 7])
def test_no_gradient_flows_into_frozen_stages(frozen):
    fields = {"positions": "learned", "layer_scale": 0.1}
    model, params = build(**fields), random_params(**fields)

    def loss(params):
        ends = model.apply({"params": params}, images_of(), train=True, frozen=frozen)
        return sum(jnp.sum(jnp.sin(end)) for end in ends.values())

    for name, gradient in paths(jax.jit(jax.grad(loss))(params)).items():
        assert bool(np.any(gradient)) == (model.stage_of(name) > frozen), name


def test_a_frozen_patch_projection_gets_no_gradient():
    model, params = build(frozen_patch=True), random_params()

    def loss(params):
        return jnp.sum(jnp.sin(model.apply({"params": params}, images_of(), train=True)["features"]))

    for name, gradient in paths(jax.jit(jax.grad(loss))(params)).items():
        assert bool(np.any(gradient)) == model.trainable(name) == (not name.startswith("patch/")), name
    assert build().trainable("patch/kernel")


def test_positions_adapt_to_another_size():
    model, params = build(positions="learned"), random_params(positions="learned")
    small, large = (jax.ShapeDtypeStruct((side, side, 3), F) for side in (SIDE, 56))
    assert model.adapt(params, small, small) is params
    adapted = model.adapt(params, small, large)
    before, after = (np.asarray(each.pop("positions")) for each in (params, adapted))
    assert_equal(paths(params), paths(adapted))
    np.testing.assert_array_equal(after[0], before[0])
    matrix = vits.bicubic(4, 7)
    expected = np.einsum("ah,bw,hwd->abd", matrix, matrix, before[1:].reshape(4, 4, -1).astype(np.float64))
    np.testing.assert_allclose(after[1:], expected.reshape(49, -1), atol=1e-6)

    params = {**params, "positions": after}
    assert apply(model, params, images_of(side=56))["tokens"].shape == (2, 50, WIDTH)
    with pytest.raises(SimclrError, match=r"32 × 32 pixels are 17 tokens, but .* the positions of 50"):
        apply(model, params, images_of())
    fixed = random_params()
    assert build().adapt(fixed, small, large) is fixed
    assert apply(build(), fixed, images_of(side=56))["tokens"].shape == (2, 50, WIDTH)


def test_one_device_equals_eight():
    fields = {"drop_path": 0.5, "positions": "learned"}
    model, params = build(**fields), random_params(**fields)

    def loss(params, x):
        ends = model.apply({"params": params}, x, train=True, rngs={"dropblock": jax.random.key(4)})
        return jnp.mean(jnp.sin(ends["features"])), ends

    results = []
    for devices in (1, 8):
        mesh = sharding.make_mesh(devices)
        x = jax.device_put(images_of(16), sharding.by_batch(mesh))
        placed = jax.device_put(params, sharding.replicated(mesh))
        (_, ends), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(placed, x)
        results.append(jax.device_get({**ends, **paths(gradient)}))
    one, eight = results
    for name in one:
        np.testing.assert_allclose(one[name], eight[name], rtol=1e-5, atol=1e-5, err_msg=name)


@pytest.mark.slow
def test_rematerialised_blocks_have_the_same_gradient():
    params = random_params()

    def gradient(remat):
        model = build(remat=remat, drop_path=0.5)

        def loss(params):
            rngs = {"dropblock": jax.random.key(4)}
            return jnp.sum(
                jnp.sin(model.apply({"params": params}, images_of(), train=True, rngs=rngs)["features"])
            )

        return jax.jit(jax.grad(loss))(params)

    plain, again = paths(gradient(False)), paths(gradient(True))
    for name in plain:
        np.testing.assert_allclose(plain[name], again[name], rtol=1e-5, atol=1e-6, err_msg=name)


def test_bfloat16_stays_near_float32():
    params = random_params()
    near = apply(build(), params, images_of())
    half = apply(build(dtype="bfloat16"), params, images_of())
    assert half["features"].dtype == jnp.bfloat16
    assert half["attention"].dtype == jnp.float32  # softmax
    np.testing.assert_allclose(half["features"].astype(F), near["features"], atol=0.1)


def test_stochastic_depth_keeps_the_expectation():
    """The second of two blocks drops each of its branches, by example, with probability 0.5."""
    model, params = build(drop_path=0.5), random_params()
    x = np.repeat(images_of(1), 500, axis=0)
    ends = apply(model, params, x, train=True, seed=0)
    block = vits.Block(heads=HEADS, mlp=MLP, pooling="token", drop=0.0, layer_scale=0.0, qkv_bias=True,
                       dtype=jnp.float32, param_dtype=jnp.float32)  # fmt: skip
    whole = apply(model, params, x[:1])
    np.testing.assert_allclose(ends["block1"], np.repeat(whole["block1"], 500, 0), atol=1e-5)  # drops nothing

    def attention_by(factor):
        own = params["block2"]
        out = {name: factor * leaf for name, leaf in own["attention"]["out"].items()}
        own = {**own, "attention": {**own["attention"], "out": out}}
        return own

    # What an example can become: attention left out or doubled, then the MLP left out or doubled.
    cases, forward = [], jax.jit(block.apply)
    for attention in (0.0, 2.0):
        for mlp in (0.0, 2.0):
            own = attention_by(attention)
            own["dense2"] = {name: mlp * leaf for name, leaf in own["dense2"].items()}
            cases.append(forward({"params": own}, whole["block1"])[0])
    distance = np.stack([np.abs(ends["block2"] - case).max((1, 2)) for case in cases])
    assert distance.min(0).max() < 1e-4  # each is one of the four
    shares = np.bincount(distance.argmin(0), minlength=4) / 500
    np.testing.assert_allclose(shares, 0.25, atol=0.1)  # five deviations
    again = apply(model, params, x[:4])["block2"]
    np.testing.assert_allclose(again, np.repeat(whole["block2"], 4, 0), atol=1e-5)
    still = apply(model, params, x[:4], train=True, frozen=2)["block2"]  # needs no rng
    np.testing.assert_allclose(still, again, atol=1e-6)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"heads": 5}, r"model\.vit\.heads=5: must divide the width, 384"),
        ({"width": 30, "heads": 3}, r"model\.vit\.width=30: must be a multiple of 4"),
        ({"patch": 15}, r"data\.image_size=224: must be a multiple of config\.model\.vit\.patch=15"),
    ],
)
def test_fields_that_do_not_go_together(fields, message):
    with pytest.raises(SimclrError, match=message):
        FACTS.check(flat(**fields))
    FACTS.check(flat())
    FACTS.check(flat(side=0))
    FACTS.check(flat(width=30, heads=3, positions="learned"))
    assert FACTS.smallest(flat(patch=14))[0] == 14


# ---- conversion ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["timm", "torchvision"])
def test_there_and_back(kind):
    state = state_of(kind)
    found = convert_vit.read(state, "weights.pth", heads=HEADS)
    assert found.vit == {"size": "S", **SMALL, "pool": "token", "positions": "learned", "layer_scale": 0.0,
                         "qkv_bias": True}  # fmt: skip
    assert_equal(convert_vit.write(found.encoder, found.vit, SIDE, kind=kind, probe=found.probe), state)


@pytest.mark.parametrize(
    "fields", [{}, {"pool": "mean"}, {"layer_scale": 0.1, "qkv_bias": False}, {"positions": "learned"}]
)
def test_from_here_and_back(fields):
    params = random_params(**fields)
    vit = {name: field.default for name, field in FIELDS.items()} | SMALL | fields
    found = convert_vit.read(convert_vit.write(params, vit, SIDE), "weights.pth", heads=HEADS)
    assert_equal(paths(found.encoder), paths(jax.tree.map(np.asarray, params)))
    assert bool(found.vit["layer_scale"]) == bool(vit["layer_scale"])
    for name in ("pool", "positions", "qkv_bias"):
        assert found.vit[name] == vit[name]


def test_torchvisions_blocks_have_biases_and_no_factors():
    vit = {name: field.default for name, field in FIELDS.items()} | SMALL
    state = convert_vit.write(
        random_params(qkv_bias=False), vit | {"qkv_bias": False}, SIDE, kind="torchvision"
    )
    assert not np.any(state["encoder.layers.encoder_layer_1.self_attention.in_proj_bias"])
    for fields, what in (({"layer_scale": 0.1}, "layer_scale"), ({"pool": "mean"}, "pool=mean")):
        with pytest.raises(SimclrError, match=f"torchvision's ViT has no {what}"):
            convert_vit.write(random_params(**fields), vit | fields, SIDE, kind="torchvision")


def test_sizes_heads_and_positions_are_recognised():
    def read(width, **changes):
        vit = {name: field.default for name, field in FIELDS.items()} | {
            "width": width,
            "depth": 1,
            "heads": 1,
        }
        shapes = shapes_of(width=width, depth=1, heads=1, mlp=0)
        params = jax.tree.map(lambda leaf: np.full(leaf.shape, 0.5, F), shapes)
        state = convert_vit.write(params, vit | {"patch": PATCH}, SIDE)
        for name in [name for name in state if name.startswith("blocks.0.")]:
            state |= {name.replace("0", str(i), 1): state[name] for i in range(1, 12)}
        return convert_vit.read(state | changes, "weights.pth").vit

    preset = {"width": 0, "depth": 0, "heads": 0, "mlp": 0, "patch": PATCH, "pool": "token", "qkv_bias": True,
              "layer_scale": 0.0}  # fmt: skip
    learned = {"pos_embed": np.ones((1, TOKENS + 1, 384), F)}
    assert read(384, **learned) == {"size": "S", "positions": "learned", **preset}
    assert read(192) == {"size": "Ti", "positions": "sincos", **preset}
    moco_v3 = {**preset, "width": 384, "depth": 12, "heads": 12}
    assert read(384) == {"size": "S", "positions": "sincos", **moco_v3}


def test_the_class_token_may_lack_a_position():
    """timm's no_embed_class: its position then is 0."""
    state = state_of("timm")
    whole = convert_vit.read(state, "weights.pth", heads=HEADS)
    state["pos_embed"] = state["pos_embed"][:, 1:]
    found = convert_vit.read(state, "weights.pth", heads=HEADS)
    np.testing.assert_array_equal(found.encoder["positions"][1:], whole.encoder["positions"][1:])
    assert not np.any(found.encoder["positions"][0])


def test_heads_stay_out_and_old_names_are_read():
    state = state_of("torchvision")
    for name in [name for name in state if name.startswith("heads.")]:
        state[f"heads.pre_logits{name.removeprefix('heads.head')}"] = state[name]
    old = {
        name.replace("mlp.0", "mlp.linear_1").replace("mlp.3", "mlp.linear_2"): a for name, a in state.items()
    }
    found = convert_vit.read(old, "weights.pth", heads=HEADS)
    assert found.probe is None
    assert len(found.left_out) == 4
    assert_equal(paths(found.encoder), paths(convert_vit.read(state, "weights.pth", heads=HEADS).encoder))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"reg_token": (1, 4, WIDTH)}, "reg_token: the ViT of simclr_jax does not have register tokens"),
        ({"dist_token": (1, 1, WIDTH)}, "dist_token: .* a distillation token"),
        ({"blocks.1.attn.q_norm.weight": (8,)}, "normalised queries and keys"),
        ({"fc_norm.weight": (WIDTH,)}, "a LayerNorm behind its pooling"),
        ({"blocks.0.extra": (3,)}, r"blocks\.0\.extra has no place"),
        ({"cls_token": None}, r"norm\.weight: .* mean pooling behind a LayerNorm"),
        ({"norm.bias": None}, r"lacks norm\.bias"),
        ({"pos_embed": None}, "lacks pos_embed"),
        ({"pos_embed": (1, 8, WIDTH)}, "positions for 8 tokens, which are no square image's"),
        ({"patch_embed.proj.weight": (WIDTH, 3)}, r"patch_embed\.proj\.weight has the shape \[32, 3\]"),
        ({"blocks.1.mlp.fc1.weight": (MLP, 3)}, r"\[64, 3\], should be \[64, 32\]"),
        ({"blocks.0.attn.qkv.weight": None}, "no ViT in it"),
    ],
)
def test_what_is_refused(change, message):
    state = state_of("timm")
    for name, shape in change.items():
        state[name] = None if shape is None else np.ones(shape, F)
    state = {name: array for name, array in state.items() if array is not None}
    with pytest.raises(SimclrError, match=message):
        convert_vit.read(state, "weights.pth", heads=HEADS)


def test_numbers_that_are_not_finite_and_unknown_heads_are_refused():
    state = state_of("timm")
    with pytest.raises(SimclrError, match="0 heads do not divide its width of 32; give --heads"):
        convert_vit.read(state, "weights.pth")
    state["norm.bias"][3] = np.nan
    with pytest.raises(SimclrError, match=r"norm\.bias holds values that are no finite numbers"):
        convert_vit.read(state, "weights.pth", heads=HEADS)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["timm", "torchvision"])
def test_files_to_workdirs_and_back(tmp_path, kind):
    state = state_of(kind)
    file = {f"state_dict.backbone.{name}": array for name, array in state.items()} | {
        "state_dict.ema": F([1])
    }
    save_file(file, tmp_path / "weights.safetensors")
    said = convert_torch.convert(tmp_path / "weights.safetensors", tmp_path / "run", heads=HEADS)
    assert "2 blocks of 4 heads" in said
    assert "left out: 1 outside state_dict.backbone." in said
    encoder = simclr_jax.load(tmp_path / "run")
    assert encoder.config.data.image_size == SIDE
    assert len(encoder.classes) == CLASSES
    if kind == "torchvision":
        mean, std = (F(each) for each in (encoder.config.data.mean, encoder.config.data.std))
        logits = encoder.model.apply(encoder.variables, images_of(), method="classify")
        np.testing.assert_allclose(logits, np.load(FIXTURE)["torchvision/logits"], atol=1e-5)
        assert (mean + std < 1).all()

    command.main(["to-torch", str(tmp_path / "run"), f"--out={tmp_path}/back.safetensors", f"--names={kind}"])
    assert_equal(load_file(tmp_path / "back.safetensors"), state)
    convert_torch.convert(tmp_path / "back.safetensors", tmp_path / "again")  # the .json tells the heads
    again = simclr_jax.load(tmp_path / "again")
    assert again.config.to_dict() == encoder.config.to_dict()
    assert_equal(paths(again.variables), paths(encoder.variables))


def test_another_image_size_interpolates_the_positions(tmp_path):
    state = state_of("timm")
    save_file(state, tmp_path / "weights.safetensors")
    convert_torch.convert(tmp_path / "weights.safetensors", tmp_path / "run", heads=HEADS, image_size=56)
    encoder = simclr_jax.load(tmp_path / "run")
    assert encoder.config.data.image_size == 56
    positions = encoder.variables["params"]["encoder"]["positions"]
    matrix = vits.bicubic(4, 7)
    expected = np.einsum("ah,bw,hwd->abd", matrix, matrix, state["pos_embed"][0, 1:].reshape(4, 4, -1))
    np.testing.assert_allclose(positions[1:], expected.reshape(49, -1), atol=1e-5)


def test_vits_are_found_below_prefixes():
    names = [f"module.base_encoder.{name}" for name in state_of("timm")]
    assert convert_vit.find(names) == [("module.base_encoder.", "timm")]
    assert convert_vit.find(state_of("torchvision")) == [("", "torchvision")]
    assert convert_vit.find(["layer1.0.conv1.weight", "x_blocks.0.attn.qkv.weight"]) == []


@pytest.mark.slow
def test_a_run_is_tuned_at_another_image_size_and_shows_where_it_looks(tmp_path):
    vit = {"width": 16, "depth": 2, "heads": 2, "mlp": 32, "patch": 4, "positions": "learned"}
    fields = {"model__encoder": "vit", **{f"model__vit__{name}": value for name, value in vit.items()}}
    splits = tiny_splits()
    train.run(tiny_config(train__steps=4, **fields), tmp_path / "run", splits=splits)
    made = evaluation.evaluate(tmp_path / "run", splits=splits, protocols=["saliency"])
    assert [name for name, _ in made["protocols"]["saliency"]["figures"]] == ["attention.png"]
    tuned = tiny_config(task="supervised", start__workdir=str(tmp_path / "run"), data__image_size=16,
                        finetune__after_block=1, train__steps=4, **fields)  # fmt: skip
    train.run(tuned, tmp_path / "tuned", splits=tiny_splits(size=16))
    before, after = (
        checkpoint.read_parameters(tmp_path / name / "checkpoints")[1]["encoder"] for name in ("run", "tuned")
    )
    assert (before["positions"].shape, after["positions"].shape) == ((10, 16), (17, 16))
    np.testing.assert_array_equal(before["positions"][0], after["positions"][0])
    jax.tree.map(np.testing.assert_array_equal, before["block1"], after["block1"])
    moved = jax.tree.map(lambda a, b: bool(np.any(a != b)), before["block2"], after["block2"])
    assert any(jax.tree.leaves(moved))


if __name__ == "__main__":
    write_fixture()
