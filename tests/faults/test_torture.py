"""One fast sample of each part of tools/torture.py, so that the harness itself cannot rot."""

import json
import random
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
import torture
from tortures import checkpoints, damage, files, locks, machine, results, runs, soak
from tortures.results import Outcome
from tortures.soak import Sample

from simclr_jax.errors import DamagedError

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """Bits are equal where programs are: the run that nothing happens to is made in this process too."""
    lab = runs.make_lab(tmp_path_factory.mktemp("torture"))
    before = jax.config.jax_numpy_rank_promotion
    jax.config.update("jax_numpy_rank_promotion", "allow")
    yield lab
    jax.config.update("jax_numpy_rank_promotion", before)


@pytest.fixture(scope="module")
def whole(lab):
    """The run that nothing happens to."""
    workdir = lab.out / "reference" / "never"
    runs.inside(lab, workdir)
    return workdir


def kept(found, most=100):
    outcomes = [outcome for outcome, _ in zip(found.outcomes, range(most), strict=False)]
    assert outcomes
    assert not [outcome for outcome in outcomes if outcome.ok is False]
    return outcomes


@pytest.mark.slow
def test_damaged_checkpoints(lab, whole):
    """Each way once, and one whole run; a pinned checkpoint is refused."""
    rng, workdir = random.Random(0), lab.fresh("damaged")
    damage.copy(whole, workdir)
    saved = {step: runs.arrays(whole, step) for step in (checkpoints.NEWEST, checkpoints.OLDER)}
    folder = Path("checkpoints") / str(checkpoints.NEWEST)
    for way in damage.WAYS:
        file = rng.choice([p for p in (workdir / folder / "params").rglob("*") if p.is_file()])
        damage.WAYS[way](file, rng)
        outcome = checkpoints._read(workdir, saved, way, file.name)
        assert outcome.ok, outcome
        damage.copy(whole / folder, workdir / folder)
    checkpoints._spoil(workdir / folder)
    assert checkpoints._pinned(workdir) is None
    outcome = checkpoints._run_again(lab, workdir, whole, "emptied")
    assert outcome.ok, outcome
    assert outcome.how == "set aside, trained again"


@pytest.mark.slow
def test_a_loss_is_seen(lab, whole):
    """Other numbers in a checkpoint, a missing row, a missing checkpoint: the harness says so."""
    workdir = lab.fresh("mixed")
    damage.copy(whole, workdir)
    assert runs.difference(workdir, whole) == ""
    path = workdir / "metrics.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    assert "119 rows for 120" in runs.difference(workdir, whole)
    damage.copy(workdir / "checkpoints" / "110", workdir / "checkpoints" / "120")
    with pytest.raises(DamagedError, match="saved as step 110"):
        runs.difference(workdir, whole)
    saved = {120: runs.arrays(whole, 110), 110: runs.arrays(whole, 110)}
    assert not checkpoints._read(whole, saved, "", "a file").ok


@pytest.mark.slow
@pytest.mark.parametrize("way", ["torn", "nested 10,000 deep"])
def test_damaged_files(lab, whole, way):
    for name in files.NAMES:
        if name != "metrics.jsonl":  # that one takes a compilation
            workdir = lab.fresh("files")
            damage.copy(whole, workdir)
            files._damage(workdir / name, way, random.Random(0))
            how = files._run(lab, workdir, whole, name)
            assert not how.startswith("!"), (name, how)


@pytest.mark.slow
def test_damaged_metrics(lab, whole):
    kept(results.Faults(1, files._all(lab, [("metrics.jsonl", "a line in the middle")], random.Random(0))))


def test_locks(lab):
    for kind in (locks._beats, locks._silent, locks._raced):
        outcome = kind(lab, random.Random(0))
        assert outcome.ok, outcome


def tool(*words):
    """The exit code of the tool, and the rows that it wrote."""
    done = subprocess.run([sys.executable, str(ROOT / "tools" / "torture.py"), *words], cwd=ROOT, check=False)
    out = next(word for word in words if word.startswith("--out=")).removeprefix("--out=")
    return done.returncode, json.loads((Path(out) / "torture.json").read_text())["rows"]


@pytest.mark.slow
def test_mutations(lab):
    """In a process of its own: the commands' flags are global."""
    code, rows = tool("--parts=mutations", "--tries=30", f"--out={lab.out / 'mutations'}")
    assert code == 0
    assert sum(row["tries"] for row in rows) == 30
    assert "refused by one line" in "".join(row["how"] for row in rows)


@pytest.mark.slow
def test_a_killed_command_goes_on(lab, whole):
    """As a command, once: more kills are slow."""
    workdir = lab.fresh("killed")
    started = runs.start(lab, workdir)
    while started.running() and runs.last_step(workdir) < 25:
        time.sleep(0.01)
    started.kill()
    assert started.end().code == -9
    assert runs.went_on(lab, workdir, whole) == ""


def test_growth_is_seen():
    def samples(growth, handles=10):
        noise = np.random.default_rng(0).normal(size=100)
        return [
            Sample(100 * i, i, 500 + noise[i] + growth * i / 10, handles + (handles > 10) * i // 40, 20)
            for i in range(100)
        ]

    rise, error = soak.slope(np.arange(100.0), np.asarray([s.megabytes for s in samples(5)]))
    assert abs(rise - 0.5) < 3 * error < 0.05
    assert soak.judge("", samples(0)).ok
    assert "memory grew" in soak.judge("", samples(2)).how
    assert "handles grew" in soak.judge("", samples(0, handles=11)).how


def test_the_table_counts_and_the_tool_ends_with_1(tmp_path, monkeypatch):
    outcomes = [Outcome("a", True, "x"), Outcome("a", True, "y"), Outcome("a", False, "gone | there")]
    (row,) = results.rows("part", outcomes)
    assert (row["tries"], row["survived"], row["lost"], row["how"]) == (3, 2, 1, "x 1, y 1")
    assert "| part: a | 3 | 2 | 1 | x 1, y 1; lost: gone / there |" in results.table([row])
    monkeypatch.setattr(machine, "prepare", lambda out: None)
    found = [results.Faults(3, iter(outcomes)), results.Faults(1, iter([Outcome("b", None, "skipped")]))]
    monkeypatch.setattr(locks, "faults", lambda lab, tries, rng: found.pop(0))
    assert torture.main(["--parts=locks", f"--out={tmp_path}"]) == 1
    assert json.loads((tmp_path / "torture.json").read_text())["rows"][0]["lost"] == 1
    assert torture.main(["--parts=locks", f"--out={tmp_path}"]) == 0


@pytest.mark.slow
@pytest.mark.parametrize("part", list(torture.PARTS))
def test_every_part(part, tmp_path):
    """A few faults of each through the tool; minutes."""
    code, rows = tool(f"--parts={part}", "--tries=4", "--steps=4000", f"--out={tmp_path}")
    assert code == 0, rows
