"""`folder:PATH`: image files whose folders give the classes and splits."""

import os
from pathlib import Path
from typing import NamedTuple

import numpy as np

from simclr_jax.data.formats import EXTENSIONS, Reading
from simclr_jax.data.holdout import holdout_rows
from simclr_jax.data.labels import NO_LABEL, strangers
from simclr_jax.data.scan import Found, scan
from simclr_jax.data.sources import Source, Splits, as_text, from_files
from simclr_jax.data.split_names import TEST, TRAIN, first_named, lines_of
from simclr_jax.errors import SimclrError
from simclr_jax.text import printable

UNLABELLED = ("unlabelled", "unlabeled")  # name of the subfolder with images without a label


def load(
    root: Path, train_split: str, test_split: str, holdout: float, reading: Reading | None = None
) -> Splits:
    """The splits and classes that the subfolders of `root` give.

    Raises:
      SimclrError: there is no such folder, no image in it, or its splits have no class in common.
    """
    if root.is_file():
        raise SimclrError(f"folder:{root}: is a file; a table of images is read by list:{root}")
    if not root.is_dir():
        raise SimclrError(f"folder:{root}: no such folder")
    train, test, told = _find_splits(root, train_split, test_split)
    there = [root / name for name in (train, test) if name]

    def part(name: str, known: tuple[str, ...] = ()) -> _Part:
        prefix = f"{name}/" if name else ""
        elsewhere = [folder for folder in (root, *there) if folder != root / name]
        return _part(scan(root / name, prefix, elsewhere), f"folder:{root / name}", known)

    whole = part(train)
    if test:
        tested = part(test, whole.classes)
        return Splits(_source(whole, root, reading, told), _source(tested, root, reading))
    source = _source(whole, root, reading, told)
    if not whole.classes:  # nothing to score: train on all
        return Splits(source, None)
    kept, held = holdout_rows(source.size, holdout)
    return Splits(source.subset(kept), source.subset(held) if len(held) else None)


# ---- splits -------------------------------------------------------------------------------------


def _find_splits(root: Path, train_split: str, test_split: str) -> tuple[str, str, tuple[str, ...]]:
    """(folder to train on, "" for the root itself; folder to test on, "" for none; notes).

    The config's own names come first, then the usual ones, in upper or lower case. The config's
    own name always is the training split. Another name such as `training` may be a class, so it counts only
    if there is a test folder too, or nothing else in `root`.
    """
    folders, loose = _top(root)
    if not train_split:
        return "", "", ()
    where = f"folder:{root}"
    train = (
        train_split if (root / train_split).is_dir() else first_named(folders, (train_split, *TRAIN)) or ""
    )
    rest = [name for name in folders if name != train]
    test = (
        test_split
        if test_split and (root / test_split).is_dir()
        else first_named(rest, (test_split, *TEST)) or ""
    )
    if not train:
        return "", "", _told_as_classes(where, folders)
    if train != train_split and not test and (rest or loose):
        return "", "", _told_as_classes(where, folders)
    if test and os.path.samefile(root / train, root / test):
        raise SimclrError(
            f"{where}: {train} and {test} are one folder: the images trained on would be tested on"
        )
    notes = [f"{where}: {line}" for line in lines_of("folder", train, test, (train_split, test_split))]
    beside = [printable(name) for name in rest if name != test]
    beside = beside[:5] + [f"{len(beside) - 5:,} more folders"] * (len(beside) > 5)
    if loose:
        beside.append(f"{loose:,} images")
    if beside:
        remedy = "" if test else f"; if {printable(train)} is a class, --config.data.train_split= reads all"
        notes.append(f"{where}: not read, beside {printable(train)}: {', '.join(beside)}{remedy}")
    return train, test, tuple(notes)


def _top(root: Path) -> tuple[list[str], int]:
    """(subfolders, number of images outside any subfolder)"""
    folders, loose = [], 0
    try:
        with os.scandir(root) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.name.lower().endswith(EXTENSIONS) and not entry.is_dir():
                    loose += 1
                elif entry.is_dir(follow_symlinks=False) or os.path.isdir(entry.path):
                    folders.append(entry.name)
    except OSError as error:
        raise SimclrError(f"folder:{root}: cannot be read ({error.strerror})") from None
    return sorted(folders), loose


def _told_as_classes(where: str, folders: list[str]) -> tuple[str, ...]:
    names = [name for name in folders if name.casefold() in (*TRAIN, *TEST)]
    if not names:
        return ()
    shown = ", ".join(map(printable, names))
    return (f"{where}: {shown}: read like any other folder; two splits would be called train and test",)


# ---- classes ------------------------------------------------------------------------------------


class _Part(NamedTuple):
    """The images of one split."""

    where: str
    names: list[str]
    ids: np.ndarray | None
    classes: tuple[str, ...]
    notes: tuple[str, ...]


def _part(found: Found, where: str, known: tuple[str, ...] = ()) -> _Part:
    """Images and their labels: each subfolder is a class, unless there are images next to the subfolders.

    A single subfolder is no class, except in a test split, where it can be one of the `known` classes. Images
    in a subfolder `unlabelled` have no label.
    """
    by_class = {name: found.images[name] for name in sorted(found.images) if name}
    names = [name for name in by_class if name.casefold() not in UNLABELLED]
    notes = found.notes(where)
    loose = found.images.get("", [])
    number = {name: i for i, name in enumerate(known or map(as_text, names))}
    unknown = {name: len(by_class[name]) for name in names if as_text(name) not in number}
    no_class = len(names) < 2 and not (known and by_class and not unknown)
    if loose or no_class:
        every = sorted([name for files in found.images.values() for name in files])
        return _Part(where, every, None, (), (*notes, *_why_none(where, names, len(loose), known)))
    notes += strangers(where, unknown, len(names))
    each = [NO_LABEL if n.casefold() in UNLABELLED else number.get(as_text(n), NO_LABEL) for n in by_class]
    ids = np.repeat(np.array(each, np.int32), [len(files) for files in by_class.values()])
    return _Part(where, [name for files in by_class.values() for name in files], ids, tuple(number), notes)


def _why_none(where: str, names: list[str], loose: int, known: tuple[str, ...]) -> tuple[str, ...]:
    """Why images have no labels, in a line."""
    shown = ", ".join(map(printable, names[:3])) + (", ..." if len(names) > 3 else "")
    if loose and names:
        return (f"{where}: no labels: {loose:,} images lie beside the folders {shown}; move them into one",)
    if known and names:
        return (f"{where}: no labels: its only folder, {shown}, is no class of the train split",)
    there = f"there is one, {shown}" if names else "there is none"
    return (f"{where}: no labels: classes are folders of images, two or more, and {there}",)


def _source(part: _Part, root: Path, reading: Reading | None, told: tuple[str, ...] = ()) -> Source:
    if not part.names:
        there = "; ".join(
            note.removeprefix(f"{part.where}: ") for note in part.notes if "labels:" not in note
        )
        raise SimclrError(
            f"{part.where}: no image ({', '.join(EXTENSIONS)}) in it" + f"; {there}" * bool(there)
        )
    told += part.notes
    return from_files(part.names, part.ids, part.classes, root=str(root), notes=told, reading=reading)
