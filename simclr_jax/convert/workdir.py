"""Writes and checks the workdir that a conversion creates."""

import contextlib
import functools
import json
import pathlib
import tempfile
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from simclr_jax import checkpoint, encoder, files, paths
from simclr_jax.config import CONFIG_FILE, bounds, checks, default, flatten, set_field, to_json
from simclr_jax.convert import names
from simclr_jax.errors import SimclrError, one_line
from simclr_jax.models import simclr
from simclr_jax.state import TrainState


def config_of(
    model: Mapping[str, Any], *, task: str = "pretrain", image_size: int = 0, channels: int = 3
) -> ConfigDict:
    """The default config with the fields `model`; the default image size is the usual one for the stem."""
    config = default()
    config.task = task
    for field, value in model.items():
        set_field(config, f"model.{field}", value)
    config.data.channels = channels
    config.data.image_size = image_size or (224 if config.model.stem == "imagenet" else 32)
    bounds.check(flatten(config))
    checks.check_size(flatten(config))
    return config


@functools.lru_cache(maxsize=32)
def _shapes(model_json: str, channels: int, classes: int, cut: bool) -> Any:
    """The model's variables as shapes; kept, as many checkpoints are of one architecture."""
    model = simclr.create(json.loads(model_json), classes=classes)
    images = jax.ShapeDtypeStruct((2, 64, 64, channels), jnp.float32)
    method = "classify" if cut else "__call__"
    variables = jax.eval_shape(lambda x: simclr.init(model, jax.random.key(0), x, method), images)
    return jax.tree.map(lambda x: x.shape, variables)


def expected(config: ConfigDict, classes: int) -> dict[names.Leaf, tuple[int, ...]]:
    """Every variable of the model in order of creation, with its shape in this project.

    A supervised model has only the layers of the projection head below the classifier.
    """
    model = json.dumps(config.model.to_dict(), sort_keys=True)
    shapes = _shapes(model, config.data.channels, classes, config.task != "pretrain")
    return {leaf: names.get(shapes, leaf.path) for leaf in names.leaves(config.model, shapes)}


def describe(config: ConfigDict, classes: int) -> str:
    """What a conversion inferred, in one line."""
    model = config.model
    blocks, bottleneck = names.blocks_of(model)
    kind = f"ResNet-{model.depth}" if not model.blocks else f"ResNet {blocks}"
    if model.blocks:
        kind += " of bottleneck blocks" if bottleneck else " of basic blocks"
    parts = [f"{kind}, width {model.width:g}, {model.stem} stem, variant {model.variant}"]
    parts += [f"sk_ratio {model.sk_ratio:g}"] if model.sk_ratio else []
    parts += [f"se_ratio {model.se_ratio:g}"] if model.se_ratio else []
    head = "no projection head"
    if model.projection != "none":
        head = f"{model.projection} projection of {model.projection_layers} layers to {model.projection_dim}"
    parts += [head, f"{classes} classes (from layer {model.probe_layer})" if classes else "no classifier"]
    return ", ".join(parts)


def write(
    out: epath.PathLike,
    config: ConfigDict,
    variables: dict[str, Any],
    *,
    step: int,
    origin: str,
    data: Mapping[str, Any] = MappingProxyType({}),
) -> None:
    """Writes an ordinary workdir as a whole: a failure leaves nothing behind.

    Args:
      data: what its config.json says of its examples, beside `origin`.

    Raises:
      SimclrError: something is there already, or it cannot be written.
    """
    params = variables["params"]
    model_state = {name: tree for name, tree in variables.items() if name != "params"}
    with new_folder(out) as folder:
        checkpoints = checkpoint.Checkpoints(folder / "checkpoints")
        checkpoints.save(TrainState(cast(jax.Array, np.int32(min(step, 2**31 - 1))), params, model_state, ()))
        checkpoints.close()
        files.write(epath.Path(folder) / CONFIG_FILE, to_json(config, {**data, "converted_from": origin}))
        encoder.load(folder)


def check_free(out: epath.PathLike) -> pathlib.Path:
    """The local path `out`; raises SimclrError where there is something."""
    path = pathlib.Path(paths.local(out, "--out")).resolve()
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise SimclrError(f"--out={out}: exists already; choose another, or remove it")
    return path


@contextlib.contextmanager
def new_folder(out: epath.PathLike) -> Iterator[pathlib.Path]:
    """A folder to write into that becomes `out` when all went well, and is gone when not."""
    path = check_free(out)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as half:
            folder = pathlib.Path(half) / path.name
            folder.mkdir()
            yield folder
            folder.rename(path)
    except OSError as error:
        raise SimclrError(f"--out={path}: cannot be written ({one_line(error)})") from None


def assemble(
    found: Mapping[str, np.ndarray], wanted: Mapping[names.Leaf, tuple[int, ...]], name: str, where: str
) -> dict[str, Any]:
    """Our variables from arrays by the names of one format (`name`: tf1, tf2 or torch).

    Raises:
      SimclrError: a variable is missing, left over, of another shape, or not finite.
    """
    by_name = {getattr(leaf, name): (leaf, shape) for leaf, shape in wanted.items()}
    if missing := [each for each in by_name if each not in found]:
        raise SimclrError(f"{where}: lacks {len(missing)} variables of this model, {missing[0]} for one")
    if extra := [each for each in found if each not in by_name]:
        raise SimclrError(f"{where}: {len(extra)} variables have no place in the model, {extra[0]} for one")
    variables: dict[str, Any] = {}
    for each, (leaf, shape) in by_name.items():
        array = found[each]
        if array.shape != shape:
            raise SimclrError(f"{where}: {each} has the shape {list(array.shape)}, should be {list(shape)}")
        if not (np.issubdtype(array.dtype, np.floating) or array.dtype.name == "bfloat16"):
            raise SimclrError(f"{where}: {each} is of type {array.dtype}, not of a float type")
        with np.errstate(over="ignore"):  # infinity is refused below
            array = array.astype(np.float32)
        if not np.isfinite(array).all():
            raise SimclrError(f"{where}: {each} holds values that are no finite numbers")
        names.put(variables, leaf.path, array)
    return variables
