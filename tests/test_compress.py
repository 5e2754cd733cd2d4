"""Pruning against the network whose pruned channels are zero; int8 against float32."""

import json

import jax
import numpy as np
import onnx
import onnxruntime
import pytest
from conftest import tiny_arrays, tiny_config, untrained_run
from onnx import numpy_helper
from PIL import Image

from simclr_jax import encoder, sharding
from simclr_jax.compress import artefact, int8, layout, prune
from simclr_jax.compress.__main__ import main
from simclr_jax.config import default, load_config, set_field
from simclr_jax.config.stored import adopt_start
from simclr_jax.convert import names
from simclr_jax.errors import SimclrError
from simclr_jax.export import run as exporting
from simclr_jax.index.artefact import of_files
from simclr_jax.measures.features import Features
from simclr_jax.models import simclr
from simclr_jax.protocols import scores

SMALL = {"depth": 18, "blocks": (1, 2, 1, 1), "width": 0.125, "stem": "cifar"}
MODELS = {  # name: fields of config.model
    "basic": SMALL | {"se_ratio": 0.5, "norm_groups": 2, "projection_layers": 3, "probe_layer": 1},
    "basic as torchvision": SMALL | {"variant": "torch", "stem": "imagenet", "projection": "linear"},
    "bottleneck as torchvision": SMALL | {"depth": 50, "variant": "torch", "projection": "none"},
    "selective kernels": SMALL
    | {"depth": 50, "sk_ratio": 2.5, "se_ratio": 0.25, "stem": "imagenet", "blocks": (1,) * 4},
    "cnn": {"encoder": "cnn", "width": 0.25},
    "vit": {"encoder": "vit", "vit.width": 32, "vit.depth": 2, "vit.heads": 2, "vit.patch": 8},
}


SLOW = ("bottleneck as torchvision",)  # whose parts others have


def random_encoder(fields, seed=0, classes=3):
    """An encoder with all its parameters drawn, no BatchNorm scale 0, in float64."""
    config = default()
    for field, value in {**fields, "dtype": "float64"}.items():
        set_field(config, f"model.{field}", value)
    config.data.image_size = 32
    model = simclr.create(config.model, classes=classes)
    shapes = jax.eval_shape(
        lambda: simclr.init(model, jax.random.key(0), np.zeros((2, 32, 32, 3), np.float32))
    )
    rng = np.random.default_rng(seed)
    drawn = jax.tree.map(lambda x: rng.uniform(0.5, 1, x.shape) * rng.choice([-0.5, 0.5], x.shape), shapes)
    variables = {"params": drawn["params"]}
    if "batch_stats" in drawn:
        variables["batch_stats"] = jax.tree.map(np.abs, drawn["batch_stats"])
    return encoder.Encoder(config, tuple("abc")[:classes], 7, variables)


def silenced(source, wanted, seed=1):
    """(variables, {space: kept}): of every space a random part of the channels is 0 wherever it is made."""
    rng, params = np.random.default_rng(seed), source.variables["params"]
    variables = jax.tree.map(np.copy, source.variables)
    found, kept = layout.layers(source.config.model, params), {}
    for layer in found:
        path = tuple(layer.path.split("/"))
        leaves, copies = names.get(variables["params"], path), 1 + (path[-1] in ("sk_conv", "sk_norm"))
        for leaf, array in leaves.items() if layer.writes and not layer.gate else ():
            size, room = (x.shape[-1] // copies for x in (array, names.get(wanted["params"], path)[leaf]))
            if layer.writes not in kept:
                kept[layer.writes] = np.sort(rng.permutation(size)[:room])
            array.reshape(-1, size)[:, np.setdiff1d(np.arange(size), kept[layer.writes])] = 0
    return variables, kept


@pytest.fixture
def exact():
    with jax.enable_x64(True):
        yield


def ends(encoder):
    """Its endpoints of two images, by one compiled program."""
    images = np.random.default_rng(2).random((2, 32, 32, 3)).astype(np.float64)
    return jax.jit(lambda v: simclr.endpoints(encoder.model, v, images))(encoder.variables)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in MODELS]
)
def test_without_channels_that_are_zero_nothing_changes(name, exact):
    source = random_encoder(MODELS[name])
    config = prune.narrower(source.config, 0.5)
    wanted = prune.shapes(config, source.reader.spec(), 3)
    source.variables, kept = silenced(source, wanted)
    small = encoder.Encoder(
        config, source.classes, 7, prune.pruned(source, config, "l1" if name == "basic" else "bn")
    )
    assert jax.tree.map(np.shape, small.variables) == jax.tree.map(lambda x: x.shape, wanted)
    count, less = (sum(x.size for x in jax.tree.leaves(e.variables)) for e in (source, small))
    assert less < count
    before, after = ends(source), ends(small)
    name_of_features, columns = source.model.encoder.features, slice(None)
    features = np.asarray(before[name_of_features])
    space = layout.ENCODERS[config.model.encoder](source.variables["params"]["encoder"])[1]
    if space:
        size = features.shape[1] // (4 if name == "cnn" else 1)
        columns = np.concatenate([kept[space] + i for i in range(0, features.shape[1], size)])
    heads = ["logits"] + ["projection"] * (config.model.projection != "none")
    for end, of in {name_of_features: columns, **dict.fromkeys(heads, slice(None))}.items():
        expected = np.asarray(before[end])[:, of]
        np.testing.assert_allclose(after[end], expected, rtol=1e-9, atol=1e-12)
        assert np.abs(expected).max() > 0


# ---- the command -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The workdir of a run whose images are still there, 80 to learn from and 40 to test."""
    folder = tmp_path_factory.mktemp("run")
    (images, labels), test = tiny_arrays(), tiny_arrays(n=40, seed=7)
    arrays = {"train_images": images, "train_labels": labels, "test_images": test[0], "test_labels": test[1]}
    np.savez(folder / "images.npz", **arrays)
    return untrained_run(folder / "run", tiny_config(data__source=f"npz:{folder / 'images.npz'}"))


@pytest.fixture(scope="module")
def exported(run):
    """Its ONNX."""
    path = run.parent / "encoder.onnx"
    exporting.export(run, 0, exporting.Wish(str(path)))
    return path


@pytest.fixture(scope="module")
def quantised(exported):
    """{target: its int8 form}."""
    made = {target: exported.with_name(f"{target}.onnx") for target in int8.TARGETS}
    for target, path in made.items():
        int8.quantise(str(exported), str(path), target=target)
    return made


def called(capsys, *words):
    """(exit code, standard output, standard error)."""
    try:
        main(list(words))
        code = 0
    except SystemExit as error:
        code = error.code
    return (code, *capsys.readouterr())


def test_a_pruned_run_is_an_ordinary_one(run, tmp_path, capsys):
    code, said, _ = called(capsys, f"--workdir={run}", "--keep=0.5", f"--out={tmp_path / 'half'}")
    assert code == 0
    assert "config.model.width=0.125" in said
    before, after = encoder.load(run), encoder.load(tmp_path / "half")
    assert (after.step, after.classes, after.config.data) == (before.step, before.classes, before.config.data)
    images = tiny_arrays(n=3)[0]
    assert after(images).shape == (3, before(images).shape[1] // 2)
    config = default()
    config.start.workdir = str(tmp_path / "half")
    assert adopt_start(config).model.width == 0.125


def test_keeping_all_is_the_identity(run, tmp_path):
    prune.prune(run, 1.0, tmp_path / "all")
    before, after = encoder.load(run), encoder.load(tmp_path / "all")
    jax.tree.map(np.testing.assert_array_equal, after.variables, before.variables)
    assert before.config == after.config


def test_importance_is_the_norm_of_filters_or_the_scale_of_batch_norm():
    kernels = [np.zeros((1, 1, 2, 3)), np.zeros((1, 1, 1, 3))]
    kernels[0][0, 0] = [[1, -2, 0], [3, -1, 0.5]]
    kernels[1][0, 0] = [[0, 0, -5]]
    params = {
        "a": {"kernel": kernels[0]},
        "b": {"kernel": kernels[1]},
        "n": {"scale": np.array([-1, 0.5, 0])},
    }
    found = [layout.Layer("a", "", "s"), layout.Layer("b", "", "s"), layout.Layer("n", "", "s")]
    found.append(layout.Layer("b", "", "s", gate=True))
    for by, expected, kept in (("l1", [4, 3, 5.5], [0, 2]), ("bn", [1, 0.5, 0], [0, 1])):
        weights = prune.importance("s", 3, found, {"params": params}, by)
        np.testing.assert_array_equal(weights, expected)
        np.testing.assert_array_equal(prune.best(weights, 2), kept)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "give one of"),
        (["--keep=0.5", "--out=x"], "--workdir is missing"),
        (["--workdir=RUN", "--keep=0.5"], "--out is missing: for example --out=runs/half"),
        (["--workdir=RUN", "--keep=0", "--out=x"], "--keep=0: must be above 0 and at most 1"),
        (["--workdir=RUN", "--keep=nan", "--out=x"], "--keep=nan: must be"),
        (["--workdir=RUN", "--keep=0.5", "--out=RUN"], "exists already"),
        (["--workdir=RUN", "--keep=0.5", "--out=x", "--by=size"], "--by=size: must be one of bn, l1"),
        (["--artefact=ONNX", "--keep=0.5", "--out=x"], "give one of"),
        (["--artefact=none.onnx", "--out=x.onnx"], "--artefact=none.onnx: no such file"),
        (["--artefact=ONNX", "--out=ONNX"], "is there; give another name, or --again"),
        (
            ["--artefact=ONNX", "--out=x.onnx", "--target=z80"],
            "--target=z80: must be one of x86, x86-vnni, arm",
        ),
        (["--artefact=ONNX", "--out=x.onnx", "--images=none"], "--images=none: no such folder"),
        (["--compare", "none.onnx"], "--compare=none.onnx: no such file"),
    ],
)
def test_mistakes_end_in_a_line(words, told, run, exported, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = [word.replace("RUN", str(run)).replace("ONNX", str(exported)) for word in words]
    code, _, error = called(capsys, *given)
    assert code == 2
    assert told in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (
            lambda path, beside: path.write_bytes(path.read_bytes() + b"0"),
            "is not the file that x.onnx.json describes (sha256); export it again",
        ),
        (lambda path, beside: beside.unlink(), "x.onnx.json: no such file; `simclr export"),
        (lambda path, beside: beside.write_text("{}"), "x.onnx.json: is not what an export writes"),
        (
            lambda path, beside: beside.write_text(beside.read_text().replace('"workdir"', '"other"')),
            "x.onnx: its JSON does not name its run; export the run itself",
        ),
    ],
    ids=["other bytes", "no JSON", "another JSON", "of a published folder"],
)
def test_a_damaged_artefact_is_told(damage, told, exported, tmp_path, capsys):
    path = tmp_path / "x.onnx"
    beside = path.with_name("x.onnx.json")
    path.write_bytes(exported.read_bytes())
    beside.write_text(exported.with_name(f"{exported.name}.json").read_text())
    damage(path, beside)
    before = sorted(tmp_path.iterdir())
    code, _, error = called(capsys, f"--artefact={path}", f"--out={tmp_path}/y.onnx")
    assert code == 2
    assert told in error
    assert error.count("\n") == 1
    assert sorted(tmp_path.iterdir()) == before


def test_images_of_any_channels_are_calibrated_on(exported, tmp_path):
    """Those of files have 1 or 3; the run's own may have 4."""
    path = tmp_path / "x.onnx"
    path.write_bytes(exported.read_bytes())
    about = json.loads(exported.with_name(f"{exported.name}.json").read_text())
    about["input"]["channels"] = 4
    beside = path.with_name("x.onnx.json")
    beside.write_text(json.dumps(about))
    assert artefact.read(str(path)).about["input"]["channels"] == 4
    with pytest.raises(SimclrError, match="takes images of 4 channels; image files have 1 or 3"):
        of_files(path)


@pytest.mark.parametrize(
    ("fields", "keep", "told"),
    [
        ({"encoder": "tutorial"}, 0.5, "is not pruned; resnet, cnn, vit, mlp are"),
        (MODELS["vit"] | {"vit.mlp": 4}, 0.1, "leaves none of 4; take 0.25 or more"),
    ],
    ids=["tutorial", "vit"],
)
def test_what_cannot_be_pruned_says_so(fields, keep, told):
    config = default()
    for field, value in fields.items():
        set_field(config, f"model.{field}", value)
    with pytest.raises(SimclrError, match=told):
        layout.layers(prune.narrower(config, keep).model, {"encoder": {}})


# ---- int8 --------------------------------------------------------------------------------------------


def tensors(path):
    """{name: array} of a model's constants."""
    return {each.name: numpy_helper.to_array(each) for each in onnx.load(path).graph.initializer}


@pytest.mark.parametrize("target", int8.TARGETS)
def test_weights_are_rounded_by_channel(target, exported, quantised):
    before, after = tensors(exported), tensors(quantised[target])
    kernels = [name for name in before if name.startswith("encoder/") and before[name].ndim == 4]
    used = [name for name in kernels if f"{name}_quantized" in after]
    assert len(used) == 3
    most = 64 if int8.TARGETS[target].reduce_range else 127
    for name in used:
        whole, scale = after[f"{name}_quantized"], after[f"{name}_scale"].reshape(-1, 1, 1, 1)
        assert whole.dtype == np.int8
        assert scale.size == len(whole)
        assert most - 2 <= np.abs(whole.astype(int)).max() <= most
        assert np.all(np.abs(whole * scale - before[name]) <= scale * 0.5001)
        assert not after[f"{name}_zero_point"].any()
    activation = np.int8 if int8.TARGETS[target].signed else np.uint8
    points = [x for name, x in after.items() if name.endswith("zero_point") and x.ndim == 0]
    assert points
    assert {x.dtype for x in points} <= {np.dtype(activation)}


def every_output(path, images):
    """{output, pixels: array} of a model as it is written: optimised, it rounds earlier."""
    model, options = onnx.load(path), onnxruntime.SessionOptions()
    model.graph.output.append(onnx.helper.make_tensor_value_info("pixels", onnx.TensorProto.FLOAT, None))
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    names = [each.name for each in session.get_outputs()]
    return dict(zip(names, session.run(names, {"images": images}), strict=True))


def test_the_view_and_the_heads_stay_in_float32(exported, quantised):
    images = np.random.default_rng(0).integers(0, 256, (2, 19, 31, 1), np.uint8)
    before, after = (every_output(path, images) for path in (exported, quantised["x86"]))
    np.testing.assert_array_equal(after["pixels"], before["pixels"])
    assert np.any(after["features"] != before["features"])
    params = encoder.load(exported.parent / "run").variables["params"]["probe"]["dense"]
    np.testing.assert_allclose(
        after["logits"], after["features"] @ params["kernel"] + params["bias"], atol=1e-5
    )


def test_the_json_tells_how(exported, quantised):
    about = json.loads(quantised["x86"].with_name("x86.onnx.json").read_text())
    source = json.loads(exported.with_name("encoder.onnx.json").read_text())
    assert about["format"] == "onnx"
    assert about["file"] == "x86.onnx"
    assert about["outputs"] == source["outputs"]
    assert about["run"] == source["run"]
    assert about["sha256"] != source["sha256"]
    assert about["quantised"]["from_sha256"] == source["sha256"]
    assert about["quantised"]["reduce_range"] is True
    assert about["quantised"]["calibration"]["images"] + about["parity"]["images"] == 80
    found = about["parity"]["features"]
    assert 0.99 < found["cosine_min"] <= found["cosine_mean"] <= 1
    assert quantised["x86"].with_suffix(".requirements.txt").exists()
    with pytest.raises(SimclrError, match="is quantised already"):
        int8.quantise(str(quantised["x86"]), str(exported.with_name("twice.onnx")))


@pytest.mark.slow
@pytest.mark.parametrize(
    "fields",
    [
        SMALL | {"encoder": "resnet", "depth": 50, "sk_ratio": 0.0625, "se_ratio": 0.25},
        MODELS["vit"] | {"vit.patch": 4},
    ],
    ids=["resnet", "vit"],
)
def test_every_network_is_quantised(fields, run, tmp_path):
    """All its kernels, and only what multiplies activations with each other stays in float32."""
    config = load_config(run)[0]
    for field, value in fields.items():
        set_field(config, f"model.{field}", value)
    untrained_run(tmp_path / "run", config)
    exporting.export(tmp_path / "run", 0, exporting.Wish(str(tmp_path / "in.onnx")))
    int8.quantise(str(tmp_path / "in.onnx"), str(tmp_path / "out.onnx"), target="x86")
    kernels = {name: x for name, x in tensors(tmp_path / "out.onnx").items() if "kernel" in name}
    whole = {name for name, x in kernels.items() if x.dtype == np.int8 and name.endswith("_quantized")}
    left = [name for name, x in kernels.items() if x.dtype == np.float32 and x.ndim > 1]
    assert len(whole) > 10
    assert not [name for name in left if name.startswith("encoder/")]
    found = json.loads((tmp_path / "out.onnx.json").read_text())["parity"]["features"]
    assert 0.97 < found["cosine_mean"] < 1


def test_ranges_come_from_training_images_alone(run, exported):
    images = np.load(run.parent / "images.npz")
    found = artefact.from_training(artefact.read(str(exported)), 50)
    training = {image.tobytes() for image in images["train_images"]}
    assert len(found) == 50
    assert {image.tobytes() for image in found} <= training
    assert not training & {image.tobytes() for image in images["test_images"]}


def test_ranges_from_a_folder(exported, tmp_path):
    rng = np.random.default_rng(0)
    for i in range(20):
        Image.fromarray(rng.integers(0, 256, (12 + i, 20, 3), np.uint8)).save(tmp_path / f"{i}.png")
    said = int8.quantise(str(exported), str(tmp_path / "out.onnx"), str(tmp_path))
    about = json.loads((tmp_path / "out.onnx.json").read_text())
    assert about["quantised"]["calibration"] == {"images": 10, "of": str(tmp_path), "ranges": "minmax"}
    assert "cosine to float32" in said[0]
    for path in list(tmp_path.glob("1*.png")):
        path.unlink()
    with pytest.raises(SimclrError, match="9 images: ranges need 16"):
        int8.quantise(str(exported), str(tmp_path / "out2.onnx"), str(tmp_path))


@pytest.mark.parametrize(
    ("flags", "target"),
    [("avx2 sse4_1", "x86"), ("avx2 avx512_vnni", "x86-vnni"), ("avx_vnni", "x86-vnni"), (None, "x86")],
)
def test_the_target_of_a_processor(flags, target, tmp_path, monkeypatch):
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    if flags is not None:
        (tmp_path / "cpuinfo").write_text(f"flags : {flags}\n")
    assert int8.here(tmp_path / "cpuinfo") == target
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    assert int8.here(tmp_path / "cpuinfo") == "arm"


@pytest.mark.slow
def test_the_table(run, exported, quantised, tmp_path, capsys):
    """The scores of the float32 artefact are those of the encoder's own features."""
    code, said, _ = called(
        capsys, "--compare", str(exported), str(quantised["x86"]), f"--out={tmp_path / 't.json'}"
    )
    assert code == 0
    assert said.count(".onnx") == 2
    rows = json.loads((tmp_path / "t.json").read_text())["rows"]
    assert rows[0]["size"] == exported.stat().st_size
    assert all(ms > 0 for row in rows for ms in row["ms"].values())
    own, images = encoder.load(run), np.load(run.parent / "images.npz")
    train, test = (
        Features(own(images[f"{part}_images"], preprocess=True), images[f"{part}_labels"])
        for part in ("train", "test")
    )
    config = load_config(run)[0]
    expected = scores.score(
        scores.Contender("simclr", train, test, None), 4, sharding.make_mesh(1), config.eval
    )
    for name in ("knn", "linear_all"):
        assert rows[0]["scores"][name]["value"] == pytest.approx(expected[name].cell.value)
        assert rows[1]["scores"][name]["value"] == pytest.approx(expected[name].cell.value, abs=0.1)
