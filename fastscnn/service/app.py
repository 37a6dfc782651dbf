"""The service as an ASGI application: routes, answers, headers."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator
from concurrent.futures import Future
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
from fastapi import FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from fastapi.staticfiles import StaticFiles
from fastapi_offline import FastAPIOffline
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

import fastscnn
from fastscnn.classes import Classes
from fastscnn.service.limits import BodyLimits, Limits, Message, Queue, Receive, Refusal, Send
from fastscnn.service.metrics import Metrics
from fastscnn.service.workers import Answer, Workers

PAGE = Path(__file__).parent / "page"
Output = Literal["labels", "overlay", "color", "shares"]

#: The page takes nothing from elsewhere; only /docs, which a library draws, has inline scripts.
POLICY = "default-src 'self'; img-src 'self' blob: data:; frame-ancestors 'self'"
DOCS_POLICY = f"{POLICY}; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'"

BODY = {"type": "string", "format": "binary"}
REQUEST_BODY = {
    "required": True,
    "content": {
        **{f"image/{kind}": {"schema": BODY} for kind in ("jpeg", "png", "webp", "bmp")},
        "application/octet-stream": {"schema": BODY},
        "multipart/form-data": {
            "schema": {"type": "object", "properties": {"image": BODY}, "required": ["image"]}
        },
    },
}
RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "A PNG, or JSON where `Accept` asks for it or `output` is `shares`",
        "content": {"image/png": {"schema": BODY}, "application/json": {"schema": {}}},
    },
    408: {"description": "The body came too slowly"},
    413: {"description": "Too many bytes or pixels"},
    415: {"description": "Not a JPEG, PNG, WebP or BMP"},
    422: {"description": "A broken picture or a wrong parameter"},
    429: {"description": "Too many requests at once from this client; see `Retry-After`"},
    503: {"description": "Too many requests at once; see `Retry-After`"},
}


def create_app(workers: Workers, *, limits: Limits | None = None, opacity: float = 0.5) -> FastAPI:
    """The application; it owns `workers` and closes them when it ends.

    `opacity` is that of overlays where a request names none.
    """
    limits = limits or Limits()
    queue = Queue(limits, workers.count)
    metrics = Metrics(lambda: queue.waiting)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(workers.close)

    app = FastAPIOffline(
        redoc_url=None,
        title="fastscnn",
        version=fastscnn.__version__,
        description="Semantic segmentation of street scenes with Fast-SCNN.",
        lifespan=lifespan,
    )
    app.add_middleware(BodyLimits, limits=limits)
    app.add_middleware(_Answered, metrics=metrics)
    _add_errors(app)

    @app.post(
        "/v1/segment",
        summary="Label a picture",
        response_class=Response,
        responses=RESPONSES,
        openapi_extra={"requestBody": REQUEST_BODY},
    )
    async def segment(
        request: Request,
        output: Output = "labels",
        opacity: float = Query(opacity, ge=0, le=1, description="of the overlay"),
    ) -> Response:
        """Labels of a picture, sent as the body or as a file of a form, at the picture's size.

        `labels`: an indexed PNG whose values are classes; `color`: the same in RGB; `overlay`: the
        picture tinted; `shares`: JSON with the classes' names, colours and shares of the pixels.
        With `Accept: application/json` the others come as JSON too: the shares, and the PNG as a
        data URL `picture`.
        """
        with queue.place(request.client.host if request.client else ""):
            data = await _body(request)
            job = workers.submit(data, output, opacity)
            answer = await _answer(request, job, limits, queue)
        metrics.segmented(answer.size[0] * answer.size[1], answer.seconds)
        timing = ", ".join(f"{k};dur={1e3 * v:.1f}" for k, v in answer.seconds.items())
        headers = {"Server-Timing": timing, "Cache-Control": "no-store"}
        if answer.png is not None and not _wants_json(request):
            return Response(answer.png, media_type="image/png", headers=headers)
        return JSONResponse(as_json(answer, workers.classes), headers=headers)

    @app.get("/v1/segment", include_in_schema=False)
    async def address_opened_in_a_browser() -> None:
        refusal = Refusal(405, "send the picture with POST: /docs says how")
        refusal.headers["Allow"] = "POST"
        raise refusal

    @app.get("/healthz", summary="Whether it is up")
    async def healthz() -> dict[str, Any]:
        """That requests are answered, by how many workers, where."""
        return {"status": "ok", "workers": workers.count, "device": str(workers.device)}

    @app.get("/metrics", summary="Figures for Prometheus", response_class=Response)
    async def metrics_text() -> Response:
        """For Prometheus."""
        return Response(metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    app.mount("/", StaticFiles(directory=PAGE, html=True), name="page")
    return app


def as_json(answer: Answer, classes: Classes) -> dict[str, Any]:
    """Size, shares of the classes that occur (largest first), milliseconds, and the picture."""
    total = int(answer.counts.sum())
    order = [i for i in np.argsort(-answer.counts, kind="stable") if answer.counts[i]]
    found: dict[str, Any] = {
        "height": answer.size[0],
        "width": answer.size[1],
        "classes": [
            {
                "index": int(i),
                "name": classes.names[i],
                "color": "#{:02x}{:02x}{:02x}".format(*classes.colors[i]),
                "share": round(int(answer.counts[i]) / total, 6),
            }
            for i in order
        ],
        "milliseconds": {k: round(1e3 * v, 2) for k, v in answer.seconds.items()},
    }
    if answer.png is not None:
        found["picture"] = "data:image/png;base64," + base64.b64encode(answer.png).decode()
    return found


async def _answer(request: Request, job: Future[Answer], limits: Limits, queue: Queue) -> Answer:
    """What a worker answers; a job whose client left, or that waited too long, is not begun."""
    answer = asyncio.wrap_future(job)
    left = asyncio.ensure_future(_left(request))
    either: list[asyncio.Future[Any]] = [answer, left]
    try:
        await asyncio.wait(either, timeout=limits.wait_seconds, return_when=asyncio.FIRST_COMPLETED)
        if not answer.done() and job.cancel():
            if left.done():
                raise ClientDisconnect
            raise Refusal(
                503,
                f"no worker was free for {limits.wait_seconds:g} s: try again later",
                retry_after=queue.retry_after,
            )
        found = await answer
    finally:
        left.cancel()
    queue.worked(sum(s for stage, s in found.seconds.items() if stage != "wait"))
    return found


async def _left(request: Request) -> None:
    """Returns when the client closed the connection."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _body(request: Request) -> bytes:
    """The picture's bytes: the body itself, or the first file in a form."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        try:
            form = await request.form(max_files=1, max_fields=10)
        except HTTPException as error:  # a malformed form
            raise Refusal(422, f"the form cannot be read: {error.detail}") from None
        files = [value for value in form.values() if isinstance(value, UploadFile)]
        data = await files[0].read() if files else None
        await form.close()
        if data is None:
            raise Refusal(422, "the form has no file: send the picture in a field named image")
        return data
    if kind and kind != "application/octet-stream" and not kind.startswith("image/"):
        raise Refusal(
            415,
            f"Content-Type {kind}: expected image/jpeg, image/png, image/webp, image/bmp, "
            "application/octet-stream or multipart/form-data",
        )
    return await request.body()


def _wants_json(request: Request) -> bool:
    accept = request.headers.get("accept", "")
    return "application/json" in accept and "image/png" not in accept


def _add_errors(app: FastAPI) -> None:
    """Every error is JSON with one sentence in `detail`."""

    @app.exception_handler(Refusal)
    async def refused(_: Request, error: Refusal) -> JSONResponse:
        return JSONResponse({"detail": error.detail}, error.status, error.headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        parts = [f"{e['loc'][-1]}={e.get('input')!r}: {e['msg']}" for e in error.errors()]
        return JSONResponse({"detail": "; ".join(parts)}, 422)

    @app.exception_handler(ClientDisconnect)
    async def left(_: Request, __: ClientDisconnect) -> Response:
        return Response(status_code=499)  # nobody reads it; the metrics count it

    @app.exception_handler(Exception)
    async def failed(_: Request, __: Exception) -> JSONResponse:
        return JSONResponse({"detail": "an error of the service, which its log tells"}, 500)


class _Answered:
    """ASGI middleware: the headers of every answer, and the count of those to /v1/segment."""

    def __init__(self, app: Any, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        path = scope.get("path", "")

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                policy = DOCS_POLICY if path.endswith("/docs") else POLICY
                message["headers"] = [
                    *message.get("headers", ()),
                    (b"content-security-policy", policy.encode()),
                    (b"x-content-type-options", b"nosniff"),
                    (b"referrer-policy", b"no-referrer"),
                ]
                if path.endswith("/v1/segment"):
                    self._metrics.answered(message["status"])
            await send(message)

        await self._app(scope, receive, with_headers)
