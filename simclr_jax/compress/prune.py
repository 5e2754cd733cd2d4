"""Structured pruning: whole channels leave, and what stays is the same architecture with a smaller width.

Channels of a small BatchNorm scale leave (Liu et al., arXiv 1708.06519, section 3), or filters of a small L1
norm (Li et al., arXiv 1608.08710, section 3.1); those of a residual stream by the sum over all blocks that
write it.
"""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from simclr_jax import encoder, paths
from simclr_jax.compress.layout import ALL, Layer, layers
from simclr_jax.config import bounds, checks, flatten, set_field
from simclr_jax.convert import names
from simclr_jax.convert import workdir as conversion
from simclr_jax.errors import SimclrError
from simclr_jax.models import simclr
from simclr_jax.models.vit_fields import shape_of


def prune(
    workdir: epath.PathLike, keep: float, out: epath.PathLike, step: int = 0, by: str = "bn"
) -> list[str]:
    """Writes the workdir `out`: the run's encoder and heads with the share `keep` of their channels.

    Args:
      by: "bn", the scale of their BatchNorm, or "l1", the norm of filters; l1 where there is no BatchNorm.

    Returns:
      lines for the user: what became of the parameters, and the command that fine-tunes.

    Raises:
      SimclrError: the encoder or its decoder cannot be pruned, `keep` leaves nothing, or `out` is taken.
    """
    conversion.check_free(out)
    source = encoder.load(workdir, step)
    if "decoder" in source.variables["params"]:
        raise SimclrError(f"{workdir}: has a decoder, which is not pruned; give a run without one")
    config = narrower(source.config, keep)
    variables = pruned(source, config, by)
    conversion.write(
        out,
        config,
        variables,
        step=source.step,
        origin=f"{paths.absolute(workdir).name}, step {source.step}, {keep:g} of the channels by {by}",
        data=source.data,
    )
    before, after = (sum(x.size for x in jax.tree.leaves(v["params"])) for v in (source.variables, variables))
    return [
        f"{out}: {after:,} parameters of {before:,} ({after / before:.0%}), {told(config)}",
        f"fine-tune it as it was trained, by --config.start.workdir={out}",
    ]


def narrower(config: ConfigDict, keep: float) -> ConfigDict:
    """The run's config with `keep` of its channels: config.model.width, or what the encoder has for it.

    Raises:
      SimclrError: `keep` is no share, or leaves less than one of them.
    """
    if not 0 < keep <= 1:
        raise SimclrError(f"--keep={keep:g}: must be above 0 and at most 1, like 0.5")
    config = config.copy_and_resolve_references()
    kind = config.model.encoder
    if kind in ("vit", "mlp"):
        field = {"vit": "model.vit.mlp", "mlp": "model.mlp.hidden"}[kind]
        before = shape_of(config.model.vit).mlp if kind == "vit" else config.model.mlp.hidden
        set_field(config, field, round(before * keep))
        if round(before * keep) < 1:
            raise SimclrError(f"--keep={keep:g}: leaves none of {before}; take {1 / before:.3g} or more")
    else:
        set_field(config, "model.width", config.model.width * keep)
    bounds.check(flatten(config))
    checks.check_size(flatten(config))
    return config


def told(config: ConfigDict) -> str:
    """The field that `narrower` changed."""
    field = {"vit": "vit.mlp", "mlp": "mlp.hidden"}.get(config.model.encoder, "width")
    return f"config.model.{field}={flatten(config)[f'model.{field}']:g}"


def pruned(source: encoder.Encoder, config: ConfigDict, by: str = "bn") -> dict[str, Any]:
    """The source's variables with only the channels that the model of `config` has room for.

    Every space keeps its most important channels, in their order.

    Raises:
      SimclrError: a layer comes out in another shape than the model of `config` has.
    """
    wanted = shapes(config, source.reader.spec(), len(source.classes))
    variables = {  # without what objectives have learned
        name: {part: tree for part, tree in parts.items() if part in wanted["params"]}
        for name, parts in source.variables.items()
    }
    found = layers(config.model, variables["params"])
    sizes, room = _sizes(found, variables), _sizes(found, wanted)
    kept = {
        space: best(importance(space, size, found, variables, by), room[space])
        for space, size in sizes.items()
    }
    by_path = {tuple(layer.path.split("/")): layer for layer in found}

    def take(path: Any, array: np.ndarray) -> np.ndarray:
        keys = tuple(key.key for key in path)
        layer = by_path.get(keys[1:-1])
        for axis, space in _axes(layer, keys[-1]) if layer else ():
            index, size = kept[space], sizes[space]
            copies = array.shape[axis] // size
            array = np.take(array, np.concatenate([index + size * i for i in range(copies)]), axis)
        should = names.get(wanted, keys).shape
        if array.shape != should:
            raise SimclrError(
                f"{'/'.join(keys[1:])}: comes out as {list(array.shape)}, and the model of this width has "
                f"{list(should)}; take another --keep"
            )
        return array

    return jax.tree_util.tree_map_with_path(take, variables)


def shapes(config: ConfigDict, example: jax.ShapeDtypeStruct, classes: int) -> Any:
    """The variables of the whole model of a config, as shapes."""
    model = simclr.create(config.model, classes=classes)
    inputs = jax.ShapeDtypeStruct((2, *example.shape), example.dtype)
    return jax.eval_shape(lambda x: simclr.init(model, jax.random.key(0), x), inputs)


def _axes(layer: Layer, leaf: str) -> list[tuple[int, str]]:
    """(axis, space) of the channels that one of a layer's arrays can lose; all but kernels have one axis."""
    pairs = [(-2, layer.reads), (-1, layer.writes)] if leaf == "kernel" else [(-1, layer.writes)]
    return [(axis, space) for axis, space in pairs if space != ALL]


def _sizes(found: list[Layer], variables: Mapping[str, Any]) -> dict[str, int]:
    """{space: channels}: its shortest axis, as others hold it several times."""
    sizes: dict[str, int] = {}
    for layer in found:
        kernel = names.get(variables["params"], tuple(layer.path.split("/"))).get("kernel")
        if kernel is None:
            continue
        for axis, space in _axes(layer, "kernel"):
            sizes[space] = min(kernel.shape[axis], sizes.get(space, kernel.shape[axis]))
    return sizes


def importance(
    space: str, size: int, found: list[Layer], variables: Mapping[str, Any], by: str
) -> np.ndarray:
    """How much each of a space's channels weighs, `[size]`, summed over the layers that write it."""
    total, scales = np.zeros(size), np.zeros(size)
    for layer in found:
        if layer.writes != space or layer.gate:
            continue
        leaves = names.get(variables["params"], tuple(layer.path.split("/")))
        if "kernel" in leaves:
            kernel = np.abs(np.asarray(leaves["kernel"], np.float64))
            total += kernel.reshape(-1, kernel.shape[-1]).sum(axis=0).reshape(-1, size).sum(axis=0)
        else:
            scales += np.abs(np.asarray(leaves["scale"], np.float64)).reshape(-1, size).sum(axis=0)
    return scales if by == "bn" and scales.any() else total


def best(weights: np.ndarray, count: int) -> np.ndarray:
    """The numbers of the `count` largest, ascending; of equals the first."""
    return np.sort(np.argsort(-weights, kind="stable")[:count])
