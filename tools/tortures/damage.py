"""Ways to damage a file."""

import random
import shutil
from collections.abc import Callable
from pathlib import Path


def truncate(path: Path, rng: random.Random) -> None:
    """Cuts the file anywhere."""
    with path.open("r+b") as file:
        file.truncate(rng.randrange(max(1, path.stat().st_size)))


def empty(path: Path, rng: random.Random) -> None:
    """Leaves the name alone."""
    path.write_bytes(b"")


def delete(path: Path, rng: random.Random) -> None:
    """Removes it."""
    path.unlink()


def flip(path: Path, rng: random.Random) -> None:
    """Flips one bit."""
    content = bytearray(path.read_bytes())
    if content:
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(content)


def grow(path: Path, rng: random.Random) -> None:
    """Adds bytes at the end."""
    with path.open("ab") as file:
        file.write(rng.randbytes(rng.randint(1, 4096)))


def overwrite(path: Path, rng: random.Random) -> None:
    """Puts random bytes over some of it: a bad sector."""
    content = bytearray(path.read_bytes())
    at = rng.randrange(max(1, len(content)))
    content[at : at + 512] = rng.randbytes(len(content[at : at + 512]))
    path.write_bytes(content)


def folder(path: Path, rng: random.Random) -> None:
    """Puts an empty folder in its place."""
    path.unlink()
    path.mkdir()


WAYS: dict[str, Callable[[Path, random.Random], None]] = {
    "truncated": truncate, "emptied": empty, "deleted": delete, "one bit flipped": flip,
    "grown": grow, "overwritten": overwrite, "replaced by a folder": folder,
}  # fmt: skip


def copy(source: Path, target: Path) -> None:
    """Makes `target` what `source` is, whatever it was."""
    if target.is_dir() and not target.is_symlink():
        shutil.rmtree(target)
    else:
        target.unlink(missing_ok=True)
    if source.is_dir():
        shutil.copytree(source, target)
    else:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
