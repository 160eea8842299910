"""The cookie of a session, and the page that a log-in returns to.

With HTTPS its name begins with ``__Host-``: a browser then takes it from this host alone, by HTTPS alone (RFC 6265bis,
4.1.3.2), and no other host of the domain can put one of its own in its place.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Literal

from starlette.datastructures import Headers
from starlette.requests import Request, cookie_parser
from starlette.responses import Response
from starlette.types import Scope

from dicomnode.web.public_scheme import is_encrypted

__all__ = ["COOKIE_NAME", "delete_cookie", "local_path", "read_cookie", "set_cookie"]

COOKIE_NAME = "dicomnode"


def read_cookie(scope: Scope, name: str = COOKIE_NAME) -> str:
    """Return the value of a cookie, or ""; with HTTPS one without the prefix is none."""
    return cookie_parser(Headers(scope=scope).get("cookie", "")).get(_add_prefix(scope, name), "")


def set_cookie(
    answer: Response,
    request: Request,
    value: str,
    length: timedelta,
    *,
    name: str = COOKIE_NAME,
    samesite: Literal["strict", "lax"] = "strict",
) -> None:
    """Set a cookie: scripts and other sites never have it, and with HTTPS it goes by HTTPS only."""
    prefixed, age_s = _add_prefix(request.scope, name), int(length.total_seconds())
    secure = is_encrypted(request.scope)
    answer.set_cookie(prefixed, value, age_s, httponly=True, samesite=samesite, secure=secure)


def delete_cookie(answer: Response, request: Request, name: str = COOKIE_NAME) -> None:
    """Let the browser forget a cookie."""
    answer.delete_cookie(_add_prefix(request.scope, name), secure=is_encrypted(request.scope))


def local_path(path: str) -> str:
    """Return the path if it is one of this server, else "/": a link cannot redirect to another site."""
    if not path.startswith("/") or path[1:2] in ("/", "\\") or not path.isprintable():
        return "/"
    return path


def _add_prefix(scope: Scope, name: str) -> str:
    return f"__Host-{name}" if is_encrypted(scope) else name
