"""A damaged checkpoint is never trained on, never deleted, and costs no more than the newest steps."""

import json
import random
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

import simclr_jax
from simclr_jax import checkpoint, encoder, metrics, train
from simclr_jax.config import SCHEMA, default, load_config
from simclr_jax.errors import DamagedError, SimclrError

WAYS = ("truncated", "emptied", "deleted", "flipped", "grown")


def damage(path, how, seed=0):
    content = bytearray(path.read_bytes())
    if how == "deleted":
        path.unlink()
        return
    if how == "flipped":
        content[random.Random(seed).randrange(len(content))] ^= 1 << seed % 8
    new = {"truncated": content[: len(content) // 2], "emptied": b"", "grown": content * 2}.get(how, content)
    path.write_bytes(new)


def files_of(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


def flip_data(folder, part="params"):
    """Changes a number without any reader's noticing: the largest block holds arrays as they are."""
    block = max(files_of(folder / part), key=lambda path: path.stat().st_size)
    content = bytearray(block.read_bytes())
    for at in range(len(content) // 3, 2 * len(content) // 3, 997):
        content[at] ^= 16
    block.write_bytes(content)


def same(a, b):
    return a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) and a[k].dtype == b[k].dtype for k in a)


@pytest.mark.parametrize("how", WAYS)
def test_a_damaged_file_gives_the_same_numbers_or_is_told(copy, how):
    workdir, _, _ = copy
    folder = workdir / "checkpoints"
    whole, told = checkpoint.read(folder, 12).arrays, []
    files = files_of(folder / "12")
    chosen = files if how == "flipped" else random.Random(1).sample(files, 8)
    for seed, path in enumerate(chosen):
        before = path.read_bytes()
        damage(path, how, seed)
        try:
            assert same(checkpoint.read(folder, 12).arrays, whole), path
        except DamagedError as error:
            told.append(str(error))
        path.write_bytes(before)
    assert told or how == "grown"  # bytes behind the end of a file may not matter
    assert all(str(folder / "12") in line for line in told)


@pytest.mark.parametrize("part", ["params", "opt_state", "model_state"])
def test_a_flipped_bit_in_a_data_block_goes_on_from_the_older_checkpoint(copy, part, capsys):
    workdir, config, splits = copy
    rows = metrics.read_rows(workdir)
    whole = checkpoint.read(workdir / "checkpoints", 12).arrays
    flip_data(workdir / "checkpoints" / "12", part)
    summary = train.run(config, workdir, splits=splits)
    assert summary["resumed_from"] == 8
    out = capsys.readouterr().out
    assert f"note: {workdir / 'checkpoints' / '12'}: damaged" in out
    assert "going on from step 8" in out
    assert files_of(workdir / "damaged" / "12")  # moved, not deleted
    assert same(checkpoint.read(workdir / "checkpoints", 12).arrays, whole)
    assert [row["loss"] for row in metrics.read_rows(workdir)] == [row["loss"] for row in rows]


def test_no_whole_checkpoint_is_one_line_and_changes_nothing(copy):
    workdir, config, splits = copy
    for step in (4, 8, 12):
        flip_data(workdir / "checkpoints" / str(step))
    before = {path: path.read_bytes() for path in files_of(workdir)}
    with pytest.raises(SimclrError, match="no checkpoint there is whole; bring one back from a copy"):
        train.run(config, workdir, splits=splits)
    assert {path: path.read_bytes() for path in files_of(workdir)} == before


def test_pinned_steps_never_fall_back_and_others_say_so(copy, capsys):
    workdir, _, _ = copy
    flip_data(workdir / "checkpoints" / "12")
    with pytest.raises(DamagedError, match=r"checkpoints/12: damaged \(params/"):
        simclr_jax.load(workdir, step=12)
    assert simclr_jax.load(workdir).step == 8
    assert "taking the one of step 8" in capsys.readouterr().out
    config = default()
    config.start.workdir = str(workdir)
    assert encoder.pin_steps(config).start.step == 8


def test_a_checkpoint_under_another_number_is_damaged(copy):
    workdir, _, _ = copy
    (workdir / "checkpoints" / "12").rename(workdir / "checkpoints" / "13")
    with pytest.raises(DamagedError, match="it was saved as step 12"):
        checkpoint.read(workdir / "checkpoints", 13)


def test_resume_force_of_another_model_changes_nothing(copy):
    workdir, config, splits = copy
    config = config.copy_and_resolve_references()
    config.model.width = 0.5
    before = {path: path.read_bytes() for path in files_of(workdir)}
    with pytest.raises(SimclrError, match="does not hold this config's model"):
        train.run(config, workdir, splits=splits, force=True)
    assert {path: path.read_bytes() for path in files_of(workdir)} == before


@pytest.mark.parametrize("force", [False, True])
def test_fewer_steps_than_done_are_refused(copy, force):
    workdir, config, splits = copy
    config = config.copy_and_resolve_references()
    config.train.steps = 8
    before = {path: path.read_bytes() for path in files_of(workdir)}
    with pytest.raises(SimclrError, match=r"config\.train"):
        train.run(config, workdir, splits=splits, force=force)
    assert {path: path.read_bytes() for path in files_of(workdir)} == before


DAMAGED_CONFIGS = {
    "torn": '{"schema": 4, "config": {"tas',
    "empty": "",
    "binary": bytes(range(128, 256)),
    "list": "[1, 2]",
    "number": "7",
    "deep": "[" * 10_000,
    "types": json.dumps({"schema": 4, "config": {"train": {"batch_size": "many"}}}),
    "tree": json.dumps({"schema": 4, "config": {"seed": {"a": 1}}, "data": [1]}),
}


@pytest.mark.parametrize("kind", DAMAGED_CONFIGS)
def test_a_damaged_config_is_one_line_and_force_writes_it_anew(copy, kind, capsys):
    workdir, config, splits = copy
    text = DAMAGED_CONFIGS[kind]
    path = workdir / "config.json"
    good = path.read_text()
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(SimclrError, match=r"config\.json") as error:
        train.run(config, workdir, splits=splits)
    assert "--resume=force" in str(error.value)
    with pytest.raises(SimclrError, match=r"config\.json"):
        simclr_jax.load(workdir)
    if kind in ("torn", "binary"):
        train.run(config, workdir, splits=splits, force=True)
        assert path.read_text() == good
        assert (workdir / "damaged" / "config.json").exists()
        assert "moved the damaged config.json" in capsys.readouterr().out


def test_broken_rows_of_metrics_cost_no_others(copy):
    workdir, config, splits = copy
    path = workdir / metrics.JSONL
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(
        b"".join([*lines[:3], b'{"step": 4, "lo\n', b"\xff\xfe\x00\n", b"[4]\n", b"{}\n", *lines[3:]])
    )
    assert [row["step"] for row in metrics.read_rows(workdir)] == list(range(1, 13))
    (workdir / "checkpoints" / "12").rename(workdir / "12")
    train.run(config, workdir, splits=splits)
    assert [row["step"] for row in metrics.read_rows(workdir)] == list(range(1, 13))
    assert b"\xff\xfe" in (workdir / "damaged" / metrics.JSONL).read_bytes()


@pytest.mark.parametrize("text", ["[]", "null", "{", '{"seconds": 3, "rates": []}', "\x00"])
def test_a_summary_of_another_shape_is_written_anew(copy, text):
    workdir, config, splits = copy
    (workdir / "summary.json").write_text(text)
    summary = train.run(config, workdir, splits=splits)
    assert json.loads((workdir / "summary.json").read_text())["steps"] == summary["steps"] == 12


@pytest.mark.slow
def test_a_workdir_of_schema_4_resumes_loads_and_says_that_it_has_no_checksums(tmp_path, capsys):
    stored = Path(__file__).parents[1] / "fixtures" / "schema4"
    workdir = shutil.copytree(stored, tmp_path / "run")
    loaded = simclr_jax.load(workdir)
    assert loaded.step == 120
    assert loaded(np.zeros((2, 28, 28, 1), np.uint8)).shape == (2, 128)
    shutil.rmtree(workdir / "checkpoints" / "120")
    config, _ = load_config(workdir)
    config.eval.final = False
    config.compile_cache = ""
    summary = train.run(config, workdir)
    assert summary["resumed_from"] == 60
    assert "has no checksums: an older version wrote it" in capsys.readouterr().out
    after = checkpoint.read(workdir / "checkpoints", 120)
    assert after.checked
    before = checkpoint.read(stored / "checkpoints", 120)
    assert not before.checked
    moved = {name: np.abs(after.arrays[name] - array).max() for name, array in before.arrays.items()}
    scale = {name: np.abs(array).max() for name, array in before.arrays.items()}
    # Rounding on another processor, over 60 steps of Adam.
    assert all(moved[n] <= 0.05 * scale[n] + 1e-3 for n in moved if n.startswith(("params/", "model_state/")))
    rows = metrics.read_rows(workdir)
    assert [row["step"] for row in rows] == [row["step"] for row in metrics.read_rows(stored)]


def test_checksums_name_type_shape_and_bits():
    tree = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": jax.numpy.zeros((), "bfloat16")}
    sums = checkpoint.checksums(tree)
    assert sums["a"].startswith("float32[2,3] ")
    assert sums["b"].startswith("bfloat16[] ")
    assert checkpoint.checksums({"a": tree["a"].T.copy().T}) == {"a": sums["a"]}
    assert checkpoint.checksums({"a": tree["a"] + 0.0}) == {"a": sums["a"]}
    assert checkpoint.checksums({"a": np.nextafter(tree["a"], 9)}) != {"a": sums["a"]}


@pytest.mark.parametrize(
    "error",
    [OSError(24, "Too many open files"), PermissionError(13, "denied"), ValueError("UNAVAILABLE: 503")],
    ids=["handles", "rights", "network"],
)
def test_a_checkpoint_that_cannot_be_read_now_is_not_called_damaged(copy, monkeypatch, error):
    workdir, config, splits = copy

    def fail(folder):
        raise error

    monkeypatch.setattr(checkpoint, "_read_item", fail)
    before = {path: path.read_bytes() for path in files_of(workdir)}
    with pytest.raises(SimclrError, match=r"checkpoints/12: cannot be read now .*; try again"):
        train.run(config, workdir, splits=splits)
    assert {path: path.read_bytes() for path in files_of(workdir)} == before


def test_no_memory_to_read_with_is_not_damage(copy, monkeypatch):
    def fail(folder):
        raise MemoryError

    monkeypatch.setattr(checkpoint, "_read_item", fail)
    with pytest.raises(MemoryError):
        checkpoint.newest(copy[0] / "checkpoints")


def test_force_does_not_go_on_from_a_newer_version(copy):
    workdir, config, splits = copy
    tree = json.loads((workdir / "config.json").read_text())
    (workdir / "config.json").write_text(json.dumps(tree | {"schema": SCHEMA + 1}))
    flip_data(workdir / "checkpoints" / "12")
    before = {path: path.read_bytes() for path in files_of(workdir)}
    with pytest.raises(SimclrError, match="update simclr_jax"):
        train.run(config, workdir, splits=splits, force=True)
    assert {path: path.read_bytes() for path in files_of(workdir)} == before
