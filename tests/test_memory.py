"""Runs from memory: the same images in the same order, any number of steps a call, no TensorFlow."""

import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import tiny_arrays, tiny_config, tiny_splits
from PIL import Image

from simclr_jax import checkpoint, loop, metrics, sharding, train
from simclr_jax.data import decode, formats, memory, sources, splits
from simclr_jax.data.tf import load
from simclr_jax.errors import SimclrError
from simclr_jax.feeds.images import Images

ROOT = Path(__file__).parent.parent
PLAIN = {  # a view is the image itself
    "augment__crop_area": (1.0, 1.0), "augment__crop_aspect": (1.0, 1.0), "augment__flip": 0.0,
    "augment__jitter": 0.0, "augment__grayscale": 0.0,
}  # fmt: skip


def losses(workdir):
    return [row["loss"] for row in metrics.read_rows(workdir)]


def parameters(workdir, step=0):
    return checkpoint.read_parameters(workdir / "checkpoints", step)[1]


def assert_equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.slow
def test_the_same_images_as_through_tf_data(tmp_path):
    """Without augmentation both ways train on the same numbers; over an epoch's end, with 80 images of 16."""
    host = tiny_config(**PLAIN)
    held = tiny_config(**PLAIN, augment__device="all", mesh__devices=8)
    train.run(host, tmp_path / "host", splits=tiny_splits())
    train.run(held, tmp_path / "held", splits=tiny_splits())
    np.testing.assert_allclose(losses(tmp_path / "held"), losses(tmp_path / "host"), rtol=2e-5)


def test_gather_brings_every_row_to_its_device():
    images, labels = tiny_arrays(n=37)  # filled up to 40
    source = sources.from_arrays(images, labels)
    mesh = sharding.make_mesh(8)
    held = memory.put(source, mesh)
    assert held["image"].sharding.shard_shape(held["image"].shape)[0] == 5
    index = np.random.default_rng(0).permutation(37)[:16].astype(np.int32)
    batch = sharding.put_batch({"index": index, "position": np.arange(16, dtype=np.uint32)}, mesh)
    take = jax.jit(lambda h, b: memory.gather(h, b, mesh)).lower(held, batch).compile()
    found = take(held, batch)
    np.testing.assert_array_equal(found["image"], images[index])
    np.testing.assert_array_equal(found["label"], labels[index])
    assert found["image"].sharding.is_equivalent_to(sharding.by_batch(mesh), 4)
    assert "u8[37" not in take.as_text()  # no device ever sees all images
    assert "u8[40" not in take.as_text()


@pytest.mark.slow
def test_calls_of_any_length_make_the_same_run(tmp_path):
    """Logging cuts 12 steps into calls of other lengths; a call that is interrupted does too."""
    held = {"augment__device": "all", "train__steps_per_call": 5}
    config = tiny_config(**held, log__every__steps=100)
    train.run(config, tmp_path / "long", splits=tiny_splits())
    train.run(tiny_config(**held, log__every__steps=3), tmp_path / "short", splits=tiny_splits())
    assert_equal(parameters(tmp_path / "long"), parameters(tmp_path / "short"))
    assert [row["step"] for row in metrics.read_rows(tmp_path / "short")] == [3, 6, 9, 12]

    for step in (8, 12):  # as if killed after the save at 4
        (tmp_path / "short" / "checkpoints" / str(step)).rename(tmp_path / f"gone{step}")
    summary = train.run(tiny_config(**held, log__every__steps=3), tmp_path / "short", splits=tiny_splits())
    assert summary["resumed_from"] == 4
    assert_equal(parameters(tmp_path / "long"), parameters(tmp_path / "short"))


def test_plan_of_calls():
    assert list(loop.calls(0, 12, 5, [])) == [5, 5, 2]
    assert list(loop.calls(3, 12, 5, [4, 0, 6])) == [1, 2, 2, 4]
    assert list(loop.calls(7, 10, 1, [4])) == [1, 1, 1]
    assert list(loop.calls(5, 5, 4, [])) == []


@pytest.mark.slow
def test_supervised_from_memory(tmp_path):
    fields = {"augment__device": "all", "train__steps_per_call": 3, "eval__final": True}
    config = tiny_config(**fields, task="supervised", eval__figures=True)
    summary = train.run(config, tmp_path, splits=tiny_splits())
    assert summary["test"]["images"] == 40
    assert (tmp_path / "figures" / "views.png").exists()


@pytest.mark.parametrize("size", [24, 40])
def test_evaluation_sees_what_the_hosts_does(size):
    """Resized only up to 32 px, above it cropped too; every image once, the last batch filled up."""
    test = tiny_splits(size=48).test
    config = tiny_config(data__image_size=size, eval__batch_size=16)
    held = tiny_config(data__image_size=size, eval__batch_size=16, augment__device="all")
    host, ours = (Images(c, tiny_splits(size=48), None, 2) for c in (config, held))
    for expected, found in zip(host.every(test), ours.every(test), strict=True):
        mask = expected["mask"]
        np.testing.assert_array_equal(found["mask"], mask)
        np.testing.assert_array_equal(found["label"][mask], expected["label"][mask])
        np.testing.assert_allclose(
            ours.see(jnp.asarray(found["example"]))[mask], expected["example"][mask], atol=2e-6
        )


WITHOUT_TENSORFLOW = """
import importlib.machinery, runpy, sys
find = importlib.machinery.PathFinder.find_spec
absent = ("tensorflow", "tensorflow_datasets", "array_record")
hide = lambda name, *rest: None if name.split(".")[0] in absent else find(name, *rest)
importlib.machinery.PathFinder.find_spec = hide
sys.argv[0] = "simclr_jax.main"
runpy.run_module("simclr_jax.main", run_name="__main__", alter_sys=True)
"""


@pytest.mark.slow
def test_where_tensorflow_is_not_installed(tmp_path):
    """A run with its evaluations and TensorBoard's file; other sources say what is missing."""
    images, labels = tiny_arrays()
    np.savez(tmp_path / "tiny.npz", images=images, labels=labels)
    command = [
        sys.executable, "-c", WITHOUT_TENSORFLOW, "--config=configs/quickstart.py",
        f"--workdir={tmp_path}/run", f"--config.data.source=npz:{tmp_path}/tiny.npz",
        "--config.data.image_size=12",
        "--config.train.batch_size=16", "--config.train.steps=4", "--config.model.width=0.25",
        "--config.eval.every.steps=2", "--config.eval.linear.iterations=5", "--config.eval.linear.draws=1",
    ]  # fmt: skip
    done = subprocess.run(
        [*command, "--config.augment.device=all"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["steps"] == 4
    assert 0 <= summary["last"]["knn_top1"] <= 1
    assert any((tmp_path / "run").glob("events.out.tfevents.*"))
    refused = subprocess.run(
        [*command, "--config.augment.device=none", f"--workdir={tmp_path}/other"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert refused.returncode == 2
    assert "TensorFlow" in refused.stderr.splitlines()[-1]
    assert "config.augment.device=all" in refused.stderr.splitlines()[-1]
    assert "Traceback" not in refused.stderr


@pytest.fixture
def folder(tmp_path):
    """12 images of two classes and several sizes, and one that is none."""
    rng = np.random.default_rng(0)
    for i in range(12):
        where = tmp_path / "images" / "ab"[i % 2]
        where.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (40 + i, 60 - i, 3), np.uint8)
        Image.fromarray(pixels).save(where / f"{i:02}.png")
    (tmp_path / "images" / "a" / "05.png").write_bytes(b"no image")
    return tmp_path / "images"


@pytest.mark.slow
def test_a_folder_is_read_once(folder, tmp_path):
    found = splits.load(f"folder:{folder}", holdout=0.0)
    held, test = memory.hold(found, tiny_config(data__channels=3, data__stored_size=36).data)
    assert test is None
    assert (held.kind, held.size, held.classes) == ("array", 13, ("a", "b"))
    assert held.fingerprint == found.train.fingerprint
    images, labels = held.fetch(np.arange(13))
    assert images.shape == (13, 36, 36, 3)
    assert set(held.ledger.unreadable) == {"a/05.png"}
    assert np.bincount(labels).sum() == 13
    config = tiny_config(
        data__source=f"folder:{folder}", augment__device="all", data__channels=3, data__stored_size=36,
        data__holdout=0.0, train__batch_size=4, train__steps=3,
    )  # fmt: skip
    summary = train.run(config, tmp_path / "run")
    assert summary["unreadable_files"]["names"] == ["a/05.png"]


def test_what_does_not_fit_is_refused(folder, monkeypatch):
    found = splits.load(f"folder:{folder}")
    with pytest.raises(SimclrError, match=r"config\.data\.memory_gb=1e-05.*stored_size"):
        memory.hold(found, tiny_config(data__image_size=64, data__memory_gb=1e-5).data)
    mesh = sharding.make_mesh(1)
    small = type("Device", (), {"memory_stats": lambda self: {"bytes_limit": 1000}})()
    fake = type("Mesh", (), {"size": 1, "local_devices": [small]})()
    with pytest.raises(SimclrError, match=r"GiB of images a device, which has 0\.0 free"):
        memory.put(tiny_splits().train, fake)
    assert memory.put(tiny_splits().train, mesh)["label"].shape == (80,)


@pytest.mark.parametrize(("have", "want"), [(1, 1), (1, 3), (3, 1), (4, 4)])
def test_channels_as_tensorflow_converts_them(have, want):
    images, _ = tiny_arrays(channels=have)
    expected = np.stack([decode.to_channels(load().constant(image), want) for image in images])
    np.testing.assert_allclose(formats.to_channels(images, want), expected, atol=1)  # luma rounds


def test_channels_that_cannot_be_converted():
    with pytest.raises(SimclrError, match=r"config\.data\.channels=3"):
        formats.to_channels(np.zeros((2, 4, 4, 2), np.uint8), 3)
