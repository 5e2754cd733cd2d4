"""Encoders as folders for the Hub, loaded from there and from the package; Google's checkpoints, listed."""

import hashlib
import http.server
import json
import re
import shutil
import subprocess
import sys
import threading
import urllib.request
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import unquote

import jax
import numpy as np
import pytest
import yaml
from conftest import tiny_config, tiny_splits, untrained_run
from PIL import Image
from safetensors.numpy import load_file

import simclr_jax
from simclr_jax import checkpoint, encoder, hub, registry, sharding, train
from simclr_jax.config import adopt_start, default, flatten, load_config
from simclr_jax.convert import released
from simclr_jax.convert import workdir as conversion
from simclr_jax.embed import search as searching
from simclr_jax.errors import DamagedError, SimclrError
from simclr_jax.index import table
from simclr_jax.measures import knn
from simclr_jax.models import simclr
from simclr_jax.publish import __main__ as command
from simclr_jax.publish import card, private, run

PRIVATE = "/home/ann/secret"
ROW = {
    "id": "lbfgs",
    "title": "linear | probe",
    "cells": {"simclr": {"value": 0.979, "low": 0.97, "high": 0.987}},
}


def same_variables(one, other):
    one, other = (checkpoint.named(each.variables) for each in (one, other))
    return one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A run that tells where and by whom it was made, in every field that can."""
    where = untrained_run(tmp_path_factory.mktemp("runs") / "mine", tiny_config())
    path = where / "config.json"
    tree = json.loads(path.read_text())
    told = tree["config"]
    told["data"] |= {"source": f"folder:{PRIVATE}/birds", "data_dir": PRIVATE}
    told["start"]["workdir"], told["distill"]["teacher"] = f"{PRIVATE}/start", f"{PRIVATE}/teacher"
    told["compile_cache"], told["log"]["wandb_project"] = f"{PRIVATE}/xla", "ann-project"
    tree["data"] |= {"converted_from": f"{PRIVATE}/model.ckpt-1", "classes": ["a", "n/a", "c", "d"]}
    path.write_text(json.dumps(tree))
    summary = {"steps": 7, "rows": [ROW], "device": {"kind": "TPU v5e"}, "flags": {"XLA_FLAGS": PRIVATE}}
    (where / "summary.json").write_text(json.dumps(summary | {"versions": {"jax": "0.10.0"}}))
    return where


@pytest.fixture(scope="module")
def folder(workdir, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "mine"
    command.main([f"--workdir={workdir}", f"--out={out}", "--licence=mit", "--name=ann/birds"])
    return out


# ---- the folder ---------------------------------------------------------------------------------------


def test_it_is_the_same_encoder(workdir, folder):
    ours, theirs = encoder.load(workdir), encoder.load(folder)
    assert same_variables(ours, theirs)
    assert (theirs.step, theirs.classes) == (7, ("a", "n/a", "c", "d"))
    images = np.random.default_rng(0).integers(0, 256, (3, 17, 20, 1), np.uint8)
    logits = [each.logits(images, preprocess=True) for each in (ours, theirs)]
    assert np.array_equal(*logits)
    assert np.ptp(logits[0]) > 0


def test_names_of_the_arrays(folder):
    arrays = load_file(folder / "model.safetensors")
    assert {"params/encoder/conv1/kernel", "params/probe/dense/bias"} <= arrays.keys()
    assert {name.split("/")[0] for name in arrays} == {"params", "batch_stats"}


def test_others_may_read_every_file(folder):
    readable = (folder / "config.json").stat().st_mode & 0o777
    assert {each.name for each in folder.iterdir() if each.stat().st_mode & 0o777 != readable} == set()


def test_nothing_private_is_in_it(folder):
    for path in folder.iterdir():
        assert not re.search(rb"/home|secret|ann-project", path.read_bytes()), path
    config, data = load_config(folder)
    assert config.data.source == "folder:birds"
    assert config.data.data_dir is None
    assert config.start.workdir == config.distill.teacher == ""
    assert data["converted_from"] == "model.ckpt-1"


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("folder:/home/ann/birds", "folder:birds"),
        ("folder:/home/ann/birds/", "folder:birds"),
        ("list:~/lists/birds.csv", "list:birds.csv"),
        ("folder:~ann", "folder:"),
        ("folder:/home/USER", "folder:"),
        (r"folder:C:\Users\ann\birds", "folder:birds"),
        (r"C:\Users\ann\birds", "birds"),
        ("gs://bucket/of/ann/model.ckpt", "model.ckpt"),
        ("../ann/birds", "birds"),
        ("tfds:imagenet2012_subset/1pct", "tfds:imagenet2012_subset/1pct"),
        ("hf:/home/ann/birds", "hf:birds"),
        ("builtin:mnist5k", "builtin:mnist5k"),
        ("nt_xent+masked", "nt_xent+masked"),
        ("mine:create", "mine:create"),
        ("km/h", "km/h"),
        ("", ""),
    ],
)
def test_paths_are_reduced(text, left, monkeypatch):
    monkeypatch.setattr(private.getpass, "getuser", lambda: "USER")
    assert private.without_path(text) == left


def test_a_title_keeps_no_path():
    assert private.of_title("folder:/home/ann/birds, L-BFGS") == "folder:birds, L-BFGS"
    assert private.of_title("tfds:food101, 1/10 of labels") == "tfds:food101, 1/10 of labels"


@pytest.mark.parametrize("spelt", [str, json.dumps], ids=["plain", "as JSON"])
def test_a_path_that_stays_is_refused(workdir, tmp_path, monkeypatch, spelt):
    monkeypatch.setattr(Path, "home", lambda: Path("/home/andré"))
    monkeypatch.setattr(run.card, "render", lambda *_: f"made in {spelt('/home/andré/runs')}\n")
    with pytest.raises(SimclrError, match=r"README.md would tell /home/andré: take it out"):
        run.publish(workdir, run.Options(tmp_path / "out", "mit", onnx=False))
    assert not any(tmp_path.iterdir())


def test_whole_or_not_at_all(workdir, tmp_path, monkeypatch):
    out, options = tmp_path / "out", {"licence": "mit", "onnx": False}
    run.publish(workdir, run.Options(out, **options))
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    with pytest.raises(SimclrError, match="exists already; choose another, or replace it with --again"):
        run.publish(workdir, run.Options(out, **options))
    with monkeypatch.context() as patch:
        patch.setattr(run.card, "facts", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run.publish(workdir, run.Options(out, **options, again=True))
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    run.publish(workdir, run.Options(out, "apache-2.0", onnx=False, again=True))
    assert 'license: "apache-2.0"' in (out / "README.md").read_text()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    for name in ("encoder.ipynb", ".git"):
        (out / name).mkdir()
        with pytest.raises(SimclrError, match=rf"holds {re.escape(name)}, which this command did not write"):
            run.publish(workdir, run.Options(out, **options, again=True))


def test_other_weights_are_never_published(workdir, tmp_path, monkeypatch):
    write = run.published.write

    def other(folder, arrays, about):
        name = next(iter(arrays))
        return write(folder, arrays | {name: arrays[name] + 1}, about)

    monkeypatch.setattr(run.published, "write", other)
    with pytest.raises(SimclrError, match="holds other weights than the run; nothing was published"):
        run.publish(workdir, run.Options(tmp_path / "out", "mit", onnx=False))
    assert not any(tmp_path.iterdir())


def test_what_a_kill_left_is_cleared_away(workdir, tmp_path):
    (tmp_path / ".out.tmp" / "out").mkdir(parents=True)
    (tmp_path / ".out.tmp" / "out" / "model.safetensors").write_bytes(b"half")
    run.publish(workdir, run.Options(tmp_path / "out", "mit", onnx=False))
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


GOOD = ("--workdir=runs/x", "--out=y", "--licence=mit")
MISTAKES = {
    GOOD[1:]: "--workdir is missing: for example --workdir=runs/quickstart",
    GOOD[:2]: "--licence is missing: for example --licence=apache-2.0",
    (*GOOD, "--licence=My licence"): "--licence=My licence: must be an identifier like",
    (*GOOD, "--name=ann"): "'hf:ann': must be hf:OWNER/NAME",
    (*GOOD, "--step=-1"): "--step=-1: must be one of",
    (*GOOD, "extra"): "'extra': not understood",
    GOOD: "runs/x: no config.json there",
}


@pytest.mark.parametrize("words", MISTAKES, ids=" ".join)
def test_mistakes_are_one_line(words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end:
        command.main(list(words))
    assert end.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {MISTAKES[words]}")
    assert error.count("\n") == 1


def test_onnx_is_of_the_same_weights(folder):
    about = json.loads((folder / "encoder.onnx.json").read_text())
    assert about["parity"]["features"]["max_over_rms"] < 1e-4
    assert about["sha256"] == hashlib.sha256((folder / "encoder.onnx").read_bytes()).hexdigest()
    assert "workdir" not in about["run"]
    assert "source" not in about["run"]["data"]


@pytest.mark.parametrize("exif", [False, True])
def test_search_by_it_reads_files_as_the_run_does(folder, tmp_path, capsys, exif):
    """The row of the image as the run reads it, turned or not, is the most similar."""
    pixels = np.random.default_rng(1).integers(0, 256, (20, 30), np.uint8)
    pixels[:10] //= 4
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.fromarray(pixels).save(tmp_path / "q.png", exif=turned)
    arrays = [pixels[..., None], np.rot90(pixels, -1)[..., None]]
    features = encoder.load(folder)(arrays, preprocess=True)
    names = ["as it is", "turned"]
    rows = table.Embeddings(names, features, ["", ""], {"step": 7})
    table.write(tmp_path / "f.npz", rows)
    for file in folder.glob("encoder.onnx*"):
        shutil.copy(file, tmp_path)
    about = json.loads((tmp_path / "encoder.onnx.json").read_text())
    about["run"]["data"]["exif"] = exif
    (tmp_path / "encoder.onnx.json").write_text(json.dumps(about))
    words = [f"--index={tmp_path}/f.npz", f"--query={tmp_path}/q.png", f"--artefact={tmp_path}/encoder.onnx"]
    searching.main([*words, "--top=1"])
    assert capsys.readouterr().out.split("\n")[-2].split("   ") == ["1.0000", names[exif]]
    (tmp_path / "encoder.onnx").write_bytes(b"no model")
    about["sha256"] = hashlib.sha256(b"no model").hexdigest()
    (tmp_path / "encoder.onnx.json").write_text(json.dumps(about))
    with pytest.raises(SystemExit):
        searching.main(words)
    assert "encoder.onnx: onnxruntime cannot run it" in capsys.readouterr().err


# ---- the card -----------------------------------------------------------------------------------------


def test_the_card(folder):
    _, front, text = (folder / "README.md").read_text().split("---\n", 2)
    meta = yaml.safe_load(front)
    assert {name: meta[name] for name in ("license", "library_name", "pipeline_tag")} == {
        "license": "mit", "library_name": "simclr_jax", "pipeline_tag": "image-feature-extraction",
    }  # fmt: skip
    assert {"simclr", "cnn", "nt_xent", "onnx"} <= set(meta["tags"])
    assert 'simclr_jax.load("hf:ann/birds")' in text
    assert "| linear   probe | 97.9 [97.0, 98.7] |" in text
    assert "Measured by the end of its training" in text
    assert "| model.width | 0.25 |" in text
    assert "| data.source | folder:birds |" in text
    for heading in ("Data", "Recipe", "Scores", "Limits", "Licence", "Versions"):
        assert f"\n## {heading}\n\n" in text


def score(value):
    return {"rows": [{**ROW, "cells": {"simclr": {"value": value}}}]}


@pytest.mark.parametrize(
    ("summary", "report", "value", "line"),
    [
        ({}, {}, None, "nobody has measured any"),
        ({"steps": 8, **score(0.5)}, {}, None, "those there are belong to step 8"),
        ({"steps": 7, **score(0.5)}, {"step": 7, **score(0.6)}, 0.6, "`simclr evaluate`"),
        ({"steps": 7, **score(0.5)}, {"step": 8, **score(0.6)}, 0.5, "the end of its training"),
        ({"steps": 7, "rows": [3]}, {"step": 7, "rows": [{"cells": {}}]}, None, "nobody has measured any"),
    ],
    ids=["none", "of another step", "report", "report of another step", "damaged"],
)
def test_scores_are_of_this_step(summary, report, value, line):
    rows, _, scored = card._scores(summary, report, 7)
    assert [row.cells["simclr"].value for row in rows] == ([] if value is None else [value])
    assert line in scored


# ---- reading ------------------------------------------------------------------------------------------


def edited(folder, tmp_path, **changes):
    """A copy of the folder with other fields in config.json."""
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    tree = json.loads((copy / "config.json").read_text()) | changes
    (copy / "config.json").write_text(json.dumps(tree))
    return copy


def test_damaged_weights_are_told(folder, tmp_path):
    copy = edited(folder, tmp_path)
    content = bytearray((copy / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (copy / "model.safetensors").write_bytes(bytes(content))
    with pytest.raises(DamagedError, match=r"is not the file that config.json describes"):
        encoder.load(copy)


@pytest.mark.parametrize(
    "changes",
    [
        {"model_type": "resnet"}, {"weights": None}, {"step": "7"},
        {"weights": {"bytes": True, "sha256": "0" * 64}},
        {"weights": {"bytes": 9, "sha256": "../../etc"}},
    ],
    ids=["another library's", "no weights", "no step", "no size", "no digest"],
)  # fmt: skip
def test_another_config_is_refused(folder, tmp_path, changes):
    copy = edited(folder, tmp_path, **changes)
    with pytest.raises(SimclrError, match="is not one of simclr publish"):
        encoder.load(copy)


def test_a_strangers_folders_are_not_obeyed(folder, tmp_path):
    """Programs in a cache are executed, and whatever else a config.json names is not of this machine."""
    tree = json.loads((folder / "config.json").read_text())["config"]
    tree["compile_cache"], tree["start"]["workdir"] = "gs://mallory/cache", "/etc"
    config, _ = load_config(edited(folder, tmp_path, config=tree))
    assert (config.compile_cache, config.start.workdir) == ("auto", "")


def test_another_step_is_refused(folder):
    assert encoder.load(folder, 7).step == 7
    with pytest.raises(SimclrError, match="holds step 7 alone, not 8"):
        encoder.load(folder, 8)


def test_a_run_may_start_from_it(folder):
    config = adopt_start(tiny_config(task="supervised", start__workdir=str(folder)))
    assert encoder.pin_steps(config).start.step == 7
    model = simclr.create(config.model, classes=4)
    fresh = jax.tree.map(lambda x: jax.numpy.asarray(x) + 1, encoder.load(folder).variables)
    spec = jax.ShapeDtypeStruct((12, 12, 1), np.uint8)
    taken = encoder.transplant(fresh, config.start, model.encoder, spec)["params"]
    theirs = encoder.load(folder).variables["params"]
    assert all(map(np.array_equal, jax.tree.leaves(taken["encoder"]), jax.tree.leaves(theirs["encoder"])))
    assert not np.array_equal(taken["probe"]["dense"]["kernel"], theirs["probe"]["dense"]["kernel"])


@pytest.mark.slow
def test_a_run_starts_from_it(folder, tmp_path):
    config = tiny_config(
        task="supervised", start__workdir=str(folder), train__steps=1, finetune__after_block=9
    )
    train.run(config, tmp_path / "run", splits=tiny_splits())
    assert load_config(tmp_path / "run")[0].start.step == 7
    ours, theirs = (encoder.load(each).variables["params"]["encoder"] for each in (folder, tmp_path / "run"))
    assert all(map(np.array_equal, jax.tree.leaves(ours), jax.tree.leaves(theirs)))  # it stood still


# ---- from the Hub -------------------------------------------------------------------------------------

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """A server of the Hub's kind: config.json itself, model.safetensors by way of a store of another name."""

    def __init__(self, folder):
        self.folder, self.asked, self.headers, self.change, self.status = folder, [], {}, bytes, 200
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                outer.answer(self)

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def answer(self, request):
        self.asked.append((unquote(request.path), request.headers.get("Authorization")))
        owner, name, *rest = request.path.strip("/").split("/")
        file = request.path.rpartition("/")[2]
        status, body, headers = self.status, b"", {"X-Repo-Commit": COMMIT}
        if status == 200 and (owner, name) == ("ann", "birds") and rest[0] == "resolve":
            body = (self.folder / file).read_bytes()
            if file == "model.safetensors":
                digest, size = hashlib.sha256(body).hexdigest(), len(body)
                headers |= {"X-Linked-Etag": f'"{digest}"', "X-Linked-Size": str(size)} | self.headers
                headers["Location"] = f"http://localhost:{self.port}/store/weights/{file}"
                status, body = 302, b""
        elif status == 200 and owner == "store":
            body = self.change((self.folder / file).read_bytes())
        else:
            status = 404 if status == 200 else status
        request.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(body))}.items():
            request.send_header(key, value)
        request.end_headers()
        request.wfile.write(body)

    def close(self):
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def site(folder, tmp_path, monkeypatch):
    """The server, and a cache of one's own."""
    server = Hub(folder)
    for name in ("HF_TOKEN", "HF_HUB_OFFLINE", "http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.port}")
    monkeypatch.setenv("SIMCLR_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(hub, "TIMEOUT", 5.0)
    hub._fetched.cache_clear()
    yield server
    server.close()
    hub._fetched.cache_clear()


def again():
    """Loads as another process would."""
    hub._fetched.cache_clear()
    return simclr_jax.load("hf:ann/birds")


def test_it_comes_from_the_hub_once(site, folder, tmp_path):
    assert same_variables(simclr_jax.load("hf:ann/birds"), encoder.load(folder))
    assert [path for path, _ in site.asked] == [
        "/ann/birds/resolve/main/config.json",
        f"/ann/birds/resolve/{COMMIT}/model.safetensors",  # of the same commit, though main may have moved
        "/store/weights/model.safetensors",
    ]
    asked = len(site.asked)
    simclr_jax.load("hf:ann/birds")
    assert len(site.asked) == asked  # one process asks once
    assert same_variables(again(), encoder.load(folder))
    assert [path for path, _ in site.asked[asked:]] == ["/ann/birds/resolve/main/config.json"]
    (home,) = (tmp_path / "cache" / "hub").glob("127.0.0.1*/ann/birds")
    assert sorted(path.name for path in home.iterdir() if path.name != "refs") == [
        hashlib.sha256((folder / "config.json").read_bytes()).hexdigest()[:40]
    ]


def test_a_revision_is_asked_for(site):
    simclr_jax.load("hf:ann/birds@pr/1")
    assert site.asked[0][0] == "/ann/birds/resolve/pr/1/config.json"


def test_the_token_is_for_the_hub_alone(site, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    again()
    assert [token for _, token in site.asked] == ["Bearer hf_secret", "Bearer hf_secret", None]


def test_without_a_network_the_copy_is_taken(site, folder, monkeypatch, capsys):
    again()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    asked = len(site.asked)
    assert same_variables(again(), encoder.load(folder))
    assert "HF_HUB_OFFLINE is set; taking the copy in" in capsys.readouterr().out
    assert len(site.asked) == asked
    monkeypatch.delenv("HF_HUB_OFFLINE")
    site.status = 503
    again()
    assert "answers with HTTP 503; taking the copy in" in capsys.readouterr().out
    site.close()
    again()
    assert "cannot be reached" in capsys.readouterr().out


def test_a_copy_that_is_cut_short_is_fetched_again(site, tmp_path):
    again()
    (weights,) = (tmp_path / "cache").rglob("model.safetensors")
    whole = weights.read_bytes()
    weights.write_bytes(whole[:100])
    again()
    assert weights.read_bytes() == whole


@pytest.mark.parametrize(
    ("broken", "line"),
    [
        ({"status": 404}, r"hf:ann/birds: no config.json there at main \(HTTP 404\)"),
        ({"status": 401}, r"not there, or private \(HTTP 401\): set HF_TOKEN"),
        ({"status": 500}, "answers with HTTP 500, and no copy of it is in"),
        ({"change": lambda x: x[:-1] + bytes([x[-1] ^ 1])}, "is not the one of its config.json; try"),
        ({"change": lambda x: x[:-9]}, "model.safetensors ends after [0-9,]+ of [0-9,]+ bytes"),
        ({"headers": {"X-Linked-Etag": f'"{"0" * 64}"'}}, "is not the one of its config.json"),
        ({"headers": {"X-Linked-Size": "12"}}, "is not the one of its config.json; publish it anew"),
    ],
    ids=["missing", "private", "down", "a flipped bit", "cut short", "another digest", "another size"],
)  # fmt: skip
def test_what_goes_wrong_is_one_line_and_leaves_nothing(site, tmp_path, broken, line):
    for name, value in broken.items():
        setattr(site, name, value)
    with pytest.raises(SimclrError, match=line) as error:
        again()
    assert "\n" not in str(error.value)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_no_network(site, monkeypatch):
    site.close()
    with pytest.raises(SimclrError, match=r"hf:ann/birds: 127\.0\.0\.1:\d+ cannot be reached \(.*refused"):
        again()


def test_one_hub_does_not_answer_for_another(site, monkeypatch):
    """What a mirror gave is no copy of the Hub's own."""
    again()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_ENDPOINT", "https://huggingface.co")
    with pytest.raises(SimclrError, match="HF_HUB_OFFLINE is set, and no copy of it is in"):
        again()


def test_another_process_may_make_the_copy_at_the_same_time(site, folder, monkeypatch):
    """It is there when this one is about to move its own into place."""
    weights = hub._Repository._weights

    def slow(self, path, *args):
        weights(self, path, *args)
        shutil.copytree(folder, path.parents[2] / path.parent.name)

    monkeypatch.setattr(hub._Repository, "_weights", slow)
    assert same_variables(again(), encoder.load(folder))


def test_another_librarys_repository_is_refused(site, folder, tmp_path):
    site.folder = edited(folder, tmp_path, model_type="vit")
    with pytest.raises(SimclrError, match="is not one of simclr publish"):
        again()
    assert len(site.asked) == 1  # no weights are fetched


def test_a_redirect_is_followed_to_the_letter():
    """A signature may end in a slash."""
    request = urllib.request.Request("https://hub.example/a")
    found = hub._Redirects().redirect_request(request, None, 302, "", {}, "https://store.example/a?sign=x/")
    assert found.full_url == "https://store.example/a?sign=x/"


def test_a_store_over_plain_http_is_refused():
    asked = SimpleNamespace(get_header={}.get)
    with pytest.raises(SimclrError, match=r"http://example.org/x: must begin with https://"):
        hub._Redirects().redirect_request(asked, None, 302, "", {}, "http://example.org/x")


@pytest.mark.parametrize(
    "text",
    [
        "hf:ann", "hf:ann/", "hf:/birds", "hf:../birds", "hf:ann/..", "hf:ann/a..b", "hf:ann/birds/more",
        "hf:ann/birds@", "hf:ann/birds@../m", "hf:ann/birds@/etc", "hf:ann/bi rds", "hf:.ann/birds",
        "hf:ann/" + "b" * 97, "hf:ann%2f/birds", "hf:ann/birds\n",
    ],
)  # fmt: skip
def test_a_name_leads_nowhere_else(text, site):
    with pytest.raises(SimclrError, match=r"must be hf:OWNER/NAME or hf:OWNER/NAME@REVISION"):
        simclr_jax.load(text)
    assert site.asked == []


def test_an_endpoint_over_plain_http_is_refused(site, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://example.org")
    with pytest.raises(SimclrError, match=r"http://example.org: must begin with https://"):
        again()


# ---- with the package ---------------------------------------------------------------------------------


def test_the_shipped_encoder_reaches_its_cards_score():
    folder = hub.SHIPPED / "quickstart"
    assert sum(path.stat().st_size for path in folder.iterdir()) < 2_000_000
    found = simclr_jax.load("builtin:quickstart")
    text = (folder / "README.md").read_text()
    told = re.search(r"\| kNN, all labels \| ([\d.]+) \[", text)
    images = dict(np.load(hub.SHIPPED.parent / "data" / "mnist5k.npz"))
    bank, queries = (
        found(images[f"{part}_images"][..., None], preprocess=True) for part in ("train", "test")
    )
    k, temperature = re.search(
        r"chosen without those images: knn k=(\d+), temperature=([\d.]+);", text
    ).groups()
    (scored,) = knn.evaluate(
        bank, images["train_labels"], queries, images["test_labels"], mesh=sharding.make_mesh(1), classes=10,
        settings=[(int(k), float(temperature))],
    ).values()  # fmt: skip
    assert abs(100 * scored[0] - float(told[1])) < 0.3  # three of the thousand test images


def test_others_do_not_ship():
    with pytest.raises(SimclrError, match=r"builtin:../x: no encoder of that name .* there is quickstart"):
        simclr_jax.load("builtin:../x")


# ---- Google's checkpoints -----------------------------------------------------------------------------


def test_all_that_google_released():
    rows = released.released()
    assert len({row.name for row in rows}) == len({row.source for row in rows}) == len(rows) == 68
    assert len({row.convert for row in rows}) == 68
    assert [sum(row.version == v for row in rows) for v in (1, 2)] == [3, 65]
    top1 = {row.name: row.top1 for row in rows}
    assert top1["v1/pretrained/r50_4x"] == 76.6
    assert top1["v2/pretrained/r152_3x_sk1"] == 79.8
    assert top1["v2/finetuned_1pct/r50_1x_sk0"] == 57.9
    assert top1["v2/finetuned_10pct/r101_2x_sk0"] == 75.8
    assert top1["v2/finetuned_100pct/r152_2x_sk1"] == 82.9
    assert top1["v2/supervised/r50_1x_sk1"] == 78.5


@pytest.mark.parametrize("row", released.released()[:16], ids=lambda row: row.name)
def test_the_facts_of_each_architecture(row):
    flat = flatten(default())
    flat |= {f"model.{name}": value for name, value in row.model().items()}
    count, features = registry.encoder_facts(flat).parameters(flat)
    assert abs(count / 1e6 / row.parameters - 1) < 0.1  # the facts are within a tenth
    assert features == 2048 * row.width


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["v2/pretrained/r50_1x_sk0", "v1/pretrained/r50_4x", "v2/supervised/r152_3x_sk1"]
)
def test_parameters_are_those_of_the_table(name):
    (row,) = (each for each in released.released() if each.name == name)
    config = conversion.config_of({**row.model(), "projection": "none"})
    count = sum(int(np.prod(shape)) for shape in conversion.expected(config, 0).values())
    assert abs(count / 1e6 - row.parameters) < 0.6  # the table is rounded


def listed(*words):
    args = released.parser().parse_args(words)
    return [row.name for row in released.chosen(args)]


def test_options_choose():
    assert listed("--depth=152", "--width=3", "--kind=pretrained") == ["v2/pretrained/r152_3x_sk1"]
    assert len(listed("--sk")) == 35
    assert len(listed("--no-sk")) == 33
    assert listed("v1") == [f"v1/pretrained/r50_{width}x" for width in (1, 2, 4)]
    with pytest.raises(SimclrError, match="depth=18: Google released no such checkpoint"):
        listed("--depth=18")


def test_the_commands_are_understood(tmp_path):
    from simclr_jax.convert import __main__ as convert

    parser = convert.parser()
    for row in released.released():
        words = row.convert.split()
        assert words[:2] == ["simclr", "convert"]
        args = parser.parse_args(words[2:])
        assert args.kind == "google"
        assert (args.probe_layer or 0) == row.probe_layer


def told(capsys, *words):
    released.main(words)
    return capsys.readouterr().out


def test_the_list_is_told(capsys):
    lines = told(capsys).splitlines()
    assert len([line for line in lines if line.startswith(("v1/", "v2/"))]) == 68
    rows = json.loads(told(capsys, "--json", "--depth=50", "--no-sk"))
    assert rows[0]["top1"] == 69.1
    one = told(capsys, "--kind=finetuned_1pct", "r50_1x_sk1")
    assert "gcloud storage cp -r gs://simclr-checkpoints/simclrv2/finetuned_1pct/r50_1x_sk1" in one
    assert "64.5 % of ImageNet" in one
    for words, line in (
        (("--depth=18",), "depth=18: Google released"),
        (("--deep",), "'--deep': not understood"),
    ):
        with pytest.raises(SystemExit) as end:
            released.main(words)
        assert end.value.code == 2
        assert capsys.readouterr().err.startswith(f"error: {line}")


def test_the_list_needs_no_jax():
    code = (
        "import sys\nfrom simclr_jax.convert import released\nreleased.main(['v1'])\n"
        "sys.exit(3 * bool({'jax', 'tensorflow', 'numpy'} & set(sys.modules)))"
    )
    subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
