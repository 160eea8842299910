"""A refusal is an end state of its own, with the reason in words and, where configured, a note in the PACS."""

from __future__ import annotations

import json
import shutil
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from pydicom import dcmread
from pydicom.uid import Comprehensive3DSRStorage
from sqlalchemy import Engine, text
from sqlalchemy.orm import Session, sessionmaker

from db import audit, jobs, migrations
from db import engine as engines
from db.jobs import OutputFile
from db.models import Delivery, Job, Output
from db.states import InvalidTransition, JobState
from db.studies import StoredFile
from dicomnode import cli
from dicomnode.config import Config
from dicomnode.datasets import objects
from dicomnode.dimse import peers
from dicomnode.results import marking
from model_zoo.registry import BUNDLES
from tests.peers import Node, Orthanc, make_route, wait_for, write_config
from tests.peers.kspaces import raw_data
from tests.rows import add_job
from tests.test_node import put

FAST = {"steps": 2, "mean_steps": 2, "samples": 2}
NOTE = OutputFile("2.25.9", Comprehensive3DSRStorage, "2.25.8", "refusal note", StoredFile("b" * 64, 9, "b.dcm"))
IMAGE = OutputFile("2.25.1", "1.2.840.10008.5.1.4.1.1.7.3", "2.25.2", "image", StoredFile("a" * 64, 9, "a.dcm"))
STRICT = {"model": "strict_prior"}
CONTRACT = {
    "kspace": [
        {"fact": "acceleration", "between": [1, 1.2]},
        {"fact": "field_strength_t", "between": [1, 3], "needed": True},
    ]
}


def refuse(session: Session, job: Job, now: datetime, *notes: OutputFile) -> Job:
    claimed = jobs.claim(session, worker="w", lease_s=60, now=now)
    assert claimed is job
    report = {"verdict": "refuse", "reasons": ["TI is 900 ms"]}
    return jobs.refuse(session, job_id=job.id, worker="w", reason="TI is 900 ms", outputs=notes, report=report, now=now)


def test_a_refused_job_ends_with_its_reason_and_its_note_on_the_way(
    sessions: sessionmaker[Session], now: datetime
) -> None:
    with sessions.begin() as session:
        refuse(session, add_job(session, now, destinations=["pacs", "research"]), now, NOTE)
    with sessions() as session:
        job = session.query(Job).one()
        assert (job.state, job.reason, job.finished_at) == (JobState.REFUSED, "TI is 900 ms", now)
        assert sorted(row.destination for row in session.query(Delivery)) == ["pacs", "research"]
        assert audit.verify(session) is None


def test_a_refusal_that_is_rolled_back_leaves_no_note(sessions: sessionmaker[Session], now: datetime) -> None:
    with sessions.begin() as session:
        add_job(session, now)
    with sessions() as session:
        refuse(session, session.query(Job).one(), now, NOTE)
        session.rollback()
    with sessions() as session:
        assert session.query(Output).count() == session.query(Delivery).count() == 0
        assert session.query(Job).one().state is JobState.READY


def test_a_refused_job_may_run_again_and_its_note_is_not_doubled(
    sessions: sessionmaker[Session], now: datetime
) -> None:
    with sessions.begin() as session:
        job = refuse(session, add_job(session, now), now, NOTE)
        jobs.retry(session, job, reason="another model is deployed", now=now)
        refuse(session, job, now, NOTE)
        jobs.retry(session, job, reason="another model is deployed", now=now)
        jobs.claim(session, worker="w", lease_s=60, now=now)
        jobs.finish(session, job_id=job.id, worker="w", outputs=[IMAGE], report={}, now=now)
    with sessions() as session:
        assert session.query(Job).one().state is JobState.DONE
        assert [row.output.kind for row in session.query(Delivery).order_by(Delivery.id)] == ["refusal note", "image"]


def test_a_refused_job_can_be_put_away_but_not_released(sessions: sessionmaker[Session], now: datetime) -> None:
    with sessions.begin() as session:
        job = refuse(session, add_job(session, now), now)
        with pytest.raises(InvalidTransition, match="only held"):
            jobs.release(session, job, reason="no", now=now)
        jobs.discard(session, job, reason="seen", now=now)
        assert job.state is JobState.CANCELLED


@pytest.mark.slow
def test_the_schema_before_knows_refused_jobs_as_dead(engine: Engine, now: datetime) -> None:
    sessions = engines.sessions(engine)
    with sessions.begin() as session:
        refuse(session, add_job(session, now), now, NOTE)
    rows = ("jobs", "job_inputs", "outputs", "deliveries")
    before = _count_rows(engine, *rows)
    migrations.downgrade(engine, "0001")
    with engine.connect() as connection:
        assert connection.scalar(text("SELECT state FROM jobs")) == "dead"
    assert _count_rows(engine, *rows) == before
    with pytest.raises(Exception, match=r"(?i)check"), engine.begin() as connection:
        connection.execute(text("UPDATE jobs SET state = 'refused'"))
    migrations.upgrade(engine)
    assert _count_rows(engine, *rows) == before
    with sessions.begin() as session:
        assert session.query(Job).one().inputs[0].instance is not None
    with engine.begin() as connection:
        connection.execute(text("UPDATE jobs SET state = 'refused'"))


@pytest.mark.slow
def test_foreign_keys_hold_after_a_migration(engine: Engine, now: datetime) -> None:
    with engines.sessions(engine).begin() as session:
        add_job(session, now)
    migrations.downgrade(engine, "0001")
    migrations.upgrade(engine)
    with pytest.raises(Exception, match=r"(?i)foreign key"), engine.begin() as connection:
        connection.execute(text("DELETE FROM jobs"))


def _count_rows(engine: Engine, *tables: str) -> list[int]:
    with engine.connect() as connection:
        return [connection.scalar(text(f"SELECT count(*) FROM {table}")) or 0 for table in tables]


@pytest.mark.parametrize(
    ("node", "route", "expected"),
    [(False, None, False), (True, None, True), (False, True, True), (True, False, False)],
)
def test_the_route_has_the_last_word_on_notes(node: bool, route: bool | None, expected: bool) -> None:
    routes = [make_route() | ({} if route is None else {"refusal_note": route})]
    config = Config.model_validate({"quality": {"refusal_note": node}, "routes": routes})
    assert config.sends_refusal_notes("kspace") is expected
    assert config.sends_refusal_notes("a route that has gone") is node


def _make_node_with_study(folder: Path, now: datetime, **sections: Any) -> Node:
    """Return a node with a study that its only route has taken."""
    running = Node(write_config(folder, **sections))
    put(running, raw_data(folder / "raw.dcm", now, PatientName="Secret^Name", PatientID="SECRET"), now)
    return running


def _write_strict_model(folder: Path) -> None:
    """Install the shipped prior as 'strict_prior', with an input contract that the phantom breaks."""
    _write_model(folder, "1.0.0", CONTRACT)


def _write_model(folder: Path, version: str, contract: dict[str, Any]) -> None:
    bundle = folder / "data" / "models" / "strict_prior"
    shutil.copytree(BUNDLES / "mri_prior", bundle)
    metadata = bundle / "configs" / "metadata.json"
    changed = {"name": "strict_prior", "version": version, "input_contract": contract}
    metadata.write_text(json.dumps(json.loads(metadata.read_text()) | changed))


def _run_command(running: Node, *words: str) -> int:
    return cli.main(["--config", str(running.config.path), *words])


@pytest.mark.slow
def test_what_breaks_the_input_contract_is_refused_with_every_reason(
    tmp_path: Path, now: datetime, capsys: pytest.CaptureFixture[str]
) -> None:
    _write_strict_model(tmp_path)
    running = _make_node_with_study(tmp_path, now, routes=[make_route(**FAST) | STRICT])
    assert _run_command(running, "work", "--once") == 0
    (job,) = running.jobs()
    assert (job.state, job.attempts) == (JobState.REFUSED, 1)
    assert "acceleration" in job.reason
    assert "strict_prior 1.0.0 takes 1 to 1.2" in job.reason
    assert "Magnetic Field Strength (0018,0087) is not stated" in job.reason
    assert not job.reason.startswith("refused")
    with running.sessions() as session:
        assert session.query(Output).count() == 0, "nobody asked for a note"
    capsys.readouterr()
    assert _run_command(running, "jobs", "list", "--state", "refused", "--json") == 0
    assert [row["id"] for row in json.loads(capsys.readouterr().out)] == [job.id]
    assert _run_command(running, "jobs", "show", str(job.id)) == 0
    shown_job = " ".join(capsys.readouterr().out.split())
    assert "Verdict verdict reason" in shown_job.replace("─", "")
    assert "refuse kspace: acceleration" in shown_job
    assert _run_command(running, "studies", "explain", _find_study_uid(running), "--json") == 0
    (route,) = json.loads(capsys.readouterr().out)
    assert [(each["state"], each["verdict"]) for each in route["jobs"]] == [("refused", "refuse")]
    assert _run_command(running, "studies", "explain", _find_study_uid(running)) == 0
    assert f"job {job.id} refused" in " ".join(capsys.readouterr().out.split())
    assert _run_command(running, "status", "--json") == 0
    status = json.loads(capsys.readouterr().out)
    assert status["jobs"] == {"refused": 1}
    assert status["last_errors"][0]["what"] == f"job {job.id}"


def _find_study_uid(running: Node) -> str:
    with running.sessions() as session:
        return session.query(Job).one().study.study_uid


def test_run_says_the_refusal_on_one_line(tmp_path: Path, now: datetime, capsys: pytest.CaptureFixture[str]) -> None:
    _write_strict_model(tmp_path)
    source = tmp_path / "in"
    source.mkdir()
    raw_data(source / "raw.dcm", now)
    path = write_config(tmp_path)
    words = ["--config", str(path), "run", "mri_reconstruction", str(source), str(tmp_path / "out")]
    assert cli.main([*words, "--model", "strict_prior"]) == 1
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert "strict_prior 1.0.0 takes 1 to 1.2" in lines[0]
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.slow
def test_a_refused_job_succeeds_with_another_model(tmp_path: Path, now: datetime) -> None:
    _write_strict_model(tmp_path)
    route = make_route(**FAST) | STRICT | {"refusal_note": True}
    running = _make_node_with_study(tmp_path, now, routes=[route])
    assert _run_command(running, "work", "--once") == 0
    assert running.jobs()[0].state is JobState.REFUSED
    shutil.rmtree(tmp_path / "data" / "models")
    _write_model(tmp_path, "1.0.0", {})  # a waiting job keeps the version that it was given
    assert _run_command(running, "jobs", "retry", "1") == 0
    assert _run_command(running, "work", "--once") == 0
    with running.sessions() as session:
        job = session.query(Job).one()
        kinds = [output.kind for output in job.outputs]
    assert job.state in (JobState.DONE, JobState.HELD)
    assert kinds == ["refusal note", "image", "labelled image", "parametric map", "segmentation", "report"]
    assert job.report["verdict"] in ("accept", "hold")


@pytest.mark.slow
def test_a_refusal_holds_where_no_note_can_be_written(tmp_path: Path, now: datetime) -> None:
    running = _make_node_with_study(tmp_path, now, routes=[make_route(**FAST)], quality={"refusal_note": True})
    (stored,) = [path for path in running.config.spool_dir.glob("*/*") if path.is_file()]
    ds = dcmread(stored)
    ds.remove_private_tags()
    del ds.CreatorVersionUID, ds.SeriesInstanceUID  # no MRD any more, and nothing to refer to
    ds.save_as(stored)
    assert _run_command(running, "work", "--once") == 0
    (job,) = running.jobs()
    assert (job.state, job.attempts) == (JobState.REFUSED, 1)
    with running.sessions() as session:
        assert session.query(Output).count() == 0


@pytest.mark.slow
def test_held_results_wait_with_their_report_and_it_says_why(tmp_path: Path, now: datetime) -> None:
    limits = {"hold_above": {"chi-square": 1e-9}}
    running = _make_node_with_study(tmp_path, now, routes=[make_route(**FAST)], quality=limits)
    assert _run_command(running, "work", "--once") == 0
    with running.sessions() as session:
        job = session.query(Job).one()
        (path,) = [running.config.spool_dir / each.relative_path for each in job.outputs if each.kind == "report"]
        assert session.query(Delivery).count() == 0
    assert job.state is JobState.HELD
    *others, reason = job.report["reasons"]
    assert others == _other_reasons(job)
    assert reason.startswith(f"{_chi_square_reason(job)}, above the limit of 1e-09 times the noise variance: ")
    assert _read_comments("Held for a person's decision", path) == job.report["reasons"]


def _chi_square_reason(job: Job) -> str:
    (value,) = [each["value"] for each in job.report["measurements"] if each["name"] == "chi-square"]
    return f"chi-square is {value:.4g} times the noise variance"


def _other_reasons(job: Job) -> list[str]:
    return [reason for reason in job.report["reasons"] if "chi-square" not in reason]


def _read_comments(answer: str, path: Path) -> list[str]:
    """Return the comments on the coded answer with this meaning."""
    pending = [dcmread(path)]
    while pending:
        item = pending.pop()
        children = list(item.get("ContentSequence") or [])
        if "ConceptCodeSequence" in item and item.ConceptCodeSequence[0].CodeMeaning == answer:
            return [child.TextValue for child in children]
        pending += children
    return []


def test_the_note_of_the_gates_refusal_reaches_the_pacs_once(tmp_path: Path, now: datetime, orthanc: Orthanc) -> None:
    sections = {
        "peers": [orthanc.peer],
        "routes": [make_route("orthanc", **FAST)],
        "quality": {"refuse_above": {"chi-square": 1e-9}, "refusal_note": True},
    }
    with Node(write_config(tmp_path / "node", **sections)) as running:
        path = raw_data(tmp_path / "raw.dcm", now, PatientName="Secret^Name", PatientID="SECRET")
        sent = peers.store(running.peer, [path], calling_aet="TEST")
        assert [result.status for result in sent] == [0x0000]
        job = running.wait_for_job("refused", "dead")
        assert job.state is JobState.REFUSED
        running.wait_until_delivered()
        assert running.command("jobs", "retry", str(job.id)).returncode == 0
        wait_for(lambda: running.log.count("refused, 1 notes") == 2, "it is refused again", within_s=120)
        assert {row.state for row in running.deliveries()} == {"delivered"}
        assert "ecret" not in running.log
    (note,) = orthanc.datasets()
    marking.check_marks(note)
    assert note.SOPClassUID == Comprehensive3DSRStorage
    assert note.StudyInstanceUID == dcmread(path).StudyInstanceUID
    assert (note.PatientID, str(note.PatientName)) == ("SECRET", "Secret^Name")
    (file,) = [
        each for each in running.config.spool_dir.rglob("*.dcm") if dcmread(each).SOPInstanceUID == note.SOPInstanceUID
    ]
    reason = job.reason
    assert "above the limit of 1e-09" in reason
    assert _read_comments("Refused", file) == [reason]
    assert objects.encode(dcmread(file)) == file.read_bytes()
