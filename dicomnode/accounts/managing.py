"""Use cases of 'dicomnode accounts': add, change, disable. Callers commit."""

from __future__ import annotations

import re
from datetime import datetime
from typing import Any

from sqlalchemy.orm import Session

from db import accounts
from db.models import Account
from db.states import Role
from dicomnode.accounts import display_names, passwords
from dicomnode.errors import InputRefused, NotAllowed, NotFound

__all__ = ["add", "change_password", "change_role", "describe", "disable", "enable", "make_token", "revoke_token"]

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,39}")


def add(session: Session, name: str, role: Role, password: str, *, by: str, now: datetime) -> Account:
    """Add an account with a password. Raises InputRefused, NotAllowed."""
    if not _NAME.fullmatch(name):
        raise InputRefused("the name of an account has 1 to 40 of a-z, 0-9, '.', '_', '-', a letter or digit first")
    if accounts.find(session, name) is not None:
        raise NotAllowed(f"account {name} exists; 'dicomnode accounts enable' enables one that is disabled")
    if display_names.is_taken(session, name):
        raise NotAllowed(f"{name} is the name that another account has in forms and records: choose another")
    hashed = passwords.hash_password(password)
    return accounts.add(session, name=name, display_name=name, role=role, password_hash=hashed, by=by, now=now)


def change_password(session: Session, name: str, password: str, *, by: str, now: datetime) -> None:
    """Set a password; the sessions end. Raises NotFound, NotAllowed, InputRefused."""
    account = _find_local(session, name, "its password")
    accounts.change_password(session, account, passwords.hash_password(password), by=by, now=now)


def change_role(session: Session, name: str, role: Role, *, by: str, now: datetime) -> None:
    """Set a role; the sessions end. Raises NotFound, NotAllowed."""
    accounts.change_role(session, _find_local(session, name, "its role"), role, by=by, now=now)


def disable(session: Session, name: str, *, by: str, now: datetime) -> None:
    """Disable an account; its sessions and its token end. Raises NotFound, NotAllowed."""
    account = _find(session, name)
    if account.disabled_at is not None:
        raise NotAllowed(f"account {name} is disabled already")
    accounts.disable(session, account, by=by, now=now)


def enable(session: Session, name: str, *, by: str, now: datetime) -> None:
    """Enable a disabled account. Raises NotFound, NotAllowed."""
    account = _find(session, name)
    if account.disabled_at is None:
        raise NotAllowed(f"account {name} is not disabled")
    accounts.enable(session, account, by=by, now=now)


def make_token(session: Session, name: str, *, by: str, now: datetime) -> str:
    """Make a token for programs, in place of the account's former one; return it. Raises NotFound, NotAllowed."""
    account = _find_local(session, name, "a token for it")
    if account.disabled_at is not None:
        raise NotAllowed(f"account {name} is disabled: it gets no token")
    token = passwords.make_credential()
    accounts.set_token(session, account, passwords.digest(token), by=by, now=now)
    return token


def revoke_token(session: Session, name: str, *, by: str, now: datetime) -> None:
    """Revoke the account's token. Raises NotFound, NotAllowed."""
    account = _find(session, name)
    if account.token_digest is None:
        raise NotAllowed(f"account {name} has no token")
    accounts.set_token(session, account, None, by=by, now=now)


def describe(account: Account) -> dict[str, Any]:
    """Return the facts of an account, without its hashes."""
    return {
        "name": account.name,
        "display_name": account.display_name,
        "role": str(account.role),
        "state": "disabled" if account.disabled_at else "enabled",
        "login": account.issuer or "password",
        "token": "yes" if account.token_digest else "no",
        "created_at": account.created_at,
        "disabled_at": account.disabled_at,
    }


def _find(session: Session, name: str) -> Account:
    account = accounts.find(session, name)
    if account is None:
        raise NotFound(f"there is no account {name}; 'dicomnode accounts list' shows all")
    return account


def _find_local(session: Session, name: str, what: str) -> Account:
    account = _find(session, name)
    if account.issuer:
        raise NotAllowed(f"account {name} is of {account.issuer}, which decides on {what}")
    return account
