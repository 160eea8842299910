"""Jobs are leased, end once, and state the reason."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from typing import Any

import pytest
from sqlalchemy.orm import Session, sessionmaker

from db import audit, deliveries, jobs
from db.jobs import LeaseLost, OutputFile
from db.models import Delivery, Job, Output
from db.states import DeliveryState, InvalidTransition, JobState
from db.studies import StoredFile
from tests.rows import add_job

OUTPUT = OutputFile("2.25.1", "1.2.840.10008.5.1.4.1.1.7.3", "2.25.2", "image", StoredFile("a" * 64, 10, "aa/aa/x.dcm"))


def make(sessions: sessionmaker[Session], now: datetime, **changes: Any) -> int:
    with sessions.begin() as session:
        return add_job(session, now, **changes).id


def claim(sessions: sessionmaker[Session], now: datetime, worker: str = "w") -> int | None:
    with sessions.begin() as session:
        job = jobs.claim(session, worker=worker, lease_s=60, now=now)
        return job.id if job else None


def fail(sessions: sessionmaker[Session], job_id: int, now: datetime, *, retry: bool = True) -> Job:
    with sessions.begin() as session:
        return jobs.fail(
            session, job_id=job_id, worker="w", reason="broke", retry=retry, attempts=3, backoff_s=5, now=now
        )


def finish(sessions: sessionmaker[Session], job_id: int, now: datetime, *, held_because: str = "") -> Job:
    with sessions.begin() as session:
        return jobs.finish(
            session, job_id=job_id, worker="w", outputs=[OUTPUT], report={}, held_because=held_because, now=now
        )


def load(sessions: sessionmaker[Session], job_id: int) -> Job:
    with sessions() as session:
        return session.get_one(Job, job_id)


def test_no_two_workers_get_the_same_job(sessions: sessionmaker[Session], now: datetime) -> None:
    made = {make(sessions, now, study=f"1.2.{n}") for n in range(1, 25)}

    def claim_all(worker: int) -> list[int]:
        claimed = []
        while (job_id := claim(sessions, now, f"w{worker}")) is not None:
            claimed.append(job_id)
        return claimed

    with ThreadPoolExecutor(6) as pool:
        claimed = [job_id for result in pool.map(claim_all, range(6)) for job_id in result]
    assert sorted(claimed) == sorted(made)


def test_urgent_job_goes_first(sessions: sessionmaker[Session], now: datetime) -> None:
    make(sessions, now, study="1.2.1")
    urgent = make(sessions, now, study="1.2.2", priority=5)
    assert claim(sessions, now) == urgent


def test_same_work_on_the_same_content_is_enqueued_once(sessions: sessionmaker[Session], now: datetime) -> None:
    job = load(sessions, make(sessions, now))
    with sessions.begin() as session:
        again = jobs.enqueue(
            session,
            study_id=job.study_id,
            revision=2,
            route=job.route,
            pipeline=job.pipeline,
            options={},
            inputs={"match": [1]},
            destinations=["pacs"],
            now=now,
        )
    assert again is None


def test_lapsed_lease_gives_the_job_to_another_worker(sessions: sessionmaker[Session], now: datetime) -> None:
    job_id = make(sessions, now)
    assert claim(sessions, now) == job_id
    later = now + timedelta(seconds=61)
    assert claim(sessions, later, "other") is None
    with sessions.begin() as session:
        jobs.expire_leases(session, attempts=3, now=later)
    assert claim(sessions, later, "other") == job_id
    with pytest.raises(LeaseLost):
        finish(sessions, job_id, later)
    assert load(sessions, job_id).state is JobState.RUNNING


def test_renewed_lease_does_not_lapse(sessions: sessionmaker[Session], now: datetime) -> None:
    job_id = make(sessions, now)
    claim(sessions, now)
    later = now + timedelta(seconds=61)
    with sessions.begin() as session:
        held = jobs.renew(
            session,
            job_id=job_id,
            worker="w",
            lease_s=60,
            fraction=0.5,
            step="sampling",
            now=now + timedelta(seconds=30),
        )
        assert held
        assert jobs.expire_leases(session, attempts=3, now=later) == []
    assert (load(sessions, job_id).progress, load(sessions, job_id).step) == (0.5, "sampling")


def test_cancelled_job_is_not_renewed(sessions: sessionmaker[Session], now: datetime) -> None:
    job_id = make(sessions, now)
    claim(sessions, now)
    with sessions.begin() as session:
        jobs.cancel(session, session.get_one(Job, job_id), reason="by hand", now=now)
        assert not jobs.renew(session, job_id=job_id, worker="w", lease_s=60, fraction=0, step="", now=now)


def test_failed_job_waits_and_is_dead_after_its_attempts(sessions: sessionmaker[Session], now: datetime) -> None:
    job_id = make(sessions, now)
    for attempt in range(1, 4):
        assert claim(sessions, now) == job_id
        failed = fail(sessions, job_id, now)
        assert failed.attempts == attempt
        assert claim(sessions, now) is None
        now += timedelta(seconds=5)
    assert load(sessions, job_id).state is JobState.DEAD
    assert load(sessions, job_id).reason == "broke"


def test_a_job_that_no_attempt_helps_is_dead_at_once(sessions: sessionmaker[Session], now: datetime) -> None:
    job_id = make(sessions, now)
    claim(sessions, now)
    assert fail(sessions, job_id, now, retry=False).state is JobState.DEAD


def test_worker_that_keeps_dying_kills_the_job_in_the_end(sessions: sessionmaker[Session], now: datetime) -> None:
    job_id = make(sessions, now)
    for _ in range(3):
        assert claim(sessions, now) == job_id
        with sessions.begin() as session:
            jobs.reclaim(session, worker="w", attempts=3, now=now)
    assert load(sessions, job_id).state is JobState.DEAD
    assert "died in attempt 3" in load(sessions, job_id).reason


def test_retry_by_hand_gives_all_attempts_back(sessions: sessionmaker[Session], now: datetime) -> None:
    job_id = make(sessions, now)
    claim(sessions, now)
    fail(sessions, job_id, now, retry=False)
    with sessions.begin() as session:
        jobs.retry(session, session.get_one(Job, job_id), reason="by hand", now=now)
    assert claim(sessions, now) == job_id
    assert load(sessions, job_id).attempts == 1


def test_job_given_back_keeps_its_attempts(sessions: sessionmaker[Session], now: datetime) -> None:
    job_id = make(sessions, now)
    claim(sessions, now)
    with sessions.begin() as session:
        jobs.return_to_queue(session, job_id=job_id, worker="w", now=now)
    assert (load(sessions, job_id).state, load(sessions, job_id).attempts) == (JobState.READY, 0)


def test_finish_writes_results_and_deliveries_together(sessions: sessionmaker[Session], now: datetime) -> None:
    job_id = make(sessions, now, destinations=["pacs", "research"])
    claim(sessions, now)
    assert finish(sessions, job_id, now).state is JobState.DONE
    with sessions() as session:
        assert session.query(Output).one().sop_instance_uid == "2.25.1"
        assert sorted(row.destination for row in session.query(Delivery)) == ["pacs", "research"]
    with pytest.raises(LeaseLost):
        finish(sessions, job_id, now)


def test_held_results_are_delivered_when_released(sessions: sessionmaker[Session], now: datetime) -> None:
    job_id = make(sessions, now)
    claim(sessions, now)
    assert finish(sessions, job_id, now, held_because="chi-square is 9").state is JobState.HELD
    with sessions.begin() as session:
        assert session.query(Delivery).count() == 0
        jobs.release(session, session.get_one(Job, job_id), reason="looked at", now=now)
    with sessions() as session:
        assert session.query(Delivery).one().state is DeliveryState.WAITING


def test_only_held_results_can_be_released(sessions: sessionmaker[Session], now: datetime) -> None:
    job_id = make(sessions, now)
    claim(sessions, now)
    with sessions.begin() as session, pytest.raises(InvalidTransition, match="only held"):
        jobs.release(session, session.get_one(Job, job_id), reason="no", now=now)


def test_discarded_results_are_never_delivered(sessions: sessionmaker[Session], now: datetime) -> None:
    job_id = make(sessions, now)
    claim(sessions, now)
    finish(sessions, job_id, now, held_because="bad")
    with sessions.begin() as session:
        jobs.discard(session, session.get_one(Job, job_id), reason="bad", now=now)
        assert session.query(Delivery).count() == 0


def test_delivery_is_claimed_once_and_survives_its_sender(sessions: sessionmaker[Session], now: datetime) -> None:
    job_id = make(sessions, now)
    claim(sessions, now)
    finish(sessions, job_id, now)
    with sessions.begin() as session:
        first = deliveries.claim_due(session, worker="a", lease_s=60, limit=10, now=now)
        assert [due.destination for due in first] == ["pacs"]
        assert deliveries.claim_due(session, worker="b", lease_s=60, limit=10, now=now) == []
    later = now + timedelta(seconds=61)
    with sessions.begin() as session:
        assert deliveries.OUTBOX.expire_leases(session, now=later) == 1
        again = deliveries.claim_due(session, worker="b", lease_s=60, limit=10, now=later)
        deliveries.mark_delivered(session, again[0].delivery_id, worker="a", now=later)
        assert session.query(Delivery).one().state is DeliveryState.SENDING
        deliveries.mark_delivered(session, again[0].delivery_id, worker="b", now=later)
    with sessions() as session:
        assert session.query(Delivery).one().delivered_at == later
        assert audit.verify(session) is None
