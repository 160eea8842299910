"""Jobs: enqueued once, leased while they run, and ended with a reason."""

from __future__ import annotations

import hashlib
import json
import socket
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from types import MappingProxyType
from typing import Any

from sqlalchemy import select, tuple_, update
from sqlalchemy.orm import Session, aliased

from db import audit, leases, notifications
from db.models import Delivery, Instance, Job, JobInput, Output
from db.states import InvalidTransition, JobState
from db.studies import StoredFile

__all__ = [
    "LeaseLost",
    "Needs",
    "OutputFile",
    "cancel",
    "claim",
    "discard",
    "enqueue",
    "expire_leases",
    "fail",
    "finish",
    "reassign",
    "reclaim",
    "refuse",
    "release",
    "renew",
    "retry",
    "return_to_queue",
    "worker_name",
]


Needs = tuple[str, str, str]
"""What a job asks of a host: pipeline, model and the digest of its weights, as in its row."""

_ENDED = (JobState.DONE, JobState.HELD, JobState.REFUSED, JobState.DEAD, JobState.CANCELLED)


class LeaseLost(Exception):
    """The job is no longer this worker's: its lease lapsed and another took it, or somebody cancelled it."""


@dataclass(frozen=True)
class OutputFile:
    """A result object in the spool; ``attributes`` are what it is found by (``keywords.RESULT_STORED``).

    ``rendition``, ``destinations``, ``spare_for``: as in the row. ``at_once``: delivered though the job is held.
    """

    sop_instance_uid: str
    sop_class_uid: str
    series_uid: str
    kind: str
    file: StoredFile
    transfer_syntax_uid: str = "1.2.840.10008.1.2.1"
    attributes: Mapping[str, Any] | None = None
    rendition: str = ""
    destinations: tuple[str, ...] | None = None
    spare_for: tuple[str, ...] = ()
    at_once: bool = False


def worker_name(pid: int, host: str = "") -> str:
    """How a process of this machine, or of that ``host``, signs its leases."""
    return f"{host or socket.gethostname()}:{pid}"


def enqueue(
    session: Session,
    *,
    study_id: int,
    revision: int,
    route: str,
    pipeline: str,
    model: str = "",
    options: Mapping[str, Any],
    inputs: Mapping[str, Sequence[int]],
    destinations: Sequence[str],
    priority: int = 0,
    notify: Mapping[str, Sequence[str]] = MappingProxyType({}),
    model_digest: str = "",
    helper_models: Mapping[str, str] = MappingProxyType({}),
    shadow_of: Job | None = None,
    now: datetime,
) -> Job | None:
    """A new job, or None when the same work on the same content has a job already, in whatever revision.

    Jobs of earlier revisions whose inputs this one contains are superseded: named, and cancelled if still waiting. A
    job beside another (``shadow_of``) supersedes none, and stands in nobody's way.
    """
    contents = _contents(session, inputs)
    key = _key(route, pipeline, model, options, contents, shadow_of)
    if session.scalar(select(Job.id).where(Job.key == key)) is not None:
        return None
    old = _superseded(session, study_id, route, contents) if shadow_of is None else None
    job = Job(
        key=key,
        study_id=study_id,
        revision=revision,
        supersedes_id=old.id if old else None,
        route=route,
        pipeline=pipeline,
        model=model,
        options=dict(options),
        destinations=list(destinations),
        notify={name: list(events) for name, events in notify.items()} or None,
        priority=priority,
        model_digest=model_digest,
        helper_models=dict(helper_models) or None,
        shadow_of_id=shadow_of.id if shadow_of else None,
        not_before=now,
        report={},
        created_at=now,
        inputs=[JobInput(name=name, instance_id=id) for name, ids in inputs.items() for id in ids],
    )
    session.add(job)
    session.flush()
    detail = {"key": key, "route": route, "pipeline": pipeline, "model": model, "study": study_id, "revision": revision}
    detail |= {"shadow_of": shadow_of.id} if shadow_of else {}
    audit.append(session, subject="jobs", subject_id=job.id, event="enqueued", detail=detail, now=now)
    if old and old.state in (JobState.READY, JobState.HELD):
        _end(session, old, JobState.CANCELLED, reason=f"superseded by job {job.id}", now=now)
    return job


def reassign(session: Session, job: Job, *, model: str, digest: str, now: datetime) -> None:
    """A job that has not begun is to use another model; it is cancelled where that work has a job already."""
    inputs: dict[str, list[int]] = {}
    for each in job.inputs:
        inputs.setdefault(each.name, []).append(each.instance_id)
    key = _key(job.route, job.pipeline, model, job.options, _contents(session, inputs), None)
    twin = session.scalar(select(Job.id).where(Job.key == key))
    if twin is not None:
        _end(session, job, JobState.CANCELLED, reason=f"job {twin} has done the same with {model}", now=now)
        return
    detail = {"from": job.model, "to": model, "digest": digest, "key": key}
    audit.append(session, subject="jobs", subject_id=job.id, event="model changed", detail=detail, now=now)
    job.key, job.model, job.model_digest = key, model, digest


def claim(session: Session, *, worker: str, lease_s: float, but: Collection[Needs] = (), now: datetime) -> Job | None:
    """The most urgent waiting job, under a lease. No two workers get the same one. ``but``: none that needs those.

    One that runs beside another waits until that has ended: there is something to compare, and nobody waits for it.
    """
    beside = aliased(Job)
    over = select(beside.id).where(beside.id == Job.shadow_of_id, beside.state.in_(_ENDED)).exists()
    query = (
        select(Job)
        .where(Job.state == JobState.READY, Job.not_before <= now, Job.shadow_of_id.is_(None) | over)
        .where(*([tuple_(Job.pipeline, Job.model, Job.model_digest).not_in(sorted(but))] if but else []))
        .order_by(Job.priority.desc(), Job.created_at, Job.id)
        .limit(1)
        .with_for_update(skip_locked=True)
    )
    job = session.scalar(query)
    if job is None:
        return None
    leases.grant(session, job, JobState.RUNNING, worker=worker, lease_s=lease_s, now=now)
    job.started_at, job.progress, job.step = now, 0.0, ""
    return job


def renew(
    session: Session, *, job_id: int, worker: str, lease_s: float, fraction: float, step: str, now: datetime
) -> bool:
    """Extend the lease and note the progress; False when the job is no longer this worker's."""
    mine = (Job.id == job_id, Job.worker == worker, Job.state == JobState.RUNNING)
    values = {"leased_until": now + timedelta(seconds=lease_s), "progress": fraction, "step": step}
    statement = update(Job).where(*mine).values(values).returning(Job.id)
    return session.scalar(statement.execution_options(synchronize_session=False)) is not None


def finish(
    session: Session,
    *,
    job_id: int,
    worker: str,
    outputs: Sequence[OutputFile],
    report: Mapping[str, Any],
    held_because: str = "",
    chosen: Mapping[str, Any] = MappingProxyType({}),
    now: datetime,
) -> Job:
    """Results, their deliveries and the job's end in one transaction; held results wait for ``release``, but not what
    tells of them. ``chosen``: by destination what kinds it gets and why, for the audit trail."""
    job = _mine(session, job_id, worker)
    _keep(job, outputs, now)
    job.report, job.progress, job.step = dict(report), 1.0, ""
    if chosen:
        audit.append(session, subject="jobs", subject_id=job.id, event="kinds chosen", detail=dict(chosen), now=now)
    if held_because:
        _end(session, job, JobState.HELD, reason=held_because, now=now)
        _deliver(session, job, now, only={each.sop_instance_uid for each in outputs if each.at_once})
    else:
        _end(session, job, JobState.DONE, reason="finished", now=now)
        _deliver(session, job, now)
    session.flush()
    return job


def refuse(
    session: Session,
    *,
    job_id: int,
    worker: str,
    reason: str,
    outputs: Sequence[OutputFile] = (),
    report: Mapping[str, Any],
    now: datetime,
) -> Job:
    """The end of a job whose input or result may not go out, with the note that says so and its deliveries."""
    job = _mine(session, job_id, worker)
    _keep(job, outputs, now)
    job.report, job.step = dict(report), ""
    _end(session, job, JobState.REFUSED, reason=reason, now=now)
    _deliver(session, job, now)
    session.flush()
    return job


def fail(
    session: Session,
    *,
    job_id: int,
    worker: str,
    reason: str,
    retry: bool,
    attempts: int,
    backoff_s: float = 0.0,
    now: datetime,
) -> Job:
    """Back to the queue when another attempt may help and one is left; dead with its reason otherwise."""
    job = _mine(session, job_id, worker)
    _again_or_dead(session, job, reason=reason, again=retry and job.attempts < attempts, backoff_s=backoff_s, now=now)
    return job


def expire_leases(session: Session, *, attempts: int, now: datetime) -> list[Job]:
    """Take back the jobs of workers that stopped renewing."""
    jobs = list(leases.lock_lapsed(session, Job, JobState.RUNNING, now=now))
    for job in jobs:
        reason = f"{job.worker} stopped renewing its lease in attempt {job.attempts}"
        _again_or_dead(session, job, reason=reason, again=job.attempts < attempts, backoff_s=0.0, now=now)
    return jobs


def reclaim(session: Session, *, worker: str, attempts: int, now: datetime) -> list[Job]:
    """Take back the jobs of a worker that is known to have died, without waiting for its lease."""
    jobs = list(session.scalars(select(Job).where(Job.state == JobState.RUNNING, Job.worker == worker)))
    for job in jobs:
        reason = f"{worker} died in attempt {job.attempts}"
        _again_or_dead(session, job, reason=reason, again=job.attempts < attempts, backoff_s=0.0, now=now)
    return jobs


def return_to_queue(session: Session, *, job_id: int, worker: str, reason: str = "", now: datetime) -> None:
    """The worker was told to stop, or cannot: the job waits again, and this attempt does not count."""
    job = _mine(session, job_id, worker)
    job.attempts -= 1
    reason = reason or f"{worker} was told to stop"
    _again_or_dead(session, job, reason=reason, again=True, backoff_s=0.0, now=now)


def retry(session: Session, job: Job, *, reason: str, now: datetime) -> None:
    """A refused, dead or cancelled job runs again, with all its attempts."""
    audit.transition(session, job, JobState.READY, reason=reason, now=now)
    job.attempts, job.not_before, job.finished_at, job.reason = 0, now, None, ""


def cancel(session: Session, job: Job, *, reason: str, now: datetime) -> None:
    """The job will not run, or its worker is told at its next renewal."""
    _end(session, job, JobState.CANCELLED, reason=reason, now=now)


def release(session: Session, job: Job, *, reason: str, now: datetime) -> None:
    """Held results are good: deliver them."""
    if job.state is not JobState.HELD:
        raise InvalidTransition(f"job {job.id} is {job.state}; only held results can be released")
    _end(session, job, JobState.DONE, reason=reason, now=now)
    _deliver(session, job, now)


def discard(session: Session, job: Job, *, reason: str, now: datetime) -> None:
    """Held results are not to be delivered, or a refused or dead job is not to be looked at again."""
    _end(session, job, JobState.CANCELLED, reason=reason, now=now)


def _contents(session: Session, inputs: Mapping[str, Sequence[int]]) -> dict[str, list[str]]:
    """Per input the sorted "UID digest" words of its instances."""
    ids = {id for group in inputs.values() for id in group}
    query = select(Instance.id, Instance.sop_instance_uid, Instance.sha256).where(Instance.id.in_(ids))
    words = {row.id: f"{row.sop_instance_uid} {row.sha256}" for row in session.execute(query)}
    return {name: sorted(words[id] for id in group) for name, group in inputs.items()}


def _key(
    route: str,
    pipeline: str,
    model: str,
    options: Mapping[str, Any],
    contents: Mapping[str, Sequence[str]],
    shadow_of: Job | None,
) -> str:
    words = [route, pipeline, model, dict(options), dict(contents)] + (["beside", shadow_of.key] if shadow_of else [])
    return hashlib.sha256(json.dumps(words, sort_keys=True).encode()).hexdigest()


def _superseded(session: Session, study_id: int, route: str, contents: Mapping[str, Sequence[str]]) -> Job | None:
    """The newest job of the route whose inputs are a part of these."""
    new = {(name, word.split()[0]) for name, words in contents.items() for word in words}
    mine = (Job.study_id == study_id, Job.route == route, Job.shadow_of_id.is_(None))
    for job in session.scalars(select(Job).where(*mine).order_by(Job.id.desc())):
        if {(each.name, each.instance.sop_instance_uid) for each in job.inputs} <= new:
            return job
    return None


def _mine(session: Session, job_id: int, worker: str) -> Job:
    job = leases.find_held(session, Job, job_id, JobState.RUNNING, worker=worker)
    if job is None:
        raise LeaseLost(f"job {job_id} is {session.get_one(Job, job_id).state} and no longer with {worker}")
    return job


def _end(session: Session, job: Job, state: JobState, *, reason: str, now: datetime) -> None:
    audit.transition(session, job, state, reason=reason, now=now)
    job.reason, job.finished_at, job.leased_until = reason, now, None
    notifications.notify_job_ended(session, job, now=now)
    if state is JobState.CANCELLED:
        beside = select(Job).where(Job.shadow_of_id == job.id, Job.state == JobState.READY)
        for shadow in session.scalars(beside):
            _end(session, shadow, state, reason=f"job {job.id} was cancelled", now=now)


def _again_or_dead(session: Session, job: Job, *, reason: str, again: bool, backoff_s: float, now: datetime) -> None:
    if not again:
        _end(session, job, JobState.DEAD, reason=reason, now=now)
        return
    not_before = now + timedelta(seconds=backoff_s)
    leases.postpone(session, job, JobState.READY, reason=reason, not_before=not_before, now=now)


def _keep(job: Job, outputs: Sequence[OutputFile], now: datetime) -> None:
    """Add what an earlier run of the job has not left; whom it is for may have changed since."""
    there = {row.sop_instance_uid: row for row in job.outputs}
    for output in outputs:
        row = there.get(output.sop_instance_uid)
        if row is None:
            row = _row(output, now)
            job.outputs.append(row)
        if row.expired_at is not None:  # retention has taken away what an earlier run made
            row.expired_at = row.removed_at = None
            row.sha256, row.size_bytes = output.file.sha256, output.file.size_bytes
            row.relative_path = output.file.relative_path
        row.rendition = output.rendition
        row.destinations = None if output.destinations is None else list(output.destinations)
        row.spare_for = list(output.spare_for) or None


def _row(output: OutputFile, now: datetime) -> Output:
    return Output(
        sop_instance_uid=output.sop_instance_uid,
        sop_class_uid=output.sop_class_uid,
        series_uid=output.series_uid,
        kind=output.kind,
        sha256=output.file.sha256,
        size_bytes=output.file.size_bytes,
        relative_path=output.file.relative_path,
        created_at=now,
        transfer_syntax_uid=output.transfer_syntax_uid,
        attributes=None if output.attributes is None else dict(output.attributes),
    )


def _deliver(session: Session, job: Job, now: datetime, only: Collection[str] | None = None) -> None:
    """To every destination what is for it and not on its way there already."""
    for output in job.outputs:
        if only is not None and output.sop_instance_uid not in only:
            continue
        there = {delivery.destination for delivery in output.deliveries}
        meant = job.destinations if output.destinations is None else output.destinations
        for destination in (each for each in job.destinations if each in meant and each not in there):
            output.deliveries.append(Delivery(destination=destination, not_before=now, created_at=now))
