"""Every command and snippet of Python in README.md and docs/ is run, or says what it needs that is not here.

The first words of a command lead to its rule. Each page is run in a folder of its own, in order. A rule adds
options that make a command tiny; GIVEN has the images, runs and weights that pages take for granted. Where a
block needs hardware or data, a line above it says so: `<!-- needs: a TPU slice -->`. It is read all the same:
the files, fields and modules that it names must exist.
"""

import ast
import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType, SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver
from conftest import tiny_arrays, tiny_config, untrained_run
from ml_collections import ConfigDict
from PIL import Image

from simclr_jax import main, registry
from simclr_jax.compress import __main__ as compression
from simclr_jax.config import check_field, checks, default, flatten, set_field
from simclr_jax.convert import __main__ as convert
from simclr_jax.convert import google_tf, torch
from simclr_jax.doctor import pitfalls
from simclr_jax.embed import __main__ as embedding
from simclr_jax.embed import search as searching
from simclr_jax.errors import SimclrError
from simclr_jax.evaluate import __main__ as evaluation
from simclr_jax.export import __main__ as exporting
from simclr_jax.generate import __main__ as generation
from simclr_jax.generate import run as generating
from simclr_jax.index import curate, dedup
from simclr_jax.measures import density
from simclr_jax.publish import __main__ as publishing
from simclr_jax.restore import __main__ as restoration

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SHELL = ("sh", "bash", "shell", "console")
# First words of blocks without a language that are commands; other such blocks show what commands print.
PROGRAMS = (
    *(
        "cd",
        "conda",
        "docker",
        "export",
        "for",
        "gcloud",
        "git",
        "gsutil",
        "kubectl",
        "make",
        "pip",
        "pre-commit",
    ),
    *("pyright", "pytest", "python", "python3", "ruff", "sbatch", "sed", "simclr", "srun", "ssh", "uv"),
)
HOW = "add a Rule to COMMANDS in tests/test_doc_commands.py, or put <!-- needs: ... --> above the block"


# ---- what the pages hold -------------------------------------------------------------------------------


class Block(NamedTuple):
    """Indented or fenced text of a page."""

    page: Path
    line: int
    language: str  # of the fence
    text: str
    needs: str  # of the comment above it, "" for none

    def kind(self) -> str:
        """shell, python, or text: what is shown and not run."""
        if self.language in SHELL or self.language == "python":
            return "python" if self.language == "python" else "shell"
        if self.language:
            return "text"
        word = self.text.split()[0]
        if word in PROGRAMS or word.startswith("tools/") or re.match(r"[A-Z_]+=\S* ", self.text):
            return "shell"
        return "python" if re.match(r"(def|class|import|from) \w|@\w", self.text) else "text"


class Part(NamedTuple):
    """A command or a snippet."""

    block: Block
    text: str

    def __str__(self) -> str:
        return f"{self.block.page.relative_to(ROOT)}:{self.block.line}: {self.text}"


def blocks(page: Path) -> list[Block]:
    """The code blocks of a page, in order."""
    found, lines, needs, at = [], page.read_text().splitlines(), "", 0
    while at < len(lines):
        line, start = lines[at], at
        if fence := re.match(r"```(\S*)", line):
            at = lines.index("```", at + 1)
            language, body = fence[1], lines[start + 1 : at]
        elif line.startswith("    ") and (not at or not lines[at - 1].strip()):
            while at + 1 < len(lines) and (lines[at + 1].startswith("    ") or not lines[at + 1].strip()):
                at += 1
            language, body = "", [each[4:] for each in lines[start : at + 1]]
        else:
            comment = re.fullmatch(r"<!-- needs: (.+) -->", line)
            needs = comment[1] if comment else needs if not line.strip() else ""
            at += 1
            continue
        found.append(Block(page, start + 1, language, "\n".join(body).strip("\n"), needs))
        needs, at = "", at + 1
    return found


def commands(text: str) -> list[str]:
    """The commands of a block of shell: lines put together, without comments and the frames of loops."""
    lines = (re.sub(r"\s+#\s.*", "", line).strip() for line in text.replace("\\\n", " ").splitlines())
    return [
        re.sub(r"\s+", " ", line) for line in lines if line and not re.match(r"(for .*; do|done)$|#", line)
    ]


def parts(page: Path) -> list[Part]:
    """All commands and snippets of a page, in order."""
    found = []
    for block in blocks(page):
        if block.kind() == "shell":
            found += [Part(block, command) for command in commands(block.text)]
        elif block.kind() == "python":
            found.append(Part(block, block.text))
    return found


# ---- what a page takes for granted ---------------------------------------------------------------------


def quickstart_config() -> ConfigDict:
    """That of configs/quickstart.py, with a smaller network."""
    namespace: dict[str, Any] = {}
    exec((ROOT / "configs" / "quickstart.py").read_text(), namespace)
    c = namespace["get_config"]()
    c.model.width, c.mesh.devices, c.compile_cache = 0.25, 1, ""
    return c


def images(path: Path) -> None:
    """A folder of two classes."""
    pixels, labels = tiny_arrays(n=32, classes=2, size=20, channels=3)
    for i, (image, label) in enumerate(zip(pixels, labels, strict=True)):
        file = path / f"class{label}" / f"{i}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(file)


def photos(path: Path) -> None:
    """A folder of photos without classes, in train/ and test/."""
    images(path)
    for before, after in (("class0", "train"), ("class1", "test")):
        (path / before).rename(path / after)


def picture(path: Path) -> None:
    """A photo of another size."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(tiny_arrays(n=1, size=30, channels=3)[0][0]).save(path)


def arrays(path: Path) -> None:
    """An .npz file of gray images, with labels and a test split."""
    train, test = tiny_arrays(size=28), tiny_arrays(n=40, size=28, seed=7)
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, x_train=train[0], y_train=train[1], x_test=test[0], y_test=test[1])


def quickstart(path: Path) -> None:
    """A run of the quickstart that has learned nothing."""
    untrained_run(path, quickstart_config(), classes=10)


def evaluated(path: Path) -> None:
    """A run with a report: that of the quickstart, which the page evaluates first."""
    shutil.copytree(path.with_name("quickstart"), path)


def resnet(path: Path) -> None:
    """A run of a ResNet that has learned nothing."""
    fields = {"model__encoder": "resnet", "model__depth": 18, "model__stem": "cifar", "data__channels": 3}
    untrained_run(path, tiny_config(**fields, model__projection_dim=16, data__image_size=32))


def google_checkpoint(path: Path) -> None:
    """A checkpoint as google-research/simclr writes it."""
    resnet(path.with_name("google"))
    google_tf.export(path.with_name("google"), path)


def table_rows(path: Path) -> None:
    """A table with a column of classes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [f"{i},{i % 7},{'ab'[i % 2]}" for i in range(60)]
    path.write_text("\n".join(["length,width,species", *rows]) + "\n")


def torch_weights(path: Path) -> None:
    """Weights of torchvision's layout."""
    resnet(path.with_name("torchvision"))
    torch.export(path.with_name("torchvision"), path)


def space(path: Path) -> None:
    """What docs/train.md shows of space.py."""
    snippets = [each.text for each in parts(ROOT / "docs" / "train.md") if "def suggest" in each.text]
    path.write_text(snippets[0])


GIVEN: dict[str, Callable[[Path], None]] = {
    "my/images": images,
    "my/photos": photos,
    "my/query.jpg": picture,
    "data/birds.npz": arrays,
    "fashion10k.npz": arrays,
    "runs/quickstart": quickstart,
    "my/rows.csv": table_rows,
    "runs/a": evaluated,
    "runs/b": evaluated,
    "runs/imagenet": resnet,
    "CHECKPOINT": google_checkpoint,
    "resnet50.safetensors": torch_weights,
    "space.py": space,
}


# ---- how commands are run ------------------------------------------------------------------------------


def run_main(words: list[str]) -> None:
    """`python -m simclr_jax.main`, in this process: flags are global, and set back afterwards."""
    argv = ["main", *words[3:]]
    with flagsaver.flagsaver(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", argv)
        main.parse(argv)
        main.main(argv)
    flags.FLAGS.unparse_flags()


def run_doctor(words: list[str]) -> None:
    """`python -m simclr_jax.doctor`, on images that are here; a warning is no failure."""
    done = subprocess.run(
        [sys.executable, *words[1:]], capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode in (0, 1), done.stdout[-2000:] + done.stderr[-2000:]


def run_evaluate(words: list[str]) -> None:
    """`python -m simclr_jax.evaluate`."""
    evaluation.main(words[3:])


def run_generate(words: list[str]) -> None:
    """`python -m simclr_jax.generate`, of fewer images."""
    few = {"FIT": 200, "HELD": 40, "RAW_EXAMPLES": 400}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in few.items():
            patch.setattr(generating, name, value)
        patch.setattr(density, "COMPONENTS", (1,))
        patch.setattr(density, "PATIENCE", 1)
        generation.main(words[3:])


def run_restore(words: list[str]) -> None:
    """`python -m simclr_jax.restore`; the baselines' libraries need not be installed."""
    restoration.main(words[3:])


def run_compress(words: list[str]) -> None:
    """`simclr compress`."""
    compression.main(words[2:])


def run_compare(words: list[str]) -> None:
    """`simclr compress --compare`, of artefacts that the page's other commands make."""
    for name in [word for word in words if word.endswith(".onnx") and not Path(word).exists()]:
        exporting.main(["--workdir=runs/quickstart", f"--out={name}"])
    compression.main(words[2:])


def run_embed(words: list[str]) -> None:
    """`simclr embed`."""
    embedding.main(words[2:])


def run_index(words: list[str]) -> None:
    """`simclr search`, `simclr dedup`, `simclr curate`."""
    {"search": searching.main, "dedup": dedup.main, "curate": curate.main}[words[1]](words[2:])


def run_export(words: list[str]) -> None:
    """`python -m simclr_jax.export`."""
    exporting.main(words[3:])


def run_convert(words: list[str]) -> None:
    """`python -m simclr_jax.convert`."""
    convert.main(words[3:])


def run_publish(words: list[str]) -> None:
    """`simclr publish`; tests/test_publish.py writes the ONNX file."""
    publishing.main(words[2:])


def run_process(words: list[str]) -> None:
    """In a process of its own."""
    words = [sys.executable if word == "python" else word for word in words]
    env = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    done = subprocess.run(words, capture_output=True, text=True, check=False, env=env)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]


def run_make(words: list[str]) -> None:
    """The commands of this package that make would run; those that install and lint are left to make."""
    done = subprocess.run(
        ["make", "-n", "-C", str(ROOT), *words[1:]], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    made = commands(done.stdout)
    assert made, "make does nothing"
    for command in made:
        if re.match(r"\S*python -m simclr_jax", command):
            run(re.sub(r"^\S*python", "python", command), {})


def run_snippet(text: str, names: dict[str, Any]) -> dict[str, Any]:
    """Python of a page, with these names at hand; the names that it leaves."""
    exec(compile(text, "snippet", "exec"), names)
    return names


def use(text: str) -> None:
    """An encoder is loaded and called."""
    given = {"images": tiny_arrays(n=4, size=28)[0], "photos": tiny_arrays(n=4, size=40)[0]}
    for name in ("a.jpg", "b.png"):
        picture(Path(name))
    left = run_snippet(text, given)
    assert (len(left["features"]), len(left["maps"])) == (2 if "a.jpg" in text else 4, 4)


def decodes(text: str) -> None:
    """Images are encoded and decoded."""
    left = run_snippet(text, {"images": tiny_arrays(n=4, size=28)[0].astype(np.float32) / 255})
    assert left["half"].shape == (1, 28, 28, 1)
    assert 0 < left["error"] < 1


def config_file(text: str) -> None:
    """A config of one's own builds, and has no mistake."""
    checks.validate(run_snippet(text, {})["get_config"]())


def pitfall(text: str) -> None:
    """A pitfall of one's own finds what it looks for, and is silent otherwise."""
    names = {name: getattr(pitfalls, name) for name in ("Plan", "Finding", "warning")}
    found = run_snippet(text, names)["crops_of_half_an_image"]
    plans = [
        SimpleNamespace(config=tiny_config(augment__crop_area=area)) for area in ((0.95, 1.0), (0.1, 1.0))
    ]
    assert [bool(found(plan)) for plan in plans] == [True, False]


def of_a_table(text: str) -> None:
    """An encoder of rows is loaded and called."""
    assert run_snippet(text, {})["features"].shape == (1797, 16)


def registering(text: str) -> None:
    """A config file that registers an encoder of its own; its module is not asked for."""
    try:
        config = run_snippet(text, {})["get_config"]()
        assert config.model.mine.width == 128
        checks.validate(config)
    finally:
        registry.ENCODERS.pop("mine", None)


def from_python(text: str) -> None:
    """A training on arrays; the dots stand for what makes it tiny."""
    pixels, labels = tiny_arrays()
    assert "\n...\n" in text
    tiny = {
        field: value for field, value in flatten(tiny_config()).items() if value != flatten(default())[field]
    }

    def fill(c: ConfigDict) -> None:
        for name, value in {**tiny, "train.steps": 2}.items():
            set_field(c, name, value)

    left = run_snippet(
        text.replace("\n...\n", "\nfill(c)\n"), {"fill": fill, "images": pixels, "labels": labels}
    )
    assert left["summary"]["steps"] == 2


def search_space(text: str) -> None:
    """A sweep's settings are fields of the config."""
    import optuna

    for field in run_snippet(text, {})["suggest"](optuna.trial.FixedTrial({"temperature": 0.1})):
        check_field(field)


class Rule(NamedTuple):
    """How the commands that begin so are run."""

    begins: str  # a regular expression
    run: Callable[..., None]
    add: tuple[str, ...] = ()  # options that make it tiny
    put: Mapping[str, str] = MappingProxyType({})  # words put in place of others
    slow: bool = False  # more than some seconds: make test-all runs it


TINY = (
    "--config.train.steps=2", "--config.train.batch_size=8", "--config.mesh.devices=1",
    "--config.eval.final=False", "--config.eval.figures=False", "--config.eval.every.steps=0",
    "--config.eval.every.epochs=0", "--config.log.tensorboard=False", "--config.compile_cache=",
    "--config.augment.jitter=0", "--config.augment.blur=0", "--config.augment.rotation=0",  # slow to compile
)  # fmt: skip
TABLE = (*TINY, "--config.train.steps_per_call=1", "--config.model.mlp.hidden=16")
SMALL = (  # recipes of large images and networks
    *TINY, "--config.model.encoder=cnn", "--config.model.width=0.25", "--config.model.dtype=float32",
    "--config.data.image_size=12", "--config.data.stored_size=16", "--config.augment.device=all",
)  # fmt: skip
RESTORE = (*TINY, "--config.model.width=0.25", "--config.data.image_size=16", "--config.restore.crops=1")
DIGITS = (*SMALL, "--config.data.source=builtin:mnist5k", "--config.data.channels=1")
SCORES = ("--protocols=features,classifier", "--config.mesh.devices=1", "--config.compile_cache=")
LITTLE = ("--config.mesh.devices=1", "--config.compile_cache=")
SHARED = (*TINY, "--config.mesh.devices=0")  # all devices of two processes
ONCE = ("--steps=1", "--config.train.batch_size=8", "--config.mesh.devices=1")
COLLECT = ("--collect-only", "-c", str(ROOT / "pyproject.toml"))
SWEEP = (*TINY, "--config.eval.final=True", "--trials=1")
MAIN = r"python -m simclr_jax\.main --config=configs/"
FOLDER = r"python -m simclr_jax\.main --config=configs/folder\.py --config\.data\.source"
INSTALLED = {
    "simclr train --config=quickstart": "python -m simclr_jax.main --config=configs/quickstart.py",
    "simclr train --config=distill": "python -m simclr_jax.main --config=configs/distill.py",
    "simclr train --config=folder": "python -m simclr_jax.main --config=configs/folder.py",
    "simclr train --config=tables": "python -m simclr_jax.main --config=configs/tables.py",
    "simclr evaluate": "python -m simclr_jax.evaluate",
    "simclr export": "python -m simclr_jax.export",
    "simclr sweep": "python -m simclr_jax.sweep",
}
CONVERTED = {"resnet50.pth": "resnet50.safetensors", "encoder.pth": "encoder.safetensors"}

COMMANDS = (
    Rule("make", run_make),
    Rule(rf"{MAIN}(quickstart|finetune|distill|tutorial)\.py", run_main, TINY),
    Rule(r"python -m simclr_jax\.main --config=configs/ablation\.py", run_main, TINY, slow=True),
    Rule(rf"{FOLDER}=folder:/my/images --workdir", run_main, SMALL),
    Rule(rf"{FOLDER}=folder:/my/images --config", run_main, SMALL, slow=True),
    Rule(rf"{FOLDER}=list:/tmp/lesions", run_main, SMALL, slow=True),
    Rule(r"python -m simclr_jax\.evaluate --workdir=runs", run_evaluate, SCORES),
    Rule(r"python -m simclr_jax\.evaluate --workdir=/tmp/lesion_run", run_evaluate, SCORES, slow=True),
    Rule(r"python -m simclr_jax\.evaluate --compare", run_evaluate),
    Rule(r"python -m simclr_jax\.generate", run_generate, ("--samples=2", *LITTLE), slow=True),
    Rule(r"python -m simclr_jax\.main --config=configs/restore\.py", run_main, RESTORE, slow=True),
    Rule(r"python -m simclr_jax\.restore .*--corrupt", run_restore, ("--baselines=",), slow=True),
    Rule(r"python -m simclr_jax\.restore (?!.*--corrupt)", run_restore, slow=True),
    Rule(r"simclr compress --artefact", run_compress),
    Rule(r"simclr compress --workdir", run_compress, slow=True),
    Rule(r"simclr compress --compare", run_compare, slow=True),
    Rule(r"python -m simclr_jax\.convert (torch|to-torch)", run_convert, put=CONVERTED),
    Rule(r"python -m simclr_jax\.convert (google|to-google)", run_convert, slow=True),
    Rule(r"python tools/lesions\.py", run_process, ("--images=84",), slow=True),
    Rule(r"python tools/launch/local\.py", run_process, SHARED, slow=True),
    Rule(r"python -m simclr_jax\.main --config=configs/tables\.py", run_main, TABLE),
    Rule(r"simclr train --config=tables", run_main, TABLE, INSTALLED),
    Rule(r"python -m simclr_jax\.doctor .* --workdir", run_doctor, DIGITS, slow=True),
    Rule("simclr train --config=quickstart$", run_main, TINY, INSTALLED),
    Rule("simclr train --config=quickstart --config.start", run_main, TINY, INSTALLED, slow=True),
    Rule("simclr train --config=distill", run_main, TINY, INSTALLED, slow=True),
    Rule(r"simclr train --config=folder", run_main, SMALL, INSTALLED),
    Rule("simclr embed", run_embed, LITTLE),
    Rule("simclr (search|dedup|curate)", run_index),
    Rule("simclr evaluate", run_evaluate, SCORES, INSTALLED),
    Rule(r"simclr export (?!.*--format)", run_export, put=INSTALLED),
    Rule("simclr publish", run_publish, ("--no-onnx",)),
    Rule(r"simclr sweep (?!--config=ablation)", run_process, SWEEP, INSTALLED, slow=True),
    Rule(r"python tools/benchmark\.py step --config=configs/quickstart\.py", run_process, ONCE, slow=True),
    Rule(r"python -m pytest", run_process, COLLECT, slow=True),
)  # fmt: skip
SNIPPETS = (
    Rule(r"def crops_of_half", pitfall),
    Rule(r"import numpy as np\nimport simclr_jax\nfrom sklearn", of_a_table),
    Rule(r"import numpy as np\nfrom simclr_jax import decoding", decodes),
    Rule(r"from simclr_jax import config, registry", registering),
    Rule(r"import simclr_jax\n\nencoder = simclr_jax\.load", use),
    Rule(r"from simclr_jax import config\n\n\ndef get_config", config_file),
    Rule(r"from simclr_jax import config, train\n", from_python),
    Rule(r"def suggest", search_space),
)


def rule_of(text: str) -> Rule | None:
    """The one rule of a command or a snippet; None where there is none."""
    found = [rule for rule in (*COMMANDS, *SNIPPETS) if re.match(rule.begins, text)]
    assert len(found) < 2, f"{text}: several rules, {', '.join(rule.begins for rule in found)}"
    return found[0] if found else None


def moved(text: str) -> str:
    """Absolute paths of a page lie in the folder in which it is run."""
    return re.sub(r"(?<=[\s=:\"'])/(?=(?:my|tmp|data|shared)/)", f"{os.getcwd()}/", text)


def run(text: str, given: dict[str, Callable[[Path], None]]) -> None:
    """Runs a command or a snippet, and first makes what it takes for granted."""
    rule = rule_of(text)
    for old, new in rule.put.items():
        text = text.replace(old, new)
    for name, make in given.items():
        if re.search(rf"(?<![\w/-])/?{re.escape(name)}(?![\w/-])", text) and not Path(name).exists():
            make(Path(name).absolute())
    text = moved(text)
    rule.run(text if rule in SNIPPETS else [*shlex.split(text), *rule.add])


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty folder, with this project's configs and tools."""
    for name in ("configs", "tools", "tests"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)


def pages(*, slow: bool) -> list[Any]:
    """The pages with commands to run, and those."""
    found = []
    for page in PAGES:
        ruled = [(part, rule_of(part.text)) for part in parts(page) if not part.block.needs]
        here = [part for part, rule in ruled if rule and rule.slow == slow]
        if here:
            found.append(pytest.param(here, id=page.stem))
    return found


def run_all(page: list[Part]) -> None:
    """The commands of a page one after the other; one that fails is named."""
    made = any(part.text.startswith("make quickstart") for part in page)
    given = {name: make for name, make in GIVEN.items() if not (made and name == "runs/quickstart")}
    for part in page:
        try:
            run(part.text, given)
        except (Exception, SystemExit) as error:
            raise AssertionError(f"{part}\n{error}") from error


@pytest.mark.parametrize("page", pages(slow=False))
def test_every_command_of_a_page(page, here):
    run_all(page)


@pytest.mark.slow
@pytest.mark.parametrize("page", pages(slow=True))
def test_every_slow_command_of_a_page(page, here):
    run_all(page)


# ---- what is not run -----------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_command_has_a_rule_or_says_what_it_needs(page):
    for part in parts(page):
        if part.block.needs:
            assert rule_of(part.text) is None, f"{part}: has a rule and needs something: keep one of them"
        else:
            assert rule_of(part.text), f"{part}: {HOW}"


def test_every_rule_is_used():
    texts = [part.text for page in PAGES for part in parts(page)]
    assert [
        rule.begins
        for rule in (*COMMANDS, *SNIPPETS)
        if not any(re.match(rule.begins, text) for text in texts)
    ] == []


def extras() -> set[str]:
    """Those of setup.py."""
    tree = ast.parse((ROOT / "setup.py").read_text())
    found = next(node.value for node in ast.walk(tree) if getattr(node, "arg", "") == "extras_require")
    return set(ast.literal_eval(ast.Expression(ast.Dict(found.keys, [ast.Constant(0)] * len(found.keys)))))


def wrong(text: str) -> list[str]:
    """What a command names that does not exist: files, modules, fields, extras, targets, parts."""
    found, words = [], re.sub(r"['\"]", "", text).split()
    for before, word in zip(["", *words], words, strict=False):
        option, _, value = word.partition("=")
        if re.search(r"\.\.\.|[$~]", word) or word == "--config.FIELD=VALUE":
            continue
        if (option in ("--config", "--space") and "/" in value) or (
            before == "python" and word[-3:] == ".py"
        ):
            found += [] if (ROOT / (value or word)).exists() else [word]
        elif option.startswith("--config."):
            try:
                check_field(option.removeprefix("--config."))
            except SimclrError as error:
                found.append(str(error))
        elif before == "-m" and words[0] == "python":
            found += [] if importlib.util.find_spec(word) else [word]
        elif extra := re.search(r"(?:simclr_jax|\.)\[(\w+)\]", word):
            found += [] if extra[1] in extras() else [word]
        elif before == "tools/benchmark.py" and word != "--help":
            found += [] if named_in("tools/benchmark.py", rf'    "{word}": Part') else [word]
        elif before == "make" and words[0] == "make" and "=" not in word:
            found += [] if named_in("Makefile", f"{word}:") else [word]
    return found


def named_in(file: str, begins: str) -> bool:
    """Whether a line of a file begins so."""
    return re.search(f"^{begins}", (ROOT / file).read_text(), re.MULTILINE) is not None


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_what_a_page_names_exists(page):
    text = page.read_text()
    inline = re.findall(r"(?<!`)`([^`]+)`(?!`)", re.sub(r"```.*?\n```", "", text, flags=re.DOTALL))
    shell = [part.text for part in parts(page) if part.block.kind() == "shell"]
    assert [word for command in [*shell, *inline] for word in wrong(command)] == []
    fields = set(flatten(default()))
    nodes = {field.rsplit(".", count)[0] for field in fields for count in range(1, field.count(".") + 1)}
    named = [
        name for span in inline for name in re.findall(r"(?<![\w.-])config\.([a-z_]+(?:\.[a-z_]+)*)", span)
    ]
    assert sorted(set(named) - fields - nodes - {"json", "py"}) == []


TRAININGS = [
    part
    for page in PAGES
    for part in parts(page)
    if part.text.startswith("python -m simclr_jax.main --config=configs/")
]


@pytest.mark.parametrize("part", TRAININGS, ids=lambda part: f"{part.block.page.stem}:{part.block.line}")
def test_the_options_of_a_training_are_right(part, here):
    argv = ["main", *shlex.split(part.text)[3:]]
    with flagsaver.flagsaver(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", argv)
        main.parse(argv)
        config = main.CONFIG.value
        config.start.workdir = ""  # another run's, which is not there
        config.data.image_size = config.data.image_size or 224
        config.data.channels = config.data.channels or 3
        checks.validate(config)
    flags.FLAGS.unparse_flags()


def test_commands_are_found():
    text = "python -m a --b=1 \\\n    --c=2   # why\n\n# a comment\nfor x in 1 2; do\n    make x\ndone"
    assert commands(text) == ["python -m a --b=1 --c=2", "make x"]
