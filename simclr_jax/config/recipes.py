"""Recipes by name: `--config=imagenet` is the file imagenet.py that ships with the package."""

import difflib
import re
from pathlib import Path

from simclr_jax.errors import SimclrError

PACKAGE = Path(__file__).parent.parent
NAME = re.compile(r"\w[\w-]*")  # no dot and no slash: names with one are paths


def folder() -> Path:
    """The folder of the recipes: inside an installed package, or next to the package in a checkout."""
    installed = PACKAGE / "configs"
    return installed if installed.is_dir() else PACKAGE.parent / "configs"


def names() -> list[str]:
    """The names of all recipes."""
    return sorted(path.stem for path in folder().glob("*.py") if NAME.fullmatch(path.stem))


def find(given: str) -> str:
    """The config file that the value of `--config` names.

    Args:
      given: the name of a recipe or the path of a file; `NAME:ARGUMENT` and `FILE.py:ARGUMENT` hand the
        argument to the file's `get_config`.

    Returns:
      The recipe's file, with the argument; a path as it is.

    Raises:
      SimclrError: there is no recipe of that name, or no such file but a recipe of its name.
    """
    name, colon, argument = given.partition(":")
    if argument.startswith(("/", "\\")) or Path(name).is_file():  # gs://, C:\, a file
        return given
    if not NAME.fullmatch(name):
        path = Path(name)
        if path.suffix == ".py" and path.stem in names() and not path.exists():
            raise SimclrError(
                f"--config={given}: no such file; the recipe is --config={path.stem}{colon}{argument}"
            )
        return given
    if name in names():
        return f"{folder() / name}.py{colon}{argument}"
    near = difflib.get_close_matches(name, names(), n=3)
    hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(names())}"
    raise SimclrError(f"--config={given}: no recipe has this name; {hint}")


def find_in(argv: list[str]) -> list[str]:
    """A command line in which `--config=NAME` and `--config NAME` name the recipe's file."""
    found = list(argv)
    for i, word in enumerate(argv):
        option, equals, value = word.partition("=")
        if option not in ("-config", "--config"):
            continue
        if equals:
            found[i] = f"{option}={find(value)}"
        elif i + 1 < len(argv):
            found[i + 1] = find(argv[i + 1])
    return found
