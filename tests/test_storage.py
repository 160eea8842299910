"""Files against rows, quarantine and the audit trail, by the commands of an operator."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from pathlib import Path

import pytest
from sqlalchemy import Engine, select, text
from sqlalchemy.orm import Session, sessionmaker

from db import audit, jobs, quarantine, studies
from db import engine as engines
from db.models import Instance, Job, Quarantine, Study
from db.states import InvalidTransition, QuarantineState
from db.studies import InstanceFacts, Sender, StoredFile
from dicomnode import cli
from dicomnode.maintenance import verification
from dicomnode.maintenance.retention import remove_files
from dicomnode.storage import spool
from tests.peers import write_config
from tests.peers.files import write_instance
from tests.rows import add_job
from tests.web_node import Web, web

__all__ = ["web"]

SENDER = Sender("S", "127.0.0.1")


def register(sessions: sessionmaker[Session], root: Path, number: int, content: bytes, now: datetime) -> StoredFile:
    file = spool.write(root, content)
    facts = InstanceFacts("1.2", "1.2.1", f"1.2.1.{number}", "1.2.840.10008.5.1.4.1.1.4", "1.2.840.10008.1.2.1", "MR")
    with sessions.begin() as session:
        studies.register_instance(session, facts=facts, file=file, sender=SENDER, now=now)
    return file


def make_old(path: Path) -> Path:
    os.utime(path, (1_000_000, 1_000_000))
    return path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    spool.prepare(tmp_path / "spool")
    return tmp_path / "spool"


def test_a_file_that_is_missing_or_changed_is_named_with_its_row(
    engine: Engine, sessions: sessionmaker[Session], root: Path, now: datetime
) -> None:
    intact, lost, changed = (register(sessions, root, n, bytes([n]) * 100, now) for n in (1, 2, 3))
    spool.path(root, lost).unlink()
    spool.path(root, changed).write_bytes(b"x" * 100)
    checked: list[verification.Claim] = []
    found = list(verification.verify(engines.readers(engine), root, on_checked=checked.append))
    assert {(each.what, each.row, each.file) for each in found} == {
        ("missing", "instances 2", lost.sha256),
        ("damaged", "instances 3", changed.sha256),
    }
    assert [claim.sha256 for claim in checked] == [intact.sha256, lost.sha256, changed.sha256]


def test_verifying_keeps_to_the_rate_that_was_asked_for(
    engine: Engine, sessions: sessionmaker[Session], root: Path, now: datetime
) -> None:
    for number in (1, 2):
        register(sessions, root, number, bytes([number]) * 5000, now)
    waits: list[float] = []
    assert list(verification.verify(engines.readers(engine), root, bytes_per_s=1000, wait=waits.append)) == []
    assert len(waits) == 2
    assert waits[1] == pytest.approx(10, abs=1)


def test_orphans_are_told_both_ways_and_only_files_of_ours_without_any_row_are_deleted(
    engine: Engine, sessions: sessionmaker[Session], root: Path, now: datetime
) -> None:
    known, lost = (register(sessions, root, n, bytes([n]), now) for n in (1, 2))
    spool.path(root, lost).unlink()
    orphan, fresh = spool.write(root, b"nobody's"), spool.write(root, b"on its way")
    strange = root / "aa" / "notes.txt"
    strange.write_text("?")
    for path in (spool.path(root, known), spool.path(root, orphan), strange):
        make_old(path)
    real_now = datetime.now(UTC)
    found = list(verification.find_orphans(engines.readers(engine), root, now=real_now))
    assert {(each.what, each.row, each.file) for each in found} == {
        ("missing", "instances 2", lost.sha256),
        ("no row", "", orphan.relative_path),
        ("not ours", "", "aa/notes.txt"),
    }
    assert verification.remove_orphans(sessions, root, found, now=real_now) == 1
    assert not spool.path(root, orphan).exists()
    assert spool.path(root, known).exists()
    assert spool.path(root, fresh).exists()
    assert strange.exists()
    with sessions() as session:
        assert audit.verify(session) is None


def test_a_row_that_came_meanwhile_saves_its_file(
    engine: Engine, sessions: sessionmaker[Session], root: Path, now: datetime
) -> None:
    orphan = spool.write(root, b"late")
    make_old(spool.path(root, orphan))
    found = list(verification.find_orphans(engines.readers(engine), root, now=datetime.now(UTC)))
    assert [each.what for each in found] == ["no row"]
    register(sessions, root, 1, b"late", now)
    make_old(spool.path(root, orphan))
    assert verification.remove_orphans(sessions, root, found, now=datetime.now(UTC)) == 0
    assert spool.path(root, orphan).exists()


def make_conflict(web: Web, tmp_path: Path) -> None:
    """Store an instance and another object under its UID, which goes into quarantine."""
    ds = write_instance(tmp_path / "first.dcm")
    web.store([tmp_path / "first.dcm"])
    ds.ImageComments = "changed"
    ds.save_as(tmp_path / "second.dcm", enforce_file_format=True)
    web.store([tmp_path / "second.dcm"])
    assert [row.state for row in web.quarantined()] == [QuarantineState.KEPT]


def make_options(web: Web, tmp_path: Path) -> list[str]:
    path = write_config(tmp_path / "config", node={"data_dir": str(web.config.data_dir)})
    return ["--config", str(path)]


@pytest.mark.slow
def test_what_is_released_becomes_the_instance_and_the_other_waits_instead(
    web: Web, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_conflict(web, tmp_path)
    (quarantined,), (before,) = web.quarantined(), web.rows()
    options = make_options(web, tmp_path)
    assert cli.main([*options, "quarantine", "list", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)[0]
    assert shown["sha256"] == quarantined.sha256
    assert shown["reason"] == "study 1 has this SOP Instance UID with other content"
    assert cli.main([*options, "quarantine", "release", "1"]) == 0
    assert capsys.readouterr().out == "quarantine 1 is released into study 1\n"
    (after,) = web.rows()
    assert (after.id, after.sha256, after.expired_at) == (before.id, quarantined.sha256, None)
    assert after.received_at == quarantined.received_at, "the first reception stands"
    replaced = web.quarantined()[1]
    assert replaced.received_at == before.received_at
    assert replaced.reason == "it was in study 1 until quarantine 1 was released in its place"
    assert [(row.state, row.sha256) for row in web.quarantined()] == [
        ("released", quarantined.sha256),
        ("kept", before.sha256),
    ]
    assert len(web.files_left()) == 2
    assert cli.main([*options, "storage", "verify"]) == 0
    assert cli.main([*options, "quarantine", "release", "2"]) == 0  # the decision is taken back
    assert web.rows()[0].sha256 == before.sha256
    assert cli.main([*options, "quarantine", "release", "2"]) == 1
    assert "it was decided before" in capsys.readouterr().err


def test_what_is_discarded_goes_and_what_is_unknown_is_said(
    web: Web, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_conflict(web, tmp_path)
    options = make_options(web, tmp_path)
    assert cli.main([*options, "quarantine", "show", "9"]) == 1
    assert "no quarantine 9" in capsys.readouterr().err
    assert cli.main([*options, "quarantine", "discard", "1"]) == 0
    for path in web.files_left():
        make_old(path)
    assert remove_files(web.sessions, web.config, now=datetime.now(UTC)) == 1
    assert [path.stem for path in web.files_left()] == [web.rows()[0].sha256]
    assert web.quarantined()[0].removed_at is not None


def test_a_uid_that_is_in_another_series_is_not_released(sessions: sessionmaker[Session], now: datetime) -> None:
    with sessions.begin() as session:
        add_job(session, now)
        uid = session.scalars(select(Instance.sop_instance_uid)).one()
        facts = InstanceFacts("1.7", "1.7.1", uid, "1.2.840.10008.5.1.4.1.1.4", "1.2.840.10008.1.2.1")
        number = studies.quarantine(
            session, file=StoredFile("b" * 64, 1, "bb/b.dcm"), reason="r", facts=facts, sender=SENDER, now=now
        )
    with pytest.raises(InvalidTransition, match="an instance of another series"), sessions.begin() as session:
        quarantine.release(session, session.get_one(Quarantine, number), facts, reason="r", now=now)
    with sessions() as session:
        assert session.get_one(Quarantine, number).state is QuarantineState.KEPT
        assert session.scalars(select(Instance)).one().expired_at is None


def test_the_trail_is_verified_and_a_studys_part_exported_without_the_patient(
    web: Web, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_instance(tmp_path / "one.dcm", PatientName="Geheim^Name", PatientID="GEHEIM")
    web.store([tmp_path / "one.dcm"])
    (study,) = web.rows(Study)
    with web.sessions.begin() as session:
        ids = list(session.scalars(select(Instance.id)))
        jobs.enqueue(
            session, study_id=study.id, revision=1, route="r", pipeline="p", options={}, inputs={"match": ids},
            destinations=[], now=web.now,
        )  # fmt: skip
    options = make_options(web, tmp_path)
    assert cli.main([*options, "audit", "verify"]) == 0
    assert "holds" in capsys.readouterr().out
    out = tmp_path / "study.json"
    assert cli.main([*options, "audit", "export", study.study_uid, "--out", str(out)]) == 0
    trail = json.loads(out.read_text())
    assert "eheim" not in out.read_text().lower()
    assert trail["chain"]["holds"]
    assert [event["event"] for event in trail["events"]] == ["received", "enqueued"]
    assert trail["events"][0]["detail"]["sha256"] == trail["instances"][0]["sha256"]
    assert trail["jobs"][0]["inputs"] == [{"name": "match", "instance": trail["instances"][0]["id"]}]
    capsys.readouterr()
    with web.engine.begin() as connection:
        connection.execute(text("UPDATE events SET detail = '{}' WHERE seq = 1"))
    assert cli.main([*options, "audit", "verify"]) == 1
    assert "event 1 was changed after it was written" in capsys.readouterr().err
    assert web.rows(Job)


def test_the_commands_say_by_their_exit_status_whether_the_storage_is_whole(
    web: Web, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_instance(tmp_path / "one.dcm")
    web.store([tmp_path / "one.dcm"])
    options = make_options(web, tmp_path)
    assert cli.main([*options, "storage", "verify", "--rate", "100", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == []
    orphan = make_old(spool.path(web.config.spool_dir, spool.write(web.config.spool_dir, b"x")))
    assert cli.main([*options, "storage", "orphans", "--remove"]) == 0
    assert "1 files without rows deleted" in capsys.readouterr().err
    assert not orphan.exists()
    web.files_left()[0].unlink()
    assert cli.main([*options, "storage", "verify"]) == 1
    assert cli.main([*options, "storage", "orphans"]) == 1
