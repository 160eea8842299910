"""The web server: uvicorn on a thread of the serving process; HTTPS with a certificate that is reloaded on change."""

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
from dicomnode.web.connections import (
    HttpConnectionLimiter,
    ListeningSocket,
    OverloadMiddleware,
    TimedConnection,
    connection_limit,
)

__all__ = ["Server", "start_server"]

_START_S = 30.0
_HANDSHAKE_S = 15.0
_KEEP_ALIVE_S = 20
_ACCEPTED_AT_ONCE = 32
_LONGEST_MESSAGE = 1024
"""Bytes of a message that a client sends over a WebSocket, where the node only speaks."""


class Server:
    """A web server; ``address``: its URL."""

    def __init__(self, app: ASGIApp, sock: ListeningSocket, identity: Identity | None = None) -> None:
        host, port = sock.getsockname()[:2]
        self.port: int = port
        scheme = "http" if identity is None else "https"
        self.address = f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"
        logging.getLogger("uvicorn.access").disabled = True  # it would log search keys, which name patients
        logging.getLogger("uvicorn.error").setLevel(logging.ERROR)  # it warns at every invalid request
        limiter = sock.limiter
        config = uvicorn.Config(
            OverloadMiddleware(app, limiter), access_log=False, log_config=None, server_header=False,
            lifespan="off", timeout_keep_alive=_KEEP_ALIVE_S, timeout_graceful_shutdown=5,
            ws="wsproto", ws_max_size=_LONGEST_MESSAGE,
            http=type("LimitedConnection", (TimedConnection,), {"limiter": limiter}),
        )  # fmt: skip
        config.load()
        config.ssl = None if identity is None else _reloading_context(ReloadingTlsContext(identity))
        self._app = app
        self._server = _UvicornServer(config)
        self._thread = threading.Thread(target=self._server.run, args=([sock],), name="web", daemon=True)

    @property
    def connection_count(self) -> int:
        """Number of open connections."""
        return len(self._server.server_state.connections)

    def start(self) -> None:
        """Start the thread; returns once requests are answered. Raises NodeError when the server does not start."""
        self._thread.start()
        deadline = time.monotonic() + _START_S
        while not self._server.started:
            if not self._thread.is_alive() or time.monotonic() > deadline:
                raise NodeError("the web server did not start")
            self._thread.join(0.01)

    def stop(self) -> None:
        """Stop the server: no new requests, and a few seconds for those in progress."""
        events.close_feed(self._app)
        self._server.should_exit = True
        self._thread.join()


class _UvicornServer(uvicorn.Server):
    """uvicorn with small accept batches, so that limits hold, and a timeout of TLS handshakes."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        loop = asyncio.get_running_loop()
        tls_options: dict[str, Any] = {"ssl_handshake_timeout": _HANDSHAKE_S} if self.config.ssl else {}

        def caller() -> asyncio.Protocol:
            http: Any = self.config.http_protocol_class
            protocol: asyncio.Protocol = http(
                config=self.config, server_state=self.server_state, app_state=self.lifespan.state, _loop=loop
            )
            return protocol

        self.servers = [
            await loop.create_server(caller, sock=sock, ssl=self.config.ssl, backlog=_ACCEPTED_AT_ONCE, **tls_options)
            for sock in sockets or ()
        ]
        self.started = True


def start_server(app: ASGIApp, host: str, port: int, identity: Identity | None = None) -> Server:
    """Start a web server; port 0: any free one; with an identity: HTTPS.

    Raises ConfigError when the address is not available or the certificate cannot be used.
    """
    if identity is not None:
        identity.server_context()
    try:
        server = Server(app, _listen(host, port), identity)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise ConfigError(
            f"[web] host = {host!r}, port = {port}: {reason}; set another address, or enabled = false"
        ) from None
    server.start()
    return server


def _reloading_context(reloading: ReloadingTlsContext) -> ssl.SSLContext:
    """Return a TLS context for the listener, whose handshakes use the newest certificate."""

    def newest(connection: ssl.SSLObject, name: str | None, context: ssl.SSLContext) -> None:
        connection.context = reloading.current()

    listening = reloading.identity.server_context()
    listening.sni_callback = newest
    return listening


def _listen(host: str, port: int) -> ListeningSocket:
    family, kind, protocol, _, address = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    sock = ListeningSocket(family, kind, protocol)
    sock.limiter = HttpConnectionLimiter(connection_limit())
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
    except OSError:
        sock.close()
        raise
    return sock
