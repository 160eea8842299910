"""Entry of a person whom the provider has identified: their account is made or brought up to date."""

from __future__ import annotations

import hmac
from datetime import datetime

from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session, sessionmaker

from db import accounts, audit
from dicomnode.accounts import display_names
from dicomnode.accounts.oidc import Identity
from dicomnode.errors import LoginRefused

__all__ = ["enter"]


def enter(sessions: sessionmaker[Session], issuer: str, identity: Identity, now: datetime) -> str:
    """Return the name of the person's account. Raises LoginRefused."""
    try:
        return _enter(sessions, issuer, identity, now)
    except IntegrityError:  # another first log-in of this person made the account meanwhile
        return _enter(sessions, issuer, identity, now)


def _enter(sessions: sessionmaker[Session], issuer: str, identity: Identity, now: datetime) -> str:
    name = f"oidc:{identity.subject}"
    with audit.act_for(name), sessions.begin() as session:
        account = accounts.find(session, name)
        if account is not None and not hmac.compare_digest(account.issuer, issuer):
            raise LoginRefused(f"the account {name} is of another provider, {account.issuer}")
        display_name = display_names.choose(session, name, identity.display_name)
        if account is None:
            accounts.add(
                session, name=name, display_name=display_name, role=identity.role, issuer=issuer, by=issuer, now=now
            )
            return name
        if account.display_name != display_name:
            accounts.rename(session, account, display_name, by=issuer, now=now)
        if account.role is not identity.role:
            accounts.change_role(session, account, identity.role, by=issuer, now=now)
    return name
