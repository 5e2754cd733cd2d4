"""What no machine holds is refused in one line, before anything is allocated."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import tiny_config, tiny_splits

from simclr_jax import registry, train
from simclr_jax.config import bounds, check_field, checks, declared, default, fields, flatten, set_field
from simclr_jax.errors import SimclrError
from simclr_jax.models import simclr

NAMED = {
    "data.image_size": 10**8,
    "data.stored_size": 10**8,
    "model.width": 1e9,
    "train.steps_per_call": 2**31,
    "model.projection_layers": 1000,
    "optimizer.warmup.steps": 2**31,
    "optimizer.learning_rate": 1e300,
    "train.steps": 2**31,
    "train.batch_size": 2**40,
    "train.epochs": 1e300,
    "loss.temperature": 1e-300,
    "loss.scale": 1e300,
    "optimizer.eps": 1e-300,
    "augment.blur_sigma": (1e-300, 1e-300),
    "data.mean": (-1e300,),
    "model.blocks": (10**6, 1, 1, 1),
    "eval.linear.rates": (1e300,),
    "seed": 10**5000,
}


def refused(field, value):
    """The line that refuses a value, given through Python."""
    config = tiny_config()
    with config.ignore_type():
        set_field(config, field, value)
    with pytest.raises(SimclrError) as error:
        checks.validate(config)
    text = str(error.value)
    assert text.startswith(f"config.{field}=")
    assert "\n" not in text
    assert len(text) < 250
    return text


@pytest.mark.parametrize("field", NAMED)
def test_a_value_that_no_machine_holds_is_refused_with_a_reason(field):
    assert ": must be " in refused(field, NAMED[field])


def numeric():
    """The fields of numbers and of tuples of numbers."""
    for field, value in flatten(default()).items():
        if isinstance(value, tuple) and field not in fields.PATTERNS:
            yield field, (1e300,)
        elif type(value) in (int, float):
            yield field, type(value)(10**300)


@pytest.mark.parametrize(("field", "value"), list(numeric()), ids=[field for field, _ in numeric()])
def test_every_number_has_a_bound(field, value):
    text = refused(field, value)
    assert "at most" in text
    assert text.endswith(declared()[field].why)
    assert declared()[field].most is not None
    if isinstance(value, float):
        for endless in (float("inf"), float("nan"), float("-inf")):
            assert "a finite number" in refused(field, endless)


def test_every_field_says_what_it_is_and_why_it_ends():
    for name, field in declared().items():
        check_field(name)
        assert field.help, name
        assert (field.most is None) == (not field.why), name
        assert field.rule is None or field.default is None or field.rule.fits(field.default), name


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("field", ["data.mean", "data.std", "augment.crop_area", "eval.linear.decays"])
def test_numbers_of_a_tuple_are_finite(field, value):
    assert "a tuple of finite numbers" in refused(field, (value,))


def test_defaults_lie_far_within():
    bounds.check(flatten(default()))
    bounds.check_together(flatten(default()))


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"train__batch_size": 2**20, "data__image_size": 4096}, "train.batch_size"),
        ({"eval__batch_size": 2**24, "data__image_size": 256}, "eval.batch_size"),
        ({"model__encoder": "resnet", "model__width": 64.0, "data__image_size": 64}, "model.width"),
        ({"model__width": 900.0, "model__projection_layers": 50}, "model.width"),
        ({"optimizer__scaling": "linear", "optimizer__learning_rate": 9e37, "train__batch_size": 4096},
         "optimizer.learning_rate"),
    ],
    ids=str,
)  # fmt: skip
def test_what_is_too_much_together_is_refused(fields, named):
    with pytest.raises(SimclrError, match=rf"^config\.{named}=\S+: must be smaller: "):
        checks.validate(tiny_config(**fields))


def test_the_largest_published_models_are_let_through():
    for depth, width, batch, size in ((152, 3.0, 4096, 224), (200, 4.0, 4096, 224), (50, 1.0, 65536, 224)):
        c = default()
        c.data.source, c.model.depth, c.model.width, c.model.sk_ratio = "tfds:x", depth, width, 0.0625
        c.train.batch_size, c.data.image_size, c.model.projection_layers = batch, size, 3
        checks.validate(c)


MODELS = (
    {}, {"depth": 18, "se_ratio": 1.0}, {"depth": 34, "width": 2.0, "projection": "linear"},
    {"width": 3.0, "sk_ratio": 0.0625, "projection_layers": 3}, {"blocks": (1, 1, 1, 1)},
    {"encoder": "cnn", "width": 4.0}, {"se_ratio": 0.25, "projection": "none"},
)  # fmt: skip


@pytest.mark.parametrize("fields", MODELS, ids=str)
def test_parameters_are_counted_without_the_model(fields):
    config = default()
    for name, value in fields.items():
        set_field(config, f"model.{name}", value)
    model = simclr.create(config.model, classes=0)
    images = jax.ShapeDtypeStruct((2, 64, 64, 3), jnp.float32)
    shapes = jax.eval_shape(lambda x: simclr.init(model, jax.random.key(0), x), images)["params"]
    true = sum(np.prod(x.shape) for x in jax.tree.leaves(shapes))
    assert bounds.parameters(flatten(config)) == pytest.approx(true, rel=0.1)


@pytest.mark.parametrize("field", ["start.workdir", "distill.teacher"])
@pytest.mark.parametrize("value", [3, None, ("runs/a",), b"runs/a"])
def test_a_workdir_that_is_no_text_is_one_line(field, value, tmp_path):
    config = tiny_config()
    with config.ignore_type():
        set_field(config, field, value)
    with pytest.raises(SimclrError, match=rf"^config\.{field}=.*: must be the path of a run"):
        train.run(config, tmp_path / "run", splits=tiny_splits())
    assert not (tmp_path / "run").exists()


def test_steps_that_the_images_make_too_many_are_refused():
    config = tiny_config(train__steps=0, train__epochs=1e6, train__batch_size=2)
    checks.validate_run(config, examples=1000, devices=1)
    with pytest.raises(SimclrError, match=r"comes to 2,500,000,001 steps, must be at most 2,147,483,647"):
        checks.validate_run(config, examples=5000, devices=1)


@pytest.mark.parametrize("device", ["none", "photometric", "all"])
def test_more_images_than_the_device_counts_are_refused(device):
    config = tiny_config(augment__device=device, train__steps=2**21, train__batch_size=2048)
    checks.validate_run(config, examples=4096, devices=1)
    config.train.steps += 1
    if device == "none":  # the host counts in 64 bits
        checks.validate_run(config, examples=4096, devices=1)
        return
    with pytest.raises(SimclrError, match=r"2,097,153 steps of 2,048 images .* at most 4,294,967,296: "):
        checks.validate_run(config, examples=4096, devices=1)


# ---- one image ------------------------------------------------------------------------------------


DECODING = ("reconstruction", "masked")


@pytest.mark.parametrize("loss", [name for name in registry.OBJECTIVES if name not in DECODING])
def test_a_batch_of_one_image_teaches_a_contrastive_loss_nothing(loss):
    with pytest.raises(SimclrError, match=r"^config\.train\.batch_size=1: must be 2 or more for"):
        checks.validate(tiny_config(train__batch_size=1, loss__name=loss))
    checks.validate(tiny_config(train__batch_size=2, train__microbatch=1, loss__name=loss))


@pytest.mark.parametrize("loss", DECODING)
def test_a_batch_of_one_image_is_enough_for_a_decoder(loss):
    checks.validate(tiny_config(train__batch_size=1, loss__name=loss))
    with pytest.raises(SimclrError, match=r"batch_size=1: must be 2 or more"):
        checks.validate(tiny_config(train__batch_size=1, loss__name=f"nt_xent+{loss}"))


@pytest.mark.parametrize("task", ["supervised", "distill", "linear_sweep"])
def test_a_batch_of_one_image_is_enough_where_there_are_labels(task):
    checks.validate(tiny_config(train__batch_size=1, task=task))


@pytest.mark.parametrize(
    ("examples", "devices", "remedy"),
    [
        (10, 1, "at most --config.train.batch_size=10"),
        (10, 8, "at most --config.train.batch_size=8"),
        (5, 8, "give more images, or take fewer of the 8 devices"),
        (1, 1, "give more images"),
    ],
)
def test_the_remedy_of_a_batch_larger_than_the_images_can_be_followed(examples, devices, remedy):
    with pytest.raises(SimclrError, match=rf"larger than the training set \({examples} images\); {remedy}$"):
        checks.validate_run(tiny_config(train__batch_size=16), examples, devices)
