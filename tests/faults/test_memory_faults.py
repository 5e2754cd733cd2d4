"""Too little memory: one line with bytes and remedies, whichever of JAX, NumPy and Python runs out of it."""

import json
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from conftest import tiny_config, tiny_splits, untrained_run

from simclr_jax import command, distributed, memory_error, train
from simclr_jax.errors import OutOfMemoryError, StorageError
from simclr_jax.evaluate import run as evaluation
from simclr_jax.tasks import pretrain

FIXTURES = Path(__file__).parent.parent / "fixtures"

# Texts as issues and XLA's documentation of errors quote them, with the bytes needed and free.
TEXTS = {row["name"]: row for row in json.loads((FIXTURES / "out_of_memory.json").read_text())}
ON_A_GPU = TEXTS["gpu, run"]["text"]


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize("kind", [RuntimeError, ValueError, jax.errors.JaxRuntimeError])
def test_what_is_said_of_memory_is_read(name, kind):
    said = TEXTS[name]
    found = memory_error.shortage(kind(said["text"]))
    assert (found.needed, found.free) == (said["needed"], said["free"])
    assert found.host == (name == "c++")
    line = memory_error.line(found, ["lower config.train.batch_size=8"])
    assert line.startswith("out of memory on")
    assert line.endswith("; lower config.train.batch_size=8")
    assert "\n" not in line


def test_numpy_and_python_run_out_of_memory():
    with pytest.raises(MemoryError) as error:
        np.zeros((100_000, 10**10))
    found = memory_error.shortage(error.value)
    assert found.host
    assert found.needed == pytest.approx(8 * 10**15, rel=0.01)
    assert memory_error.shortage(MemoryError()) == memory_error.Shortage(True, None, None)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("INVALID_ARGUMENT: Executable expected parameter 0 of size 4"),
        ValueError("array is too big; `arr.size * arr.dtype.itemsize` is larger than the maximum"),
        RuntimeError("Gloo all-reduce failed: Connection closed by peer"),
        ValueError("RESOURCE_EXHAUSTED: Error writing local file: Failed to write 83 bytes to 21: No space "
                   "left on device [os_error_code='28']"),
        OSError(28, "No space left on device"),
        StorageError("/x: cannot be written"),
    ],
)  # fmt: skip
def test_what_is_not_about_memory_is_left_alone(error):
    assert memory_error.shortage(error) is None
    with pytest.raises(type(error)) as raised, memory_error.explained(memory_error.training, tiny_config()):
        raise error
    assert raised.value is error


def test_remedies_come_in_order_and_none_that_is_taken():
    config = tiny_config(model__encoder="resnet", train__batch_size=512, data__channels=3)
    assert memory_error.training(config, host=False) == [
        "lower config.train.batch_size=512", "set config.train.microbatch to a part of it",
        "config.model.remat=True", "config.model.dtype=bfloat16",
    ]  # fmt: skip
    config.train.microbatch, config.model.remat, config.model.dtype = 64, True, "bfloat16"
    assert memory_error.training(config, host=False) == [
        "lower config.train.batch_size=512", "lower config.train.microbatch=64",
    ]  # fmt: skip
    assert memory_error.training(config, host=True)[1] == "lower config.data.memory_gb=2"
    assert memory_error.evaluation(config, host=False)[0] == "lower config.eval.batch_size=32"


def test_free_bytes_come_from_the_fullest_device(monkeypatch):
    class Device:
        platform, device_kind = "gpu", "NVIDIA H100"

        def __init__(self, used):
            self.used = used

        def memory_stats(self):
            return {"bytes_limit": 80 * 10**9, "bytes_in_use": self.used}

    monkeypatch.setattr(jax, "local_devices", lambda: [Device(10**9), Device(79 * 10**9)])
    found = memory_error.shortage(RuntimeError(ON_A_GPU))
    assert memory_error.line(found, ["x"]) == (
        "out of memory on a device (NVIDIA H100): 4.8 GB needed, 1.0 GB free; x"
    )


def fails(*_, **__):
    raise jax.errors.JaxRuntimeError(ON_A_GPU)


def test_compiling_too_large_a_step_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(jax.stages.Lowered, "compile", fails)
    with pytest.raises(OutOfMemoryError, match=r"4\.8 GB needed.*lower config\.train\.batch_size=16, or set"):
        train.run(tiny_config(augment__device="all"), tmp_path, splits=tiny_splits())


@pytest.mark.slow
def test_scores_that_do_not_fit_name_the_batch_of_the_evaluation(tmp_path, monkeypatch):
    monkeypatch.setattr(pretrain.protocol, "score", fails)
    config = tiny_config(augment__device="all", train__steps=2, eval__final=True)
    with pytest.raises(OutOfMemoryError, match=r"lower config\.eval\.batch_size=32"):
        train.run(config, tmp_path, splits=tiny_splits())


def test_a_protocol_that_does_not_fit_costs_no_other(tmp_path, monkeypatch, capsys):
    workdir = untrained_run(tmp_path / "run", tiny_config(augment__device="all"))
    protocol = evaluation.PROTOCOLS["knn"]._replace(run=fails)
    monkeypatch.setitem(evaluation.PROTOCOLS, "knn", protocol)
    with pytest.raises(OutOfMemoryError, match=r"lower config\.eval\.batch_size=32"):
        evaluation.evaluate(workdir, protocols=["features", "knn", "health"], splits=tiny_splits())
    assert (
        "health       0" in capsys.readouterr().out
        or (workdir / "eval" / "protocols" / "health.json").exists()
    )


def test_nobody_blames_a_peer(monkeypatch, capsys):
    """Of several processes, one that has too little memory says so itself."""
    codes = []
    monkeypatch.setattr(distributed, "several", lambda: True)
    monkeypatch.setattr(command.os, "_exit", codes.append)
    ends, explained = command.ends("goes on"), memory_error.explained(memory_error.training, tiny_config())
    with pytest.raises(SystemExit), ends, explained:  # here _exit does not end the process
        raise jax.errors.JaxRuntimeError(ON_A_GPU)
    assert codes == [command.FAILED]
    said = capsys.readouterr().err
    assert "out of memory" in said
    assert "a process of this run" not in said


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("UNKNOWN: Gloo all-reduce failed: Connection closed by peer", command.LOST),
        ("INTERNAL: NCCL operation ncclGroupEnd() failed: remote process exited", command.LOST),
        ("INVALID_ARGUMENT: Executable expected parameter 0 of size 4", 1),
    ],
)
def test_a_peer_is_blamed_only_for_what_it_can_do(monkeypatch, capsys, text, code):
    codes = []
    monkeypatch.setattr(distributed, "several", lambda: True)
    monkeypatch.setattr(command.os, "_exit", codes.append)
    with pytest.raises((SystemExit, jax.errors.JaxRuntimeError)), command.ends("goes on"):
        raise jax.errors.JaxRuntimeError(text)
    assert codes[0] == code
    assert ("a process of this run" in capsys.readouterr().err) == (code == command.LOST)


CODE = """
import resource, sys
sys.path.insert(0, "tests")
import numpy as np
from conftest import tiny_arrays, tiny_config, tiny_splits
from simclr_jax import command, train
from simclr_jax.data import sources
from simclr_jax.data.splits import Splits
images = np.random.default_rng(0).integers(0, 255, (70_000, 12, 12, 1), dtype=np.uint8)
splits = Splits(sources.from_arrays(images), sources.from_arrays(*tiny_arrays(n=40)))
config = tiny_config(augment__device="all", train__batch_size=65536, train__steps=1)
import jax; jax.devices()
size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (size + 2**31, -1))
with command.ends("goes on"):
    train.run(config, sys.argv[1], splits=splits)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="limits the address space")
def test_a_batch_that_this_host_cannot_hold(tmp_path):
    """Really: under a limit of memory."""
    done = subprocess.run(
        [sys.executable, "-c", CODE, tmp_path], capture_output=True, text=True, check=False, timeout=600
    )
    assert done.returncode == command.FAILED, done.stderr
    assert "Traceback" not in done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert line.startswith("error: out of memory on this host: 1.2 GB needed, ")
    assert "lower config.train.batch_size=65536, or set config.train.microbatch" in line
