"""Files that survive a kill at any moment."""

import itertools
import json
from typing import Any

from etils import epath


def write(path: epath.Path, text: str) -> None:
    """Replaces a file as a whole: a kill leaves the old or the new one, never half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    half = path.with_name(path.name + ".tmp")
    half.write_text(text)
    half.replace(path)


def set_aside(path: epath.Path, workdir: epath.Path) -> epath.Path:
    """Moves something damaged into `workdir/damaged`, under a name that is free there; nothing is deleted."""
    folder = workdir / "damaged"
    folder.mkdir(parents=True, exist_ok=True)
    names = (f"{path.name}.{number}" if number else path.name for number in itertools.count())
    place = next(folder / name for name in names if not (folder / name).exists())
    path.rename(place)
    return place


def read_text(path: epath.Path) -> str:
    """A file's text; bytes that are no UTF-8 become replacement characters instead of an exception."""
    return path.read_bytes().decode(errors="replace")


def read_json(path: epath.Path) -> dict[str, Any]:
    """The object in a file, {} where there is none or it is damaged."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}
