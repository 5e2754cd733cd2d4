"""What every request passes before the routes: who may, how much, how long; and what is counted."""

import asyncio
import hmac
import json
import re
import time
from typing import Any, NamedTuple

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector

OPEN = ("/", "/healthz", "/readyz", "/openapi.json")  # without a token: they tell nothing
ROUTES = (*OPEN, "/about", "/embed", "/metrics")  # others are counted as one
HERE = ("localhost", "127.0.0.1", "[::1]")
AGAIN = {"retry-after": "1"}
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128)


class Limits(NamedTuple):
    """What one request, and all of them at a time, may take."""

    body: int = 16 << 20  # bytes
    pixels: int = 25_000_000  # of an image; preparing it takes 25 bytes a pixel
    images: int = 16  # in a request
    seconds: float = 30.0  # from the headers to the answer
    requests: int = 64  # at a time
    queue: int = 256  # images at a time


class Refusal(Exception):  # noqa: N818 - the client's mistake, not an error here
    """Ends a request with a code and a reason."""

    def __init__(self, code: int, why: str, headers: dict[str, str] | None = None):
        super().__init__(why)
        self.code, self.why, self.headers = code, why, headers or {}


class Metrics:
    """What Prometheus reads."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self.requests = Counter("simclr_requests", "Requests", ["path", "code"], registry=registry)
        self.seconds = Histogram(
            "simclr_request_seconds", "From headers to answer", ["path"], buckets=SECONDS, registry=registry
        )
        self.batch = Histogram("simclr_batch_images", "Images a batch", buckets=SIZES, registry=registry)
        self.queue = Gauge("simclr_queue_images", "Images decoded or waiting", registry=registry)
        self.inside = Gauge("simclr_requests_inside", "Requests without an answer yet", registry=registry)


class Door:
    """ASGI middleware around the routes.

    Args:
      app: the routes.
      limits: those of requests.
      token: asked for as `Authorization: Bearer`; "" for none.
      local: answer only those who call this machine by its loopback names, so that no page of another site
        reads answers by letting its own name point here (DNS rebinding).
    """

    def __init__(self, app: Any, limits: Limits, token: str, local: bool):
        self.app, self.limits, self.token, self.local = app, limits, token.encode(), local
        self.metrics = Metrics()
        self.inside = 0  # requests
        self.stopping = False

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        path, begin = scope["path"], time.perf_counter()
        answer = _Answer(send)
        self.inside += 1
        self.metrics.inside.set(self.inside)
        try:
            await self._serve(scope, receive, answer)
        finally:
            self.inside -= 1
            self.metrics.inside.set(self.inside)
            shown = "/images" if path.startswith("/images/") else path if path in ROUTES else "other"
            self.metrics.requests.labels(shown, str(answer.code or 499)).inc()  # 499: the client has left
            self.metrics.seconds.labels(shown).observe(time.perf_counter() - begin)

    async def _serve(self, scope: dict[str, Any], receive: Any, answer: "_Answer") -> None:
        body = _Body(receive, self.limits.body)
        try:
            self._check(scope)
            async with asyncio.timeout(self.limits.seconds):
                await self.app(scope, body.receive, answer.send)
        except Refusal as refusal:
            await answer.refuse(refusal)
        except TimeoutError:
            if body.whole:
                await answer.refuse(Refusal(503, f"no answer in {self.limits.seconds:g} s", AGAIN))
            else:
                close = {"connection": "close"}
                await answer.refuse(Refusal(408, f"the body took more than {self.limits.seconds:g} s", close))

    def _check(self, scope: dict[str, Any]) -> None:
        """Raises Refusal for what can be told from the headers."""
        headers = dict(scope["headers"])
        path = scope["path"]
        if path in ("/healthz", "/readyz"):
            return
        if self.stopping:
            raise Refusal(503, "the service is stopping", {**AGAIN, "connection": "close"})
        host = re.sub(r":\d+$", "", headers.get(b"host", b"").decode("latin-1"))
        if self.local and host not in HERE:
            raise Refusal(421, f"this service answers to {', '.join(HERE)}; others need a token")
        if headers.get(b"sec-fetch-site") == b"cross-site" and path != "/":
            raise Refusal(403, "pages of other sites have no access")
        scheme, _, given = headers.get(b"authorization", b"").partition(b" ")
        right = scheme.lower() == b"bearer" and hmac.compare_digest(given, self.token)
        if self.token and path not in OPEN and not right:
            raise Refusal(401, "the token is missing or wrong", {"www-authenticate": "Bearer"})
        if self.inside > self.limits.requests:
            raise Refusal(503, f"{self.limits.requests} requests are being answered", AGAIN)
        length = int(headers.get(b"content-length", b"0")[:15])  # h11 lets only digits pass
        if length > self.limits.body:
            raise Refusal(413, f"the body has {length:,} bytes, above {self.limits.body:,}")


class _Body:
    """Counts what is received; `whole` once all of it is there."""

    def __init__(self, receive: Any, most: int):
        self._receive, self.left, self.most, self.whole = receive, most, most, False

    async def receive(self) -> dict[str, Any]:
        message = await self._receive()
        self.left -= len(message.get("body", b""))
        self.whole = not message.get("more_body", False)
        if self.left < 0:
            raise Refusal(413, f"the body has more than {self.most:,} bytes")
        return message


class _Answer:
    """Notes the code of what is sent, and adds what every answer says to browsers."""

    def __init__(self, send: Any):
        self._send, self.code = send, 0

    async def send(self, message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            self.code = message["status"]
            message["headers"] = [
                *message.get("headers", []),
                (b"x-content-type-options", b"nosniff"),
                (b"referrer-policy", b"no-referrer"),
                (b"cross-origin-resource-policy", b"same-origin"),
            ]
        await self._send(message)

    async def refuse(self, refusal: Refusal) -> None:
        """Sends a refusal, unless something was sent."""
        if self.code:
            return
        content = json.dumps({"error": refusal.why}).encode()
        fixed = {"content-type": "application/json", "content-length": str(len(content))}
        headers = [(k.encode(), v.encode()) for k, v in (fixed | refusal.headers).items()]
        await self.send({"type": "http.response.start", "status": refusal.code, "headers": headers})
        await self._send({"type": "http.response.body", "body": content})
