"""C-FIND by every key that the node knows, and by the request attributes of a series."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest
from pydicom.datadict import dictionary_VR
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian
from pynetdicom import build_context
from pynetdicom.pdu_primitives import SOPClassExtendedNegotiation
from pynetdicom.sop_class import PatientRootQueryRetrieveInformationModelFind

from db import catalogue
from db.catalogue import Level
from dicomnode.dimse.associations import association
from tests.receivers import Start, start
from tests.test_query_retrieve import STUDY, give, here, search_by_findscu

__all__ = ["start"]

PATIENT_ROOT = PatientRootQueryRetrieveInformationModelFind


@pytest.mark.slow
def test_every_key_can_be_asked_for_and_finds_what_was_told(start: Start, tmp_path: Path) -> None:
    """Each level's keys and those above it, in relational queries of the Patient Root over one association."""
    receiver = start()
    item = Dataset()
    item.ScheduledProcedureStepID, item.RequestedProcedureID = "STEP1", "PROC1"
    series = {"series_uid": f"{STUDY}.2", "Modality": "CT", "RequestAttributesSequence": [item]}
    give(receiver, tmp_path / "in", {}, series)
    flags = SOPClassExtendedNegotiation()
    flags.sop_class_uid, flags.service_class_application_information = PATIENT_ROOT, b"\1\0\0"
    contexts = [build_context(PATIENT_ROOT, ExplicitVRLittleEndian)]
    with association(here(receiver), contexts, calling_aet="ANYBODY", timeout_s=20, roles=[flags]) as assoc:

        def find(keys: Dataset, pending: int = 0xFF00) -> list[Dataset]:
            *found, (last, _) = assoc.send_c_find(keys, PATIENT_ROOT)
            assert (last.Status, {status.Status for status, _ in found} - {pending}) == (0x0000, set())
            return [answer for _, answer in found if answer is not None]

        for level in get_args(Level):
            for keyword in sorted(each for each in catalogue.supported_keywords(level) if "." not in each):
                universal = Dataset()
                universal.QueryRetrieveLevel = level
                universal.add(DataElement(keyword, dictionary_VR(keyword), None))
                matches = find(universal)
                assert all(keyword in each for each in matches), keyword
                assert len(matches) == {"PATIENT": 1, "STUDY": 1, "SERIES": 2, "IMAGE": 2}[level], keyword
                for each in matches:
                    universal.add(each[keyword])
                    is_matched = not catalogue.find_unmatched(
                        {keyword: "" if each[keyword].VR == "SQ" else str(each[keyword].value)}
                    )
                    assert each in find(universal, 0xFF00 if is_matched else 0xFF01), (level, keyword)


def test_findscu_finds_a_series_by_its_request_and_its_study(start: Start, tmp_path: Path) -> None:
    receiver = start()
    item, other = Dataset(), Dataset()
    item.ScheduledProcedureStepID, item.RequestedProcedureID = "STEP1", "PRÖC1"
    other.ScheduledProcedureStepID, other.RequestedProcedureID = "STEP2", "PROC2"
    give(receiver, tmp_path / "in", {}, {"series_uid": f"{STUDY}.2", "RequestAttributesSequence": [item, other]})

    def search(name: str, *keys: str) -> list[Dataset]:
        return search_by_findscu(receiver, tmp_path / name, "SERIES", f"StudyInstanceUID={STUDY}", *keys)

    sequence = "RequestAttributesSequence[0]"
    (series,) = search("1", f"{sequence}.ScheduledProcedureStepID=STEP?", f"{sequence}.RequestedProcedureID")
    assert series.SeriesInstanceUID == f"{STUDY}.2"
    assert [each.ScheduledProcedureStepID for each in series.RequestAttributesSequence] == ["STEP1", "STEP2"]
    assert series.RequestAttributesSequence[0].RequestedProcedureID == "PRÖC1"
    mixed = (f"{sequence}.ScheduledProcedureStepID=STEP1", f"{sequence}.RequestedProcedureID=PROC2")
    assert search("2", *mixed) == []
    assert len(search("3", "ModalitiesInStudy=MR")) == 2
    assert search("4", "ModalitiesInStudy=CT") == []
