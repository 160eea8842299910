"""Series that a study lacks and the archive has: asked for, fetched over the wire, and routed once."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest
from pydicom import dcmread
from sqlalchemy import select

from db import retrievals
from db.models import Event, Instance, Job, Output, Retrieval
from db.states import RetrievalPurpose, RetrievalState, StudyState
from dicomnode.config import Peer
from tests import asking as asks
from tests.asking import (
    FLAIR,
    T1W,
    Archive,
    Ask,
    a_route,
    a_series,
    an_earlier_job,
    fetch,
    inputs,
    now,
    route,
    search,
    send,
    sessions,
    state,
    why,
)
from tests.peers import Node, Orthanc, QueryScp, wait_for, write_config
from tests.sending import read_encoded, store_all

start, archive, asking, dcmqrscp = asks.start, asks.archive, asks.asking, asks.dcmqrscp

SHORT = T1W | {"EchoTime": "< 5"}


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
    arrived = 1 if isinstance(archive, Orthanc) else 2  # DCMTK's does not tell the description
    assert len(node.rows(Instance)) == 3 + 3 * arrived
    text = f"{3 * arrived} instances in {arrived} series from archive by C-MOVE"
    assert f"missing series from peer archive: {text}" in why(node)
    assert (route(node), fetch(node), search(node).state) == (0, 0, RetrievalState.ARRIVED)


def test_an_archive_that_has_none_holds_nothing_up(tmp_path: Path, archive: Archive, asking: Ask) -> None:
    node = asking(archive)
    flair = a_series(tmp_path / "flair", "AX FLAIR", 1)
    elsewhere = a_series(tmp_path / "other", "MPRAGE", 2, study_uid="1.2.8")
    for path in (*flair, *elsewhere, *a_series(tmp_path / "ct", "MPRAGE", 3, Modality="CT")):
        archive.upload(path)
    send(node, *flair)
    assert (route(node), fetch(node), route(node)) == (0, 0, 1)
    assert inputs(node) == {"match": 3, "revision": 1}
    assert "no series for t1w; missing series from peer archive: none there for t1w" in why(node)


def test_what_the_archive_does_not_tell_is_judged_when_it_is_here_and_not_sought_again(
    tmp_path: Path, archive: Archive, asking: Ask
) -> None:
    node = asking(archive, a_route(with_={"t1w": SHORT}))
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
    assert route(node) == 0
    assert "not asked yet; peer archive" in why(node)
    dcmqrscp.start()
    with sessions(node).begin() as session:
        session.query(Retrieval).one().not_before = now()
    assert (fetch(node), route(node)) == (1, 1)
    assert inputs(node)["t1w"] == 3


def test_an_archive_that_stays_down_is_waited_for_no_longer_than_said(
    tmp_path: Path, dcmqrscp: QueryScp, asking: Ask
) -> None:
    node = asking(dcmqrscp, a_route(with_wait_s=25))
    dcmqrscp.kill()
    send(node, *a_series(tmp_path / "flair", "AX FLAIR", 1))
    route(node)
    begun = search(node).created_at
    for after_s in range(0, 30, 5):
        route(node, begun + timedelta(seconds=after_s))
        assert (state(node) is StudyState.ROUTED) == (search(node).state is RetrievalState.ENDED)
        fetch(node, begun + timedelta(seconds=after_s))
    assert 2 <= search(node).attempts <= 4
    assert inputs(node) == {"match": 3, "revision": 1}
    assert "cannot be reached" in why(node)


def test_the_time_is_over_also_while_the_archive_is_silent(tmp_path: Path, dcmqrscp: QueryScp, asking: Ask) -> None:
    node = asking(dcmqrscp, a_route(with_wait_s=25))
    send(node, *a_series(tmp_path / "flair", "AX FLAIR", 1))
    route(node)
    begun = search(node).created_at
    assert (route(node, begun + timedelta(seconds=24)), route(node, begun + timedelta(seconds=25))) == (0, 1)
    assert (fetch(node, begun + timedelta(seconds=25)), search(node).state) == (0, RetrievalState.ENDED)


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
        row = session.query(Retrieval).one()
        retrievals.start_fetching(session, row, series_uids=[str(dcmread(t1w[0]).SeriesInstanceUID)], now=now())
    if by_itself:
        send(node, *t1w[:by_itself])  # and quiet since: the clock has closed the revision
    assert route(node) == 0
    assert (fetch(node), route(node)) == (1, 1)
    assert inputs(node) == {"match": 3, "t1w": 3, "revision": revision}


def test_two_routes_that_want_the_same_series_get_it_once(tmp_path: Path, dcmqrscp: QueryScp, asking: Ask) -> None:
    node = asking(dcmqrscp, a_route(), a_route("other", with_={"anatomy": T1W}))
    for path in a_series(tmp_path / "t1w", "MPRAGE", 2):
        dcmqrscp.upload(path)
    send(node, *a_series(tmp_path / "flair", "AX FLAIR", 1))
    assert (route(node), fetch(node), route(node)) == (0, 1, 2)
    with sessions(node)() as session:
        inputs_of_job = {job.route: sorted({each.name for each in job.inputs}) for job in session.query(Job)}
        assert inputs_of_job == {"dir": ["match", "t1w"], "other": ["anatomy", "match"]}
        reasons = {row.reason for row in session.query(Retrieval)}
        routed = session.scalars(select(Event).where(Event.subject == "studies", Event.event == "moved")).all()
    assert reasons == {"3 instances in 1 series from archive by C-MOVE", "all are here by now"}
    assert [event.detail["to"] for event in routed].count("routed") == 1


def test_each_route_gets_what_it_lacks_before_the_study_is_routed(
    tmp_path: Path, dcmqrscp: QueryScp, asking: Ask
) -> None:
    node = asking(dcmqrscp, a_route(), a_route("other", with_={"pet": {"Modality": "PT"}}))
    for path in (*a_series(tmp_path / "t1w", "MPRAGE", 2), *a_series(tmp_path / "pet", "FDG", 3, Modality="PT")):
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
    assert {row.purpose for row in node.rows(Retrieval)} == {RetrievalPurpose.PRIOR, RetrievalPurpose.SERIES}


def test_half_a_series_is_no_input_until_the_rest_is_sent(tmp_path: Path, dcmqrscp: QueryScp, asking: Ask) -> None:
    node = asking(dcmqrscp, a_route(with_wait_s=60))
    t1w = a_series(tmp_path / "t1w", "MPRAGE", 2)
    send(node, *a_series(tmp_path / "flair", "AX FLAIR", 1))
    route(node)
    with sessions(node).begin() as session:
        row = session.query(Retrieval).one()
        retrievals.start_fetching(session, row, series_uids=[str(dcmread(t1w[0]).SeriesInstanceUID)], now=now())
    send(node, *t1w[:2])
    assert fetch(node) == 0  # the archive has lost it
    assert search(node).attempts == 1
    late = now() + timedelta(seconds=60)
    assert (fetch(node, late), route(node, late)) == (0, 1)
    assert inputs(node) == {"match": 3, "revision": 2}
    assert "1 series arrived incomplete and are not used" in why(node)
    with sessions(node).begin() as session:  # the search ended then, in the tests' time
        session.query(Retrieval).one().ended_at = now()
    send(node, t1w[2])
    route(node)
    with sessions(node)() as session:
        newest = session.query(Job).order_by(Job.id.desc()).first()
        assert newest is not None
        assert sorted(each.name for each in newest.inputs) == ["match"] * 3 + ["t1w"] * 3


def test_an_archive_that_does_not_know_us_is_asked_by_c_get(tmp_path: Path, orthanc: Orthanc, asking: Ask) -> None:
    node = asking(orthanc)
    orthanc.know(Peer(name="node", ae_title="OTHER", port=node.port))
    for path in a_series(tmp_path / "t1w", "MPRAGE", 2):
        orthanc.upload(path)
    send(node, *a_series(tmp_path / "flair", "AX FLAIR", 1))
    assert (route(node), fetch(node), route(node)) == (0, 1, 1)
    assert inputs(node)["t1w"] == 3
    assert "by C-GET" in why(node)


def test_an_archive_that_gives_nothing_by_either_way_is_explained(
    tmp_path: Path, dcmqrscp: QueryScp, asking: Ask
) -> None:
    node = asking(dcmqrscp, a_route(with_wait_s=5))
    dcmqrscp.know(Peer(name="other", ae_title="OTHER", port=node.port))
    for path in a_series(tmp_path / "t1w", "MPRAGE", 2):
        dcmqrscp.upload(path)
    send(node, *a_series(tmp_path / "flair", "AX FLAIR", 1))
    assert (route(node), fetch(node), route(node)) == (0, 0, 1)
    assert inputs(node) == {"match": 3, "revision": 1}
    assert "C-MOVE with status 0xA801" in why(node)


def test_results_of_this_node_are_not_fetched_back(tmp_path: Path, dcmqrscp: QueryScp, asking: Ask) -> None:
    node = asking(dcmqrscp, a_route(with_={"covariates": {"Modality": "SR"}}))
    report = a_series(tmp_path / "report", "Report", 2, Modality="SR")
    for path in report:
        dcmqrscp.upload(path)
    send(node, *a_series(tmp_path / "flair", "AX FLAIR", 1))
    route(node)
    with sessions(node).begin() as session:
        job = an_earlier_job(session)
        uid = str(dcmread(report[0]).SeriesInstanceUID)
        file = {"sha256": "0" * 64, "size_bytes": 1, "relative_path": "x", "kind": "report", "created_at": now()}
        session.add(Output(job_id=job.id, sop_instance_uid="1.2", sop_class_uid="1.2", series_uid=uid, **file))
    assert (fetch(node), route(node)) == (0, 1)
    assert "none there for covariates besides what is known here" in why(node)
    assert len(node.rows(Instance)) == 3


def test_a_node_that_was_killed_between_find_and_move_fetches_when_it_is_back(
    tmp_path: Path, dcmqrscp: QueryScp
) -> None:
    for path in a_series(tmp_path / "t1w", "MPRAGE", 2):
        dcmqrscp.upload(path)
    peer = dcmqrscp.peer.model_copy(update={"name": "archive"})
    route = {"name": "dir", "pipeline": "synthetic_dir", "match": FLAIR, "with": {"t1w": T1W}, "with_from": "archive"}
    config = write_config(
        tmp_path / "node", peers=[peer], routes=[route], delivery={"backoff_s": 3, "backoff_max_s": 3}
    )
    with Node(config, "serve", "--workers", "0") as node:

        def fetching() -> bool:
            with node.sessions() as session:
                return bool(session.query(Retrieval).filter_by(state=RetrievalState.FETCHING, attempts=1).count())

        flair = [read_encoded(path) for path in a_series(tmp_path / "flair", "AX FLAIR", 1)]
        store_all(node.port, flair, tmp_path / "sent")
        wait_for(fetching, "the archive has named a series, and cannot send it to a node that it does not know")
        node.kill()
        node.start()
        dcmqrscp.know(node.peer)
        job = wait_for(node.jobs, "the study is routed")[0]
        assert job.revision == 2
        with node.sessions() as session:
            names = [each.name for each in session.get_one(Job, job.id).inputs]
    assert (names.count("match"), names.count("t1w")) == (3, 3)
    assert "geheim" not in node.log
