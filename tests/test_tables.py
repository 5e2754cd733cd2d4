"""Tables: what is read and refused, how columns become numbers, corruption, and the MLP."""

import json
import math
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from scipy import stats
from sklearn import datasets

from simclr_jax import draws, sharding
from simclr_jax.corruption import corrupted_features, random_corruption
from simclr_jax.data import columns, tables
from simclr_jax.data.columns import Columns
from simclr_jax.data.holdout import holdout_rows
from simclr_jax.errors import SimclrError
from simclr_jax.models import mlp, mlp_fields

CSV = "age,colour,class\n1,red,a\n3,blue,b\n5,red,a\n7,red,b\n"


def csv_table(tmp_path, text, name="rows.csv", holdout=0.0, **options):
    """Loads a table that is written to the file `name`."""
    (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return tables.load(name, str(tmp_path), holdout, **options)


def npz_table(tmp_path, holdout=0.0, **arrays):
    np.savez(tmp_path / "rows.npz", **arrays)
    return tables.load("rows.npz", str(tmp_path), holdout)


def rows(source):
    """All of them `[n, d]`."""
    return source.fetch(np.arange(source.size))[0]


def classes(source):
    """The class of each row, "" for none."""
    return [source.classes[i] if i >= 0 else "" for i in source.labels()]


# ---- reading ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", tables.BUNDLED)
def test_sets_of_scikit_learn(name):
    """Standardised by the training rows, in float64."""
    found = tables.load(f"sklearn/{name}", None, 0.2)
    whole = getattr(datasets, f"load_{name}")()
    kept, held = holdout_rows(len(whole.data), 0.2)
    mean, std = whole.data[kept].mean(axis=0), whole.data[kept].std(axis=0)
    expected = (whole.data - mean) / np.where(std > 0, std, np.inf)
    for source, index in zip(found, (kept, held), strict=True):
        assert source.kind == "array"
        assert rows(source).dtype == np.float32
        np.testing.assert_allclose(rows(source), expected[index], rtol=1e-6, atol=1e-6)
        np.testing.assert_array_equal(source.labels(), whole.target[index])
        assert source.classes == tuple(map(str, whole.target_names))
    names = found.train.columns.names
    assert names == tuple(map(str, whole.feature_names))
    constant = [feature.name for feature in found.train.columns.features if feature.std == 0]
    assert constant == [name for name, s in zip(names, std, strict=True) if s == 0]


def test_a_table_of_numbers_and_texts(tmp_path):
    found = csv_table(tmp_path, CSV)
    assert found.test is None
    source = found.train
    assert source.columns.names == ("age", "colour=blue", "colour=red")
    assert source.columns.feature == (0, 1, 1)
    std = math.sqrt(5)
    expected = [[-3 / std, 0, 1], [-1 / std, 1, 0], [1 / std, 0, 1], [3 / std, 0, 1]]
    np.testing.assert_allclose(rows(source), expected, rtol=1e-6)
    assert classes(source) == ["a", "b", "a", "b"]
    assert source.notes == (
        "table:rows.csv: the labels are the column class",
        "table:rows.csv: numbers have mean 0 and standard deviation 1 over the 4 training rows",
        "table:rows.csv: columns of text are one-hot: colour (2 values)",
    )


def test_statistics_are_those_of_the_rows_to_train_on(tmp_path):
    """The held-out rows change nothing."""
    rng = np.random.default_rng(0)
    x = rng.normal(3, 2, (50, 4))
    found = npz_table(tmp_path, 0.2, features=x, labels=np.arange(50) % 2)
    kept, held = holdout_rows(50, 0.2)
    expected = (x - x[kept].mean(axis=0)) / x[kept].std(axis=0)
    np.testing.assert_allclose(rows(found.train), expected[kept], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(rows(found.test), expected[held], rtol=1e-5, atol=1e-6)
    x[held] *= 100
    again = npz_table(tmp_path, 0.2, features=x, labels=np.arange(50) % 2)
    np.testing.assert_array_equal(rows(again.train), rows(found.train))


def test_statistics_survive_json_and_apply_to_rows(tmp_path):
    source = csv_table(tmp_path, CSV).train
    stored = Columns.of(json.loads(json.dumps(source.columns.features)))
    assert stored == source.columns
    plain = np.array([[1, 0, 1], [3, 1, 0], [5, 0, 1], [np.nan, np.nan, np.nan]])
    found = stored.standardize(plain)
    np.testing.assert_array_equal(found[:3], rows(source)[:3])
    np.testing.assert_array_equal(found[3], [0, 0, 1])  # the median 4 is the mean here; most are red
    with pytest.raises(SimclrError, match=r"rows must be numbers \[n, 3\], not float64 \[4, 2\]"):
        stored.standardize(plain[:, :2])


def test_missing_values(tmp_path):
    text = "a,b,gone,class\n1,x,,0\n?,NA,nan,1\n3,x,?,0\nnan,y,,1\n8,,None,0\n"
    source = csv_table(tmp_path, text).train
    assert source.columns.names == ("a", "b=x", "b=y")
    a = np.array([1, 3, 3, 3, 8.0])
    np.testing.assert_allclose(rows(source)[:, 0], (a - a.mean()) / a.std(), rtol=1e-6)
    np.testing.assert_array_equal(rows(source)[:, 1:], [[1, 0], [1, 0], [1, 0], [0, 1], [1, 0]])
    notes = " ".join(source.notes)
    assert "columns without any value are left out: gone" in notes
    assert "median, in columns of text the most frequent value: a (2), b (2)" in notes


def test_none_is_a_value_among_texts(tmp_path):
    source = csv_table(tmp_path, "garage,class\nnone,0\nlarge,1\n").train
    assert source.columns.names == ("garage=large", "garage=none")


def test_constant_and_tiny_columns(tmp_path):
    """0.1 has no exact mean; numbers of 1e-9 are no constant."""
    x = np.stack([np.full(30, 0.1), 1e-9 * np.arange(30), 1e6 + np.arange(30) % 2], axis=1)
    source = npz_table(tmp_path, x_train=x, y_train=np.arange(30) % 3).train
    found = rows(source)
    np.testing.assert_array_equal(found[:, 0], 0)
    np.testing.assert_allclose(found[:, 1:].std(axis=0), 1, rtol=1e-5)
    assert "columns with the same number in each training row become 0: 0" in " ".join(source.notes)


@pytest.mark.parametrize("test", ["test.csv", "Validation.csv"])
def test_a_test_split_beside(tmp_path, test):
    other = "class,colour,age,more\nb,green,9,0\na,blue,3,0\nc,red,,0\n"
    (tmp_path / test).write_text(other)
    found = csv_table(tmp_path, CSV, "train.csv", holdout=0.5)
    assert found.train.size == 4
    std = math.sqrt(5)
    np.testing.assert_allclose(
        rows(found.test), [[5 / std, 0, 0], [-1 / std, 1, 0], [0, 0, 1]], rtol=1e-6, atol=1e-7
    )
    assert classes(found.test) == ["b", "a", ""]
    notes = " ".join(found.test.notes)
    assert f"table:{test}: the rows to test on" in notes
    assert "column colour has texts that no training row has, which become zeros: green" in notes


def test_texts_that_look_like_numbers_in_the_test_split(tmp_path):
    (tmp_path / "test.csv").write_text("code,class\n01,02\n")
    found = csv_table(tmp_path, "code,class\n01,02\nx,b\n", "train.csv")
    np.testing.assert_array_equal(rows(found.test), [[1, 0]])
    assert classes(found.test) == ["02"]


def test_the_test_split_has_the_same_column_of_labels(tmp_path):
    """The last column of the training rows, wherever it stands in the other file."""
    (tmp_path / "test.csv").write_text("kind,x\nb,3\n")
    found = csv_table(tmp_path, "x,kind\n1,a\n2,b\n", "train.csv")
    assert found.test.columns.names == ("x",)
    assert classes(found.test) == ["b"]


def test_no_test_split_beside_another_name(tmp_path):
    (tmp_path / "test.csv").write_text("not,read\n")
    assert csv_table(tmp_path, CSV).test is None


def test_arrays_with_a_test_split(tmp_path):
    x = np.arange(12).reshape(6, 2)
    found = npz_table(tmp_path, x_train=x, y_train=[5, 5, 7, 7, 5, 7], x_test=x[:2] + 1, y_test=[7, 5])
    np.testing.assert_allclose(rows(found.test), (x[:2] + 1 - x.mean(axis=0)) / x.std(axis=0), rtol=1e-6)
    np.testing.assert_array_equal(found.test.labels(), [7, 5])


def test_arrays_of_texts(tmp_path):
    x = np.array([["1", "u"], ["2", "v"]])
    found = npz_table(tmp_path, x_train=x, y_train=[0, 1], x_test=np.array([["3", "u"]]), y_test=[1])
    assert found.train.columns.names == ("0", "1=u", "1=v")
    np.testing.assert_allclose(rows(found.test), [[3, 1, 0]], rtol=1e-6)


def test_without_labels_all_rows_are_trained_on(tmp_path):
    found = npz_table(tmp_path, 0.5, features=np.eye(4))
    assert found.test is None
    assert found.train.size == 4
    assert found.train.classes == ()
    assert "no labels: the file has no labels" in " ".join(found.train.notes)
    found = csv_table(tmp_path, CSV, holdout=0.5, label="none")
    assert found.train.size == 4
    assert found.train.columns.names[-2:] == ("class=a", "class=b")


@pytest.mark.parametrize(
    ("header", "label", "chosen"),
    [
        ("x,y,z", "", "z"),
        ("x,Target,z", "", "Target"),
        ("class,label,z", "", "label"),
        ("x,y,class", "x", "x"),
    ],
)
def test_the_column_of_labels(tmp_path, header, label, chosen):
    source = csv_table(tmp_path, f"{header}\n1,2,3\n2,1,4\n", label=label).train
    assert chosen not in source.columns.names
    assert source.columns.names == tuple(name for name in header.split(",") if name != chosen)
    assert f"table:rows.csv: the labels are the column {chosen}" in source.notes


@pytest.mark.parametrize(
    "text",
    [CSV, "\ufeff" + CSV, CSV.replace(",", ";"), CSV.replace(",", "\t"), CSV.replace("\n", "\r\n"),
     CSV.replace("\n", "\n\n"), CSV.replace(",", " , "), CSV.replace("red", '"red"'), CSV.rstrip(),
     "\n".join(f",{line}" for line in CSV.splitlines())],
)  # fmt: skip
def test_tables_as_programs_write_them(tmp_path, text):
    """A column without a name, which pandas writes for its index, is not read."""
    source = csv_table(tmp_path, text).train
    assert source.columns.names == ("age", "colour=blue", "colour=red")
    assert classes(source) == ["a", "b", "a", "b"]


def test_numbers_as_labels(tmp_path):
    """They are names: 1 and 3 make two classes; empty is none."""
    source = csv_table(tmp_path, "x,class\n1,3.0\n2,1.0\n3,\n").train
    assert classes(source) == ["3", "1", ""]


# ---- refused in one line ------------------------------------------------------------------------

MANY = "".join(f"{i},name{i},{i % 2}\n" for i in range(70))
GERMAN = "".join(f"{i},5;{i % 2}\n" for i in range(70))
BAD_CSV = {
    "a,b\n1,2\n3\n": "line 3 has 1 cells, and the first line names 2 columns",
    "a,b\n1,2,3\n": "line 2 has 3 cells",
    "": "the first line is empty; it must name the columns",
    "a,b\n": "has no rows",
    "1,2\n3,4\n": "the first line must name the columns, and it holds numbers alone",
    "a,a,b\n1,2,3\n": "two columns have the same name: a",
    "class\n0\n1\n": "there is no column but the labels",
    "a,b,class\n,,0\n,nan,1\n": "all values are missing (a, b)",
    "x,name,class\n"
    + MANY: "column name has 70 different texts (name0, ...) and at most 64 are made one-hot",
    "x;class\n" + GERMAN: "write 0.5 for 0,5",
    "x,class\ninf,0\n1,1\n": "column x, row 1 is inf: must be finite or missing",
    "x,class\n1e300,0\n1,1\n": "column x has numbers up to 1e+300, too large to square: divide them",
    "x,y\n1,0.5\n2,0.25\n": "set config.data.table.label to another one, or to none",
    b"x,class\ncaf\xe9,0\n": "is not UTF-8 text (byte 11): save it as UTF-8",
    'x,class\n"1,0\n': "cannot be read as a table",
}


@pytest.mark.parametrize("text", BAD_CSV, ids=lambda text: BAD_CSV[text][:40])
def test_bad_tables(tmp_path, text):
    with pytest.raises(SimclrError) as caught:
        csv_table(tmp_path, text)
    line = str(caught.value)
    assert line.startswith("table:")
    assert "\n" not in line
    assert BAD_CSV[text] in line


BAD_NPZ = {
    "holds a, b; name the rows x_train": {"a": np.eye(2), "b": np.eye(2)},
    "rows must be numbers or text [n, d], not float64 [2, 2, 2]": {"features": np.zeros((2, 2, 2))},
    "not float64 [0, 3]": {"features": np.zeros((0, 3))},
    "not complex128 [2, 2]": {"features": np.eye(2, dtype=complex)},
    "labels has 3 labels for the 2 rows of features": {"features": np.eye(2), "labels": np.arange(3)},
    "save rows as numbers [n, d]": {"features": np.array([[1, None]], object)},
    "nothing to train on: all values are missing (0, 1)": {"features": np.full((3, 2), np.nan)},
    "column 1, row 2 is -inf": {"features": np.array([[0, 0], [1, -np.inf]])},
}


@pytest.mark.parametrize("line", BAD_NPZ)
def test_bad_arrays(tmp_path, line):
    with pytest.raises(SimclrError, match=r"^table:") as caught:
        npz_table(tmp_path, **BAD_NPZ[line])
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("other", "line"),
    [("age,class\n1,a\n", "table:test.csv: lacks columns that the training rows have: colour"),
     ("age,colour\n1,red\n", "table:test.csv: there is no column class"),
     ("age,colour,class\nold,red,a\n", "column age, row 1 is 'old', and the training rows have numbers"),
     ("age,colour,class\n1e200,red,a\n", "row 1 is 1e+200: too far from the training rows, whose mean is 4"),
     ("age,colour,class\n1,red,z\n", "classes that the train split lacks: z")],
)  # fmt: skip
def test_a_test_split_that_does_not_fit(tmp_path, other, line):
    (tmp_path / "test.csv").write_text(other)
    with pytest.raises(SimclrError) as caught:
        csv_table(tmp_path, CSV, "train.csv", label="class")
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("where", "line"),
    [("nowhere.csv", "nowhere.csv: no such file"), ("nowhere.npz", "nowhere.npz: no such file"),
     ("folder.csv", "cannot be read as a table (Is a directory)"), ("text.npz", "not an .npz file"),
     ("rows.parquet", "must be table:PATH.csv, table:PATH.npz or table:sklearn/digits"),
     ("sklearn/iris", "must be table:PATH.csv"), ("gs://bucket/rows.csv", "must be a local path")],
)  # fmt: skip
def test_no_such_table(tmp_path, where, line):
    os.mkdir(tmp_path / "folder.csv")
    (tmp_path / "text.npz").write_text("no archive")
    with pytest.raises(SimclrError) as caught:
        tables.load(where, str(tmp_path), 0.1)
    assert line in str(caught.value)


def test_no_such_column_of_labels(tmp_path):
    with pytest.raises(
        SimclrError, match=r"no column kind for the labels \(config\.data\.table\.label\); there are age"
    ):
        csv_table(tmp_path, CSV, label="kind")


def test_a_file_larger_than_the_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(tables.memory_error, "host_free", lambda: 100)
    with pytest.raises(SimclrError, match="GiB of memory to read"):
        csv_table(tmp_path, CSV)
    with pytest.raises(SimclrError, match=r"table:.*save fewer rows, or float32"):
        npz_table(tmp_path, features=np.eye(9))


# ---- corruption ---------------------------------------------------------------------------------

N, D = 512, 10
POSITION = np.arange(N, dtype=np.uint32)
corrupt = jax.jit(
    random_corruption, static_argnums=3, static_argnames=("rate", "views", "first_clean", "feature")
)


def distinct_bank(size=40, features=D):
    """A bank whose numbers tell their row and column: 1000 · column + row + 1; rows to corrupt are 0."""
    return (1000 * np.arange(features)[None, :] + np.arange(size)[:, None] + 1).astype(np.float32)


@pytest.mark.parametrize(("rate", "count"), [(0.0, 0), (0.29, 2), (0.6, 6), (1.0, 10)])
def test_exactly_so_many_features_are_replaced(rate, count):
    made = corrupt(np.zeros((N, D), np.float32), distinct_bank(), POSITION, 0, rate=rate, first_clean=False)
    assert made.shape == (N, 2, D)
    np.testing.assert_array_equal(np.sum(np.asarray(made) != 0, axis=2), count)


def test_floor_of_the_decimal_number():
    """29 % of 100 are 29, whatever binary fractions make of it."""
    assert [corrupted_features(100, i / 100) for i in range(101)] == list(range(101))
    assert corrupted_features(64, 0.6) == 38


def test_the_first_view_is_the_row_itself():
    x = np.random.default_rng(1).normal(size=(N, D)).astype(np.float32)
    made = corrupt(x, distinct_bank(), POSITION, 0, views=3)
    np.testing.assert_array_equal(made[:, 0], x)
    both = corrupt(x, distinct_bank(), POSITION, 0, views=3, first_clean=False)
    np.testing.assert_array_equal(made[:, 1:], both[:, 1:])
    assert not np.array_equal(both[:, 0], x)
    assert not np.array_equal(both[:, 1], both[:, 2])


def test_draws_are_uniform_and_of_the_features_own_column():
    """Each feature is replaced as often as any other, by each training row as often as by any other."""
    bank = distinct_bank()
    made = np.asarray(corrupt(np.zeros((N, D), np.float32), bank, POSITION, 3, first_clean=False))
    column, row = np.divmod(made.reshape(-1, D) - 1, 1000)
    replaced = made.reshape(-1, D) != 0
    for j in range(D):
        assert (column[replaced[:, j], j] == j).all()
        times = np.bincount(row[replaced[:, j], j].astype(int), minlength=len(bank))
        assert stats.chisquare(times).pvalue > 1e-4
    assert stats.chisquare(replaced.sum(axis=0)).pvalue > 1e-4
    # Features are drawn apart: two of a row come from the same training row once in 40 times.
    pairs = [(i, j) for i in range(D) for j in range(i)]
    both = np.concatenate([(row[:, i] == row[:, j])[replaced[:, i] & replaced[:, j]] for i, j in pairs])
    assert abs(both.mean() - 1 / len(bank)) < 5 * math.sqrt(1 / len(bank) / len(both))


def test_subsets_are_uniform():
    """All 10 pairs of 5 features come equally often."""
    made = corrupt(
        np.zeros((2048, 5), np.float32), distinct_bank(8, 5), np.arange(2048, dtype=np.uint32), 0, rate=0.4
    )
    replaced = np.asarray(made[:, 1]) != 0
    _, times = np.unique(replaced, axis=0, return_counts=True)
    assert len(times) == 10
    assert stats.chisquare(times).pvalue > 1e-4


def test_columns_of_one_feature_are_replaced_together():
    """By those of one training row: a category stays one."""
    feature = (0, 1, 1, 1, 2)
    bank = distinct_bank(30, 5)
    made = corrupt(
        np.zeros((N, 5), np.float32), bank, POSITION, 0, rate=0.67, first_clean=False, feature=feature
    )
    made = np.asarray(made).reshape(-1, 5)
    replaced = made != 0
    np.testing.assert_array_equal(replaced[:, 1], replaced[:, 2])
    np.testing.assert_array_equal(replaced[:, 1], replaced[:, 3])
    np.testing.assert_array_equal(replaced[:, [0, 1, 4]].sum(axis=1), 2)  # ⌊0.67 · 3⌋ features, not columns
    donor = (made - 1) % 1000
    np.testing.assert_array_equal(donor[replaced[:, 1], 1], donor[replaced[:, 1], 3])


def test_a_formula_by_hand():
    """One row with NumPy, from the same keys."""
    x, bank = np.arange(7.0, dtype=np.float32), distinct_bank(9, 7)
    made = corrupt(x[None], bank, np.array([5], np.uint32), 11)
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(11), 5), 1)
    for_subset, for_values = jax.random.split(key)
    chosen = np.asarray(jax.random.permutation(for_subset, 7)) < 4
    donor = np.asarray(jax.random.randint(for_values, (7,), 0, 9))
    expected = [bank[donor[j], j] if chosen[j] else x[j] for j in range(7)]
    np.testing.assert_array_equal(made[0], [x, expected])


def test_draws_depend_on_seed_position_and_view_alone():
    """The same on 1 device and on 8, whole and in parts; others with another seed or position."""
    x, bank = np.random.default_rng(0).normal(size=(64, D)).astype(np.float32), distinct_bank()
    position = np.arange(100, 164, dtype=np.uint32)
    whole = corrupt(x, bank, position, 7)
    parts = [corrupt(x[i : i + 16], bank, position[i : i + 16], 7) for i in range(0, 64, 16)]
    np.testing.assert_array_equal(whole, np.concatenate(parts))
    order = np.random.default_rng(0).permutation(64)
    np.testing.assert_array_equal(whole[order], corrupt(x[order], bank, position[order], 7))
    mesh = sharding.make_mesh(8)
    split = sharding.by_batch(mesh)
    spread = corrupt(
        jax.device_put(x, split),
        jax.device_put(bank, sharding.replicated(mesh)),
        jax.device_put(position, split),
        7,
    )
    assert spread.sharding.is_equivalent_to(NamedSharding(mesh, PartitionSpec(sharding.AXIS)), 3)
    np.testing.assert_array_equal(whole, spread)
    for other in (corrupt(x, bank, position, 8), corrupt(x, bank, position + 1, 7)):
        assert np.mean(np.asarray(other[:, 1]) != np.asarray(whole[:, 1])) > 0.5


def test_keys_of_views():
    keys = jax.jit(draws.view_keys, static_argnums=(0, 2))(3, np.array([4, 9], np.uint32), 2)
    expected = jax.random.fold_in(jax.random.fold_in(jax.random.key(3), 9), 1)
    np.testing.assert_array_equal(jax.random.key_data(keys[1, 1]), jax.random.key_data(expected))


# ---- the MLP ------------------------------------------------------------------------------------


def made_mlp(rows=5, d=6, **own):
    """(module, variables, rows)"""
    fields = {name: field.default for name, field in mlp_fields.FACTS.fields.items()} | own
    module = mlp.create({"mlp": fields}, dtype=jnp.float32, param_dtype=jnp.float32)
    x = np.random.default_rng(1).normal(size=(rows, d)).astype(np.float32)
    return module, jax.jit(module.init, static_argnames="train")(jax.random.key(0), x, train=False), x


def test_mlp_is_its_formula():
    """Four layers of 256, in float64."""
    module, variables, x = made_mlp()
    ends = jax.jit(module.apply, static_argnames="train")(variables, x, train=True)
    assert set(ends) == {"layer1", "layer2", "layer3", "layer4", "features"}
    assert set(variables) == {"params"}  # no BatchNorm
    h = np.asarray(x, np.float64)
    for name in module.stages:
        layer = jax.tree.map(lambda w: np.asarray(w, np.float64), variables["params"][name])
        h = np.maximum(h @ layer["kernel"] + layer["bias"], 0)
        assert h.shape == (5, 256)
        np.testing.assert_allclose(ends[name], h, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(ends[module.features], ends["layer4"])


@pytest.mark.parametrize("frozen", [-1, 0, 1, 2, 9])
def test_no_gradient_into_frozen_layers(frozen):
    module, variables, x = made_mlp(layers=3, hidden=8)

    def loss(params):
        return jnp.sum(module.apply({"params": params}, x, train=True, frozen=frozen)["features"] ** 2)

    gradient = jax.jit(jax.grad(loss))(variables["params"])
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        assert bool(np.any(leaf)) == (module.stage_of(name) > frozen), name


def test_stages():
    module, variables, x = made_mlp(layers=3, hidden=8)
    assert module.stages == ("layer1", "layer2", "layer3")
    assert module.stage_of("layer3/bias") == 2
    with pytest.raises(ValueError, match="conv1/kernel: not a parameter"):
        module.stage_of("conv1/kernel")
    flat = {"model.mlp.layers": 3, "model.mlp.hidden": 8}
    assert mlp_fields.FACTS.stages(flat) == 2
    count, features = mlp_fields.FACTS.parameters(flat)
    weights = sum(leaf.size for leaf in jax.tree.leaves(variables))
    assert count == weights - (x.shape[1] + 1) * 8
    assert features == 8
    assert module.last is None
    assert module.pool(x) is None
    assert module.maps("layer1", x) is None
    assert module.trainable("layer1/kernel")
    assert module.adapt(variables, None, None) is variables


def test_dropout_acts_in_training_and_in_what_moves():
    module, variables, x = made_mlp(rows=50, layers=2, hidden=64, dropout=0.5)

    rngs = {"dropblock": jax.random.key(2)}

    def ends(**how):
        return jax.jit(lambda: module.apply(variables, x, rngs=rngs, **how))()

    plain = ends(train=False)
    dropped = ends(train=True)["layer1"]
    kept = np.asarray(dropped) != 0
    np.testing.assert_allclose(np.asarray(dropped)[kept], 2 * np.asarray(plain["layer1"])[kept], rtol=1e-6)
    assert abs(kept.sum() / np.sum(np.asarray(plain["layer1"]) != 0) - 0.5) < 0.06
    np.testing.assert_array_equal(ends(train=True, frozen=0)["layer1"], plain["layer1"])
    np.testing.assert_array_equal(ends(train=True, frozen=0, frozen_train=True)["layer1"], dropped)


def test_columns_of_a_feature_reach_the_corruption(tmp_path):
    """What a table says of its columns is what the corruption takes: rows stay one-hot."""
    source = csv_table(tmp_path, CSV).train
    bank = rows(source)
    made = corrupt(bank, bank, POSITION[:4], 0, rate=0.5, feature=source.columns.feature)
    made = np.asarray(made)
    np.testing.assert_array_equal(made[..., 1:].sum(axis=-1), 1)
    assert columns.fit({"x": np.arange(3)}, "t")[0].feature == (0,)
