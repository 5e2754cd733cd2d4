"""Batches put on the device ahead of the step, and how long the device waited for them."""

import queue
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from simclr_jax.errors import SimclrError


class Prefetch:
    """Makes `batches` in a thread, `depth` of them ahead.

    `wait_seconds` counts only the time that the accelerator was idle: if no batch is ready, `next` first
    waits for the steps in flight and then starts the timer.
    """

    def __init__(self, batches: Iterator[Any], depth: int = 2):
        self.wait_seconds = 0.0
        self._queue: queue.Queue = queue.Queue(depth)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._fill, args=(batches,), daemon=True)
        self._thread.start()

    def _fill(self, batches: Iterator[Any]) -> None:
        try:
            for batch in batches:
                if not self._offer((batch, None)):
                    return
            self._offer((None, SimclrError("the input ended before the run did")))
        except BaseException as error:  # `next` raises it in the consumer
            self._offer((None, error))

    def _offer(self, item: tuple) -> bool:
        while not self._stop.is_set():
            try:
                self._queue.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def next(self, finish_steps: Callable[[], None] = lambda: None) -> Any:
        """The next batch; raises the exception of `batches`, or SimclrError after the last one.

        Args:
          finish_steps: called when no batch is ready; returns when the device has nothing more to do.
        """
        if self._queue.empty():
            finish_steps()
            begin = time.perf_counter()
            batch, error = self._queue.get()
            self.wait_seconds += time.perf_counter() - begin
        else:
            batch, error = self._queue.get()
        if error is not None:
            self._offer((batch, error))  # for whoever asks again
            raise error
        return batch

    def close(self) -> None:
        """Stops the thread; batches already made are dropped."""
        self._stop.set()
        self._thread.join(timeout=10)
