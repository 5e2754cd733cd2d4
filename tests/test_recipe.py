"""The recipe that is asked for is the one that runs: warm-up and decay fit the run, and are told."""

import json
import re

import jax
import numpy as np
import pytest
from conftest import tiny_config, tiny_splits

from simclr_jax import metrics, optim, recipe, train
from simclr_jax.config import default, differences, duration, from_json, to_json
from simclr_jax.errors import SimclrError


def config_of(*, warmup, **overrides):
    config = tiny_config(**overrides)
    config.optimizer.warmup = duration(**warmup)
    return config


def rates(config, examples):
    """The learning rate of every step, as the run takes it."""
    warmup, total = recipe.lengths(config, examples)
    optimizer = config.optimizer
    peak = optim.scaled_rate(optimizer.learning_rate, optimizer.scaling, config.train.batch_size)
    return np.asarray(jax.vmap(optim.schedule(peak, warmup, total))(np.arange(total + 1)))


@pytest.mark.parametrize(
    ("train_for", "warmup"),
    [
        ({"train__epochs": 5.0}, {"epochs": 10}),  # configs/folder.py for five epochs
        ({"train__steps": 50}, {"epochs": 10}),  # any recipe, tried for a moment
        ({"train__steps": 50}, {"steps": 50}),  # as long as the run
        ({"train__examples": 8000}, {"examples": 100_000}),
        ({"train__steps": 11}, {"steps": 2**31 - 1}),
    ],
    ids=str,
)
def test_a_warmup_longer_than_the_run_becomes_a_tenth_of_it(train_for, warmup):
    asked = config_of(warmup=warmup, **{"train__steps": 0, "train__epochs": 0.0, **train_for})
    before = asked.to_dict()
    config, lines = recipe.settle(asked, 1600)
    warm, total = recipe.lengths(config, 1600)
    assert warm == total // 10
    assert asked.to_dict() == before
    seen = rates(config, 1600)
    assert seen.max() == pytest.approx(3e-3)  # the whole rate
    assert seen[-1] == pytest.approx(0, abs=1e-9)  # and its decay
    assert len(lines) == 1
    assert f"a tenth of the run, {warm} step" in lines[0]


@pytest.mark.parametrize("steps", [1, 2, 9])
def test_a_run_of_less_than_ten_steps_has_no_warmup(steps):
    config, lines = recipe.settle(config_of(warmup={"epochs": 10}, train__steps=steps), 1600)
    assert recipe.lengths(config, 1600) == (0, steps)
    assert rates(config, 1600)[0] == pytest.approx(3e-3)
    assert "a tenth of the run, 0 steps" in lines[0]


def test_a_long_warmup_within_the_run_is_a_note_and_no_change():
    config = config_of(warmup={"steps": 5}, train__steps=20)
    settled, lines = recipe.settle(config, 1600)
    assert settled.to_dict() == config.to_dict()
    assert lines == ["note: the warm-up takes 5 of 20 steps, 25%; a tenth is usual"]


@pytest.mark.parametrize("warmup", [{}, {"steps": 2}, {"epochs": 0.02}])
def test_a_recipe_that_fits_is_left_alone(warmup):
    config = config_of(warmup=warmup, train__steps=20)
    settled, lines = recipe.settle(config, 1600)
    assert settled.to_dict() == config.to_dict()
    assert lines == []


@pytest.mark.parametrize("examples", [4096, 50_000, 1_281_167])
@pytest.mark.parametrize("batch", [256, 1000, 4096])
def test_ten_epochs_of_a_hundred_are_no_note(examples, batch):
    config = config_of(warmup={"epochs": 10}, train__steps=0, train__epochs=100.0, train__batch_size=batch)
    assert recipe.settle(config, examples) == (config, [])


def test_the_same_command_agrees_with_what_it_stored():
    asked = config_of(warmup={"epochs": 10}, train__steps=50)
    first, _ = recipe.settle(asked, 1600)
    stored, _ = from_json(to_json(first, {}))
    again, lines = recipe.settle(asked, 1600, stored)
    assert differences(stored, again) == []
    assert lines  # it is said again: the command still asks for another
    for said_by_hand in ({"epochs": 10, "steps": 5}, {"epochs": 10.0, "steps": 5}):
        again, lines = recipe.settle(config_of(warmup=said_by_hand, train__steps=50), 1600, stored)
        assert differences(stored, again) == []
        assert lines == []


def test_another_warmup_is_still_another_recipe():
    first, _ = recipe.settle(config_of(warmup={"epochs": 10}, train__steps=50), 1600)
    for warmup in ({"steps": 7}, {}, {"epochs": 0.02}):
        again, _ = recipe.settle(config_of(warmup=warmup, train__steps=50), 1600, first)
        assert differences(first, again)
    longer, _ = recipe.settle(config_of(warmup={"epochs": 10}, train__steps=100), 1600, first)
    assert differences(first, longer) == [
        "config.optimizer.warmup.steps: 5 -> 10", "config.train.steps: 50 -> 100"
    ]  # fmt: skip


@pytest.mark.parametrize("train_for", [{"train__steps": 50}, {"train__steps": 0, "train__epochs": 5.0}])
def test_a_run_of_an_older_version_keeps_its_schedule(train_for):
    older = config_of(warmup={"epochs": 10}, **train_for)
    before = rates(older, 1600)
    config, lines = recipe.settle(older, 1600, older)
    assert lines == []
    assert config.to_dict() == older.to_dict()
    np.testing.assert_array_equal(rates(config, 1600), before)
    assert before.max() < 3e-3
    line = recipe.describe(config, 1600)
    assert line.startswith(
        f"learning rate: rises all the time, to {before[-1]:.4g} at step {len(before) - 1:,}"
    )


def test_the_line_tells_peak_warmup_and_decay():
    c = default()
    c.optimizer.learning_rate, c.optimizer.scaling, c.train.batch_size = 0.075, "sqrt", 256
    assert recipe.describe(c, 40_000) == (
        "learning rate: rises to 1.2 over 1,562 steps, then falls by a cosine to 0 at step 15,626"
    )
    c.optimizer.warmup = duration()
    assert recipe.describe(c, 40_000) == (
        "learning rate: starts at 1.2 and falls by a cosine to 0 at step 15,626"
    )
    c.optimizer.warmup = duration(steps=1)
    assert "over 1 step, then" in recipe.describe(c, 40_000)


# ---- whole runs -----------------------------------------------------------------------------------


def run(workdir, **overrides):
    return train.run(config_of(warmup={"epochs": 10}, **overrides), workdir, splits=tiny_splits())


def test_a_short_run_reaches_its_rate_and_goes_on_by_the_same_command(tmp_path, capsys):
    run(tmp_path, train__steps=20, eval__final=False)
    out = capsys.readouterr().out
    line = r"^learning rate: rises to 0\.003 over 2 steps, then falls by a cosine to 0 at step 20$"
    assert re.search(line, out, re.M)
    assert re.search(r"^warm-up: the 50 steps .* a tenth of the run, 2 steps$", out, re.M)
    assert json.loads((tmp_path / "config.json").read_text())["config"]["optimizer"]["warmup"]["steps"] == 2
    seen = [row["learning_rate"] for row in metrics.read_rows(tmp_path)]
    assert max(seen) == pytest.approx(3e-3)
    assert seen[-1] < 1e-4
    (tmp_path / "checkpoints" / "20").rename(tmp_path / "20")
    assert run(tmp_path, train__steps=20)["resumed_from"] == 16
    assert [row["learning_rate"] for row in metrics.read_rows(tmp_path)] == seen
    with pytest.raises(SimclrError, match=r"train\.steps: 20 -> 30"):
        run(tmp_path, train__steps=30)
