"""The tables of the audit chain."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import Index
from sqlalchemy.orm import Mapped, mapped_column

from db.base import BIG, Base, Digest

__all__ = ["Chain", "Event"]


class Event(Base):
    """Event of the audit chain: ``hash`` covers the event and the hash before it."""

    __tablename__ = "events"

    seq: Mapped[int] = mapped_column(BIG, primary_key=True, autoincrement=False)
    at: Mapped[datetime]
    subject: Mapped[str]
    subject_id: Mapped[str]
    event: Mapped[str]
    detail: Mapped[dict[str, Any]]
    previous: Mapped[Digest]
    hash: Mapped[Digest]

    __table_args__ = (Index(None, "subject", "subject_id"),)


class Chain(Base):
    """Head of the audit chain: one row, locked last in every transaction that writes events."""

    __tablename__ = "chain"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    seq: Mapped[int] = mapped_column(BIG)
    hash: Mapped[Digest]
