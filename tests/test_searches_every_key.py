"""Searches by every key, at every level that has it: each finds the entities with the value, and none fails."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, get_args

import pytest
from sqlalchemy.orm import Session, sessionmaker

from db import catalogue, jobs, keywords, studies
from db import engine as engines
from db.catalogue import BadValue, Level, Match, Query
from db.jobs import OutputFile
from db.keywords import Kind
from db.studies import StoredFile
from tests import databases
from tests.postgresql import Server
from tests.rows import add_job, make_arrival

NOW = datetime(2026, 11, 20, 8, 0, tzinfo=UTC)
LEVELS = get_args(Level)
_STATED: Mapping[Kind, tuple[Any, Any]] = {
    Kind.TEXT: ("First one", "Second one"),
    Kind.CODE: ("ONE", "TWO"),
    Kind.NAME: ("First^One", "Second^Two"),
    Kind.DATE: ("20260101", "20260202"),
    Kind.TIME: ("081500", "2359"),
    Kind.NUMBER: (1, 22),
    Kind.UID: ("1.2.100", "1.2.200"),
    Kind.RETURNED: ("+0100", "+0200"),
}
OWN_KEYS = {"PATIENT": keywords.PATIENT, "STUDY": keywords.STUDY, "SERIES": keywords.SERIES, "IMAGE": keywords.IMAGE}
ODD_VALUES = (
    "**", "A*", "\\", "ONE\\TWO", "-", "20260101-", "-2359", "x-y", "[", "%_'\"", "=", "?", "A\0B", "\ud800",
    "\U0010ffff", "9" * 5000, "1_0", "\u0661", "*a" * 300, "\\".join(["ONE"] * 3000), "\\".join(["1.2"] * 70_000),
    "w " * 500,
)  # fmt: skip


def make_values(number: int) -> dict[str, Any]:
    """Return a value for every keyword of a header; sets 0 and 1 differ in each."""
    plain = [keyword for keyword in keywords.KINDS if keyword not in keywords.COUNTS and "." not in keyword]
    said = {keyword: _STATED[keywords.KINDS[keyword]][number] for keyword in plain}
    items = [
        {"ScheduledProcedureStepID": f"STEP{each}", "RequestedProcedureID": f"PROC{each}"}
        for each in (number, number + 2)
    ]
    return said | {"SyntheticData": ("NO", "YES")[number], "RequestAttributesSequence": items}


def arrive(session: Session, study: str, series: str, number: int) -> None:
    said = make_values(number)
    arrival = make_arrival(study, series, 1 + number, attributes=said, sop_class_uid=f"1.2.840.{number}")
    facts = replace(
        arrival.facts, patient_id=said["PatientID"], patient_name=said["PatientName"], study_date=said["StudyDate"],
        accession_number=said["AccessionNumber"], study_description=said["StudyDescription"], modality=said["Modality"],
    )  # fmt: skip
    studies.register_instance(session, facts=facts, file=arrival.file, sender=arrival.sender, now=NOW)


def add_result(session: Session) -> None:
    """Add a series made by the node to the first study, with the attributes of the second."""
    add_job(session, NOW, study="1.2.1")
    job = jobs.claim(session, worker="w", lease_s=60, now=NOW)
    assert job is not None
    file = StoredFile("f" * 64, 10, f"ff/{'f' * 64}.dcm")
    attributes = keywords.pick(make_values(1), keywords.RESULT_STORED)
    output = OutputFile("1.2.1.9001.1", "1.2.840.9", "1.2.1.9001", "image", file, attributes=attributes)
    jobs.finish(session, job_id=job.id, worker="w", outputs=[output], report={}, now=NOW)


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def full_database(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[sessionmaker[Session]]:
    """Two studies of two series that differ in every attribute, and a result, on either database."""
    with ExitStack() as stack:
        folder: Path = tmp_path_factory.mktemp("searches")
        url = databases.copy_sqlite(folder / "node.sqlite")
        if request.param == "postgresql":
            server: Server = request.getfixturevalue("postgresql_server")
            url = stack.enter_context(databases.copy_postgresql(server))
        engine = engines.connect(url)
        stack.callback(engine.dispose)
        with engines.sessions(engine).begin() as session:
            for study, number in (("1.2.1", 0), ("1.2.2", 1)):
                arrive(session, study, "1", number)
                arrive(session, study, "2", 1 - number)
            add_result(session)
        yield engines.readers(engine)


def search(full_database: sessionmaker[Session], query: Query) -> list[Match]:
    with full_database() as session:
        return catalogue.search(session, query)


def uids(match: Match) -> tuple[Any, ...]:
    names = ("PatientID", "StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")
    return tuple(match.attributes.get(name) for name in names)


def kind_of(keyword: str) -> Kind:
    return {**keywords.PATIENT, **keywords.KINDS}[keyword]


def values(match: Match, keyword: str) -> list[str]:
    sequence, inside, name = keyword.partition(".")
    if inside:
        return [str(item[name]) for item in match.attributes[sequence]]
    value = match.attributes[keyword]
    return [str(each) for each in (value if isinstance(value, list) else [value])]


@pytest.mark.slow
@pytest.mark.parametrize("level", LEVELS)
def test_a_key_finds_exactly_what_has_its_value(full_database: sessionmaker[Session], level: Level) -> None:
    everything = search(full_database, Query(level, {}, frozenset(keywords.COUNTS)))
    for keyword in sorted(catalogue.supported_keywords(level)):
        told_only = kind_of(keyword) is Kind.RETURNED
        for value in {value for match in everything for value in values(match, keyword)}:
            found = [uids(match) for match in search(full_database, Query(level, {keyword: value}))]
            expected = [uids(match) for match in everything if told_only or value in values(match, keyword)]
            assert found == expected, (keyword, value)


@pytest.mark.slow
@pytest.mark.parametrize("level", LEVELS)
def test_no_value_of_a_key_breaks_a_search(full_database: sessionmaker[Session], level: Level) -> None:
    """A value is matched, or refused with the key's name and without the value."""
    for keyword in OWN_KEYS[level]:
        for value in ODD_VALUES:
            refusal = refused(
                full_database, Query(level, {keyword: value}, combined=True, fuzzy=len(value) > 1, limit=5)
            )
            assert not refusal or (keyword in refusal and len(refusal) < 200), (keyword, value[:20], refusal)


def refused(full_database: sessionmaker[Session], query: Query) -> str:
    """Return the reason why the catalogue refuses a query, or an empty string."""
    try:
        search(full_database, query)
    except BadValue as refusal:
        return str(refusal)
    return ""


@pytest.mark.parametrize(("value", "found"), [
    ("101112", 1), ("101112.123456", 1), ("101112.1", 1), ("101112.123455", 0), ("101112.123456-101112.123456", 1),
    ("-101112.123456", 1), ("101112.123457-", 0), ("081500.000000", 0),
])  # fmt: skip
def test_a_time_is_found_by_all_of_its_digits(value: str, found: int, tmp_path: Path) -> None:
    engine = engines.connect(databases.copy_sqlite(tmp_path / "node.sqlite"))
    with engines.sessions(engine).begin() as session:
        said = {"StudyDate": "20260101", "StudyTime": "101112.123456"}
        arrival = make_arrival("1.2.3", "1", 1, attributes=said)
        facts = replace(arrival.facts, study_date=said["StudyDate"])
        studies.register_instance(session, facts=facts, file=arrival.file, sender=arrival.sender, now=NOW)
    for combined in ({}, {"StudyDate": "20260101"}):
        with engines.readers(engine)() as session:
            matches = catalogue.search(session, Query("STUDY", {"StudyTime": value} | combined, combined=True))
        assert len(matches) == found
    engine.dispose()


@pytest.mark.parametrize(("step", "procedure", "found"), [
    ("STEP0", "PROC0", 2), ("STEP0", "PROC2", 0), ("STEP0", "PROC1", 0), ("STEP*", "", 5), ("STEP?", "PROC1", 3),
    ("", "PROC9", 0),
])  # fmt: skip
def test_one_item_of_a_sequence_must_have_all_its_keys(
    full_database: sessionmaker[Session], step: str, procedure: str, found: int
) -> None:
    """Each series has two items, and no item mixes them (PS3.4 C.2.2.2.6)."""
    keys = {
        "RequestAttributesSequence.ScheduledProcedureStepID": step,
        "RequestAttributesSequence.RequestedProcedureID": procedure,
    }
    assert len(search(full_database, Query("SERIES", keys))) == found
