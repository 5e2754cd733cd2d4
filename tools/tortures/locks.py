"""Several commands on one workdir: one trains, the others say so; nobody waits for the dead."""

import json
import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from etils import epath

from simclr_jax import lock
from simclr_jax.errors import SimclrError
from tortures import runs
from tortures.results import Faults, Outcome
from tortures.runs import Lab

FIELDS = {"train__steps": 400, "eval__every__steps": 0}
DEAD = 2.0  # seconds, for lock.DEAD


def faults(lab: Lab, tries: int, rng: random.Random) -> Faults:
    """Commands at one moment and killed owners are a third of the tries, leases the rest."""
    several = max(1, tries // 6)
    leases = max(3, tries - 3 * several)
    return Faults(3 * several + leases, _all(lab, several, leases, rng))


def _all(lab: Lab, several: int, leases: int, rng: random.Random) -> Iterator[Outcome]:
    whole = runs.reference(lab, "locked", **FIELDS)
    for _ in range(several):
        yield _together(lab, whole, 2)
        yield _together(lab, whole, 4)
        yield _killed(lab, whole, rng)
    kinds = (_beats, _silent, _raced)
    for number in range(leases):
        yield kinds[number % len(kinds)](lab, rng)


def _together(lab: Lab, whole: Path, count: int) -> Outcome:
    """`count` commands start at one moment."""
    fault, workdir = f"{count} commands at one moment", lab.fresh(f"together_{count}")
    commands = [runs.start(lab, workdir, **FIELDS) for _ in range(count)]
    ended = [each.end() for each in commands]
    trained = [end for end in ended if "compiled in" in end.out]
    refused = [end for end in ended if end.code == 2 and "is training there" in end.err]
    late = [end for end in ended if end.code == 0 and "compiled in" not in end.out]  # it was done already
    wrong = next((end.tidy for end in ended if end.tidy), "")
    if len(trained) != 1 or trained[0].code or len(trained) + len(refused) + len(late) != count:
        wrong = wrong or f"exit codes {[end.code for end in ended]}, {len(trained)} trained"
    if any(len(end.err.strip().splitlines()) != 1 for end in refused):
        wrong = wrong or f"more than a line: {refused[0].err}"
    wrong = wrong or runs.difference(workdir, whole)
    return Outcome(fault, not wrong, wrong or "one trained, the others refused by a line")


def _killed(lab: Lab, whole: Path, rng: random.Random) -> Outcome:
    """The owner is killed; the next command begins at once."""
    fault, workdir = "owner killed", lab.fresh("owner")
    owner, step = runs.start(lab, workdir, **FIELDS), rng.randint(0, 100)
    while owner.running() and (runs.last_step(workdir) < step or not (workdir / lock.FILE).exists()):
        time.sleep(0.01)
    owner.kill()
    owner.end()
    begin = time.monotonic()
    wrong = runs.went_on(lab, workdir, whole, **FIELDS)
    if time.monotonic() - begin > runs.LONG / 2:
        wrong = wrong or "the next command waited"
    return Outcome(fault, not wrong, wrong or "the next goes on at once")


def _foreign(workdir: Path, beat: int) -> None:
    """The lease of another host."""
    lease = {"owner": "another", "host": "elsewhere", "pid": 1, "command": "main", "beat": beat}
    (workdir / lock.FILE).write_text(json.dumps(lease).ljust(lock.LENGTH))


def _held(workdir: Path) -> str:
    """What `lock.hold` says, "" where it holds."""
    before, lock.DEAD = lock.DEAD, DEAD
    try:
        with lock.hold(epath.Path(workdir), say=_nothing):
            return ""
    except SimclrError as error:
        return str(error)
    finally:
        lock.DEAD = before


def _nothing(line: str) -> None:
    """Says nothing."""


def _beats(lab: Lab, rng: random.Random) -> Outcome:
    workdir, stop = lab.fresh("beats"), threading.Event()
    workdir.mkdir()
    _foreign(workdir, 0)

    def live() -> None:
        beat, every = 0, rng.uniform(0.1, DEAD / 3)
        while not stop.wait(every):
            beat += 1
            _foreign(workdir, beat)

    owner = threading.Thread(target=live)
    owner.start()
    said = _held(workdir)
    stop.set()
    owner.join()
    ok = "is training there" in said and "\n" not in said
    return Outcome(
        "lease of another host that is renewed", ok, "refused by a line" if ok else said or "taken"
    )


def _silent(lab: Lab, rng: random.Random) -> Outcome:
    workdir = lab.fresh("silent")
    workdir.mkdir()
    _foreign(workdir, rng.randint(0, 1000))
    begin = time.monotonic()
    said, waited = _held(workdir), time.monotonic() - begin
    ok = not said and DEAD * 0.9 < waited < DEAD + 10
    return Outcome(
        "lease of another host that is not renewed", ok, "taken over" if ok else f"{said} {waited}"
    )


def _raced(lab: Lab, rng: random.Random) -> Outcome:
    """Four threads want a workdir that is free: file locks are of open files, so they count."""
    workdir, inside, most, wins = lab.fresh("raced"), [], [0], []

    def contend() -> None:
        time.sleep(rng.uniform(0, 0.01))
        try:
            with lock.hold(epath.Path(workdir), say=_nothing):
                inside.append(1)
                most[0] = max(most[0], len(inside))
                time.sleep(0.1)
                inside.pop()
                wins.append(1)
        except SimclrError:
            return

    threads = [threading.Thread(target=contend) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    ok = most[0] == 1 and bool(wins)
    return Outcome(
        "four at one moment, lock alone", ok, "one at a time" if ok else f"{most[0]} held it at once"
    )
