"""One workdir, one run."""

import json
import os
import socket
import subprocess
import sys
import threading
import time

import pytest
from conftest import tiny_config, tiny_splits

from simclr_jax import lock, train
from simclr_jax.config import CONFIG_FILE, to_json
from simclr_jax.errors import SimclrError

HOLD = """
import sys, time
from simclr_jax import lock
with lock.hold(sys.argv[1]):
    print("held", flush=True)
    time.sleep(600)
"""


def other(workdir):
    """Another process that holds the workdir."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, workdir], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    return process


def lease(**fields):
    return json.dumps({"owner": "them", "host": "elsewhere", "pid": 7, "beat": 0} | fields)


@pytest.fixture
def quick(monkeypatch):
    for name, value in {"DEAD": 1.0, "BEAT": 0.1, "SETTLE": 0.2}.items():
        monkeypatch.setattr(lock, name, value)


def test_the_second_of_two_runs_gets_one_line_and_changes_nothing(tmp_path):
    workdir = tmp_path / "run"
    process = other(workdir)
    try:
        with pytest.raises(SimclrError, match=rf"another run \(process {process.pid} on ") as error:
            train.run(tiny_config(), workdir, splits=tiny_splits())
        assert "choose another --workdir" in str(error.value)
        assert len(str(error.value).splitlines()) == 1
        assert [path.name for path in workdir.iterdir()] == [lock.FILE]
    finally:
        process.kill()
        process.wait()
    with lock.hold(workdir):  # death frees it at once
        pass


def test_it_is_released_and_leaves_nothing_behind(tmp_path):
    for _ in range(2):
        with lock.hold(tmp_path / "new"):
            assert (tmp_path / "new" / lock.FILE).exists()
    assert not (tmp_path / "new").exists()
    (tmp_path / "old").mkdir()
    with pytest.raises(ZeroDivisionError), lock.hold(tmp_path / "old"):
        raise ZeroDivisionError
    assert not list((tmp_path / "old").iterdir())


def test_threads_of_one_process_exclude_each_other(tmp_path):
    begun, answered, won, refused = threading.Barrier(8), threading.Event(), [], []

    def contend():
        begun.wait()
        try:
            with lock.hold(tmp_path / "run"):
                won.append(1)
                answered.wait(60)
        except SimclrError:
            refused.append(1)
            if len(refused) == 7:
                answered.set()

    threads = [threading.Thread(target=contend) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(won), len(refused)) == (1, 7)


@pytest.mark.usefixtures("quick")
def test_another_hosts_lease_without_a_sign_of_life_is_taken_over(tmp_path):
    (tmp_path / lock.FILE).write_text(lease())
    said = []
    begin = time.monotonic()
    with lock.hold(tmp_path, said.append):
        assert time.monotonic() - begin >= lock.DEAD
        assert json.loads((tmp_path / lock.FILE).read_text())["host"] == socket.gethostname()
    assert len(said) == 1
    assert "another run (process 7 on elsewhere) had it; waiting 1 s" in said[0]


@pytest.mark.usefixtures("quick")
def test_another_hosts_lease_that_is_renewed_is_respected(tmp_path):
    (tmp_path / lock.FILE).write_text(lease())
    threading.Timer(0.3, (tmp_path / lock.FILE).write_text, [lease(beat=1)]).start()
    with pytest.raises(SimclrError, match="on elsewhere"), lock.hold(tmp_path, lambda line: None):
        pass


@pytest.mark.usefixtures("quick")
def test_a_lease_of_this_host_whose_owner_died_is_taken_at_once(tmp_path):
    (tmp_path / lock.FILE).write_text(lease(host=socket.gethostname()))
    said = []
    with lock.hold(tmp_path, said.append):
        pass
    assert said == []


@pytest.mark.usefixtures("quick")
def test_where_nothing_can_be_locked_the_lease_decides(tmp_path, monkeypatch):
    """As on gs://: of two that start at one moment the one that wrote last goes on."""
    monkeypatch.setattr(lock, "_flock", lambda path: (None, False))
    with lock.hold(tmp_path):
        time.sleep(0.5)
        assert json.loads((tmp_path / lock.FILE).read_text())["beat"] >= 1  # renewed
        with pytest.raises(SimclrError, match="is training there"), lock.hold(tmp_path, lambda line: None):
            pass
    threading.Timer(0.1, (tmp_path / lock.FILE).write_text, [lease()]).start()
    with pytest.raises(SimclrError, match="on elsewhere"), lock.hold(tmp_path):
        pass


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SimclrError, match="cannot be written"), lock.hold(tmp_path / "file" / "run"):
        pass
    (tmp_path / "run" / lock.FILE).mkdir(parents=True)
    with pytest.raises(SimclrError, match="cannot be written"), lock.hold(tmp_path / "run"):
        pass


def test_another_config_is_refused_before_the_first_checkpoint_too(tmp_path):
    config = tiny_config()
    (tmp_path / CONFIG_FILE).write_text(to_json(config, {}))
    before = (tmp_path / CONFIG_FILE).read_text()
    config = tiny_config(loss__temperature=0.1)
    with pytest.raises(SimclrError, match=r"temperature: 0\.5 -> 0\.1") as error:
        train.run(config, tmp_path, splits=tiny_splits())
    assert "nothing is trained there yet" in str(error.value)
    assert (tmp_path / CONFIG_FILE).read_text() == before
    config.train.steps = 2
    assert train.run(config, tmp_path, splits=tiny_splits(), force=True)["steps"] == 2
    assert not os.path.exists(tmp_path / lock.FILE)


@pytest.mark.usefixtures("quick")
def test_a_lease_that_another_host_took_ends_the_run(tmp_path):
    """This host was cut off for a while, and the other one goes on."""
    with lock.hold(tmp_path) as check:
        check()
        (tmp_path / lock.FILE).write_text(lease())
        time.sleep(1)
        with pytest.raises(SimclrError, match="on elsewhere"):
            check()
    assert json.loads((tmp_path / lock.FILE).read_text())["host"] == "elsewhere"  # theirs is left alone


def test_a_long_command_line_in_other_letters_fits_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["обучение" * 200])
    with lock.hold(tmp_path):
        assert len((tmp_path / lock.FILE).read_bytes()) == lock.LENGTH
