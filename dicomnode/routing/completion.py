"""The completion of studies: after a quiet period, after a maximum duration, or by hand."""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import datetime, timedelta

from sqlalchemy.orm import Session, sessionmaker

from db import studies
from db.models import Study
from db.states import StudyState
from dicomnode.config.completion import CompletionConfig
from dicomnode.errors import NotAllowed, NotFound

log = logging.getLogger("dicomnode.routing.completion")

Clock = Callable[[], datetime]

__all__ = ["close_due_studies", "close_study"]


def close_due_studies(sessions: sessionmaker[Session], rule: CompletionConfig, *, now: Clock) -> int:
    """Close every study that is complete by the rule, and return their number."""
    with sessions.begin() as session:
        moment = now()
        due = studies.lock_due_for_completion(session, quiet_s=rule.quiet_s, maximum_s=rule.maximum_s, now=moment)
        closed = [(study.id, _describe_reason(study, rule, moment)) for study in due]
        for study, (_, reason) in zip(due, closed, strict=True):
            studies.close(session, study, reason=reason, now=moment)
    for study_id, reason in closed:
        log.info("study %d: complete, %s", study_id, reason)
    return len(closed)


def close_study(session: Session, study_uid: str, *, now: datetime) -> Study:
    """Close a study by hand, without waiting."""
    study = studies.find_by_uid(session, study_uid)
    if study is None:
        raise NotFound(f"no study with the UID {study_uid}")
    if study.state is not StudyState.RECEIVING:
        raise NotAllowed(f"study {study_uid} is {study.state} already, at revision {study.revision}")
    studies.close(session, study, reason="closed by hand", now=now)
    return study


def _describe_reason(study: Study, rule: CompletionConfig, now: datetime) -> str:
    if now - study.last_received_at >= timedelta(seconds=rule.quiet_s):
        return f"quiet for {rule.quiet_s:g} s"
    return f"open for {rule.maximum_s:g} s"
