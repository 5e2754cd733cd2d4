"""What a published folder does not tell: paths, users and machines."""

import contextlib
import getpass
import pathlib
import re
import socket
from typing import Any

from ml_collections import ConfigDict

from simclr_jax.config import PERSONAL, default, flatten, set_field

KEPT = ("classes", "columns")  # of data: what the encoder takes and gives, though a class be called n/a
PATH = re.compile(r"[~/\\.]|\w:[/\\]|\w+://")  # how a text begins that is one
PUBLIC = ("builtin", "hf", "tfds")  # kinds of sources with public names


def reduced(config: ConfigDict, data: dict[str, Any]) -> tuple[ConfigDict, dict[str, Any]]:
    """Config and `data` of a run without what tells about a person or machine.

    Folders of the run's machine are left out; of the path of a source its last part stays
    (folder:/home/ann/birds becomes folder:birds). Nothing that the encoder depends on changes.
    """
    config = config.copy_and_resolve_references()
    today = flatten(default())
    for field, value in flatten(config).items():
        if field in PERSONAL:
            set_field(config, field, today[field])
        elif isinstance(value, str):
            set_field(config, field, without_path(value))
    kept = {name: data[name] for name in KEPT if name in data}
    if isinstance(origin := data.get("converted_from"), str):
        kept["converted_from"] = _last(origin)
    return config, {**_each(data), **kept}


def _each(value: Any) -> Any:
    if isinstance(value, str):
        return without_path(value)
    if isinstance(value, dict):
        return {name: _each(one) for name, one in value.items()}
    return [_each(one) for one in value] if isinstance(value, list | tuple) else value


def without_path(text: str) -> str:
    """A path's last part, "" where that is the user's or the machine's name; KIND:PATH keeps its kind."""
    kind, colon, where = text.partition(":")
    if PATH.match(text):
        return _last(text)
    named = kind in PUBLIC and not PATH.match(where)
    if not colon or named or not re.search(r"[/\\]|^~", where):
        return text
    return f"{kind}:{_last(where)}"


def _last(path: str) -> str:
    last = re.split(r"[/\\]", path.rstrip("/\\"))[-1]
    return "" if last.startswith("~") or last in _own_names() else last


def of_title(title: str) -> str:
    """The title of a score, which may name a source: "folder:/home/ann/birds, L-BFGS"."""
    return re.sub(r"\w+:[^,]*", _source, title)


def _source(found: re.Match[str]) -> str:
    return without_path(found[0])


def _own_names() -> set[str]:
    names = {pathlib.Path.home().name, socket.gethostname()}
    with contextlib.suppress(OSError, KeyError):  # a user without a name
        names.add(getpass.getuser())
    return names
