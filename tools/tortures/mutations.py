"""Gives commands random mistakes: each must be accepted or end in one line. Runs in a fork, without JAX."""

import os
import random
import sys
from collections.abc import Iterator
from pathlib import Path

from simclr_jax import command, main
from simclr_jax.config import adopt_start, checks, default, flatten
from simclr_jax.convert import __main__ as convert
from simclr_jax.evaluate import __main__ as evaluate
from tortures import runs, tiny
from tortures.results import Faults, Outcome
from tortures.runs import Lab

VALUES = ("", "0", "-1", "1e400", "nan", "inf", "True", "None", "()", "(1,", "(0.1,0.2)", "[1]", "{}", "'x'",
          "npz:", "tfds:", "folder:/", "\x00", "ü", "9" * 400, "1.5", "--", "a=b", "$HOME", "../..", " ",
          "\n", "%s", "lambda: 1", "__import__('os')")  # fmt: skip
WORDS = ("--", "-", "--help=1", "--config", "--workdir", "--config.", "--config.train", "--config.train=3",
         "--=x", "extra", "--resume=force", "--processes=x", "--processes=0", "--noconfig", "-v", "\ud800",
         "--config=/dev/null", "--config=/", "--config.loss..temperature=1", "--step=-1", "--step=x", "--out",
         "--protocols=,", "--protocols=none", "--image-size=x", "--compare", "--flagfile=/nowhere",
         "--undefok=x")  # fmt: skip


def faults(lab: Lab, tries: int, rng: random.Random) -> Faults:
    """Mutates command lines of the three commands, with one to three mistakes each."""
    return Faults(tries, _all(lab, tries, rng))


def _all(lab: Lab, tries: int, rng: random.Random) -> Iterator[Outcome]:
    whole = runs.reference(lab)
    fields = list(flatten(default()))
    for _ in range(tries):
        name, line = _line(lab, whole, rng, fields)
        for _ in range(rng.randint(1, 3)):
            line = _mutated(line, rng, fields)
        code, said = _forked(name, line)
        wrong = _wrong(code, said)
        how = "accepted" if code == 0 else "refused by one line"
        yield Outcome(f"command line of {name}", not wrong, f"{line}: {wrong}" if wrong else how)


def _line(lab: Lab, whole: Path, rng: random.Random, fields: list[str]) -> tuple[str, list[str]]:
    """(command, arguments) that are right, or nearly."""
    options = [f"--config.{field}={rng.choice(VALUES)}" for field in rng.sample(fields, rng.randint(0, 2))]
    name = rng.choice(("main", "main", "evaluate", "convert"))
    if name == "main":
        source = f"--config.data.source=npz:{lab.images}"
        return name, [f"--config={tiny.__file__}", source, f"--workdir={lab.out / 'none'}", *options]
    if name == "evaluate":
        return name, [f"--workdir={whole}", "--protocols=knn", "--step=0", *options]
    kind = rng.choice(("google", "torch", "to-google", "to-torch"))
    return name, [kind, str(whole), "--out", str(lab.out / "none")]


def _mutated(line: list[str], rng: random.Random, fields: list[str]) -> list[str]:
    line, at = list(line), rng.randrange(len(line) + 1)
    way = rng.randrange(7)
    if way == 0 or not line or at == len(line):
        return [*line[:at], rng.choice(WORDS), *line[at:]]
    word = line[at]
    if way == 1:
        return line[:at] + line[at + 1 :]
    if way == 2:
        line[at] = word.split("=")[0] + "=" + rng.choice(VALUES)
    elif way == 3 and word:
        where = rng.randrange(len(word))
        line[at] = word[:where] + rng.choice("=.-_x0 \t\x7fé") + word[where + rng.randrange(2) :]
    elif way == 4:
        line.append(word)
    elif way == 5:
        line[at] = word[: rng.randrange(len(word) + 1)]
    else:
        line[at] = f"--config.{rng.choice(fields)}={rng.choice(VALUES)}"
    return line


def _check(name: str, line: list[str]) -> None:
    """Runs the checks that the command makes before it imports JAX."""
    if name == "main":
        main.parse(["main", *line])
        workdir = main.WORKDIR.value or "runs/tiny"
        with command.ends(""):
            checks.validate(adopt_start(main.CONFIG.value, workdir))
    elif name == "evaluate":
        args, rest = evaluate.parser().parse_known_args(line)
        with command.ends(""):
            evaluate._check(args, rest)
            if not args.compare:
                evaluate.override(args.workdir, rest)
    else:
        convert.parser().parse_args(line)


def _forked(name: str, line: list[str]) -> tuple[int, str]:
    """(exit code, stderr) of the check, in a process of its own because flags are global."""
    said = os.memfd_create("stderr")
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.dup2(said, 2)
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            sys.argv = [name, *line]
            _check(name, line)
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:
            sys.stderr.flush()
            os._exit(code)
    status = os.waitpid(child, 0)[1]
    os.lseek(said, 0, os.SEEK_SET)
    with os.fdopen(said, "r", errors="replace") as file:
        return os.waitstatus_to_exitcode(status), file.read()


def _wrong(code: int, said: str) -> str:
    """The fault in exit code or output, "" for none. argparse may print its usage above the error line."""
    if "Traceback" in said or code not in (0, command.FAILED):
        return f"exit code {code}: {said.strip()[-300:]}"
    if code == 0:
        return ""
    lines = said.strip().splitlines()
    if lines and lines[0].startswith("usage: "):
        lines = [line for line in lines if "error: " in line]
    one = len(lines) == 1 and "error: " in lines[0]
    return "" if one else f"{len(lines)} lines: {said[:300]!r}"
