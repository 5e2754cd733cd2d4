"""Labels of every kind are read right, or refused with a remedy."""

import time

import numpy as np
import pytest

from simclr_jax.data import multilabel, notes, splits
from simclr_jax.data.labels import number
from simclr_jax.data.sources import Splits, from_arrays
from simclr_jax.errors import SimclrError
from simclr_jax.text import printable


def images(n, side=4):
    return np.arange(n * side * side * 3).reshape(n, side, side, 3).astype(np.uint8)


def read(labels, examples=None, **options):
    return number(labels, len(labels) if examples is None else examples, "a", **options)


def npz(tmp_path, **arrays):
    np.savez(tmp_path / "a.npz", **arrays)
    return splits.load(f"npz:{tmp_path / 'a.npz'}")


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int64", "uint64", "<i2", ">i4"])
@pytest.mark.parametrize("form", ["[n]", "[n, 1]", "[1, n]"])
def test_class_numbers_stay_as_they_are(dtype, form):
    labels = np.array([2, 0, 5, 2], dtype).reshape({"[n]": -1, "[n, 1]": (4, 1), "[1, n]": (1, 4)}[form])
    found = number(labels, 4, "a")
    assert found.ids.tolist() == [2, 0, 5, 2]
    assert found.ids.dtype == np.int32
    assert (found.classes, found.notes) == (tuple("012345"), ())


@pytest.mark.parametrize("big", [10**6, 3 * 10**8, 3 * 10**9, 2**63, 2**64 - 1])
def test_codes_are_numbered_and_keep_their_names(big):
    start = time.perf_counter()
    found = read(np.array([1000, big, 7, big], np.uint64 if big >= 2**63 else np.int64))
    assert found.ids.tolist() == [1, 2, 0, 2]
    assert found.classes == ("7", "1000", str(big))
    assert "are numbered from 0 to 2" in found.notes[0]
    assert time.perf_counter() - start < 1


def test_many_class_numbers_with_few_holes_stay():
    labels = np.arange(0, 30_000, 3)
    assert len(read(labels).classes) == 29_998
    assert read(labels).notes == ()


def test_100_000_classes_take_a_second(tmp_path):
    labels = np.random.default_rng(0).permutation(100_000)
    start = time.perf_counter()
    found = npz(tmp_path, images=np.zeros((100_000, 1, 1), np.uint8), labels=labels)
    lines = notes.describe(found)
    assert time.perf_counter() - start < 5  # 1 s on a machine that does nothing else
    assert len(found.train.classes) == len(found.test.classes) == 100_000
    assert "and 99,990 more classes" in lines[0]


@pytest.mark.parametrize("count", [0, 1, 50, 70])
@pytest.mark.parametrize("held", [False, True])
def test_as_many_labels_as_images(tmp_path, count, held):
    keys = ("images", "labels") if held else ("x_train", "y_train")
    with pytest.raises(SimclrError, match=rf"npz:a.npz/{keys[1]}: .* {count} labels for 60 images"):
        npz(tmp_path, **{keys[0]: images(60), keys[1]: np.zeros(count, int)})


@pytest.mark.parametrize(
    "labels",
    [["dog", "cat", "", "dog"], [b"dog", b"cat", b"", b"dog"],
     np.array(["dog", " cat ", None, "dog"], object), np.array(["dog", "cat", np.nan, "dog"], object)],
)  # fmt: skip
def test_names(labels):
    found = read(labels)
    assert found.ids.tolist() == [1, 0, -1, 1]
    assert found.classes == ("cat", "dog")
    assert "the labels cat, dog are numbered" in found.notes[0]


def test_names_of_any_bytes():
    found = read(np.array(["größe".encode(), "größe".encode("latin-1"), b"a\nb"]))
    assert found.classes == ("a\nb", "gr\\xf6\\xdfe", "größe")
    assert all(printable(name).isprintable() for name in found.classes)


def test_numbers_as_text_are_sorted_as_numbers():
    assert read(["10", "9", "-1", "10"]).ids.tolist() == [10, 9, -1, 10]
    own = read(["10", "9", "-1", "10"], own_names=True)
    assert (own.ids.tolist(), own.classes, own.notes) == ([1, 0, -1, 1], ("9", "10"), ())
    assert read(["10", "007", "9", "9"]).classes == ("007", "10", "9")


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.float32])
def test_one_hot(dtype):
    rows = np.eye(5)[[3, 0, 3]].astype(dtype)
    found = read(rows)
    assert (found.ids.tolist(), found.classes) == ([3, 0, 3], tuple("01234"))
    assert "one-hot, [3, 5]: read as the classes 0 to 4" in found.notes[0]
    rows[1] = 0
    assert read(rows).ids.tolist() == [3, -1, 3]
    assert "1 rows of zeros mean none" in read(rows).notes[0]


def test_one_hot_is_no_set_of_several_labels(tmp_path):
    rows = np.eye(3, dtype=np.uint8)[np.arange(60) % 3]
    npz(tmp_path, x_train=images(60), y_train=rows, x_test=images(60), y_test=rows)
    assert multilabel.load(f"npz:{tmp_path / 'a.npz'}") is None
    rows[0] = 1
    npz_of = {"x_train": images(60), "x_test": images(60), "y_train": rows, "y_test": rows}
    np.savez(tmp_path / "a.npz", **npz_of)
    assert multilabel.load(f"npz:{tmp_path / 'a.npz'}").targets["train"].sum() == 62
    with pytest.raises(
        SimclrError, match="a row has several classes or none; only an evaluation's --transfer"
    ):
        splits.load(f"npz:{tmp_path / 'a.npz'}")


def test_truth_values():
    found = read(np.array([True, False, True]))
    assert (found.ids.tolist(), found.classes) == ([1, 0, 1], ("False", "True"))
    assert "true or false" in found.notes[0]


def test_floats_that_are_whole_and_nan():
    found = read(np.array([2.0, np.nan, 0.0, -1.0], np.float32))
    assert (found.ids.tolist(), found.classes) == ([2, -1, 0, -1], ("0", "1", "2"))
    assert found.notes == ("a: labels are float32: read as whole numbers; 1 are NaN, which means none",)


@pytest.mark.parametrize("labels", [[-1, -1], [np.nan, np.nan], ["", ""]])
def test_no_label_at_all_is_told(labels):
    found = read(np.array(labels))
    assert (found.ids.tolist(), found.classes) == ([-1, -1], ())
    assert "no labels" in found.notes[-1]


def test_minus_one_and_one_are_told():
    assert "-1, which means none; number two classes 0 and 1" in read(np.array([1, -1, 1])).notes[0]


@pytest.mark.parametrize(
    ("labels", "why"),
    [(np.array([0, 1, -2]), "with the number -2"), (np.array([0.5, 1, 2]), "with the number 0.5"),
     (np.array([np.inf, 1, 2]), "with the number inf"), (np.array([1e300, 1, 2]), "which is no class"),
     (np.zeros((3, 2), int), "several classes or none"), (np.full((3, 2), 0.5), "several classes or none"),
     (np.zeros(3, complex), "not complex128"), (np.zeros(3, "datetime64[D]"), "not datetime64"),
     (np.zeros((3, 2, 2), int), r"\[3, 2, 2\]"), (np.array([{}, {}, {}], object), "not Python objects .dict"),
     (np.int64(3), r"\[\]")],
)  # fmt: skip
def test_what_is_no_label_is_refused(labels, why):
    with pytest.raises(SimclrError, match=f"a: labels must be .*{why}"):
        number(labels, 3, "a")


def test_more_classes_than_a_classifier_takes():
    with pytest.raises(SimclrError, match="1,000,001 different labels are no classes"):
        read(np.arange(1_000_001) * 1000)


# ---- train and test -----------------------------------------------------------------------------


def test_test_labels_have_the_numbers_of_train(tmp_path):
    names = np.array(["b", "c", "a"])
    found = npz(tmp_path, x_train=images(3), y_train=names, x_test=images(2), y_test=np.array(["c", "b"]))
    assert found.train.classes == found.test.classes == ("a", "b", "c")
    assert found.test.labels().tolist() == [2, 1]


def test_codes_of_test_images_too(tmp_path):
    found = npz(tmp_path, x_train=images(3), y_train=[5000, 9, 10**9], x_test=images(2), y_test=[10**9, 9])
    assert found.test.labels().tolist() == [2, 0]


def test_a_class_that_train_lacks_is_no_label(tmp_path):
    found = npz(tmp_path, x_train=images(3), y_train=[0, 1, 2], x_test=images(4), y_test=[2, 7, 7, 9])
    assert found.test.labels().tolist() == [2, -1, -1, -1]
    assert found.test.classes == ("0", "1", "2")
    assert "3 test images are of 2 classes that the train split lacks: 7, 9" in found.test.notes[0]
    with pytest.raises(SimclrError, match="the test split has classes that the train split lacks: cat, dog"):
        npz(tmp_path, x_train=images(3), y_train=[0, 1, 2], x_test=images(2), y_test=["cat", "dog"])


def test_a_held_out_class_keeps_its_number(tmp_path):
    labels = np.arange(60)  # an image each: a tenth of the classes is held out
    found = npz(tmp_path, images=images(60), labels=labels)
    assert len(found.train.classes) == len(found.test.classes) == 60
    assert sorted([*found.train.labels(), *found.test.labels()]) == labels.tolist()


# ---- what is told -------------------------------------------------------------------------------


def test_the_run_tells_classes_with_their_counts():
    labels = np.repeat(np.arange(12), 5)
    labels[:3] = -1
    line = notes.describe(Splits(from_arrays(images(60), labels), None))
    assert line == (
        "images of each class to train on: 0: 2, 1: 5, 2: 5, 3: 5, 4: 5, 5: 5, 6: 5, 7: 5, 8: 5, 9: 5 and 2 "
        "more classes; 3 without a label",
    )
    train = from_arrays(images(6), ["a", "b", "a", "", "b", "b"], name="mine")
    assert notes.describe(Splits(train, train.subset(np.array([0])))) == (
        "mine: the labels a, b are numbered from 0 to 1",
        "images of each class to train on: a: 2, b: 3; 1 without a label",
        "images of each class to test on: a: 1, b: 0; 1 of the 2 classes have no image",
    )


def test_why_there_are_no_labels(tmp_path):
    found = npz(tmp_path, x_train=images(3), labels=np.arange(3))
    assert notes.describe(found) == (
        "npz:a.npz/x_train: no labels: the file has no y_train; it holds x_train, labels",
    )
