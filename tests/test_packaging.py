"""What setup.py asks for: bounds that were tried, and a lock file of versions that fit them."""

import ast
import re
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parent.parent


def key(name):
    """A package's name as registries compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def asked():
    """{name: requirement} of setup.py: to install the package, and to test it."""
    tree = ast.parse((ROOT / "setup.py").read_text())
    lists = [node.value for node in ast.walk(tree) if getattr(node, "arg", "") == "install_requires"]
    for node in ast.walk(tree):
        if isinstance(node, ast.Dict):
            lists += [
                v for k, v in zip(node.keys, node.values, strict=True) if getattr(k, "value", "") == "test"
            ]
    assert len(lists) == 2
    texts = [ast.literal_eval(item.values[0] if isinstance(item, ast.JoinedStr) else item)
             for each in lists for item in each.elts]  # fmt: skip
    requirements = [Requirement(text.partition(";")[0]) for text in texts]
    return {key(requirement.name): requirement for requirement in requirements}


def pinned(name):
    """{name: version} of a file of constraints."""
    lines = [line for line in (ROOT / name).read_text().splitlines() if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==[\w.+]+", line) for line in lines), "versions alone, nothing local"
    return {key(line.partition("==")[0]): Version(line.partition("==")[2]) for line in lines}


def bound(requirement):
    """The lowest version that a requirement allows."""
    (lowest,) = (each.version for each in requirement.specifier if each.operator in (">=", "=="))
    return Version(lowest)


ASKED = {
    name: each for name, each in asked().items() if name != "tensorflow"
}  # other systems' tensorflow-cpu


def test_every_bound_was_tried():
    assert {name: bound(each) for name, each in ASKED.items()} == pinned("tools/lower_bounds.txt")


def test_tensorflow_has_one_bound_on_every_system():
    assert bound(asked()["tensorflow"]) == bound(asked()["tensorflow-cpu"])


@pytest.mark.parametrize("name", ASKED)
def test_the_lock_file_fits(name):
    assert pinned("tools/requirements.lock")[name] in ASKED[name].specifier
