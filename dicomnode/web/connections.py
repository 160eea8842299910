"""How many connections the web takes, in all and from one machine, and how long a caller may keep one waiting.

A connection *rests* while no request of it is answered: its head is on its way, or nothing is said. Where there are too
many, the one that rests longest makes room for the newcomer; so unfinished requests keep nobody out. A few more than
the limit are taken, of which only the node's health is told.
"""

from __future__ import annotations

import asyncio
import resource
import socket
from collections import Counter
from ipaddress import IPv6Address, ip_address, ip_network
from typing import Any, ClassVar

from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from dicomnode.ingest.limits import normalise_address

__all__ = ["Caller", "Callers", "Listener", "Reserve", "most_connections"]

_MOST = 400
_KEPT_FREE = 256
"""Descriptors that are left to reception, the database and the spool."""
_RESERVE = 32
_RESERVE_HERE = 8
_HEAD_S = 20.0
_BODY_S = 20.0
_BODY_LEAST = 20_000
"""Bytes of a body that have to come in so many seconds, as long as they are taken."""
_DRAIN_S = 60.0
"""Within which a client has to take what waits for it, at most a MiB."""
_WAITING = 1024
_HEALTH = frozenset({"/healthz", "/readyz", "/metrics"})


def most_connections() -> int:
    """How many the limit of open files leaves room for."""
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return min(_MOST, max(16, files - _KEPT_FREE))


class Callers:
    """The connections of one server; used on its event loop alone."""

    def __init__(self, most: int) -> None:
        self._most, self._most_here = most, most // 2
        self._here: Counter[str] = Counter()
        self._resting: dict[Caller, str] = {}

    def enter(self, address: str) -> bool:
        """Whether one more is taken from there; one that rests may have to go for it."""
        place = _place(address)
        if self._here[place] >= self._most_here + _RESERVE_HERE:
            taken = self._send_away(place)
        elif self._here.total() >= self._most + _RESERVE:
            taken = self._send_away(None)
        else:
            taken = True
        self._here[place] += taken
        return taken

    def leave(self, address: str) -> None:
        """One from there has ended."""
        place = _place(address)
        self._here[place] -= 1
        if self._here[place] <= 0:
            del self._here[place]

    def is_over(self, address: str) -> bool:
        """Whether what comes from there is told no more than the node's health."""
        return self._here.total() > self._most or self._here[_place(address)] > self._most_here

    def rests(self, caller: Caller, address: str) -> None:
        """The newest of those that may be sent away."""
        self._resting.setdefault(caller, _place(address))

    def works(self, caller: Caller) -> None:
        """It stays, as long as a request of it is answered."""
        self._resting.pop(caller, None)

    def _send_away(self, place: str | None) -> bool:
        longest = next((caller for caller, at in self._resting.items() if place in (None, at)), None)
        if longest is None:
            return False
        self.works(longest)
        longest.transport.abort()
        return True


class Caller(H11Protocol):
    """One connection, with a time for each thing that its client has to do."""

    callers: ClassVar[Callers]

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._address = self.client[0] if self.client else ""
        self._state = ""
        self._received = 0
        self._timer: asyncio.TimerHandle | None = None
        self._drain: asyncio.TimerHandle | None = None
        self._look()

    def connection_lost(self, exc: Exception | None) -> None:
        self.callers.works(self)
        for timer in (self._timer, self._drain):
            if timer is not None:
                timer.cancel()
        self._state = "lost"
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._received += len(data)
        super().data_received(data)
        self._look()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._look()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._drain = self.loop.call_later(_DRAIN_S, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._drain is not None:
            self._drain.cancel()
            self._drain = None

    def _look(self) -> None:
        """What is waited for now; the time for it begins when it was something else before."""
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
            self.callers.rests(self, self._address)
            self._timer = self.loop.call_later(_HEAD_S, self.transport.abort)
        else:
            self.callers.works(self)
        if state == "body":
            self._expect_body()

    def _expect_body(self) -> None:
        before = self._received

        def check() -> None:
            if self._received - before < _BODY_LEAST and not self.flow.read_paused:
                self.transport.abort()
            else:
                self._expect_body()

        self._timer = self.loop.call_later(_BODY_S, check)


class Listener(socket.socket):
    """A listening socket that takes as many as there is room for, and closes the others at once."""

    callers: Callers

    def listen(self, backlog: int = _WAITING, /) -> None:
        """With room for those that come faster than they are taken, whatever the event loop says."""
        super().listen(max(backlog, _WAITING))

    def accept(self) -> tuple[socket.socket, Any]:
        """The next connection that is taken."""
        while True:
            accepted, address = super().accept()
            if self.callers.enter(address[0]):
                return _Connection(self.callers, address[0], accepted), address
            accepted.close()


class _Connection(socket.socket):
    """An accepted connection, which is counted until it is closed."""

    def __init__(self, callers: Callers, address: str, accepted: socket.socket) -> None:
        super().__init__(accepted.family, accepted.type, accepted.proto, fileno=accepted.detach())
        self._callers: Callers | None = callers
        self._address = address

    def close(self) -> None:
        """End it, and make room."""
        super().close()
        if self._callers is not None:
            self._callers.leave(self._address)
            self._callers = None


class Reserve:
    """Those that came above the limit hear of the node's health, and others that there is no room."""

    def __init__(self, app: ASGIApp, callers: Callers) -> None:
        self._app, self._callers = app, callers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        over = scope["type"] == "http" and scope["path"] not in _HEALTH and self._callers.is_over(_client(scope))
        full = PlainTextResponse("too many connections\n", 503, {"Retry-After": "10", "Connection": "close"})
        await (full if over else self._app)(scope, receive, send)


def _client(scope: Scope) -> str:
    client = scope.get("client")
    return client[0] if client else ""


def _place(address: str) -> str:
    """A machine: an IPv4 address, or a /64 of IPv6."""
    try:
        plain = normalise_address(address.partition("%")[0])
    except ValueError:  # what a proxy wrote
        return address
    return str(ip_network((plain, 64), strict=False)) if isinstance(ip_address(plain), IPv6Address) else plain
