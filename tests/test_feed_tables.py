"""Runs on tables: trained, scored beside raw columns and the untrained encoder, resumed, loaded."""

import json

import numpy as np
import pytest
from conftest import tiny_config

import simclr_jax
from simclr_jax import checkpoint, train
from simclr_jax.config import checks
from simclr_jax.data import tables
from simclr_jax.errors import SimclrError
from simclr_jax.evaluate import run as evaluation


def table_config(**fields):
    small = {"data__source": "table:sklearn/wine", "model__encoder": "mlp", "model__mlp__layers": 2,
             "model__mlp__hidden": 16, "train__batch_size": 32, "train__steps_per_call": 4}  # fmt: skip
    return tiny_config(**(small | fields))


def arrays(workdir, step=12):
    return checkpoint.read(workdir / "checkpoints", step).arrays


@pytest.mark.slow
def test_trained_scored_evaluated_and_loaded(tmp_path):
    config = table_config(eval__final=True, eval__figures=True, train__steps=40)
    summary = train.run(config, tmp_path)
    scores = summary["scores"]["linear_all"]
    assert set(scores) == {"simclr", "untrained", "raw_pixels"}
    assert scores["raw_pixels"] > 0.9  # three kinds of wine are easy to tell apart
    assert min(scores.values()) > 0.5
    assert not (tmp_path / "figures" / "views.png").exists()
    assert not (tmp_path / "figures" / "neighbours.png").exists()

    made = evaluation.evaluate(tmp_path, protocols=["knn", "lbfgs", "health"])
    assert {row["id"] for row in made["rows"]} >= {"knn_200", "lbfgs"}

    encoder = simclr_jax.load(tmp_path)
    splits = tables.load("sklearn/wine", None, 0.1)
    from sklearn import datasets

    raw = datasets.load_wine().data
    features = encoder(raw)
    assert features.shape == (178, 16)
    # Raw rows are standardised by the training rows, as the run's own rows are.
    seen = {row.tobytes() for row in splits.train.fetch(np.arange(splits.train.size))[0]}
    assert sum(row.tobytes() in seen for row in encoder.reader.check(raw)) == splits.train.size
    with pytest.raises(SimclrError, match=r"rows must be numbers \[n, 13\], not float64 \[178, 12\]"):
        encoder(raw[:, :12])


@pytest.mark.slow
def test_one_device_equals_eight_and_a_cut_run_goes_on_to_the_bit(tmp_path):
    train.run(table_config(), tmp_path / "one")
    train.run(table_config(mesh__devices=8, eval__batch_size=32), tmp_path / "eight")
    one, eight = arrays(tmp_path / "one"), arrays(tmp_path / "eight")
    for name in one:
        np.testing.assert_allclose(one[name], eight[name], rtol=2e-3, atol=2e-5, err_msg=name)
    for step in (8, 12):
        (tmp_path / "one" / "checkpoints" / str(step)).rename(tmp_path / f"gone{step}")
    assert train.run(table_config(), tmp_path / "one")["resumed_from"] == 4
    again = arrays(tmp_path / "one")
    for name in one:
        np.testing.assert_array_equal(one[name], again[name], err_msg=name)


@pytest.mark.slow
def test_microbatches_see_the_same_views(tmp_path):
    """Draws are keyed by position: the first loss is that of the whole batch."""
    fields = {"model__projection": "none", "train__steps": 4, "train__steps_per_call": 1}
    for name, micro in (("whole", 0), ("parts", 8)):
        train.run(table_config(**fields, train__microbatch=micro), tmp_path / name)
    rows = [
        json.loads((tmp_path / name / "metrics.jsonl").read_text().splitlines()[0])
        for name in ("whole", "parts")
    ]
    assert rows[0]["loss"] == pytest.approx(rows[1]["loss"], rel=1e-5)
    assert rows[0]["grad_norm"] == pytest.approx(rows[1]["grad_norm"], rel=1e-4)


@pytest.mark.slow
def test_learning_from_labels_reads_the_rows_as_they_are(tmp_path):
    train.run(table_config(), tmp_path / "start")
    config = table_config(task="supervised", start__workdir=str(tmp_path / "start"), train__steps=40,
                          finetune__after_block=0, eval__final=True)  # fmt: skip
    summary = train.run(config, tmp_path / "tuned")
    assert summary["test"]["top1"] > 0.5
    before, after = (
        checkpoint.read_parameters(tmp_path / name / "checkpoints")[1]["encoder"]
        for name in ("start", "tuned")
    )
    np.testing.assert_array_equal(before["layer1"]["kernel"], after["layer1"]["kernel"])
    assert np.any(before["layer2"]["kernel"] != after["layer2"]["kernel"])


def test_encoders_and_feeds_that_do_not_fit_are_refused():
    for fields, told in (
        ({"model__encoder": "resnet"}, r"model\.encoder='resnet': must be one that takes rows.*mlp"),
        ({"data__source": "builtin:mnist5k"}, r"model\.encoder='mlp': must be one that takes images.*resnet"),
        ({"data__source": "table:"}, r"data\.source='table:': say which one"),
        ({"data__table__corruption": 1.5}, r"data\.table\.corruption=1\.5: must be at most 1"),
    ):
        with pytest.raises(SimclrError, match=told):
            checks.validate(table_config(**fields))


def test_a_run_that_starts_from_another_reads_rows_as_that_one_did(tmp_path):
    """Another table with other means and texts: a number keeps what it meant to the encoder."""
    first = "".join(f"{i},{'blue' if i % 2 else 'red'},{'ab'[i % 2]}\n" for i in range(100))
    other = "".join(f"{1000 + i},{'blue' if i % 2 else 'green'},{'ab'[i % 2]}\n" for i in range(100))
    for name, rows in (("first.csv", first), ("other.csv", other)):
        (tmp_path / name).write_text("x,colour,class\n" + rows)
    config = table_config(data__source=f"table:{tmp_path}/first.csv")
    train.run(config, tmp_path / "run")
    tuned = table_config(task="supervised", start__workdir=str(tmp_path / "run"),
                         data__source=f"table:{tmp_path}/other.csv", train__steps=4)  # fmt: skip
    train.run(tuned, tmp_path / "tuned")
    before, after = (simclr_jax.load(tmp_path / name) for name in ("run", "tuned"))
    assert after.reader == before.reader
    assert after.reader.columns.names == ("x", "colour=blue", "colour=red")
    (tmp_path / "narrow.csv").write_text("x,class\n1,a\n2,b\n" * 40)
    tuned.data.source = f"table:{tmp_path}/narrow.csv"
    with pytest.raises(SimclrError, match="lacks columns that the training rows have: colour"):
        train.run(tuned, tmp_path / "no")
    with pytest.raises(SimclrError, match="there are none"):
        after(np.zeros((0, 3)))
