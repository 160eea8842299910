"""Counts of the node's work for ``dicomnode status`` and the dashboard."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from db import deliveries, notifications, overview, workers
from db.models import Delivery, Instance, Job, Notification, Quarantine, Study
from db.states import DeliveryState, JobState, NotificationState, QuarantineState, StudyState
from dicomnode.config import Config

__all__ = ["NO_WORKER", "collect_status", "count_shown_states", "count_workers", "group_errors"]

_ALIVE = timedelta(seconds=60)
NO_WORKER = "none has reported in the last minute, so no job starts: run 'dicomnode work'"


def collect_status(session: Session, config: Config, *, now: datetime) -> dict[str, Any]:
    """Return counts by state, the age of the oldest waiting work, the disk's use and the last errors.

    ``not_routed``: how many of the studies in state "routed" no route took.
    """
    return {
        "studies": _by_state(session, Study),
        "not_routed": overview.count_studies(session, overview.StudyFilter(overview.Stage.UNROUTED)),
        "instances": session.scalar(select(func.count(Instance.id))),
        "quarantined": session.scalar(
            select(func.count(Quarantine.id)).where(Quarantine.state == QuarantineState.KEPT)
        ),
        "jobs": _by_state(session, Job),
        "workers": count_workers(session, now=now),
        "deliveries": {
            destination: {str(state): count for state, count in states.items()}
            for destination, states in deliveries.OUTBOX.count_by_state(session).items()
        },
        "notifications": {
            name: {str(state): count for state, count in states.items()}
            for name, states in notifications.OUTBOX.count_by_state(session).items()
        },
        "oldest_waiting_s": {
            "job": _age_s(session, Job, JobState.READY, now),
            "delivery": _age_s(session, Delivery, DeliveryState.WAITING, now),
        },
        "disk": _disk(config),
        "last_errors": _last_errors(session),
    }


def count_workers(session: Session, *, now: datetime) -> int:
    """Return the number of workers that have reported in the last minute, on any host."""
    return len(workers.list_alive(session, since=now - _ALIVE))


def count_shown_states(measured: Mapping[str, Any]) -> dict[str, int]:
    """Return the number of studies by state as people read it: those that no route took are "not routed"."""
    routed = measured["studies"].get(StudyState.ROUTED, 0) - measured["not_routed"]
    counts = {**measured["studies"], str(StudyState.ROUTED): routed, "not routed": measured["not_routed"]}
    return {state: count for state, count in counts.items() if count}


def group_errors(errors: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Return a line for each reason; deliveries that failed for the same reason are one line."""
    by_reason: dict[str, list[str]] = {}
    for error in errors:
        by_reason.setdefault(error["reason"], []).append(error["what"])
    return [
        (f"{whats[0]} and {len(whats) - 1} more" if len(whats) > 1 else whats[0], reason)
        for reason, whats in by_reason.items()
    ]


def _by_state(session: Session, table: type[Study | Job]) -> dict[str, int]:
    return {
        str(state): count for state, count in session.execute(select(table.state, func.count()).group_by(table.state))
    }


def _age_s(
    session: Session, table: type[Job | Delivery], state: JobState | DeliveryState, now: datetime
) -> float | None:
    oldest = session.scalar(select(func.min(table.created_at)).where(table.state == state))
    return None if oldest is None else round((now - oldest).total_seconds(), 1)


def _disk(config: Config) -> dict[str, float]:
    folder = config.spool_dir if config.spool_dir.exists() else config.path.parent
    usage = shutil.disk_usage(folder)
    return {"free_gb": round(usage.free / 1e9, 2), "used_percent": round(100 * (1 - usage.free / usage.total), 1)}


def _last_errors(session: Session, limit: int = 5) -> list[dict[str, Any]]:
    unsuccessful = (JobState.DEAD, JobState.REFUSED)
    jobs = session.scalars(
        select(Job).where(Job.state.in_(unsuccessful)).order_by(Job.finished_at.desc(), Job.id.desc()).limit(limit)
    )
    failed = Delivery.reason != "", Delivery.state != DeliveryState.DELIVERED
    sends = session.scalars(select(Delivery).where(*failed).order_by(Delivery.id.desc()).limit(limit))
    unsent = Notification.reason != "", Notification.state != NotificationState.SENT
    notices = session.scalars(select(Notification).where(*unsent).order_by(Notification.id.desc()).limit(limit))
    return (
        [{"what": f"job {job.id}", "reason": job.reason} for job in jobs]
        + [{"what": f"delivery {send.id} to {send.destination}", "reason": send.reason} for send in sends]
        + [{"what": f"notification {each.id} to {each.name}", "reason": each.reason} for each in notices]
    )
