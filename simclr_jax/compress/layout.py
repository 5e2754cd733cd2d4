"""Which layer reads and writes which channels, so that a channel can leave all of them at once.

A space is a set of channels that stand and fall together: those inside a block by themselves, those of a
group's residual stream for all its blocks.
"""

import itertools
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from simclr_jax.errors import SimclrError
from simclr_jax.models.projection import PROJECTIONS

ALL = ""  # the space of channels that all stay: colours, classes, z


class Layer(NamedTuple):
    """A kernel, whose last two axes are inputs and outputs, or a norm, with the spaces of its channels.

    An axis may hold a space several times over, one copy behind the other: the two streams of selective
    kernels, the four quadrants of the small CNN's features.
    """

    path: str  # group1_block1/conv0, below `encoder`; or projection/dense0
    reads: str
    writes: str
    gate: bool = False  # it scales channels that another layer makes, and says nothing of their importance


def layers(config: ConfigDict, params: Mapping[str, Any]) -> list[Layer]:
    """The layers of a `config.model` that have channels to lose, the heads included.

    Args:
      params: {encoder, projection, probe}, of which the last two may be missing or incomplete.

    Raises:
      SimclrError: the encoder is of another kind.
    """
    if config.encoder not in ENCODERS:
        raise SimclrError(
            f"config.model.encoder={config.encoder!r}: is not pruned; {', '.join(ENCODERS)} are"
        )
    inside, features = ENCODERS[config.encoder](params["encoder"])
    found = [layer._replace(path=f"encoder/{layer.path}") for layer in inside]
    count = PROJECTIONS[config.projection](config.projection_layers)
    spaces = [features, *(f"projection{i}" for i in range(count - 1)), ALL]  # the last is z
    for i in range(count):
        if f"dense{i}" in params.get("projection", {}):
            found.append(Layer(f"projection/dense{i}", spaces[i], spaces[i + 1]))
            found.append(Layer(f"projection/norm{i}", ALL, spaces[i + 1]))
    if "probe" in params:
        found.append(Layer("probe/dense", spaces[config.probe_layer], ALL))
    return found


def _resnet(params: Mapping[str, Any]) -> tuple[list[Layer], str]:
    found, stream = [], ALL
    for i in ("0", "1", ""):
        if f"stem_conv{i}" in params:
            found += _convolution(f"stem_conv{i}", f"stem_norm{i}", stream, f"stem{i}")
            stream = f"stem{i}"
    for name in sorted((name for name in params if "_block" in name), key=_numbers):
        out = stream
        if "shortcut_conv" in params[name]:
            out = f"group{_numbers(name)[0]}"
            found += _convolution(f"{name}/shortcut_conv", f"{name}/shortcut_norm", stream, out)
        found += _block(name, params[name], stream, out)
        stream = out
    return found, stream


def _numbers(block: str) -> list[int]:
    """[3, 12] of group3_block12."""
    return [int(number) for number in re.findall(r"\d+", block)]


def _block(name: str, params: Mapping[str, Any], stream: str, out: str) -> Iterator[Layer]:
    """The branch of a block, whose shortcut adds `stream` or its projection to `out`."""
    here, count = stream, 3 if "conv2" in params else 2
    for i in range(count):
        there = out if i == count - 1 else f"{name}/{i}"
        if f"conv{i}" in params:
            yield from _convolution(f"{name}/conv{i}", f"{name}/norm{i}", here, there)
        else:  # selective kernels
            yield from _convolution(f"{name}/sk_conv", f"{name}/sk_norm", here, there)
            yield from _convolution(f"{name}/sk_reduce", f"{name}/sk_reduce_norm", there, f"{name}/sk")
            yield Layer(f"{name}/sk_expand", f"{name}/sk", there, gate=True)
        here = there
    if "se_reduce" in params:
        yield Layer(f"{name}/se_reduce", out, f"{name}/se")
        yield Layer(f"{name}/se_expand", f"{name}/se", out, gate=True)


def _convolution(conv: str, norm: str, reads: str, writes: str) -> tuple[Layer, Layer]:
    return Layer(conv, reads, writes), Layer(norm, ALL, writes)


def _cnn(params: Mapping[str, Any]) -> tuple[list[Layer], str]:
    found, stream = [], ALL
    for i in range(1, len(params) // 2 + 1):
        found += _convolution(f"conv{i}", f"norm{i}", stream, f"group{i}")
        stream = f"group{i}"
    return found, stream


def _vit(params: Mapping[str, Any]) -> tuple[list[Layer], str]:
    """The hidden units of every block's MLP; of tokens and heads the config holds the sizes together."""
    blocks = [name for name in params if name.startswith("block")]
    pairs = [(Layer(f"{b}/dense1", ALL, b), Layer(f"{b}/dense2", b, ALL)) for b in blocks]
    return [layer for pair in pairs for layer in pair], ALL


def _mlp(params: Mapping[str, Any]) -> tuple[list[Layer], str]:
    spaces = [ALL, *(f"layer{i}" for i in range(1, len(params) + 1))]
    return [Layer(to, of, to) for of, to in itertools.pairwise(spaces)], spaces[-1]


ENCODERS = {"resnet": _resnet, "cnn": _cnn, "vit": _vit, "mlp": _mlp}
