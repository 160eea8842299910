"""Counters and latencies read from the audit trail: what workers on other machines do counts, too.

Each look reads the events since the last one. What happened before this process began is not counted.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram
from sqlalchemy.orm import Session, sessionmaker

from db import moves, trail
from db.moves import Moved
from db.states import DeliveryState, JobState, NotificationState, StudyState

__all__ = ["Followed"]

_EVENTS = 20_000
"""So many are read at once."""
_SECONDS = (1, 2, 5, 10, 30, 60, 120, 300, 600, 1800, 3600, 7200, 14400, 43200, 86400)
_DELIVERED = {
    DeliveryState.DELIVERED: "delivered",
    DeliveryState.GIVEN_UP: "given_up",
    DeliveryState.WAITING: "again",
}
_SENT = {NotificationState.SENT: "sent", NotificationState.GIVEN_UP: "given_up", NotificationState.WAITING: "again"}


class Followed:
    """The audit trail from now on, as counters in ``registry``."""

    def __init__(self, readers: sessionmaker[Session], registry: CollectorRegistry) -> None:
        self._readers, self._lock = readers, threading.Lock()
        self._seq: int | None = None

        def counter(name: str, says: str, labels: Sequence[str]) -> Counter:
            return Counter(f"dicomnode_{name}", says, labels, registry=registry)

        self._jobs = counter("jobs_ended", "Runs of jobs, by how they ended.", ["pipeline", "model", "state"])
        self._verdicts = counter("gate_verdicts", "What the output gate said.", ["pipeline", "verdict"])
        self._deliveries = counter("deliveries_tried", "Objects by destination.", ["destination", "outcome"])
        self._notifications = counter("notifications_tried", "By who is told.", ["name", "outcome"])
        self._stages = Histogram(
            "dicomnode_stage_seconds",
            "How long each stage of a study's way took.",
            ["stage", "pipeline"],
            buckets=_SECONDS,
            registry=registry,
        )

    def catch_up(self) -> None:
        """Count what has happened since the last look; the first one only notes where the trail ends."""
        with self._lock, self._readers() as session:
            head = trail.head(session)
            seq = head if self._seq is None else self._seq
            while seq < head:
                upto = min(head, seq + _EVENTS)
                self._count(session, moves.moved_since(session, seq, upto))
                seq = upto
            self._seq = head

    def _count(self, session: Session, changes: Sequence[Moved]) -> None:
        self._count_studies(session, _of("studies", changes))
        self._count_jobs(session, _of("jobs", changes))
        self._count_deliveries(session, _of("deliveries", changes))
        told = _of("notifications", changes)
        names = moves.notifications(session, _ids(told))
        for each in told:
            if each.after in _SENT:
                self._notifications.labels(names[each.id], _SENT[NotificationState(each.after)]).inc()

    def _count_studies(self, session: Session, changes: Sequence[Moved]) -> None:
        rows = moves.studies(session, _ids(changes))
        for each in changes:
            row = rows[each.id]
            if each.after == StudyState.COMPLETE:
                self._took("received_to_complete", "", row.opened_at, each.at)
            elif each.after == StudyState.ROUTED:
                self._took("complete_to_routed", "", row.completed_at, each.at)

    def _count_jobs(self, session: Session, changes: Sequence[Moved]) -> None:
        rows = moves.jobs(session, _ids(changes))
        for each in changes:
            row = rows[each.id]
            if each.after == JobState.RUNNING and each.reason.startswith("attempt 1,"):
                self._took("routed_to_started", row.pipeline, row.created_at, each.at)
            elif each.before == JobState.RUNNING and each.after != JobState.READY:
                self._took("started_to_finished", row.pipeline, row.started_at, each.at)
                self._jobs.labels(row.pipeline, row.model, each.after).inc()
                if row.verdict and each.after not in (JobState.DEAD, JobState.CANCELLED):
                    self._verdicts.labels(row.pipeline, row.verdict).inc()

    def _count_deliveries(self, session: Session, changes: Sequence[Moved]) -> None:
        rows = moves.deliveries(session, _ids(changes))
        for each in changes:
            row = rows[each.id]
            if each.after in _DELIVERED:
                self._deliveries.labels(row.destination, _DELIVERED[DeliveryState(each.after)]).inc()
            if each.after == DeliveryState.DELIVERED:
                self._took("finished_to_delivered", row.pipeline, row.created_at, each.at)
                self._took("complete_to_delivered", row.pipeline, row.completed_at, each.at)

    def _took(self, stage: str, pipeline: str, begin: datetime | None, end: datetime) -> None:
        if begin is not None:
            self._stages.labels(stage, pipeline).observe(max(0.0, (end - begin).total_seconds()))


def _of(subject: str, changes: Sequence[Moved]) -> list[Moved]:
    return [each for each in changes if each.subject == subject]


def _ids(changes: Sequence[Moved]) -> list[Any]:
    return sorted({each.id for each in changes})
