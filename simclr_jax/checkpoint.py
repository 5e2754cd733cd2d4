"""Checkpoints through Orbax: asynchronous, atomic, the newest N kept, every array with a checksum.

Parts of the state are separate items, so that an encoder can be read without its optimiser, and a
checkpoint without `extra` restores into a run that has it. The item `checksums` holds the shape, type and
CRC-32 of every array; reading compares with it, so that a flipped bit never reaches training.
"""

import concurrent.futures
import contextlib
import json
import re
import threading
import time
import zlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils

from simclr_jax import orbax_threads, paths, run_summary, sharding, storage
from simclr_jax.errors import DamagedError, DivergedError, Preempted, SimclrError, StorageError, one_line
from simclr_jax.state import TrainState

PARTS = ("params", "model_state", "opt_state", "extra")
SUMS = "checksums"
# TensorStore's errors that do not mean damaged files.
TRANSIENT = re.compile(
    "UNAVAILABLE|PERMISSION_DENIED|RESOURCE_EXHAUSTED|DEADLINE_EXCEEDED|UNAUTHENTICATED|ABORTED|CANCELLED"
)
PROBE = ".writable"  # test folder, created and removed before each checkpoint
OVERHEAD = 2**18  # bytes of a checkpoint in addition to its arrays: forty small files
PATIENCE = 20.0  # seconds that a failed run waits for a checkpoint under way
QUIET = 1.0  # seconds without a new thread after which none is expected


class _Manager(ocp.CheckpointManager):
    """Turns off Orbax's query for preemption: it counts steps, but the loop's own query counts calls."""

    def reached_preemption(self, step: int) -> bool:
        """Never: the loop asks."""
        return False


class Checkpoints:
    """Writes the checkpoints `directory/STEP` of a run.

    Every method raises StorageError if the disk is full or read-only. The next call raises the error of a
    write in the background.
    """

    def __init__(self, directory: epath.PathLike, keep: int = 3):
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep, enable_async_checkpointing=True, create=True, cleanup_tmp_directories=True
        )
        self._directory = paths.absolute(directory)
        self._size, self._failed = 0, False
        self._others = set(threading.enumerate())
        self._quiet = orbax_threads.Quiet()
        with self._writing():
            self._manager = _Manager(self._directory, options=options)
        self._quiet.begin()

    def latest(self) -> int | None:
        """The newest complete checkpoint's step, None if there is none."""
        return self._manager.latest_step()

    def save(self, state: TrainState) -> None:
        """Starts saving; training may go on (and donate the state) as soon as this returns."""
        step = int(state.step)
        if step == self.latest():
            return
        items, self._size = _items(state), size(state)
        args: dict[str, Any] = {name: ocp.args.StandardSave(item) for name, item in items.items()}
        sums = checksums(named(items)) if jax.process_index() == 0 else {}  # Orbax writes the first one's
        args[SUMS] = ocp.args.JsonSave({"step": step, "arrays": sums})
        with self._writing():
            self._manager.wait_until_finished()
            self._probe()
            self._others = set(threading.enumerate())
            saved = self._manager.save(step, args=ocp.args.Composite(**args))
        if not saved:  # Orbax refuses a step before its newest
            newer = self._directory / str(self.latest())
            raise SimclrError(f"{newer}: is in the way of a checkpoint of step {step}; move it away")

    def check(self) -> None:
        """Raises the error of a failed write in the background, if there is one."""
        with self._writing():
            self._manager.check_for_errors()

    def preempted(self, call: int) -> bool:
        """Whether a pod's scheduler has announced the end; all processes agree on the call.

        Args:
          call: goes up by one a time; JAX agrees on the number to stop at in advance.
        """
        return jax.process_count() > 1 and multihost_utils.reached_preemption_sync_point(call)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        several = jax.process_count() > 1
        if kind is None or issubclass(kind, Preempted):
            try:
                self.close()
            except StorageError:
                if not several:
                    self._abandon()
                raise
        elif issubclass(kind, DivergedError) or (not several and not issubclass(kind, StorageError)):
            self._close_quietly()  # all processes are here
        elif not several or kind is KeyboardInterrupt:  # otherwise the others may wait for this process
            self._abandon()

    def _abandon(self) -> None:
        """Closes everything it can, and ends threads that wait for a failed thread."""
        closing = threading.Thread(target=self._close_quietly, daemon=True)
        closing.start()
        closing.join(0 if self._failed else PATIENCE)
        end, quiet_since = time.monotonic() + PATIENCE, time.monotonic()
        while time.monotonic() < min(end, quiet_since + QUIET):  # some begin to wait only now
            left = orbax_threads.abandon(set(threading.enumerate()) - self._others)
            closing.join(0.1)
            time.sleep(0.1)
            if left or closing.is_alive():
                quiet_since = time.monotonic()

    def close(self) -> None:
        """Waits until all checkpoints are on disk."""
        with self._writing():
            self._manager.wait_until_finished()
            self._manager.close()
        self._quiet.end()

    def _close_quietly(self) -> None:
        """Closes without raising: the first failure is the more useful one."""
        with contextlib.suppress(Exception):
            self.close()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            with storage.writing(self._directory, self._size):
                yield
        except StorageError:
            self._failed = True
            raise

    def _probe(self) -> None:
        """Fails early if the disk is not writable: Orbax would fail in one thread and hang in others."""
        if jax.process_index() == 0 and not paths.is_remote(self._directory):
            (self._directory / PROBE).mkdir(parents=True, exist_ok=True)
            (self._directory / PROBE).rmdir()


def size(state: TrainState) -> int:
    """Bytes of a checkpoint of the state; the leaves may be shapes."""
    return OVERHEAD + sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(_items(state)))


def _items(state: TrainState) -> dict[str, Any]:
    return {name: getattr(state, name) for name in PARTS if getattr(state, name)}


# ---- reading ------------------------------------------------------------------------------------


class Saved(NamedTuple):
    """A checkpoint that was read whole."""

    step: int
    arrays: dict[str, np.ndarray]  # by name, 'params/encoder/conv1/kernel'
    checked: bool  # against checksums, which older versions did not write


def saved_steps(directory: epath.PathLike) -> list[int]:
    """The steps whose checkpoints were written to the end, in order."""
    directory = epath.Path(directory)
    return sorted(ocp.utils.checkpoint_steps(directory)) if directory.is_dir() else []


def read(directory: epath.PathLike, step: int, parts: Sequence[str] = PARTS) -> Saved:
    """Reads the given `parts` of a checkpoint, if present, as NumPy, and compares them with their checksums.

    It uses no collectives.

    Raises:
      DamagedError: a file of it is missing, cannot be read, or holds other numbers than were saved.
    """
    folder = paths.absolute(directory) / str(step)
    try:
        there = {path.name for path in folder.iterdir()}
        sums = _sums(folder, step) if SUMS in there else None
        wanted = [name for name in parts if name in _parts(folder, there, sums)]
        arrays = named({name: _read_item(folder / name) for name in wanted})
        broken = _broken(arrays, sums, wanted)
    except MemoryError:
        raise
    except Exception as error:  # Orbax and TensorStore raise many types for a damaged file
        if not _is_damage(error):
            raise SimclrError(f"{folder}: cannot be read now ({one_line(error)}); try again") from None
        raise DamagedError(f"{folder}: damaged ({one_line(error)})") from None
    if broken:
        raise DamagedError(f"{folder}: damaged ({broken})")
    return Saved(step, arrays, sums is not None)


def newest(
    directory: epath.PathLike, parts: Sequence[str] = PARTS
) -> tuple[Saved | None, list[DamagedError]]:
    """The newest intact checkpoint (None if there is none), and the errors of newer ones.

    Raises:
      DamagedError: there are checkpoints, and none is whole.
    """
    damaged: list[DamagedError] = []
    for step in reversed(saved_steps(directory)):
        try:
            return read(directory, step, parts), damaged
        except DamagedError as error:
            damaged.append(error)
    if damaged:
        raise DamagedError(
            f"{'; '.join(map(str, damaged))}: no checkpoint there is whole; bring one back from a copy, or "
            "choose another --workdir"
        )
    return None, []


def read_parameters(directory: epath.PathLike, step: int = 0) -> tuple[int, Any, Any]:
    """(step, params, model_state) of a run, as NumPy; of the newest whole checkpoint where step is 0.

    Raises:
      SimclrError: there is no such checkpoint, or it is damaged.
    """
    directory, parts = paths.absolute(directory), ("params", "model_state")
    found = saved_steps(directory)
    if not found:
        raise SimclrError(f"{directory}: no checkpoint there; train that run first")
    if step and step not in found:
        raise SimclrError(f"{directory}: no checkpoint {step}; there are: {', '.join(map(str, found))}")
    if step:
        saved = read(directory, step, parts)
    else:
        saved, damaged = newest(directory, parts)
        assert saved is not None  # as some are there
        for error in damaged if jax.process_index() == 0 else ():
            print(f"note: {error}; taking the one of step {saved.step}")
    tree = run_summary.nest(saved.arrays)
    return saved.step, tree["params"], tree.get("model_state", {})


def fill(like: TrainState, saved: Saved, where: str) -> TrainState:
    """The state `like` with a checkpoint's numbers, on its devices.

    Raises:
      SimclrError: the checkpoint is of another model or optimiser.
    """
    parts = {name: getattr(like, name) for name in PARTS}
    mine = {name: leaf.shape for name, leaf in named(parts).items()}
    theirs = {name: array.shape for name, array in saved.arrays.items()}
    if differing := [n for n in sorted(mine.keys() | theirs.keys()) if mine.get(n) != theirs.get(n)]:
        name = differing[0]
        sizes = [list(shapes[name]) if name in shapes else "missing" for shapes in (theirs, mine)]
        raise SimclrError(
            f"{where}: does not hold this config's model and optimiser ({name}: {sizes[0]} there, {sizes[1]} "
            "by the config); choose another --workdir"
        )

    def place(path: Any, leaf: jax.Array) -> jax.Array:
        return sharding.put_same(saved.arrays[_name(path)].astype(leaf.dtype), leaf.sharding)

    step = sharding.put_same(np.asarray(saved.step, like.step.dtype), like.step.sharding)
    return like.replace(step=step, **jax.tree_util.tree_map_with_path(place, parts))


def _is_damage(error: Exception) -> bool:
    """Whether the files are damaged, as opposed to an error of disk, network or permissions."""
    if isinstance(error, OSError):
        return isinstance(error, FileNotFoundError | NotADirectoryError | IsADirectoryError)
    return not TRANSIENT.search(str(error))


def _sums(folder: epath.Path, step: int) -> dict[str, str]:
    text = json.loads((folder / SUMS / "metadata").read_text())
    if text["step"] != step:
        raise ValueError(f"it was saved as step {text['step']}")
    return text["arrays"]


def _parts(folder: epath.Path, there: set[str], sums: dict[str, str] | None) -> list[str]:
    """The parts that a checkpoint must have."""
    if sums is not None:
        return [name for name in PARTS if any(array.startswith(f"{name}/") for array in sums)]
    if "params" not in there:
        raise FileNotFoundError(f"{folder / 'params'} is missing")
    return [name for name in PARTS if name in there]


def _read_item(folder: epath.Path) -> Any:
    """One part of a checkpoint, without collectives."""
    me = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(me, {me}, f"reader{me}")
    # Use the handler itself: a Checkpointer warns of missing metadata.
    handler = ocp.PyTreeCheckpointHandler(multiprocessing_options=alone)
    with orbax_threads.quiet(), contextlib.closing(handler):
        tree = handler.metadata(folder).tree
        as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
        return handler.restore(folder, args=ocp.args.PyTreeRestore(restore_args=as_numpy))


# ---- names and checksums --------------------------------------------------------------------------


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def named(tree: Any) -> dict[str, Any]:
    """{'params/encoder/conv1/kernel': array, ...}."""
    return {_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def checksums(arrays: dict[str, Any]) -> dict[str, str]:
    """{name: 'float32[3,3,1,32] 1c291ca3'}: type, shape and CRC-32 of each array."""

    def one(array: Any) -> str:
        array = np.asarray(array)
        shape = ",".join(map(str, array.shape))
        raw = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        crc = zlib.crc32(raw)  # pyright: ignore[reportArgumentType]  # arrays are buffers
        return f"{array.dtype}[{shape}] {crc:08x}"

    with concurrent.futures.ThreadPoolExecutor() as pool:  # zlib lets other threads run
        return dict(zip(arrays, pool.map(one, arrays.values()), strict=True))


def _broken(arrays: dict[str, np.ndarray], sums: dict[str, str] | None, parts: Sequence[str]) -> str:
    """What differs from the checksums, "" for nothing."""
    if sums is None:
        return ""
    expected = {name: value for name, value in sums.items() if name.split("/")[0] in parts}
    if missing := expected.keys() ^ arrays.keys():
        return f"{min(missing)} is not what was saved"
    found = checksums(arrays)
    wrong = [name for name in expected if found[name] != expected[name]]
    return f"{wrong[0]} holds other numbers than were saved" if wrong else ""
