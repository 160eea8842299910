"""Versions of models that pipelines use; rows are ended, never changed, so that they are the history, too.

A pipeline has at most one version in force of each mode. Without a current one it uses the default version of its
bundle, beside which a shadow and a share work, too. A study's share is chosen by a hash of its UID: the same study is
always on the same side, and a larger percentage takes the same studies and further ones.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from db import audit, jobs
from db.models import Deployment, Job
from db.states import DeploymentMode, InvalidTransition, JobState

__all__ = [
    "DEFAULT",
    "Choice",
    "Version",
    "choose",
    "choose_current",
    "deploy",
    "end_shadow",
    "find_current_by_bundle",
    "find_in_force",
    "find_reference",
    "format_model",
    "is_in_share",
    "list_history",
    "list_uses",
    "rollback",
]


@dataclass(frozen=True)
class Version:
    """Model as jobs name it, ``NAME@VERSION``, and the SHA-256 of its weights when it was deployed."""

    model: str
    digest: str


DEFAULT = Version("", "")
"""The default version of a pipeline's bundle, which no deployment names; the node knows which it is."""


@dataclass(frozen=True)
class Choice:
    """Version that processes a study, and the shadow version that is compared with it, or None."""

    version: Version
    shadow: Version | None


def format_model(row: Deployment) -> str:
    """Return NAME@VERSION of the deployment."""
    return f"{row.name}@{row.version}"


def find_in_force(session: Session, pipeline: str, *, lock: bool = False) -> dict[DeploymentMode, Deployment]:
    """Return the deployments in force of the pipeline, by mode; ``lock``: locked until this transaction ends."""
    query = select(Deployment).where(Deployment.pipeline == pipeline, Deployment.ended_at.is_(None))
    return {row.mode: row for row in session.scalars(query.with_for_update() if lock else query)}


def list_history(session: Session, pipeline: str = "") -> Sequence[Deployment]:
    """Return every deployment of the pipeline, or of all pipelines, the newest first."""
    query = select(Deployment).order_by(Deployment.id.desc())
    return session.scalars(query.where(Deployment.pipeline == pipeline) if pipeline else query).all()


def list_uses(session: Session, name: str, version: str) -> list[str]:
    """Describe the uses of that version: deployments in force, rollback targets, jobs that have not ended."""
    found = []
    for row in session.scalars(select(Deployment).where(Deployment.ended_at.is_(None)).order_by(Deployment.id)):
        before = session.get(Deployment, row.replaced_id) if row.replaced_id else None
        for each, role in ((row, f"the {row.mode} version"), (before, "what a rollback goes back to")):
            if each is not None and (each.name, each.version) == (name, version):
                found.append(f"{role} of {row.pipeline}")
    model = f"{name}@{version}"
    open_jobs = select(Job.id).where(Job.model == model, Job.state.in_((JobState.READY, JobState.RUNNING)))
    if waiting := len(session.scalars(open_jobs).all()):
        found.append(f"{waiting} jobs that have not ended")
    return found


def is_in_share(pipeline: str, study_uid: str, percent: float) -> bool:
    """Return whether the study is in that share of all studies; each pipeline has its own selection."""
    digest = hashlib.sha256(f"{pipeline} {study_uid}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64 < percent / 100


def choose(session: Session, pipeline: str, study_uid: str) -> Choice | None:
    """Return the versions for the study; None where no version is deployed for the pipeline."""
    rows = find_in_force(session, pipeline)
    if not rows:
        return None
    share = rows.get(DeploymentMode.SHARE)
    is_shared = share is not None and is_in_share(pipeline, study_uid, share.percent or 0.0)
    used = _version(share if is_shared else rows.get(DeploymentMode.CURRENT))
    shadow = rows.get(DeploymentMode.SHADOW)
    compared = _version(shadow) if shadow is not None else None
    return Choice(used, compared if compared != used else None)


def choose_current(session: Session, pipeline: str) -> Choice | None:
    """Return the current version alone, without share and shadow; None where no version is deployed as current."""
    current = find_in_force(session, pipeline).get(DeploymentMode.CURRENT)
    return Choice(_version(current), None) if current is not None else None


def find_reference(session: Session, job: Job) -> Version | None:
    """Return the current version, with which the result of a job of a share is compared; None for other jobs.

    A job is of a share where its version was one when the job was made, whatever has been deployed since.
    """
    if job.shadow_of_id is not None:
        return None
    own = Version(job.model, job.model_digest)
    shares = select(Deployment).where(
        Deployment.pipeline == job.pipeline,
        Deployment.mode == DeploymentMode.SHARE,
        Deployment.started_at <= job.created_at,
        Deployment.ended_at.is_(None) | (Deployment.ended_at >= job.created_at),
    )
    if all(_version(row) != own for row in session.scalars(shares)):
        return None
    current = _version(find_in_force(session, job.pipeline).get(DeploymentMode.CURRENT))
    return current if current != own else None


def find_current_by_bundle(session: Session) -> dict[str, str]:
    """Return by bundle NAME@VERSION deployed as current, which pipelines that use the bundle as a helper use, too."""
    mine = (Deployment.ended_at.is_(None), Deployment.mode == DeploymentMode.CURRENT)
    return {
        row.name: format_model(row) for row in session.scalars(select(Deployment).where(*mine).order_by(Deployment.id))
    }


def deploy(
    session: Session,
    *,
    pipeline: str,
    name: str,
    version: str,
    digest: str,
    mode: DeploymentMode,
    percent: float | None = None,
    who: str,
    why: str = "",
    now: datetime,
) -> Deployment:
    """Use that version from the next routed study on. A new current version ends the pipeline's shadow and share.

    Raises InvalidTransition for a shadow or share of the version that is deployed as the current one.
    """
    rows = find_in_force(session, pipeline, lock=True)
    current = rows.get(DeploymentMode.CURRENT)
    is_current = current is not None and (current.name, current.version) == (name, version)
    if mode is not DeploymentMode.CURRENT and is_current:
        raise InvalidTransition(f"{name}@{version} is the current version of {pipeline}: nothing to compare it with")
    row = Deployment(
        pipeline=pipeline, name=name, version=version, digest=digest, mode=mode, percent=percent, who=who, why=why,
        started_at=now, replaced_id=_before(current, name, version) if mode is DeploymentMode.CURRENT else None,
    )  # fmt: skip
    ended = list(rows.values()) if mode is DeploymentMode.CURRENT else [rows[mode]] if mode in rows else []
    _end(session, ended, f"{name}@{version} deployed as {mode}", now)
    _start(session, row, now)
    return row


def rollback(
    session: Session, *, pipeline: str, who: str, why: str = "", default: Version = DEFAULT, now: datetime
) -> Deployment | None:
    """Take back the newest step: a share, or else the current version, which gives way to the one before.

    A shadow ends with it, and waiting jobs of the version that is withdrawn go to the one in force. Returns the
    deployment in force now, None for the ``default`` version. Raises InvalidTransition without a share and a deployed
    current version.
    """
    rows = find_in_force(session, pipeline, lock=True)
    current, share = rows.get(DeploymentMode.CURRENT), rows.get(DeploymentMode.SHARE)
    withdrawn = share or current
    if withdrawn is None:
        raise InvalidTransition(f"no version is deployed for {pipeline}: nothing to go back to")
    shadows = [row for row in rows.values() if row.mode is DeploymentMode.SHADOW]
    to = current if share is not None else _redeploy_previous(session, withdrawn, who, why, now)
    _end(session, [withdrawn, *shadows], f"rolled back by {who}{f': {why}' if why else ''}", now)
    if to is not None and to is not current:
        _start(session, to, now)
    _reassign(session, withdrawn, default if to is None else _version(to), shadows, now)
    return to


def end_shadow(session: Session, *, pipeline: str, who: str, now: datetime) -> Deployment:
    """End the shadow of a pipeline, and cancel its waiting jobs. Raises InvalidTransition where there is none."""
    rows = find_in_force(session, pipeline, lock=True)
    shadow = rows.get(DeploymentMode.SHADOW)
    if shadow is None:
        raise InvalidTransition(f"no shadow version runs beside the current one of {pipeline}")
    _end(session, [shadow], f"ended by {who}", now)
    for job in _lock_waiting(session, pipeline):
        if job.shadow_of_id is not None and job.model == format_model(shadow):
            jobs.cancel(session, job, reason="its version was withdrawn", now=now)
    return shadow


def _redeploy_previous(session: Session, current: Deployment, who: str, why: str, now: datetime) -> Deployment | None:
    """Return a new deployment of the version before the current one, or None where that was the default version."""
    before = session.get(Deployment, current.replaced_id) if current.replaced_id else None
    if before is None:
        return None
    return Deployment(
        pipeline=before.pipeline, name=before.name, version=before.version, digest=before.digest,
        mode=DeploymentMode.CURRENT, who=who, why=why or f"rollback from {format_model(current)}", started_at=now,
        replaced_id=before.replaced_id,
    )  # fmt: skip


def _before(current: Deployment | None, name: str, version: str) -> int | None:
    """Return the id of the deployment that a rollback returns to; deploying the current version again keeps it."""
    if current is None:
        return None
    return current.replaced_id if (current.name, current.version) == (name, version) else current.id


def _version(row: Deployment | None) -> Version:
    return DEFAULT if row is None else Version(format_model(row), row.digest)


def _start(session: Session, row: Deployment, now: datetime) -> None:
    session.flush()  # at most one of a mode is in force, also between two statements
    session.add(row)
    session.flush()
    detail: dict[str, Any] = {"pipeline": row.pipeline, "model": format_model(row), "digest": row.digest}
    detail |= {"mode": str(row.mode), "percent": row.percent, "who": row.who, "why": row.why}
    audit.append(session, subject="deployments", subject_id=row.id, event="deployed", detail=detail, now=now)


def _end(session: Session, rows: Sequence[Deployment], reason: str, now: datetime) -> None:
    for row in rows:
        row.ended_at, row.ended_by = now, reason
        detail = {
            "pipeline": row.pipeline,
            "model": format_model(row),
            "mode": str(row.mode),
            "by": reason,
        }
        audit.append(session, subject="deployments", subject_id=row.id, event="ended", detail=detail, now=now)


def _reassign(
    session: Session, withdrawn: Deployment, to: Version, shadows: Sequence[Deployment], now: datetime
) -> None:
    """Reassign jobs that have not begun from the withdrawn version to the other; running jobs keep theirs."""
    for job in _lock_waiting(session, withdrawn.pipeline):
        if job.state is not JobState.READY:
            continue  # its shadow has gone with another of these
        if job.shadow_of_id is not None:
            if job.model in {format_model(withdrawn), *map(format_model, shadows)}:
                jobs.cancel(session, job, reason="its version was withdrawn", now=now)
        elif job.model == format_model(withdrawn) and job.model_digest:  # else the route names its model itself
            jobs.reassign(session, job, model=to.model, digest=to.digest, now=now)


def _lock_waiting(session: Session, pipeline: str) -> Sequence[Job]:
    """Return the pipeline's jobs that have not begun, locked."""
    waiting = select(Job).where(Job.pipeline == pipeline, Job.state == JobState.READY, Job.attempts == 0)
    return session.scalars(waiting.order_by(Job.id).with_for_update(skip_locked=True)).all()
