"""ONNX files compute what the run computes, for every kind of encoder."""

import json
from pathlib import Path

import conftest
import jax
import numpy as np
import onnx
import onnxruntime
import pytest
import toys

from simclr_jax import files, registry
from simclr_jax.encoder import Encoder
from simclr_jax.errors import SimclrError
from simclr_jax.export import __main__ as command
from simclr_jax.export import onnx_model, run, service
from simclr_jax.export.contract import Options
from simclr_jax.models import simclr

RESNET = {"encoder": "resnet", "width": 0.125, "blocks": (1, 1), "stem": "cifar", "depth": 50}
VIT = {"encoder": "vit", "vit__patch": 8, "vit__width": 16, "vit__depth": 2, "vit__heads": 2}
VARIANTS = {  # fields of config.model; size: of images, 32 unless told
    "cnn": {"encoder": "cnn", "width": 0.125},
    "cnn, odd maps": {"encoder": "cnn", "width": 0.125, "size": 36},
    "cnn, groups": {"encoder": "cnn", "width": 0.125, "norm_groups": 4},
    "tutorial": {"encoder": "tutorial", "width": 0.125, "size": 28},
    "resnet50": {**RESNET, "blocks": (2, 1)},
    "resnet18": {**RESNET, "depth": 18},
    "resnet18, torch": {**RESNET, "depth": 18, "variant": "torch"},
    "resnet50, torch, large stem": {**RESNET, "variant": "torch", "stem": "imagenet", "size": 65},
    "large stem": {**RESNET, "stem": "imagenet", "size": 66},
    "large stem, odd": {**RESNET, "stem": "imagenet", "depth": 18, "size": 75},
    "padded stem": {**RESNET, "stem": "cifar_pad2", "depth": 18},
    "selective kernels": {**RESNET, "sk_ratio": 0.0625},
    "selective kernels, large stem": {**RESNET, "sk_ratio": 0.0625, "stem": "imagenet", "size": 72},
    "basic blocks of sk": {**RESNET, "sk_ratio": 0.0625, "depth": 18, "size": 30},
    "squeeze and excitation": {**RESNET, "se_ratio": 0.25},
    "both, bfloat16": {**RESNET, "sk_ratio": 0.0625, "se_ratio": 0.25, "dtype": "bfloat16"},
    "vit": VIT,
    "vit, learned": {**VIT, "vit__positions": "learned", "vit__layer_scale": 0.1, "vit__qkv_bias": False},
    "vit, mean": {**VIT, "vit__pool": "mean", "size": 40},
}
# The bound of the issue, over the values' root mean square.
LIMIT = 1e-4


def an_encoder(classes=3, size=32, channels=3, data=(), seed=0, **fields):
    """An encoder with random parameters and random moving averages."""
    fields = {f"model__{name}": value for name, value in fields.items()}
    fields |= {"data__image_size": size, "data__channels": channels, **dict(data)}
    config = conftest.tiny_config(**fields)
    names = tuple("abcdefghij"[:classes])
    model = simclr.create(config.model, classes=classes)
    example = jax.ShapeDtypeStruct((2, size, size, channels), model.encoder.dtype)
    shapes = jax.eval_shape(lambda x: simclr.init(model, jax.random.key(0), x), example)
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        name = path[-1].key
        if name in ("var", "scale"):
            return rng.uniform(0.5, 2, leaf.shape).astype(np.float32)
        scale = np.sqrt(2 / max(np.prod(leaf.shape[:-1]), 1)) if name == "kernel" else 0.3
        return (scale * rng.standard_normal(leaf.shape)).astype(np.float32)

    variables = jax.tree_util.tree_map_with_path(draw, shapes)
    return run.in_float32(Encoder(config, names, 7, variables))


def session_of(encoder, endpoints, full=True):
    """{endpoint: values} of the ONNX graph, as a function of images; the model has passed the checker."""
    model = onnx_model.build(encoder, endpoints)
    onnx.checker.check_model(model, full_check=full)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return lambda images: dict(zip(endpoints, session.run(list(endpoints), {"images": images}), strict=True))


def photos(n, height, width, channels=3, seed=1):
    """Smooth uint8 images."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (n, -(-height // 8), -(-width // 8), channels))
    smooth = np.kron(coarse, np.ones((1, 8, 8, 1)))[:, :height, :width]
    return np.clip(smooth + rng.normal(0, 20, smooth.shape), 0, 255).astype(np.uint8)


def apart(found, right):
    """The largest difference over the root mean square."""
    assert found.shape == right.shape
    assert found.dtype == np.float32
    return np.max(np.abs(found - right)) / np.sqrt(np.mean(right**2))


@pytest.mark.parametrize("name", VARIANTS)
def test_every_endpoint_of_every_encoder(name):
    encoder = an_encoder(**VARIANTS[name])
    images = photos(5, 40, 52)
    right = {each: x for each, x in run.reference(encoder, every_endpoint(encoder))(images).items()}
    found = session_of(encoder, tuple(right))(images)
    assert {"features", "projection", "projection_1", "logits"} < right.keys()
    assert {
        each: apart(found[each], right[each]) for each in right if apart(found[each], right[each]) > LIMIT
    } == {}


def every_endpoint(encoder):
    side, channels = encoder.reader.size, encoder.reader.channels
    example = jax.ShapeDtypeStruct((1, side, side, channels), np.float32)
    ends = jax.eval_shape(lambda x: simclr.endpoints(encoder.model, encoder.variables, x), example)
    return ("features", *(each for each in ends if each != "features"))
