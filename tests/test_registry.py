"""An encoder and objectives from outside the package: registered, trained, frozen, evaluated, loaded."""

import importlib.metadata
import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys
from conftest import tiny_arrays, tiny_config, tiny_splits

import simclr_jax
from simclr_jax import checkpoint, registry, sharding, step, train
from simclr_jax.config import adopt_start, checks, default, differences, load_config
from simclr_jax.errors import SimclrError
from simclr_jax.evaluate import run as evaluation
from simclr_jax.losses.objective import Objective, of_outputs
from simclr_jax.models import simclr
from simclr_jax.tasks import create_task


@pytest.fixture
def registered(monkeypatch):
    """The toys, until the test ends."""
    for name in ("ENCODERS", "OBJECTIVES"):
        where = getattr(registry, name)
        for toy in ("toy", "toy_nce", "toy_energy", "toy_follow", "toy_hidden"):
            monkeypatch.setitem(where, toy, None)
            del where[toy]
    toys.register()


def toy_config(**fields):
    return tiny_config(**{"model__encoder": "toy", "loss__name": "toy_nce", **fields})


def test_fields_are_checked_and_told(registered):
    assert default().model.toy.patch == 4
    for fields, told in (
        ({"model__toy__patch": 0}, r"config\.model\.toy\.patch=0: must be above 0"),
        ({"model__toy__patch": 5}, r"must divide config\.data\.image_size=12"),
        ({"model__toy__patch": 65}, "at most 64: it lies in an image"),
        ({"loss__toy_nce__start": 0.0}, r"config\.loss\.toy_nce\.start=0\.0: must be above 0"),
    ):
        with pytest.raises(SimclrError, match=told):
            checks.validate(toy_config(**fields))
    checks.validate(toy_config())


def test_names_of_the_package_are_its_own(registered):
    with pytest.raises(SimclrError, match="'resnet': is the name of one that simclr_jax has"):
        registry.add(registry.ENCODERS, "resnet", "toys:create")
    for name in ("probe", "average"):
        with pytest.raises(SimclrError, match=f"'{name}': is the name of something else in every run"):
            registry.add(registry.OBJECTIVES, name, "toys:objective")
    with pytest.raises(SimclrError, match="must be a word"):
        registry.add(registry.ENCODERS, "my-toy", "toys:create")


def test_what_is_not_chosen_never_differs(registered):
    old, new = tiny_config(), tiny_config(model__toy__patch=2, loss__toy_nce__start=0.5)
    assert differences(old, new) == []
    old, new = toy_config(), toy_config(model__toy__patch=2)
    assert differences(old, new) == ["config.model.toy.patch: 4 -> 2"]


@pytest.mark.slow
def test_trained_evaluated_and_loaded(registered, tmp_path):
    splits = tiny_splits()
    config = toy_config(eval__final=True, eval__linear__draws=2)
    summary = train.run(config, tmp_path / "run", splits=splits)
    assert "knn" in summary["scores"]
    _, params, _ = checkpoint.read_parameters(tmp_path / "run" / "checkpoints")
    assert params["objectives"]["toy_nce"]["log_temperature"] != np.log(np.float32(0.2))
    saved = checkpoint.read(tmp_path / "run" / "checkpoints", 12)
    assert saved.arrays["extra/toy_nce/count"] == 12

    encoder = simclr_jax.load(tmp_path / "run")
    images, _ = tiny_arrays()
    assert encoder(images).shape == (80, 24)
    assert encoder(images, endpoint="tokens").shape == (80, 3, 3, 24)
    made = evaluation.evaluate(tmp_path / "run", splits=splits, protocols=["knn", "health", "saliency"])
    assert {row["id"] for row in made["rows"]} >= {"knn_200", "knn_20"}
    assert "no picture" in made["protocols"]["saliency"]["skipped"]


@pytest.mark.slow
def test_the_same_after_a_stop_and_by_microbatches_is_exact(registered, tmp_path):
    """Parameters and state of an objective go on from a checkpoint to the bit."""
    splits = tiny_splits()
    train.run(toy_config(), tmp_path / "whole", splits=splits)
    train.run(toy_config(), tmp_path / "cut", splits=splits)
    for later in (8, 12):
        (tmp_path / "cut" / "checkpoints" / str(later)).rename(tmp_path / f"gone{later}")
    assert train.run(toy_config(), tmp_path / "cut", splits=splits)["resumed_from"] == 4
    a, b = (checkpoint.read(tmp_path / name / "checkpoints", 12).arrays for name in ("whole", "cut"))
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def test_a_checkpoint_without_the_state_that_an_objective_needs_is_refused(registered, tmp_path):
    splits = tiny_splits()
    train.run(tiny_config(model__encoder="toy"), tmp_path, splits=splits)
    with pytest.raises(SimclrError, match=r"extra/toy_nce/count: missing there"):
        train.run(toy_config(train__steps=16), tmp_path, splits=splits, force=True)


def test_two_terms_that_change_the_views_alike_are_refused(registered, monkeypatch):
    monkeypatch.setitem(registry.OBJECTIVES, "toy_veil", registry.OBJECTIVES["toy_hidden"])
    task = create_task(toy_config(loss__name="toy_hidden+toy_veil"), tiny_splits(), sharding.make_mesh(1))
    batch = next(task.input(0))
    with pytest.raises(SimclrError, match=r"toy_hidden and toy_veil both .* give 'dropped'; leave one out"):
        jax.eval_shape(task.forward, {}, {}, batch, jax.random.key(0), 0)


@pytest.mark.parametrize("name", ["toy_nce", "toy_energy", "nt_xent+toy_follow+toy_hidden"])
def test_microbatches_have_the_gradient_of_the_whole(registered, name):
    """In float64; the encoder has no BatchNorm, so that nothing but the sums differs. Weights are unequal."""
    with jax.enable_x64(True):
        fields = {"model__dtype": "float64", "model__projection": "none", "augment__device": "photometric"}
        fields |= {"augment__jitter": 0.0, "augment__blur": 0.0}  # in float32, whose rounding differs
        config = toy_config(**fields, loss__name=name)
        mesh = sharding.make_mesh(1)
        task = create_task(config, tiny_splits(), mesh)
        optimizer, _ = train.build_optimizer(config, 80, 12, task)
        state = train.init_state(task, optimizer, 0, mesh)
        batch = task.fetch(state.fixed, sharding.put_batch(next(task.input(0)), mesh))
        rng = jax.random.key(0)
        whole = jax.jit(lambda s, b: step.whole_gradient(task, s, b, rng))(state, batch)
        parts = jax.jit(lambda s, b: step.cached_gradient(task, s, b, rng, 4))(state, batch)
        for one, other in zip(jax.tree.leaves(whole[:2]), jax.tree.leaves(parts[:2]), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-10, atol=1e-13)
        assert np.any(whole[0]["encoder"]["patches"]["kernel"])
        extra = step.updated(task, state.params, state.extra, whole[3])
        again = step.updated(task, state.params, state.extra, parts[3])
        jax.tree.map(np.testing.assert_allclose, extra, again)


def test_terms_are_joined(registered, tmp_path):
    """Their losses add up, each with a state of its own; a run goes on to the bit; 8 devices as 1."""
    splits, name = tiny_splits(), "nt_xent+toy_follow+toy_hidden"
    config = toy_config(loss__name=name, augment__device="all")
    last = train.run(config, tmp_path / "whole", splits=splits)["last"]
    terms = [last[f"{term}_loss"] for term in registry.terms(name)]
    assert last["loss"] == pytest.approx(sum(terms), rel=1e-6)
    train.run(config, tmp_path / "cut", splits=splits)
    for later in (8, 12):
        (tmp_path / "cut" / "checkpoints" / str(later)).rename(tmp_path / f"gone{later}")
    assert train.run(config, tmp_path / "cut", splits=splits)["resumed_from"] == 4
    a, b = (checkpoint.read(tmp_path / name / "checkpoints", 12).arrays for name in ("whole", "cut"))
    assert a.keys() == b.keys()
    jax.tree.map(np.testing.assert_array_equal, a, b)
    moved, now = (a[f"{where}/encoder/body/kernel"] for where in ("extra/average", "params"))
    assert 0 < np.abs(moved - now).max() < 0.1
    many = toy_config(loss__name=name, augment__device="all", mesh__devices=8)
    eight = train.run(many, tmp_path / "eight", splits=splits)["last"]
    assert eight["loss"] == pytest.approx(last["loss"], rel=1e-4)


def test_what_microbatches_keep(registered):
    """A term that names no outputs gets all but what single examples need; features and the like always."""

    def kept(*objectives):
        task = create_task(toy_config(), tiny_splits(), sharding.make_mesh(1))
        task = task._replace(objectives=dict(enumerate(objectives)))
        return set(step._needed(task, dict.fromkeys(("features", "projection", "tokens", "view"))))

    rows = Objective(None, scope="rows", needs=("features", "tokens", "view"))
    assert kept(of_outputs(None), rows) == {"features", "projection"}
    assert kept(of_outputs(None, "projection"), rows) == {"projection"}
    assert kept(of_outputs(None, "tokens"), of_outputs(None), rows) == {"features", "projection", "tokens"}


def test_terms_that_do_not_go_together(registered, tmp_path):
    with pytest.raises(SimclrError, match=r"loss\.name='nt_xent\+nt_xent': must be terms joined by \+"):
        checks.validate(toy_config(loss__name="nt_xent+nt_xent"))
    with pytest.raises(SimclrError, match=r"loss\.name='nothing': must be one of nt_xent, .*"):
        checks.validate(toy_config(loss__name="nt_xent+nothing"))
    config = toy_config(loss__name="toy_hidden", augment__device="none")
    with pytest.raises(SimclrError, match=r"augment\.device='none': must be photometric or all"):
        train.run(config, tmp_path, splits=tiny_splits())


def test_frozen_by_stage(registered, tmp_path):
    splits = tiny_splits()
    train.run(toy_config(), tmp_path / "start", splits=splits)
    start = {"task": "supervised", "start__workdir": str(tmp_path / "start"), "finetune__after_block": 0}
    train.run(toy_config(**start), tmp_path / "tuned", splits=splits)
    before, after = (
        checkpoint.read_parameters(tmp_path / name / "checkpoints")[1]["encoder"]
        for name in ("start", "tuned")
    )
    np.testing.assert_array_equal(before["patches"]["kernel"], after["patches"]["kernel"])
    assert np.any(before["body"]["kernel"] != after["body"]["kernel"])
    everything = adopt_start(toy_config(**{**start, "finetune__after_block": 1000}))
    train.run(everything, tmp_path / "linear", splits=splits)
    kept = checkpoint.read_parameters(tmp_path / "linear" / "checkpoints")[1]["encoder"]
    jax.tree.map(np.testing.assert_array_equal, kept, before)
    _, learned, _ = checkpoint.read_parameters(tmp_path / "linear" / "checkpoints")
    assert np.any(learned["probe"]["dense"]["kernel"])  # it starts at zero: the classifier learns
    with pytest.raises(ValueError, match="no parameter 'head/kernel'"):
        simclr.stage_of(toys.create(toy_config().model, dtype="float32", param_dtype="float32"),
                        "encoder/head/kernel")  # fmt: skip


def test_loading_never_imports_what_a_config_names(registered, tmp_path, monkeypatch):
    train.run(toy_config(train__steps=4), tmp_path, splits=tiny_splits())
    monkeypatch.delitem(registry.ENCODERS, "toy")
    with pytest.raises(SimclrError, match=r"model\.encoder='toy': must be one of .*register another first"):
        simclr_jax.load(tmp_path)
    tree = json.loads((tmp_path / "config.json").read_text())
    tree["config"]["model"]["encoder"] = "os:system"
    (tmp_path / "config.json").write_text(json.dumps(tree))
    with pytest.raises(SimclrError, match="os:system"):
        load_config(tmp_path)


def test_an_installed_package_that_is_broken_ends_only_what_chooses_it(registered, monkeypatch):
    point = importlib.metadata.EntryPoint("broken", "no_such_module:ENTRY", "simclr_jax.encoders")
    monkeypatch.setattr(
        importlib.metadata, "entry_points", lambda group: [point] * group.endswith("encoders")
    )
    monkeypatch.setattr(registry, "BROKEN", {})
    registry.find_installed.cache_clear()
    try:
        checks.validate(tiny_config())
        with pytest.raises(SimclrError, match=r"'broken': no_such_module:ENTRY cannot be loaded"):
            checks.validate(tiny_config(model__encoder="broken"))
    finally:
        registry.find_installed.cache_clear()


def test_names_that_are_taken_are_refused(registered, monkeypatch):
    monkeypatch.setitem(registry.ENCODERS, "depth", registry.Entry("toys:create", toys.ENCODER_FACTS))
    with pytest.raises(SimclrError, match=r"config\.model\.depth: is a field"):
        default()
    with pytest.raises(SimclrError, match="'folder': is a source of images"):
        registry.add(registry.FEEDS, "folder", "toys:feed")


@pytest.mark.parametrize("devices", [1, 8])
def test_a_queue_stays_whole_on_every_device(registered, tmp_path, monkeypatch, devices):
    """State that is made of rows: the rows are split over the devices, the state is not."""
    monkeypatch.setitem(registry.OBJECTIVES, "toy_queue", registry.Entry("toys:queue"))
    train.run(toy_config(loss__name="toy_queue", mesh__devices=devices), tmp_path, splits=tiny_splits())
    saved = checkpoint.read(tmp_path / "checkpoints", 12).arrays
    assert saved["extra/toy_queue/queue"].shape == (48, 8)
    assert np.all(np.any(saved["extra/toy_queue/queue"], axis=1))


def test_a_batch_without_weight_adds_nothing(registered):
    task = create_task(toy_config(loss__name="toy_energy"), tiny_splits(), sharding.make_mesh(1))
    energy = task.objectives["toy_energy"]._replace(weight=lambda batch: jnp.zeros(len(batch["label"])))
    task = task._replace(objectives={"toy_energy": energy})
    batch, outputs = {"label": np.zeros(4, int)}, {"projection": jnp.ones((4, 2, 8))}
    (value,), _ = step.row_loss(task, {}, {}, outputs, batch, 0, {"toy_energy": jnp.float32(0)})
    assert value == 0


def test_entry_points_register(registered, monkeypatch):
    entry = registry.Entry("toys:create", toys.ENCODER_FACTS)
    point = importlib.metadata.EntryPoint("installed_toy", "toys:ENTRY", "simclr_jax.encoders")
    monkeypatch.setattr(toys, "ENTRY", entry, raising=False)

    def points(group):
        return [point] if group == "simclr_jax.encoders" else []

    monkeypatch.setattr(importlib.metadata, "entry_points", points)
    registry.find_installed.cache_clear()
    try:
        assert default().model.installed_toy.patch == 4
    finally:
        registry.ENCODERS.pop("installed_toy", None)
        registry.find_installed.cache_clear()


CONFIG = """
import toys
from conftest import tiny_config
toys.register()

def get_config():
    return tiny_config(model__encoder="toy", loss__name="toy_nce", data__source="builtin:mnist5k",
                       data__image_size=28, augment__device="all", train__steps=2)
"""


@pytest.mark.slow
def test_a_config_file_registers_on_the_command_line(tmp_path):
    (tmp_path / "mine.py").write_text(CONFIG)
    here = str(Path(__file__).parent)
    environment = {
        "PYTHONPATH": f"{here}:{Path(here).parent}",
        "PATH": "/usr/bin:/bin",
        "HOME": str(tmp_path),
    }
    run = {"cwd": tmp_path, "env": environment, "capture_output": True, "text": True, "check": False}
    done = subprocess.run(
        [sys.executable, "-m", "simclr_jax.main", "--config=mine.py", "--workdir=run",
         "--config.model.toy.hidden=8"], **run,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    command = [sys.executable, "-m", "simclr_jax.evaluate", "--workdir=run", "--protocols=health"]
    done = subprocess.run(command, **run)
    assert done.returncode == 2
    assert "register" in done.stderr
    assert "Traceback" not in done.stderr
    done = subprocess.run([*command, "--register=mine.py"], **run)
    assert done.returncode == 0, done.stderr
