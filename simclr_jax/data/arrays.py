"""`npz:PATH`: images and labels as NumPy arrays in a file, or in a folder of .npy files that stay on disk."""

import math
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy

from simclr_jax import memory_error
from simclr_jax.data import pixels
from simclr_jax.data.holdout import holdout_rows
from simclr_jax.data.labels import number
from simclr_jax.data.sources import Source, Splits, of_arrays
from simclr_jax.errors import SimclrError, one_line
from simclr_jax.paths import local_source

NPZ_KEYS = (  # images, labels; the first pair found counts
    (("train_images", "train_labels"), ("test_images", "test_labels")),
    (("x_train", "y_train"), ("x_test", "y_test")),
    (("images", "labels"), (None, None)),
)
OBJECTS_REMEDY = "save images as uint8 [n, h, w, c], labels as numbers or as labels.astype(str)"
ROOM_REMEDY = "save fewer or smaller images, or image files for folder: or list:"


def open_npz(where: str | Path, data_dir: str | None = None, kind: str = "npz") -> tuple[Path, Any]:
    """(path, arrays) of an .npz file or a folder of .npy files; each array is read on first access.

    `kind` is the kind of the source, for error messages.
    """
    path = local_source(kind, str(where), data_dir)
    if path.is_dir():
        return path, _Mapped(path)
    try:
        arrays = np.load(path, allow_pickle=False)
        arrays.keys()
    except FileNotFoundError:
        raise SimclrError(f"{kind}:{path}: no such file") from None
    except (ValueError, OSError, EOFError, AttributeError, zipfile.BadZipFile) as error:
        raise SimclrError(f"{kind}:{path}: not an .npz file ({one_line(error)})") from None
    return path, arrays


class _Mapped(Mapping):
    """{name: array} of the .npy files in a folder; the arrays are mapped into memory, not read."""

    def __init__(self, folder: Path):
        self.files = {path.stem: path for path in sorted(folder.glob("*.npy"))}

    def __getitem__(self, name: str) -> np.ndarray:
        return np.load(self.files[name], mmap_mode="r", allow_pickle=False)

    def __contains__(self, name: object) -> bool:
        return name in self.files

    def __iter__(self) -> Iterator[str]:
        return iter(self.files)

    def __len__(self) -> int:
        return len(self.files)


def npz_array(
    path: Path, arrays: Any, key: str, *, kind: str = "npz", remedy: str = OBJECTS_REMEDY
) -> np.ndarray:
    """One array of an open .npz file. Refuses Python objects: reading them could run code."""
    try:
        return arrays[key]
    except KeyError:
        raise SimclrError(f"{kind}:{path}: lacks {key}; it holds {', '.join(arrays.keys())}") from None
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        pickled = "allow_pickle" in str(error) or "Python objects" in str(error)
        why = (
            f"it holds Python objects, not numbers; {remedy}"
            if pickled
            else f"it is damaged ({one_line(error)})"
        )
        raise SimclrError(f"{kind}:{path}: {key} cannot be read, {why}") from None


def check_room(
    path: Path, keys: list[str], copies: int = 1, *, kind: str = "npz", remedy: str = ROOM_REMEDY
) -> None:
    """Raises SimclrError if the headers announce arrays larger than the memory.

    It reads only the headers: a compressed file of some megabytes can hold zeros that fill any memory.
    """
    sizes = {key: size for key in keys if (size := _promised(path, key)) is not None}
    free = memory_error.host_free()
    needs = copies * sum(sizes.values())
    if free is not None and needs > free:
        largest = max(sizes, key=sizes.__getitem__)
        raise SimclrError(
            f"{kind}:{path}: its arrays take {needs / 2**30:,.1f} GiB of memory, {largest} most, and "
            f"{free / 2**30:,.1f} are free; {remedy}"
        )


def _promised(path: Path, key: str) -> int | None:
    """Bytes of an array according to its header; None without a valid header (reading raises the error)."""
    readers = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
    try:
        with zipfile.ZipFile(path) as archive, archive.open(f"{key}.npy") as file:
            shape, _, dtype = readers[npy.read_magic(file)](file)
    except (KeyError, ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error):
        return None
    return math.prod(shape) * dtype.itemsize


def npz_keys(path: Path, arrays: Any) -> tuple:
    """((train images, labels), (test images, labels)) by their names in the file."""
    present = [pairs for pairs in NPZ_KEYS if pairs[0][0] in arrays]
    if not present:
        there = ", ".join(arrays.keys()) or "no .npy file"
        raise SimclrError(
            f"npz:{path}: holds {there}; name the images train_images (and train_labels, "
            "test_images, test_labels), x_train and so on, or images and labels"
        )
    return present[0]


def _check_mapped(images: np.ndarray, where: str) -> None:
    """Raises SimclrError if an array on disk needs a conversion, which would read all of it."""
    odd = [str(images.dtype)] * (images.dtype != np.uint8)
    odd += ["[n, c, h, w]"] * pixels.channels_first(images)
    odd += ["in Fortran's order"] * (not images.flags.c_contiguous)
    if odd:
        raise SimclrError(
            f"{where} is {', '.join(odd)}: what stays on disk must be uint8 [n, h, w, c]; convert it once, "
            "or save an .npz file, which is converted as it is read"
        )


def load(where: str | Path, data_dir: str | None, holdout: float) -> Splits:
    """The splits that the arrays' names give; without a test split, a share `holdout` of labelled images."""
    path, arrays = open_npz(where, data_dir)
    mapped = isinstance(arrays, _Mapped)
    keys = list(arrays.keys())
    (train_x, train_y), (test_x, test_y) = npz_keys(path, arrays)
    read = [key for key in (train_x, train_y, test_x, test_y) if key in keys]
    if not mapped:
        check_room(path, read, copies=1 if test_x in keys or train_y not in keys else 2)

    def part(x: str, y: str | None, classes: tuple[str, ...] | None = None) -> tuple:
        """(images, labels, notes) of one split."""
        images = npz_array(path, arrays, x)
        if mapped:
            _check_mapped(images, f"npz:{path}: {x}.npy")
        images, notes = pixels.read(images, f"npz:{path.name}/{x}")
        if y is None or y not in keys:
            why = f"npz:{path.name}/{x}: no labels: the file has no {y}; it holds {', '.join(keys)}"
            return images, None, (*notes, why)
        where = f"npz:{path.name}/{y}"
        labels = number(npz_array(path, arrays, y), len(images), where, classes=classes)
        return images, labels, notes

    images, labels, notes = part(train_x, train_y)
    classes = labels.classes if labels else ()
    name = f"npz:{path.name}/{train_x}"
    if test_x in keys:
        test_images, test_labels, test_notes = part(test_x, test_y, classes or None)
        return Splits(
            of_arrays(images, labels, name=name, notes=notes, on_disk=mapped),
            of_arrays(
                test_images, test_labels, name=f"npz:{path.name}/{test_x}", notes=test_notes, on_disk=mapped
            ),
        )
    if not classes or mapped:
        whole = of_arrays(images, labels, name=name, notes=notes, on_disk=mapped)
    if not classes:  # nothing to score: train on all
        return Splits(whole, None)
    kept, held = holdout_rows(len(images), holdout)

    def rows(index: np.ndarray) -> Source:
        if mapped:
            return whole.subset(index)
        return of_arrays(images[index], labels._replace(ids=labels.ids[index]), name=name, notes=notes)

    return Splits(rows(kept), rows(held) if len(held) else None)
