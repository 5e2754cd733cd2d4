"""The formats beside ONNX compute what the run computes, for images of any size and number."""

import datetime
import functools
import importlib.util
import re
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from test_export_onnx import LIMIT, VARIANTS, an_encoder, apart, every_endpoint, photos

from simclr_jax.errors import SimclrError
from simclr_jax.export import formats, litert, preprocess, run, stablehlo, torch_files
from simclr_jax.export.contract import Options
from simclr_jax.feeds.images import ImageReader
from simclr_jax.models import simclr

ENDS = ("features", "projection", "logits", "block_group2")
SHAPES = ((1, 53, 41), (5, 40, 61))  # (n, h, w)


@pytest.fixture(scope="module")
def encoder():
    """The small CNN with a classifier; its images are cropped, resized and normalised."""
    data = {"data__mean": (0.5, 0.4, 0.3), "data__std": (0.2, 0.3, 0.25), "eval__crop": 0.9}
    return an_encoder(encoder="cnn", width=0.125, size=36, data=data)


@functools.cache
def right(encoder, ends, shape):
    """The run's own outputs for `photos(*shape)`."""
    return run.reference(encoder, ends)(photos(*shape))


def assert_equal(artefact, encoder, ends=ENDS, shapes=SHAPES):
    for shape in shapes:
        found = artefact(photos(*shape))
        assert set(ends) <= found.keys()
        far = {name: apart(found[name], right(encoder, ends, shape)[name]) for name in ends}
        assert {name: gap for name, gap in far.items() if not gap <= LIMIT} == {}


# LiteRT comes from what the SavedModel has: make test-all alone writes and compiles that, for half a minute.
FORMS = ["stablehlo", "litert", pytest.param("savedmodel", marks=pytest.mark.slow)]


@pytest.mark.parametrize("form", FORMS)
def test_computes_what_the_run_computes(form, encoder, tmp_path):
    written = formats.writer(form)(encoder, ENDS, tmp_path / "artefact", Options())
    assert written.files == [tmp_path / "artefact"]
    assert written.files[0].exists()
    # TensorFlow compiles for each shape.
    assert_equal(written.run, encoder, shapes=SHAPES[1:] if form == "savedmodel" else SHAPES)


def test_the_reference_is_the_encoder(encoder):
    images = photos(*SHAPES[0])
    right_one = right(encoder, ENDS, SHAPES[0])["features"]
    assert apart(encoder(images, preprocess=True), right_one) < 1e-5


@pytest.mark.parametrize("name", [
    "tutorial", "vit, learned", pytest.param("selective kernels, large stem", marks=pytest.mark.slow),
    pytest.param("vit, mean", marks=pytest.mark.slow),
])  # fmt: skip
def test_every_encoder_takes_a_symbol_for_the_batch(name):
    encoder = an_encoder(**VARIANTS[name])
    apply = functools.partial(preprocess.function(encoder, ENDS[:3]), encoder.variables)
    images = jax.ShapeDtypeStruct(export.symbolic_shape("n, h, w, 3"), jnp.uint8)
    program = export.export(jax.jit(apply))(images)
    assert [str(each.shape) for each in program.out_avals[1:]] == ["(n, 3)", "(n, 8)"]


@pytest.mark.parametrize("form", ["stablehlo", "litert"])
def test_an_encoder_that_wants_a_number_of_images_says_so(form, encoder, tmp_path, monkeypatch):
    monkeypatch.setattr(simclr, "endpoints", lambda model, variables, x: {"final_avg_pool": x[: len(x)]})
    with pytest.raises(SimclrError, match=r"'cnn': cannot be traced for any number of images") as caught:
        formats.writer(form)(encoder, ENDS[:1], tmp_path / "artefact", Options())
    assert "\n" not in str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["savedmodel", "litert"])
@pytest.mark.parametrize("name", ["tutorial", "resnet18, torch", "selective kernels, large stem", "vit"])
def test_other_encoders_in_tensorflow(name, form, tmp_path):
    encoder = an_encoder(**VARIANTS[name])
    written = formats.writer(form)(encoder, ENDS[:3], tmp_path / "artefact", Options())
    assert_equal(written.run, encoder, ENDS[:3], SHAPES[:1])


# ---- the evaluation view ------------------------------------------------------------------------------

VIEWS = {  # (size, crop, resize)
    "small": (20, 0.875, "bicubic"),
    "small, cut": (32, 0.875, "none"),
    "crop in float32": (33, 0.875, "bicubic"),
    "crop in float64": (40, 0.9, "bilinear"),
    "cut": (40, 0.35, "none"),
}


@pytest.mark.parametrize("name", VIEWS)
def test_view_of_any_size(name):
    size, crop, resize = VIEWS[name]
    reader = ImageReader(size, 2, (0.5, 0.4), (0.2, 0.3), (0, 0, 0), crop, resize)
    images = jax.ShapeDtypeStruct(export.symbolic_shape("n, h, w, 2"), jnp.uint8)
    view = export.export(jax.jit(lambda x: preprocess.pixels(x, reader)))(images)
    prepare = jax.jit(lambda x: reader.prepare(x, True, jnp.float32))
    some = photos(2, 45, 35, channels=2)
    np.testing.assert_allclose(view.call(some), prepare(some), atol=2e-6, rtol=2e-6)  # rounded apart


@pytest.mark.parametrize("crop", [0.875, 0.9, 0.35])
def test_side_is_pythons_round(crop):
    """Half an even and half an odd number, and products that float64 does not hold."""
    shorter = np.arange(1, preprocess.LARGEST)
    expected = [round(crop * int(n)) for n in shorter]
    np.testing.assert_array_equal(preprocess.side_of(jnp.asarray(shorter, jnp.int32), crop), expected)


@pytest.mark.parametrize(
    ("layer", "ends", "held"),
    [
        (0, ("features", "logits"), False),
        (1, ("features", "logits"), True),
        (1, ("features",), True),
        (0, ("features", "projection_1"), True),
    ],
)
def test_a_head_that_is_not_asked_for_stays_behind(layer, ends, held):
    encoder = an_encoder(**VARIANTS["cnn"], probe_layer=layer)
    variables = preprocess.needed(encoder, ends)
    assert ("projection" in variables["params"], "projection" in variables["batch_stats"]) == (held, held)
    images = jax.ShapeDtypeStruct((2, 40, 40, 3), jnp.uint8)
    found = jax.eval_shape(preprocess.function(encoder, ends), variables, images)
    assert found.keys() == set(ends)


# ---- StableHLO ----------------------------------------------------------------------------------------


def test_expiry():
    for day, expected in (
        ((2026, 11, 27), (2027, 5, 27)),
        ((2026, 6, 30), (2026, 12, 28)),
        ((2026, 8, 31), (2027, 2, 28)),
    ):
        assert stablehlo.expiry(datetime.date(*day)) == datetime.date(*expected)


def test_platforms(encoder, tmp_path):
    for platforms, match in ((("cpu", "abacus"), "no 'abacus'; there are"), (("tpu",), "must include cpu")):
        with pytest.raises(SimclrError, match=f"--platforms.*{match}"):
            stablehlo.write(encoder, ENDS, tmp_path / "file", Options(platforms))
    assert not (tmp_path / "file").exists()
    written = stablehlo.write(encoder, ENDS[:1], tmp_path / "file", Options(("cpu", "tpu")))
    assert written.notes["platforms"] == ["cpu", "tpu"]
    program = export.deserialize(bytearray((tmp_path / "file").read_bytes()))
    assert program.platforms == ("cpu", "tpu")
    assert str(program.in_avals[0].shape) == "(n, h, w, 3)"


# ---- LiteRT -------------------------------------------------------------------------------------------


def test_litert_says_what_it_refuses(encoder, tmp_path, monkeypatch):
    """Its converter has no operator for a gather from a symbolic number of rows."""

    def no_operator(model, variables, x):
        return {"final_avg_pool": x.reshape(x.shape[0], -1)[:, 0][:, None]}

    monkeypatch.setattr(simclr, "endpoints", no_operator)
    with pytest.raises(SimclrError, match="--format=litert: its converter refuses this encoder") as caught:
        litert.write(encoder, ENDS[:1], tmp_path / "file", Options())
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "file").exists()


# ---- PyTorch ------------------------------------------------------------------------------------------


IMPORTS = re.compile(r"^\s*(?:from|import) simclr_jax", re.M)


def imported(folder):
    """The folder, imported as the package `artefact`."""
    places = [str(folder)]
    spec = importlib.util.spec_from_file_location(
        "artefact", folder / "__init__.py", submodule_search_locations=places
    )
    module = sys.modules["artefact"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", [
    "cnn, odd maps", "tutorial", "resnet18, torch", "selective kernels, large stem", "vit, learned",
    "vit, mean",
])  # fmt: skip
def test_torch(name, tmp_path, monkeypatch):
    torch = pytest.importorskip("torch")
    encoder = an_encoder(**VARIANTS[name])
    ends = tuple(each for each in every_endpoint(encoder) if each != "attention")
    written = torch_files.write(encoder, ends, tmp_path / "artefact", Options())
    assert not [file for file in written.files[0].glob("*.py") if IMPORTS.search(file.read_text())]
    monkeypatch.setitem(sys.modules, "artefact.resnet", None)
    del sys.modules["artefact.resnet"]
    model = imported(tmp_path / "artefact").load()

    def own(images):
        with torch.no_grad():
            return {name: x.numpy() for name, x in model(torch.from_numpy(images)).items()}

    for artefact in (own, written.run):
        assert_equal(artefact, encoder, ends, SHAPES[1:])


def test_torch_has_no_such_endpoint(tmp_path):
    pytest.importorskip("torch")
    written = torch_files.write(an_encoder(**VARIANTS["vit"]), ("attention",), tmp_path / "x", Options())
    with pytest.raises(SimclrError, match="--endpoints: no 'attention' in PyTorch"):
        written.run(photos(1, 40, 40))


@pytest.mark.parametrize("name", ["cnn", "tutorial", "vit", "resnet18, torch"])
def test_every_parameter_goes_to_torch(name):
    """As many numbers, and no two places for one; fixed positions come on top."""
    encoder = an_encoder(**VARIANTS[name])
    tensors, fields = torch_files.STATES[encoder.config.model.encoder](encoder)
    ours = sorted(np.concatenate([leaf.ravel() for leaf in jax.tree.leaves(encoder.variables)]))
    own = {key: x for key, x in tensors.items() if key != "pos_embed" or "tokens" not in fields}
    np.testing.assert_array_equal(ours, sorted(np.concatenate([x.ravel() for x in own.values()])))
    assert fields["classes"] == 3


def test_torch_refuses(encoder, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "torch", None)
        with pytest.raises(SimclrError, match="--format=torch: comparing it with the run needs PyTorch"):
            torch_files.write(encoder, ENDS, tmp_path / "x", Options())
    monkeypatch.setattr(torch_files, "import_torch", lambda why: None)
    monkeypatch.delitem(torch_files.STATES, "cnn")
    with pytest.raises(SimclrError, match="'cnn': has no PyTorch module, only resnet, tutorial, vit have"):
        torch_files.write(encoder, ENDS, tmp_path / "x", Options())


def test_the_folders_code_needs_only_torch():
    text = Path(torch_files.__file__).with_name("torch_module.py").read_text()
    top = [line for line in text.splitlines() if line.startswith(("import ", "from "))]
    assert {line.split()[1].split(".")[0] for line in top} == {"json", "pathlib", "torch", "simclr_jax"}
    assert text.count("simclr_jax") == text.count("from simclr_jax.convert.torch_module import") == 1
