"""The table of storage commitments that were requested of this node."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import JSON, Index
from sqlalchemy.orm import Mapped, mapped_column

from db.base import Base, Leased, Pk, Uid
from db.states import ReportState

__all__ = ["CommitmentRequest"]


class CommitmentRequest(Leased, Base):
    """Storage commitment that an application entity requested of this node, and the report that it gets.

    ``verdicts``: for each instance its SOP Class UID, SOP Instance UID and Failure Reason, 0 where it is committed.
    """

    __tablename__ = "commitment_requests"

    id: Mapped[Pk]
    transaction_uid: Mapped[Uid] = mapped_column(unique=True)
    ae_title: Mapped[str]
    address: Mapped[str]
    verdicts: Mapped[list[Any]] = mapped_column(JSON)
    state: Mapped[ReportState] = mapped_column(default=ReportState.WAITING)
    created_at: Mapped[datetime]
    sent_at: Mapped[datetime | None]

    __table_args__ = (Index(None, "state", "not_before"),)
