"""Every element of the ISMRMRD XML header is used, refused by name, or without effect on the result."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from ismrmrd import xsd
from xsdata.models.datatype import XmlDate, XmlTime

from dicomnode import mrd
from dicomnode.mrd.facts import read_identity
from tests.mrd_files import Edit, acquire_scan, is_equal, read_refusal, set_calibration

NOW = datetime(2026, 1, 2, tzinfo=UTC)


def _set_multiband(header: Any) -> None:
    set_calibration("embedded")(header)
    header.encoding[0].parallelImaging.multiband = xsd.multibandType(
        spacing=[xsd.multibandSpacingType(dZ=[20.0])], deltaKz=0.1, multiband_factor=2,
        calibration=xsd.multibandCalibrationType.FULL3_D, calibration_encoding=0)  # fmt: skip


def test_slices_excited_at_once_are_refused(tmp_path: Path) -> None:
    assert "2 slices excited at once (multiband)" in read_refusal(tmp_path, edit_header=_set_multiband)


@pytest.mark.parametrize("trajectory", ["epi", "radial", "goldenangle", "spiral", "other"])
def test_a_trajectory_that_is_not_cartesian_is_refused(trajectory: str, tmp_path: Path) -> None:
    def change(header: Any) -> None:
        header.encoding[0].trajectory = xsd.trajectoryType(trajectory)

    assert f"trajectory '{trajectory}'" in read_refusal(tmp_path, edit_header=change)


def _add_user_parameters(header: Any) -> None:
    header.userParameters = xsd.userParametersType(
        userParameterLong=[xsd.userParameterLongType(name="a", value=3)],
        userParameterDouble=[xsd.userParameterDoubleType(name="b", value=0.5)],
        userParameterString=[xsd.userParameterStringType(name="c", value="d")],
        userParameterBase64=[xsd.userParameterBase64Type(name="e", value=b"Zg==")])  # fmt: skip


def _add_waveforms(header: Any) -> None:
    header.waveformInformation = [xsd.waveformInformationType(
        waveformName="ECG", waveformType=xsd.waveformInformationTypeWaveformType.ECG,
        userParameters=xsd.userParametersType())]  # fmt: skip


def _add_description(header: Any) -> None:
    header.encoding[0].trajectoryDescription = xsd.trajectoryDescriptionType(identifier="line by line")


def _name_coils(header: Any) -> None:
    header.acquisitionSystemInformation.coilLabel = [xsd.coilLabelType(coilNumber=n, coilName=f"H{n}") for n in (1, 0)]


def _set_interleaved(header: Any) -> None:
    set_calibration("interleaved")(header)
    header.encoding[0].parallelImaging.interleavingDimension = xsd.interleavingDimensionType.AVERAGE


def _set_element(path: str, value: Any) -> Edit:
    def change(header: Any) -> None:
        *parents, last = path.split(".")
        for parent in parents:
            header = header[int(parent)] if parent.isdigit() else getattr(header, parent)
        setattr(header, last, value)

    return change


IGNORED: dict[str, Edit] = {
    "version": _set_element("version", 3),
    "experimentalConditions H1resonanceFrequency_Hz": _set_element("experimentalConditions.H1resonanceFrequency_Hz", 1),
    "acquisitionSystemInformation coilLabel": _name_coils,
    "acquisitionSystemInformation deviceID": _set_element("acquisitionSystemInformation.deviceID", "x"),
    "encoding echoTrainLength": _set_element("encoding.0.echoTrainLength", 7),
    "encoding trajectoryDescription": _add_description,
    "parallelImaging interleavingDimension": _set_interleaved,
    "sequenceParameters sequence_type": _set_element("sequenceParameters.sequence_type", "Flash"),
    "sequenceParameters echo_spacing": _set_element("sequenceParameters.echo_spacing", [3.0]),
    "sequenceParameters diffusionScheme": _set_element("sequenceParameters.diffusionScheme", "bipolar"),
    "sequenceParameters diffusion": _set_element("sequenceParameters.diffusion", [
        xsd.diffusionType(gradientDirection=xsd.gradientDirectionType(rl=1, ap=0, fh=0), bvalue=1000)]),
    "userParameters": _add_user_parameters,
    "waveformInformation": _add_waveforms,
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("element", IGNORED)
def test_an_element_that_does_not_change_the_image_changes_nothing(element: str, tmp_path: Path) -> None:
    plain, edited = (mrd.to_kspace(acquire_scan(tmp_path, **how))[0] for how in ({}, {"edit_header": IGNORED[element]}))
    assert is_equal(plain, edited)


def test_the_stated_acceleration_is_a_fact_and_the_mask_comes_from_the_lines(tmp_path: Path) -> None:
    kspace, facts = mrd.to_kspace(acquire_scan(tmp_path, edit_header=set_calibration("embedded")))
    assert facts["acceleration_stated"] == (2, 1)
    assert facts["acceleration"] == 1.0
    assert kspace.mask.all()


@pytest.mark.parametrize("echo_times_ms", [[20.0], [20.0, 80.0], [20.0, 50.0, 80.0]])
def test_an_echo_time_belongs_to_the_contrast_of_its_number(echo_times_ms: list[float], tmp_path: Path) -> None:
    """The acquisition holds contrasts 0 and 2."""

    def edit(acquisition: Any) -> None:
        acquisition.idx.contrast, acquisition.idx.average = 2 * acquisition.idx.average, 0

    found = mrd.to_images(
        acquire_scan(tmp_path, averages=2, edit=edit, edit_header=_set_element("sequenceParameters.TE", echo_times_ms))
    )
    expected = [(20.0,), (80.0,)] if len(echo_times_ms) == 3 else [(), ()]
    assert [facts["te_ms"] for _, facts in found] == expected


MEASUREMENT = {
    "SeriesDate": ("seriesDate", XmlDate(2026, 1, 31), "20260131"),
    "SeriesTime": ("seriesTime", XmlTime(9, 8, 7), "090807"),
    "PatientPosition": ("patientPosition", xsd.ismrmrdschema.ismrmrd.patientPositionType.FFS, "FFS"),
    "SeriesNumber": ("initialSeriesNumber", 12, "12"),
    "ProtocolName": ("protocolName", "t1", "t1"),
    "SeriesDescription": ("seriesDescription", "t1 axial", "t1 axial"),
    "FrameOfReferenceUID": ("frameOfReferenceUID", "1.2.3", "1.2.3"),
}
SUBJECT = {
    "PatientName": ("patientName", "A^B", "A^B"),
    "PatientID": ("patientID", "17", "17"),
    "PatientBirthDate": ("patientBirthdate", XmlDate(1970, 2, 1), "19700201"),
    "PatientSex": ("patientGender", "O", "O"),
    "PatientWeight": ("patientWeight_kg", 71.5, "71.5"),
    "PatientSize": ("patientHeight_m", 1.8, "1.8"),
}
STUDY = {
    "StudyDate": ("studyDate", XmlDate(2026, 1, 31), "20260131"),
    "StudyTime": ("studyTime", XmlTime(9, 8, 7), "090807"),
    "StudyID": ("studyID", "s", "s"),
    "AccessionNumber": ("accessionNumber", 815, "815"),
    "ReferringPhysicianName": ("referringPhysicianName", "C^D", "C^D"),
    "StudyDescription": ("studyDescription", "head", "head"),
    "StudyInstanceUID": ("studyInstanceUID", "1.2.4", "1.2.4"),
    "BodyPartExamined": ("bodyPartExamined", "HEAD", "HEAD"),
}
SYSTEM = {
    "Manufacturer": ("systemVendor", "V", "V"),
    "ManufacturerModelName": ("systemModel", "M", "M"),
    "InstitutionName": ("institutionName", "I", "I"),
    "StationName": ("stationName", "S", "S"),
    "DeviceSerialNumber": ("deviceSerialNumber", "9", "9"),
}
IDENTITY = {
    (group, keyword): row
    for group, rows in (
        ("measurementInformation", MEASUREMENT), ("subjectInformation", SUBJECT),
        ("studyInformation", STUDY), ("acquisitionSystemInformation", SYSTEM),
    )
    for keyword, row in rows.items()
}  # fmt: skip


def _add_measurement(header: Any) -> None:
    header.measurementInformation = xsd.measurementInformationType(
        patientPosition=xsd.ismrmrdschema.ismrmrd.patientPositionType.HFS
    )


@pytest.mark.slow
@pytest.mark.parametrize(("group", "keyword"), IDENTITY)
def test_who_when_and_where_go_into_the_dicom_object(group: str, keyword: str, tmp_path: Path) -> None:
    element, value, text = IDENTITY[group, keyword]

    def change(header: Any) -> None:
        _add_measurement(header)
        setattr(getattr(header, group), element, value)

    acquire_scan(tmp_path, edit_header=change)
    ds = mrd.wrap((tmp_path / "a.h5").read_bytes(), now=NOW)
    assert str(ds[keyword].value) == text


def test_after_a_move_of_the_table_the_frame_of_reference_is_another(tmp_path: Path) -> None:
    def change(header: Any) -> None:
        _add_measurement(header)
        header.measurementInformation.frameOfReferenceUID = "1.2.3"
        header.measurementInformation.relativeTablePosition = xsd.threeDimensionalFloat(x=0, y=0, z=-50)

    assert "FrameOfReferenceUID" not in read_identity(acquire_scan(tmp_path, edit_header=change).header)


@pytest.mark.parametrize("element", ["measurementID", "sequenceName", "seriesInstanceUIDRoot", "dependency", "images"])
def test_what_names_other_objects_of_the_scanner_is_not_repeated(element: str, tmp_path: Path) -> None:
    def change(header: Any) -> None:
        _add_measurement(header)
        information = header.measurementInformation
        if element == "dependency":
            information.measurementDependency = [
                xsd.measurementDependencyType(dependencyType="Noise", measurementID="1.2.77")
            ]
        elif element == "images":
            information.referencedImageSequence = xsd.referencedImageSequenceType(referencedSOPInstanceUID=["1.2.77"])
        else:
            setattr(information, element, "1.2.77")

    acquire_scan(tmp_path, edit_header=change)
    ds = mrd.wrap((tmp_path / "a.h5").read_bytes(), now=NOW)
    ds.remove_private_tags()
    assert "1.2.77" not in str(ds)
