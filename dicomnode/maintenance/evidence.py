"""Records of one study for an auditor: UIDs, digests, times and events, without patient data.

Each event comes with everything that its hash covers, so that the hash can be recomputed; the head of the chain states
the end of the trail at the time of writing.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy.orm import Session

from db import audit, trail
from db.models import Chain, Event, Instance, Job, Output, Study

__all__ = ["collect_evidence"]


def collect_evidence(session: Session, study: Study, *, now: datetime) -> dict[str, Any]:
    """Return the records of the study as plain values."""
    broken = audit.verify(session)
    head = session.get_one(Chain, 1)
    chain = {"seq": head.seq, "hash": head.hash, "holds": broken is None}
    return {
        "study_uid": study.study_uid,
        "written_at": now,
        "chain": chain | ({"broken_at": broken.seq, "why": broken.reason} if broken else {}),
        "state": study.state,
        "revision": study.revision,
        "instances": [_instance(row) for series in study.series for row in series.instances],
        "jobs": [_job(job) for job in study.jobs],
        "events": [_event(event) for event in trail.list_all_study_events(session, study.id)],
    }


def _instance(row: Instance) -> dict[str, Any]:
    names = ("id", "sop_instance_uid", "sop_class_uid", "revision", "sha256", "size_bytes", "received_at", "expired_at")
    return {name: getattr(row, name) for name in names} | {"series_uid": row.series.series_uid}


def _job(job: Job) -> dict[str, Any]:
    names = ("id", "key", "route", "pipeline", "model", "model_digest", "revision", "state", "attempts", "created_at",
             "started_at", "finished_at", "destinations")  # fmt: skip
    inputs = [{"name": each.name, "instance": each.instance_id} for each in job.inputs]
    made = {"inputs": inputs, "results": [_output(output) for output in job.outputs]}
    return {name: getattr(job, name) for name in names} | made


def _output(row: Output) -> dict[str, Any]:
    names = ("id", "sop_instance_uid", "series_uid", "kind", "sha256", "size_bytes", "created_at", "expired_at")
    sent = [
        {"destination": each.destination, "state": each.state, "delivered_at": each.delivered_at}
        for each in row.deliveries
    ]
    return {name: getattr(row, name) for name in names} | {"deliveries": sent}


def _event(event: Event) -> dict[str, Any]:
    names = ("seq", "at", "subject", "subject_id", "event", "detail", "previous", "hash")
    return {name: getattr(event, name) for name in names}
