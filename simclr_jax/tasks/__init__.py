"""What the one train loop can train; which tasks there are stands in registry.py."""

from jax.sharding import Mesh
from ml_collections import ConfigDict

from simclr_jax import registry
from simclr_jax.data.splits import Splits
from simclr_jax.tasks.task import Context, Task

__all__ = ["Context", "Task", "create_task"]


def create_task(config: ConfigDict, splits: Splits, mesh: Mesh) -> Task:
    """The task that `config.task` names, on the examples of `splits`.

    Raises:
      SimclrError: the examples are not what the task needs.
    """
    return registry.load(registry.TASKS, config.task, "task")(config, splits, mesh)
