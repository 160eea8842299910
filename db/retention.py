"""What is no longer held: rows first, files after them.

A row that has expired is found no more. Its file goes when no row claims it any more, and then the row says so. A crash
between leaves an expired row whose file is still there, or already gone: the next pass ends what was begun. Whoever
gives a row a claim on content writes the file anew first: a file that is older than every write in flight, and has no
claim, gets none any more.
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
    """Routed studies that hold something and were quiet since then, by number."""
    query = select(Study.id).where(
        Study.id > after,
        Study.state == StudyState.ROUTED,
        Study.expired_at.is_(None),
        Study.last_received_at <= quiet_since,
    )
    return list(session.scalars(query.order_by(Study.id).limit(limit)))


def lock_study(session: Session, study_id: int) -> Study | None:
    """The study, if it is still routed: no instance of it comes in before this transaction ends."""
    query = select(Study).where(Study.id == study_id, Study.state == StudyState.ROUTED)
    return session.scalar(query.with_for_update())


def has_sources(session: Session, study: Study) -> bool:
    """Whether any of its instances is still held."""
    return session.scalar(_instances(study).limit(1)) is not None


def is_input_elsewhere(session: Session, study: Study) -> bool:
    """Whether a job of another study that is not over takes something of this one."""
    query = (
        select(JobInput.id)
        .join(Job, JobInput.job_id == Job.id)
        .join(Instance, JobInput.instance_id == Instance.id)
        .join(Series, Instance.series_id == Series.id)
        .where(Series.study_id == study.id, Job.study_id != study.id, Job.state.in_(_AT_WORK))
    )
    return session.scalar(query.limit(1)) is not None


def has_open_retrievals(session: Session, study: Study) -> bool:
    """Whether something is being fetched for it, or it is what is fetched."""
    mine = or_(Retrieval.study_id == study.id, Retrieval.prior_study_uid == study.study_uid)
    return session.scalar(select(Retrieval.id).where(mine, Retrieval.state.in_(_OPEN)).limit(1)) is not None


def expire_sources(session: Session, study: Study, *, reason: str, now: datetime) -> int:
    """What was received of the study is held no more; how many instances."""
    ids = list(session.scalars(_instances(study)))
    if ids:
        session.execute(update(Instance).where(Instance.id.in_(_instances(study))).values(expired_at=now))
        session.execute(update(Series).where(Series.study_id == study.id).values(expired_at=now))
        _tell(session, study, "sources expired", {"instances": _ranges(ids), "reason": reason}, now)
    _expire_if_empty(session, study, now)
    return len(ids)


def expire_results(session: Session, job: Job, *, reason: str, now: datetime) -> int:
    """What the job made is held no more; how many objects."""
    here = [output for output in job.outputs if output.expired_at is None]
    for output in here:
        output.expired_at = now
    if here:
        detail = {"outputs": _ranges([output.id for output in here]), "reason": reason}
        audit.append(session, subject="jobs", subject_id=job.id, event="results expired", detail=detail, now=now)
        session.flush()
    _expire_if_empty(session, job.study, now)
    return len(here)


def list_removable(session: Session, *, limit: int, skip: Collection[str] = ()) -> list[str]:
    """SHA-256 of content to which some row has lost its claim, and whose row does not yet say that it is gone."""
    found: set[str] = set()
    for query in _losers():
        left = limit - len(found)
        found |= set(session.scalars(query.limit(left + len(skip)))) - set(skip)
    return sorted(found)[:limit]


def find_claimed(session: Session, digests: Collection[str]) -> set[str]:
    """Those that some row still claims."""
    kept = Quarantine.state == QuarantineState.KEPT  # asked first: what is released from there becomes an instance's
    found = set(session.scalars(select(Quarantine.sha256).where(Quarantine.sha256.in_(digests), kept)))
    for table in (Instance, Output):
        query = select(table.sha256).where(table.sha256.in_(digests), table.expired_at.is_(None))
        found |= set(session.scalars(query))
    return found


def mark_removed(session: Session, digests: Sequence[str], *, gone: Collection[str], now: datetime) -> None:
    """No expired row has a file under these any more; ``gone``: those whose file is deleted, for the audit trail."""
    for table in (Instance, Output):
        lost = (table.sha256.in_(digests), table.expired_at.is_not(None), table.removed_at.is_(None))
        session.execute(update(table).where(*lost).values(removed_at=now))
    dropped = (Quarantine.sha256.in_(digests), Quarantine.state == QuarantineState.DISCARDED)
    session.execute(update(Quarantine).where(*dropped, Quarantine.removed_at.is_(None)).values(removed_at=now))
    if gone:
        detail = {"sha256": sorted(gone)}
        audit.append(session, subject="spool", subject_id="", event="files removed", detail=detail, now=now)


def _losers() -> Iterable[Select[Any]]:
    for table in (Instance, Output):
        yield select(table.sha256).where(table.expired_at.is_not(None), table.removed_at.is_(None)).distinct()
    dropped = (Quarantine.state == QuarantineState.DISCARDED, Quarantine.removed_at.is_(None))
    yield select(Quarantine.sha256).where(*dropped).distinct()


def _instances(study: Study) -> Select[Any]:
    query = select(Instance.id).join(Series, Instance.series_id == Series.id)
    return query.where(Series.study_id == study.id, Instance.expired_at.is_(None)).order_by(Instance.id)


def _expire_if_empty(session: Session, study: Study, now: datetime) -> None:
    """A study of which nothing is left is found no more."""
    outputs = select(func.count(Output.id)).join(Job, Output.job_id == Job.id)
    left = session.scalar(outputs.where(Job.study_id == study.id, Output.expired_at.is_(None)))
    if not left and not has_sources(session, study):
        study.expired_at = now
        _tell(session, study, "expired", {}, now)


def _tell(session: Session, study: Study, event: str, detail: dict[str, Any], now: datetime) -> None:
    audit.append(session, subject="studies", subject_id=study.id, event=event, detail=detail, now=now)


def _ranges(ids: Sequence[int]) -> list[str]:
    """1, 2, 3, 7 as "1-3", "7"."""
    found: list[list[int]] = []
    for id in sorted(ids):
        if found and id == found[-1][1] + 1:
            found[-1][1] = id
        else:
            found.append([id, id])
    return [f"{first}-{last}" if last > first else str(first) for first, last in found]
