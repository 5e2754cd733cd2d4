"""The interface of an objective, one term of the loss.

`registry.OBJECTIVES` names functions that make one for `config.loss.name`:

    create(name, options, sizes) -> Objective

`options` is `config.loss` (`options["temperature"]`; of an objective with fields of its own,
`options["mine"]["margin"]`), `sizes` a `Sizes`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

BATCH, ROWS = "batch", "rows"
Metrics = dict[str, jax.Array]


class Sizes(NamedTuple):
    """Sizes that an objective needs when it is created."""

    images: int  # examples in a batch, over all devices
    views: int  # views of each example
    dim: int  # width of a projection
    mesh: Mesh


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
    needs: tuple[str, ...] = ()  # the outputs that a BATCH term reads; microbatches keep no others. (): all
    # rng -> (params, extra): a temperature that is learned; a queue, an EMA. Both are saved with the run.
    init: Callable[[jax.Array], tuple[Any, Any]] = no_parameters
    # ROWS: batch -> `[n]`. Its sum over the whole batch divides, so that means stay means in microbatches.
    weight: Callable[[Any], jax.Array] = every_example
    # (params, extra, outputs) -> extra, once a step, after the optimiser; all outputs in `needs` are there.
    update: Callable[[Any, Any, Any], Any] | None = None


def of_outputs(loss: Callable[[Any, Any, jax.Array], tuple[jax.Array, Metrics]], *needs: str) -> Objective:
    """A BATCH term without parameters: `loss` takes (outputs, batch, step)."""

    def with_all(params: Any, extra: Any, outputs: Any, batch: Any, step: jax.Array):
        return loss(outputs, batch, step)

    return Objective(with_all, needs=needs)
