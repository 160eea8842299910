"""De-identified copies of files of several vendors identify nobody, and references between them stay valid."""

from __future__ import annotations

import stat
import warnings
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any, Literal

import highdicom as hd
import numpy as np
import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.uid import MRImageStorage

from dicomnode import config as configuration
from dicomnode import results
from dicomnode.config.results import ResultsConfig
from dicomnode.deidentify import copying, method, pseudonyms, secret, values
from dicomnode.deidentify.secret import Secret
from dicomnode.errors import ConfigError, InputRefused
from dicomnode.results import marking
from dicomnode.results.provenance import read_record
from pipelines.contract import Image
from tests.findings import NOW, PROVENANCE, grid, make_findings, save, source
from tests.identifying import find_identifiers_left, load_config, make_deidentifier
from tests.peers import write_instance

OF_VENDORS = (
    "dicom/siemens-xa30-enhanced/*.dcm",
    "dicom/siemens-xa60-mr-spectroscopy/*.dcm",
    "dicom/transfer-syntaxes-mosaic/1.dcm",
    "dicom/philips-classic-asl/*/*",
    "dicom/dcmqi-reference-objects/**/*.dcm",
    "dicom/highdicom-test-files/*.dcm",
    "dicom/pydicom-test-files/*small.dcm",
    "dicom/pydicom-test-files/*SQ.dcm",
    "dicom/pydicom-test-files/test-SR.dcm",
    "dicom/pydicom-test-files/waveform_ecg.dcm",
    "dicom/pydicom-test-files/charset/chr*",
)
PACKED = (
    "mri/t1-dicom-studyforrest/dicoms.tar.xz",
    "dicom/ge-irspgr-fruit-refaced/dicoms.tar.xz",
    "pet/tcia-sts001-fdg-wholebody/raw_bqml.tar.xz",
)
AN_IMAGE: dict[str, Any] = {
    "PatientName": "Müller^Jörg", "PatientID": "4711-geheim", "ImagePositionPatient": [0, 0, 0],
}  # fmt: skip
ALL_OPTIONS: dict[str, Any] = {
    "dates": "shift", "patient_characteristics": True, "clean_descriptors": True, "private": "safe",
    "burned_in": "send", "pseudonym_prefix": "S-",
}  # fmt: skip


def deidentify(ds: Dataset, folder: Path, **options: Any) -> Dataset:
    """Return the de-identified copy of a data set, written to a file and read again."""
    path = save(ds, folder, f"{ds.SOPInstanceUID}.dcm")
    return make_deidentifier(**options).read(path)


def make_instance(folder: Path, **attributes: Any) -> Dataset:
    name = f"{attributes.get('InstanceNumber', 1)}.dcm"
    return write_instance(folder / name, **(AN_IMAGE | attributes))


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"burned_in": "send"}, ALL_OPTIONS], ids=["basic", "options"])
@pytest.mark.parametrize("pattern", OF_VENDORS)
def test_nothing_identifying_is_left_in_the_bytes_of_the_copy(kit: Path, pattern: str, options: dict[str, Any]) -> None:
    files = [path for path in sorted(kit.glob(pattern)) if path.is_file()]
    assert files
    for path in files[:8]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            original, ds = dcmread(path), dcmread(path)
            if "SOPClassUID" not in ds:  # cut down for tests of character sets
                ds.SOPClassUID, ds.SOPInstanceUID = MRImageStorage, "1.2.3"
            copy = make_deidentifier(**options).deidentify(ds)
            assert find_identifiers_left(original, copy) == set(), path.name
        assert copy.PatientIdentityRemoved == "YES"


@pytest.mark.parametrize("archive", PACKED)
def test_nothing_is_left_of_packed_series_either(kit: Path, archive: str, tmp_path: Path) -> None:
    import lzma
    import tarfile

    if not (kit / archive).is_file():
        pytest.skip(f"{archive} is not in the kit")
    with lzma.open(kit / archive) as file, tarfile.open(fileobj=file) as tar:
        members = [next(member for member in tar if member.isfile()) for _ in range(3)]
        tar.extractall(tmp_path, members=members, filter="data")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for path in (each for each in tmp_path.rglob("*") if each.is_file()):
            assert find_identifiers_left(dcmread(path), make_deidentifier().read(path)) == set()


def test_sequences_are_cleaned_to_the_bottom(tmp_path: Path) -> None:
    ds, item, deeper = make_instance(tmp_path), Dataset(), Dataset()
    deeper.PatientID, deeper.StudyDate, deeper.ReferencedSOPInstanceUID = "4711-geheim", "20260101", ds.SOPInstanceUID
    deeper.add_new(0x00091010, "LO", "private Müller")
    item.PurposeOfReferenceCodeSequence = [deeper]
    ds.SourceInstanceSequence = [item]
    copy = deidentify(ds, tmp_path)
    inner = copy.SourceInstanceSequence[0].PurposeOfReferenceCodeSequence[0]
    assert inner.ReferencedSOPInstanceUID == copy.SOPInstanceUID
    assert "4711" not in inner.PatientID
    assert not inner.StudyDate
    assert 0x00091010 not in inner


def test_private_elements_go_unless_they_are_known_to_be_safe(tmp_path: Path) -> None:
    ds = make_instance(tmp_path)
    safe, other = ds.private_block(0x0019, "SIEMENS MR HEADER", create=True), ds.private_block(0x0029, "X", create=True)
    safe.add_new(0x0C, "IS", "1000")
    safe.add_new(0x08, "LO", "Müller")
    other.add_new(0x10, "LO", "4711-geheim")
    assert not [each for each in deidentify(ds, tmp_path) if each.tag.is_private]
    retained = deidentify(ds, tmp_path, private="safe")
    assert [str(each.value) for each in retained if each.tag.is_private] == ["SIEMENS MR HEADER", "1000"]
    assert "113111" in read_method_codes(retained)


def test_references_between_copies_still_lead_to_each_other(tmp_path: Path) -> None:
    image = make_instance(tmp_path)
    header = dcmread(tmp_path / "1.dcm", stop_before_pixels=True)
    header.FrameOfReferenceUID = "1.2.3.4"
    written = results.write(
        make_findings(grid("axial")).findings, (header,), PROVENANCE, ResultsConfig(report=True), NOW
    )
    source_copy = deidentify(image, tmp_path)
    copies = [deidentify(ds, tmp_path) for ds in written]
    uids = {copy.SOPInstanceUID for copy in copies}
    for copy in copies:
        marking.check_marks(copy)
        assert copy.StudyInstanceUID == source_copy.StudyInstanceUID
        assert copy.PatientID == source_copy.PatientID
        if "SourceImageSequence" in copy:
            identified = {item.ReferencedSOPInstanceUID for item in copy.SourceImageSequence}
            assert source_copy.SOPInstanceUID in identified
            assert identified <= uids | {source_copy.SOPInstanceUID}
    report = next(copy for copy in copies if copy.Modality == "SR")
    identified = {element.value for element in report.iterall() if element.keyword == "ReferencedSOPInstanceUID"}
    assert identified <= uids | {source_copy.SOPInstanceUID}
    assert hd.sr.srread(save(report, tmp_path, "sr.dcm")).content
    assert not {str(ds.SOPInstanceUID) for ds in written} & {str(uid) for uid in uids}


def test_a_frame_of_reference_stays_shared_and_registered_uids_stay(tmp_path: Path) -> None:
    one = deidentify(make_instance(tmp_path, InstanceNumber=1, FrameOfReferenceUID="1.2.3"), tmp_path)
    two = deidentify(make_instance(tmp_path, InstanceNumber=2, FrameOfReferenceUID="1.2.3"), tmp_path)
    assert one.FrameOfReferenceUID == two.FrameOfReferenceUID != "1.2.3"
    assert one.SOPInstanceUID != two.SOPInstanceUID
    talairach = "1.2.840.10008.1.4.1.1"
    assert deidentify(make_instance(tmp_path, FrameOfReferenceUID=talairach), tmp_path).FrameOfReferenceUID == talairach
    retained = deidentify(make_instance(tmp_path, FrameOfReferenceUID="1.2.3"), tmp_path, retain_uids=True)
    assert retained.FrameOfReferenceUID == "1.2.3"


def parse_day(text: str) -> date:
    return date(int(text[:4]), int(text[4:6]), int(text[6:8]))


def test_intervals_stay_where_dates_are_shifted(tmp_path: Path) -> None:
    original = make_instance(tmp_path, StudyDate="20240229", AcquisitionDateTime="20240229235959.5+0100")
    first = deidentify(original, tmp_path, dates="shift")
    second = deidentify(make_instance(tmp_path, StudyDate="20260101", StudyTime="081500"), tmp_path, dates="shift")
    other = deidentify(make_instance(tmp_path, StudyDate="20260101", PatientID="another"), tmp_path, dates="shift")
    assert parse_day(second.StudyDate) - parse_day(first.StudyDate) == date(2026, 1, 1) - date(2024, 2, 29)
    assert first.AcquisitionDateTime == f"{first.StudyDate}235959.5+0100"
    assert second.StudyTime == "081500"
    assert other.StudyDate != second.StudyDate
    assert second.StudyDate < "20260101"
    assert (first.LongitudinalTemporalInformationModified, read_method_codes(first)[-1]) == ("MODIFIED", "113107")


def test_a_value_that_states_no_day_becomes_empty() -> None:
    assert values.shift_date("2025", -1) == ""
    assert values.shift_date("20259999", -1) == ""
    assert values.shift_date("1999.12.31", 1) == "20000101"
    assert values.shift_date(["20250101", "20250103"], -1) == ["20241231", "20250102"]


def test_the_same_patient_is_the_same_subject_and_another_key_makes_another(tmp_path: Path) -> None:
    ds = make_instance(tmp_path)
    one, again = (
        deidentify(ds, tmp_path).PatientID,
        deidentify(make_instance(tmp_path, StudyDate="20200101"), tmp_path).PatientID,
    )
    elsewhere = deidentify(make_instance(tmp_path, IssuerOfPatientID="Other hospital"), tmp_path).PatientID
    path = save(ds, tmp_path)
    other = make_deidentifier(b"another key of sixteen bytes").read(path)
    assert one == again
    assert len({one, elsewhere, other.PatientID}) == 3
    assert other.StudyInstanceUID != deidentify(ds, tmp_path).StudyInstanceUID


def test_without_a_patient_id_each_study_is_a_subject() -> None:
    key, ds, other = Secret(b"k" * 16), Dataset(), Dataset()
    ds.StudyInstanceUID, other.StudyInstanceUID = "1.2.1", "1.2.2"
    assert key.subject(ds) != key.subject(other)


@pytest.mark.parametrize(
    ("character_set", "name"),
    [("ISO_IR 100", "Buc^Jérôme"), ("ISO_IR 192", "Πάππας^Ωρίων"), ("ISO_IR 144", "Люкceмбypг"),
     (["ISO 2022 IR 6", "ISO 2022 IR 87"], "Yamada^Tarou=山田^太郎"), ("GB18030", "王^小东")],
)  # fmt: skip
def test_names_in_any_character_set_are_gone(tmp_path: Path, character_set: Any, name: str) -> None:
    ds = make_instance(tmp_path, SpecificCharacterSet=character_set, PatientName=name, PatientID="id-4711")
    ds.BodyPartExamined, ds.ReceiveCoilName = "BRAIN", f"coil {name.split('^')[0]}"
    path = save(ds, tmp_path)
    copy = make_deidentifier(clean_descriptors=True).read(path)
    assert find_identifiers_left(dcmread(path), copy) == set()
    assert dcmread(save(copy, tmp_path, "copy.dcm")).BodyPartExamined == "BRAIN"


def test_patient_characteristics_stay_on_demand_and_great_ages_do_not(tmp_path: Path) -> None:
    ds = make_instance(tmp_path, PatientAge="093Y", PatientWeight="70", PatientSex="F")
    plain, retained = deidentify(ds, tmp_path), deidentify(ds, tmp_path, patient_characteristics=True)
    assert (plain.get("PatientAge"), plain.get("PatientWeight"), plain.PatientSex or "") == (None, None, "")
    assert (retained.PatientAge, retained.PatientWeight, retained.PatientSex) == ("090Y", 70, "F")
    assert values.cap_age("089Y") == "089Y"


def read_method_codes(ds: Dataset) -> list[str]:
    return [item.CodeValue for item in ds.DeidentificationMethodCodeSequence]


def test_the_copy_says_how_it_was_made(tmp_path: Path) -> None:
    plain = deidentify(make_instance(tmp_path), tmp_path)
    assert read_method_codes(plain) == ["113100"]
    assert plain.LongitudinalTemporalInformationModified == "REMOVED"
    assert method.is_deidentified_by(plain, "research")
    assert not method.is_deidentified_by(plain, "other")
    with_all_options = deidentify(
        make_instance(tmp_path), tmp_path, **ALL_OPTIONS, device=True, institution=True, retain_uids=True
    )
    assert set(read_method_codes(with_all_options)) == {
        "113100", "113105", "113107", "113108", "113109", "113110", "113111", "113112",
    }  # fmt: skip


def test_descriptors_keep_the_words_that_name_nobody(tmp_path: Path) -> None:
    ds = make_instance(tmp_path, SeriesDescription="t1_mprage_sag Müller 3.5 12345678", StudyDescription="Dr. Weber")
    assert "SeriesDescription" not in deidentify(ds, tmp_path)
    retained = deidentify(ds, tmp_path, clean_descriptors=True)
    assert retained.SeriesDescription == "t1 mprage sag 3.5"
    assert retained.StudyDescription == "REMOVED"


def test_results_keep_their_marks_and_lose_what_they_quote(tmp_path: Path) -> None:
    header = source("mr", PatientAge="091Y")
    provenance = results.Provenance(
        **(vars(PROVENANCE) | {"parameters": {"age": "91 years (Patient's Age)", "steps": 4},
                               "facts": {"age_years": 91.0, "sex": "M", "modality": "MR"}})
    )  # fmt: skip
    config = ResultsConfig(labelled=False, report=False)
    (ds,) = results.write(make_findings(grid("axial")).findings[:1], (header,), provenance, config, NOW)
    plain, retained = deidentify(ds, tmp_path), deidentify(ds, tmp_path, patient_characteristics=True)
    for copy in (plain, retained):
        marking.check_marks(copy)
        assert "91" not in str(read_record(copy)["parameters"]) + str(read_record(copy)["acquisition"])
        assert "91 years" not in copy.ImageComments
        assert read_record(copy)["node"]["job"] == ""
    assert read_record(plain)["acquisition"] == {"modality": "MR"}
    assert read_record(plain)["parameters"] == {"steps": 4}
    assert read_record(retained)["acquisition"]["age_years"] == 90


@pytest.mark.parametrize("kind", ["single", "multiframe"])
def test_a_copy_says_which_slices_of_a_result_are_synthetic(
    tmp_path: Path, kind: Literal["single", "multiframe"]
) -> None:
    config = ResultsConfig(labelled=False, report=False, image_kind=kind)
    image = make_findings(grid("axial")).findings[0]
    assert isinstance(image, Image)
    objects = results.write([replace(image, synthetic_slices=(1,))], (source("mr"),), PROVENANCE, config, NOW)
    said = []
    for ds in objects:
        copy = deidentify(ds, tmp_path)
        frames = copy.get("PerFrameFunctionalGroupsSequence") or []
        said += [str(frame.FrameContentSequence[0].FrameComments) for frame in frames] or [str(copy.ImageComments)]
    assert len(said) == 4
    assert sum(each.startswith("SYNTHETIC") for each in said) == 1
    assert sum(each.startswith("Measured") for each in said) == 3


def test_a_foreign_report_loses_its_words_and_keeps_its_numbers(tmp_path: Path) -> None:
    header = make_instance(tmp_path)
    content = hd.sr.ContentSequence([hd.sr.ContainerContentItem(name=codes.LN.DiagnosticImagingReport)], is_root=True)
    contains = hd.sr.RelationshipTypeValues.CONTAINS
    content[0].ContentSequence = hd.sr.ContentSequence(
        [
            hd.sr.TextContentItem(codes.DCM.Comment, "Herr Müller, born 31.1.1970", contains),
            hd.sr.PnameContentItem(codes.DCM.PersonObserverName, "Weber^Anna", contains),
            hd.sr.UIDRefContentItem(codes.DCM.TrackingUniqueIdentifier, header.SOPInstanceUID, contains),
            hd.sr.NumContentItem(codes.SCT.Volume, 4.5, codes.UCUM.Millimeter, relationship_type=contains),
        ]
    )
    ds = hd.sr.ComprehensiveSR(
        evidence=[header], content=content[0], series_instance_uid="1.2.9", series_number=1, sop_instance_uid="1.2.9.1",
        instance_number=1, manufacturer="-",
    )  # fmt: skip
    copy = deidentify(ds, tmp_path)
    assert find_identifiers_left(ds, copy) == set()
    text, name, tracked, number = copy.ContentSequence
    assert (text.TextValue, name.PersonName) == ("REMOVED", "REMOVED")
    assert deidentify(header, tmp_path).SOPInstanceUID == tracked.UID
    assert number.MeasuredValueSequence[0].NumericValue == 4.5
    assert "113104" in read_method_codes(copy)


@pytest.mark.parametrize(
    ("attributes", "reason"),
    [
        ({"BurnedInAnnotation": "YES"}, "says that text is burned"),
        ({"Modality": "US", "sop_class_uid": "1.2.840.10008.5.1.4.1.1.6.1"}, "does not say whether text"),
        ({"sop_class_uid": "1.2.840.10008.5.1.4.1.1.7"}, "does not say whether text"),
        ({}, "no place in the patient"),
    ],
)
def test_what_may_have_text_in_its_pixels_is_refused(tmp_path: Path, attributes: Any, reason: str) -> None:
    write_instance(tmp_path / "x.dcm", **attributes)
    with pytest.raises(InputRefused, match=reason):
        make_deidentifier(burned_in="refuse").read(tmp_path / "x.dcm")
    assert make_deidentifier(burned_in="send").read(tmp_path / "x.dcm").PatientIdentityRemoved == "YES"


def test_an_image_that_says_that_it_has_no_text_goes(tmp_path: Path) -> None:
    write_instance(tmp_path / "x.dcm", Modality="US", BurnedInAnnotation="NO")
    assert make_deidentifier(burned_in="refuse").read(tmp_path / "x.dcm").PatientIdentityRemoved == "YES"


@pytest.mark.parametrize(
    "sop_class_uid", ["1.2.840.10008.5.1.4.1.1.66", "1.2.840.10008.5.1.4.1.1.104.1", "1.2.840.10008.5.1.4.1.1.104.2"]
)
def test_payloads_and_documents_are_refused_always(tmp_path: Path, sop_class_uid: Any) -> None:
    write_instance(tmp_path / "x.dcm", sop_class_uid=sop_class_uid)
    with pytest.raises(InputRefused, match="not de-identified"):
        make_deidentifier(burned_in="send").read(tmp_path / "x.dcm")


def test_a_refusal_names_nobody(tmp_path: Path) -> None:
    (tmp_path / "x.dcm").write_text("Müller")
    with pytest.raises(InputRefused) as refused:
        make_deidentifier().read(tmp_path / "x.dcm")
    assert "Müller" not in str(refused.value)


def test_a_head_goes_without_its_face_or_not_at_all(tmp_path: Path) -> None:
    make_instance(tmp_path, BodyPartExamined="HEAD")
    with pytest.raises(InputRefused, match="may show a face"):
        make_deidentifier(deface=True).read(tmp_path / "1.dcm")
    make_instance(tmp_path, BodyPartExamined="PELVIS")
    assert make_deidentifier(deface=True).read(tmp_path / "1.dcm").BodyPartExamined == "PELVIS"
    make_instance(tmp_path, BodyPartExamined="HEAD", RecognizableVisualFeatures="NO")
    assert "113102" in read_method_codes(make_deidentifier(deface=True).read(tmp_path / "1.dcm"))


def test_overlays_and_preamble_do_not_pass(tmp_path: Path) -> None:
    ds = make_instance(tmp_path, InstanceNumber=1)
    ds.add_new(0x60000010, "US", 16)
    ds.add_new(0x60003000, "OW", b"secret")
    ds.preamble = b"secret".ljust(128, b"\0")
    ds.file_meta.SourceApplicationEntityTitle = "SCANNER1"
    copy = deidentify(ds, tmp_path)
    assert not [each for each in copy if each.tag.group == 0x6000]
    assert b"secret" not in save(copy, tmp_path, "copy.dcm").read_bytes()
    assert "SourceApplicationEntityTitle" not in copy.file_meta


def test_pixels_and_syntax_stay_as_they_are(kit: Path) -> None:
    for path in sorted((kit / "dicom/transfer-syntaxes-mosaic").glob("*.dcm")):
        original, copy = dcmread(path), make_deidentifier(burned_in="send").read(path)
        assert copy.PixelData == original.PixelData
        assert copy.file_meta.TransferSyntaxUID == original.file_meta.TransferSyntaxUID
        assert np.array_equal(copy.pixel_array, original.pixel_array)


@pytest.mark.parametrize("mode", [0o640, 0o604])
def test_a_key_that_others_can_read_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "key"
    path.write_bytes(b"k" * 32)
    path.chmod(mode)
    with pytest.raises(ConfigError, match="can be read by others"):
        secret.load_secret(path)


def test_a_key_that_can_be_guessed_is_refused_and_none_is_shown(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.touch(0o600)
    path.write_bytes(b"short\n")
    with pytest.raises(ConfigError, match="holds 5 bytes"):
        secret.load_secret(path)
    assert "geheim" not in repr(Secret(b"geheim"))


def test_who_is_who_is_written_down_apart_and_for_its_owner_only(tmp_path: Path) -> None:
    config = load_config(tmp_path, map_file="who.map")
    ds = make_instance(tmp_path, BurnedInAnnotation="NO")
    copy = copying.open_deidentifier(config, "research").read(tmp_path / "1.dcm")
    assert pseudonyms.find_patient(tmp_path / "who.map", str(copy.PatientID)) == ("", "4711-geheim")
    assert pseudonyms.find_patient(tmp_path / "who.map", "nobody") is None
    assert stat.S_IMODE((tmp_path / "who.map").stat().st_mode) == 0o600
    assert ds.PatientID == "4711-geheim"
    (tmp_path / "who.map").chmod(0o644)
    with pytest.raises(ConfigError, match="can be read by others"):
        copying.open_deidentifier(config, "research").read(tmp_path / "1.dcm")


@pytest.mark.parametrize("key", ["key_file", "map_file"])
def test_secrets_do_not_lie_where_a_backup_of_the_data_takes_them(tmp_path: Path, key: str) -> None:
    files = {"key_file": "research.key", "map_file": "who.map"} | {key: "data/here"}
    lines = "".join(f'{name} = "{value}"\n' for name, value in files.items())
    (tmp_path / "node.toml").write_text(f'[[deidentify]]\nname = "research"\n{lines}')
    with pytest.raises(ConfigError, match=f"line [0-9]: .*{key} must not lie in the data_dir"):
        configuration.load(tmp_path / "node.toml")


def test_a_peer_names_a_profile_that_is_there(tmp_path: Path) -> None:
    peer = '[[peers]]\nname = "lab"\nae_title = "LAB"\nport = 104\ndeidentify = "none"\n'
    (tmp_path / "node.toml").write_text(peer)
    with pytest.raises(ConfigError, match="line 5: peer 'lab': no \\[\\[deidentify\\]\\] is named 'none'"):
        configuration.load(tmp_path / "node.toml")


def test_the_search_for_what_is_left_finds_it(tmp_path: Path) -> None:
    ds = make_instance(tmp_path)
    assert {"Müller", "Jörg", "4711-geheim", "20260101", str(ds.SOPInstanceUID)} <= find_identifiers_left(ds, ds)
