"""Middleware of every answer: security headers, and the conversion of unexpected errors to answers.

The message of an exception and its traceback may name a patient: neither a client nor the log gets them.
"""

from __future__ import annotations

import logging
import traceback
from pathlib import Path

from sqlalchemy.exc import DBAPIError
from starlette.datastructures import MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["ErrorMiddleware", "SecurityHeadersMiddleware"]

_log = logging.getLogger(__name__)

_POLICY = "; ".join((
    "default-src 'none'", "img-src 'self' data:", "style-src 'self'", "script-src 'self'", "connect-src 'self'",
    "frame-src 'self'", "form-action 'self'", "base-uri 'none'", "frame-ancestors 'self'",
))  # fmt: skip
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "SAMEORIGIN",
    "Referrer-Policy": "same-origin",  # "no-referrer" would make browsers send forms with "Origin: null"
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    # shared memory for the viewer's volumes, which browsers give to isolated pages only
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",  # patient data stay out of caches; other content sets its own
}


# RFC 6797: for a year, browsers use HTTPS only
_TLS_HEADERS = {"Strict-Transport-Security": "max-age=31536000"}


class SecurityHeadersMiddleware:
    """Middleware that adds the security headers that an answer does not set itself."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in (_HEADERS | _TLS_HEADERS if scope.get("scheme") == "https" else _HEADERS).items():
                    headers.setdefault(name, value)
            await send(message)

        await self._app(scope, receive, send_with_headers)


class ErrorMiddleware:
    """Middleware that turns unexpected errors into an answer of one sentence and a log line without patient data."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = False

        async def send_and_note(message: Message) -> None:
            nonlocal started
            started = started or message["type"] == "http.response.start"
            await send(message)

        try:
            await self._app(scope, receive, send_and_note)
        except Exception as error:
            if scope["type"] != "http":
                raise
            last = traceback.extract_tb(error.__traceback__)[-1]
            _log.error("web: %s in %s, line %s", type(error).__name__, Path(last.filename).name, last.lineno)
            if not started:  # else the connection is closed, which the client notices
                status = 503 if isinstance(error, DBAPIError) else 500
                sentence = "the database does not answer" if status == 503 else "the node failed to answer; see its log"
                await PlainTextResponse(f"{sentence}\n", status)(scope, receive, send)
