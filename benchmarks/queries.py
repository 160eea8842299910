"""Time of one page of results from a full node: the searches that C-FIND, QIDO-RS and the dashboard make.

    python -m benchmarks.queries [--rows 1000000] [--studies 10000] [--page 100] [--repeats 5] [--url URL] [--keep FILE]

A database is seeded with studies of four series and a job for each study; its four results are visible in nine studies
of ten and held in the rest. Every page is timed with its counts and all values that are answered, in sessions that
only read. SQLite in a temporary folder unless the URL of an empty database is given; ``--keep`` leaves the file for
another run.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, Table, insert
from sqlalchemy.orm import Session

from db import catalogue, engine, keywords, migrations
from db.catalogue import Query
from db.models import Base

_COUNTS = frozenset({"ModalitiesInStudy", "NumberOfStudyRelatedSeries", "NumberOfStudyRelatedInstances"})
_IN_SERIES = frozenset({"NumberOfSeriesRelatedInstances"})
_SERIES_PER_STUDY = 4
_FIRST_DAY = datetime(2020, 1, 1, 8, 0, tzinfo=UTC)
_MR, _SEG = "1.2.840.10008.5.1.4.1.1.4", "1.2.840.10008.5.1.4.1.1.66.4"
_SURNAMES = ("Müller", "Smith", "García", "Yamada", "Nguyen", "Kowalski", "O'Brien", "Rossi", "Dubois", "Andersson")
_STUDIES_AT_ONCE = 100


@dataclass(frozen=True)
class Size:
    """Size of the seeded database, and matches per page."""

    studies: int
    rows: int
    page: int

    @property
    def per_series(self) -> int:
        return max(1, self.rows // self.studies // _SERIES_PER_STUDY)

    @property
    def instances(self) -> int:
        return self.studies * _SERIES_PER_STUDY * self.per_series


def main() -> None:
    """Seed, measure and print the table of docs/benchmarks.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--studies", type=int, default=10_000)
    parser.add_argument("--page", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--url", default="")
    parser.add_argument("--keep", type=Path)
    args = parser.parse_args()
    size = Size(args.studies, args.rows, args.page)
    with tempfile.TemporaryDirectory(prefix="queries-") as folder:
        file = args.keep or Path(folder) / "node.sqlite"
        is_seeded = file.exists()
        database = engine.connect(args.url or f"sqlite:///{file}")
        if not is_seeded:
            migrations.upgrade(database)
            seed(database, size)
        print(f"{size.studies} studies, {size.instances} instances, {4 * size.studies} results\n")
        print(table(database, size, args.repeats))
        database.dispose()


def seed(database: Engine, size: Size) -> None:
    """Fill an empty database."""
    for first in range(1, size.studies + 1, _STUDIES_AT_ONCE):
        rows: dict[str, list[dict[str, Any]]] = {}
        for study in range(first, min(first + _STUDIES_AT_ONCE, size.studies + 1)):
            for name, row in _rows_of(study, size.per_series):
                rows.setdefault(name, []).append(row)
        with database.begin() as connection:
            for name in ("studies", "series", "instances", "jobs", "outputs"):
                target: Table = Base.metadata.tables[name]
                connection.execute(insert(target), rows[name])
    with database.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        # what PostgreSQL does by itself after a while
        connection.exec_driver_sql("VACUUM ANALYZE" if database.dialect.name == "postgresql" else "PRAGMA optimize")


def pages(size: Size) -> dict[str, Callable[[Session], int]]:
    """Yield the calls to be timed: a name, and a call that returns the number of matches."""

    def page(query: Query) -> Callable[[Session], int]:
        return lambda session: len(catalogue.search(session, query))

    def images(keys: dict[str, str] | None = None, offset: int = 0) -> Callable[[Session], int]:
        return page(Query("IMAGE", keys or {}, limit=size.page, offset=offset))

    def series(keys: dict[str, str] | None = None, offset: int = 0) -> Callable[[Session], int]:
        return page(Query("SERIES", keys or {}, _COUNTS | _IN_SERIES, limit=size.page, offset=offset))

    def studies(keys: dict[str, str] | None = None, offset: int = 0, **how: bool) -> Callable[[Session], int]:
        return page(Query("STUDY", keys or {}, _COUNTS, limit=size.page, offset=offset, **how))

    some = size.studies // 2
    a_study = {"StudyInstanceUID": _uid(some)}
    a_series = a_study | {"SeriesInstanceUID": _uid(some, 1)}
    return {
        "studies: newest page": studies(),
        "studies: last page": studies(offset=size.studies - size.page),
        "studies: PatientID": studies({"PatientID": f"P{some}"}),
        "studies: PatientName with wildcards": studies({"PatientName": "*MÜLL*^J?RGEN*0*"}),
        "studies: PatientName, fuzzy": studies({"PatientName": "jürgen42 mü"}, fuzzy=True),
        "studies: name that nobody has": studies({"PatientName": "Nobody^*"}),
        "studies: dates and ModalitiesInStudy": studies({"StudyDate": "20210101-20211231", "ModalitiesInStudy": "SEG"}),
        "studies: with held results": page(Query("STUDY", {}, _COUNTS, include_held=True, limit=size.page)),
        "series: first page": series(),
        "series: last received page": series(offset=size.studies * _SERIES_PER_STUDY - size.page),
        "series: last page, results": series(offset=size.studies * 7 - size.page),
        "series: of a study": series(a_study),
        "series: description that none has": series({"SeriesDescription": "*nothing*"}),
        "series: description with wildcards": series({"SeriesDescription": "*FLAIR*"}),
        "instances: first page": images(),
        "instances: in the middle": images(offset=size.instances // 2),
        "instances: last received page": images(offset=size.instances - size.page),
        "instances: first page of results": images(offset=size.instances),
        "instances: of a study": images(a_study),
        "instances: of a series": images(a_series),
        "instances: SOPInstanceUID": images({"SOPInstanceUID": _uid(some, 1, 1)}),
        "instances: a patient's": images({"PatientID": f"P{some}"}),
        "instances: PatientName with wildcards": images({"PatientName": "*MÜLL*^J?RGEN*0*"}),
        "instances: Modality MR, last page": images({"Modality": "MR"}, offset=size.instances - size.page),
        "instances: by number, first page": images({"InstanceNumber": "3"}),
        "instances: number that none has": images({"InstanceNumber": "987654"}),
        "instances: name that nobody has": images({"PatientName": "Nobody^*"}),
        "instances: how many": lambda session: catalogue.count(session, Query("IMAGE")),
    }


def table(database: Engine, size: Size, repeats: int) -> str:
    """Return medians and slowest runs, in Markdown."""
    lines = ["| search | matches | median, ms | slowest, ms |", "| --- | --- | --- | --- |"]
    for name, ask in pages(size).items():
        seconds, found = [], 0
        for _ in range(repeats):
            with engine.readers(database)() as session:
                begin = time.perf_counter()
                found = ask(session)
                seconds.append(time.perf_counter() - begin)
        lines.append(f"| {name} | {found} | {1000 * statistics.median(seconds):.0f} | {1000 * max(seconds):.0f} |")
    return "\n".join(lines)


def _uid(*numbers: int) -> str:
    return ".".join(["1.2.826.0.1.3680043.8.498", *map(str, numbers)])


def _rows_of(study: int, per_series: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """Return the rows of a study, with ids that follow from its number."""
    at = _FIRST_DAY + timedelta(hours=4 * study)
    yield "studies", _study(study, at)
    for number in range(1, _SERIES_PER_STUDY + 1):
        series = (study - 1) * _SERIES_PER_STUDY + number
        yield "series", _series(study, series, number)
        for image in range(1, per_series + 1):
            yield "instances", _instance(study, series, number, image, per_series, at)
    yield "jobs", _job(study, at)
    for number, modality in enumerate(("OT", "OT", "SEG", "SR"), start=11):
        yield "outputs", _output(study, number, modality, at)


def _study(study: int, at: datetime) -> dict[str, Any]:
    name = f"{_SURNAMES[study % len(_SURNAMES)]}^Jürgen{study}"
    return {
        "id": study, "study_uid": _uid(study), "state": "routed", "revision": 1, "patient_id": f"P{study}",
        "patient_name": name, "patient_folded": keywords.fold_name(name), "accession_number": f"A{study}",
        "study_date": at.strftime("%Y%m%d"), "study_time": at.strftime("%H%M%S"), "study_id": str(study),
        "study_description": "Head", "patient_birth_date": "19600101", "patient_sex": "O",
        "referring_physician_name": "", "referring_physician_folded": "", "issuer_of_patient_id": "",
        "opened_at": at, "last_received_at": at, "completed_at": at, "completed_by": "quiet for 60 s",
    }  # fmt: skip


def _series(study: int, series: int, number: int) -> dict[str, Any]:
    attributes = {f"Tag{each}": f"a value as scanners write it {each}" for each in range(60)}
    described = {"SeriesNumber": number, "SeriesDescription": f"AX {('T1', 'T2', 'FLAIR', 'DWI')[number - 1]}"}
    attributes |= {"Modality": "MR", "SeriesInstanceUID": _uid(study, number)}
    row = {"id": series, "study_id": study, "series_uid": _uid(study, number), "modality": "MR"}
    return row | {"attributes": attributes | described}


def _file(uid: str) -> dict[str, Any]:
    digest = f"{hash(uid) & (1 << 256) - 1:064x}"
    return {"sha256": digest, "size_bytes": 525_000, "relative_path": f"{digest[:2]}/{digest}.dcm"}


def _instance(study: int, series: int, number: int, image: int, per_series: int, at: datetime) -> dict[str, Any]:
    uid = _uid(study, number, image)
    attributes = {"InstanceNumber": image, "Rows": 512, "Columns": 512, "BitsAllocated": 16, "AcquisitionNumber": 1}
    return _file(uid) | {
        "id": (series - 1) * per_series + image, "series_id": series, "revision": 1, "sop_instance_uid": uid,
        "sop_class_uid": _MR, "transfer_syntax_uid": "1.2.840.10008.1.2.1", "sender_ae_title": "SCANNER",
        "sender_address": "127.0.0.1", "received_at": at, "attributes": attributes,
    }  # fmt: skip


def _job(study: int, at: datetime) -> dict[str, Any]:
    return {
        "id": study, "key": f"{study:064}", "study_id": study, "revision": 1, "route": "flair", "pipeline": "nothing",
        "model": "", "options": {}, "destinations": [], "priority": 0, "attempts": 1, "worker": "", "reason": "",
        "state": "done" if study % 10 else "held", "not_before": at, "progress": 1.0, "step": "", "report": {},
        "created_at": at,
    }  # fmt: skip


def _output(study: int, number: int, modality: str, at: datetime) -> dict[str, Any]:
    uid = _uid(study, number, 1)
    attributes = {
        "Modality": modality,
        "SeriesNumber": 9000 + number,
        "SeriesDescription": "SYN result",
        "InstanceNumber": 1,
    }
    return _file(uid) | {
        "id": (study - 1) * 4 + number - 10, "job_id": study, "sop_instance_uid": uid, "sop_class_uid": _SEG,
        "series_uid": _uid(study, number), "kind": "image", "transfer_syntax_uid": "1.2.840.10008.1.2.1",
        "created_at": at, "attributes": attributes,
    }  # fmt: skip


if __name__ == "__main__":
    main()
