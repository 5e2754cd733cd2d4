"""A step with NaN or infinity is not applied; the run names and saves it, and replay repeats it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import replay
from conftest import tiny_config, tiny_splits

from simclr_jax import checkpoint, metrics, nonfinite, sharding, train
from simclr_jax.errors import DivergedError, SimclrError
from simclr_jax.loop import call_inputs, program
from simclr_jax.step import make_step
from simclr_jax.tasks import create_task

DIVERGING = {"optimizer__name": "sgd", "optimizer__learning_rate": 1e38, "model__projection": "none",
             "train__steps": 40}  # fmt: skip


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"augment__device": "all", "train__steps_per_call": 5},
        pytest.param({"train__microbatch": 8}, marks=pytest.mark.slow),
    ],
    ids=["step by step", "five a call", "microbatches"],
)
def test_a_diverging_run_keeps_the_step_and_replay_makes_it_again(tmp_path, how):
    config, splits = (
        tiny_config(**DIVERGING, log__every__steps=7, checkpoint__every__steps=0, **how),
        tiny_splits(),
    )
    with pytest.raises(DivergedError, match=r"(loss|grad_norm) is (nan|inf) at step (\d+): lower") as error:
        train.run(config, tmp_path, splits=splits)
    assert "tools/replay.py makes it again" in str(error.value)
    assert len(str(error.value).splitlines()) == 1
    last = metrics.read_rows(tmp_path)[-1]
    assert f"at step {last['step']}:" in str(error.value)
    made = replay.replay(tmp_path, splits=splits)
    assert made["step"] == last["step"]
    assert made["found"] == made["expected"]
    assert made["same_batch"]
    assert made["gradients"]
    assert replay.show(made)
    kept = checkpoint.read(tmp_path / nonfinite.FOLDER, last["step"] - 1)
    assert all(np.isfinite(array).all() for array in kept.arrays.values())  # the state before it
    assert not checkpoint.saved_steps(tmp_path / "checkpoints")


def test_replay_says_what_is_missing(tmp_path):
    with pytest.raises(SimclrError, match="no step is kept there"):
        replay.replay(tmp_path)


def changed(task, change):
    """The task with `change(value, numbers, step)` applied to the result of its contrastive objective."""
    contrast = task.objectives["nt_xent"]

    def loss(params, extra, outputs, batch, step):
        return change(*contrast.loss(params, extra, outputs, batch, step), step)

    return task._replace(objectives={**task.objectives, "nt_xent": contrast._replace(loss=loss)})


@pytest.mark.slow
def test_nothing_is_applied_after_the_first_bad_step_within_a_call():
    """Runs five steps per call; the loss of the third step is NaN."""
    config = tiny_config(augment__device="all", train__steps_per_call=5)
    mesh = sharding.make_mesh(1)
    task = create_task(config, tiny_splits(), mesh)
    optimizer, rate = train.build_optimizer(config, 80, 12, task)

    def poisoned(value, numbers, step):
        bad = jnp.where(step == 2, jnp.nan, 1.0)
        return value * bad, numbers | {"loss": numbers["loss"] * bad}

    def after(count, task):
        state = train.init_state(task, optimizer, 0, mesh)
        step_fn = make_step(task, optimizer, rate, 0)
        arguments = next(call_inputs(task.input(0), [count], 5, mesh))
        return jax.device_get(program(task, step_fn)(state, *arguments))

    good, _ = after(2, task)
    bad, numbers = after(5, changed(task, poisoned))
    assert int(bad.step) == int(good.step) == 2
    assert int(numbers[nonfinite.KEY]["step"]) == 2
    assert np.isnan(numbers[nonfinite.KEY]["loss"])
    for part in ("params", "model_state", "opt_state"):
        a, b = (checkpoint.named(getattr(state, part)) for state in (good, bad))
        for name in a:
            np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def test_other_numbers_that_are_none_end_the_run_before_they_are_saved(tmp_path, monkeypatch):
    def infinite(value, numbers, step):
        return value, numbers | {"contrast_entropy": jnp.where(step == 2, jnp.inf, 0.0)}

    monkeypatch.setattr(train, "create_task", lambda *args: changed(create_task(*args), infinite))
    with pytest.raises(DivergedError, match="contrast_entropy is inf at step 3"):
        train.run(tiny_config(), tmp_path, splits=tiny_splits())


def test_a_second_divergence_at_an_earlier_step_is_kept_too(tmp_path):
    config, splits = tiny_config(**DIVERGING, log__every__steps=7), tiny_splits()
    config.checkpoint.every.steps = 0
    with pytest.raises(DivergedError):
        train.run(config, tmp_path, splits=splits)
    kept = checkpoint.saved_steps(tmp_path / nonfinite.FOLDER)
    (tmp_path / nonfinite.FOLDER / str(kept[0])).rename(tmp_path / nonfinite.FOLDER / "30")
    with pytest.raises(DivergedError):
        train.run(config, tmp_path, splits=splits)
    assert checkpoint.saved_steps(tmp_path / nonfinite.FOLDER) == kept
    assert (tmp_path / "damaged" / nonfinite.FOLDER / "30").exists()


def test_a_full_disk_does_not_hide_why_the_run_ends(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(nonfinite, "dump", full)
    with pytest.raises(DivergedError, match=r"the step could not be kept: .*No space left"):
        train.run(tiny_config(**DIVERGING), tmp_path, splits=tiny_splits())
