"""Tables of image files: labels, splits, groups, and what goes wrong in tables."""

import os

import numpy as np
import pytest

from simclr_jax.config import fields
from simclr_jax.data import notes, splits
from simclr_jax.data.holdout import holdout_rows
from simclr_jax.errors import SimclrError


def table(tmp_path, text, names=(), **options):
    """Loads the table `text`; `names` are files beside it, empty ones."""
    for name in names:
        path = os.path.join(tmp_path, name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb"):
            pass
    (tmp_path / "list.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    return splits.load(f"list:{tmp_path / 'list.csv'}", **options)


def labels(source):
    """{file: name of its class, "" for none}"""
    return {
        name: source.classes[i] if i >= 0 else ""
        for name, i in zip(source.names, source.labels(), strict=True)
    }


def test_files_and_labels(tmp_path):
    found = table(
        tmp_path,
        "label,file\ndog,b.jpg\ncat,deep/a.jpg\n,c.png\n",
        ["b.jpg", "deep/a.jpg", "c.png"],
        holdout=0.0,
    )
    assert found.test is None
    assert found.train.classes == ("cat", "dog")
    assert labels(found.train) == {"b.jpg": "dog", "deep/a.jpg": "cat", "c.png": ""}
    assert found.train.name == f"list:{tmp_path / 'list.csv'}"
    assert notes.describe(found) == ("images of each class to train on: cat: 1, dog: 1; 1 without a label",)


@pytest.mark.parametrize(
    "text",
    ["file,label\na.jpg,x\nb.jpg,y\n", "\ufefffile,label\r\na.jpg,x\r\nb.jpg,y",
     "file;label\na.jpg;x\nb.jpg;y\n",
     "file\tlabel\na.jpg\tx\nb.jpg\ty\n", '"File","LABEL"\n"a.jpg","x"\n\n"b.jpg", y \n',
     "path, class\na.jpg,x\nb.jpg,y\n", "file,label\ra.jpg,x\rb.jpg,y\r"],
)  # fmt: skip
def test_tables_as_programs_write_them(tmp_path, text):
    found = table(tmp_path, text, ["a.jpg", "b.jpg"], holdout=0.0)
    assert labels(found.train) == {"a.jpg": "x", "b.jpg": "y"}


def test_names_of_any_bytes(tmp_path):
    names = [b"caf\xe9.jpg", "größe.jpg".encode(), b'say "a, b".jpg', b"two\nlines.jpg"]
    rows = [b'"' + name.replace(b'"', b'""') + b'",x' for name in names]
    files = [os.fsdecode(name) for name in names]
    found = table(tmp_path, b"file,label\n" + b"\n".join(rows), files)
    both = (*found.train.names, *found.test.names) if found.test else found.train.names
    assert sorted(both) == sorted(["caf\\xe9.jpg", "größe.jpg", 'say "a, b".jpg', "two\nlines.jpg"])


def test_numbers_are_names_in_their_order(tmp_path):
    names = [f"{i}.jpg" for i in range(3)]
    found = table(tmp_path, "file,label\n0.jpg,10\n1.jpg,9\n2.jpg,1000000\n", names, holdout=0.0)
    assert found.train.classes == ("9", "10", "1000000")
    assert found.train.labels().tolist() == [1, 0, 2]


def test_files_elsewhere(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    there = tmp_path / "elsewhere" / "x.jpg"
    there.write_bytes(b"")
    (tmp_path / "lists").mkdir()
    found = table(tmp_path / "lists", f"file\n../elsewhere/x.jpg\n{there}\n")
    assert found.train.names == ("../elsewhere/x.jpg", str(there))
    assert found.train.classes == ()
    assert "there is no column label" in found.train.notes[0]


def test_a_relative_list_begins_in_data_dir(tmp_path):
    table(tmp_path, "file\na.jpg\n", ["a.jpg"])
    assert splits.load("list:list.csv", data_dir=str(tmp_path)).train.size == 1


def test_missing_files_of_other_kinds_and_repeated_rows_are_counted(tmp_path):
    rows = "a.jpg,x\nb.jpg,y\nb.jpg,y\nc.psd,x\ngone.jpg,y\nd,x\n"
    found = table(tmp_path, f"file,label,remark\n{rows}", ["a.jpg", "b.jpg", "c.psd", "d"], holdout=0.0)
    assert found.train.names == ("a.jpg", "b.jpg", "d")
    lines = [line.partition("list.csv: ")[2] for line in notes.describe(found)]
    assert lines[:4] == [
        "columns that are not read: remark",
        "1 of 6 files are missing and left out: gone.jpg",
        lines[2],
        "1 rows repeat another and are left out",
    ]
    assert lines[2].startswith("not read: 1 .psd; ")


@pytest.mark.parametrize(
    ("text", "why"),
    [("", "the first line must name the columns, file,label"), ("a.jpg,x\n", "the first line must name"),
     ("file,label\n", "names no file"), ("file,path\na.jpg,b.jpg\n", "two columns say the file: file, path"),
     ("file,label\n,x\n", "row 2 names no file"),
     ("file,label\ngone.jpg,x\n", "none of its 1 files is an image"),
     ("file,label\na.jpg,x\na.jpg,y\n", "says two things of a.jpg"),
     ('file,label\n"a.jpg,x\n', "cannot be read as a table")],
)  # fmt: skip
def test_tables_that_are_refused(tmp_path, text, why):
    with pytest.raises(SimclrError, match=why):
        table(tmp_path, text, ["a.jpg"])


def test_no_list(tmp_path):
    with pytest.raises(SimclrError, match=r"list\.csv: no such file"):
        splits.load(f"list:{tmp_path / 'list.csv'}")
    with pytest.raises(SimclrError, match="cannot be read as a table"):
        splits.load(f"list:{tmp_path}")
    with pytest.raises(SimclrError, match="must be a local path"):
        splits.load("list:gs://bucket/list.csv")


def test_lists_are_named_where_sources_are():
    assert "list:FILE" in fields.SOURCES


# ---- splits and groups --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("train", "test"), [("train", "test"), ("Training", "VAL"), ("TRAIN", "Validation"), ("train", "dev")]
)
def test_splits_of_a_list(tmp_path, train, test):
    rows = f"a.jpg,x,{train}\nb.jpg,y,{train}\nc.jpg,y,{test}\nd.jpg,z,{test}\ne.jpg,x,spare\n"
    found = table(tmp_path, f"file,label,split\n{rows}", [f"{c}.jpg" for c in "abcde"])
    assert labels(found.train) == {"a.jpg": "x", "b.jpg": "y"}
    assert labels(found.test) == {"c.jpg": "y", "d.jpg": ""}
    told = "\n".join(notes.describe(found))
    assert "1 images of other splits are not read" in told
    assert "1 test images are of 1 classes that the train split lacks: z" in told


def test_other_splits_by_the_config(tmp_path):
    rows = "a.jpg,x,fold 1\nb.jpg,y,fold 1\nc.jpg,y,fold 2\n"
    found = table(
        tmp_path,
        f"file,label,split\n{rows}",
        [f"{c}.jpg" for c in "abc"],
        train_split="fold 1",
        test_split="fold 2",
    )
    assert (found.train.size, found.test.size) == (2, 1)
    with pytest.raises(SimclrError, match=r"no row has the split 'train'; there are fold 1 2, fold 2 1"):
        splits.load(f"list:{tmp_path / 'list.csv'}")


@pytest.mark.parametrize("share", [0.1, 0.3, 0.9])
def test_a_hold_out_divides_no_group(tmp_path, share):
    rng = np.random.default_rng(3)
    patients = rng.integers(0, 12, 100)
    names = [f"{i:03}.jpg" for i in range(100)]
    rows = "".join(f"p{p},{name},{'xy'[p % 2]}\n" for name, p in zip(names, patients, strict=True))
    text = f"patient,file,label\n{rows}"
    found = table(tmp_path, text, names, holdout=share)
    patient = dict(zip(names, patients, strict=True))
    sides = [{patient[name] for name in part.names} for part in found]
    assert sides[0]
    assert sides[1]
    assert not sides[0] & sides[1]
    assert found.train.size + found.test.size == 100
    assert abs(found.test.size - 100 * share) < 15
    again = table(tmp_path, text, names, holdout=share)
    assert again.test.names == found.test.names
    np.testing.assert_array_equal(np.unique(found.test.groups).size, len(sides[1]))


def test_images_without_a_group_are_groups_of_their_own(tmp_path):
    names = [f"{i}.jpg" for i in range(20)]
    found = table(tmp_path, "file,label,group\n" + "".join(f"{n},x,\n" for n in names), names)
    assert (found.train.size, found.test.size) == (18, 2)


def test_one_group_is_not_divided(tmp_path):
    names = [f"{i}.jpg" for i in range(20)]
    found = table(tmp_path, "file,label,group\n" + "".join(f"{n},x,p\n" for n in names), names)
    assert (found.train.size, found.test) == (20, None)
    assert "are of one group: hold-outs within the evaluation divide it" in "\n".join(notes.describe(found))


def test_a_group_on_both_sides_of_the_lists_own_splits_is_told(tmp_path):
    rows = "a.jpg,x,train,p1\nb.jpg,y,train,p2\nc.jpg,y,test,p2\n"
    found = table(tmp_path, f"file,label,split,group\n{rows}", ["a.jpg", "b.jpg", "c.jpg"])
    assert "1 groups are trained and tested on, as the list says: p2" in "\n".join(notes.describe(found))


def test_without_groups_the_hold_out_is_what_it_was():
    kept, held = holdout_rows(20, 0.2)
    assert held.tolist() == [6, 8, 14, 19]
    assert sorted([*kept, *held]) == list(range(20))


def test_the_split_to_train_on_is_not_tested_on(tmp_path):
    rows = "0.png,a,val\n1.png,b,val\n2.png,a,fold2\n3.png,b,fold2\n"
    names = [f"{i}.png" for i in range(4)]
    found = table(tmp_path, f"file,label,split\n{rows}", names, train_split="val", holdout=0.0)
    assert found.train.names == ("0.png", "1.png")
    assert found.test is None
    found = table(tmp_path, f"file,label,split\n{rows}", names, train_split="fold2")
    assert found.test.names == ("0.png", "1.png")
    assert "fold2 is the split to train on, val the one to test on" in "\n".join(found.train.notes)


def test_one_file_by_two_ways_is_one(tmp_path):
    text = "file,label,split\n0.png,a,train\n./0.png,a,test\n1.png,b,train\n"
    with pytest.raises(SimclrError, match=r"says two things of \./0\.png"):
        table(tmp_path, text, ["0.png", "1.png"])
