"""uvicorn with the limits and the end that a service needs."""

import asyncio
import contextlib
import signal
import socket
import time
from collections.abc import Iterator
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from simclr_jax.serve.door import Door

HEAD = 10.0  # seconds for the headers of a request
CONNECTIONS = 512  # at a time; most systems give a process 1,024 files
GRACE = 30.0  # seconds for requests that are being answered when a signal comes


class Protocol(H11Protocol):
    """Closes connections that send no request: uvicorn would wait for ever for the rest of the headers."""

    _late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """Of uvicorn; there is room for so many."""
        super().connection_made(transport)
        if len(self.connections) > CONNECTIONS:
            transport.abort()
        else:
            self._watch()

    def data_received(self, data: bytes) -> None:
        """Of uvicorn; parts of headers do not start the clock again."""
        super().data_received(data)
        self._watch()

    def send_400_response(self, msg: str) -> None:
        """Of uvicorn, which fails at noise behind the last answer of a connection."""
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            super().send_400_response(msg)
        else:
            self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """Of uvicorn."""
        super().connection_lost(exc)
        self._forget()

    def _watch(self) -> None:
        if self.cycle is not None and not self.cycle.response_complete:
            self._forget()
        elif self._late is None and not self.transport.is_closing():
            self._late = self.loop.call_later(HEAD, self._close)

    def _close(self) -> None:
        if self.cycle is None or self.cycle.response_complete:
            self.transport.abort()

    def _forget(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None


class Server(uvicorn.Server):
    """Ends with 0 after SIGTERM or Ctrl-C; what is being answered is finished, what comes is refused."""

    def __init__(self, door: Door):
        super().__init__(
            uvicorn.Config(
                door,
                http=Protocol,
                ws="none",
                lifespan="on",
                log_level="error",
                access_log=False,
                server_header=False,
                proxy_headers=False,
                h11_max_incomplete_event_size=16 << 10,  # headers
                timeout_graceful_shutdown=5,
            )
        )
        self.door, self.until, self.service = door, 0.0, door.app.state.service

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Of uvicorn, which would end by the signal."""
        before = {n: signal.signal(n, self.handle_exit) for n in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: Any) -> None:
        """The first signal stops, the second ends at once."""
        self.should_exit = self.force_exit = self.door.stopping
        self.until = self.until or time.monotonic() + GRACE
        self.door.stopping = True

    async def on_tick(self, counter: int) -> bool:
        """Of uvicorn, ten times a second: whether to end."""
        if await super().on_tick(counter) or self.service.failure:
            return True
        return self.door.stopping and (not self.door.inside or time.monotonic() > self.until)


def bound(host: str, port: int) -> socket.socket:
    """A socket that listens; port 0 takes a free one.

    Raises:
      OSError: the address is in use or not of this machine.
    """
    family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
    made = socket.create_server((host, port), family=family, backlog=1024)
    if hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux; accepted connections have it too
        # A client that does not read its answer would keep its connection, one of CONNECTIONS, for ever.
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(GRACE * 1000))
    return made
