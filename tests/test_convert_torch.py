"""PyTorch's state dicts: torchvision's own outputs, layouts of other projects, bit-equal ways back.

`torch_resnet.npz` holds what torchvision's models make of `state_of` and `images_of`; written by
`python tests/test_convert_torch.py` where torch and torchvision are installed.
"""

import importlib.util
import json
import sys
import zlib
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

import simclr_jax
from simclr_jax.convert import __main__ as command
from simclr_jax.convert import names
from simclr_jax.convert import torch as convert_torch
from simclr_jax.convert import workdir as conversion
from simclr_jax.errors import SimclrError

FIXTURE = Path(__file__).parent / "fixtures" / "torch_resnet.npz"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CLASSES = 10
F = np.float32
GOLDEN = {  # name: (blocks, bottleneck, stem's kernel and padding, pixels)
    "resnet18": ((2, 2, 2, 2), False, (7, 3), 64),
    "resnet50": ((3, 4, 6, 3), True, (7, 3), 64),
    "odd": ((1, 1, 1, 1), False, (7, 3), 75),
    "cifar": ((1, 1, 1, 1), True, (3, 1), 32),
    "cifar_pad2": ((1, 1, 1, 1), False, (3, 2), 31),
}


# ---- state dicts by recipe ------------------------------------------------------------------------


def rng_of(name):
    return np.random.default_rng(zlib.crc32(name.encode()))


def array_of(name, shape):
    """A variable by its name alone: He-normal weights, BatchNorms near the identity."""
    rng, leaf = rng_of(name), name.rpartition(".")[2]
    if leaf == "num_batches_tracked":
        return np.int64(7).reshape(())
    if len(shape) > 1:
        scale = (2 / np.prod(shape[1:])) ** 0.5
        return rng.normal(0, scale, shape).astype(F)
    low, high = {"weight": (0.5, 1.0), "running_var": (0.5, 1.5)}.get(leaf, (-0.2, 0.2))
    return rng.uniform(low, high, shape).astype(F)


def shapes_of(blocks, bottleneck, kernel, width=1.0, classes=CLASSES, counters=True):
    """Names and shapes of torchvision's ResNet, in its order."""
    shapes = {}

    def conv(name, *shape):
        shapes[f"{name}.weight"] = shape

    def norm(name, features):
        for leaf in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{name}.{leaf}"] = (features,)
        if counters:
            shapes[f"{name}.num_batches_tracked"] = ()

    out = int(64 * width)
    conv("conv1", out, 3, kernel, kernel)
    norm("bn1", out)
    for g, count in enumerate(blocks, 1):
        for b in range(count):
            features, block = int(64 * 2 ** (g - 1) * width), f"layer{g}.{b}"
            after = features * (4 if bottleneck else 1)
            sizes = [(features, 1), (features, 3), (after, 1)] if bottleneck else [(features, 3), (after, 3)]
            before = out
            for i, (size, k) in enumerate(sizes, 1):
                conv(f"{block}.conv{i}", size, before, k, k)
                norm(f"{block}.bn{i}", size)
                before = size
            if b == 0 and (g > 1 or out != after):
                conv(f"{block}.downsample.0", after, out, 1, 1)
                norm(f"{block}.downsample.1", after)
            out = after
    if classes:
        shapes |= {"fc.weight": (classes, out), "fc.bias": (classes,)}
    return shapes


def state_of(*args, **kwargs):
    return {name: array_of(name, shape) for name, shape in shapes_of(*args, **kwargs).items()}


def images_of(size, n=2):
    """[n, size, size, 3] in [0, 1]."""
    return rng_of(f"images {size}").uniform(0, 1, (n, size, size, 3)).astype(F)


SMALL = {"blocks": (1, 1, 1, 1), "bottleneck": False, "kernel": 7, "width": 0.125}


def small_state(**changes):
    return state_of(**{**SMALL, "classes": 0, **changes})


def save(path, state, metadata=None):
    save_file({name: np.asarray(array) for name, array in state.items()}, path, metadata)
    return path


def convert(tmp_path, state, name="run", **kwargs):
    """(workdir, text) of a state dict that went through a file."""
    source = save(tmp_path / f"{name}.safetensors", state)
    workdir = tmp_path / name
    return workdir, convert_torch.convert(source, workdir, **kwargs)


def flat(workdir):
    leaves = jax.tree_util.tree_leaves_with_path(simclr_jax.load(workdir).variables)
    return {jax.tree_util.keystr(path): leaf for path, leaf in leaves}


def assert_equal(a, b):
    assert a.keys() == b.keys()
    for key in a:
        np.testing.assert_array_equal(a[key], b[key], err_msg=key, strict=True)


def off(a, b):
    """The largest difference, of the largest value."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    assert a.shape == b.shape
    return np.abs(a - b).max() / np.abs(b).max()


# ---- torchvision's own outputs --------------------------------------------------------------------


def build(name):
    """torchvision's model of GOLDEN with the recipe's weights."""
    import torch
    from torchvision.models import resnet

    blocks, bottleneck, (kernel, padding), _ = GOLDEN[name]
    model = resnet.ResNet(resnet.Bottleneck if bottleneck else resnet.BasicBlock, blocks, CLASSES)
    if kernel == 3:
        model.conv1 = torch.nn.Conv2d(3, 64, 3, 1, padding, bias=False)
        model.maxpool = torch.nn.Identity()
    state = state_of(blocks, bottleneck, kernel)
    assert list(state) == list(model.state_dict())
    model.load_state_dict({key: torch.tensor(array) for key, array in state.items()})
    return model.eval()


def forward(model, images):
    """(features, logits) of torchvision's model for images [n, h, w, 3] in [0, 1]."""
    import torch

    x = torch.tensor((images - F(MEAN)) / F(STD)).permute(0, 3, 1, 2)
    features = []
    model.fc.register_forward_pre_hook(lambda _, inputs: features.append(inputs[0]))
    with torch.no_grad():
        logits = model(x)
    return features[0].numpy(), logits.numpy()


def write_fixture():
    arrays = {}
    for name in GOLDEN:
        features, logits = forward(build(name), images_of(GOLDEN[name][-1]))
        arrays |= {f"{name}/features": features, f"{name}/logits": logits}
    np.savez(FIXTURE, **arrays)


@pytest.mark.parametrize("name", GOLDEN)
def test_torchvision_outputs(tmp_path, name):
    blocks, bottleneck, (kernel, _), size = GOLDEN[name]
    state = state_of(blocks, bottleneck, kernel)
    if name == "cifar_pad2":
        state = {f"state_dict.backbone.{key}": array for key, array in state.items()}
        state["state_dict.projector.0.weight"] = np.zeros((4, 4), F)
    workdir, text = convert(tmp_path, state)
    encoder = simclr_jax.load(workdir)
    assert encoder.config.model.stem == (name if kernel == 3 else "imagenet")
    assert encoder.config.model.variant == "torch"
    assert encoder.config.data.image_size == (224 if kernel == 7 else 32)
    assert tuple(encoder.config.data.mean) == MEAN
    assert "ImageNet's mean and std" in text
    assert (name in ("resnet18", "resnet50")) == (f"ResNet-{name[-2:]}" in text)
    assert len(encoder.classes) == CLASSES

    @jax.jit
    def both(images):
        ends = encoder.model.apply(encoder.variables, images, method="endpoints")
        return ends["final_avg_pool"], ends["logits"]

    expected = np.load(FIXTURE)
    features, logits = both((images_of(size) - F(MEAN)) / F(STD))
    assert off(features, expected[f"{name}/features"]) < 1e-5
    assert off(logits, expected[f"{name}/logits"]) < 1e-5


def test_the_encoder_normalises(tmp_path):
    workdir, _ = convert(tmp_path, state_of(*GOLDEN["cifar"][:2], 3))
    expected = np.load(FIXTURE)["cifar/features"]
    assert off(simclr_jax.load(workdir)(images_of(32)), expected) < 1e-5


# ---- ways back ------------------------------------------------------------------------------------


@pytest.mark.parametrize("bottleneck", [False, True])
def test_torch_to_workdir_to_torch(tmp_path, bottleneck):
    state = state_of((2, 1, 1, 2), bottleneck, 7, width=0.125)
    state |= {key: np.zeros((), np.int64) for key in state if key.endswith("num_batches_tracked")}
    workdir, _ = convert(tmp_path, state, image_size=96)
    out = tmp_path / "back.safetensors"
    text = convert_torch.export(workdir, out)
    assert "torchvision's names" in text
    assert_equal(load_file(out), {key: np.asarray(array) for key, array in state.items()})
    assert sorted(load_file(out)) == sorted(shapes_of((2, 1, 1, 2), bottleneck, 7, width=0.125))

    again = tmp_path / "again"
    convert_torch.convert(out, again)
    assert_equal(flat(again), flat(workdir))
    before, after = (simclr_jax.load(each).config.to_dict() for each in (workdir, again))
    assert before == after
    assert after["data"]["image_size"] == 96


def random_workdir(path, task="pretrain", classes=0, mean=(), **model):
    """A workdir of random variables: (2, 1, 1, 1) blocks at an eighth of the width."""
    fields = {"blocks": (2, 1, 1, 1), "width": 0.125, "projection_dim": 16, "probe": bool(classes)}
    config = conversion.config_of({**fields, **model}, task=task, image_size=40)
    if mean:
        config.data.mean, config.data.std = mean, STD
    variables = {}
    for leaf, shape in conversion.expected(config, classes).items():
        array = array_of(leaf.torch, shape[::-1]).transpose()
        names.put(variables, leaf.path, np.ascontiguousarray(array))
    conversion.write(path, config, variables, step=3, origin="random")
    return path


ORIGINALS = {
    "sk_se": {"depth": 50, "sk_ratio": 0.0625, "se_ratio": 0.25, "projection_layers": 3, "classes": 5,
              "probe_layer": 1},
    "sk_basic": {"depth": 18, "sk_ratio": 0.0625, "se_ratio": 0.0625, "mean": MEAN},
    "sk_cifar": {"depth": 50, "sk_ratio": 0.25, "stem": "cifar", "projection": "linear"},
    "basic": {"depth": 18, "classes": 4},
    "cut": {"depth": 50, "task": "supervised", "projection_layers": 3, "classes": 4, "probe_layer": 1},
    "pad2": {"depth": 50, "stem": "cifar_pad2", "projection": "none"},
}  # fmt: skip


@pytest.mark.parametrize("kind", ORIGINALS)
def test_original_to_torch_and_back(tmp_path, kind):
    workdir = random_workdir(tmp_path / "run", **ORIGINALS[kind])
    text = convert_torch.export(workdir, tmp_path / "out" / "weights.safetensors")
    assert "simclr_resnet.py" in text
    written = sorted(each.name for each in (tmp_path / "out").iterdir())
    assert written == ["simclr_resnet.py", "weights.json", "weights.safetensors"]

    convert_torch.convert(tmp_path / "out" / "weights.safetensors", tmp_path / "again")
    assert_equal(flat(tmp_path / "again"), flat(workdir))
    before, after = (simclr_jax.load(each) for each in (workdir, tmp_path / "again"))
    assert before.step == after.step == 3
    before, after = (each.config.to_dict() for each in (before, after))
    for each in (before, after):  # a linear head has one layer, none has none
        each["model"]["projection_layers"] *= each["model"]["projection"] == "nonlinear"
    assert before == after


def test_a_head_that_torchvision_has_no_place_for_is_left_out(tmp_path):
    workdir = random_workdir(tmp_path / "run", variant="torch", depth=18, classes=3, probe_layer=1)
    text = convert_torch.export(workdir, tmp_path / "weights.safetensors")
    assert "left out: the projection head and the classifier that reads it" in text
    assert not (tmp_path / "simclr_resnet.py").exists()
    with safe_open(tmp_path / "weights.safetensors", framework="np") as file:
        assert not [key for key in file.keys() if key.startswith(("projection", "fc"))]  # noqa: SIM118
    convert_torch.convert(tmp_path / "weights.safetensors", tmp_path / "again")
    kept = {key: array for key, array in flat(workdir).items() if "encoder" in key}
    assert_equal(flat(tmp_path / "again"), kept)


def test_json_beside_the_file_is_enough_and_somebody_elses_is_not(tmp_path):
    workdir = random_workdir(tmp_path / "run", depth=18)
    convert_torch.export(workdir, tmp_path / "weights.safetensors")
    save(tmp_path / "weights.safetensors", load_file(tmp_path / "weights.safetensors"))
    convert_torch.convert(tmp_path / "weights.safetensors", tmp_path / "again")
    assert_equal(flat(tmp_path / "again"), flat(workdir))

    save(tmp_path / "other.safetensors", small_state())
    (tmp_path / "other.json").write_text('{"architectures": ["ResNet"]}')
    assert "variant torch" in convert_torch.convert(tmp_path / "other.safetensors", tmp_path / "other")


# ---- layouts of other projects --------------------------------------------------------------------

SEQUENTIAL = {"conv1": "0", "bn1": "1", "layer1": "4", "layer2": "5", "layer3": "6", "layer4": "7"}
LIGHTLY = {"conv1": "0", "bn1": "1", "layer1": "2", "layer2": "3", "layer3": "4", "layer4": "5"}
VISSL = "classy_state_dict.base_model.model."


def sequential(key, numbers=SEQUENTIAL):
    first, _, rest = key.partition(".")
    return f"{numbers[first]}.{rest}"


LAYOUTS = {  # name: (new key, the heads beside it and their tensors)
    "data parallel": (lambda key: f"module.{key}", {}),
    "lightly": (
        lambda key: f"state_dict.backbone.{sequential(key)}",
        {"state_dict.projection_head": ["layers.0.weight", "layers.1.bias"]},
    ),
    "lightly bare": (sequential, {}),
    "solo-learn": (
        lambda key: f"state_dict.backbone.{key}",
        {"state_dict.projector": ["0.weight", "0.bias"], "state_dict.classifier": ["weight"]},
    ),
    "vissl": (
        lambda key: f"{VISSL}trunk._feature_blocks.{key}",
        {f"{VISSL}heads": ["0.clf.0.weight", "0.clf.0.bias"]},
    ),
    "mlp beside": (lambda key: f"backbone.{key}", {"backbone.fc": ["0.weight", "2.weight"]}),
}


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return flat(convert(tmp_path_factory.mktemp("small"), small_state())[0])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(tmp_path, small, layout):
    rename, heads = LAYOUTS[layout]
    state = {rename(key): array for key, array in small_state(counters=layout != "vissl").items()}
    state |= {f"{head}.{key}": np.zeros((2, 2), F) for head, keys in heads.items() for key in keys}
    workdir, text = convert(tmp_path, state)
    assert_equal(flat(workdir), small)
    assert simclr_jax.load(workdir).config.model.projection == "none"
    listed = ", ".join(f"{head} ({len(keys)})" for head, keys in sorted(heads.items()))
    assert (f"outside the encoder, {listed}; heads of other projects" in text) == bool(heads)
    assert ("left out" in text) == bool(heads)


def test_lightlys_own_resnet(tmp_path):
    """Numbered without ReLU and max-pool, with shortcuts by another name; padded by one."""
    state = small_state(kernel=3)
    plain, _ = convert(tmp_path, state, "plain")
    renamed = {
        f"backbone.{sequential(key, LIGHTLY)}".replace("downsample", "shortcut"): array
        for key, array in state.items()
    }
    workdir, _ = convert(tmp_path, renamed)
    assert_equal(flat(workdir), flat(plain))
    assert simclr_jax.load(workdir).config.model.stem == "cifar"


def test_two_encoders_and_prefix(tmp_path, small):
    state = {f"backbone.{key}": array for key, array in small_state().items()}
    state |= {f"momentum_backbone.{key}": array + 1 for key, array in small_state().items()}
    with pytest.raises(SimclrError, match=r"holds 2 encoders, backbone., momentum_backbone.: .*--prefix"):
        convert(tmp_path, state)
    with pytest.raises(SimclrError, match=r"--prefix=online: no encoder's in .*; there is backbone."):
        convert(tmp_path, state, prefix="online")
    assert not (tmp_path / "run").exists()
    workdir, text = convert(tmp_path, state, prefix="backbone")
    assert_equal(flat(workdir), small)
    assert "momentum_backbone (" in text


def test_half_precision_becomes_float32(tmp_path):
    state = small_state(counters=False)
    for dtype in (np.float16, jax.numpy.bfloat16, np.float64):
        given = {key: array.astype(dtype) for key, array in state.items()}
        workdir, _ = convert(tmp_path, given, f"run{np.dtype(dtype).itemsize}{np.dtype(dtype).name}")
        found = simclr_jax.load(workdir).variables["params"]["encoder"]["stem_conv"]["kernel"]
        assert found.dtype == F
        expected = given["conv1.weight"].astype(F).transpose(2, 3, 1, 0)
        np.testing.assert_array_equal(found, expected)


# ---- what is refused ------------------------------------------------------------------------------


def edited(**changes):
    state = small_state(classes=3)
    for key, value in changes.items():
        key = key.replace("__", ".")
        state.pop(key) if value is None else state.update({key: np.asarray(value)})
    return state


BAD = {
    "missing": (edited(layer3__0__bn2__bias=None), "lacks 1 variables .*layer3.0.bn2.bias"),
    "extra": (edited(layer1__0__se__weight=F([1])), "have no place .*layer1.0.se.weight"),
    "fifth group": (edited(**{"layer5.0.conv1.weight": F([1])}), r"groups \[1, 2, 3, 4, 5\]"),
    "a biased stem": (edited(conv1__bias=F([1] * 8)), "have no place .*conv1.bias"),
    "shape": (edited(layer2__0__conv2__weight=np.zeros((16, 4, 3, 3), F)), "layer2.0.conv2.weight has"),
    "stem": (edited(conv1__weight=np.zeros((8, 3, 5, 5), F)), "stems are 7×7 or 3×3"),
    "wide": (edited(layer1__0__conv1__weight=np.zeros((16, 8, 3, 3), F)), "layer1.0.conv1.weight has"),
    "not finite": (edited(layer4__0__bn1__running_var=F([np.nan] * 64)), "no finite numbers"),
    "integers": (edited(layer4__0__bn1__bias=np.zeros(64, np.int32)), "not of a float type"),
    "overflow": (edited(layer4__0__bn1__bias=np.full(64, 1e300)), "no finite numbers"),
    "no ResNet": ({"patch_embed.proj.weight": np.zeros((2, 2), F)}, "no ResNet in it .*patch_embed"),
    "empty": ({}, "no tensor at all"),
    "another's": (edited(**{"layer1.0.downsample.0.weight": F([1])}), "has a shortcut in layer1.0"),
    "ours, bare": (edited(projection__dense0__weight=F([1])), "put the .json beside it"),
    "se": (edited(layer1__0__se_module__fc1__weight=F([1])), "have no place"),
    "a scalar fc": (edited(fc__weight=F(1)), "have no place"),
}


def refused(tmp_path, source, match, **kwargs):
    with pytest.raises(SimclrError, match=match) as caught:
        convert_torch.convert(source, tmp_path / "run", **kwargs)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()
    assert not list(tmp_path.glob("*.half"))


@pytest.mark.parametrize("kind", BAD)
def test_bad_weights(tmp_path, kind):
    state, match = BAD[kind]
    refused(tmp_path, save(tmp_path / "bad.safetensors", state), match)


def test_bad_files(tmp_path):
    whole = save(tmp_path / "whole.safetensors", small_state()).read_bytes()
    for content in (b"", b"hello", whole[:-5], whole[:50], b"\xff" * 100):
        (tmp_path / "bad.safetensors").write_bytes(content)
        refused(tmp_path, tmp_path / "bad.safetensors", "cannot be read; is the file whole?")
    refused(tmp_path, tmp_path / "none.safetensors", "no such file")
    refused(tmp_path, tmp_path, "is a folder")


MARKERS = {
    "blocks": ("abc", "damaged"),
    "width": (None, "damaged"),
    "stem": ("other", "describes no model"),
    "mean": ([0.5], "describes no model"),
    "probe_layer": (9, "describes no model"),
    "simclr_jax": (2, "update simclr_jax"),
    "bottleneck": (True, "lacks"),
}


@pytest.mark.parametrize("field", MARKERS)
def test_damaged_marker(tmp_path, field):
    value, match = MARKERS[field]
    convert_torch.export(random_workdir(tmp_path / "own", depth=18), tmp_path / "weights.safetensors")
    fields = json.loads((tmp_path / "weights.json").read_text()) | {field: value}
    metadata = {"simclr_jax": json.dumps(fields)}
    save(tmp_path / "bad.safetensors", load_file(tmp_path / "weights.safetensors"), metadata)
    refused(tmp_path, tmp_path / "bad.safetensors", match)


def test_export_refuses(tmp_path, monkeypatch):
    workdir = random_workdir(tmp_path / "run", depth=18)
    out = tmp_path / "out" / "weights.safetensors"
    with pytest.raises(SimclrError, match=r"must end in \.pth or \.safetensors"):
        convert_torch.export(workdir, tmp_path / "out" / "weights.bin")
    with monkeypatch.context() as patch:
        patch.setattr("safetensors.numpy.save_file", lambda *a, **k: (_ for _ in ()).throw(OSError("full")))
        with pytest.raises(SimclrError, match=r"cannot be written .full."):
            convert_torch.export(workdir, out)
    assert not list((tmp_path / "out").iterdir())
    (tmp_path / "out" / "simclr_resnet.py").write_text("my own\n")
    with pytest.raises(SimclrError, match=r"simclr_resnet\.py: exists already and is another"):
        convert_torch.export(workdir, out)
    (tmp_path / "out" / "simclr_resnet.py").unlink()
    convert_torch.export(workdir, out)
    with pytest.raises(SimclrError, match=r"weights\.safetensors: exists already"):
        convert_torch.export(workdir, out)
    convert_torch.export(workdir, out.with_name("second.safetensors"))  # the module is there already
    out.unlink()
    convert_torch.export(workdir, out)  # and so is the .json
    out.unlink()
    (tmp_path / "out" / "weights.json").write_text("{}")
    with pytest.raises(SimclrError, match=r"weights\.json: exists already and is another"):
        convert_torch.export(workdir, out)


def test_cnn_has_no_place(tmp_path):
    config = conversion.config_of({"encoder": "cnn"})
    with pytest.raises(SimclrError, match="only ResNets"):
        names.leaves(config.model, {})


def test_without_torch(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    (tmp_path / "weights.pth").write_bytes(b"x")
    refused(
        tmp_path,
        tmp_path / "weights.pth",
        r"needs PyTorch: pip install 'torch>=2\.10', or give \.safetensors",
    )
    with pytest.raises(SimclrError, match="needs PyTorch"):
        convert_torch.export(tmp_path, tmp_path / "out.pth")


def test_command_line(tmp_path, capsys):
    source, out = save(tmp_path / "small.safetensors", small_state(classes=3)), tmp_path / "run"
    command.main(["torch", str(source), "--out", str(out)])
    told = capsys.readouterr().out
    assert "ResNet (1, 1, 1, 1) of basic blocks, width 0.125" in told
    assert "fc is taken for a classifier of 3 classes" in told
    command.main(["to-torch", str(out), "--out", str(tmp_path / "back.safetensors")])
    assert (tmp_path / "back.safetensors").exists()
    capsys.readouterr()
    for args in (
        ["torch", str(source), "--out", str(out)],
        ["torch", str(tmp_path / "back.json"), "--out", str(tmp_path / "other"), "--prefix", "x"],
        ["to-torch", str(tmp_path), "--out", str(tmp_path / "other.safetensors")],
    ):
        with pytest.raises(SystemExit) as caught:
            command.main(args)
        err = capsys.readouterr().err
        assert caught.value.code == 2
        assert err.startswith("error: ")
        assert len(err.strip().splitlines()) == 1


# ---- with torch -----------------------------------------------------------------------------------


def test_pth_in_and_out(tmp_path, small):
    torch = pytest.importorskip("torch")
    tensors = {key: torch.tensor(array) for key, array in small_state().items()}
    nested = {"epoch": 3, "state_dict": tensors, "model": tensors, "optimizer": {"state": {0: torch.ones(2)}}}
    nested["itself"] = nested
    torch.save(nested, tmp_path / "weights.ckpt")
    text = convert_torch.convert(tmp_path / "weights.ckpt", tmp_path / "run")
    assert_equal(flat(tmp_path / "run"), small)
    assert "left out: 1 tensor outside" in text

    torch.save({key: value.to(torch.bfloat16) for key, value in tensors.items()}, tmp_path / "half.pt")
    convert_torch.convert(tmp_path / "half.pt", tmp_path / "half")
    assert all(array.dtype == F for array in flat(tmp_path / "half").values())

    workdir = random_workdir(tmp_path / "own", **ORIGINALS["sk_se"])
    for suffix in ("pth", "safetensors"):
        convert_torch.export(workdir, tmp_path / suffix / f"weights.{suffix}")
    a = torch.load(tmp_path / "pth" / "weights.pth", weights_only=True)
    assert_equal({key: value.numpy() for key, value in a.items()},
                 load_file(tmp_path / "safetensors" / "weights.safetensors"))  # fmt: skip
    convert_torch.convert(tmp_path / "pth" / "weights.pth", tmp_path / "again")
    assert_equal(flat(tmp_path / "again"), flat(workdir))


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (Path(self.path),))


def test_a_checkpoint_never_runs_code(tmp_path):
    torch = pytest.importorskip("torch")
    state = {key: torch.tensor(array) for key, array in small_state().items()}
    state["layer4.0.more"] = Evil(tmp_path / "ran")
    for zipped in (True, False):
        torch.save(state, tmp_path / "evil.pth", _use_new_zipfile_serialization=zipped)
        refused(tmp_path, tmp_path / "evil.pth", "holds more than tensors .*could run code")
        assert not (tmp_path / "ran").exists()
    torch.load(tmp_path / "evil.pth", weights_only=False)
    assert (tmp_path / "ran").exists()  # it would have


def test_bad_torch_files(tmp_path):
    torch = pytest.importorskip("torch")
    whole = tmp_path / "whole.pth"
    torch.save({key: torch.tensor(array) for key, array in small_state().items()}, whole)
    for content in (b"", b"no pickle at all\n" * 9, whole.read_bytes()[:-200], b"PK\x03\x04" + b"\0" * 99):
        (tmp_path / "bad.pth").write_bytes(content)
        refused(tmp_path, tmp_path / "bad.pth", "no checkpoint of PyTorch's|cannot be read as a checkpoint")
    torch.save([torch.ones(2)], tmp_path / "list.pth")
    refused(tmp_path, tmp_path / "list.pth", "no tensor at all")
    torch.save({"conv1.weight": torch.ones(2).to_sparse()}, tmp_path / "sparse.pth")
    refused(tmp_path, tmp_path / "sparse.pth", "no ResNet in it")


def load_module(folder):
    spec = importlib.util.spec_from_file_location("simclr_resnet", folder / "simclr_resnet.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


MODULE_CASES = {  # kind of ORIGINALS: sizes of images
    "sk_se": ((64, 64), (75, 66)),
    "sk_basic": ((65, 64),),
    "sk_cifar": ((32, 31),),
    "basic": ((64, 67),),
    "cut": ((70, 65),),
    "pad2": ((33, 32),),
}


def module_differences(tmp_path, kind, suffix):
    """The largest difference of each endpoint between the exported module and our model."""
    import torch

    workdir = random_workdir(tmp_path / "run", **ORIGINALS[kind])
    convert_torch.export(workdir, tmp_path / "out" / f"weights{suffix}")
    theirs = load_module(tmp_path / "out").load(tmp_path / "out" / f"weights{suffix}")
    ours = simclr_jax.load(workdir)
    mean, std = ours.config.data.mean, ours.config.data.std
    for height, width in MODULE_CASES[kind]:
        images = rng_of("module").uniform(0, 1, (3, height, width, 3)).astype(F)
        normal = (images - F(mean)) / F(std) if mean else images
        a = jax.jit(lambda x: ours.model.apply(ours.variables, x, method="endpoints"))(normal)
        with torch.no_grad():
            b = theirs(torch.tensor(images).permute(0, 3, 1, 2))
        assert a.keys() == b.keys()
        for name in a:
            found = b[name].permute(0, 2, 3, 1) if b[name].ndim == 4 else b[name]
            yield name, (height, width), off(found.numpy(), a[name])


@pytest.mark.parametrize("kind", MODULE_CASES)
def test_the_exported_module_computes_the_same(tmp_path, kind):
    pytest.importorskip("torch")
    for name, size, difference in module_differences(
        tmp_path, kind, ".safetensors" if kind == "cut" else ".pth"
    ):
        assert difference < 1e-5, (name, size)


def test_torchvision_loads_ours(tmp_path):
    torch = pytest.importorskip("torch")
    resnet18 = pytest.importorskip("torchvision.models").resnet18
    workdir, _ = convert(tmp_path, state_of((2, 2, 2, 2), False, 7))
    convert_torch.export(workdir, tmp_path / "weights.pth")
    model = resnet18(num_classes=CLASSES)
    model.load_state_dict(torch.load(tmp_path / "weights.pth", weights_only=True), strict=True)
    features, logits = forward(model.eval(), images_of(64))
    expected = np.load(FIXTURE)
    np.testing.assert_array_equal(features, expected["resnet18/features"])
    np.testing.assert_array_equal(logits, expected["resnet18/logits"])


@pytest.mark.parametrize("name", GOLDEN)
def test_fixture_is_torchvisions(name):
    pytest.importorskip("torchvision")
    features, logits = forward(build(name), images_of(GOLDEN[name][-1]))
    expected = np.load(FIXTURE)
    assert off(features, expected[f"{name}/features"]) < 1e-6
    assert off(logits, expected[f"{name}/logits"]) < 1e-6


def test_the_module_needs_only_torch():
    text = Path(convert_torch.__file__).with_name("torch_module.py").read_text()
    top = [line for line in text.splitlines() if line.startswith(("import ", "from "))]
    assert {line.split()[1].split(".")[0] for line in top} == {"json", "torch"}


if __name__ == "__main__":
    write_fixture()
