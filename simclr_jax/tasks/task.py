"""The contract between the train loop and a task."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from etils import epath

from simclr_jax.losses.objective import Objective


class Context(NamedTuple):
    """Arguments of an evaluation beside the state."""

    step: int
    workdir: epath.Path


def _unchanged(variables: Any) -> Any:
    return variables


def _from_host(fixed: Any, batch: Any) -> Any:
    return batch


def _no_preview(workdir: epath.Path, batch: Any) -> None:
    """There are no pictures."""


class Task(NamedTuple):
    """Everything the loop knows; it never names a key of the batch.

    A batch is a pytree with leading axis n. `input` takes a step and returns an iterator over the
    batches from there on (not one batch a call: a pipeline reads ahead).
    """

    init: Callable  # rng -> variables: {"params": ..., other collections: ...}
    input: Callable  # step -> iterator over host batches, this process's rows
    forward: Callable  # (params | fixed, model_state, batch, rng, step) -> outputs [n, ...], model_state
    objectives: Mapping[str, Objective]  # the loss is the sum of these terms; see step.py
    trainable: Callable  # parameter path -> bool
    evals: Mapping[str, tuple[int, Callable]]  # name -> (every n steps; 0: at the end, fn)
    #   fn(state, Context) -> flat dict of floats; at the end more, as summary.json takes it
    classes: tuple[str, ...] = ()  # of the classifier, where there is one
    start: Callable = _unchanged  # initial variables -> another run's; not compiled
    fixed: Callable = dict  # -> constant arrays on the mesh that steps read; not checkpointed (a teacher)
    fetch: Callable = _from_host  # (fixed, what `input` gave) -> the batch
    steps_per_call: int = 1  # of the compiled program, at most
    preview: Callable = _no_preview  # draws the first host batch, before training
