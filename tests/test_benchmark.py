"""What tools/benchmark.py computes and promises; how fast anything is, no test says."""

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from bench import collectives, contest, hlo, kernels, loss, passes, pods, table
from conftest import tiny_config

from simclr_jax import sharding
from simclr_jax.config import default
from simclr_jax.doctor import chips
from simclr_jax.errors import SimclrError

TOOL = Path(__file__).parent.parent / "tools" / "benchmark.py"

HLO = """
HloModule jit_step, entry_computation_layout={(f32[8,128]{1,0})->f32[]}

%add (x: f32[], y: f32[]) -> f32[] {
  %x = f32[] parameter(0)
  %y = f32[] parameter(1)
  ROOT %add.1 = f32[] add(%x, %y)
}

%body (carry: (s32[], f32[4,16])) -> (s32[], f32[4,16]) {
  %carry = (s32[], f32[4,16]{1,0}) parameter(0)
  %value = f32[4,16]{1,0} get-tuple-element(%carry), index=1
  %passed = f32[4,16]{1,0} collective-permute(%value), source_target_pairs={{0,1},{1,0}}
  ROOT %next = (s32[], f32[4,16]{1,0}) tuple(%carry, %passed)
}

%condition (carry: (s32[], f32[4,16])) -> pred[] {
  %carry.1 = (s32[], f32[4,16]{1,0}) parameter(0)
  ROOT %less = pred[] compare(%carry.1, %carry.1), direction=LT
}

ENTRY %main (p0: f32[8,128], p1: bf16[64,2]) -> f32[] {
  %p0 = f32[8,128]{1,0:T(8,128)} parameter(0)
  %p1 = bf16[64,2]{1,0} parameter(1)
  %all-gather = f32[64,128]{1,0} all-gather(%p0), dimensions={0}, metadata={op_name="jit(step)/loss"}
  %all-reduce = (f32[3,3,16,32]{3,2,1,0}, /*index=1*/f32[]) all-reduce(%k, %s), to_apply=%add
  %ar-start = f32[100]{0} all-reduce-start(%v), to_apply=%add
  %ar-done = f32[100]{0} all-reduce-done(%ar-start)
  %ag-start = (f32[8,128]{1,0}, f32[64,128]{1,0}) all-gather-start(f32[8,128]{1,0} %p0), dimensions={0}
  %ag-done = f32[64,128]{1,0} all-gather-done(%ag-start)
  %scattered = bf16[8,2]{1,0} reduce-scatter(%p1), dimensions={0}, to_apply=%add
  %exchanged = u8[16,28,28,1]{3,2,1,0} all-to-all(%images), dimensions={0}
  %loop = (s32[], f32[4,16]{1,0}) while(%init), condition=%condition, body=%body, TRIPS
  ROOT %result = f32[] constant(0)
}
""".replace("TRIPS", 'backend_config={"known_trip_count":{"n":"7"}}')


def test_bytes_of_a_written_program():
    found = hlo.collectives(HLO)
    assert hlo.bytes_by_kind(found) == {
        "all-gather": 2 * 64 * 128 * 4,  # one of them in a start and a done
        "all-reduce": (3 * 3 * 16 * 32 + 1) * 4 + 100 * 4,
        "reduce-scatter": 64 * 2 * 2,  # what is scattered, not what arrives
        "all-to-all": 16 * 28 * 28,
        "collective-permute": 7 * 4 * 16 * 4,  # a trip each
    }
    assert found[[c.kind for c in found].index("all-gather")].source == "jit(step)/loss"


def test_trips_that_the_condition_tells():
    """TPU's compiler writes no count beside the loop."""
    silent = HLO.replace(', backend_config={"known_trip_count":{"n":"7"}}', "")
    text = silent.replace("ROOT %less", "%limit = s32[]{:T(128)} constant(5)\n  ROOT %less")
    text = text.replace("compare(%carry.1, %carry.1)", "compare(%carry.1, %limit)")
    moved = [hlo.bytes_by_kind(hlo.collectives(each))["collective-permute"] for each in (silent, text)]
    assert moved == [4 * 16 * 4, 5 * 4 * 16 * 4]


def test_images_are_told_from_kernels_and_embeddings():
    found = hlo.collectives(HLO)
    assert [c.kind for c in hlo.image_sized(found, (28, 28, 1), [(3, 3, 16, 32)])] == ["all-to-all"]
    assert len(hlo.image_sized(found, (28, 28, 1), [])) == 2  # a kernel that is no parameter's is suspect


def test_images_in_words_are_told_as_well():
    """A run from memory sends 28 · 28 bytes as 196 words."""
    sent = [
        hlo.Collective("reduce-scatter", (hlo.Array("u32", shape),), 1, "") for shape in ((64, 196), (196,))
    ]
    assert hlo.image_sized(sent, (28, 28, 1), []) == sent[:1]


def test_no_image_moves_in_the_train_step():
    result = collectives.measure(tiny_config(mesh__devices=8))
    assert result["image_sized"] == []
    embeddings = result["batch_size"] * 2 * result["config"]["model"]["projection_dim"] * 4
    assert result["bytes"]["all-gather"] == embeddings
    assert 4 * result["parameters"] <= result["bytes"]["all-reduce"] < 6 * result["parameters"]


def test_images_that_move_are_seen():
    mesh = sharding.make_mesh(8)
    whole = jax.jit(lambda x: jax.lax.with_sharding_constraint(jnp.sin(x), sharding.replicated(mesh)))
    images = jax.ShapeDtypeStruct((16, 2, 12, 12, 1), jnp.float32, sharding=sharding.by_batch(mesh))
    found = hlo.collectives(whole.lower(images).compile().as_text())
    assert [c.size for c in hlo.image_sized(found, (12, 12, 1), [])] == [16 * 2 * 12 * 12 * 4]


OVERLAPPED = """
%fused_computation.1 (p: f32[8,128]) -> f32[64,128] {
  %p = f32[8,128]{1,0} parameter(0)
  %all-gather.1 = f32[64,128]{1,0} all-gather(%p), channel_id=11, dimensions={0}
}

%async_collective_fusion.2 (q: f32[8,128]) -> f32[64,128] {
  %q = f32[8,128]{1,0} parameter(0)
  %all-gather.2 = f32[64,128]{1,0} all-gather(%q), channel_id=11, dimensions={0}
}

%all-reduce-scatter.3 (r: f32[64,128]) -> f32[8,128] {
  %r = f32[64,128]{1,0} parameter(0)
  %all-reduce.3 = f32[64,128]{1,0} all-reduce(%r), channel_id=12, to_apply=%add
  ROOT %mine = f32[8,128]{1,0} dynamic-slice(%all-reduce.3, %i, %zero)
}

ENTRY %main (a: f32[8,128]) -> f32[8,128] {
  %a = f32[8,128]{1,0} parameter(0)
  %begun = f32[64,128]{1,0} fusion(%a), kind=kCustom, calls=%fused_computation.1
  %done = f32[64,128]{1,0} fusion(%a), kind=kCustom, calls=%async_collective_fusion.2
  ROOT %scattered = f32[8,128]{1,0} fusion(%done), kind=kCustom, calls=%all-reduce-scatter.3
}
"""


def test_tpus_write_a_gather_in_pieces_and_a_scatter_as_a_sum():
    found = hlo.collectives(OVERLAPPED)
    assert [(c.kind, c.size) for c in found] == [
        ("all-gather", 64 * 128 * 4),
        ("reduce-scatter", 64 * 128 * 4),
    ]


def test_loops_move_their_bytes_every_time():
    """A loop of 7 that reads and writes 64 bytes each, beside a fusion that does so once."""
    text = """
%fused (x: f32[16]) -> f32[16] {
  %x = f32[16]{0} parameter(0)
  %a = f32[16]{0} add(%x, %x)
  ROOT %b = f32[16]{0} multiply(%a, %a)
}

%body (carry: (s32[], f32[16])) -> (s32[], f32[16]) {
  %carry = (s32[], f32[16]{0}) parameter(0)
  %value = f32[16]{0} get-tuple-element(%carry), index=1
  %next = f32[16]{0} negate(%value)
  ROOT %both = (s32[], f32[16]{0}) tuple(%carry, %next)
}

ENTRY %main (p: f32[16]) -> f32[16] {
  %p = f32[16]{0} parameter(0)
  %once = f32[16]{0} fusion(%p), kind=kLoop, calls=%fused
  %loop = (s32[], f32[16]{0}) while(%once), body=%body, backend_config={"known_trip_count":{"n":"7"}}
  ROOT %r = f32[16]{0} get-tuple-element(%loop), index=1
}
"""
    assert hlo.repeats(text) == (1 + 7) / 2
    assert hlo.repeats(OVERLAPPED) == 1


def test_a_loop_that_takes_slices_moves_the_whole_once():
    """Seven slices of 16 numbers, doubled and put into place: 7 · (16 + 16) numbers, not 7 times all 112."""
    text = """
%take (all: f32[7,16], i: s32[]) -> f32[1,16] {
  %all = f32[7,16]{1,0} parameter(0)
  %i = s32[] parameter(1)
  %zero = s32[] constant(0)
  %slice = f32[1,16]{1,0} dynamic-slice(%all, %i, %zero), dynamic_slice_sizes={1,16}
  ROOT %twice = f32[1,16]{1,0} add(%slice, %slice)
}

%put (into: f32[7,16], part: f32[1,16], j: s32[]) -> f32[7,16] {
  %into = f32[7,16]{1,0} parameter(0)
  %part = f32[1,16]{1,0} parameter(1)
  %j = s32[] parameter(2)
  %none = s32[] constant(0)
  ROOT %updated = f32[7,16]{1,0} dynamic-update-slice(%into, %part, %j, %none)
}

%body (carry: (s32[], f32[7,16], f32[7,16])) -> (s32[], f32[7,16], f32[7,16]) {
  %carry = (s32[], f32[7,16]{1,0}, f32[7,16]{1,0}) parameter(0)
  %k = s32[] get-tuple-element(%carry), index=0
  %from = f32[7,16]{1,0} get-tuple-element(%carry), index=1
  %to = f32[7,16]{1,0} get-tuple-element(%carry), index=2
  %taken = f32[1,16]{1,0} fusion(%from, %k), kind=kLoop, calls=%take
  %kept = f32[7,16]{1,0} fusion(%to, %taken, %k), kind=kLoop, calls=%put
  ROOT %next = (s32[], f32[7,16]{1,0}, f32[7,16]{1,0}) tuple(%k, %from, %kept)
}

ENTRY %main (x: f32[112]) -> f32[112] {
  %x = f32[112]{0} parameter(0)
  %before = f32[112]{0} negate(%x)
  %loop = (s32[], f32[7,16]{1,0}, f32[7,16]{1,0}) while(%before), body=%body, TRIPS
  ROOT %r = f32[7,16]{1,0} get-tuple-element(%loop), index=2
}
""".replace("TRIPS", 'backend_config={"known_trip_count":{"n":"7"}}')
    outside, each = 4 * (112 + 112), 4 * (16 + 1 + 16) + 4 * (16 + 1 + 16)
    assert hlo.repeats(text) == (outside + 7 * each) / (outside + each)


def test_the_roofline_of_a_step_by_hand():
    chip = chips.Chip(peak=100.0, memory=1.0, bandwidth=10.0, link=4.0)
    moved = dict.fromkeys(hlo.KINDS, 0) | {"all-gather": 8, "all-reduce": 16}
    roofline = chips.roofline(chip, 4, 800.0, 50.0, moved)
    # Of 8 gathered bytes three quarters arrive; 16 are summed in a scatter and a gather.
    assert roofline == {"compute": 2.0, "memory": 5.0, "links": (6 + 24) / 4}


def test_a_slice_that_nobody_sells():
    with pytest.raises(SimclrError, match="--topology=v99:2x2: must be one of v4, v5e"):
        pods.measure(tiny_config(), topology=("v99:2x2",))


def test_a_step_too_large_for_a_chip(monkeypatch, capsys):
    """As libtpu says it."""
    said = "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 20.5G of 15.75G hbm."

    class Lowered:
        def compile(self):
            raise jax.errors.JaxRuntimeError(said)

    monkeypatch.setattr(pods, "lower", lambda config, mesh: (Lowered(), {}, 1.0))
    row = pods.compiled(tiny_config(), "v5e:1x1", sharding.make_mesh(1))
    assert (row["fits"], row["needed_bytes"]) == (False, int(20.5 * 2**30))
    row |= {"topology": "v5e:1x1", "chips": 1}
    pods.show({"rows": [row], "config": tiny_config().to_dict(), "batch_size": 16})
    assert "needs 22.0" in capsys.readouterr().out


def test_a_slice_that_the_batch_does_not_divide():
    with pytest.raises(SimclrError, match="or give another --topology"):
        pods.compiled(tiny_config(train__batch_size=15), "v5e:2x2", sharding.make_mesh(2))


@pytest.mark.slow
def test_a_step_compiled_for_tpus(capsys):
    """Needs the libtpu that belongs to the installed jax: pip install -e '.[tpu]'."""
    pytest.importorskip("libtpu")
    result = json.loads(json.dumps(pods.measure(tiny_config(), topology=("v5e:2x2",))))
    (row,) = result["rows"]
    assert (row["fits"], row["chips"]) == (True, 4)
    assert row["collectives"]["all-gather"] == row["collectives"]["reduce-scatter"] == 1
    assert 0 < row["traffic_bytes"] < 1e9
    assert 4 * row["parameters"] <= row["argument_bytes"]
    pods.show(result)
    assert "images/s by it" in capsys.readouterr().out


def test_loss_promises(capsys):
    config = default()
    config.mesh.devices = 1
    result = loss.measure(config, sizes=(16,), dim=8, steps=1)
    names = [row["name"] for row in result["rows"]]
    assert names[:2] == ["dense", "tiled"]
    for row in json.loads(json.dumps(result))["rows"]:
        assert (row["images"], row["peer"]) == (16, False)
        assert row["memory_bytes"] > 0
        assert set(row["seconds"]) == {"median", "min", "max"}
    assert {"versions", "device", "dim", "temperature"} <= set(result)
    for off in result["off_float64"].values():
        assert off["value"] < 1e-6
        assert off["gradient"] < 1e-5
    loss.show(result)
    assert "temporary MB" in capsys.readouterr().out


def test_numbers_and_columns(capsys):
    shown = [table.number(x) for x in (0.01234, 1.25, 99.94, 102.3, 12530, 0, None)]
    assert shown == ["0.0123", "1.25", "99.9", "102", "12,530", "0", ""]
    table.show("title", ("", "n", "peer"), [("a", "1", ""), ("bcd", "10", "")])
    assert capsys.readouterr().out == "\ntitle\n       n\na      1\nbcd   10\n"


def run(*args, **options):
    """(exit code, last line of stderr) of the command line."""
    done = subprocess.run(
        [sys.executable, TOOL, *args], capture_output=True, text=True, check=False, **options
    )
    assert "Traceback" not in done.stderr
    return done.returncode, (done.stderr.strip().splitlines() or [""])[-1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("losses",), "error: part 'losses': must be one of step, loss,"),
        (("step",), "error: --config is missing: for example --config=configs/quickstart.py"),
        (("loss", "--bank=3"), "error: --bank: the part loss does not take it; it takes --sizes"),
        (("loss", "--sizes=64,many"), "error: flag --sizes=64,many: must be whole numbers above 0"),
        (("knn", "--k=20", "--bank=10"), "error: --k=20: more neighbours than the bank has rows"),
        (
            ("loss", "--sizes=8", "--peer=/no/python"),
            "error: --peer=/no/python: No such file or directory; give",
        ),
    ],
    ids=lambda x: x[0] if isinstance(x, tuple) else "",
)
def test_mistakes_in_one_line(args, says):
    code, line = run(*args)
    assert code == 2
    assert line.startswith(says)


@pytest.mark.slow
def test_no_tensorflow_for_the_device(tmp_path):
    (tmp_path / "tensorflow").mkdir()
    (tmp_path / "tensorflow" / "__init__.py").write_text(
        "raise ImportError('wanted by a part on the device')"
    )
    code = """
        from bench import augment, knn, loss, step
        from conftest import tiny_config
        step.matmul_rate = lambda dtype: 1.0  # takes seconds
        step.measure(tiny_config(), steps=1)
        loss.measure(tiny_config(), sizes=(8,), steps=1)
        knn.measure(tiny_config(), bank=8, queries=2, dim=4, k=2, classes=(2,), steps=1)
        augment.measure(tiny_config(augment__jitter=0.0), images=2, steps=1)
    """
    where = [tmp_path, TOOL.parent, Path(__file__).parent, TOOL.parent.parent]
    paths = f"import sys; sys.path[:0] = {[str(p) for p in where]}\n"
    subprocess.run([sys.executable, "-c", paths + textwrap.dedent(code)], check=True)


# ---- peers --------------------------------------------------------------------------------------

FAKE = """
import json, sys
for line in sys.stdin:
    asked = json.loads(line)
    if "go" in asked:
        reply = {"seconds": 2.0, "cpu_seconds": 3.0, "memory_bytes": 5.0}
    else:
        reply = REPLY
    print(json.dumps(reply), flush=True)
"""


@pytest.fixture
def server(tmp_path, monkeypatch):
    """serve(code): the peer's server is this code."""

    def serve(code):
        (tmp_path / "server.py").write_text(code)
        monkeypatch.setattr(contest, "SERVER", tmp_path / "server.py")

    return serve


def test_peers_take_turns_with_us(server):
    server(FAKE.replace("REPLY", '{"name": asked["part"] + " of theirs", "notes": ["slow today"]}'))
    order = []
    with contest.peers(sys.executable, part="loss", n=3) as (others, notes):
        assert list(others) == ["loss of theirs"]
        assert notes == ["slow today"]
        theirs = others["loss of theirs"]
        contenders = {
            "ours": contest.timed(lambda: order.append("ours")),
            "theirs": lambda: order.append("theirs") or theirs(),
        }
        found = contest.contest(contenders, repeats=2, warm_up=1)
    assert order == ["ours", "theirs"] * 3
    assert found["theirs"]["seconds"] == {"median": 2.0, "min": 2.0, "max": 2.0}
    assert (found["theirs"]["cpu_seconds"], found["theirs"]["memory_bytes"]) == (3.0, 5.0)
    assert found["ours"]["memory_bytes"] is None


def test_parts_of_a_number_add_up():
    x = np.random.default_rng(0).normal(size=1000).astype(np.float32)
    for bits, parts, left in (
        (passes.BFLOAT16, 1, 2**-8),
        (passes.BFLOAT16, 3, 2**-23),
        (passes.TF32, 2, 2**-22),
    ):
        whole = sum(part.astype(np.float64) for part in passes.split(x, bits, parts))
        assert np.max(np.abs(whole / x - 1)) <= left
    like = jnp.asarray(x).astype(jnp.bfloat16).astype(jnp.float32)
    np.testing.assert_array_equal(passes.rounded(x, passes.BFLOAT16), like)


def test_three_tf32_passes_are_as_exact_as_float32(capsys):
    config = default()
    result = passes.measure(config, images=256, dim=32)
    off = {(row["views"], row["products"]): row["gradient"] for row in result["rows"]}
    for views in passes.VIEWS:
        assert off[views, "TF32 × 3"] < 1e-5 < 1e-4 < off[views, "TF32"]
    passes.show(result)
    assert "gradient off" in capsys.readouterr().out


def test_one_that_does_not_fit_is_a_row_and_the_others_go_on(monkeypatch, capsys):
    """Logits of 65,536 images would take 69 GB: here a machine with 1 MB free."""
    monkeypatch.setattr(contest.memory_error, "host_free", lambda: 1_000_000)
    config = default()
    config.mesh.devices = 1
    result = loss.measure(config, sizes=(512,), dim=8, steps=1)
    rows = {row["name"]: row for row in json.loads(json.dumps(result))["rows"]}
    assert rows["dense"]["seconds"] is None
    assert rows["dense"]["out_of_memory"].startswith("out of memory: ")
    loss.show(result)
    assert "out of memory" in capsys.readouterr().out

    def wrong():
        raise ValueError("shapes do not match")

    with pytest.raises(ValueError, match="shapes"):
        contest.contest({"wrong": wrong}, 1)


def test_the_last_of_several_is_waited_for(server):
    server(FAKE.replace("2.0", 'asked["go"]').replace("REPLY", '{"name": "theirs"}'))
    with contest.peers(sys.executable, part="step") as (others, _):
        found = contest.contest(contest.pipelined(others, 5), repeats=1)
    assert {name: each["seconds"]["median"] for name, each in found.items()} == {
        "theirs": 1,
        "theirs, pipelined": 5,
    }


def test_a_peer_without_memory_is_a_row(server):
    server(
        FAKE.replace('{"seconds"', '{"out_of_memory": "out of memory", "seconds"').replace(
            "REPLY", '{"name": "theirs"}'
        )
    )
    with contest.peers(sys.executable, part="loss") as (others, _):
        found = contest.contest({"ours": contest.timed(lambda: None), **others}, repeats=1)
    assert found["theirs"]["seconds"] is None
    assert found["ours"]["seconds"]["median"] >= 0
    rows = [
        {"name": name, "peer": name != "ours", "rate": contest.rate(1, each["seconds"])}
        for name, each in found.items()
    ]
    assert table.times_peer(rows, rows[0], "rate") == ""


def test_kernels_by_kind(capsys):
    names = {"process_name": "/device:GPU:0", "thread_name": "Stream #13(Compute)"}
    events = [{"ph": "M", "pid": 1, "tid": 7, "name": k, "args": {"name": v}} for k, v in names.items()]
    events.append({"ph": "M", "pid": 2, "tid": 7, "name": "process_name", "args": {"name": "/host:CPU"}})
    run = [
        ("sm90_xmma_fprop_implicit_gemm", 30),
        ("input_convert_reduce_fusion_3", 50),
        ("loop_add_fusion", 20),
    ]
    events += [{"ph": "X", "pid": 1, "tid": 7, "name": name, "dur": dur} for name, dur in run * 2]
    events.append({"ph": "X", "pid": 2, "tid": 7, "name": "python", "dur": 1000})
    found = kernels.summary(events)
    assert found["seconds"] == pytest.approx(200e-6)
    assert found["kinds"] == pytest.approx({"reduction": 0.5, "convolution": 0.3, "elementwise": 0.2})
    assert found["kernels"][0] == {
        "name": "input_convert_reduce_fusion_3",
        "calls": 2,
        "share": pytest.approx(0.5),
    }
    others = ("sm80_xmma_gemm_bf16", "ncclDevKernel_AllGather_RING", "loop_convert_fusion", "scatter_4")
    kinds = ["matrix product", "collective", "elementwise", "gather, scatter, sort"]
    assert list(map(kernels.kind, others)) == kinds
    kernels.show(found)
    assert "50.0 %" in capsys.readouterr().out


def test_a_cpu_has_no_kernels_to_trace():
    with pytest.raises(SimclrError, match="--trace: the profiler saw no kernels of a GPU"):
        kernels.shares(lambda: jnp.ones(3) + 1)


def test_a_peer_that_lacks_a_package_is_left_out(server):
    server(FAKE.replace("REPLY", '{"missing": "lightly is not installed"}'))
    with contest.peers(sys.executable, part="knn") as (others, notes):
        assert (others, notes) == ({}, ["no peer: lightly is not installed"])


def test_a_peer_that_dies_says_why(server):
    server("raise SystemExit('out of memory')")
    with pytest.raises(SimclrError, match=r"--peer=.*: stopped: out of memory"):
        contest.Peer(sys.executable, part="loss")


def test_the_server_says_that_torch_is_missing(tmp_path, monkeypatch):
    (tmp_path / "torch.py").write_text("raise ImportError")
    launcher = tmp_path / "server.py"
    launcher.write_text(
        f"import runpy, sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        f"runpy.run_path({str(contest.SERVER)!r}, run_name='__main__')"
    )
    monkeypatch.setattr(contest, "SERVER", launcher)
    with contest.peers(sys.executable, part="loss", n=4, dim=2, temperature=0.1) as (others, notes):
        assert others == {}
        assert notes[0].startswith("no peer: PyTorch is not installed")
