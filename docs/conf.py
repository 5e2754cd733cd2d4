"""The site of the documentation: `make docs` builds it into build/site, without a network.

Pages are the Markdown files of this folder, as they are read beside the code. The reference is made of the
docstrings: one page for each room of the package, written to docs/api/ when the site is built.
"""

import importlib
import os
import re
import sys
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent
sys.path.insert(0, str(ROOT))
# Cells of notebooks run in processes of their own, which import this package too.
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from simclr_jax.version import __version__ as release  # noqa: E402

project = "simclr_jax"
author = "the authors of simclr_jax"
html_title = f"{project} {release}"
html_theme = "furo"
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]

myst_heading_anchors = 3  # pages link to headings by their names
smartquotes = False  # -- begins an option
default_role = "code"  # `single backticks` in docstrings

nb_execution_mode = "force"  # a cache would not see that the package has changed
nb_execution_in_temp = True
nb_execution_timeout = 300  # seconds a cell; it takes 20, but other work may go on beside it
nb_execution_raise_on_error = True
nb_merge_streams = True

autodoc_default_options = {"members": True, "member-order": "bysource"}
# Extras.
autodoc_mock_imports = ["torch", "fastapi", "starlette", "pydantic", "uvicorn", "onnx", "onnxruntime"]
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False
nitpicky = True
# Other projects' pages are not asked, as that needs a network: only our own names must lead somewhere.
nitpick_ignore_regex = [("py:.*", r"(?!simclr_jax\b).*")]

PLACES = {"../README.md": "index.md"}  # files beside this folder that are pages of the site
API = HERE / "api"


def rooms() -> dict[str, list[str]]:
    """{room: names of its modules}, by name: the packages and modules directly in simclr_jax."""
    found: dict[str, list[str]] = {}
    for path in sorted((ROOT / "simclr_jax").rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        name = ".".join(part for part in parts if part != "__init__")
        if len(parts) > 2 or parts[-1] != "__init__":
            found.setdefault(parts[1], []).append(name)
    return found


def write_api() -> None:
    """Writes docs/api/: a page a room. A page that is the same stays, so that it is not read again."""
    API.mkdir(exist_ok=True)
    pages = {}
    for room, modules in rooms().items():
        lines = [f"{room}\n{'=' * len(room)}\n"]
        for module in modules:
            if len(modules) > 1:
                lines.append(f"{module}\n{'-' * len(module)}\n")
            lines.append(f".. automodule:: {module}\n")
        pages[f"{room}.rst"] = "\n".join(lines)
    for path in API.iterdir():
        if path.name not in pages:
            path.unlink()
    for name, text in pages.items():
        if not (API / name).exists() or (API / name).read_text() != text:
            (API / name).write_text(text)


def links_stay_in_the_site(app, docname: str, source: list[str]) -> None:
    """Links to files that are pages of the site under another name lead to those."""
    del app, docname
    for outside, page in PLACES.items():
        source[0] = re.sub(rf"\]\({re.escape(outside)}([#)])", rf"]({page}\1", source[0])


def indented_is_code(app, what, name, obj, options, lines: list[str]) -> None:
    """Indented text below a blank line is code, as in Markdown: two colons before it say so."""
    del app, what, name, obj, options
    made: list[str] = []
    for line, after in zip(lines, [*lines[1:], ""], strict=False):
        above = next((text for text in reversed(made) if text.strip()), "")
        begins = not line.strip() and bool(above) and _indent(after) > _indent(above)
        if begins and not above.endswith("::") and not _HEADING.match(above.strip()):
            made += ["", " " * _indent(above) + "::"]
        made.append(line)
    lines[:] = made


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())


_HEADING = re.compile(r"(Args|Returns|Raises|Yields|Attributes|Note|Example)s?:$")


def no_aliases(app, what, name, obj, skip, options):
    """Leaves out the fields of named tuples, whose docstrings say nothing."""
    del app, what, name, options
    return True if (getattr(obj, "__doc__", None) or "").startswith("Alias for field number") else skip


def setup(app):
    """Called by Sphinx."""
    importlib.import_module("simclr_jax.main")  # defines its flags before others ask for them
    write_api()
    app.connect("source-read", links_stay_in_the_site)
    app.connect("autodoc-process-docstring", indented_is_code, priority=400)
    app.connect("autodoc-skip-member", no_aliases)
