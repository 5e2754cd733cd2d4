"""One training step: the gradient of a batch, at once or by microbatches, and the update."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from simclr_jax import nonfinite
from simclr_jax.state import TrainState
from simclr_jax.tasks import Task


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
        gradients, numbers, model_state = gradient(state, batch)
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        numbers |= {"grad_norm": optax.tree.norm(gradients), "learning_rate": rate(state.step)}
        after = state.replace(
            step=state.step + 1,
            params=optax.apply_updates(state.params, updates),
            model_state=model_state,
            opt_state=opt_state,
        )
        return nonfinite.guarded(state, after, numbers)

    return step_fn


def make_gradient(task: Task, seed: int, microbatches: int = 1) -> Callable:
    """(state, batch) -> (gradient, metrics, model state) of the step that comes next."""
    take = whole_gradient if microbatches == 1 else functools.partial(cached_gradient, count=microbatches)

    def gradient(state: TrainState, batch: Any) -> tuple[Any, Any, Any]:
        rng = jax.random.fold_in(jax.random.key(seed), state.step)
        return take(task, state, task.fetch(state.fixed, batch), rng)

    return gradient


def repeated(step_fn: Callable) -> Callable:
    """(state, batches [k, n, ...], count) -> (state after `count` ≤ k updates, metrics of the last).

    `count` is an input of the program: however a run is cut into calls, the same instructions make a step,
    so that an interrupted run stays equal to the bit.
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


def whole_gradient(task: Task, state: TrainState, batch: Any, rng: jax.Array) -> tuple[Any, Any, Any]:
    """(gradient, metrics, model state) of a batch at once."""

    def loss_fn(params):
        everything = {**params, **state.fixed}
        outputs, model_state = task.forward(everything, state.model_state, batch, rng, state.step)
        loss, numbers = task.loss(outputs, batch, state.step)
        return loss, (numbers, model_state)

    gradients, (numbers, model_state) = jax.grad(loss_fn, has_aux=True)(state.params)
    return gradients, numbers, model_state


def cached_gradient(
    task: Task, state: TrainState, batch: Any, rng: jax.Array, count: int
) -> tuple[Any, Any, Any]:
    """Like `whole_gradient`, but stores the activations of one of `count` microbatches at a time.

    GradCache (Gao et al., arXiv 2101.06983). The first pass computes the outputs of all microbatches and
    keeps them. The loss of the whole batch gives their cotangents. The second pass computes each microbatch
    again and pulls its cotangent back. The sum is the exact gradient of the whole batch's loss. BatchNorm
    sees one microbatch at a time, as with `count` groups. Microbatch m holds the images m, m + count, ...:
    no data moves between devices.
    """

    def split(x: jax.Array) -> jax.Array:
        return jnp.moveaxis(x.reshape(x.shape[0] // count, count, *x.shape[1:]), 1, 0)

    def join(x: jax.Array) -> jax.Array:
        return jnp.moveaxis(x, 0, 1).reshape(-1, *x.shape[2:])

    def forward(params: Any, part: Any, number: jax.Array) -> tuple[Any, Any]:
        everything, own = {**params, **state.fixed}, jax.random.fold_in(rng, number)
        return task.forward(everything, state.model_state, part, own, state.step)

    parts, numbers_of = jax.tree.map(split, batch), jnp.arange(count)
    outputs = jax.lax.map(lambda each: forward(state.params, *each)[0], (parts, numbers_of))
    cotangents, numbers = jax.grad(lambda o: task.loss(o, batch, state.step), has_aux=True)(
        jax.tree.map(join, outputs)
    )

    def pull(sums: Any, each: Any) -> tuple[Any, None]:
        part, number, cotangent = each
        _, back, model_state = jax.vjp(lambda p: forward(p, part, number), state.params, has_aux=True)
        found = back(cotangent)[0], jax.tree.map(lambda x: x / count, model_state)
        return jax.tree.map(jnp.add, sums, found), None

    zeros = jax.tree.map(jnp.zeros_like, (state.params, state.model_state))
    each = (parts, numbers_of, jax.tree.map(split, cotangents))
    (gradients, model_state), _ = jax.lax.scan(pull, zeros, each)
    return gradients, numbers, model_state
