"""The event channel of UPS-RS (PS3.18 8.10.4 and 11.14): event reports to one subscriber over a WebSocket.

Reports wait in the database, and are removed when they are sent. One that is on its way where a connection breaks may
be lost, or sent again: a client retrieves its workitems after it has connected again. The channel of an AE title
replaces an older one of the same title. The access to it is that of an HTTP request with the same headers, which the
other middleware judges: ``ChannelAccessMiddleware`` sends one ahead.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import APIRouter
from sqlalchemy.exc import SQLAlchemyError
from starlette.concurrency import run_in_threadpool
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

from db import workitems
from dicomnode.web import methods
from dicomnode.web.access import IN_BACKGROUND, is_same_site
from dicomnode.web.ups import Worklist, parse_ae_title

__all__ = ["JUDGED_EVERY_S", "MOST_CHANNELS", "ChannelAccessMiddleware", "add_routes"]

MOST_CHANNELS = 64
_POLL_S = 1.0
_AT_ONCE = 50
_SEND_S = 60.0
"""Time within which a client has to take a report."""
JUDGED_EVERY_S = 15.0
"""Time after which an open channel is judged again."""
_UPGRADE_REQUIRED = 426
_REFUSED, _TRY_LATER = 1008, 1013


def add_routes(routes: APIRouter, worklist: Worklist) -> None:
    """Add the channel of an AE title; to a plain GET it answers that it is a WebSocket."""
    channels = _Channels(worklist)
    path = "/subscribers/{ae_title}"
    sentence = PlainTextResponse("this is a WebSocket\n", _UPGRADE_REQUIRED, {"Upgrade": "websocket"})
    methods.add_get(routes, path, lambda request: sentence)
    routes.add_api_websocket_route(path, channels.serve)


class _Channels:
    """The open channels, by AE title; used on the server's event loop."""

    def __init__(self, worklist: Worklist) -> None:
        self._worklist = worklist
        self._open: dict[str, object] = {}

    async def serve(self, websocket: WebSocket) -> None:
        """Send what waits for the subscriber until the client leaves or another channel replaces this one."""
        ae_title = parse_ae_title(websocket.path_params["ae_title"])
        await websocket.accept()
        if ae_title not in self._open and len(self._open) >= MOST_CHANNELS:
            await websocket.close(_TRY_LATER, "too many channels are open")
            return
        own = self._open[ae_title] = object()
        ended = asyncio.create_task(_read_to_end(websocket))
        try:
            while self._open.get(ae_title) is own and not ended.done():
                await self._send_waiting(websocket, ae_title)
                await asyncio.wait([ended], timeout=_POLL_S)
        except (TimeoutError, WebSocketDisconnect):
            pass  # what was not sent waits for the next channel
        finally:
            if self._open.get(ae_title) is own:
                del self._open[ae_title]
            if not ended.done():
                ended.cancel()
                if websocket.application_state is WebSocketState.CONNECTED:
                    await websocket.close()

    async def _send_waiting(self, websocket: WebSocket, ae_title: str) -> None:
        try:
            waiting = await run_in_threadpool(self._read, ae_title)
            for _, content in waiting:
                await asyncio.wait_for(websocket.send_text(json.dumps(content)), _SEND_S)
            await run_in_threadpool(self._remove, [number for number, _ in waiting])
        except SQLAlchemyError:
            return  # the next poll reads them again

    def _read(self, ae_title: str) -> list[tuple[int, dict[str, Any]]]:
        with self._worklist.readers() as session:
            return [(row.id, row.content) for row in workitems.waiting_events(session, ae_title, limit=_AT_ONCE)]

    def _remove(self, numbers: list[int]) -> None:
        if numbers:
            self._worklist.write(lambda session, now: workitems.remove_events(session, numbers))


async def _read_to_end(websocket: WebSocket) -> None:
    """Read and ignore messages until the client leaves."""
    while (await websocket.receive())["type"] != "websocket.disconnect":
        pass


class ChannelAccessMiddleware:
    """Middleware that lets a WebSocket through only where, and as long as, a GET of its address and headers would be.

    A page of another site is refused by its Origin, which browsers always send.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "websocket":
            await self._app(scope, receive, send)
        elif is_same_site(scope) and await self._allows(scope):
            await self._serve_while_allowed(scope, receive, send)
        else:
            await receive()  # websocket.connect
            await send({"type": "websocket.close", "code": _REFUSED})  # before the handshake: the client gets 403

    async def _serve_while_allowed(self, scope: Scope, receive: Receive, send: Send) -> None:
        judged = dict(scope) | {IN_BACKGROUND: True}
        channel = _JudgedChannel(lambda: self._allows(judged), receive, send)
        watch = asyncio.create_task(channel.watch())
        try:
            await self._app(scope, channel.receive, channel.send)
        finally:
            watch.cancel()

    async def _allows(self, scope: Scope) -> bool:
        found: list[int] = []
        scheme = "https" if scope["scheme"] == "wss" else "http"
        request = dict(scope) | {"type": "http", "method": "GET", "scheme": scheme, "state": {}}

        async def receive() -> Message:
            return {"type": "http.request", "body": b"", "more_body": False}

        async def send(message: Message) -> None:
            if message["type"] == "http.response.start":
                found.append(message["status"])

        await self._app(request, receive, send)
        return found == [_UPGRADE_REQUIRED]


class _JudgedChannel:
    """A WebSocket that ends when ``allows`` says so: nothing goes out afterwards, and it reads as left."""

    def __init__(self, allows: Callable[[], Awaitable[bool]], receive: Receive, send: Send) -> None:
        self._allows, self._receive, self._send = allows, receive, send
        self._over = asyncio.Event()

    async def watch(self) -> None:
        """Judge now and then, until the channel ends."""
        while not self._over.is_set():
            await asyncio.sleep(JUDGED_EVERY_S)
            await self._judge()

    async def receive(self) -> Message:
        """Return the next message of the client, or that the channel is over."""
        waits: list[asyncio.Future[Any]] = [
            asyncio.ensure_future(self._receive()), asyncio.ensure_future(self._over.wait()),
        ]  # fmt: skip
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            if self._over.is_set():
                return {"type": "websocket.disconnect", "code": _REFUSED}
            message: Message = waits[0].result()
            return message
        finally:
            for each in waits:
                each.cancel()

    async def send(self, message: Message) -> None:
        """Send a message. Raises OSError where the channel is over, as for a client that left."""
        if message["type"] == "websocket.send":
            await self._judge()
        if self._over.is_set():
            raise OSError("the access is over")
        await self._send(message)

    async def _judge(self) -> None:
        if not await self._allows() and not self._over.is_set():
            self._over.set()
            with contextlib.suppress(OSError):  # the client left
                await self._send({"type": "websocket.close", "code": _REFUSED})
