"""A workdir that an older version wrote, of schema 4: it loads, goes on and is evaluated.

`fixtures/schema4` holds a run of 120 steps with the checkpoints of 60 and 120; metrics.jsonl keeps what the
older version measured.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import simclr_jax
from simclr_jax import checkpoint, train
from simclr_jax.config import SCHEMA, differences, load_config
from simclr_jax.data import splits
from simclr_jax.evaluate import run as evaluation

STORED = Path(__file__).parent / "fixtures" / "schema4"


@pytest.fixture
def workdir(tmp_path):
    return Path(shutil.copytree(STORED, tmp_path / "run"))


def rows_of(workdir):
    return {row["step"]: row for row in map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())}


def test_it_loads(workdir):
    encoder = simclr_jax.load(workdir)
    assert encoder.step == 120
    assert encoder.classes == tuple("0123456789")
    assert encoder.config.augment.rotation == 15.0
    images, _ = splits.load(**encoder.config.data).test.fetch(np.arange(8))
    assert np.isfinite(encoder(images)).all()
    assert encoder.logits(images).shape == (8, 10)


@pytest.mark.slow
def test_it_goes_on_and_learns_the_same(workdir):
    before = rows_of(workdir)
    shutil.rmtree(workdir / "checkpoints" / "120")
    config, _ = load_config(workdir)
    summary = train.run(config, workdir)
    assert (summary["resumed_from"], summary["steps"]) == (60, 120)
    assert checkpoint.saved_steps(workdir / "checkpoints") == [60, 120]
    after = rows_of(workdir)
    for step in (70, 120):
        for name in ("loss", "grad_norm", "probe_loss", "learning_rate"):
            assert after[step][name] == pytest.approx(before[step][name], rel=1e-4), (step, name)
    stored = json.loads((workdir / "config.json").read_text())
    assert stored["schema"] == SCHEMA
    assert differences(load_config(workdir)[0], config) == []


@pytest.mark.slow
def test_it_is_evaluated(workdir):
    made = evaluation.evaluate(workdir, protocols=["knn"])
    (row,) = [row for row in made["rows"] if row["id"] == "knn_200"]
    assert row["cells"]["simclr"]["value"] > 0.5
