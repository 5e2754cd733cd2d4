"""ONNX files compute what the run computes, for every kind of encoder."""

import ast
import hashlib
import json
import subprocess
import sys
from pathlib import Path

import conftest
import jax
import numpy as np
import onnx
import onnxruntime
import pytest
import toys
from onnx import helper
from PIL import Image

import simclr_jax
from simclr_jax import files, registry
from simclr_jax.convert import workdir as conversion
from simclr_jax.encoder import Encoder
from simclr_jax.errors import SimclrError
from simclr_jax.export import __main__ as command
from simclr_jax.export import formats, onnx_model, run, service
from simclr_jax.export import preprocess as preprocess_of_others
from simclr_jax.export.contract import Options
from simclr_jax.export.onnx_graph import Graph, Map
from simclr_jax.export.onnx_preprocess import preprocess
from simclr_jax.models import simclr

RESNET = {"encoder": "resnet", "width": 0.125, "blocks": (1, 1), "stem": "cifar", "depth": 50}
VIT = {"encoder": "vit", "vit__patch": 8, "vit__width": 16, "vit__depth": 1, "vit__heads": 2}
VARIANTS = {  # fields of config.model; size: of images, 32 unless told
    "cnn": {"encoder": "cnn", "width": 0.125},
    "cnn, odd maps": {"encoder": "cnn", "width": 0.125, "size": 36},
    "cnn, groups": {"encoder": "cnn", "width": 0.125, "norm_groups": 4},
    "tutorial": {"encoder": "tutorial", "width": 0.125, "size": 28},
    "resnet50": {**RESNET, "blocks": (2, 1)},
    "resnet18": {**RESNET, "depth": 18},
    "resnet18, torch": {**RESNET, "depth": 18, "variant": "torch"},
    "resnet50, torch, large stem": {**RESNET, "variant": "torch", "stem": "imagenet", "size": 65},
    "large stem": {**RESNET, "stem": "imagenet", "size": 66},
    "large stem, odd": {**RESNET, "stem": "imagenet", "depth": 18, "size": 75},
    "padded stem": {**RESNET, "stem": "cifar_pad2", "depth": 18},
    "selective kernels": {**RESNET, "sk_ratio": 0.0625},
    "selective kernels, large stem": {**RESNET, "sk_ratio": 0.0625, "stem": "imagenet", "size": 72},
    "basic blocks of sk": {**RESNET, "sk_ratio": 0.0625, "depth": 18, "size": 30},
    "squeeze and excitation": {**RESNET, "se_ratio": 0.25},
    "both, bfloat16": {**RESNET, "sk_ratio": 0.0625, "se_ratio": 0.25, "dtype": "bfloat16"},
    "vit": {**VIT, "vit__depth": 2},
    "vit, learned": {**VIT, "vit__positions": "learned", "vit__layer_scale": 0.1, "vit__qkv_bias": False},
    "vit, mean": {**VIT, "vit__pool": "mean", "size": 40},
}
# make test-all runs these; others have their parts.
SLOW = (
    "cnn", "cnn, groups", "resnet18", "resnet50", "large stem", "large stem, odd", "padded stem",
    "selective kernels", "basic blocks of sk", "squeeze and excitation", "vit, learned",
)  # fmt: skip
# The bound of the issue, over the values' root mean square.
LIMIT = 1e-4


def an_encoder(classes=3, size=32, channels=3, data=(), seed=0, **fields):
    """An encoder with random parameters and random moving averages."""
    fields = {f"model__{name}": value for name, value in fields.items()}
    fields |= {"data__image_size": size, "data__channels": channels, **dict(data)}
    config = conftest.tiny_config(**fields)
    names = tuple("abcdefghij"[:classes])
    model = simclr.create(config.model, classes=classes)
    example = jax.ShapeDtypeStruct((2, size, size, channels), model.encoder.dtype)
    shapes = jax.eval_shape(lambda x: simclr.init(model, jax.random.key(0), x), example)
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        name = path[-1].key
        if name in ("var", "scale"):
            return rng.uniform(0.5, 2, leaf.shape).astype(np.float32)
        scale = np.sqrt(2 / max(np.prod(leaf.shape[:-1]), 1)) if name == "kernel" else 0.3
        return (scale * rng.standard_normal(leaf.shape)).astype(np.float32)

    variables = jax.tree_util.tree_map_with_path(draw, shapes)
    return run.in_float32(Encoder(config, names, 7, variables))


def session_of(encoder, endpoints, full=True):
    """{endpoint: values} of the ONNX graph, as a function of images; the model has passed the checker."""
    model = onnx_model.build(encoder, endpoints)
    onnx.checker.check_model(model, full_check=full)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return lambda images: dict(zip(endpoints, session.run(list(endpoints), {"images": images}), strict=True))


def photos(n, height, width, channels=3, seed=1):
    """Smooth uint8 images."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (n, -(-height // 8), -(-width // 8), channels))
    smooth = np.kron(coarse, np.ones((1, 8, 8, 1)))[:, :height, :width]
    return np.clip(smooth + rng.normal(0, 20, smooth.shape), 0, 255).astype(np.uint8)


def apart(found, right):
    """The largest difference over the root mean square."""
    assert found.shape == right.shape
    assert found.dtype == np.float32
    return np.max(np.abs(found - right)) / np.sqrt(np.mean(right**2))


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in VARIANTS]
)
def test_every_endpoint_of_every_encoder(name):
    encoder = an_encoder(**VARIANTS[name])
    images = photos(5, 40, 52)
    right = run.reference(encoder, every_endpoint(encoder))(images)
    found = session_of(encoder, tuple(right))(images)
    assert {"features", "projection", "projection_1", "logits"} < right.keys()
    far = {each: apart(found[each], right[each]) for each in right}
    assert {each: gap for each, gap in far.items() if not gap <= LIMIT} == {}


def every_endpoint(encoder):
    side, channels = encoder.reader.size, encoder.reader.channels
    example = jax.ShapeDtypeStruct((1, side, side, channels), np.float32)
    ends = jax.eval_shape(lambda x: simclr.endpoints(encoder.model, encoder.variables, x), example)
    return ("features", *(each for each in ends if each != "features"))


# ---- preprocessing --------------------------------------------------------------------------------------

GRAY = {"channels": 1, "encoder": "cnn", "width": 0.125}
VIEWS = {  # size: of the encoder; data and evaluation as in a config
    "whole, bicubic": {"size": 20},
    "whole, bilinear": {"size": 20, "data": {"eval__resize": "bilinear"}},
    "crop, bicubic": {"size": 40},
    "crop, bilinear": {"size": 40, "data": {"eval__resize": "bilinear", "eval__crop": 0.7}},
    "crop, none": {"size": 40, "data": {"eval__resize": "none"}},
    "normalised": {
        "size": 33, "channels": 3,
        "data": {"data__mean": (0.5, 0.4, 0.3), "data__std": (0.2, 0.3, 0.25)},
    },
}  # fmt: skip
SIZES = ((45, 46), (31, 57), (113, 77), (1, 9))  # (height, width)


@pytest.fixture(scope="module", params=VIEWS)
def view(request):
    """(an encoder, its preprocessing by ONNX as a function of images)."""
    encoder = an_encoder(**{**GRAY, **VIEWS[request.param]})
    return encoder, view_of(encoder)


def view_of(encoder):
    """The preprocessing of an encoder by ONNX, as a function of images."""
    graph = Graph()
    preprocess(graph, "images", encoder.reader)
    side, channels = encoder.reader.size, encoder.reader.channels
    images = helper.make_tensor_value_info("images", onnx.TensorProto.UINT8, ["n", "h", "w", channels])
    pixels = helper.make_tensor_value_info("pixels", onnx.TensorProto.FLOAT, ["n", side, side, channels])
    model = graph.model([images], [pixels], {})
    onnx.checker.check_model(model, full_check=True)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return lambda images: session.run(["pixels"], {"images": images})[0]


def test_the_evaluation_view_of_any_size(view):
    encoder, pixels = view
    images = [photos(2, *size, channels=encoder.reader.channels) for size in SIZES]
    prepare = jax.jit(lambda images: [encoder.reader.prepare(each, True, np.float32) for each in images])
    for each, right in zip(images, prepare(images), strict=True):
        found = pixels(each)
        # The table of the cubic moves pixels by 1e-3 where rounding falls otherwise; a byte is 4e-3.
        np.testing.assert_allclose(found, right, atol=2e-3)
        assert np.mean(np.abs(found - right)) < 2e-5


def test_an_image_too_small_to_crop_gives_a_pixel_of_it():
    """As of the other formats, where the run itself refuses it."""
    encoder = an_encoder(**GRAY, size=40, data={"eval__crop": 0.3})
    (image,) = photos(1, 1, 1, channels=1)
    images = np.stack([image])
    right = preprocess_of_others.pixels(images, encoder.reader)
    np.testing.assert_allclose(view_of(encoder)(images), right, atol=1e-6)
    assert np.ptp(right) == 0


def test_images_of_the_views_own_size_are_not_touched(view):
    encoder, pixels = view
    side = run.native_side(encoder.reader)
    images = photos(1, side, side, channels=encoder.reader.channels)
    margin = (side - encoder.reader.size + 1) // 2
    inside = slice(margin, margin + encoder.reader.size)
    right = images[:, inside, inside] / np.float32(255)
    if encoder.reader.mean:
        right = (right - np.float32(encoder.reader.mean)) / np.float32(encoder.reader.std)
    np.testing.assert_allclose(pixels(images), right, atol=1e-6)


@pytest.mark.parametrize("name", ["cnn", "tutorial", "vit"])
def test_any_number_of_images(name):
    encoder = an_encoder(**VARIANTS[name])
    encode, side = session_of(encoder, ("features", "logits")), run.native_side(encoder.reader)
    images = photos(5, side, side)
    whole = encode(images)["features"]
    for n in (0, 1, 5):
        np.testing.assert_allclose(encode(images[:n])["features"], whole[:n], rtol=1e-4, atol=1e-5)
        assert encode(images[:n])["logits"].shape == (n, 3)


# ---- the graph ------------------------------------------------------------------------------------------


def test_batch_norm_is_gone_and_nothing_is_there_in_vain():
    encoder = an_encoder(**VARIANTS["both, bfloat16"])
    small, large = (onnx_model.build(encoder, names) for names in (("features",), ("features", "logits")))
    assert "BatchNormalization" not in {node.op_type for node in large.graph.node}
    assert len(large.graph.initializer) == len(small.graph.initializer) + 2  # of the classifier alone
    used = {name for node in small.graph.node for name in node.input}
    assert {each.name for each in small.graph.initializer} <= used
    assert "encoder/stem_conv/kernel" in used


def test_the_graph_tells_of_itself():
    model = onnx_model.build(an_encoder(**VARIANTS["cnn"]), ("features", "logits", "block_group1"))
    about = json.loads({each.key: each.value for each in model.metadata_props}["simclr_jax"])
    assert about["outputs"] == {"features": 64, "logits": 3, "block_group1": [16, 16, 4]}
    assert about["input"] == {"name": "images", "channels": 3, "size": 32, "crop": 0.875, "resize": "bicubic"}
    assert about["classes"] == ["a", "b", "c"]
    assert about["run"]["architecture"]["encoder"] == "cnn"
    assert "vit" not in about["run"]["architecture"]
    assert "source" not in about["run"]["data"]  # a path of the user's
    assert [d.dim_param for d in model.graph.input[0].type.tensor_type.shape.dim[:3]] == ["n", "h", "w"]


def test_weights_of_a_large_model_stand_beside_it(tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_model, "MOST", 1000)
    encoder = an_encoder(**VARIANTS["cnn"])
    written = onnx_model.write(encoder, ("features",), tmp_path / "large.onnx", Options())
    assert (tmp_path / "large.onnx.data") in written.files
    onnx.checker.check_model(str(tmp_path / "large.onnx"), full_check=True)
    images = photos(2, 32, 32)
    assert apart(written.run(images)["features"], encoder(images, preprocess=True)) < LIMIT


def test_an_encoder_without_a_writer_says_so_until_it_has_one(monkeypatch):
    monkeypatch.setitem(registry.ENCODERS, "toy", registry.Entry("toys:create", toys.ENCODER_FACTS))
    encoder = an_encoder(encoder="toy", size=16)
    with pytest.raises(SimclrError, match=r"'toy': has no ONNX writer; .*needs none.*BUILDERS"):
        onnx_model.build(encoder, ("features",))

    def build(layers, network, x):
        kernel, bias = layers.folded("patches")  # of a dense layer on patches
        side = network.patch
        weight = layers.weight(kernel.reshape(side, side, 3, -1).transpose(3, 2, 0, 1), "patches/kernel")
        inputs = x.name, weight, layers.graph.constant(bias)
        maps = layers.graph.op("Conv", *inputs, kernel_shape=[side] * 2, strides=[side] * 2)
        x = layers.relu(Map(maps, x.side // side))
        return {"tokens": x, "summary": layers.dense(layers.mean(x), "body")}

    monkeypatch.setitem(onnx_model.BUILDERS, "toy", build)
    images = photos(3, 16, 16)
    found = session_of(encoder, ("features", "tokens"))(images)
    right = run.reference(encoder, ("features", "tokens"))(images)
    assert max(apart(found[name], right[name]) for name in found) < LIMIT


@pytest.mark.parametrize("layers", [0, 1, 3])
def test_a_head_that_ends_early_or_is_missing_gives_what_it_has(layers):
    """As of a run that read a layer in the middle, and of one that restores images."""
    encoder = an_encoder(**VARIANTS["cnn"], projection_layers=3)
    head = encoder.variables["params"]["projection"]
    kept = {name: tree for name, tree in head.items() if int(name[-1]) < layers}
    encoder.variables["params"] = {**encoder.variables["params"], "projection": kept}
    if not kept:
        del encoder.variables["params"]["projection"]
    found = set(onnx_model.ends(encoder, Graph()))
    assert found == set(every_endpoint(encoder))
    assert ("projection" in found) == (layers == 3)


def test_an_encoder_of_tables_is_refused():
    encoder = an_encoder(**VARIANTS["cnn"])
    encoder.reader = object()
    with pytest.raises(SimclrError, match="takes rows of tables"):
        onnx_model.build(encoder, ("features",))


# ---- the command ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A run of a small CNN with a classifier, of random parameters."""
    encoder, folder = an_encoder(size=40, **VARIANTS["cnn"]), tmp_path_factory.mktemp("runs") / "cnn"
    conversion.write(folder, encoder.config, encoder.variables, step=7, origin="random")
    return folder


@pytest.fixture(scope="module")
def exported(workdir, tmp_path_factory):
    """encoder.onnx, as the command wrote it."""
    out = tmp_path_factory.mktemp("artefacts") / "encoder.onnx"
    command.main([f"--workdir={workdir}", f"--out={out}"])
    return out


def failed(capsys, *words):
    """The line of a command that fails as a user's mistake."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        command.main(list(words))
    assert end.value.code == 2
    line = capsys.readouterr().err.strip()
    assert "\n" not in line
    return line


def test_what_is_written(workdir, exported):
    names = {"encoder.onnx", "encoder.onnx.json", "encoder.requirements.txt", "encoder.config.pbtxt"}
    assert {path.name for path in exported.parent.iterdir()} == names
    about = json.loads(exported.with_name("encoder.onnx.json").read_text())
    assert about["sha256"] == hashlib.sha256(exported.read_bytes()).hexdigest()
    assert (about["schema"], about["format"], about["file"]) == (1, "onnx", "encoder.onnx")
    assert about["outputs"] == {"features": 64, "logits": 3}
    assert about["run"]["workdir"] == str(workdir)
    assert about["run"]["step"] == 7
    assert {"images", "features", "logits", "resized"} == about["parity"].keys()
    assert about["parity"]["features"]["max_over_rms"] < LIMIT
    assert about["parity"]["features"]["cosine_min"] > 0.999999
    assert about["versions"].keys() >= {"simclr_jax", "jax", "onnx", "onnxruntime"}
    triton = exported.with_name("encoder.config.pbtxt").read_text()
    assert '{ name: "images", data_type: TYPE_UINT8, dims: [ -1, -1, 3 ] }' in triton
    assert '{ name: "features", data_type: TYPE_FP32, dims: [ 64 ] },' in triton


def test_the_file_computes_what_the_run_does(workdir, exported):
    encoder, images = simclr_jax.load(workdir), photos(5, 46, 46)
    found = onnx_model.runner(exported)(images)
    assert apart(found["features"], encoder(images, preprocess=True)) < LIMIT
    assert apart(found["logits"], encoder.logits(images, preprocess=True)) < LIMIT


def test_nothing_is_replaced_unless_told(workdir, exported, capsys):
    before = exported.read_bytes()
    (exported.parent / ".encoder.onnx.tmp").mkdir()  # of a killed command
    line = failed(capsys, f"--workdir={workdir}", f"--out={exported}")
    assert "encoder.onnx is there; give another name, or --again" in line
    other = exported.with_name("encoder.x")  # the files beside it would have the same names
    line = failed(capsys, f"--workdir={workdir}", f"--out={other}")
    assert "encoder.requirements.txt is there; give another name, or --again" in line
    line = failed(capsys, f"--workdir={workdir}", f"--out={exported}", "--again", "--tolerance=1e-12")
    assert "features differ from the run's by" in line
    assert exported.read_bytes() == before
    assert len(list(exported.parent.iterdir())) == 4  # and nothing is left over


def test_a_folder_beside_some_json_stays(workdir, tmp_path, capsys):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "one").touch()
    (tmp_path / "data.json").write_text('{"file": "elsewhere"}')
    line = failed(capsys, f"--workdir={workdir}", f"--out={tmp_path / 'data'}", "--format=torch", "--again")
    assert "is a folder of something else" in line


@pytest.mark.parametrize("before", ["file", "folder"])
@pytest.mark.parametrize("after", ["file", "folder"])
def test_a_folder_and_a_file_replace_each_other(before, after, tmp_path):
    def make(parent, kind, content):
        path = parent / "x"
        if kind == "folder":
            path.mkdir()
        (path / "inside" if kind == "folder" else path).write_text(content)
        return path

    make(tmp_path, before, "old")
    (tmp_path / ".x.tmp").mkdir()
    moved = files.move(make(tmp_path / ".x.tmp", after, "new"), tmp_path)
    assert moved == tmp_path / "x"
    assert (moved / "inside" if after == "folder" else moved).read_text() == "new"


def test_images_of_one_line_are_compared_too():
    for shape in ((1, 9, 3), (9, 1, 1)):
        image = photos(1, *shape)[0]
        np.testing.assert_array_equal(run.square(image, 1)[0, 0], image[shape[0] // 2, shape[1] // 2])


def test_real_images_and_other_endpoints(workdir, tmp_path, capsys):
    for number, size in enumerate([(60, 80), (41, 33), (12, 200)]):
        Image.fromarray(photos(1, *size)[0]).save(tmp_path / f"{number}.png")
    words = [f"--workdir={workdir}", f"--out={tmp_path / 'x.onnx'}", "--endpoints=projection,block_group2"]
    command.main([*words, f"--check={tmp_path}"])
    said = capsys.readouterr().out
    assert "features, 3 images at the encoder's size:" in said
    assert "projection, 3 images resized:" in said
    about = json.loads((tmp_path / "x.onnx.json").read_text())
    assert about["outputs"] == {"features": 64, "projection": 8, "block_group2": [10, 10, 8]}
    assert about["classes"] == []  # of logits that are not there


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--workdir=RUN"], "--out is missing: for example --out=encoder.onnx"),
        (["--out=x.onnx"], "--workdir is missing"),
        (["--workdir=RUN", "--out=x.onnx", "--format=oonx"], "--format=oonx: must be one of onnx, stablehlo"),
        (["--workdir=RUN", "--out=x.onnx", "--endpoints=z"], "--endpoints: no 'z'; there are "),
        (["--workdir=RUN", "--out=x.onnx", "--check=EMPTY"], "no image file there"),
        (["--workdir=RUN", "--out=gs://x/x.onnx"], "--out=gs://x/x.onnx: must be a local path"),
        (["--workdir=RUN", "--out=RUN"], "is a folder of something else"),
        (["--workdir=EMPTY", "--out=x.onnx"], "config.json"),
        (["--workdir=RUN", "--out=x.onnx", "--tolerance=0"], "--tolerance=0.0: must be above 0"),
        (["--workdir=RUN", "--out=x.onnx", "--platforms=tpu"], "--platforms: is of --format=stablehlo"),
        (["--workdir=RUN", "--out=x.onnx", "--opset=9"], "'--opset=9': not understood"),
    ],
    ids=lambda value: "-".join(value[-1:]) if isinstance(value, list) else "",
)
def test_mistakes_are_told_in_a_line(workdir, tmp_path, monkeypatch, capsys, words, told):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "EMPTY").mkdir()
    line = failed(capsys, *(word.replace("RUN", str(workdir)) for word in words))
    assert told in line
    assert not (tmp_path / "x.onnx").exists()


def test_the_requirements_are_those_of_the_extra():
    tree = ast.parse((Path(__file__).parent.parent / "setup.py").read_text())
    assigned = {
        ast.unparse(node.targets[0]): node.value for node in tree.body if isinstance(node, ast.Assign)
    }
    listed = ast.literal_eval(assigned["SERVE"])
    assert listed == list(service.REQUIREMENTS) == service.requirements().splitlines()[1:]


def test_help_needs_no_jax():
    code = (
        "import runpy, sys, contextlib\nsys.argv = ['x', '--help']\nwith contextlib.suppress(SystemExit):\n"
        "    runpy.run_module('simclr_jax.export', run_name='__main__')\nsys.exit('jax' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, capture_output=True).returncode == 0


def test_a_library_that_is_missing_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    monkeypatch.delitem(sys.modules, "simclr_jax.export.onnx_model")
    with pytest.raises(SimclrError, match=r"onnx is missing: pip install 'simclr_jax\[onnx\]'"):
        formats.writer("onnx")
