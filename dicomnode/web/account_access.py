"""Recognition of who sends a request, on a node with accounts: by the cookie of a session, or by a token.

Sessions are rows, so that log-out, a disabled account, another password or another role end them at once, by any
process, and a restart does not.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from datetime import datetime, timedelta

from anyio import CapacityLimiter, to_thread
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session, sessionmaker
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.types import Scope

from db import accounts, audit
from db import engine as engines
from db.models import Account
from db.states import Role
from dicomnode.accounts import passwords
from dicomnode.accounts.display_names import NODE_TOKEN_NAME
from dicomnode.config.web import WebConfig
from dicomnode.web.cookies import read_cookie
from dicomnode.web.login_throttle import LoginThrottle
from dicomnode.web.node_token import Token
from dicomnode.web.person import Person

__all__ = ["NODE_TOKEN", "AccountAccess"]

_log = logging.getLogger(__name__)

NODE_TOKEN = Person(NODE_TOKEN_NAME, NODE_TOKEN_NAME, Role.ADMINISTRATOR)
"""Whoever has the node's token; no account can have this name."""
_CHECKED_AT_ONCE = 2
"""Passwords checked at one moment: each takes 64 MiB."""


class AccountAccess:
    """Accounts, their sessions and their tokens; ``length``: the longest session."""

    def __init__(
        self, config: WebConfig, sessions: sessionmaker[Session], now: Callable[[], datetime], token: Token | None
    ) -> None:
        self.length, self._idle = timedelta(hours=config.session_h), timedelta(hours=config.session_idle_h)
        self._sessions, self._readers = sessions, engines.readers(sessions.kw["bind"])
        self._now, self._token = now, token
        self._limiter: CapacityLimiter | None = None
        self._marking: set[str] = set()
        self.throttle = LoginThrottle(now)

    async def identify(self, scope: Scope, *, marks: bool = True) -> Person | None:
        """Return who sends a request, or None; ``marks``: it counts as use of the session."""
        kind, _, credential = Headers(scope=scope).get("authorization", "").partition(" ")
        if kind.lower() == "bearer":
            return await run_in_threadpool(self._find_by_token, credential.strip())
        cookie = read_cookie(scope)
        return await run_in_threadpool(self._find_by_cookie, cookie, marks) if cookie else None

    async def admit_login(self, name: str | None, address: str) -> int:
        """Count an attempt to log in and return 0, or the seconds after which one is admitted, which is an event.

        ``name`` None: an attempt at the provider.
        """
        wait_s = self.throttle.admit(name, address)
        if wait_s and (limits := self.throttle.list_new_closures(name, address)):
            await run_in_threadpool(self._record_throttle, name or "", address, limits)
        return wait_s

    async def check_password(self, name: str, password: str) -> str:
        """Return the hash of an enabled account's password, or "" where it is not that one.

        It takes as long for a name that is unknown.
        """
        if self._limiter is None:
            self._limiter = CapacityLimiter(_CHECKED_AT_ONCE)
        return await to_thread.run_sync(self._check_password, name, password, limiter=self._limiter)

    def open_session(self, name: str, password_hash: str | None = None) -> str | None:
        """Open a session of an account and return its cookie; None where it is disabled meanwhile.

        ``password_hash``: what was checked; None, too, where the password was changed meanwhile.
        """
        cookie = passwords.make_credential()
        with self._sessions.begin() as session:
            account = accounts.find(session, name)
            if account is None or account.disabled_at is not None:
                return None
            if password_hash is not None and account.password_hash != password_hash:
                return None
            with audit.act_for(account.name):
                accounts.open_session(
                    session, account, passwords.digest(cookie), length=self.length, now=self._now()
                )  # fmt: skip
        return cookie

    def close_session(self, cookie: str) -> None:
        """End the session of a cookie."""
        with self._sessions.begin() as session:
            accounts.close_session(session, passwords.digest(cookie), now=self._now())

    def _record_throttle(self, name: str, address: str, limits: list[str]) -> None:
        """Record an event; a database that takes no writes opens no limit."""
        _log.warning("web: log-ins from %s wait: %s", address, ", ".join(limits))
        with contextlib.suppress(SQLAlchemyError), self._sessions.begin() as session:
            accounts.record_throttle(session, name, address=address, limits=limits, now=self._now())

    def _check_password(self, name: str, password: str) -> str:
        with self._readers() as session:
            account = accounts.find(session, name)
            hashed = account.password_hash if account is not None and account.disabled_at is None else ""
        return hashed if passwords.verify(hashed, password) else ""

    def _find_by_token(self, credential: str) -> Person | None:
        if self._token is not None and self._token.matches(credential):
            return NODE_TOKEN
        with self._readers() as session:
            account = accounts.find_by_token(session, passwords.digest(credential))
            return _to_person(account) if account is not None else None

    def _find_by_cookie(self, cookie: str, marks: bool) -> Person | None:
        digest, now = passwords.digest(cookie), self._now()
        with self._readers() as session:
            row = accounts.find_session(session, digest, idle=self._idle, now=now)
            if row is None:
                return None
            found, is_due = _to_person(row.account), marks and accounts.needs_mark(row, now)
        if is_due:
            self._mark_seen(digest, now)
        return found

    def _mark_seen(self, digest: str, now: datetime) -> None:
        """Mark a session once at a time; where the database takes no writes, reading goes on."""
        if digest in self._marking:
            return
        self._marking.add(digest)
        try:
            with contextlib.suppress(SQLAlchemyError), self._sessions.begin() as session:
                accounts.mark_seen(session, digest, now)
        finally:
            self._marking.discard(digest)


def _to_person(account: Account) -> Person:
    return Person(account.name, account.display_name, account.role)
