"""The whole model: encoder, projection head, linear classifier."""

from collections.abc import Mapping
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp

from simclr_jax import registry
from simclr_jax.errors import SimclrError
from simclr_jax.models.encoder import Encoder
from simclr_jax.models.projection import PROJECTIONS, Probe, Projection

HEADS = 1 << 30  # stage of the projection head and the classifier: behind all stages of any encoder
FEATURES = ("final_avg_pool", "features")  # names of any encoder's representation


class SimCLR(nn.Module):
    """f, g and a linear classifier (`probe`), if any; its parameters are {encoder, projection, probe}.

    Methods take images `[n, h, w, c]`, normalised as the encoder was trained. The classifier reads layer
    `probe_layer` of the projection head (SimCLRv2, arXiv 2006.10029, section 2; 0 is h itself, the original's
    `ft_proj_selector`).
    """

    encoder: Encoder
    projection: Projection
    probe: Probe | None
    probe_layer: int = 0

    def __call__(
        self,
        images: jax.Array,
        train: bool,
        wanted: tuple[str, ...] = (),
        kept: jax.Array | None = None,
        small: jax.Array | None = None,
    ) -> dict[str, jax.Array]:
        """For pretraining: {features [n, d], projection [n, dim], logits [n, classes] with a probe}.

        The classifier learns online, behind a stop-gradient.

        With small views the encoder runs once for each size, so that BatchNorm takes each apart, as SwAV's
        code does (arXiv 2006.09882), and the head once on all of them. Features and projections then have
        the rows of both, an image's together: [large, large, small, ...]; all else is of the large views.

        Args:
          wanted: endpoints of the encoder that are given as well, by their names.
          kept: `[n, t]` the patches that an encoder of tokens is to see.
          small: `[m, k, s, s, c]` k small views of each of m examples, of which `images` has n/m each.
        """
        some: dict[str, Any] = {} if kept is None else {"kept": kept}
        ends = self.encoder(images, train, **some)
        h = ends[self.encoder.features]
        if small is not None:
            h = self._with_small(h, small, train)
        hidden = self.projection(h, train)
        outputs = {"features": hidden[0], "projection": hidden[-1], **{name: ends[name] for name in wanted}}
        if self.probe is not None:
            read = jax.lax.stop_gradient(hidden[self.probe_layer])
            if small is not None:
                read = read.reshape(len(small), -1, read.shape[-1])[:, : len(images) // len(small)]
            outputs["logits"] = self.probe(read.reshape(len(images), -1))
        return outputs

    def _with_small(self, h: jax.Array, small: jax.Array, train: bool) -> jax.Array:
        """The features of all views, by example: rows stay on the device that has the example.

        Raises:
          SimclrError: the encoder makes fewer numbers of such small views.
        """
        m, k, side = small.shape[:3]
        more = self.encoder(small.reshape(m * k, *small.shape[2:]), train)[self.encoder.features]
        if more.shape[-1] != h.shape[-1]:
            raise SimclrError(
                f"config.augment.small_size: comes to {side}, of which this encoder makes {more.shape[-1]} "
                f"numbers and not {h.shape[-1]}; take larger ones"
            )
        both = [x.reshape(m, -1, x.shape[-1]) for x in (h, more)]
        return jnp.concatenate(both, axis=1).reshape(-1, h.shape[-1])

    def classify(
        self, images: jax.Array, train: bool = False, frozen: int = -1, frozen_train: bool = False
    ) -> jax.Array:
        """Logits `[n, classes]`, with a gradient to all stages that are not `frozen`."""
        assert self.probe is not None
        h = self.encoder(images, train, frozen, frozen_train)[self.encoder.features]
        return self.probe(self.projection(h, train, self.probe_layer)[-1])

    def features(self, images: jax.Array, train: bool = False) -> jax.Array:
        """The representation h, `[n, d]`: the encoder's features."""
        return self.encoder(images, train)[self.encoder.features]

    def endpoints(self, images: jax.Array, train: bool = False) -> dict[str, jax.Array]:
        """The encoder's endpoints, projection_1 .. (its layers), projection (z) and logits.

        Includes only the layers of the projection head that the parameters contain.
        """
        ends = self.encoder(images, train)
        present = len(self.variables["params"].get("projection", {})) // 2  # a dense and a norm each
        hidden = self.projection(ends[self.encoder.features], train, min(present, self.projection.layers))
        ends |= {f"projection_{i}": x for i, x in enumerate(hidden) if i}
        if present == self.projection.layers:
            ends["projection"] = hidden[-1]
        if self.probe is not None:
            ends["logits"] = self.probe(hidden[self.probe_layer])
        return ends


def init(model: nn.Module, rng: jax.Array, images: jax.Array, method: str = "__call__") -> dict[str, Any]:
    """The first variables of a model, for images `[n, h, w, c]`: {"params": ..., "batch_stats": ...}."""
    variables = model.init(rng, images, train=True, method=method)
    # Flax starts statistics in float32 whatever param_dtype says.
    keep = jnp.promote_types(images.dtype, jnp.float32)
    return jax.tree.map(lambda x: x.astype(keep), variables)


def endpoints(model: SimCLR, variables: Mapping[str, Any], x: jax.Array) -> dict[str, jax.Array]:
    """`SimCLR.endpoints` with these variables; BatchNorm uses its moving averages."""
    return cast(dict[str, jax.Array], model.apply(variables, x, method="endpoints"))


def sample(spec: jax.ShapeDtypeStruct) -> jax.Array:
    """Two examples of zeros, to initialise a model with."""
    return jnp.zeros((2, *spec.shape), spec.dtype)


def ends_of(encoder: Encoder, example: jax.ShapeDtypeStruct) -> dict[str, jax.ShapeDtypeStruct]:
    """The encoder's endpoints for two examples of this shape, without a batch's axis, as shapes."""
    module = cast(nn.Module, encoder)

    def ends() -> Any:
        return module.init_with_output(jax.random.key(0), sample(example), train=False)[0]

    return jax.eval_shape(ends)


def stage_of(encoder: Encoder, path: str) -> int:
    """The stage of the encoder that a parameter "encoder/..." belongs to; the heads come after all stages.

    Raises:
      ValueError: the encoder has no such parameter.
    """
    inside = path.removeprefix("encoder/")
    return HEADS if inside == path else encoder.stage_of(inside)


def trainable(encoder: Encoder, path: str, frozen: int = -1) -> bool:
    """Whether a parameter is trained if the stages up to `frozen` are frozen."""
    inside = path.removeprefix("encoder/")
    return stage_of(encoder, path) > frozen and (inside == path or encoder.trainable(inside))


def read_endpoint(encoder: Encoder, ends: Mapping[str, jax.Array], name: str) -> jax.Array:
    """An endpoint of `SimCLR.endpoints` as features `[n, d]`; maps are averaged over their places.

    Args:
      name: an endpoint's; "final_avg_pool" and "features" name the representation of any encoder.

    Raises:
      SimclrError: the encoder has no endpoint of this name.
    """
    name = endpoint_name(encoder, name)
    if name not in ends:
        raise SimclrError(f"config.eval.endpoint={name!r}: this encoder has {', '.join(ends)}")
    maps = encoder.maps(name, ends[name])
    return ends[name] if maps is None else jnp.mean(maps, axis=(1, 2))


def endpoint_name(encoder: Encoder, name: str) -> str:
    """The encoder's own name for an endpoint; FEATURES name the representation of any encoder."""
    return encoder.features if name in FEATURES else name


def normalize_images(images: jax.Array, mean: tuple[float, ...], std: tuple[float, ...], dtype) -> jax.Array:
    """Images `[n, h, w, c]`, uint8 or float in [0, 1], as the encoder takes them.

    SimCLR's own encoders take [0, 1] directly. Others need mean and std, one value per channel.
    """
    if images.dtype == jnp.uint8:
        images = images.astype(jnp.float32) / 255
    if mean:
        shift, scale = (jnp.asarray(x, images.dtype).reshape(1, 1, 1, -1) for x in (mean, std))
        images = (images - shift) / scale
    return images.astype(dtype)


def create(config: Mapping[str, Any], *, classes: int = 0, probe_zero: bool = False) -> SimCLR:
    """The model of a config's `model` tree.

    Args:
      classes: of the classifier; 0: there is none.
      probe_zero: the classifier starts at zero.
    """
    dtype = jnp.dtype(config["dtype"])
    dtypes: dict[str, Any] = {"dtype": dtype, "param_dtype": jnp.promote_types(dtype, jnp.float32)}
    encoder = registry.load(registry.ENCODERS, config["encoder"], "model.encoder")
    layers = PROJECTIONS[config["projection"]](config["projection_layers"])
    return SimCLR(
        encoder(config, **dtypes),
        Projection(layers, config["projection_dim"], config["norm_groups"], **dtypes),
        Probe(classes, probe_zero, dtypes["param_dtype"]) if config["probe"] and classes else None,
        config["probe_layer"],
    )
