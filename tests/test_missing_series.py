"""Series that a study lacks and the archive has: asked for, fetched over the wire, and routed once."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from pydicom import dcmread
from sqlalchemy import select
from sqlalchemy.orm import Session, sessionmaker

from db import engine as engines
from db import searches, studies
from db.models import Event, Instance, Job, PriorSearch, Study
from db.states import SearchPurpose, SearchState, StudyState
from dicomnode import completion, fetching, routing, uids
from dicomnode.config import DeliveryConfig, Peer, Route
from tests import receivers
from tests.peers import Orthanc, QueryScp, write_instance
from tests.receivers import Receiver
from tests.sending import encoded, store_all

start = receivers.start

STUDY = "1.2.9"
FLAIR = {"Modality": "MR", "SeriesDescription": "~(?i)flair"}
T1W = {"Modality": "MR", "SeriesDescription": "~(?i)mprage"}
SHORT = T1W | {"EchoTime": "< 5"}

Archive = Orthanc | QueryScp


def now() -> datetime:
    return datetime.now(UTC)


def a_route(name: str = "dir", **values: Any) -> Route:
    stated = {"name": name, "pipeline": "p", "match": FLAIR, "with": {"t1w": T1W}, "with_from": "archive"}
    return Route.model_validate(stated | values)


def a_series(folder: Path, description: str, number: int, study_uid: str = STUDY, **attributes: Any) -> list[Path]:
    """Three images."""
    facts = {"SeriesDescription": description, "SeriesNumber": number, "PatientID": "4711-geheim"} | attributes
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


Ask = Callable[..., Receiver]


@pytest.fixture
def asking(start: receivers.Start) -> Ask:
    """A receiver whose routes ask that archive, and that the archive knows."""

    def begin(archive: Archive, *routes: Route) -> Receiver:
        delivery = DeliveryConfig(backoff_s=10, backoff_max_s=10)
        peer = archive.peer.model_copy(update={"name": "archive"})
        node = start(routes=routes or (a_route(),), peers=(peer,), delivery=delivery)
        archive.know(Peer(name="node", ae_title="DICOMNODE", port=node.port))
        return node

    return begin


def sessions(node: Receiver) -> sessionmaker[Session]:
    return engines.sessions(node.engine)


def send(node: Receiver, *paths: Path, complete: bool = True) -> None:
    folder = paths[0].parent / "sent"
    store_all(node.port, [encoded(path) for path in paths], folder)
    if complete:
        with sessions(node).begin() as session:
            completion.close(session, STUDY, now=now())


def route(node: Receiver, at: datetime | None = None) -> int:
    return routing.route_complete(sessions(node), node.config, now=at or now())


def fetch(node: Receiver, at: datetime | None = None) -> int:
    clock = (lambda: at) if at else now
    return fetching.fetch_wanted(sessions(node), node.config, now=clock, generator=random.Random(1))


def inputs(node: Receiver) -> dict[str, list[int]]:
    """Of the only job: how many instances by name; and that the study was routed once at that revision."""
    with sessions(node)() as session:
        (job,) = session.query(Job).all()
        names = [each.name for each in job.inputs]
        return {name: names.count(name) for name in names} | {"revision": job.revision}


def why(node: Receiver) -> str:
    with sessions(node)() as session:
        study = studies.by_uid(session, STUDY)
        assert study is not None
        told = routing.explain_study(session, study, node.config.routes)[0].why
    assert "geheim" not in told
    return told


def search(node: Receiver) -> PriorSearch:
    (row,) = node.rows(PriorSearch)
    assert isinstance(row, PriorSearch)
    return row


def state(node: Receiver) -> StudyState:
    (study,) = node.rows(Study)
    return study.state


def test_what_is_missing_comes_from_the_archive_and_the_study_is_routed_once(
    tmp_path: Path, archive: Archive, asking: Ask
) -> None:
    node = asking(archive)
    flair = a_series(tmp_path / "flair", "AX FLAIR", 1)
    for path in (*flair, *a_series(tmp_path / "t1w", "MPRAGE", 2), *a_series(tmp_path / "t2", "T2", 3)):
        archive.upload(path)
    send(node, *flair)
    assert route(node) == 0
    assert fetch(node) == 1
    assert state(node) is StudyState.COMPLETE
    assert route(node) == 1
    assert inputs(node) == {"match": 3, "t1w": 3, "revision": 2}
    assert len(node.rows(Instance)) == 6
    assert "missing series from peer archive: 3 instances in 1 series from archive by C-MOVE" in why(node)
    assert (route(node), fetch(node), search(node).state) == (0, 0, SearchState.ARRIVED)


def test_an_archive_that_has_none_holds_nothing_up(tmp_path: Path, archive: Archive, asking: Ask) -> None:
    node = asking(archive)
    flair = a_series(tmp_path / "flair", "AX FLAIR", 1)
    elsewhere = a_series(tmp_path / "other", "MPRAGE", 2, study_uid="1.2.8")
    for path in (*flair, *elsewhere, *a_series(tmp_path / "t2", "T2", 3)):
        archive.upload(path)
    send(node, *flair)
    assert (route(node), fetch(node), route(node)) == (0, 0, 1)
    assert inputs(node) == {"match": 3, "revision": 1}
    assert "no series for t1w; missing series from peer archive: none there for t1w" in why(node)


def test_what_the_archive_does_not_tell_is_judged_when_it_is_here_and_not_sought_again(
    tmp_path: Path, archive: Archive, asking: Ask
) -> None:
    node = asking(archive, a_route(**{"with": {"t1w": SHORT}}))
    flair = a_series(tmp_path / "flair", "AX FLAIR", 1)
    for path in (*flair, *a_series(tmp_path / "long", "MPRAGE", 2, EchoTime=90)):
        archive.upload(path)
    send(node, *flair)
    assert route(node) == 0
    fetched = fetch(node)
    assert fetched == isinstance(archive, QueryScp)  # Orthanc tells the echo time of its images
    assert (route(node), fetch(node)) == (1, 0)
    assert inputs(node) == {"match": 3, "revision": 1 + fetched}
    assert "no series for t1w" in why(node)
    search(node)


def test_an_archive_that_is_down_is_asked_again(tmp_path: Path, dcmqrscp: QueryScp, asking: Ask) -> None:
    node = asking(dcmqrscp)
    for path in a_series(tmp_path / "t1w", "MPRAGE", 2):
        dcmqrscp.upload(path)
    send(node, *a_series(tmp_path / "flair", "AX FLAIR", 1))
    route(node)
    dcmqrscp.kill()
    assert (fetch(node), fetch(node), search(node).attempts) == (0, 0, 1)
    later = now() + timedelta(seconds=10)
    assert route(node, later) == 0
    assert "not asked yet; peer archive" in why(node)
    dcmqrscp.start()
    assert fetch(node, later) == 1
    assert route(node, later) == 1
    assert inputs(node)["t1w"] == 3


def test_an_archive_that_stays_down_is_waited_for_no_longer_than_said(
    tmp_path: Path, dcmqrscp: QueryScp, asking: Ask
) -> None:
    node = asking(dcmqrscp, a_route(with_wait_s=25))
    dcmqrscp.kill()
    send(node, *a_series(tmp_path / "flair", "AX FLAIR", 1))
    route(node)
    begun = search(node).created_at
    for after_s in range(0, 25, 5):
        assert route(node, begun + timedelta(seconds=after_s)) == 0 or search(node).state is SearchState.ENDED
        fetch(node, begun + timedelta(seconds=after_s))
    assert 2 <= search(node).attempts <= 4
    assert search(node).state is SearchState.ENDED
    assert inputs(node) == {"match": 3, "revision": 1} if node.rows(Job) else route(node, now()) == 1
    assert "cannot be reached" in why(node)


def test_a_series_that_arrives_by_itself_is_not_fetched(tmp_path: Path, dcmqrscp: QueryScp, asking: Ask) -> None:
    node = asking(dcmqrscp)
    t1w = a_series(tmp_path / "t1w", "MPRAGE", 2)
    for path in t1w:
        dcmqrscp.upload(path)
    send(node, *a_series(tmp_path / "flair", "AX FLAIR", 1))
    assert route(node) == 0
    send(node, *t1w)
    assert (fetch(node), route(node)) == (0, 1)
    assert inputs(node) == {"match": 3, "t1w": 3, "revision": 2}
    assert search(node).found_at is None
    assert "waits no longer" in why(node)


@pytest.mark.parametrize(("by_itself", "revision"), [(0, 2), (1, 3), (3, 2)])
def test_a_search_that_a_stop_interrupted_after_the_find_goes_on_with_the_move(
    tmp_path: Path, dcmqrscp: QueryScp, asking: Ask, by_itself: int, revision: int
) -> None:
    node = asking(dcmqrscp)
    t1w = a_series(tmp_path / "t1w", "MPRAGE", 2)
    for path in t1w:
        dcmqrscp.upload(path)
    send(node, *a_series(tmp_path / "flair", "AX FLAIR", 1))
    route(node)
    with sessions(node).begin() as session:
        row = session.query(PriorSearch).one()
        searches.fetching(session, row, series_uids=[str(dcmread(t1w[0]).SeriesInstanceUID)], now=now())
    if by_itself:
        send(node, *t1w[:by_itself])  # and quiet since: the clock has closed the revision
    assert route(node) == 0
    assert (fetch(node), route(node)) == (1, 1)
    assert inputs(node) == {"match": 3, "t1w": 3, "revision": revision}


def test_two_routes_that_want_the_same_series_get_it_once(tmp_path: Path, dcmqrscp: QueryScp, asking: Ask) -> None:
    node = asking(dcmqrscp, a_route(), a_route("other", **{"with": {"anatomy": T1W}}))
    for path in a_series(tmp_path / "t1w", "MPRAGE", 2):
        dcmqrscp.upload(path)
    send(node, *a_series(tmp_path / "flair", "AX FLAIR", 1))
    assert (route(node), fetch(node), route(node)) == (0, 1, 2)
    with sessions(node)() as session:
        taken = {job.route: sorted({each.name for each in job.inputs}) for job in session.query(Job)}
        assert taken == {"dir": ["match", "t1w"], "other": ["anatomy", "match"]}
        reasons = {row.reason for row in session.query(PriorSearch)}
        routed = session.scalars(select(Event).where(Event.subject == "studies", Event.event == "moved")).all()
    assert reasons == {"3 instances in 1 series from archive by C-MOVE", "all are here by now"}
    assert [event.detail["to"] for event in routed].count("routed") == 1


def test_each_route_gets_what_it_lacks_before_the_study_is_routed(
    tmp_path: Path, dcmqrscp: QueryScp, asking: Ask
) -> None:
    node = asking(dcmqrscp, a_route(), a_route("other", **{"with": {"t2": {"SeriesDescription": "T2"}}}))
    for path in (*a_series(tmp_path / "t1w", "MPRAGE", 2), *a_series(tmp_path / "t2", "T2", 3)):
        dcmqrscp.upload(path)
    send(node, *a_series(tmp_path / "flair", "AX FLAIR", 1))
    assert (route(node), fetch(node), route(node)) == (0, 2, 2)
    with sessions(node)() as session:
        assert {job.revision for job in session.query(Job)} == {2}


def test_a_prior_and_a_missing_series_are_fetched_for_one_job(tmp_path: Path, dcmqrscp: QueryScp, asking: Ask) -> None:
    node = asking(dcmqrscp, a_route(prior={"prior_flair": FLAIR}, prior_from="archive"))
    before = a_series(tmp_path / "before", "AX FLAIR", 1, study_uid="1.2.1", StudyDate="20240101")
    for path in (*before, *a_series(tmp_path / "t1w", "MPRAGE", 2)):
        dcmqrscp.upload(path)
    send(node, *a_series(tmp_path / "flair", "AX FLAIR", 1))
    assert (route(node), fetch(node), route(node), fetch(node)) == (0, 2, 1, 0)
    assert inputs(node) == {"match": 3, "t1w": 3, "prior_flair": 3, "revision": 2}
    assert {row.purpose for row in node.rows(PriorSearch)} == {SearchPurpose.PRIOR, SearchPurpose.SERIES}


def test_half_a_series_is_no_input_until_the_rest_is_sent(tmp_path: Path, dcmqrscp: QueryScp, asking: Ask) -> None:
    node = asking(dcmqrscp, a_route(with_wait_s=60))
    t1w = a_series(tmp_path / "t1w", "MPRAGE", 2)
    send(node, *a_series(tmp_path / "flair", "AX FLAIR", 1))
    route(node)
    with sessions(node).begin() as session:
        row = session.query(PriorSearch).one()
        searches.fetching(session, row, series_uids=[str(dcmread(t1w[0]).SeriesInstanceUID)], now=now())
    send(node, *t1w[:2])
    assert fetch(node) == 0  # the archive has lost it
    assert search(node).attempts == 1
    late = now() + timedelta(seconds=60)
    assert (fetch(node, late), route(node, late)) == (0, 1)
    assert inputs(node) == {"match": 3, "revision": 2}
    assert "1 series that did not come whole are not used" in why(node)
    with sessions(node).begin() as session:  # the search ended then, in the tests' time
        session.query(PriorSearch).one().ended_at = now()
    send(node, t1w[2])
    route(node)
    with sessions(node)() as session:
        newest = session.query(Job).order_by(Job.id.desc()).first()
        assert newest is not None
        assert sorted(each.name for each in newest.inputs) == ["match"] * 3 + ["t1w"] * 3


def test_an_archive_that_may_not_move_here_is_asked_by_c_get(tmp_path: Path, asking: Ask) -> None:
    with QueryScp(tmp_path / "archive") as archive:
        node = asking(archive)
        archive.know(Peer(name="other", ae_title="OTHER", port=node.port))
        for path in a_series(tmp_path / "t1w", "MPRAGE", 2):
            archive.upload(path)
        send(node, *a_series(tmp_path / "flair", "AX FLAIR", 1))
        assert (route(node), fetch(node), route(node)) == (0, 1, 1)
    assert inputs(node)["t1w"] == 3
    assert "by C-GET" in why(node)


def test_an_archive_that_gives_nothing_by_either_way_is_explained(tmp_path: Path, asking: Ask) -> None:
    with QueryScp(tmp_path / "archive", "--disable-get") as archive:
        node = asking(archive, a_route(with_wait_s=5))
        archive.know(Peer(name="other", ae_title="OTHER", port=node.port))
        for path in a_series(tmp_path / "t1w", "MPRAGE", 2):
            archive.upload(path)
        send(node, *a_series(tmp_path / "flair", "AX FLAIR", 1))
        assert (route(node), fetch(node), route(node)) == (0, 0, 1)
    assert inputs(node) == {"match": 3, "revision": 1}
    assert "C-MOVE with status 0xA801" in why(node)
