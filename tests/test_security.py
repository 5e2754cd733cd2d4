"""No code from data, no command through a shell, no secret in what a run writes."""

import ast
import sys
import types
import zipfile
from pathlib import Path

import numpy as np
import pytest
from conftest import tiny_arrays, tiny_config, tiny_splits

from simclr_jax import lock, train
from simclr_jax.config import checks
from simclr_jax.data import multilabel, splits
from simclr_jax.errors import SimclrError
from simclr_jax.sweep import study

ROOT = Path(__file__).parent.parent
FILES = [
    *sorted((ROOT / "simclr_jax").rglob("*.py")),
    *sorted((ROOT / "tools").rglob("*.py")),
    ROOT / "setup.py",
]

# ---- code ---------------------------------------------------------------------------------------

MODULES = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "marshal", "shelve", "joblib"}
CALLS = {"eval", "exec", "os.system", "os.popen", "yaml.load", "subprocess.getoutput"}


def dangers(code):
    """Constructs in a file's syntax tree that could run code from data."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] in MODULES)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in MODULES:
            yield node.module
        elif isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            if name in CALLS:
                yield name
            if name.endswith(("torch.load", "th.load")) and given.get("weights_only") != "True":
                yield f"{name} without weights_only=True"
            yield from (
                f"{name}({key}=...)"
                for key in ("shell", "allow_pickle")
                if given.get(key, "False") != "False"
            )


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_runs_code_from_data(path):
    assert list(dangers(path.read_text())) == []


@pytest.mark.parametrize(
    "code",
    ["import pickle", "from dill import loads", "eval(x)", "torch.load(f)", "os.system(x)", "yaml.load(f)",
     "torch.load(f, weights_only=False)", "np.load(f, allow_pickle=True)", "subprocess.run(x, shell=True)"],
)  # fmt: skip
def test_the_test_sees(code):
    assert list(dangers(code))


def objects(path):
    images, _ = tiny_arrays(n=8)
    np.savez(path, images=images, labels=np.array([str] * 8, object))


def damaged(path):
    np.savez(path, images=tiny_arrays(n=8)[0])
    content = bytearray(path.read_bytes())
    content[300:900] = bytes(600)
    path.write_bytes(bytes(content))


def truncated(path):
    np.savez(path, images=tiny_arrays(n=8)[0])
    path.write_bytes(path.read_bytes()[:500])


def no_array(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("images.npy", b"no array")


def empty(path):
    path.write_bytes(b"")


BAD_NPZ = {
    objects: "labels cannot be read, it holds Python objects, not numbers; save images",
    damaged: "images cannot be read, it is damaged",
    truncated: "not an .npz file",
    no_array: "images must be uint8",
    empty: "not an .npz file",
}


@pytest.mark.parametrize("make", BAD_NPZ, ids=lambda make: make.__name__)
def test_an_npz_file_of_objects_or_in_pieces_ends_in_one_line(make, tmp_path):
    make(tmp_path / "set.npz")
    with pytest.raises(SimclrError, match=BAD_NPZ[make]) as caught:
        splits.load(f"npz:{tmp_path / 'set.npz'}")
    assert "\n" not in str(caught.value)


def test_a_set_with_several_labels_refuses_objects_too(tmp_path):
    objects(tmp_path / "set.npz")
    with pytest.raises(SimclrError, match="labels cannot be read, it holds Python objects"):
        multilabel.load(f"npz:{tmp_path / 'set.npz'}")


# ---- secrets ------------------------------------------------------------------------------------

SECRET = "s3cr3t-t0k3n"
VARIABLES = ("WANDB_API_KEY", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "AWS_SECRET_ACCESS_KEY", "GITHUB_TOKEN",
             "GOOGLE_APPLICATION_CREDENTIALS", "KAGGLE_KEY", "PASSWORD")  # fmt: skip


def test_secrets_of_the_environment_are_in_nothing_a_run_writes(tmp_path, monkeypatch, capfd):
    for name in VARIABLES:
        monkeypatch.setenv(name, f"{SECRET}-{name}")
    told, lease = [], []
    run = types.SimpleNamespace(log=lambda *_, **__: None, finish=lambda: None)
    fake = types.SimpleNamespace(init=lambda **kwargs: told.append(repr(kwargs)) or run)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    config = tiny_config(train__steps=2, log__wandb=True, eval__every__steps=1)

    def read_lease(*_):
        lease.append((tmp_path / "run" / lock.FILE).read_text())

    summary = train.run(config, tmp_path / "run", splits=tiny_splits(), on_eval=read_lease)
    assert told
    assert lease
    assert SECRET not in repr((told, lease))
    said = capfd.readouterr()
    assert SECRET not in said.out + said.err + repr(summary)
    written = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert {"config.json", "summary.json", "metrics.jsonl"} <= {path.name for path in written}
    for path in written:
        assert SECRET.encode() not in path.read_bytes(), path


@pytest.mark.parametrize("field", ["data.source", "data.data_dir", "start.workdir", "compile_cache"])
def test_a_password_in_a_url_is_refused_and_not_repeated(field):
    url = f"gs://someone:{SECRET}@bucket/images"
    config = tiny_config(**{field.replace(".", "__"): f"folder:{url}" if field == "data.source" else url})
    with pytest.raises(SimclrError, match=f"config.{field}: has a password in its URL") as caught:
        checks.validate(config)
    assert SECRET not in str(caught.value)
    plain = "gs://bucket/2024:01/a@b"
    checks.validate(tiny_config(data__data_dir=plain))


def test_the_password_of_a_studys_database_is_not_repeated():
    with pytest.raises(SimclrError, match="--storage=") as caught:
        study.open_study("name", f"nodb://someone:{SECRET}@host/db", "tpe", "none")
    assert SECRET not in str(caught.value)
