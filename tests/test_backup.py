"""A backup while the node receives, restored into an empty folder: nothing that was acknowledged before is missing."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest
from sqlalchemy import select
from sqlalchemy.engine import URL

from db import engine as engines
from db.models import Instance
from dicomnode import config
from dicomnode.dimse import peers
from dicomnode.errors import NotAllowed, StorageDamaged
from dicomnode.maintenance import backup
from dicomnode.storage import spool
from tests import databases, postgresql
from tests.peers import Node, write_config
from tests.peers.files import write_instance

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent
BEFORE, MEANWHILE = 10, 30


@pytest.fixture
def empty_url(request: pytest.FixtureRequest, database_url: str) -> Iterator[str]:
    """Yield another database of the same kind, or "" for SQLite in its own folder."""
    if database_url.startswith("sqlite"):
        yield ""
        return
    server: postgresql.Server = request.getfixturevalue("postgresql_server")
    with server.database() as url:
        yield url


def run_script(name: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a script of deploy/ with this environment's dicomnode."""
    command = f"{sys.executable} -m dicomnode"
    wrapper = Path(arguments[0]).parent / "dicomnode.sh"
    wrapper.write_text(f'#!/bin/sh\nexec {command} "$@"\n')
    wrapper.chmod(0o755)
    environment = os.environ | {"DICOMNODE": str(wrapper), "PYTHONPATH": str(ROOT)}
    command_line = [str(ROOT / "deploy" / name), *map(str, arguments)]
    return subprocess.run(command_line, capture_output=True, text=True, env=environment, check=False)


@contextmanager
def sending(running: Node, paths: list[Path]) -> Iterator[list[str]]:
    """Send instances while the block runs; yield the UIDs of the acknowledged ones."""
    done: list[str] = []

    def send() -> None:
        for result in peers.store(running.peer, paths, calling_aet="TEST"):
            assert result.status == 0
            done.append(result.path.stem)

    thread = threading.Thread(target=send)
    thread.start()
    try:
        yield done
    finally:
        thread.join()


def test_a_backup_of_a_running_node_is_restored_whole(tmp_path: Path, database_url: str, empty_url: str) -> None:
    if empty_url and shutil.which("pg_dump") is None:
        pytest.skip("pg_dump is not installed (apt-get install postgresql-client)")
    database = {"url": database_url} if empty_url else {}
    path = write_config(tmp_path / "node", database=database)
    first = [write_instance(tmp_path / f"a{n}.dcm").SOPInstanceUID for n in range(BEFORE)]
    for number in range(MEANWHILE):
        write_instance(tmp_path / f"b{number}.dcm")
    with Node(path, "serve", "--workers", "0") as running:
        sent = peers.store(running.peer, sorted(tmp_path.glob("a*.dcm")), calling_aet="TEST")
        assert {result.status for result in sent} == {0}
        with sending(running, sorted(tmp_path.glob("b*.dcm"))):
            done = run_script("backup.sh", path, tmp_path / "backups")
            assert done.returncode == 0, done.stderr
        assert running.stop() == 0
    (backup_folder,) = (tmp_path / "backups").iterdir()
    target = write_config(tmp_path / "again", database={"url": empty_url} if empty_url else {})
    done = run_script("restore.sh", target, backup_folder)
    assert done.returncode == 0, done.stderr
    assert "0 wrong" in done.stderr
    assert "holds" in done.stdout
    engine = engines.connect(config.load(target).database_url)
    with engines.readers(engine)() as session:
        assert set(first) <= set(session.scalars(select(Instance.sop_instance_uid)))
    engine.dispose()
    with Node(target, "serve", "--workers", "0") as running:  # the node takes the rest, and the known instances again
        sent = peers.store(running.peer, sorted(tmp_path.glob("[ab]*.dcm")), calling_aet="TEST")
        assert {result.status for result in sent} == {0}
        with running.sessions() as session:
            assert len(session.scalars(select(Instance)).all()) == BEFORE + MEANWHILE
        assert running.stop() == 0


@pytest.fixture
def filled_node(tmp_path: Path) -> config.Config:
    """Return the configuration of a node with three files, on SQLite."""
    loaded = config.load(write_config(tmp_path / "node"))
    databases.prepare(loaded)
    spool.prepare(loaded.spool_dir)
    for content in (b"one", b"two", b"three"):
        spool.write(loaded.spool_dir, content)
    return loaded


def clock() -> datetime:
    return datetime(2026, 11, 20, tzinfo=UTC)


def test_what_goes_and_comes_while_the_database_is_dumped_is_in_the_backup(
    filled_node: config.Config, tmp_path: Path
) -> None:
    removed, added = spool.path(filled_node.spool_dir, spool.write(filled_node.spool_dir, b"one")), []

    def dump(url: URL, to: Path) -> None:
        backup.dump_database(url, to)
        removed.unlink()
        added.append(spool.write(filled_node.spool_dir, b"four").relative_path)

    facts = backup.create(filled_node, tmp_path / "b", now=clock, dump=dump)
    assert facts["files"] == 4
    assert (tmp_path / "b" / "spool" / removed.parent.name / removed.name).read_bytes() == b"one"
    assert (tmp_path / "b" / "spool" / added[0]).read_bytes() == b"four"


def test_a_backup_that_broke_off_is_none(filled_node: config.Config, tmp_path: Path) -> None:
    def fail(url: URL, to: Path) -> None:
        raise SystemExit("killed")

    with pytest.raises(SystemExit):
        backup.create(filled_node, tmp_path / "b", now=clock, dump=fail)
    assert not (tmp_path / "b").exists()
    backup.create(filled_node, tmp_path / "b", now=clock)
    with pytest.raises(NotAllowed, match="exists already"):
        backup.create(filled_node, tmp_path / "b", now=clock)


@pytest.mark.parametrize("damage", ["a file", "the dump", "the facts"])
def test_a_backup_that_is_not_whole_is_refused(filled_node: config.Config, tmp_path: Path, damage: str) -> None:
    backup_folder = tmp_path / "b"
    backup.create(filled_node, backup_folder, now=clock)
    if damage == "a file":
        next((backup_folder / "spool").rglob("*.dcm")).unlink()
    elif damage == "the dump":
        (backup_folder / "node.sqlite").write_bytes(b"x")
    else:
        (backup_folder / "backup.json").unlink()
    target = config.load(write_config(tmp_path / "again"))
    with pytest.raises(StorageDamaged):
        backup.restore(target, backup_folder)
    assert not target.data_dir.exists()


def test_nothing_is_restored_over_something(filled_node: config.Config, tmp_path: Path) -> None:
    backup.create(filled_node, tmp_path / "b", now=clock)
    with pytest.raises(NotAllowed, match="is not empty"):
        backup.restore(filled_node, tmp_path / "b")


def test_only_the_newest_backups_are_kept(filled_node: config.Config, tmp_path: Path) -> None:
    folder = tmp_path / "backups"
    for old in ("20260101T000000Z", "20260102T000000Z", "20260103T000000Z"):
        (folder / old).mkdir(parents=True)
    (folder / "not-ours").mkdir()
    done = subprocess.run(
        ["sh", str(ROOT / "deploy" / "backup.sh"), str(filled_node.path), str(folder)],
        capture_output=True, text=True, check=False,
        env=os.environ | {"KEEP": "2", "DICOMNODE": "echo"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in folder.iterdir()) == ["20260102T000000Z", "20260103T000000Z", "not-ours"]


def test_the_facts_of_a_backup_say_what_it_is(filled_node: config.Config, tmp_path: Path) -> None:
    backup.create(filled_node, tmp_path / "b", now=clock)
    facts = json.loads((tmp_path / "b" / "backup.json").read_text())
    assert (facts["files"], facts["bytes"], facts["database"]) == (3, 11, "sqlite")


def test_pg_dump_gets_the_password_and_no_list_of_processes_shows_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "pg_dump"
    program.write_text(f'#!/bin/sh\nfor last; do :; done\necho "$last $PGPASSWORD" >{tmp_path / "seen"}\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    url = URL.create("postgresql+psycopg", "dicomnode", "odd:/@", "db.example", 5432, "dicomnode")
    backup.dump_database(url, tmp_path / "dump")
    assert (tmp_path / "seen").read_text() == "postgresql://dicomnode@db.example:5432/dicomnode odd:/@\n"
