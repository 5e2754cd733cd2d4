"""Tasks by name: what the one train loop can train."""

from simclr_jax.tasks import pretrain
from simclr_jax.tasks.task import Context, Task

TASKS = {"pretrain": pretrain.create}

__all__ = ["TASKS", "Context", "Task"]
