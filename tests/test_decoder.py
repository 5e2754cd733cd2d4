"""Decoders: sizes for every encoder, oracles of their layers, and what the tutorials' network is."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys
from conftest import tiny_config

from simclr_jax import registry
from simclr_jax.config import default
from simclr_jax.errors import SimclrError
from simclr_jax.field import ARCHITECTURE
from simclr_jax.models import decoder, tutorial, tutorial_fields, vit
from simclr_jax.models.decoder_fields import FIELDS
from simclr_jax.models.encoder import Plain

F = np.float32
KEY = jax.random.key(0)
F32 = {"dtype": jnp.float32, "param_dtype": jnp.float32}
DEFAULTS = {name: field.default for name, field in FIELDS.items()}
VIT = {"width": 32, "depth": 2, "heads": 2, "mlp": 32, "patch": 4}


class Valid(Plain):
    """An encoder of one's own whose maps divide no image: 28 pixels become 13, 11 and 3."""

    stages, features, last = ("a", "b", "c"), "mean", "c"

    def maps(self, name, x):
        """All but the features are."""
        return x if x.ndim == 4 else None

    def __call__(self, x, train):
        """As if there were convolutions, without padding."""
        ends = {}
        for name, kernel, stride in (("a", 3, 2), ("b", 3, 1), ("c", 4, 3)):
            grid = [(side - kernel) // stride + 1 for side in x.shape[1:3]]
            x = ends[name] = jnp.zeros((len(x), *grid, 8 + len(ends)), x.dtype)
        return ends | {"mean": jnp.mean(x, axis=(1, 2))}


def encoder_of(name, dtype="float32", **fields):
    if name == "valid":
        return Valid()
    if name == "toy":
        return toys.create({"toy": {"patch": 4, "hidden": 12}}, **F32)
    config = default()
    config.model.encoder, config.model.width = name, 0.125
    config.model.vit.update(VIT)
    for field, value in fields.items():
        config.model[field] = value
    create = registry.load(registry.ENCODERS, name, "model.encoder")
    return create(config.model, dtype=jnp.dtype(dtype), param_dtype=jnp.float32)


ENCODERS = {
    "cnn": ("cnn", {}),
    "imagenet": ("resnet", {"depth": 18}),
    "cifar": ("resnet", {"depth": 18, "stem": "cifar"}),
    "pad2": ("resnet", {"depth": 18, "stem": "cifar_pad2"}),
    "vit": ("vit", {}),
    "tutorial": ("tutorial", {}),
    "toy": ("toy", {}),
    "valid": ("valid", {}),
}


@functools.cache
def ends_of(name, side, channels=3):
    """(encoder, its endpoints for two images, as shapes)."""
    which, fields = ENCODERS[name]
    encoder, x = encoder_of(which, **fields), jax.ShapeDtypeStruct((2, side, side, channels), F)
    if name == "valid":
        return encoder, jax.eval_shape(lambda x: encoder(x, True), x)
    return encoder, jax.eval_shape(lambda x: encoder.init_with_output(KEY, x, True)[0], x)


def build(encoder, ends, side, colors=3, dtype="float32", **options):
    """(decoder, the endpoints that it reads)."""
    options = DEFAULTS | options
    example = jax.ShapeDtypeStruct((side, side, colors), F)
    made = decoder.create(options, encoder, ends, example, dtype=jnp.dtype(dtype), param_dtype=jnp.float32)
    return made, {name: ends[name] for name in decoder.needs(options, encoder, ends)}


def shape_and_count(made, needed, *arguments):
    """(shape of what it makes, number of parameters); nothing is computed."""
    y, variables = jax.eval_shape(functools.partial(made.init_with_output, KEY), needed, *arguments)
    return y.shape, sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(variables))


def apply(made, params, *arguments, **named):
    return np.asarray(jax.jit(made.apply)({"params": params}, *arguments, **named))


def start(made, *arguments, **named):
    """(what it makes at first, its parameters)."""
    y, variables = jax.jit(functools.partial(made.init_with_output, KEY))(*arguments, **named)
    return np.asarray(y), variables["params"]


def drawn(made, *arguments, **named):
    """Parameters of which none is 0; nothing is compiled."""
    shapes = jax.eval_shape(lambda: made.init(KEY, *arguments, **named))["params"]
    rng = np.random.default_rng(1)

    def draw(leaf):
        if leaf.ndim == 1:
            return rng.uniform(0.1, 1, leaf.shape).astype(F)
        return rng.normal(0, math.prod(leaf.shape[:-1]) ** -0.5, leaf.shape).astype(F)

    return jax.tree.map(draw, shapes)


def paths(tree):
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def noise(*shape, seed=0):
    return np.random.default_rng(seed).normal(0, 1, shape).astype(F)


# ---- sizes -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", [28, 32, 33, 64])
@pytest.mark.parametrize("name", ENCODERS)
def test_every_encoder_from_every_endpoint(name, side):
    if side == 33 and name in ("vit", "toy"):
        side = 36  # their patches divide no 33
    encoder, ends = ends_of(name, side)
    for end in ends:
        made, needed = build(encoder, ends, side, start=end, skips=True, upsample="subpixel")
        assert shape_and_count(made, needed)[0] == (2, side, side, 3), end
    made, needed = build(encoder, ends, side)
    assert list(needed) == [encoder.last]
    assert shape_and_count(made, needed)[0] == (2, side, side, 3)


@pytest.mark.parametrize(
    ("name", "grids"),
    [
        ("cnn", [("block_group3", 4), ("block_group2", 7), ("block_group1", 14)]),
        ("imagenet", [("block_group4", 1), ("block_group3", 2), ("block_group2", 4), ("block_group1", 7),
                      ("initial_conv", 14)]),
        ("cifar", [("block_group4", 4), ("block_group3", 7), ("block_group2", 14), ("block_group1", 28)]),
        ("pad2", [("block_group4", 4), ("block_group3", 8), ("block_group2", 15), ("block_group1", 30)]),
        ("vit", [("tokens", 7)]),
        ("valid", [("c", 3), ("b", 11), ("a", 13)]),
    ],
)  # fmt: skip
def test_the_mirror_goes_up_the_encoders_own_maps(name, grids):
    encoder, ends = ends_of(name, 28)
    ladder = decoder._ladder(encoder, ends, encoder.last)
    assert [(rung.name, rung.maps[0]) for rung in ladder] == grids
    from_features = decoder._ladder(encoder, ends, encoder.features)
    assert [rung.maps[0] for rung in from_features] == [grid for _, grid in grids]


def test_skips_read_more_and_have_more_weights():
    encoder, ends = ends_of("cnn", 28)
    image = jax.ShapeDtypeStruct((2, 28, 28, 3), F)
    without, with_skips = (build(encoder, ends, 28, skips=skips) for skips in (False, True))
    assert list(with_skips[1]) == ["block_group3", "block_group2", "block_group1"]
    counts = [shape_and_count(*without)[1], shape_and_count(*with_skips)[1]]
    counts.append(shape_and_count(*with_skips, image)[1])
    # Channels of the CNN at width 1/8 are 4, 8 and 16; of the decoder at least 8.
    join = [9 * (8 + skip) * 8 + 8 + 16 for skip in (8, 4)]  # kernel, bias, LayerNorm
    assert counts[1] - counts[0] == sum(join)
    assert counts[2] - counts[1] == 9 * (8 + 3) * 8 + 8 + 16
    assert shape_and_count(*without, image)[1] == counts[0]  # it is there for its size alone


def test_steps_by_primes():
    assert decoder._primes([4, 2]) == [(2, 2), (2, 1)]
    assert decoder._primes([6, 1]) == [(2, 1), (3, 1)]
    assert decoder._primes([1, 1]) == []


def test_channels_are_the_encoders():
    encoder, ends = ends_of("vit", 64)
    made, _ = build(encoder, ends, 64)  # patches of 4 pixels
    assert [(level.factor, level.channels) for level in made.levels] == [((2, 2), 16), ((2, 2), 8)]
    encoder, ends = ends_of("imagenet", 64)
    made, _ = build(encoder, ends, 64, width=2.0, channels=50)
    assert [level.channels for level in made.levels] == [50, 32, 16, 16, 8]
    assert all(field.decides == ARCHITECTURE for field in FIELDS.values())


# ---- layers --------------------------------------------------------------------------------------------


def test_fit_is_centred():
    x = np.arange(5, dtype=F).reshape(1, 5, 1, 1)
    assert decoder.fit(x, (3, 1)).ravel().tolist() == [1, 2, 3]
    assert decoder.fit(x, (4, 1)).ravel().tolist() == [0, 1, 2, 3]
    assert decoder.fit(x, (8, 2))[0, :, 1, 0].tolist() == [0, 0, 1, 2, 3, 4, 4, 4]


def test_shuffle_by_its_definition():
    x = noise(2, 3, 4, 6 * 5)
    y = np.asarray(decoder.shuffle(x, (2, 3)))
    assert y.shape == (2, 6, 12, 5)
    for row, column in ((0, 0), (5, 11), (2, 7)):
        place = (row % 2) * 3 + column % 3
        expected = x[:, row // 2, column // 3, 5 * place : 5 * place + 5]
        np.testing.assert_array_equal(y[:, row, column], expected)


def test_icnr_begins_as_nearest_neighbours_of_one_convolution():
    """In float64, by the sum over the taps."""
    x = noise(1, 4, 4, 16)
    raised, params = start(decoder.Up((2, 3), 8, "subpixel", **F32), x)
    one = np.asarray(params["conv"]["kernel"], np.float64)[..., :8]  # of 2 · 3 places
    padded = np.pad(x.astype(np.float64), [(0, 0), (1, 1), (1, 1), (0, 0)])
    convolved = sum(padded[:, i : i + 4, j : j + 4] @ one[i, j] for i in range(3) for j in range(3))
    np.testing.assert_allclose(raised, convolved.repeat(2, axis=1).repeat(3, axis=2), rtol=1e-4, atol=1e-5)
    assert np.var(one) == pytest.approx(2 / (9 * 16), rel=0.15)  # He's, of one place


@pytest.mark.parametrize("upsample", ["resize", "subpixel"])
def test_no_checkerboard_at_the_start(upsample):
    """Maps without structure become an image without structure, where no border is near."""
    encoder, ends = ends_of("cnn", 32)
    made, _ = build(encoder, ends, 32, upsample=upsample, start="block_group2", output="logits")
    y, _ = start(made, {"block_group2": np.broadcast_to(noise(1, 1, 1, 8), (1, 8, 8, 8))})
    inner = y[:, 8:-8, 8:-8]
    assert np.std(y) > 0.01  # at the borders there is something
    np.testing.assert_allclose(inner, np.broadcast_to(inner[:, :1, :1], inner.shape), atol=1e-5)


@pytest.mark.parametrize("upsample", ["resize", "subpixel"])
def test_a_larger_image_is_the_same_away_from_borders(upsample):
    encoder, ends = ends_of("cnn", 16)
    made, _ = build(encoder, ends, 16, upsample=upsample, start="block_group2", skips=True)
    large = {"block_group2": noise(1, 8, 8, 8), "block_group1": noise(1, 16, 16, 4)}
    small = {name: each[:, : each.shape[1] // 2, : each.shape[2] // 2] for name, each in large.items()}
    image = noise(1, 32, 32, 3)
    params = drawn(made, small, image[:, :16, :16])
    whole, crop = apply(made, params, large, image), apply(made, params, small, image[:, :16, :16])
    assert (whole.shape, crop.shape) == ((1, 32, 32, 3), (1, 16, 16, 3))
    # It sees at most 2 + 1 pixels of the second grid, so (3 + 1) · 2 + 1 + 1 of the image.
    np.testing.assert_allclose(crop[:, :6, :6], whole[:, :6, :6], atol=1e-5)
    assert np.abs(crop - whole[:, :16, :16]).max() > 1e-3  # where it lacks its neighbours


def test_any_size_by_the_image_and_a_clear_word_without():
    encoder, ends = ends_of("cnn", 32)
    made, needed = build(encoder, ends, 32)
    _, larger = ends_of("cnn", 64)
    wide = jax.ShapeDtypeStruct((2, 61, 33, 3), F)
    params = jax.eval_shape(functools.partial(made.init, KEY), needed)
    maps = {"block_group3": jax.ShapeDtypeStruct((2, 8, 5, 16), F)}
    assert jax.eval_shape(made.apply, params, maps, wide).shape == wide.shape
    with pytest.raises(SimclrError, match=r"start='block_group3': no maps that fit images of 32 × 32"):
        jax.eval_shape(made.apply, params, {"block_group3": larger["block_group3"]})
    made, needed = build(encoder, ends, 32, start="features")
    with pytest.raises(SimclrError, match=r"makes images of 32 × 32 pixels alone, not 61 × 33"):
        shape_and_count(made, needed, wide)


# ---- outputs and gradients -------------------------------------------------------------------------


@pytest.mark.parametrize("variant", ["mirror", "tutorial", "tokens"])
def test_a_residual_begins_as_the_image(variant):
    encoder, ends = ends_of("vit" if variant == "tokens" else "cnn", 16)
    image = 3 * noise(2, 16, 16, 3)  # it is not clipped either
    made, needed = build(encoder, ends, 16, variant=variant, output="residual")
    y, _ = start(made, {name: noise(*end.shape) for name, end in needed.items()}, image)
    np.testing.assert_array_equal(y, image)
    with pytest.raises(SimclrError, match="'residual': is added to an image, and here is none"):
        shape_and_count(made, needed)


def test_outputs_by_their_formulas():
    x, image = jnp.asarray(noise(1, 2, 2, 3)), jnp.asarray(3 * noise(1, 2, 2, 3, seed=1))
    np.testing.assert_array_equal(decoder._finish(x, image, "logits"), x)
    np.testing.assert_array_equal(decoder._finish(x, image, "residual"), x + image)
    unit = decoder._finish(x.astype(jnp.bfloat16), image, "unit")
    assert unit.dtype == jnp.float32
    rounded = np.asarray(x.astype(jnp.bfloat16), np.float64)
    np.testing.assert_allclose(unit, 1 / (1 + np.exp(-rounded)), rtol=1e-6)


@pytest.mark.parametrize(
    ("options", "dtype"),
    [
        ({"start": "block_group2", "skips": True, "blocks": 2}, "bfloat16"),
        ({"start": "features", "upsample": "subpixel", "norm": "group", "activation": "gelu"}, "float32"),
        ({"start": "block_group2", "norm": "none"}, "float32"),
        ({"variant": "tutorial"}, "bfloat16"),
        ({"variant": "tokens"}, "bfloat16"),
    ],
    ids=["skips", "features", "plain", "tutorial", "tokens"],
)
def test_gradients_reach_every_parameter(options, dtype):
    tokens = options.get("variant") == "tokens"
    encoder, ends = ends_of("vit" if tokens else "cnn", 16)
    made, needed = build(encoder, ends, 16, dtype=dtype, **options)
    values, named = {name: noise(*end.shape).astype(dtype) for name, end in needed.items()}, {}
    if tokens:
        values = {"tokens": values["tokens"][:, :4]}
        named = {"kept": np.array([[3, 0, 7], [15, 2, 1]], np.int32), "condition": noise(2, 5)}
    params, target = drawn(made, values, **named), noise(2, 16, 16, 3)

    def loss(params):
        y = made.apply({"params": params}, values, **named)
        return jnp.mean((y - target) ** 2), y

    found, y = jax.jit(jax.grad(loss, has_aux=True))(params)
    assert (y.dtype, y.shape) == (jnp.float32, target.shape)
    assert np.all((y >= 0) & (y <= 1))
    gradients = paths(found)
    for name, leaf in gradients.items():
        assert leaf.dtype == jnp.float32
        assert np.isfinite(leaf).all(), name
        # The bias of all keys adds the same to each logit of a softmax: its gradient is rounding.
        assert np.any(leaf) or name.endswith("key/bias"), name
    others = [name for name in gradients if not name.endswith(("/kernel", "/bias", "/scale"))]
    assert others == ["mask_token"] * tokens


# ---- tokens ------------------------------------------------------------------------------------------


def test_tokens_find_their_places():
    """The order in which the patches were seen does not matter, and hidden ones get the mask token."""
    encoder, ends = ends_of("vit", 16)
    made, _ = build(encoder, ends, 16, variant="tokens")
    kept, tokens = np.array([[5, 0, 11, 9], [1, 2, 3, 15]], np.int32), noise(2, 5, 32)
    params = drawn(made, {"tokens": tokens}, kept=kept)
    order = np.array([2, 0, 3, 1])
    shuffled = np.concatenate([tokens[:, :1], tokens[:, 1:][:, order]], axis=1)
    seen, numbers = np.concatenate([tokens, shuffled, tokens]), np.concatenate([kept, *[kept[:, order]] * 2])
    y, again, wrong = np.split(apply(made, params, {"tokens": seen}, kept=numbers), 3)
    np.testing.assert_allclose(again, y, atol=1e-5)
    assert np.abs(wrong - y).max() > 1e-3
    # By hand: all tokens given, and the hidden ones such that they are embedded as the mask token.
    kernel, bias = (np.asarray(params["embed"][leaf], np.float64) for leaf in ("kernel", "bias"))
    whole = np.tile(np.linalg.solve(kernel.T, np.asarray(params["mask_token"]) - bias), (2, 17, 1))
    whole[:, 0] = tokens[:, 0]
    for row in range(2):
        whole[row, 1 + kept[row]] = tokens[row, 1:]
    np.testing.assert_allclose(apply(made, params, {"tokens": whole.astype(F)}), y, atol=1e-3)


def test_the_condition_is_of_each_image():
    encoder, ends = ends_of("vit", 16)
    made, _ = build(encoder, ends, 16, variant="tokens")
    values, condition = {"tokens": np.repeat(noise(1, 17, 32), 3, axis=0)}, noise(3, 4)
    condition[1] = condition[0]
    one, same, other = apply(made, drawn(made, values, condition=condition), values, condition=condition)
    np.testing.assert_allclose(one, same, atol=1e-6)
    assert np.abs(one - other).max() > 1e-3


def test_positions_are_those_of_the_grid():
    """Blocks that add nothing: what is left is embedding, position, LayerNorm and pixels; in float64."""
    encoder, ends = ends_of("vit", 16)
    made, _ = build(encoder, ends, 16, variant="tokens", output="logits")
    tokens = noise(1, 17, 32)
    params = drawn(made, {"tokens": tokens})
    for last in (params["block1"]["attention"]["out"], params["block1"]["dense2"]):
        last.update({leaf: np.zeros_like(value) for leaf, value in last.items()})
    y = apply(made, params, {"tokens": tokens})
    wide = {
        name: {leaf: np.float64(value) for leaf, value in params[name].items()}
        for name in ("embed", "norm", "out")
    }
    x = tokens[:, 1:] @ wide["embed"]["kernel"] + wide["embed"]["bias"] + vit.sincos(4, 4, 32)
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    x = (x * wide["norm"]["scale"] + wide["norm"]["bias"]) @ wide["out"]["kernel"] + wide["out"]["bias"]
    expected = x.reshape(1, 4, 4, 4, 4, 3).transpose(0, 1, 3, 2, 4, 5).reshape(y.shape)
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("pool", ["token", "mean"])
def test_a_vit_that_sees_a_part(pool):
    """All patches in order are the whole; otherwise the tokens of the others are not there."""
    fields = {**default().model.vit, **VIT, "depth": 1, "pool": pool}
    encoder, images = encoder_of("vit", vit=fields), noise(2, 16, 16, 3)
    params, prefix = drawn(encoder, images, False), int(pool == "token")
    forward = jax.jit(functools.partial(encoder.apply, {"params": params}, train=False))
    everything = np.broadcast_to(np.arange(16, dtype=np.int32), (2, 16))
    whole, same = forward(images), forward(images, kept=everything)
    assert set(whole) - set(same) == {"attention"}
    for name in same:
        np.testing.assert_allclose(same[name], whole[name], rtol=0, atol=1e-5, err_msg=name)

    kept = np.array([[9, 2, 14], [0, 15, 7]], np.int32)
    # What is hidden is not seen, and the order does not matter.
    patches = images.reshape(2, 4, 4, 4, 4, 3).copy()
    for image, seen in enumerate(kept.tolist()):
        for hidden in set(range(16)) - set(seen):
            patches[image, hidden // 4, :, hidden % 4] = 7
    pixels = np.concatenate([images, patches.reshape(images.shape), images])
    ends = forward(pixels, kept=np.concatenate([kept, kept, kept[:, [2, 0, 1]]]))
    for name, end in ends.items():
        one, changed, again = np.split(np.asarray(end), 3)
        np.testing.assert_allclose(changed, one, atol=1e-5, err_msg=name)
        if name == "features":
            np.testing.assert_allclose(again, one, atol=1e-5)
    embedded, all_of_them = np.asarray(ends["embedding"][:2]), np.asarray(whole["embedding"])
    seen = np.take_along_axis(all_of_them, prefix + kept[..., None], axis=1)
    np.testing.assert_allclose(embedded[:, prefix:], seen, atol=1e-6)
    np.testing.assert_array_equal(embedded[:, :prefix], all_of_them[:, :prefix])
    if pool == "mean":
        np.testing.assert_allclose(ends["features"], ends["tokens"].mean(1), atol=1e-6)
    assert encoder.maps("tokens", ends["tokens"]) is None


# ---- the tutorials' pair -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("side", "channels", "sides", "count"),
    [(28, 1, [14, 7, 4], 855_489), (32, 3, [16, 8, 4], 857_539)],
)
def test_the_tutorials_network(side, channels, sides, count):
    """Weights and biases of three 4×4 convolutions, a dense layer, and back."""
    encoder = tutorial.create(default().model, **F32)
    x = jax.ShapeDtypeStruct((2, side, side, channels), F)
    ends, variables = jax.eval_shape(lambda x: encoder.init_with_output(KEY, x, True), x)
    for i, (s, width) in enumerate(zip(sides, (32, 64, 128), strict=True), 1):
        assert ends[f"block_group{i}"].shape == (2, s, s, width)
    assert ends["features"].shape == (2, 128)
    made, needed = build(encoder, ends, side, channels, variant="tutorial")
    assert list(needed) == ["features"]
    shape, of_decoder = shape_and_count(made, needed)
    of_encoder = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(variables))
    assert (shape, of_encoder + of_decoder) == (x.shape, count)
    flat = {"model.tutorial.features": 128, "model.width": 1.0, "data.channels": channels}
    facts = tutorial_fields.FACTS
    assert facts.parameters(flat | {"data.image_size": side}) == (pytest.approx(of_encoder, rel=0.01), 128)
    assert facts.stages(flat) == len(encoder.stages) - 1


def test_the_tutorials_encoder_keeps_the_contract():
    encoder, images = encoder_of("tutorial"), noise(2, 16, 16, 1)
    params = drawn(encoder, images, True)
    stages = {name: encoder.stage_of(name) for name in paths(params)}
    assert set(stages.values()) == set(range(len(encoder.stages)))
    for unknown in ("conv4/kernel", "conv1", "features/kernel", "dense/scale"):
        with pytest.raises(ValueError, match="no parameter"):
            encoder.stage_of(unknown)

    def loss(params):
        return jnp.sum(jnp.sin(encoder.apply({"params": params}, images, True, 1)["features"]))

    for name, leaf in paths(jax.jit(jax.grad(loss))(params)).items():
        assert bool(np.any(leaf)) == (stages[name] > 1), name
    with pytest.raises(SimclrError, match="these have 256: give images of its own size"):
        encoder.apply({"params": params}, noise(1, 32, 32, 1), False)
    small, large = (jax.ShapeDtypeStruct((side, side, 1), F) for side in (16, 32))
    assert encoder.adapt(params, small, small) is params
    with pytest.raises(SimclrError, match=r"config\.data\.image_size=32: must be 16"):
        encoder.adapt(params, small, large)


# ---- what does not fit -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"start": "block_group9"}, r"start='block_group9': this encoder has .*block_group3"),
        ({"variant": "tokens"}, r"variant='tokens': is for tokens on a grid"),
        ({"variant": "tutorial", "start": "block_group1"}, "must be features for variant=tutorial"),
    ],
    ids=["start", "tokens", "tutorial"],
)
def test_what_does_not_fit_is_told(options, message):
    with pytest.raises(SimclrError, match=message):
        build(*ends_of("cnn", 28), 28, **options)


def test_only_tokens_take_hidden_patches():
    encoder, ends = ends_of("vit", 16)
    kept = jax.ShapeDtypeStruct((2, 4), np.int32)
    for variant in ("mirror", "tutorial"):
        with pytest.raises(SimclrError, match=r"decoder\.variant="):
            shape_and_count(*build(encoder, ends, 16, variant=variant), None, kept)
    with pytest.raises(
        SimclrError, match="17 tokens do not fit images of 16 × 16 pixels in patches of 4 × 4"
    ):
        shape_and_count(*build(encoder, ends, 16, variant="tokens"), None, kept)


def test_rows_of_a_table_have_no_images():
    encoder = registry.load(registry.ENCODERS, "mlp", "model.encoder")(tiny_config().model, **F32)
    rows = jax.ShapeDtypeStruct((2, 9), F)
    ends = jax.eval_shape(lambda x: encoder.init_with_output(KEY, x, True)[0], rows)
    with pytest.raises(SimclrError, match="takes rows of a table"):
        decoder.create(DEFAULTS, encoder, ends, jax.ShapeDtypeStruct((9,), F), **F32)
