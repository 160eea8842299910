"""The ledger of a study, from its instances to the proof that the destination keeps each result; retention waits."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session, sessionmaker

from db import audit, contents, studies, trail
from db import engine as engines
from db.models import Output, Study
from db.states import ProofState, StudyState
from dicomnode import cli, config
from dicomnode.commitment import proving
from dicomnode.delivery.delivery import deliver_due
from dicomnode.maintenance.retention import Retention
from tests import databases
from tests.peers import Committing, write_config
from tests.rows import finish_job

REPORT = {"model": "test@1", "digest": "ab" * 32}


class Site:
    """A node with a result that its archive was sent; its clock is moved by hand."""

    def __init__(self, folder: Path, archive: Committing) -> None:
        self.path = write_config(folder, peers=[archive.peer], retention={"sources_days": 1, "results_days": 1})
        self.config, self.now = config.load(self.path), datetime.now(UTC)
        databases.prepare(self.config)
        self.engine = engines.connect(self.config.database_url)
        self.sessions: sessionmaker[Session] = engines.sessions(self.engine)
        finish_job(self.sessions, self.config, ["archive"], self.now, report=REPORT)
        with self.sessions.begin() as session:
            study = session.scalars(select(Study)).one()
            studies.close(session, study, reason="quiet", now=self.now)
            audit.transition(session, study, StudyState.ROUTED, reason="routed", now=self.now)
        assert deliver_due(self.sessions, self.config, now=lambda: self.now) == 1

    def pass_hours(self, hours: float) -> None:
        """Let time pass; take the steps towards the proof, and let retention walk over all studies."""
        self.now += timedelta(hours=hours)
        proving.prove_due(self.sessions, self.config, now=lambda: self.now)
        walk = Retention(self.sessions, self.config)
        for _ in range(3):
            walk.step(now=lambda: self.now)
            self.now += timedelta(minutes=11)

    def has_result(self) -> bool:
        with self.sessions() as session:
            return session.scalars(select(Output)).one().expired_at is None

    def run(self, *words: str) -> int:
        return cli.main(["--config", str(self.path), *words])

    def read_ledger(self, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
        capsys.readouterr()
        assert self.run("studies", "ledger", "1", "--json") == 0
        (row,) = json.loads(capsys.readouterr().out)
        return dict(row)


@pytest.fixture
def archive() -> Iterator[Committing]:
    with Committing(same_association=True) as server:
        yield server


@pytest.fixture
def silent() -> Iterator[Committing]:
    with Committing() as server:
        yield server


def test_the_ledger_leads_from_the_instances_to_the_proof(
    tmp_path: Path, archive: Committing, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    site = Site(tmp_path, archive)
    row = site.read_ledger(capsys)
    assert (row["proof"], row["proven_at"]) == ("sent", None)
    site.pass_hours(0)
    row = site.read_ledger(capsys)
    assert row["instances"] == ["1.2.1.1.1"]
    assert (row["job"], row["model"], row["digest"]) == (1, "test@1", "ab" * 32)
    assert (row["result"], row["destination"], row["proof"]) == (archive.stored[0], "archive", "committed")
    assert row["transaction_uid"] == archive.transactions[0]
    assert datetime.fromisoformat(row["proven_at"]) >= datetime.fromisoformat(row["sent_at"])
    monkeypatch.setenv("COLUMNS", "200")
    assert site.run("studies", "ledger", "1") == 0
    assert "committed" in capsys.readouterr().out


def test_the_page_and_the_trail_have_the_proof(tmp_path: Path, archive: Committing) -> None:
    site = Site(tmp_path, archive)
    site.pass_hours(0)
    with site.sessions() as session:
        (summary,) = contents.summarize_deliveries(session, [1])[1]
        events = trail.list_study_events(session, 1)
    assert summary.proofs == {ProofState.COMMITTED: 1}
    assert [event.detail["to"] for event in events if event.subject == "proofs"] == ["committed"]


def test_retention_deletes_no_result_that_is_not_proven(
    tmp_path: Path, silent: Committing, capsys: pytest.CaptureFixture[str]
) -> None:
    site = Site(tmp_path, silent)
    site.pass_hours(0)
    site.pass_hours(23)
    assert site.has_result(), "the report may still come"
    site.pass_hours(100)
    assert site.has_result(), "nothing proves that the archive keeps it"
    assert site.read_ledger(capsys)["proof"] == "unproven"
    silent.same_association = True
    assert site.run("studies", "prove", "1") == 0
    site.pass_hours(0)
    assert site.read_ledger(capsys)["proof"] == "committed"
    site.pass_hours(25)
    assert not site.has_result()


def test_retention_does_not_wait_for_a_destination_that_is_not_asked_any_more(
    tmp_path: Path, silent: Committing
) -> None:
    site = Site(tmp_path, silent)
    site.pass_hours(0)
    site.pass_hours(100)
    assert site.has_result()
    peer = silent.peer.model_copy(update={"commitment": False})
    site.config = site.config.model_copy(update={"peers": (peer,)})
    site.pass_hours(25)
    assert not site.has_result()
