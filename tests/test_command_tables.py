"""Tables, help and completion as an operator sees them in a terminal of 80 columns."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import pytest
from sqlalchemy.orm import Session, sessionmaker

from db import engine as engines
from db import jobs, studies
from db.models import Event, Job
from db.states import JobState
from dicomnode import cli, config, listings
from dicomnode.cli import tables
from dicomnode.errors import NotFound
from tests import databases
from tests.peers import write_config
from tests.rows import add_job, make_arrival

REPORT = {
    "model": "m@1", "digest": "a" * 64, "verdict": "hold", "reasons": ["chi-square is 5", "the head is cut"],
    "measurements": [{"group": "hippocampus", "name": "volume", "value": 3.14159, "unit": "ml"}],
    "options": {"steps": 2}, "acquisition": {"te_ms": 3.0, "t1w": {"tr_ms": 2300.0}, "matrix": [1, 2]},
}  # fmt: skip


@pytest.fixture
def node(tmp_path: Path, now: datetime) -> Iterator[tuple[Path, sessionmaker[Session]]]:
    """Yield the node.toml of a node with a held job, and its sessions."""
    path = write_config(tmp_path)
    loaded = config.load(path)
    databases.prepare(loaded)
    engine = engines.connect(loaded.database_url)
    sessions = engines.sessions(engine)
    with sessions.begin() as session:
        job = add_job(session, now, study="1.2.840.1")
        job.study.patient_name, job.study.patient_id = "Meier^Erika", "P1"
        job.study.study_description = "MR head"
        jobs.claim(session, worker="w", lease_s=60, now=now)
        jobs.finish(session, job_id=job.id, worker="w", outputs=[], report=REPORT, held_because="why", now=now)
    yield path, sessions
    engine.dispose()


def run(path: Path, *words: str) -> int:
    return cli.main(["--config", str(path), *words])


def test_lists_name_patient_and_number_in_80_columns(
    node: tuple[Path, sessionmaker[Session]], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    for words in (("studies", "list"), ("jobs", "list")):
        assert run(node[0], *words) == 0
        out = capsys.readouterr().out
        assert "Meier, Erika" in out
        assert max(map(len, out.splitlines())) <= 80
        assert run(node[0], *words, "--json") == 0
        assert "Meier" not in capsys.readouterr().out, "listings for machines name nobody"


def test_names_are_masked_where_the_pages_mask_them(node: tuple[Path, sessionmaker[Session]]) -> None:
    with node[1]() as session:
        (row,) = tables.list_study_rows(session, mask=True)
    assert row["patient"] == "name masked"


def test_a_running_job_says_what_is_left(node: tuple[Path, sessionmaker[Session]], now: datetime) -> None:
    with node[1].begin() as session:
        job = session.get_one(Job, 1)
        job.state, job.progress, job.started_at = JobState.RUNNING, 0.5, now
        (row,) = tables.list_job_rows(session, None, mask=False, now=now)
    assert row["left"].startswith("50 %, ")


def test_a_job_is_shown_as_one_table_for_each_part(
    node: tuple[Path, sessionmaker[Session]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(node[0], "jobs", "show", "1") == 0
    out = capsys.readouterr().out
    titles = [
        line for line in out.splitlines() if line in ("Job", "Run", "Verdict", "Measurements", "Options", "Inputs")
    ]
    assert titles == ["Job", "Run", "Verdict", "Measurements", "Options", "Inputs"]
    words = " ".join(out.split())
    for text in ("hold chi-square is 5", "hold the head is cut", "hippocampus: volume 3.142 ml", "t1w tr ms 2300"):
        assert text in words
    assert "{" not in out
    assert "a" * 13 not in out


def test_a_study_is_found_by_number_uid_and_its_beginning(
    node: tuple[Path, sessionmaker[Session]], now: datetime
) -> None:
    with node[1].begin() as session:
        studies.register_instances(session, [make_arrival("1.2.840.2")], now=now)
        for text in ("1", "1.2.840.1"):
            assert listings.resolve_study(session, text).study_uid == "1.2.840.1"
        assert listings.resolve_study(session, "1.2.840.2").id == 2
        with pytest.raises(NotFound, match=r"several studies have a UID that begins with 1\.2\.8"):
            listings.resolve_study(session, "1.2.8")
        studies.register_instances(session, [make_arrival("2.25.7", number=2)], now=now)
        assert listings.resolve_study(session, "2.25").study_uid == "2.25.7"
        for text in ("", "9", "22", "1.2.840.3", "%"):
            with pytest.raises(NotFound, match="no study"):
                listings.resolve_study(session, text)
        with pytest.raises(NotFound):
            listings.find_study(session, "1")


@pytest.mark.parametrize(("decision", "past"), [("release", "released"), ("discard", "discarded")])
def test_a_decision_keeps_reason_and_name(node: tuple[Path, sessionmaker[Session]], decision: str, past: str) -> None:
    assert run(node[0], "jobs", decision, "1", "--reason", "ventricles as  in the source", "--who", "MK") == 0
    with node[1]() as session:
        event = session.query(Event).filter_by(subject="jobs", event="moved").order_by(Event.seq.desc()).first()
        assert event is not None
        assert event.detail["reason"] == f"{past} by MK: ventricles as in the source"


def test_help_groups_every_command_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == 0
    out = capsys.readouterr().out
    for group in (
        "Run a node",
        "Studies and results",
        "Send, fetch and convert",
        "Pipelines and models",
        "Maintenance",
    ):
        assert f"─ {group} ─" in out
    for name in cli.COMMANDS:
        assert out.count(f"│ {name} ") == 1


@pytest.mark.parametrize(
    ("words", "expected"),
    [("dicomnode stu", "studies"), ("dicomnode studies ro", "route"), ("dicomnode models en", "end-shadow")],
)
def test_the_shell_completes_commands_of_every_level(words: str, expected: str) -> None:
    environment = {"_DICOMNODE_COMPLETE": "complete_zsh", "_TYPER_COMPLETE_ARGS": words}
    code = "import sys; from dicomnode import cli; sys.exit(cli.main([]))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | environment, check=False
    )
    assert expected in done.stdout, done.stderr
    assert "serve" not in done.stdout


@pytest.mark.slow
def test_check_prints_a_line_as_soon_as_a_step_is_done(tmp_path: Path) -> None:
    path = write_config(tmp_path)
    command = [sys.executable, "-u", "-m", "dicomnode", "--config", str(path), "check"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        first = process.stdout.readline()
        assert process.poll() is None, "it goes on"
        rest = process.stdout.read()
    assert first.startswith("ok       configuration: ")
    assert [line.split()[0] for line in rest.splitlines() if line[:1].strip()][:2] == ["warning", "ok"]
