"""Lists the files below a folder as images and others; visits each real folder once."""

import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from simclr_jax import paths
from simclr_jax.data.formats import EXTENSIONS
from simclr_jax.errors import SimclrError
from simclr_jax.text import printable

SHOWN = 5  # names or suffixes in a note


class Found(NamedTuple):
    """The files below a folder. Images and other files are grouped by their subfolder."""

    images: dict[str, list[str]]  # {subfolder, "" for none: names relative to the set's root}
    others: dict[str, Counter[str]]  # {subfolder, "" for none: {suffix: files that are not read}}
    folders: list[str]  # subfolders, with images or without
    hidden: int  # files and folders that begin with a dot
    broken: int  # links to nowhere, sockets, pipes
    again: list[str]  # folders that were reached before
    closed: list[str]  # folders that may not be read

    def notes(self, where: str) -> tuple[str, ...]:
        """What was not read, in a line for each reason."""
        kinds = sum(self.others.values(), Counter())
        most = _most(kinds, SHOWN)
        counts = [f"{count:,} {kind}" for kind, count in most]
        if more := kinds.total() - sum(count for _, count in most):
            counts.append(f"{more:,} of other kinds")
        counts += [f"{self.hidden:,} hidden"] * bool(self.hidden)
        counts += [f"{self.broken:,} links to nowhere or no files"] * bool(self.broken)
        empty = [_shown(name, self.others.get(name)) for name in self.folders if not self.images.get(name)]
        lines = [f"not read: {', '.join(counts)}; {' '.join(EXTENSIONS)} are"] * bool(counts)
        lines += [f"folders without an image that is read: {_few(empty)}"] * bool(empty)
        if self.again:
            lines.append(
                f"{len(self.again):,} folders were reached before and are read once: {_few(self.again)}"
            )
        if self.closed:
            lines.append(f"{len(self.closed):,} folders may not be read by you: {_few(self.closed)}")
        return tuple(f"{where}: {line}" for line in lines)


def _most(kinds: Counter[str], most: int) -> list[tuple[str, int]]:
    """The commonest kinds; of equally many the first by name."""
    return sorted(kinds.items(), key=lambda one: (-one[1], one[0]))[:most]


def _shown(name: str, others: Counter[str] | None) -> str:
    return name + (f" ({', '.join(f'{n:,} {kind}' for kind, n in _most(others, 2))})" if others else "")


def _few(names: list[str]) -> str:
    return ", ".join(map(printable, names[:SHOWN])) + (", ..." if len(names) > SHOWN else "")


def scan(root: Path, prefix: str = "", elsewhere: Iterable[Path] = ()) -> Found:
    """Looks once at everything below `root`.

    Links to folders are followed after all real folders, so that a folder keeps its own name. The scan does
    not enter folders above `root` or `elsewhere`, nor any folder twice.

    Args:
      prefix: put before the names of images: the path from the set's root to `root`, "" or ending in a slash.
      elsewhere: folders that belong to another split.
    """
    images: dict[str, list[str]] = {}
    others: dict[str, Counter[str]] = {}
    folders, again, closed, hidden, broken = [], [], [], 0, 0
    real = Path(os.path.realpath(root))
    seen = {_key(folder) for folder in (*real.parents, *elsewhere)} - {None, _key(root)}
    waiting, links = [""], []
    while waiting or links:
        if not waiting:
            links.sort(reverse=True)
            waiting.append(links.pop())
        inside = waiting.pop()
        path = os.path.join(root, inside)
        key = _key(path)
        if key in seen:
            again.append(inside)
            continue
        seen.add(key)
        try:
            entries = os.scandir(path)
        except OSError:
            closed.append(inside)
            continue
        top = inside.partition("/")[0]
        start = f"{inside}/" if inside else ""
        with entries:
            for entry in entries:
                name, kind = entry.name, _kind(entry)
                if name.startswith("."):
                    hidden += 1
                elif kind == "file":
                    if name.lower().endswith(EXTENSIONS):
                        images.setdefault(top, []).append(prefix + start + name)
                    else:
                        others.setdefault(top, Counter())[_suffix(name)] += 1
                elif kind == "":
                    broken += 1
                else:
                    (links if kind == "link" else waiting).append(start + name)
                    if not inside:
                        folders.append(name)
    for names in images.values():
        names.sort()
    return Found(images, others, sorted(folders), hidden, broken, again, closed)


def find(where: str, option: str = "--images") -> tuple[Path, list[str]]:
    """(folder, names below it in order) of the image files that an option names: a folder, or one file.

    Raises:
      SimclrError: there are none.
    """
    path = Path(paths.local(where, option))
    if path.is_file():
        return path.parent, [path.name]
    if not path.is_dir():
        raise SimclrError(f"{option}={where}: no such folder or file")
    names = sorted(name for names in scan(path).images.values() for name in names)
    if not names:
        raise SimclrError(f"{option}={where}: no image file there ({', '.join(EXTENSIONS)})")
    return path, names


def _kind(entry: os.DirEntry[str]) -> str:
    """Returns file, folder, link (to a folder), or "" for anything else; calls stat only on links."""
    if entry.is_dir(follow_symlinks=False):
        return "folder"
    try:
        return "file" if entry.is_file() else "link" if entry.is_dir() else ""
    except OSError:  # a link that leads round
        return ""


def _key(folder: str | Path) -> tuple[int, int] | None:
    """The same for two ways to one folder; None if there is none."""
    try:
        stat = os.stat(folder)
    except OSError:
        return None
    return stat.st_dev, stat.st_ino


def _suffix(name: str) -> str:
    suffix = os.path.splitext(name)[1].lower()
    return printable(suffix, 12) if suffix else "without a suffix"
