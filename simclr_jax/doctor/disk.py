"""Checks that the run may use the workdir and that the checkpoints fit. Writes nothing there."""

import os
import socket
from collections.abc import Iterator

from simclr_jax import checkpoint, files, lock, storage, train
from simclr_jax import workdir as folder
from simclr_jax.doctor.findings import Finding, error, note, of_error, ok, warning
from simclr_jax.doctor.plan import Plan
from simclr_jax.errors import SimclrError
from simclr_jax.resolve import Run

TIGHT = 1.5  # warn below this multiple of the checkpoints' size: metrics and figures need room too


def check(plan: Plan) -> Iterator[Finding]:
    """Says whether the run is new, resumes, or belongs to another config; checks room for checkpoints."""
    folder.check(plan.workdir, plan.config)
    yield from _owner(plan)
    yield from _room(plan)


def _owner(plan: Plan) -> Iterator[Finding]:
    """Says which run owns the workdir."""
    workdir = plan.workdir
    yield from _lock(plan)
    steps = checkpoint.saved_steps(workdir / "checkpoints")
    identity = {"examples": plan.train.size, "fingerprint": plan.train.fingerprint}
    try:
        folder.compare(workdir, plan.config, identity if plan.here else {}, bool(steps))
    except SimclrError as problem:
        yield of_error(problem)
        return
    if steps and steps[-1] > plan.steps:
        yield error(
            f"{workdir} has done {steps[-1]:,} steps, and the config wants {plan.steps:,}",
            "give config.train more, or choose another --workdir",
        )
    elif steps:
        done = "all of them: it is only scored again" if steps[-1] == plan.steps else "and goes on from there"
        yield note(f"{workdir} holds this run: step {steps[-1]:,} of {plan.steps:,} is done, {done}")
    elif workdir.exists() and any(workdir.iterdir()):
        yield note(f"{workdir} is there, without a checkpoint: the run begins in it")
    else:
        yield ok(f"{workdir} is new")


def _lock(plan: Plan) -> Iterator[Finding]:
    """Says whether a run is active there, from its lease; takes no lock."""
    lease = files.read_json(plan.workdir / lock.FILE)
    if not lease.get("owner"):
        return
    host, process = lease.get("host", "?"), lease.get("pid", 0)
    who = f"process {process} on {host}"
    if host != socket.gethostname():
        yield warning(f"{plan.workdir}: {who} trains there, or did when it died", "see whether it still runs")
    elif _lives(process):
        yield error(f"{plan.workdir}: {who} is training there", "wait until it ends, or another --workdir")


def _lives(process: int) -> bool:
    """Whether this process exists on this host."""
    if os.name != "posix":  # on other systems the query would end the process
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # another user's
        return True
    return True


def _room(plan: Plan) -> Iterator[Finding]:
    state, keep = plan.arguments.state, plan.config.checkpoint.keep
    size, room = checkpoint.size(state), storage.free(plan.workdir)
    needs = f"a checkpoint takes {storage.told(size)}, {keep} are kept and one is written"
    try:
        train.check_room(_as_run(plan), state)
    except SimclrError as problem:
        yield of_error(problem)
        return
    if room is None:
        yield note(f"{needs}; how much room there is, nobody can tell")
    elif room < TIGHT * (keep + 1) * size:
        yield warning(f"{needs}; only {storage.told(room)} are free", f"lower config.checkpoint.keep={keep}")
    else:
        yield ok(f"{needs}; {storage.told(room)} are free")


def _as_run(plan: Plan) -> Run:
    """The `Run` that the run itself would have, without the arrays of its checkpoint."""
    saved = checkpoint.Saved(plan.first, {}, True) if plan.first else None
    identity = {"examples": plan.train.size}
    return Run(plan.config, plan.workdir, plan.splits, plan.mesh, identity, plan.steps, saved, (), ())
