"""Instance Availability Notification: a peer learns once where the results of a job are, and never of hidden copies."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from pydicom.dataset import Dataset
from pynetdicom import AE, evt
from pynetdicom.sop_class import InstanceAvailabilityNotification
from sqlalchemy import select
from sqlalchemy.orm import Session, sessionmaker

from db.models import Notification
from db.notifications import DeliveredObject
from db.states import NotificationState
from dicomnode.config import Config, Peer
from dicomnode.config.node import NodeConfig
from dicomnode.config.routes import Route
from dicomnode.delivery.delivery import deliver_due
from dicomnode.notifications import availability
from tests.peers import Committing, free_port
from tests.rows import finish_job

Sessions = sessionmaker[Session]


@dataclass
class Informed:
    """A peer that takes notifications and answers them with the ``statuses``, then 0000."""

    statuses: list[int] = field(default_factory=list)
    received: list[tuple[str, Dataset]] = field(default_factory=list)

    def handle(self, event: evt.Event) -> tuple[int, Dataset]:
        self.received.append((str(event.request.AffectedSOPInstanceUID), event.attribute_list))
        return (self.statuses.pop(0) if self.statuses else 0x0000), event.attribute_list

    @contextmanager
    def listening(self) -> Iterator[Peer]:
        ae = AE("RIS")
        ae.add_supported_context(InstanceAvailabilityNotification)
        server = ae.start_server(("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_N_CREATE, self.handle)])
        port = server.socket.getsockname()[1]
        yield Peer(name="ris", ae_title="RIS", port=port, availability_notification=True)
        server.shutdown()


def make_config(folder: Path, *peers: Peer) -> Config:
    node = NodeConfig(data_dir=folder / "data")
    return Config(node=node, peers=peers, path=folder / "node.toml").with_absolute_paths(folder)


def finish_and_deliver(sessions: Sessions, config: Config, now: datetime, archive: Committing, count: int = 2) -> None:
    notify = {"availability: ris": ["delivered"]}
    finish_job(sessions, config, [archive.peer.name], now, count=count, notify=notify)
    assert deliver_due(sessions, config, now=lambda: now) == count


def announce(sessions: Sessions, config: Config, now: datetime) -> int:
    return availability.announce_due(sessions, config, now=lambda: now)


def read_row(sessions: Sessions) -> Notification:
    with sessions() as session:
        return session.scalars(select(Notification)).one()


def test_a_peer_learns_once_where_the_results_are(sessions: Sessions, tmp_path: Path, now: datetime) -> None:
    ris = Informed()
    with ris.listening() as peer, Committing() as archive:
        config = make_config(tmp_path, archive.peer, peer)
        finish_and_deliver(sessions, config, now, archive)
        assert announce(sessions, config, now) == 1
        assert announce(sessions, config, now) == 0
    ((_, ds),) = ris.received
    assert ds.StudyInstanceUID == "1.2.1"
    assert list(ds.ReferencedPerformedProcedureStepSequence) == []
    items = [item for series in ds.ReferencedSeriesSequence for item in series.ReferencedSOPSequence]
    assert {item.ReferencedSOPInstanceUID for item in items} == set(archive.stored)
    assert {(item.InstanceAvailability, item.RetrieveAETitle) for item in items} == {("ONLINE", "ARCHIVE")}
    assert read_row(sessions).state is NotificationState.SENT


@pytest.mark.parametrize("first", [0x0213, None], ids=["a refusal", "no peer"])
def test_it_is_repeated_as_the_same_instance(
    sessions: Sessions, tmp_path: Path, now: datetime, first: int | None
) -> None:
    ris = Informed([] if first is None else [first, 0x0111])
    with ris.listening() as peer, Committing() as archive:
        config = make_config(tmp_path, archive.peer, peer)
        finish_and_deliver(sessions, config, now, archive, count=1)
        gone = peer.model_copy(update={"port": free_port()})
        before = config if first is not None else make_config(tmp_path, archive.peer, gone)
        assert announce(sessions, before, now) == 0
        assert ("0x0213" if first else "cannot be reached") in read_row(sessions).reason
        assert announce(sessions, config, now + timedelta(hours=1)) == 1
    assert len({uid for uid, _ in ris.received}) == 1
    assert read_row(sessions).state is NotificationState.SENT


def test_nothing_is_said_where_no_peer_holds_the_results_under_their_own_uids(
    sessions: Sessions, tmp_path: Path, now: datetime
) -> None:
    ris = Informed()
    with ris.listening() as peer, Committing() as archive:
        finish_and_deliver(sessions, make_config(tmp_path, archive.peer, peer), now, archive)
        research = archive.peer.model_copy(update={"deidentify": "research"})
        assert announce(sessions, make_config(tmp_path, peer, research), now) == 1
    assert ris.received == []
    assert read_row(sessions).reason.startswith("not notified")


def test_nobody_learns_of_what_only_a_receiver_of_de_identified_copies_has() -> None:
    objects = [
        DeliveredObject("1.2.3", "1.2.3.1", "1.2", ("archive", "research")),
        DeliveredObject("1.2.3", "1.2.3.2", "1.2", ("research",)),
    ]
    ds = availability.describe_availability("1.2", objects, {"archive": "ARCHIVE"})
    (series,) = ds.ReferencedSeriesSequence
    assert [(item.ReferencedSOPInstanceUID, item.RetrieveAETitle) for item in series.ReferencedSOPSequence] == [
        ("1.2.3.1", "ARCHIVE")
    ]


@pytest.mark.parametrize("is_on", [True, False])
def test_only_peers_that_are_to_learn_are_recipients_of_a_route(tmp_path: Path, is_on: bool) -> None:
    peer = Peer(name="ris", ae_title="RIS", port=104, availability_notification=is_on)
    values: dict[str, Any] = {"name": "flair", "pipeline": "synthetic_dir", "match": {}}
    config = make_config(tmp_path, peer).model_copy(update={"routes": (Route.model_validate(values),)})
    expected = {"availability: ris": ("delivered",)} if is_on else {}
    assert config.recipients_by_route == dict.fromkeys(("flair", ""), expected)
