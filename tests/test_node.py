"""The node as processes of its own: a killed process loses nothing and repeats nothing."""

from __future__ import annotations

import json
import os
import signal
from datetime import datetime
from pathlib import Path

import pytest
from pydicom import dcmread
from sqlalchemy import select

from db import engine as engines
from db import studies
from db.models import Job, Study
from db.states import JobState, StudyState
from dicomnode import cli, node
from dicomnode.datasets import headers, objects
from dicomnode.dimse import peers
from dicomnode.routing import completion, routing
from dicomnode.storage import spool
from tests.peers import Node, StoreScp, make_route, wait_for, write_config
from tests.peers.kspaces import raw_data

pytestmark = pytest.mark.slow

KINDS = ["image", "labelled image", "parametric map", "report", "segmentation"]
FAST = {"steps": 3, "mean_steps": 3, "samples": 2}


def put(running: Node, path: Path, now: datetime) -> None:
    """Give the node an instance as its receiver would, complete it and route it."""
    node.prepare(running.config)
    engine = engines.connect(running.config.database_url)
    sessions = engines.sessions(engine)
    file = spool.write(running.config.spool_dir, path.read_bytes())
    with sessions.begin() as session:
        facts = headers.read(path)
        studies.register_instance(session, facts=facts, file=file, sender=studies.Sender("T", "127.0.0.1"), now=now)
    with sessions.begin() as session:
        completion.close_study(session, facts.study_uid, now=now)
    routing.route_complete_studies(sessions, running.config, now=lambda: now)
    engine.dispose()


def wait_until_at_work(running: Node, worker_pid: int) -> None:
    """Wait until the worker has begun its job and to load torch; the model and all of its work are still to come."""

    def is_at_work() -> bool:
        return "job 1: started" in running.log and "libtorch" in Path(f"/proc/{worker_pid}/maps").read_text()

    wait_for(is_at_work, "a job has begun", within_s=120)


def environment_of(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/environ").read_text().split("\0")


def test_ready_line_comes_when_associations_are_accepted(tmp_path: Path) -> None:
    with Node(write_config(tmp_path), "serve", "--workers", "0") as running:
        assert peers.echo(running.peer, calling_aet="TEST") > 0
        assert running.stop() == 0


def test_a_killed_worker_leaves_one_set_of_results(
    tmp_path: Path, now: datetime, database_url: str, storescp: StoreScp
) -> None:
    routes = [make_route("storescp", **FAST)]
    path = write_config(tmp_path, database={"url": database_url}, peers=[storescp.peer], routes=routes)
    with Node(path) as running:
        sent = peers.store(running.peer, [raw_data(tmp_path / "raw.dcm", now)], calling_aet="TEST")
        assert [result.status for result in sent] == [0x0000]
        (killed,) = running.children
        wait_until_at_work(running, killed)
        assert running.jobs()[0].worker.endswith(f":{killed}")
        os.kill(killed, signal.SIGKILL)
        job = running.wait_for_job("done", "dead")
        assert (job.state, job.attempts) == (JobState.DONE, 2)
        running.wait_until_delivered()
        assert running.stop() == 0
    assert sorted(objects.kind_of(ds) for ds in storescp.datasets()) == KINDS
    with running.sessions() as session:
        study = session.scalars(select(Study)).one()
        assert study.state is StudyState.ROUTED
    again = running.command("studies", "replay", study.study_uid, "--json")
    assert [row["result"] for row in json.loads(again.stdout)] == ["identical"] * len(KINDS)


def test_a_worker_told_to_stop_gives_its_job_back(tmp_path: Path, now: datetime) -> None:
    running = Node(write_config(tmp_path, routes=[make_route(**FAST)]), "work")
    put(running, raw_data(tmp_path / "raw.dcm", now), now)
    with running:
        wait_until_at_work(running, running.program.pid)
        assert running.stop() == 0
    with running.sessions() as session:
        job = session.scalars(select(Job)).one()
        assert (job.state, job.attempts, job.outputs) == (JobState.READY, 0, [])


def test_a_worker_waits_quietly_and_ends_with_the_node_that_started_it(tmp_path: Path) -> None:
    with Node(write_config(tmp_path), "serve", "--workers", "1") as running:
        (pid,) = wait_for(lambda: running.children, "a worker is started")
        policy = f"OMP_WAIT_POLICY={os.environ.get('OMP_WAIT_POLICY', 'PASSIVE')}"
        wait_for(lambda: policy in environment_of(pid), "it is told not to spin, unless the user wants it")
        running.program.kill()
        wait_for(lambda: not Path(f"/proc/{pid}").exists(), "the worker ends")


@pytest.mark.parametrize("damage", ["not MRD", "bad option"])
def test_a_job_that_is_not_tried_again_has_a_reason_to_read(
    tmp_path: Path, now: datetime, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    options = {"steps": 1} if damage == "bad option" else {}
    config_path = write_config(tmp_path, routes=[make_route(**options)])
    running = Node(config_path)
    path = raw_data(tmp_path / "raw.dcm", now, PatientName="Secret^Name", PatientID="SECRET")
    if damage == "not MRD":
        ds = dcmread(path)
        ds.remove_private_tags()
        del ds.CreatorVersionUID
        ds.save_as(path)
    put(running, path, now)
    assert cli.main(["--config", str(config_path), "work", "--once"]) == 0
    assert capsys.readouterr().out == "1 jobs taken\n"
    (job,) = running.jobs()
    ended = JobState.REFUSED if damage == "not MRD" else JobState.DEAD
    assert (job.state, job.attempts) == (ended, 1)
    expected = "no ISMRMRD/MRD in Raw Data" if damage == "not MRD" else "options of mri_reconstruction: steps"
    assert expected in job.reason
    assert "ecret" not in job.reason
    assert cli.main(["--config", str(config_path), "status"]) == 0
    assert expected[:20] in capsys.readouterr().out
