"""LiteRT (TensorFlow Lite): the encoder of a run as one file for phones and small devices.

    from ai_edge_litert.interpreter import Interpreter  # pip install ai-edge-litert
    encode = Interpreter("encoder.tflite").get_signature_runner()
    features = encode(images=images)["features"]  # uint8 [n, h, w, c]

TensorFlow's converter turns the StableHLO of jax2tf into LiteRT's own operators, for any n, h and w.
"""

import importlib
import warnings
from pathlib import Path
from typing import Any

from simclr_jax.data import tf as late
from simclr_jax.encoder import Encoder
from simclr_jax.errors import SimclrError, one_line
from simclr_jax.export import savedmodel
from simclr_jax.export.contract import Options, Runner, Written


def write(encoder: Encoder, endpoints: tuple[str, ...], path: Path, options: Options) -> Written:
    """Writes the .tflite file; see `formats`.

    Raises:
      SimclrError: LiteRT has no operator for a part of the encoder.
    """
    tf = late.load()
    module = savedmodel.convert(encoder, endpoints)
    converter = tf.lite.TFLiteConverter.from_concrete_functions(
        [module.encode.get_concrete_function()], module
    )
    content, why = b"", ""
    with late.quietly():
        try:
            content = converter.convert()
        except Exception as error:  # of its C++ parts, of many types
            why = one_line(error)
    if why:
        raise SimclrError(f"--format=litert: its converter refuses this encoder ({why})")
    Path(path).write_bytes(content)
    return Written([Path(path)], runner(content), {"versions": {"tensorflow": tf.__version__}})


def runner(content: bytes) -> Runner:
    """The file in LiteRT's interpreter, or in TensorFlow's where that is not installed."""
    with late.quietly():
        encode = interpreter(content).get_signature_runner()
    return lambda images: encode(images=images)


def interpreter(content: bytes) -> Any:
    """LiteRT's, or TensorFlow's own copy of it, which warns that it will go."""
    try:
        lite = importlib.import_module("ai_edge_litert.interpreter")
    except ImportError:
        lite = late.load().lite
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return lite.Interpreter(model_content=content)
