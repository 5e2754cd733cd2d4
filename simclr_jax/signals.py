"""SIGTERM and Ctrl-C: a run saves and stops, everything else stops at once, a second signal always does.

A command calls `take` before it imports anything slow. From then on a signal ends the process with one line
and the exit code 128 + its number. If there is something to save or to finish, `Signals` handles the first
signal instead. In a library, handlers exist only within `Signals`, and no signal ends the process at once.

Python runs handlers in the main thread after it returns from C++, and a compilation takes minutes. So a
thread of the command reads from `signal.set_wakeup_fd`, which is written at once, and ends the process.
"""

import contextlib
import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

NUMBERS = (signal.SIGINT, signal.SIGTERM)
WORDS = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}
AGAIN = 1.0  # seconds in which a repetition is the same signal: `timeout` and wrappers send it twice
PATIENCE = 2.0  # seconds for last words: a pipe may be full, a file system gone

_last_words: list[Callable[[], None]] = []


class _Command:
    """State of a command's process: its last line, and the `Signals` that listens at present."""

    def __init__(self, goes_on: str):
        self.goes_on = goes_on
        self.listener: Signals | None = None
        self.ending = threading.Lock()
        self.jax_hears: int = 0  # address of the C function with which JAX hears SIGTERM

    def watch(self, source: int) -> None:
        """Reads signals as they come; the first one is the listener's, where there is one."""
        while number := os.read(source, 1)[0]:
            listener = self.listener
            if number in NUMBERS and (listener is None or listener.is_second(number)):
                self.end(number)

    def handle(self, number: int, _: Any) -> None:
        """In the main thread."""
        if self.listener is None:
            self.end(number)
        else:
            self.listener.note(number)

    def end(self, number: int) -> None:
        """One line, and the end, without waiting for threads or other processes."""
        if not self.ending.acquire(blocking=False):
            time.sleep(2 * PATIENCE)  # the other thread is at it
        words = threading.Thread(target=_say_last_words, daemon=True)
        words.start()
        words.join(PATIENCE)
        line = f"error: {WORDS[signal.Signals(number)]}; the same command {self.goes_on}\n"
        with contextlib.suppress(OSError):  # not print: the main thread may be printing
            os.write(2, ("\n" * os.isatty(2) + line).encode())
        os._exit(128 + number)


_command: _Command | None = None


def take(goes_on: str) -> None:
    """For a command: SIGTERM and Ctrl-C end the process at once from now on, 130 and 143, with one line.

    Args:
      goes_on: what the same command will do, "goes on from the last checkpoint" say.
    """
    global _command
    _command = _Command(goes_on)
    source, target = os.pipe()
    os.set_blocking(target, False)
    threading.Thread(target=_command.watch, args=(source,), daemon=True, name="signals").start()
    signal.set_wakeup_fd(target, warn_on_full_buffer=False)
    for number in NUMBERS:
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup, and a shell's background, ignore them
            signal.signal(number, _command.handle)


@contextlib.contextmanager
def shared_with_jax() -> Iterator[None]:
    """Context manager for the start of JAX's distributed service, which installs its own SIGTERM handler.

    The command restores its handler, and passes SIGTERM on to JAX if the processes agree on a last step.
    """
    ours = _c_handler(signal.SIGTERM)
    yield
    theirs = _c_handler(signal.SIGTERM)
    if _command is not None and theirs != ours:
        _command.jax_hears = theirs
        signal.signal(signal.SIGTERM, _command.handle)


@contextlib.contextmanager
def last_word(do: Callable[[], None]) -> Iterator[None]:
    """In the `with` block, a signal that ends the command first calls this function; it must be quick."""
    _last_words.append(do)
    try:
        yield
    finally:
        _last_words.remove(do)


class Signals:
    """Between `hear` and `forget`, the first SIGTERM sets `received`, and no Ctrl-C gets lost.

    A second signal ends the process: a command at once, a library's by the handler that was there before.
    Outside the main thread signals are someone else's business.

    Args:
      several: this is one of several processes, which agree through JAX: a command passes SIGTERM on to it.
    """

    def __init__(self, several: bool = False) -> None:
        self.received = False  # SIGTERM
        self._passed_on = False  # ... to JAX, which may have no step left to stop at
        self._several = several
        self._interrupted = self._deferring = False
        self._first: tuple[int, float] | None = None  # the first signal, and when it came
        self._outer: Signals | None = None
        self._before: dict[int, Any] = {}

    def hear(self) -> None:
        """Begins to listen."""
        if threading.current_thread() is not threading.main_thread():
            return
        if _command is not None:
            if not self._several or _command.jax_hears:
                self._outer, _command.listener = _command.listener, self
        elif not self._several:
            handlers = {number: signal.getsignal(number) for number in NUMBERS}
            self._before = {n: handler for n, handler in handlers.items() if handler is not None}
            for number in self._before:
                signal.signal(number, self._handle)

    def forget(self) -> None:
        """Stops listening; restores the previous handlers."""
        if _command is not None and _command.listener is self:
            _command.listener = self._outer
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def is_second(self, number: int) -> bool:
        """Records a signal; returns whether it is a second one and no repetition of the first."""
        now = time.monotonic()
        self._first = self._first or (number, now)
        return number != self._first[0] or now - self._first[1] > AGAIN

    def note(self, number: int) -> None:
        """Handles the first signal, in the main thread."""
        if number == signal.SIGTERM:
            self.received = not self._several
            self._passed_on = self._several
            if self._several and _command is not None:
                ctypes.CFUNCTYPE(None, ctypes.c_int)(_command.jax_hears)(number)
        elif not self._interrupted:
            self._interrupted = True
            if not self._deferring:
                raise KeyboardInterrupt

    def end_if_late(self) -> None:
        """Ends one of several processes that was told to stop when no step was left to agree on."""
        if self._passed_on and _command is not None:
            _command.end(signal.SIGTERM)

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """Delays a Ctrl-C to the end of the `with` block, so that the block is not left half done."""
        self._deferring = True
        try:
            yield
        finally:
            self._deferring = False
        self.check()

    def check(self) -> None:
        """Raises a delayed Ctrl-C, or one that Python swallowed, for example in a destructor."""
        if self._interrupted:
            raise KeyboardInterrupt

    def _handle(self, number: int, frame: Any) -> None:
        """The handler of a library."""
        if not self.is_second(number):
            self.note(number)
            return
        before = self._before[number]
        if callable(before):
            before(number, frame)
        else:  # the system's own way
            signal.signal(number, before)
            os.kill(os.getpid(), number)

    def __enter__(self) -> "Signals":
        self.hear()
        return self

    def __exit__(self, *_: Any) -> None:
        self.forget()


def _say_last_words() -> None:
    for do in reversed(_last_words):
        with contextlib.suppress(Exception):
            do()
    with contextlib.suppress(Exception):
        sys.stdout.flush()


def _c_handler(number: int) -> int:
    """The address of the C handler of a signal, 0 if there is none or the system does not say."""
    if not sys.platform.startswith("linux"):
        return 0
    action = ctypes.create_string_buffer(1024)  # struct sigaction begins with it
    if ctypes.CDLL(None).sigaction(number, None, action):
        return 0
    return int.from_bytes(action.raw[: ctypes.sizeof(ctypes.c_void_p)], sys.byteorder)
