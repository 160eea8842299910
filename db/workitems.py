"""Rows of the worklist: workitems, subscriptions, and events that wait to be sent."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import delete, func, or_, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from db import audit
from db.models import Job, Workitem
from db.states import WORKITEM_PREFIX, WorkitemState
from db.workitem_rows import WorkitemEvent, WorkitemStudy, WorkitemSubscription

__all__ = [
    "OPEN",
    "AlreadyExists",
    "add",
    "add_event",
    "count",
    "count_by_state",
    "count_subscribers",
    "delete_ended",
    "delete_events",
    "find",
    "find_subscription",
    "list_jobs",
    "list_newest",
    "list_open_of_study",
    "list_own",
    "list_scheduled",
    "list_subscribers",
    "list_unclaimed",
    "lock",
    "lock_open",
    "remove_events",
    "scan",
    "set_studies",
    "subscribe",
    "transition",
    "uid_of_route",
    "unsubscribe",
    "waiting_events",
]

OPEN = (WorkitemState.SCHEDULED, WorkitemState.IN_PROGRESS)
_AT_ONCE = 200


class AlreadyExists(Exception):
    """A workitem has the UID already."""


def find(session: Session, uid: str) -> Workitem | None:
    """Return the workitem of a UID, or None."""
    return session.scalar(select(Workitem).where(Workitem.uid == uid))


def lock(session: Session, uid: str) -> Workitem | None:
    """Return the workitem of a UID as it is now, locked until the transaction ends, or None."""
    query = select(Workitem).where(Workitem.uid == uid).with_for_update()
    return session.scalar(query.execution_options(populate_existing=True))


def add(session: Session, row: Workitem, *, who: str, now: datetime) -> None:
    """Add a new workitem. Raises AlreadyExists, also where another transaction adds the same UID meanwhile."""
    try:
        with session.begin_nested():
            session.add(row)
    except IntegrityError:
        raise AlreadyExists(row.uid) from None
    audit.append(
        session, subject=row.__tablename__, subject_id=row.id, event="created", detail={"who": who, "uid": row.uid},
        now=now,
    )  # fmt: skip


def set_studies(session: Session, row: Workitem, study_uids: Collection[str]) -> None:
    """Record the studies that a workitem names as inputs, in place of those that it named before."""
    mine = WorkitemStudy.workitem_id == row.id
    session.execute(delete(WorkitemStudy).where(mine))
    session.add_all(WorkitemStudy(workitem_id=row.id, study_uid=uid) for uid in sorted(study_uids))
    session.flush()


def list_open_of_study(session: Session, study_uid: str) -> Sequence[Workitem]:
    """Return the open workitems that name a study as input, the oldest first."""
    query = select(Workitem).join(WorkitemStudy, WorkitemStudy.workitem_id == Workitem.id)
    return session.scalars(
        query.where(WorkitemStudy.study_uid == study_uid, Workitem.state.in_(OPEN)).order_by(Workitem.id)
    ).all()


def transition(session: Session, row: Workitem, state: WorkitemState, *, reason: str, now: datetime) -> None:
    """Change the state, with its event in the audit trail. Raises InvalidTransition."""
    audit.transition(session, row, state, reason=reason, now=now)
    row.updated_at = now
    if state not in OPEN:
        row.ended_at = now


def count(session: Session) -> int:
    """Return the number of workitems."""
    return session.scalar(select(func.count(Workitem.id))) or 0


def scan(session: Session, *, states: Collection[WorkitemState] = (), patient_id: str = "") -> Iterator[Workitem]:
    """Yield the workitems in the states, all without any, and of the patient if one is given; the oldest first."""
    query = select(Workitem).order_by(Workitem.id).execution_options(yield_per=_AT_ONCE)
    if states:
        query = query.where(Workitem.state.in_(states))
    if patient_id:
        query = query.where(Workitem.patient_id == patient_id)
    yield from session.scalars(query)


def count_by_state(session: Session) -> dict[WorkitemState, int]:
    """Return the number of workitems in each state that has any."""
    query = select(Workitem.state, func.count(Workitem.id)).group_by(Workitem.state)
    return {row[0]: row[1] for row in session.execute(query)}


def list_newest(
    session: Session, state: WorkitemState | None = None, *, limit: int | None, offset: int = 0
) -> Sequence[Workitem]:
    """Return the workitems, or those in a state, the newest first."""
    query = select(Workitem).order_by(Workitem.id.desc()).limit(limit).offset(offset)
    return session.scalars(query if state is None else query.where(Workitem.state == state)).all()


def list_scheduled(session: Session, *, after: int, limit: int) -> Sequence[Workitem]:
    """Return the next workitems that nobody has claimed, in the order of their creation."""
    query = select(Workitem).where(Workitem.state == WorkitemState.SCHEDULED, Workitem.id > after)
    return session.scalars(query.order_by(Workitem.id).limit(limit)).all()


def list_unclaimed(session: Session, *, after: int, before: datetime, limit: int) -> Sequence[Workitem]:
    """Return the next workitems that nobody has claimed and that did not change since a moment, the oldest first."""
    query = select(Workitem).where(Workitem.state == WorkitemState.SCHEDULED, Workitem.id > after)
    return session.scalars(query.where(Workitem.updated_at < before).order_by(Workitem.id).limit(limit)).all()


def lock_open(session: Session, *, after: int, limit: int) -> Sequence[Workitem]:
    """Return the next open workitems, locked until the transaction ends, in the order of their creation."""
    query = select(Workitem).where(Workitem.state.in_(OPEN), Workitem.id > after).order_by(Workitem.id)
    return session.scalars(query.limit(limit).with_for_update().execution_options(populate_existing=True)).all()


def list_own(session: Session) -> Sequence[str]:
    """Return the UIDs of the workitems that this node performs now."""
    mine = (Workitem.state == WorkitemState.IN_PROGRESS, Workitem.is_own)
    return session.scalars(select(Workitem.uid).where(*mine).order_by(Workitem.id)).all()


def list_jobs(session: Session, uid: str) -> Sequence[Job]:
    """Return the jobs of a workitem without shadow jobs, in the order of their creation."""
    name = f"{WORKITEM_PREFIX}{uid}"
    mine = or_(Job.route == name, Job.route.startswith(f"{name}:"))
    return session.scalars(select(Job).where(mine, Job.shadow_of_id.is_(None)).order_by(Job.id)).all()


def uid_of_route(route: str) -> str:
    """Return the UID of the workitem whose jobs have that route's name, or "" for a route of node.toml."""
    return route.removeprefix(WORKITEM_PREFIX).partition(":")[0] if route.startswith(WORKITEM_PREFIX) else ""


def delete_ended(session: Session, *, before: datetime, locked_before: datetime, limit: int, now: datetime) -> int:
    """Delete workitems that ended before a moment, those with a deletion lock before another one; return how many."""
    has_lock = select(WorkitemSubscription.id).where(
        WorkitemSubscription.uid == Workitem.uid, WorkitemSubscription.deletion_lock
    )
    old = (Workitem.ended_at < before) & (~has_lock.exists() | (Workitem.ended_at < locked_before))
    rows = session.scalars(select(Workitem).where(old).order_by(Workitem.id).limit(limit).with_for_update()).all()
    for row in rows:
        session.execute(delete(WorkitemSubscription).where(WorkitemSubscription.uid == row.uid))
        set_studies(session, row, ())
        audit.append(
            session, subject=row.__tablename__, subject_id=row.id, event="deleted", detail={"uid": row.uid}, now=now
        )
        session.delete(row)
    return len(rows)


def subscribe(
    session: Session, ae_title: str, uid: str, *, deletion_lock: bool, matching: Mapping[str, str], now: datetime
) -> None:
    """Add a subscription, or replace its deletion lock and search keys."""
    row = find_subscription(session, ae_title, uid)
    if row is None:
        row = WorkitemSubscription(ae_title=ae_title, uid=uid, created_at=now)
        session.add(row)
    row.deletion_lock, row.matching = deletion_lock, dict(matching)
    session.flush()


def find_subscription(session: Session, ae_title: str, uid: str) -> WorkitemSubscription | None:
    """Return the subscription of an AE title to a UID, locked until the transaction ends, or None."""
    query = select(WorkitemSubscription).where(WorkitemSubscription.ae_title == ae_title)
    return session.scalar(query.where(WorkitemSubscription.uid == uid).with_for_update())


def unsubscribe(session: Session, ae_title: str, uid: str = "") -> int:
    """Remove the subscription of an AE title to a UID, or all that it has; return how many."""
    mine = [WorkitemSubscription.ae_title == ae_title, *([WorkitemSubscription.uid == uid] if uid else [])]
    count = session.scalar(select(func.count(WorkitemSubscription.id)).where(*mine)) or 0
    session.execute(delete(WorkitemSubscription).where(*mine))
    return count


def list_subscribers(session: Session, uid: str) -> Sequence[WorkitemSubscription]:
    """Return the subscriptions to a UID."""
    query = select(WorkitemSubscription).where(WorkitemSubscription.uid == uid)
    return session.scalars(query.order_by(WorkitemSubscription.ae_title)).all()


def count_subscribers(session: Session, *, other_than: str) -> int:
    """Return the number of AE titles with a subscription besides one."""
    others = WorkitemSubscription.ae_title != other_than
    return session.scalar(select(func.count(WorkitemSubscription.ae_title.distinct())).where(others)) or 0


def add_event(session: Session, ae_title: str, content: Mapping[str, Any], *, most: int, now: datetime) -> None:
    """Let an event report wait for its subscriber; above ``most`` the oldest one that waits is dropped."""
    session.add(WorkitemEvent(ae_title=ae_title, content=dict(content), created_at=now))
    session.flush()
    query = select(WorkitemEvent.id).where(WorkitemEvent.ae_title == ae_title)
    dropped = session.scalars(query.order_by(WorkitemEvent.id.desc()).offset(most)).all()
    remove_events(session, dropped)


def delete_events(session: Session, *, before: datetime) -> None:
    """Delete the event reports from before a moment, and those of AE titles without a subscription."""
    has_subscription = WorkitemEvent.ae_title.in_(select(WorkitemSubscription.ae_title))
    session.execute(delete(WorkitemEvent).where((WorkitemEvent.created_at < before) | ~has_subscription))


def waiting_events(session: Session, ae_title: str, *, limit: int) -> Sequence[WorkitemEvent]:
    """Return the event reports that wait for a subscriber, the oldest first."""
    query = select(WorkitemEvent).where(WorkitemEvent.ae_title == ae_title)
    return session.scalars(query.order_by(WorkitemEvent.id).limit(limit)).all()


def remove_events(session: Session, ids: Collection[int]) -> None:
    """Remove event reports that were sent."""
    if ids:
        session.execute(delete(WorkitemEvent).where(WorkitemEvent.id.in_(ids)))
