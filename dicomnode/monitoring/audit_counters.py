"""Counters and latencies read from the audit trail, which includes the work of workers on other machines.

Each update reads the events since the last one. Events from before this process began are not counted.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram
from sqlalchemy.orm import Session, sessionmaker

from db import trail, transitions
from db.states import DeliveryState, JobState, NotificationState, StudyState
from db.transitions import Transition

__all__ = ["AuditCounters"]

_EVENTS = 20_000
"""Events read at once."""
_SECONDS = (1, 2, 5, 10, 30, 60, 120, 300, 600, 1800, 3600, 7200, 14400, 43200, 86400)
_DELIVERED = {
    DeliveryState.DELIVERED: "delivered",
    DeliveryState.GIVEN_UP: "given_up",
    DeliveryState.WAITING: "again",
}
_SENT = {NotificationState.SENT: "sent", NotificationState.GIVEN_UP: "given_up", NotificationState.WAITING: "again"}


class AuditCounters:
    """Counters in ``registry`` of the events in the audit trail from now on."""

    def __init__(self, readers: sessionmaker[Session], registry: CollectorRegistry) -> None:
        self._readers, self._lock = readers, threading.Lock()
        self._seq: int | None = None

        def counter(name: str, help_text: str, labels: Sequence[str]) -> Counter:
            return Counter(f"dicomnode_{name}", help_text, labels, registry=registry)

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

    def update(self) -> None:
        """Count the events since the last call; the first call only notes the end of the trail."""
        with self._lock, self._readers() as session:
            head = trail.read_head(session)
            seq = head if self._seq is None else self._seq
            while seq < head:
                last = min(head, seq + _EVENTS)
                self._count(session, transitions.list_transitions(session, seq, last))
                seq = last
            self._seq = head

    def _count(self, session: Session, changes: Sequence[Transition]) -> None:
        self._count_studies(session, _select("studies", changes))
        self._count_jobs(session, _select("jobs", changes))
        self._count_deliveries(session, _select("deliveries", changes))
        notifications = _select("notifications", changes)
        names = transitions.load_notification_names(session, _ids(notifications))
        for each in notifications:
            if each.after in _SENT:
                self._notifications.labels(names[each.id], _SENT[NotificationState(each.after)]).inc()

    def _count_studies(self, session: Session, changes: Sequence[Transition]) -> None:
        rows = transitions.load_study_times(session, _ids(changes))
        for each in changes:
            row = rows[each.id]
            if each.after == StudyState.COMPLETE:
                self._observe("received_to_complete", "", row.opened_at, each.at)
            elif each.after == StudyState.ROUTED:
                self._observe("complete_to_routed", "", row.completed_at, each.at)

    def _count_jobs(self, session: Session, changes: Sequence[Transition]) -> None:
        rows = transitions.load_job_runs(session, _ids(changes))
        for each in changes:
            row = rows[each.id]
            if each.after == JobState.RUNNING and each.reason.startswith("attempt 1,"):
                self._observe("routed_to_started", row.pipeline, row.created_at, each.at)
            elif each.before == JobState.RUNNING and each.after != JobState.READY:
                self._observe("started_to_finished", row.pipeline, row.started_at, each.at)
                self._jobs.labels(row.pipeline, row.model, each.after).inc()
                if row.verdict and each.after not in (JobState.DEAD, JobState.CANCELLED):
                    self._verdicts.labels(row.pipeline, row.verdict).inc()

    def _count_deliveries(self, session: Session, changes: Sequence[Transition]) -> None:
        rows = transitions.load_deliveries(session, _ids(changes))
        for each in changes:
            row = rows[each.id]
            if each.after in _DELIVERED:
                self._deliveries.labels(row.destination, _DELIVERED[DeliveryState(each.after)]).inc()
            if each.after == DeliveryState.DELIVERED:
                self._observe("finished_to_delivered", row.pipeline, row.created_at, each.at)
                self._observe("complete_to_delivered", row.pipeline, row.completed_at, each.at)

    def _observe(self, stage: str, pipeline: str, begin: datetime | None, end: datetime) -> None:
        if begin is not None:
            self._stages.labels(stage, pipeline).observe(max(0.0, (end - begin).total_seconds()))


def _select(subject: str, changes: Sequence[Transition]) -> list[Transition]:
    return [each for each in changes if each.subject == subject]


def _ids(changes: Sequence[Transition]) -> list[Any]:
    return sorted({each.id for each in changes})
