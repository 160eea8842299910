"""Retrievals from a peer for a study's routes: the patient's prior examination, or series of the study missing here.

Fetched series open the next revision of the study itself. Such a revision starts no further retrieval: the retrieval
for its source revision, the newest one that a sender opened, counts for it, too.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime

from sqlalchemy import or_, select
from sqlalchemy.orm import Session

from db import audit, studies
from db.models import Instance, Output, Retrieval, Series, Study
from db.states import RetrievalPurpose, RetrievalState, StudyState

__all__ = [
    "find_current",
    "find_newest",
    "find_own_results",
    "find_partial_series",
    "is_prefetched_only",
    "is_still_needed",
    "list_due_ids",
    "list_fetching",
    "mark_arrived",
    "mark_ended",
    "mark_series_arrived",
    "postpone",
    "request",
    "source_revision",
    "start_fetching",
]

_OPEN = (RetrievalState.WANTED, RetrievalState.FETCHING)


def request(
    session: Session,
    study: Study,
    *,
    route: str,
    peer: str,
    purpose: RetrievalPurpose = RetrievalPurpose.PRIOR,
    now: datetime,
) -> Retrieval:
    """Request a retrieval from the peer, once per source revision, route and purpose."""
    revision = source_revision(session, study)
    retrieval = Retrieval(
        study_id=study.id,
        revision=revision,
        route=route,
        peer=peer,
        purpose=purpose,
        series_uids=[],
        created_at=now,
    )
    session.add(retrieval)
    session.flush()
    detail = {"study": study.id, "revision": revision, "route": route, "peer": peer, "for": str(purpose)}
    audit.append(session, subject="prior_searches", subject_id=retrieval.id, event="wanted", detail=detail, now=now)
    return retrieval


def find_current(
    session: Session, study: Study, route: str, purpose: RetrievalPurpose = RetrievalPurpose.PRIOR
) -> Retrieval | None:
    """Return the retrieval that counts for this revision of the study, or None."""
    mine = (Retrieval.study_id == study.id, Retrieval.route == route, Retrieval.purpose == purpose)
    return session.scalar(select(Retrieval).where(*mine, Retrieval.revision == source_revision(session, study)))


def find_newest(session: Session, study: Study, route: str, purpose: RetrievalPurpose) -> Retrieval | None:
    """Return the last retrieval of that route, for any revision, or None."""
    mine = (Retrieval.study_id == study.id, Retrieval.route == route, Retrieval.purpose == purpose)
    return session.scalar(select(Retrieval).where(*mine).order_by(Retrieval.id.desc()).limit(1))


def source_revision(session: Session, study: Study) -> int:
    """Return the newest revision of the study with an instance that is neither fetched for it nor our own result."""
    fetched = _list_series_retrievals(session, study)
    if not fetched:
        return study.revision
    first = min(each.revision for each in fetched)
    ours = select(Output.id).where(Output.sop_instance_uid == Instance.sop_instance_uid).exists()
    query = select(Instance.revision, Instance.received_at, Series.series_uid).join(Series)
    later = session.execute(query.where(Series.study_id == study.id, Instance.revision > first, ~ours))
    sent = [row.revision for row in later if not _was_fetched(fetched, row.series_uid, row.received_at)]
    newest_sent: int = max([first, *sent])
    return newest_sent


def is_still_needed(session: Session, retrieval: Retrieval) -> bool:
    """Return whether the study still waits for the retrieval: it is not routed, and no sender has added to it."""
    study = retrieval.study
    return study.state is not StudyState.ROUTED and source_revision(session, study) == retrieval.revision


def list_due_ids(session: Session, *, now: datetime) -> list[int]:
    """Return the ids of the open retrievals that are due, the oldest first."""
    due = or_(Retrieval.not_before.is_(None), Retrieval.not_before <= now)
    query = select(Retrieval.id).where(Retrieval.state.in_(_OPEN), due)
    return list(session.scalars(query.order_by(Retrieval.id)))


def list_fetching(session: Session, prior: Study) -> list[Retrieval]:
    """Return the retrievals that fetched this study as a prior examination, or are fetching it."""
    return list(session.scalars(select(Retrieval).where(Retrieval.prior_study_uid == prior.study_uid)))


def find_partial_series(session: Session, study: Study) -> frozenset[str]:
    """Return the UIDs of the series that are here only as parts of unfinished retrievals."""
    fetched = _list_series_retrievals(session, study)
    complete = {uid for each in fetched for uid in each.arrived_uids or ()}
    begun = {uid for each in fetched for uid in each.series_uids} - complete
    if not begun:
        return frozenset()
    query = select(Series.series_uid, Instance.received_at).join(Instance)
    here = session.execute(query.where(Series.study_id == study.id, Series.series_uid.in_(begun)))
    return frozenset(begun - {uid for uid, at in here if not _was_fetched(fetched, uid, at)})


def find_own_results(session: Session, series_uids: Collection[str]) -> set[str]:
    """Return those of the series that are results of this node."""
    return set(session.scalars(select(Output.series_uid).where(Output.series_uid.in_(series_uids))))


def start_fetching(
    session: Session, retrieval: Retrieval, *, prior_study_uid: str = "", series_uids: Sequence[str], now: datetime
) -> None:
    """Record the series that the peer found, of a prior study where that is given, and begin to fetch them.

    Instances of them that arrive from now on count as fetched by this retrieval.
    """
    retrieval.prior_study_uid, retrieval.series_uids, retrieval.found_at = prior_study_uid, list(series_uids), now
    prior = "an earlier study, " if prior_study_uid else ""
    reason = f"peer {retrieval.peer} has {prior}{len(series_uids)} series"
    audit.transition(session, retrieval, RetrievalState.FETCHING, reason=reason, now=now)


def mark_series_arrived(session: Session, retrieval: Retrieval, series_uid: str) -> None:
    """Record that the series is complete here, so that it is not fetched again."""
    retrieval.arrived_uids = [*(retrieval.arrived_uids or ()), series_uid]


def postpone(session: Session, retrieval: Retrieval, *, reason: str, not_before: datetime, now: datetime) -> None:
    """Record a failure of the peer, which is asked again at ``not_before``."""
    retrieval.attempts, retrieval.not_before, retrieval.reason = retrieval.attempts + 1, not_before, reason
    detail = {"reason": reason, "attempts": retrieval.attempts}
    audit.append(session, subject="prior_searches", subject_id=retrieval.id, event="postponed", detail=detail, now=now)


def mark_arrived(session: Session, retrieval: Retrieval, *, reason: str, now: datetime) -> None:
    """End a complete retrieval, and close the prior study or the revision that it fetched."""
    retrieval.ended_at, retrieval.reason = now, reason
    audit.transition(session, retrieval, RetrievalState.ARRIVED, reason=reason, now=now)
    if retrieval.purpose is RetrievalPurpose.SERIES:
        _close_fetched_revision(session, retrieval, now)
        return
    prior = studies.find_by_uid(session, retrieval.prior_study_uid)
    if prior is not None and prior.state is StudyState.RECEIVING:
        studies.close(session, prior, reason=reason, now=now)


def mark_ended(session: Session, retrieval: Retrieval, *, reason: str, now: datetime) -> None:
    """End a retrieval without a complete result, for the reason."""
    retrieval.ended_at, retrieval.reason = now, reason
    audit.transition(session, retrieval, RetrievalState.ENDED, reason=reason, now=now)
    if retrieval.purpose is RetrievalPurpose.SERIES:
        _close_fetched_revision(session, retrieval, now)


def is_prefetched_only(session: Session, study: Study) -> bool:
    """Return whether every instance of the study arrived while it was fetched, so that no sender wants it processed."""
    during = (
        select(Retrieval.id)
        .where(
            Retrieval.prior_study_uid == study.study_uid,
            Retrieval.found_at <= Instance.received_at,
            or_(Retrieval.ended_at.is_(None), Retrieval.ended_at >= Instance.received_at),
        )
        .exists()
    )
    sent = select(Instance.id).join(Series).where(Series.study_id == study.id, ~during)
    return session.scalar(sent.limit(1)) is None


def _close_fetched_revision(session: Session, retrieval: Retrieval, now: datetime) -> None:
    """Close a revision that holds only fetched series, once no retrieval of series is open any more."""
    study = session.get_one(Study, retrieval.study_id, with_for_update=True, populate_existing=True)
    others = (Retrieval.study_id == study.id, Retrieval.state.in_(_OPEN), Retrieval.id != retrieval.id)
    series = Retrieval.purpose == RetrievalPurpose.SERIES
    if study.state is not StudyState.RECEIVING or study.revision <= retrieval.revision:
        return
    if source_revision(session, study) == retrieval.revision and not session.scalar(
        select(Retrieval.id).where(*others, series)
    ):
        studies.close(session, study, reason=f"fetched: {retrieval.reason}", now=now)


def _list_series_retrievals(session: Session, study: Study) -> Sequence[Retrieval]:
    """Return the retrievals of the study's own series that have found some."""
    mine = (Retrieval.study_id == study.id, Retrieval.purpose == RetrievalPurpose.SERIES)
    return session.scalars(select(Retrieval).where(*mine, Retrieval.found_at.is_not(None))).all()


def _was_fetched(fetched: Sequence[Retrieval], series_uid: str, at: datetime) -> bool:
    return any(
        each.found_at is not None and each.found_at <= at <= (each.ended_at or at) and series_uid in each.series_uids
        for each in fetched
    )
