"""Tables, help and completion as an operator sees them in a terminal of 80 columns."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import pytest
from sqlalchemy.orm import Session, sessionmaker

from db import engine as engines
from db import jobs, studies, trail
from db.models import Event, Job, Study
from db.states import JobState
from dicomnode import cli, config, listings
from dicomnode.cli import context, tables
from dicomnode.errors import NotFound
from dicomnode.monitoring import status
from dicomnode.routing import routing
from dicomnode.web import template_filters
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


def test_a_study_that_no_route_took_is_not_routed_in_every_table_and_in_the_log(
    node: tuple[Path, sessionmaker[Session]],
    now: datetime,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    with node[1].begin() as session:
        studies.register_instances(session, [make_arrival("1.2.9")], now=now)
        studies.close(session, session.get_one(Study, 2), reason="quiet", now=now)
    with caplog.at_level("INFO"):
        routing.route_complete_studies(node[1], config.load(node[0]), now=lambda: now)
    assert "study 2: not routed: no route took it" in caplog.text
    with node[1]() as session:
        event = trail.list_study_events(session, 2)[0]
    assert template_filters.describe_event(event) == "Study 2 complete → routed: no route took it"
    for words in (("studies", "list"), ("studies", "show", "2"), ("status",)):
        assert run(node[0], *words) == 0
        assert "not routed" in " ".join(capsys.readouterr().out.split()), words
    assert run(node[0], "studies", "list", "--json") == 0
    facts = json.loads(capsys.readouterr().out)[1]
    assert (facts["state"], facts["jobs"]) == ("routed", 0), "scripts read the state as before"
    assert run(node[0], "status", "--json") == 0
    counts = json.loads(capsys.readouterr().out)
    assert (counts["studies"], counts["not_routed"]) == ({"receiving": 1, "routed": 1}, 1)
    assert counts["workers"] == 0
    assert run(node[0], "status") == 0
    assert "no job starts: run 'dicomnode work'" in " ".join(capsys.readouterr().out.split())


def test_a_study_is_shown_with_short_uids_and_says_what_it_has_none_of(
    node: tuple[Path, sessionmaker[Session]],
    now: datetime,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    study = "1.2.840.113619.2.55.3.604688119.971.1264"
    with node[1].begin() as session:
        studies.register_instances(session, [make_arrival(study)], now=now)
    assert run(node[0], "studies", "show", "2") == 0
    shown = capsys.readouterr().out
    assert "…9.971.1264.1" in shown
    assert f"{study}.1" not in shown
    assert "Jobs\nno job: 'dicomnode studies explain'" in shown
    node[0].write_text(
        node[0].read_text() + '\n[[routes]]\nname = "f"\npipeline = "ms_lesions"\nmatch = {Modality = "MR"}\n'
    )
    assert run(node[0], "studies", "explain", "2") == 0
    explained = capsys.readouterr().out
    assert "…9.971.1264.1" in explained
    assert "113619" not in explained


def test_paths_of_the_data_kit_stay_on_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    path = "anatomy/allen-human-reference-atlas-mni/"
    context.print_rows([{"path": path, "for": "training and evaluation, " * 4}], ["path", "for"], as_json=False)
    out = capsys.readouterr().out
    assert path in out
    assert max(map(len, out.splitlines())) <= 80


def test_versions_stay_whole_beside_long_texts(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    row = {"name": "standard_dose_pet", "title": "Standard-dose PET from low-dose PET " * 2, "inputs": "pet [mr] " * 4}
    context.print_rows(
        [row | {"model": "standard_dose_pet@1.4.0"}], ["name", "title", "inputs", "model"], as_json=False
    )
    assert "standard_dose_pet@1.4.0" in capsys.readouterr().out


def test_a_decision_that_the_state_does_not_allow_says_which_does(
    node: tuple[Path, sessionmaker[Session]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(node[0], "jobs", "retry", "1") == 1
    assert "job 1 is held: only a refused, dead or cancelled job can run again" in capsys.readouterr().err
    assert run(node[0], "jobs", "discard", "1", "--reason", "r") == 0
    assert run(node[0], "jobs", "cancel", "1") == 1
    assert "job 1 is cancelled: a job that is done or cancelled cannot be cancelled" in capsys.readouterr().err


def test_deliveries_that_failed_for_one_reason_are_one_line() -> None:
    down = "peer pacs (ORTHANC) at 127.0.0.1:4242 cannot be reached: does it run, are host and port right?"
    errors = [{"what": f"delivery {number} to pacs", "reason": down} for number in (7, 6, 5)]
    errors.insert(1, {"what": "job 3", "reason": "the head is cut"})
    assert status.group_errors(errors) == [("delivery 7 to pacs and 2 more", down), ("job 3", "the head is cut")]


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
