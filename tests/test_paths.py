"""Paths that users give: ~ expands to a home folder, gs:// stays gs://, links resolve to their targets."""

import json
import os
import pwd
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from conftest import tiny_arrays, tiny_config, untrained_run
from etils import epath

from simclr_jax import encoder, main, metrics, paths, wandb_run, workdir
from simclr_jax.config import adopt_start
from simclr_jax.convert import workdir as conversion
from simclr_jax.data import splits
from simclr_jax.errors import SimclrError
from simclr_jax.evaluate import compare
from simclr_jax.evaluate.__main__ import override


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A home folder that differs from the current folder."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    yield tmp_path / "home"
    assert not [p for p in (tmp_path / "here").iterdir() if p.name.startswith("~")]


# ---- ~ ----------------------------------------------------------------------------------------------


def test_a_tilde_is_the_home_folder(home):
    assert str(paths.expand("~/runs/a")) == f"{home}/runs/a"
    assert str(paths.expand("~")) == str(home)
    user = pwd.getpwuid(os.getuid())
    assert str(paths.expand(f"~{user.pw_name}/a")) == f"{user.pw_dir}/a"
    for plain in ("a/~/b", "./~", "runs/a~"):
        assert str(paths.expand(plain)) == str(epath.Path(plain))


def test_a_tilde_of_nobody_is_one_line(home):
    with pytest.raises(SimclrError, match=r"~nobody-here/a: there is no user nobody-here; write \./~nobody"):
        paths.expand("~nobody-here/a")
    with pytest.raises(SimclrError, match="no path has the character 0"):
        paths.expand("runs/a\0b")


def test_every_path_of_a_config_takes_a_tilde(home):
    teacher = untrained_run(home / "teacher", tiny_config())
    assert adopt_start(tiny_config(start__workdir="~/teacher", data__image_size=0)).data.image_size == 12
    student = tiny_config(task="distill", distill__teacher="~/teacher", data__channels=0)
    assert adopt_start(student).data.channels == 1
    assert encoder.pin_steps(student).distill.step == 7
    assert encoder.load("~/teacher").step == 7
    assert override("~/teacher", []).data.image_size == 12
    assert teacher.exists()


def test_the_images_of_a_source_take_a_tilde(home):
    x, y = tiny_arrays(20)
    np.savez(home / "images.npz", images=x, labels=y)
    assert splits.load("npz:~/images.npz").train.size == 18
    assert splits.load("npz:images.npz", data_dir="~").train.size == 18
    (home / "empty").mkdir()
    for source in ({"source": "folder:~/empty"}, {"source": "folder:empty", "data_dir": "~"}):
        with pytest.raises(SimclrError, match=f"folder:{home}/empty: no image"):
            splits.load(**source)


def test_commands_take_a_tilde(home):
    with pytest.raises(SimclrError, match=f"^{home}/a: not evaluated yet"):
        compare.compare(["~/a", "~/b"], "~/out.html")
    assert conversion.check_free("~/new") == home / "new"
    assert main._at_home("--config=~/mine.py") == f"--config={home}/mine.py"
    for other in ("--config.data.source=folder:~/x", "--workdir=~/x", "extra", "--config=configs/x.py"):
        assert main._at_home(other) == other


# ---- gs:// ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("url", ["gs://bucket/a/b", "s3://bucket/a"])
def test_a_bucket_keeps_both_slashes(url):
    for function in (paths.expand, paths.absolute, paths.real):
        assert str(function(url)) == url
        assert str(function(epath.Path(url))) == url
    assert str(paths.of_source(url, "data")) == url
    assert str(paths.of_source("set", url)) == f"{url}/set"
    assert str(paths.absolute("a")) == str(Path.cwd() / "a")


@pytest.mark.parametrize("kind", ["folder", "npz"])
def test_images_in_a_bucket_are_refused_by_their_name(kind):
    with pytest.raises(SimclrError, match=f"{kind}:gs://bucket/x: must be a local path"):
        splits.load(f"{kind}:gs://bucket/x")
    with pytest.raises(SimclrError, match=f"{kind}:gs://bucket/x: must be a local path"):
        splits.load(f"{kind}:x", data_dir="gs://bucket")


def test_what_has_to_be_local_says_so():
    with pytest.raises(SimclrError, match="--out=gs://bucket/x: must be a local path"):
        conversion.check_free("gs://bucket/x")


# ---- the workdir and the images -----------------------------------------------------------------------


def check(where, images, **more):
    workdir.check(epath.Path(where), tiny_config(data__source=f"folder:{images}", **more))


@pytest.fixture
def images(home):
    """A folder of images in the home folder, and links beside it."""
    folder = home / "images"
    (folder / "cats").mkdir(parents=True)
    (home / "link").symlink_to(folder)
    (home / "elsewhere").mkdir()
    return folder


def test_a_workdir_within_the_images_is_refused_however_it_is_written(home, images):
    (home / "way").symlink_to(images / "cats")
    here = os.path.relpath(images)
    around = home / "elsewhere" / ".." / "images"
    for where in (images, images / "run", images / "cats" / "a" / "b", f"{here}/run", "~/images/run",
                  home / "link" / "run", around / "run", home / "way"):  # fmt: skip
        for written in (images, f"{images}/", here, "~/images", home / "link"):
            with pytest.raises(SimclrError, match="lies in the folder of images"):
                check(where, written)
    with pytest.raises(SimclrError, match="lies in the folder of images"):
        check("~/images/run", "images", data__data_dir="~")
    (home / "run").symlink_to(images)
    with pytest.raises(SimclrError, match="lies in the folder of images"):
        check(home / "run", images)


def test_a_workdir_within_what_the_images_link_to_is_refused(home, images):
    (images / "dogs").symlink_to(home / "elsewhere")
    (images / "cats" / "wild").symlink_to(home / "elsewhere")
    with pytest.raises(SimclrError, match="lies in the folder of images"):
        check(home / "elsewhere" / "run", images)


def test_images_where_the_run_writes_are_refused(home):
    for name in ("figures", "eval", "checkpoints"):
        folder = home / "run" / name / "images"
        folder.mkdir(parents=True)
        with pytest.raises(SimclrError, match=f"the run writes {name}/ there"):
            check(home / "run", folder)


def test_other_workdirs_are_let_through(home, images):
    (home / "run" / "images").mkdir(parents=True)
    check(home / "run", home / "run" / "images")
    for where in ("runs/a", "~/images2", home / "images-run", "~/elsewhere/images"):
        check(where, images)


def test_a_bucket_is_within_itself_alone(images):
    assert paths.is_within("gs://bucket/a/b", "gs://bucket/a")
    assert paths.is_within("gs://bucket/a", "gs://bucket/a")
    for path, folder in (("gs://bucket/ab", "gs://bucket/a"), ("gs://bucket/a", images), (images, "gs://b")):
        assert not paths.is_within(path, folder)


def test_a_workdir_that_cannot_be_made_is_one_line(home, images, monkeypatch):
    (home / "file").write_text("mine")
    (home / "round").symlink_to(home / "round")
    wrong = {"x" * 1000: "File name too long", home / "file": "is a file; give a folder",
             home / "file" / "run": "Not a directory", home / "round" / "run": "Too many levels"}  # fmt: skip
    for where, why in wrong.items():
        with pytest.raises(SimclrError, match=why):
            check(where, images)
    monkeypatch.setattr(os, "access", lambda path, _: path != home)
    with pytest.raises(SimclrError, match="you may not write in"):
        check(home / "new" / "run", images)


# ---- W&B --------------------------------------------------------------------------------------------


@pytest.fixture
def wandb(monkeypatch):
    """The arguments of every wandb.init call."""
    calls = []
    module = types.ModuleType("wandb")
    module.init = lambda **options: calls.append(options)
    monkeypatch.setitem(sys.modules, "wandb", module)
    return calls


def start(where):
    metrics.Writers(where, 0, tensorboard=False, wandb_project="project").close()


def test_two_runs_of_one_name_are_two_at_wandb_and_a_resumed_one_stays_one(tmp_path, wandb):
    for where in (tmp_path / "a" / "run", tmp_path / "b" / "run", tmp_path / "a" / "run"):
        start(where)
    first, second, again = wandb
    assert first["id"] == again["id"] != second["id"]
    assert first["name"] == second["name"] == "run"
    assert first["resume"] == "allow"
    assert (first["dir"], second["dir"]) == (str(tmp_path / "a" / "run"), str(tmp_path / "b" / "run"))


def test_a_copied_run_is_another_at_wandb_and_a_moved_one_is_not(tmp_path, wandb):
    start(tmp_path / "run")
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy" / wandb_run.FILE).write_text((tmp_path / "run" / wandb_run.FILE).read_text())
    start(tmp_path / "copy")
    (tmp_path / "run").rename(tmp_path / "moved")
    start(tmp_path / "moved")
    start(tmp_path / "copy")
    first, copied, moved, again = (call["id"] for call in wandb)
    assert first == moved != copied == again


def test_wandb_of_a_relative_workdir_has_a_name(tmp_path, wandb, monkeypatch):
    monkeypatch.chdir(tmp_path)
    start(".")
    assert wandb[0]["name"] == tmp_path.name
    assert wandb[0]["dir"] == str(tmp_path)


def test_a_damaged_id_file_is_made_again(tmp_path, wandb):
    for text in ("", "[]", "{}", '{"id": 3'):
        (tmp_path / wandb_run.FILE).write_text(text)
        start(tmp_path)
        assert json.loads((tmp_path / wandb_run.FILE).read_text())["id"] == wandb[-1]["id"]


def test_wandb_that_does_not_start_is_one_line(tmp_path, wandb, monkeypatch):
    def fail(**_):
        raise RuntimeError("api_key not configured (no-tty)\ncall wandb.login")

    monkeypatch.setattr(sys.modules["wandb"], "init", fail)
    with pytest.raises(SimclrError, match=r"W&B does not start \(api_key not configured \(no-tty\)\); run"):
        start(tmp_path)
