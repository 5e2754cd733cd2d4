"""The config: what is refused and how, durations, config.json."""

import contextlib
import inspect
import json

import pytest
from conftest import tiny_config

from simclr_jax import augment, feeds, geometry, optim, registry
from simclr_jax import config as cfg
from simclr_jax.config import checks, fields, stored
from simclr_jax.data import host_augment
from simclr_jax.errors import SimclrError
from simclr_jax.feeds import images
from simclr_jax.losses import dense, negative, reconstruction, reconstruction_fields
from simclr_jax.models import projection, resnet, resnet_fields

BAD = {
    "task": "pretrian",
    "seed": -1,
    "data.source": "cifar10",
    "data.channels": 0,
    "data.image_size": 4,
    "data.mean": (0.5, 0.5),
    "data.holdout": 1.0,
    "augment.crop_area": (1.0, 0.08),
    "augment.crop_aspect": (1.0,),
    "augment.jitter": 1.5,
    "augment.brightness": "v3",
    "augment.crop_min_covered": 1.5,
    "eval.crop": 0.0,
    "model.encoder": "vgg",
    "model.depth": 20,
    "model.blocks": (2, 2),
    "model.variant": "timm",
    "model.dropblock_keep": (0.9,),
    "model.norm_groups": 3,
    "model.probe_layer": 3,
    "loss.semi_hard": True,
    "finetune.after_block": -2,
    "distill.alpha": 1.5,
    "optimizer.decay_exclude": (1, 2),
    "eval.resize": "nearest",
    "model.stem": "small",
    "model.dtype": "float16",
    "model.projection": "mlp",
    "model.projection_layers": 0,
    "loss.name": "triplet",
    "loss.temperature": 0.0,
    "optimizer.name": "adagrad",
    "optimizer.scaling": "cubic",
    "optimizer.learning_rate": 0.0,
    "optimizer.momentum": 1.0,
    "train.batch_size": 0,
    "mesh.devices": -1,
    "eval.knn.temperature": -0.1,
}


@pytest.mark.parametrize("field", BAD)
def test_bad_value_is_one_line_that_names_field_and_value(field):
    config = tiny_config(**{field.replace(".", "__"): BAD[field]})
    with pytest.raises(SimclrError) as error:
        checks.validate(config)
    text = str(error.value)
    assert text.startswith(f"config.{field}={BAD[field]!r}: must be ")
    assert "\n" not in text


def test_good_configs_pass():
    checks.validate(tiny_config())
    checks.validate(tiny_config(data__source="tfds:cifar10", data__image_size=32))


@pytest.mark.parametrize(
    ("name", "option", "value", "told"),
    [
        ("nt_xent+margin", "loss.semi_hard", True, "False but for"),
        ("debiased+margin", "loss.semi_hard", True, "False but for"),
        ("nt_xent+supcon", "loss.one_view", True, "False for loss.name='supcon'"),
        ("reconstruction", "loss.one_view", True, "False for loss.name='reconstruction'"),
        ("reconstruction", "augment.small_views", 2, "0 for loss.name='reconstruction'"),
        ("masked", "model.decoder.output", "logits", "unit for loss.name='masked'"),
        ("nt_xent", "train.batch_size", 1, "2 or more"),
        ("margin+reconstruction", "loss.semi_hard", True, ""),
        ("queue+nt_xent", "loss.one_view", True, ""),
        ("reconstruction", "train.batch_size", 1, ""),
    ],
)
def test_options_are_taken_by_every_term(name, option, value, told):
    config = tiny_config(loss__name=name, **{option.replace(".", "__"): value})
    with pytest.raises(SimclrError) if told else contextlib.nullcontext() as error:
        checks.validate(config)
    if told:
        assert str(error.value).startswith(f"config.{option}={value!r}: must be {told}")


@pytest.mark.parametrize("kind", ["tfds", "folder", "npz"])
def test_source_without_name_says_what_to_type(kind):
    with pytest.raises(SimclrError, match=f"--config.data.source={kind}:"):
        checks.validate(tiny_config(data__source=f"{kind}:"))


def test_image_too_small_for_the_stem():
    with pytest.raises(SimclrError, match="32 or more for the imagenet stem"):
        checks.validate(tiny_config(model__encoder="resnet", data__image_size=28))
    checks.validate(tiny_config(model__encoder="resnet", model__stem="cifar", data__image_size=28))


def test_unknown_field_and_wrong_type():
    with pytest.raises(SimclrError, match=r"no such field; did you mean config\.train\.batch_size"):
        cfg.check_field("train.batchsize")
    config = tiny_config().copy_and_resolve_references()
    with config.unlocked(), config.ignore_type():
        config.train.batch_size = "many"
    with pytest.raises(SimclrError, match=r"train\.batch_size='many': must be a whole number"):
        checks.validate(config)
    with config.unlocked(), config.ignore_type():
        config.train.batch_size = 16
        config.loss.temprature = 1.0
    with pytest.raises(SimclrError, match=r"config\.loss\.temprature: no such field; did you mean"):
        checks.validate(config)


def test_batch_must_fit_devices_and_data():
    config = tiny_config(train__batch_size=12)
    checks.validate_run(config, examples=100, devices=4)
    with pytest.raises(SimclrError, match=r"train\.batch_size=12: must be divisible by the 8 dev"):
        checks.validate_run(config, examples=100, devices=8)
    with pytest.raises(SimclrError, match=r"larger than the training set \(10 images\)"):
        checks.validate_run(config, examples=10, devices=1)


def test_names_are_those_of_the_constructors():
    assert set(fields.PROJECTIONS) == set(projection.PROJECTIONS)
    assert set(fields.RESIZES) == set(geometry.RESIZES)
    assert set(resnet_fields.REMAT_KEEPS) == set(resnet.REMAT_POLICIES)
    for module, names in (("contrast", dense.LOSSES), ("negative", negative.LOSSES)):
        target = f"simclr_jax.losses.{module}:create"
        assert {name for name, one in registry.OBJECTIVES.items() if one.target == target} == set(names)
    assert set(reconstruction_fields.LOSSES) == set(reconstruction.LOSSES)
    assert set(fields.OPTIMIZERS) == set(optim.OPTIMIZERS)
    for where in (registry.ENCODERS, registry.OBJECTIVES, registry.TASKS):
        for one in where.values():
            assert callable(registry.resolve(one.target))
    for one in registry.FEEDS.values():
        assert isinstance(registry.resolve(one.target), feeds.Kind)
    for scaling in fields.SCALINGS:
        optim.scaled_rate(1.0, scaling, 64)


def test_total_steps_are_the_originals():
    # CIFAR-10 1000 epochs at 512, ImageNet 100 and 800 epochs at 4096, and their warm-ups
    for n, epochs, batch, warmup, total, warm in (
        (50_000, 1000, 512, 10, 97_657, 976),
        (1_281_167, 100, 4096, 10, 31_279, 3127),
        (1_281_167, 800, 4096, 40, 250_228, 12_511),
    ):
        config = tiny_config(train__steps=0, train__epochs=float(epochs), train__batch_size=batch)
        assert cfg.total_steps(config, n) == total
        assert cfg.count_steps(cfg.duration(epochs=warmup), n, batch) == warm


def test_durations():
    assert cfg.count_steps(cfg.duration(steps=7, epochs=3), 100, 10) == 7
    assert cfg.count_steps(cfg.duration(examples=101), 100, 10) == 11
    assert cfg.every_steps(cfg.duration(epochs=2), 109, 10) == 20
    assert cfg.every_steps(cfg.duration(epochs=0.01), 109, 10) == 1
    assert cfg.every_steps(cfg.duration(), 109, 10) == 0


def test_json_round_trip():
    config = tiny_config(augment__crop_area=(0.2, 0.9), data__data_dir="/data")
    again, data = cfg.from_json(cfg.to_json(config, {"examples": 5}))
    assert again.to_dict() == config.to_dict()
    assert data == {"examples": 5}


def test_differences_name_only_what_decides_the_result():
    old = tiny_config()
    new = tiny_config(log__wandb=True, eval__batch_size=64, checkpoint__keep=9, mesh__devices=8,
                      data__data_dir="/elsewhere", loss__temperature=0.25)  # fmt: skip
    assert cfg.differences(old, new) == ["config.loss.temperature: 0.5 -> 0.25"]


def test_renamed_fields():
    """An older config.json is read under today's names; on a command line the new name is told."""
    tree = json.loads(cfg.to_json(tiny_config(), {}))
    tree["config"]["augment"]["scaling"] = [0.8, 1.2]
    del tree["config"]["augment"]["zoom"]
    tree |= {"schema": 5, "config": {**tree["config"], "task": "heads"}}
    old, _ = cfg.from_json(json.dumps(tree))
    assert (old.augment.zoom, old.task) == ((0.8, 1.2), "linear_sweep")
    with pytest.raises(SimclrError, match=r"config\.augment\.scaling: is config\.augment\.zoom now"):
        cfg.check_field("augment.scaling")


def test_more_frozen_stages_than_there_are_mean_all():
    four, everything = (
        {"finetune__after_block": stage} for stage in (4, 1000)
    )  # configs/linear.py's, then and now
    for encoder in ("cnn", "resnet"):
        old, new = (tiny_config(model__encoder=encoder, **stage) for stage in (four, everything))
        assert cfg.differences(cfg.from_json(cfg.to_json(old, {}))[0], new) == []
    old, new = (tiny_config(model__encoder="vit", **stage) for stage in (four, everything))
    assert cfg.differences(old, new) == ["config.finetune.after_block: 4 -> 12"]


def test_older_workdir_keeps_its_behaviour(monkeypatch):
    """A field added later, whose default changed the behaviour, has its old value in old workdirs."""
    tree = json.loads(cfg.to_json(tiny_config(), {}))
    del tree["config"]["augment"]["crop_min_covered"]
    monkeypatch.setattr(stored, "OLD_BEHAVIOUR", {"augment.crop_min_covered": 0.25})
    old, _ = cfg.from_json(json.dumps(tree))
    assert old.augment.crop_min_covered == 0.25
    now = tiny_config()
    cfg.adopt_old_behaviour(now, json.dumps(tree))
    assert cfg.differences(old, now) == []
    chosen = tiny_config(augment__crop_min_covered=0.5)  # by the user: kept, and so refused
    cfg.adopt_old_behaviour(chosen, json.dumps(tree))
    assert len(cfg.differences(old, chosen)) == 1


def test_augmentation_defaults_are_those_of_the_functions():
    fields = images.crops(cfg.default(), 2).options._asdict()
    of_sizes = {"device", "small_views", "small_size", "small_area"}
    assert {*cfg.default().augment} == {*fields} | of_sizes
    assert host_augment.Options(**fields) == host_augment.Options()
    defaults = {**inspect.signature(augment.random_views).parameters}
    defaults |= inspect.signature(augment._coloured).parameters
    assert {name: defaults[name].default for name in fields} == fields
    assert set(images.PHOTOMETRIC) <= set(inspect.signature(augment._coloured).parameters)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"schema": 1}', '{"schema": 1, "config": 3}'])
def test_damaged_json(text):
    with pytest.raises(SimclrError, match=r"config\.json"):
        cfg.from_json(text)


def test_json_of_a_newer_version():
    with pytest.raises(SimclrError, match="update simclr_jax"):
        cfg.from_json(json.dumps({"schema": 99, "config": {}, "data": {}}))
