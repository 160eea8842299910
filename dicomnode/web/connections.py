"""Limits of the web server's connections: their number, in all and per host, and their time limits.

A connection is *idle* while none of its requests is being answered: the head of a request is incomplete, or no request
is open. At the limit, the connection that has been idle longest is closed for a new one, so unfinished requests keep no
client out. A small reserve above the limit answers the paths of the node's health only.
"""

from __future__ import annotations

import asyncio
import resource
import socket
from collections import Counter
from ipaddress import IPv6Address, ip_address, ip_network
from typing import Any, ClassVar

import h11
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from dicomnode.ingest.limits import normalise_address

__all__ = [
    "BODY_S",
    "DRAIN_S",
    "HEAD_S",
    "HEALTH_RESERVE_PER_HOST",
    "LEAST_BODY_BYTES",
    "HttpConnectionLimiter",
    "ListeningSocket",
    "OverloadMiddleware",
    "TimedConnection",
    "connection_limit",
    "host_key",
]

HEAD_S = 20.0
"""Time within which the head of a request has to be complete."""
BODY_S, LEAST_BODY_BYTES = 20.0, 20_000
"""Least number of bytes of a body within a time, as long as the server reads them."""
DRAIN_S = 60.0
"""Time within which a client has to read its buffered answer, at most a MiB."""
HEALTH_RESERVE_PER_HOST = 8
"""Number of connections of one host above its limit, which get the paths of the node's health only."""

_MOST_CONNECTIONS = 400
_RESERVED_DESCRIPTORS = 256
"""File descriptors that are reserved for reception, the database and the spool."""
_HEALTH_RESERVE = 32
_BACKLOG = 1024
_HEALTH_PATHS = frozenset({"/healthz", "/readyz", "/metrics"})


def connection_limit() -> int:
    """Return the number of connections that the limit of open files allows."""
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return min(_MOST_CONNECTIONS, max(16, files - _RESERVED_DESCRIPTORS))


class HttpConnectionLimiter:
    """Limiter of one server's connections; used on its event loop only."""

    def __init__(self, limit: int) -> None:
        self._limit, self._limit_per_host = limit, limit // 2
        self._count_by_host: Counter[str] = Counter()
        self._idle: dict[TimedConnection, str] = {}

    def enter(self, address: str) -> bool:
        """Return whether one more connection is accepted from an address; an idle one may be closed for it."""
        host = host_key(address)
        if self._count_by_host[host] >= self._limit_per_host + HEALTH_RESERVE_PER_HOST:
            is_accepted = self._close_longest_idle(host)
        elif self._count_by_host.total() >= self._limit + _HEALTH_RESERVE:
            is_accepted = self._close_longest_idle(None)
        else:
            is_accepted = True
        self._count_by_host[host] += is_accepted
        return is_accepted

    def leave(self, address: str) -> None:
        """Count the end of a connection from an address."""
        host = host_key(address)
        self._count_by_host[host] -= 1
        if self._count_by_host[host] <= 0:
            del self._count_by_host[host]

    def is_over_limit(self, address: str) -> bool:
        """Return whether requests from an address get the paths of the node's health only."""
        return (
            self._count_by_host.total() > self._limit or self._count_by_host[host_key(address)] > self._limit_per_host
        )

    def mark_idle(self, caller: TimedConnection, address: str) -> None:
        """Add a connection to those that may be closed, as the newest."""
        self._idle.setdefault(caller, host_key(address))

    def mark_busy(self, caller: TimedConnection) -> None:
        """Protect a connection while one of its requests is being answered."""
        self._idle.pop(caller, None)

    def _close_longest_idle(self, host: str | None) -> bool:
        longest = next((caller for caller, at in self._idle.items() if host in (None, at)), None)
        if longest is None:
            return False
        self.mark_busy(longest)
        longest.transport.abort()
        return True


class TimedConnection(H11Protocol):
    """A connection with a time limit for each step of its client: head, body, reading the answer."""

    limiter: ClassVar[HttpConnectionLimiter]

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._address = self.client[0] if self.client else ""
        self._state = ""
        self._received = 0
        self._timer: asyncio.TimerHandle | None = None
        self._drain: asyncio.TimerHandle | None = None
        self._update_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        self.limiter.mark_busy(self)
        for timer in (self._timer, self._drain):
            if timer is not None:
                timer.cancel()
        self._state = "lost"
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._received += len(data)
        super().data_received(data)
        self._update_timer()

    def send_400_response(self, msg: str) -> None:
        try:
            super().send_400_response(msg)
        except h11.LocalProtocolError:  # uvicorn sends a body, which an answer to HEAD has not
            self.transport.close()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._update_timer()

    def handle_websocket_upgrade(self, event: h11.Request) -> None:
        """Hand the connection over to the WebSocket, which has no steps to wait for."""
        super().handle_websocket_upgrade(event)
        self.limiter.mark_busy(self)
        if self._timer is not None:
            self._timer.cancel()
        self._state = "lost"

    def pause_writing(self) -> None:
        super().pause_writing()
        self._drain = self.loop.call_later(DRAIN_S, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._drain is not None:
            self._drain.cancel()
            self._drain = None

    def _update_timer(self) -> None:
        """Start the time limit of the step that the connection waits for, if this step is a new one."""
        if self._state == "lost":
            return
        answering = self.cycle is not None and not self.cycle.response_complete
        state = "head" if not answering else "body" if self.cycle.more_body else "answer"
        if state == self._state:
            return
        self._state = state
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if state == "head":
            self.limiter.mark_idle(self, self._address)
            self._timer = self.loop.call_later(HEAD_S, self.transport.abort)
        else:
            self.limiter.mark_busy(self)
        if state == "body":
            self._expect_body()

    def _expect_body(self) -> None:
        before = self._received

        def check() -> None:
            if self._received - before < LEAST_BODY_BYTES and not self.flow.read_paused:
                self.transport.abort()
            else:
                self._expect_body()

        self._timer = self.loop.call_later(BODY_S, check)


class ListeningSocket(socket.socket):
    """A listening socket that accepts connections up to the limit and closes further ones at once."""

    limiter: HttpConnectionLimiter

    def listen(self, backlog: int = _BACKLOG, /) -> None:
        """Listen with a backlog for bursts of connections, whatever backlog the event loop sets."""
        super().listen(max(backlog, _BACKLOG))

    def accept(self) -> tuple[socket.socket, Any]:
        """Return the next connection that is within the limit."""
        while True:
            accepted, address = super().accept()
            if self.limiter.enter(address[0]):
                return _CountedSocket(self.limiter, address[0], accepted), address
            accepted.close()


class _CountedSocket(socket.socket):
    """An accepted connection that counts against the limit until it is closed."""

    def __init__(self, limiter: HttpConnectionLimiter, address: str, accepted: socket.socket) -> None:
        super().__init__(accepted.family, accepted.type, accepted.proto, fileno=accepted.detach())
        self._limiter: HttpConnectionLimiter | None = limiter
        self._address = address

    def close(self) -> None:
        """Close the connection and release its place."""
        super().close()
        if self._limiter is not None:
            self._limiter.leave(self._address)
            self._limiter = None


class OverloadMiddleware:
    """Middleware that answers 503 above the limit, except for the paths of the node's health."""

    def __init__(self, app: ASGIApp, limiter: HttpConnectionLimiter) -> None:
        self._app, self._limiter = app, limiter

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        over = (
            scope["type"] == "http"
            and scope["path"] not in _HEALTH_PATHS
            and self._limiter.is_over_limit(_client_address(scope))
        )
        full = PlainTextResponse("too many connections\n", 503, {"Retry-After": "10", "Connection": "close"})
        await (full if over else self._app)(scope, receive, send)


def _client_address(scope: Scope) -> str:
    client = scope.get("client")
    return client[0] if client else ""


def host_key(address: str) -> str:
    """Return the key of a host: an IPv4 address, or a /64 of IPv6."""
    try:
        plain = normalise_address(address.partition("%")[0])
    except ValueError:  # what a proxy wrote
        return address
    return str(ip_network((plain, 64), strict=False)) if isinstance(ip_address(plain), IPv6Address) else plain
