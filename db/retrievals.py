"""Searches at a peer for what a study's routes want: the patient's earlier examination, or series that it lacks here.

What a search for series brings opens the next revision of the study itself. That is no new occasion to search: what
was found for the revision that somebody else opened stands for it, too.
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
    """The peer is to be asked, once per occasion, route and purpose."""
    revision = source_revision(session, study)
    search = Retrieval(
        study_id=study.id,
        revision=revision,
        route=route,
        peer=peer,
        purpose=purpose,
        series_uids=[],
        created_at=now,
    )
    session.add(search)
    session.flush()
    detail = {"study": study.id, "revision": revision, "route": route, "peer": peer, "for": str(purpose)}
    audit.append(session, subject="prior_searches", subject_id=search.id, event="wanted", detail=detail, now=now)
    return search


def find_current(
    session: Session, study: Study, route: str, purpose: RetrievalPurpose = RetrievalPurpose.PRIOR
) -> Retrieval | None:
    """The search that stands for this revision of the study."""
    mine = (Retrieval.study_id == study.id, Retrieval.route == route, Retrieval.purpose == purpose)
    return session.scalar(select(Retrieval).where(*mine, Retrieval.revision == source_revision(session, study)))


def find_newest(session: Session, study: Study, route: str, purpose: RetrievalPurpose) -> Retrieval | None:
    """The last search of that route, for whatever revision."""
    mine = (Retrieval.study_id == study.id, Retrieval.route == route, Retrieval.purpose == purpose)
    return session.scalar(select(Retrieval).where(*mine).order_by(Retrieval.id.desc()).limit(1))


def source_revision(session: Session, study: Study) -> int:
    """The newest revision of the study that holds more than searches for its series brought, and our own results."""
    fetched = _series_searches(session, study)
    if not fetched:
        return study.revision
    first = min(each.revision for each in fetched)
    ours = select(Output.id).where(Output.sop_instance_uid == Instance.sop_instance_uid).exists()
    query = select(Instance.revision, Instance.received_at, Series.series_uid).join(Series)
    later = session.execute(query.where(Series.study_id == study.id, Instance.revision > first, ~ours))
    sent = [row.revision for row in later if not _was_brought(fetched, row.series_uid, row.received_at)]
    newest_sent: int = max([first, *sent])
    return newest_sent


def is_still_needed(session: Session, search: Retrieval) -> bool:
    """Whether the study still waits for it: it is not routed, and nobody has sent more of it."""
    study = search.study
    return study.state is not StudyState.ROUTED and source_revision(session, study) == search.revision


def list_due_ids(session: Session, *, now: datetime) -> list[int]:
    """Those that are not at their end and whose time has come, the oldest first."""
    due = or_(Retrieval.not_before.is_(None), Retrieval.not_before <= now)
    query = select(Retrieval.id).where(Retrieval.state.in_(_OPEN), due)
    return list(session.scalars(query.order_by(Retrieval.id)))


def list_fetching(session: Session, prior: Study) -> list[Retrieval]:
    """The searches that fetched this study as an earlier one, or do."""
    return list(session.scalars(select(Retrieval).where(Retrieval.prior_study_uid == prior.study_uid)))


def find_partial_series(session: Session, study: Study) -> frozenset[str]:
    """The series of which searches brought all that is here, and none the whole."""
    fetched = _series_searches(session, study)
    whole = {uid for each in fetched for uid in each.arrived_uids or ()}
    begun = {uid for each in fetched for uid in each.series_uids} - whole
    if not begun:
        return frozenset()
    query = select(Series.series_uid, Instance.received_at).join(Instance)
    here = session.execute(query.where(Series.study_id == study.id, Series.series_uid.in_(begun)))
    return frozenset(begun - {uid for uid, at in here if not _was_brought(fetched, uid, at)})


def find_own_results(session: Session, series_uids: Collection[str]) -> set[str]:
    """Those of the series that are results of this node."""
    return set(session.scalars(select(Output.series_uid).where(Output.series_uid.in_(series_uids))))


def start_fetching(
    session: Session, search: Retrieval, *, prior_study_uid: str = "", series_uids: Sequence[str], now: datetime
) -> None:
    """The peer has named series, of an earlier study if that is given; what comes of them from now on comes for this
    search."""
    search.prior_study_uid, search.series_uids, search.found_at = prior_study_uid, list(series_uids), now
    what = "an earlier study, " if prior_study_uid else ""
    reason = f"peer {search.peer} has {what}{len(series_uids)} series"
    audit.transition(session, search, RetrievalState.FETCHING, reason=reason, now=now)


def mark_series_arrived(session: Session, search: Retrieval, series_uid: str) -> None:
    """That series is here whole: it is not fetched again."""
    search.arrived_uids = [*(search.arrived_uids or ()), series_uid]


def postpone(session: Session, search: Retrieval, *, reason: str, not_before: datetime, now: datetime) -> None:
    """The peer failed, for the reason: it is asked again later."""
    search.attempts, search.not_before, search.reason = search.attempts + 1, not_before, reason
    detail = {"reason": reason, "attempts": search.attempts}
    audit.append(session, subject="prior_searches", subject_id=search.id, event="postponed", detail=detail, now=now)


def mark_arrived(session: Session, search: Retrieval, *, reason: str, now: datetime) -> None:
    """All is here: the study that came, or the revision of its own that came so, is complete."""
    search.ended_at, search.reason = now, reason
    audit.transition(session, search, RetrievalState.ARRIVED, reason=reason, now=now)
    if search.purpose is RetrievalPurpose.SERIES:
        _close_what_came(session, search, now)
        return
    prior = studies.find_by_uid(session, search.prior_study_uid)
    if prior is not None and prior.state is StudyState.RECEIVING:
        studies.close(session, prior, reason=reason, now=now)


def mark_ended(session: Session, search: Retrieval, *, reason: str, now: datetime) -> None:
    """None came, for the reason."""
    search.ended_at, search.reason = now, reason
    audit.transition(session, search, RetrievalState.ENDED, reason=reason, now=now)
    if search.purpose is RetrievalPurpose.SERIES:
        _close_what_came(session, search, now)


def is_prefetched_only(session: Session, study: Study) -> bool:
    """Whether every instance of the study came while a search fetched it: nobody has sent it to be processed."""
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


def _close_what_came(session: Session, search: Retrieval, now: datetime) -> None:
    """Close a revision of nothing but what searches brought, once none of them is on its way any more."""
    study = session.get_one(Study, search.study_id, with_for_update=True, populate_existing=True)
    others = (Retrieval.study_id == study.id, Retrieval.state.in_(_OPEN), Retrieval.id != search.id)
    series = Retrieval.purpose == RetrievalPurpose.SERIES
    if study.state is not StudyState.RECEIVING or study.revision <= search.revision:
        return
    if source_revision(session, study) == search.revision and not session.scalar(
        select(Retrieval.id).where(*others, series)
    ):
        studies.close(session, study, reason=f"fetched: {search.reason}", now=now)


def _series_searches(session: Session, study: Study) -> Sequence[Retrieval]:
    """Those for the study's own series that have found some."""
    mine = (Retrieval.study_id == study.id, Retrieval.purpose == RetrievalPurpose.SERIES)
    return session.scalars(select(Retrieval).where(*mine, Retrieval.found_at.is_not(None))).all()


def _was_brought(fetched: Sequence[Retrieval], series_uid: str, at: datetime) -> bool:
    return any(
        each.found_at is not None and each.found_at <= at <= (each.ended_at or at) and series_uid in each.series_uids
        for each in fetched
    )
