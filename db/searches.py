"""Searches at a peer for the earlier examination of a study's patient."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import or_, select
from sqlalchemy.orm import Session

from db import audit, studies
from db.models import Instance, PriorSearch, Series, Study
from db.states import SearchState, StudyState

__all__ = ["arrived", "end", "fetching", "is_brought", "open_ids", "search_for", "that_fetched", "want"]

_OPEN = (SearchState.WANTED, SearchState.FETCHING)


def want(session: Session, study: Study, *, route: str, peer: str, now: datetime) -> PriorSearch:
    """The peer is to be asked, once per revision of the study and route."""
    search = PriorSearch(
        study_id=study.id, revision=study.revision, route=route, peer=peer, series_uids=[], created_at=now
    )
    session.add(search)
    session.flush()
    detail = {"study": study.id, "revision": study.revision, "route": route, "peer": peer}
    audit.append(session, subject="prior_searches", subject_id=search.id, event="wanted", detail=detail, now=now)
    return search


def search_for(session: Session, study: Study, route: str) -> PriorSearch | None:
    """The search for this revision of the study."""
    mine = (PriorSearch.study_id == study.id, PriorSearch.revision == study.revision, PriorSearch.route == route)
    return session.scalar(select(PriorSearch).where(*mine))


def open_ids(session: Session) -> list[int]:
    """Those that are not at their end, the oldest first."""
    return list(session.scalars(select(PriorSearch.id).where(PriorSearch.state.in_(_OPEN)).order_by(PriorSearch.id)))


def that_fetched(session: Session, prior: Study) -> list[PriorSearch]:
    """The searches that fetched this study, or do."""
    return list(session.scalars(select(PriorSearch).where(PriorSearch.prior_study_uid == prior.study_uid)))


def fetching(
    session: Session, search: PriorSearch, *, prior_study_uid: str, series_uids: Sequence[str], now: datetime
) -> None:
    """The peer has named a study; from now on what comes of it comes for this search."""
    search.prior_study_uid, search.series_uids, search.found_at = prior_study_uid, list(series_uids), now
    reason = f"peer {search.peer} has an earlier study, {len(series_uids)} series"
    audit.move(session, search, SearchState.FETCHING, reason=reason, now=now)


def arrived(session: Session, search: PriorSearch, *, reason: str, now: datetime) -> None:
    """All is here: the study that came is complete."""
    search.ended_at, search.reason = now, reason
    audit.move(session, search, SearchState.ARRIVED, reason=reason, now=now)
    prior = studies.by_uid(session, search.prior_study_uid)
    if prior is not None and prior.state is StudyState.RECEIVING:
        studies.close(session, prior, reason=reason, now=now)


def end(session: Session, search: PriorSearch, *, reason: str, now: datetime) -> None:
    """None came, for the reason."""
    search.ended_at, search.reason = now, reason
    audit.move(session, search, SearchState.ENDED, reason=reason, now=now)


def is_brought(session: Session, study: Study) -> bool:
    """Whether every instance of the study came while a search fetched it: nobody has sent it to be processed."""
    during = (
        select(PriorSearch.id)
        .where(
            PriorSearch.prior_study_uid == study.study_uid,
            PriorSearch.found_at <= Instance.received_at,
            or_(PriorSearch.ended_at.is_(None), PriorSearch.ended_at >= Instance.received_at),
        )
        .exists()
    )
    sent = select(Instance.id).join(Series).where(Series.study_id == study.id, ~during)
    return session.scalar(sent.limit(1)) is None
