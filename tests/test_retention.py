"""Retention deletes only data that are delivered and old enough, rows before files, even if killed in between."""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session, sessionmaker

from db import audit, catalogue, commitments, deliveries, jobs, retention, studies
from db.catalogue import Query
from db.jobs import OutputFile
from db.models import Event, Instance, Job, Output, Series, Study
from db.states import JobState, StudyState
from db.studies import Arrival, InstanceFacts, Sender
from dicomnode import checks
from dicomnode.config import Config
from dicomnode.config.node import NodeConfig
from dicomnode.errors import NotAllowed
from dicomnode.execution import job_run
from dicomnode.maintenance.retention import Retention, explain_kept, remove_files
from dicomnode.routing.study_snapshot import StudySnapshot
from dicomnode.storage import spool

ROUTE = {"name": "flair", "pipeline": "nothing", "match": {"Modality": "MR"}}
CLASS = "1.2.840.10008.5.1.4.1.1.4"
DAY = timedelta(days=1)


class NodeState:
    """Rows and files of a node, with a clock of its own."""

    def __init__(self, sessions: sessionmaker[Session], folder: Path, now: datetime) -> None:
        self.sessions, self.folder, self.now = sessions, folder, now
        self.config = self.make_config(sources_days=10, results_days=20)
        spool.prepare(self.config.spool_dir)

    def make_config(self, *routes: dict[str, Any], **days: float) -> Config:
        values = {"retention": days, "routes": list(routes or [ROUTE])}
        return Config.model_validate(
            {"node": NodeConfig(data_dir=self.folder), "path": self.folder / "node.toml"} | values
        )

    def write_file(self, content: str) -> Any:
        stored = spool.write(self.config.spool_dir, content.encode())
        self.make_old(stored.sha256)
        return stored

    def make_old(self, sha256: str) -> None:
        """Set the times of the file as if it had been written long ago."""
        path = spool.path(self.config.spool_dir, sha256)
        os.utime(path, (self.now.timestamp() - 9999, self.now.timestamp() - 9999))

    def add_study(self, study: str = "1.2", *contents: str, date: str = "20260101", series: str = "1") -> Study:
        """Register instances 1, 2 ... of a series and mark the study as routed."""
        attributes = {"Modality": "MR", "PatientID": "P", "StudyDate": date}
        with self.sessions.begin() as session:
            for number, content in enumerate(contents or (f"{study} source",), 1):
                facts = InstanceFacts(
                    study, f"{study}.{series}", f"{study}.{series}.{number}", CLASS, "1.2.840.10008.1.2.1", "MR",
                    attributes, patient_id="P", study_date=date,
                )  # fmt: skip
                arrival = Arrival(facts, self.write_file(content), Sender("S", "127.0.0.1"))
                studies.register_instances(session, [arrival], now=self.now)
            row = studies.find_by_uid(session, study)
            assert row is not None
            studies.close(session, row, reason="quiet", now=self.now)
            audit.transition(session, row, StudyState.ROUTED, reason="routed", now=self.now)
            return row

    def add_job(
        self, study: Study, *contents: str, to: Sequence[str] = ("pacs",), held: str = "", route: str = "flair"
    ) -> int:
        """Add a finished job on all instances of the study; return its number."""
        with self.sessions.begin() as session:
            ids = list(session.scalars(select(Instance.id).join(Instance.series).where(_is_of_study(study))))
            job = jobs.enqueue(
                session, study_id=study.id, revision=study.revision, route=route, pipeline="nothing", options={},
                inputs={"match": ids}, destinations=list(to), now=self.now,
            )  # fmt: skip
            assert job is not None
            claimed = jobs.claim(session, worker="w", lease_s=60, now=self.now)
            assert claimed is not None
            outputs = [
                OutputFile(f"{study.study_uid}.9.{n}", CLASS, f"{study.study_uid}.9", "image", self.write_file(content))
                for n, content in enumerate(contents or (f"{study.study_uid} result",), 1)
            ]
            jobs.finish(session, job_id=job.id, worker="w", outputs=outputs, report={}, held_because=held, now=self.now)
            return job.id

    def deliver(self) -> None:
        with self.sessions.begin() as session:
            for due in deliveries.claim_due(session, worker="w", lease_s=60, limit=99, now=self.now):
                deliveries.mark_delivered(session, due.delivery_id, worker="w", now=self.now)

    def pass_days(self, days: float, config: Config | None = None) -> None:
        """Let days pass, and let retention walk over all studies."""
        self.now += timedelta(days=days)
        walk = Retention(self.sessions, config or self.config)
        for _ in range(3):
            walk.step(now=lambda: self.now)
            self.now += timedelta(minutes=11)

    def count_files(self) -> int:
        return len([path for path in self.config.spool_dir.rglob("*.dcm") if path.is_file()])

    def count_found(self, level: str = "IMAGE") -> int:
        with self.sessions() as session:
            return catalogue.count(session, Query(level))  # type: ignore[arg-type]


def _is_of_study(study: Study) -> Any:
    return Series.study_id == study.id


@pytest.fixture
def node(sessions: sessionmaker[Session], tmp_path: Path, now: datetime) -> NodeState:
    return NodeState(sessions, tmp_path / "data", now)


def test_nothing_is_deleted_unless_somebody_says_so(node: NodeState) -> None:
    node.add_job(node.add_study())
    node.deliver()
    node.pass_days(1000, node.make_config())
    assert node.count_files() == 2


def test_what_is_delivered_goes_when_its_time_has_come_sources_and_results_apart(node: NodeState) -> None:
    node.add_job(node.add_study())
    node.deliver()
    node.pass_days(9)
    assert (node.count_files(), node.count_found()) == (2, 2)
    node.pass_days(2)
    assert (node.count_files(), node.count_found(), node.count_found("STUDY")) == (1, 1, 1)
    node.pass_days(10)
    assert (node.count_files(), node.count_found(), node.count_found("SERIES"), node.count_found("STUDY")) == (
        0,
        0,
        0,
        0,
    )
    with node.sessions() as session:
        events = list(session.scalars(select(Event.event).where(Event.event.like("%expired%"))))
        assert events == ["sources expired", "results expired", "expired"]
        removed = session.scalars(select(Event).where(Event.event == "files removed")).all()
        assert len({digest for event in removed for digest in event.detail["sha256"]}) == 2
        assert audit.verify(session) is None
        assert session.scalars(select(Instance)).one().removed_at is not None


@pytest.mark.slow
@pytest.mark.parametrize("why", ["waiting", "held", "given up", "nowhere", "unrouted", "another study", "running"])
def test_what_is_not_delivered_stays(node: NodeState, why: str) -> None:
    study = node.add_study()
    if why not in ("unrouted", "running"):
        node.add_job(study, held="look" if why == "held" else "", to=() if why == "nowhere" else ("pacs",))
    if why == "given up":
        with node.sessions.begin() as session:
            (due,) = deliveries.claim_due(session, worker="w", lease_s=60, limit=9, now=node.now)
            deliveries.mark_failed(session, due.delivery_id, worker="w", reason="no", retry_at=None, now=node.now)
    if why in ("another study", "running"):
        with node.sessions.begin() as session:
            ids = list(session.scalars(select(Instance.id)))
            other = studies.find_by_uid(session, study.study_uid) if why == "running" else None
            target = other or Study(study_uid="1.9", opened_at=node.now, last_received_at=node.now)
            session.add(target)
            session.flush()
            jobs.enqueue(
                session, study_id=target.id, revision=1, route="flair", pipeline="x", options={},
                inputs={"prior": ids}, destinations=["pacs"], now=node.now,
            )  # fmt: skip
    if why == "another study":
        node.deliver()
    before = node.count_files()
    node.pass_days(15)
    assert node.count_files() == before
    with node.sessions() as session:
        assert explain_kept(session, session.get_one(Study, study.id), node.config, now=node.now)


def test_studies_that_no_route_took_have_a_time_of_their_own(node: NodeState) -> None:
    node.add_study()
    node.pass_days(3, node.make_config(unrouted_days=2))
    assert node.count_files() == 0


@pytest.mark.parametrize("route", ["flair", "workitem:1.2.9:flair"])
def test_a_route_keeps_its_own_longer(node: NodeState, route: str) -> None:
    node.add_job(node.add_study(), route=route)
    node.deliver()
    config = node.make_config(ROUTE | {"keep_sources_days": 0, "keep_results_days": 40}, sources_days=1, results_days=1)
    node.pass_days(30, config)
    assert node.count_files() == 2
    node.pass_days(11, config)
    assert (node.count_files(), node.count_found("STUDY")) == (1, 1)


@pytest.mark.parametrize("route", ["flair", "workitem:1.2.9:flair"])
def test_results_without_a_destination_go_only_where_their_route_says_when(node: NodeState, route: str) -> None:
    node.add_job(node.add_study(), to=(), route=route)
    config = node.make_config(ROUTE | {"keep_results_days": 40}, sources_days=20, results_days=1)
    node.pass_days(30, node.make_config(sources_days=1, results_days=1))
    assert node.count_files() == 2, "nobody else has them"
    node.pass_days(1, config)
    assert node.count_files() == 1, "the sources' time has come"
    node.pass_days(10, config)
    assert node.count_files() == 0


@pytest.mark.slow
def test_the_newest_examination_that_a_route_compares_with_stays(node: NodeState) -> None:
    route = ROUTE | {"prior": {"earlier": {"Modality": "MR"}}}
    first = node.add_study("1.2", date="20260101")
    node.add_job(first)
    node.deliver()
    config = node.make_config(route, sources_days=5)
    node.pass_days(6, config)
    assert node.count_files() == 2
    node.add_job(node.add_study("1.3", date="20260301"))
    node.deliver()
    node.pass_days(1, config)
    assert node.count_files() == 3  # the older one's source is gone: the new one will be compared with instead
    node.pass_days(100, node.make_config(route, sources_days=5, priors_days=50))
    assert node.count_files() == 2


def test_a_file_that_two_rows_share_goes_with_the_last(node: NodeState) -> None:
    study = node.add_study("1.2", "the same")
    node.add_job(study, "the same")
    node.deliver()
    node.pass_days(11)
    assert (node.count_files(), node.count_found()) == (1, 1)
    node.pass_days(11)
    assert node.count_files() == 0


def test_a_crash_between_rows_and_files_is_made_good(node: NodeState) -> None:
    node.add_job(node.add_study())
    node.deliver()
    node.now += 11 * DAY

    def fail(*_: object, **__: object) -> bool:
        raise SystemExit("killed")

    with node.sessions.begin() as session:
        study = retention.lock_study(session, 1)
        assert study is not None
        retention.expire_sources(session, study, reason="r", now=node.now)
    with pytest.raises(SystemExit):
        remove_files(node.sessions, node.config, now=node.now, remove=fail)
    assert (node.count_files(), node.count_found()) == (2, 1)

    def delete_and_fail(root: Path, sha256: str, *, now: datetime) -> bool:
        spool.remove(root, sha256, now=now)
        raise SystemExit("killed")

    with pytest.raises(SystemExit):
        remove_files(node.sessions, node.config, now=node.now, remove=delete_and_fail)
    node.pass_days(0)
    with node.sessions() as session:
        assert session.scalars(select(Instance)).one().removed_at is not None
    assert node.count_files() == 1


def test_a_file_that_was_written_lately_stays_until_it_is_older(node: NodeState) -> None:
    study = node.add_study()
    with node.sessions.begin() as session:
        row = retention.lock_study(session, study.id)
        assert row is not None
        retention.expire_sources(session, row, reason="r", now=node.now)
    path = next(node.config.spool_dir.rglob("*.dcm"))
    os.utime(path, (node.now.timestamp() - 5, node.now.timestamp() - 5))
    assert remove_files(node.sessions, node.config, now=node.now) == 0
    assert path.read_bytes() == b"1.2 source"
    assert remove_files(node.sessions, node.config, now=node.now + DAY) == 1
    assert not path.exists()


def test_a_file_on_its_way_out_is_put_back_after_a_crash(node: NodeState) -> None:
    node.add_study()
    path = next(node.config.spool_dir.rglob("*.dcm"))
    path.rename(node.config.spool_dir / "incoming" / f"{path.stem}.leaving")
    spool.sweep(node.config.spool_dir)
    assert path.read_bytes() == b"1.2 source"
    assert list((node.config.spool_dir / "incoming").iterdir()) == []


def test_what_is_sent_again_is_new_again_and_a_part_of_it_is_given_to_nobody(node: NodeState) -> None:
    study = node.add_study("1.2", "a", "b")
    node.add_job(study)
    node.deliver()
    node.pass_days(11)
    assert node.count_found() == 1
    with node.sessions.begin() as session:
        facts = InstanceFacts("1.2", "1.2.1", "1.2.1.1", CLASS, "1.2.840.10008.1.2.1", "MR", {})
        arrival = Arrival(facts, node.write_file("a"), Sender("S", "127.0.0.1"))
        assert studies.register_instances(session, [arrival], now=node.now)[0].kind == "new"
    with node.sessions() as session:
        row = session.get_one(Study, study.id)
        assert (row.revision, row.expired_at) == (2, None)
        assert StudySnapshot(session, row).usable_series == []
        assert catalogue.count(session, Query("SERIES")) == 2
    node.pass_days(0)
    assert node.count_files() == 2  # "a" again, and the result


def test_a_job_on_what_is_gone_says_so(node: NodeState) -> None:
    number = node.add_job(node.add_study())
    node.deliver()
    node.pass_days(11)
    with node.sessions() as session, pytest.raises(NotAllowed, match="deleted by retention; send it again"):
        job_run.build_task(session.get_one(Job, number), node.config)


def test_a_study_that_is_arriving_again_is_not_touched(node: NodeState) -> None:
    node.add_job(node.add_study())
    node.deliver()
    with node.sessions.begin() as session:
        facts = InstanceFacts("1.2", "1.2.1", "1.2.1.7", CLASS, "1.2.840.10008.1.2.1", "MR", {})
        arrival = Arrival(facts, node.write_file("late"), Sender("S", "127.0.0.1"))
        studies.register_instances(session, [arrival], now=node.now)
    node.pass_days(11)
    assert node.count_files() == 3
    with node.sessions() as session:
        assert session.scalars(select(Output)).one().expired_at is None
        assert session.scalars(select(Job)).one().state is JobState.DONE


def test_a_trial_keeps_no_study_and_its_results_go_after_its_end(node: NodeState) -> None:
    study = node.add_study()
    node.add_job(study)
    node.deliver()
    node.now += 5 * DAY
    node.add_job(study, "tried", to=(), route="trial:nothing:0b2a7f31")
    node.pass_days(6)
    assert node.count_files() == 3, "the sources stay for as long as after a delivery"
    node.pass_days(5)
    assert node.count_files() == 2
    node.pass_days(10)
    assert (node.count_files(), node.count_found("STUDY")) == (0, 0)


def test_a_study_with_a_trial_only_is_one_that_no_route_took(node: NodeState) -> None:
    node.add_job(node.add_study(), to=(), route="trial:nothing:0b2a7f31")
    node.pass_days(5, node.make_config(unrouted_days=2, sources_days=0))
    assert node.count_files() == 1
    node.pass_days(5, node.make_config(unrouted_days=2, results_days=3))
    assert node.count_files() == 0


def test_a_trial_that_waits_or_is_held_keeps_its_study(node: NodeState) -> None:
    study = node.add_study()
    node.add_job(study, to=(), route="trial:nothing:0b2a7f31", held="look")
    node.pass_days(100)
    assert node.count_files() == 2


def commit(node: NodeState, study: Study) -> None:
    """Commit the first instance of the study to a scanner."""
    verdict = commitments.Verdict(CLASS, f"{study.study_uid}.1.1")
    with node.sessions.begin() as session:
        (row,) = commitments.find_instances(session, [verdict.sop_instance_uid]).values()
        commitments.mark_committed(session, {row.sop_instance_uid: row.sha256}, now=node.now)
        commitments.record(
            session, transaction_uid="1.2.3", sender=Sender("MR1", "127.0.0.1"), verdicts=[verdict], now=node.now
        )


@pytest.mark.parametrize("routed", [True, False])
def test_what_was_committed_to_a_scanner_stays(node: NodeState, routed: bool, caplog: pytest.LogCaptureFixture) -> None:
    study = node.add_study()
    if routed:
        node.add_job(study)
        node.deliver()
    commit(node, study)
    days = {"sources_days": 1, "unrouted_days": 1}
    with caplog.at_level("INFO"):
        node.pass_days(30, node.make_config(**days))
    assert node.count_found("STUDY") == 1
    assert node.count_files() == 1 + routed
    assert [line for line in caplog.messages if "was committed to a sender" in line] == [
        "retention: study 1 stays: it was committed to a sender, which may have deleted its own copy"
    ]
    node.pass_days(30, node.make_config(**days, delete_committed=True))
    assert node.count_files() == routed


@pytest.mark.parametrize(("delete_committed", "state"), [(False, "ok"), (True, "warning")])
def test_the_check_says_what_becomes_of_committed_studies(node: NodeState, delete_committed: bool, state: str) -> None:
    config = node.make_config(unrouted_days=7, delete_committed=delete_committed)
    check = next(each for each in checks.run(config) if each.what == "commitment")
    assert check.result == state
    assert "unrouted_days = 7" in check.detail
