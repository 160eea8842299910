"""The node as its own processes: what is killed loses nothing and repeats nothing."""

from __future__ import annotations

import hashlib
import json
import os
import signal
from datetime import datetime
from pathlib import Path

import pytest
from pydicom import dcmread
from sqlalchemy.orm import Session

from db import engine as engines
from db import studies
from db.models import Delivery, Job, Study
from db.states import DeliveryState, JobState, StudyState
from dicomnode import completion, headers, node, peers, processing, routing, spool, worker
from dicomnode.config import Peer
from tests.peers.process import wait_for
from tests.peers.storescp import StoreScp
from tests.running_node import RunningNode, raw_data, write_config

QUICK = {"steps": 2, "mean_steps": 2, "samples": 2}
SLOW = {"steps": 4, "mean_steps": 4, "samples": 2}


def a_route(options: dict[str, int], *destinations: str) -> list[dict[str, object]]:
    route: dict[str, object] = {"name": "raw", "pipeline": "mri_reconstruction", "match": {"Modality": "MR"}}
    return [route | {"options": options, "destinations": list(destinations)}]


def put(running: RunningNode, path: Path, now: datetime) -> None:
    """Give the node an instance as its receiver would, complete it and route it."""
    node.prepare(running.config)
    engine = engines.connect(running.config.database_url)
    sessions = engines.sessions(engine)
    file = spool.write(running.config.spool_dir, path.read_bytes())
    with sessions.begin() as session:
        facts = headers.read(path)
        studies.register_instance(session, facts=facts, file=file, sender=studies.Sender("T", "127.0.0.1"), now=now)
    with sessions.begin() as session:
        completion.close(session, facts.study_uid, now=now)
    routing.route_complete(sessions, running.config, now=now)
    engine.dispose()


def the_job(session: Session) -> Job:
    return session.query(Job).one()


def is_working(running: RunningNode) -> bool:
    with running.sessions() as session:
        job = the_job(session)
        return job.state is JobState.RUNNING and job.step != ""


def worker_pid(running: RunningNode) -> int:
    with running.sessions() as session:
        return int(the_job(session).worker.rpartition(":")[2])


def has_ended(running: RunningNode) -> bool:
    with running.sessions() as session:
        return the_job(session).state in (JobState.DONE, JobState.DEAD)


def test_ready_line_comes_when_associations_are_accepted(tmp_path: Path) -> None:
    with RunningNode(write_config(tmp_path), "serve", "--workers", "0") as running:
        peer = Peer(name="node", ae_title="DICOMNODE", host="127.0.0.1", port=running.port)
        assert peers.echo(peer, calling_aet="TEST") > 0
        assert running.program.stop() == 0


def test_study_is_received_routed_run_and_delivered(tmp_path: Path, now: datetime, storescp: StoreScp) -> None:
    peer = {"name": "pacs", "ae_title": storescp.peer.ae_title, "host": "127.0.0.1", "port": storescp.port}
    with RunningNode(write_config(tmp_path, peers=[peer], routes=a_route(QUICK, "pacs"))) as running:
        target = Peer(name="node", ae_title="DICOMNODE", host="127.0.0.1", port=running.port)
        sent = peers.store(target, [raw_data(tmp_path / "raw.dcm", now)], calling_aet="TEST")
        assert [result.status for result in sent] == [0x0000]

        def all_delivered() -> bool:
            with running.sessions() as session:
                rows = session.query(Delivery).all()
                return bool(rows) and all(row.state is DeliveryState.DELIVERED for row in rows)

        wait_for(all_delivered, "results are delivered", within_s=180)
        assert sorted(worker.kind_of(ds) for ds in storescp.datasets()) == [
            "image",
            "labelled image",
            "parametric map",
            "segmentation",
        ]
        with running.sessions() as session:
            study = session.query(Study).one()
            assert study.state is StudyState.ROUTED
        replayed = running.command("studies", "replay", study.study_uid, "--json")
        assert [row["result"] for row in json.loads(replayed.stdout)] == ["identical"] * 4


def test_killed_worker_leaves_one_set_of_results(tmp_path: Path, now: datetime, database_url: str) -> None:
    path = write_config(tmp_path, database={"url": database_url}, routes=a_route(SLOW))
    running = RunningNode(path)
    put(running, raw_data(tmp_path / "raw.dcm", now), now)
    with running:
        wait_for(lambda: is_working(running), "the job runs", within_s=120)
        os.kill(worker_pid(running), signal.SIGKILL)
        wait_for(lambda: has_ended(running), "the job runs again", within_s=240)
    with running.sessions() as session:
        job = the_job(session)
        assert (job.state, job.attempts) == (JobState.DONE, 2)
        task = worker.task_of(job, running.config)
        stored = {output.sop_instance_uid: output.sha256 for output in job.outputs}
        assert len(stored) == len(job.outputs) == 4
    again = processing.process(task, running.config, progress=lambda fraction, step: None).objects
    assert stored == {ds.SOPInstanceUID: hashlib.sha256(worker.encoded(ds)).hexdigest() for ds in again}


def test_worker_told_to_stop_gives_its_job_back(tmp_path: Path, now: datetime) -> None:
    running = RunningNode(write_config(tmp_path, routes=a_route(SLOW)), "work")
    put(running, raw_data(tmp_path / "raw.dcm", now), now)
    with running:
        wait_for(lambda: is_working(running), "the job runs", within_s=120)
        assert running.program.stop(within_s=60) == 0
    with running.sessions() as session:
        job = the_job(session)
        assert (job.state, job.attempts, job.outputs) == (JobState.READY, 0, [])


def test_worker_ends_with_the_node_that_started_it(tmp_path: Path) -> None:
    with RunningNode(write_config(tmp_path), "serve", "--workers", "1") as running:
        children = Path(f"/proc/{running.program.pid}/task/{running.program.pid}/children")
        pid = int(wait_for(lambda: children.read_text().split(), "a worker is started")[0])
        running.program.kill()
        wait_for(lambda: not Path(f"/proc/{pid}").exists(), "the worker ends", within_s=30)


@pytest.mark.parametrize("damage", ["not MRD", "bad option"])
def test_refused_job_is_dead_with_a_reason_to_read(tmp_path: Path, now: datetime, damage: str) -> None:
    running = RunningNode(write_config(tmp_path, routes=a_route({"steps": 1} if damage == "bad option" else QUICK)))
    path = raw_data(tmp_path / "raw.dcm", now, PatientName="Secret^Name", PatientID="SECRET")
    if damage == "not MRD":
        ds = dcmread(path)
        ds.remove_private_tags()
        del ds.CreatorVersionUID
        ds.save_as(path)
    put(running, path, now)
    assert running.command("work", "--once").stdout == "1 jobs taken\n"
    with running.sessions() as session:
        job = the_job(session)
        assert (job.state, job.attempts) == (JobState.DEAD, 1)
        expected = "no ISMRMRD/MRD in Raw Data" if damage == "not MRD" else "options of mri_reconstruction: steps"
        assert expected in job.reason
        assert "ecret" not in job.reason
    shown = running.command("status")
    assert expected[:20] in shown.stdout
