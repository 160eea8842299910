"""Who may use the web: whoever shows the token, or, where there is none, this machine only.

A token comes as ``Authorization: Bearer ...`` or as the cookie that the form at /login sets. The cookie holds no token,
but a moment and its keyed digest, so it ends by itself. Pages of other sites can make a browser send requests to a
server on loopback: without a token, requests must name this machine as their host, and those that change something must
come from a page of ours.
"""

from __future__ import annotations

import hashlib
import hmac
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
from dicomnode.errors import ConfigError
from dicomnode.web import pages

__all__ = ["OPEN_PATHS", "Guard", "Token", "read_token", "router"]

OPEN_PATHS = frozenset({"/healthz", "/readyz", "/metrics", "/login", "/static/node.css"})
COOKIE = "dicomnode"
STAY = timedelta(hours=12)
_SHORTEST_TOKEN = 16
_LONGEST_FORM = 4096
_HARMLESS = frozenset({"GET", "HEAD", "OPTIONS"})

Clock = Callable[[], datetime]


class Token:
    """The secret, and the cookies that stand for it."""

    def __init__(self, secret: str, now: Clock) -> None:
        self._secret, self._now = secret.encode(), now

    def is_it(self, shown: str) -> bool:
        """Whether somebody showed the token itself; takes as long for a wrong one as for the right one."""
        return hmac.compare_digest(shown.encode(), self._secret)

    def cookie(self) -> str:
        """A cookie that holds for STAY from now."""
        until = str(int((self._now() + STAY).timestamp()))
        return f"{until}.{self._digest(until)}"

    def is_cookie(self, shown: str) -> bool:
        """Whether it is one of ours, and its time is not over."""
        until, _, digest = shown.partition(".")
        genuine = hmac.compare_digest(digest.encode(), self._digest(until).encode())
        return genuine and self._now().timestamp() < int(until)

    def _digest(self, until: str) -> str:
        return hmac.new(self._secret, f"dicomnode cookie {until}".encode(), hashlib.sha256).hexdigest()


def read_token(config: Config, now: Clock) -> Token | None:
    """The token that the configuration names a file of. Raises ConfigError when the file holds none."""
    if config.web.token_file is None:
        return None
    path = config.path.parent / config.web.token_file
    try:
        secret = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"web.token_file: {path} cannot be read ({type(error).__name__})") from None
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
        return token.is_cookie(cookie_parser(headers.get("cookie", "")).get(COOKIE, ""))


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
            answer.set_cookie(COOKIE, token.cookie(), age_s, httponly=True, samesite="strict", secure=secure)
        return answer

    @routes.post("/logout")
    def log_out() -> Response:
        answer = RedirectResponse("/login", 303)
        answer.delete_cookie(COOKIE)
        return answer

    return routes


def _local(path: str) -> str:
    """A path on this server: never another address that a link smuggled in."""
    if not path.startswith("/") or path[1:2] in ("/", "\\") or not path.isprintable():
        return "/"
    return path


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
        return urlsplit(origin).netloc == headers.get("host", "")
    return headers.get("sec-fetch-site", "none") in ("none", "same-origin")
