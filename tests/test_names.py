"""Names from outside (classes, files, trials, configs) become parts of paths; none leads out of a folder."""

import dataclasses

import pytest
from conftest import tiny_arrays, tiny_config, untrained_run
from etils import epath
from PIL import Image

from simclr_jax import main
from simclr_jax import workdir as folder
from simclr_jax.data import pipeline, sources, splits
from simclr_jax.errors import SimclrError
from simclr_jax.evaluate import run, subject
from simclr_jax.sweep import space

NAMES = ("../x", "a/b", "/abs", "..", ".", "line\nbreak", "", "~", "<b>&amp;", "C:\\x", "ü" * 60)


def test_names_of_classes_stay_in_the_workdir(tmp_path):
    """What an evaluation writes of them; on the page and in tables they are text."""
    images, labels = tiny_arrays(n=44, classes=len(NAMES))
    named = dataclasses.replace(sources.from_arrays(images, labels), classes=NAMES)
    workdir = untrained_run(tmp_path / "home" / "run", tiny_config())
    run.evaluate(workdir, protocols=["maps"], splits=splits.Splits(named, named))
    assert {path.name for path in tmp_path.iterdir()} == {"home"}
    assert {path.name for path in (tmp_path / "home").iterdir()} == {"run"}
    assert {path.name for path in workdir.iterdir()} == {"checkpoints", "config.json", "eval"}
    assert "<b>&amp;" not in (workdir / "eval" / "report.html").read_text()
    metadata = (workdir / "eval" / "projector" / "metadata.tsv").read_text()
    assert {line.count("\t") for line in metadata.splitlines()} == {1}


@pytest.mark.parametrize("name", NAMES)
def test_a_subject_has_one_folder_below_eval(name, tmp_path):
    """Its name has the fields in it that differ from the run's."""
    config, other = tiny_config(), tiny_config(data__source=f"npz:{name}", data__train_split=name)
    changed = subject.differences(config, other)
    folder = subject.folder_of(tmp_path / "run", changed)
    assert folder.parent == tmp_path / "run" / "eval"
    folder.mkdir(parents=True)


@pytest.mark.parametrize("name", [name for name in NAMES if name])
def test_a_trial_has_one_folder_below_trials(name, tmp_path):
    folder = tmp_path / space.name({"data.train_split": name, "data.source": f"npz:{name}"})
    assert folder.parent == tmp_path
    assert folder.name not in (".", "..")
    folder.mkdir()


def test_names_of_trials_differ():
    names = {space.name({"data.train_split": name}) for name in NAMES}
    assert len(names) == len(NAMES)


@pytest.mark.parametrize(
    ("config", "expected"),
    [("configs/mnist.py", "runs/mnist"), ("my config.py", "runs/my config"),
     ("/a/b.py:small", "runs/b.py:small"), ("c.py:a/..", "runs/c.py:a_.."), ("c.py:/abs", "runs/c.py:_abs"),
     ("/a/...py", "runs/config"), ("/a/.py", "runs/config")],
)  # fmt: skip
def test_the_default_workdir_lies_in_runs(config, expected):
    assert main.default_workdir(config) == expected


@pytest.mark.parametrize("name", ["../x", "a/b", "/abs", "..", "x\ny", ""])
def test_a_protocol_is_one_that_there_is(name, tmp_path):
    with pytest.raises(SimclrError, match="must be one or more of"):
        run._check([name])


def test_names_of_files_are_lines_in_the_list_of_unreadable_ones(tmp_path):
    """However often it is written; a name may hold a line break, or bytes that are no text."""
    said, names = [], dict.fromkeys(["a/line\nbreak.jpg", "a/\udcff.jpg", "ü ☃.jpg"], "of\ntwo lines")
    for _ in range(2):
        found = folder.note_unreadable(epath.Path(tmp_path), names, said.append)
    assert sorted(found) == ["a/\\udcff.jpg", "a/line\\nbreak.jpg", "ü ☃.jpg"]
    assert len(said) == 3
    assert not any("\n" in line for line in said)


def test_a_folder_with_odd_names_is_read(tmp_path):
    """Classes and files with a line break, and with bytes that are not UTF-8."""
    images, labels = tiny_arrays(n=8, classes=2)
    for i, image in enumerate(images):
        folder = tmp_path / "set" / ("a\nb" if labels[i] else "<c>")
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[..., 0]).save(folder / f"{i}\n.png")
    found = splits.load(f"folder:{tmp_path / 'set'}", holdout=0.0)
    assert found.train.classes == ("<c>", "a\nb")
    assert found.train.size == 8
    (tmp_path / "set" / "<c>" / "0\n.png").rename(tmp_path / "set" / "<c>" / "\udcff.png")
    found = splits.load(f"folder:{tmp_path / 'set'}", holdout=0.0).train
    assert "<c>/\\xff.png" in found.names
    batch = next(pipeline.eval_batches(found, batch=8, size=12, crop=1.0))
    assert (batch["mask"].sum(), found.ledger.unreadable) == (8, {})
