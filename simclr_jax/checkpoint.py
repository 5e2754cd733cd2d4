"""Checkpoints through Orbax: asynchronous, atomic, the newest N kept, saved on SIGTERM.

Parts of the state are separate items, so that an encoder can be read without its optimiser, and a
checkpoint without `extra` restores into a run that has it.
"""

import signal
import threading
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils

from simclr_jax import sharding
from simclr_jax.errors import Preempted, SimclrError, one_line
from simclr_jax.state import TrainState

PARTS = ("params", "model_state", "opt_state", "extra")


class _Manager(ocp.CheckpointManager):
    """Orbax asks JAX for preemption at every save, by the step; the loop asks by the call: never mix them."""

    def reached_preemption(self, step: int) -> bool:
        """Never: the loop asks."""
        return False


class Checkpoints:
    """The checkpoints `directory/STEP` of a run."""

    def __init__(self, directory: epath.PathLike, keep: int = 3):
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, enable_async_checkpointing=True, create=True)
        self._directory = epath.Path(directory).absolute()
        self._manager = _Manager(self._directory, options=options)

    def latest(self) -> int | None:
        """The newest complete checkpoint's step, None where there is none."""
        return self._manager.latest_step()

    def save(self, state: TrainState) -> None:
        """Starts saving; training may go on (and donate the state) as soon as this returns."""
        step = int(state.step)
        if step == self.latest():
            return
        items = {name: getattr(state, name) for name in PARTS}
        args = {name: ocp.args.StandardSave(item) for name, item in items.items() if item}
        self._manager.save(step, args=ocp.args.Composite(**args))

    def restore(self, step: int, like: TrainState) -> TrainState:
        """The state at `step`, with the shardings of `like`; only its `extra` may be missing on disk.

        Raises:
          SimclrError: the checkpoint is of another model or optimiser.
        """
        saved = {path.name for path in (self._directory / str(step)).iterdir()}
        names = [name for name in PARTS if getattr(like, name) and (name in saved or name != "extra")]
        abstract = {
            name: jax.tree.map(ocp.utils.to_shape_dtype_struct, getattr(like, name)) for name in names
        }
        args = {name: ocp.args.StandardRestore(abstract[name]) for name in names}
        try:
            items = self._manager.restore(step, args=ocp.args.Composite(**args))
        except (ValueError, KeyError, FileNotFoundError) as error:
            raise SimclrError(
                f"{self._directory / str(step)}: does not hold this config's model and optimiser "
                f"({one_line(error)}); choose another --workdir"
            ) from None
        restored_step = sharding.put_same(np.asarray(step, like.step.dtype), like.step.sharding)
        return like.replace(step=restored_step, **{name: items[name] for name in names})

    def preempted(self, call: int) -> bool:
        """Whether a pod's scheduler has announced the end; all processes agree on the call.

        Args:
          call: goes up by one a time; JAX agrees on the number to stop at in advance.
        """
        return jax.process_count() > 1 and multihost_utils.reached_preemption_sync_point(call)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        lost = jax.process_count() > 1 and kind is not None and not issubclass(kind, Preempted)
        if not lost:  # of several processes one has failed: waiting would be for ever
            self.close()

    def close(self) -> None:
        """Waits until what was saved is on disk."""
        self._manager.wait_until_finished()
        self._manager.close()


def saved_steps(directory: epath.PathLike) -> list[int]:
    """The steps whose checkpoints are complete, in order."""
    directory = epath.Path(directory)
    return sorted(ocp.utils.checkpoint_steps(directory)) if directory.exists() else []


def read_parameters(directory: epath.PathLike, step: int = 0) -> tuple[int, Any, Any]:
    """(step, params, model_state) of a run, as NumPy; of the newest checkpoint where step is 0.

    Raises:
      SimclrError: there is no such checkpoint, or it cannot be read.
    """
    directory = epath.Path(directory).absolute()
    found = saved_steps(directory)
    if not found:
        raise SimclrError(f"{directory}: no checkpoint there; train that run first")
    if step and step not in found:
        raise SimclrError(f"{directory}: no checkpoint {step}; there are: {', '.join(map(str, found))}")
    step = step or found[-1]
    parts = {path.name for path in (directory / str(step)).iterdir()}
    names = [name for name in ("params", "model_state") if name in parts or name == "params"]
    handler = ocp.CompositeCheckpointHandler(**{name: ocp.PyTreeCheckpointHandler() for name in PARTS})
    try:
        with ocp.Checkpointer(handler) as reader:
            saved = reader.metadata(directory / str(step)).item_metadata
            args = {}
            for name in names:
                as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), saved[name].tree)
                args[name] = ocp.args.PyTreeRestore(restore_args=as_numpy)
            items = reader.restore(directory / str(step), args=ocp.args.Composite(**args))
    except (ValueError, KeyError, AttributeError, OSError) as error:
        raise SimclrError(f"{directory / str(step)}: cannot be read ({one_line(error)})") from None
    return step, items["params"], items.get("model_state") or {}


class Signals:
    """Within `with`, SIGTERM sets `received` instead of killing the process, and no Ctrl-C gets lost.

    For one process; on several, JAX's coordination service hears SIGTERM (`preempted`).
    """

    def __init__(self) -> None:
        self.received = False  # SIGTERM
        self._interrupted = False
        self._before: dict[int, Any] = {}

    def _note(self, *_: Any) -> None:
        self.received = True

    def _interrupt(self, *_: Any) -> None:
        self._interrupted = True
        raise KeyboardInterrupt

    def check(self) -> None:
        """Raises the KeyboardInterrupt that Python swallows when it comes in a destructor, say."""
        if self._interrupted:
            raise KeyboardInterrupt

    def __enter__(self) -> "Signals":
        # Outside the main thread signals are someone else's business.
        if jax.process_count() == 1 and threading.current_thread() is threading.main_thread():
            handlers = {signal.SIGTERM: self._note, signal.SIGINT: self._interrupt}
            self._before = {number: signal.signal(number, handle) for number, handle in handlers.items()}
        return self

    def __exit__(self, *_: Any) -> None:
        for number, handle in self._before.items():
            signal.signal(number, handle)
