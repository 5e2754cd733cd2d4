"""Two processes of two CPU devices are one run: same losses, same checkpoints, same end."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import QUICK, tiny_arrays, tiny_config

from simclr_jax import checkpoint, command, distributed, metrics, train
from simclr_jax.config import to_json
from simclr_jax.errors import SimclrError

ROOT = Path(__file__).parent.parent
CONFIG = "from simclr_jax import config\n\n\ndef get_config():\n    return config.from_json({text!r})[0]\n"


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    path = tmp_path_factory.mktemp("images") / "tiny.npz"
    (x, y), (test_x, test_y) = tiny_arrays(), tiny_arrays(n=41, seed=7)  # 41: the shares are not equal
    np.savez(path, x_train=x, y_train=y, x_test=test_x, y_test=test_y)
    return path


def config_of(images, **fields):
    common = {
        "data__source": f"npz:{images}", "model__dtype": "float64", "mesh__devices": 0,
        "checkpoint__every__steps": 10, "train__steps": 20,
    }  # fmt: skip
    return tiny_config(**(common | fields))


class Pair:
    """The same command in two processes."""

    def __init__(self, config, workdir, tmp_path):
        file = tmp_path / "config.py"
        file.write_text(CONFIG.format(text=to_json(config, {})))
        launcher = ROOT / "tools" / "launch" / "local.py"
        command = [sys.executable, str(launcher), "--processes=2", "--devices=2", "--grace=60", "--"]
        command += [sys.executable, "-m", "simclr_jax.main", f"--config={file}", f"--workdir={workdir}"]
        flags = {"XLA_FLAGS": QUICK, "JAX_ENABLE_X64": "1", "PYTHONUNBUFFERED": "1"}
        environment = os.environ | flags | {"PYTHONPATH": str(ROOT)}
        self.launcher = subprocess.Popen(
            command, cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        self.workdir, self.output = workdir, ""

    def wait(self, timeout=300):
        """The exit code, of the first process that failed."""
        try:
            self.output += self.launcher.communicate(timeout=timeout)[0]
        except subprocess.TimeoutExpired:
            self.launcher.kill()
            raise
        return self.launcher.returncode

    def processes(self):
        """Of each process its number in the system."""
        children = Path(f"/proc/{self.launcher.pid}/task/{self.launcher.pid}/children").read_text().split()
        number = lambda pid: Path(f"/proc/{pid}/environ").read_text().split("JAX_PROCESS_ID=")[1][0]  # noqa: E731
        return sorted(map(int, children), key=number)

    def until_step(self, step, timeout=300):
        end = time.monotonic() + timeout
        while not any(row["step"] >= step for row in metrics.read_rows(self.workdir)):
            assert time.monotonic() < end, "the run does not get there"
            assert self.launcher.poll() is None, self.launcher.stdout.read()
            time.sleep(0.1)


def rows(workdir, name="loss"):
    return [row[name] for row in metrics.read_rows(workdir) if name in row]


def test_two_processes_equal_one_and_eight_devices(images, tmp_path):
    """20 steps through tf.data, kNN on a test split of uneven shares, one checkpoint."""
    fields = {"eval__every__steps": 10}
    pair = Pair(config_of(images, **fields), tmp_path / "two", tmp_path)
    with jax.enable_x64(True):
        for devices in (1, 2, 8):
            mine = {"mesh__devices": devices} | (fields if devices == 1 else {})
            train.run(config_of(images, **mine), tmp_path / str(devices))
    assert pair.wait() == 0, pair.output
    one = rows(tmp_path / "1")
    assert len(one) == 20
    for other in ("2", "8", "two"):
        np.testing.assert_allclose(rows(tmp_path / other), one, rtol=1e-9, err_msg=other)
    assert rows(tmp_path / "two", "knn_top1") == rows(tmp_path / "1", "knn_top1")
    assert train.files.read_json(tmp_path / "two" / "summary.json")["device"]["processes"] == 2
    assert {path.name for path in (tmp_path / "two").iterdir()} >= {"config.json", "checkpoints"}
    assert pair.output.count("images: 80 to train on") == 1  # process 0 alone speaks


@pytest.mark.slow
def test_checkpoints_of_two_are_read_by_one_and_the_other_way(images, tmp_path):
    """From device memory, several steps a call: half of the run here, half there."""
    calls = {"train__steps_per_call": 5, "log__every__steps": 3}
    config = config_of(images, augment__device="all", **calls)
    pair = Pair(config, tmp_path / "two", tmp_path)
    with jax.enable_x64(True):
        train.run(config, tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "stopped")
    assert pair.wait() == 0, pair.output
    for run in ("stopped", "two"):
        (tmp_path / run / "checkpoints" / "20").rename(tmp_path / f"{run}-last")  # as if killed before it
    pair = Pair(config, tmp_path / "stopped", tmp_path)
    with jax.enable_x64(True):
        summary = train.run(config, tmp_path / "two")
    assert summary["resumed_from"] == 10
    assert pair.wait() == 0, pair.output
    expected = rows(tmp_path / "whole")
    for run in ("two", "stopped"):
        np.testing.assert_allclose(rows(tmp_path / run), expected, rtol=1e-9, err_msg=run)
        found, params = (checkpoint.read_parameters(tmp_path / r / "checkpoints")[1] for r in (run, "whole"))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-7, atol=1e-12), found, params)


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_when_one_is_killed_the_other_ends_with_a_line(images, tmp_path, victim):
    """Within a minute, and the checkpoint is there to go on from."""
    config = config_of(images, augment__device="all", train__steps=100_000)
    pair = Pair(config, tmp_path / "run", tmp_path)
    pair.until_step(12)
    survivor = pair.processes()[1 - victim]
    os.kill(pair.processes()[victim], signal.SIGKILL)
    begin = time.monotonic()
    while Path(f"/proc/{survivor}").exists():
        assert time.monotonic() < begin + 60, "the other process hangs"
        time.sleep(0.2)
    assert pair.wait() == 128 + signal.SIGKILL
    # Whichever notices first: the collective operation, or JAX's service, which ends the process itself.
    ours = "the same command on all of them goes on from the last checkpoint"
    assert ours in pair.output or "another task died" in pair.output
    assert "Traceback" not in pair.output
    assert "Fatal Python error" not in pair.output
    assert checkpoint.saved_steps(tmp_path / "run" / "checkpoints")


@pytest.mark.slow
def test_sigterm_to_one_saves_and_ends_both(images, tmp_path):
    fields = {"checkpoint__every__steps": 0, "train__steps_per_call": 4, "log__every__steps": 2}
    config = config_of(images, augment__device="all", train__steps=100_000, **fields)
    pair = Pair(config, tmp_path / "run", tmp_path)
    pair.until_step(6)
    os.kill(pair.processes()[1], signal.SIGTERM)
    assert pair.wait() == 143, pair.output
    (saved,) = checkpoint.saved_steps(tmp_path / "run" / "checkpoints")
    assert f"stopped at step {saved} of 100000, saved" in pair.output


def test_saving_does_not_ask_for_preemption(tmp_path, monkeypatch):
    """The loop asks by the number of the call; Orbax would, by that of the step, and JAX mix them up."""
    asked = []
    monkeypatch.setattr(checkpoint.ocp.utils, "reached_preemption", asked.append)
    monkeypatch.setattr(checkpoint.multihost_utils, "reached_preemption_sync_point", asked.append)
    state = train.TrainState(jnp.int32(7), {"a": jnp.ones(2)}, {"b": jnp.ones(2)}, {"c": jnp.ones(2)})
    with checkpoint.Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state)
    assert checkpoint.saved_steps(tmp_path) == [7]
    assert not asked


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({"train__batch_size": 18}, "must be divisible by the 4 devices"),
        ({"mesh__devices": 2}, "config.mesh.devices=2: must be 0 with 2 processes"),
    ],
)
def test_a_mistake_ends_all_at_once(images, tmp_path, fields, line):
    pair = Pair(config_of(images, **fields), tmp_path / "run", tmp_path)
    assert pair.wait(60) == command.FAILED
    assert line in pair.output
    assert "Traceback" not in pair.output


def test_a_fault_of_one_process_ends_the_other(images, tmp_path):
    """Only the first writes metrics, and cannot: the second must not wait for it."""
    (tmp_path / "run" / "metrics.jsonl").mkdir(parents=True)
    config = config_of(images, augment__device="all")
    begin = time.monotonic()
    assert Pair(config, tmp_path / "run", tmp_path).wait() != 0
    assert time.monotonic() - begin < 90


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({"coordinator": "h:1"}, "--processes is missing"),
        ({"processes": 2, "process": 0}, "--coordinator is missing"),
        ({"coordinator": "h:1", "processes": 2, "process": 2}, "--process=2: must be from 0 to 1"),
        ({"coordinator": "h:1", "processes": 0, "process": 0}, "--processes=0: must be at least 1"),
        ({"coordinator": "host", "processes": 2, "process": 1}, "must be HOST:PORT"),
    ],
)
def test_half_told(given, line):
    with pytest.raises(SimclrError, match=line):
        distributed.start(**given)


def test_variables(monkeypatch):
    """What is not given comes from the environment; Slurm's only within a step of several tasks."""
    calls = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda **kw: calls.append(kw))
    distributed.start()
    assert not calls
    for name, value in zip(distributed.VARIABLES.values(), ("host:12", "3", "1"), strict=True):
        monkeypatch.setenv(name, value)
    distributed.start(process=2)
    told = {"coordinator_address": "host:12", "num_processes": 3, "process_id": 2}
    assert told.items() <= calls.pop().items()
    monkeypatch.setenv("JAX_NUM_PROCESSES", "three")
    with pytest.raises(SimclrError, match="JAX_NUM_PROCESSES='three': must be a whole number"):
        distributed.start()
    for name in distributed.VARIABLES.values():
        monkeypatch.delenv(name)
    monkeypatch.setenv("SLURM_NTASKS", "4")
    distributed.start()  # in the batch script itself, outside of srun
    assert not calls
    monkeypatch.setenv("SLURM_PROCID", "1")
    monkeypatch.setenv("SLURM_STEP_NODELIST", "node[1-2]")
    distributed.start()
    assert calls.pop()["cluster_detection_method"] == "slurm"
