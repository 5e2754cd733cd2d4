"""Tables of embeddings, search, duplicates and curation: against formulas in float64, without JAX."""

import csv
import subprocess
import sys

import numpy as np
import pytest
import tqdm
from PIL import Image

from simclr_jax.embed import search as searching
from simclr_jax.errors import SimclrError
from simclr_jax.index import curate, dedup, ends, table
from simclr_jax.index.search import Index
from simclr_jax.index.table import Embeddings

ODD = ['a/é "1", x.png', "a/2.png", "b/with\ttab.png", "c\\xff.png", "d/\u2028.png", "5"]


def cosines(a, b):
    """In float64, a pair after the other."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    return np.array([[x @ y / (np.linalg.norm(x) * np.linalg.norm(y)) for y in b] for x in a])


def made(n=40, dim=6, seed=0, **meta):
    """A table of random rows."""
    features = np.random.default_rng(seed).normal(size=(n, dim)).astype(np.float32)
    names = [f"c{i % 3}/{i}.png" for i in range(n)]
    return Embeddings(names, features, [f"c{i % 3}" for i in range(n)], {"workdir": "runs/a", **meta})


# ---- the file -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", list(table.SINKS))
def test_every_format_gives_back_every_bit(tmp_path, suffix):
    """In parts of any sizes; also denormal, huge and negative zeros, and names of any characters."""
    features = np.array([[1e-45, -0.0, 3.4e38], [1 / 3, 2**-24, -1]] * 3, np.float32)
    whole = Embeddings(ODD, features, ["", "ü,", "b", "c", "", "e"], {"step": 3, "images": "/x"})
    cuts = [(0, 1), (1, 1), (1, 4), (4, 6)]
    parts = [(whole.paths[a:b], whole.label[a:b], features[a:b]) for a, b in cuts]
    table.write_parts(tmp_path / f"t{suffix}", iter(parts), 6, 3, whole.meta)
    found = table.read(tmp_path / f"t{suffix}")
    assert found.features.tobytes() == features.tobytes()
    assert (found.paths, found.label) == (whole.paths, whole.label)
    assert found.meta == table.meta_of(tmp_path / f"t{suffix}") == {**whole.meta, "dim": 3, "schema": 1}
    assert not list(tmp_path.glob("*.tmp"))


@pytest.mark.parametrize("suffix", list(table.SINKS))
def test_a_part_that_fails_leaves_the_old_file(tmp_path, suffix):
    path = tmp_path / f"t{suffix}"
    table.write(path, made())

    def parts():
        yield made().paths, made().label, made().features
        raise OSError("the disk of the parts is gone")

    with pytest.raises(OSError, match="is gone"):
        table.write_parts(path, parts(), 80, 6, {})
    assert np.array_equal(table.read(path).features, made().features)
    assert not list(tmp_path.glob("*.tmp"))


@pytest.mark.parametrize("suffix", list(table.SINKS))
def test_rows_that_are_missing_are_no_table(tmp_path, suffix):
    rows = made()
    with pytest.raises(AssertionError, match="40 rows instead of 41"):
        table.write_parts(tmp_path / f"t{suffix}", [(rows.paths, rows.label, rows.features)], 41, 6, {})
    assert not list(tmp_path.iterdir())


def test_parquet_without_pyarrow_is_told_at_once(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(SimclrError, match=r"pyarrow is missing: pip install 'simclr_jax\[embed\]'"):
        table.checked("f.parquet")


@pytest.mark.parametrize("name", ["t.parquet", "t.npz", "t.csv", "t.npy"])
def test_what_is_no_table_is_told(tmp_path, name):
    for content in ("file,why\nnothing\n", "path,label,f0\nnothing\n"):
        (tmp_path / name).write_text(content)
        with pytest.raises(SimclrError, match=rf"{name}: is no table of embeddings"):
            table.read(tmp_path / name)
    with pytest.raises(SimclrError, match=r"none\.npz: no such file; `simclr embed` writes one"):
        table.read(tmp_path / "none.npz")
    with pytest.raises(SimclrError, match=r"must end in \.parquet, \.npz, \.npy, \.csv"):
        table.read(tmp_path / "t.json")


def test_names_with_line_breaks_stay_one_row(tmp_path):
    """In a text file beside an array: a carriage return is kept, a line feed is spelt out."""
    table.write(
        tmp_path / "f.npy", Embeddings(["a\r.png", "b\n.png"], np.eye(2, dtype=np.float32), ["\r", ""], {})
    )
    assert table.read(tmp_path / "f.npy").paths == ["a\r.png", "b\\n.png"]


def test_plain_arrays_of_others_are_read(tmp_path):
    """A .npy file without what stands beside it: rows are called by their numbers."""
    np.save(tmp_path / "f.npy", np.eye(3))
    assert table.read(tmp_path / "f.npy").paths == ["0", "1", "2"]


# ---- search ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("block", [40, 1 << 24])
def test_search_is_exact(monkeypatch, block):
    monkeypatch.setattr("simclr_jax.index.search.BLOCK", block)
    rows, queries = made(), made(9, seed=1).features
    similarity, index = Index(rows).search(queries, 5)
    expected = cosines(queries, rows.features)
    assert np.array_equal(index, np.argsort(-expected, axis=1)[:, :5])
    np.testing.assert_allclose(similarity, np.sort(expected, axis=1)[:, :-6:-1], atol=3e-7)


def test_equal_rows_come_in_order_and_zeros_are_like_nothing():
    features = np.array([[1, 0], [0, 0], [2, 0], [3, 0]], np.float32)
    rows = Embeddings(list("abcd"), features, [""] * 4, {})
    similarity, index = Index(rows).search(np.array([[5.0, 0]]), 9)
    assert index.tolist() == [[0, 2, 3, 1]]
    assert similarity.tolist() == [[1, 1, 1, 0]]


def test_a_graph_finds_most():
    pytest.importorskip("usearch")
    rows = made(2000, 8)
    similarity, found = Index(rows, approximate=True).search(rows.features[:50], 10)
    assert np.all(np.diff(similarity, axis=1) <= 0)
    exact = Index(rows).search(rows.features[:50], 10)[1]
    assert np.mean([len(set(a) & set(b)) / 10 for a, b in zip(found, exact, strict=True)]) > 0.9


def test_queries_of_another_encoder_are_refused():
    with pytest.raises(SimclrError, match=r"the query has \[7\] numbers, the table 6"):
        Index(made()).search(np.zeros((1, 7)), 3)


# ---- duplicates, outliers, a subset ---------------------------------------------------------------------


@pytest.mark.parametrize("rows", [3, 1024])
def test_duplicates_are_those_of_the_definition(monkeypatch, rows):
    monkeypatch.setattr(dedup, "ROWS", rows)
    features = np.random.default_rng(0).normal(size=(60, 3)).astype(np.float32)  # crowded: many are alike
    of, cosine = dedup.duplicates(features, 0.9)
    all_of_them, kept = cosines(features, features), []
    for i in range(60):
        near = [(all_of_them[i, j], -j) for j in kept if all_of_them[i, j] >= 0.9]
        assert of[i] == (-max(near)[1] if near else i)
        assert cosine[i] == pytest.approx(max(near)[0] if near else 1, abs=1e-6)
        kept += [] if near else [i]
    assert 3 < len(kept) < 60


def test_equal_rows_are_duplicates_at_a_threshold_of_one():
    features = np.repeat(np.random.default_rng(0).normal(size=(200, 64)), 2, axis=0)
    of, _ = dedup.duplicates(features.astype(np.float32), 1.0)
    assert np.array_equal(of, np.arange(400) // 2 * 2)


def test_outliers_are_those_of_the_definition():
    features = np.vstack([made(30).features, np.full((12, 6), 2.0)])  # more twins than neighbours
    found = curate.outliers(*Index(Embeddings(["x"] * 42, features, [""] * 42, {})).search(features, 6), 9)
    others = np.sort(cosines(features, features) - 9 * np.eye(42), axis=1)[:, -5:].mean(axis=1)
    assert [i for i, _ in found] == np.argsort(others, kind="stable")[:9].tolist()
    np.testing.assert_allclose([x for _, x in found], np.sort(others)[:9], atol=1e-6)


def test_k_centres_are_those_of_the_paper():
    """Algorithm 1 of arXiv 1708.00489, the greedy bound, and never a row twice."""
    features = made(50, 3).features
    unit = features.astype(np.float64) / np.linalg.norm(features.astype(np.float64), axis=1, keepdims=True)
    chosen, cosine, covered = curate.k_centres(features, 8)
    expected = [int(np.argmax(unit @ unit.mean(axis=0)))]
    while len(expected) < 8:
        away = [min(np.linalg.norm(u - unit[j]) for j in expected) for u in unit]
        expected.append(int(np.argmax(away)))
    assert chosen == expected
    assert covered == pytest.approx((unit @ unit[chosen].T).max(axis=1).min(), abs=1e-6)
    assert cosine[0] == -1
    assert np.all(np.diff(cosine[1:]) > -1e-6)  # every next one is nearer than the one before
    twins = np.repeat(features[:2], 3, axis=0)
    assert sorted(curate.k_centres(twins, 9)[0]) == [0, 1, 2, 3, 4, 5]


# ---- the commands ---------------------------------------------------------------------------------------


def called(capsys, main, *words):
    """(exit code, standard output, standard error)."""
    try:
        main([str(word) for word in words])
        code = 0
    except SystemExit as end:
        code = end.code
    return code, *capsys.readouterr()


@pytest.fixture
def stored(tmp_path):
    """(a table of 30 images that are there, 0 and 7 twins; its folder)."""
    folder = tmp_path / "images"
    rows = made(30, images=str(folder), step=1)
    rows.features[7] = 3 * rows.features[0]
    for i, name in enumerate(rows.paths):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8 + i % 3, 9), (i, 0, 0)).save(folder / name)
    table.write(tmp_path / "f.npz", rows)
    return tmp_path / "f.npz", folder


def listed(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_search_prints_and_draws(stored, tmp_path, capsys):
    """By a path of the table, or of the machine; the query itself is not among what is found."""
    index, folder = stored
    for query in ("c0/0.png", folder / "c0" / "0.png"):
        words = ("--index", index, "--query", query, "--top=3", "--picture", tmp_path / "p.png")
        code, out, _ = called(capsys, searching.main, *words)
        assert code == 0
        lines = out.split("\n")[3:6]
        assert lines[0].split() == ["1.0000", "c1", "c1/7.png"]
        assert len([line for line in lines if ".png" in line and "c0/0.png" not in line]) == 3
    assert Image.open(tmp_path / "p.png").size[0] > 300


def test_a_file_of_the_same_name_elsewhere_is_another_image(stored, tmp_path, monkeypatch):
    index, folder = stored
    rows, other = table.read(index), tmp_path / "other"
    (other / "c1").mkdir(parents=True)
    (other / "c1" / "1.png").write_bytes((folder / "c0" / "0.png").read_bytes())
    monkeypatch.chdir(other)
    assert searching.row_of(rows, "c1/1.png") == -1
    assert searching.row_of(rows, "c2/2.png") == searching.row_of(rows, str(folder / "c2" / "2.png")) == 2
    (folder / "c2" / "2.png").unlink()
    assert searching.row_of(rows, str(folder / "c2" / "2.png")) == 2
    monkeypatch.chdir(folder / "c1")
    assert searching.row_of(rows, "1.png") == 1


def test_dedup_and_curate_write_lists(stored, tmp_path, capsys):
    index, folder = stored
    out, kept = tmp_path / "new" / "twins.csv", tmp_path / "kept.txt"
    code, said, _ = called(
        capsys, dedup.main, "--index", index, "--out", out, "--kept", kept, "--threshold=0.9999"
    )
    assert (code, said) == (0, f"1 of 30 images are like another (cosine 0.9999 or more): {out}\n")
    assert listed(out) == [
        {"file": f"{folder}/c1/7.png", "label": "c1", "like": "c0/0.png", "cosine": "1.0000"}
    ]
    assert len(kept.read_text().splitlines()) == 29
    code, said, _ = called(capsys, curate.main, "--index", index, "--out", out, "--subset=4")
    assert (code, said[:15]) == (0, "4 of 30 images;")
    rows = listed(out)
    assert [row["file"].removeprefix(f"{folder}/") for row in rows] == [
        table.read(index).paths[i] for i in curate.k_centres(table.read(index).features, 4)[0]
    ]
    assert called(capsys, curate.main, "--index", index, "--out", out, "--outliers=5")[0] == 0
    assert len(listed(out)) == 5


@pytest.mark.parametrize(
    ("main", "words", "told"),
    [
        (searching.main, ["--index=no.npz", "--query=x.png"],
         "no.npz: no such file; `simclr embed` writes one"),
        (searching.main, ["--index=f.npz"], "--query is missing: for example --query=/my/images/one.jpg"),
        (searching.main, ["--index=f.npz", "--query=x.png"],
         "--query=x.png: no such file, and no path of f.npz"),
        (searching.main, ["--index=f.npz", "--query=f.npz", "--artefact=e.onnx"],
         "e.onnx: no such file; `simclr export --format=onnx` writes both"),
        (searching.main, ["--index=f.npz", "--query=c0/0.png", "--top=0"], "--top=0: must be 1 or more"),
        (searching.main, ["--index=f.npz", "--query=c0/0.png", "--picture=a.gif"],
         "--picture=a.gif: must end in .png"),
        (dedup.main, ["--index=f.npz", "--out=x.json"], "x.json: must end in .csv or .txt"),
        (dedup.main, ["--index=f.npz", "--out=x.csv", "--threshold=98"],
         "--threshold=98: must be a cosine, from -1 to 1; 0.98 for example"),
        (curate.main, ["--index=f.npz", "--out=x.csv"],
         "give one of --outliers=N and --subset=N: for example --subset=1000"),
        (curate.main, ["--index=f.npz", "--out=x.csv", "--subset=3", "--outliers=-1"],
         "give one of --outliers=N and --subset=N: for example --subset=1000"),
        (curate.main, ["--index=f.npz", "--out=x.csv", "here"], "'here': not understood; see --help"),
    ],
    ids=range(11),
)  # fmt: skip
def test_mistakes_are_one_line(stored, monkeypatch, capsys, main, words, told):
    monkeypatch.chdir(stored[0].parent)
    assert called(capsys, main, *words) == (2, "", f"error: {told}\n")


def test_ends(capsys):
    with pytest.raises(SystemExit) as end, ends.ends("goes on"):
        raise KeyboardInterrupt
    assert (end.value.code, capsys.readouterr().err) == (
        130,
        "error: interrupted; the same command goes on\n",
    )
    with pytest.raises(SystemExit) as end, ends.ends():
        open("/no/such/file").close()
    assert (end.value.code, capsys.readouterr().err) == (
        2,
        "error: /no/such/file: No such file or directory\n",
    )
    with pytest.raises(
        SimclrError, match=r"nothing_of_this_name is missing: pip install 'simclr_jax\[index\]'"
    ):
        ends.need("nothing_of_this_name.inside", "index")


def test_a_bar_shows_rows(monkeypatch, capsys):
    drawn = []

    class Bar(tqdm.tqdm):
        def __init__(self, **options):
            super().__init__(**options | {"delay": 0, "mininterval": 0, "disable": False})

        def update(self, count):
            super().update(count)
            drawn.append((self.n, self.total))

    monkeypatch.setattr(tqdm, "tqdm", Bar)
    assert list(ends.shown(range(0, 25, 10))) == [0, 10, 20]
    assert drawn == [(10, 25), (20, 25), (25, 25)]
    assert "rows" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "tqdm", None)  # as in the service
    assert list(ends.shown(range(3))) == [0, 1, 2]


def test_bars_are_around_what_takes_long():
    embeddings, ranges = made(), []
    watch = lambda steps: (ranges.append(steps), iter(steps))[1]  # noqa: E731
    for function, options in (
        (dedup.duplicates, (0.5,)),
        (curate.k_centres, (7,)),
        (Index(embeddings).search, (3,)),
    ):
        plain, watched = (function(embeddings.features, *options, *more) for more in ((), (watch,)))
        for one, other in zip(plain, watched, strict=True):
            np.testing.assert_array_equal(one, other)
    assert [(r.start, r.stop) for r in ranges] == [(0, 40), (1, 7), (0, 40)]


def test_needs_no_jax():
    """A service installs neither these nor what imports them."""
    code = (
        "import sys\n"
        "import simclr_jax.embed.search, simclr_jax.index.dedup, simclr_jax.index.curate\n"
        "heavy = {'jax', 'absl', 'etils', 'tensorflow', 'flax', 'ml_collections', 'scipy', 'matplotlib'}\n"
        "sys.exit(str(sorted(heavy & sys.modules.keys())) if heavy & sys.modules.keys() else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
