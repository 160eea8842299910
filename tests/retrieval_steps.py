"""A node whose routes fetch missing series of a study from an archive, and the steps of the tests."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
from sqlalchemy.orm import Session, sessionmaker

from db import engine as engines
from db import jobs, studies
from db.models import Job, Retrieval, Study
from db.states import StudyState
from dicomnode import uids
from dicomnode.config import Peer, Route
from dicomnode.config.delivery import DeliveryConfig
from dicomnode.routing import completion, prefetch, routing
from tests import receivers
from tests.peers import Orthanc, QueryScp, write_instance
from tests.receivers import Receiver
from tests.sending import read_encoded, store_all

__all__ = [
"FLAIR", "T1W", "Archive", "StartReceiver", "archive", "count_inputs", "dcmqrscp", "explain", "load_retrieval",
    "load_study_state", "make_earlier_job", "make_route", "make_sessions", "now", "route_studies", "run_retrievals",
    "send", "start", "start_receiver", "write_series",
]  # fmt: skip

start = receivers.start

STUDY = "1.2.9"
FLAIR = {"Modality": "MR", "SeriesDescription": "~(?i)flair"}
T1W = {"Modality": "MR", "SeriesDescription": "~(?i)mprage"}

Archive = Orthanc | QueryScp


def now() -> datetime:
    return datetime.now(UTC)


def make_route(name: str = "dir", with_: Any = MappingProxyType({"t1w": T1W}), **values: Any) -> Route:
    defaults = {"name": name, "pipeline": "p", "match": FLAIR, "with": dict(with_), "with_from": "archive"}
    return Route.model_validate(defaults | values)


def write_series(folder: Path, description: str, number: int, study_uid: str = STUDY, **attributes: Any) -> list[Path]:
    """Write a series of three images."""
    facts: dict[str, Any] = {
        "SeriesDescription": description,
        "SeriesNumber": number,
        "PatientID": "4711-geheim",
    } | attributes
    series_uid = uids.derive("series", study_uid, str(number))
    for n in range(3):
        write_instance(
            folder / f"{number}-{n}.dcm", study_uid=study_uid, series_uid=series_uid, InstanceNumber=n, **facts
        )
    return [folder / f"{number}-{n}.dcm" for n in range(3)]


@pytest.fixture(params=["orthanc", "dcmtk"])
def archive(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Archive]:
    kind = Orthanc if request.param == "orthanc" else QueryScp
    with kind(tmp_path / "archive") as running:
        yield running


@pytest.fixture
def dcmqrscp(tmp_path: Path) -> Iterator[QueryScp]:
    with QueryScp(tmp_path / "archive") as running:
        yield running


StartReceiver = Callable[..., Receiver]


@pytest.fixture
def start_receiver(start: receivers.Start) -> StartReceiver:
    """Start a receiver whose routes query an archive that has the receiver in its table of peers."""

    def begin(archive: Archive, *routes: Route) -> Receiver:
        delivery = DeliveryConfig(backoff_s=10, backoff_max_s=10)
        peer = archive.peer.model_copy(update={"name": "archive"})
        node = start(routes=routes or (make_route(),), peers=(peer,), delivery=delivery)
        archive.register_peer(Peer(name="node", ae_title="DICOMNODE", port=node.port))
        return node

    return begin


def make_earlier_job(session: Session) -> Job:
    """Return a job of the study's first revision."""
    study = studies.find_by_uid(session, STUDY)
    assert study is not None
    job = jobs.enqueue(
        session,
        study_id=study.id,
        revision=1,
        route="r",
        pipeline="q",
        options={},
        inputs={},
        destinations=(),
        now=now(),
    )
    assert job is not None
    return job


def make_sessions(node: Receiver) -> sessionmaker[Session]:
    return engines.sessions(node.engine)


def send(node: Receiver, *paths: Path, complete: bool = True) -> None:
    folder = paths[0].parent / "sent"
    store_all(node.port, [read_encoded(path) for path in paths], folder)
    if complete:
        with make_sessions(node).begin() as session:
            completion.close_study(session, STUDY, now=now())


def route_studies(node: Receiver, at: datetime | None = None) -> int:
    return routing.route_complete_studies(make_sessions(node), node.config, now=lambda: at or now())


def run_retrievals(node: Receiver, at: datetime | None = None) -> int:
    clock = (lambda: at) if at else now
    return prefetch.run_pending_retrievals(make_sessions(node), node.config, now=clock, generator=random.Random(1))


def count_inputs(node: Receiver) -> dict[str, int]:
    """Return the number of instances of each input of the only job, and its revision."""
    with make_sessions(node)() as session:
        (job,) = session.query(Job).all()
        names = [each.name for each in job.inputs]
        return {name: names.count(name) for name in names} | {"revision": job.revision}


def explain(node: Receiver) -> str:
    with make_sessions(node)() as session:
        study = studies.find_by_uid(session, STUDY)
        assert study is not None
        reason = routing.explain_study(session, study, node.config.routes)[0].why
    assert "geheim" not in reason
    return reason


def load_retrieval(node: Receiver) -> Retrieval:
    (row,) = node.rows(Retrieval)
    assert isinstance(row, Retrieval)
    return row


def load_study_state(node: Receiver) -> StudyState:
    (study,) = node.rows(Study)
    return StudyState(study.state)
