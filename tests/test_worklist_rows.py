"""Rows of the worklist on both databases: of two that claim or create a workitem, one is refused."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session, sessionmaker

from db import audit, workitems
from db.models import Event, Workitem
from db.states import WorkitemState
from dicomnode.config import Config
from dicomnode.datasets.json_elements import Elements
from dicomnode.errors import WorkitemRefused
from dicomnode.worklist import events, subscribing, transactions
from dicomnode.worklist.performing import Performer
from tests.workitems import make_workitem, to_json

Sessions = sessionmaker[Session]


def create(sessions: Sessions, uid: str, now: datetime, **changes: Any) -> None:
    with sessions.begin() as session:
        transactions.create(session, uid, make_workitem(**changes), most=100, who="test", now=now)


def change(sessions: Sessions, uid: str, state: str, transaction_uid: str, now: datetime) -> None:
    request: Elements = to_json({"ProcedureStepState": state, "TransactionUID": transaction_uid})
    with sessions.begin() as session:
        transactions.change_state(session, uid, request, who=transaction_uid, now=now)


def run_together(*works: Callable[[], None]) -> list[int]:
    """Run all at once; return the statuses of those that were refused."""
    start = Barrier(len(works))

    def run(work: Callable[[], None]) -> int:
        start.wait(timeout=60)
        try:
            work()
        except WorkitemRefused as refusal:
            return refusal.status
        return 0

    with ThreadPoolExecutor(len(works)) as pool:
        return sorted(pool.map(run, works))


def test_of_several_claims_one_succeeds(sessions: Sessions, now: datetime) -> None:
    for uid in ("1.2.1", "1.2.2", "1.2.3"):
        create(sessions, uid, now)
        claims = [partial(change, sessions, uid, "IN PROGRESS", f"1.9.{at}", now) for at in range(4)]
        assert run_together(*claims) == [0, 0xC302, 0xC302, 0xC302]
        with sessions() as session:
            row = workitems.find(session, uid)
            assert row is not None
            assert row.performer == row.transaction_uid
            claimed = [
                each.detail["reason"]
                for each in session.scalars(select(Event).where(Event.subject == "workitems", Event.event == "moved"))
                if each.subject_id == str(row.id)
            ]
            assert claimed == [f"claimed by {row.performer}"]
    with sessions() as session:
        assert audit.verify(session) is None


def test_of_several_creations_one_succeeds(sessions: Sessions, now: datetime) -> None:
    assert run_together(*[lambda: create(sessions, "1.2.1", now)] * 4) == [0, 0x0111, 0x0111, 0x0111]
    with sessions() as session:
        assert workitems.count(session) == 1
        assert [each.event for each in session.scalars(select(Event))] == ["created"]


def test_a_claim_and_a_cancellation_together_leave_one_outcome(sessions: Sessions, now: datetime) -> None:
    def cancel(uid: str) -> None:
        with sessions.begin() as session:
            transactions.request_cancellation(session, uid, {}, who="scheduler", now=now)

    for at in range(4):
        uid = f"1.2.{at}"
        create(sessions, uid, now)
        claim = partial(change, sessions, uid, "IN PROGRESS", "1.9", now)
        refused = run_together(partial(cancel, uid), claim)
        with sessions() as session:
            row = workitems.find(session, uid)
            assert row is not None
            assert (row.state, refused) in [
                (WorkitemState.CANCELED, [0, 0xC300]),
                (WorkitemState.IN_PROGRESS, [0, 0]),
            ]


@pytest.mark.parametrize("has_lock", [False, True])
def test_ended_workitems_go_when_nobody_locks_them(sessions: Sessions, now: datetime, has_lock: bool) -> None:
    create(sessions, "1.2.1", now)
    create(sessions, "1.2.2", now)
    change(sessions, "1.2.1", "IN PROGRESS", "1.9", now)
    change(sessions, "1.2.1", "CANCELED", "1.9", now)
    later = now + timedelta(days=1)

    def delete(locked_before: datetime) -> int:
        with sessions.begin() as session:
            return workitems.delete_ended(session, before=later, locked_before=locked_before, limit=10, now=later)

    if has_lock:
        with sessions.begin() as session:
            workitems.subscribe(session, "ME", "1.2.1", deletion_lock=True, matching={}, now=now)
        assert delete(now) == 0
        assert delete(later) == 1
    else:
        assert delete(now) == 1
    with sessions() as session:
        assert [row.uid for row in session.scalars(select(Workitem))] == ["1.2.2"]
        assert workitems.list_subscribers(session, "1.2.1") == []


def test_waiting_events_are_bounded(sessions: Sessions, now: datetime) -> None:
    with sessions.begin() as session:
        for at in range(5):
            workitems.add_event(session, "ME", {"at": at}, most=3, now=now)
    with sessions() as session:
        assert [each.content["at"] for each in workitems.waiting_events(session, "ME", limit=10)] == [2, 3, 4]


def test_events_go_when_they_are_old_or_nobody_is_subscribed(sessions: Sessions, now: datetime) -> None:
    with sessions.begin() as session:
        workitems.subscribe(session, "ME", events.ALL, deletion_lock=False, matching={}, now=now)
        for ae_title, moment in (("ME", now - timedelta(days=2)), ("ME", now), ("NOBODY", now)):
            workitems.add_event(session, ae_title, {"at": str(moment)}, most=3, now=moment)
        workitems.delete_events(session, before=now - timedelta(days=1))
    with sessions() as session:
        found = [workitems.waiting_events(session, ae_title, limit=10) for ae_title in ("ME", "NOBODY")]
        assert [[each.content["at"] for each in rows] for rows in found] == [[str(now)], []]


def test_who_follows_the_worklist_follows_its_workitems(sessions: Sessions, now: datetime) -> None:
    with sessions.begin() as session:
        workitems.subscribe(session, "EVERY", events.ALL, deletion_lock=False, matching={}, now=now)
        keys = {"ProcedureStepLabel": "MS*"}
        workitems.subscribe(session, "SOME", events.MATCHING, deletion_lock=True, matching=keys, now=now)
        workitems.subscribe(
            session, "NONE", events.MATCHING, deletion_lock=True, matching={"PatientID": "P-2"}, now=now
        )  # fmt: skip
    create(sessions, "1.2.1", now)
    with sessions() as session:
        rows = workitems.list_subscribers(session, "1.2.1")
        assert [(row.ae_title, row.deletion_lock) for row in rows] == [("EVERY", False), ("SOME", True)]


def test_a_subscription_follows_present_workitems_in_parts(
    sessions: Sessions, now: datetime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subscribing, "AT_ONCE", 2)
    for at in range(5):
        create(sessions, f"1.2.{at}", now, PatientID="P-1" if at != 1 else "P-2")

    def subscribe(session: Session) -> None:
        keys = {"PatientID": "P-1"}
        subscribing.subscribe(session, "ME", events.MATCHING, deletion_lock=True, keys=keys, now=now)

    def follow(after: int) -> tuple[int | None, list[str]]:
        with sessions.begin() as session:
            last = subscribing.follow_present(session, "ME", events.MATCHING, after=after, now=now)
            waiting = workitems.waiting_events(session, "ME", limit=10)
            return last, [each.content["00001000"]["Value"][0] for each in waiting]

    with sessions.begin() as session:
        subscribe(session)
    assert follow(0) == (2, ["1.2.0"])
    create(sessions, "1.2.9", now)  # other requests run between the parts
    assert follow(2) == (4, ["1.2.0", "1.2.9", "1.2.2", "1.2.3"])
    with sessions.begin() as session:
        assert workitems.list_subscribers(session, "1.2.3")[0].deletion_lock
        subscribing.unsubscribe(session, "ME", events.MATCHING, now=now)
    assert follow(4)[0] is None
    with sessions() as session:
        assert not workitems.list_subscribers(session, "1.2.4"), "it has left meanwhile"


def test_content_of_event_reports_is_bounded(sessions: Sessions, now: datetime) -> None:
    many = [{"CodeValue": f"S{at}", "CodingSchemeDesignator": "99X", "CodeMeaning": "s" * 64} for at in range(99)]
    progress = {"ProcedureStepProgressInformationSequence": [{"ProcedureStepProgressParametersSequence": many}]}
    parameters = to_json({"ScheduledStationNameCodeSequence": many})
    long = to_json(progress)
    message = "longer than 16384 characters"
    with pytest.raises(WorkitemRefused, match=message):
        create(sessions, "1.2.1", now, ScheduledStationNameCodeSequence=many)
    create(sessions, "1.2.1", now)
    for update in (long, parameters):
        with pytest.raises(WorkitemRefused, match=message), sessions.begin() as session:
            transactions.update(session, "1.2.1", update, "", now)
    codes = to_json({"ProcedureStepDiscontinuationReasonCodeSequence": many})
    with pytest.raises(WorkitemRefused, match=message), sessions.begin() as session:
        transactions.request_cancellation(session, "1.2.1", codes, who="test", now=now)
    with sessions.begin() as session:
        longest = to_json({"ReasonForCancellation": "ü" * 10_000})
        transactions.request_cancellation(session, "1.2.1", longest, who="test", now=now)


def test_what_nobody_claims_is_canceled_in_time_and_what_is_claimed_or_recent_stays(
    sessions: Sessions, now: datetime, tmp_path: Path
) -> None:
    late, days = now + timedelta(days=91), timedelta(days=1)
    settings = {"enabled": True, "performs": False}
    config = Config.model_validate({"path": tmp_path / "node.toml", "worklist": settings})
    for uid in ("1.2.1", "1.2.2"):
        create(sessions, uid, now)
    create(sessions, "1.2.3", now, ScheduledProcedureStepStartDateTime="20270101")
    create(sessions, "1.2.4", now + 2 * days)
    create(sessions, "1.2.5", now, ScheduledProcedureStepStartDateTime="99991231")
    change(sessions, "1.2.2", "IN PROGRESS", "1.9", now)

    def read_states(moment: datetime) -> dict[str, str]:
        performer = Performer(sessions, config)
        performer.step(now=lambda: moment)
        with sessions() as session:
            return {row.uid: str(row.state) for row in session.scalars(select(Workitem))}

    open_ones = {"1.2.2": "IN PROGRESS", "1.2.3": "SCHEDULED", "1.2.4": "SCHEDULED", "1.2.5": "SCHEDULED"}
    assert read_states(late - 2 * days) == open_ones | {"1.2.1": "SCHEDULED"}
    assert read_states(late) == open_ones | {"1.2.1": "CANCELED"}
    with sessions() as session:
        row = workitems.find(session, "1.2.1")
        assert row is not None
        (progress,) = row.attributes["00741002"]["Value"]
        assert progress["00741238"]["Value"] == ["nobody claimed it within 90 days"]
    assert "1.2.1" not in read_states(late + 31 * days)
    assert read_states(late + timedelta(days=1000)).get("1.2.2") == "IN PROGRESS"
