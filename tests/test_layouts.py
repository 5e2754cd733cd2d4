"""Which images a source has, in which order, as which classes: the same in every version.

A hold-out and a resumption depend on the order of files and on the classes' numbers. The expected values are
those of the first version that had a source.
"""

import numpy as np
import pytest

from simclr_jax.data import splits
from simclr_jax.errors import SimclrError

FOLDERS = {
    "classes": (
        [f"{c}/{i}.jpg" for c in ("cat", "a b", "a", "Dog") for i in range(10)],
        (36, "0a51ede060261915", ("Dog", "a", "a b", "cat")),
        (4, "4e293d82a06e28f7", ("Dog", "a", "a b", "cat")),
    ),
    "splits": (
        [f"{s}/{c}/deep/{i}.PNG" for s in ("train", "val", "test") for c in ("cat", "dog") for i in range(3)],
        (6, "8251ce06feb5694a", ("cat", "dog")),
        (6, "7c2cfe40f180ebee", ("cat", "dog")),
    ),
    "no classes": (
        [*(f"x/{i}.gif" for i in range(3)), "y.bmp", "z.webp"],
        (5, "d4ff669860ffb227", ()),
        None,
    ),
    "unlabelled": (
        [f"{c}/{i}.jpeg" for c in ("a", "b", "unlabelled") for i in range(5)],
        (13, "f5ff67caa3991777", ("a", "b")),
        (2, "b7007ef5d09d6d25", ("a", "b")),
    ),
    "train alone": (
        [f"train/{c}/{i}.jpg" for c in "ab" for i in range(6)],
        (11, "a6f99bfbe5d1ab73", ("a", "b")),
        (1, "d1cf61cd682ee644", ("a", "b")),
    ),
    "a test split of one class": (
        [*(f"train/{c}/{i}.jpg" for c in "ab" for i in range(6)), "validation/b/1.jpg"],
        (12, "dc5bd8d533db9e9e", ("a", "b")),
        (1, "70b7105b1428fbeb", ("a", "b")),
    ),
}


def touch(root, names):
    """Empty files: nothing is decoded here."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")


@pytest.mark.parametrize("layout", FOLDERS)
def test_folders_are_what_they_were(tmp_path, layout):
    names, *expected = FOLDERS[layout]
    touch(tmp_path, names)
    found = splits.load(f"folder:{tmp_path}")
    assert [s and (s.size, s.fingerprint, s.classes) for s in found] == expected


X = np.arange(60 * 4 * 4 * 3).reshape(60, 4, 4, 3).astype(np.uint8)
Y = np.arange(60) * 7 % 5
ARRAYS = {
    "two splits": (
        {"train_images": X, "train_labels": Y, "test_images": X[:9], "test_labels": Y[:9]},
        (60, "389429f8ac790aa0", 5),
        (9, "fbe4e3e278e46a76", 5),
    ),
    "labels as a column": (
        {"images": X, "labels": Y[:, None].astype(np.int64)},
        (54, "792d3bcaf6471e15", 5),
        (6, "9bf255e479971cb6", 5),
    ),
    "gray, some without a label": (
        {"images": X[..., 0], "labels": np.where(Y == 2, -1, Y)},
        (54, "ecf85f6b35cd48fc", 5),
        (6, "64bd167942cdf110", 5),
    ),
    "numbers with holes": (
        {"images": X, "labels": np.where(Y == 2, 400, Y).astype(np.uint16)},
        (54, "e4ba2bc24cf1b06d", 401),
        (6, "249860311a948ff8", 401),
    ),
    "no labels": ({"x_train": X}, (60, "97eea64fb2b513ec", 0), None),
}


@pytest.mark.parametrize("layout", ARRAYS)
def test_arrays_are_what_they_were(tmp_path, layout):
    arrays, *expected = ARRAYS[layout]
    np.savez(tmp_path / "a.npz", **arrays)
    found = splits.load(f"npz:{tmp_path / 'a.npz'}")
    assert [s and (s.size, s.fingerprint, len(s.classes)) for s in found] == expected


@pytest.mark.parametrize("layout", [name for name in ARRAYS if name != "numbers with holes"])
def test_a_folder_of_arrays_stays_on_disk(tmp_path, layout):
    """The same splits, images and labels as of the one file; nothing is copied."""
    arrays, *_ = ARRAYS[layout]
    np.savez(tmp_path / "a.npz", **arrays)
    (tmp_path / "b").mkdir()
    for name, array in arrays.items():
        np.save(tmp_path / "b" / f"{name}.npy", array)
    whole, mapped = (splits.load(f"npz:{tmp_path / name}") for name in ("a.npz", "b"))
    for one, other in zip(whole, mapped, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            rows = np.arange(one.size)[::-2]
            for mine, theirs in zip(one.fetch(rows), other.fetch(rows), strict=True):
                np.testing.assert_array_equal(mine, theirs)
            assert one.classes == other.classes


def test_a_folder_of_arrays_larger_than_memory(tmp_path):
    """A sparse file of 1 TB opens at once; a batch reads its own images alone."""
    shape = (10**6, 512, 512, 4)
    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
    with open(tmp_path / "images.npy", "wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        file.truncate(file.tell() + int(np.prod(shape)))
    found = splits.load(f"npz:{tmp_path}").train
    assert found.size == 10**6
    assert found.fetch(np.array([0, 999_999]))[0].shape == (2, 512, 512, 4)


@pytest.mark.parametrize(("arrays", "says"), [
    ({"images": X / 255}, "images.npy is float64: what stays on disk must be uint8"),
    ({"images": np.zeros((9, 3, 5, 5), np.uint8)}, "images.npy is [n, c, h, w]: what stays on disk"),
    ({"images": np.asfortranarray(X)}, "images.npy is in Fortran's order: what stays on disk"),
    ({"pictures": X}, "holds pictures; name the images train_images"),
    ({}, "holds no .npy file"),
    ({"images": np.array([{}], object)}, "it holds Python objects, not numbers"),
])  # fmt: skip
def test_mistakes_in_a_folder_of_arrays(tmp_path, arrays, says):
    for name, array in arrays.items():
        np.save(tmp_path / f"{name}.npy", array)
    with pytest.raises(SimclrError) as error:
        splits.load(f"npz:{tmp_path}")
    assert says in str(error.value)
