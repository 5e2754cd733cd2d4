"""Tasks by name: what the one train loop can train."""

from simclr_jax.tasks import distill, linear_sweep, pretrain, supervised
from simclr_jax.tasks.task import Context, Task

TASKS = {
    "pretrain": pretrain.create,
    "supervised": supervised.create,
    "distill": distill.create,
    "linear_sweep": linear_sweep.create,
}

__all__ = ["TASKS", "Context", "Task"]
