"""The state of training, which a step updates and a checkpoint stores."""

from typing import Any

import flax.struct
import jax
import optax


class TrainState(flax.struct.PyTreeNode):
    """The state of training after `step` updates.

    `params` has the top level {encoder, projection, probe}; `model_state` holds the model's other
    collections (`batch_stats`); `extra` is for what only some runs have (an EMA, a queue). No checkpoint
    holds the rest: `fixed`, constant arrays that every step reads (a teacher), and `failed`, the first step
    whose loss or gradient was not finite (see nonfinite.py).
    """

    step: jax.Array  # scalar int32
    params: Any
    model_state: Any
    opt_state: optax.OptState
    extra: dict[str, Any] = flax.struct.field(default_factory=dict)
    fixed: dict[str, Any] = flax.struct.field(default_factory=dict)
    failed: dict[str, jax.Array] = flax.struct.field(default_factory=dict)
