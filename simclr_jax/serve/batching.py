"""Images of concurrent requests go through the encoder together."""

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any, NamedTuple

import numpy as np


class OverloadError(Exception):
    """No room is left; the same request may succeed a moment later."""


class Item(NamedTuple):
    """One image that waits."""

    pixels: np.ndarray
    top: int  # neighbours wanted
    answer: "Future[dict[str, Any]]"


class Batcher:
    """One thread that runs the model on what waits.

    Args:
      run: stacked pixels `[n, ...]` and the most neighbours wanted, to n answers.
      most: images in a batch.
      wait: seconds to wait for images that are being decoded; without such a batch starts at once.
      room: images at a time, decoded or waiting.
      seen: is told the size of every batch.
    """

    def __init__(
        self,
        run: Callable[[np.ndarray, int], list[dict[str, Any]]],
        most: int,
        wait: float,
        room: int,
        seen: Callable[[int], Any] = lambda size: None,
    ):
        self.run, self.most, self.wait, self.room, self.seen = run, most, wait, room, seen
        self.inside = 0  # images that were admitted and have no answer; only the event loop changes it
        self._queue: queue.Queue[Item | None] = queue.Queue()
        self._thread = threading.Thread(target=self._work, daemon=True, name="encoder")

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread after the images that wait."""
        self._queue.put(None)
        self._thread.join()

    @contextlib.contextmanager
    def admit(self, images: int) -> Iterator[None]:
        """Room for images in the `with` block; call it in the event loop.

        Raises:
          OverloadError: there is none.
        """
        if self.inside + images > self.room:
            raise OverloadError
        self.inside += images
        try:
            yield
        finally:
            self.inside -= images

    def submit(self, pixels: np.ndarray, top: int) -> "Future[dict[str, Any]]":
        """The answer for one image, later."""
        item = Item(pixels, top, Future())
        self._queue.put(item)
        return item.answer

    def _work(self) -> None:
        while (first := self._queue.get()) is not None:
            batch, last = self._collected(first)
            sizes = {item.pixels.shape for item in batch}
            for size in sizes:  # one, unless the graph could not be cut behind preprocessing
                self._answer([item for item in batch if item.pixels.shape == size])
            if last:
                return

    def _collected(self, first: Item) -> tuple[list[Item], bool]:
        """(the images of a batch, whether the thread is to end)."""
        batch, until = [first], time.monotonic() + self.wait
        while len(batch) < self.most:
            # Whoever is alone need not wait.
            patience = max(0.0, until - time.monotonic()) if self.inside > len(batch) else 0.0
            try:
                item = self._queue.get(timeout=patience) if patience else self._queue.get_nowait()
            except queue.Empty:
                break
            if item is None:
                return batch, True
            batch.append(item)
        return batch, False

    def _answer(self, batch: list[Item]) -> None:
        batch = [item for item in batch if item.answer.set_running_or_notify_cancel()]
        if not batch:
            return
        self.seen(len(batch))
        try:
            top = max(item.top for item in batch)
            answers = self.run(np.stack([item.pixels for item in batch]), top)
        except Exception as error:
            for item in batch:
                item.answer.set_exception(error)
            return
        for item, answer in zip(batch, answers, strict=True):
            item.answer.set_result(answer)
