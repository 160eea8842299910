"""Missing series of a study are queried at the archive, fetched over the network, and routed once."""

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
from tests import retrieval_steps
from tests.peers import Node, Orthanc, QueryScp, wait_for, write_config
from tests.retrieval_steps import (
    FLAIR,
    T1W,
    Archive,
    StartReceiver,
    count_inputs,
    explain,
    load_retrieval,
    load_study_state,
    make_earlier_job,
    make_route,
    make_sessions,
    now,
    route_studies,
    run_retrievals,
    send,
    write_series,
)
from tests.sending import read_encoded, store_all

start, archive = retrieval_steps.start, retrieval_steps.archive
start_receiver, dcmqrscp = retrieval_steps.start_receiver, retrieval_steps.dcmqrscp

SHORT = T1W | {"EchoTime": "< 5"}


@pytest.mark.slow
def test_what_is_missing_comes_from_the_archive_and_the_study_is_routed_once(
    tmp_path: Path, archive: Archive, start_receiver: StartReceiver
) -> None:
    node = start_receiver(archive)
    flair = write_series(tmp_path / "flair", "AX FLAIR", 1)
    for path in (*flair, *write_series(tmp_path / "t1w", "MPRAGE", 2), *write_series(tmp_path / "t2", "T2", 3)):
        archive.upload(path)
    send(node, *flair)
    assert route_studies(node) == 0
    assert run_retrievals(node) == 1
    assert load_study_state(node) is StudyState.COMPLETE
    assert route_studies(node) == 1
    assert count_inputs(node) == {"match": 3, "t1w": 3, "revision": 2}
    arrived = 1 if isinstance(archive, Orthanc) else 2  # DCMTK's archive does not return the description
    assert len(node.rows(Instance)) == 3 + 3 * arrived
    text = f"{3 * arrived} instances in {arrived} series from archive by C-MOVE"
    assert f"missing series from peer archive: {text}" in explain(node)
    assert (route_studies(node), run_retrievals(node), load_retrieval(node).state) == (0, 0, RetrievalState.ARRIVED)


@pytest.mark.slow
def test_an_archive_that_has_none_holds_nothing_up(
    tmp_path: Path, archive: Archive, start_receiver: StartReceiver
) -> None:
    node = start_receiver(archive)
    flair = write_series(tmp_path / "flair", "AX FLAIR", 1)
    elsewhere = write_series(tmp_path / "other", "MPRAGE", 2, study_uid="1.2.8")
    for path in (*flair, *elsewhere, *write_series(tmp_path / "ct", "MPRAGE", 3, Modality="CT")):
        archive.upload(path)
    send(node, *flair)
    assert (route_studies(node), run_retrievals(node), route_studies(node)) == (0, 0, 1)
    assert count_inputs(node) == {"match": 3, "revision": 1}
    assert "no series for t1w; missing series from peer archive: none there for t1w" in explain(node)


@pytest.mark.slow
def test_what_the_archive_does_not_tell_is_judged_when_it_is_here_and_not_sought_again(
    tmp_path: Path, archive: Archive, start_receiver: StartReceiver
) -> None:
    node = start_receiver(archive, make_route(with_={"t1w": SHORT}))
    flair = write_series(tmp_path / "flair", "AX FLAIR", 1)
    for path in (*flair, *write_series(tmp_path / "long", "MPRAGE", 2, EchoTime=90)):
        archive.upload(path)
    send(node, *flair)
    assert route_studies(node) == 0
    fetched = run_retrievals(node)
    assert fetched == isinstance(archive, QueryScp)  # Orthanc returns the echo time of its images
    assert (route_studies(node), run_retrievals(node)) == (1, 0)
    assert count_inputs(node) == {"match": 3, "revision": 1 + fetched}
    assert "no series for t1w" in explain(node)
    load_retrieval(node)


@pytest.mark.slow
def test_an_archive_that_is_down_is_asked_again(
    tmp_path: Path, dcmqrscp: QueryScp, start_receiver: StartReceiver
) -> None:
    node = start_receiver(dcmqrscp)
    for path in write_series(tmp_path / "t1w", "MPRAGE", 2):
        dcmqrscp.upload(path)
    send(node, *write_series(tmp_path / "flair", "AX FLAIR", 1))
    route_studies(node)
    dcmqrscp.kill()
    assert (run_retrievals(node), run_retrievals(node), load_retrieval(node).attempts) == (0, 0, 1)
    assert route_studies(node) == 0
    assert "not asked yet; peer archive" in explain(node)
    dcmqrscp.start()
    with make_sessions(node).begin() as session:
        session.query(Retrieval).one().not_before = now()
    assert (run_retrievals(node), route_studies(node)) == (1, 1)
    assert count_inputs(node)["t1w"] == 3


@pytest.mark.slow
def test_an_archive_that_stays_down_is_waited_for_no_longer_than_said(
    tmp_path: Path, dcmqrscp: QueryScp, start_receiver: StartReceiver
) -> None:
    node = start_receiver(dcmqrscp, make_route(with_wait_s=25))
    dcmqrscp.kill()
    send(node, *write_series(tmp_path / "flair", "AX FLAIR", 1))
    route_studies(node)
    begun = load_retrieval(node).created_at
    for after_s in range(0, 30, 5):
        route_studies(node, begun + timedelta(seconds=after_s))
        assert (load_study_state(node) is StudyState.ROUTED) == (load_retrieval(node).state is RetrievalState.ENDED)
        run_retrievals(node, begun + timedelta(seconds=after_s))
    assert 2 <= load_retrieval(node).attempts <= 4
    assert count_inputs(node) == {"match": 3, "revision": 1}
    assert "cannot be reached" in explain(node)


def test_the_time_is_over_also_while_the_archive_is_silent(
    tmp_path: Path, dcmqrscp: QueryScp, start_receiver: StartReceiver
) -> None:
    node = start_receiver(dcmqrscp, make_route(with_wait_s=25))
    send(node, *write_series(tmp_path / "flair", "AX FLAIR", 1))
    route_studies(node)
    begun = load_retrieval(node).created_at
    assert (route_studies(node, begun + timedelta(seconds=24)), route_studies(node, begun + timedelta(seconds=25))) == (
        0,
        1,
    )
    assert (run_retrievals(node, begun + timedelta(seconds=25)), load_retrieval(node).state) == (
        0,
        RetrievalState.ENDED,
    )


def test_a_series_that_arrives_by_itself_is_not_fetched(
    tmp_path: Path, dcmqrscp: QueryScp, start_receiver: StartReceiver
) -> None:
    node = start_receiver(dcmqrscp)
    t1w = write_series(tmp_path / "t1w", "MPRAGE", 2)
    for path in t1w:
        dcmqrscp.upload(path)
    send(node, *write_series(tmp_path / "flair", "AX FLAIR", 1))
    assert route_studies(node) == 0
    send(node, *t1w)
    assert (run_retrievals(node), route_studies(node)) == (0, 1)
    assert count_inputs(node) == {"match": 3, "t1w": 3, "revision": 2}
    assert load_retrieval(node).found_at is None
    assert "waits no longer" in explain(node)


@pytest.mark.slow
@pytest.mark.parametrize(("by_itself", "revision"), [(0, 2), (1, 3), (3, 2)])
def test_a_search_that_a_stop_interrupted_after_the_find_goes_on_with_the_move(
    tmp_path: Path, dcmqrscp: QueryScp, start_receiver: StartReceiver, by_itself: int, revision: int
) -> None:
    node = start_receiver(dcmqrscp)
    t1w = write_series(tmp_path / "t1w", "MPRAGE", 2)
    for path in t1w:
        dcmqrscp.upload(path)
    send(node, *write_series(tmp_path / "flair", "AX FLAIR", 1))
    route_studies(node)
    with make_sessions(node).begin() as session:
        row = session.query(Retrieval).one()
        retrievals.start_fetching(session, row, series_uids=[str(dcmread(t1w[0]).SeriesInstanceUID)], now=now())
    if by_itself:
        send(node, *t1w[:by_itself])  # and no more since then: the quiet time has closed the revision
    assert route_studies(node) == 0
    assert (run_retrievals(node), route_studies(node)) == (1, 1)
    assert count_inputs(node) == {"match": 3, "t1w": 3, "revision": revision}


def test_two_routes_that_want_the_same_series_get_it_once(
    tmp_path: Path, dcmqrscp: QueryScp, start_receiver: StartReceiver
) -> None:
    node = start_receiver(dcmqrscp, make_route(), make_route("other", with_={"anatomy": T1W}))
    for path in write_series(tmp_path / "t1w", "MPRAGE", 2):
        dcmqrscp.upload(path)
    send(node, *write_series(tmp_path / "flair", "AX FLAIR", 1))
    assert (route_studies(node), run_retrievals(node), route_studies(node)) == (0, 1, 2)
    with make_sessions(node)() as session:
        inputs_of_job = {job.route: sorted({each.name for each in job.inputs}) for job in session.query(Job)}
        assert inputs_of_job == {"dir": ["match", "t1w"], "other": ["anatomy", "match"]}
        reasons = {row.reason for row in session.query(Retrieval)}
        routed = session.scalars(select(Event).where(Event.subject == "studies", Event.event == "moved")).all()
    assert reasons == {"3 instances in 1 series from archive by C-MOVE", "all are here by now"}
    assert [event.detail["to"] for event in routed].count("routed") == 1


@pytest.mark.slow
def test_each_route_gets_what_it_lacks_before_the_study_is_routed(
    tmp_path: Path, dcmqrscp: QueryScp, start_receiver: StartReceiver
) -> None:
    node = start_receiver(dcmqrscp, make_route(), make_route("other", with_={"pet": {"Modality": "PT"}}))
    for path in (
        *write_series(tmp_path / "t1w", "MPRAGE", 2),
        *write_series(tmp_path / "pet", "FDG", 3, Modality="PT"),
    ):
        dcmqrscp.upload(path)
    send(node, *write_series(tmp_path / "flair", "AX FLAIR", 1))
    assert (route_studies(node), run_retrievals(node), route_studies(node)) == (0, 2, 2)
    with make_sessions(node)() as session:
        assert {job.revision for job in session.query(Job)} == {2}


@pytest.mark.slow
def test_a_prior_and_a_missing_series_are_fetched_for_one_job(
    tmp_path: Path, dcmqrscp: QueryScp, start_receiver: StartReceiver
) -> None:
    node = start_receiver(dcmqrscp, make_route(prior={"prior_flair": FLAIR}, prior_from="archive"))
    before = write_series(tmp_path / "before", "AX FLAIR", 1, study_uid="1.2.1", StudyDate="20240101")
    for path in (*before, *write_series(tmp_path / "t1w", "MPRAGE", 2)):
        dcmqrscp.upload(path)
    send(node, *write_series(tmp_path / "flair", "AX FLAIR", 1))
    assert (route_studies(node), run_retrievals(node), route_studies(node), run_retrievals(node)) == (0, 2, 1, 0)
    assert count_inputs(node) == {"match": 3, "t1w": 3, "prior_flair": 3, "revision": 2}
    assert {row.purpose for row in node.rows(Retrieval)} == {RetrievalPurpose.PRIOR, RetrievalPurpose.SERIES}


def test_half_a_series_is_no_input_until_the_rest_is_sent(
    tmp_path: Path, dcmqrscp: QueryScp, start_receiver: StartReceiver
) -> None:
    node = start_receiver(dcmqrscp, make_route(with_wait_s=60))
    t1w = write_series(tmp_path / "t1w", "MPRAGE", 2)
    send(node, *write_series(tmp_path / "flair", "AX FLAIR", 1))
    route_studies(node)
    with make_sessions(node).begin() as session:
        row = session.query(Retrieval).one()
        retrievals.start_fetching(session, row, series_uids=[str(dcmread(t1w[0]).SeriesInstanceUID)], now=now())
    send(node, *t1w[:2])
    assert run_retrievals(node) == 0  # the archive has lost it
    assert load_retrieval(node).attempts == 1
    late = now() + timedelta(seconds=60)
    assert (run_retrievals(node, late), route_studies(node, late)) == (0, 1)
    assert count_inputs(node) == {"match": 3, "revision": 2}
    assert "1 series arrived incomplete and are not used" in explain(node)
    with make_sessions(node).begin() as session:  # the retrieval ended then, by the clock of the test
        session.query(Retrieval).one().ended_at = now()
    send(node, t1w[2])
    route_studies(node)
    with make_sessions(node)() as session:
        newest = session.query(Job).order_by(Job.id.desc()).first()
        assert newest is not None
        assert sorted(each.name for each in newest.inputs) == ["match"] * 3 + ["t1w"] * 3


def test_an_archive_that_does_not_know_us_is_asked_by_c_get(
    tmp_path: Path, orthanc: Orthanc, start_receiver: StartReceiver
) -> None:
    node = start_receiver(orthanc)
    orthanc.register_peer(Peer(name="node", ae_title="OTHER", port=node.port))
    for path in write_series(tmp_path / "t1w", "MPRAGE", 2):
        orthanc.upload(path)
    send(node, *write_series(tmp_path / "flair", "AX FLAIR", 1))
    assert (route_studies(node), run_retrievals(node), route_studies(node)) == (0, 1, 1)
    assert count_inputs(node)["t1w"] == 3
    assert "by C-GET" in explain(node)


def test_an_archive_that_gives_nothing_by_either_way_is_explained(
    tmp_path: Path, dcmqrscp: QueryScp, start_receiver: StartReceiver
) -> None:
    node = start_receiver(dcmqrscp, make_route(with_wait_s=5))
    dcmqrscp.register_peer(Peer(name="other", ae_title="OTHER", port=node.port))
    for path in write_series(tmp_path / "t1w", "MPRAGE", 2):
        dcmqrscp.upload(path)
    send(node, *write_series(tmp_path / "flair", "AX FLAIR", 1))
    assert (route_studies(node), run_retrievals(node), route_studies(node)) == (0, 0, 1)
    assert count_inputs(node) == {"match": 3, "revision": 1}
    assert "C-MOVE with status 0xA801" in explain(node)


def test_results_of_this_node_are_not_fetched_back(
    tmp_path: Path, dcmqrscp: QueryScp, start_receiver: StartReceiver
) -> None:
    node = start_receiver(dcmqrscp, make_route(with_={"covariates": {"Modality": "SR"}}))
    report = write_series(tmp_path / "report", "Report", 2, Modality="SR")
    for path in report:
        dcmqrscp.upload(path)
    send(node, *write_series(tmp_path / "flair", "AX FLAIR", 1))
    route_studies(node)
    with make_sessions(node).begin() as session:
        job = make_earlier_job(session)
        uid = str(dcmread(report[0]).SeriesInstanceUID)
        file = {"sha256": "0" * 64, "size_bytes": 1, "relative_path": "x", "kind": "report", "created_at": now()}
        session.add(Output(job_id=job.id, sop_instance_uid="1.2", sop_class_uid="1.2", series_uid=uid, **file))
    assert (run_retrievals(node), route_studies(node)) == (0, 1)
    assert "none there for covariates besides what is known here" in explain(node)
    assert len(node.rows(Instance)) == 3


@pytest.mark.slow
def test_a_node_that_was_killed_between_find_and_move_fetches_when_it_is_back(
    tmp_path: Path, dcmqrscp: QueryScp
) -> None:
    for path in write_series(tmp_path / "t1w", "MPRAGE", 2):
        dcmqrscp.upload(path)
    peer = dcmqrscp.peer.model_copy(update={"name": "archive"})
    route_entry = {
        "name": "dir",
        "pipeline": "synthetic_dir",
        "match": FLAIR,
        "with": {"t1w": T1W},
        "with_from": "archive",
    }
    config = write_config(
        tmp_path / "node", peers=[peer], routes=[route_entry], delivery={"backoff_s": 3, "backoff_max_s": 3}
    )
    with Node(config, "serve", "--workers", "0") as node:

        def is_fetching() -> bool:
            with node.sessions() as session:
                return bool(session.query(Retrieval).filter_by(state=RetrievalState.FETCHING, attempts=1).count())

        flair = [read_encoded(path) for path in write_series(tmp_path / "flair", "AX FLAIR", 1)]
        store_all(node.port, flair, tmp_path / "sent")
        wait_for(is_fetching, "the archive has named a series, and cannot send it to a node that it does not know")
        node.kill()
        node.start()
        dcmqrscp.register_peer(node.peer)
        job = wait_for(node.jobs, "the study is routed")[0]
        assert job.revision == 2
        with node.sessions() as session:
            names = [each.name for each in session.get_one(Job, job.id).inputs]
    assert (names.count("match"), names.count("t1w")) == (3, 3)
    assert "geheim" not in node.log
