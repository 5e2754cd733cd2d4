"""`folder:PATH`: image files whose folders say classes and splits."""

import os
from pathlib import Path

from simclr_jax.data.decode import EXTENSIONS
from simclr_jax.data.holdout import held_out
from simclr_jax.data.labels import NO_LABEL
from simclr_jax.data.sources import Splits, from_files
from simclr_jax.errors import SimclrError

UNLABELLED = ("unlabelled", "unlabeled")  # subfolder of images without a label, beside those of classes
TEST_NAMES = ("test", "val", "validation", "valid")  # of a folder's test split, first found


def _images_below(folder: Path) -> list[str]:
    found = []
    for where, folders, files in os.walk(folder, followlinks=True):
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        found += [
            os.path.join(where, file)
            for file in files
            if file.lower().endswith(EXTENSIONS) and not file.startswith(".")
        ]
    return sorted(found)


def _scan(root: Path, known: tuple[str, ...] = ()) -> tuple[list[str], list[int] | None, tuple[str, ...]]:
    """(paths, labels, classes) of a folder: its subfolders of images are classes, unless it has images too.

    A single subfolder tells no classes apart, but in a test split it can be one of the `known` ones. What is
    in a subfolder `unlabelled` has no label.
    """
    inside = sorted(p for p in root.iterdir() if not p.name.startswith("."))
    by_class = {p.name: _images_below(p) for p in inside if p.is_dir()}
    by_class = {name: paths for name, paths in by_class.items() if paths}
    loose = any(p.is_file() and p.suffix.lower() in EXTENSIONS for p in inside)
    names = tuple(name for name in by_class if name not in UNLABELLED)
    if known and by_class and not loose and set(names) <= set(known):
        classes = known
    elif loose or len(names) < 2:
        return _images_below(root), None, ()
    else:
        classes = names
    number = dict.fromkeys(UNLABELLED, NO_LABEL) | {name: i for i, name in enumerate(classes)}
    paths = [path for files in by_class.values() for path in files]
    labels = [number[name] for name, files in by_class.items() for _ in files]
    return paths, labels, classes


def load(root: Path, train_split: str, test_split: str, holdout: float) -> Splits:
    """The splits and classes that the subfolders of `root` say."""
    if not root.is_dir():
        raise SimclrError(f"folder:{root}: no such folder")

    def source(folder, paths, labels, classes):
        if not paths:
            raise SimclrError(f"folder:{folder}: no image ({', '.join(EXTENSIONS)}) in it")
        names = [os.path.relpath(path, root) for path in paths]
        return from_files(names, labels, classes, root=str(root))

    train_folder, tests = root, []
    if (root / train_split).is_dir():
        train_folder = root / train_split
        tests = [root / name for name in (test_split, *TEST_NAMES) if name and (root / name).is_dir()]
    paths, labels, classes = _scan(train_folder)
    if tests:
        train = source(train_folder, paths, labels, classes)
        return Splits(train, source(tests[0], *_scan(tests[0], classes)))
    if not classes:  # nothing to score: train on all
        return Splits(source(train_folder, paths, labels, classes), None)

    def part(index):
        return source(root, [paths[i] for i in index], [labels[i] for i in index], classes)

    train, test = held_out(len(paths), holdout)
    return Splits(part(train), part(test) if len(test) else None)
