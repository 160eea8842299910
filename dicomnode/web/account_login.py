"""/login and /logout of a node with accounts."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from dicomnode.web import pages
from dicomnode.web.account_access import AccountAccess
from dicomnode.web.connections import host_key
from dicomnode.web.cookies import delete_cookie, local_path, read_cookie, set_cookie
from dicomnode.web.forms import Form

__all__ = ["create_router"]

_LONGEST_NAME = 64
_WRONG = "This name and password do not belong together. Try again."


def create_router(accounts: AccountAccess) -> APIRouter:
    """Create the routes."""
    routes = APIRouter()

    @routes.get("/login")
    def form(next: str = "/") -> HTMLResponse:
        return _login_page(next)

    @routes.post("/login")
    async def log_in(request: Request, form: Form) -> Response:
        name, target = form.get("name", "")[:_LONGEST_NAME].lower(), form.get("next", "/")
        address = host_key(request.client.host if request.client else "")
        if wait_s := accounts.throttle.admit(name, address):
            fault = f"Too many attempts. Try again in {-(-wait_s // 60)} min."
            return _login_page(target, fault, 429, {"Retry-After": str(wait_s)})
        if not await accounts.check_password(name, form.get("password", "")):
            return _login_page(target, _WRONG, 401)
        accounts.throttle.forgive(name, address)
        cookie = await run_in_threadpool(accounts.open_session, name)
        if cookie is None:
            return _login_page(target, _WRONG, 401)
        answer = RedirectResponse(local_path(target), 303)
        set_cookie(answer, request, cookie, accounts.length)
        return answer

    @routes.post("/logout")
    def log_out(request: Request) -> Response:
        accounts.close_session(read_cookie(request.headers))
        answer = RedirectResponse("/login", 303)
        delete_cookie(answer)
        return answer

    return routes


def _login_page(target: str, fault: str = "", status: int = 200, headers: dict[str, str] | None = None) -> HTMLResponse:
    page = pages.render("login_account.html", status, next=local_path(target), fault=fault)
    page.headers.update(headers or {})
    return page
