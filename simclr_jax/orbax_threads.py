"""Threads of Orbax and TensorStore after a failure: they print tracebacks, and wait for each other."""

import contextlib
import logging
import sys
import threading
from collections.abc import Iterable, Iterator
from typing import Any

try:  # not part of Orbax's public interface; a test says when it moves
    from orbax.checkpoint._src.futures import future
except ImportError:
    future: Any = None

LOGS = ("absl", "asyncio")
AFTER = 10.0  # seconds in which threads may still tell of a failure


class Quiet(logging.Filter):
    """Between `begin` and `end`, drops the tracebacks of errors that Orbax raises as well.

    After a failure they come for a while yet: it then never ends.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether a record is logged."""
        theirs = "orbax" in record.pathname or "was never retrieved" in record.getMessage()
        return not (record.exc_info and theirs)

    def begin(self) -> None:
        """Puts it on."""
        for name in LOGS:
            logging.getLogger(name).addFilter(self)
        self._before, sys.unraisablehook = sys.unraisablehook, self._hook

    def end(self) -> None:
        """Takes it off."""
        for name in LOGS:
            logging.getLogger(name).removeFilter(self)
        if sys.unraisablehook == self._hook:
            sys.unraisablehook = self._before

    def _hook(self, unraisable: Any) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            self._before(unraisable)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """The same within `with`, and for a moment after a failure."""
    found = Quiet()
    found.begin()
    try:
        yield
    except BaseException:
        later = threading.Timer(AFTER, found.end)
        later.daemon = True
        later.start()
        raise
    found.end()


def abandon(threads: Iterable[Any]) -> int:
    """Ends threads that wait for one that has failed, as Python would wait for them; how many there were."""
    waiting = [thread for thread in threads if isinstance(thread, getattr(future, "_SignalingThread", ()))]
    for thread in waiting:
        with contextlib.suppress(AttributeError):  # another version of Orbax
            thread.cancel()
            future.set_signals(thread._receive_signals, operation_id=thread._operation_id)
    return len(waiting)
