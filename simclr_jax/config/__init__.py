"""The configuration of a run: its fields, their checks, and config.json.

Nothing here imports JAX or TensorFlow, so that `--help` and a mistyped field answer at once.
"""

from simclr_jax.config.durations import count_steps, duration, every_steps, microbatches, total_steps
from simclr_jax.config.fields import (
    ARCHITECTURE,
    FREE,
    PIXELS,
    check_field,
    default,
    flatten,
    lies_in,
    set_field,
)
from simclr_jax.config.stored import (
    CONFIG_FILE,
    OLD_BEHAVIOUR,
    SCHEMA,
    adopt_old_behaviour,
    adopt_start,
    differences,
    from_json,
    going_on,
    load_config,
    to_json,
)

__all__ = [
    "ARCHITECTURE",
    "CONFIG_FILE",
    "FREE",
    "OLD_BEHAVIOUR",
    "PIXELS",
    "SCHEMA",
    "adopt_old_behaviour",
    "adopt_start",
    "check_field",
    "count_steps",
    "default",
    "differences",
    "duration",
    "every_steps",
    "flatten",
    "from_json",
    "going_on",
    "lies_in",
    "load_config",
    "microbatches",
    "set_field",
    "to_json",
    "total_steps",
]
