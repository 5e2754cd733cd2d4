"""Files that survive a kill at any moment."""

import json
from typing import Any

from etils import epath


def write(path: epath.Path, text: str) -> None:
    """Replaces a file as a whole: a kill leaves the old or the new one, never half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    half = path.with_name(path.name + ".tmp")
    half.write_text(text)
    half.replace(path)


def read_json(path: epath.Path) -> dict[str, Any]:
    """A file's content, {} where there is none or it is damaged."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
