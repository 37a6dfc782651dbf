"""The process around the application: its socket, its connections' clock, its end."""

from __future__ import annotations

import asyncio
import signal
import socket
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

#: Seconds for the head of a request, from the connection or from the answer before.
HEAD_SECONDS = 10.0
#: Seconds that a client then has for reading what it has not read yet.
READ_SECONDS = 60.0


class TimedProtocol(H11Protocol):
    """HTTP/1.1 that closes a connection on which no request begins for `HEAD_SECONDS`.

    uvicorn's own clock stops with the first byte, so that a client could hold a connection by
    sending a head, or what follows after an early answer, byte by byte.
    """

    _clock: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._start()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop()

    def on_response_complete(self) -> None:
        self._start()
        super().on_response_complete()
        if not self.cycle.response_complete:  # the next one had come already
            self._stop()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop()
        super().connection_lost(exc)

    def _start(self) -> None:
        self._stop()
        self._clock = self.loop.call_later(HEAD_SECONDS, self._close)

    def _close(self) -> None:
        self._clock = self.loop.call_later(READ_SECONDS, self.transport.abort)
        self.transport.close()  # once all is written

    def _stop(self) -> None:
        if self._clock is not None:
            self._clock.cancel()
            self._clock = None


def bind(host: str, port: int) -> socket.socket:
    """A bound socket; port 0 takes a free one. Raises OSError naming the fix."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except socket.gaierror as error:
        raise OSError(f"--host {host}: not an address of this machine ({error.strerror})") from None
    sock = socket.socket(family, kind, protocol)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind(address)
    except OSError as error:
        sock.close()
        raise OSError(
            f"--host {host} --port {port}: {error.strerror}; give another --port (0 takes any "
            "free one), or --host 127.0.0.1"
        ) from None
    return sock


def run(app: Any, sock: socket.socket, *, stop_seconds: float) -> None:
    """Serves until SIGINT or SIGTERM, then finishes what is under way, for `stop_seconds`."""
    _raise_file_limit()
    config = uvicorn.Config(
        app,
        http=TimedProtocol,
        ws="none",
        access_log=False,
        log_level="warning",
        timeout_graceful_shutdown=round(stop_seconds),
    )
    # uvicorn raises the signals that it caught once more at its end, when all is finished.
    previous = {s: signal.signal(s, lambda *_: None) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        uvicorn.Server(config).run(sockets=[sock])
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _raise_file_limit() -> None:
    """A connection is a file; the usual limit of 1,024 is for programs that use select."""
    try:
        import resource
    except ImportError:  # Windows, which has no such limit
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 65536 if hard == resource.RLIM_INFINITY else min(hard, 65536)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
