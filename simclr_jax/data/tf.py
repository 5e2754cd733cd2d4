"""The one door to TensorFlow: imported late, kept off the accelerator, quiet."""

import functools
import os


@functools.cache
def load():
    """TensorFlow, for input pipelines only.

    The import takes seconds, and TensorFlow would otherwise reserve the accelerator's memory.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    import jax

    jax.devices()  # JAX takes its devices first
    import tensorflow as tf

    tf.config.set_visible_devices([], "GPU")
    tf.config.set_visible_devices([], "TPU")
    return tf
