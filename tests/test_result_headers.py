"""Patient, study and time in the headers of results, whatever the headers of their sources hold."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.config import IGNORE
from pydicom.datadict import dictionary_VR
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.uid import CTImageStorage, ImplicitVRLittleEndian

from dicomnode import results
from dicomnode.config import Config
from dicomnode.config.node import NodeConfig
from dicomnode.config.results import ResultsConfig
from dicomnode.datasets.titles import title
from dicomnode.deployment import models
from dicomnode.errors import InputRefused
from dicomnode.execution import processing
from dicomnode.reading import frames, volumes
from dicomnode.results import marking
from dicomnode.results.inherited import TYPE_2, inherit
from dicomnode.results.page import Page
from pipelines.contract import Image, ParametricMap, Volume
from pipelines.quality import Outcome, Verdict
from tests.dciodvfy import find_errors
from tests.findings import NOW, PROVENANCE, grid, make_findings, source
from tests.installed import pin_installed
from tests.job_results import FORMS
from tests.pet_series import write_pet
from tests.pet_series import write_pet_bundle as write_dose_bundle
from tests.series import write_slices

pytestmark = pytest.mark.slow

PAGE = Page(np.zeros((8, 8, 3), np.uint8), b"%PDF-1.4\n/Title (SYNTHETIC - RESEARCH USE ONLY)\n%%EOF")
GRID = grid("oblique", 2, 12, 14)


def write_every_kind(sources: Sequence[Dataset], now: datetime = NOW) -> list[Dataset]:
    """Write all kinds of results in every form: on an image of the job, and on the sources' own grid without one."""
    findings, held = make_findings(GRID).findings, Verdict(Outcome.HOLD, ("chi-square is 3",))
    objects: list[Dataset] = []
    for each in FORMS.values():
        form = each.with_values({"report_page": ("sc", "pdf"), "key_object": True})
        objects += results.write(findings, sources, PROVENANCE, form, now, held, page=PAGE)
        objects += results.write(findings[1:3], sources, PROVENANCE, form, now)
    objects.append(results.write_refusal("no reason", sources, PROVENANCE, ResultsConfig(), now))
    objects.append(results.write_key_note("no reason", sources, PROVENANCE, ResultsConfig(), now))
    return objects


def read_on_grid(folder: Path, edit: Callable[[int, Dataset], None] = lambda k, ds: None) -> list[Dataset]:
    """Return the headers of an MR series on ``GRID``, as the node reads them."""
    data = np.random.default_rng(1).integers(0, 900, GRID.shape).astype(np.uint16)
    return volumes.read(write_slices(folder, GRID, data, edit=edit)).headers


@pytest.mark.parametrize("keyword", [*TYPE_2, "all of them"])
def test_a_type_2_attribute_that_a_source_lacks_is_written_empty(keyword: str, tmp_path: Path) -> None:
    missing = TYPE_2 if keyword == "all of them" else (keyword,)

    def edit(_: int, ds: Dataset) -> None:
        for each in (*missing, "PositionReferenceIndicator", "Laterality", "SliceThickness"):
            ds.pop(each, None)

    for ds in write_every_kind(read_on_grid(tmp_path, edit)):
        marking.check_marks(ds)
        for each in missing:
            assert ds[each].is_empty, f"{ds.SOPClassUID.name}: {each}"


def test_every_object_of_a_job_says_the_same_of_patient_and_study(tmp_path: Path) -> None:
    def edit(_: int, ds: Dataset) -> None:
        ds.PatientComments, ds.OtherPatientIDs, ds.PatientWeight, ds.StudyDescription = "told", "77", "71.5", "Head"
        ds.IssuerOfPatientID, ds.ClinicalTrialSponsorName, ds.ClinicalTrialProtocolID = "CLINIC", "Sponsor", "P-1"
        ds.ClinicalTrialSubjectID = "S-1"

    objects = write_every_kind(read_on_grid(tmp_path, edit))
    of_study = (0x0008_0020, 0x0008_0030, 0x0008_0050, 0x0008_0051, 0x0008_0090, 0x0008_0201, 0x0008_1030, 0x0020_000D,
                0x0020_0010)  # fmt: skip
    modules = {
        str([each for each in ds if each.tag.group in (0x0010, 0x0012) or each.tag in of_study]) for ds in objects
    }
    assert len(modules) == 1
    assert all(ds.PatientWeight == 71.5 and ds.IssuerOfPatientID == "CLINIC" for ds in objects)


def test_nothing_else_of_the_sources_series_and_equipment_is_said_of_the_results(tmp_path: Path) -> None:
    header_values = {
        "InstitutionName": "Clinic", "InstitutionAddress": "Street", "StationName": "MR1", "OperatorsName": "Op^A",
        "ProtocolName": "protocol", "OtherPatientIDs": "77", "PatientComments": "told", "SoftwareVersions": "VE11",
        "PerformedProcedureStepID": "PPS", "ClinicalTrialSeriesID": "series", "SequenceName": "tfl3d",
    }  # fmt: skip

    def edit(_: int, ds: Dataset) -> None:
        for keyword, value in header_values.items():
            setattr(ds, keyword, value)

    for ds in write_every_kind(read_on_grid(tmp_path, edit)):
        assert [keyword for keyword, value in header_values.items() if str(ds.get(keyword)) == value] == []


@pytest.mark.parametrize(
    ("offset", "date", "time"), [("+0900", "20261120", "183015"), ("-1130", "20261119", "220015"),
     (None, "20261120", "093015")],
)  # fmt: skip
def test_times_are_in_the_zone_that_the_source_states(offset: str | None, date: str, time: str, tmp_path: Path) -> None:
    def edit(_: int, ds: Dataset) -> None:
        if offset:
            ds.TimezoneOffsetFromUTC = offset

    for ds in write_every_kind(read_on_grid(tmp_path, edit)):
        assert ds.get("TimezoneOffsetFromUTC") == offset
        assert (ds.ContentDate, ds.ContentTime) == (date, time), ds.SOPClassUID.name
        assert (ds.InstanceCreationDate, ds.InstanceCreationTime) == (date, time)
        assert (ds.SeriesDate, ds.SeriesTime) == (date, time)
        for element in ds.iterall():
            if element.VR == "DT" and not element.is_empty:
                assert datetime.strptime(element.value, "%Y%m%d%H%M%S%z") == NOW, element.keyword


def test_without_an_offset_in_the_source_times_are_those_of_the_nodes_zone() -> None:
    now = NodeConfig(timezone="Asia/Tokyo").to_local_time(NOW)
    (ds, *_) = results.write(make_findings(GRID).findings, [source("mr")], PROVENANCE, ResultsConfig(report=False), now)
    assert (ds.ContentDate, ds.ContentTime) == ("20261120", "183015")
    assert ds.ContributingEquipmentSequence[0].ContributionDateTime == "20261120183015+0900"
    assert "TimezoneOffsetFromUTC" not in ds, "it would speak of the study's times, whose zone nobody stated"


def test_offsets_that_differ_are_two_readings_of_every_time() -> None:
    sources = [source("mr", 1, TimezoneOffsetFromUTC="+0100"), source("mr", 2, TimezoneOffsetFromUTC="+0200")]
    with pytest.raises(InputRefused, match=r"differ in Timezone Offset From UTC \(0008,0201\)"):
        inherit(sources)
    some = [source("mr", 1, TimezoneOffsetFromUTC="+0100"), source("mr", 2)]
    assert "TimezoneOffsetFromUTC" not in inherit(some).common
    assert inherit(some).moment(NOW).isoformat() == "2026-11-20T10:30:15+01:00"


ODD: Mapping[str, tuple[str, bytes]] = {
    "birth date with dots": ("PatientBirthDate", b"19.01.1970"), "birth year": ("PatientBirthDate", b"1970"),
    "birth date that is none": ("PatientBirthDate", b"19700231"), "sex in German": ("PatientSex", b"W "),
    "sex in words": ("PatientSex", b"male"), "two sexes": ("PatientSex", b"M\\F "),
    "study date with dots": ("StudyDate", b"2026.01.01"),
    "study date as a range": ("StudyDate", b"20260101-20260102 "),
    "study time with colons": ("StudyTime", b"12:00:00"), "impossible study time": ("StudyTime", b"256199"),
    "long study ID": ("StudyID", b"x" * 30), "two accession numbers in one": ("AccessionNumber", b"1\\2 "),
    "control characters": ("StudyDescription", b"head\x07\x01"), "long description": ("StudyDescription", b"x" * 100),
    "name of too many components": ("PatientName", b"a^b^c^d^e^f^g "),
    "name of too many groups": ("PatientName", b"a=b=c=d "),
    "name in bytes of an unknown set": ("ReferringPhysicianName", "Müller^Jörg".encode("latin-1") + b" "),
    "age": ("PatientAge", b"42"), "weight": ("PatientWeight", b"70kg"), "size": ("PatientSize", b"1,80"),
    "offset": ("TimezoneOffsetFromUTC", b"+9:00 "), "offset that is none": ("TimezoneOffsetFromUTC", b"+9900 "),
    "body part": ("BodyPartExamined", b"Head & neck"), "laterality": ("Laterality", b"links "),
    "modality": ("Modality", b"m.r."), "position": ("PatientPosition", b"head first supine "),
    "identity removed": ("PatientIdentityRemoved", b"MAYBE "),
}  # fmt: skip


@pytest.mark.parametrize("what", ODD)
def test_a_value_that_breaks_its_rules_is_left_empty_with_a_note(what: str, tmp_path: Path) -> None:
    keyword, value = ODD[what]
    header = _read_header_with(keyword, value, tmp_path)
    (note,) = inherit([header]).notes
    assert note.startswith(f"{title(keyword)} of the input ")
    for part in value.decode("latin-1").split():
        assert len(part) < 4 or part not in note, "no patient data in messages"
    for ds in results.write(make_findings(GRID).findings, [header], PROVENANCE, ResultsConfig(), NOW):
        if keyword != "Modality":
            assert keyword not in ds or ds[keyword].is_empty
        ds.save_as(tmp_path / "result.dcm", enforce_file_format=True)
        dcmread(tmp_path / "result.dcm").walk(lambda _, element: None)


@pytest.mark.parametrize("value", [b"x" * 80, b"47\x0111", "Müll".encode("latin-1"), b"1\\2 "])
def test_a_patient_id_that_breaks_its_rules_is_refused_by_name(value: bytes, tmp_path: Path) -> None:
    with pytest.raises(InputRefused, match=r"^Patient ID \(0010,0020\) of the input (holds|has)"):
        inherit([_read_header_with("PatientID", value, tmp_path)])


@pytest.mark.parametrize("keyword", ["SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID"])
def test_an_input_that_nothing_can_refer_to_is_refused(keyword: str, tmp_path: Path) -> None:
    for value in (b"", b"1.2.x "):
        with pytest.raises(InputRefused, match=r"UID \((0008,0016|0008,0018|0020,000E)\)"):
            inherit([_read_header_with(keyword, value, tmp_path)])


def _read_header_with(keyword: str, value: bytes, folder: Path) -> Dataset:
    """Return the header of a file with these bytes as the value; in Implicit VR the file states no VR."""
    ds = source("mr")
    ds.SpecificCharacterSet = None if any(byte > 127 for byte in value) else "ISO_IR 192"
    ds.PatientName = "Miller^John"
    ds[keyword] = DataElement(keyword, "OB", value, validation_mode=IGNORE)
    ds.ensure_file_meta()
    ds.preamble = b"\0" * 128
    ds.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    ds.save_as(folder / "source.dcm", implicit_vr=True, little_endian=True, enforce_file_format=False)
    return frames.read_header(folder / "source.dcm")


def test_a_slice_thickness_that_is_no_number_is_none(tmp_path: Path) -> None:
    header = _read_header_with("SliceThickness", b"4mm ", tmp_path)
    (note,) = inherit([header]).notes
    assert note == "Slice Thickness (0018,0050) of the input holds no valid value (VR DS); it counts as not stated"
    assert frames.frames_of(header)[0].number_of("SliceThickness") is None


@pytest.mark.parametrize(
    ("keyword", "value"),
    [("PatientID", "4712"), ("PatientName", "Maier^Jörg"), ("PatientBirthDate", "19700130"), ("PatientSex", "F"),
     ("AccessionNumber", "816"), ("StudyInstanceUID", "1.2.3"), ("IssuerOfPatientID", "CLINIC")],
)  # fmt: skip
def test_inputs_of_two_patients_or_orders_are_refused(keyword: str, value: str) -> None:
    one, other = source("mr", 1, IssuerOfPatientID="HOUSE"), source("mr", 2, IssuerOfPatientID="HOUSE")
    other.add_new(keyword, dictionary_VR(keyword), value)
    with pytest.raises(InputRefused, match="the inputs of the job differ in") as refused:
        inherit([one, other])
    assert value not in str(refused.value)


def test_spellings_that_mean_the_same_are_the_same() -> None:
    one = source("mr", 1, PatientName="Müller^Jörg", StudyTime="101112", PatientWeight="70")
    other = source("mr", 2, PatientName="MÜLLER^JÖRG^^^", StudyTime="101112.000", PatientWeight="70.0")
    inherited = inherit([one, other])
    assert (inherited.notes, str(inherited.common.PatientName), float(inherited.common.PatientWeight)) == (
        (),
        "Müller^Jörg",
        70,
    )


def test_what_differs_and_may_be_empty_is_empty_with_a_note() -> None:
    inherited = inherit([source("mr", 1, StudyTime="101112"), source("mr", 2, StudyTime="111213")])
    assert inherited.common["StudyTime"].is_empty
    assert inherited.notes == ("Study Time (0008,0030) differs between the inputs; it is left empty",)


def test_two_accession_numbers_end_a_job_before_its_model_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("a model is loaded for a job that cannot have a result")

    def edit(k: int, ds: Dataset) -> None:
        ds.AccessionNumber = f"A{k // 2}"

    where = grid("axial", 4, 12, 14)
    paths = write_pet(tmp_path / "pet", where, np.ones(where.shape, np.float32), edit=edit)
    write_dose_bundle(tmp_path / "models")
    monkeypatch.setattr(models, "load", never)
    task = processing.Task("key", "standard_dose_pet", "", {"dose_fraction": 0.25}, {"match": paths}, 1, NOW)
    config = Config.model_validate({"node": {"data_dir": str(tmp_path)}})
    with pytest.raises(InputRefused, match=r"differ in Accession Number \(0008,0050\)"):
        processing.run_task(pin_installed(task, config), config, progress=lambda done, step: None)


@pytest.mark.parametrize(
    ("part", "laterality", "written"),
    [("KNEE", None, ""), ("KNEE", "L", "L"), ("BREAST", None, ""), ("EXTREMITY", "R", "R"), ("", None, ""),
     ("UNKNOWN", None, ""), ("HEAD", None, None), ("CHEST", "", None), ("BRAIN", "L", None)],
)  # fmt: skip
def test_laterality_is_there_where_a_part_may_be_one_of_a_pair(
    part: str, laterality: str | None, written: str | None, tmp_path: Path
) -> None:
    header = source("mr", BodyPartExamined=part)
    if laterality is not None:
        header.Laterality = laterality
    image, _, deviation, mask = results.write(
        make_findings(GRID).findings, [header], PROVENANCE, ResultsConfig(report=False), NOW
    )
    assert (image.get("Laterality"), deviation.get("Laterality")) == (written, written)
    assert "Laterality" not in mask
    for ds in (image, deviation, mask):
        assert find_errors(ds, tmp_path / "result.dcm") == []


def test_an_image_laterality_of_the_source_is_kept_in_place_of_one_that_is_not_stated(tmp_path: Path) -> None:
    header = source("mr", BodyPartExamined="BREAST", ImageLaterality="R")
    image, *_ = results.write(make_findings(GRID).findings, [header], PROVENANCE, ResultsConfig(report=False), NOW)
    assert (image.ImageLaterality, "Laterality" in image) == ("R", False)
    assert find_errors(image, tmp_path / "result.dcm") == []


TRIAL = {
    "ClinicalTrialSponsorName": "Sponsor", "ClinicalTrialProtocolID": "P-1", "ClinicalTrialSubjectID": "S-1",
    "ClinicalTrialTimePointDescription": "baseline",
}  # fmt: skip


@pytest.mark.parametrize(
    "missing", [None, "ClinicalTrialSponsorName", "ClinicalTrialProtocolID", "ClinicalTrialSubjectID"]
)
def test_the_clinical_trial_modules_are_whole_or_not_there(missing: str | None, tmp_path: Path) -> None:
    attributes: dict[str, Any] = {keyword: value for keyword, value in TRIAL.items() if keyword != missing}
    header = source("mr", **attributes)
    objects = results.write(make_findings(GRID).findings, [header], PROVENANCE, ResultsConfig(), NOW)
    for ds in objects:
        said = {each.keyword for each in ds if each.tag.group == 0x0012}
        expected = {*TRIAL, "ClinicalTrialProtocolName", "ClinicalTrialSiteID", "ClinicalTrialSiteName",
                 "ClinicalTrialTimePointID"}  # fmt: skip
        assert said == (set() if missing else expected)
        assert find_errors(ds, tmp_path / "result.dcm") == []
    assert bool(inherit([header]).notes) == bool(missing)


def test_identity_removed_goes_with_its_method_or_not_at_all(tmp_path: Path) -> None:
    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator = "113100", "DCM"
    code.CodeMeaning = "Basic Application Confidentiality Profile"
    removed = source("mr", PatientIdentityRemoved="YES", DeidentificationMethodCodeSequence=[code])
    for ds in results.write(make_findings(GRID).findings, [removed], PROVENANCE, ResultsConfig(), NOW):
        assert (ds.PatientIdentityRemoved, ds.DeidentificationMethodCodeSequence[0].CodeValue) == ("YES", "113100")
        assert find_errors(ds, tmp_path / "result.dcm") == []
    without = inherit([source("mr", PatientIdentityRemoved="YES")])
    assert "PatientIdentityRemoved" not in without.common
    assert len(without.notes) == 1
    assert "PatientIdentityRemoved" not in inherit([removed, source("mr", 2)]).common


def test_lossy_compression_of_a_source_is_that_of_its_results(tmp_path: Path) -> None:
    def edit(k: int, ds: Dataset) -> None:
        ds.LossyImageCompression, ds.LossyImageCompressionMethod = "01", "ISO_15444_1"
        ds.LossyImageCompressionRatio = f"{8 + k}"

    said = {(str(ds.LossyImageCompression), str(ds.get("LossyImageCompressionRatio")),
             str(ds.get("LossyImageCompressionMethod"))) for ds in write_every_kind(read_on_grid(tmp_path, edit))
            if "LossyImageCompression" in ds}  # fmt: skip
    assert said == {("01", "9", "ISO_15444_1")}


def test_images_of_a_pet_with_its_ct_have_the_modality_and_place_of_the_pet(tmp_path: Path) -> None:
    pet = volumes.read(write_pet(tmp_path, GRID, np.ones(GRID.shape, np.float32))).headers
    ct = source("mr", Modality="CT", SOPClassUID=CTImageStorage, SeriesInstanceUID="1.2.3", BodyPartExamined="CHEST")
    for keyword in ("StudyInstanceUID", "PatientID", "StudyDate", "StudyTime", "StudyID", "AccessionNumber"):
        setattr(ct, keyword, pet[0][keyword].value)
    objects = results.write(make_findings(GRID).findings, [*pet, ct], PROVENANCE, ResultsConfig(report=False), NOW)
    assert [ds.Modality for ds in objects[:2]] == ["PT", "PT"]
    assert {ds.FrameOfReferenceUID for ds in objects} == {pet[0].FrameOfReferenceUID}
    assert {ds.BodyPartExamined for ds in objects} == {"BRAIN"}


@pytest.mark.parametrize("code", [("386136009", "SCT"), ("113061", "DCM")])
def test_a_map_of_standard_deviations_says_so_in_its_image_type(code: tuple[str, str]) -> None:
    image, deviation, *_ = make_findings(GRID).findings
    assert isinstance(deviation, ParametricMap)
    quantity = replace(deviation.quantity, value=code[0], scheme=code[1])
    of_deviation, of_other = replace(deviation, quantity=quantity), replace(
        deviation, name="other", quantity=replace(quantity, value="373098007")
    )  # fmt: skip
    config = ResultsConfig(labelled=False, report=False)
    _, one, other = results.write([image, of_deviation, of_other], [source("mr")], PROVENANCE, config, NOW)
    assert (one.ImageType[3], other.ImageType[3]) == ("STD_DEVIATION", "QUANTITY")


@pytest.mark.parametrize(("kind", "count"), [("STATIC", None), ("WHOLE BODY", None), ("DYNAMIC", 1)])
def test_only_a_dynamic_pet_counts_its_time_slices(kind: str, count: int | None, tmp_path: Path) -> None:
    def edit(_: int, ds: Dataset) -> None:
        ds.SeriesType, ds.NumberOfTimeSlices, ds.DecayFactor = [kind, "IMAGE"], 4, "1.01"

    series = volumes.read(write_pet(tmp_path, GRID, np.ones(GRID.shape, np.float32), edit=edit))
    image = Image("standard dose", Volume(series.volume.data, series.volume.grid, "Bq/ml", 3.0), "PET", 3.0, "PT")
    config = ResultsConfig(image_kind="modality", labelled=False, report=False)
    objects = results.write([image], series.headers, PROVENANCE, config, NOW)
    assert [ds.get("NumberOfTimeSlices") for ds in objects] == [count, count]
    assert find_errors(objects[0], tmp_path / "result.dcm") == []


@pytest.mark.parametrize(
    ("keyword", "value"), [("SeriesType", ["GATED", "IMAGE"]), ("SeriesType", ["STATIC", "REPROJECTION"]),
                           ("DecayCorrection", "ADMIN"), ("SeriesTime", "140000")]
)  # fmt: skip
def test_a_pet_whose_slices_disagree_or_are_of_several_volumes_is_no_source_of_a_pet(
    keyword: str, value: Any, tmp_path: Path
) -> None:
    def edit(k: int, ds: Dataset) -> None:
        if keyword == "SeriesType" or k == 1:
            setattr(ds, keyword, value)

    paths = write_pet(tmp_path, GRID, np.ones(GRID.shape, np.float32), edit=edit)
    headers = [frames.read_header(path) for path in paths]
    image = Image("standard dose", Volume(np.ones(GRID.shape, np.float32), GRID, "Bq/ml", 3.0), "PET", 3.0, "PT")
    config = ResultsConfig(image_kind="modality", labelled=False, report=False)
    (ds,) = results.write([image], headers, PROVENANCE, config, NOW)
    assert ds.Modality == "PT"
    assert ds.SOPClassUID.name == "Multi-frame Grayscale Word Secondary Capture Image Storage"


def test_a_page_lies_nowhere_and_says_so(tmp_path: Path) -> None:
    config = ResultsConfig(report_page=("sc", "pdf"), report=False)
    header = source("mr", PatientPosition="HFS", PositionReferenceIndicator="")
    page, pdf = results.write(make_findings(GRID).findings, [header], PROVENANCE, config, NOW, page=PAGE)[-2:]
    for keyword in ("FrameOfReferenceUID", "PositionReferenceIndicator", "PatientPosition"):
        assert keyword not in page
        assert keyword not in pdf
    assert find_errors(page, tmp_path / "page.dcm") == []
    assert find_errors(pdf, tmp_path / "pdf.dcm") == []
