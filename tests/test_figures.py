"""Figures: whatever a class or a file is called, and whatever fails, the run and its scores are whole."""

import dataclasses
import errno
import io
import json
import types
import warnings

import numpy as np
import pytest
from conftest import tiny_config, tiny_splits
from PIL import Image

from simclr_jax import figures, results, train
from simclr_jax.data.splits import Splits
from simclr_jax.evaluate import charts, page
from simclr_jax.evaluate.subject import Subject
from simclr_jax.measures import embedding
from simclr_jax.tasks import pretrain

# Names that matplotlib takes for something else, or warns of.
NAMES = (
    "$0_to_$50", "$50", "$x$", r"\frac{1}{2}", r"$\notacommand$", r"a\$b$", r"ends\\", "_private", "__x",
    "line\nbreak", "tab\tand\0control\x7f\x85", "\u65e5\u672c\u8a9e", "\U0001f600 cat", "not\udce9utf8", "",
    "   ", "\u202eright to left", "x" * 500, "{}", "%s", "^_^", "line\u2028separator",
)  # fmt: skip


@pytest.fixture
def _strict():
    """Every warning is an error: of missing glyphs, of empty legends, of a layout without room."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def shown(name, **how):
    """What matplotlib shows of a name in a title, and its legend's entries."""
    figure = figures.new()
    axes = figure.subplots()
    axes.plot([0, 1], label=figures.text(name, **how))
    axes.set_title(figures.text(name, **how))
    axes.set_yticks([0, 1], [figures.text(name, **how)] * 2)
    legend = axes.legend()
    figures.save(figure, io.BytesIO())
    text, mathematics = axes.title._preprocess_math(axes.title.get_text())
    assert not mathematics
    return text, len(legend.texts)


@pytest.mark.usefixtures("_strict")
@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_every_name_is_shown_as_it_is(name):
    text, entries = shown(name)
    assert entries == 1
    if name.isascii() and name.isprintable() and name.strip() and len(name) < 30:
        assert text.strip() == name


def test_a_long_name_loses_its_middle_and_keeps_what_tells_it_apart():
    names = {figures.text("class_" * 30 + str(i)) for i in range(20)}
    assert len(names) == 20
    assert all(len(name) == figures.LONGEST for name in names)
    assert figures.text("abcdefghij", 7) == "abcd…ij"
    assert figures.text("$" * 50, 5) == r"\$\$\$…\$"


def test_what_the_font_lacks_is_a_box():
    assert figures.text("a \u65e5\udce9 b\u200d") == "a □□ b"
    assert figures.text("Übergröße ÷ ∞") == "Übergröße ÷ ∞"


def test_what_is_no_text_is_shown_too():
    assert figures.text(0.07) == "0.07"
    assert figures.text(None) == "None"


CLASSES = NAMES[:20]


def images(*shape):
    return np.random.default_rng(0).random((*shape, 12, 12, 3), np.float32)


DRAWINGS = {
    figures.embedding: (np.random.default_rng(0).random((20, 2)), np.arange(20), CLASSES, "$t$"),
    charts.confusion: (np.eye(20, dtype=int), CLASSES),
    charts.per_class: (
        [{"f1": i / 20, "support": 1, "precision": 0.5, "recall": 0.5} for i in range(20)], CLASSES
    ),
    charts.bars: (dict.fromkeys(NAMES, 0.5), "title $1 $2", "$unit$"),
    charts.grid: (images(8), CLASSES[:8], "a $ b $"),
    charts.pairs: (images(8, 2), CLASSES[:8], "_a"),
    charts.overlays: (images(8), images(8)[..., 0], CLASSES[8:16], "日本"),
    charts.knn_grids: (
        [1, 5],
        [{"features": "$f$", "distance": "cosine", "temperatures": [0.1], "accuracy": [[0.5], [0.6]]},
         {"features": "_g", "distance": "euclidean", "accuracy": [[0.5], [0.6]]}],
    ),
    charts.curves: ({name: [{"step": 1, "loss": 1.0}, {"step": 2, "loss": 0.5}] for name in NAMES[:6]},),
}  # fmt: skip


@pytest.mark.usefixtures("_strict")
@pytest.mark.parametrize("draw", DRAWINGS, ids=lambda f: f.__name__)
def test_a_figure_takes_names_of_every_kind(draw, tmp_path):
    assert figures.attempt(pytest.fail, tmp_path / "figures" / "a.png", draw, *DRAWINGS[draw])
    with Image.open(tmp_path / "figures" / "a.png") as image:
        assert image.size[0] > 200


def test_names_that_are_alike_when_cut_keep_a_bar_each(tmp_path, monkeypatch):
    kept = []
    monkeypatch.setattr(charts, "save", lambda figure, path: kept.append(figure))
    charts.bars(tmp_path / "a.png", {f"{'x' * 40}{i}{'y' * 40}": i / 4 for i in range(4)}, "title", "unit")
    assert len(kept[0].axes[0].patches) == 4
    assert len({bar.get_y() for bar in kept[0].axes[0].patches}) == 4


# ---- what fails -----------------------------------------------------------------------------------


def full_disk(*_, **__):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_figure_that_fails_is_one_line_and_takes_the_old_one_with_it(tmp_path):
    said = []
    path = tmp_path / "tsne.png"
    path.write_text("of another encoder")
    assert not figures.attempt(said.append, path, full_disk)
    assert said == ["tsne.png: not drawn, the rest goes on (OSError: [Errno 28] No space left on device)"]
    assert not path.exists()
    for error in (ValueError("\n$0_to_$50\n^\nParseException"), MemoryError(), ImportError("no matplotlib")):

        def fail(path, error=error):
            raise error

        assert not figures.attempt(said.append, path, fail)
        assert "\n" not in said[-1]


def test_ctrl_c_in_a_figure_ends_the_run(tmp_path):
    def interrupt(path):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        figures.attempt(pytest.fail, tmp_path / "a.png", interrupt)


def test_a_full_disk_leaves_no_half_figure(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    figures.save(figures.new(), path)
    whole = path.read_bytes()
    monkeypatch.setattr(type(figures.epath.Path(path)), "replace", full_disk)
    with pytest.raises(OSError, match="No space"):
        figures.save(figures.new(figsize=(9, 9)), path)
    assert path.read_bytes() == whole
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]


def test_a_figure_in_memory_may_fail_too():
    said = []
    assert not figures.attempt(said.append, io.BytesIO(), full_disk)
    assert said[0].startswith("full_disk: not drawn")


def test_the_table_shows_what_counts_every_class_alike_where_accuracy_hides_it():
    def table(balanced):
        cells = {"balanced_accuracy": {"value": balanced}, "auroc": {"value": 0.5}}
        raw, mine = ({"value": 0.98, "low": 0.96, "high": 1.0, **cells} for _ in range(2))
        mine["auroc"] = {"value": 0.5, "low": 0.42, "high": 0.58}
        row = {"id": "lbfgs", "title": "linear", "cells": {"raw_pixels": raw, "simclr": mine}}
        published = {"id": "sgd", "title": "SGD", "cells": {}, "published": {"value": 0.9, "by": "they"}}
        lines = results.table([results.Row.of(one) for one in (row, published)])
        assert len(set(map(len, lines))) == 1
        return [[word.strip() for word in line.split("  ") if word.strip()] for line in lines]

    assert table(0.975) == [
        ["%, with 95 % interval", "this encoder", "raw pixels", "published (theirs)"],
        ["linear", "98.0 [96.0, 100.0]", "98.0 [96.0, 100.0]"],
        ["SGD", "90.0, they"],
    ]
    assert table(0.5)[2:4] == [
        ["balanced accuracy", "50.0 %", "50.0 %"],
        ["AUROC", "0.500 [0.420, 0.580]", "0.500"],
    ]


def named(splits, classes):
    return Splits(*(dataclasses.replace(split, classes=tuple(classes)) for split in splits))


def finished(tmp_path, capsys, classes=("$0_to_$50", "_b", "c\nd", "\u65e5" * 99)):
    """The output of a run with scores and figures; its scores are whole."""
    config = tiny_config(train__steps=3, eval__final=True, eval__figures=True, eval__baselines=False)
    summary = train.run(config, tmp_path, splits=named(tiny_splits(n=240), classes))
    assert json.loads((tmp_path / "summary.json").read_text())["scores"] == summary["scores"]
    assert "linear, all labels" in [row["title"] for row in summary["rows"]]
    return capsys.readouterr()


@pytest.mark.slow
def test_classes_named_in_dollars_end_in_scores_and_figures(tmp_path, capsys):
    out, err = finished(tmp_path, capsys)
    assert "not drawn" not in out
    assert "Warning" not in err
    assert {p.name for p in (tmp_path / "figures").iterdir()} == {
        "views.png", "curves.png", "neighbours.png", "tsne.png"
    }  # fmt: skip


@pytest.mark.slow
def test_a_disk_that_takes_no_figure_costs_no_score(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(figures, "save", full_disk)
    out, _ = finished(tmp_path, capsys)
    for name in ("views", "curves", "neighbours", "tsne"):
        assert f"{name}.png: not drawn, the rest goes on (OSError: [Errno 28] No space" in out


def test_a_map_that_fails_costs_nothing_else(tmp_path, capsys, monkeypatch):
    def fail(*_, **__):
        raise ValueError("Input X contains NaN.\nsee the manual")

    monkeypatch.setattr(embedding, "tsne", fail)
    assert not figures.attempt(print, tmp_path / "tsne.png", pretrain._map, np.eye(9), np.arange(9), ())
    expected = "tsne.png: not drawn, the rest goes on (ValueError: Input X contains NaN.)\n"
    assert capsys.readouterr().out == expected


@pytest.mark.slow
def test_features_that_fail_cost_no_score(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(pretrain, "extract", full_disk)
    out, _ = finished(tmp_path, capsys)
    assert "figures: not drawn, the rest goes on" in out


@pytest.mark.parametrize("first", [True, False])
def test_a_chart_that_fails_costs_no_evaluation(tmp_path, capsys, first):
    subject = types.SimpleNamespace(first=first, folder=tmp_path)
    Subject.draw(subject, "lbfgs_confusion.png", charts.confusion, "no counts", CLASSES)
    out = capsys.readouterr().out
    assert out.startswith("lbfgs_confusion.png: not drawn, the rest goes on (ValueError") == first


def test_the_page_leaves_out_a_figure_that_failed(tmp_path):
    assert page.figure(tmp_path, "tsne", "caption") == ""
