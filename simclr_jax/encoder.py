"""A trained encoder, ready to use: `simclr_jax.load(WORKDIR)`."""

import functools
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from simclr_jax import checkpoint, geometry, paths, sharding
from simclr_jax.config import load_config
from simclr_jax.data import formats
from simclr_jax.errors import SimclrError
from simclr_jax.models import simclr


class Encoder:
    """Images to features; made by `load`.

    Attributes:
      config: of the run.
      classes: names of the classifier's classes, () without one.
      step: of the checkpoint.
      variables: {"params": {encoder, projection, probe}, "batch_stats": ...}, NumPy.
      model: the Flax module, `model.apply(variables, images, method="endpoints")`.
    """

    def __init__(self, config: ConfigDict, classes: tuple[str, ...], step: int, variables: dict[str, Any]):
        self.config, self.classes, self.step, self.variables = config, classes, step, variables
        self.model = simclr.create(config.model, classes=len(classes))

    def __call__(
        self,
        images: np.ndarray,
        *,
        preprocess: bool = False,
        endpoint: str = "final_avg_pool",
        batch_size: int = 256,
    ) -> np.ndarray:
        """Features `[n, d]` float32 of images `[n, h, w, c]`.

        Args:
          images: uint8, or float in [0, 1]; RGBA is laid over `config.data.background` for an RGB encoder.
          preprocess: crop and resize as the run does for its evaluation; otherwise images are taken as
            they are, `config.data.image_size` pixels a side as a rule.
          endpoint: "final_avg_pool" (h, of any encoder), one of the encoder's own ("block_group1"),
            "projection_1" .. (layers of the head), "projection" (z) or "logits".
          batch_size: images at a time.

        Raises:
          SimclrError: the images are not such, or the model has no such endpoint.
        """
        if batch_size < 1:
            raise SimclrError(f"batch_size={batch_size}: must be above 0")
        images = self._check(images)
        parts = []
        for begin in range(0, len(images), batch_size):
            part = self._opaque(images[begin : begin + batch_size])
            # One shape, one compilation: the last part is filled up.
            filled = np.pad(part, [(0, min(batch_size, len(images)) - len(part))] + [(0, 0)] * 3)
            outputs = _apply(self.model, self._options(preprocess), endpoint, self._on_device, filled)
            parts.append(np.asarray(outputs[: len(part)], np.float32))
        return np.concatenate(parts)

    def logits(self, images: np.ndarray, **kwargs: Any) -> np.ndarray:
        """The classifier's logits `[n, classes]`; arguments as above."""
        return self(images, endpoint="logits", **kwargs)

    @functools.cached_property
    def _on_device(self) -> Any:
        return jax.device_put(self.variables)

    def _options(self, preprocess: bool) -> tuple:
        data, evaluation = self.config.data, self.config.eval
        view = (data.image_size, evaluation.crop, evaluation.resize) if preprocess else ()
        return tuple(data.mean), tuple(data.std), view

    def _opaque(self, images: np.ndarray) -> np.ndarray:
        """RGBA laid over the background of the run, where the encoder takes RGB."""
        if images.shape[-1] == self.config.data.channels:
            return images
        background = formats.colour(self.config.data.background)
        if images.dtype == np.uint8:
            return formats.over(images[..., :3], images[..., 3], background)
        alpha = images[..., 3:]
        return images[..., :3] * alpha + np.array(background, np.float32) / 255 * (1 - alpha)

    def _check(self, images: Any) -> np.ndarray:
        try:
            images = np.asarray(images)
        except ValueError:
            raise SimclrError(
                "images must be of one size: [n, h, w, c]; resize them, or give one at a time"
            ) from None
        channels = self.config.data.channels
        known = (3, 4) if channels == 3 else (channels,)
        if images.ndim != 4 or images.shape[-1] not in known or not images.size:
            one = "; images[None] of a single one" if images.ndim == 3 else ""
            raise SimclrError(f"images must be [n, h, w, {channels}], not {list(images.shape)}{one}")
        if images.dtype == np.uint8:
            return images
        if not np.issubdtype(images.dtype, np.floating):
            raise SimclrError(f"images must be uint8 or float in [0, 1], not {images.dtype}")
        low, high = float(images.min()), float(images.max())
        if not (low >= -1e-3 and high <= 1 + 1e-3):  # also NaN
            raise SimclrError(f"float images must lie in [0, 1], not [{low:.3g}, {high:.3g}]; or give uint8")
        return images.astype(np.float32)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _apply(
    model: simclr.SimCLR, options: tuple, endpoint: str, variables: Any, images: jax.Array
) -> jax.Array:
    mean, std, view = options
    images = simclr.normalize_images(images, (), (), jnp.float32)
    if view:
        images = geometry.center_view(images, *view)
    images = simclr.normalize_images(images, mean, std, model.encoder.dtype)
    try:
        ends = model.apply(variables, images, method="endpoints")
    except flax.errors.ScopeParamShapeError:
        raise SimclrError(
            f"images of {images.shape[1:3]} pixels do not fit this encoder; preprocess=True"
        ) from None
    endpoint = simclr.endpoint_name(model.encoder, endpoint)
    if endpoint not in ends:
        raise SimclrError(f"no endpoint {endpoint!r}; there are {', '.join(ends)}")
    return ends[endpoint]


def load(workdir: epath.PathLike, step: int = 0) -> Encoder:
    """The encoder of a run, trained here or converted; of the newest checkpoint where step is 0.

    Raises:
      SimclrError: the workdir holds no run, or no such checkpoint.
    """
    config, data, step, variables = read(workdir, step)
    probe = variables["params"].get("probe")
    count = len(probe["dense"]["bias"]) if probe else 0
    names = tuple(data.get("classes") or ())
    # A classifier whose classes nobody named has numbers.
    classes = names if len(names) == count else tuple(map(str, range(count)))
    return Encoder(config, classes, step, variables)


def read(workdir: epath.PathLike, step: int = 0) -> tuple[ConfigDict, dict[str, Any], int, dict[str, Any]]:
    """(config, what config.json says of the images, step, variables) of a run."""
    config, data = load_config(workdir)
    step, params, model_state = checkpoint.read_parameters(paths.expand(workdir) / "checkpoints", step)
    return config, data, step, {"params": params, **model_state}


def pin_steps(config: ConfigDict) -> ConfigDict:
    """The config with the numbers of the checkpoints that "the newest" stands for as a run begins.

    Process 0 looks, so that all take the same.
    """
    config = config.copy_and_resolve_references()
    for node, workdir in ((config.start, config.start.workdir), (config.distill, config.distill.teacher)):
        if workdir and not node.step:
            directory = paths.expand(workdir) / "checkpoints"
            node.step = sharding.from_first(functools.partial(_newest_step, directory))
    return config


def _newest_step(directory: epath.Path) -> int:
    return checkpoint.read_parameters(directory)[0]


def transplant(
    variables: dict[str, Any], workdir: epath.PathLike, step: int = 0, *, new_head: bool = False
) -> dict[str, Any]:
    """Fresh variables with the encoder and the projection head of another run.

    The classifier stays new, and with `new_head` so does the head where the other run has none. All stay
    as they are where `workdir` is empty.

    Raises:
      SimclrError: the other run lacks one of the parameters, or has another shape of it.
    """
    if not workdir:
        return variables
    _, _, _, other = read(workdir, step)
    new = {"probe", *({"projection"} - other["params"].keys() if new_head else ())}

    def take(path, leaf):
        if path[1].key in new:
            return leaf
        name, source = jax.tree_util.keystr(path, simple=True, separator="/"), other
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
