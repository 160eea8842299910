"""Arrivals become rows once; a late instance makes a new revision and overwrites nothing."""

from __future__ import annotations

import itertools
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta

import pytest
from sqlalchemy.orm import Session, sessionmaker

from db import audit, studies
from db.models import Event, Instance, Quarantine, Series, Study
from db.states import StudyState
from db.studies import Registration, Sender, StoredFile
from dicomnode.config import Config
from dicomnode.config.completion import CompletionConfig
from dicomnode.errors import NotAllowed, NotFound
from dicomnode.routing import completion, routing
from tests.rows import make_arrival

RULE = CompletionConfig(quiet_s=10, maximum_s=60)


def register(sessions: sessionmaker[Session], now: datetime, *arrivals: studies.Arrival) -> list[Registration]:
    with sessions.begin() as session:
        return studies.register_instances(session, arrivals, now=now)


def find_study(sessions: sessionmaker[Session]) -> Study:
    with sessions() as session:
        return session.query(Study).one()


def test_same_instance_again_is_a_duplicate(sessions: sessionmaker[Session], now: datetime) -> None:
    first = register(sessions, now, make_arrival())[0]
    again = register(sessions, now, make_arrival())[0]
    assert (first.kind, again.kind) == ("new", "duplicate")
    assert again.instance_id == first.instance_id


def test_same_uid_with_other_content_is_a_conflict_and_leaves_no_trace(
    sessions: sessionmaker[Session], now: datetime
) -> None:
    register(sessions, now, make_arrival("1.2.1"))
    other = make_arrival("1.2.2", content="other")
    impostor = studies.Arrival(
        studies.InstanceFacts("1.2.2", "1.2.2.1", "1.2.1.1.1", "1.2", "1.2"), other.file, other.sender
    )
    assert register(sessions, now, impostor)[0].kind == "conflict"
    with sessions() as session:
        assert (session.query(Study).count(), session.query(Series).count(), session.query(Instance).count()) == (
            1,
            1,
            1,
        )


def test_batch_answers_in_the_order_of_its_arrivals(sessions: sessionmaker[Session], now: datetime) -> None:
    known = make_arrival("1.2.5", number=7)
    register(sessions, now, known)
    answers = register(sessions, now, make_arrival("1.2.9"), known, make_arrival("1.2.3"), make_arrival("1.2.9"))
    assert [answer.kind for answer in answers] == ["new", "duplicate", "new", "duplicate"]
    assert answers[0].instance_id == answers[3].instance_id


@pytest.mark.slow
def test_parallel_batches_over_the_same_studies_lose_nothing(sessions: sessionmaker[Session], now: datetime) -> None:
    def send(sender: int) -> list[Registration]:
        order = [f"1.2.{study}" for study in range(1, 5)]
        batch = [
            make_arrival(study, str(sender), n) for study in (order if sender % 2 else order[::-1]) for n in (1, 2)
        ]
        return [answer for _ in range(3) for answer in register(sessions, now, *batch)]

    with ThreadPoolExecutor(6) as pool:
        answers = [answer.kind for result in pool.map(send, range(6)) for answer in result]
    assert answers.count("new") == 6 * 8
    assert answers.count("duplicate") == 6 * 8 * 2
    with sessions() as session:
        assert session.query(Instance).count() == 48
        assert session.query(Series).count() == 24
        assert session.query(Event).count() == 48
        assert audit.verify(session) is None


def test_quarantined_file_keeps_its_reason(sessions: sessionmaker[Session], now: datetime) -> None:
    with sessions.begin() as session:
        file, sender = StoredFile("f" * 64, 5, "ff/ff/x.dcm"), Sender("A", "127.0.0.1")
        studies.quarantine(session, file=file, reason="no UID", facts=None, sender=sender, now=now)
    with sessions() as session:
        assert session.query(Quarantine).one().reason == "no UID"


def test_quiet_study_is_closed_and_an_active_one_is_not(sessions: sessionmaker[Session], now: datetime) -> None:
    register(sessions, now, make_arrival("1.2.1"), make_arrival("1.2.2"))
    later = now + timedelta(seconds=9)
    register(sessions, later, make_arrival("1.2.2", number=2))
    assert completion.close_due_studies(sessions, RULE, now=lambda: now + timedelta(seconds=10)) == 1
    with sessions() as session:
        states = {study.study_uid: (study.state, study.completed_by) for study in session.query(Study)}
    assert states["1.2.1"] == (StudyState.COMPLETE, "quiet for 10 s")
    assert states["1.2.2"] == (StudyState.RECEIVING, "")


def test_study_that_never_becomes_quiet_is_closed_at_the_maximum(
    sessions: sessionmaker[Session], now: datetime
) -> None:
    for second in range(0, 61, 5):
        register(sessions, now + timedelta(seconds=second), make_arrival(number=second + 1))
    assert completion.close_due_studies(sessions, RULE, now=lambda: now + timedelta(seconds=61)) == 1
    assert find_study(sessions).completed_by == "open for 60 s"


def test_the_clock_is_read_after_the_wait_for_another_writer(sessions: sessionmaker[Session], now: datetime) -> None:
    if sessions.kw["bind"].dialect.name != "sqlite":
        pytest.skip("only SQLite has one writer at a time")
    register(sessions, now, make_arrival())
    readings: list[datetime] = []

    def clock() -> datetime:
        readings.append(now + timedelta(seconds=10))
        return readings[-1]

    sweep = threading.Thread(target=completion.close_due_studies, args=(sessions, RULE), kwargs={"now": clock})
    with sessions.begin():
        sweep.start()
        sweep.join(0.3)
        assert sweep.is_alive()
        assert readings == []
    sweep.join(30)
    assert find_study(sessions).completed_at == now + timedelta(seconds=10)


def test_the_moments_of_events_have_the_order_of_the_events(sessions: sessionmaker[Session], now: datetime) -> None:
    ticks = itertools.count()

    def clock() -> datetime:
        return now + timedelta(seconds=10 + next(ticks))

    register(sessions, now, make_arrival("1.2.1"), make_arrival("1.2.2"))
    completion.close_due_studies(sessions, RULE, now=clock)
    routing.route_complete_studies(sessions, Config(), now=clock)
    with sessions() as session:
        events = session.query(Event).order_by(Event.seq).all()
        moved = [event for event in events if event.event == "moved"]
    assert [event.detail["to"] for event in moved] == ["complete", "complete", "routed", "routed"]
    assert [event.at for event in events] == sorted(event.at for event in events)
    assert moved[2].at < moved[3].at, "each study has its own moment"


def test_close_by_hand(sessions: sessionmaker[Session], now: datetime) -> None:
    register(sessions, now, make_arrival())
    with sessions.begin() as session:
        completion.close_study(session, "1.2.1", now=now)
    assert find_study(sessions).completed_by == "closed by hand"
    with sessions.begin() as session, pytest.raises(NotAllowed, match="complete already"):
        completion.close_study(session, "1.2.1", now=now)
    with sessions.begin() as session, pytest.raises(NotFound):
        completion.close_study(session, "9.9", now=now)


def test_late_instance_opens_a_new_revision(sessions: sessionmaker[Session], now: datetime) -> None:
    register(sessions, now, make_arrival(number=1))
    completion.close_due_studies(sessions, RULE, now=lambda: now + timedelta(seconds=10))
    late = now + timedelta(seconds=30)
    register(sessions, late, make_arrival(number=2))
    study = find_study(sessions)
    assert (study.state, study.revision, study.opened_at) == (StudyState.RECEIVING, 2, late)
    with sessions() as session:
        assert [row.revision for row in session.query(Instance).order_by(Instance.id)] == [1, 2]


def test_late_duplicate_opens_nothing(sessions: sessionmaker[Session], now: datetime) -> None:
    register(sessions, now, make_arrival())
    completion.close_due_studies(sessions, RULE, now=lambda: now + timedelta(seconds=10))
    register(sessions, now + timedelta(seconds=30), make_arrival())
    assert find_study(sessions).revision == 1
    assert find_study(sessions).state is StudyState.COMPLETE


def test_several_late_instances_in_one_batch_open_one_revision(sessions: sessionmaker[Session], now: datetime) -> None:
    register(sessions, now, make_arrival())
    completion.close_due_studies(sessions, RULE, now=lambda: now + timedelta(seconds=10))
    register(sessions, now + timedelta(seconds=30), *[make_arrival(number=n) for n in range(2, 6)])
    assert find_study(sessions).revision == 2
