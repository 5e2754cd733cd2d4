"""Folders as people have them: names of splits, links, files of other kinds, odd names."""

import os

import pytest
from PIL import Image

from simclr_jax.data import notes, splits
from simclr_jax.errors import SimclrError


def touch(root, names):
    """Empty files: nothing is decoded here."""
    for name in names:
        path = os.path.join(root, name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb"):
            pass


def load(root, **options):
    return splits.load(f"folder:{root}", **options)


def told(root, **options):
    """The notes, each without the folder that it begins with."""
    lines = notes.describe(load(root, **options))
    return [line.partition(": ")[2] if line.startswith("folder:") else line for line in lines]


def classes(names, of=("a", "b"), count=2):
    return [f"{name}/{c}/{i}.jpg" for name in names for c in of for i in range(count)]


# ---- splits -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("train", "test"),
    [("train", "test"), ("Train", "Test"), ("TRAIN", "val"), ("training", "testing"),
     ("Training", "Validation"), ("train", "eval"), ("train", "dev")],
)  # fmt: skip
def test_names_of_splits(tmp_path, train, test):
    touch(tmp_path, classes([train, test]))
    found = load(tmp_path)
    assert {name.split("/")[0] for name in found.train.names} == {train}
    assert {name.split("/")[0] for name in found.test.names} == {test}
    assert found.train.classes == found.test.classes == ("a", "b")
    said = f"{train} is the folder to train on, {test} the one to test on" in "\n".join(told(tmp_path))
    assert said == ((train, test) != ("train", "test"))


def test_the_configs_own_names(tmp_path):
    touch(tmp_path, classes(["fold 1", "fold 2", "train", "test"]))
    found = load(tmp_path, train_split="fold 1", test_split="fold 2")
    assert (found.train.names[0], found.test.names[0]) == ("fold 1/a/0.jpg", "fold 2/a/0.jpg")
    everything = load(tmp_path, train_split="")
    assert everything.train.classes == ("fold 1", "fold 2", "test", "train")
    assert everything.train.size + everything.test.size == 16


def test_what_lies_beside_the_splits_is_told(tmp_path):
    touch(tmp_path, [*classes(["train", "test", "val", "extra"]), "loose.jpg"])
    assert told(tmp_path)[0] == "not read, beside train: extra, val, 1 images"
    assert load(tmp_path).train.size == 4


@pytest.mark.parametrize("name", ["train", "Train", "training"])
def test_a_class_named_like_a_split(tmp_path, name):
    """A folder `train` is the split, as ever, and a line says what to do; other names are in pairs only."""
    touch(tmp_path, [f"{c}/{i}.jpg" for c in (name, "car", "plane") for i in range(4)])
    lines = "\n".join(told(tmp_path))
    if name == "train":
        assert "if train is a class, --config.data.train_split= reads all" in lines
    else:
        assert load(tmp_path).train.classes == tuple(sorted((name, "car", "plane")))
        assert f"{name}: read like any other folder" in lines
    assert load(tmp_path, train_split="").train.classes == tuple(sorted((name, "car", "plane")))


def test_tests_without_train_are_told(tmp_path):
    touch(tmp_path, classes(["test", "val"]))
    assert "test, val: read like any other folder; two splits would be called train and test" in told(
        tmp_path
    )


def test_one_folder_as_both_splits(tmp_path):
    touch(tmp_path, classes(["train"]))
    (tmp_path / "test").symlink_to("train")
    with pytest.raises(SimclrError, match="train and test are one folder"):
        load(tmp_path)


# ---- classes of a test split --------------------------------------------------------------------


def test_a_test_class_that_train_lacks_costs_no_other_label(tmp_path):
    touch(tmp_path, [*classes(["train", "test"]), "test/z/1.jpg", "test/z/2.jpg", "test/y/1.jpg"])
    found = load(tmp_path)
    assert found.test.labels().tolist() == [0, 0, 1, 1, -1, -1, -1]
    assert "3 test images are of 2 classes that the train split lacks: y, z; they stay" in "\n".join(
        told(tmp_path)
    )
    assert "images of each class to test on: a: 2, b: 2; 3 without a label" in told(tmp_path)


def test_a_test_split_of_other_classes(tmp_path):
    touch(tmp_path, [*classes(["train"]), *classes(["test"], of=("y", "z"))])
    with pytest.raises(SimclrError, match="the test split has classes that the train split lacks: y, z"):
        load(tmp_path)


# ---- why there are no labels --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "why"),
    [(["a/1.jpg", "b/1.jpg", "1.jpg"], "no labels: 1 images lie beside the folders a, b; move them into one"),
     (["images/1.jpg"], "no labels: classes are folders of images, two or more, and there is one, images"),
     (["1.jpg"], "no labels: classes are folders of images, two or more, and there is none"),
     ([*classes(["train"]), "test/images/1.jpg"],
      "no labels: its only folder, images, is no class of the train split"),
     ([*classes(["train"]), "test/1.jpg"],
      "no labels: classes are folders of images, two or more, and there is none")],
)  # fmt: skip
def test_why_there_are_no_labels(tmp_path, names, why):
    touch(tmp_path, names)
    assert why in told(tmp_path)


# ---- what is read -------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["jpg", "jpeg", "jpe", "jfif", "JFIF", "png", "bmp", "gif", "webp", "tif",
                                    "TIFF", "dcm", "dicom"])  # fmt: skip
def test_suffixes_of_images(tmp_path, suffix):
    touch(tmp_path, [f"{c}/{i}.{suffix}" for c in "ab" for i in range(2)])
    assert load(tmp_path, holdout=0.0).train.size == 4


def test_what_is_not_read_is_counted_by_suffix(tmp_path):
    touch(tmp_path, [f"{c}/{i}.jpg" for c in "ab" for i in range(15)])
    touch(tmp_path, [f"birds/{i}.{'psd' if i % 2 else 'HEIC'}" for i in range(75)])
    touch(tmp_path, ["a/notes.txt", "a/README", "a/.DS_Store", ".cache/x.jpg"])
    os.makedirs(tmp_path / "empty" / "deep")
    (tmp_path / "a" / "gone.jpg").symlink_to("nowhere.jpg")
    os.mkfifo(tmp_path / "b" / "pipe.jpg")
    lines = told(tmp_path)
    assert lines[0].startswith(
        "not read: 38 .heic, 37 .psd, 1 .txt, 1 without a suffix, 2 hidden, 2 links to nowhere or no files; "
    )
    assert lines[1] == "folders without an image that is read: birds (38 .heic, 37 .psd), empty"
    assert load(tmp_path).train.classes == ("a", "b")


def test_no_image_says_what_there_is(tmp_path):
    touch(tmp_path, [f"a/{i}.psd" for i in range(3)])
    with pytest.raises(SimclrError, match=r"no image \(.*\) in it; not read: 3 \.psd; .*: a \(3 \.psd\)"):
        load(tmp_path)


def test_names_of_any_bytes(tmp_path):
    names = ["caf\udce9/1.jpg", "größe/1.jpg", 'say "x"/1.jpg', "two\nlines/1\n.jpg", "two\nlines/\udcff.jpg"]
    touch(tmp_path, names)
    found = load(tmp_path, holdout=0.0).train
    assert found.classes == ("caf\\xe9", "größe", 'say "x"', "two\nlines") or found.size == 5
    assert set(found.classes) == {"caf\\xe9", "größe", 'say "x"', "two\nlines"}
    assert all(name.encode() for name in (*found.names, *found.classes))
    assert not any("\n" in line for line in told(tmp_path))


def test_jfif_is_decoded(tmp_path):
    from simclr_jax.data import pipeline

    (tmp_path / "a").mkdir()
    Image.new("RGB", (12, 12), "white").save(tmp_path / "a" / "1.jfif", "JPEG")
    os.rename(tmp_path / "a" / "1.jfif", tmp_path / "a" / "\udcff.jfif")
    batch = next(pipeline.eval_batches(load(tmp_path).train, batch=1, size=12, crop=1.0))
    assert batch["example"].min() > 0.99


# ---- links --------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["..", "../..", ".", "../a", "/"])
def test_links_that_lead_round(tmp_path, target):
    touch(tmp_path / "set", [f"{c}/{i}.jpg" for c in "ab" for i in range(10)])
    (tmp_path / "set" / "a" / "link").symlink_to(target)
    found = load(tmp_path / "set", holdout=0.0).train
    assert found.size == 20
    assert "1 folders were reached before and are read once: a/link" in told(tmp_path / "set")


def test_a_link_between_classes_keeps_the_real_name(tmp_path):
    touch(tmp_path, [f"{c}/deep/{i}.jpg" for c in "bc" for i in range(10)])
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "d").symlink_to("c/deep")
    assert load(tmp_path, holdout=0.0).train.classes == ("b", "c")
    assert "folders without an image that is read: a, d" in told(tmp_path)


def test_a_link_from_train_into_test(tmp_path):
    touch(tmp_path, classes(["train", "test"]))
    (tmp_path / "train" / "a" / "more").symlink_to("../../test")
    (tmp_path / "test" / "a" / "more").symlink_to("../../train")
    (tmp_path / "test" / "b" / "all").symlink_to("../..")
    found = load(tmp_path)
    assert (found.train.size, found.test.size) == (4, 4)


def test_links_to_folders_elsewhere_are_read(tmp_path):
    touch(tmp_path, [f"store/{c}/{i}.jpg" for c in "xy" for i in range(3)])
    (tmp_path / "set").mkdir()
    for c in "xy":
        (tmp_path / "set" / f"class {c}").symlink_to(f"../store/{c}")
    os.symlink(tmp_path / "store" / "x" / "0.jpg", tmp_path / "store" / "y" / "linked.jpg")
    found = load(tmp_path / "set", holdout=0.0).train
    assert found.classes == ("class x", "class y")
    assert found.size == 7


def test_a_set_that_is_a_link_itself(tmp_path):
    touch(tmp_path, classes(["store/train", "store/test"]))
    (tmp_path / "set").symlink_to("store")
    found = load(tmp_path / "set")
    assert (found.train.size, found.test.size) == (4, 4)
    assert found.train.names[0] == "train/a/0.jpg"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_folder_that_may_not_be_read(tmp_path):
    touch(tmp_path, [f"{c}/{i}.jpg" for c in "abc" for i in range(3)])
    os.chmod(tmp_path / "c", 0)
    try:
        assert "1 folders may not be read by you: c" in told(tmp_path)
    finally:
        os.chmod(tmp_path / "c", 0o700)


# ---- size ---------------------------------------------------------------------------------------


def test_no_file_is_looked_at_by_itself(tmp_path, monkeypatch):
    """Listing a folder says what is a file; a look at each would take minutes for a million on a network."""
    touch(tmp_path, [f"{c}/{i}.jpg" for c in "ab" for i in range(500)])
    looks = []
    stat = os.stat
    monkeypatch.setattr(os, "stat", lambda path, **options: looks.append(path) or stat(path, **options))
    assert load(tmp_path).train.size == 900
    assert len(looks) < 100
