"""SIGTERM and Ctrl-C, once and twice, wherever a run is: an exit code, one line, nothing lost or left."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from conftest import QUICK, tiny_config, tiny_splits

from simclr_jax import checkpoint, lock, metrics, signals, train
from simclr_jax.errors import Preempted
from simclr_jax.signals import AGAIN, Signals

ROOT = Path(__file__).parent.parent.parent
WORDS = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}
NUMBERS = sorted(WORDS)


def start(*words, **more):
    environment = os.environ | {"XLA_FLAGS": QUICK, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    piped = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    command = [sys.executable, *map(str, words)]
    # Tests that run in the background are deaf to Ctrl-C, and so would be what they start.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return subprocess.Popen(command, cwd=ROOT, env=environment, **piped, **more)
    finally:
        signal.signal(signal.SIGINT, before)


def until(process, text, timeout=240):
    """What the process says until it says `text`."""
    said, end = "", time.monotonic() + timeout
    for line in process.stdout:
        said += line
        if text in line:
            return said
        assert time.monotonic() < end, said
    raise AssertionError(said)


def ended(process, number, timeout=60):
    """What is said once a signal has come; with the right exit code, and no traceback."""
    try:
        said = process.communicate(timeout=timeout)[0]
    except subprocess.TimeoutExpired:
        process.kill()  # it would compute on beside the other tests
        raise
    assert process.returncode == 128 + number, said
    assert "Traceback" not in said
    return said


# ---- a command, before it does anything --------------------------------------------------------------


COMMANDS = {
    "main": ("-m", "simclr_jax.main", "--config=configs/quickstart.py"),
    "evaluate": ("-m", "simclr_jax.evaluate"),
}


GOES_ON = {"main": "goes on from the last checkpoint", "evaluate": "goes on where this one stopped"}


def hears(process):
    """Whether the command has its handlers already; before that it is Python that starts."""
    with contextlib.suppress(OSError):
        status = Path(f"/proc/{process.pid}/status").read_text()
        caught = int(status.split("SigCgt:")[1].split()[0], 16)
        return bool(caught >> signal.SIGTERM - 1 & 1)
    return False


@pytest.mark.skipif(sys.platform != "linux", reason="asks /proc")
@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("name", COMMANDS)
def test_within_the_first_half_second(tmp_path, name, number):
    shutil.copytree(ROOT / "tests" / "fixtures" / "schema4", tmp_path / "evaluate")
    ours = 0
    for delay in (0.05, 0.1, 0.2, 0.3, 0.5):
        process = start(*COMMANDS[name], f"--workdir={tmp_path / name}")
        time.sleep(delay)
        while delay == 0.5 and not hears(process):  # however slow the machine is
            time.sleep(0.01)
        heard = hears(process)
        process.send_signal(number)
        said = process.communicate(timeout=30)[0]
        if heard:
            assert process.returncode == 128 + number, said
            assert said == f"error: {WORDS[number]}; the same command {GOES_ON[name]}\n"
            ours += 1
        else:
            assert process.returncode != 0
    assert ours
    assert not (tmp_path / "main").exists()
    assert not (tmp_path / "evaluate" / "eval").exists()


BLOCKED = """
import hashlib, sys
from simclr_jax import lock, signals
signals.take("goes on")
with lock.hold(sys.argv[1]):
    if sys.argv[2] == "twice":
        signals.Signals().hear()
    print("blocked", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)  # minutes in C, as a compilation
"""


@pytest.mark.parametrize("times", ["once", "twice"])
@pytest.mark.parametrize("number", NUMBERS)
def test_a_command_ends_though_its_main_thread_is_in_c(tmp_path, number, times):
    process = start("-c", BLOCKED, tmp_path, times)
    until(process, "blocked")
    if times == "twice":
        process.send_signal(signal.SIGTERM)
        time.sleep(AGAIN + 0.3)
        assert process.poll() is None  # the first one is only noted
    process.send_signal(number)
    assert ended(process, number, 20) == f"error: {WORDS[number]}; the same command goes on\n"
    assert not (tmp_path / lock.FILE).exists()


def test_signals_that_a_shell_ignores_stay_ignored(tmp_path):
    """As of nohup and background jobs."""
    code = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)\n" + BLOCKED
    code = code.replace("hashlib.pbkdf2_hmac", "import time; time.sleep(1); print('done'); sys.exit(); print")
    process = start("-c", code, tmp_path, "once")
    until(process, "blocked")
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=30)[0] == "done\n"
    assert process.returncode == 0


# ---- a command, in every phase -----------------------------------------------------------------------

# A run that stands still in one phase until the signal has come.
PHASES = """
import sys, time
from simclr_jax import signals
signals.take("goes on from the last checkpoint")
sys.path.insert(0, "tests")
from conftest import tiny_config, tiny_splits
from simclr_jax import checkpoint, command, distributed, figures, loop, metrics, train
from simclr_jax.data import memory
from simclr_jax.tasks import pretrain

workdir, phase, seconds = sys.argv[1], sys.argv[2], float(sys.argv[3])

def hold(module, name, when=lambda *args: True):
    does, said = getattr(module, name), []
    def holds(*args, **kwargs):
        result = does(*args, **kwargs)
        if not said and when(*args):
            said.append(print("\\nnow", flush=True))
            time.sleep(seconds)
        return result
    setattr(module, name, holds)

hold(*{
    "data": (memory, "hold"),
    "compile": (loop, "program"),
    "step": (metrics.Progress, "step", lambda self, step: step == 6),
    "save": (checkpoint.ocp.CheckpointManager, "save", lambda self, step: step == 8),
    "scores": (pretrain, "score"),
    "figures": (figures, "curves"),
}[phase])
distributed.start()
config = tiny_config(augment__device="all", eval__final=True, eval__figures=True, train__steps_per_call=1)
config.mesh.devices = 0 if distributed.several() else 1
with command.ends("goes on from the last checkpoint"):
    train.run(config, workdir, splits=tiny_splits())
print("finished")
"""
AT_ONCE = "error: {}; the same command goes on from the last checkpoint"
LINES = {  # of the first signal in the loop
    ("step", signal.SIGTERM): "stopped at step 6 of 12, saved; the same command goes on",
    ("save", signal.SIGTERM): "stopped at step 9 of 12, saved; the same command goes on",
}
SAVED = {"step": [4], "save": [4, 8], "scores": [4, 8, 12], "figures": [4, 8, 12]}


def slow(*parts):
    return pytest.param(*parts, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("phase", "number", "times"),
    [
        ("step", signal.SIGTERM, 1),
        ("save", signal.SIGTERM, 2),
        ("scores", signal.SIGTERM, 1),
        *(slow(phase, n, 1) for phase in ("data", "compile", "figures") for n in NUMBERS),
        *(slow(phase, signal.SIGINT, n) for phase in ("step", "save") for n in (1, 2)),
        slow("step", signal.SIGTERM, 2),
        slow("save", signal.SIGTERM, 1),
        slow("scores", signal.SIGINT, 1),
    ],
)
def test_in_every_phase_of_a_run(tmp_path, phase, number, times):
    workdir, in_loop = tmp_path / "run", phase in ("step", "save")
    process = start("-c", PHASES, workdir, phase, 2.0 if in_loop and times == 1 else 600)
    until(process, "now")
    process.send_signal(number)
    if times == 2:
        time.sleep(AGAIN + 0.3)
        if number == signal.SIGTERM:  # the first Ctrl-C has ended the step, and is ending the run
            assert process.poll() is None
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(number)
    said = ended(process, number)
    line = AT_ONCE.format(WORDS[number])
    if in_loop and times == 1:
        line = LINES.get((phase, number), line)
    assert said.count(line) == 1, said
    assert "finished" not in said
    saved = checkpoint.saved_steps(workdir / "checkpoints")
    assert set(saved) >= set(SAVED.get(phase, [])) - ({8} if times == 2 else set()), saved
    assert not (workdir / lock.FILE).exists()
    config = tiny_config(augment__device="all", train__steps_per_call=1)
    summary = train.run(config, workdir, splits=tiny_splits())
    assert summary["resumed_from"] == max(saved, default=0)
    assert [row["step"] for row in metrics.read_rows(workdir)] == list(range(1, 13))


EVALUATION = """
import sys, time
from simclr_jax import signals
signals.take("goes on where this one stopped")
sys.path.insert(0, "tests")
from conftest import tiny_config, tiny_splits, untrained_run
from simclr_jax import command
from simclr_jax.evaluate import run

workdir, seconds = sys.argv[1], float(sys.argv[2])
does = run.PROTOCOLS["health"].run

def holds(subject):
    print("\\nnow", flush=True)
    time.sleep(seconds)
    return does(subject)

untrained_run(workdir, tiny_config(augment__device="all"))
run.PROTOCOLS["health"] = run.PROTOCOLS["health"]._replace(run=holds)
with command.ends("goes on where this one stopped"):
    run.evaluate(workdir, protocols=["features", "health", "neighbours"], splits=tiny_splits())
print("finished")
"""


@pytest.mark.slow
@pytest.mark.parametrize(("number", "times"), [(signal.SIGTERM, 1), (signal.SIGTERM, 2), (signal.SIGINT, 1)])
def test_in_an_evaluation(tmp_path, number, times):
    """SIGTERM lets the protocol end, which may have taken an hour; what is done is kept."""
    workdir = tmp_path / "run"
    polite = (number, times) == (signal.SIGTERM, 1)
    process = start("-c", EVALUATION, workdir, 2.0 if polite else 600)
    until(process, "now")
    for _ in range(times):
        process.send_signal(number)
        time.sleep(AGAIN + 0.3)
    said = ended(process, number)
    line = f"error: {WORDS[number]}; the same command goes on where this one stopped"
    line = "stopped after the protocol health; the same command goes on" if polite else line
    assert said.count(line) == 1, said
    assert "finished" not in said
    done = {path.stem for path in (workdir / "eval" / "protocols").iterdir()}
    assert done == ({"features", "health"} if polite else {"features"})


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="asks /proc")
@pytest.mark.parametrize(
    ("phase", "number"),
    [
        ("data", signal.SIGTERM),
        ("scores", signal.SIGTERM),
        ("scores", signal.SIGINT),
        ("step", signal.SIGINT),
    ],
)
def test_one_signal_ends_several_processes(tmp_path, phase, number):
    """JAX takes SIGTERM for itself: outside the loop nobody heard it."""
    launcher = ["tools/launch/local.py", "--processes=2", "--devices=2", "--grace=90", "--"]
    launch = start(*launcher, sys.executable, "-c", PHASES, tmp_path / "run", phase, 600)
    until(launch, "now")
    time.sleep(5)  # the other one gets there, too
    children = Path(f"/proc/{launch.pid}/task/{launch.pid}/children").read_text().split()
    begin = time.monotonic()
    os.kill(int(children[1]), number)
    while any(Path(f"/proc/{child}/cmdline").exists() and _lives(child) for child in children):
        assert time.monotonic() < begin + 60, "a process hangs"
        time.sleep(0.2)
    said = launch.communicate(timeout=60)[0]
    assert launch.returncode == 128 + number, said
    assert "Traceback" not in said
    assert f"error: {WORDS[number]}; the same command goes on" in said


def _lives(child):
    with contextlib.suppress(OSError):
        return Path(f"/proc/{child}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    return False


# ---- a library ---------------------------------------------------------------------------------------


@pytest.fixture
def no_exit(monkeypatch):
    """A library never ends the process."""
    monkeypatch.setattr(os, "_exit", lambda code: pytest.fail(f"os._exit({code})"))


def handlers():
    return [signal.getsignal(number) for number in NUMBERS]


@pytest.mark.usefixtures("no_exit")
def test_as_a_library_the_second_signal_is_for_who_was_there_before(monkeypatch):
    monkeypatch.setattr(signals, "AGAIN", 0.0)
    heard = []
    mine = {n: signal.signal(n, lambda number, _: heard.append(number)) for n in NUMBERS}
    try:
        before = handlers()
        with Signals() as found:
            assert handlers() != before
            os.kill(os.getpid(), signal.SIGTERM)
            assert (found.received, heard) == (True, [])
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGINT)
        assert heard == [signal.SIGTERM, signal.SIGINT]
        assert handlers() == before
        with Signals() as inner:  # one that has heard nothing yet
            assert not inner.received
    finally:
        for number, handler in mine.items():
            signal.signal(number, handler)


def test_as_a_library_the_second_sigterm_ends_the_process():
    """As it does without us: by the system."""
    code = "import os, signal, time; from simclr_jax import signals\n"
    code += "signals.AGAIN = 0.0\nwith signals.Signals():\n"
    code += "    os.kill(os.getpid(), 15); print('first', flush=True)\n"
    code += "    os.kill(os.getpid(), 15); time.sleep(60)"
    process = start("-c", code)
    assert process.communicate(timeout=30)[0] == "first\n"
    assert process.returncode == -signal.SIGTERM


@pytest.mark.usefixtures("no_exit")
def test_a_run_in_a_thread_installs_nothing(tmp_path):
    before, found = handlers(), []

    def work():
        train.run(tiny_config(train__steps=2), tmp_path / "run", splits=tiny_splits(),
                  on_eval=lambda *_: found.append(handlers()))  # fmt: skip

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert (tmp_path / "run" / "summary.json").exists()
    assert all(each == before for each in found)
    assert handlers() == before


@pytest.mark.slow
@pytest.mark.usefixtures("no_exit")
@pytest.mark.parametrize("number", NUMBERS)
def test_a_run_as_a_library_stops_and_restores_the_handlers(tmp_path, number):
    before = handlers()

    def send(step, _):
        os.kill(os.getpid(), number)

    config = tiny_config(eval__every__steps=3, eval__knn__k=5)
    with pytest.raises((Preempted, KeyboardInterrupt)) as stop:
        train.run(config, tmp_path / "run", splits=tiny_splits(), on_eval=send)
    assert handlers() == before
    preempted = number == signal.SIGTERM
    assert isinstance(stop.value, Preempted) == preempted
    assert checkpoint.saved_steps(tmp_path / "run" / "checkpoints") == ([4] if preempted else [])


def test_a_ctrl_c_in_a_save_waits_for_it():
    done = []

    def save(found):
        with found.deferred():
            os.kill(os.getpid(), signal.SIGINT)
            done.append(True)

    with Signals() as found, pytest.raises(KeyboardInterrupt):
        save(found)
    assert done


def test_a_repetition_within_a_moment_is_the_same_signal():
    """`timeout` and wrappers of batch systems send SIGTERM to the process and to its group."""
    with Signals() as found:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        assert found.received
