"""An encoder and an objective from outside the package, as a user's own file would hold them."""

from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from simclr_jax import registry
from simclr_jax.errors import SimclrError
from simclr_jax.field import POSITIVE, Field
from simclr_jax.losses.objective import Objective


def check(flat):
    """Raises SimclrError where the patch does not divide the image."""
    side, patch = flat["data.image_size"], flat["model.toy.patch"]
    if side % patch:
        raise SimclrError(f"config.model.toy.patch={patch}: must divide config.data.image_size={side}")


ENCODER_FACTS = registry.Facts(
    fields={
        "patch": Field(4, "pixels of a patch's side", POSITIVE, 64, "it lies in an image"),
        "hidden": Field(24, "features", POSITIVE, 4096, "it is a toy"),
    },
    check=check,
    stages=lambda flat: 1,
)


class Toy(nn.Module):
    """Patches, a dense layer, the mean over patches, another dense layer."""

    patch: int
    hidden: int
    dtype: jnp.dtype = jnp.float32
    param_dtype: jnp.dtype = jnp.float32

    stages: ClassVar = ("patches", "body")
    features: ClassVar = "summary"
    last: ClassVar = "tokens"

    def stage_of(self, path):
        """0 for the patches, 1 for the body."""
        name = path.split("/")[0]
        if name not in self.stages:
            raise ValueError(f"the toy has no parameter {path!r}")
        return self.stages.index(name)

    def trainable(self, path):
        """All are."""
        return True

    def maps(self, name, x):
        """The tokens on their grid."""
        return x if x.ndim == 4 else None

    def pool(self, maps):
        """No function of the maps alone: a dense layer follows."""
        return None

    def adapt(self, params, old, new):
        """Nothing depends on the size."""
        return params

    @nn.compact
    def __call__(self, x, train, frozen=-1, frozen_train=False):
        n, h, w, c = x.shape
        p = self.patch
        x = x.reshape(n, h // p, p, w // p, p, c).transpose(0, 1, 3, 2, 4, 5).reshape(n, h // p, w // p, -1)
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        x = nn.relu(nn.Dense(self.hidden, name="patches", **types)(x))
        x = tokens = jax.lax.stop_gradient(x) if frozen >= 0 else x
        x = nn.Dense(self.hidden, name="body", **types)(jnp.mean(x, axis=(1, 2)))
        x = jax.lax.stop_gradient(x) if frozen >= 1 else x
        return {"tokens": tokens, "summary": x}


def create(model, *, dtype, param_dtype):
    """The toy of `config.model.toy`."""
    return Toy(model["toy"]["patch"], model["toy"]["hidden"], dtype, param_dtype)


OBJECTIVE_FACTS = registry.Facts(fields={"start": Field(0.2, "first temperature", POSITIVE, 10, "it learns")})


def objective(name, options, sizes):
    """InfoNCE with a temperature that learns, of views with a moving mean taken out."""

    def init(rng):
        del rng
        params = {"log_temperature": jnp.log(jnp.float32(options["toy_nce"]["start"]))}
        return params, {"mean": jnp.zeros(sizes.dim), "count": jnp.int32(0)}

    def loss(params, extra, outputs, batch, step):
        z = outputs["projection"] - extra["mean"][None, None]
        z = z / jnp.linalg.norm(z, axis=-1, keepdims=True)
        logits = z[:, 0] @ z[:, 1].T / jnp.exp(params["log_temperature"])
        value = -jnp.mean(jnp.diagonal(jax.nn.log_softmax(logits, axis=1)))
        return value, {"temperature": jnp.exp(params["log_temperature"])}

    def update(params, extra, outputs):
        now = jax.lax.stop_gradient(jnp.mean(outputs["projection"], axis=(0, 1)))
        return {"mean": 0.9 * extra["mean"] + 0.1 * now, "count": extra["count"] + 1}

    return Objective(loss, needs=("projection",), init=init, update=update)


def queue(name, options, sizes):
    """The views of the batch and of the last batches are negatives (MoCo's queue, without its encoder)."""

    def init(rng):
        return {}, {"queue": jax.random.normal(rng, (3 * sizes.images, sizes.dim))}

    def loss(params, extra, outputs, batch, step):
        z = outputs["projection"]
        z = z / jnp.linalg.norm(z, axis=-1, keepdims=True)
        keys = jnp.concatenate([z[:, 1], extra["queue"]])
        return -jnp.mean(jnp.diagonal(jax.nn.log_softmax(z[:, 0] @ keys.T, axis=1))), {}

    def update(params, extra, outputs):
        newest = jax.lax.stop_gradient(outputs["projection"][:, 1])
        return {"queue": jnp.concatenate([newest, extra["queue"]])[: 3 * sizes.images]}

    return Objective(loss, needs=("projection",), init=init, update=update)


def energy(name, options, sizes):
    """A term of single examples: the distance of the two views' projections."""

    def loss(params, extra, outputs, batch, step):
        z = outputs["projection"]
        distance = jnp.sum((z[:, 0] - z[:, 1]) ** 2, axis=-1)
        return distance, {"distance": distance}

    def weight(batch):
        return 1.0 + (batch["label"] == 0)

    return Objective(loss, scope="rows", weight=weight)


def follow(name, options, sizes):
    """One view's projection follows the other's by the moving average of the model."""

    def loss(params, extra, outputs, batch, step):
        apart = outputs["projection"][:, 0] - outputs["average"][:, 1]
        return jnp.mean(apart**2), {}

    return Objective(loss, needs=("projection", "average"), average=0.9)


def hidden(name, options, sizes):
    """Counts hidden dark pixels from the tokens, by a layer of its own; reads all kinds of outputs."""
    width = sizes.ends["tokens"].shape[-1]

    def init(rng):
        return {"guess": {"kernel": jax.random.normal(rng, (width,))}}, {}

    def change(keys, views):
        drop = jax.vmap(lambda key: jax.random.bernoulli(key, 0.3, views.shape[1:]))(keys)
        return jnp.where(drop, 0.5, views), {"dropped": drop}

    def loss(params, extra, outputs, batch, step):
        guess = jnp.mean(outputs["tokens"], axis=(2, 3)) @ params["guess"]["kernel"]
        both = outputs["dropped"] & (outputs["view"] < 0.5) & (outputs["clean"] < 0.5)
        target = jnp.sum(both, axis=(2, 3, 4), dtype=guess.dtype)  # no mean, which is a float32 inside
        error = jnp.mean((guess - target) ** 2, axis=1)
        return error, {"hidden_error": error}

    needs = ("tokens", "view", "clean", "dropped")
    return Objective(loss, scope="rows", needs=needs, init=init, change=change)


def register():
    """What a config file would do."""
    registry.add(registry.ENCODERS, "toy", "toys:create", ENCODER_FACTS)
    registry.add(registry.OBJECTIVES, "toy_nce", "toys:objective", OBJECTIVE_FACTS)
    for name in ("energy", "follow", "hidden"):
        registry.add(registry.OBJECTIVES, f"toy_{name}", f"toys:{name}")
