"""Access to the web: with the node's token or, where none is configured, from this machine only.

A token comes as ``Authorization: Bearer ...`` or as the cookie that the form at /login sets. The cookie is a random
session name, not the token: this process keeps sessions until log-out, expiry or its own end, so that log-out is
effective at once; a signed cookie (itsdangerous) would stay valid. Pages of other sites can make a browser send
requests to a server on loopback: without a token, requests must name this machine as their host, and those that change
something must come from one of the node's own pages.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Callable
from datetime import datetime, timedelta
from ipaddress import ip_address
from urllib.parse import quote, urlsplit

from fastapi import APIRouter
from starlette.datastructures import Headers
from starlette.requests import Request, cookie_parser
from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from dicomnode.config import Config
from dicomnode.config.secrets import read_secret
from dicomnode.errors import ConfigError
from dicomnode.web import pages
from dicomnode.web.forms import Form

__all__ = ["OPEN_PATHS", "Token", "TokenAuthMiddleware", "create_router", "read_token"]

OPEN_PATHS = frozenset({"/healthz", "/readyz", "/metrics", "/login", "/static/node.css"})
COOKIE_NAME = "dicomnode"
SESSION_LENGTH = timedelta(hours=12)
_LEAST_TOKEN_LENGTH = 16
_MOST_SESSIONS = 1000
_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})

Clock = Callable[[], datetime]


class Token:
    """The node's token and the sessions that were opened with it."""

    def __init__(self, secret: str, now: Clock) -> None:
        self._secret, self._now = secret.encode(), now
        self._sessions: dict[bytes, datetime] = {}

    def matches(self, credential: str) -> bool:
        """Return whether the credential is the token, in constant time."""
        return hmac.compare_digest(credential.encode(), self._secret)

    def open_session(self) -> str:
        """Open a session of SESSION_LENGTH and return its cookie."""
        now = self._now()
        for name in [name for name, until in self._sessions.items() if until <= now]:
            del self._sessions[name]
        if len(self._sessions) >= _MOST_SESSIONS:
            del self._sessions[next(iter(self._sessions))]
        cookie = secrets.token_urlsafe(32)
        self._sessions[_digest(cookie)] = now + SESSION_LENGTH
        return cookie

    def is_session(self, credential: str) -> bool:
        """Return whether the credential is the cookie of an open session."""
        until = self._sessions.get(_digest(credential))
        return until is not None and self._now() < until

    def close_session(self, credential: str) -> None:
        """Close the session of a cookie."""
        self._sessions.pop(_digest(credential), None)


def _digest(cookie: str) -> bytes:
    """Return the key of a session: a digest, so that the time of the look-up reveals nothing about the cookie."""
    return hashlib.sha256(cookie.encode("utf-8", "surrogateescape")).digest()


def read_token(config: Config, now: Clock) -> Token | None:
    """Read the token from the file that the configuration names, if any. Raises ConfigError for an unusable file."""
    if config.web.token_file is None:
        return None
    path = config.web.token_file
    secret = read_secret(path, "web.token_file")
    if len(secret) < _LEAST_TOKEN_LENGTH or not secret.isascii() or not secret.isprintable():
        header = f"a token of at least {_LEAST_TOKEN_LENGTH} printable ASCII characters"
        raise ConfigError(f"web.token_file: {path} must hold {header}; 'openssl rand -hex 32' makes one")
    return Token(secret, now)


class TokenAuthMiddleware:
    """Middleware that refuses requests without access.

    Its check of the Host header accepts every loopback address, which starlette's TrustedHostMiddleware, a list of
    names, cannot.
    """

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
        if not _is_valid_host(headers.get("host", "")):
            return PlainTextResponse("the Host header names no host\n", 400)
        if self._token is None and not _is_loopback(headers.get("host", ""), self._host):
            return PlainTextResponse("this node answers on its own machine only, under its own name\n", 403)
        if scope["method"] not in _SAFE_METHODS and not _is_same_site(headers):
            return PlainTextResponse("a page of another site cannot change anything here\n", 403)
        if self._token is None or scope["path"] in OPEN_PATHS or self._is_authorized(headers, self._token):
            return None
        return _demand_token(scope, headers)

    def _is_authorized(self, headers: Headers, token: Token) -> bool:
        kind, _, credential = headers.get("authorization", "").partition(" ")
        if kind.lower() == "bearer" and token.matches(credential.strip()):
            return True
        return token.is_session(_cookie(headers))


def _cookie(headers: Headers) -> str:
    return cookie_parser(headers.get("cookie", "")).get(COOKIE_NAME, "")


def _demand_token(scope: Scope, headers: Headers) -> Response:
    """Return the redirect to the log-in form for a browser, or 401 for a program."""
    if scope["method"] == "GET" and "text/html" in headers.get("accept", ""):
        target = quote(scope["path"]) + (f"?{scope['query_string'].decode('latin-1')}" if scope["query_string"] else "")
        return RedirectResponse(f"/login?next={quote(target, safe='')}", 303)
    header = {"WWW-Authenticate": 'Bearer realm="dicomnode"'}
    return PlainTextResponse("the token of this node is needed: Authorization: Bearer ...\n", 401, header)


def create_router(token: Token | None) -> APIRouter:
    """Create the routes /login and /logout."""
    routes = APIRouter()

    @routes.get("/login")
    def form(next: str = "/") -> HTMLResponse:
        return pages.render("login.html", next=_local_path(next), is_rejected=False)

    @routes.post("/login")
    async def log_in(request: Request, form: Form) -> Response:
        target = _local_path(form.get("next", "/"))
        if token is not None and not token.matches(form.get("token", "")):
            return pages.render("login.html", 401, next=target, is_rejected=True)
        answer = RedirectResponse(target, 303)
        if token is not None:
            secure = request.url.scheme == "https"
            age_s = int(SESSION_LENGTH.total_seconds())
            answer.set_cookie(COOKIE_NAME, token.open_session(), age_s, httponly=True, samesite="strict", secure=secure)
        return answer

    @routes.post("/logout")
    def log_out(request: Request) -> Response:
        if token is not None:
            token.close_session(_cookie(request.headers))
        answer = RedirectResponse("/login", 303)
        answer.delete_cookie(COOKIE_NAME)
        return answer

    return routes


def _local_path(path: str) -> str:
    """Return the path if it is one of this server, else "/": a link cannot redirect to another site."""
    if not path.startswith("/") or path[1:2] in ("/", "\\") or not path.isprintable():
        return "/"
    return path


def _is_valid_host(host: str) -> bool:
    """Return whether the Host header is well-formed."""
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


def _is_same_site(headers: Headers) -> bool:
    """Return whether a request comes from a page of this site, or from a program, which sends no origin."""
    origin = headers.get("origin")
    if origin is not None:
        return origin.partition("://")[2] == headers.get("host", "")
    return headers.get("sec-fetch-site", "none") in ("none", "same-origin")
