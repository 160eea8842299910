"""Patient Root Query/Retrieve: patients are found and sent with all their data; two with one identifier stay two."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from pydicom import dcmread
from pynetdicom.sop_class import (
    PatientRootQueryRetrieveInformationModelFind,
    PatientRootQueryRetrieveInformationModelGet,
    PatientRootQueryRetrieveInformationModelMove,
)
from sqlalchemy.orm import Session, sessionmaker

from db import catalogue
from db.catalogue import Query
from db.studies import Arrival
from dicomnode.config import Peer
from tests.peers import StoreScp
from tests.receivers import Start, start
from tests.rows import make_arrival
from tests.test_catalogue import arrive, finish, result
from tests.test_query_retrieve import STUDY, ask, give, run_dcmtk, search_by_findscu

__all__ = ["start"]

FIND = PatientRootQueryRetrieveInformationModelFind
GET = PatientRootQueryRetrieveInformationModelGet
MOVE = PatientRootQueryRetrieveInformationModelMove
COUNTS = ("NumberOfPatientRelatedStudies", "NumberOfPatientRelatedSeries", "NumberOfPatientRelatedInstances")

STUDIES: Mapping[str, Mapping[str, Any]] = {
    "1.2.1": {"PatientID": "A-1", "PatientName": "Doe^Jane", "PatientBirthDate": "19600229", "PatientSex": "F"},
    "1.2.2": {"PatientID": "A-1", "PatientName": "Roe^Jane", "PatientBirthDate": "19600229", "PatientSex": "F"},
    "1.2.3": {"PatientID": "A-1", "IssuerOfPatientID": "North", "PatientName": "Poe^Edgar"},
    "1.2.4": {"PatientID": "A-2", "IssuerOfPatientID": "North", "PatientName": "Moe^Ann"},
    "1.2.5": {"PatientName": "Nobody^Known"},
}


def _make_arrival_of(study: str, number: int, person: Mapping[str, Any]) -> Arrival:
    arrival = make_arrival(study, "1", number, attributes={"Modality": "MR", **person})
    facts = replace(arrival.facts, patient_id=person.get("PatientID", ""), patient_name=person["PatientName"])
    return replace(arrival, facts=facts)


@pytest.fixture
def patients(sessions: sessionmaker[Session], now: datetime) -> sessionmaker[Session]:
    """Add five studies, of three patients and of unknown ones, with two instances each and a result in the first."""
    with sessions.begin() as session:
        for number, (study, person) in enumerate(STUDIES.items()):
            for instance in (1, 2):
                arrive(session, _make_arrival_of(study, instance, person), now + timedelta(seconds=number))
        finish(session, now + timedelta(seconds=9), result("1.2.1.9001.1"))
    return sessions


def _search_patients(
    patients: sessionmaker[Session], keys: Mapping[str, str], *return_keys: str
) -> list[dict[str, Any]]:
    with patients() as session:
        query = Query("PATIENT", keys, frozenset(return_keys))
        matches = catalogue.search(session, query)
        assert len(matches) == catalogue.count(session, query)
    return [dict(match.attributes) for match in matches]


def test_patients_are_told_once_by_their_newest_study_and_apart_by_issuer(patients: sessionmaker[Session]) -> None:
    patient_keys = [
        (p["PatientID"], p.get("IssuerOfPatientID", ""), p["PatientName"]) for p in _search_patients(patients, {})
    ]
    assert patient_keys == [("A-2", "North", "Moe^Ann"), ("A-1", "North", "Poe^Edgar"), ("A-1", "", "Roe^Jane")]


def test_what_a_patient_has_is_counted_with_results(patients: sessionmaker[Session]) -> None:
    (jane,) = _search_patients(patients, {"PatientName": "roe*"}, *COUNTS)
    assert [jane[keyword] for keyword in COUNTS] == [2, 3, 5]
    (edgar,) = _search_patients(patients, {"PatientID": "A-1", "IssuerOfPatientID": "North"}, *COUNTS)
    assert [edgar[keyword] for keyword in COUNTS] == [1, 1, 2]


@pytest.mark.parametrize(
    ("keys", "names"),
    [
        ({"PatientName": "doe*"}, []),  # the name of an older study: the answer would not match the question
        ({"PatientBirthDate": "1960-1961"}, ["Roe^Jane"]),
        ({"PatientSex": "F"}, ["Roe^Jane"]),
        ({"PatientID": "A-?", "IssuerOfPatientID": "N*"}, ["Moe^Ann", "Poe^Edgar"]),
        ({"PatientName": "Nobody*"}, []),
    ],
)
def test_patients_are_matched_by_their_own_keys(
    patients: sessionmaker[Session], keys: dict[str, str], names: list[str]
) -> None:
    assert [p["PatientName"] for p in _search_patients(patients, keys)] == names


def test_all_of_a_patient_is_retrieved_and_nothing_of_another(patients: sessionmaker[Session]) -> None:
    with patients() as session:
        edgar = catalogue.find_objects(session, patient={"PatientID": "A-1", "IssuerOfPatientID": "North"})
        mismatched = catalogue.find_objects(session, study_uid="1.2.3", patient={"PatientID": "A-2"})
        with pytest.raises(ValueError, match="of a study or of a patient"):
            catalogue.find_objects(session)
    assert [stored.sop_instance_uid for stored in edgar] == ["1.2.3.1.1", "1.2.3.1.2"]
    assert mismatched == []


GIVEN: tuple[Mapping[str, Any], ...] = (
    {"PatientID": "A-1", "PatientName": "Doe^Jane"},
    {"PatientID": "A-1", "PatientName": "Doe^Jane", "study_uid": "1.2.7", "series_uid": "1.2.7.1"},
    {"PatientID": "B-1", "IssuerOfPatientID": "North", "study_uid": "1.2.8", "series_uid": "1.2.8.1"},
    {"PatientID": "B-1", "IssuerOfPatientID": "South", "study_uid": "1.2.9", "series_uid": "1.2.9.1"},
)


def test_findscu_goes_down_from_the_patient_to_an_image(start: Start, tmp_path: Path) -> None:
    receiver = start()
    give(receiver, tmp_path / "in", *GIVEN)
    (patient,) = search_by_findscu(
        receiver, tmp_path / "1", "PATIENT", "PatientID=A-*", "PatientName", *COUNTS, root="-P"
    )
    assert (patient.PatientID, patient.PatientName, patient.QueryRetrieveLevel) == ("A-1", "Doe^Jane", "PATIENT")
    assert [patient[keyword].value for keyword in COUNTS] == [2, 2, 2]
    both = search_by_findscu(receiver, tmp_path / "2", "PATIENT", "PatientID=B-1", root="-P")
    assert sorted(each.IssuerOfPatientID for each in both) == ["North", "South"]
    ids = ("PatientID=A-1", "StudyInstanceUID")
    studies = search_by_findscu(receiver, tmp_path / "3", "STUDY", *ids, root="-P")
    assert {(each.PatientID, each.StudyInstanceUID) for each in studies} == {("A-1", "1.2.7"), ("A-1", STUDY)}
    keys = ("PatientID=A-1", "StudyInstanceUID=1.2.7", "SeriesInstanceUID=1.2.7.1", "SOPInstanceUID")
    (image,) = search_by_findscu(receiver, tmp_path / "4", "IMAGE", *keys, root="-P")
    assert (image.PatientID, image.SeriesInstanceUID) == ("A-1", "1.2.7.1")
    of_another = ("PatientID=B-1", "StudyInstanceUID=1.2.7", "SeriesInstanceUID")
    assert search_by_findscu(receiver, tmp_path / "5", "SERIES", *of_another, root="-P") == []


def test_getscu_and_movescu_take_all_of_a_patient(start: Start, storescp: StoreScp, tmp_path: Path) -> None:
    receiver = start(peers=(storescp.peer,))
    paths = give(receiver, tmp_path / "in", *GIVEN)
    of_jane = {str(dcmread(path).SOPInstanceUID) for path in paths[:2]}
    (tmp_path / "out").mkdir()
    keys = ("-k", "QueryRetrieveLevel=PATIENT", "-k", "PatientID=A-1")
    done = run_dcmtk("getscu", receiver, "-od", str(tmp_path / "out"), *keys, root="-P")
    assert done.returncode == 0, done.stderr
    assert {str(dcmread(path).SOPInstanceUID) for path in (tmp_path / "out").iterdir()} == of_jane
    done = run_dcmtk("movescu", receiver, "-aem", storescp.peer.ae_title, *keys, root="-P")
    assert done.returncode == 0, done.stderr
    assert {str(ds.SOPInstanceUID) for ds in storescp.datasets()} == of_jane


@pytest.mark.slow
@pytest.mark.parametrize("service", ["get", "move"])
@pytest.mark.parametrize(
    ("level", "keys", "status"),
    [
        ("PATIENT", {"PatientID": "B-1"}, 0xA900),  # two patients
        ("PATIENT", {"PatientID": "*"}, 0xA900),
        ("PATIENT", {"PatientID": ""}, 0xA900),
        ("PATIENT", {"PatientID": ["A-1", "B-1"]}, 0xA900),
        ("STUDY", {"StudyInstanceUID": "1.2.8"}, 0xA900),  # the patient is missing
        ("STUDY", {"PatientID": "A-1", "StudyInstanceUID": "1.2.8"}, 0x0000),  # another's: nothing
    ],
)
def test_nobody_gets_another_s_images_with_his(
    start: Start, tmp_path: Path, level: str, keys: dict[str, Any], status: int, service: str
) -> None:
    receiver = start(peers=(Peer(name="nobody", ae_title="NOBODY", host="127.0.0.1", port=1),))
    give(receiver, tmp_path / "in", *GIVEN)
    model = GET if service == "get" else MOVE
    answers = ask(receiver, service, keys, level=level, model=model, destination="NOBODY")
    assert [answer.Status for answer, _ in answers] == [status]


def test_an_issuer_makes_an_identifier_one_patient_s(start: Start, storescp: StoreScp, tmp_path: Path) -> None:
    receiver = start(peers=(storescp.peer,))
    paths = give(receiver, tmp_path / "in", *GIVEN)
    keys = {"PatientID": "B-1", "IssuerOfPatientID": "South"}
    *_, (last, _) = ask(receiver, "move", keys, level="PATIENT", model=MOVE, destination=storescp.peer.ae_title)
    assert last.Status == 0x0000
    assert [str(ds.SOPInstanceUID) for ds in storescp.datasets()] == [str(dcmread(paths[3]).SOPInstanceUID)]


@pytest.mark.parametrize(
    ("level", "keys", "model"),
    [
        ("STUDY", {"StudyInstanceUID": ""}, FIND),
        ("STUDY", {"PatientID": "A-*", "StudyInstanceUID": ""}, FIND),
        ("PATIENT", {"PatientID": ""}, ""),  # a level that the study root has not
    ],
)
def test_a_level_needs_the_patient_above_and_its_model(
    start: Start, level: str, keys: dict[str, Any], model: str
) -> None:
    answers = ask(start(), "find", keys, level=level, model=model)
    assert [status.Status for status, _ in answers] == [0xA900]


def test_the_issuer_is_told_with_each_study(start: Start, tmp_path: Path) -> None:
    receiver = start()
    give(receiver, tmp_path / "in", *GIVEN)
    keys = {"PatientID": "B-1", "StudyInstanceUID": ""}
    matches = [found for _, found in ask(receiver, "find", keys, model=FIND) if found is not None]
    assert {(ds.StudyInstanceUID, ds.IssuerOfPatientID) for ds in matches} == {("1.2.8", "North"), ("1.2.9", "South")}
