"""Inputs of workitems that a peer has: retrieved from DCMTK's archive, and not used before all of them are here."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from db import studies, workitems
from db.models import Instance, Job, Workitem
from dicomnode.config import Peer
from dicomnode.config.delivery import DeliveryConfig
from dicomnode.config.worklist import WorklistConfig
from dicomnode.worklist import retrieving, transactions
from dicomnode.worklist.performing import Performer
from tests import receivers, retrieval_steps
from tests.peers import QueryScp
from tests.receivers import Receiver
from tests.retrieval_steps import FLAIR, STUDY, make_sessions, send, write_series
from tests.work_orders import code
from tests.workitems import make_workitem

start = receivers.start
dcmqrscp = retrieval_steps.dcmqrscp

UID = "1.2.826.0.1.99.1"
ROUTE = {"name": "flair-to-dir", "pipeline": "synthetic_dir", "match": FLAIR}


@pytest.fixture
def node(start: receivers.Start, dcmqrscp: QueryScp) -> Receiver:
    """Start a receiver that performs workitems, and register it at the archive."""
    peer = dcmqrscp.peer.model_copy(update={"name": "archive"})
    delivery, worklist = DeliveryConfig(backoff_s=60, backoff_max_s=60), WorklistConfig(enabled=True)
    running = start(routes=[ROUTE], peers=(peer,), delivery=delivery, worklist=worklist)
    dcmqrscp.register_peer(Peer(name="node", ae_title="DICOMNODE", port=running.port))
    return running


def create(node: Receiver, title: str = "QRSCP", **names: Any) -> Performer:
    """Create a workitem whose input is at the AE title; return the node's performer."""
    item = {"StudyInstanceUID": STUDY, "DICOMRetrievalSequence": [{"RetrieveAETitle": title}]} | names
    workitem = make_workitem(
        PatientID="4711-geheim", ScheduledWorkitemCodeSequence=[code("flair-to-dir")], InputInformationSequence=[item],
        ScheduledProcedureStepStartDateTime="20200101",
    )  # fmt: skip
    with make_sessions(node).begin() as session:
        transactions.create(session, UID, workitem, most=9, who="test", now=now())
    return Performer(make_sessions(node), node.config)


def now() -> datetime:
    return datetime.now(UTC)


def retrieve(node: Receiver, at: datetime | None = None) -> int:
    return retrieving.retrieve_due(
        make_sessions(node), node.config, now=lambda: at or now(), generator=random.Random(1)
    )


def close(node: Receiver) -> None:
    with make_sessions(node).begin() as session:
        study = studies.find_by_uid(session, STUDY)
        assert study is not None
        studies.close(session, study, reason="quiet", now=now())


def state(node: Receiver) -> str:
    (row,) = node.rows(Workitem)
    return str(row.state)


def test_the_named_series_is_retrieved_and_not_used_before_it_is_here_whole(
    tmp_path: Path, node: Receiver, dcmqrscp: QueryScp
) -> None:
    flair = write_series(tmp_path / "in", "AX FLAIR", 1)
    for path in (*flair, *write_series(tmp_path / "in", "SCOUT", 2)):
        dcmqrscp.upload(path)
    series_uid = retrieval_steps.series_uid(1)
    performer = create(node, SeriesInstanceUID=series_uid)
    assert performer.step(now=now) == 1
    assert performer.step(now=now) == 0, "it is being retrieved"
    send(node, flair[0])
    assert performer.step(now=now) == 0, "a part of it is here"
    assert retrieve(node) == 1
    assert {row.series.series_uid for row in _load_instances(node)} == {series_uid}
    assert len(node.rows(Instance)) == 3
    assert performer.step(now=now) == 0, "it is still arriving"
    close(node)
    assert performer.step(now=now) == 1
    assert state(node) == "IN PROGRESS"
    with make_sessions(node)() as session:
        assert len(session.query(Job).one().inputs) == 3
    assert retrieve(node) == 0


def _load_instances(node: Receiver) -> list[Instance]:
    with make_sessions(node)() as session:
        found = session.query(Instance).all()
        assert all(row.series for row in found)
        return found


def test_a_whole_study_is_retrieved(tmp_path: Path, node: Receiver, dcmqrscp: QueryScp) -> None:
    for path in (*write_series(tmp_path / "in", "AX FLAIR", 1), *write_series(tmp_path / "in", "SCOUT", 2)):
        dcmqrscp.upload(path)
    performer = create(node)
    assert (performer.step(now=now), retrieve(node), len(node.rows(Instance))) == (1, 1, 6)


def test_a_peer_without_the_study_is_asked_again_until_the_workitem_has_waited_long_enough(node: Receiver) -> None:
    performer = create(node)
    assert performer.step(now=now) == 1
    assert (retrieve(node), retrieve(node)) == (0, 0)
    (row,) = node.rows(Workitem)
    assert (row.retrieve_attempts, row.retrieve_reason) == (1, "peer archive has no such study")
    later = now() + timedelta(minutes=2)
    assert retrieve(node, later) == 0
    assert performer.step(now=lambda: later) == 0
    assert performer.step(now=lambda: now() + timedelta(hours=25)) == 1
    with make_sessions(node)() as session:
        found = workitems.find(session, UID)
        assert found is not None
        assert (str(found.state), found.retrieve_attempts) == ("CANCELED", 2)
        (progress,) = found.attributes["00741002"]["Value"]
        assert progress["00741238"]["Value"] == [
            "waited 24 h: the study is being retrieved from peer archive: peer archive has no such study"
        ]
    assert retrieve(node, now() + timedelta(days=2)) == 0


def test_inputs_at_a_peer_that_is_not_configured_are_waited_for(node: Receiver) -> None:
    assert create(node, "ELSEWHERE").step(now=now) == 0
    assert node.rows(Workitem)[0].retrieve_from == ""
