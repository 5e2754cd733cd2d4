"""The interface between the train loop and a task."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from etils import epath

from simclr_jax.losses.objective import Objective


class Context(NamedTuple):
    """Arguments that an evaluation gets in addition to the state."""

    step: int
    workdir: epath.Path


def _unchanged(variables: Any) -> Any:
    return variables


def _from_host(fixed: Any, batch: Any) -> Any:
    return batch


def _no_preview(workdir: epath.Path, batch: Any) -> None:
    """Draws nothing."""


class Task(NamedTuple):
    """Everything that the loop knows about a task. The loop never reads single entries of a batch.

    A batch is a pytree with leading axis n. `input` takes a step and returns an iterator over the
    batches from that step on; it is an iterator because pipelines read ahead.
    """

    init: Callable  # rng -> variables: {"params": ..., other collections: ...}
    input: Callable  # step -> iterator over host batches, this process's rows
    # (params | fixed | {"average"}, model_state, batch, rng, step) -> outputs [n, ...], model_state
    forward: Callable
    objectives: Mapping[str, Objective]  # the loss is the sum of these terms; see step.py
    trainable: Callable  # parameter path -> bool
    evals: Mapping[str, tuple[int, Callable]]  # name -> (every n steps; 0: at the end, fn)
    #   fn(state, Context) -> flat dict of floats; at the end more, as summary.json takes it
    classes: tuple[str, ...] = ()  # classes of the classifier; () without one
    start: Callable = _unchanged  # initial variables -> those to start from; not compiled
    fixed: Callable = dict  # -> constant arrays on the mesh that steps read; not checkpointed (a teacher)
    fetch: Callable = _from_host  # (fixed, a batch of `input`) -> the batch for `forward`
    steps_per_call: int = 1  # most steps in one call of the compiled program
    preview: Callable = _no_preview  # draws the first host batch, before training
    average: float = 0.0  # decay of the moving average of the parameters that `forward` gets; 0: none
