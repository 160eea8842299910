"""Lost rows of the database: the node notices, deletes nothing, and adopts the files."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session, sessionmaker

from db import studies
from db.models import Chain, Instance, Quarantine
from dicomnode import cli
from dicomnode.datasets import headers
from dicomnode.dimse import peers
from dicomnode.errors import StorageDamaged
from dicomnode.maintenance import adoption
from dicomnode.storage import spool
from dicomnode.storage.high_water import HighWater, check_nothing_lost
from tests.peers import Node, write_config
from tests.peers.files import write_instance, write_result
from tests.rows import make_arrival

pytestmark = pytest.mark.slow

COUNT = 3


@pytest.fixture
def root(tmp_path: Path) -> Path:
    spool.prepare(tmp_path / "spool")
    return tmp_path / "spool"


def _delete(wal: Path) -> None:
    wal.unlink()


def _damage(wal: Path) -> None:
    """Change a byte in the first frame; SQLite ignores all frames from there on."""
    content = bytearray(wal.read_bytes())
    content[32 + 24 + 100] ^= 0xFF
    wal.write_bytes(content)


def _kill_after_receiving(folder: Path) -> Node:
    """Return a node that acknowledged instances and was killed before SQLite moved its log into the database."""
    path = write_config(folder)
    with Node(path, "serve", "--workers", "0") as running:
        files = [folder / f"{number}.dcm" for number in range(COUNT)]
        for file in files:
            write_instance(file, study_uid="1.2.3", series_uid="1.2.3.1")
        assert {each.status for each in peers.store(running.peer, files, calling_aet="MR1")} == {0}
        running.kill()
    return Node(path, "serve", "--workers", "0")


@pytest.mark.parametrize("lose", [_delete, _damage])
def test_lost_rows_are_noticed_and_their_files_adopted(
    tmp_path: Path, lose: Callable[[Path], None], capsys: pytest.CaptureFixture[str]
) -> None:
    node = _kill_after_receiving(tmp_path)
    lose(node.config.data_dir / "node.sqlite-wal")
    (node.config.data_dir / "node.sqlite-shm").unlink(missing_ok=True)
    done = node.command("serve", "--workers", "0")
    assert done.returncode == 1
    check_advice(done.stderr)
    for command in (("audit", "verify"), ("storage", "verify"), ("storage", "orphans", "--remove"), ("work", "--once")):
        assert run_command(node, *command) == 1, command
        check_advice(capsys.readouterr().err)
    assert len(list(node.config.spool_dir.glob("??/*.dcm"))) == COUNT
    run_command(node, "storage", "adopt")
    assert f"{COUNT} of {COUNT} files adopted" in capsys.readouterr().err
    with node:
        assert node.stop() == 0
    with node.sessions() as session:
        rows = session.scalars(select(Instance)).all()
    assert {(row.sender_ae_title, row.sender_address) for row in rows} == {("MR1", "adopted")}
    assert all(row.committed_at for row in rows), "a commitment may be lost with the rows: retention keeps them"
    assert run_command(node, "storage", "verify") == 0
    assert run_command(node, "audit", "verify") == 0


def run_command(node: Node, *words: str) -> int:
    """Run a command in this process, which takes a hundredth of a start; return its status."""
    return cli.main(["--config", str(node.config.path), *words])


def check_advice(message: str) -> None:
    assert "dicomnode storage adopt" in message or "no database" in message


def test_a_node_that_was_only_killed_starts_again(tmp_path: Path) -> None:
    node = _kill_after_receiving(tmp_path)
    with node:
        assert node.stop() == 0
    with node.sessions() as session:
        assert len(session.scalars(select(Instance)).all()) == COUNT


def test_the_mark_follows_the_newest_event_only_upwards(root: Path) -> None:
    mark = HighWater(root)
    assert mark.read() is None
    mark.raise_to(5, "a" * 64)
    mark.raise_to(4, "b" * 64)
    assert HighWater(root).read() == (5, "a" * 64)
    mark.reset(2, "c" * 64)
    assert HighWater(root).read() == (2, "c" * 64)


def test_another_history_is_not_taken_for_ours(sessions: sessionmaker[Session], root: Path, now: datetime) -> None:
    with sessions.begin() as session:
        studies.register_instances(session, [make_arrival()], now=now)
    with sessions() as session:
        head = session.get_one(Chain, 1)
        HighWater(root).reset(head.seq, head.hash)
        check_nothing_lost(session, root)
        HighWater(root).reset(head.seq, "f" * 64)
        with pytest.raises(StorageDamaged, match="is not the one that the spool knows"):
            check_nothing_lost(session, root)
        HighWater(root).reset(head.seq + 1, head.hash)
        with pytest.raises(StorageDamaged, match=f"ends with event {head.seq}, but event {head.seq + 1} was committed"):
            check_nothing_lost(session, root)


def test_a_new_database_beside_files_is_noticed_without_a_mark(sessions: sessionmaker[Session], root: Path) -> None:
    with sessions() as session:
        check_nothing_lost(session, root)
        spool.write(root, b"a file")
        with pytest.raises(StorageDamaged, match="the database is new"):
            check_nothing_lost(session, root)


def test_what_cannot_be_adopted_is_named_and_stays(
    sessions: sessionmaker[Session], root: Path, tmp_path: Path, now: datetime
) -> None:
    known = write_instance(tmp_path / "known.dcm")
    file = spool.write(root, (tmp_path / "known.dcm").read_bytes())
    facts = headers.read(spool.path(root, file))
    with sessions.begin() as session:
        studies.register_instance(session, facts=facts, file=file, sender=studies.Sender("A", "1.1.1.1"), now=now)
    other = write_instance(tmp_path / "other.dcm", SOPInstanceUID=known.SOPInstanceUID, PatientComments="other")
    write_result(tmp_path / "result.dcm")
    written = [spool.write(root, (tmp_path / name).read_bytes()) for name in ("other.dcm", "result.dcm")]
    written.append(spool.write(root, b"no DICOM"))
    damaged = spool.write(root, b"once whole")
    spool.path(root, damaged).write_bytes(b"not any more")
    found = {each.file: each for each in adoption.adopt(sessions, root, now=now)}
    assert other.SOPInstanceUID == known.SOPInstanceUID
    outcomes = [found[each.relative_path].outcome for each in (*written, damaged)]
    assert outcomes == ["quarantined", "left", "left", "left"]
    assert found[damaged.relative_path].reason == "its content is not what its name says"
    assert "a result of this node" in found[written[1].relative_path].reason
    with sessions() as session:
        assert [row.sha256 for row in session.scalars(select(Quarantine))] == [written[0].sha256]
    assert all(spool.path(root, each).exists() for each in (*written, damaged))
