"""Subscriptions to workitems and to the worklist (PS3.4 CC.2.3), whose events ``events`` writes."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

from sqlalchemy.orm import Session

from db import audit, workitems
from dicomnode.errors import WorkitemRefused
from dicomnode.worklist import events, matching, transactions
from dicomnode.worklist.payload import INVALID

__all__ = ["AT_ONCE", "MOST_SUBSCRIBERS", "WORKLISTS", "follow_present", "subscribe", "suspend", "unsubscribe"]

AT_ONCE = 100
"""Present workitems that are examined in one transaction."""
MOST_SUBSCRIBERS = 32
WORKLISTS = (events.ALL, events.MATCHING)
UNKNOWN_RECEIVER = 0xC308
_SUBJECT = "workitem_subscriptions"


def subscribe(
    session: Session, ae_title: str, uid: str, *, deletion_lock: bool, keys: Mapping[str, str], now: datetime
) -> None:
    """Subscribe an AE title to a workitem, and report its state; or to all workitems that match from now on.

    Those that are present already are added by ``follow_present``. Raises WorkitemRefused.
    """
    if workitems.count_subscribers(session, other_than=ae_title) >= MOST_SUBSCRIBERS:
        raise WorkitemRefused(transactions.NO_RESOURCES, f"there are {MOST_SUBSCRIBERS} subscribers already")
    if (uid == events.MATCHING) is not bool(keys):
        raise WorkitemRefused(INVALID, "search keys go with the filtered worklist, which needs them")
    matching.check_keys(keys)
    workitems.subscribe(session, ae_title, uid, deletion_lock=deletion_lock, matching=keys, now=now)
    if uid not in WORKLISTS:
        if (row := workitems.lock(session, uid)) is None:
            raise transactions.not_found(uid)
        workitems.add_event(session, ae_title, events.state_report(row), most=events.MOST_WAITING, now=now)
    _record(session, "subscribed", ae_title, uid, now)


def follow_present(session: Session, ae_title: str, uid: str, *, after: int, now: datetime) -> int | None:
    """Subscribe an AE title to those of the next open workitems that its subscription to a worklist takes.

    ``after``: the number that the part before returned, 0 for the first. Returns None where no more follow, or the
    subscription has ended meanwhile. Every part is a transaction of its own: other requests run in between.
    """
    mine = workitems.find_subscription(session, ae_title, uid) if uid in WORKLISTS else None
    if mine is None:
        return None
    rows = workitems.lock_open(session, after=after, limit=AT_ONCE)
    for row in rows:
        if matching.matches(row.attributes, mine.matching):
            workitems.subscribe(session, ae_title, row.uid, deletion_lock=mine.deletion_lock, matching={}, now=now)
            workitems.add_event(session, ae_title, events.state_report(row), most=events.MOST_WAITING, now=now)
    return rows[-1].id if len(rows) == AT_ONCE else None


def unsubscribe(session: Session, ae_title: str, uid: str, *, now: datetime) -> None:
    """Remove the subscription to a workitem; by the UID of a worklist all that the AE title has.

    Raises WorkitemRefused where it has none.
    """
    count = workitems.unsubscribe(session, ae_title, "" if uid in WORKLISTS else uid)
    _require_any(count, ae_title)
    _record(session, "unsubscribed", ae_title, uid, now)


def suspend(session: Session, ae_title: str, uid: str, *, now: datetime) -> None:
    """Add no new workitems to what the AE title is subscribed to. Raises WorkitemRefused."""
    if uid not in WORKLISTS:
        raise WorkitemRefused(INVALID, "only the subscription to a worklist can be suspended")
    _require_any(workitems.unsubscribe(session, ae_title, uid), ae_title)
    _record(session, "suspended", ae_title, uid, now)


def _require_any(count: int, ae_title: str) -> None:
    if not count:
        raise WorkitemRefused(UNKNOWN_RECEIVER, f"{ae_title} has no such subscription")


def _record(session: Session, event: str, ae_title: str, uid: str, now: datetime) -> None:
    audit.append(session, subject=_SUBJECT, subject_id=ae_title, event=event, detail={"uid": uid}, now=now)
