"""Disks that are full, read-only or broken: one line, exit code 74, no hang, and the same command goes on."""

import errno
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from conftest import tiny_config, tiny_splits, untrained_run

from simclr_jax import checkpoint, command, files, lock, metrics, sharding, storage, train
from simclr_jax import workdir as folder
from simclr_jax.errors import SimclrError, StorageError
from simclr_jax.evaluate import run as evaluation
from simclr_jax.state import TrainState

ROOT = Path(__file__).parent.parent.parent
SMALL = {"augment__device": "all", "train__steps_per_call": 1}  # no TensorFlow


def mount(*words):
    return subprocess.run(["mount", *map(str, words)], capture_output=True, check=False).returncode == 0


@pytest.fixture
def disk(tmp_path):
    """A disk of 4 MB; skips where none can be mounted."""
    place = tmp_path / "disk"
    place.mkdir()
    if os.name != "posix" or os.geteuid() or not mount("-t", "tmpfs", "-o", "size=4m", "tmpfs", place):
        pytest.skip("no disk can be mounted here")
    yield place
    for path in (place / "run" / "checkpoints", place / "run", place):
        unmount(path)


def unmount(path):
    while not subprocess.run(["umount", "-l", path], capture_output=True, check=False).returncode:
        pass


def fill(place, rest=0):
    """Leaves `rest` bytes."""
    size = os.statvfs(place).f_bavail * os.statvfs(place).f_frsize - rest
    (place / "filler").write_bytes(bytes(max(0, size)))
    assert os.statvfs(place).f_bavail * os.statvfs(place).f_frsize <= rest


def read_only(path):
    """From now on, and only below `path`."""
    assert mount("--bind", path, path)
    assert mount("-o", "remount,bind,ro", path)


def state_of(step, size=100_000):
    numbers = np.random.default_rng(step).random(size).astype(np.float32)  # cannot be compressed
    return TrainState(jnp.int32(step), {"a": jnp.asarray(numbers)}, {"b": jnp.ones(2)}, {"c": jnp.ones(2)})


def one_line(error, *parts):
    text = str(error.value)
    assert "\n" not in text
    for part in parts:
        assert part in text
    return text


def threads():
    """Those that Python would wait for at its end."""
    return [
        thread
        for thread in threading.enumerate()
        if not thread.daemon and "metadata_store" not in thread.name
    ]


# ---- checkpoints ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("rest", [0, 8_192, 65_536, 200_000, 390_000])
def test_a_checkpoint_on_a_full_disk(disk, rest):
    """It fails in the background, wherever in the files; the next call tells, and the one before is whole."""
    before, begin = threads(), time.monotonic()
    place = disk / "run" / "checkpoints"

    def save():
        with checkpoint.Checkpoints(place) as checkpoints:
            checkpoints.save(state_of(1))
            checkpoints._manager.wait_until_finished()
            fill(disk, rest)
            checkpoints.save(state_of(2))

    with pytest.raises(StorageError) as error:
        save()
    one_line(
        error,
        f"{place}: cannot be written (No space left on device",
        "free, 662.2 kB needed); make room there",
    )
    assert time.monotonic() - begin < 50
    assert checkpoint.newest(place)[0].step == 1
    end = time.monotonic() + 20
    while threads() != before and time.monotonic() < end:
        time.sleep(0.1)
    assert threads() == before
    (disk / "filler").unlink()
    with checkpoint.Checkpoints(place) as checkpoints:  # what was half written is cleaned away
        checkpoints.save(state_of(2))
    assert sorted(path.name for path in place.iterdir()) == ["1", "2"]


def test_a_checkpoint_on_a_read_only_disk(disk, capfd):
    """It hung for good: threads of Orbax waited for the folder that another one could not make."""
    before, place = threads(), disk / "run" / "checkpoints"

    def save():
        with checkpoint.Checkpoints(place) as checkpoints:
            checkpoints.save(state_of(1))
            checkpoints._manager.wait_until_finished()
            read_only(place)
            checkpoints.save(state_of(2))

    begin = time.monotonic()
    with pytest.raises(StorageError) as error:
        save()
    one_line(error, f"{place}: cannot be written (Read-only file system); make it writable")
    assert time.monotonic() - begin < 20
    assert threads() == before
    assert "Traceback" not in capfd.readouterr().err


def test_threads_that_wait_for_a_failed_one_end(tmp_path, monkeypatch):
    """As above, where the folder cannot be made although it could a moment ago."""
    before, begin = threads(), time.monotonic()
    monkeypatch.setattr(checkpoint.Checkpoints, "_probe", lambda self: None)

    def save():
        with checkpoint.Checkpoints(tmp_path / "checkpoints") as checkpoints:
            (tmp_path / "checkpoints").rmdir()
            (tmp_path / "checkpoints").write_text("a file")
            checkpoints.save(state_of(1))

    with pytest.raises(StorageError, match="cannot be written"):
        save()
    end = time.monotonic() + 20
    while threads() != before and time.monotonic() < end:
        time.sleep(0.1)
    assert threads() == before
    assert time.monotonic() - begin < 50


# What TensorStore and Python say, and what is made of it.
SAID = {
    ValueError(
        "RESOURCE_EXHAUSTED: Error writing 'a/0.0' in OCDBT database at local file '/x/': Failed to write 27 "
        "bytes to file 4: No space left on device [os_error_code='28']"
    ): "No space left on device",
    ValueError(
        "PERMISSION_DENIED: Error writing 'a': Failed to open: '/x' [OS error 13: EACCES Permission denied] "
        "[source locations='tensorstore/internal/os/file_util_posix.cc:406']"
    ): "Permission denied",
    RuntimeError("UNAVAILABLE: Error writing 'gs://b/x': HTTP response code: 503"): "HTTP response code: 503",
    OSError(errno.EDQUOT, "Disk quota exceeded"): "Disk quota exceeded",
    OSError(errno.EIO, "Input/output error"): "Input/output error",
    PermissionError(errno.EACCES, "Permission denied", "/x"): "Permission denied",
}


@pytest.mark.parametrize("error", SAID, ids=SAID.values())
def test_what_a_disk_says_is_one_line(error):
    with pytest.raises(StorageError) as raised, storage.writing("/x/checkpoints", 5 * 10**6):
        raise error
    one_line(raised, "/x/checkpoints: cannot be written (", SAID[error], "and the same command goes on")
    assert raised.value.__cause__ is error
    assert isinstance(raised.value, SimclrError)


@pytest.mark.parametrize("error", [ValueError("shapes differ"), RuntimeError("INTERNAL: x"), KeyError("a")])
def test_other_errors_are_not_the_disks(error):
    with pytest.raises(type(error)), storage.writing("/x"):
        raise error


# ---- every file of a run -----------------------------------------------------------------------------


def when(hits):
    """Does `hits` at the first evaluation."""
    done = []

    def on_eval(*_):
        if not done:
            done.append(hits())

    return on_eval


def train_on(disk, hits=None, **fields):
    config = tiny_config(**SMALL, **({"eval__every__steps": 5, "eval__knn__k": 5} if hits else {}), **fields)
    on_eval = when(hits) if hits else None
    return train.run(config, disk / "run", splits=tiny_splits(), on_eval=on_eval)


@pytest.mark.parametrize("place", [".", "checkpoints"])
@pytest.mark.parametrize("fault", ["full", "read-only"])
def test_a_disk_that_fails_during_a_run(disk, fault, place):
    if fault == "full" and place != ".":
        pytest.skip("the same disk")
    where = disk / "run" / place

    def hits():
        end = time.monotonic() + 20
        while not (disk / "run" / "checkpoints" / "4").exists() and time.monotonic() < end:
            time.sleep(0.05)
        fill(disk) if fault == "full" else read_only(where)

    with pytest.raises(StorageError) as error:
        train_on(disk, hits)
    why = "No space left on device" if fault == "full" else "Read-only file system"
    one_line(error, f"{disk / 'run'}", f"cannot be written ({why}", "the same command goes on")
    assert checkpoint.newest(disk / "run" / "checkpoints")[0].step == 4
    if fault == "full":
        (disk / "filler").unlink()
    unmount(where)
    assert train_on(disk)["resumed_from"] == 4
    assert [row["step"] for row in metrics.read_rows(disk / "run")] == list(range(1, 13))


IN_THE_WAY = {  # a folder or file where the run wants to write the other
    "metrics.jsonl": "metrics.jsonl",
    "config.json": "config.json.tmp",
    "summary.json": "summary.json.tmp",
    "checkpoints": "checkpoints",
}


@pytest.mark.parametrize("name", IN_THE_WAY)
def test_every_file_of_a_run(tmp_path, name):
    blocked = tmp_path / "run" / IN_THE_WAY[name]
    if name == "checkpoints":
        blocked.parent.mkdir()
        blocked.write_text("")
    else:
        blocked.mkdir(parents=True)
    with pytest.raises(StorageError) as error:
        train_on(tmp_path, train__steps=2)
    one_line(error, str(tmp_path / "run" / name), "cannot be written (", "the same command goes on")
    blocked.unlink() if blocked.is_file() else shutil.rmtree(blocked, ignore_errors=True)
    assert train_on(tmp_path, train__steps=2)["steps"] == 2


def test_events_of_tensorboard_and_rows(tmp_path, monkeypatch):
    """Each as it is written."""
    writers = metrics.Writers(tmp_path, 0)

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(writers._events._file, "write", full)
    with pytest.raises(StorageError, match=r"events\.out\.tfevents\.\S+: cannot be written"):
        writers.write(1, {"loss": 1.0})
    monkeypatch.undo()
    if os.path.exists("/dev/full"):
        writers._jsonl = open("/dev/full", "a")  # noqa: SIM115
        with pytest.raises(StorageError, match=r"metrics\.jsonl: cannot be written \(No space"):
            writers.write(2, {"loss": 1.0})


def test_names_of_unreadable_files(disk):
    fill(disk)
    with pytest.raises(StorageError, match=r"bad_images\.jsonl: cannot be written \(No space"):
        folder.note_unreadable(files.epath.Path(disk), {"a.jpg": "truncated"}, print)


def test_a_file_that_cannot_be_replaced_stays(disk):
    path = files.epath.Path(disk / "file")
    files.write(path, "old")
    fill(disk)
    with pytest.raises(
        StorageError, match=r"file: cannot be written \(No space.*, 0 bytes free, 100\.0 kB needed"
    ):
        files.write(path, "new" + "." * 99_997)
    assert path.read_text() == "old"
    assert {each.name for each in disk.iterdir()} == {"file", "filler"}


@pytest.mark.parametrize("fault", ["full", "read-only"])
def test_the_lock(disk, fault):
    (disk / "run").mkdir()
    fill(disk) if fault == "full" else read_only(disk / "run")
    with pytest.raises(StorageError, match="cannot be written"), lock.hold(disk / "run"):
        pass


def test_process_0_tells_the_others_that_it_was_the_disk(monkeypatch):
    """So that all of them end with the same exit code."""
    monkeypatch.setattr(sharding.jax, "process_count", lambda: 2)
    monkeypatch.setattr(sharding.multihost_utils, "broadcast_one_to_all", lambda x: x)

    def ask():
        raise StorageError("/x: cannot be written")

    with pytest.raises(StorageError, match="/x: cannot"):
        sharding.from_first(ask)


def test_a_compile_cache_that_cannot_be_written_is_done_without(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    (tmp_path / "file").write_text("")
    before = train.jax.config.jax_compilation_cache_dir
    train.use_compile_cache(str(tmp_path / "file" / "cache"))
    assert train.jax.config.jax_compilation_cache_dir == before
    said = capsys.readouterr().out
    assert said.startswith(
        f"note: compiled programs are not kept: {tmp_path / 'file' / 'cache'}: cannot be written ("
    )
    assert len(said.splitlines()) == 1


def test_an_evaluation_stops_at_the_first_write_that_fails(disk, capsys):
    workdir = untrained_run(disk / "run", tiny_config(**SMALL))
    evaluation.evaluate(workdir, protocols=["features"], splits=tiny_splits())
    fill(disk)
    with pytest.raises(StorageError) as error:
        evaluation.evaluate(workdir, protocols=["knn", "health"], splits=tiny_splits())
    one_line(error, "/eval/", "knn.", ": cannot be written (No space left on device", "make room there")
    assert "health" not in capsys.readouterr().out


# ---- room, before a run --------------------------------------------------------------------------------


def test_a_run_that_will_not_fit_does_not_start(disk):
    fill(disk, 1_500_000)  # a checkpoint takes 560 kB, and three are written
    with pytest.raises(SimclrError) as error:
        train_on(disk)
    assert not isinstance(error.value, StorageError)  # exit code 2: the user chooses
    text = one_line(
        error, f"--workdir={disk / 'run'}: ", "free, and 3 more checkpoints of 56", "kB have to fit"
    )
    assert "lower config.checkpoint.keep=3, choose another --workdir, or make room there" in text
    assert train_on(disk, checkpoint__keep=1)["steps"] == 12
    (disk / "filler").unlink()
    fill(disk, 1_000_000)
    assert train_on(disk)["steps"] == 12  # to evaluate takes no room


def test_room_for_what_will_be_written(tmp_path):
    """Never more than are kept and one, nor than the run will save."""
    for kept, keep, saves, more in ((0, 3, 9, 4), (2, 3, 9, 2), (0, 1000, 2, 2), (5, 3, 9, 1)):
        with pytest.raises(SimclrError, match=f"free, and {more} more checkpoints"):
            storage.check_room(tmp_path, 10**18, kept, keep, saves)
    storage.check_room(tmp_path, 1, 0, 3, 9)


def test_bytes_of_a_checkpoint(tmp_path):
    state = state_of(1, 50_000)
    with checkpoint.Checkpoints(tmp_path / "checkpoints") as checkpoints:
        checkpoints.save(state)
    written = sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file())
    assert checkpoint.size(state) == 4 * 50_004 + checkpoint.OVERHEAD
    assert 0.9 * 4 * 50_004 <= written <= checkpoint.size(state)  # compressed


@pytest.mark.parametrize("where", ["gs://bucket/run", "s3://bucket/run"])
def test_room_in_a_bucket_is_not_asked_for(where):
    assert storage.free(where) is None
    storage.check_room(where, 10**18, 0, 3, 9)


def test_room_where_the_workdir_is_not_made_yet(tmp_path):
    assert storage.free(tmp_path / "a" / "b") > 0


# ---- the command ---------------------------------------------------------------------------------------

COMMAND = """
import sys
sys.path[:0] = ["tests", "tests/faults"]
from pathlib import Path
import test_storage as t
from simclr_jax import command, distributed, signals
signals.take("goes on from the last checkpoint")
disk, fault = Path(sys.argv[1]), sys.argv[2]
distributed.start()
devices = 0 if distributed.several() else 1
with command.ends("goes on from the last checkpoint"):
    hits = lambda: t.fill(disk) if fault == "full" else t.read_only(disk / "run" / fault)
    t.train_on(disk, hits if distributed.first() else print, mesh__devices=devices)
"""


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["full", "", "checkpoints"])
def test_the_command_ends_with_one_line_and_74(disk, fault):
    done = subprocess.run(
        [sys.executable, "-c", COMMAND, disk, fault],
        capture_output=True, text=True, check=False, timeout=300, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == command.STORAGE == 74, done.stderr
    assert "Traceback" not in done.stderr
    (line,) = [line for line in done.stderr.splitlines() if "cannot be written" in line]
    assert line.startswith(f"error: {disk / 'run'}")
    assert line.endswith("the same command goes on")


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["full", "checkpoints"])
def test_several_processes_end(disk, fault):
    """Within 60 s, though a process that waits for the other's file would wait longer."""
    launcher = [sys.executable, "tools/launch/local.py", "--processes=2", "--devices=2", "--grace=60", "--"]
    done = subprocess.run(
        [*launcher, sys.executable, "-c", COMMAND, disk, fault],
        capture_output=True, text=True, check=False, timeout=400, cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode in (command.STORAGE, command.LOST), done.stderr
    assert f"error: {disk / 'run'}" in done.stderr
    assert "Traceback" not in done.stderr
    assert "sends SIGTERM" not in done.stderr


def test_an_error_of_the_disk_that_nobody_expected(monkeypatch, capsys):
    """To print, say, into a file on a full disk."""
    codes = []
    monkeypatch.setattr(command.os, "_exit", codes.append)
    with pytest.raises(SystemExit), command.ends("goes on"):
        raise OSError(errno.ENOSPC, "No space left on device", "/x/log")
    assert codes == [74]
    said = capsys.readouterr().err
    assert said.startswith("error: /x/log: cannot be written (No space left on device")
    assert len(said.splitlines()) == 1


# ---- finished folders ---------------------------------------------------------------------------


def make(folder, content):
    """A folder with one file."""
    folder.mkdir(parents=True)
    (folder / "x").write_text(content)


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), StorageError),
        (KeyboardInterrupt(), KeyboardInterrupt),
    ],
    ids=["full", "interrupted"],
)
def test_a_move_that_fails_leaves_the_old_folder(error, told, tmp_path, monkeypatch):
    out, rename = tmp_path / "out", Path.replace
    make(out, "old")

    def fails(self, target):
        if self.parent.name == ".out.tmp" and self.name == "out":
            raise error
        return rename(self, target)

    monkeypatch.setattr(Path, "replace", fails)
    with pytest.raises(told), files.staged(out) as place:  # noqa: PT012
        make(place / "out", "new")
        files.move(place / "out", tmp_path)
    assert (out / "x").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_kill_between_the_renames_loses_nothing(tmp_path):
    out = tmp_path / "out"
    make(tmp_path / ".out.tmp" / "out.old", "old")
    make(tmp_path / ".out.tmp" / "out", "half")
    with pytest.raises(ZeroDivisionError), files.staged(out) as place:  # noqa: PT012
        assert not list(place.iterdir())
        raise ZeroDivisionError
    assert (out / "x").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_what_a_kill_left_half_written_takes_no_place(tmp_path):
    """A name may end as those of what is replaced do."""
    out = tmp_path / "model.old"
    make(tmp_path / ".model.old.tmp" / "model.old", "half")
    with files.staged(out) as place:
        assert not list(place.iterdir())
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(files.fcntl is None, reason="no locks here")
def test_two_commands_do_not_write_one_folder(tmp_path):
    out = tmp_path / "out"
    with files.staged(out) as place:
        make(place / "out", "first")
        with pytest.raises(SimclrError, match="another command is writing it"), files.staged(out):
            pass
        files.move(place / "out", tmp_path)
    assert (out / "x").read_text() == "first"
    with files.staged(out):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
