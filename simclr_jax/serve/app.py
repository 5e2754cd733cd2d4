"""The routes of the service."""

import asyncio
import base64
import contextlib
import hashlib
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from simclr_jax.serve import upload
from simclr_jax.serve.answers import Answer, Problem
from simclr_jax.serve.batching import OverloadError
from simclr_jax.serve.door import AGAIN, Door, Refusal
from simclr_jax.serve.service import Service, Settings
from simclr_jax.version import __version__

PAGE = Path(__file__).with_name("page.html")
MOST_TOP = 100


def secured_page() -> HTMLResponse:
    """The page; its own script and style alone may run in it, and it talks to nobody but this service."""
    text = PAGE.read_text(encoding="utf-8")
    policy = ["default-src 'none'", "connect-src 'self'", "img-src blob: data:", "base-uri 'none'",
              "form-action 'none'", "frame-ancestors 'none'"]  # fmt: skip
    for tag in ("script", "style"):
        inner = re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)[0]
        digest = base64.b64encode(hashlib.sha256(inner.encode()).digest()).decode()
        policy.append(f"{tag}-src 'sha256-{digest}'")
    return HTMLResponse(text, headers={"content-security-policy": "; ".join(policy)})


def create(settings: Settings) -> Door:
    """The whole application (ASGI)."""
    service = Service(settings)

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service.batcher.start()
        first = asyncio.create_task(service.first_run())
        yield
        await first
        await asyncio.to_thread(service.batcher.stop)
        service.pool.shutdown(wait=False, cancel_futures=True)

    app = FastAPI(
        title="simclr serve",
        description="Embeddings, neighbours and classes of images.",
        version=__version__,
        docs_url=None,  # these pages load scripts from elsewhere
        redoc_url=None,
        lifespan=lifespan,
    )
    app.state.service = service
    door = Door(app, settings.limits, settings.token, settings.local)
    service.batcher.seen = door.metrics.batch.observe
    door.metrics.queue.set_function(lambda: service.batcher.inside)
    _answer_errors(app)
    _watch(app, service, door)
    _serve(app, service)
    return door


def _answer_errors(app: FastAPI) -> None:
    """Every error is JSON with a reason."""

    async def refused(_: Request, error: Exception) -> Response:
        assert isinstance(error, Refusal)
        return JSONResponse({"error": error.why}, error.code, error.headers)

    async def full(_: Request, error: Exception) -> Response:
        return JSONResponse({"error": "too many images wait"}, 503, AGAIN)

    async def left(_: Request, error: Exception) -> Response:
        return Response(status_code=400)  # nobody reads it

    async def invalid(_: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        first = error.errors()[0]
        return JSONResponse({"error": f"{first['loc'][-1]}: {first['msg']}"}, 422)

    async def http(_: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return JSONResponse({"error": str(error.detail)}, error.status_code, error.headers)

    async def broken(_: Request, error: Exception) -> Response:
        return JSONResponse({"error": "the service failed; its log has the reason"}, 500)

    for kind, handler in (
        (Refusal, refused), (OverloadError, full), (ClientDisconnect, left),
        (RequestValidationError, invalid), (HTTPException, http), (Exception, broken),
    ):  # fmt: skip
        app.add_exception_handler(kind, handler)


def _watch(app: FastAPI, service: Service, door: Door) -> None:
    """Routes for those who watch the service."""

    @app.get("/healthz", summary="200 while the process answers")
    async def healthz() -> dict[str, str]:
        return {"status": "alive"}

    @app.get("/readyz", summary="200 once the model ran, 503 before that and while stopping")
    async def readyz() -> Response:
        ready = service.ran and not door.stopping
        word = "stopping" if door.stopping else "ready" if ready else "loading"
        return JSONResponse({"status": word}, 200 if ready else 503)

    @app.get("/metrics", summary="For Prometheus")
    async def metrics() -> Response:
        return Response(generate_latest(door.metrics.registry), media_type=CONTENT_TYPE_LATEST)


def _serve(app: FastAPI, service: Service) -> None:
    """The routes that the service is for."""
    page, limits = secured_page(), service.settings.limits
    codes: dict[int | str, dict[str, Any]] = {
        code: {"model": Problem} for code in (400, 401, 408, 413, 415, 422, 503)
    }
    codes[200] = {"model": Answer}

    @app.get("/", include_in_schema=False)
    async def show() -> Response:
        return page

    @app.get("/about", summary="What is served, and its limits")
    async def about() -> dict[str, Any]:
        return service.about()

    @app.post(
        "/embed",
        summary="What is told of images",
        responses=codes,
        openapi_extra={"requestBody": upload.BODY},
    )
    async def embed(
        request: Request,
        top: Annotated[int, Query(ge=0, le=MOST_TOP, description="neighbours of each image")] = 12,
        classes: Annotated[int, Query(ge=0, description="the most likely classes of each image")] = 5,
        embedding: Annotated[bool, Query(description="whether to send the embedding")] = True,
    ) -> Response:
        files = await upload.files_of(request, limits)
        found = await service.embed(files, top)
        pairs = zip(files, found, strict=True)
        results = [service.result(name, each, embedding, classes) for (name, _), each in pairs]
        return JSONResponse({"results": results})

    @app.get("/images/{row}", summary="A small picture of a row of the index", response_class=Response)
    async def picture(row: int) -> Response:
        loop = asyncio.get_running_loop()
        content = await loop.run_in_executor(service.pool, service.thumbnail, row)
        return Response(content, media_type="image/jpeg", headers={"cache-control": "private, max-age=3600"})
