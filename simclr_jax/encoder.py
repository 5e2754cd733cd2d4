"""A trained encoder, ready to use: `simclr_jax.load(WORKDIR)`."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, cast

import flax.errors
import jax
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from simclr_jax import checkpoint, hub, paths, published, registry, sharding
from simclr_jax.config import load_config
from simclr_jax.errors import SimclrError
from simclr_jax.feeds import Reader, kind
from simclr_jax.feeds import images as of_images
from simclr_jax.models import encoder as encoders
from simclr_jax.models import simclr


class Encoder:
    """Images to features; made by `load`.

    Attributes:
      config: of the run.
      classes: names of the classifier's classes, () without one.
      step: of the checkpoint.
      variables: {"params": {encoder, projection, probe}, "batch_stats": ...}, NumPy.
      data: what config.json says of the examples it was trained on.
      reader: how it takes examples (`feeds.feed.Reader`).
      model: the Flax module, `model.apply(variables, images, method="endpoints")`.
    """

    def __init__(
        self,
        config: ConfigDict,
        classes: tuple[str, ...],
        step: int,
        variables: dict[str, Any],
        data: Mapping[str, Any] | None = None,
    ):
        self.config, self.classes, self.step, self.variables = config, classes, step, variables
        self.data = dict(data or {})
        self.reader = kind(config).reader(config, data or {})
        self.model = simclr.create(config.model, classes=len(classes))

    def __call__(
        self,
        images: Any,
        *,
        preprocess: bool = False,
        endpoint: str = "final_avg_pool",
        batch_size: int = 256,
    ) -> np.ndarray:
        """Features `[n, d]` float32 of images `[n, h, w, c]`, of Pillow images or of paths.

        Args:
          images: uint8, or float in [0, 1]; RGBA is laid over `config.data.background` for an RGB encoder.
            Or a path or a Pillow image, or a list of such (and of arrays `[h, w, c]`) of any sizes, which
            are read and preprocessed as by the run's evaluation.
          preprocess: crop and resize as the run does for its evaluation; otherwise arrays are taken as
            they are, `config.data.image_size` pixels a side as a rule.
          endpoint: "final_avg_pool" (h, of any encoder), one of the encoder's own ("block_group1"),
            "projection_1" .. (layers of the head), "projection" (z) or "logits".
          batch_size: images at a time.

        Raises:
          SimclrError: the images do not fit the encoder, or the model has no such endpoint.
        """
        if batch_size < 1:
            raise SimclrError(f"batch_size={batch_size}: must be above 0")
        if registry.of_images(self.config.data.source) and (each := of_images.one_by_one(images, preprocess)):
            views = functools.partial(of_images.views_of, self.config, self.reader)
            parts = [each[at : at + batch_size] for at in range(0, len(each), batch_size)]
            return np.concatenate([self(views(part), endpoint=endpoint) for part in parts])
        how = (self.model, self.reader, preprocess, endpoint)

        def encode(part: np.ndarray) -> jax.Array:
            return _apply(*how, self.on_device, self.reader.host(part))

        return in_batches(encode, self.reader.check(images), batch_size)

    def logits(self, images: np.ndarray, **kwargs: Any) -> np.ndarray:
        """The classifier's logits `[n, classes]`; arguments as above."""
        return self(images, endpoint="logits", **kwargs)

    @functools.cached_property
    def on_device(self) -> Any:
        """`variables` on the default device."""
        return jax.device_put(self.variables)


def in_batches(apply: Callable[[np.ndarray], jax.Array], rows: np.ndarray, size: int) -> np.ndarray:
    """`apply` to all rows `[n, ...]`, `size` at a time, as float32.

    The last part is filled up: one shape, one compilation.
    """
    parts = []
    for begin in range(0, len(rows), size):
        part = rows[begin : begin + size]
        filled = np.pad(part, [(0, min(size, len(rows)) - len(part))] + [(0, 0)] * (part.ndim - 1))
        parts.append(np.asarray(apply(filled)[: len(part)], np.float32))
    return np.concatenate(parts)


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _apply(
    model: simclr.SimCLR, reader: Reader, preprocess: bool, endpoint: str, variables: Any, examples: jax.Array
) -> jax.Array:
    inputs = reader.prepare(examples, preprocess, model.encoder.dtype)
    try:
        ends = simclr.endpoints(model, variables, inputs)
    except flax.errors.ScopeParamShapeError:
        raise SimclrError(
            f"images of {inputs.shape[1:3]} pixels do not fit this encoder; preprocess=True"
        ) from None
    endpoint = simclr.endpoint_name(model.encoder, endpoint)
    if endpoint not in ends:
        raise SimclrError(f"no endpoint {endpoint!r}; there are {', '.join(ends)}")
    return ends[endpoint]


def load(workdir: epath.PathLike, step: int = 0) -> Encoder:
    """The encoder of a run, trained here or converted, or one that was published.

    Args:
      workdir: of the run; or a folder that `simclr publish` wrote; or "hf:OWNER/NAME[@REVISION]" of the
        Hugging Face Hub, which is fetched once and kept; or "builtin:quickstart".
      step: of its checkpoints; 0: the newest.

    Raises:
      SimclrError: the workdir holds no run, or no such checkpoint.
    """
    config, data, step, variables = read(workdir, step)
    probe = variables["params"].get("probe")
    count = len(probe["dense"]["bias"]) if probe else 0
    names = tuple(data.get("classes") or ())
    # Without names, the classes are called by their numbers.
    classes = names if len(names) == count else tuple(map(str, range(count)))
    return Encoder(config, classes, step, variables, data)


def read(workdir: epath.PathLike, step: int = 0) -> tuple[ConfigDict, dict[str, Any], int, dict[str, Any]]:
    """(config, the `data` of config.json, step, variables) of a run."""
    folder = paths.expand(hub.local(workdir))
    config, data = load_config(folder)
    if published.holds(folder):
        step, params, model_state = published.read(folder, step)
    else:
        step, params, model_state = checkpoint.read_parameters(folder / "checkpoints", step)
    return config, data, step, {"params": params, **model_state}


def pin_steps(config: ConfigDict) -> ConfigDict:
    """Replaces "the newest" checkpoint by its number when a run begins.

    Only process 0 looks, so that all processes use the same.
    """
    config = config.copy_and_resolve_references()
    for node, workdir in ((config.start, config.start.workdir), (config.distill, config.distill.teacher)):
        if workdir and not node.step:
            node.step = sharding.from_first(functools.partial(_newest_step, workdir))
    return config


def _newest_step(workdir: str) -> int:
    folder = paths.expand(hub.local(workdir))
    if published.holds(folder):
        return published.step(folder)
    return checkpoint.read_parameters(folder / "checkpoints")[0]


def transplant(
    variables: dict[str, Any],
    start: ConfigDict,
    encoder: encoders.Encoder,
    spec: jax.ShapeDtypeStruct,
    *,
    new_head: bool = False,
) -> dict[str, Any]:
    """Fresh variables with the encoder and the projection head of another run, `config.start`.

    The classifier stays new; with `new_head` the projection head and a decoder do too, if the other run has
    none. Without another run the variables are unchanged. Parameters that depend on the size of examples are
    adapted.

    Args:
      encoder: of the new model; spec: of one example of the new run.

    Raises:
      SimclrError: the other run lacks one of the parameters, or has another shape of it.
    """
    workdir = start.workdir
    if not workdir:
        return variables
    config, data, _, other = read(workdir, start.step)
    of_other = kind(config).reader(config, data).spec()
    params = other["params"]
    other = {**other, "params": {**params, "encoder": encoder.adapt(params["encoder"], of_other, spec)}}
    new = {"probe", *({"projection", "decoder"} - other["params"].keys() if new_head else ())}

    def take(path, leaf):
        if path[1].key in new:
            return leaf
        name, source = jax.tree_util.keystr(path, simple=True, separator="/"), cast(Any, other)
        for key in path:
            source = source.get(key.key) if isinstance(source, dict) else None
        if source is None or source.shape != leaf.shape:
            there = "it is missing" if source is None else f"it has {list(source.shape)}"
            raise SimclrError(
                f"{workdir}: {name} should be {list(leaf.shape)}, {there} there: "
                "config.data.channels or config.model asks for another model than that run's"
            )
        return jax.device_put(source.astype(leaf.dtype), leaf.sharding)

    return jax.tree_util.tree_map_with_path(take, variables)
