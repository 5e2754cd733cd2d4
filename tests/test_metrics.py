"""Rates, rows, progress."""

import json
import time

import jax
import numpy as np
import pytest
from conftest import tiny_config

from simclr_jax import announce, metrics
from simclr_jax.measures import health
from simclr_jax.tasks import pretrain


def test_meter_leaves_out_what_is_no_training():
    waited = [0.0]
    meter = metrics.Meter(batch_size=10, waited=lambda: waited[0])
    time.sleep(0.2)
    meter.pause()  # an evaluation
    time.sleep(0.3)
    meter.resume()
    time.sleep(0.2)
    waited[0] = 0.1
    read = meter.read(steps=4)
    assert 40 / 0.6 < read["images_per_second"] <= 40 / 0.4
    assert 0.1 / 0.6 < read["data_wait"] <= 0.1 / 0.4
    time.sleep(0.1)
    again = meter.read(steps=5)
    assert 10 / 0.2 < again["images_per_second"] <= 10 / 0.1
    assert again["data_wait"] == 0
    assert 50 / 0.8 < meter.totals(steps=5)["images_per_second"] <= 50 / 0.5


def test_rows_survive_a_torn_line_and_numbers_json_lacks(tmp_path):
    writers = metrics.Writers(tmp_path, 0, tensorboard=False)
    writers.write(1, {"loss": 2.0})
    writers.write(2, {"loss": float("inf")})
    writers.close()
    with (tmp_path / metrics.JSONL).open("a") as file:
        file.write('{"step": 3, "lo')
    assert metrics.read_rows(tmp_path) == [{"step": 1, "loss": 2.0}, {"step": 2, "loss": None}]
    metrics.Writers(tmp_path, 1, tensorboard=False).close()
    lines = (tmp_path / metrics.JSONL).read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1]


def test_disabled_writers_touch_nothing(tmp_path):
    writers = metrics.Writers(tmp_path, 0, enabled=False)
    writers.write(1, {"loss": 1.0})
    writers.close()
    assert not list(tmp_path.iterdir())


def test_progress_prints_plain_lines_with_rate_and_eta(capsys):
    progress = metrics.Progress(10, 12, every_seconds=0)
    progress.note({"loss": 1.5, "images_per_second": 1234.5, "data_wait": 0.25})
    progress.step(11)
    progress.step(12)
    progress.close()
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    for text in ("step 11/12 (92 %)", "steps/s", "ETA 0:0", "loss 1.500", "1234", "input wait 25%"):
        assert text in lines[0]


@pytest.mark.parametrize("count", [0, 3])
def test_tensorboard_restart_forgets_later_steps(tmp_path, count):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for restored in (0, count):
        writers = metrics.Writers(tmp_path, restored)
        for step in range(restored + 1, 6):
            writers.write(step, {"loss": float(step + 10 * restored)})
        writers.close()
        time.sleep(1.1)  # event files are told apart and ordered by the second
    events = EventAccumulator(str(tmp_path)).Reload()
    assert [e.step for e in events.Scalars("loss")] == [1, 2, 3, 4, 5]
    assert events.Scalars("loss")[-1].value == 5 + 10 * count


@pytest.mark.parametrize(
    ("device", "remedy"), [("none", "augment.device=photometric"), ("all", "train.steps_per_call")]
)
def test_a_starving_device_is_named_once_with_a_remedy(device, remedy):
    hunger = announce.Hunger(tiny_config(augment__device=device))
    said = [hunger.line(share) for share in (0.9, 0.1, 0.3, 0.4, 0.5, 0.0, 0.6, 0.6)]
    assert [bool(line) for line in said] == [False] * 3 + [True] + [False] * 4
    assert "waits 40%" in said[3]
    assert f"--config.{remedy}" in said[3]


def test_a_collapse_is_told_once_and_only_when_it_lasts():
    collapse = announce.Collapse()
    said = [collapse.line(value) for value in (None, 0.3, 0.01, 0.2, 0.01, 0.019, 0.0, 0.0)]
    assert [bool(line) for line in said] == [False] * 5 + [True, False, False]
    assert "feature_std 0.019" in said[5]
    assert "config.optimizer.learning_rate" in said[5]


@pytest.mark.parametrize("spread", [0.0, 1e-3, 1.0])
def test_the_deviation_while_training_is_that_of_the_evaluation(spread):
    h = 1 + spread * np.random.default_rng(0).standard_normal((32, 2, 24)).astype(np.float32)
    mine = float(jax.jit(pretrain._deviation)(h))
    assert mine == pytest.approx(health.feature_std(h.reshape(64, 24)), abs=2e-3)
