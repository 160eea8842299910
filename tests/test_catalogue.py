"""Searches match the node's objects as PS3.4 C.2.2.2 says, on both databases, and return nothing twice or too early."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, select, text, update
from sqlalchemy.orm import Session, sessionmaker

from benchmarks import queries
from db import catalogue, finding, jobs, keywords, migrations, studies
from db import engine as engines
from db.catalogue import BadValue, Level, Query
from db.jobs import OutputFile
from db.models import Instance, Job, Output, Study
from db.states import JobState
from db.studies import Arrival, StoredFile
from dicomnode.maintenance.backfill import Backfill
from dicomnode.storage import spool
from tests import databases
from tests.effort import Effort, measure_effort
from tests.peers import write_instance
from tests.rows import add_job, make_arrival

SEG = "1.2.840.10008.5.1.4.1.1.66.4"

PEOPLE: Mapping[str, Mapping[str, Any]] = {
    "1.2.1": {
        "PatientName": "Müller^Jürgen=山田^太郎",
        "PatientID": "A-1",
        "StudyDate": "20260101",
        "StudyTime": "081500",
        "AccessionNumber": "ACC1",
        "StudyDescription": "Head [3T]",
        "StudyID": "7",
        "PatientSex": "M",
        "PatientBirthDate": "19600229",
        "ReferringPhysicianName": "House^Gregory",
    },
    "1.2.2": {
        "PatientName": "MULLER^ANNA",
        "PatientID": "A-2",
        "StudyDate": "20260102",
        "StudyTime": "2359",
        "AccessionNumber": "ACC2",
        "StudyDescription": "head 100%_",
    },
    "1.2.3": {"PatientName": "Doe^Jane Ann", "PatientID": "B-1", "StudyDate": "20260215", "StudyTime": "10:15:30.5"},
    "1.2.4": {"PatientID": "B-2"},
}


def arrive(session: Session, arrival: Arrival, now: datetime) -> int:
    registration = studies.register_instance(
        session, facts=arrival.facts, file=arrival.file, sender=arrival.sender, now=now
    )
    assert registration.instance_id is not None
    return registration.instance_id


def of_person(study: str, series: str = "1", number: int = 1, **attributes: Any) -> Arrival:
    """Return an instance of one of the studies above, with all attributes of a header."""
    person = PEOPLE[study]
    described = {"Modality": "MR", "SeriesNumber": int(series), "SeriesDescription": "AX FLAIR", "Rows": 256}
    values = {**person, **described, "InstanceNumber": number, **attributes}
    arrival = make_arrival(study, series, number, attributes=values)
    columns = {
        "patient_name": "PatientName",
        "patient_id": "PatientID",
        "study_date": "StudyDate",
        "accession_number": "AccessionNumber",
        "study_description": "StudyDescription",
    }
    facts: dict[str, Any] = {column: str(person.get(keyword, "")) for column, keyword in columns.items()}
    return replace(arrival, facts=replace(arrival.facts, **facts))


@pytest.fixture
def people(sessions: sessionmaker[Session], now: datetime) -> sessionmaker[Session]:
    """Register four studies of one instance each."""
    with sessions.begin() as session:
        for number, study in enumerate(PEOPLE):
            arrive(session, of_person(study), now + timedelta(seconds=number))
    return sessions


Find = Callable[..., list[str]]


@pytest.fixture
def find(people: sessionmaker[Session]) -> Find:
    """Return a function from keys to the sorted Study Instance UIDs that match."""

    def ask(keys: Mapping[str, str], **how: Any) -> list[str]:
        with people() as session:
            matches = catalogue.search(session, Query("STUDY", keys, **how))
            assert len(matches) == catalogue.count(session, Query("STUDY", keys, **how))
        return sorted(str(match.attributes["StudyInstanceUID"]) for match in matches)

    return ask


def result(uid: str, series: str = "1.2.1.9001", **attributes: Any) -> OutputFile:
    digest = hashlib.sha256(uid.encode()).hexdigest()
    defaults = {"Modality": "SEG", "SeriesNumber": 9001, "SeriesDescription": "SYN lesions", "InstanceNumber": 1}
    file = StoredFile(digest, 10, f"{digest[:2]}/{digest}.dcm")
    return OutputFile(uid, SEG, series, "segmentation", file, attributes=defaults | attributes)


def finish(session: Session, now: datetime, *outputs: OutputFile, held_because: str = "", **changes: Any) -> Job:
    """Finish a job on study 1.2.1 with these results."""
    add_job(session, now, **changes)
    job = jobs.claim(session, worker="w", lease_s=60, now=now)
    assert job is not None
    return jobs.finish(
        session, job_id=job.id, worker="w", outputs=outputs, report={}, held_because=held_because, now=now
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("keys", "found"),
    [
        ({}, "1234"),
        ({"PatientID": "A-1"}, "1"),
        ({"PatientID": "a-1"}, ""),  # case counts in all but names
        ({"PatientID": "A-?"}, "12"),
        ({"PatientID": "*-1"}, "13"),
        ({"PatientID": "*"}, "1234"),
        ({"PatientID": ""}, "1234"),
        ({"PatientID": "nobody"}, ""),
        ({"StudyInstanceUID": "1.2.1\\1.2.3\\9.9"}, "13"),
        ({"StudyInstanceUID": "1.2"}, ""),
        ({"PatientName": "MÜLLER^JÜRGEN"}, "1"),
        ({"PatientName": "müll*"}, "1"),
        ({"PatientName": "m?ller^*"}, "12"),
        ({"PatientName": "山田*"}, "1"),  # any component group
        ({"PatientName": "müller^jürgen=山田^太郎"}, "1"),
        ({"PatientName": "Müller^Jürgen^^"}, "1"),
        ({"PatientName": "Müller"}, ""),
        ({"ReferringPhysicianName": "house^g*"}, "1"),
        ({"StudyDate": "20260101"}, "1"),
        ({"StudyDate": "20260101-20260131"}, "12"),
        ({"StudyDate": "20260102-"}, "23"),
        ({"StudyDate": "-20260102"}, "12"),
        ({"StudyDate": "202601"}, "12"),
        ({"StudyDate": "2026"}, "123"),
        ({"StudyDate": "2027-"}, ""),
        ({"StudyTime": "0815"}, "1"),
        ({"StudyTime": "081500"}, "1"),
        ({"StudyTime": "0800-1016"}, "13"),
        ({"StudyTime": "235900"}, "2"),
        ({"StudyTime": "-101530"}, "13"),
        ({"StudyTime": "101531-"}, "2"),
        ({"StudyDescription": "Head [[]*"}, ""),  # brackets are letters
        ({"StudyDescription": "Head [*"}, "1"),
        ({"StudyDescription": "head 100%_"}, "2"),
        ({"StudyDescription": "head 1%*"}, ""),
        ({"StudyDescription": "head*_"}, "2"),
        ({"StudyID": "7"}, "1"),
        ({"PatientSex": "M\\F"}, "1"),
        ({"PatientBirthDate": "1960"}, "1"),
        ({"AccessionNumber": "ACC*", "StudyDate": "20260102"}, "2"),
        ({"ModalitiesInStudy": "MR"}, "1234"),
        ({"ModalitiesInStudy": "M*\\CT"}, "1234"),
        ({"ModalitiesInStudy": "CT"}, ""),
        ({"SOPClassesInStudy": "1.2.840.10008.5.1.4.1.1.4"}, "1234"),
        ({"SOPClassesInStudy": SEG}, ""),
        ({"NumberOfStudyRelatedSeries": "5"}, "1234"),  # returned, never matched
        ({"Nonsense": "x"}, "1234"),
    ],
)
def test_studies_are_matched_as_the_standard_says(find: Find, keys: Mapping[str, str], found: str) -> None:
    assert find(keys) == [f"1.2.{number}" for number in found]


def test_dates_and_times_can_be_one_range(find: Find) -> None:
    keys = {"StudyDate": "20260101-20260102", "StudyTime": "2000-0800"}
    assert find(keys) == []
    assert find(keys, combined=True) == []
    keys = {"StudyDate": "20260101-20260215", "StudyTime": "0900-1015"}
    assert find(keys, combined=True) == ["1.2.2", "1.2.3"]
    assert find(keys) == ["1.2.3"]


@pytest.mark.parametrize(
    ("words", "found"), [("jürg müll", "1"), ("ann", "23"), ("doe ann", "3"), ("oe", ""), ("太郎", "1"), ("d*", "3")]
)
def test_a_fuzzy_name_is_found_by_the_beginnings_of_its_words(find: Find, words: str, found: str) -> None:
    assert find({"PatientName": words}, fuzzy=True) == [f"1.2.{number}" for number in found]


@pytest.mark.parametrize(
    "keys",
    [
        {"StudyDate": "yesterday"},
        {"StudyDate": "-"},
        {"StudyDate": "20260101-x"},
        {"StudyTime": "8 o'clock"},
        {"StudyDate": "2026; DROP TABLE studies"},
    ],
)
def test_a_value_that_means_nothing_is_refused_without_being_repeated(find: Find, keys: Mapping[str, str]) -> None:
    with pytest.raises(BadValue) as caught:
        find(keys)
    (keyword, value), *_ = keys.items()
    assert keyword in str(caught.value)
    assert value not in str(caught.value)


def test_a_match_tells_what_the_header_said(people: sessionmaker[Session]) -> None:
    counts = frozenset(keywords.COUNTS)
    with people() as session:
        (match,) = catalogue.search(session, Query("STUDY", {"StudyInstanceUID": "1.2.1"}, counts))
        assert match.attributes == {
            **PEOPLE["1.2.1"],
            "StudyInstanceUID": "1.2.1",
            "ModalitiesInStudy": ["MR"],
            "SOPClassesInStudy": ["1.2.840.10008.5.1.4.1.1.4"],
            "NumberOfStudyRelatedSeries": 1,
            "NumberOfStudyRelatedInstances": 1,
        }
        (series,) = catalogue.search(session, Query("SERIES", {"StudyInstanceUID": "1.2.1"}, counts))
        assert series.attributes["SeriesNumber"] == 1
        assert series.attributes["NumberOfSeriesRelatedInstances"] == 1
        assert series.attributes["PatientName"] == "Müller^Jürgen=山田^太郎"
        (image,) = catalogue.search(session, Query("IMAGE", {"StudyInstanceUID": "1.2.1"}))
        assert (image.attributes["InstanceNumber"], image.attributes["Rows"]) == (1, 256)
        assert image.stored is not None
        assert image.stored.sop_instance_uid == "1.2.1.1.1"
        assert not image.stored.is_result


@pytest.mark.slow
@pytest.mark.parametrize(
    ("level", "keys", "found"),
    [
        ("SERIES", {"StudyInstanceUID": "1.2.1"}, ["1.2.1.1", "1.2.1.2"]),
        ("SERIES", {"StudyInstanceUID": "1.2.1", "SeriesNumber": "2"}, ["1.2.1.2"]),
        ("SERIES", {"SeriesNumber": "02"}, ["1.2.1.2"]),
        ("SERIES", {"SeriesDescription": "*T1*"}, ["1.2.1.2"]),
        ("SERIES", {"Modality": "CT", "PatientName": "müller^*"}, ["1.2.1.2"]),
        ("SERIES", {"SeriesInstanceUID": "1.2.1.2\\1.2.2.1"}, ["1.2.1.2", "1.2.2.1"]),
        ("IMAGE", {"SeriesInstanceUID": "1.2.1.2"}, ["1.2.1.2.1", "1.2.1.2.2"]),
        ("IMAGE", {"InstanceNumber": "2"}, ["1.2.1.2.2"]),
        ("IMAGE", {"Rows": "256", "PatientID": "A-1"}, ["1.2.1.1.1", "1.2.1.2.1", "1.2.1.2.2"]),
        ("IMAGE", {"SOPInstanceUID": "1.2.3.1.1"}, ["1.2.3.1.1"]),
        ("IMAGE", {"SOPInstanceUID": "1.2.3.1.1", "StudyInstanceUID": "1.2.1"}, []),
        ("IMAGE", {"Rows": "512"}, []),
    ],
)
def test_series_and_instances_are_found_by_their_keys_and_those_above(
    people: sessionmaker[Session], now: datetime, level: Level, keys: Mapping[str, str], found: list[str]
) -> None:
    with people.begin() as session:
        for number in (1, 2):
            more = {"Modality": "CT", "SeriesDescription": "SAG T1"}
            arrive(session, of_person("1.2.1", "2", number, **more), now)
    uid = "SeriesInstanceUID" if level == "SERIES" else "SOPInstanceUID"
    with people() as session:
        assert [match.attributes[uid] for match in catalogue.search(session, Query(level, keys))] == found
        assert catalogue.count(session, Query(level, keys)) == len(found)


def test_pages_together_are_the_whole_and_nothing_twice(sessions: sessionmaker[Session], now: datetime) -> None:
    with sessions.begin() as session:
        for study in range(1, 4):
            for series in "12":
                for number in range(1, 4):
                    arrive(session, make_arrival(f"1.2.{study}", series, number), now)
        outputs = [result(f"1.2.1.9001.{number}") for number in range(1, 4)]
        finish(session, now, *outputs, result("1.2.1.9002.1", "1.2.1.9002"))
    with sessions() as session:
        for level, total in (("STUDY", 3), ("SERIES", 8), ("IMAGE", 22)):
            query = Query(level, {})  # type: ignore[arg-type]
            matches = [match.attributes for match in catalogue.search(session, query)]
            assert len(matches) == total == catalogue.count(session, query)
            for limit in (1, 4, 5):
                pages = [
                    match.attributes
                    for offset in range(0, total + limit, limit)
                    for match in catalogue.search(session, replace(query, limit=limit, offset=offset))
                ]
                assert pages == matches
            assert catalogue.search(session, replace(query, limit=0)) == []


def test_the_newest_study_comes_first(people: sessionmaker[Session]) -> None:
    with people() as session:
        (match,) = catalogue.search(session, Query("STUDY", limit=1))
    assert match.attributes["StudyInstanceUID"] == "1.2.4"


def test_a_result_belongs_to_its_study(sessions: sessionmaker[Session], now: datetime) -> None:
    with sessions.begin() as session:
        finish(session, now, result("1.2.1.9001.1"), result("1.2.1.9001.2"))
    with sessions() as session:
        (study,) = catalogue.search(session, Query("STUDY", {}, frozenset(keywords.COUNTS)))
        assert study.attributes["ModalitiesInStudy"] == ["MR", "SEG"]
        assert study.attributes["NumberOfStudyRelatedSeries"] == 2
        assert study.attributes["NumberOfStudyRelatedInstances"] == 3
        assert SEG in study.attributes["SOPClassesInStudy"]
        for keys in ({"ModalitiesInStudy": "SEG"}, {"SOPClassesInStudy": SEG}):
            assert catalogue.count(session, Query("STUDY", keys)) == 1
        (series,) = catalogue.search(
            session, Query("SERIES", {"Modality": "SEG"}, frozenset({"NumberOfSeriesRelatedInstances"}))
        )
        assert series.attributes["SeriesDescription"] == "SYN lesions"
        assert series.attributes["NumberOfSeriesRelatedInstances"] == 2
        found = catalogue.find_objects(session, study_uid="1.2.1")
        assert [(each.sop_instance_uid, each.is_result) for each in found] == [
            ("1.2.1.1.1", False),
            ("1.2.1.9001.1", True),
            ("1.2.1.9001.2", True),
        ]
        assert catalogue.find_objects(session, study_uid="1.2.2") == []
        (one,) = catalogue.find_objects(session, study_uid="1.2.1", sop_instance_uids=("1.2.1.9001.2",))
        assert one.sop_class_uid == SEG


def test_held_results_are_seen_only_by_who_asks_for_them(sessions: sessionmaker[Session], now: datetime) -> None:
    with sessions.begin() as session:
        job = finish(session, now, result("1.2.1.9001.1"), held_because="uncertain")
    with sessions() as session:
        assert [each.is_result for each in catalogue.find_objects(session, study_uid="1.2.1")] == [False]
        for level in ("SERIES", "IMAGE"):
            assert catalogue.count(session, Query(level)) == 1
            assert catalogue.count(session, Query(level, include_held=True)) == 2
        assert catalogue.count(session, Query("STUDY", {"ModalitiesInStudy": "SEG"})) == 0
        (study,) = catalogue.search(session, Query("STUDY", {}, frozenset(keywords.COUNTS)))
        assert study.attributes["NumberOfStudyRelatedInstances"] == 1
        assert [each.is_held for each in catalogue.find_objects(session, study_uid="1.2.1", include_held=True)] == [
            False,
            True,
        ]
    with sessions.begin() as session:
        jobs.release(session, session.get_one(Job, job.id), reason="good", now=now)
    with sessions() as session:
        assert [each.is_held for each in catalogue.find_objects(session, study_uid="1.2.1")] == [False, False]


def test_discarded_and_refused_results_are_not_found(sessions: sessionmaker[Session], now: datetime) -> None:
    with sessions.begin() as session:
        held = finish(session, now, result("1.2.1.9001.1"), held_because="uncertain")
        jobs.discard(session, held, reason="wrong", now=now)
        add_job(session, now, route="other")
        claimed = jobs.claim(session, worker="w", lease_s=60, now=now)
        assert claimed is not None
        note = [result("1.2.1.9002.1")]
        jobs.refuse(session, job_id=claimed.id, worker="w", reason="dose", outputs=note, report={}, now=now)
    with sessions() as session:
        assert len(catalogue.find_objects(session, study_uid="1.2.1", include_held=True)) == 1


def test_a_result_that_an_archive_sent_back_is_one_instance(sessions: sessionmaker[Session], now: datetime) -> None:
    with sessions.begin() as session:
        finish(session, now, result("1.2.1.9001.1"), result("1.2.1.9001.2"))
        arrive(session, make_arrival("1.2.1", "9001", 1, attributes={"Modality": "SEG"}), now)
    with sessions() as session:
        (study,) = catalogue.search(session, Query("STUDY", {}, frozenset(keywords.COUNTS)))
        assert study.attributes["NumberOfStudyRelatedSeries"] == 2
        assert study.attributes["NumberOfStudyRelatedInstances"] == 3
        counted = catalogue.search(session, Query("SERIES", {}, frozenset({"NumberOfSeriesRelatedInstances"})))
        assert [match.attributes["NumberOfSeriesRelatedInstances"] for match in counted] == [1, 2]
        returned, own = catalogue.find_objects(session, study_uid="1.2.1", series_uids=("1.2.1.9001",))
        assert (returned.sop_instance_uid, returned.is_result) == ("1.2.1.9001.1", False)
        assert (own.sop_instance_uid, own.is_result) == ("1.2.1.9001.2", True)


def test_the_same_result_of_two_jobs_is_one_instance(sessions: sessionmaker[Session], now: datetime) -> None:
    with sessions.begin() as session:
        finish(session, now, result("1.2.1.9001.1"))
        finish(session, now, result("1.2.1.9001.1"), route="another")
    with sessions() as session:
        assert session.query(Output).count() == 2
        assert catalogue.count(session, Query("IMAGE", {"Modality": "SEG"})) == 1


def test_a_form_that_only_a_destination_wanted_is_not_found(sessions: sessionmaker[Session], now: datetime) -> None:
    with sessions.begin() as session:
        finish(session, now, result("1.2.1.9001.1"), replace(result("1.2.1.9001.2"), rendition="labelmap"))
    with sessions() as session:
        assert catalogue.count(session, Query("IMAGE", {"Modality": "SEG"})) == 1


def test_a_result_that_was_made_only_to_be_compared_is_not_found(
    sessions: sessionmaker[Session], now: datetime
) -> None:
    with sessions.begin() as session:
        delivered = finish(session, now, result("1.2.1.9001.1"))
        shadow = finish(session, now, result("1.2.1.9002.1", "1.2.1.9002"), route="another")
        shadow.shadow_of_id = delivered.id
    with sessions() as session:
        assert catalogue.count(session, Query("SERIES", {"Modality": "SEG"}, include_held=True)) == 1
        assert catalogue.count(session, Query("STUDY", {"ModalitiesInStudy": "SEG"})) == 1


def test_what_matches_is_decided_at_the_start(engine: Engine, people: sessionmaker[Session], now: datetime) -> None:
    with engines.readers(engine)() as session:
        matches = catalogue.scan(session, Query("IMAGE"))
        first = next(matches)
        with people.begin() as other:
            arrive(other, of_person("1.2.1", "3", 1), now)
        assert len([first, *matches]) == 4


def test_instances_of_before_are_read_again_once(
    sessions: sessionmaker[Session], now: datetime, tmp_path: Path
) -> None:
    path = tmp_path / "one.dcm"
    write_instance(path, rows=32, InstanceNumber=5)
    file = spool.write(tmp_path / "spool", path.read_bytes())
    with sessions.begin() as session:
        first = arrive(session, replace(make_arrival(), file=file), now)
        lost = arrive(session, make_arrival(number=2), now)
        session.execute(update(Instance).values(attributes=None))
    fill = Backfill(sessions, tmp_path / "spool")
    assert [fill.step(), fill.step(), fill.step()] == [2, 0, 0]
    assert fill.done
    with sessions() as session:
        assert catalogue.count(session, Query("IMAGE", {"Rows": "32", "InstanceNumber": "5"})) == 1
        stored = session.get_one(Instance, first).attributes
        assert stored == {"BitsAllocated": 16, "Columns": 32, "InstanceNumber": 5, "Rows": 32}
        assert session.get_one(Instance, lost).attributes == {}


def test_rows_of_before_are_found_by_what_their_series_said(engine: Engine, now: datetime) -> None:
    migrations.downgrade(engine, "0003")
    attributes = '{"StudyTime": "0815", "PatientSex": "F", "ReferringPhysicianName": "House^Gregory"}'
    with engine.begin() as connection:
        values = {"now": "2026-11-20 08:00:00+00:00"}
        connection.execute(
            text(
                "INSERT INTO studies (id, study_uid, state, revision, patient_id, patient_name, accession_number,"
                " study_date, study_description, opened_at, last_received_at, completed_by)"
                " VALUES (1, '1.2.9', 'routed', 1, 'OLD', 'Ångström^Anders', '', '20250101', '', :now, :now, '')"
            ),
            values,
        )
        connection.execute(
            text(
                "INSERT INTO series (id, study_id, series_uid, modality, attributes) VALUES (1, 1, '1.2.9.1', 'MR', :a)"
            ),
            {"a": attributes},
        )
        connection.execute(
            text(
                "INSERT INTO instances (id, series_id, revision, sop_instance_uid, sop_class_uid, transfer_syntax_uid,"
                " sha256, size_bytes, relative_path, sender_ae_title, sender_address, received_at)"
                " VALUES (1, 1, 1, '1.2.9.1.1', '1.2', '1.2.840.10008.1.2.1', 'x', 1, 'x', 'A', '::1', :now)"
            ),
            values,
        )
    migrations.upgrade(engine)
    with sessionmaker(engine)() as session:
        keys = {"PatientName": "ÅNGSTRÖM*", "PatientSex": "F", "StudyTime": "08", "ReferringPhysicianName": "house*"}
        assert catalogue.count(session, Query("IMAGE", keys)) == 1
        assert session.scalar(select(Instance.attributes)) is None
        assert session.scalar(select(Study.study_time)) == "0815"


@pytest.mark.slow
def test_a_page_of_a_full_node_costs_little(tmp_path: Path) -> None:
    """One pass over the 20 000 instances, as a count makes, takes 5 instructions of SQLite for each: 100 000."""
    size = queries.Size(studies=200, rows=20_000, page=50)
    database = engines.connect(databases.copy_sqlite(tmp_path / "full.sqlite"))
    queries.seed(database, size)
    with engines.readers(database)() as session:
        efforts = {name: measure_search(page, session) for name, page in queries.pages(size).items()}
    excessive = {
        name: (instructions, effort)
        for name, (instructions, effort) in efforts.items()
        if instructions > 400_000 or effort.statements > 20 or effort.cpu_s > 0.5
    }
    assert excessive == {}
    assert max(instructions for instructions, _ in efforts.values()) > 50_000, "they are counted"
    assert queries.table(database, size, repeats=1).count("\n") == len(efforts) + 1
    database.dispose()


def measure_search(page: Callable[[Session], int], session: Session) -> tuple[int, Effort]:
    """Return the number of SQLite's instructions for a search, in steps of 1000, and its effort."""
    steps: list[None] = []
    page(session)  # SQLAlchemy compiles the statement at its first use
    connection: Any = session.connection().connection.driver_connection
    connection.set_progress_handler(lambda: steps.append(None), 1000)
    with measure_effort() as effort:
        page(session)
    connection.set_progress_handler(None, 0)
    return 1000 * len(steps), effort


def test_an_instance_is_found_by_its_number_without_a_look_at_every_row(engine: Engine) -> None:
    """The index is on an expression: it serves only a search that uses the same expression."""
    sqlite = engine.dialect.name == "sqlite"
    criteria = finding.Criteria({"InstanceNumber": "3"}, (JobState.DONE,), engine.dialect.name)
    statement = finding.select_received_images(criteria).compile(engine)
    with engine.connect() as connection:
        if not sqlite:
            connection.execute(text("SET LOCAL enable_seqscan = off"))  # which suits an empty table better
        explain = f"EXPLAIN {'QUERY PLAN ' if sqlite else ''}{statement}"
        plan = connection.exec_driver_sql(
            explain, statement.params if not sqlite else tuple(statement.params.values())
        ).all()
    assert "ix_instances_number" in str(plan)
