"""TensorFlow's SavedModel: the encoder of a run for TensorFlow and its server, by jax2tf.

    import tensorflow as tf
    model = tf.saved_model.load("encoder")  # keep it: its variables live as long as it does
    encode = model.signatures["serving_default"]
    features = encode(images=tf.constant(images))["features"]  # uint8 [n, h, w, c]

The graph holds one operator, XlaCallModule, with the StableHLO of the encoder.
"""

from pathlib import Path
from typing import Any

import jax
import numpy as np

from simclr_jax.data import tf as late
from simclr_jax.encoder import Encoder
from simclr_jax.export import card, preprocess
from simclr_jax.export.contract import Options, Runner, Written

SIGNATURE = "serving_default"
PLATFORMS = ("cpu", "cuda", "tpu")


def write(encoder: Encoder, endpoints: tuple[str, ...], path: Path, options: Options) -> Written:
    """Writes the folder; see `formats`. The parameters are TensorFlow's variables in it."""
    tf = late.load()
    module = convert(encoder, endpoints)
    tf.saved_model.save(module, str(path), signatures={SIGNATURE: module.encode})
    return Written([Path(path)], runner(Path(path)), {"versions": {"tensorflow": tf.__version__}})


def convert(encoder: Encoder, endpoints: tuple[str, ...]) -> Any:
    """A `tf.Module` whose `encode` takes images, uint8 `[n, h, w, c]` of any n, h and w."""
    tf = late.load()
    from jax.experimental import jax2tf  # imports TensorFlow

    channels = card.reader(encoder).channels
    apply = jax2tf.convert(
        preprocess.function(encoder, endpoints),
        polymorphic_shapes=[None, f"(n, h, w, {channels})"],
        native_serialization_platforms=PLATFORMS,
        with_gradient=False,
    )
    module = tf.Module()
    module.parameters = jax.tree.map(tf.Variable, preprocess.needed(encoder, endpoints))

    def encode(images: Any) -> Any:
        return apply(module.parameters, images)

    images = tf.TensorSpec([None, None, None, channels], tf.uint8, name="images")
    module.encode = tf.function(encode, input_signature=[images], autograph=False)
    return module


def runner(path: Path) -> Runner:
    """The folder in TensorFlow, on the CPU."""
    tf = late.load()
    # TensorFlow frees the variables with the model: keep it.
    model = tf.saved_model.load(str(path))

    def run(images: np.ndarray) -> dict[str, np.ndarray]:
        found = model.signatures[SIGNATURE](images=tf.constant(images))
        return {name: each.numpy() for name, each in found.items()}

    return run
