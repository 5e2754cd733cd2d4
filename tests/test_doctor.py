"""The doctor: what it says of a run is what the run would do, and it leaves nothing behind."""

import dataclasses
import itertools
import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest
from conftest import tiny_arrays, tiny_config, tiny_splits
from etils import epath
from PIL import Image
from test_structure import CONFIGS, load_config

from simclr_jax import announce, lock, sharding, storage, train
from simclr_jax.config import duration
from simclr_jax.data import sources
from simclr_jax.data import splits as data_splits
from simclr_jax.data.splits import Splits
from simclr_jax.doctor import ahead, disk, findings, images, memory, pitfalls, published, run, slices, speed
from simclr_jax.doctor.findings import Finding, Mark
from simclr_jax.doctor.plan import Plan
from simclr_jax.errors import SimclrError
from simclr_jax.evaluate.published import TABLE_B1

SOUND = {  # a tiny run without a fault
    "augment__device": "all",
    "train__batch_size": 64,
    "augment__crop_area": (0.7, 1.0),
    "eval__knn__k": 10,
    "optimizer__weight_decay": 1e-4,
}


def sound_config(**overrides):
    return tiny_config(**{**SOUND, **overrides})


def sound_splits(**kwargs):
    return tiny_splits(**{"n": 320, **kwargs})


def plan_of(config, splits=None, devices=1, workdir="nowhere", **more):
    splits = splits or sound_splits()
    return Plan(config, epath.Path(workdir), splits, sharding.make_mesh(devices), **more)


def found_in(sections, mark):
    """{section: texts} of one mark."""
    return {
        name: texts for name, each in sections.items() if (texts := [f.text for f in each if f.mark == mark])
    }


def marks(sections):
    return findings.exit_code(itertools.chain(*sections.values()))


@pytest.fixture(autouse=True)
def _little_reading(monkeypatch):
    monkeypatch.setattr(speed, "LONGEST", 1.0)
    monkeypatch.setattr(speed, "ENOUGH", 0.1)


# ---- the page -----------------------------------------------------------------------------------


def test_the_page_fits_a_terminal_and_every_line_has_its_mark():
    long = "word " * 40 + "/a/path/" + "x" * 90
    sections = {"one": [findings.ok("fine"), findings.warning(long, "do " * 40)], "empty": [], "two": [
        findings.error("a\n  b", "c")]}  # fmt: skip
    text = findings.page("title", sections)
    lines = text.splitlines()
    assert all(len(line) <= findings.WIDTH for line in lines if "xxx" not in line)
    marked = [line.split()[0] for line in lines if line.startswith("  ") and line[2] != " "]
    assert marked == ["ok", "warning", "error"]
    assert "empty" not in lines
    assert lines[-1] == "1 error, and 1 warning: the run would not go."


@pytest.mark.parametrize(("mark", "code"), [(Mark.OK, 0), (Mark.NOTE, 0), (Mark.WARNING, 1), (Mark.ERROR, 2)])
def test_the_exit_code_is_that_of_the_worst(mark, code):
    assert findings.exit_code([Finding(Mark.OK, ""), Finding(mark, ""), Finding(Mark.OK, "")]) == code
    assert findings.exit_code([]) == 0


def test_an_error_of_the_run_keeps_its_remedy():
    assert findings.of_error(SimclrError("a: is b; c; do d")) == Finding(Mark.ERROR, "a: is b; c", "do d")
    assert findings.of_error(SimclrError("differs in:\n  x\nChoose")) == Finding(
        Mark.ERROR, "differs in:\n  x", "Choose"
    )
    assert findings.of_error(SimclrError("no remedy")).remedy


# ---- whole pages ----------------------------------------------------------------------------------


def test_a_sound_run(tmp_path):
    sections = run.examine(sound_config(), tmp_path / "run", splits=sound_splits())
    assert marks(sections) == 0, sections
    assert list(sections) == list(run.CHECKS)
    assert all(sections.values()) or [name for name, each in sections.items() if not each] == [
        "known pitfalls"
    ]
    assert not (tmp_path / "run").exists()
    assert list(tmp_path.iterdir()) == []
    text = findings.page("t", sections)
    for part in ("320 images to train on", "12 steps: 2.4 epochs of 5 steps", "rises to 0.003 over 2 steps",
                 "40 images to test on", "is new", "All is well"):  # fmt: skip
        assert part in " ".join(text.split())


def test_a_run_with_faults(tmp_path):
    """Of no labels, a batch of few images, and a tiny crop."""
    splits = Splits(sources.from_arrays(tiny_arrays(n=320)[0]), None)
    config = sound_config(train__batch_size=16, augment__crop_area=(0.08, 1.0))
    sections = run.examine(config, tmp_path / "run", splits=splits)
    assert marks(sections) == 1
    assert any("no labels" in text for text in found_in(sections, Mark.NOTE)["images"])
    assert len(found_in(sections, Mark.WARNING)["known pitfalls"]) == 2
    assert all(f.remedy for f in itertools.chain(*sections.values()) if f.mark >= Mark.WARNING)


def test_a_batch_that_does_not_fit_the_images(tmp_path):
    sections = run.examine(tiny_config(train__batch_size=128), tmp_path / "run", splits=tiny_splits())
    (line,) = found_in(sections, Mark.ERROR)["devices"]
    assert line.startswith("config.train.batch_size=128: larger than the training set (80 images)")
    assert sections["memory"] == sections["speed"] == sections["disk"] == []
    assert marks(sections) == 2


@pytest.mark.slow
def test_images_that_are_not_here(tmp_path):
    config = sound_config(data__source="tfds:cifar10", data__channels=3, augment__device="photometric")
    config.data.data_dir = str(tmp_path / "none")
    sections = run.examine(config, tmp_path / "run")
    assert sections["images"][0].mark == Mark.ERROR
    assert "50,000 images of 10 classes" in sections["images"][1].text
    assert found_in(sections, Mark.ERROR).keys() == {"images"}
    assert any("kNN" in f.text or "linear" in f.text for f in sections["what to expect"])
    config.data.source = "folder:" + str(tmp_path / "none")
    sections = run.examine(config, tmp_path / "run")
    assert [name for name, each in sections.items() if each] == ["images"]


def test_a_config_that_makes_no_sense_is_one_line(tmp_path):
    with pytest.raises(SimclrError, match=r"config\.loss\.temperature"):
        run.examine(tiny_config(loss__temperature=0.0), tmp_path / "run", splits=tiny_splits())


# ---- workdir and disk -----------------------------------------------------------------------------


def listing(folder):
    return {path: path.stat().st_mtime_ns for path in sorted(folder.rglob("*"))}


def test_a_workdir_with_a_run_stays_as_it_is(copy):
    workdir, config, splits = copy
    before = listing(workdir)
    done = run.examine(config, workdir, splits=splits)
    assert any("step 12 of 12 is done" in text for text in found_in(done, Mark.NOTE)["disk"])

    def error(config, splits):
        found = disk.check(plan_of(config, splits, workdir=workdir, first=12))
        return next(finding.text for finding in found if finding.mark == Mark.ERROR)

    assert "config.train.steps: 12 -> 20" in error(tiny_config(train__steps=20), splits)
    assert "training images, examples: 80 -> 96" in error(config, tiny_splits(n=96))
    assert listing(workdir) == before


@pytest.mark.parametrize(("host", "process", "mark"), [
    (None, os.getpid(), Mark.ERROR), (None, 2**30, None), ("elsewhere", 1, Mark.WARNING),
], ids=["here", "ended", "elsewhere"])  # fmt: skip
def test_a_run_under_way(tmp_path, host, process, mark):
    lease = {"owner": "x", "host": host or lock.socket.gethostname(), "pid": process}
    (tmp_path / lock.FILE).write_text(json.dumps(lease))
    found = disk.check(plan_of(sound_config(), workdir=tmp_path))
    assert max(finding.mark for finding in found) == (mark or Mark.NOTE)
    assert json.loads((tmp_path / lock.FILE).read_text()) == lease


def test_a_disk_without_room(tmp_path, monkeypatch):
    """It says what the run itself would say at its start, of checkpoints of 563 kB at steps 4, 8 and 12."""
    config, splits = sound_config(), sound_splits()
    plan = plan_of(config, splits, workdir=tmp_path / "run")
    monkeypatch.setattr(storage, "free", lambda path: 400_000)
    (found,) = (finding for finding in disk.check(plan) if finding.mark == Mark.ERROR)
    with pytest.raises(SimclrError) as ours:
        train.run(config, tmp_path / "run", splits=splits)
    assert found == findings.of_error(ours.value)
    assert "400.0 kB free, and 3 more checkpoints" in found.text
    for free, mark in ((2_000_000, Mark.WARNING), (4_000_000, Mark.OK)):
        monkeypatch.setattr(storage, "free", lambda path, free=free: free)
        found = list(disk.check(plan))[-1]
        assert found.mark == mark
        assert f"{storage.told(free)} are free" in found.text


# ---- memory ---------------------------------------------------------------------------------------

VARIANTS = {
    "host": {"augment__device": "none"},
    "from memory, 4 steps a call": {"augment__device": "all", "train__steps_per_call": 4},
    "microbatches": {"train__microbatch": 8},
    "supervised": {"task": "supervised"},
    "photometric": {"augment__device": "photometric"},
}


@pytest.mark.parametrize(
    "name", ["host", *(pytest.param(name, marks=pytest.mark.slow) for name in VARIANTS if name != "host")]
)
def test_memory_is_that_of_the_run(name, tmp_path, capsys):
    """The program from shapes is the run's own: the line that the run prints, to the byte."""
    config = tiny_config(mesh__devices=2, train__steps=1, **VARIANTS[name])
    splits = tiny_splits()
    plan = plan_of(config, splits, devices=2)
    line = announce.memory_line(plan.program.compiled)
    stats, needed = plan.program.compiled.memory_analysis(), memory.need(plan)
    assert needed.temporary == 2 * (
        stats.temp_size_in_bytes + stats.output_size_in_bytes - stats.alias_size_in_bytes
    )
    assert needed.total == 2 * (needed.total // 2)  # of two devices, which share the host's memory
    train.run(config, tmp_path / "run", splits=splits)
    assert line in capsys.readouterr().out


def test_bytes_of_the_arguments_are_those_of_arrays():
    """Two devices: parameters on both, half of the images and of the batch on each."""
    plan = plan_of(tiny_config(augment__device="all"), tiny_splits(n=81), devices=2)
    state = train.init_state(plan.built.task, plan.built.optimizer, 0, plan.mesh)
    (device, _) = plan.mesh.devices

    def share(tree):
        return sum(
            shard.data.nbytes
            for x in jax.tree.leaves(tree)
            for shard in x.addressable_shards
            if shard.device == device
        )

    batch = sharding.put_batch(next(plan.built.task.input(0)), plan.mesh)
    assert plan.arguments.bytes_a_device() == (share(state), share(batch))
    assert memory.need(plan).batch == 2 * 4 * share(batch)
    assert memory.need(plan).state == 2 * share(state)


@pytest.mark.slow
def test_a_step_that_does_not_fit_gets_a_microbatch_that_does(monkeypatch):
    config = tiny_config(train__batch_size=128, model__encoder="cnn", model__width=0.5)
    config.data.image_size = 24
    plan = plan_of(config, Splits(sources.from_arrays(*tiny_arrays(n=320, size=24)), None))
    takes = memory.need(plan).total
    has = int(0.7 * takes)
    monkeypatch.setattr(memory.memory_error, "host_free", lambda: has)
    (line, *_) = memory.check(plan)
    assert line.mark == Mark.ERROR
    assert line.text == (
        f"the step needs {storage.told(takes)} of this host's memory, which has {storage.told(has)}"
    )
    micro = int(line.remedy.split("microbatch=")[1].split()[0])
    assert 128 % micro == 0
    assert memory.need(plan.changed(microbatch=micro)).total <= memory.FULL * has
    monkeypatch.setattr(memory.memory_error, "host_free", lambda: int(1.05 * takes))
    assert next(memory.check(plan)).mark == Mark.WARNING
    monkeypatch.setattr(memory.memory_error, "host_free", lambda: 1000)
    (line, *_) = memory.check(plan)
    assert "lower config.train.batch_size=128" in line.remedy


def test_a_step_that_the_compiler_refuses(monkeypatch):
    """As libtpu says it."""
    said = "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 20.5G of 15.75G hbm."

    class Lowered:
        def compile(self):
            raise jax.errors.JaxRuntimeError(said)

    monkeypatch.setattr(ahead, "lower", lambda built, given: Lowered())
    plan = plan_of(sound_config(), topology="v5e:1x1")
    (line, *_) = memory.check(plan)
    assert line.text == "the step needs 22.0 GB on each chip, which has 17.2 GB"
    assert speed.time_step(plan).measured is None


# ---- speed ----------------------------------------------------------------------------------------


def test_the_first_batch_does_not_count(monkeypatch):
    """Batches that end 9 s, 9.5 s, ... after the beginning: 16 images each half second."""
    monkeypatch.setattr(speed, "LONGEST", 10.0)
    monkeypatch.setattr(speed, "ENOUGH", 4.0)
    clock = iter([0.0, 9.0, *np.arange(9.5, 99, 0.5)])
    monkeypatch.setattr(speed.time, "perf_counter", lambda: next(clock))
    read = speed.timed(iter([16] * 50), int)
    assert (read.rate, read.count) == (32.0, 16 + 3 * 16)  # until LONGEST is over
    clock = iter([0.0, 20.0])
    monkeypatch.setattr(speed.time, "perf_counter", lambda: next(clock))
    assert speed.timed(iter([16] * 50), int) == (0.8, 16)


@pytest.mark.parametrize(("rate", "device", "remedy"), [
    (1000.0, "none", "--config.augment.device=all"), (7000.0, "none", None),
])  # fmt: skip
def test_an_input_slower_than_the_step(rate, device, remedy):
    """A step of 10 ms takes 6,400 images/s."""
    plan = plan_of(sound_config(augment__device=device))
    (line,) = speed._input(plan, speed.Reading(rate, 100), 0.01)
    assert line.mark == (Mark.WARNING if remedy else Mark.OK)
    assert ("wait 84% of the time" in line.text) == bool(remedy)
    assert (remedy or "") in line.remedy
    (line,) = speed._duration(plan, speed.Step(0.01), speed.Reading(rate, 100))
    assert f"about {768 if remedy else 120} ms" in line.text


def test_the_input_is_read_and_the_step_made():
    step, read, whole = speed.check(plan_of(sound_config(augment__device="none")))
    assert step.text.startswith("a step takes")
    assert step.mark == whole.mark == Mark.OK
    assert "images/s, of" in read.text
    assert whole.text.startswith("the 12 steps take about")


def test_a_step_that_would_take_long_is_not_tried(monkeypatch):
    monkeypatch.setattr(speed, "CORE", 1.0)
    step = speed.time_step(plan_of(sound_config()))
    assert step.measured is None
    assert step.seconds > speed.PATIENCE
    assert "too long to try" in step.why


def test_the_least_time_by_a_chips_rates():
    plan = plan_of(sound_config(), topology="v5e:1x1")
    cost, step = plan.program.compiled.cost_analysis(), speed.time_step(plan)
    assert step.seconds == max(cost["flops"] / 197e12, cost["bytes accessed"] / 819e9)
    assert "or more, by the chip's published rates" in step.why


# ---- images ---------------------------------------------------------------------------------------


def test_a_folder_of_images(tmp_path):
    rng = np.random.default_rng(0)
    for name, count in (("a", 40), ("b", 30), ("c", 2)):
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(count):
            Image.fromarray(rng.integers(0, 256, (20, 30, 3), np.uint8)).save(
                tmp_path / "images" / name / f"{i}.png"
            )
    (tmp_path / "images" / "readme.txt").write_text("x")
    config = sound_config(
        data__source=f"folder:{tmp_path / 'images'}", data__image_size=24, train__batch_size=32,
        augment__device="photometric",
    )  # fmt: skip
    sections = run.examine(config, tmp_path / "run")
    warned = found_in(sections, Mark.WARNING)
    assert any("(c) to " in text and "too few to score it" in text for text in warned["images"])
    assert any("1 .txt" in text for text in found_in(sections, Mark.NOTE)["images"])
    assert any("20 pixels wide or high" in text for text in warned["known pitfalls"])
    assert any("images/s, of" in finding.text for finding in sections["speed"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images"]


def test_images_that_are_too_many_for_memory(tmp_path):
    Image.new("RGB", (20, 30)).save(tmp_path / "a.png")
    splits = data_splits.load(f"folder:{tmp_path}")
    plan = plan_of(sound_config(data__memory_gb=1e-9), splits)
    with pytest.raises(SimclrError, match=r"above config\.data\.memory_gb=1e-09"):
        list(images.check(plan))


def test_files_that_could_not_be_read():
    splits = sound_splits()
    splits.train.ledger.unreadable["a/1.png"] = "truncated"
    (found,) = speed.unreadable(plan_of(sound_config(), splits))
    assert (found.mark, "a/1.png (truncated)" in found.text) == (Mark.WARNING, True)


@pytest.mark.parametrize(("splits", "says"), [
    (Splits(sound_splits().train, None), "no test split"),
    (Splits(sound_splits().train, sources.from_arrays(tiny_arrays()[0])), "has no labels: no scores"),
    (sound_splits(), "40 images to test on (arrays): the encoder can be scored, to ± 8 %"),
])  # fmt: skip
def test_whether_it_can_be_scored(splits, says):
    assert any(says in finding.text for finding in images.check(plan_of(sound_config(), splits)))


# ---- pitfalls -------------------------------------------------------------------------------------

MANY = sources.Source("array", "tfds:x", 300_000, tuple(map(str, range(50))), None, None, "")
FIRES = {
    pitfalls.lars_on_a_small_batch: {"optimizer__name": "lars", "optimizer__scaling": "linear"},
    pitfalls.decay_too_small_for_adamw: {"optimizer__weight_decay": 1e-6},
    pitfalls.rate_too_high_for_adam: {"optimizer__learning_rate": 0.3, "optimizer__weight_decay": 1e-4},
    pitfalls.warm_up_takes_the_run: {"optimizer__warmup": duration(steps=6)},
    pitfalls.temperature_out_of_range: {"loss__temperature": 2.0},
    pitfalls.few_positives_for_supcon: {"loss__name": "supcon", "splits": Splits(MANY, None)},
    pitfalls.few_negatives: {"train__batch_size": 32},
    pitfalls.batch_of_the_whole_set: {"train__batch_size": 160},
    pitfalls.crops_of_few_pixels: {"augment__crop_area": (0.08, 1.0)},
    pitfalls.blur_of_small_images: {"augment__blur": 0.5},
    pitfalls.jitter_of_small_images: {"data__channels": 3},
    pitfalls.flipped_characters: {"data__source": "tfds:mnist"},
    pitfalls.images_made_larger: {"data__image_size": 16},
    pitfalls.stem_for_large_images: {"model__encoder": "resnet", "data__image_size": 32},
    pitfalls.norm_of_few_images: {"model__norm_groups": 8},
    pitfalls.numbers_of_another_size: {"model__dtype": "bfloat16"},
    pitfalls.more_neighbours_than_images: {"eval__knn__k": 200},
    pitfalls.scores_of_a_huge_set: {"eval__final": True, "splits": Splits(MANY, None)},
    pitfalls.wandb_is_missing: {"log__wandb": True},
}


def base(**overrides):
    """A run in which no pitfall is seen; one of each kind of override makes one."""
    splits = overrides.pop("splits", None)
    return plan_of(sound_config(**overrides), splits)


@pytest.fixture(scope="module")
def quiet():
    return base()


def test_every_pitfall_has_a_case():
    assert set(FIRES) == set(pitfalls.PITFALLS)
    assert all(pitfall.__doc__ for pitfall in pitfalls.PITFALLS)


@pytest.mark.parametrize("pitfall", FIRES, ids=lambda f: f.__name__)
def test_a_pitfall(pitfall, quiet, monkeypatch):
    monkeypatch.setattr(pitfalls.importlib.util, "find_spec", lambda name: None)
    assert pitfall(quiet) is None
    found = pitfall(base(**FIRES[pitfall]))
    assert found.mark >= Mark.NOTE
    assert bool(found.remedy) == (found.mark >= Mark.WARNING)


def test_edges_of_pitfalls():
    lars = {"optimizer__name": "lars", "optimizer__scaling": "linear"}
    big = sound_splits(n=1280)
    assert pitfalls.lars_on_a_small_batch(base(**lars, train__batch_size=256, splits=big)) is None
    assert pitfalls.lars_on_a_small_batch(base(**{**lars, "optimizer__scaling": "sqrt"})) is None
    for temperature, silent in ((0.05, True), (1.0, True), (0.04, False)):
        assert (pitfalls.temperature_out_of_range(base(loss__temperature=temperature)) is None) == silent
    assert pitfalls.flipped_characters(base(data__source="tfds:fashion_mnist")) is None
    letters = dataclasses.replace(sound_splits().train, classes=tuple("abcd"))
    assert pitfalls.flipped_characters(base(splits=Splits(letters, None)))
    assert pitfalls.norm_of_few_images(base(train__microbatch=8))
    assert pitfalls.numbers_of_another_size(base(model__dtype="float64")).mark == Mark.WARNING


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_the_shipped_recipes_know_the_pitfalls(path):
    config = load_config(path).get_config()
    if config.start.workdir or config.task != "pretrain":
        config.start.workdir, config.data.image_size, config.data.channels = "", 224, 3
    splits = images.stand_in(config) or ahead.unread(50_000)
    plan = plan_of(config, splits, here=False)
    skipped = (pitfalls.scores_of_a_huge_set,)  # builds the network
    seen = [pitfall(plan) for pitfall in pitfalls.PITFALLS if pitfall not in skipped]
    assert [found.text for found in seen if found and found.mark >= Mark.WARNING] == []


# ---- published ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("batch", "epochs", "near", "differs"), [
    (4096, 100, (4096, 100), []),
    (512, 90, (512, 100), ["90 epochs"]),
    (3000, 700, (2048, 800), ["batch 3,000", "700 epochs"]),
])  # fmt: skip
def test_the_nearest_published_setting(batch, epochs, near, differs):
    mine = {"source": "tfds:imagenet2012", "depth": 50, "batch": batch, "epochs": epochs}
    must, percents, _ = published.nearest(mine)
    assert percents == {"sgd": TABLE_B1[near[0]][near[1]]}
    assert published.differences(mine, must) == differs
    assert published.nearest({**mine, "source": "folder:x"}) is None


# ---- the command ----------------------------------------------------------------------------------


def command(*args):
    done = subprocess.run(
        [sys.executable, "-m", "simclr_jax.doctor", *args], capture_output=True, text=True, check=False
    )
    assert "Traceback" not in done.stderr
    return done.returncode, done.stdout, done.stderr


def test_the_command(tmp_path):
    tiny = ("--config.data.image_size=12", "--config.model.width=0.25", f"--workdir={tmp_path / 'run'}")
    code, out, err = command("--config=configs/quickstart.py", *tiny, "--config.compile_cache=")
    assert code == 1, out + err  # crops of 7 pixels
    assert out.startswith(f"configs/quickstart.py, to run in {tmp_path / 'run'}\n\ndevices\n")
    assert "1 warning: the run would go.\n" in out
    assert "compiling the train step" in err
    assert list(tmp_path.iterdir()) == []


def test_help_imports_no_jax():
    check = (
        "import sys; sys.argv = ['doctor', '--help']; import simclr_jax.doctor.__main__ as m\n"
        "try: m.parse(sys.argv)\nexcept SystemExit: sys.exit('jax' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert "--topology" in done.stdout


@pytest.mark.parametrize(("args", "says"), [
    ((), "--config is missing"),
    (("--config=configs/quickstart.py", "--config.loss.temperature=0"), "must be above 0"),
    (("--config=configs/quickstart.py", "--topology=v99:2x2"), "--topology=v99:2x2: must be one of v4, v5e"),
])  # fmt: skip
def test_mistakes(args, says):
    code, out, err = command(*args)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert says in err
    assert len(err.strip().splitlines()) == 1


def test_without_tpus_compiler(monkeypatch):
    monkeypatch.setattr(slices.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SimclrError, match=r'pip install "jax\[tpu\]"$'):
        slices.mesh_of("v5e:4x8")


@pytest.mark.slow
def test_a_slice_that_is_not_here(tmp_path):
    """Needs the libtpu that belongs to the installed jax."""
    pytest.importorskip("libtpu")
    config = sound_config()
    config.mesh.devices = 0
    sections = run.examine(config, tmp_path / "run", topology="v5e:2x2", splits=sound_splits())
    assert "v5e:2x2: 4 × TPU v5 lite" in sections["devices"][0].text
    assert "of 17.2 GB are left" in sections["memory"][0].text
