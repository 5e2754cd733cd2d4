"""The interface of an objective, one term of the loss.

`config.loss.name` names the terms, joined by +; `registry.OBJECTIVES` names the functions that make them:

    create(name, options, sizes) -> Objective

`options` is `config.loss` (`options["temperature"]`; of an objective with fields of its own,
`options["mine"]["margin"]`), `sizes` a `Sizes`.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from simclr_jax.models.encoder import Encoder

BATCH, ROWS = "batch", "rows"
AVERAGE = "average"  # the moving average of the model: its parameters, and its projections among the outputs
OUTPUTS = ("features", "projection", "logits")  # that every model has
Metrics = dict[str, jax.Array]


class Sizes(NamedTuple):
    """Facts about the run that an objective needs when it is created."""

    images: int  # examples in a batch, over all devices
    views: int  # views of each example
    dim: int  # width of a projection
    mesh: Mesh
    encoder: Encoder
    ends: Mapping[str, jax.ShapeDtypeStruct]  # the encoder's endpoints for a batch of two inputs
    example: jax.ShapeDtypeStruct  # one input of the encoder, without the batch's axis
    model: Mapping[str, Any]  # config.model


def no_parameters(rng: jax.Array) -> tuple[dict, dict]:
    """Neither parameters nor state."""
    return {}, {}


def every_example(batch: Any) -> jax.Array:
    """Weight 1 for each example `[n]`."""
    return jnp.ones(len(jax.tree.leaves(batch)[0]), jnp.float32)


class Objective(NamedTuple):
    """One term of the loss.

    A term of scope BATCH needs the outputs of all rows together: contrast, classification, distillation. A
    term of scope ROWS looks at each example by itself (a reconstruction) and is computed inside each
    microbatch: its outputs never exist for the whole batch.
    """

    # (params, extra, outputs, batch, step) -> loss, metrics. BATCH: a scalar, {name: scalar}; ROWS: `[n]`,
    # {name: `[n]`}. outputs are `Task.forward`'s, each `[n, ...]`; batch holds {position, label, ...} `[n]`.
    loss: Callable[..., tuple[jax.Array, Metrics]]
    scope: str = BATCH
    # The outputs that the term reads, each `[n, v, ...]` in pretraining: "features", "projection", "logits";
    # an endpoint of the encoder; "view", in [0, 1] before normalisation and `change`; "clean", the view
    # before colour and blur; "average", the projection by the moving average of the model; outputs of
    # `change`. Microbatches keep those of BATCH terms and no others. (): all but what ROWS terms ask for.
    needs: tuple[str, ...] = ()
    # rng -> (params, extra): a temperature that is learned; a queue, an EMA. Both are saved with the run.
    init: Callable[[jax.Array], tuple[Any, Any]] = no_parameters
    # ROWS: batch -> `[n]`. Its sum over the whole batch divides, so that means stay means in microbatches.
    weight: Callable[[Any], jax.Array] = every_example
    # (params, extra, outputs) -> extra, once a step, after the optimiser; all outputs in `needs` are there.
    update: Callable[[Any, Any, Any], Any] | None = None
    # Hides or corrupts parts of the views: (keys `[m]`, views `[m, ...]` in [0, 1]) -> views for the encoder,
    # {output: `[m, ...]`}. An output "kept" `[m, t]` is the patches that the encoder is to see.
    change: Callable[[jax.Array, jax.Array], tuple[jax.Array, dict[str, jax.Array]]] | None = None
    average: float = 0.0  # decay of a moving average of the model, which gives "average"; 0: there is none


def of_outputs(loss: Callable[[Any, Any, jax.Array], tuple[jax.Array, Metrics]], *needs: str) -> Objective:
    """A BATCH term without parameters: `loss` takes (outputs, batch, step)."""

    def with_all(params: Any, extra: Any, outputs: Any, batch: Any, step: jax.Array):
        return loss(outputs, batch, step)

    return Objective(with_all, needs=needs)
