"""What the service refuses, before any picture is decoded: size, slowness, too many at once."""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]


@dataclass(frozen=True)
class Limits:
    """What one request, one client and all of them together may ask for."""

    body_bytes: int = 16 * 2**20
    pixels: int = 50_000_000  # of the picture, and of the network's input
    waiting: int = 64  # requests at once: under way, waiting, or still sending their body
    per_client: int = 32  # of these, from one address
    body_seconds: float = 20.0  # from the first to the last byte of a body
    wait_seconds: float = 30.0  # until a worker begins


class Refusal(Exception):
    """An answer other than 200: `detail` is one sentence that names what to do instead."""

    def __init__(self, status: int, detail: str, *, retry_after: int | None = None) -> None:
        super().__init__(detail)
        self.status, self.detail = status, detail
        self.headers = {} if retry_after is None else {"Retry-After": str(retry_after)}


class Queue:
    """Counts requests from before their body is read until they are answered."""

    def __init__(self, limits: Limits, workers: int) -> None:
        self._limits, self._workers = limits, workers
        self._seconds = 0.1  # of work per request: a running mean
        self._clients: Counter[str] = Counter()

    @property
    def waiting(self) -> int:
        """Requests at once, those under way included."""
        return self._clients.total()

    @property
    def retry_after(self) -> int:
        """Whole seconds in which the present requests will be done."""
        return max(1, math.ceil(self.waiting * self._seconds / self._workers))

    def worked(self, seconds: float) -> None:
        """Takes the time that a worker had for one request into account."""
        self._seconds += 0.1 * (seconds - self._seconds)

    @contextmanager
    def place(self, client: str) -> Iterator[None]:
        """Holds a place meanwhile; raises Refusal (503, or 429 for this client alone)."""
        if self.waiting >= self._limits.waiting:
            raise Refusal(
                503,
                f"all {self._limits.waiting} places are taken: try again later",
                retry_after=self.retry_after,
            )
        if self._clients[client] >= self._limits.per_client:
            raise Refusal(
                429,
                f"{self._limits.per_client} requests from {client} at once: wait for an answer "
                "before the next",
                retry_after=self.retry_after,
            )
        self._clients[client] += 1
        try:
            yield
        finally:
            self._clients[client] -= 1
            if not self._clients[client]:
                del self._clients[client]


class BodyLimits:
    """ASGI middleware: reading a body raises Refusal once it is too large or takes too long."""

    def __init__(self, app: App, limits: Limits) -> None:
        self._app, self._limits = app, limits

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            receive = _bounded(scope, receive, self._limits)
        await self._app(scope, receive, send)


def _bounded(scope: Message, receive: Receive, limits: Limits) -> Receive:
    announced = int(dict(scope["headers"]).get(b"content-length", b"0"))
    loop = asyncio.get_running_loop()
    deadline: float | None = None
    taken, complete = 0, False

    async def bounded() -> Message:
        nonlocal deadline, taken, complete
        if complete:  # what follows is the end of the connection
            return await receive()
        if announced > limits.body_bytes:
            raise _too_large(limits)
        deadline = deadline or loop.time() + limits.body_seconds
        try:
            message = await asyncio.wait_for(receive(), deadline - loop.time())
        except asyncio.TimeoutError:
            refusal = Refusal(408, f"the body took more than {limits.body_seconds:g} s: send again")
            refusal.headers["Connection"] = "close"
            raise refusal from None
        if message["type"] == "http.request":
            taken += len(message.get("body", b""))
            if taken > limits.body_bytes:
                raise _too_large(limits)
            complete = not message.get("more_body", False)
        return message

    return bounded


def _too_large(limits: Limits) -> Refusal:
    return Refusal(
        413, f"the body is larger than {limits.body_bytes / 2**20:g} MiB: send a smaller picture"
    )
