"""Who may use the web: whoever shows the token, or, where there is none, this machine only.

A token comes as ``Authorization: Bearer ...`` or as the cookie that the form at /login sets. The cookie holds no token,
but the name of a session, which this process keeps until somebody logs out, its time is over or the node ends. Pages of
other sites can make a browser send requests to a server on loopback: without a token, requests must name this machine
as their host, and those that change something must come from a page of ours.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Callable
from datetime import datetime, timedelta
from ipaddress import ip_address
from urllib.parse import parse_qs, quote, urlsplit

from fastapi import APIRouter
from starlette.datastructures import Headers
from starlette.requests import Request, cookie_parser
from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from dicomnode.config import Config
from dicomnode.config.secrets import read_secret
from dicomnode.errors import ConfigError
from dicomnode.web import pages

__all__ = ["OPEN_PATHS", "Guard", "Token", "read_token", "router"]

OPEN_PATHS = frozenset({"/healthz", "/readyz", "/metrics", "/login", "/static/node.css"})
COOKIE = "dicomnode"
STAY = timedelta(hours=12)
_SHORTEST_TOKEN = 16
_LONGEST_FORM = 4096
_MOST_SESSIONS = 1000
_HARMLESS = frozenset({"GET", "HEAD", "OPTIONS"})

Clock = Callable[[], datetime]


class Token:
    """The secret, and the sessions of those who have shown it."""

    def __init__(self, secret: str, now: Clock) -> None:
        self._secret, self._now = secret.encode(), now
        self._sessions: dict[bytes, datetime] = {}

    def is_it(self, shown: str) -> bool:
        """Whether somebody showed the token itself; takes as long for a wrong one as for the right one."""
        return hmac.compare_digest(shown.encode(), self._secret)

    def begin(self) -> str:
        """A cookie that holds for STAY from now, or until its session is ended."""
        now = self._now()
        for name in [name for name, until in self._sessions.items() if until <= now]:
            del self._sessions[name]
        if len(self._sessions) >= _MOST_SESSIONS:
            del self._sessions[next(iter(self._sessions))]
        cookie = secrets.token_urlsafe(32)
        self._sessions[_digest(cookie)] = now + STAY
        return cookie

    def is_cookie(self, shown: str) -> bool:
        """Whether it is one of ours, and its time is not over."""
        until = self._sessions.get(_digest(shown))
        return until is not None and self._now() < until

    def end(self, shown: str) -> None:
        """The cookie opens nothing any more."""
        self._sessions.pop(_digest(shown), None)


def _digest(cookie: str) -> bytes:
    """What is looked up is no part of the cookie: how long that takes tells nothing of it."""
    return hashlib.sha256(cookie.encode("utf-8", "surrogateescape")).digest()


def read_token(config: Config, now: Clock) -> Token | None:
    """The token that the configuration names a file of. Raises ConfigError when the file holds none."""
    if config.web.token_file is None:
        return None
    path = config.web.token_file
    secret = read_secret(path, "web.token_file")
    if len(secret) < _SHORTEST_TOKEN or not secret.isascii() or not secret.isprintable():
        wanted = f"a token of at least {_SHORTEST_TOKEN} printable ASCII characters"
        raise ConfigError(f"web.token_file: {path} must hold {wanted}; 'openssl rand -hex 32' makes one")
    return Token(secret, now)


class Guard:
    """Lets nobody through who may not; around everything else."""

    def __init__(self, app: ASGIApp, token: Token | None, host: str) -> None:
        self._app, self._token, self._host = app, token, host

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        refusal = self._refusal(scope)
        await (self._app if refusal is None else refusal)(scope, receive, send)

    def _refusal(self, scope: Scope) -> Response | None:
        headers = Headers(scope=scope)
        if not _is_host(headers.get("host", "")):
            return PlainTextResponse("the Host header names no host\n", 400)
        if self._token is None and not _is_loopback(headers.get("host", ""), self._host):
            return PlainTextResponse("this node answers on its own machine only, under its own name\n", 403)
        if scope["method"] not in _HARMLESS and not _same_site(headers):
            return PlainTextResponse("a page of another site cannot change anything here\n", 403)
        if self._token is None or scope["path"] in OPEN_PATHS or self._knows(headers, self._token):
            return None
        return _ask(scope, headers)

    def _knows(self, headers: Headers, token: Token) -> bool:
        kind, _, shown = headers.get("authorization", "").partition(" ")
        if kind.lower() == "bearer" and token.is_it(shown.strip()):
            return True
        return token.is_cookie(_cookie(headers))


def _cookie(headers: Headers) -> str:
    return cookie_parser(headers.get("cookie", "")).get(COOKIE, "")


def _ask(scope: Scope, headers: Headers) -> Response:
    """A browser gets the form, a program a sentence."""
    if scope["method"] == "GET" and "text/html" in headers.get("accept", ""):
        there = quote(scope["path"]) + (f"?{scope['query_string'].decode('latin-1')}" if scope["query_string"] else "")
        return RedirectResponse(f"/login?next={quote(there, safe='')}", 303)
    wanted = {"WWW-Authenticate": 'Bearer realm="dicomnode"'}
    return PlainTextResponse("the token of this node is needed: Authorization: Bearer ...\n", 401, wanted)


def router(token: Token | None) -> APIRouter:
    """/login and /logout."""
    routes = APIRouter()

    @routes.get("/login")
    def form(next: str = "/") -> HTMLResponse:
        return pages.render("login.html", next=_local(next), wrong=False)

    @routes.post("/login")
    async def log_in(request: Request) -> Response:
        body = b""
        async for piece in request.stream():
            body += piece
            if len(body) > _LONGEST_FORM:
                return PlainTextResponse("a token is shorter\n", 413)
        fields = parse_qs(body.decode("utf-8", "replace"))
        there = _local(fields.get("next", ["/"])[0])
        if token is not None and not token.is_it(fields.get("token", [""])[0].strip()):
            return pages.render("login.html", 401, next=there, wrong=True)
        answer = RedirectResponse(there, 303)
        if token is not None:
            secure = request.url.scheme == "https"
            age_s = int(STAY.total_seconds())
            answer.set_cookie(COOKIE, token.begin(), age_s, httponly=True, samesite="strict", secure=secure)
        return answer

    @routes.post("/logout")
    def log_out(request: Request) -> Response:
        if token is not None:
            token.end(_cookie(request.headers))
        answer = RedirectResponse("/login", 303)
        answer.delete_cookie(COOKIE)
        return answer

    return routes


def _local(path: str) -> str:
    """A path on this server: never another address that a link smuggled in."""
    if not path.startswith("/") or path[1:2] in ("/", "\\") or not path.isprintable():
        return "/"
    return path


def _is_host(host: str) -> bool:
    """Whether it can be a part of an address at all."""
    try:
        urlsplit(f"//{host}").port  # noqa: B018  # reading it checks it
    except ValueError:
        return False
    return True


def _is_loopback(host: str, configured: str) -> bool:
    name = urlsplit(f"//{host}").hostname if host else None
    if name is None or name in ("localhost", configured):
        return name is not None
    try:
        return ip_address(name).is_loopback
    except ValueError:
        return False


def _same_site(headers: Headers) -> bool:
    """Browsers say where a request comes from; programs say nothing."""
    origin = headers.get("origin")
    if origin is not None:
        return origin.partition("://")[2] == headers.get("host", "")
    return headers.get("sec-fetch-site", "none") in ("none", "same-origin")
