"""Whatever mark is taken from a result, the gate holds it back."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from functools import cache

import pytest
from pydicom.dataset import Dataset

from dicomnode.errors import NotMarked
from dicomnode.results import marking
from tests.findings import grid, make_findings, write_objects

KINDS = ("clean image", "labelled image", "map", "segmentation")
DELETED = (
    "SyntheticData", "ContentQualification", "ImageType", "ContributingEquipmentSequence", "DerivationDescription",
    "DerivationCodeSequence", "SeriesDescription", "ImageComments", "Manufacturer", "ManufacturerModelName",
    "SoftwareVersions", "DeviceSerialNumber", "SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID",
    "FrameOfReferenceUID", "SeriesNumber", "PatientName", "PatientID", "AccessionNumber",
)  # fmt: skip


@cache
def _results() -> dict[str, Dataset]:
    return dict(zip(KINDS, write_objects(make_findings(grid("axial", 1))), strict=True))


def _result(kind: str) -> Dataset:
    return deepcopy(_results()[kind])


@pytest.mark.parametrize("kind", KINDS)
def test_a_marked_result_passes(kind: str) -> None:
    marking.check_marks(_result(kind))


@pytest.mark.parametrize("keyword", DELETED)
@pytest.mark.parametrize("kind", KINDS)
def test_a_result_without_a_mark_is_held_back(kind: str, keyword: str) -> None:
    ds = _result(kind)
    delattr(ds, keyword)
    with pytest.raises(NotMarked, match=keyword):
        marking.check_marks(ds)


def _no_sources(ds: Dataset) -> None:
    del ds.SourceInstanceSequence
    if "SourceImageSequence" in ds:
        del ds.SourceImageSequence


def _unnamed_source(ds: Dataset) -> None:
    del ds.SourceInstanceSequence[0].PurposeOfReferenceCodeSequence


def _no_purpose(ds: Dataset) -> None:
    del ds.ContributingEquipmentSequence[0].PurposeOfReferenceCodeSequence


def _other_purpose(ds: Dataset) -> None:
    ds.ContributingEquipmentSequence[0].PurposeOfReferenceCodeSequence[0].CodeValue = "109101"


def _no_version(ds: Dataset) -> None:
    del ds.ContributingEquipmentSequence[0].SoftwareVersions


def _no_provenance(ds: Dataset) -> None:
    ds.remove_private_tags()


def _damaged_provenance(ds: Dataset) -> None:
    ds.private_block(0x0099, "DICOMNODE PROVENANCE 1")[0x01].value = "{"


def _no_digest(ds: Dataset) -> None:
    element = ds.private_block(0x0099, "DICOMNODE PROVENANCE 1")[0x01]
    element.value = element.value.replace("ab" * 32, "")


def _not_synthetic(ds: Dataset) -> None:
    ds.SyntheticData = "NO"


def _product(ds: Dataset) -> None:
    ds.ContentQualification = "PRODUCT"


def _original(ds: Dataset) -> None:
    ds.ImageType = ["ORIGINAL", *ds.ImageType[1:]]


def _named_otherwise(ds: Dataset) -> None:
    ds.SeriesDescription = "T1 MPRAGE"


SPOILED: dict[str, tuple[Callable[[Dataset], None], str]] = {
    "no sources": (_no_sources, "SourceImageSequence"),
    "source without its part": (_unnamed_source, "SourceImageSequence"),
    "equipment without purpose": (_no_purpose, "ContributingEquipmentSequence"),
    "equipment of another purpose": (_other_purpose, "ContributingEquipmentSequence"),
    "equipment without version": (_no_version, "ContributingEquipmentSequence"),
    "no provenance": (_no_provenance, "provenance block"),
    "damaged provenance": (_damaged_provenance, "provenance block"),
    "no digest": (_no_digest, "provenance block"),
    "says it is not synthetic": (_not_synthetic, "SyntheticData"),
    "says it is a product": (_product, "ContentQualification"),
    "says it is original": (_original, "ImageType"),
    "described as a scan": (_named_otherwise, "SeriesDescription"),
}


@pytest.mark.parametrize("how", SPOILED)
@pytest.mark.parametrize("kind", KINDS)
def test_a_result_with_a_spoiled_mark_is_held_back(kind: str, how: str) -> None:
    spoil, mark = SPOILED[how]
    ds = _result(kind)
    spoil(ds)
    with pytest.raises(NotMarked, match=mark):
        marking.check_marks(ds)


def test_an_image_says_whether_its_label_is_burned_in() -> None:
    for kind, wrong in (("clean image", "YES"), ("labelled image", "NO")):
        ds = _result(kind)
        ds.BurnedInAnnotation = wrong
        with pytest.raises(NotMarked, match="BurnedInAnnotation"):
            marking.check_marks(ds)
        del ds.BurnedInAnnotation
        with pytest.raises(NotMarked, match="BurnedInAnnotation"):
            marking.check_marks(ds)


def test_a_scan_is_held_back_and_nobody_is_named() -> None:
    ds = Dataset()
    ds.PatientName, ds.PatientID = "Miller^John", "4711"
    with pytest.raises(NotMarked) as refusal:
        marking.check_marks(ds)
    assert "Miller" not in str(refusal.value)
    assert "4711" not in str(refusal.value)
