"""/login and /logout of a node with accounts."""

from __future__ import annotations

import logging
from urllib.parse import urlsplit

from fastapi import APIRouter
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from dicomnode.accounts.oidc import Provider
from dicomnode.web import pages
from dicomnode.web.account_access import AccountAccess
from dicomnode.web.connections import host_key
from dicomnode.web.cookies import delete_cookie, local_path, read_cookie, set_cookie
from dicomnode.web.forms import Form

__all__ = ["create_router", "find_address", "render_form"]

_log = logging.getLogger(__name__)

_LONGEST_NAME = 64
_WRONG = "This name and password do not belong together. Try again."


def create_router(accounts: AccountAccess, provider: Provider | None = None) -> APIRouter:
    """Create the routes; the form leads to the provider, too, where there is one."""
    routes = APIRouter()

    @routes.get("/login")
    def form(next: str = "/") -> HTMLResponse:
        return render_form(next, provider=provider)

    @routes.post("/login")
    async def log_in(request: Request, form: Form) -> Response:
        name, target = form.get("name", "")[:_LONGEST_NAME].lower(), form.get("next", "/")
        name = name.replace("\0", "?")  # PostgreSQL refuses it in a text, and no account has either
        address = find_address(request)
        if wait_s := await accounts.admit_login(name, address):
            return render_form(target, wait_s=wait_s, provider=provider)
        hashed = await accounts.check_password(name, form.get("password", ""))
        cookie = await run_in_threadpool(accounts.open_session, name, hashed) if hashed else None
        if cookie is None:
            _log.warning("web: a log-in as %r from %s was refused", name, address)
            return render_form(target, _WRONG, 401, provider=provider)
        accounts.throttle.forgive(name, address)
        await run_in_threadpool(accounts.close_session, read_cookie(request.scope))
        answer = RedirectResponse(local_path(target), 303)
        set_cookie(answer, request, cookie, accounts.length)
        return answer

    @routes.post("/logout")
    def log_out(request: Request) -> Response:
        accounts.close_session(read_cookie(request.scope))
        answer = RedirectResponse("/login", 303)
        delete_cookie(answer, request)
        return answer

    return routes


def find_address(request: Request) -> str:
    """Return the machine that a request comes from."""
    return host_key(request.client.host if request.client else "")


def render_form(
    target: str, fault: str = "", status: int = 200, *, wait_s: int = 0, provider: Provider | None
) -> HTMLResponse:
    """Return the form that leads to ``target``, with what was wrong or, with ``wait_s``, how long to wait."""
    if wait_s:
        fault, status = f"Too many attempts. Try again in {-(-wait_s // 60)} min.", 429
    host = urlsplit(provider.issuer).hostname if provider else ""
    page = pages.render("login_account.html", status, next=local_path(target), fault=fault, provider=host)
    if wait_s:
        page.headers["Retry-After"] = str(wait_s)
    return page
