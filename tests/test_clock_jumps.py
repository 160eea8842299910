"""The clock is set by hand, by NTP or with a restored snapshot; sweeps, leases and due times go on."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Iterator
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path

import httpx
import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session, sessionmaker

from db import clock_jumps, deliveries, destinations, jobs, studies
from db.clock_jumps import ClockWatch
from db.models import Delivery, Event, Study
from db.states import DeliveryState, JobState, StudyState
from dicomnode.dimse import peers
from dicomnode.monitoring.sweep_health import SweepHealth
from dicomnode.sweeps import Sweeps
from dicomnode.web import template_filters
from tests.peers import Node, wait_for, write_config
from tests.peers.files import write_instance
from tests.peers.process import require_program
from tests.rows import add_job, make_arrival
from tests.test_jobs import OUTPUT

WALL_CLOCK = Path(__file__).parent / "peers" / "wall_clock.c"
HOUR = timedelta(hours=1)
JUMPS = pytest.mark.parametrize("jump", [HOUR, -HOUR], ids=["an hour on", "an hour back"])


class _Clock:
    """Clock that a test sets; ``passed_s`` is the monotonic clock."""

    def __init__(self, now: datetime) -> None:
        self.now, self.passed_s = now, 0.0

    def wait(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)
        self.passed_s += seconds


def _watch(sessions: sessionmaker[Session], clock: _Clock, *, moves_rows: bool = True) -> ClockWatch:
    now, passed_s = (lambda: clock.now), (lambda: clock.passed_s)
    return ClockWatch(sessions, now, lease_s=60, moves_rows=moves_rows, passed_s=passed_s)


@JUMPS
@pytest.mark.parametrize("moves_rows", [True, False], ids=["node", "worker"])
def test_a_lease_neither_lapses_nor_holds_longer(
    sessions: sessionmaker[Session], now: datetime, jump: timedelta, moves_rows: bool
) -> None:
    clock = _Clock(now)
    watch = _watch(sessions, clock, moves_rows=moves_rows)
    with sessions.begin() as session:
        add_job(session, now)
        assert jobs.claim(session, worker="w", lease_s=60, now=now) is not None
    clock.now += jump
    watch.check()
    with sessions.begin() as session:
        assert jobs.expire_leases(session, attempts=3, now=clock.now) == []
    clock.wait(61)
    watch.check()
    with sessions.begin() as session:
        assert [job.state for job in jobs.expire_leases(session, attempts=3, now=clock.now)] == [JobState.READY]


@JUMPS
def test_a_study_is_complete_after_its_quiet_time_and_not_before(
    sessions: sessionmaker[Session], now: datetime, jump: timedelta
) -> None:
    clock = _Clock(now)
    watch = _watch(sessions, clock)
    with sessions.begin() as session:
        studies.register_instances(session, [make_arrival()], now=now)
    clock.now += jump
    watch.check()
    for waited_s, due in ((30, 0), (31, 1)):
        clock.wait(waited_s)
        watch.check()
        with sessions.begin() as session:
            found = studies.lock_due_for_completion(session, quiet_s=60, maximum_s=3600, now=clock.now)
            assert len(found) == due


@pytest.mark.slow
@JUMPS
def test_a_delivery_waits_as_long_as_it_was_meant_to(
    sessions: sessionmaker[Session], now: datetime, jump: timedelta
) -> None:
    clock = _Clock(now)
    watch = _watch(sessions, clock)
    with sessions.begin() as session:
        job_id = add_job(session, now).id
        jobs.claim(session, worker="w", lease_s=60, now=now)
        jobs.finish(session, job_id=job_id, worker="w", outputs=[OUTPUT], report={}, now=now)
        row = session.scalars(select(Delivery)).one()
        row.not_before = now + timedelta(seconds=20)
    clock.now += jump
    for waited_s, expected in ((10, 0), (11, 1)):
        clock.wait(waited_s)
        watch.check()
        with sessions.begin() as session:
            claimed = deliveries.claim_due(session, destination="pacs", worker="w", lease_s=60, limit=9, now=clock.now)
            assert len(claimed) == expected
    with sessions() as session:
        row = session.scalars(select(Delivery)).one()
        assert (row.state, row.created_at) == (DeliveryState.SENDING, now + max(jump, timedelta(0)))


def test_small_corrections_change_no_row(sessions: sessionmaker[Session], now: datetime) -> None:
    clock = _Clock(now)
    watch = _watch(sessions, clock)
    with sessions.begin() as session:
        studies.register_instances(session, [make_arrival()], now=now)
    clock.now += timedelta(seconds=2)
    watch.check()
    with sessions() as session:
        assert session.scalars(select(Study.last_received_at)).one() == now


def test_a_clock_that_is_behind_the_newest_event_was_set_back(sessions: sessionmaker[Session], now: datetime) -> None:
    with sessions.begin() as session:
        assert clock_jumps.measure_time_lost(session, now=now) == timedelta(0)
        studies.register_instances(session, [make_arrival()], now=now)
    with sessions() as session:
        assert clock_jumps.measure_time_lost(session, now=now + HOUR) == timedelta(0)
        assert clock_jumps.measure_time_lost(session, now=now - HOUR) == -HOUR


def test_lost_time_is_mended_once(sessions: sessionmaker[Session], now: datetime) -> None:
    clock = _Clock(now)
    watch = _watch(sessions, clock)
    with sessions.begin() as session:
        studies.register_instances(session, [make_arrival()], now=now)
    clock.now -= HOUR
    watch.check()
    with sessions.begin() as session:
        assert clock_jumps.measure_time_lost(session, now=clock.now) == timedelta(
            0
        )  # a restart does not move rows again
        clock_jumps.shift_open_rows(session, -HOUR, now=now - 2 * HOUR)
    with sessions() as session:
        assert clock_jumps.measure_time_lost(session, now=now - 2 * HOUR) == timedelta(0)
        assert session.scalars(select(Study.last_received_at)).one() == now - 2 * HOUR
        newest = session.scalars(select(Event).order_by(Event.seq.desc())).first()
        assert newest is not None
        assert template_filters.describe_event(newest) == "Clock set: by -3600 s"


def test_a_destination_is_tried_when_nobody_knows_how_long_it_was_to_be_left_alone(
    sessions: sessionmaker[Session], now: datetime
) -> None:
    with sessions.begin() as session:
        destinations.record_failure(session, "pacs", threshold=1, open_s=30, open_max_s=60, now=now)
    with sessions() as session:
        found = destinations.load_breaker(session, "pacs")
    assert found.is_open(now + timedelta(seconds=29))
    assert not found.is_open(now + timedelta(seconds=31))
    assert not found.is_open(now - HOUR)


def test_sweeps_repeat_and_go_on_after_a_failure() -> None:
    ran = threading.Semaphore(0)
    checked = threading.Event()

    def fail() -> int:
        ran.release()
        raise OSError("no disk")

    sweep_health = SweepHealth()
    sweep_health.watch("broken", 60)
    sweeps = Sweeps({"broken": fail}, sweep_health=sweep_health, before=checked.set, pause_s=0.01)
    sweeps.start()
    assert all(ran.acquire(timeout=10) for _ in range(3))
    sweeps.stop()
    assert checked.is_set()
    assert sweep_health.heartbeats()["broken"].failures >= 3


@pytest.fixture
def node_with_a_clock(tmp_path: Path) -> Iterator[tuple[Node, Path]]:
    """Run a node whose wall clock is off by the seconds in a file; its monotonic clock stays true."""
    library, setting = tmp_path / "wall_clock.so", tmp_path / "clock"
    subprocess.run([require_program("/usr/bin/gcc", "gcc"), "-shared", "-fPIC", "-o", library, WALL_CLOCK], check=True)
    setting.write_text("0")
    node = Node(write_config(tmp_path, completion={"quiet_s": 4.0}), "serve", "--workers", "0")
    node.program.environment |= {"LD_PRELOAD": str(library), "WALL_CLOCK": str(setting)}
    with node:
        yield node, setting


def _study_state(node: Node, uid: str) -> StudyState | None:
    with node.sessions() as session:
        row = studies.find_by_uid(session, uid)
        return row.state if row else None


def _is_routed(node: Node, uid: str) -> bool:
    return _study_state(node, uid) is StudyState.ROUTED


def _has_noticed(node: Node, times: int) -> bool:
    return node.log.count("the clock was set by") == times


@pytest.mark.slow
def test_a_running_node_goes_on_when_its_clock_is_set(node_with_a_clock: tuple[Node, Path], tmp_path: Path) -> None:
    node, setting = node_with_a_clock
    web = node.log.split("web ")[1].split("/,")[0]
    for number, offset in enumerate(("-3600", "3600")):
        path, uid = tmp_path / f"{number}.dcm", f"1.2.3.{number + 1}"
        write_instance(path, study_uid=uid, series_uid=f"{uid}.2")
        assert [each.status for each in peers.store(node.peer, [path], calling_aet="TEST")] == [0]
        setting.write_text(offset)
        wait_for(partial(_has_noticed, node, number + 1), "it notices", within_s=20)
        assert _study_state(node, uid) is StudyState.RECEIVING
        wait_for(partial(_is_routed, node, uid), "routed", within_s=20)
        assert httpx.get(f"{web}/readyz").json()["status"] == "ok"
    assert node.stop() == 0
