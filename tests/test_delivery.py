"""Results reach their destinations in spite of faults on either side, and nothing without marks leaves the node."""

from __future__ import annotations

import random
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path

import pytest
from pynetdicom import evt
from sqlalchemy import select
from sqlalchemy.orm import Session, sessionmaker

from db import deliveries, destinations, jobs
from db.models import Delivery
from db.states import DeliveryState
from dicomnode.backoff import draw_backoff
from dicomnode.config import Config, Peer
from dicomnode.config.delivery import DeliveryConfig
from dicomnode.config.node import NodeConfig
from dicomnode.delivery import delivery
from dicomnode.delivery.delivery import deliver_due
from tests.peers import Answering, Orthanc, StoreScp, free_port
from tests.rows import finish_job

Sessions = sessionmaker[Session]


@pytest.fixture
def config(tmp_path: Path) -> Config:
    node = NodeConfig(data_dir=tmp_path / "data")
    return Config(node=node, delivery=DeliveryConfig(backoff_s=10, backoff_max_s=80, breaker_open_s=30))


def add_peers(config: Config, *peers: Peer) -> Config:
    return config.model_copy(update={"peers": peers})


def make_unreachable_peer(name: str = "down") -> Peer:
    return Peer(name=name, ae_title="DOWN", host="127.0.0.1", port=free_port())


def rows(sessions: Sessions) -> list[Delivery]:
    with sessions() as session:
        return list(session.scalars(select(Delivery).order_by(Delivery.id)))


def states(sessions: Sessions) -> set[DeliveryState]:
    return {row.state for row in rows(sessions)}


def _same(moment: datetime) -> datetime:
    return moment


def test_results_reach_every_destination(
    sessions: Sessions, config: Config, now: datetime, orthanc: Orthanc, storescp: StoreScp
) -> None:
    config = add_peers(config, orthanc.peer, storescp.peer)
    uids = finish_job(sessions, config, ["orthanc", "storescp"], now, count=3)
    assert deliver_due(sessions, config, now=lambda: now) == 6
    for held in (orthanc.datasets(), storescp.datasets()):
        assert {ds.SOPInstanceUID for ds in held} == set(uids)
        assert {str(ds.PatientName) for ds in held} == {"Müller^Jürgen"}
    assert states(sessions) == {DeliveryState.DELIVERED}
    assert all(row.delivered_at == now for row in rows(sessions))
    assert deliver_due(sessions, config, now=lambda: now + timedelta(hours=1)) == 0


@pytest.mark.slow
def test_a_batch_goes_over_one_association(sessions: Sessions, config: Config, now: datetime) -> None:
    with Answering(lambda event: 0x0000) as server:
        config = add_peers(config, server.peer)
        finish_job(sessions, config, ["answering"], now, count=5)
        assert deliver_due(sessions, config, now=lambda: now) == 5
    assert server.associations == 1


def test_an_unmarked_object_never_goes_on_the_wire(
    sessions: Sessions, config: Config, now: datetime, storescp: StoreScp
) -> None:
    config = add_peers(config, storescp.peer)
    finish_job(sessions, config, ["storescp"], now, marked=False)
    (uid,) = finish_job(sessions, config, ["storescp"], now, study="1.2.2")
    assert deliver_due(sessions, config, now=lambda: now) == 1
    assert [ds.SOPInstanceUID for ds in storescp.datasets()] == [uid]
    refused, sent = rows(sessions)
    assert (refused.state, sent.state) == (DeliveryState.GIVEN_UP, DeliveryState.DELIVERED)
    assert refused.reason.startswith("not sent: ")
    assert "Müller" not in refused.reason


def test_a_file_that_changed_on_disk_is_not_sent(
    sessions: Sessions, config: Config, now: datetime, storescp: StoreScp
) -> None:
    config = add_peers(config, storescp.peer)
    finish_job(sessions, config, ["storescp"], now)
    (file,) = config.spool_dir.rglob("*.dcm")
    content = file.read_bytes()
    file.write_bytes(content[:-2] + b"\xff\xff")
    assert deliver_due(sessions, config, now=lambda: now) == 0
    assert storescp.files() == []
    assert "is not what was written" in rows(sessions)[0].reason
    file.write_bytes(content)
    assert deliver_due(sessions, config, now=lambda: now + timedelta(minutes=1)) == 1


def test_a_destination_that_was_down_gets_all_when_it_is_back(
    sessions: Sessions, config: Config, now: datetime, tmp_path: Path
) -> None:
    scp = StoreScp(tmp_path / "scp")
    config = add_peers(config, scp.peer)
    uids = finish_job(sessions, config, ["storescp"], now, count=3)
    assert deliver_due(sessions, config, now=lambda: now) == 0
    assert states(sessions) == {DeliveryState.WAITING}
    with scp:
        assert deliver_due(sessions, config, now=lambda: now) == 0, "not before the back-off has passed"
        assert deliver_due(sessions, config, now=lambda: now + timedelta(seconds=10)) == 3
        assert {ds.SOPInstanceUID for ds in scp.datasets()} == set(uids)


def test_the_breaker_spares_a_dead_peer_and_not_the_others(
    sessions: Sessions, config: Config, now: datetime, storescp: StoreScp, caplog: pytest.LogCaptureFixture
) -> None:
    config = add_peers(config, make_unreachable_peer(), storescp.peer)
    finish_job(sessions, config, ["down"], now, count=2)
    for _ in range(3):
        deliver_due(sessions, config, now=partial(_same, now))
        now += timedelta(seconds=80)
    assert "not delivered to down: " in caplog.text
    now -= timedelta(seconds=80)
    with sessions() as session:
        breaker = destinations.load_breaker(session, "down")
        assert breaker.open_until == now + timedelta(seconds=30)
        assert "cannot be reached" in breaker.reason
    finish_job(sessions, config, ["down", "storescp"], now, study="1.2.2")
    attempts = [row.attempts for row in rows(sessions)]
    assert deliver_due(sessions, config, now=lambda: now + timedelta(seconds=29)) == 1
    after = [row.attempts for row in rows(sessions)]
    assert after == [*attempts[:3], 1], "only the one for the living peer was tried"
    assert deliver_due(sessions, config, now=lambda: now + timedelta(seconds=31)) == 0
    assert [row.attempts for row in rows(sessions)] != after, "one try after the breaker's time"


@pytest.mark.slow
def test_when_the_breaker_closes_everything_that_waited_is_due(
    sessions: Sessions, config: Config, now: datetime, tmp_path: Path
) -> None:
    scp = StoreScp(tmp_path / "scp")
    config = add_peers(config, scp.peer)
    finish_job(sessions, config, ["storescp"], now, count=12)
    for _ in range(3):
        deliver_due(sessions, config, now=partial(_same, now))
        now += timedelta(seconds=80)
    with scp:
        assert 1 <= deliver_due(sessions, config, now=lambda: now) < 12
        assert deliver_due(sessions, config, now=lambda: now) > 0, "no back-off is waited for any more"
        assert states(sessions) == {DeliveryState.DELIVERED}


@pytest.mark.slow
def test_a_refused_object_is_tried_again_and_opens_no_breaker(
    sessions: Sessions, config: Config, now: datetime
) -> None:
    statuses = iter([0xA700, 0xA700, 0xA700, 0xA700, 0x0000])
    with Answering(lambda event: next(statuses)) as server:
        config = add_peers(config, server.peer)
        finish_job(sessions, config, ["answering"], now)
        for _ in range(4):
            assert deliver_due(sessions, config, now=partial(_same, now)) == 0
            assert rows(sessions)[0].reason == "refused with status 0xA700"
            now += timedelta(seconds=80)
        assert deliver_due(sessions, config, now=lambda: now) == 1


@pytest.mark.slow
def test_a_lost_response_is_sent_again_with_the_same_uid(sessions: Sessions, config: Config, now: datetime) -> None:
    def lose_the_first_two(event: evt.Event) -> int:
        if len(server.stored) <= 2:
            event.assoc.abort()
        return 0x0000

    with Answering(lose_the_first_two) as server:
        config = add_peers(config, server.peer)
        (uid,) = finish_job(sessions, config, ["answering"], now)
        assert deliver_due(sessions, config, now=lambda: now) == 0
        assert states(sessions) == {DeliveryState.WAITING}
        assert deliver_due(sessions, config, now=lambda: now + timedelta(seconds=10)) == 1
    assert server.stored == [uid, uid, uid]


def test_what_a_dead_sender_had_taken_is_sent_when_its_lease_lapses(
    sessions: Sessions, config: Config, now: datetime, storescp: StoreScp
) -> None:
    config = add_peers(config, storescp.peer)
    finish_job(sessions, config, ["storescp"], now)
    with sessions.begin() as session:
        assert deliveries.claim_due(session, worker="dead", lease_s=60, limit=10, now=now)
    assert deliver_due(sessions, config, now=lambda: now + timedelta(seconds=59)) == 0
    assert deliver_due(sessions, config, now=lambda: now + timedelta(seconds=61)) == 1


def test_a_node_that_starts_again_sends_at_once_what_it_was_sending(
    sessions: Sessions, config: Config, now: datetime, storescp: StoreScp
) -> None:
    config = add_peers(config, storescp.peer)
    finish_job(sessions, config, ["storescp"], now)
    with sessions.begin() as session:
        predecessor = jobs.worker_name(1)
        assert deliveries.claim_due(session, worker=predecessor, lease_s=3600, limit=10, now=now)
    assert delivery.reclaim_interrupted(sessions, now=now) == 1
    assert deliver_due(sessions, config, now=lambda: now) == 1


def test_an_object_is_given_up_at_the_configured_age_and_not_before(
    sessions: Sessions, config: Config, now: datetime
) -> None:
    config = add_peers(config, make_unreachable_peer())
    finish_job(sessions, config, ["down"], now)
    deliver_due(sessions, config, now=lambda: now + timedelta(hours=71, minutes=59))
    assert states(sessions) == {DeliveryState.WAITING}
    deliver_due(sessions, config, now=lambda: now + timedelta(hours=72, minutes=1))
    assert states(sessions) == {DeliveryState.GIVEN_UP}
    assert "cannot be reached" in rows(sessions)[0].reason


def test_the_back_off_doubles_up_to_its_maximum_with_jitter() -> None:
    limits = DeliveryConfig(backoff_s=10, backoff_max_s=80)
    generator = random.Random(0)
    for attempts, longest in [(1, 10), (2, 20), (3, 40), (4, 80), (5, 80), (5000, 80)]:
        waits = [draw_backoff(attempts, limits, generator).total_seconds() for _ in range(200)]
        assert longest / 2 <= min(waits) < max(waits) <= longest
