"""tools/launch: the local launcher for real, the others against stand-ins for gcloud, srun and nvidia-smi."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from absl import flags

from simclr_jax import command as exits
from simclr_jax import main as command
from simclr_jax.config import default, flatten

ROOT = Path(__file__).parents[1]
LAUNCH = ROOT / "tools" / "launch"
LOCAL = [sys.executable, str(LAUNCH / "local.py")]
SCRIPTS = ["tpu_pod.sh", "one_gpu.sh", "slurm.sbatch"]
# Unbuffered, a line and its end would be two writes, and another process may write between them.
ENVIRONMENT = {**os.environ, "JAX_PLATFORMS": "", "PYTHONUNBUFFERED": ""}
WAIT = "import os, sys, time; print(os.getpid(), flush=True); time.sleep(60)"


def child(program):
    return ["--", sys.executable, "-c", f"import os, sys, time; i = os.environ['JAX_PROCESS_ID']\n{program}"]


def local(*args, **environment):
    done = subprocess.run(
        [*LOCAL, *args],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env={**ENVIRONMENT, **environment},
    )
    return done.returncode, done.stdout, done.stderr


@pytest.fixture
def background():
    """Starts a launcher that the test's end ends."""
    launchers = []

    def start(*args):
        launchers.append(
            subprocess.Popen([*LOCAL, *args], stdout=subprocess.PIPE, text=True, env=ENVIRONMENT)
        )
        return launchers[-1]

    yield start
    for launcher in launchers:
        launcher.kill()
        launcher.wait()
        launcher.stdout.close()


def gone(pid, seconds=5.0):
    """Whether a process ends within so many seconds; what its parent did not collect has ended."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z":
                return True
        except OSError:
            return True
        time.sleep(0.02)
    return False


def test_local_gives_each_process_its_variables_and_prefixes_all_but_the_first():
    program = "print(i, os.environ['JAX_NUM_PROCESSES'], os.environ['JAX_COORDINATOR_ADDRESS'], flush=True)\n"
    program += "print('a\\rb\\nc', file=sys.stderr)"
    code, out, err = local("--processes=3", *child(program))
    assert code == 0
    address = re.search(r"127\.0\.0\.1:\d+", out)[0]
    assert sorted(out.splitlines()) == sorted([f"0 3 {address}", f"[1] 1 3 {address}", f"[2] 2 3 {address}"])
    for number in (1, 2):
        of_one = [line for line in err.splitlines() if line.startswith(f"[{number}]")]
        assert of_one == [f"[{number}] b", f"[{number}] c"]  # of a bar, its last state


def test_two_local_launchers_at_once_take_different_ports(background):
    program = "print(os.environ['JAX_COORDINATOR_ADDRESS']); time.sleep(0.3)"
    both = [background("--processes=1", *child(program)) for _ in "ab"]
    assert len({launcher.communicate()[0] for launcher in both}) == 2


def test_local_exit_code_is_that_of_the_first_that_failed():
    code, _, err = local("--processes=3", *child("time.sleep(0.3 * (2 - int(i))); sys.exit(int(i) + 3)"))
    assert code == 5
    assert "process 2 ended with exit code 5; the others have 60 s" in err
    assert local("--processes=2", *child("os.abort()"))[0] == 128 + signal.SIGABRT


def test_local_ends_the_survivors_after_the_grace():
    program = "print(os.getpid(), flush=True); i == '0' and time.sleep(60); sys.exit(4)"
    code, out, err = local("--processes=2", "--grace=0.2", *child(program))
    assert code == 4
    assert "sends SIGTERM" in err
    assert all(gone(line.removeprefix("[1] "), 0.1) for line in out.splitlines())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_local_passes_a_signal_on_once(background, number):
    program = """
import signal
def stop(number, frame):
    os.write(1, b"saved %d\\n" % number)
    time.sleep(0.2)
    sys.exit(143)
signal.signal(signal.SIGINT, stop), signal.signal(signal.SIGTERM, stop)
print("ready", flush=True)
time.sleep(60)"""
    launcher = background("--processes=2", *child(program))
    ready = [launcher.stdout.readline() for _ in "ab"]
    assert sorted(ready) == ["[1] ready\n", "ready\n"]
    launcher.send_signal(number)
    out, _ = launcher.communicate(timeout=20)
    assert launcher.returncode == 143
    assert sorted(out.splitlines()) == [f"[1] saved {int(number)}", f"saved {int(number)}"]


def test_local_passes_on_the_second_signal_too(background):
    program = """
import signal
def stop(number, frame):
    os.write(1, b"heard\\n")
    stop.times -= 1
    if not stop.times:
        sys.exit(143)
stop.times = 2
signal.signal(signal.SIGTERM, stop)
print("ready", flush=True)
time.sleep(60)"""
    launcher = background("--processes=1", *child(program))
    assert launcher.stdout.readline() == "ready\n"
    for _ in "ab":
        launcher.send_signal(signal.SIGTERM)
        assert launcher.stdout.readline() == "heard\n"
    launcher.communicate(timeout=20)
    assert launcher.returncode == 143


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child of its parent's end")
def test_local_leaves_no_orphan_when_it_is_killed(background):
    launcher = background("--processes=2", *child(WAIT))
    pids = [launcher.stdout.readline().removeprefix("[1] ").strip() for _ in "ab"]
    launcher.kill()
    launcher.communicate()
    assert all(gone(pid) for pid in pids)


def test_local_leaves_nothing_of_what_a_child_has_started():
    program = f"import subprocess; print(subprocess.Popen([sys.executable, '-c', {WAIT!r}]).pid)"
    code, out, _ = local("--processes=1", "--grace=0.2", *child(program))
    assert code == 0
    assert gone(int(out.split()[0]), 0.1)


def test_local_shares_the_gpus_out(tmp_path):
    show = child("print(os.environ.get('CUDA_VISIBLE_DEVICES'))")
    shares = lambda out: sorted(line.removeprefix("[1] ") for line in out.splitlines())  # noqa: E731
    code, out, _ = local("--processes=2", *show, CUDA_VISIBLE_DEVICES="GPU-a,GPU-b, 3,5")
    assert (code, shares(out)) == (0, ["3,5", "GPU-a,GPU-b"])
    code, out, err = local("--processes=2", *show, CUDA_VISIBLE_DEVICES="0,1,2")
    assert (code, out, err) == (
        2, "", "error: 3 GPUs do not divide among 2 processes (--processes)\n",
    )  # fmt: skip
    write(tmp_path / "nvidia-smi", "echo 'GPU 0: A'; echo '  MIG 1g: x'; echo 'GPU 1: A'")
    environment = {**ENVIRONMENT, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    environment.pop("CUDA_VISIBLE_DEVICES", None)
    done = subprocess.run([*LOCAL, *show], env=environment, capture_output=True, text=True, check=True)
    assert shares(done.stdout) == ["0", "1"]


MISTAKES = {
    (): "the command is missing",
    ("--processes=0", "--", "true"): "--processes=0: must be at least 1",
    ("--processes=two", "--", "true"): "two",
    ("--devices=0", "--", "true"): "--devices=0: must be at least 1",
    ("--grace=-1", "--", "true"): "--grace=-1",
    ("--", "no-such-command"): "no-such-command: No such file",
}


@pytest.mark.parametrize("args", MISTAKES)
def test_a_mistake_to_local_is_one_line(args):
    code, out, err = local(*args)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert MISTAKES[args] in err
    assert err.count("\n") == 1


def test_local_processes_meet_and_sum_over_all_their_devices():
    program = """
import jax
jax.distributed.initialize(os.environ["JAX_COORDINATOR_ADDRESS"], int(os.environ["JAX_NUM_PROCESSES"]), int(i))
mesh = jax.make_mesh((4,), ("data",))
total = jax.shard_map(lambda x: jax.lax.psum(x, "data"), mesh=mesh, in_specs=jax.P("data"), out_specs=jax.P())
x = jax.make_array_from_callback((4,), jax.NamedSharding(mesh, jax.P("data")), lambda at: jax.numpy.arange(4.0)[at])
print("sum", jax.local_device_count(), jax.jit(total)(x).addressable_data(0))"""  # noqa: E501
    code, out, err = local("--processes=2", "--devices=2", "--grace=5", *child(program))
    assert code == 0, err
    for line in ("sum 2 [6.]", "[1] sum 2 [6.]"):
        assert line in out.splitlines()


def write(path, script):
    path.write_text(f"#!/usr/bin/env bash\n{script}\n")
    path.chmod(0o755)


def shell(script, *args, path, **environment):
    """Runs a launch script with stand-ins first on PATH; exit code, the calls they wrote down, stderr."""
    calls = path / "calls"
    calls.write_text("")
    done = subprocess.run(
        [LAUNCH / script, *args] if script.endswith(".sh") else ["bash", LAUNCH / script, *args],
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": f"{path}:{os.environ['PATH']}", "HOME": str(path), "CALLS": str(calls), **environment},
    )
    return done.returncode, calls.read_text(), done.stderr


GCLOUD = """line="$*"; echo "${line//$'\\n'/ }" >>"$CALLS"
here=$(dirname "$CALLS")
case "$*" in
    *describe*) cat "$here/state" ;;
    *queued-resources\\ create*) echo ACTIVE >"$here/state" ;;
    *queued-resources\\ delete*) rm "$here/state" ;;
esac"""
POD = {"ZONE": "us-west4-a", "WORKDIR": "gs://bucket/run", "POLL": "0"}


@pytest.fixture
def gcloud(tmp_path):
    write(tmp_path / "gcloud", GCLOUD)
    return tmp_path


def test_tpu_pod_up_creates_installs_and_runs(gcloud):
    extra = "--config.augment.crop_area=(0.2, 1.0)"
    code, calls, err = shell("tpu_pod.sh", "up", extra, path=gcloud, SPOT="1", PROJECT="mine", **POD)
    assert code == 0, err
    lines = [line.split() for line in calls.splitlines()]
    assert all(words[-2:] == ["--zone=us-west4-a", "--project=mine"] for words in lines)
    verbs = [" ".join(words[2:4]) for words in lines if words[3] != "describe"]
    assert verbs == ["queued-resources create", "tpu-vm scp", "tpu-vm ssh", "tpu-vm ssh"]
    assert {"--spot", "--node-id=simclr", "--accelerator-type=v5litepod-32"} <= set(lines[1])
    assert "pip install --quiet -e '.[tpu]'" in calls
    assert re.search(r"main\\ --config=configs/imagenet\.py\\ --workdir=gs://bucket/run", calls)


def test_tpu_pod_brings_a_preempted_slice_back_and_reuses_a_living_one(gcloud):
    (gcloud / "state").write_text("SUSPENDED\n")
    verbs = lambda calls: [line.split()[3] for line in calls.splitlines()]  # noqa: E731
    assert verbs(shell("tpu_pod.sh", "create", path=gcloud, **POD)[1]) == ["describe", "delete", "create", "describe"]  # fmt: skip  # noqa: E501
    assert verbs(shell("tpu_pod.sh", "create", path=gcloud, **POD)[1]) == ["describe"]


def test_tpu_pod_stops_where_a_step_fails(gcloud):
    write(gcloud / "gcloud", GCLOUD + '\ncase "$*" in *scp*) exit 1 ;; esac')
    code, calls, _ = shell("tpu_pod.sh", "up", path=gcloud, **POD)
    assert code == 1
    assert " ssh " not in calls


def test_tpu_pod_run_is_detached_quoted_and_stopped_by_sigterm(gcloud):
    """Its commands, run on a host that is a directory."""
    write(
        gcloud / "gcloud",
        f'cd {gcloud}; for word; do case $word in --command=*) bash -c "${{word#*=}}" ;; esac; done',
    )
    host = gcloud / "simclr_jax"
    (host / ".venv" / "bin").mkdir(parents=True)
    loop = "for i in {1..500}; do sleep 0.02; done"
    write(host / ".venv/bin/python", f"printf '<%s>' \"$@\"; trap 'echo saved; exit 143' TERM; {loop}")
    began = time.monotonic()
    assert shell("tpu_pod.sh", "run", "--config.x=(a, 'b')", path=gcloud, **POD)[0] == 0
    assert time.monotonic() - began < 5
    while not (host / "run.log").exists() or not (host / "run.log").read_text():
        time.sleep(0.02)
    assert "runs already" in shell("tpu_pod.sh", "run", path=gcloud, **POD)[2]
    assert shell("tpu_pod.sh", "stop", path=gcloud, **POD)[0] == 0
    words = "<-m><simclr_jax.main><--config=configs/imagenet.py><--workdir=gs://bucket/run>"
    assert (host / "run.log").read_text() == f"{words}<--config.x=(a, 'b')>saved\n"
    assert (host / "run.exit").read_text() == "143\n"


@pytest.mark.parametrize(
    ("args", "environment", "message"),
    [
        (["up"], {}, "ZONE is not set"),
        (["run"], {"ZONE": "z"}, "WORKDIR is not set"),
        (["run"], {"ZONE": "z", "WORKDIR": "/tmp/x"}, "begins with gs://"),
        (["run"], {**POD, "CONFIG": "configs/nowhere.py"}, "configs/nowhere.py"),
        (["destroy"], POD, "no such command"),
        (["create", "--spot"], POD, "takes no options"),
    ],
)
def test_a_mistake_to_tpu_pod_is_one_line(gcloud, args, environment, message):
    code, calls, err = shell("tpu_pod.sh", *args, path=gcloud, **environment)
    assert (code, calls) == (2, "")
    assert err.startswith("error: ")
    assert message in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("code", "state", "again"),
    [(0, "RUNNING", 0), (143, "RUNNING", 1), (143, "COMPLETING", 0), (2, "RUNNING", 0)],
)
def test_slurm_goes_back_to_the_queue_only_when_the_time_was_over(tmp_path, code, state, again):
    write(tmp_path / "srun", f'echo "srun $*" >>"$CALLS"; exit {code}')
    write(tmp_path / "squeue", f"echo {state}")
    write(tmp_path / "scontrol", 'echo "scontrol $*" >>"$CALLS"')
    environment = {"SLURM_JOB_ID": "7", "SLURM_SUBMIT_DIR": str(ROOT), "SLURM_CPUS_PER_TASK": "3"}
    environment["VENV"] = str(Path(sys.executable).parents[1])
    options = ["--config=configs/imagenet.py", "--workdir=/shared/run"]
    result, calls, err = shell("slurm.sbatch", *options, path=tmp_path, **environment)
    assert result == code, err
    assert "--cpus-per-task=3" in calls
    assert calls.splitlines()[0].endswith(" -m simclr_jax.main " + " ".join(options))
    assert calls.count("scontrol requeue 7") == again
    assert "--workdir is missing" in shell("slurm.sbatch", path=tmp_path, **environment)[2]


@pytest.mark.parametrize(("driver", "package"), [("580.65.06", ".[cuda]"), ("535.183.01", "jax[cuda12]")])
def test_one_gpu_installs_once_what_the_driver_can_and_runs(tmp_path, driver, package):
    write(tmp_path / "nvidia-smi", f"echo {driver}; echo {driver}")
    venv = tmp_path / "venv"
    (venv / "bin").mkdir(parents=True)
    write(venv / "bin" / "pip", 'echo "pip $*" >>"$CALLS"')
    write(venv / "bin" / "python", 'echo "python $* $XLA_FLAGS" >>"$CALLS"')
    environment = {"VENV": str(venv), "PYTHON": sys.executable, "DETERMINISTIC": "1"}
    config = "--config=configs/quickstart.py"
    code, calls, err = shell("one_gpu.sh", config, path=tmp_path, **environment)
    assert code == 0, err
    assert package in calls.splitlines()[0]
    assert re.search(r"simclr_jax\.main --config=\S+ +--xla_gpu_deterministic_ops=true$", calls, re.M)
    assert "pip" not in shell("one_gpu.sh", config, path=tmp_path, **environment)[1]
    write(tmp_path / "nvidia-smi", "echo 'No devices were found' >&2; exit 6")
    assert "error: nvidia-smi fails" in shell("one_gpu.sh", config, path=tmp_path, **environment)[2]


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_are_sound(script):
    subprocess.run(["bash", "-n", LAUNCH / script], check=True)
    if not shutil.which("shellcheck"):
        pytest.skip("shellcheck is not installed")
    subprocess.run(["shellcheck", LAUNCH / script], check=True)


def test_manifest_asks_for_every_host_of_the_slice():
    yaml = pytest.importorskip("yaml")
    manifest = yaml.safe_load((LAUNCH / "gke_jobset.yaml").read_text())
    job = manifest["spec"]["replicatedJobs"][0]["template"]["spec"]
    pod = job["template"]["spec"]
    chips = pod["containers"][0]["resources"]["limits"]["google.com/tpu"]
    sides = pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x")
    assert job["completions"] == job["parallelism"] == int(sides[0]) * int(sides[1]) // chips
    assert pod["containers"][0]["resources"]["requests"]["google.com/tpu"] == chips
    rule = job["podFailurePolicy"]["rules"][0]["onExitCodes"]
    assert rule == {
        "containerName": pod["containers"][0]["name"],
        "operator": "In",
        "values": [exits.FAILED],
    }
    assert pod["restartPolicy"] == "Never"  # podFailurePolicy asks for it


def test_launch_files_name_only_what_exists():
    """Flags of the command, fields of the config, configs, and files of this folder."""
    known = {flag.name for flag in flags.FLAGS.get_key_flags_for_module(command.__name__)}
    known.add("config")
    fields = set(flatten(default()))
    for path in LAUNCH.iterdir():
        if not path.is_file():
            continue
        text = path.read_text().replace("\\\n", " ")
        assert set(re.findall(r"--config\.([a-z_.]+[a-z])", text)) <= fields, path
        for config in re.findall(r"\bconfigs/\w+\.py", text):
            assert (ROOT / config).exists(), f"{path}: {config}"
        for file in re.findall(r"\btools/launch/(\w+\.?\w+)", text):
            assert (LAUNCH / file).exists(), f"{path}: {file}"
        after = " ".join(re.findall(r"simclr_jax\.main(?: |\", )([^\n`]*)", text))
        used = set(re.findall(r"(?<![\w-])--([a-z_]+)\b", after))
        used |= set(re.findall(r"^ *- --([a-z_]+)", text, re.M))  # the manifest's args
        assert used <= known, f"{path}: {sorted(used - known)}"
