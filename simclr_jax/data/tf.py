"""The only import of TensorFlow: late, quiet, and without accelerators."""

import contextlib
import functools
import os
import sys
import tempfile
from collections.abc import Iterator

from simclr_jax.errors import SimclrError


@functools.cache
def load():
    """TensorFlow, for input pipelines only.

    Imports it late, because that takes seconds. Hides the accelerators from it, because it would reserve
    their memory.

    Raises:
      SimclrError: it is not installed.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # errors come as exceptions
    import jax

    jax.devices()  # JAX takes its devices first
    try:
        with quietly():
            import tensorflow as tf
    except ModuleNotFoundError as error:
        if error.name != "tensorflow":
            raise
        raise SimclrError(
            "TensorFlow, which reads these images, is not installed: pip install tensorflow-cpu; or train "
            "from memory, which needs none: --config.augment.device=all, with arrays, npz: or builtin:"
        ) from None

    tf.config.set_visible_devices([], "GPU")
    tf.config.set_visible_devices([], "TPU")
    return tf


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Holds back C++ output to stderr, which ignores the log level; shows it on an error."""
    sys.stderr.flush()
    before = os.dup(2)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        except BaseException:
            held.seek(0)
            os.write(before, held.read())
            raise
        finally:
            os.dup2(before, 2)
            os.close(before)
