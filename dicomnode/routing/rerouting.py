"""Routing of studies again: by hand, and of those that no route took when the routes have changed."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta

from sqlalchemy import select
from sqlalchemy.orm import Session, sessionmaker

from db import audit, studies
from db.models import Event, Job, Study
from db.states import WORKITEM_PREFIX, StudyState
from dicomnode.config import Config, Route
from dicomnode.errors import NotAllowed, NotFound
from dicomnode.routing import routing
from dicomnode.routing.study_snapshot import StudySnapshot

__all__ = ["offer_unrouted", "route_again"]

log = logging.getLogger("dicomnode.routing.rerouting")

Clock = Callable[[], datetime]

_SUBJECT = "routes"


def route_again(session: Session, study_uid: str, config: Config, *, reason: str, now: datetime) -> Study:
    """Offer a study to the routes once more; work that has a job already is not repeated.

    The node routes it at its next sweep. Raises NotFound, and NotAllowed where no route would take the study.
    """
    study = studies.find_by_uid(session, study_uid)
    if study is None:
        raise NotFound(f"no study with the UID {study_uid}")
    if study.state is StudyState.RECEIVING:
        raise NotAllowed(f"study {study_uid} is still receiving: 'dicomnode studies close' takes it as complete")
    if study.state is StudyState.COMPLETE:
        raise NotAllowed(f"study {study_uid} is complete and about to be routed")
    if StudySnapshot(session, study).is_prefetched_only:
        raise NotAllowed(f"study {study_uid} was fetched for comparison only: send it here to have it processed")
    explanations = routing.explain_study(session, study, config.routes)
    if not any(each.matched for each in explanations):
        reasons = "; ".join(f"{each.route}: {each.why}" for each in explanations) or "node.toml has none"
        raise NotAllowed(
            f"no route matches study {study_uid}: {reasons}. Change a match in node.toml and restart the node: it then "
            "offers recent studies without a job by itself"
        )
    _make_complete(session, study, reason, now)
    return study


def offer_unrouted(sessions: sessionmaker[Session], config: Config, *, now: Clock) -> int:
    """Offer the recent studies that no route took to the routes where these have changed; return the number of studies.

    ``[completion] offer_again_days``: age of the newest instance up to which a study is recent; 0: no study is.
    """
    digest = _digest(config.routes)
    with sessions.begin() as session:
        moment = now()
        if not config.completion.offer_again_days or digest == _find_last_digest(session):
            return 0
        audit.append(session, subject=_SUBJECT, subject_id="", event="changed", detail={"digest": digest}, now=moment)
        since = moment - timedelta(days=config.completion.offer_again_days)
        offered = [study for study in _list_unrouted(session, since) if _is_matched(session, study, config.routes)]
        for study in offered:
            _make_complete(session, study, "offered to changed routes", moment)
    if offered:
        log.info("the routes have changed: %d studies without a job are routed again", len(offered))
    return len(offered)


def _make_complete(session: Session, study: Study, reason: str, now: datetime) -> None:
    """Let the study be routed again; its waits for other examinations and series begin now."""
    study.completed_at = now
    audit.transition(session, study, StudyState.COMPLETE, reason=reason, now=now)


def _list_unrouted(session: Session, since: datetime) -> Sequence[Study]:
    is_routed = ~Job.is_trial & ~Job.route.startswith(WORKITEM_PREFIX)
    has_job = select(Job.id).where(Job.study_id == Study.id, is_routed).exists()
    unrouted = (Study.state == StudyState.ROUTED, Study.last_received_at >= since, Study.expired_at.is_(None), ~has_job)
    return session.scalars(select(Study).where(*unrouted).order_by(Study.id).with_for_update()).all()


def _is_matched(session: Session, study: Study, routes: Sequence[Route]) -> bool:
    if StudySnapshot(session, study).is_prefetched_only:
        return False
    return any(each.matched for each in routing.explain_study(session, study, routes))


def _digest(routes: Sequence[Route]) -> str:
    return hashlib.sha256("\n".join(each.model_dump_json() for each in routes).encode()).hexdigest()


def _find_last_digest(session: Session) -> str:
    last = select(Event.detail).where(Event.subject == _SUBJECT).order_by(Event.seq.desc()).limit(1)
    return str((session.scalar(last) or {}).get("digest", ""))
