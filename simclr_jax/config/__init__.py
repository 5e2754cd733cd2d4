"""The configuration of a run: its fields, their checks, and config.json.

Nothing here imports JAX or TensorFlow, so that `--help` and a mistyped field answer at once.
"""

from simclr_jax.config.durations import count_steps, duration, every_steps, microbatches, total_steps
from simclr_jax.config.fields import (
    check_field,
    declared,
    default,
    describe,
    flatten,
    lies_in,
    set_field,
)
from simclr_jax.config.stored import (
    CONFIG_FILE,
    OLD_BEHAVIOUR,
    PERSONAL,
    SCHEMA,
    adopt_old_behaviour,
    adopt_start,
    differences,
    examples_of,
    from_json,
    from_tree,
    going_on,
    load_config,
    to_json,
    told_of_start,
)

__all__ = [
    "CONFIG_FILE",
    "OLD_BEHAVIOUR",
    "PERSONAL",
    "SCHEMA",
    "adopt_old_behaviour",
    "adopt_start",
    "check_field",
    "count_steps",
    "declared",
    "default",
    "describe",
    "differences",
    "duration",
    "every_steps",
    "examples_of",
    "flatten",
    "from_json",
    "from_tree",
    "going_on",
    "lies_in",
    "load_config",
    "microbatches",
    "set_field",
    "to_json",
    "told_of_start",
    "total_steps",
]
