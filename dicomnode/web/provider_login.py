"""/login/provider and /login/return: log-in through the provider of [web.oidc].

What a log-in is checked with stays here, under a cookie that other sites' redirections do bring along (SameSite=Lax).
The cookie of the session itself is Strict: a browser would not send it in answer to the provider's redirection, so a
page of this node leads on.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import ParamSpec, TypeVar

from anyio import CapacityLimiter, to_thread
from fastapi import APIRouter
from sqlalchemy.orm import Session, sessionmaker
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from dicomnode.accounts import entering, passwords
from dicomnode.accounts.oidc import PendingLogin, Provider
from dicomnode.config.web import WebConfig
from dicomnode.errors import LoginRefused, ProviderUnreachable
from dicomnode.web import pages
from dicomnode.web.account_access import AccountAccess
from dicomnode.web.account_login import find_address, render_form
from dicomnode.web.cookies import delete_cookie, local_path, read_cookie, set_cookie

__all__ = ["add_routes", "make_provider"]

_log = logging.getLogger(__name__)

_COOKIE_NAME = "dicomnode-login"
_OVER = "This log-in is over, or began in another browser. Begin again."
_LENGTH = timedelta(minutes=10)
_MOST_PENDING = 1000
_ASKED_AT_ONCE = 4

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True)
class _Started:
    login: PendingLogin
    target: str
    address: str
    until: datetime


class _PendingLogins:
    """Log-ins at the provider by their cookie, each for one answer."""

    def __init__(self, now: Callable[[], datetime]) -> None:
        self._now = now
        self._started: dict[str, _Started] = {}

    def add(self, login: PendingLogin, target: str, address: str) -> str:
        """Keep a log-in from a machine; return its cookie."""
        while len(self._started) >= _MOST_PENDING:
            del self._started[next(iter(self._started))]
        cookie = passwords.make_credential()
        self._started[passwords.digest(cookie)] = _Started(login, target, address, self._now() + _LENGTH)
        return cookie

    def take(self, cookie: str) -> _Started | None:
        """Return the log-in of a cookie, once."""
        started = self._started.pop(passwords.digest(cookie), None)
        return started if started is not None and self._now() < started.until else None


class _Questions:
    """Questions to the provider in threads of their own: one that does not answer takes none of the node's."""

    def __init__(self) -> None:
        self._limiter: CapacityLimiter | None = None
        self._count = 0

    async def run(self, ask: Callable[P, T], *args: P.args, **options: P.kwargs) -> T:
        """Return the answer. Raises what ``ask`` does, and ProviderUnreachable where too many others wait."""
        if self._count >= _ASKED_AT_ONCE:
            raise ProviderUnreachable("the provider is slow, and others wait for it: try again in a minute")
        if self._limiter is None:
            self._limiter = CapacityLimiter(_ASKED_AT_ONCE)
        self._count += 1
        try:
            return await to_thread.run_sync(partial(ask, *args, **options), limiter=self._limiter)
        finally:
            self._count -= 1


def make_provider(config: WebConfig, now: Callable[[], datetime]) -> Provider | None:
    """Return the provider of the configuration, if any. Raises ConfigError for an unusable secret."""
    if config.oidc is None or config.public_url is None:
        return None
    return Provider(config.oidc, f"{config.public_url.rstrip('/')}/login/return", now)


def add_routes(
    routes: APIRouter,
    provider: Provider,
    access: AccountAccess,
    sessions: sessionmaker[Session],
    now: Callable[[], datetime],
) -> None:
    """Add the routes."""
    pending, questions = _PendingLogins(now), _Questions()

    @routes.get("/login/provider")
    async def begin(request: Request, next: str = "/") -> Response:
        address = find_address(request)
        if wait_s := await access.admit_login(None, address):
            return render_form(next, wait_s=wait_s, provider=provider)
        try:
            login = await questions.run(provider.begin)
        except ProviderUnreachable as error:
            return render_form(next, f"{error}.", 503, provider=provider)
        answer = RedirectResponse(login.address, 303)
        cookie = pending.add(login, local_path(next), address)
        set_cookie(answer, request, cookie, _LENGTH, name=_COOKIE_NAME, samesite="lax")
        return answer

    @routes.get("/login/return")
    async def finish(request: Request) -> Response:
        started = pending.take(read_cookie(request.scope, _COOKIE_NAME))
        if started is None:
            return render_form("/", _OVER, 400, provider=provider)
        try:
            identity = await questions.run(provider.finish, started.login, dict(request.query_params))
            name = await run_in_threadpool(entering.enter, sessions, provider.issuer, identity, now())
            cookie = await run_in_threadpool(access.open_session, name)
            if cookie is None:
                raise LoginRefused(f"the account of {identity.display_name} is disabled on this node")
        except LoginRefused as error:
            _log.warning("web: a log-in through the provider from %s was refused: %r", started.address, str(error))
            return render_form(started.target, f"{error}.", 403, provider=provider)
        except ProviderUnreachable as error:
            return render_form(started.target, f"{error}.", 503, provider=provider)
        access.throttle.forgive(None, started.address)
        answer = pages.render("login_done.html", target=started.target, display_name=identity.display_name)
        set_cookie(answer, request, cookie, access.length)
        delete_cookie(answer, request, _COOKIE_NAME)
        return answer
