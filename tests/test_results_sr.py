"""The report of a job, read back by other software: highdicom's parser, DCMTK's dsrdump, dciodvfy."""

from __future__ import annotations

import math
import subprocess
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace
from functools import cache
from pathlib import Path

import highdicom as hd
import numpy as np
import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code as Concept
from pydicom.uid import Comprehensive3DSRStorage

from dicomnode import results
from dicomnode.config.results import ResultsConfig
from dicomnode.datasets import objects
from dicomnode.errors import InputRefused, NotMarked
from dicomnode.results import marking
from dicomnode.results.provenance import read_record
from pipelines.contract import Code, Finding, Interval, Measurement, Note, Segment, Segmentation
from pipelines.quality import Outcome, Verdict
from tests.findings import CONFIG, NOW, PROVENANCE, grid, make_findings, save, source
from tests.peers.process import require_program

NEWER_THAN_DCIODVFY = "(0008,001c)"
WITH_REPORT = ResultsConfig()
CEREBELLUM = Code("113305005", "SCT", "Cerebellum")
SUV = Code("126401", "DCM", "SUVbw")
UNITS = ("{SUVr}", "%", "ml", "Bq/ml", "1", "g/ml{SUVbw}")
HELD = Verdict(Outcome.HOLD, ("chi-square is 3, above the limit of 2", "flair: Echo Time (0018,0081) is 120 ms"))


def write_report(
    *further: Finding, verdict: Verdict = Verdict(), doubts: Sequence[str] = (), config: ResultsConfig = WITH_REPORT
) -> Dataset:
    """Write a report on the findings of one slice and on ``further`` ones."""
    findings = [*make_findings(grid("axial", 1)).findings, *further]
    return results.write(findings, [source(), source("mr")], PROVENANCE, config, NOW, verdict, doubts)[-1]


def make_measurements(count: int = 300, groups: int = 40) -> list[Measurement]:
    return [
        Measurement(
            f"quantity {n // groups}",
            0.1 * n,
            UNITS[n % len(UNITS)],
            "against cerebellar grey matter",
            group=f"region {n % groups}",
            site=CEREBELLUM if n % groups == 0 else None,
            intervals=(Interval(0.8, 0.1 * n - 1, 0.1 * n + 1),) if n % 10 == 0 else (),
        )
        for n in range(count)
    ]


@cache
def write_long_report() -> Dataset:
    """Write a report of 300 measurements in 40 groups."""
    return write_report(*make_measurements(), verdict=HELD, doubts=HELD.reasons[1:])


def read_content(ds: Dataset, folder: Path) -> hd.sr.MeasurementReport:
    return hd.sr.srread(str(save(ds, folder))).content


def read_first_group(ds: Dataset, folder: Path) -> hd.sr.MeasurementsAndQualitativeEvaluations:
    return read_content(ds, folder).get_image_measurement_groups()[0]


@pytest.mark.slow
def test_highdicom_reads_every_group_and_number_back(tmp_path: Path) -> None:
    groups = read_content(write_long_report(), tmp_path).get_image_measurement_groups()
    assert [group.tracking_identifier for group in groups] == ["Whole result", *(f"region {n}" for n in range(40))]
    assert len({group.tracking_uid for group in groups}) == 41
    expected_by_name = {(m.group, m.name): m for m in make_measurements()}
    read = [(group.tracking_identifier, m) for group in groups[1:] for m in group.get_measurements()]
    assert len(read) == 300
    for name, m in read:
        expected = expected_by_name[name, m.name.meaning]
        assert m.value == pytest.approx(expected.value)
        assert (m.unit.value, m.unit.scheme_designator) == (expected.unit, "UCUM")
    assert [m.name.meaning for m in groups[0].get_measurements()] == [
        "chi-square", "noise level", "acceleration R", "computing time"]  # fmt: skip
    (site,) = groups[1].finding_sites
    assert site.value == Concept("113305005", "SCT", "Cerebellum")


def test_the_observer_is_the_node_and_the_procedure_and_language_are_stated(tmp_path: Path) -> None:
    read = read_content(write_report(), tmp_path)
    (observer,) = read.get_observer_contexts()
    device = observer.observer_identifying_attributes
    assert (device.name, device.serial_number) == ("dicomnode", PROVENANCE.node_serial)
    assert "mri-prior 1.2.0" in device.model_name
    coded = {item.name.meaning: item.value.value for item in read[0].ContentSequence if item.ValueType == "CODE"}
    assert coded["Procedure reported"] == codes.cid100.MRIUnspecifiedBodyRegion.value
    assert coded["Language of Content Item and Descendants"] == "en"


def _map_properties(item: Dataset) -> dict[str, Dataset]:
    return {child.ConceptNameCodeSequence[0].CodeMeaning: child for child in item.get("ContentSequence", [])}


def _map_codes(group: hd.sr.MeasurementsAndQualitativeEvaluations) -> dict[str, Dataset]:
    """Return the CODE items as stored; highdicom's evaluations leave their children out."""
    return {_read_name(item): item for item in group[0].ContentSequence if item.ValueType == "CODE"}


def _read_number(item: Dataset) -> float:
    return float(item.MeasuredValueSequence[0].FloatingPointValue)


def test_a_number_carries_its_code_its_description_and_its_intervals(tmp_path: Path) -> None:
    intervals = (Interval(0.8, 1.1, 1.5), Interval(0.95, 1.0, 1.7))
    measurement = Measurement(
        "SUVR mean", 1.3, "{SUVr}", "cerebellar grey matter", "precuneus", CEREBELLUM, SUV, intervals
    )
    group = read_content(write_report(measurement), tmp_path).get_image_measurement_groups()[1]
    (read,) = group.get_measurements(name=Concept("126401", "DCM", "SUVbw"))
    said = _map_properties(read[0])
    assert said["Comment"].TextValue == "SUVR mean: cerebellar grey matter"
    limits = {name: _read_number(item) for name, item in said.items() if "interval" in name}
    assert limits == {
        "Lower limit of the 80 % interval": 1.1,
        "Upper limit of the 80 % interval": 1.5,
        "Lower limit of the 95 % interval": 1.0,
        "Upper limit of the 95 % interval": 1.7,
    }
    for name, code, distance in (("-, range of lower", "371885007", 0.3), ("+, range of upper", "371886008", 0.4)):
        item = said[f"{name} measurement uncertainty"]
        assert item.ConceptNameCodeSequence[0].CodeValue == code
        assert _read_number(item) == pytest.approx(distance)
        assert _map_properties(item)["Comment"].TextValue == "95 % interval"


def test_a_value_outside_of_its_interval_has_no_negative_uncertainty(tmp_path: Path) -> None:
    measurement = Measurement("mean", 2.0, "1", intervals=(Interval(0.95, 0.0, 1.0),))
    item = next(
        m for m in read_first_group(write_report(measurement), tmp_path).get_measurements() if m.name.meaning == "mean"
    )
    assert len(_map_properties(item[0])) == 2


@pytest.mark.parametrize(
    ("value", "reason"),
    [(math.nan, "Not a number"), (math.inf, "Positive Infinity"), (-math.inf, "Negative Infinity")],
)
def test_what_is_no_number_is_said_to_be_none(value: float, reason: str, tmp_path: Path) -> None:
    measurement = Measurement(
        "SUVR", value, "{SUVr}", "reference region is empty", intervals=(Interval(0.8, value, 1.0),)
    )
    group = read_first_group(write_report(measurement), tmp_path)
    assert "SUVR" not in [m.name.meaning for m in group.get_measurements()]
    (said,) = [e for e in group.get_qualitative_evaluations() if e.name.meaning == "SUVR"]
    assert (said.value.meaning, said.value.scheme_designator) == (reason, "DCM")
    assert _map_properties(_map_codes(group)["SUVR"])["Comment"].TextValue == "reference region is empty"


def test_a_limit_that_is_no_number_is_said_to_be_none() -> None:
    ds = write_report(Measurement("SUVR", 1.0, "{SUVr}", intervals=(Interval(0.95, -math.inf, 2.0),)))
    (limit,) = [item for item in _list_items(ds) if _read_name(item) == "Lower limit of the 95 % interval"]
    assert limit.ConceptCodeSequence[0].CodeMeaning == "Negative Infinity"


def _list_items(ds: Dataset) -> list[Dataset]:
    below = [item for child in ds.get("ContentSequence", []) for item in _list_items(child)]
    return [*ds.get("ContentSequence", []), *below]


def _read_name(item: Dataset) -> str:
    return str(item.ConceptNameCodeSequence[0].CodeMeaning)


def test_a_group_named_as_a_segment_refers_to_it(tmp_path: Path) -> None:
    objects = results.write(
        [*make_findings(grid("axial")).findings, Measurement("volume", 12.5, "ml", group="low confidence")],
        [source()], PROVENANCE, WITH_REPORT, NOW)  # fmt: skip
    (group,) = read_content(objects[-1], tmp_path).get_volumetric_roi_measurement_groups()
    (item,) = [item for item in group.referenced_segment if item.ValueType == "IMAGE"]
    (reference,) = item.ReferencedSOPSequence
    assert reference.ReferencedSOPInstanceUID == objects[-2].SOPInstanceUID
    assert reference.ReferencedSegmentNumber == 1
    assert group.finding_type.meaning == "Region of low confidence"
    assert [m.value for m in group.get_measurements()] == [12.5]


def test_segments_of_several_masks_are_told_apart(tmp_path: Path) -> None:
    where = grid("axial")
    kind = Code("91772007", "SCT", "Brain part")
    masks = [
        Segmentation(f"mask {n}", np.ones(where.shape, np.uint8), where, (Segment(1, f"part {n}", kind, kind),),
                     "Parts", 3.0)
        for n in (1, 2)
    ]  # fmt: skip
    numbers = [Measurement("volume", float(n), "ml", group=f"part {n}") for n in (2, 1)]
    objects = results.write(
        [*make_findings(where).findings, *masks, *numbers], [source()], PROVENANCE, WITH_REPORT, NOW
    )
    groups = read_content(objects[-1], tmp_path).get_volumetric_roi_measurement_groups()
    referred = {
        group.tracking_identifier: group.referenced_segment[0].ReferencedSOPSequence[0].ReferencedSOPInstanceUID
        for group in groups
    }
    assert referred == {"part 1": objects[-3].SOPInstanceUID, "part 2": objects[-2].SOPInstanceUID}


@pytest.mark.parametrize(
    ("verdict", "doubts", "gate", "contract"),
    [
        (Verdict(), (), "Accepted", "Kept"),
        (HELD, HELD.reasons[1:], "Held for a person's decision", "Doubted"),
        (Verdict(Outcome.HOLD, HELD.reasons[:1]), (), "Held for a person's decision", "Kept"),
    ],
)
def test_the_verdict_of_the_gate_and_doubts_about_the_input_are_coded_with_their_reasons(
    verdict: Verdict, doubts: tuple[str, ...], gate: str, contract: str, tmp_path: Path
) -> None:
    group = read_first_group(write_report(verdict=verdict, doubts=doubts), tmp_path)
    said = {each.name.meaning: each.value.meaning for each in group.get_qualitative_evaluations()}
    assert (said["Output gate"], said["Input contract of the model"]) == (gate, contract)
    for name, reasons in (("Output gate", verdict.reasons), ("Input contract of the model", doubts)):
        assert [child.TextValue for child in _map_codes(group)[name].get("ContentSequence", [])] == list(reasons)


def test_a_note_is_text_under_its_name(tmp_path: Path) -> None:
    group = read_first_group(write_report(Note("age", "72 years (header)"), Note("Centiloid", "withheld")), tmp_path)
    said = {_read_name(item): item.TextValue for item in group[0].ContentSequence if item.ValueType == "TEXT"}
    assert (said["age"], said["Centiloid"]) == ("72 years (header)", "withheld")


def test_every_input_and_every_result_is_in_the_evidence_and_images_in_the_library(tmp_path: Path) -> None:
    inputs = [source("raw"), source("mr", 1), source("mr", 2)]
    objects = results.write(make_findings(grid("axial", 1)).findings, inputs, PROVENANCE, WITH_REPORT, NOW)
    read = hd.sr.srread(str(save(objects[-1], tmp_path)))
    assert {uid for _, _, uid, _ in read.get_evidence()} == {ds.SOPInstanceUID for ds in [*inputs, *objects[:-1]]}
    listed = [
        item.ReferencedSOPSequence[0].ReferencedSOPInstanceUID
        for item in _list_items(read)
        if item.ValueType == "IMAGE"
    ]
    assert listed == [ds.SOPInstanceUID for ds in [*inputs[1:], *objects[:-1]]]


def test_an_input_without_a_series_cannot_be_referred_to() -> None:
    with pytest.raises(InputRefused, match="no Series Instance UID"):
        results.write_refusal("no", [source("mr", SeriesInstanceUID=None)], PROVENANCE, WITH_REPORT, NOW)


def test_long_names_keep_their_words_and_their_codes_differ() -> None:
    names = [
        f"standardised uptake value ratio of the region that is described at some length, number {n}" for n in (1, 2)
    ]
    ds = write_report(*(Measurement(name, 1.0, "1") for name in names), Measurement("hold", 1.0, "1"))
    numbers = [item for item in _list_items(ds) if item.ValueType == "NUM"]
    values = [item.ConceptNameCodeSequence[0].CodeValue for item in numbers]
    assert len(set(values)) == len(values)
    assert all(len(value) <= 16 for value in values)
    assert "HOLD" not in values
    assert {_map_properties(item)["Comment"].TextValue for item in numbers[-3:-1]} == set(names)


def test_the_private_scheme_is_identified() -> None:
    (scheme,) = write_report().CodingSchemeIdentificationSequence
    assert scheme.CodingSchemeDesignator == "99DICOMNODE"


def test_it_says_that_it_is_preliminary_and_verified_by_nobody() -> None:
    ds = write_report()
    assert (ds.SOPClassUID, ds.Modality) == (Comprehensive3DSRStorage, "SR")
    assert (ds.CompletionFlag, ds.PreliminaryFlag, ds.VerificationFlag) == ("COMPLETE", "PRELIMINARY", "UNVERIFIED")
    assert ds.SeriesDescription == "SYN Measurements"
    assert objects.kind_of(ds) == "report"


@pytest.mark.slow
def test_the_same_job_makes_the_same_bytes_and_another_verdict_another_object() -> None:
    measurement = make_measurements(12, 3)
    first, again = write_report(*measurement), write_report(*measurement)
    assert objects.encode(first) == objects.encode(again)
    held = write_report(*measurement, verdict=HELD)
    assert held.SOPInstanceUID != first.SOPInstanceUID
    assert held.SeriesInstanceUID != first.SeriesInstanceUID


def test_numbers_of_regions_stand_in_the_report_and_not_in_every_header() -> None:
    findings = [*make_findings(grid("axial", 1)).findings, Measurement("SUVR", 1.25, "{SUVr}", group="precuneus")]
    for config, there in ((WITH_REPORT, False), (CONFIG, True)):
        image = results.write(findings, [source()], PROVENANCE, config, NOW)[0]
        assert ("SUVR: 1.25 {SUVr}" in image.ImageComments) is there
        assert ("precuneus" in [m.get("group") for m in read_record(image)["measurements"]]) is there
        assert "chi-square: 1.02" in image.ImageComments


def test_a_report_is_written_only_where_it_is_wanted() -> None:
    findings = make_findings(grid("axial", 1)).findings
    classes = [ds.SOPClassUID for ds in results.write(findings, [source()], PROVENANCE, CONFIG, NOW)]
    assert Comprehensive3DSRStorage not in classes


def test_numbers_alone_make_a_report(tmp_path: Path) -> None:
    (ds,) = results.write([Measurement("count", 3.0, "1")], [source()], PROVENANCE, WITH_REPORT, NOW)
    marking.check_marks(ds)
    assert [m.value for m in read_first_group(ds, tmp_path).get_measurements()] == [3.0]


def test_names_and_words_keep_their_characters(tmp_path: Path) -> None:
    header = source("mr", SpecificCharacterSet="ISO_IR 100")
    findings = [Measurement("χ²", 1.0, "1", group="Größe")]
    (ds,) = results.write(findings, [header], PROVENANCE, WITH_REPORT, NOW)
    read = dcmread(save(ds, tmp_path))
    assert (read.SpecificCharacterSet, str(read.PatientName)) == ("ISO_IR 192", "Müller^Jörg")
    assert "χ²" in [_read_name(item) for item in _list_items(read)]


def test_the_reason_of_a_refusal_stands_first_and_is_coded(tmp_path: Path) -> None:
    reason = "flair: Inversion Time (0018,0082) is 900 ms; synthetic_dir 1.0.0 takes 1500 to 3000 ms"
    note = results.write_refusal(reason, [source("mr")], PROVENANCE, WITH_REPORT, NOW)
    marking.check_marks(note)
    assert note.SeriesDescription == "SYN Not processed: mri_reconstruction"
    words = [
        item.TextValue
        for item in note.ContentSequence
        if item.get("RelationshipType") == "CONTAINS" and "TextValue" in item
    ]
    assert words[0].startswith("SYNTHETIC - RESEARCH USE ONLY")
    assert words[1] == f"Not processed: {reason}"
    said = {
        each.name.meaning: each.value.meaning for each in read_first_group(note, tmp_path).get_qualitative_evaluations()
    }
    assert said.pop("Algorithm Family") == "Artificial Intelligence"
    assert said == {"Output gate": "Refused"}
    other = results.write_refusal("another reason", [source("mr")], PROVENANCE, WITH_REPORT, NOW)
    assert other.SOPInstanceUID != note.SOPInstanceUID
    later = replace(PROVENANCE, job_key="job-2")
    assert results.write_refusal(reason, [source("mr")], later, WITH_REPORT, NOW).SOPInstanceUID == note.SOPInstanceUID


def _write_reports() -> dict[str, Dataset]:
    return {
        "long": write_long_report(),
        "no number": write_report(
            Measurement("broken", math.nan, "1", intervals=(Interval(0.8, -math.inf, math.inf),))
        ),
        "with a segment": write_report(
            Measurement("volume", 1.0, "ml", group="Low confidence"), Note("age", "unknown")
        ),
        "refusal": results.write_refusal("why", [source("raw")], PROVENANCE, WITH_REPORT, NOW),
    }


@pytest.mark.slow
def test_dsrdump_reads_every_report(tmp_path: Path) -> None:
    program = require_program("/usr/bin/dsrdump", "dcmtk")
    for name, ds in _write_reports().items():
        run = subprocess.run([program, "+Pl", save(ds, tmp_path)], capture_output=True, check=False)
        output = run.stdout.decode()
        assert run.returncode == 0, name
        assert not [line for line in run.stderr.decode().splitlines() if line.startswith(("E:", "F:"))], name
        assert "SYNTHETIC - RESEARCH USE ONLY" in output, name
    assert "why" in output


@pytest.mark.slow
def test_dciodvfy_finds_no_error(tmp_path: Path) -> None:
    program = require_program("/usr/bin/dciodvfy", "dicom3tools")
    for name, ds in _write_reports().items():
        messages = subprocess.run(
            [program, "-new", save(ds, tmp_path)], capture_output=True, text=True, check=False
        ).stderr
        errors = [line for line in messages.splitlines() if line.startswith("Error")]
        assert [line for line in errors if NEWER_THAN_DCIODVFY not in line] == [], name


DELETED = (
    "SyntheticData", "ContentQualification", "ContributingEquipmentSequence", "SeriesDescription", "Manufacturer",
    "SoftwareVersions", "DeviceSerialNumber", "SOPInstanceUID", "StudyInstanceUID", "PatientID", "VerificationFlag",
    "PreliminaryFlag", "CurrentRequestedProcedureEvidenceSequence", "ContentSequence",
)  # fmt: skip


@cache
def _write_short_report() -> Dataset:
    return write_report()


@pytest.mark.parametrize("keyword", DELETED)
def test_a_report_without_a_mark_is_held_back(keyword: str) -> None:
    ds = deepcopy(_write_short_report())
    marking.check_marks(ds)
    delattr(ds, keyword)
    with pytest.raises(NotMarked, match=keyword):
        marking.check_marks(ds)


def test_a_report_that_claims_to_be_verified_or_hides_the_words_is_held_back() -> None:
    ds = deepcopy(_write_short_report())
    ds.VerificationFlag = "VERIFIED"
    with pytest.raises(NotMarked, match="VerificationFlag"):
        marking.check_marks(ds)
    ds = deepcopy(_write_short_report())
    for item in ds.ContentSequence:
        if "TextValue" in item:
            item.TextValue = item.TextValue.replace("SYNTHETIC", "MEASURED")
    with pytest.raises(NotMarked, match="words in ContentSequence"):
        marking.check_marks(ds)


def test_an_image_cannot_pass_with_the_marks_of_a_report() -> None:
    image = deepcopy(results.write(make_findings(grid("axial", 1)).findings, [source()], PROVENANCE, CONFIG, NOW)[0])
    del image.ImageType
    with pytest.raises(NotMarked, match="ImageType"):
        marking.check_marks(image)
