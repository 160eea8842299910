"""This node as performer: it claims workitems that name its work, runs them as jobs, and reports progress and results.

All that it knows of a workitem is in the database: after a restart it goes on where it was.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta

from sqlalchemy.orm import Session, sessionmaker

from db import audit, jobs, studies, workitems
from db import engine as engines
from db.models import Job, Workitem
from db.states import JobState, WorkitemState
from dicomnode import uids
from dicomnode.config import Config
from dicomnode.datasets.json_elements import Elements
from dicomnode.errors import ConfigError, NodeBusy, NotAllowed
from dicomnode.execution import option_process
from dicomnode.routing import routing, trials
from dicomnode.routing.study_snapshot import StudySnapshot
from dicomnode.worklist import elements as dicom
from dicomnode.worklist import orders, performed, transactions
from dicomnode.worklist.orders import Order

__all__ = ["Performer"]

log = logging.getLogger("dicomnode.worklist")

_AT_ONCE = 100
"""Workitems that are examined in one step."""
_CLEAN_EVERY = timedelta(minutes=10)
_LONGEST_LOCK = timedelta(days=366)
_ACTIVE = (JobState.READY, JobState.RUNNING)

Clock = Callable[[], datetime]


class Performer:
    """Repeated walk over the worklist, in steps, for the node's sweeps."""

    def __init__(self, sessions: sessionmaker[Session], config: Config) -> None:
        self._sessions, self._config = sessions, config
        self._readers = engines.readers(sessions.kw["bind"])
        self._after = self._unclaimed_after = 0
        self._clean_at: datetime | None = None
        self._expire_at: datetime | None = None
        self._logged: set[str] = set()

    def step(self, *, now: Clock) -> int:
        """Begin what is due of the next workitems, follow those that run, and delete old ones; return how many."""
        if not self._config.worklist.enabled:
            return 0
        done = self._delete_old(now()) + self._cancel_unclaimed(now)
        if self._config.worklist.performs:
            with self._readers() as session:
                own = workitems.list_own(session)
            done += sum(self._try(self._follow, uid, now) for uid in own)
            done += sum(self._try(self._begin, uid, now) for uid in self._list_next())
        return done

    def _try(self, work: Callable[[str, Clock], bool], uid: str, now: Clock) -> bool:
        """Do a part of the work on a workitem; one that makes it fail does not stop the others, and is logged once."""
        try:
            return work(uid, now)
        except Exception as error:  # whatever its values make fail; the message may quote them
            if uid not in self._logged:
                self._logged.add(uid)
                log.error("workitem %s: %s", uid, type(error).__name__)
            return False

    def _delete_old(self, now: datetime) -> int:
        if self._clean_at is not None and now < self._clean_at:
            return 0
        before = now - timedelta(days=self._config.worklist.keep_days)
        with self._sessions.begin() as session:
            count = workitems.delete_ended(
                session, before=before, locked_before=before - _LONGEST_LOCK, limit=_AT_ONCE, now=now
            )
            workitems.delete_events(session, before=before)
        if count < _AT_ONCE:
            self._clean_at = now + _CLEAN_EVERY
        return count

    def _cancel_unclaimed(self, now: Clock) -> int:
        """Cancel those of the next workitems that nobody has claimed in time; return how many."""
        moment, config = now(), self._config
        if self._expire_at is not None and moment < self._expire_at:
            return 0
        before = moment - timedelta(days=config.worklist.unclaimed_days)
        with self._readers() as session:
            rows = workitems.list_unclaimed(session, after=self._unclaimed_after, before=before, limit=_AT_ONCE)
            expired = [row.uid for row in rows if orders.has_expired(row, config, moment)]
            self._unclaimed_after = rows[-1].id if len(rows) == _AT_ONCE else 0
        if not self._unclaimed_after:
            self._expire_at = moment + _CLEAN_EVERY
        return sum(self._try(self._expire, uid, now) for uid in expired)

    def _expire(self, uid: str, now: Clock) -> bool:
        """Cancel a workitem, unless somebody has claimed or changed it meanwhile."""
        with self._sessions.begin() as session:
            row, moment = workitems.lock(session, uid), now()
            if row is None or row.state is not WorkitemState.SCHEDULED:
                return False
            if not orders.has_expired(row, self._config, moment):
                return False
            reason = f"nobody claimed it within {self._config.worklist.unclaimed_days:g} days"
            reasons: Elements = {}
            dicom.put(reasons, ReasonForCancellation=reason)
            transactions.cancel_unclaimed(session, row, reasons, why=reason, now=moment)
        log.info("workitem %d: canceled: %s", row.id, reason)
        return True

    def _list_next(self) -> list[str]:
        """Return the UIDs of those of the next workitems that are work of this node."""
        with self._readers() as session:
            rows = workitems.list_scheduled(session, after=self._after, limit=_AT_ONCE)
            self._after = rows[-1].id if len(rows) == _AT_ONCE else 0
            return [row.uid for row in rows if orders.is_for_this_node(row.attributes, self._config)]

    def _is_due(self, row: Workitem, now: datetime) -> bool:
        own = orders.is_for_this_node(row.attributes, self._config)
        return own and orders.is_due(row.attributes, self._config, now)

    def _begin(self, uid: str, now: Clock) -> bool:
        """Claim a workitem and enqueue its jobs, or claim and cancel it; return whether it was claimed."""
        with self._readers() as session:
            row = workitems.find(session, uid)
            if row is None or not self._is_due(row, now()):
                return False
            attributes: Elements = row.attributes
            try:
                order = orders.read_order(uid, attributes, self._config)
                if missing := _reason_to_wait(session, order):
                    if now() < orders.waits_until(row, self._config, now()):
                        return False
                    raise NotAllowed(f"waited {self._config.worklist.wait_h:g} h: {missing}")
                _check_study(session, order)
                if self._config.web.accounts:  # a workitem needs an operator only, who may not deploy models
                    trials.check_delivery(session, order.route, self._config)
            except NotAllowed as refusal:
                return self._claim(uid, attributes, str(refusal), now)
        try:
            option_process.check_route(order.route, self._config)  # outside of a transaction: it may take a minute
        except NodeBusy:
            return False
        except ConfigError as error:
            return self._claim(uid, attributes, str(error), now)
        return self._claim(uid, attributes, order, now)

    def _claim(self, uid: str, attributes: Elements, work: Order | str, now: Clock) -> bool:
        """Claim a workitem, and enqueue its jobs, or cancel it for a reason.

        ``attributes``: those from which ``work`` was read: one that was updated meanwhile is read again.
        """
        with self._sessions.begin() as session:
            row, moment = workitems.lock(session, uid), now()
            if row is None or row.state is not WorkitemState.SCHEDULED or row.attributes != attributes:
                return False
            if isinstance(work, Order) and _reason_to_wait(session, work):
                return False
            own_title = self._config.node.ae_title
            row.is_own = True
            transactions.claim(session, row, str(uids.derive("claim", uuid.uuid4().hex)), own_title, moment)
            transactions.write(session, row, performed.describe_start(row, self._config, moment), now=moment)
            reason = work if isinstance(work, str) else self._enqueue(session, row, work, moment)
            if reason:
                performed.cancel(session, row, (), self._config, reason, moment)
        log.info("workitem %d: %s", row.id, "canceled" if reason else "claimed")  # the reason may quote a header
        return True

    def _enqueue(self, session: Session, row: Workitem, order: Order, now: datetime) -> str:
        """Enqueue the jobs of a workitem; return why there are none, or ""."""
        study = studies.find_by_uid(session, order.study_uid)
        if study is None:
            return "the study is not here any more"
        try:
            _check_study(session, order)
        except NotAllowed as refusal:
            return str(refusal)
        snapshot = StudySnapshot(session, study)
        if unused := routing.explain_unused(snapshot, order.route, order.series_uids):
            reasons = [f"series {uid} is none of its inputs: {why}" for uid, why in sorted(unused.items())]
            return f"{orders.find_own_code(row.attributes)} cannot use what is named; {'; '.join(reasons)}"
        made = routing.enqueue_now(snapshot, order.route, self._config, now, series_uids=order.series_uids)
        for job in made:
            detail = {"uid": row.uid, "destinations": list(order.route.destinations)}
            audit.append(session, subject="jobs", subject_id=job.id, event="workitem", detail=detail, now=now)
        if made:
            return ""
        (explanation,) = routing.explain_study(session, study, [order.route])
        return f"nothing of the study can be processed: {explanation.why}"

    def _follow(self, uid: str, now: Clock) -> bool:
        """Report what became of the jobs of a workitem; return whether that was news."""
        with self._readers() as session:
            row = workitems.find(session, uid)
            if row is None or not performed.has_news(row, workitems.list_jobs(session, uid), self._config):
                return False
        with self._sessions.begin() as session:
            row, moment = workitems.lock(session, uid), now()
            if row is None or row.state is not WorkitemState.IN_PROGRESS:
                return False
            made = workitems.list_jobs(session, uid)
            if row.cancel_reason:
                _cancel_jobs(session, made, row.cancel_reason, moment)
                performed.cancel(session, row, made, self._config, row.cancel_reason, moment)
            else:
                performed.report(session, row, made, self._config, moment)
        return True


def _cancel_jobs(session: Session, made: Sequence[Job], reason: str, now: datetime) -> None:
    for job in made:
        if job.state in (*_ACTIVE, JobState.HELD):
            jobs.cancel(session, job, reason=f"its workitem is canceled: {reason}", now=now)


def _reason_to_wait(session: Session, order: Order) -> str:
    """Return what the workitem waits for, or ""."""
    study = studies.find_by_uid(session, order.study_uid)
    if study is None:
        return "the study is not here"
    if why := trials.reason_unable(session, study):
        return why
    held = StudySnapshot(session, study).usable_series
    if missing := order.series_uids - {each.series_uid for each in held}:
        return f"{len(missing)} of its series are not here"
    instances = {row.sop_instance_uid for each in held for row in each.instances}
    missing = order.sop_instance_uids - instances
    return f"{len(missing)} of its instances are not here" if missing else ""


def _check_study(session: Session, order: Order) -> None:
    """Raise NotAllowed where the study is of another patient, or the workitem names a part of one of its series."""
    study = studies.find_by_uid(session, order.study_uid)
    if study is None:
        return
    if order.patient_id and order.patient_id != study.patient_id.strip():
        raise NotAllowed("the workitem states another Patient ID than its study")
    for each in StudySnapshot(session, study).usable_series:
        instances = {row.sop_instance_uid for row in each.instances}
        if 0 < len(instances & order.sop_instance_uids) < len(instances):
            raise NotAllowed(f"the workitem names a part of series {each.series_uid}; this node processes whole series")
