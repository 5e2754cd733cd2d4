"""Measures speed and writes metrics: JSONL, TensorBoard, W&B, and the progress bar."""

import contextlib
import json
import math
import os
import socket
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from etils import epath

from simclr_jax import files, storage, wandb_run
from simclr_jax.errors import StorageError

JSONL = "metrics.jsonl"


def read_rows(workdir: epath.PathLike) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl, without unreadable lines such as one that a kill cut short."""
    return _read_lines(epath.Path(workdir) / JSONL)[0]


def _read_lines(path: epath.Path) -> tuple[list[dict[str, Any]], int]:
    """(rows, number of unreadable lines); the last line may be cut short and does not count."""
    lines = files.read_text(path).splitlines() if path.is_file() else []
    rows = []
    for line in lines:
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        rows.append(row if isinstance(row, dict) and type(row.get("step")) is int else None)
    broken = sum(row is None for row in rows[:-1])
    return [row for row in rows if row is not None], broken


class Writers:
    """Writes rows of numbers to every destination in the config; writes nothing unless `enabled`."""

    def __init__(
        self,
        workdir: epath.PathLike,
        restored_step: int,
        *,
        tensorboard: bool = True,
        wandb_project: str | None = None,
        config: Mapping[str, Any] | None = None,
        enabled: bool = True,
    ):
        self._jsonl = self._events = self._wandb = None
        if not enabled:
            return
        workdir = epath.Path(workdir)
        self._path = workdir / JSONL
        # Drop rows after the restored step: they will be written again. Drop a line cut short: it would spoil
        # the next one.
        rows, broken = _read_lines(workdir / JSONL)
        if broken:
            place = files.set_aside(workdir / JSONL, workdir)
            print(f"note: {JSONL} has {broken} unreadable lines, which are left out; as it was: {place}")
        rows = [row for row in rows if row["step"] <= restored_step]
        files.write(workdir / JSONL, "".join(json.dumps(row) + "\n" for row in rows))
        with storage.writing(self._path):
            self._jsonl = self._path.open("a")
        if tensorboard:
            self._events = _Events(workdir, restored_step)
        if wandb_project:
            self._wandb = wandb_run.start(workdir, wandb_project, config)

    def write(self, step: int, row: Mapping[str, float]) -> None:
        """Appends `{"step": step, **row}`; NaN and infinity become null, because JSON has neither."""
        if self._jsonl:
            finite = {k: v if math.isfinite(v) else None for k, v in row.items()}
            with storage.writing(self._path):
                self._jsonl.write(json.dumps({"step": step, **finite}) + "\n")
                self._jsonl.flush()
        if self._events:
            self._events.write(step, row)
        if self._wandb:
            self._wandb.log(dict(row), step=step)

    def close(self) -> None:
        """Closes the files."""
        if self._jsonl:
            with storage.writing(self._path):
                self._jsonl.close()
        if self._events:
            self._events.close()
        if self._wandb:
            self._wandb.finish()

    def __enter__(self) -> "Writers":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        # A disk that failed once fails again here, and the first failure says more.
        with contextlib.suppress(StorageError) if kind else contextlib.nullcontext():
            self.close()


class _Events:
    """A TensorBoard event file, through the tensorboard package alone: no TensorFlow."""

    def __init__(self, workdir: epath.Path, restored_step: int):
        from tensorboard.compat.proto import event_pb2, summary_pb2
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._event, self._summary = event_pb2, summary_pb2
        name = f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}.{os.getpid()}"
        self._path = workdir / name
        with storage.writing(self._path):
            self._file = RecordWriter(self._path.open("wb"))
        self._put(file_version="brain.Event:2")
        # START makes TensorBoard forget what an earlier attempt wrote past this step.
        start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._put(step=restored_step + 1, session_log=start)

    def _put(self, **fields: Any) -> None:
        event = self._event.Event(wall_time=time.time(), **fields)
        with storage.writing(self._path):
            self._file.write(event.SerializeToString())
            self._file.flush()

    def write(self, step: int, row: Mapping[str, float]) -> None:
        values = [self._summary.Summary.Value(tag=k, simple_value=v) for k, v in row.items()]
        self._put(step=step, summary=self._summary.Summary(value=values))

    def close(self) -> None:
        with storage.writing(self._path):
            self._file.close()


class Progress:
    """A bar on a terminal, plain lines elsewhere: step, rate, ETA, loss, input-wait share."""

    def __init__(
        self, start: int, total: int, every_seconds: float = 10.0, enabled: bool = True, unit: str = "step"
    ):
        self._start, self._total, self._every, self._enabled = start, total, every_seconds, enabled
        self._unit, self._units = unit, unit + ("es" if unit.endswith("ch") else "s")
        self._begin = self._printed = time.perf_counter()
        self._step, self._note = start, ""
        self._bar = None
        if enabled and sys.stderr.isatty():
            from tqdm import tqdm

            aside = {} if unit == "step" else {"leave": False, "delay": 3}  # short jobs show no bar
            self._bar = tqdm(
                total=total, initial=start, unit=unit, dynamic_ncols=True, smoothing=0.1, **aside
            )

    def step(self, step: int) -> None:
        """Shows that `step` updates have been dispatched."""
        if self._bar is not None:
            self._bar.update(step - self._step)
        self._step = step
        now = time.perf_counter()
        if not self._enabled or self._bar is not None:
            return
        due = step == self._total and (self._unit == "step" or self._printed > self._begin)
        if now - self._printed > self._every or due:
            self._printed = now
            rate = (step - self._start) / max(now - self._begin, 1e-9)
            left = (self._total - step) / rate
            eta = f"{int(left) // 60}:{int(left) % 60:02d}"
            percent = 100 * step / self._total
            print(f"{self._unit} {step}/{self._total} ({percent:.0f} %)  {rate:.3g} {self._units}/s  "
                  f"ETA {eta}  {self._note}", flush=True)  # fmt: skip

    def note(self, row: Mapping[str, float]) -> None:
        """Shows the latest measurements next to the rate."""
        shown = (
            ("loss", "loss", "{:.3f}"),
            ("accuracy", "contrast_accuracy", "{:.1%}"),
            ("images/s", "images_per_second", "{:.0f}"),
            ("input wait", "data_wait", "{:.0%}"),
        )
        self.tell("  ".join(f"{k} {f.format(row[key])}" for k, key, f in shown if key in row))

    def tell(self, text: str) -> None:
        """Shows any text next to the rate."""
        self._note = text
        if self._bar is not None:
            self._bar.set_postfix_str(text)

    def say(self, text: str) -> None:
        """Prints a line without tearing the bar."""
        if self._bar is not None:
            self._bar.write(text, file=sys.stdout)
        elif self._enabled:
            print(text, flush=True)

    def close(self) -> None:
        """Ends the bar."""
        if self._bar is not None:
            self._bar.close()


def watched(batches: Iterable[Any], total: int, unit: str, enabled: bool = True) -> Iterator[Any]:
    """Yields the `total` batches and shows progress: rate, ETA, share of the time spent waiting."""
    progress, begin, waited, done = (
        Progress(0, total, enabled=enabled, unit=unit),
        time.perf_counter(),
        0.0,
        0,
    )
    source = iter(batches)
    try:
        while True:
            asked = time.perf_counter()
            batch = next(source, None)
            waited += time.perf_counter() - asked
            if batch is None:
                return
            yield batch
            done += 1
            progress.note({"data_wait": waited / (time.perf_counter() - begin)})
            progress.step(done)
    finally:
        progress.close()


class Clock:
    """Wall-clock seconds by phase."""

    def __init__(self) -> None:
        self._begin = time.perf_counter()
        self.seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Adds the time inside `with` to the phase `name`."""
        begin = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - begin

    def all(self) -> dict[str, float]:
        """The phases and the total so far."""
        return {**self.seconds, "total": time.perf_counter() - self._begin}


class Meter:
    """Measures the speed of training without the time between `pause` and `resume`.

    Args:
      batch_size: source images a step.
      waited: returns the seconds that the device has waited for input so far.
    """

    def __init__(self, batch_size: int, waited: Callable[[], float]):
        self._batch_size, self._waited = batch_size, waited
        self._mark = time.perf_counter()
        self._since_read = self.seconds = 0.0
        self._steps_read, self._wait_read = 0, 0.0

    def pause(self) -> None:
        """Stops the timer; drain the device first."""
        now = time.perf_counter()
        self._since_read += now - self._mark
        self.seconds += now - self._mark
        self._mark = now

    def resume(self) -> None:
        """Starts the timer again."""
        self._mark = time.perf_counter()

    def read(self, steps: int) -> dict[str, float]:
        """Source images per second and input-wait share since the last call; `steps` are done so far."""
        self.pause()
        elapsed, self._since_read = max(self._since_read, 1e-9), 0.0
        done, self._steps_read = steps - self._steps_read, steps
        waited = self._waited()
        wait, self._wait_read = waited - self._wait_read, waited
        return {"images_per_second": done * self._batch_size / elapsed, "data_wait": wait / elapsed}

    def totals(self, steps: int) -> dict[str, float]:
        """Like `read`, but over all steps."""
        self.pause()
        seconds = max(self.seconds, 1e-9)
        return {
            "images_per_second": steps * self._batch_size / seconds,
            "data_wait": self._waited() / seconds,
        }
