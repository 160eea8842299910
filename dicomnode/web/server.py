"""uvicorn on a thread of the serving process, started and stopped like the other parts of the node; HTTPS with a
certificate, which is read anew when its files change."""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
import threading
import time
from typing import Any

import uvicorn
from starlette.types import ASGIApp

from dicomnode.errors import ConfigError, NodeError
from dicomnode.tls import Identity, ReloadingTlsContext
from dicomnode.web import events
from dicomnode.web.connections import Caller, Callers, Listener, Reserve, most_connections

__all__ = ["Server", "start"]

_START_S = 30.0
_HANDSHAKE_S = 15.0
_KEEP_ALIVE_S = 20
_TAKEN_AT_ONCE = 32


class Server:
    """A web server that answers; ``address`` is where."""

    def __init__(self, app: ASGIApp, sock: Listener, identity: Identity | None = None) -> None:
        host, port = sock.getsockname()[:2]
        self.port: int = port
        scheme = "http" if identity is None else "https"
        self.address = f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"
        logging.getLogger("uvicorn.access").disabled = True  # it would hold search keys, which name patients
        logging.getLogger("uvicorn.error").setLevel(logging.ERROR)  # it warns of each request that is none
        callers = sock.callers
        config = uvicorn.Config(
            Reserve(app, callers), access_log=False, log_config=None, server_header=False, lifespan="off",
            timeout_keep_alive=_KEEP_ALIVE_S, timeout_graceful_shutdown=5, ws="none",
            http=type("CallerHere", (Caller,), {"callers": callers}),
        )  # fmt: skip
        config.load()
        config.ssl = None if identity is None else _context(ReloadingTlsContext(identity))
        self._app = app
        self._server = _Uvicorn(config)
        self._thread = threading.Thread(target=self._server.run, args=([sock],), name="web", daemon=True)

    def start(self) -> None:
        """Returns once requests are answered."""
        self._thread.start()
        deadline = time.monotonic() + _START_S
        while not self._server.started:
            if not self._thread.is_alive() or time.monotonic() > deadline:
                raise NodeError("the web server did not start")
            self._thread.join(0.01)

    def stop(self) -> None:
        """No new requests; those in flight have a few seconds to end."""
        events.close(self._app)
        self._server.should_exit = True
        self._thread.join()


class _Uvicorn(uvicorn.Server):
    """Takes few connections at a time, so that none is above a limit for long, and waits for no slow handshake."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        loop = asyncio.get_running_loop()
        secured: dict[str, Any] = {"ssl_handshake_timeout": _HANDSHAKE_S} if self.config.ssl else {}

        def caller() -> asyncio.Protocol:
            http: Any = self.config.http_protocol_class
            protocol: asyncio.Protocol = http(
                config=self.config, server_state=self.server_state, app_state=self.lifespan.state, _loop=loop
            )
            return protocol

        self.servers = [
            await loop.create_server(caller, sock=sock, ssl=self.config.ssl, backlog=_TAKEN_AT_ONCE, **secured)
            for sock in sockets or ()
        ]
        self.started = True


def start(app: ASGIApp, host: str, port: int, identity: Identity | None = None) -> Server:
    """Listen there; port 0 is any free one. With an identity it is HTTPS. Raises ConfigError when the address cannot
    be had, or the certificate not be used."""
    if identity is not None:
        identity.server_context()
    try:
        server = Server(app, _listen(host, port), identity)
    except OSError as error:
        why = error.strerror or type(error).__name__
        raise ConfigError(f"[web] host = {host!r}, port = {port}: {why}; set another, or enabled = false") from None
    server.start()
    return server


def _context(reloading: ReloadingTlsContext) -> ssl.SSLContext:
    """The listener keeps one context for ever; each handshake takes the newest from there."""

    def newest(connection: ssl.SSLObject, name: str | None, context: ssl.SSLContext) -> None:
        connection.context = reloading.current()

    listening = reloading.identity.server_context()
    listening.sni_callback = newest
    return listening


def _listen(host: str, port: int) -> Listener:
    family, kind, protocol, _, address = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    sock = Listener(family, kind, protocol)
    sock.callers = Callers(most_connections())
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
    except OSError:
        sock.close()
        raise
    return sock
