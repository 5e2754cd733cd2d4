"""One training step: the gradient of a batch, at once or by microbatches, and the update."""

import functools
import operator
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from simclr_jax import nonfinite
from simclr_jax.losses.objective import AVERAGE, BATCH, OUTPUTS, ROWS
from simclr_jax.state import TrainState
from simclr_jax.tasks import Task

OBJECTIVES = "objectives"  # top level of the parameters that objectives have


def make_step(
    task: Task,
    optimizer: optax.GradientTransformation,
    rate: optax.Schedule,
    seed: int,
    microbatches: int = 1,
) -> Callable:
    """(state, batch) -> (state after one update, metrics): the function that is compiled."""
    gradient = make_gradient(task, seed, microbatches)

    def step_fn(state: TrainState, batch: Any) -> tuple[TrainState, dict[str, jax.Array]]:
        gradients, numbers, model_state, outputs = gradient(state, batch)
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        numbers |= {"grad_norm": optax.tree.norm(gradients), "learning_rate": rate(state.step)}
        params = optax.apply_updates(state.params, updates)
        after = state.replace(
            step=state.step + 1,
            params=params,
            model_state=model_state,
            opt_state=opt_state,
            extra=updated(task, params, state.extra, outputs),
        )
        return nonfinite.guarded(state, after, numbers)

    return step_fn


def make_gradient(task: Task, seed: int, microbatches: int = 1) -> Callable:
    """(state, batch) -> (gradient, metrics, model state, outputs) of the next step."""
    take = whole_gradient if microbatches == 1 else functools.partial(cached_gradient, count=microbatches)

    def gradient(state: TrainState, batch: Any) -> tuple[Any, ...]:
        rng = jax.random.fold_in(jax.random.key(seed), state.step)
        return take(task, state, task.fetch(state.fixed, batch), rng)

    return gradient


def repeated(step_fn: Callable) -> Callable:
    """(state, batches [k, n, ...], count) -> (state after `count` ≤ k updates, metrics of the last).

    `count` is an input of the program. So the same instructions compute a step however a run is cut into
    calls, and an interrupted run stays bitwise equal.
    """

    def steps_fn(
        state: TrainState, batches: Any, count: jax.Array
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        fixed, state = state.fixed, state.replace(fixed={})

        def one(state: TrainState, i: jax.Array) -> tuple[TrainState, dict[str, jax.Array]]:
            batch = jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, i, keepdims=False), batches)
            state, numbers = step_fn(state.replace(fixed=fixed), batch)
            return state.replace(fixed={}), numbers

        shapes = jax.eval_shape(one, state, jnp.int32(0))[1]
        nothing = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        state, numbers = jax.lax.fori_loop(0, count, lambda i, carry: one(carry[0], i), (state, nothing))
        return state.replace(fixed=fixed), numbers

    return steps_fn


# ---- terms of the loss ------------------------------------------------------------------------------


def with_objectives(task: Task, model: Any, own: Any, extra: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """(parameters, `extra`) of a run: those of the model and of its objectives, and the first moving average.

    Args:
      model: its parameters.
      own, extra: parameters and state of the objectives, by name.
    """
    params = model | ({OBJECTIVES: own} if own else {})
    if task.average:
        copied = jax.jit(functools.partial(jax.tree.map, jnp.copy))  # a step donates both
        extra = extra | {AVERAGE: copied(_averaged(params))}
    return params, extra


def _averaged(params: Any) -> Any:
    """The parameters that the moving average contains."""
    return {name: part for name, part in params.items() if name != OBJECTIVES}


def _everything(state: TrainState, params: Any) -> Any:
    """The parameters of `forward`: those that are trained, and constant ones."""
    average = {AVERAGE: state.extra[AVERAGE]} if AVERAGE in state.extra else {}
    return {**params, **state.fixed, **average}


def _joined(metrics: dict[str, jax.Array], more: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """The metrics of several terms; their "loss" is a sum."""
    both = metrics | more
    if "loss" in metrics and "loss" in more:
        both["loss"] = metrics["loss"] + more["loss"]
    return both


def _own(name: str, params: Any, extra: Any) -> tuple[Any, Any]:
    """The parameters and the state of one objective."""
    return params.get(OBJECTIVES, {}).get(name, {}), extra.get(name, {})


def batch_loss(
    task: Task, params: Any, extra: Any, outputs: Any, batch: Any, step: Any
) -> tuple[list[jax.Array], dict[str, jax.Array]]:
    """(terms that need all rows together, metrics) from the outputs of the whole batch."""
    values, metrics = [], {}
    for name, objective in task.objectives.items():
        if objective.scope == BATCH:
            value, found = objective.loss(*_own(name, params, extra), outputs, batch, step)
            values, metrics = [*values, value], _joined(metrics, found)
    return values, metrics


def row_loss(
    task: Task, params: Any, extra: Any, outputs: Any, batch: Any, step: Any, weights: dict[str, jax.Array]
) -> tuple[list[jax.Array], dict[str, jax.Array]]:
    """(terms of single examples, metrics): the contribution of these rows to the means over the batch.

    Args:
      weights: {objective: sum of its weights over the whole batch}.
    """
    values, metrics = [], {}
    for name, objective in task.objectives.items():
        if objective.scope == ROWS:
            rows, found = objective.loss(*_own(name, params, extra), outputs, batch, step)
            share = objective.weight(batch) / jnp.where(weights[name] > 0, weights[name], 1)
            values.append(jnp.sum(share * rows))
            sums = {metric: jnp.sum(share * each) for metric, each in found.items()}
            metrics = _joined(metrics, sums)
    return values, metrics


def _weights(task: Task, batch: Any) -> dict[str, jax.Array]:
    return {name: jnp.sum(o.weight(batch)) for name, o in task.objectives.items() if o.scope == ROWS}


def _needed(task: Task, outputs: dict[str, Any]) -> dict[str, Any]:
    """The outputs that terms of the whole batch and updates read."""
    kept = [o.needs for o in task.objectives.values() if o.scope == BATCH or o.update]
    wanted = dict.fromkeys(name for needs in kept for name in needs)
    if () in kept:
        of_rows = {name for o in task.objectives.values() if o.scope == ROWS for name in o.needs}
        wanted |= dict.fromkeys(name for name in outputs if name in OUTPUTS or name not in of_rows)
    return {name: outputs[name] for name in wanted}


def updated(task: Task, params: Any, extra: dict[str, Any], outputs: Any) -> dict[str, Any]:
    """The state of the objectives after a step."""
    changed = {
        name: objective.update(*_own(name, params, extra), outputs)
        for name, objective in task.objectives.items()
        if objective.update
    }
    if task.average:
        new, old, keep = _averaged(params), extra[AVERAGE], task.average
        changed[AVERAGE] = jax.tree.map(lambda a, p: keep * a + (1 - keep) * p, old, new)
    return extra | changed


# ---- the gradient -----------------------------------------------------------------------------------


def whole_gradient(task: Task, state: TrainState, batch: Any, rng: jax.Array) -> tuple[Any, ...]:
    """(gradient, metrics, model state, outputs) of a batch at once."""
    weights = _weights(task, batch)

    def loss_fn(params):
        everything = _everything(state, params)
        outputs, model_state = task.forward(everything, state.model_state, batch, rng, state.step)
        values, numbers = batch_loss(task, params, state.extra, outputs, batch, state.step)
        rows, more = row_loss(task, params, state.extra, outputs, batch, state.step, weights)
        return functools.reduce(operator.add, values + rows), (
            _joined(numbers, more),
            model_state,
            _needed(task, outputs),
        )

    gradients, (numbers, model_state, outputs) = jax.grad(loss_fn, has_aux=True)(state.params)
    return gradients, numbers, model_state, outputs


def cached_gradient(task: Task, state: TrainState, batch: Any, rng: jax.Array, count: int) -> tuple[Any, ...]:
    """Like `whole_gradient`, but stores the activations of one of `count` microbatches at a time.

    GradCache (Gao et al., arXiv 2101.06983). The first pass computes the outputs of all microbatches and
    keeps those that terms of the whole batch need. These terms give their cotangents. The second pass
    computes each microbatch again, adds the terms of its rows and pulls the cotangents back. The sum is the
    exact gradient of the whole batch's loss. BatchNorm sees one microbatch at a time, as with `count`
    groups. Microbatch m holds the images m, m + count, ...: no data moves between devices.
    """

    def split(x: jax.Array) -> jax.Array:
        return jnp.moveaxis(x.reshape(x.shape[0] // count, count, *x.shape[1:]), 1, 0)

    def join(x: jax.Array) -> jax.Array:
        return jnp.moveaxis(x, 0, 1).reshape(-1, *x.shape[2:])

    def forward(params: Any, part: Any, number: jax.Array) -> tuple[Any, Any]:
        everything, own = _everything(state, params), jax.random.fold_in(rng, number)
        return task.forward(everything, state.model_state, part, own, state.step)

    parts, numbers_of = jax.tree.map(split, batch), jnp.arange(count)
    outputs = jax.lax.map(lambda each: _needed(task, forward(state.params, *each)[0]), (parts, numbers_of))
    outputs, weights = jax.tree.map(join, outputs), _weights(task, batch)

    def of_batch(params: Any, outputs: Any) -> tuple[Any, Any]:
        values, numbers = batch_loss(task, params, state.extra, outputs, batch, state.step)
        return functools.reduce(operator.add, values) if values else jnp.float32(0), numbers

    # The objectives' own parameters get a gradient here; it is zero where there are none.
    own = {OBJECTIVES: state.params[OBJECTIVES]} if OBJECTIVES in state.params else {}
    (of_own, cotangents), numbers = jax.grad(of_batch, (0, 1), has_aux=True)(own, outputs)

    def pull(sums: Any, each: Any) -> tuple[Any, Any]:
        part, number, cotangent = each

        def of_rows(params: Any) -> tuple[Any, Any]:
            found, model_state = forward(params, part, number)
            rows, metrics = row_loss(task, params, state.extra, found, part, state.step, weights)
            return (_needed(task, found), rows), (model_state, metrics)

        (_, rows), back, (model_state, metrics) = jax.vjp(of_rows, state.params, has_aux=True)
        gradient = back((cotangent, jax.tree.map(jnp.ones_like, rows)))[0]
        found = gradient, jax.tree.map(lambda x: x / count, model_state)
        return jax.tree.map(jnp.add, sums, found), metrics

    zeros = jax.tree.map(jnp.zeros_like, (state.params, state.model_state))
    each = (parts, numbers_of, jax.tree.map(split, cotangents))
    (gradients, model_state), more = jax.lax.scan(pull, zeros, each)
    if own:
        gradients |= {OBJECTIVES: jax.tree.map(jnp.add, gradients[OBJECTIVES], of_own[OBJECTIVES])}
    numbers = _joined(numbers, jax.tree.map(lambda x: jnp.sum(x, axis=0), more))
    return gradients, numbers, model_state, outputs
