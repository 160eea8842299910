"""A result that lacks any of its marks is held back by the gate."""

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
def _write_results() -> dict[str, Dataset]:
    return dict(zip(KINDS, write_objects(make_findings(grid("axial", 1))), strict=True))


def _copy_result(kind: str) -> Dataset:
    return deepcopy(_write_results()[kind])


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_marked_result_passes(kind: str) -> None:
    marking.check_marks(_copy_result(kind))


@pytest.mark.parametrize("keyword", DELETED)
@pytest.mark.parametrize("kind", KINDS)
def test_a_result_without_a_mark_is_held_back(kind: str, keyword: str) -> None:
    ds = _copy_result(kind)
    delattr(ds, keyword)
    with pytest.raises(NotMarked, match=keyword):
        marking.check_marks(ds)


def _remove_sources(ds: Dataset) -> None:
    del ds.SourceInstanceSequence
    if "SourceImageSequence" in ds:
        del ds.SourceImageSequence


def _remove_source_uid(ds: Dataset) -> None:
    del ds.SourceInstanceSequence[0].PurposeOfReferenceCodeSequence


def _remove_purpose(ds: Dataset) -> None:
    del ds.ContributingEquipmentSequence[0].PurposeOfReferenceCodeSequence


def _change_purpose(ds: Dataset) -> None:
    ds.ContributingEquipmentSequence[0].PurposeOfReferenceCodeSequence[0].CodeValue = "109101"


def _remove_version(ds: Dataset) -> None:
    del ds.ContributingEquipmentSequence[0].SoftwareVersions


def _remove_provenance(ds: Dataset) -> None:
    ds.remove_private_tags()


def _damage_provenance(ds: Dataset) -> None:
    ds.private_block(0x0099, "DICOMNODE PROVENANCE 1")[0x01].value = "{"


def _remove_digest(ds: Dataset) -> None:
    element = ds.private_block(0x0099, "DICOMNODE PROVENANCE 1")[0x01]
    element.value = element.value.replace("ab" * 32, "")


def _unmark_synthetic(ds: Dataset) -> None:
    ds.SyntheticData = "NO"


def _call_product(ds: Dataset) -> None:
    ds.ContentQualification = "PRODUCT"


def _call_original(ds: Dataset) -> None:
    ds.ImageType = ["ORIGINAL", *ds.ImageType[1:]]


def _rename(ds: Dataset) -> None:
    ds.SeriesDescription = "T1 MPRAGE"


SPOILED: dict[str, tuple[Callable[[Dataset], None], str]] = {
    "no sources": (_remove_sources, "SourceImageSequence"),
    "source without its part": (_remove_source_uid, "SourceImageSequence"),
    "equipment without purpose": (_remove_purpose, "ContributingEquipmentSequence"),
    "equipment of another purpose": (_change_purpose, "ContributingEquipmentSequence"),
    "equipment without version": (_remove_version, "ContributingEquipmentSequence"),
    "no provenance": (_remove_provenance, "provenance block"),
    "damaged provenance": (_damage_provenance, "provenance block"),
    "no digest": (_remove_digest, "provenance block"),
    "says it is not synthetic": (_unmark_synthetic, "SyntheticData"),
    "says it is a product": (_call_product, "ContentQualification"),
    "says it is original": (_call_original, "ImageType"),
    "described as a scan": (_rename, "SeriesDescription"),
}


@pytest.mark.parametrize("how", SPOILED)
@pytest.mark.parametrize("kind", KINDS)
def test_a_result_with_a_spoiled_mark_is_held_back(kind: str, how: str) -> None:
    spoil, mark = SPOILED[how]
    ds = _copy_result(kind)
    spoil(ds)
    with pytest.raises(NotMarked, match=mark):
        marking.check_marks(ds)


def test_an_image_says_whether_its_label_is_burned_in() -> None:
    for kind, opposite in (("clean image", "YES"), ("labelled image", "NO")):
        ds = _copy_result(kind)
        ds.BurnedInAnnotation = opposite
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
