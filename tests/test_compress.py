"""Pruning against the network whose pruned channels are zero; int8 against float32."""

import jax
import numpy as np
import pytest

import simclr_jax
from simclr_jax import encoder
from simclr_jax.compress import layout, prune
from simclr_jax.config import default, set_field
from simclr_jax.convert import names
from simclr_jax.convert import workdir as conversion
from simclr_jax.errors import SimclrError
from simclr_jax.models import simclr

SMALL = {"depth": 18, "blocks": (1, 2, 1, 1), "width": 0.125, "stem": "cifar"}
MODELS = {  # name: fields of config.model
    "basic": SMALL | {"se_ratio": 0.5, "norm_groups": 2, "projection_layers": 3, "probe_layer": 1},
    "basic as torchvision": SMALL | {"variant": "torch", "stem": "imagenet", "projection": "linear"},
    "bottleneck as torchvision": SMALL | {"depth": 50, "variant": "torch", "projection": "none"},
    "selective kernels": SMALL | {"depth": 50, "sk_ratio": 2.5, "se_ratio": 0.25, "stem": "imagenet"},
    "cnn": {"encoder": "cnn", "width": 0.25},
    "vit": {"encoder": "vit", "vit.width": 32, "vit.depth": 2, "vit.heads": 2, "vit.patch": 8},
}


def random_encoder(fields, seed=0, classes=3):
    """An encoder with all its parameters drawn, no BatchNorm scale 0, in float64."""
    config = default()
    for field, value in {**fields, "dtype": "float64"}.items():
        set_field(config, f"model.{field}", value)
    config.data.image_size = 32
    model = simclr.create(config.model, classes=classes)
    shapes = jax.eval_shape(
        lambda: simclr.init(model, jax.random.key(0), np.zeros((2, 32, 32, 3), np.float32))
    )
    rng = np.random.default_rng(seed)
    drawn = jax.tree.map(lambda x: rng.uniform(0.5, 1, x.shape) * rng.choice([-0.5, 0.5], x.shape), shapes)
    variables = {"params": drawn["params"]}
    if "batch_stats" in drawn:
        variables["batch_stats"] = jax.tree.map(np.abs, drawn["batch_stats"])
    return encoder.Encoder(config, tuple("abc")[:classes], 7, variables)


def silenced(source, wanted, seed=1):
    """(variables, {space: kept}): of every space a random part of the channels is 0 wherever it is made."""
    rng, params = np.random.default_rng(seed), source.variables["params"]
    variables = jax.tree.map(np.copy, source.variables)
    found, kept = layout.layers(source.config.model, params), {}
    for layer in found:
        path = tuple(layer.path.split("/"))
        leaves, copies = names.get(variables["params"], path), 1 + (path[-1] in ("sk_conv", "sk_norm"))
        for leaf, array in leaves.items() if layer.writes and not layer.gate else ():
            size, room = (x.shape[-1] // copies for x in (array, names.get(wanted["params"], path)[leaf]))
            if layer.writes not in kept:
                kept[layer.writes] = np.sort(rng.permutation(size)[:room])
            array.reshape(-1, size)[:, np.setdiff1d(np.arange(size), kept[layer.writes])] = 0
    return variables, kept


@pytest.fixture
def exact():
    with jax.enable_x64(True):
        yield


def ends(encoder):
    """Its endpoints of two images, by one compiled program."""
    images = np.random.default_rng(2).random((2, 32, 32, 3)).astype(np.float64)
    return jax.jit(lambda v: simclr.endpoints(encoder.model, v, images))(encoder.variables)


@pytest.mark.parametrize("name", MODELS)
def test_without_channels_that_are_zero_nothing_changes(name, exact):
    source = random_encoder(MODELS[name])
    config = prune.narrower(source.config, 0.5)
    wanted = prune.shapes(config, source.reader.spec(), 3)
    source.variables, kept = silenced(source, wanted)
    small = encoder.Encoder(config, source.classes, 7, prune.pruned(source, config))
    assert jax.tree.map(np.shape, small.variables) == jax.tree.map(lambda x: x.shape, wanted)
    count, less = (sum(x.size for x in jax.tree.leaves(e.variables)) for e in (source, small))
    assert less < count
    before, after = ends(source), ends(small)
    name_of_features, columns = source.model.encoder.features, slice(None)
    features = np.asarray(before[name_of_features])
    space = layout.ENCODERS[config.model.encoder](source.variables["params"]["encoder"])[1]
    if space:
        size = features.shape[1] // (4 if name == "cnn" else 1)
        columns = np.concatenate([kept[space] + i for i in range(0, features.shape[1], size)])
    heads = ["logits"] + ["projection"] * (config.model.projection != "none")
    for end, of in {name_of_features: columns, **dict.fromkeys(heads, slice(None))}.items():
        expected = np.asarray(before[end])[:, of]
        np.testing.assert_allclose(after[end], expected, rtol=1e-9, atol=1e-12)
        assert np.abs(expected).max() > 0
