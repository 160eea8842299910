"""Web server of a test that accepts POSTs, on a free port of loopback."""

from __future__ import annotations

import json
import ssl
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self, cast

__all__ = ["Hook", "Post"]


@dataclass(frozen=True)
class Post:
    """One request as received."""

    path: str
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> dict[str, Any]:
        return cast(dict[str, Any], json.loads(self.body))

    @property
    def id(self) -> str:
        return self.headers["Dicomnode-Event-Id"]


class Hook:
    """Server that answers with a function's status and keeps all requests: ``with Hook(lambda post: 204) as hook:``."""

    def __init__(
        self,
        answer: Callable[[Post], int] = lambda post: 204,
        *,
        port: int = 0,
        tls: ssl.SSLContext | None = None,
        location: str = "",
    ) -> None:
        self.answer, self.location, self.posts = answer, location, list[Post]()
        self._server = _Server(("127.0.0.1", port), _Request)
        self._server.hook = self
        if tls:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)
        self.port: int = self._server.server_address[1]
        self.url = f"{'https' if tls else 'http'}://127.0.0.1:{self.port}/hooks/a-secret-path"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    hook: Hook

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore a client that closes the connection: that is part of the tests."""


class _Request(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        hook = cast(_Server, self.server).hook
        body = self.rfile.read(int(self.headers["Content-Length"]))
        post = Post(self.path, dict(self.headers), body)
        hook.posts.append(post)
        self.send_response(hook.answer(post))
        if hook.location:
            self.send_header("Location", hook.location)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing: tests read ``posts``."""
