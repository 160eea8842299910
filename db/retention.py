"""Expiry of rows, and after it the removal of files.

Searches do not find an expired row. Its file is deleted when no row claims its content any more, and the row then
records that. A crash in between leaves an expired row whose file exists or is already deleted: the next pass completes
it. A row gets a claim on content only after the file was written anew: a file that is older than every write in flight,
and has no claim, never gets one.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Select, func, or_, select, update
from sqlalchemy.orm import Session

from db import audit
from db.models import Instance, Job, JobInput, Output, Quarantine, Retrieval, Series, Study
from db.states import JobState, QuarantineState, RetrievalState, StudyState

__all__ = [
    "expire_results",
    "expire_sources",
    "find_claimed",
    "has_committed_sources",
    "has_open_retrievals",
    "has_sources",
    "is_input_elsewhere",
    "list_candidates",
    "list_removable",
    "lock_study",
    "mark_removed",
]

_AT_WORK = (JobState.READY, JobState.RUNNING, JobState.HELD, JobState.DEAD)
_OPEN = (RetrievalState.WANTED, RetrievalState.FETCHING)


def list_candidates(session: Session, *, after: int, limit: int, quiet_since: datetime) -> list[int]:
    """Return the ids above ``after`` of routed studies that hold files and were quiet since then, in order."""
    query = select(Study.id).where(
        Study.id > after,
        Study.state == StudyState.ROUTED,
        Study.expired_at.is_(None),
        Study.last_received_at <= quiet_since,
    )
    return list(session.scalars(query.order_by(Study.id).limit(limit)))


def lock_study(session: Session, study_id: int) -> Study | None:
    """Return the study, locked, if it is still routed, so that no instance arrives before this transaction ends."""
    query = select(Study).where(Study.id == study_id, Study.state == StudyState.ROUTED)
    return session.scalar(query.with_for_update())


def has_sources(session: Session, study: Study) -> bool:
    """Return whether the node still holds an instance of the study."""
    return session.scalar(_instances(study).limit(1)) is not None


def has_committed_sources(session: Session, study: Study) -> bool:
    """Return whether the node committed an instance of the study that it holds to a requester."""
    return session.scalar(_instances(study).where(Instance.committed_at.is_not(None)).limit(1)) is not None


def is_input_elsewhere(session: Session, study: Study) -> bool:
    """Return whether an unfinished job of another study reads an instance of this one."""
    query = (
        select(JobInput.id)
        .join(Job, JobInput.job_id == Job.id)
        .join(Instance, JobInput.instance_id == Instance.id)
        .join(Series, Instance.series_id == Series.id)
        .where(Series.study_id == study.id, Job.study_id != study.id, Job.state.in_(_AT_WORK))
    )
    return session.scalar(query.limit(1)) is not None


def has_open_retrievals(session: Session, study: Study) -> bool:
    """Return whether a retrieval is open for the study, or fetches it as a prior examination."""
    mine = or_(Retrieval.study_id == study.id, Retrieval.prior_study_uid == study.study_uid)
    return session.scalar(select(Retrieval.id).where(mine, Retrieval.state.in_(_OPEN)).limit(1)) is not None


def expire_sources(session: Session, study: Study, *, reason: str, now: datetime) -> int:
    """Expire the received instances of the study; return how many."""
    ids = list(session.scalars(_instances(study)))
    if ids:
        session.execute(update(Instance).where(Instance.id.in_(_instances(study))).values(expired_at=now))
        session.execute(update(Series).where(Series.study_id == study.id).values(expired_at=now))
        _append_study_event(session, study, "sources expired", {"instances": _ranges(ids), "reason": reason}, now)
    _expire_if_empty(session, study, now)
    return len(ids)


def expire_results(session: Session, job: Job, *, reason: str, now: datetime) -> int:
    """Expire the results of the job; return how many objects."""
    held = [output for output in job.outputs if output.expired_at is None]
    for output in held:
        output.expired_at = now
    if held:
        detail = {"outputs": _ranges([output.id for output in held]), "reason": reason}
        audit.append(session, subject="jobs", subject_id=job.id, event="results expired", detail=detail, now=now)
        session.flush()
    _expire_if_empty(session, job.study, now)
    return len(held)


def list_removable(session: Session, *, limit: int, skip: Collection[str] = ()) -> list[str]:
    """Return SHA-256 digests of content to which a row has lost its claim without recording its removal."""
    digests: set[str] = set()
    for query in _select_unclaimed():
        left = limit - len(digests)
        digests |= set(session.scalars(query.limit(left + len(skip)))) - set(skip)
    return sorted(digests)[:limit]


def find_claimed(session: Session, digests: Collection[str]) -> set[str]:
    """Return those digests that a row still claims."""
    undecided = Quarantine.state == QuarantineState.KEPT  # read first: a released file becomes an instance's
    found = set(session.scalars(select(Quarantine.sha256).where(Quarantine.sha256.in_(digests), undecided)))
    for table in (Instance, Output):
        query = select(table.sha256).where(table.sha256.in_(digests), table.expired_at.is_(None))
        found |= set(session.scalars(query))
    return found


def mark_removed(session: Session, digests: Sequence[str], *, gone: Collection[str], now: datetime) -> None:
    """Record that the expired rows of these digests have no file; ``gone``: digests of the deleted files."""
    for table in (Instance, Output):
        lost = (table.sha256.in_(digests), table.expired_at.is_not(None), table.removed_at.is_(None))
        session.execute(update(table).where(*lost).values(removed_at=now))
    dropped = (Quarantine.sha256.in_(digests), Quarantine.state == QuarantineState.DISCARDED)
    session.execute(update(Quarantine).where(*dropped, Quarantine.removed_at.is_(None)).values(removed_at=now))
    if gone:
        detail = {"sha256": sorted(gone)}
        audit.append(session, subject="spool", subject_id="", event="files removed", detail=detail, now=now)


def _select_unclaimed() -> Iterable[Select[Any]]:
    for table in (Instance, Output):
        yield select(table.sha256).where(table.expired_at.is_not(None), table.removed_at.is_(None)).distinct()
    dropped = (Quarantine.state == QuarantineState.DISCARDED, Quarantine.removed_at.is_(None))
    yield select(Quarantine.sha256).where(*dropped).distinct()


def _instances(study: Study) -> Select[Any]:
    query = select(Instance.id).join(Series, Instance.series_id == Series.id)
    return query.where(Series.study_id == study.id, Instance.expired_at.is_(None)).order_by(Instance.id)


def _expire_if_empty(session: Session, study: Study, now: datetime) -> None:
    """Expire the study where nothing of it is left."""
    outputs = select(func.count(Output.id)).join(Job, Output.job_id == Job.id)
    left = session.scalar(outputs.where(Job.study_id == study.id, Output.expired_at.is_(None)))
    if not left and not has_sources(session, study):
        study.expired_at = now
        _append_study_event(session, study, "expired", {}, now)


def _append_study_event(session: Session, study: Study, event: str, detail: dict[str, Any], now: datetime) -> None:
    audit.append(session, subject="studies", subject_id=study.id, event=event, detail=detail, now=now)


def _ranges(ids: Sequence[int]) -> list[str]:
    """Return ids as ranges: 1, 2, 3, 7 as "1-3", "7"."""
    found: list[list[int]] = []
    for id in sorted(ids):
        if found and id == found[-1][1] + 1:
            found[-1][1] = id
        else:
            found.append([id, id])
    return [f"{first}-{last}" if last > first else str(first) for first, last in found]
