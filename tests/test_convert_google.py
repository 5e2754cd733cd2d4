"""TensorFlow checkpoints of the original: in, out and back, and everything that can be wrong with them."""

import json
import shutil

import jax
import numpy as np
import parity
import pytest
from conftest import tiny_config, tiny_splits

import simclr_jax
from simclr_jax import train
from simclr_jax.convert import __main__ as command
from simclr_jax.convert import google_tf, infer, names
from simclr_jax.convert import workdir as conversion
from simclr_jax.data.tf import load as load_tensorflow
from simclr_jax.errors import SimclrError
from simclr_jax.models import simclr

FIXTURES = parity.FIXTURES
CHECKPOINTS = {  # name: (model in reference.npz, prefix)
    "ckpt_tf2_basic_cifar": ("basic_cifar", "ckpt-1"),
    "ckpt_tf2_bottle_sk": ("bottle_sk", "ckpt-1"),
    "ckpt_tf1_bottle_sk": ("bottle_sk", "model.ckpt-0"),
}


@pytest.fixture(scope="module")
def reference():
    return parity.reference()


def variables_of(where):
    """{name: array} of a checkpoint, the object graph left out."""
    tf = load_tensorflow()
    reader = tf.train.load_checkpoint(str(where))
    names_ = reader.get_variable_to_shape_map()
    return {name: reader.get_tensor(name) for name in names_ if name != google_tf.GRAPH}


def save(where, tensors):
    """A name-based checkpoint in the folder `where`."""
    tf = load_tensorflow()
    where.mkdir(parents=True, exist_ok=True)
    tf.raw_ops.SaveV2(
        prefix=str(where / "model.ckpt-3"),
        tensor_names=list(tensors),
        shape_and_slices=[""] * len(tensors),
        tensors=[tf.constant(t) for t in tensors.values()],
    )
    (where / "checkpoint").write_text('model_checkpoint_path: "model.ckpt-3"\n')
    return where


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_converted_encoder_gives_the_stored_outputs(name, reference, tmp_path):
    model, _ = CHECKPOINTS[name]
    command.main(["google", str(FIXTURES / name), "--out", str(tmp_path / "run"), "--probe-layer", "0"])
    encoder = simclr_jax.load(tmp_path / "run")
    x = reference[f"model_{model}/x"]
    for endpoint, key in (("final_avg_pool", "final_avg_pool"), ("projection", "proj"), ("logits", "logits")):
        found = encoder(x, endpoint=endpoint)
        np.testing.assert_allclose(found, reference[f"model_{model}/eval/{key}"], atol=1e-5)
    assert encoder.classes == tuple(map(str, range(10)))
    assert encoder.config.data.image_size == (32 if "cifar" in name else 224)


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_there_and_back_is_the_identity(name, tmp_path):
    kind = name.split("_")[1]
    google_tf.convert(FIXTURES / name / CHECKPOINTS[name][1], tmp_path / "run")
    prefix = google_tf.export(tmp_path / "run", tmp_path / "back", format=kind).splitlines()[-1]
    before, after = variables_of(FIXTURES / name), variables_of(prefix)
    assert set(after) == set(before) | ({"global_step"} if kind == "tf1" else set())
    for each, array in before.items():
        np.testing.assert_array_equal(after[each], array)
        assert after[each].dtype == array.dtype


def test_tf2_checkpoint_is_found_by_the_originals_objects(tmp_path):
    """Restoring matches objects by the names of attributes, not by the file's keys."""
    tf = load_tensorflow()
    google_tf.convert(FIXTURES / "ckpt_tf1_bottle_sk", tmp_path / "run")
    prefix = google_tf.export(tmp_path / "run", tmp_path / "back", format="tf2").splitlines()[-1]

    class Conv(tf.Module):
        def __init__(self):
            super().__init__()
            self.kernel = tf.Variable(tf.zeros([3, 3, 4, 4]))

    class Padded(tf.Module):
        def __init__(self):
            super().__init__()
            self.conv2d = Conv()

    class Model(tf.Module):
        def __init__(self):
            super().__init__()
            self.resnet_model = tf.Module()
            self.resnet_model.initial_conv_relu_max_pool = [tf.Module(), tf.Module(), Padded()]

    model = Model()
    tf.train.Checkpoint(model=model).restore(prefix).expect_partial()
    expected = variables_of(FIXTURES / "ckpt_tf1_bottle_sk")["base_model/conv2d_1/kernel"]
    found = model.resnet_model.initial_conv_relu_max_pool[2].conv2d.kernel.numpy()
    np.testing.assert_array_equal(found, expected)


def test_released_pretrained_checkpoints_hold_more_than_the_model(tmp_path):
    """SimCLRv2's: momentum slots, a moving average, a step, and a memory under some other name."""
    weights = variables_of(FIXTURES / "ckpt_tf1_bottle_sk")
    more = {f"{name}/Momentum": np.zeros_like(v) for name, v in weights.items() if "moving" not in name}
    more |= {f"ema_model/{k}": 2 * v for k, v in weights.items() if not k.startswith("head_supervised")}
    more |= {"global_step": np.int64(250228), "memory/queue": np.zeros((4, 2), np.float32)}
    folder = save(tmp_path / "pretrained", {**weights, **more})
    said = google_tf.convert(folder, tmp_path / "plain")
    assert "left out: " in said
    assert "step 250228" in said
    google_tf.convert(folder, tmp_path / "ema", ema=True)
    plain, ema = simclr_jax.load(tmp_path / "plain"), simclr_jax.load(tmp_path / "ema")
    assert plain.step == 250228
    kernel = ("params", "encoder", "stem_conv", "kernel")
    np.testing.assert_array_equal(names.get(plain.variables, kernel), weights["base_model/conv2d_2/kernel"])
    np.testing.assert_array_equal(names.get(ema.variables, kernel), 2 * names.get(plain.variables, kernel))
    with pytest.raises(SimclrError, match="holds no moving average"):
        google_tf.convert(FIXTURES / "ckpt_tf1_bottle_sk", tmp_path / "none", ema=True)


@pytest.mark.parametrize(
    ("folder", "layer"), [("finetuned_1pct", 1), ("finetuned_10pct", 1), ("finetuned_100pct", 0)]
)
def test_the_layer_that_the_classifier_reads(folder, layer, tmp_path):
    where = tmp_path / folder / "r50_1x_sk1"
    shutil.copytree(FIXTURES / "ckpt_tf1_bottle_sk", where)
    google_tf.convert(where, tmp_path / "run")
    assert simclr_jax.load(tmp_path / "run").config.model.probe_layer == layer


@pytest.mark.parametrize(
    "fields",
    [
        {"depth": 18, "stem": "cifar", "projection": "none"},
        {"depth": 18, "sk_ratio": 0.0625, "se_ratio": 0.25, "projection": "linear"},
        {"depth": 50, "se_ratio": 0.0625, "stem": "cifar"},
        {"depth": 50, "sk_ratio": 0.0625, "se_ratio": 0.25, "width": 2.0, "projection_layers": 3},
        {"depth": 50, "blocks": (1, 1, 2, 1), "sk_ratio": 0.125, "stem": "cifar", "width": 1.5},
        {"depth": 101, "projection_layers": 3},
        {"depth": 152, "width": 3.0, "sk_ratio": 0.0625},
        {"depth": 200, "projection": "none"},
    ],
    ids=lambda f: "-".join(f"{k}={v}" for k, v in f.items()),
)
@pytest.mark.parametrize("kind", ["tf1", "tf2"])
def test_every_architecture_is_inferred_from_its_shapes(fields, kind):
    config = conversion.config_of(fields)
    wanted = conversion.expected(config, 7)
    shapes = {getattr(leaf, kind): shape for leaf, shape in wanted.items()}
    shuffled = dict(sorted(shapes.items()))  # a checkpoint has no order
    if kind == "tf1":
        found = google_tf.name_based(shuffled, None, False, "it")
    else:
        suffixed = {f"model/{name}{google_tf.VALUE}": shape for name, shape in shuffled.items()}
        found = google_tf.object_based(suffixed, None)
    inferred, classes = infer.infer(found, "it")
    assert classes == 7
    again = conversion.expected(inferred, classes)
    assert {getattr(leaf, kind): shape for leaf, shape in again.items()} == shapes
    names_ = ("depth", "blocks", "width", "stem", "sk_ratio", "se_ratio", "projection")
    assert {f: inferred.model[f] for f in names_} == {f: config.model[f] for f in names_}


def test_a_classifier_in_the_middle_of_the_head_goes_there_and_back(tmp_path):
    """A fine-tuned model has no more of the projection head than its classifier reads."""
    fields = {"depth": 18, "blocks": (1, 1, 1, 1), "width": 0.125, "stem": "cifar", "projection_layers": 3}
    config = conversion.config_of({**fields, "probe_layer": 1}, task="supervised")
    wanted = conversion.expected(config, 5)
    rng = np.random.default_rng(0)
    variables: dict = {}
    for leaf, shape in wanted.items():
        names.put(variables, leaf.path, rng.random(shape, np.float32))
    conversion.write(tmp_path / "run", config, variables, step=5, origin="")
    prefix = google_tf.export(tmp_path / "run", tmp_path / "back").splitlines()[-1]
    assert "head_contrastive/nl_1/dense/kernel" not in variables_of(prefix)
    google_tf.convert(prefix, tmp_path / "again")
    again = simclr_jax.load(tmp_path / "again")
    assert again.config.model.probe_layer == 1
    assert jax.tree.all(jax.tree.map(np.array_equal, again.variables, variables))
    images = rng.random((2, 32, 32, 3), np.float32)
    np.testing.assert_array_equal(again.logits(images), simclr_jax.load(tmp_path / "run").logits(images))


@pytest.mark.slow
def test_fine_tuning_starts_from_a_converted_checkpoint(tmp_path):
    google_tf.convert(FIXTURES / "ckpt_tf2_basic_cifar", tmp_path / "run")
    config = tiny_config(
        task="supervised", start__workdir=str(tmp_path / "run"), data__image_size=0, data__channels=0,
        model__probe_layer=1, train__steps=2, finetune__after_block=4, model__encoder="resnet",
        model__width=1.0, model__projection_dim=128,
    )  # fmt: skip
    summary = train.run(config, tmp_path / "tuned", splits=tiny_splits(channels=3, size=32))
    assert summary["steps"] == 2
    before, after = simclr_jax.load(tmp_path / "run"), simclr_jax.load(tmp_path / "tuned")
    images = np.random.default_rng(0).random((2, 32, 32, 3), np.float32)
    np.testing.assert_array_equal(before(images), after(images))
    assert after.logits(images).shape == (2, 4)


# ---- SavedModel ---------------------------------------------------------------------------------


def saved_model(tf, where, reference, rename=lambda name: name, leave_out=()):
    """The TF2 export's layout: keys that say nothing, variables with the names of their construction."""
    full = json.loads(str(reference["model_basic_cifar/varnames"]))
    weights = variables_of(FIXTURES / "ckpt_tf2_basic_cifar")
    module = tf.Module()
    ordered = sorted(path for path in full if not any(part in path for part in leave_out))
    np.random.default_rng(0).shuffle(ordered)
    module.trainable_variables_list = [
        tf.Variable(weights[f"model/{path}{google_tf.VALUE}"], name=rename(full[path].removesuffix(":0")))
        for path in ordered
    ]
    tf.saved_model.save(module, str(where))


def test_saved_model_is_read_by_the_variables_names(tmp_path, reference):
    tf = load_tensorflow()
    saved_model(tf, tmp_path / "saved", reference)
    said = google_tf.convert(tmp_path / "saved", tmp_path / "run")
    assert "(2, 1, 1, 1) of basic blocks" in said
    assert "not tested on the released ones" in said
    google_tf.convert(FIXTURES / "ckpt_tf2_basic_cifar", tmp_path / "direct")
    a, b = simclr_jax.load(tmp_path / "run"), simclr_jax.load(tmp_path / "direct")
    assert jax.tree.all(jax.tree.map(np.array_equal, a.variables, b.variables))


def test_saved_model_with_ambiguous_names_is_refused(tmp_path, reference):
    tf = load_tensorflow()
    # Two models built in one process, say: one number twice.
    saved_model(tf, tmp_path / "saved", reference, lambda name: name.replace("conv2d_14/", "conv2d_13/"))
    with pytest.raises(SimclrError, match="cannot be told apart"):
        google_tf.convert(tmp_path / "saved", tmp_path / "run")
    saved_model(tf, tmp_path / "gap", reference, leave_out=("block_groups/0/layers/1/",))
    with pytest.raises(SimclrError, match="have gaps"):
        google_tf.convert(tmp_path / "gap", tmp_path / "run")
    saved_model(tf, tmp_path / "nameless", reference, lambda name: "variable")
    with pytest.raises(SimclrError, match="no names that tell"):
        google_tf.convert(tmp_path / "nameless", tmp_path / "run")
    assert not (tmp_path / "run").exists()


# ---- what can be wrong --------------------------------------------------------------------------


def mutations(rng, folder, sources):
    """A checkpoint with one thing wrong, as (what, path)."""
    kinds = ["data cut", "index cut", "noise", "text", "missing", "several missing", "extra", "shape", "rank",
             "nan", "integers"]  # fmt: skip
    kind = kinds[rng.integers(len(kinds))]
    source, prefix = sources[rng.integers(len(sources))]
    if kind in ("data cut", "index cut", "noise"):
        shutil.copytree(source, folder)
        file = folder / f"{prefix}.{'index' if kind == 'index cut' else 'data-00000-of-00001'}"
        data = file.read_bytes()
        if kind == "noise":
            at = int(rng.integers(len(data) - 4000))
            data = data[:at] + rng.bytes(4000) + data[at + 4000 :]
        else:
            data = data[: rng.integers(len(data))]
        file.write_bytes(data)
        return kind, folder
    if kind == "text":
        folder.mkdir()
        (folder / "checkpoint").write_bytes(rng.bytes(50))
        return kind, folder
    weights = variables_of(source)
    names_ = [name for name, value in weights.items() if np.ndim(value)]
    name = str(rng.choice(names_))
    array = weights[name]
    if kind == "missing":
        del weights[name]
    elif kind == "several missing":
        for each in rng.choice(names_, 5, replace=False):
            del weights[str(each)]
    elif kind == "extra":
        *parts, leaf = name.removesuffix(google_tf.VALUE).split("/")
        below = 2 if parts[0] == "model" else 1  # in the model's own scope
        parts[rng.integers(below, len(parts))] += "_99" if rng.random() < 0.5 else "_extra"
        suffix = google_tf.VALUE if name.endswith(google_tf.VALUE) else ""
        weights["/".join([*parts, leaf]) + suffix] = array
    elif kind == "shape":
        weights[name] = np.concatenate([array, array], axis=int(rng.integers(array.ndim)))
    elif kind == "rank":
        weights[name] = array[0] if rng.random() < 0.5 else array[None]
    elif kind == "nan":
        weights[name] = np.full_like(array, np.nan)
    else:
        weights[name] = array.astype(np.int32)
    return f"{kind} {name}", save(folder, weights)


def test_two_hundred_broken_checkpoints(tmp_path, capsys):
    rng = np.random.default_rng(7)
    sources = [(FIXTURES / name, prefix) for name, (_, prefix) in CHECKPOINTS.items()]
    (tmp_path / "out").mkdir()
    seen = set()
    for i in range(200):
        what, path = mutations(rng, tmp_path / f"broken{i}", sources)
        out = tmp_path / "out" / "run"
        arguments = ["google", str(path), "--out", str(out)]
        with pytest.raises(SystemExit) as stop:
            assert command.main(arguments), what
        said = capsys.readouterr().err.strip()
        assert stop.value.code == 2, what
        assert said.startswith("error: "), what
        assert "\n" not in said, what
        assert str(path) in said, (what, said)
        assert not list((tmp_path / "out").iterdir()), what
        shutil.rmtree(path)
        seen.add(what.split(" base_")[0].split(" head_")[0].split(" model")[0])
    assert len(seen) == 11  # every kind of damage was among them


def test_the_layer_given_must_exist(tmp_path):
    """Negative ones count from the end, as in the original."""
    source = FIXTURES / "ckpt_tf1_bottle_sk"
    google_tf.convert(source, tmp_path / "last", probe_layer=-2)
    assert simclr_jax.load(tmp_path / "last").config.model.probe_layer == 2
    for layer in (4, -5):
        with pytest.raises(SimclrError, match=f"--probe-layer={layer}: the projection head has 3 layers"):
            google_tf.convert(source, tmp_path / "run", probe_layer=layer)
    with pytest.raises(SimclrError, match=r"config\.data\.image_size=5: must be 32 or more"):
        google_tf.convert(source, tmp_path / "run", image_size=5)


def test_a_head_without_its_end_and_without_a_classifier(tmp_path):
    weights = variables_of(FIXTURES / "ckpt_tf1_bottle_sk")
    cut = {k: v for k, v in weights.items() if "nl_2" not in k and "head_supervised" not in k}
    with pytest.raises(SimclrError, match="lacks the last layer of its projection head"):
        google_tf.convert(save(tmp_path / "cut", cut), tmp_path / "run")


def test_where_nothing_can_be_written(tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    google_tf.convert(FIXTURES / "ckpt_tf1_bottle_sk", tmp_path / "run")
    for words in (["google", str(FIXTURES / "ckpt_tf1_bottle_sk")], ["to-google", str(tmp_path / "run")],
                  ["to-torch", str(tmp_path / "run")]):  # fmt: skip
        with pytest.raises(SystemExit) as stop:
            command.main([*words, "--out", str(tmp_path / "file" / "x.safetensors")])
        assert stop.value.code == 2
        assert capsys.readouterr().err.startswith(f"error: --out={tmp_path / 'file'}")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "run"]


def test_ema_of_the_classifier_where_there_is_one(tmp_path):
    weights = variables_of(FIXTURES / "ckpt_tf1_bottle_sk")
    both = weights | {f"ema_model/{k}": 2 * v for k, v in weights.items()}
    google_tf.convert(save(tmp_path / "both", both), tmp_path / "run", ema=True)
    kernel = simclr_jax.load(tmp_path / "run").variables["params"]["probe"]["dense"]["kernel"]
    np.testing.assert_array_equal(kernel, 2 * weights["head_supervised/linear_layer/dense/kernel"])


def test_hub_modules_and_folders_without_the_file_checkpoint(tmp_path):
    """TF1's hub modules are name-based in a SavedModel's folders."""
    hub = tmp_path / "hub"
    shutil.copytree(FIXTURES / "ckpt_tf1_bottle_sk", hub / "variables")
    for file in (hub / "variables").glob("model.ckpt-0*"):
        file.rename(hub / "variables" / file.name.replace("model.ckpt-0", "variables"))
    (hub / "saved_model.pb").write_bytes(b"")
    google_tf.convert(hub, tmp_path / "from_hub")
    (hub / "variables" / "checkpoint").unlink()
    google_tf.convert(hub / "variables", tmp_path / "from_folder")
    a, b = simclr_jax.load(tmp_path / "from_hub"), simclr_jax.load(tmp_path / "from_folder")
    assert jax.tree.all(jax.tree.map(np.array_equal, a.variables, b.variables))


@pytest.mark.parametrize(("inner", "low"), [(67, 58), (512, 37), (100, 33)])
def test_a_ratio_gives_its_width_again(inner, low):
    ratio = infer._ratio(inner, low, 32, (0.0625,))
    assert max(32, int(inner * ratio)) == low


def test_what_is_no_checkpoint(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file.txt").write_text("hello")
    for path in ("empty", "file.txt", "nowhere"):
        with pytest.raises(SimclrError, match=path):
            google_tf.convert(tmp_path / path, tmp_path / "run")
    foreign = save(tmp_path / "foreign", {"dense/kernel": np.zeros((2, 2), np.float32)})
    with pytest.raises(SimclrError, match="no variable of SimCLR"):
        google_tf.convert(foreign, tmp_path / "run")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine").write_text("precious")
    with pytest.raises(SimclrError, match="exists already"):
        google_tf.convert(FIXTURES / "ckpt_tf1_bottle_sk", tmp_path / "run")
    assert (tmp_path / "run" / "mine").read_text() == "precious"


def test_what_the_original_lacks_does_not_go_out(tmp_path):
    for field, value in (("encoder", "cnn"), ("variant", "torch"), ("stem", "cifar_pad2")):
        config = conversion.config_of({"depth": 18, "width": 0.125, field: value, "projection": "none"})
        model, images = simclr.create(config.model), np.zeros((2, 64, 64, 3), np.float32)
        shapes = jax.eval_shape(lambda m=model, x=images: m.init(jax.random.key(0), x, train=False))
        variables = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)
        where = tmp_path / field
        conversion.write(where, config, variables, step=1, origin="")
        with pytest.raises(SimclrError, match=rf"model\.{field}="):
            google_tf.export(where, tmp_path / "out")
        assert not (tmp_path / "out").exists()
