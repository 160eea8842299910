"""Prior examinations that only the archive holds: found and fetched over the network, and used by the job."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from pydicom import dcmread
from pydicom.uid import generate_uid
from sqlalchemy.orm import Session, sessionmaker

from db import engine as engines
from db import retrievals, studies
from db.models import Instance, Job, Retrieval, Study
from db.states import RetrievalState, StudyState
from dicomnode.config import Config, Peer, Route
from dicomnode.routing import completion, prefetch, routing
from tests import receivers
from tests.peers import Answering, Orthanc, write_instance
from tests.receivers import Receiver
from tests.sending import read_encoded, run_dcmtk, store_all

start = receivers.start

FLAIR = {"Modality": "MR", "ImageType": "ORIGINAL", "SeriesDescription": "~(?i)flair"}


def now() -> datetime:
    return datetime.now(UTC)


def write_study(folder: Path, study_uid: str, date: str, **attributes: Any) -> list[Path]:
    """Write a FLAIR series of three images, and a scout that no route selects."""
    attributes_of_study = {
        "StudyDate": date,
        "PatientID": "4711-geheim",
        "ImageType": ["ORIGINAL", "PRIMARY"],
    } | attributes
    descriptions = {"FLAIR": attributes_of_study.pop("SeriesDescription", "AX FLAIR"), "scout": "SCOUT"}
    paths = []
    for series, description in descriptions.items():
        series_uid = generate_uid()
        for n in range(3):
            paths.append(folder / f"{series}-{n}.dcm")
            facts = attributes_of_study | {"SeriesDescription": description, "InstanceNumber": n}
            write_instance(paths[-1], study_uid=study_uid, series_uid=series_uid, **facts)
    return paths


@pytest.fixture
def node(start: receivers.Start, orthanc: Orthanc) -> Receiver:
    """Start a receiver whose route searches Orthanc for priors, and register it there."""
    route = Route.model_validate(
        {"name": "dir", "pipeline": "p", "match": FLAIR, "prior": {"prior_flair": FLAIR}, "prior_from": "orthanc"}
    )
    running = start(routes=(route,), peers=(orthanc.peer,))
    orthanc.register_peer(Peer(name="node", ae_title="DICOMNODE", port=running.port))
    return running


def send_and_close(node: Receiver, paths: list[Path]) -> None:
    """Send by DCMTK's storescu and close the study."""
    sent = run_dcmtk("storescu", node.config, node.port, "+sd", str(paths[0].parent))
    assert sent.returncode == 0, sent.stderr
    with sessions(node).begin() as session:
        facts = session.query(Study).order_by(Study.id.desc()).first()
        assert facts is not None
        completion.close_study(session, facts.study_uid, now=now())


def sessions(node: Receiver) -> sessionmaker[Session]:
    return engines.sessions(node.engine)


def sweep(node: Receiver, config: Config | None = None) -> int:
    """Route, run the pending retrievals, and route again; return the number of jobs."""
    first_jobs = routing.route_complete_studies(sessions(node), config or node.config, now=now)
    prefetch.run_pending_retrievals(sessions(node), config or node.config, now=now)
    return first_jobs + routing.route_complete_studies(sessions(node), config or node.config, now=now)


def find_prior_studies(node: Receiver) -> set[str]:
    """Return the study UIDs of the only job's prior."""
    with sessions(node)() as session:
        (job,) = session.query(Job).all()
        return {each.instance.series.study.study_uid for each in job.inputs if each.name == "prior_flair"}


def find_retrieval(node: Receiver) -> Retrieval:
    (row,) = node.rows(Retrieval)
    assert isinstance(row, Retrieval)
    return row


def test_the_newest_that_matches_is_fetched_and_its_other_series_are_not(
    tmp_path: Path, orthanc: Orthanc, node: Receiver
) -> None:
    older = write_study(tmp_path / "older", "1.2.1", "20240101")
    newer = write_study(tmp_path / "newer", "1.2.2", "20250101")
    other = write_study(tmp_path / "other", "1.2.3", "20250601", PatientID="4712")
    without = write_study(tmp_path / "without", "1.2.4", "20250701", SeriesDescription="T2")
    later = write_study(tmp_path / "later", "1.2.5", "20270101")
    for path in (*older, *newer, *other, *without, *later):
        orthanc.upload(path)
    send_and_close(node, write_study(tmp_path / "now", "1.2.9", "20260101"))
    assert sweep(node) == 1
    assert find_prior_studies(node) == {"1.2.2"}
    assert find_retrieval(node).state is RetrievalState.ARRIVED
    assert len(node.rows(Instance)) == 6 + 3
    assert {study.study_uid: study.state for study in node.rows(Study)} == {
        "1.2.9": StudyState.ROUTED,
        "1.2.2": StudyState.ROUTED,
    }


def test_a_prior_that_is_here_is_taken_without_asking(tmp_path: Path, orthanc: Orthanc, node: Receiver) -> None:
    for path in write_study(tmp_path / "newer", "1.2.3", "20251201"):
        orthanc.upload(path)
    send_and_close(node, write_study(tmp_path / "then", "1.2.2", "20250101", SeriesDescription="t2 flair"))
    routing.route_complete_studies(sessions(node), Config(), now=now)
    send_and_close(node, write_study(tmp_path / "now", "1.2.9", "20260101"))
    assert sweep(node) == 1
    assert find_prior_studies(node) == {"1.2.2"}
    assert node.rows(Retrieval) == []


def test_a_search_goes_on_where_a_stop_interrupted_it(tmp_path: Path, orthanc: Orthanc, node: Receiver) -> None:
    paths = write_study(tmp_path / "then", "1.2.2", "20250101")
    for path in paths:
        orthanc.upload(path)
    send_and_close(node, write_study(tmp_path / "now", "1.2.9", "20260101"))
    routing.route_complete_studies(sessions(node), node.config, now=now)
    with sessions(node).begin() as session:  # it had been found, and one image had come
        series_uid = dcmread(paths[0]).SeriesInstanceUID
        row = session.query(Retrieval).one()
        retrievals.start_fetching(session, row, prior_study_uid="1.2.2", series_uids=[series_uid], now=now())
    store_all(node.port, [read_encoded(paths[0])], tmp_path / "half", ae_title="ORTHANC")
    assert sweep(node) == 1
    assert find_prior_studies(node) == {"1.2.2"}
    with sessions(node)() as session:
        (job,) = session.query(Job).all()
        assert sum(each.name == "prior_flair" for each in job.inputs) == 3


@pytest.mark.parametrize(("broken", "reason"), [("down", "cannot be reached"), ("empty", "none there")])
def test_whatever_the_archive_does_the_study_goes_on_with_the_reason(
    tmp_path: Path, orthanc: Orthanc, node: Receiver, broken: str, reason: str
) -> None:
    send_and_close(node, write_study(tmp_path / "now", "1.2.9", "20260101"))
    if broken == "down":
        orthanc.kill()
    assert sweep(node) == 1
    assert find_prior_studies(node) == set()
    assert reason in find_retrieval(node).reason
    with sessions(node)() as session:
        study = studies.find_by_uid(session, "1.2.9")
        assert study is not None
        why = routing.explain_study(session, study, node.config.routes)[0].why
    assert reason in why
    assert "geheim" not in why


@pytest.mark.parametrize("broken", ["unknown", "elsewhere"])
def test_an_archive_that_cannot_send_here_is_asked_by_c_get(
    tmp_path: Path, orthanc: Orthanc, node: Receiver, broken: str
) -> None:
    for path in write_study(tmp_path / "then", "1.2.2", "20250101"):
        orthanc.upload(path)
    config = node.config
    if broken == "unknown":
        config = config.model_copy(update={"node": config.node.model_copy(update={"ae_title": "NOBODY"})})
    send_and_close(node, write_study(tmp_path / "now", "1.2.9", "20260101"))
    with Answering(lambda event: 0x0000) as other:
        if broken == "elsewhere":
            orthanc.register_peer(Peer(name="node", ae_title="DICOMNODE", port=other.peer.port))
        assert sweep(node, config) == 1
    assert find_prior_studies(node) == {"1.2.2"}
    assert find_retrieval(node).reason == "3 instances in 1 series from orthanc by C-GET"
