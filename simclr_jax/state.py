"""What a training step maps to its successor, and a checkpoint holds."""

from typing import Any

import flax.struct
import jax
import optax


@flax.struct.dataclass
class TrainState:
    """The state of training after `step` updates.

    `params` has the top level {encoder, projection, probe}; `model_state` holds the model's other
    collections (`batch_stats`); `extra` is for what only some runs have (an EMA, a queue). `fixed` is what
    every step reads beside the parameters and none changes, and no checkpoint holds (a teacher).
    """

    step: jax.Array  # scalar int32
    params: Any
    model_state: Any
    opt_state: optax.OptState
    extra: dict[str, Any] = flax.struct.field(default_factory=dict)
    fixed: dict[str, Any] = flax.struct.field(default_factory=dict)
