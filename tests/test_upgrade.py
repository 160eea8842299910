"""Migration of a filled database from the first released schema to the newest and back, without any loss."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from alembic import command
from alembic.config import Config as Alembic
from pydicom.dataset import Dataset
from sqlalchemy import Column, Engine, MetaData, Table, insert, inspect, select
from sqlalchemy.orm import sessionmaker

from db import audit, migrations
from db import engine as engines
from db.models import Base, Instance, Output, Study
from db.studies import StoredFile
from dicomnode.dimse import peers
from dicomnode.maintenance import verification
from dicomnode.storage import spool
from tests.peers import Node, wait_for, write_config, write_instance, write_result

Rows = Mapping[str, list[tuple[Any, ...]]]

FIRST_TABLES = frozenset(
    "chain deliveries events instances job_inputs jobs outputs quarantine series studies".split()  # noqa: SIM905
)
STATES = {
    "jobs": ("done", "ready", "running", "held", "dead", "cancelled"),
    "deliveries": ("delivered", "waiting", "sending", "given_up"),
    "quarantine": ("kept", "released", "discarded"),
    "studies": ("routed", "receiving", "complete"),
}


@pytest.fixture
def first(empty_database_url: str) -> Iterator[Engine]:
    """Return a database as the first release made it."""
    engine = engines.connect(empty_database_url)
    alembic = Alembic()
    alembic.set_main_option("script_location", str(Path(migrations.__file__).parent))
    alembic.set_main_option("path_separator", "os")
    with engine.begin() as connection:
        alembic.attributes["connection"] = connection
        command.upgrade(alembic, "0001")
    yield engine
    engine.dispose()


@pytest.mark.slow
def test_nothing_is_lost_on_the_way_up_and_down_and_the_node_serves_it(
    first: Engine, empty_database_url: str, tmp_path: Path, now: datetime
) -> None:
    node = Node(write_config(tmp_path, database={"url": empty_database_url}), "serve", "--workers", "0")
    source, result = _fill_database(first, node.config.spool_dir, tmp_path, now)
    columns = _list_columns(first)
    before = _read_rows(first, columns)
    assert all(before.values()), "every table has rows"

    migrations.upgrade(first)
    assert migrations.current(first) == migrations.head()
    assert _read_rows(first, columns) == before
    migrations.downgrade(first, "0001")
    assert _list_columns(first) == columns
    assert _read_rows(first, columns) == before
    migrations.upgrade(first)
    assert _read_rows(first, columns) == before
    first.dispose()

    with node:
        wait_for(lambda: _count_unread(node) == 0, "rows of before have been read again")
        _check_served(node, source, result)
        _check_receives(node, tmp_path)
        assert node.stop() == 0
    with node.sessions() as session:
        assert audit.verify(session) is None
    readers = sessionmaker(first)
    damaged = [each for each in verification.verify(readers, node.config.spool_dir) if each.what != "missing"]
    assert damaged == []


def _check_served(node: Node, source: Dataset, result: Dataset) -> None:
    """Check that objects are found by attributes of their files and sent unchanged, and old jobs keep their states."""
    with httpx.Client(base_url=_find_web_url(node), timeout=30) as client:
        found = client.get("/dicom-web/instances", params={"InstanceNumber": "7"}).json()
        assert [each["00080018"]["Value"] for each in found] == [[source.SOPInstanceUID]]
        for ds in (source, result):
            found = client.get("/dicom-web/instances", params={"SOPInstanceUID": ds.SOPInstanceUID}).json()
            assert [each["0020000D"]["Value"] for each in found] == [[source.StudyInstanceUID]]
        uids = f"{source.StudyInstanceUID}/series/{source.SeriesInstanceUID}/instances/{source.SOPInstanceUID}"
        got = client.get(f"/dicom-web/studies/{uids}")
        assert got.status_code == 200
        assert bytes(source.PixelData) in got.content
    states = [job.state for job in node.jobs()]
    assert states[0] == "done"
    assert set(states[3:]) == {"held", "dead", "cancelled"}


def _check_receives(node: Node, folder: Path) -> None:
    new = write_instance(folder / "new.dcm", study_uid="1.2.826.0.1.3680043.8.498.99", series_uid="1.2.99.1")
    assert [sent.status for sent in peers.store(node.peer, [folder / "new.dcm"], calling_aet="TEST")] == [0x0000]
    with node.sessions() as session:
        assert session.scalar(select(Study.id).where(Study.study_uid == new.StudyInstanceUID)) is not None


def _find_web_url(node: Node) -> str:
    found = re.search(r"web (http://\S+?)/?,", node.log)
    assert found
    return found[1]


def _count_unread(node: Node) -> int:
    """Return the number of rows whose files have not been read since the upgrade."""
    with node.sessions() as session:
        tables = (Instance.attributes, Output.attributes)
        return sum(len(session.scalars(select(column).where(column.is_(None))).all()) for column in tables)


def _fill_database(engine: Engine, root: Path, folder: Path, now: datetime) -> tuple[Dataset, Dataset]:
    """Add rows of every table in every state of the first schema, with the files of a study and of its result."""
    result = write_result(folder / "result.dcm", InstanceNumber=7)
    source = write_instance(folder / "source.dcm", InstanceNumber=7)
    stored_files = {
        ds.SOPInstanceUID: spool.write(root, path.read_bytes()) for ds, path in _list_files(folder, source, result)
    }
    instance, output = _make_object_columns(source, stored_files), _make_object_columns(result, stored_files)
    with engine.begin() as connection:
        add = _Adder(connection, now)
        for number, state in enumerate(STATES["studies"]):
            uid = source.StudyInstanceUID if not number else f"1.2.3.{number}"
            add("studies", study_uid=uid, state=state, revision=1, patient_id=f"P{number}", patient_name="Müller^A",
                accession_number="A", study_date="20250101", study_description="old", opened_at=now,
                last_received_at=now, completed_at=now, completed_by="quiet")  # fmt: skip
        add("series", study_id=1, series_uid=source.SeriesInstanceUID, modality="MR",
            attributes={"Modality": "MR", "StudyTime": "0815"})  # fmt: skip
        add("instances", series_id=1, revision=1, sender_ae_title="OLD", sender_address="::1", received_at=now,
            **instance)  # fmt: skip
        for number, state in enumerate(STATES["quarantine"]):
            add("quarantine", state=state, reason="why", sha256=f"{number:064}", size_bytes=1, study_uid="1.2",
                relative_path="x", series_uid="1.3", sop_instance_uid="1.4", sop_class_uid="1.5",
                sender_ae_title="OLD", sender_address="::1", received_at=now)  # fmt: skip
        for number, state in enumerate(STATES["jobs"]):
            add.job(number, state, later=now + timedelta(days=40000))
            add("job_inputs", job_id=number + 1, name="match", instance_id=1)
        add("outputs", job_id=1, series_uid=result.SeriesInstanceUID, kind="image", created_at=now, **output)
        for state in STATES["deliveries"]:
            add("deliveries", output_id=1, destination=f"pacs {state}", state=state, attempts=1, worker="w",
                not_before=now + timedelta(days=40000), reason="", created_at=now)  # fmt: skip
    with engines.sessions(engine).begin() as session:
        for number in range(3):
            audit.append(session, subject="jobs", subject_id=number, event="moved", detail={"to": "ready"}, now=now)
    return source, result


def _list_files(folder: Path, source: Dataset, result: Dataset) -> list[tuple[Dataset, Path]]:
    return [(source, folder / "source.dcm"), (result, folder / "result.dcm")]


def _make_object_columns(ds: Dataset, stored_files: Mapping[str, StoredFile]) -> dict[str, Any]:
    """Return the columns of an object's file; at first, only instances had the transfer syntax."""
    file = stored_files[ds.SOPInstanceUID]
    stored = {"sha256": file.sha256, "size_bytes": file.size_bytes, "relative_path": file.relative_path}
    uids = {"sop_instance_uid": ds.SOPInstanceUID, "sop_class_uid": ds.SOPClassUID}
    return stored | uids | {"transfer_syntax_uid": ds.file_meta.TransferSyntaxUID}


class _Adder:
    """An inserter of rows into the columns that the database has, in the types of today."""

    def __init__(self, connection: Any, now: datetime) -> None:
        self._connection, self._now = connection, now
        self._tables = {name: _reflect_table(connection, name) for name in FIRST_TABLES}

    def __call__(self, table: str, **values: Any) -> None:
        existing = self._tables[table].c
        self._connection.execute(insert(self._tables[table]).values({k: v for k, v in values.items() if k in existing}))

    def job(self, number: int, state: str, *, later: datetime) -> None:
        running = state == "running"
        self("jobs", key=f"{number:064}", study_id=1, revision=1, route="old", pipeline="mri_reconstruction", model="",
             options={"samples": 2}, destinations=["pacs"], priority=number, state=state, attempts=1,
             worker="gone:1" if running else "", leased_until=later if running else None, not_before=later,
             reason="" if state == "done" else "so", progress=0.5, step="", report={"note": "é"}, created_at=self._now,
             started_at=self._now, finished_at=None if running else self._now)  # fmt: skip


def _reflect_table(connection: Any, name: str) -> Table:
    """Return the table with only the columns that the database has, without defaults of today's models."""
    today = Base.metadata.tables[name].c
    existing = [column["name"] for column in inspect(connection).get_columns(name)]
    return Table(name, MetaData(), *(Column(column, today[column].type) for column in existing))


def _list_columns(engine: Engine) -> Mapping[str, list[str]]:
    return {name: [each["name"] for each in inspect(engine).get_columns(name)] for name in FIRST_TABLES}


def _read_rows(engine: Engine, columns: Mapping[str, list[str]]) -> Rows:
    """Return every row of these tables, with these columns."""
    found: dict[str, list[tuple[Any, ...]]] = {}
    with engine.connect() as connection:
        for name, names in columns.items():
            table = _reflect_table(connection, name)
            query = select(*(table.c[column] for column in names)).order_by(table.c[names[0]])
            found[name] = [tuple(row) for row in connection.execute(query)]
    return found
