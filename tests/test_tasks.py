"""Fine-tuning, linear evaluation, distillation, and an encoder loaded alone."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import tiny_arrays, tiny_config, tiny_splits

import simclr_jax
from simclr_jax import checkpoint, encoder, geometry, sharding, train
from simclr_jax.config import CONFIG_FILE, adopt_start, checks, default, duration, to_json
from simclr_jax.convert import workdir as conversion
from simclr_jax.data import host_augment, sources
from simclr_jax.data.splits import Splits
from simclr_jax.data.tf import load as load_tensorflow
from simclr_jax.errors import Preempted, SimclrError
from simclr_jax.models import simclr
from simclr_jax.step import batch_loss
from simclr_jax.tasks import create_task


def fine_tuning(pretrained, **overrides):
    fields = {
        "task": "supervised",
        "start__workdir": str(pretrained),
        "data__image_size": 0,
        "data__channels": 0,
        "augment__jitter": 0.0,
        "augment__grayscale": 0.0,
    }
    return tiny_config(**{**fields, **overrides})


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    """The workdir of a short run with a three-layer head."""
    workdir = tmp_path_factory.mktemp("runs") / "pretrained"
    train.run(tiny_config(model__projection_layers=3), workdir, splits=tiny_splits())
    return workdir


@pytest.fixture(scope="module")
def teacher(pretrained, tmp_path_factory):
    """The workdir of a run fine-tuned long enough to know its classes."""
    workdir = tmp_path_factory.mktemp("runs") / "teacher"
    config = fine_tuning(pretrained, train__steps=60, optimizer__learning_rate=1e-2, eval__final=True)
    config.log.every = duration(steps=20)
    summary = train.run(config, workdir, splits=tiny_splits(n=240))
    test = summary["test"]
    assert test["top1"] > 0.8
    assert test["balanced_accuracy"] == pytest.approx(test["top1"])  # ten images of each class
    assert test["auroc"] > 0.9
    return workdir


def variables_after(workdir):
    _, params, model_state = checkpoint.read_parameters(workdir / "checkpoints")
    return {"params": params, **model_state}


def moved(before, after):
    """Names of the variables that differ, encoder and projection only."""
    differ = set()
    for path, leaf in jax.tree_util.tree_leaves_with_path(after):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if "/probe/" not in name:
            source = before
            for key in path:
                source = source[key.key]
            if not np.array_equal(source, leaf):
                differ.add(name)
    return differ


@pytest.mark.parametrize("probe_layer", [0, 1])
def test_linear_evaluation_moves_nothing_but_the_classifier(pretrained, tmp_path, probe_layer):
    """Above all no BatchNorm statistics of the encoder; the head's layers below the classifier learn."""
    config = fine_tuning(pretrained, finetune__after_block=4, model__probe_layer=probe_layer)
    config.optimizer.weight_decay = 0.1  # decay does not touch what is frozen either
    train.run(config, tmp_path, splits=tiny_splits())
    before, after = variables_after(pretrained), variables_after(tmp_path)
    assert {name for name in moved(before, after) if "encoder" in name} == set()
    assert bool(moved(before, after)) == bool(probe_layer)
    assert np.any(after["params"]["probe"]["dense"]["kernel"])


def test_freezing_after_a_block(pretrained, tmp_path):
    train.run(fine_tuning(pretrained, finetune__after_block=1), tmp_path, splits=tiny_splits())
    differ = {n for n in moved(variables_after(pretrained), variables_after(tmp_path)) if "encoder" in n}
    assert differ == {
        f"{collection}/encoder/{layer}{i}/{leaf}"
        for i in (2, 3)
        for collection, layer, leaf in (
            ("params", "conv", "kernel"), ("params", "norm", "scale"), ("params", "norm", "bias"),
            ("batch_stats", "norm", "mean"), ("batch_stats", "norm", "var"),
        )
    }  # fmt: skip


def test_frozen_batch_norm_can_move_as_in_the_original(pretrained, tmp_path):
    config = fine_tuning(pretrained, finetune__after_block=4, finetune__frozen_norm=False)
    train.run(config, tmp_path, splits=tiny_splits())
    differ = moved(variables_after(pretrained), variables_after(tmp_path))
    assert {name.split("/")[0] for name in differ} == {"batch_stats"}
    assert len(differ) == 6


@pytest.mark.parametrize("zero", [True, False])
def test_the_classifier_is_really_new(pretrained, zero):
    """It was trained online while pretraining; another number of classes is no obstacle either."""
    images, labels = tiny_arrays(classes=7)
    config = adopt_start(fine_tuning(pretrained, finetune__zero_init=zero))
    mesh = sharding.make_mesh(1)
    task = create_task(config, Splits(sources.from_arrays(images, labels), None), mesh)
    optimizer, _ = train.build_optimizer(config, 80, 12, task)
    state = train.init_state(task, optimizer, 0, mesh)
    kernel = np.asarray(state.params["probe"]["dense"]["kernel"])
    assert kernel.shape[1] == 7
    assert np.any(kernel) != zero
    before = variables_after(pretrained)
    assert moved(before, {"params": state.params, **state.model_state}) == set()


def test_the_start_decides_the_architecture(pretrained):
    config = default()
    config.task, config.start.workdir, config.data.source = "supervised", str(pretrained), "arrays"
    config.data.image_size = config.data.channels = 0
    adopted = adopt_start(config)
    assert (adopted.model.encoder, adopted.model.width, adopted.model.projection_layers) == ("cnn", 0.25, 3)
    assert (adopted.data.image_size, adopted.data.channels) == (12, 1)
    checks.validate(adopted)
    with pytest.raises(SimclrError, match=r"model\.width=0\.5: .* has 0\.25; leave it out"):
        adopt_start(fine_tuning(pretrained, model__width=0.5))
    with pytest.raises(SimclrError, match=r"start\.workdir='/nowhere': no config\.json there"):
        adopt_start(fine_tuning("/nowhere"))


def test_evaluation_and_normalisation_are_the_starts(tmp_path):
    """A converted torchvision encoder's, say."""
    config = tiny_config(eval__resize="bilinear", eval__crop=0.9, data__mean=(0.4,), data__std=(0.3,))
    (tmp_path / CONFIG_FILE).write_text(to_json(config, {}))
    adopted = adopt_start(fine_tuning(tmp_path))
    assert (adopted.eval.resize, adopted.eval.crop) == ("bilinear", 0.9)
    assert (adopted.data.mean, adopted.data.std) == ((0.4,), (0.3,))
    assert adopt_start(fine_tuning(tmp_path, eval__crop=0.8)).eval.crop == 0.8


@pytest.mark.parametrize("task", ["supervised", "distill"])
def test_stopped_and_resumed_is_never_stopped(task, pretrained, teacher, tmp_path, monkeypatch):
    """To the bit; meanwhile the start is gone, and the teacher has trained on."""
    start, master = tmp_path / "start", tmp_path / "teacher"
    shutil.copytree(pretrained, start)
    shutil.copytree(teacher, master)
    if task == "supervised":
        config = fine_tuning(start, model__probe_layer=1, train__steps=9)
    else:
        config = tiny_config(task="distill", distill__teacher=str(master), train__steps=9)
    train.run(config, tmp_path / "whole", splits=tiny_splits())
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.Checkpoints, "preempted", lambda self, call: call == 4)
        with pytest.raises(Preempted):
            train.run(config, tmp_path / "parts", splits=tiny_splits())
    shutil.rmtree(start)
    shutil.copytree(master / "checkpoints" / "60", master / "checkpoints" / "61")
    summary = train.run(config, tmp_path / "parts", splits=tiny_splits())
    assert summary["resumed_from"] == 5
    whole, parts = variables_after(tmp_path / "whole"), variables_after(tmp_path / "parts")
    assert jax.tree.all(jax.tree.map(np.array_equal, whole, parts))
    if task == "distill":
        assert summary["config"]["distill"]["step"] == 60


@pytest.mark.parametrize("headless", [False, True])
def test_pretraining_goes_on_from_another_encoder(pretrained, tmp_path, headless):
    """With its projection head where it has one, with a new one where it has none."""
    start = pretrained
    if headless:
        config, _, step, variables = encoder.read(pretrained)
        del variables["params"]["projection"], variables["batch_stats"]["projection"]
        config.model.projection = "none"
        conversion.write(start := tmp_path / "headless", config, variables, step=step, origin="")
    config = adopt_start(tiny_config(start__workdir=str(start)))
    mesh = sharding.make_mesh(1)
    task = create_task(config, tiny_splits(), mesh)
    optimizer, _ = train.build_optimizer(config, 80, 12, task)
    state = train.init_state(task, optimizer, 0, mesh)
    differ = moved(
        variables_after(pretrained),
        {
            "params": {"encoder": state.params["encoder"]},
            "batch_stats": {"encoder": state.model_state["batch_stats"]["encoder"]},
        },
    )
    assert not differ
    same = np.array_equal(
        state.params["projection"]["dense0"]["kernel"],
        variables_after(pretrained)["params"]["projection"]["dense0"]["kernel"],
    )
    assert same != headless
    assert len(state.params["projection"]) == (4 if headless else 6)


def test_supervised_needs_labels(tmp_path):
    images, _ = tiny_arrays()
    bare = Splits(sources.from_arrays(images), None)
    with pytest.raises(SimclrError, match=r"supcon.*: needs labels"):
        create_task(tiny_config(loss__name="supcon"), bare, sharding.make_mesh(1))
    with pytest.raises(SimclrError, match="has no labels"):
        train.run(
            tiny_config(task="supervised"), tmp_path / "run", splits=Splits(sources.from_arrays(images), None)
        )
    assert not (tmp_path / "run" / CONFIG_FILE).exists()


@pytest.mark.slow
def test_distillation_without_labels_teaches(teacher, tmp_path):
    """A student of another width learns the classes from images whose labels it never sees."""
    labelled = tiny_splits(n=240)
    images, _ = tiny_arrays(n=240)
    config = tiny_config(
        task="distill", distill__teacher=str(teacher), train__steps=60, optimizer__learning_rate=1e-2,
        model__width=0.5, model__projection="none", eval__final=True,
        augment__jitter=0.0, augment__grayscale=0.0,
    )  # fmt: skip
    config.log.every = duration(steps=20)
    summary = train.run(config, tmp_path, splits=Splits(sources.from_arrays(images), labelled.test))
    assert summary["test"]["top1"] > 0.7
    assert summary["last"]["agreement"] > 0.7
    assert "teacher" not in variables_after(tmp_path)["params"]
    assert simclr_jax.load(tmp_path).classes == simclr_jax.load(teacher).classes


@pytest.mark.slow
def test_distillation_loss_mixes_labels_by_alpha(teacher, tmp_path):
    """Against NumPy, on logits of which half the images have no label."""
    images, labels = tiny_arrays()
    labels[::2] = -1
    config = tiny_config(task="distill", distill__teacher=str(teacher), distill__alpha=0.25,
                         distill__temperature=2.0, train__steps=1, mesh__devices=8)  # fmt: skip
    splits = Splits(sources.from_arrays(images, labels), None)
    task = create_task(config, splits, sharding.make_mesh(8))
    rng = np.random.default_rng(0)
    student, master = rng.standard_normal((2, 6, 4)).astype(np.float32)
    label = np.array([0, -1, 3, -1, 2, -1], np.int32)
    outputs = {"logits": jnp.asarray(student), "teacher": jnp.asarray(master)}
    total, metrics = batch_loss(task, {}, {}, outputs, {"label": label}, 0)

    def log_softmax(x):
        return x - np.log(np.exp(x.astype(np.float64)).sum(axis=1, keepdims=True))

    copied = -4 * np.mean(np.sum(np.exp(log_softmax(master / 2)) * log_softmax(student / 2), axis=1))
    known = -np.mean([log_softmax(student)[i, label[i]] for i in (0, 2, 4)])
    assert float(metrics["distillation_loss"]) == pytest.approx(copied, rel=1e-5)
    assert float(metrics["label_loss"]) == pytest.approx(known, rel=1e-5)
    assert float(total) == pytest.approx(0.25 * copied + 0.75 * known, rel=1e-5)
    summary = train.run(config, tmp_path, splits=splits)  # on eight devices
    assert np.isfinite(summary["last"]["loss"])


def test_a_teacher_that_does_not_fit_is_one_line(pretrained, teacher, tmp_path):
    def said(splits=None, **fields):
        with pytest.raises(SimclrError) as error:
            train.run(tiny_config(task="distill", **fields), tmp_path / "run", splits=splits or tiny_splits())
        assert "\n" not in str(error.value)
        return str(error.value)

    assert "config.distill.teacher is empty" in said()
    assert "distill.teacher='/nowhere': no config.json" in said(distill__teacher="/nowhere")
    assert "set --config.data.image_size=12" in said(distill__teacher=str(teacher), data__image_size=16)
    images, labels = tiny_arrays(classes=5)
    bare = Splits(sources.from_arrays(images), None)
    assert "no labels to mix in" in said(bare, distill__teacher=str(teacher), distill__alpha=0.5)
    five = Splits(sources.from_arrays(images, labels), None)
    assert "knows 4 classes" in said(five, distill__teacher=str(teacher))
    bare = tiny_config(model__probe=False, train__steps=1)
    train.run(bare, tmp_path / "bare", splits=tiny_splits())
    assert "has no classifier" in said(distill__teacher=str(tmp_path / "bare"))


# ---- simclr_jax.load ----------------------------------------------------------------------------


def test_a_loaded_encoder_is_the_runs(pretrained):
    """uint8, float, and any number of images at a time: the same features as the model's own."""
    loaded = simclr_jax.load(pretrained)
    images, _ = tiny_arrays(n=10)
    model = simclr.create(loaded.config.model, classes=4)
    expected = model.apply(loaded.variables, images.astype(np.float32) / 255, method="features")
    np.testing.assert_allclose(loaded(images), expected, atol=1e-5)
    np.testing.assert_allclose(loaded(images), loaded(images.astype(np.float64) / 255), atol=1e-6)
    np.testing.assert_allclose(loaded(images, batch_size=4), loaded(images), atol=1e-6)
    assert loaded.logits(images).shape == (10, 4)
    assert loaded(images, endpoint="projection_2").shape == (10, 128)
    older = simclr_jax.load(pretrained, step=4)
    assert older.step == 4
    assert not np.array_equal(older(images), loaded(images))


@pytest.mark.parametrize("method", ["bicubic", "bilinear"])
@pytest.mark.parametrize("size", [24, 40])
def test_preprocessing_is_the_evaluations(size, method):
    """Crop and resize in JAX as on the host in TensorFlow, which feeds the scores."""
    tf = load_tensorflow()
    image = np.random.default_rng(0).integers(0, 256, (61, 47, 3), np.uint8)
    host = host_augment.center_view(tf.constant(image), size, 0.875, method)
    ours = geometry.center_view(image[None].astype(np.float32) / 255, size, 0.875, method)[0]
    np.testing.assert_allclose(ours, host, atol=2e-5)


def test_load_and_call_say_what_is_wrong(pretrained, tmp_path):
    with pytest.raises(SimclrError, match=r"no config\.json there"):
        simclr_jax.load(tmp_path)
    with pytest.raises(SimclrError, match="no checkpoint 7; there are: 4, 8, 12"):
        simclr_jax.load(pretrained, step=7)
    loaded = simclr_jax.load(pretrained)
    image = np.zeros((1, 12, 12, 1), np.uint8)
    for images, message in (
        (image[0], r"must be \[n, h, w, 1\]"),
        (np.repeat(image, 3, axis=3), r"must be \[n, h, w, 1\]"),
        (image.astype(np.float32) + 255, r"must lie in \[0, 1\]"),
        (np.full((1, 12, 12, 1), np.nan), r"must lie in \[0, 1\]"),
        (image.astype(np.int64), "must be uint8 or float"),
    ):
        with pytest.raises(SimclrError, match=message):
            loaded(images)
    with pytest.raises(SimclrError, match="no endpoint 'h'; there are initial_conv"):
        loaded(image, endpoint="h")
