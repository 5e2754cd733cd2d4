"""The service: answers against formulas, limits, batches, and how it ends; on a stand-in of an export."""

import ast
import asyncio
import base64
import contextlib
import hashlib
import io
import json
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import httpx
import numpy as np
import onnx
import pytest
import tifffile
import uvicorn
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from starlette.testclient import TestClient
from uvicorn.server import ServerState

from simclr_jax.data.formats import Reading
from simclr_jax.errors import SimclrError
from simclr_jax.index import table
from simclr_jax.index.artefact import matching
from simclr_jax.index.search import Index
from simclr_jax.serve import __main__ as command
from simclr_jax.serve import app, artefact, images, server
from simclr_jax.serve.batching import Batcher, OverloadError
from simclr_jax.serve.door import Limits
from simclr_jax.serve.service import Settings

ROOT = Path(__file__).parents[1]
SIZE, DIM, NAMES = 8, 5, ["cat", "dog", "owl"]
RNG = np.random.default_rng(0)
WEIGHTS = RNG.standard_normal((SIZE * SIZE * 3, DIM)).astype(np.float32)
HEAD = RNG.standard_normal((DIM, 3)).astype(np.float32)


def stand_in(folder, pixels="pixels", opset=17):
    """An ONNX file with the inputs and outputs of an export, which needs no training; returns its path."""
    constants = {
        "wanted": np.array([3, SIZE, SIZE]),
        "first": np.array([0]),
        "one": np.array([1]),
        "flat": np.array([0, -1]),
        "scale": np.float32(255),
        "mean": np.float32(0.5),
        "std": np.float32(0.25),
        "W": WEIGHTS,
        "V": HEAD,
    }
    nodes = [
        ("Cast", ["images"], "x0", {"to": TensorProto.FLOAT}),
        ("Transpose", ["x0"], "x1", {"perm": [0, 3, 1, 2]}),
        ("Shape", ["images"], "shape", {}),
        ("Slice", ["shape", "first", "one"], "n", {}),
        ("Concat", ["n", "wanted"], "sizes", {"axis": 0}),
        ("Resize", ["x1", "", "", "sizes"], "x2", {"mode": "linear"}),
        ("Transpose", ["x2"], "x3", {"perm": [0, 2, 3, 1]}),
        ("Div", ["x3", "scale"], "x4", {}),
        ("Sub", ["x4", "mean"], "x5", {}),
        ("Div", ["x5", "std"], pixels, {}),
        ("Reshape", [pixels, "flat"], "x6", {}),
        ("MatMul", ["x6", "W"], "features", {}),
        ("MatMul", ["features", "V"], "logits", {}),
    ]
    graph = helper.make_graph(
        [helper.make_node(kind, given, [made], **options) for kind, given, made, options in nodes],
        "stand_in",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["n", "h", "w", 3])],
        [
            helper.make_tensor_value_info("features", TensorProto.FLOAT, ["n", DIM]),
            helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 3]),
        ],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    path = folder / "encoder.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8), path)
    about = {
        "schema": 1,
        "format": "onnx",
        "file": path.name,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "input": {"name": "images", "channels": 3, "size": SIZE},
        "outputs": {"features": DIM, "logits": 3},
        "classes": NAMES,
        "run": {"workdir": "runs/toy", "step": 7, "data": {"background": "white", "exif": True}},
    }
    (folder / "encoder.onnx.json").write_text(json.dumps(about))
    return path


def features(image):
    """What the stand-in makes of an image of SIZE pixels, in float64."""
    return ((image / 255 - 0.5) / 0.25).reshape(-1) @ WEIGHTS.astype(np.float64)


def png(image):
    to = io.BytesIO()
    Image.fromarray(image).save(to, "PNG")
    return to.getvalue()


def picture(seed, height=SIZE, width=SIZE):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(folder, artefact's path, index's path) with twenty images in the index."""
    folder = tmp_path_factory.mktemp("serve")
    photos = folder / "photos"
    photos.mkdir()
    for i in range(20):
        (photos / f"{i}.png").write_bytes(png(picture(i, 300, 400) if i == 19 else picture(i)))
    rows = np.stack([features(picture(i)) for i in range(20)])
    meta = {"workdir": "/elsewhere/toy", "step": 7, "endpoint": "features", "images": str(photos)}
    names = [f"{i}.png" for i in range(20)]
    index = table.Embeddings(names, rows.astype(np.float32), ["even", "odd"] * 10, meta)
    table.write(folder / "features.npz", index)
    return SimpleNamespace(folder=folder, artefact=stand_in(folder), index=folder / "features.npz")


def settings(made, **changes):
    encoder = artefact.load(made.artefact, 1)
    found = Index(table.read(made.index))
    return Settings(encoder, **{"index": found, "local": True, **changes})


def connected(door):
    return TestClient(door, base_url="http://127.0.0.1:8000", raise_server_exceptions=False)


@pytest.fixture(scope="module")
def client(made):
    with connected(
        app.create(settings(made, limits=Limits(body=1 << 20, pixels=200_000, images=4)))
    ) as client:
        ready(client)
        yield client


def ready(client):
    """Waits until the model ran once."""
    for _ in range(6000):
        if client.get("/readyz").status_code == 200:
            return
    raise AssertionError("never ready")


def post(client, data, kind="image/png", **params):
    return client.post("/embed", content=data, headers={"content-type": kind}, params=params)


# ---- answers --------------------------------------------------------------------------------------------


def test_embedding_neighbours_and_classes_are_the_formulas(client):
    image = picture(3)
    (result,) = post(client, png(image), top=20).json()["results"]
    expected = features(image)
    np.testing.assert_allclose(result["embedding"], expected, rtol=1e-4, atol=1e-4)
    rows = np.stack([features(picture(i)) for i in range(20)])
    cosine = rows @ expected / np.linalg.norm(rows, axis=1) / np.linalg.norm(expected)
    order = np.argsort(-cosine)
    assert [each["row"] for each in result["neighbours"]] == order.tolist()
    np.testing.assert_allclose(
        [each["similarity"] for each in result["neighbours"]], cosine[order], atol=1e-5
    )
    assert result["neighbours"][0]["path"] == "3.png"
    assert result["neighbours"][0]["label"] == "odd"
    odds = np.exp(expected @ HEAD.astype(np.float64))
    told = {each["name"]: each["probability"] for each in result["classes"]}
    for name, probability in zip(NAMES, odds / odds.sum(), strict=True):
        assert told[name] == pytest.approx(probability, abs=1e-5)


def test_several_images_of_several_sizes_keep_their_order(client):
    files = [("image", (f"{i}.png", png(picture(i, 8 + 3 * i, 20)), "image/png")) for i in range(4)]
    together = client.post("/embed?top=0&classes=0", files=files).json()["results"]
    assert [each["name"] for each in together] == [f"{i}.png" for i in range(4)]
    for each, (_, (_, data, _)) in zip(together, files, strict=True):
        (alone,) = post(client, data, top=0).json()["results"]
        np.testing.assert_allclose(each["embedding"], alone["embedding"], rtol=1e-5, atol=1e-4)
        assert set(each) == {"name", "embedding"}


def test_concurrent_requests_share_batches_and_get_their_own_answers(client):
    def ask(seed):
        (result,) = post(client, png(picture(seed)), top=1).json()["results"]
        return result["neighbours"][0]["row"]

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(ask, range(19))) == list(range(19))


def test_a_graph_without_pixels_gives_the_same(made, tmp_path):
    whole = artefact.load(stand_in(tmp_path, pixels="other"), 1)
    cut = artefact.load(made.artefact, 1)
    assert whole.prepare is None
    assert cut.prepare is not None
    image = picture(0, 30, 50)
    for name, value in whole.run(whole.pixels(image)[None]).items():
        np.testing.assert_allclose(cut.run(cut.pixels(image)[None])[name], value, rtol=1e-6)


def test_a_graph_that_uses_more_than_pixels_is_not_cut(made):
    model = onnx.load(made.artefact)
    model.graph.node.append(helper.make_node("Mul", ["features", "scale"], ["more"]))
    model.graph.node.append(helper.make_node("Cast", ["n"], ["also"], to=TensorProto.FLOAT))
    model.graph.node.append(helper.make_node("Add", ["more", "also"], ["last"]))
    assert artefact._cut(model) is not None
    model.graph.output.append(helper.make_tensor_value_info("last", TensorProto.FLOAT, ["n", DIM]))
    assert artefact._cut(model) is None


def test_gray_images_are_the_luma_of_training(tmp_path):
    image = picture(0)
    luma = np.rint(image @ np.array([0.299, 0.587, 0.114])).astype(np.uint8)
    np.testing.assert_array_equal(images.decode(png(image), Reading(), 1, 10**6)[..., 0], luma)


def test_pictures_are_those_of_the_index_alone(client):
    answer = client.get("/images/19")
    assert answer.headers["content-type"] == "image/jpeg"
    assert Image.open(io.BytesIO(answer.content)).size == (256, 192)
    for row, code in (("20", 404), ("-1", 404), ("..%2f..%2fetc%2fpasswd", 422), ("1%2f..%2f2", 404)):
        assert client.get(f"/images/{row}").status_code in (code, 404), row


@pytest.mark.parametrize("root", ["in", ".", "ABSOLUTE"])
def test_paths_that_leave_the_root_are_not_followed(made, tmp_path, monkeypatch, root):
    (tmp_path / "in").mkdir()
    (tmp_path / "secret.png").write_bytes(png(picture(0)))
    monkeypatch.chdir(tmp_path / "in" if root == "." else tmp_path)
    root = str(tmp_path / "in") if root == "ABSOLUTE" else root
    index = Index(table.Embeddings(["../secret.png"], np.ones((1, DIM), np.float32), [""], {}))
    with connected(app.create(settings(made, index=index, root=root))) as client:
        assert client.get("/images/0").json() == {"error": "the image of row 0 is outside --images-root"}


# ---- what is refused ------------------------------------------------------------------------------------


def bomb(width, height):
    """A PNG of a kilobyte that claims many pixels."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", zlib.compress(bytes(10**6)))
        + chunk(b"IEND", b"")
    )


def tiled(side):
    """A TIFF of 16 × 16 pixels in one tile of `side` × `side`."""
    to = io.BytesIO()
    tifffile.imwrite(to, np.zeros((16, 16), np.uint8), tile=(side, side), compression="deflate")
    return to.getvalue()


def deep():
    to = io.BytesIO()
    Image.fromarray(np.zeros((4, 4), np.uint16)).save(to, "PNG")
    return to.getvalue()


SCANS = b"\xff\xda\0\0" * 101


@pytest.mark.parametrize(
    ("data", "kind", "code", "why"),
    [
        pytest.param(b"", "image/png", 400, "an image is empty", id="empty"),
        pytest.param(b"hello", "image/png", 415, "is no image that is read here", id="no image"),
        pytest.param(b"%PDF-1.7", "application/octet-stream", 415, "is no image", id="PDF"),
        pytest.param(png(picture(0)), "text/plain", 415, "text/plain: send image/jpeg", id="text"),
        pytest.param(png(picture(0)), "", 415, "Content-Type: none", id="no type"),
        pytest.param(png(picture(0, 60, 60))[:2000], "image/png", 422, "is damaged", id="truncated"),
        pytest.param(bomb(9000, 9000), "image/png", 413, "9000 × 9000 pixels, above 200,000", id="bomb"),
        pytest.param(bomb(30_000, 30_000), "image/png", 413, "more than 200,000", id="larger bomb"),
        pytest.param(bomb(1, 40_000), "image/png", 413, "32,768 a side", id="long"),
        pytest.param(tiled(2048), "image/tiff", 413, "above 200,000", id="tile"),
        pytest.param(deep(), "image/png", 422, "more than 8 bits", id="deep"),
        pytest.param(bytes((1 << 20) + 1), "image/png", 413, "has 1,048,577 bytes, above", id="body"),
        pytest.param(b"--x\r\n", "multipart/form-data", 400, "multipart: Missing boundary", id="no boundary"),
        pytest.param(b"nonsense", "multipart/form-data; boundary=x", 400, "multipart:", id="no multipart"),
        pytest.param(b"--x--\r\n", "multipart/form-data; boundary=x", 400, "there is no image", id="no part"),
    ],
)  # fmt: skip
def test_bodies_that_are_refused(client, data, kind, code, why):
    answer = post(client, data, kind)
    assert (answer.status_code, why in answer.json()["error"]) == (code, True), answer.text


def test_jpegs_with_very_many_scans_are_refused():
    to = io.BytesIO()
    Image.fromarray(picture(0)).save(to, "JPEG")
    with pytest.raises(images.LargeError, match="more than 100 scans"):
        images.opened(to.getvalue() + SCANS, 10**6)


def test_other_refusals(client):
    files = [("image", (f"{i}.png", png(picture(i)), "image/png")) for i in range(9)]
    for count in (5, 9):  # the parser itself stops at 6
        many = client.post("/embed", files=files[:count])
        assert (many.status_code, many.json()["error"]) == (413, "more than 4 images in a request")
    named = client.post("/embed", files=[files[0], ("image", ("b\nd.gif", b"GIF89a", "image/gif"))])
    assert named.status_code in (415, 422)
    assert named.json()["error"].startswith("b")
    chunks = client.post("/embed", content=iter([bytes(2**19)] * 3), headers={"content-type": "image/png"})
    assert (chunks.status_code, chunks.json()) == (413, {"error": "the body has more than 1,048,576 bytes"})
    assert client.get("/embed").status_code == 405
    assert client.get("/nothing").json() == {"error": "Not Found"}
    assert post(client, png(picture(0)), top=101).json()["error"].startswith("top: ")
    assert client.get("/about", headers={"host": "evil.example"}).status_code == 421
    assert client.get("/about", headers={"sec-fetch-site": "cross-site"}).status_code == 403


def test_a_token_is_asked_for_where_something_is_told(made):
    door = app.create(settings(made, token="s3cret", local=False))
    with connected(door) as client:
        for path in ("/about", "/metrics", "/images/0"):
            refused = client.get(path)
            assert (refused.status_code, refused.headers["www-authenticate"]) == (401, "Bearer")
            assert client.get(path, headers={"authorization": "Bearer s3cre"}).status_code == 401
            assert client.get(path, headers={"authorization": "Basic s3cret"}).status_code == 401
            for scheme in ("Bearer", "bearer"):  # RFC 9110, 11.1: in any case
                assert client.get(path, headers={"authorization": f"{scheme} s3cret"}).status_code == 200
        assert post(client, png(picture(0))).status_code == 401
        for path in ("/", "/healthz", "/openapi.json"):
            assert client.get(path).status_code == 200
        assert client.get("/about", headers={"host": "example.org"}).status_code == 401


# ---- load -----------------------------------------------------------------------------------------------


class Held:
    """A model that waits until the test lets it go."""

    def __init__(self):
        self.go, self.sizes = threading.Event(), []

    def __call__(self, batch, top):
        self.go.wait(10)
        self.sizes.append(len(batch))
        return [{"sum": float(each.sum())} for each in batch]


def test_what_waits_goes_in_one_batch_and_the_queue_ends():
    held = Held()
    batcher = Batcher(held, most=4, wait=0.0, room=9)
    with batcher.admit(9):
        answers = [batcher.submit(np.full(2, i, np.float32), 0) for i in range(9)]
        with pytest.raises(OverloadError), batcher.admit(1):
            pass
        answers[5].cancel()
        batcher.start()
        held.go.set()
        batcher.stop()
    assert [a.result(0)["sum"] for i, a in enumerate(answers) if i != 5] == [
        2.0 * i for i in range(9) if i != 5
    ]
    assert held.sizes == [4, 3, 1]
    with batcher.admit(9):
        pass


def test_an_error_of_the_model_is_told_to_those_of_its_batch():
    def fails(batch, top):
        raise RuntimeError("broken")

    batcher = Batcher(fails, most=4, wait=0.0, room=9)
    batcher.start()
    with pytest.raises(RuntimeError, match="broken"):
        batcher.submit(np.zeros(2), 0).result(10)
    batcher.stop()


def held_service(made, **limits):
    """(client's application, model that waits)."""
    door = app.create(settings(made, limits=Limits(**limits)))
    service, held = door.app.state.service, threading.Event()
    answers = service.batcher.run

    def waits(batch, top):
        assert held.wait(10)
        return answers(batch, top)

    service.batcher.run = waits
    return door, held


def until(condition):
    for _ in range(6000):
        if condition():
            return
        threading.Event().wait(0.005)
    raise AssertionError("it never was")


def test_overload_is_503_and_those_inside_are_answered(made):
    door, held = held_service(made, queue=2, requests=3)
    service = door.app.state.service
    with connected(door) as client, ThreadPoolExecutor(3) as pool:
        assert client.get("/readyz").json() == {"status": "loading"}
        inside = [pool.submit(post, client, png(picture(i))) for i in range(2)]
        until(lambda: service.batcher.inside == 2)
        third = post(client, png(picture(2)))
        assert (third.status_code, third.headers["retry-after"]) == (503, "1")
        assert third.json() == {"error": "too many images wait"}
        door.inside += 1
        assert client.get("/about").json() == {"error": "3 requests are being answered"}
        door.inside -= 1
        assert client.get("/healthz").status_code == 200
        held.set()
        assert [each.result().status_code for each in inside] == [200, 200]
        ready(client)
        door.stopping = True
        assert client.get("/readyz").json() == {"status": "stopping"}
        late = post(client, png(picture(0)))
        assert (late.status_code, late.json()["error"]) == (503, "the service is stopping")


def test_each_request_of_a_batch_gets_as_many_neighbours_as_it_asks_for(made):
    door, held = held_service(made)
    service, wanted = door.app.state.service, (0, 1, 20)
    with connected(door) as client, ThreadPoolExecutor(3) as pool:
        answers = [pool.submit(post, client, png(picture(4)), top=top) for top in wanted]
        until(lambda: service.batcher.inside == 3)
        held.set()
        found = [each.result().json()["results"][0].get("neighbours", []) for each in answers]
    assert [len(each) for each in found] == list(wanted)
    assert found[1] == found[2][:1]


def test_late_answers_and_late_bodies_end(made):
    door, held = held_service(made, seconds=0.5)
    with connected(door) as client:
        late = post(client, png(picture(0)))
        assert (late.status_code, late.json()["error"]) == (503, "no answer in 0.5 s")
        held.set()

    sent = []

    async def receive():
        await asyncio.sleep(10)

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/embed", "query_string": b"", "headers": [
        (b"host", b"localhost"), (b"content-type", b"image/png")]}  # fmt: skip
    asyncio.run(door(scope, receive, send))
    assert (sent[0]["status"], json.loads(sent[1]["body"])) == (
        408,
        {"error": "the body took more than 0.5 s"},
    )


def test_a_model_that_fails_at_once_ends_the_service(made):
    door = app.create(settings(made))
    service = door.app.state.service

    def fails(batch, top):
        raise RuntimeError("no memory")

    service.batcher.run = fails
    with connected(door) as client:
        until(lambda: service.failure)
        assert client.get("/readyz").status_code == 503
        answer = post(client, png(picture(0)))
        assert (answer.status_code, answer.json()) == (
            500,
            {"error": "the service failed; its log has the reason"},
        )
    assert asyncio.run(server.Server(door).on_tick(1))


def test_metrics_count_requests_and_batches(made):
    with connected(app.create(settings(made))) as client:
        ready(client)
        for i in range(3):
            post(client, png(picture(i)))
        post(client, b"nothing")
        client.get("/nowhere")
        text = client.get("/metrics").text
    for line in (
        'simclr_requests_total{code="200",path="/embed"} 3.0',
        'simclr_requests_total{code="415",path="/embed"} 1.0',
        'simclr_requests_total{code="404",path="other"} 1.0',
        'simclr_request_seconds_count{path="/embed"} 4.0',
        "simclr_batch_images_sum 4.0",  # and the first run's
        "simclr_queue_images 0.0",
    ):
        assert line in text, line


# ---- the page and what describes the service ------------------------------------------------------------


def test_the_page_loads_nothing_from_elsewhere(client):
    answer = client.get("/")
    assert not re.findall(r"""(?:src|href)=["']?(?!data:)[^"'> ]""", answer.text)
    assert "http:" not in answer.text
    assert "https:" not in answer.text
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert policy.count("sha256-") == 2
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert client.get("/docs").status_code == 404


def test_openapi_describes_the_routes(client):
    told = client.get("/openapi.json").json()
    assert set(told["paths"]) == {"/healthz", "/readyz", "/metrics", "/about", "/embed", "/images/{row}"}
    embed = told["paths"]["/embed"]["post"]
    assert set(embed["requestBody"]["content"]) == {"image/*", "multipart/form-data"}
    assert {"200", "413", "415", "422", "503"} <= set(embed["responses"])
    assert client.get("/about").json()["index"] == 20


# ---- the command ----------------------------------------------------------------------------------------


def changed(made, folder, **fields):
    """A copy of the artefact whose JSON says something else."""
    path = folder / made.artefact.name
    path.write_bytes(made.artefact.read_bytes())
    about = json.loads(made.artefact.with_name("encoder.onnx.json").read_text())
    path.with_name("encoder.onnx.json").write_text(json.dumps({**about, **fields}))
    return path


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"sha256": "0" * 64}, "is not the file that encoder.onnx.json describes"),
        ({"format": "stablehlo"}, "is stablehlo, and only ONNX runs here"),
        ({"outputs": {}}, "is not what an export writes (KeyError('features'))"),
        ({"input": {"channels": 5}}, "takes images of 5 channels"),
    ],
    ids=["sha256", "format", "outputs", "channels"],
)
def test_artefacts_that_are_refused(made, tmp_path, fields, why):
    with pytest.raises(SimclrError, match=re.escape(why)):
        artefact.load(changed(made, tmp_path, **fields), 1)


def test_a_damaged_graph_is_refused(made, tmp_path):
    path = changed(made, tmp_path)
    path.write_bytes(path.read_bytes()[:2000])
    path = changed(
        SimpleNamespace(artefact=path), tmp_path, sha256=hashlib.sha256(path.read_bytes()).hexdigest()
    )
    with pytest.raises(SimclrError, match="onnxruntime cannot run it"):
        artefact.load(path, 1)
    with pytest.raises(SimclrError, match="no such file"):
        artefact.load(tmp_path / "none.onnx", 1)


@pytest.mark.parametrize(
    ("dim", "meta", "why"),
    [
        (4, {}, "holds features of 4 numbers, the artefact gives features 5, logits 3"),
        (5, {"endpoint": "projection"}, "holds projection of 5 numbers"),
        (5, {"workdir": "runs/other"}, "is of workdir other, the artefact of toy"),
        (5, {"workdir": "/x/toy", "step": 8}, "is of step 8, the artefact of 7"),
    ],
    ids=["size", "endpoint", "run", "step"],
)
def test_an_index_of_another_run_is_refused(made, dim, meta, why):
    other = table.Embeddings(["a"], np.ones((1, dim), np.float32), [""], meta)
    with pytest.raises(SimclrError, match=re.escape(why)):
        matching(artefact.load(made.artefact, 1).about, other, Path("features.npz"))


def test_a_published_artefact_names_no_folder(made, tmp_path):
    loaded = artefact.load(changed(made, tmp_path, run={"step": 7}), 1)
    ours = table.Embeddings(["a"], np.ones((1, 5), np.float32), [""], {"workdir": "runs/toy", "step": 7})
    assert matching(loaded.about, ours, Path("features.npz")) == "features"
    with connected(app.create(Settings(loaded, local=True))) as client:
        told = client.get("/about").json()
    assert (told["run"], told["step"], told["index"]) == (None, 7, None)


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ([], "--artefact is missing"),
        (["--artefact=a.onnx", "--nothing=1"], "'--nothing=1': not understood"),
        (["--artefact=a.onnx", "--host=0.0.0.0"], "lets others in: add --token-file"),
        (["--artefact=a.onnx", "--images-root=x"], "add --index"),
        (["--artefact=a.onnx", "--index=i.csv", "--images-root=/nowhere"], "/nowhere: no such folder"),
        (["--artefact=a.onnx", "--body=inf"], "--body=inf: must be a number above 0"),
        (["--artefact=a.onnx", f"--token-file={sys.executable}"], "must be of printable ASCII characters"),
        (["--artefact=a.onnx", "--batch=0"], "--batch=0: must be a number above 0"),
        (["--artefact=a.onnx", "--images=9", "--queue=8"], "must be at most --queue=8"),
        (["--artefact=a.onnx", "--token-file=/nowhere/t"], "/nowhere/t: No such file"),
        (["--artefact=/nowhere/a.onnx"], "/nowhere/a.onnx: no such file"),
    ],
    ids=[
        "artefact",
        "option",
        "host",
        "root",
        "no-root",
        "infinite",
        "binary",
        "batch",
        "images",
        "token",
        "file",
    ],
)
def test_mistakes_end_in_one_line(capsys, monkeypatch, words, why):
    monkeypatch.delenv(command.VARIABLE, raising=False)
    with pytest.raises(SystemExit) as end:
        command.main(words)
    out, err = capsys.readouterr()
    assert (end.value.code, out, err.count("\n")) == (2, "", 1)
    assert why in err
    assert err.startswith("error: ")


def test_connections_that_send_no_whole_request_are_closed(monkeypatch):
    """Headers come a byte at a time and have no end; before them a whole request was answered."""
    monkeypatch.setattr(server, "HEAD", 0.05)

    async def answers(scope, receive, send):
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body"})

    async def talk():
        config, state = uvicorn.Config(answers, http=server.Protocol, lifespan="off"), ServerState()
        listening = await asyncio.get_running_loop().create_server(
            lambda: server.Protocol(config, state, {}), "127.0.0.1", 0
        )
        async with listening:
            reader, writer = await asyncio.open_connection(*listening.sockets[0].getsockname())
            writer.write(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 204")
            writer.write(b"GET / HTTP/1.1\r\nx: ")
            while True:
                writer.write(b"a")
                await writer.drain()
                await asyncio.sleep(0.001)

    with pytest.raises(ConnectionError):
        asyncio.run(asyncio.wait_for(talk(), 20))


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="of Linux")
def test_clients_that_do_not_read_their_answer_are_cut_off(monkeypatch):
    monkeypatch.setattr(server, "GRACE", 0.5)

    async def answers(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": bytes(1 << 25)})

    async def talk():
        config, state = uvicorn.Config(answers, http=server.Protocol, lifespan="off"), ServerState()
        loop, listening = asyncio.get_running_loop(), server.bound("127.0.0.1", 0)
        async with await loop.create_server(lambda: server.Protocol(config, state, {}), sock=listening):
            with socket.create_connection(listening.getsockname()) as client:
                client.sendall(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")
                while not state.connections:
                    await asyncio.sleep(0.01)
                while state.connections:
                    await asyncio.sleep(0.01)

    asyncio.run(asyncio.wait_for(talk(), 20))


BLOCKER = """
import importlib.abc, sys
ABSENT = {"jax", "jaxlib", "absl", "etils", "flax", "ml_collections", "tensorflow", "tqdm", "scipy"}
class Blocker(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ABSENT:
            raise ImportError("not installed: " + name)
sys.meta_path.insert(0, Blocker())
from simclr_jax import cli
sys.exit(cli.main(["serve", *sys.argv[1:]]))
"""


class Running:
    """`simclr serve` in a process of its own."""

    def __init__(self, words, python=(sys.executable, "-c", BLOCKER), cwd=None):
        without = (command.VARIABLE, *(["PYTHONPATH"] if cwd else []))
        env = {key: value for key, value in os.environ.items() if key not in without}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen([*python, *words, "--port=0"], env=env, cwd=cwd, **pipes)
        line = self.process.stdout.readline()
        assert line.startswith("serving encoder.onnx on http://"), line + self.process.stderr.read()
        self.url = line.split()[-1].rstrip("/")

    def connect(self):
        host, port = self.url.removeprefix("http://").split(":")
        return socket.create_connection((host, int(port)), timeout=10)

    def said(self, data):
        """The answer to some bytes."""
        with self.connect() as connection:
            connection.sendall(data)
            return connection.recv(1 << 16)

    def wait_ready(self):
        until(lambda: httpx.get(f"{self.url}/readyz").status_code == 200)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.communicate()


def request(size, top=1):
    """The headers of a request."""
    lines = (f"POST /embed?top={top} HTTP/1.1", "host: localhost", "content-type: image/png")
    return "\r\n".join([*lines, f"content-length: {size}", "", ""]).encode()


def test_the_service_without_jax_and_tensorflow_stops_in_order(made):
    with Running([f"--artefact={made.artefact}", f"--index={made.index}", "--threads=1"]) as running:
        running.wait_ready()
        told = httpx.post(f"{running.url}/embed?top=1", files={"image": png(picture(5))}).json()
        assert told["results"][0]["neighbours"][0]["path"] == "5.png"
        assert b"400 Bad Request" in running.said(b"GET / HTTP/1.1\r\nx: " + b"a" * (1 << 17) + b"\r\n\r\n")
        assert b"413 " in running.said(request(10_000_000_000))
        # In flight when the signal comes: it is finished, and the process ends with 0.
        data = png(picture(6))
        with running.connect() as half:
            half.sendall(request(len(data)) + data[:50])
            until(lambda: "simclr_requests_inside 2.0" in httpx.get(f"{running.url}/metrics").text)
            running.process.send_signal(signal.SIGTERM)
            until(lambda: httpx.get(f"{running.url}/readyz").json() == {"status": "stopping"})
            assert httpx.get(f"{running.url}/about").status_code == 503
            half.sendall(data[50:])
            with half.makefile("rb") as rest:
                assert b'"path":"6.png"' in rest.read()
        out, err = running.process.communicate(timeout=20)
        assert (running.process.returncode, out, err) == (0, "", "")


# ---- in a browser and in an environment of its own --------------------------------------------------------


class Browser:
    """Headless Chromium by WebDriver (w3.org/TR/webdriver2), as wide as a phone."""

    def __init__(self, stack, width=390, height=844):
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        driver = subprocess.Popen(["chromedriver", f"--port={port}"], stdout=subprocess.DEVNULL)
        stack.callback(driver.wait)
        stack.callback(driver.kill)
        self.http = stack.enter_context(httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60))
        until(lambda: self.answers())
        options = {"args": ["--headless=new", "--no-sandbox"]}
        wanted = {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
        self.root = ""
        self.root = f"/session/{self.do('/session', capabilities={'alwaysMatch': wanted})['sessionId']}"
        stack.callback(lambda: self.http.delete(self.root))
        screen = {"width": width, "height": height, "deviceScaleFactor": 2, "mobile": width < 500}
        self.do("/goog/cdp/execute", cmd="Emulation.setDeviceMetricsOverride", params=screen)

    def answers(self):
        with contextlib.suppress(httpx.TransportError):
            return self.http.get("/status").json()["value"]["ready"]

    def do(self, path, **body):
        told = self.http.post(self.root + path, json=body).json()["value"]
        assert not (isinstance(told, dict) and "error" in told), told
        return told

    def run(self, script):
        """What a script returns."""
        return self.do("/execute/sync", script=script, args=[])

    def type(self, selector, text):
        element = self.do("/element", using="css selector", value=selector)
        self.do(f"/element/{next(iter(element.values()))}/value", text=text)

    def wait(self, script):
        until(lambda: self.run(f"return {script}"))

    def shot(self, path):
        path.write_bytes(base64.b64decode(self.http.get(self.root + "/screenshot").json()["value"]))


@pytest.mark.slow
def test_the_page_in_a_browser(made, tmp_path):
    if not shutil.which("chromedriver"):
        pytest.skip("needs chromium and chromedriver")
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"no image")
    words = [f"--artefact={made.artefact}", f"--index={made.index}"]
    with contextlib.ExitStack() as stack:
        running, page = stack.enter_context(Running(words)), Browser(stack)
        running.wait_ready()
        page.do("/url", url=running.url)
        page.wait("document.querySelector('#about').textContent.includes('20 images')")
        page.type("#file", str(made.folder / "photos" / "3.png"))
        page.wait("[...document.querySelectorAll('#near img')].filter(i => i.naturalWidth).length === 20")
        best = page.run("return document.querySelector('#near figcaption').innerText")
        assert best.split("\n") == ["odd", "3.png", "similarity 1.000"]
        assert page.run("return document.querySelectorAll('#classes li').length") == 3
        assert page.run("return document.querySelector('#query').naturalWidth") == SIZE
        assert page.run("return document.documentElement.scrollWidth <= innerWidth")
        assert page.run("return [...document.querySelectorAll('img')].every(i => i.alt)")
        page.shot(tmp_path / "page.png")
        page.type("#file", str(bad))
        page.wait("document.querySelector('#status').textContent.startsWith('bad.png: is no image')")
        assert page.run("return document.querySelector('#found').hidden")
        page.run(
            "const data = new DataTransfer(); return fetch('images/7').then(a => a.blob()).then(blob => {"
            "data.items.add(new File([blob], 'seven.jpg'));"
            "document.dispatchEvent(new DragEvent('drop', {dataTransfer: data, cancelable: true})); })"
        )
        page.wait("document.querySelector('#status').textContent.includes('similar to seven.jpg')")
        logs = page.http.post(page.root + "/se/log", json={"type": "browser"}).json()["value"]
        assert [each for each in logs if "/embed" not in each["message"]] == []


@pytest.mark.slow
def test_the_page_asks_for_a_token(made, tmp_path):
    if not shutil.which("chromedriver"):
        pytest.skip("needs chromium and chromedriver")
    (tmp_path / "token").write_text("s3cret\n")
    words = [f"--artefact={made.artefact}", f"--index={made.index}", f"--token-file={tmp_path / 'token'}"]
    with contextlib.ExitStack() as stack:
        running, page = stack.enter_context(Running(words)), Browser(stack)
        page.do("/url", url=running.url)
        page.wait("!document.querySelector('#door').hidden")
        page.type("#token", "s3cret\n")
        page.wait("document.querySelector('#door').hidden")
        page.type("#file", str(made.folder / "photos" / "3.png"))
        page.wait("[...document.querySelectorAll('#near img')].filter(i => i.naturalWidth).length === 20")


def serving_requirements():
    """SERVE of setup.py."""
    tree = ast.parse((ROOT / "setup.py").read_text())
    (found,) = (n.value for n in tree.body if isinstance(n, ast.Assign) and n.targets[0].id == "SERVE")
    return ast.literal_eval(found)


@pytest.mark.slow
def test_it_runs_where_nothing_else_is_installed(made, tmp_path):
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "env")], check=True)
    python, pip = tmp_path / "env/bin/python", [tmp_path / "env/bin/pip", "install", "--quiet"]
    subprocess.run([*pip, *serving_requirements()], check=True)
    copy = shutil.copytree(
        ROOT, tmp_path / "copy", ignore=shutil.ignore_patterns(".git", ".venv", "runs", "build")
    )
    subprocess.run([*pip, "--no-deps", str(copy)], check=True)
    words = [f"--artefact={made.artefact}", f"--index={made.index}"]
    simclr = Running(["serve", *words], [str(python.with_name("simclr"))], cwd=tmp_path)
    with simclr as running:
        running.wait_ready()
        told = httpx.post(f"{running.url}/embed?top=1", files={"image": png(picture(5))}).json()
        assert told["results"][0]["neighbours"][0]["path"] == "5.png"
        assert "Similar images" in httpx.get(running.url).text
        running.process.send_signal(signal.SIGINT)
        assert running.process.wait(20) == 0
