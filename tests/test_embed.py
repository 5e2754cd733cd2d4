"""`simclr embed`: every image once, whatever ends it; and `load` on files, which sees what it saw."""

import csv
import os
import shutil
import signal
import subprocess
import sys
from types import SimpleNamespace

import jax
import kill_embed
import numpy as np
import pytest
from conftest import tiny_config, untrained_run
from PIL import Image

from simclr_jax import encoder, sharding
from simclr_jax.data import sources, tfds
from simclr_jax.data.splits import Splits
from simclr_jax.data.tf import load as load_tensorflow
from simclr_jax.embed import parts as of_parts
from simclr_jax.embed import run
from simclr_jax.embed import search as searching
from simclr_jax.embed.__main__ import main
from simclr_jax.embed.parts import Parts
from simclr_jax.errors import SimclrError, Stopped
from simclr_jax.index import table

N = 80  # images
SIZES = ((12, 12), (20, 14), (7, 31))
BAD = {"b/broken.png": b"\x89PNG, and no more", "b/empty.jpg": b""}


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A run on RGB images that has learned nothing."""
    config = tiny_config(data__channels=3, eval__batch_size=16, mesh__devices=0)
    return str(untrained_run(tmp_path_factory.mktemp("runs") / "mine", config))


@pytest.fixture(scope="module")
def found(workdir):
    return encoder.load(workdir)


def folder_of(path, n):
    """`n` images of several sizes and kinds in two classes, and one beside them."""
    rng = np.random.default_rng(0)
    for i in range(n):
        name = "top.bmp" if not i else f"{'ab'[i % 2]}/deep/{i:03d}.{('png', 'jpg')[i % 3 == 1]}"
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (*SIZES[i % 3], 3), np.uint8)).save(path / name)
    return path


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return folder_of(tmp_path_factory.mktemp("photos"), N)


@pytest.fixture(scope="module")
def whole(found, workdir, photos, tmp_path_factory):
    """The table of `photos` that nothing happened to."""
    out = tmp_path_factory.mktemp("whole") / "f.npz"
    run.embed(found, workdir, run.Options(str(photos), str(out)))
    return table.read(out)


@pytest.fixture
def small(monkeypatch):
    """Parts of 32 rows, however slow the machine is."""
    monkeypatch.setattr(run, "ROWS", 32)
    monkeypatch.setattr(run, "SECONDS", np.inf)


def called(capsys, *words, command=main):
    """(exit code, standard output, the line on standard error)."""
    try:
        command([str(word) for word in words])
        code = 0
    except SystemExit as end:
        code = end.code
    return code, *capsys.readouterr()


def same(one, other):
    """The tables are equal, bit by bit."""
    assert one.paths == other.paths
    assert one.label == other.label
    assert one.features.tobytes() == other.features.tobytes()


# ---- what is written ------------------------------------------------------------------------------------


def test_rows_are_what_load_says_of_the_files(found, photos, whole):
    """Of files, of Pillow images and of arrays; the last by another implementation of the view."""
    assert sorted(whole.paths) == sorted(str(p.relative_to(photos)) for p in photos.rglob("*.*"))
    assert set(zip(whole.label, (p.split("/")[0] for p in whole.paths), strict=True)) == {
        ("a", "a"), ("b", "b"), ("", "top.bmp"),
    }  # fmt: skip
    files = [whole.file(i) for i in (0, 27, 54)]
    np.testing.assert_allclose(found(files), whole.features[[0, 27, 54]], atol=1e-6)
    pngs = [i for i in range(N) if whole.paths[i].endswith("png")][:3]  # JPEG has several decoders
    opened = [Image.open(whole.file(i)) for i in pngs]
    np.testing.assert_allclose(found(opened), whole.features[pngs], atol=1e-6)
    for i, image in zip(pngs[:2], opened, strict=False):
        one = found(np.asarray(image)[None], preprocess=True)
        np.testing.assert_allclose(one[0], whole.features[i], atol=1e-4)
    assert (whole.meta["step"], whole.meta["endpoint"], whole.meta["dim"]) == (7, "final_avg_pool", 128)
    assert whole.meta["images"] == str(photos)


def test_unreadable_files_are_left_out_and_listed(found, workdir, whole, tmp_path, capsys):
    """In their place is no other image; the exit code is 2, and the same command says so again."""
    folder = folder_of(tmp_path / "photos", N)
    for name, data in BAD.items():
        (folder / name).write_bytes(data)
    out = tmp_path / "new" / "f.parquet"
    words = ("--workdir", workdir, "--images", folder, "--out", out)
    for _ in range(2):
        code, said, told = called(capsys, *words)
        assert code == 2
        assert f"{out}: {N} of {N + 2} images, 128 numbers each (final_avg_pool)" in said
        last = told.strip().splitlines()[-1]
        assert last.startswith(
            f"error: 2 of {N + 2} files could not be read, {out.parent}/f.unreadable.csv says why"
        )
    same(table.read(out), whole)
    with open(out.parent / "f.unreadable.csv", newline="") as file:
        rows = list(csv.reader(file))
    assert [row[0] for row in rows] == ["file", *BAD]
    assert all(row[1] for row in rows)
    assert sorted(path.name for path in out.parent.iterdir()) == ["f.parquet", "f.unreadable.csv"]


def test_glob_and_list(found, photos, whole, tmp_path):
    """The same names and classes by other ways; a list says the classes itself."""
    names = sorted(name for name in whole.paths if name.endswith(".png"))
    images = run.find(f"{photos}/*/**/*.png", "train", found.config.data)
    assert [images.name(i) for i in range(images.source.size)] == names
    assert [images.label(i) for i in images.source.ids] == [name.split("/")[0] for name in names]
    assert images.root == str(photos)
    again = run.find(f"{photos}/**/**/*.png", "train", found.config.data)  # two ways to every file
    assert [again.name(i) for i in range(again.source.size)] == names
    lines = ["file,label,split", f"{photos}/top.bmp,x,test", f"{photos}/{names[0]},y,train"]
    (tmp_path / "list.csv").write_text("\n".join(lines))
    images = run.find(str(tmp_path / "list.csv"), "train", found.config.data)
    assert [images.label(i) for i in images.source.ids] == ["x", "y"]
    assert images.name(0) == f"{photos}/top.bmp"


def stream(images):
    """A set that can be read in its order alone."""
    tf = load_tensorflow()
    data = [tf.io.encode_png(image).numpy() for image in images]

    def opened(seed, process, processes):
        rows = tf.data.Dataset.from_tensor_slices((data, np.arange(len(data), dtype=np.int32) % 2))
        return rows.shard(processes, process)

    return sources.Stream("tfds:some/train", len(data), ("x", "y"), opened, "some", 8)


@pytest.mark.parametrize("kind", ["stream", "array"])
def test_sets_of_tfds_and_gaps_in_the_middle(found, workdir, tmp_path, monkeypatch, small, kind):
    """Only the gaps are read; rows are called by their number."""
    images = np.random.default_rng(3).integers(0, 256, (N, 12, 12, 3), np.uint8)
    source = stream(images) if kind == "stream" else sources.from_arrays(images, np.arange(N) % 2)
    monkeypatch.setattr(tfds, "load", lambda *args: Splits(source, None))
    options = run.Options("tfds:some", str(tmp_path / "f.npz"))
    with monkeypatch.context() as patch:
        patch.setattr(run._Work, "merge", lambda self: (_ for _ in ()).throw(SimclrError("stop here")))
        with pytest.raises(SimclrError, match="stop here"):
            run.embed(found, workdir, options)
    kept = sorted((tmp_path / "f.npz.parts").glob("*.npz"))
    assert [path.name for path in kept][:2] == [f"{0:012d}-{32:012d}.npz", f"{32:012d}-{64:012d}.npz"]
    for path in kept[1::2]:
        path.unlink()
    run.embed(found, workdir, options)
    rows = table.read(tmp_path / "f.npz")
    assert rows.paths == [f"{source.name}#{i}" for i in range(N)]
    np.testing.assert_allclose(rows.features, found(images), atol=1e-5)
    assert rows.label[:2] == list(source.classes)


# ---- whatever ends it -----------------------------------------------------------------------------------

KILLED = """
import os, signal, sys
from simclr_jax.embed import run
from simclr_jax.embed.__main__ import main
from simclr_jax.index import table
run.ROWS, run.SECONDS, written = 32, 1e9, []
replace = os.replace
def killed(half, path):
    written.append(path)
    if len(written) == int(sys.argv[1]):  # the plan is the first
        os.kill(os.getpid(), signal.SIGKILL)
    replace(half, path)
table.os.replace = killed
main(sys.argv[2:])
"""


def killed_here(words, tmp_path, monkeypatch):
    """As if: the third part is written and not renamed, and nobody clears up."""
    half, written, replace = tmp_path / "f.npz.parts" / "half.npz.tmp", [], os.replace

    def killed(source, path):
        written.append(path)
        if len(written) == 4:  # the plan is the first
            shutil.copy(source, half)
            raise SystemExit(-signal.SIGKILL)
        replace(source, path)

    with monkeypatch.context() as patch:
        patch.setattr(table.os, "replace", killed)
        with pytest.raises(SystemExit):
            main(words)


def killed_truly(words, tmp_path, monkeypatch):
    done = subprocess.run([sys.executable, "-c", KILLED, "4", *words], check=False)
    assert done.returncode == -signal.SIGKILL


@pytest.mark.parametrize("kill", [killed_here, pytest.param(killed_truly, marks=pytest.mark.slow)])
def test_killed_between_writing_and_renaming(
    workdir, photos, whole, tmp_path, monkeypatch, small, capsys, kill
):
    """The third part is there by half; the same command does what is missing, and nothing twice."""
    out = tmp_path / "f.npz"
    words = [f"--workdir={workdir}", f"--images={photos}", f"--out={out}"]
    kill(words, tmp_path, monkeypatch)
    parts = Parts(tmp_path / "f.npz.parts", N)
    assert parts.gaps() == [(64, N)]
    assert len(list(parts.folder.glob("*.tmp"))) == 1
    seen = []
    write = Parts.write

    def noted(self, begin, end, rows):
        seen.append((begin, end))
        write(self, begin, end, rows)

    monkeypatch.setattr(Parts, "write", noted)
    assert called(capsys, *words)[0] == 0
    assert seen == [(64, N)]
    same(table.read(out), whole)
    assert [path.name for path in tmp_path.iterdir()] == ["f.npz"]


def test_sigterm_keeps_all_that_is_done(found, workdir, photos, whole, tmp_path, monkeypatch, small):
    """Also of a part that has begun."""
    out, embedded = tmp_path / "f.npz", run._Work._embedded

    def interrupted(self, ranges):
        for i, rows in enumerate(embedded(self, ranges)):
            if i == 2:  # with 16 rows in no part
                os.kill(os.getpid(), signal.SIGTERM)
            yield rows

    options = run.Options(str(photos), str(out))
    with monkeypatch.context() as patch:
        patch.setattr(run._Work, "_embedded", interrupted)
        with pytest.raises(Stopped, match=f"stopped at 48 of {N} images, saved; the same command goes on"):
            run.embed(found, workdir, options)
    assert Parts(tmp_path / "f.npz.parts", N).gaps() == [(48, N)]
    run.embed(found, workdir, options)
    same(table.read(out), whole)


def test_another_plan_is_refused(found, workdir, photos, tmp_path, capsys, monkeypatch):
    """While it is under way, and when the table is there; the same plan is done at once."""
    out = tmp_path / "f.npz"
    words = ["--workdir", workdir, "--images", photos, "--out", out]
    work = run._Work(found, workdir, run.find(str(photos), "train", found.config.data),
                     run.Options(str(photos), str(out)), out)  # fmt: skip
    work.begin()
    code, _, told = called(capsys, *words, "--endpoint=projection")
    assert (code, told) == (2, f"error: --out={out}: was begun with another endpoint; give another --out, or "
                               f"remove {out}.parts\n")  # fmt: skip
    assert called(capsys, *words)[0] == 0
    monkeypatch.setattr(run._Work, "run", None)
    assert called(capsys, *words)[:2] == (0, f"{out}: {N} of {N} images, 128 numbers each (final_avg_pool)\n")
    for more, other in (
        (["--images", f"{photos}/a"], "list of images"),
        (["--config.eval.crop=0.5"], "preprocessing"),
    ):
        code, _, told = called(capsys, *words, *more)
        assert (code, told) == (2, f"error: --out={out}: is there already, of another {other}; remove it, "
                                   "or give another --out\n")  # fmt: skip


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--images=x"], "--workdir is missing: for example --workdir=runs/mine"),
        (["--workdir=RUN", "--images=none", "--out=f.npz"],
         "--images=none: no such folder, file or tfds:NAME"),
        (["--workdir=RUN", "--images=.", "--out=f.npz"], "--images=.: no image (.jpg, "),
        (["--workdir=RUN", "--images=*.gif", "--out=f.npz"], "--images=*.gif: no image (.jpg, "),
        (["--workdir=RUN", "--images=.", "--out=f.json"], "f.json: must end in .parquet, .npz, .npy, .csv"),
        (["--workdir=RUN", "--images=PHOTOS", "--out=f.npz", "--endpoint=logit"],
         "--endpoint=logit: this encoder has initial_conv, block_group1"),
        (["--workdir=RUN", "--images=PHOTOS", "--out=f.npz", "--config.model.width=2"],
         "config.model.width=2.0: RUN has 0.25; leave it out"),
        (["--workdir=RUN", "--images=PHOTOS", "--out=gs://a/f.npz"],
         "--out=gs://a/f.npz: must be a local path"),
        (["--workdir=RUN", "--images=PHOTOS", "--out=f.npz", "now"], "'now': not understood; see --help"),
    ],
    ids=range(9),
)  # fmt: skip
def test_mistakes_are_one_line(workdir, photos, tmp_path, monkeypatch, capsys, words, told):
    monkeypatch.chdir(tmp_path)
    given = [word.replace("RUN", workdir).replace("PHOTOS", str(photos)) for word in words]
    code, _, said = called(capsys, *given)
    assert (code, said.count("\n")) == (2, 1)
    assert said.startswith(f"error: {told.replace('RUN', workdir)}")
    assert not list(tmp_path.glob("f.*"))


def test_another_command_may_end_before_this_one_has_the_lock(
    found, workdir, photos, whole, tmp_path, monkeypatch
):
    """Its table is there by then; nothing is done again."""
    out, alone = tmp_path / "f.npz", run._alone

    def late(folder, told):
        plan = run._Work(found, workdir, run.find(str(photos), "train", found.config.data), options, out).plan
        table.write(out, whole._replace(meta={**whole.meta, "plan": plan}))
        return alone(folder, told)

    options = run.Options(str(photos), str(out))
    monkeypatch.setattr(run, "_alone", late)
    monkeypatch.setattr(run._Work, "run", None)
    assert run.embed(found, workdir, options) == [
        f"{out}: {N} of {N} images, 128 numbers each (final_avg_pool)"
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["f.npz"]


def test_a_folder_that_is_unmounted_is_not_a_folder_of_unreadable_files(found, workdir, photos, tmp_path):
    images = run.find(str(photos), "train", found.config.data)
    work = run._Work(found, workdir, images, run.Options("", ""), tmp_path / "f.npz")
    images.source.ledger.root = "/no/such/folder"
    rows = run.Rows(np.arange(2), np.full(2, run.UNREADABLE), np.zeros((2, 128), np.float32))
    with pytest.raises(SimclrError, match="/no/such/folder: this folder is gone; mount or restore it"):
        work._write([rows])
    assert not work.parts.folder.exists()


def test_nothing_readable_is_told(found, workdir, photos, tmp_path):
    options = run.Options(str(photos), str(tmp_path / "f.npz"))
    images = run.find(options.images, "train", found.config.data)
    work = run._Work(found, workdir, images, options, tmp_path / "f.npz")
    work.begin()
    nothing, why = np.zeros((0, 128), np.float32), {images.name(i): "it is no image" for i in range(N)}
    work.parts.write(0, N, table.Embeddings([], nothing, [], {"unreadable": why}))
    with pytest.raises(SimclrError, match=rf"none of {N} files can be read as an image \(it is no image\)"):
        work.merge()
    assert not (tmp_path / "f.npz").exists()


# ---- parts and shares -----------------------------------------------------------------------------------


@pytest.mark.parametrize("processes", [1, 2, 3, 7, 50])
def test_shares_are_a_partition_in_order(processes):
    rng = np.random.default_rng(processes)
    edges = np.unique(rng.integers(0, 200, 12))
    gaps = [(int(a), int(b)) for a, b in zip(edges[::2], edges[1::2], strict=False)]
    shares = [of_parts.shared(gaps, i, processes) for i in range(processes)]
    rows = [row for share in shares for a, b in share for row in range(a, b)]
    assert rows == [row for a, b in gaps for row in range(a, b)]
    counts = [sum(b - a for a, b in share) for share in shares]
    assert max(counts) - min(counts) <= 1


def test_two_processes_do_each_row_once(found, workdir, tmp_path, monkeypatch, small):
    """One after the other, as two hosts would beside each other; the first one merges."""
    pixels = np.random.default_rng(3).integers(0, 256, (N, 12, 12, 3), np.uint8)
    images, options = (
        run.Images(sources.from_arrays(pixels), "set"),
        run.Options("set", str(tmp_path / "f.npz")),
    )
    works = [run._Work(found, workdir, images, options, tmp_path / "f.npz") for _ in range(2)]
    gaps = works[0].begin()
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(run, "distributed", SimpleNamespace(first=lambda: False, several=lambda: False))
    for i, work in enumerate(works):
        monkeypatch.setattr(jax, "process_index", lambda i=i: i)
        monkeypatch.setattr(sharding, "gather", None)  # each has its own devices, nobody waits
        work.run(gaps)
        assert works[0].parts.gaps() == [[(N // 2, N)], []][i]
    works[0].merge()
    rows = table.read(tmp_path / "f.npz")
    assert rows.paths == [f"set#{i}" for i in range(N)]
    np.testing.assert_allclose(rows.features, found(pixels), atol=1e-5)


def test_parts_that_overlap_count_once(tmp_path):
    """Two commands at once, where no lock works: the rows of the later part are done again."""
    parts = Parts(tmp_path, 10)
    for a, b in ((0, 4), (2, 6), (7, 9)):
        rows = table.Embeddings(["x"] * (b - a), np.zeros((b - a, 2), np.float32), [""] * (b - a), {})
        parts.write(a, b, rows)
    assert parts.gaps() == [(4, 7), (9, 10)]
    assert sum(len(part.paths) for part in parts.read()) == 6


# ---- load -----------------------------------------------------------------------------------------------


def test_load_takes_pictures_of_all_kinds_at_once(found, photos, whole):
    """In one list, of any sizes, in its order; a mistake is a line."""
    names = [name for name in whole.paths if name.endswith("png")][:4]
    files = [photos / name for name in names]
    expected = whole.features[[whole.paths.index(name) for name in names]]
    opened = [Image.open(file) for file in files]
    mixed = [str(files[0]), opened[1], np.asarray(opened[2]), files[3]]
    np.testing.assert_allclose(found(mixed), expected, atol=1e-6)
    np.testing.assert_allclose(found(mixed[1:3], batch_size=1), expected[1:3], atol=1e-6)
    assert np.array_equal(found(opened[0]), found(files[:1]))
    arrays = [np.asarray(image) for image in opened]
    np.testing.assert_allclose(found(arrays, preprocess=True), expected, atol=1e-6)
    with_alpha = Image.merge("RGBA", (*opened[0].split(), Image.new("L", opened[0].size, 255)))
    assert np.array_equal(found(with_alpha), found(opened[0]))
    for mistake, told in (
        ([*files, photos / "none.png"], "none.png: cannot be read"),
        (Image.new("I;16", (9, 9)), "image 0 of 1: mode I;16 has more than 8 bits"),
        (arrays, "images must be of one size"),
        ([files[0], np.zeros((9, 9))], "images must be"),
    ):
        with pytest.raises(SimclrError, match=told):
            found(mistake)


def test_search_embeds_a_file_of_ones_own(photos, whole, tmp_path, capsys):
    """By the run that the table names, and by no other."""
    name = next(name for name in whole.paths if name.endswith(".png"))
    shutil.copy(photos / name, tmp_path / "q.png")
    for changes, code, told in (
        ({}, 0, f"1.0000       {name[0]}   {name}"),
        ({"encoder": "0"}, 2, f"f.npz: is of another run or checkpoint than {whole.meta['workdir']}; embed"),
        ({"view": "0"}, 2, "f.npz: is of another preprocessing than"),
    ):
        meta = {**whole.meta, "plan": {**whole.meta["plan"], **changes}}
        table.write(tmp_path / "f.npz", whole._replace(meta=meta))
        words = [f"--index={tmp_path}/f.npz", f"--query={tmp_path}/q.png", "--top=1"]
        found, *said = called(capsys, *words, command=searching.main)
        assert found == code
        assert told in "".join(said)


# ---- many -----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_killed_at_moments_by_chance(workdir, photos, tmp_path, monkeypatch):
    """Three times, from outside; the script counts the rows."""
    rng = np.random.default_rng(0)
    for i in range(3000):
        Image.fromarray(rng.integers(0, 256, (12, 12, 3), np.uint8)).save(tmp_path / f"{i}.bmp")
    code = "from simclr_jax.embed import run, __main__; run.ROWS = 64; __main__.main()"
    monkeypatch.setattr(kill_embed, "COMMAND", (sys.executable, "-c", code))
    words = [f"--workdir={workdir}", f"--images={tmp_path}", f"--out={tmp_path}/out/f.csv", "--kills=3"]
    assert len(kill_embed.main(words)) == 4
