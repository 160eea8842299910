"""The tables of the worklist: workitems (Unified Procedure Steps), their studies, subscriptions, and waiting events."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import ForeignKey, Index, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from db.base import Base, Pk, Uid
from db.states import WorkitemState

__all__ = ["Workitem", "WorkitemEvent", "WorkitemStudy", "WorkitemSubscription"]


class Workitem(Base):
    """Workitem. ``attributes``: its data set as DICOM JSON, without the Transaction UID, which is the access lock.

    ``transaction_uid``: "" until the workitem is claimed. ``performer``: who claimed it; ``is_own``: true where that is
    this node. ``cancel_reason``: why this node stops its work on it, "" unless somebody asked.
    """

    __tablename__ = "workitems"

    id: Mapped[Pk]
    uid: Mapped[Uid] = mapped_column(unique=True)
    state: Mapped[WorkitemState] = mapped_column(default=WorkitemState.SCHEDULED)
    patient_id: Mapped[str] = mapped_column(default="")
    attributes: Mapped[dict[str, Any]]
    transaction_uid: Mapped[Uid] = mapped_column(default="")
    performer: Mapped[str] = mapped_column(default="")
    is_own: Mapped[bool] = mapped_column(default=False)
    cancel_reason: Mapped[str] = mapped_column(default="")
    created_at: Mapped[datetime]
    updated_at: Mapped[datetime]
    ended_at: Mapped[datetime | None]

    __table_args__ = (Index(None, "state", "id"), Index(None, "patient_id"))


class WorkitemStudy(Base):
    """Study that a workitem names as input, here or not; retention keeps it while the workitem is open."""

    __tablename__ = "workitem_studies"

    id: Mapped[Pk]
    workitem_id: Mapped[int] = mapped_column(ForeignKey("workitems.id"))
    study_uid: Mapped[Uid]

    __table_args__ = (UniqueConstraint("workitem_id", "study_uid"), Index(None, "study_uid"))


class WorkitemSubscription(Base):
    """Subscription of an AE title to a workitem, or to the worklist by one of its two well-known UIDs.

    ``matching``: search keys of the filtered worklist. ``deletion_lock``: the workitem stays until it is unlocked.
    """

    __tablename__ = "workitem_subscriptions"

    id: Mapped[Pk]
    ae_title: Mapped[str]
    uid: Mapped[Uid]
    deletion_lock: Mapped[bool] = mapped_column(default=False)
    matching: Mapped[dict[str, Any]]
    created_at: Mapped[datetime]

    __table_args__ = (UniqueConstraint("ae_title", "uid"), Index(None, "uid"))


class WorkitemEvent(Base):
    """Event report that waits for its subscriber. ``content``: the report as DICOM JSON."""

    __tablename__ = "workitem_events"

    id: Mapped[Pk]
    ae_title: Mapped[str]
    content: Mapped[dict[str, Any]]
    created_at: Mapped[datetime]

    __table_args__ = (Index(None, "ae_title", "id"),)
