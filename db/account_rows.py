"""The tables of accounts and of their sessions on the web."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import ForeignKey
from sqlalchemy.orm import Mapped, mapped_column, relationship

from db.base import Base, Digest, Pk
from db.states import Role

__all__ = ["Account", "WebSession"]


class Account(Base):
    """Person or program that may use the web.

    ``display_name``: the name in forms and records of decisions. ``password_hash``: of argon2, or "" where a provider
    checks the person (``issuer``, else ""). ``token_digest``: SHA-256 of the token for programs. Accounts are disabled
    and never deleted, because the audit trail names them.
    """

    __tablename__ = "accounts"

    id: Mapped[Pk]
    name: Mapped[str] = mapped_column(unique=True)
    display_name: Mapped[str]
    role: Mapped[Role]
    password_hash: Mapped[str] = mapped_column(default="")
    issuer: Mapped[str] = mapped_column(default="")
    token_digest: Mapped[Digest | None] = mapped_column(unique=True)
    created_at: Mapped[datetime]
    disabled_at: Mapped[datetime | None]


class WebSession(Base):
    """Session of a person's browser; ``digest``: SHA-256 of its cookie."""

    __tablename__ = "web_sessions"

    id: Mapped[Pk]
    account_id: Mapped[int] = mapped_column(ForeignKey("accounts.id"), index=True)
    digest: Mapped[Digest] = mapped_column(unique=True)
    created_at: Mapped[datetime]
    last_seen_at: Mapped[datetime]
    expires_at: Mapped[datetime]

    account: Mapped[Account] = relationship()
