"""What setup.py asks for and makes: bounds that were tried, and a wheel that is whole by itself."""

import ast
import os
import re
import shutil
import signal
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from conftest import QUICK
from packaging.requirements import Requirement
from packaging.version import Version
from safetensors.numpy import load_file
from test_convert_torch import save, small_state

from simclr_jax import cli, main
from simclr_jax.config import recipes
from simclr_jax.errors import SimclrError
from simclr_jax.version import __version__

ROOT = Path(__file__).parent.parent
RECIPES = sorted(path.stem for path in (ROOT / "configs").glob("*.py"))


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
    named = {node.targets[0].id: node.value for node in tree.body if isinstance(node, ast.Assign)}
    items = [item for each in lists for item in each.elts]
    items += [one for item in items if isinstance(item, ast.Starred) for one in named[item.value.id].elts]
    texts = [ast.literal_eval(item.values[0] if isinstance(item, ast.JoinedStr) else item)
             for item in items if not isinstance(item, ast.Starred)]  # fmt: skip
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


# ---- the wheel ------------------------------------------------------------------------------------


class Installed(NamedTuple):
    """The built wheel, installed in a folder of its own."""

    wheel: Path
    folder: Path
    hook: Path


# Python imports this at its start. Modules that the wheel lacks would come from a checkout installed with -e.
HOOK = """
import importlib.machinery
import os
import sys

sys.meta_path[:] = [each for each in sys.meta_path if "__editable__" not in str(each.__module__)]
find, absent = importlib.machinery.PathFinder.find_spec, os.environ.get("ABSENT", "").split()


def hide(name, *rest, **named):
    return None if name.split(".")[0] in absent else find(name, *rest, **named)


importlib.machinery.PathFinder.find_spec = hide
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """Built from a copy, so that the checkout stays clean."""
    top = tmp_path_factory.mktemp("wheel")
    source, target, hook = top / "source", top / "installed", top / "hook"
    hook.mkdir()
    (hook / "sitecustomize.py").write_text(HOOK)
    for name in ("simclr_jax", "configs"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    options = ["--no-deps", "--no-build-isolation", f"--wheel-dir={top}", str(source)]
    subprocess.run([*pip, "wheel", *options], env=environment(), check=True)
    (wheel,) = top.glob("*.whl")
    subprocess.run(
        [*pip, "install", "--no-deps", f"--target={target}", str(wheel)], env=environment(), check=True
    )
    return Installed(wheel, target, hook)


def environment(*paths, absent=""):
    """The variables of a process that imports from `paths` first, and does not find what is `absent`."""
    changed = {"XLA_FLAGS": QUICK, "PYTHONPATH": os.pathsep.join(map(str, paths)), "ABSENT": absent}
    return {**os.environ, **changed}


def start(installed, *words, cwd, absent=""):
    """A process of the installed `simclr` with these words; `-c` and code are for Python itself."""
    program = [sys.executable] if words[:1] == ("-c",) else [str(installed.folder / "bin" / "simclr")]
    # Tests that run in the background are deaf to Ctrl-C, and so would be what they start.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return subprocess.Popen(
            [*program, *words], cwd=cwd, env=environment(installed.hook, installed.folder, absent=absent),
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
    finally:
        signal.signal(signal.SIGINT, before)


def run(installed, *words, cwd, absent=""):
    """(exit code, stdout, stderr) of the same."""
    process = start(installed, *words, cwd=cwd, absent=absent)
    out, err = process.communicate()
    return process.returncode, out, err


def test_the_wheel_holds_the_package_and_the_recipes_and_nothing_else(installed):
    expected = {f"simclr_jax/configs/{name}.py": ROOT / "configs" / f"{name}.py" for name in RECIPES}
    for path in (ROOT / "simclr_jax").rglob("*"):
        if path.is_file() and "__pycache__" not in path.parts:
            expected[str(path.relative_to(ROOT))] = path
    with zipfile.ZipFile(installed.wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        assert names == set(expected)
        assert all(archive.read(name) == path.read_bytes() for name, path in expected.items())


def test_every_extra_that_a_message_names_is_one_of_the_wheel(installed):
    with zipfile.ZipFile(installed.wheel) as archive:
        (name,) = (each for each in archive.namelist() if each.endswith(".dist-info/METADATA"))
        extras = set(re.findall(r"^Provides-Extra: (.+)$", archive.read(name).decode(), re.MULTILINE))
    code = "".join(path.read_text() for path in (ROOT / "simclr_jax").rglob("*.py"))
    named = set(re.findall(r"simclr_jax\[(\w+)\]", code))
    assert named
    assert named <= extras


def test_recipes_are_found_within_the_installed_package(installed, tmp_path):
    code = (
        "import importlib.util, simclr_jax\nfrom simclr_jax.config import recipes\n"
        "print(simclr_jax.__file__, importlib.util.find_spec('configs'), *map(recipes.find, recipes.names()))"
    )
    code, out, err = run(installed, "-c", code, cwd=tmp_path)
    assert code == 0, err
    package = installed.folder / "simclr_jax"
    files = [package / "configs" / f"{name}.py" for name in RECIPES]
    assert out.split() == [str(package / "__init__.py"), "None", *map(str, files)]


LOAD_AND_CONVERT = """
import numpy as np
import simclr_jax
from simclr_jax.convert import __main__ as command

command.main(["torch", "theirs.safetensors", "--out=converted"])
command.main(["to-torch", "converted", "--out=ours.safetensors"])
for workdir, channels in (("runs/quickstart", 1), ("converted", 3)):
    print(simclr_jax.load(workdir)(np.zeros((2, 12, 12, channels), np.uint8)).shape)
"""
TINY = (
    "--config=quickstart", "--config.train.steps=2", "--config.train.batch_size=16",
    "--config.data.image_size=12", "--config.model.width=0.25", "--config.eval.every.epochs=0",
    "--config.eval.final=False", "--config.eval.figures=False",
)  # fmt: skip


def test_training_loading_and_converting_need_neither_the_checkout_nor_tensorflow(installed, tmp_path):
    where = {"cwd": tmp_path, "absent": "tensorflow tensorflow_datasets"}
    code, _, err = run(installed, "-c", "import tensorflow", **where)
    assert code == 1
    assert "No module named 'tensorflow'" in err
    code, _, err = run(installed, "train", *TINY, **where)
    assert code == 0, err
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]
    assert list((tmp_path / "runs" / "quickstart").glob("events.out.tfevents.*"))
    save(tmp_path / "theirs.safetensors", small_state(classes=3))
    code, out, err = run(installed, "-c", LOAD_AND_CONVERT, **where)
    assert code == 0, err
    assert out.splitlines()[-2:] == ["(2, 128)", "(2, 64)"]
    theirs, ours = (load_file(tmp_path / f"{name}.safetensors") for name in ("theirs", "ours"))
    assert all(np.array_equal(ours[name], theirs[name]) for name in theirs if "num_batches" not in name)


@pytest.mark.slow
def test_a_sweep_runs_from_an_empty_folder(installed, tmp_path):
    (tmp_path / "space.py").write_text("POINTS = [{'seed': 1}]")
    code, out, err = run(
        installed, "sweep", "--space=space.py", *TINY, "--config.eval.final=True",
        "--config.eval.linear.iterations=2", "--config.eval.linear.draws=1", cwd=tmp_path,
    )  # fmt: skip
    assert code == 0, err
    assert "runs/sweeps/quickstart_space/trials.csv" in out


def test_a_signal_ends_the_command_as_it_ends_the_module(installed, tmp_path):
    process = start(installed, "train", *TINY, cwd=tmp_path)
    assert process.stdout.readline()  # at work
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.strip() == "error: interrupted; the same command goes on from the last checkpoint"


# ---- the command ----------------------------------------------------------------------------------


def test_help_of_the_command_needs_the_standard_library_alone(installed, tmp_path):
    code = (
        "import sys\nfrom simclr_jax import cli\nassert cli.main([]) == cli.main(['--help']) == 0\n"
        "sys.exit(bool({'absl', 'etils', 'jax', 'ml_collections', 'numpy'} & set(sys.modules)))"
    )
    code, out, err = run(installed, "-c", code, cwd=tmp_path)
    assert code == 0, err
    assert out.count("usage: simclr COMMAND") == 2
    assert [line.split()[0] for line in out.splitlines() if line.startswith("  ")] == 2 * list(cli.present())


HELP = {
    "train": "usage: simclr train --config=NAME",
    "evaluate": "usage: simclr evaluate",
    "embed": "usage: simclr embed",
    "search": "usage: simclr search",
    "serve": "usage: simclr serve",
    "generate": "usage: simclr generate",
    "restore": "usage: simclr restore",
    "publish": "usage: simclr publish",
    "models": "usage: simclr models",
    "convert": "usage: simclr convert",
    "sweep": "simclr sweep --config=NAME --space=FILE",
}


@pytest.mark.parametrize("word", HELP)
def test_help_of_each_command_imports_no_jax(installed, tmp_path, word):
    code = (
        f"import sys\nfrom simclr_jax import cli\ntry:\n    cli.main(['{word}', '--help'])\n"
        "except SystemExit as end:\n    sys.exit(end.code or 3 * ('jax' in sys.modules))"
    )
    code, out, err = run(installed, "-c", code, cwd=tmp_path)
    assert code == 0, err
    assert HELP[word] in out


WORDS = {
    ("--version",): (0, f"simclr_jax {__version__}"),
    ("trian",): (2, "error: simclr trian: no such command; did you mean simclr train?"),
    ("xyz",): (2, f"error: simclr xyz: no such command; there are {', '.join(cli.present())}"),
    ("train",): (2, "error: --config is missing: for example --config=quickstart"),
    ("evaluate",): (2, "error: --workdir is missing: for example --workdir=runs/quickstart"),
    ("sweep", "--config=quickstart"): (
        2,
        "error: --space is missing: a Python file with suggest(trial), GRID or POINTS",
    ),
    ("train", "--config=imagnet"): (
        2,
        "error: --config=imagnet: no recipe has this name; did you mean imagenet?",
    ),
}


@pytest.mark.parametrize("words", WORDS, ids=" ".join)
def test_words_and_exit_codes(installed, tmp_path, words):
    code, out, err = run(installed, *words, cwd=tmp_path)
    assert (code, (out + err).strip()) == WORDS[words]


# ---- recipes by name ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RECIPES)
def test_a_name_is_the_checkouts_recipe(name):
    assert recipes.find(name) == str(ROOT / "configs" / f"{name}.py")
    assert recipes.find(f"{name}:a/b") == str(ROOT / "configs" / f"{name}.py") + ":a/b"
    assert main.default_workdir(recipes.find(name)) == f"runs/{name}"


@pytest.mark.parametrize(
    "path",
    ["configs/imagenet.py", "configs/imagenet.py:10", "./mine.py", "gs://bucket/imagenet.py", "~/imagenet"],
)
def test_a_path_stays_as_it_is(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert recipes.find(path) == path


def test_a_file_of_a_recipes_name_is_meant_where_it_exists(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "imagenet").write_text("")
    assert recipes.find("imagenet") == "imagenet"


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ("quick-start", r"--config=quick-start: no recipe has this name; did you mean quickstart\?"),
        ("xyz", "no recipe has this name; there are ablation, can, cifar10, "),
        ("configs/cifar10.py", "--config=configs/cifar10.py: no such file; the recipe is --config=cifar10"),
    ],
)
def test_another_name_is_told_the_nearest(given, line, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SimclrError, match=line):
        recipes.find(given)


def test_both_forms_of_the_option_take_a_name():
    file = str(ROOT / "configs" / "mnist.py")
    words = ["main", "--config=mnist", "-config", "mnist", "--config.seed=1", "--workdir=mnist", "--config"]
    assert recipes.find_in(words) == [
        "main", f"--config={file}", "-config", file, "--config.seed=1", "--workdir=mnist", "--config",
    ]  # fmt: skip


def test_a_mistake_in_a_recipe_is_one_line_and_its_place(installed, tmp_path):
    (tmp_path / "mine.py").write_text("def get_config():\n    return int('x')\n")
    code, _, err = run(installed, "train", "--config=mine.py", cwd=tmp_path)
    assert code == 2
    assert err.strip().endswith("invalid literal for int() with base 10: 'x' (mine.py, line 2)")
    assert err.count("\n") == 1


def test_what_is_not_installed_is_one_line(monkeypatch, capsys):
    def absent(*_, **__):
        raise ModuleNotFoundError("No module named 'absl'", name="absl")

    monkeypatch.setattr(cli.runpy, "run_module", absent)
    assert cli.main(["embed"]) == cli.FAILED
    assert capsys.readouterr().err.startswith(
        "error: simclr embed: absl is not installed; an environment for"
    )
