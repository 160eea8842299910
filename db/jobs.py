"""Jobs: enqueued once, leased while they run, and ended with a reason."""

from __future__ import annotations

import hashlib
import json
import socket
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime, timedelta
from types import MappingProxyType
from typing import Any

from sqlalchemy import select, tuple_, update
from sqlalchemy.orm import Session, aliased

from db import audit, leases, notifications, result_files
from db.models import Instance, Job, JobInput
from db.result_files import OutputFile
from db.states import InvalidTransition, JobState

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
"""Requirements of a job on a host: pipeline, model and the digest of its weights, as in the row."""

_ENDED = (JobState.DONE, JobState.HELD, JobState.REFUSED, JobState.DEAD, JobState.CANCELLED)


class LeaseLost(Exception):
    """Loss of a job by its worker: the lease lapsed and another worker claimed the job, or the job was cancelled."""


def worker_name(pid: int, host: str = "") -> str:
    """Return the name under which a process of this machine, or of ``host``, holds leases."""
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
    """Enqueue a job, or return None where a job of the same work on the same content exists, in any revision.

    The new job supersedes the newest job of the route whose inputs it contains, which is cancelled if it is still
    waiting or held. A shadow job (``shadow_of``) supersedes none and blocks none.
    """
    contents = _describe_inputs(session, inputs)
    key = _make_key(route, pipeline, model, options, contents, shadow_of)
    if session.scalar(select(Job.id).where(Job.key == key)) is not None:
        return None
    old = _find_superseded(session, study_id, route, contents) if shadow_of is None else None
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
    """Let a job that has not begun use another model; cancel it where that work has another job already."""
    if (job.model, job.model_digest) == (model, digest):
        return
    inputs: dict[str, list[int]] = {}
    for each in job.inputs:
        inputs.setdefault(each.name, []).append(each.instance_id)
    key = _make_key(job.route, job.pipeline, model, job.options, _describe_inputs(session, inputs), None)
    same_job = session.scalar(select(Job.id).where(Job.key == key, Job.id != job.id))
    if same_job is not None:
        _end(session, job, JobState.CANCELLED, reason=f"job {same_job} has done the same", now=now)
        return
    detail = {"from": job.model, "to": model, "digest": digest, "key": key}
    audit.append(session, subject="jobs", subject_id=job.id, event="model changed", detail=detail, now=now)
    job.key, job.model, job.model_digest = key, model, digest


def claim(
    session: Session, *, worker: str, lease_s: float, exclude: Collection[Needs] = (), now: datetime
) -> Job | None:
    """Claim the most urgent waiting job under a lease, or return None. No two workers get the same job.

    ``exclude``: requirements that this host does not meet. A shadow job waits until its primary job has ended.
    """
    primary = aliased(Job)
    primary_ended = select(primary.id).where(primary.id == Job.shadow_of_id, primary.state.in_(_ENDED)).exists()
    query = (
        select(Job)
        .where(Job.state == JobState.READY, Job.not_before <= now, Job.shadow_of_id.is_(None) | primary_ended)
        .where(*([tuple_(Job.pipeline, Job.model, Job.model_digest).not_in(sorted(exclude))] if exclude else []))
        .order_by(Job.priority.desc(), Job.created_at, Job.id)
        .limit(1)
        .with_for_update(skip_locked=True)
    )
    if (job := session.scalar(query)) is None:
        return None
    leases.grant(session, job, JobState.RUNNING, worker=worker, lease_s=lease_s, now=now)
    job.started_at, job.progress, job.step = now, 0.0, ""
    return job


def renew(
    session: Session, *, job_id: int, worker: str, lease_s: float, fraction: float, step: str, now: datetime
) -> bool:
    """Extend the lease and record the progress; return False where the worker does not hold the job any more."""
    held = (Job.id == job_id, Job.worker == worker, Job.state == JobState.RUNNING)
    values = {"leased_until": now + timedelta(seconds=lease_s), "progress": fraction, "step": step}
    statement = update(Job).where(*held).values(values).returning(Job.id)
    return session.scalar(statement.execution_options(synchronize_session=False)) is not None


def finish(
    session: Session,
    *,
    job_id: int,
    worker: str,
    outputs: Sequence[OutputFile],
    report: Mapping[str, Any],
    held_because: str = "",
    chosen_kinds: Mapping[str, Any] = MappingProxyType({}),
    now: datetime,
) -> Job:
    """Record results, their deliveries and the end of the job. Raises LeaseLost.

    Results of a held job wait for ``release``, except those marked ``at_once``. ``chosen_kinds``: by destination the
    kinds of result that it gets and the reason, for the audit trail.
    """
    job = _lock_held(session, job_id, worker)
    result_files.add_outputs(job, outputs, now)
    job.report, job.progress, job.step = dict(report), 1.0, ""
    if chosen_kinds:
        audit.append(
            session, subject="jobs", subject_id=job.id, event="kinds chosen", detail=dict(chosen_kinds), now=now
        )
    if held_because:
        _end(session, job, JobState.HELD, reason=held_because, now=now)
        result_files.enqueue_deliveries(job, now, only={each.sop_instance_uid for each in outputs if each.at_once})
    else:
        _end(session, job, JobState.DONE, reason="finished", now=now)
        result_files.enqueue_deliveries(job, now)
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
    """End a job whose input or result may not go out, and deliver the note that says so. Raises LeaseLost."""
    job = _lock_held(session, job_id, worker)
    result_files.add_outputs(job, outputs, now)
    job.report, job.step = dict(report), ""
    _end(session, job, JobState.REFUSED, reason=reason, now=now)
    result_files.enqueue_deliveries(job, now)
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
    """Requeue a failed job where a retry may help and an attempt is left, or end it as dead. Raises LeaseLost."""
    job = _lock_held(session, job_id, worker)
    _retry_or_end(session, job, reason=reason, retry=retry and job.attempts < attempts, backoff_s=backoff_s, now=now)
    return job


def expire_leases(session: Session, *, attempts: int, now: datetime) -> list[Job]:
    """Reclaim the jobs of workers that stopped renewing their leases."""
    lapsed = list(leases.lock_lapsed(session, Job, JobState.RUNNING, now=now))
    for job in lapsed:
        reason = f"{job.worker} stopped renewing its lease in attempt {job.attempts}"
        _retry_or_end(session, job, reason=reason, retry=job.attempts < attempts, backoff_s=0.0, now=now)
    return lapsed


def reclaim(session: Session, *, worker: str, attempts: int, now: datetime) -> list[Job]:
    """Reclaim the jobs of a worker that is known to have died, without waiting for its leases."""
    jobs = list(session.scalars(select(Job).where(Job.state == JobState.RUNNING, Job.worker == worker)))
    for job in jobs:
        reason = f"{worker} died in attempt {job.attempts}"
        _retry_or_end(session, job, reason=reason, retry=job.attempts < attempts, backoff_s=0.0, now=now)
    return jobs


def return_to_queue(session: Session, *, job_id: int, worker: str, reason: str = "", now: datetime) -> None:
    """Requeue the job of a worker that must stop or cannot run it; the attempt does not count."""
    job = _lock_held(session, job_id, worker)
    job.attempts -= 1
    reason = reason or f"{worker} was told to stop"
    _retry_or_end(session, job, reason=reason, retry=True, backoff_s=0.0, now=now)


def retry(session: Session, job: Job, *, reason: str, now: datetime) -> None:
    """Enqueue a refused, dead or cancelled job anew, with all its attempts."""
    audit.transition(session, job, JobState.READY, reason=reason, now=now)
    job.attempts, job.not_before, job.finished_at, job.reason = 0, now, None, ""


def cancel(session: Session, job: Job, *, reason: str, now: datetime) -> None:
    """Cancel the job; a worker that runs it learns so at its next renewal."""
    _end(session, job, JobState.CANCELLED, reason=reason, now=now)


def release(session: Session, job: Job, *, reason: str, now: datetime) -> None:
    """Deliver the results of a held job. Raises InvalidTransition."""
    if job.state is not JobState.HELD:
        raise InvalidTransition(f"job {job.id} is {job.state}; only held results can be released")
    _end(session, job, JobState.DONE, reason=reason, now=now)
    result_files.enqueue_deliveries(job, now)


def discard(session: Session, job: Job, *, reason: str, now: datetime) -> None:
    """Cancel a held job without delivering its results, or dismiss a refused or dead job."""
    _end(session, job, JobState.CANCELLED, reason=reason, now=now)


def _describe_inputs(session: Session, inputs: Mapping[str, Sequence[int]]) -> dict[str, list[str]]:
    """Return by input the sorted "UID digest" texts of its instances."""
    ids = {id for group in inputs.values() for id in group}
    query = select(Instance.id, Instance.sop_instance_uid, Instance.sha256).where(Instance.id.in_(ids))
    texts = {row.id: f"{row.sop_instance_uid} {row.sha256}" for row in session.execute(query)}
    return {name: sorted(texts[id] for id in group) for name, group in inputs.items()}


def _make_key(
    route: str,
    pipeline: str,
    model: str,
    options: Mapping[str, Any],
    contents: Mapping[str, Sequence[str]],
    shadow_of: Job | None,
) -> str:
    parts = [route, pipeline, model, dict(options), dict(contents)] + (["beside", shadow_of.key] if shadow_of else [])
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _find_superseded(session: Session, study_id: int, route: str, contents: Mapping[str, Sequence[str]]) -> Job | None:
    """Return the newest job of the route whose inputs are all among these, or None."""
    new = {(name, text.split()[0]) for name, texts in contents.items() for text in texts}
    mine = (Job.study_id == study_id, Job.route == route, Job.shadow_of_id.is_(None))
    for job in session.scalars(select(Job).where(*mine).order_by(Job.id.desc())):
        if {(each.name, each.instance.sop_instance_uid) for each in job.inputs} <= new:
            return job
    return None


def _lock_held(session: Session, job_id: int, worker: str) -> Job:
    if job := leases.find_held(session, Job, job_id, JobState.RUNNING, worker=worker):
        return job
    raise LeaseLost(f"job {job_id} is {session.get_one(Job, job_id).state} and no longer with {worker}")


def _end(session: Session, job: Job, state: JobState, *, reason: str, now: datetime) -> None:
    audit.transition(session, job, state, reason=reason, now=now)
    job.reason, job.finished_at, job.leased_until = reason, now, None
    notifications.notify_job_ended(session, job, now=now)
    if state is JobState.CANCELLED:
        shadows = select(Job).where(Job.shadow_of_id == job.id, Job.state == JobState.READY)
        for shadow in session.scalars(shadows):
            _end(session, shadow, state, reason=f"job {job.id} was cancelled", now=now)


def _retry_or_end(session: Session, job: Job, *, reason: str, retry: bool, backoff_s: float, now: datetime) -> None:
    if not retry:
        _end(session, job, JobState.DEAD, reason=reason, now=now)
        return
    later = now + timedelta(seconds=backoff_s)
    leases.postpone(session, job, JobState.READY, reason=reason, not_before=later, now=now)
