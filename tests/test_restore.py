"""Task restore: training, freezing, resuming, devices, and the checks of its fields."""

import runpy

import jax
import numpy as np
import pytest
from conftest import tiny_config, tiny_splits, untrained_run

import simclr_jax
from simclr_jax import checkpoint, run_summary, sharding, train
from simclr_jax.config import CONFIG_FILE, adopt_start, checks, duration, to_json, told_of_start
from simclr_jax.errors import Preempted, SimclrError
from simclr_jax.losses import reconstruction
from simclr_jax.step import make_gradient
from simclr_jax.tasks import create_task
from simclr_jax.tasks.restore import TEST_KEY, keys_of


def restoring(**overrides):
    fields = {
        "task": "restore",
        "model__decoder__output": "residual",
        "model__decoder__skips": True,
        "model__decoder__norm": "none",
        "augment__jitter": 0.0,
        "augment__grayscale": 0.0,
        "augment__resize": "none",
        "eval__resize": "none",
        "data__image_size": 8,
        "restore__crops": 2,
    }
    return tiny_config(**{**fields, **overrides})


def variables_after(workdir):
    _, params, model_state = checkpoint.read_parameters(workdir / "checkpoints")
    return {"params": params, **model_state}


def equal(a, b, atol=0.0):
    close = jax.tree.map(lambda x, y: np.allclose(x, y, rtol=0, atol=atol), a, b)
    return jax.tree.all(close)


@pytest.fixture(scope="module")
def restored(tmp_path_factory):
    """(workdir, summary) of a short run that learns."""
    workdir = tmp_path_factory.mktemp("runs") / "restored"
    config = restoring(
        train__steps=60, eval__final=True, eval__figures=True, restore__sigma=50.0, checkpoint__keep=1
    )
    config.log.every = config.checkpoint.every = duration(steps=30)
    config.eval.every = duration(steps=30)
    return workdir, train.run(config, workdir, splits=tiny_splits(n=240))


def test_it_learns_to_denoise(restored):
    """From the input itself, where the residual begins."""
    workdir, summary = restored
    test = summary["test"]
    assert test["input_psnr"] == pytest.approx(20 * np.log10(255 / 50), abs=0.3)  # not clipped
    assert test["psnr"] > test["input_psnr"] + 0.5
    assert test["psnr_gain"] == pytest.approx(test["psnr"] - test["input_psnr"], abs=1e-4)
    assert test["psnr_low"] < test["psnr"] < test["psnr_high"]
    assert test["images"] == 40
    assert summary["last"]["test_psnr"] == pytest.approx(test["psnr"], abs=1e-4)
    assert (workdir / "figures" / "restored.png").exists()


def test_its_encoder_is_one_like_others(restored):
    found = simclr_jax.load(restored[0])
    features = found(np.zeros((3, 8, 8, 1), np.uint8))
    assert features.shape == (3, 32)


@pytest.mark.parametrize("corruption", ["jpeg", "holes"])
def test_the_loss_is_the_formula(corruption):
    """Of one untrained step: the residual is 0, so the loss is the distance of the corrupted crops."""
    config = restoring(restore__corruption=corruption, restore__loss="laplace")
    checks.validate(config)
    splits, mesh = tiny_splits(), sharding.make_mesh(1)
    task = create_task(config, splits, mesh)
    optimizer, _ = train.build_optimizer(config, 80, 12, task)
    state = train.init_state(task, optimizer, 0, mesh)
    batch = next(task.input(0))
    outputs, _ = jax.jit(task.forward)(state.params, state.model_state, batch, jax.random.key(0), 0)
    assert np.array_equal(outputs["clean"], batch["views"])
    assert np.allclose(outputs["restored"], outputs["spoilt"])
    value, metrics = task.objectives["restoration"].loss({}, {}, outputs, batch, 0)
    apart = np.abs(np.asarray(outputs["spoilt"], np.float64) - batch["views"])
    inside = np.broadcast_to(outputs["known"] == 0, apart.shape)
    by_hand = apart.reshape(16, -1).mean(axis=1)
    if corruption == "holes":  # there alone
        crops = [
            [a[i].mean() if i.any() else 0.0 for a, i in zip(*pair, strict=True)]
            for pair in zip(apart, inside, strict=True)
        ]
        by_hand = np.mean(crops, axis=1)
        assert np.all(apart[~inside] == 0)
    else:
        assert not inside.any()
    assert np.allclose(value, by_hand, atol=1e-6)
    assert np.all(metrics["psnr"] >= metrics["input_psnr"] - 1e-4)  # clipped to [0, 1]
    if corruption == "holes":  # known pixels stay as they are, whatever the network says of them
        wrong = {**outputs, "restored": np.where(inside, outputs["restored"], 0.0)}
        found = task.objectives["restoration"].loss({}, {}, wrong, batch, 0)[1]
        assert np.array_equal(found["psnr"], metrics["psnr"])


def test_the_recipe_starts_from_any_run(tmp_path):
    """Of a default pretraining run: its encoder, without its head; and without a start by itself."""
    recipe = runpy.run_path("configs/restore.py")["get_config"]()
    recipe.data.source, recipe.data.channels = "arrays", 1
    checks.validate(adopt_start(recipe))
    for encoder in ("cnn", "resnet"):
        given, start = recipe.copy_and_resolve_references(), tmp_path / encoder
        start.mkdir()
        other = tiny_config(model__encoder=encoder, model__depth=18, model__stem="cifar")
        if encoder == "cnn":
            untrained_run(start, other)
        else:
            (start / CONFIG_FILE).write_text(to_json(other, {}))
        given.start.workdir = str(start)
        config = adopt_start(given)
        checks.validate(config)
        assert (config.model.encoder, config.model.width) == (encoder, 0.25)
        assert (config.model.projection, config.model.decoder.output) == ("none", "residual")
        told = told_of_start(given, config)
        assert told == (
            [] if encoder == "cnn" else [f"the encoder is that of {start}: model.encoder='resnet'"]
        )
    given.start.workdir = str(tmp_path / "cnn")
    task = create_task(config := adopt_start(given), tiny_splits(size=64), mesh := sharding.make_mesh(1))
    state = train.init_state(task, train.build_optimizer(config, 80, 4, task)[0], 0, mesh)
    assert equal(variables_after(tmp_path / "cnn")["params"]["encoder"], state.params["encoder"])


def test_a_decoder_that_begins_anew_is_told(tmp_path):
    other = tiny_config(loss__name="nt_xent+reconstruction", model__decoder__channels=16)
    (tmp_path / CONFIG_FILE).write_text(to_json(other, {}))
    fields = {"loss__name": "reconstruction", "model__decoder__channels": 8}
    given = tiny_config(start__workdir=str(tmp_path), **fields)
    config = adopt_start(given)  # no contradiction
    assert config.model.decoder.channels == 8
    assert told_of_start(given, config) == ["the decoder of loss.name=reconstruction begins anew"]


@pytest.mark.slow
def test_the_encoder_of_another_run_stands_still(tmp_path):
    start = tmp_path / "start"
    train.run(tiny_config(train__steps=4), start, splits=tiny_splits())
    fields = {"start__workdir": str(start), "data__channels": 0, "train__steps": 4}
    frozen = restoring(**fields, finetune__after_block=1000)
    train.run(frozen, tmp_path / "frozen", splits=tiny_splits())
    train.run(restoring(**fields), tmp_path / "tuned", splits=tiny_splits())
    before = variables_after(start)
    after, tuned = (variables_after(tmp_path / name) for name in ("frozen", "tuned"))
    for collection in ("params", "batch_stats"):
        assert equal(before[collection]["encoder"], after[collection]["encoder"])
        assert not equal(before[collection]["encoder"], tuned[collection]["encoder"])
    assert np.any(after["params"]["decoder"]["out"]["kernel"])
    assert {*after["params"]} == {"encoder", "decoder"}
    # A restorer can start from another one, decoder and all.
    again = adopt_start(restoring(start__workdir=str(tmp_path / "tuned"), restore__corruption="jpeg"))
    mesh = sharding.make_mesh(1)
    task = create_task(again, tiny_splits(), mesh)
    state = train.init_state(task, train.build_optimizer(again, 80, 4, task)[0], 0, mesh)
    assert equal(tuned["params"], state.params)


@pytest.mark.slow
@pytest.mark.parametrize("device", ["none", "all"])
def test_stopped_and_resumed_is_never_stopped(device, tmp_path, monkeypatch):
    config = restoring(augment__device=device, train__steps=9, restore__sigma_range=(5.0, 50.0))
    train.run(config, tmp_path / "whole", splits=tiny_splits())
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.Checkpoints, "preempted", lambda self, call: call == 4)
        with pytest.raises(Preempted):
            train.run(config, tmp_path / "parts", splits=tiny_splits())
    assert train.run(config, tmp_path / "parts", splits=tiny_splits())["resumed_from"] == 5
    assert equal(variables_after(tmp_path / "whole"), variables_after(tmp_path / "parts"))


def test_eight_devices_and_microbatches_make_the_same_step():
    """Of a frozen encoder, whose BatchNorm stands still; the decoder has none."""
    found, state = {}, None
    for devices, micro in ((1, 0), (8, 0), (1, 4)):
        config = restoring(mesh__devices=devices, train__microbatch=micro, finetune__after_block=1000)
        mesh = sharding.make_mesh(devices)
        task = create_task(config, tiny_splits(), mesh)
        if state is None:
            optimizer, _ = train.build_optimizer(config, 80, 12, task)
            state = jax.device_get(train.init_state(task, optimizer, 0, mesh))
            last = state.params["decoder"]["out"]
            last["kernel"] = last["kernel"] + np.float32(0.1)  # it starts at 0, and would hide the rest
        gradient = jax.jit(make_gradient(task, 0, 16 // micro if micro else 1))
        batch = sharding.put_batch(next(task.input(0)), mesh)
        gradients, metrics, *_ = gradient(sharding.put_same(state, sharding.replicated(mesh)), batch)
        found[devices, micro] = jax.device_get((gradients, metrics))
    whole = found.pop((1, 0))
    assert max(np.abs(x).max() for x in jax.tree.leaves(whole[0]["decoder"])) > 1e-3
    for other in found.values():
        assert equal(whole, other, atol=2e-5)


def test_crops_of_one_image_have_noise_of_their_own():
    config = restoring()
    keys = jax.random.key_data(keys_of(config, np.arange(3, dtype=np.uint32), 2))
    tests = jax.random.key_data(keys_of(config, np.arange(3, dtype=np.uint32), 2, TEST_KEY))
    assert len({tuple(key) for key in np.concatenate([keys, tests])}) == 12


def test_fields_that_do_not_fit():
    for overrides, told in (
        ({"restore__corruption": "rain"}, r"restore\.corruption='rain': must be one of gaussian"),
        ({"restore__sigma_range": (5.0, 1.0)}, r"restore\.sigma_range=\(5\.0, 1\.0\): must be \(\) or two"),
        ({"restore__scale": 3}, r"restore\.scale=3: must be one of 2, 4"),
        ({"restore__loss": "bernoulli"}, r"restore\.loss='bernoulli': must be bernoulli for .*logits"),
        ({"restore__corruption": "jpeg", "data__channels": 2}, r"data\.channels=2: must be 1 or 3"),
        ({"restore__corruption": "holes", "restore__share": 1.0}, r"share=1\.0: must be above 0 and below 1"),
        ({"augment__small_views": 2}, r"small_views=2: must be 0 for task='restore'"),
        (
            {"data__source": "folder:x", "augment__device": "all"},
            "resize='none': must be another for",
        ),
        ({"data__source": "table:x.csv", "model__encoder": "mlp"}, r"data\.source='table:x.csv': must hold"),
    ):
        with pytest.raises(SimclrError, match=told):
            checks.validate(restoring(**overrides))
    checks.validate(restoring(model__probe=False, loss__name="nt_xent+supcon", loss__semi_hard=True))


def test_losses_named_in_the_config_are_those_there_are():
    from simclr_jax.config import restore_fields

    assert set(restore_fields.LOSSES) == set(reconstruction.LOSSES)


def test_a_run_ends_with_its_scores():
    test = {"images": 1200}
    numbers = {"psnr": (29.034, 28.1, 29.9), "psnr_gain": (8.8, 8.1, 9.5), "ssim": (0.8, 0.7, 0.9)}
    for name, values in numbers.items():
        test |= dict(zip((name, f"{name}_low", f"{name}_high"), values, strict=True))
    assert run_summary.restored(test) == [
        "central crops of 1,200 test images: PSNR 29.03 (28.10 to 29.90) dB, +8.80 (+8.10 to +9.50) above "
        "the corrupted ones; SSIM 0.800 (0.700 to 0.900)"
    ]
    few = {"images": 3, "psnr": 29.034, "psnr_gain": 8.8, "ssim": 0.8}
    assert run_summary.restored(few) == [
        "central crops of 3 test images: PSNR 29.03 dB, +8.80 above the corrupted ones; SSIM 0.800"
    ]
    assert run_summary.restored({"top1": 0.9}) == run_summary.restored({}) == []
