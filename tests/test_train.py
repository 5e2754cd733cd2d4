"""Whole runs: the same on any number of devices, the same after a kill, what they write and refuse."""

import contextlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from conftest import tiny_arrays, tiny_config, tiny_splits
from PIL import Image

from simclr_jax import checkpoint, metrics, results, sharding, train
from simclr_jax.config import SCHEMA
from simclr_jax.data import sources, splits
from simclr_jax.data.splits import Splits
from simclr_jax.errors import DivergedError, SimclrError
from simclr_jax.signals import Signals
from simclr_jax.step import batch_loss
from simclr_jax.tasks import create_task


def run(workdir, **overrides):
    force = overrides.pop("force", False)
    data = overrides.pop("splits", None) or tiny_splits()
    return train.run(tiny_config(**overrides), workdir, splits=data, force=force)


def rows(workdir):
    return metrics.read_rows(workdir)


def start(devices, **overrides):
    """(task, step function, state, batches) of a tiny run on a mesh of its own."""
    config, mesh = tiny_config(train__steps=40, **overrides), sharding.make_mesh(devices)
    task = create_task(config, tiny_splits(channels=3), mesh)
    optimizer, rate = train.build_optimizer(config, 80, 40, task)
    state = train.init_state(task, optimizer, config.seed, mesh)
    return task, train.make_step(task, optimizer, rate, config.seed), state, task.input(0), mesh


# ---- one device, eight devices --------------------------------------------------------------------


@pytest.mark.slow
def test_float64_losses_are_equal_on_one_and_eight_devices(tmp_path):
    with jax.enable_x64(True):
        for devices in (1, 8):
            run(tmp_path / str(devices), mesh__devices=devices, model__dtype="float64",
                train__steps=20, optimizer__learning_rate=3e-2)  # fmt: skip
    one, eight = (rows(tmp_path / str(devices)) for devices in (1, 8))
    assert len(one) == 20
    assert max(row["learning_rate"] for row in one) == pytest.approx(3e-2)  # the full rate
    for a, b in zip(one, eight, strict=True):
        for key in ("loss", "grad_norm", "probe_loss"):
            assert a[key] == pytest.approx(b[key], rel=1e-9)


@pytest.mark.slow
def test_float32_step_is_equal_on_one_and_eight_devices():
    small = {"model__encoder": "resnet", "model__depth": 18, "model__stem": "cifar"}
    small |= {"model__width": 0.125, "data__channels": 3}
    _, step_fn, state, batches, mesh = start(1, **small)
    step = jax.jit(step_fn, donate_argnums=0)
    for _ in range(20):
        state, _ = step(state, sharding.put_batch(next(batches), mesh))
    batch = next(batches)

    def gradients(devices):
        task, _, _, _, mesh = start(devices, **small)

        def loss(params, model_state, batch):
            outputs, _ = task.forward(params, model_state, batch, jax.random.key(0), 20)
            return sum(batch_loss(task, {}, {}, outputs, batch, 20)[0])

        place = lambda tree: jax.device_put(  # noqa: E731
            jax.device_get(tree), sharding.replicated(mesh)
        )
        return jax.jit(jax.value_and_grad(loss))(
            place(state.params), place(state.model_state), sharding.put_batch(batch, mesh)
        )

    (loss_1, grads_1), (loss_8, grads_8) = (jax.device_get(gradients(n)) for n in (1, 8))
    np.testing.assert_allclose(loss_1, loss_8, rtol=1e-6)
    scale = max(np.linalg.norm(g) for g in jax.tree.leaves(grads_1))
    for path, g in jax.tree_util.tree_leaves_with_path(grads_1):
        other = dict(jax.tree_util.tree_leaves_with_path(grads_8))[path]
        # The floor is for leaves whose gradient cancels to rounding noise.
        size = max(np.linalg.norm(g), 1e-3 * scale)
        assert np.linalg.norm(g - other) < 1e-4 * size, jax.tree_util.keystr(path)


def test_a_step_gathers_the_embeddings_once_and_moves_no_images():
    _, step_fn, state, batches, mesh = start(8)
    batch = sharding.put_batch(next(batches), mesh)
    program = jax.jit(step_fn, donate_argnums=0).lower(state, batch).compile().as_text()
    gathers = re.findall(r"= (\S+) all-gather(?:-start)?\(", program)
    assert [g.split("{")[0] for g in gathers] == ["f32[16,2,8]"]  # n × 2 embeddings of 8 numbers
    assert "all-to-all" not in program
    assert "collective-permute" not in program


# ---- killed and resumed -----------------------------------------------------------------------------


def command(workdir, npz, *more):
    return [sys.executable, "-m", "simclr_jax.main", "--config=configs/quickstart.py",
            f"--workdir={workdir}", f"--config.data.source=npz:{npz}",
            "--config.data.image_size=12", "--config.model.width=0.25",
            "--config.train.batch_size=16", "--config.train.steps=200", "--config.mesh.devices=1",
            "--config.checkpoint.every.steps=7", "--config.log.every.steps=1",
            "--config.eval.every.epochs=0", "--config.eval.final=False",
            "--config.eval.figures=False", *more]  # fmt: skip


def stop_somewhere(workdir, npz, how, seed):
    """Starts the command, sends the signal at a random step; (exit code, step at the time, output)."""
    before = rows(workdir)[-1]["step"] if rows(workdir) else 0
    target = before + random.Random(seed).randint(20, 60)
    process = subprocess.Popen(
        command(workdir, npz), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    for _ in range(60_000):
        seen = rows(workdir)
        if (seen and seen[-1]["step"] >= target) or process.poll() is not None:
            break
        time.sleep(0.002)
    process.send_signal(how)
    output = process.communicate(timeout=120)[0]
    return process.returncode, rows(workdir)[-1]["step"], output


def test_killed_and_resumed_equals_never_killed_to_the_bit(tmp_path):
    x, y = tiny_arrays(80)
    npz = tmp_path / "images.npz"
    np.savez(npz, train_images=x, train_labels=y, test_images=x, test_labels=y)
    seed = time.time_ns()
    print(f"random steps from seed {seed}")
    assert subprocess.run(command(tmp_path / "never", npz), check=False).returncode == 0

    killed = tmp_path / "killed"
    code, step, _ = stop_somewhere(killed, npz, signal.SIGKILL, seed)
    assert code == -signal.SIGKILL
    assert 20 <= step < 200
    code, step, output = stop_somewhere(killed, npz, signal.SIGTERM, seed + 1)
    assert code == 143, output
    assert "the same command goes on" in output
    assert checkpoint.Checkpoints(killed / "checkpoints").latest() == step < 200
    assert subprocess.run(command(killed, npz), check=False).returncode == 0

    names = ("never", "killed")
    a, b = (restore_numpy(tmp_path / name / "checkpoints") for name in names)
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for left, right in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(left, right)
    decisive = ("step", "loss", "grad_norm", "learning_rate", "probe_loss", "contrast_entropy")
    a, b = ([{k: row[k] for k in decisive} for row in rows(tmp_path / name)] for name in names)
    assert [row["step"] for row in a] == list(range(1, 201))
    assert a == b


def restore_numpy(directory):
    """Everything in the newest checkpoint."""
    import orbax.checkpoint as ocp

    step = checkpoint.Checkpoints(directory).latest()
    return {
        name: ocp.StandardCheckpointer().restore(directory / str(step) / name)
        for name in ("params", "model_state", "opt_state")
    }


@pytest.mark.slow
def test_a_checkpoint_of_one_device_goes_on_on_eight(tmp_path):
    run(tmp_path, train__steps=12)
    first = rows(tmp_path)
    os.rename(tmp_path / "checkpoints" / "12", tmp_path / "moved")
    summary = run(tmp_path, train__steps=12, mesh__devices=8)
    assert summary["resumed_from"] == 8
    for a, b in zip(first, rows(tmp_path), strict=True):
        assert a["step"] == b["step"]
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-4)


# ---- the workdir ------------------------------------------------------------------------------------


@pytest.mark.slow
def test_what_a_run_leaves_behind(tmp_path):
    config = tiny_config(train__steps=13, eval__final=True, eval__figures=True)
    config.eval.every.steps = 5
    config.log.every.steps = 4
    summary = train.run(config, tmp_path, splits=tiny_splits(n=240))
    assert json.loads((tmp_path / "summary.json").read_text()) == json.loads(json.dumps(summary))
    assert {p.name for p in (tmp_path / "figures").iterdir()} == {
        "views.png", "curves.png", "neighbours.png", "tsne.png"
    }  # fmt: skip
    for figure in (tmp_path / "figures").iterdir():
        assert Image.open(figure).size[0] > 300
    assert [row["step"] for row in rows(tmp_path)] == [4, 5, 8, 10, 12, 13]
    logged = {"step", "loss", "contrast_accuracy", "contrast_entropy", "learning_rate", "grad_norm",
              "images_per_second", "data_wait", "probe_loss", "probe_accuracy", "feature_std"}  # fmt: skip
    for row in rows(tmp_path):
        scored = row["step"] in (5, 10, 13)
        assert set(row) == logged | ({"knn_top1", "knn_top5"} if scored else set())
    assert json.loads((tmp_path / "config.json").read_text())["schema"] == SCHEMA
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["12", "13", "8"]
    alike = {f"{metric}_{name}" for metric in ("knn", "linear_all") for name in results.ALIKE}
    assert set(summary["scores"]) == {"knn", "linear_100", "linear_all"} | alike
    for by_contender in summary["scores"].values():
        assert set(by_contender) == {"simclr", "untrained", "raw_pixels"}
        assert all(0 <= value <= 1 for value in by_contender.values())
    assert summary["scores"]["knn"]["raw_pixels"] > 0.9  # the patterns are easy to tell apart
    assert {"data", "compile", "train", "total"} <= set(summary["seconds"])
    assert summary["versions"]["jax"] == jax.__version__


def test_tensorboard_reads_the_events(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run(tmp_path, train__steps=5)
    events = EventAccumulator(str(tmp_path)).Reload()
    assert [e.step for e in events.Scalars("loss")] == [1, 2, 3, 4, 5]
    expected = [row["loss"] for row in rows(tmp_path)]
    np.testing.assert_allclose([e.value for e in events.Scalars("loss")], expected, rtol=1e-6)


def test_another_config_is_refused_with_a_diff_and_loses_nothing(tmp_path):
    run(tmp_path, train__steps=4)
    before = (tmp_path / "config.json").read_text(), rows(tmp_path)
    with pytest.raises(SimclrError, match=r"config\.loss\.temperature: 0\.5 -> 0\.1") as error:
        run(tmp_path, train__steps=6, loss__temperature=0.1)
    assert "config.train.steps: 4 -> 6" in str(error.value)
    assert "--resume=force" in str(error.value)
    assert before == ((tmp_path / "config.json").read_text(), rows(tmp_path))
    summary = run(tmp_path, train__steps=6, loss__temperature=0.1, force=True)
    assert summary["resumed_from"] == 4
    assert [row["step"] for row in rows(tmp_path)] == list(range(1, 7))


@pytest.mark.slow
def test_nothing_trained_yet_is_not_refused(tmp_path):
    with pytest.raises(SimclrError, match="the images have 3"):
        run(tmp_path, splits=tiny_splits(channels=3), data__channels=2)
    assert run(tmp_path, splits=tiny_splits(channels=3), data__channels=3, train__steps=2)


def test_forcing_another_model_is_one_line(tmp_path):
    run(tmp_path, train__steps=2)
    with pytest.raises(SimclrError, match="does not hold this config's model"):
        run(tmp_path, train__steps=4, model__width=0.5, force=True)


def test_damaged_config_is_one_line(tmp_path):
    run(tmp_path, train__steps=2)
    (tmp_path / "config.json").write_text('{"sche')
    with pytest.raises(SimclrError, match=r"config\.json is damaged"):
        run(tmp_path, train__steps=2)


@pytest.mark.slow
def test_evaluating_a_finished_run_again_keeps_its_rates(tmp_path):
    first = run(tmp_path, train__steps=4)
    again = run(tmp_path, train__steps=4, eval__final=True)
    assert again["rates"] == first["rates"]
    assert again["seconds"]["compile"] == first["seconds"]["compile"]
    assert "scores" not in first
    assert again["scores"]["knn"]


def test_other_images_are_refused(tmp_path):
    run(tmp_path, train__steps=4)
    with pytest.raises(SimclrError, match="training images"):
        run(tmp_path, train__steps=4, splits=tiny_splits(seed=5))


@pytest.mark.slow
def test_free_fields_may_change(tmp_path):
    run(tmp_path, train__steps=8)
    before = rows(tmp_path)
    os.rename(tmp_path / "checkpoints" / "8", tmp_path / "8")
    summary = run(tmp_path, train__steps=8, checkpoint__keep=1, eval__batch_size=16, eval__crop=0.5,
                  log__tensorboard=False, data__data_dir="/moved", mesh__devices=2)  # fmt: skip
    assert summary["resumed_from"] == 4
    for a, b in zip(before, rows(tmp_path), strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-3)


@pytest.mark.slow
def test_rows_past_the_restored_step_are_cut(tmp_path):
    run(tmp_path, train__steps=12)
    whole = rows(tmp_path)
    os.rename(tmp_path / "checkpoints" / "12", tmp_path / "12")
    with (tmp_path / metrics.JSONL).open("a") as file:
        file.write('{"step": 13, "lo')  # a kill in the middle of a line
    run(tmp_path, train__steps=12)
    again = rows(tmp_path)
    assert [row["step"] for row in again] == list(range(1, 13))
    assert [row["loss"] for row in again] == [row["loss"] for row in whole]


@pytest.mark.slow
def test_not_a_number_ends_the_run(tmp_path):
    with pytest.raises(DivergedError, match=r"is (nan|inf) at step \d+: lower"):
        run(tmp_path, optimizer__name="sgd", optimizer__learning_rate=1e38, train__steps=40,
            model__projection="none")  # fmt: skip


# ---- data -----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_folder_with_bad_files_trains_and_names_them(tmp_path):
    images, labels = tiny_arrays(48, size=16, channels=3)
    for i, (image, label) in enumerate(zip(images, labels, strict=True)):
        path = tmp_path / "images" / f"class{label}" / f"{i:02}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    bad = {"class0/00.jpg": b"", "class1/01.jpg": b"text", "class2/02.jpg": b"\xff\xd8\xff\xe0cut"}
    for name, content in bad.items():
        (tmp_path / "images" / name).write_bytes(content)
    config = tiny_config(data__source=f"folder:{tmp_path / 'images'}", data__channels=3,
                         train__steps=6)  # fmt: skip
    data = splits.load(**config.data)
    summary = train.run(config, tmp_path / "run", splits=data)
    in_train = sorted(set(bad) & set(data.train.names))
    assert in_train
    assert summary["unreadable_files"] == {"count": len(in_train), "names": in_train}
    assert [row["step"] for row in rows(tmp_path / "run")] == list(range(1, 7))


@pytest.mark.slow
def test_no_labels_no_test_split(tmp_path):
    images, _ = tiny_arrays()
    summary = run(tmp_path, splits=Splits(sources.from_arrays(images), None), train__steps=3,
                  eval__final=True, eval__figures=True)  # fmt: skip
    assert "scores" not in summary
    assert "probe_loss" not in rows(tmp_path)[-1]
    assert (tmp_path / "figures" / "tsne.png").exists()


@pytest.mark.slow
def test_unlabelled_examples_among_labelled_ones(tmp_path):
    images, labels = tiny_arrays()
    labels[::3] = -1
    data = Splits(sources.from_arrays(images, labels), tiny_splits().test)
    summary = run(tmp_path, splits=data, train__steps=8, eval__final=True)
    assert summary["scores"]["linear_all"]["raw_pixels"] > 0.8


# ---- the compilation cache --------------------------------------------------------------------------


@pytest.fixture
def cache_everything():
    name = "jax_persistent_cache_min_compile_time_secs"
    jax.config.update(name, 0)
    yield
    jax.config.update(name, 0.5)


def test_the_cache_is_put_where_the_config_says(tmp_path, monkeypatch):
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    before = jax.config.jax_compilation_cache_dir
    train.use_compile_cache("")
    assert jax.config.jax_compilation_cache_dir == before
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    try:
        monkeypatch.delenv("XLA_FLAGS")
        train.use_compile_cache("auto")
        assert jax.config.jax_compilation_cache_dir == str(tmp_path / "simclr_jax" / "xla")
        monkeypatch.setenv("XLA_FLAGS", "--xla_gpu_deterministic_ops=true")
        train.use_compile_cache("auto")
        assert jax.config.jax_compilation_cache_dir.startswith(str(tmp_path / "simclr_jax" / "xla-"))
    finally:
        train.use_compile_cache(before)


def test_workdirs_that_cannot_be(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(SimclrError, match="is a file; give a folder"):
        run(tmp_path / "file")
    config = tiny_config(data__source=f"folder:{tmp_path}")
    with pytest.raises(SimclrError, match="lies in the folder of images"):
        train.run(config, tmp_path / "run", splits=tiny_splits())
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_an_interrupt_that_python_swallows_comes_again():
    """As it does when it comes while an object is finalised."""
    before = signal.getsignal(signal.SIGINT)
    with Signals() as signals:
        signals.check()
        with contextlib.suppress(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)
        with pytest.raises(KeyboardInterrupt):
            signals.check()
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.slow
@pytest.mark.usefixtures("cache_everything")
def test_second_compilation_comes_from_the_cache(tmp_path):
    seen = []
    jax.monitoring.register_event_listener(lambda event, **_: seen.append(event))
    jax.clear_caches()  # what earlier tests compiled was not worth keeping then
    run(tmp_path / "first", train__steps=2)
    jax.clear_caches()
    seen.clear()
    run(tmp_path / "second", train__steps=2)
    assert "/jax/compilation_cache/cache_hits" in seen
    assert "/jax/compilation_cache/cache_misses" not in seen
