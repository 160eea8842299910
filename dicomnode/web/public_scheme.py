"""The scheme by which people reach the node, also behind a proxy that speaks HTTPS for it."""

from __future__ import annotations

from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from dicomnode.config.web_address import is_loopback

__all__ = ["PublicSchemeMiddleware", "is_encrypted"]

_ENCRYPTED = {"http": "https", "ws": "wss"}


class PublicSchemeMiddleware:
    """Middleware that takes requests as HTTPS where [web] ``public_url`` is, for the node sees its proxy's HTTP.

    Requests under a name of loopback stay as they are: they reach the node on its own machine, without the proxy.
    """

    def __init__(self, app: ASGIApp, public_url: str | None) -> None:
        self._app, self._is_https = app, public_url is not None and urlsplit(public_url).scheme == "https"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._is_https and scope.get("scheme") in _ENCRYPTED and not _is_local(Headers(scope=scope).get("host", "")):
            scope["scheme"] = _ENCRYPTED[scope["scheme"]]
        await self._app(scope, receive, send)


def is_encrypted(scope: Scope) -> bool:
    """Return whether the person's browser speaks HTTPS."""
    return scope["scheme"] in _ENCRYPTED.values()


def _is_local(host: str) -> bool:
    try:
        return is_loopback(urlsplit(f"//{host}").hostname or "")
    except ValueError:  # refused further on
        return False
