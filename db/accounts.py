"""Accounts of the web and their sessions. Each change is an event; a change of rights ends the account's sessions."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import delete, select
from sqlalchemy.orm import Session, joinedload

from db import audit
from db.account_rows import Account, WebSession
from db.states import Role

__all__ = [
    "add",
    "change_password",
    "change_role",
    "close_session",
    "disable",
    "enable",
    "end_sessions",
    "find",
    "find_by_token",
    "find_session",
    "list_accounts",
    "mark_seen",
    "needs_mark",
    "open_session",
    "record_throttle",
    "rename",
    "set_token",
]

_SEEN_EVERY = timedelta(minutes=1)
"""Time between two writes of when a session was last in use: not every request is one."""


def find(session: Session, name: str) -> Account | None:
    """Return the account of that name, or None."""
    return session.scalar(select(Account).where(Account.name == name))


def list_accounts(session: Session) -> list[Account]:
    """Return all accounts by name."""
    return list(session.scalars(select(Account).order_by(Account.name)))


def add(
    session: Session, *, name: str, display_name: str, role: Role, password_hash: str = "", issuer: str = "", by: str,
    now: datetime,
) -> Account:  # fmt: skip
    """Add an account, whose name must be new; ``by``: who adds it."""
    account = Account(
        name=name, display_name=display_name, role=role, password_hash=password_hash, issuer=issuer, created_at=now
    )  # fmt: skip
    session.add(account)
    session.flush()
    _record(session, account, "added", {"who": by, "role": str(role)}, now)
    return account


def change_password(session: Session, account: Account, password_hash: str, *, by: str, now: datetime) -> None:
    """Set a password and end the sessions."""
    account.password_hash = password_hash
    end_sessions(session, account)
    _record(session, account, "password_changed", {"who": by}, now)


def change_role(session: Session, account: Account, role: Role, *, by: str, now: datetime) -> None:
    """Set a role and end the sessions."""
    detail = {"who": by, "from": str(account.role), "to": str(role)}
    account.role = role
    end_sessions(session, account)
    _record(session, account, "role_changed", detail, now)


def rename(session: Session, account: Account, display_name: str, *, by: str, now: datetime) -> None:
    """Set the name in forms and records, which must be of no other account."""
    detail = {"who": by, "from": account.display_name, "to": display_name}
    account.display_name = display_name
    _record(session, account, "renamed", detail, now)


def disable(session: Session, account: Account, *, by: str, now: datetime) -> None:
    """Disable an account: its sessions and its token end."""
    account.disabled_at, account.token_digest = now, None
    end_sessions(session, account)
    _record(session, account, "disabled", {"who": by}, now)


def enable(session: Session, account: Account, *, by: str, now: datetime) -> None:
    """Enable a disabled account; its token does not come back."""
    account.disabled_at = None
    _record(session, account, "enabled", {"who": by}, now)


def set_token(session: Session, account: Account, digest: str | None, *, by: str, now: datetime) -> None:
    """Replace the account's token by one with that SHA-256, or by none."""
    account.token_digest = digest
    _record(session, account, "token_made" if digest else "token_revoked", {"who": by}, now)


def find_by_token(session: Session, digest: str) -> Account | None:
    """Return the enabled account whose token has that SHA-256, or None."""
    return session.scalar(select(Account).where(Account.token_digest == digest, Account.disabled_at.is_(None)))


def open_session(session: Session, account: Account, digest: str, *, length: timedelta, now: datetime) -> None:
    """Open a session of a cookie with that SHA-256, and remove those that are over."""
    session.execute(delete(WebSession).where(WebSession.expires_at <= now))
    session.add(
        WebSession(account_id=account.id, digest=digest, created_at=now, last_seen_at=now, expires_at=now + length)
    )
    _record(session, account, "logged_in", {}, now)


def record_throttle(session: Session, name: str, *, address: str, limits: Sequence[str], now: datetime) -> None:
    """Record that log-ins have to wait at these limits.

    ``name``: as it was typed, which may be a password by mistake: the event names it where it is that of an account.
    """
    known = name if find(session, name) is not None else "unknown"
    detail = {"address": address, "limits": list(limits)}
    audit.append(session, subject="accounts", subject_id=known, event="throttled", detail=detail, now=now)


def find_session(session: Session, digest: str, *, idle: timedelta, now: datetime) -> WebSession | None:
    """Return the open session of a cookie with its account, or None.

    A session is over at its end, after ``idle`` without a request, and when its account is disabled.
    """
    query = select(WebSession).options(joinedload(WebSession.account)).join(Account)
    return session.scalar(
        query.where(
            WebSession.digest == digest, WebSession.expires_at > now, WebSession.last_seen_at > now - idle,
            Account.disabled_at.is_(None),
        )
    )  # fmt: skip


def needs_mark(row: WebSession, now: datetime) -> bool:
    """Return whether ``mark_seen`` is due."""
    return now - row.last_seen_at >= _SEEN_EVERY


def mark_seen(session: Session, digest: str, now: datetime) -> None:
    """Write that a session is in use; it may be over meanwhile."""
    row = session.scalar(select(WebSession).where(WebSession.digest == digest).with_for_update())
    if row is not None:
        row.last_seen_at = now


def close_session(session: Session, digest: str, *, now: datetime) -> None:
    """End the session of a cookie, if it is open."""
    row = session.scalar(select(WebSession).where(WebSession.digest == digest).with_for_update())
    if row is not None:
        session.delete(row)
        _record(session, row.account, "logged_out", {}, now)


def end_sessions(session: Session, account: Account) -> None:
    """End all sessions of an account."""
    session.execute(delete(WebSession).where(WebSession.account_id == account.id))


def _record(session: Session, account: Account, event: str, detail: dict[str, Any], now: datetime) -> None:
    audit.append(session, subject="accounts", subject_id=account.name, event=event, detail=detail, now=now)
