"""Damaged small files: one line, or repaired, and no row is lost that could be read."""

import gc
import json
import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from simclr_jax.errors import SimclrError
from tortures import damage, runs
from tortures.results import Faults, Outcome
from tortures.runs import Lab

DEEP = 10_000
HUGE = 30_000_000  # bytes
NAMES = ("config.json", "metrics.jsonl", "summary.json", "bad_images.jsonl", ".lock")
CACHE = "compile cache"


def _json(content: Any) -> bytes:
    return json.dumps(content).encode()


SHAPES = {
    "empty": b"",
    "a list": _json([{"step": 1}, 2]),
    "a number": _json(7),
    "null": b"null",
    "a string": _json("text"),
    "an empty object": b"{}",
    "an object of other types": _json({"schema": [], "config": 3, "step": "x", "owner": [1], "host": {}}),
    "nested 10,000 deep": b"[" * DEEP + b"]" * DEEP,
    "objects nested 10,000 deep": b'{"config":' * DEEP + b"1" + b"}" * DEEP,
    "NaN": b'{"schema": NaN, "step": Infinity, "config": NaN}',
    "a huge number": b'{"schema": 1' + b"0" * 5000 + b', "step": 1' + b"0" * 5000 + b"}",
}
WAYS = (*SHAPES, "torn", "binary", "huge", "a folder", "a link to nowhere", "a line in the middle")


def faults(lab: Lab, tries: int, rng: random.Random) -> Faults:
    """Every file in every way first, then again with other positions."""
    jobs = [(name, way) for name in NAMES for way in WAYS] + [(CACHE, "torn"), (CACHE, "binary")]
    rng.shuffle(jobs)
    while len(jobs) < tries:
        jobs += jobs
    return Faults(tries, _all(lab, jobs[:tries], rng))


def _all(lab: Lab, jobs: list[tuple[str, str]], rng: random.Random) -> Iterator[Outcome]:
    whole = runs.reference(lab)
    for name, way in jobs:
        workdir = lab.fresh("files")
        damage.copy(whole, workdir)
        for step in (110, 120):  # as if killed after step 100
            shutil.rmtree(workdir / "checkpoints" / str(step))
        if name == CACHE:
            how = _cache(lab, workdir, whole, way, rng)
        else:
            _damage(workdir / name, way, rng)
            how = _run(lab, workdir, whole, name)
        wrong = how if how.startswith("!") else ""
        yield Outcome(f"{name} damaged", not wrong, f"{way}: {wrong[1:]}" if wrong else how)


def _damage(path: Path, way: str, rng: random.Random) -> None:
    content = path.read_bytes() if path.exists() else b'{"a": 1}\n' * 20
    at = rng.randrange(len(content))
    path.unlink(missing_ok=True)
    if way in SHAPES:
        path.write_bytes(SHAPES[way])
    elif way == "torn":
        path.write_bytes(content[:at])
    elif way == "binary":
        path.write_bytes(rng.randbytes(len(content)))
    elif way == "huge":
        path.write_bytes(content + b"\n" + b"x" * HUGE)
    elif way == "a folder":
        path.mkdir()
    elif way == "a link to nowhere":
        path.symlink_to(path.parent / "nowhere" / "at all")
    else:  # the lines behind are whole
        lines = content.splitlines(keepends=True)
        wrong = rng.choice(list(SHAPES.values())) + b"\n"
        path.write_bytes(b"".join([*lines[: len(lines) // 2], wrong, *lines[len(lines) // 2 :]]))


def _run(lab: Lab, workdir: Path, whole: Path, name: str) -> str:
    """Goes on with the run; how that ended, with a "!" where it should not."""
    path = workdir / name
    before = path.read_bytes() if path.is_file() else b""
    readable = _readable(workdir)
    try:
        with runs.stderr_caught() as said:
            text = runs.inside(lab, workdir)
            gc.collect()
    except SimclrError as error:
        if "\n" in str(error).strip():
            return f"!more than a line: {error}"
        if str(workdir) not in str(error) and name not in str(error):
            return f"!the line does not name the file: {error}"
        same = name == ".lock" or not before or (path.is_file() and path.read_bytes() == before)
        return "refused by one line" if same else f"!refused, and the file has changed: {error}"
    except Exception as error:
        return f"!{type(error).__name__}: {str(error)[:300]}"
    if said[0].strip():
        return f"!stderr says {said[0][-300:]}"
    found = runs.rows(workdir)
    lost = [step for step, row in readable.items() if row not in found]
    if lost:
        return f"!rows lost that could be read: {lost[:5]}"
    if runs.differing(runs.arrays(workdir, 120), runs.arrays(whole, 120)):
        return "!other numbers"
    json.loads((workdir / "config.json").read_text())
    json.loads((workdir / "summary.json").read_text())
    if name == "metrics.jsonl" and len(found) < 120:
        torn = before.count(b"\n") == len(readable)
        if not (torn or "unreadable lines" in text or not before.strip()):
            return "!rows are missing and nobody says so"
        return "repaired, readable rows kept"
    return "went on"


def _readable(workdir: Path) -> dict[int, dict[str, Any]]:
    """The rows until the checkpoint that can be read, each by itself."""
    path, found = workdir / "metrics.jsonl", {}
    for line in path.read_bytes().splitlines() if path.is_file() else []:
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if (
            isinstance(row, dict)
            and type(row.get("step")) is int
            and 0 < row["step"] <= 100
            and "loss" in row
        ):
            found[row["step"]] = {key: row.get(key) for key in runs.DECISIVE}
    return found


def _cache(lab: Lab, workdir: Path, whole: Path, way: str, rng: random.Random) -> str:
    """A kill or a full disk tears a compiled program: it is compiled again."""
    cache = lab.fresh("cache")
    damage.copy(lab.out / "xla", cache)
    for path in cache.iterdir():
        if path.is_file() and os.path.getsize(path) > 100:
            content = path.read_bytes()
            path.write_bytes(content[: len(content) // 2] if way == "torn" else rng.randbytes(len(content)))
    words = runs.command(lab, workdir)
    ended = runs.Started(lab, words, JAX_COMPILATION_CACHE_DIR=str(cache)).end()
    if ended.code or "Traceback" in ended.err:
        return f"!exit code {ended.code}: {ended.err[-300:]}"
    wrong = runs.difference(workdir, whole)
    return f"!{wrong}" if wrong else "compiled again"
