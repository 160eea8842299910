"""The cookie of a session, and the page that a log-in returns to."""

from __future__ import annotations

from datetime import timedelta

from starlette.datastructures import Headers
from starlette.requests import Request, cookie_parser
from starlette.responses import Response

__all__ = ["COOKIE_NAME", "delete_cookie", "local_path", "read_cookie", "set_cookie"]

COOKIE_NAME = "dicomnode"


def read_cookie(headers: Headers, name: str = COOKIE_NAME) -> str:
    """Return the value of a cookie, or ""."""
    return cookie_parser(headers.get("cookie", "")).get(name, "")


def set_cookie(answer: Response, request: Request, value: str, length: timedelta) -> None:
    """Set the cookie of a session: scripts and other sites never have it, and with HTTPS it goes by HTTPS only."""
    secure, age_s = request.url.scheme == "https", int(length.total_seconds())
    answer.set_cookie(COOKIE_NAME, value, age_s, httponly=True, samesite="strict", secure=secure)


def delete_cookie(answer: Response) -> None:
    """Let the browser forget the cookie of a session."""
    answer.delete_cookie(COOKIE_NAME)


def local_path(path: str) -> str:
    """Return the path if it is one of this server, else "/": a link cannot redirect to another site."""
    if not path.startswith("/") or path[1:2] in ("/", "\\") or not path.isprintable():
        return "/"
    return path
