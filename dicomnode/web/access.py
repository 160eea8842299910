"""Access to the web: with a session, with a token or, where neither is configured, from this machine only.

A token comes as ``Authorization: Bearer ...``, a session as the cookie that the form at /login sets. Pages of other
sites can make a browser send requests to a server on loopback: without a token or accounts, requests must name this
machine as their host, and those that change something must come from one of the node's own pages.
"""

from __future__ import annotations

from ipaddress import ip_address
from urllib.parse import quote, urlsplit

from fastapi import APIRouter
from starlette.datastructures import Headers, QueryParams
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dicomnode.web import pages, person
from dicomnode.web.account_access import AccountAccess
from dicomnode.web.cookies import delete_cookie, local_path, read_cookie, set_cookie
from dicomnode.web.forms import Form
from dicomnode.web.node_token import SESSION_LENGTH, Token
from dicomnode.web.public_scheme import is_encrypted

__all__ = ["IN_BACKGROUND", "OPEN_PATHS", "PROVIDER_PATHS", "AccessMiddleware", "create_router", "is_same_site"]

OPEN_PATHS = frozenset({"/healthz", "/readyz", "/metrics", "/login", "/static/node.css"})
_PROVIDER_PATH = "/login/provider"
PROVIDER_PATHS = frozenset({_PROVIDER_PATH, "/login/return"})
"""Open as well on a node with accounts."""
IN_BACKGROUND = "dicomnode.in_background"
"""Key of a scope whose request is nobody's work, so that it keeps no session from ending without use."""
_BACKGROUND_HEADER = "dicomnode-background"
"""Header of requests that a page sends by itself, to show its newest state."""
_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
_STREAM_PATH = "/events"


class AccessMiddleware:
    """Middleware that refuses requests without access, and lets the others act for their person.

    Its check of the Host header accepts every loopback address, which starlette's TrustedHostMiddleware, a list of
    names, cannot.
    """

    def __init__(self, app: ASGIApp, token: Token | None, accounts: AccountAccess | None, host: str) -> None:
        self._app, self._token, self._accounts, self._host = app, token, accounts, host

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        if (refusal := self._refusal(scope, headers)) is not None:
            await refusal(scope, receive, send)
        elif self._accounts is None or scope["path"] in OPEN_PATHS | PROVIDER_PATHS:
            await self._app(scope, receive, send)
        else:
            await self._answer_person(self._accounts, scope, receive, send)

    def _refusal(self, scope: Scope, headers: Headers) -> Response | None:
        is_guarded = self._token is not None or self._accounts is not None
        if not _is_valid_host(headers.get("host", "")):
            return PlainTextResponse("the Host header names no host\n", 400)
        if not is_guarded and not _is_loopback(headers.get("host", ""), self._host):
            return PlainTextResponse("this node answers on its own machine only, under its own name\n", 403)
        is_change = scope["method"] not in _SAFE_METHODS or scope["path"] == _PROVIDER_PATH
        if is_change and not is_same_site(scope):
            return PlainTextResponse("a page of another site cannot change anything here\n", 403)
        if self._token is None or self._accounts is not None or scope["path"] in OPEN_PATHS:
            return None
        return None if _is_authorized(scope, self._token) else _demand_access(scope, headers)

    async def _answer_person(self, accounts: AccountAccess, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        found = await accounts.identify(scope, marks=not _is_in_background(scope, headers))
        if found is None:
            await _demand_access(scope, headers)(scope, receive, send)
            return
        with person.act_for(found):
            if scope["path"] == _STREAM_PATH:
                await _stream_while_logged_in(self._app, accounts, scope, receive, send)
            else:
                await self._app(scope, receive, send)


async def _stream_while_logged_in(
    app: ASGIApp, accounts: AccountAccess, scope: Scope, receive: Receive, send: Send
) -> None:
    """Answer with a stream that ends with the session: nothing of it goes out afterwards."""
    is_over = False

    async def send_if_logged_in(message: Message) -> None:
        nonlocal is_over
        if message["type"] == "http.response.body" and await accounts.identify(scope, marks=False) is None:
            is_over = True
            await send({"type": "http.response.body", "body": b"", "more_body": False})
            raise OSError("the session is over")
        await send(message)

    try:
        await app(scope, receive, send_if_logged_in)
    except Exception:
        if not is_over:
            raise


def _is_in_background(scope: Scope, headers: Headers) -> bool:
    """Return whether a page sends a request by itself; the pictures of rows that it renews are such, too.

    A picture at a slice is none of these: a person has moved there.
    """
    is_picture = headers.get("sec-fetch-dest") == "image" and "at" not in QueryParams(scope["query_string"])
    return scope["path"] == _STREAM_PATH or IN_BACKGROUND in scope or _BACKGROUND_HEADER in headers or is_picture


def _is_authorized(scope: Scope, token: Token) -> bool:
    kind, _, credential = Headers(scope=scope).get("authorization", "").partition(" ")
    if kind.lower() == "bearer" and token.matches(credential.strip()):
        return True
    return token.is_session(read_cookie(scope))


def _demand_access(scope: Scope, headers: Headers) -> Response:
    """Return the redirect to the log-in form for a browser, or 401 for a program."""
    if scope["method"] == "GET" and "text/html" in headers.get("accept", ""):
        target = quote(scope["path"]) + (f"?{scope['query_string'].decode('latin-1')}" if scope["query_string"] else "")
        return RedirectResponse(f"/login?next={quote(target, safe='')}", 303)
    header = {"WWW-Authenticate": 'Bearer realm="dicomnode"'}
    return PlainTextResponse("the token of this node is needed: Authorization: Bearer ...\n", 401, header)


def create_router(token: Token | None) -> APIRouter:
    """Create the routes /login and /logout of a node without accounts."""
    routes = APIRouter()

    @routes.get("/login")
    def form(next: str = "/") -> HTMLResponse:
        return pages.render("login.html", next=local_path(next), is_rejected=False)

    @routes.post("/login")
    async def log_in(request: Request, form: Form) -> Response:
        target = local_path(form.get("next", "/"))
        if token is not None and not token.matches(form.get("token", "")):
            return pages.render("login.html", 401, next=target, is_rejected=True)
        answer = RedirectResponse(target, 303)
        if token is not None:
            set_cookie(answer, request, token.open_session(), SESSION_LENGTH)
        return answer

    @routes.post("/logout")
    def log_out(request: Request) -> Response:
        if token is not None:
            token.close_session(read_cookie(request.scope))
        answer = RedirectResponse("/login", 303)
        delete_cookie(answer, request)
        return answer

    return routes


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


def is_same_site(scope: Scope) -> bool:
    """Return whether a request comes from a page of this site, or from a program, which sends no origin.

    With HTTPS a page without is another site: whoever is on the way may have written it.
    """
    headers = Headers(scope=scope)
    origin = headers.get("origin")
    if origin is not None:
        scheme, _, host = origin.partition("://")
        return host == headers.get("host", "") and (scheme == "https" or not is_encrypted(scope))
    return headers.get("sec-fetch-site", "none") in ("none", "same-origin")
