"""Conditions of OHIF (Cornerstone), Weasis and Slicer on data sets that they show as volumes and overlays.

The rules are gathered from the sources of these programs and checked on the objects in every form.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.uid import (
    MultiFrameGrayscaleByteSecondaryCaptureImageStorage,
    MultiFrameTrueColorSecondaryCaptureImageStorage,
    SecondaryCaptureImageStorage,
    SegmentationStorage,
)

from dicomnode import results
from dicomnode.config.results import ResultsConfig
from dicomnode.reading.frames import frames_of
from dicomnode.results.page import Page
from tests.findings import NOW, PROVENANCE, grid, make_findings, source
from tests.job_results import FORMS
from tests.scanner import ORIENTATIONS

LABEL_MAP = "1.2.840.10008.5.1.4.1.1.66.7"
VIDEO_FRAMES = 90
"""Number of frames from which Cornerstone treats these Secondary Captures as video."""


def write_rendition(form: str, orientation: str = "oblique", slices: int = 4) -> list[Dataset]:
    these = make_findings(grid(orientation, slices))
    return results.write(these.findings, [source("mr")], PROVENANCE, FORMS[form], NOW)


def group_by_series(objects: Sequence[Dataset]) -> dict[str, list[Dataset]]:
    series: dict[str, list[Dataset]] = {}
    for ds in objects:
        series.setdefault(ds.SeriesInstanceUID, []).append(ds)
    return series


def select_pictures(objects: Sequence[Dataset]) -> list[list[Dataset]]:
    """Return the series with pixels that are no segmentation."""
    masks = (SegmentationStorage, LABEL_MAP)
    return [s for s in group_by_series(objects).values() if "Rows" in s[0] and s[0].SOPClassUID not in masks]


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_no_series_is_taken_for_a_video(form: str) -> None:
    for series in select_pictures(write_rendition(form, slices=100)):
        for ds in series:
            frames = int(ds.get("NumberOfFrames", 1))
            assert ds.SOPClassUID != MultiFrameGrayscaleByteSecondaryCaptureImageStorage, "Slicer's sequences claim it"
            if ds.SOPClassUID in (SecondaryCaptureImageStorage, MultiFrameTrueColorSecondaryCaptureImageStorage):
                assert frames < VIDEO_FRAMES


@pytest.mark.slow
@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("form", FORMS)
def test_every_image_series_can_be_reformatted(form: str, orientation: str) -> None:
    for series in select_pictures(write_rendition(form, orientation)):
        if "NumberOfFrames" in series[0]:
            (ds,) = series
            shared = ds.SharedFunctionalGroupsSequence[0]
            assert shared.PixelMeasuresSequence[0].PixelSpacing
            assert shared.PlaneOrientationSequence[0].ImageOrientationPatient
            assert all(frame.PlanePositionSequence for frame in ds.PerFrameFunctionalGroupsSequence)
        places, directions = _read_geometry(series)
        assert len({tuple(place) for place in places.tolist()}) == len(places) > 1, "more than one location"
        assert np.ptp(directions, axis=0).max() < 1e-6, "equal orientation"
        steps = np.linalg.norm(np.diff(places, axis=0), axis=1)
        assert np.ptp(steps) <= 0.2 * steps.mean(), "spacing within 20 %"


def _read_geometry(series: Sequence[Dataset]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the positions along the normal and the orientations of all frames."""
    frames = [frame for ds in series for frame in frames_of(ds)]
    found = [
        (frame.numbers("ImagePositionPatient", 3), frame.numbers("ImageOrientationPatient", 6)) for frame in frames
    ]
    places = np.array([place for place, _ in found if place is not None])
    directions = np.array([direction for _, direction in found if direction is not None])
    assert len(places) == len(directions) == len(frames)
    normal = np.cross(*directions[0].reshape(2, 3))
    return places[np.argsort(places @ normal)], directions


@pytest.mark.parametrize("form", FORMS)
def test_a_segmentation_says_its_series_and_each_frame_its_image(form: str) -> None:
    objects = write_rendition(form)
    (mask,) = [ds for ds in objects if ds.SOPClassUID in (SegmentationStorage, LABEL_MAP)]
    frames = {ds.SOPInstanceUID: ds.SeriesInstanceUID for ds in objects}
    (referenced,) = mask.ReferencedSeriesSequence  # OHIF
    instances = {item.ReferencedSOPInstanceUID for item in referenced.ReferencedInstanceSequence}
    assert {frames[uid] for uid in instances} == {referenced.SeriesInstanceUID}
    for frame in mask.PerFrameFunctionalGroupsSequence:  # Weasis
        (derived,) = frame.DerivationImageSequence[0].SourceImageSequence
        assert derived.ReferencedSOPInstanceUID in instances
    image = next(ds for ds in objects if ds.SOPInstanceUID in instances)
    assert mask.FrameOfReferenceUID == image.FrameOfReferenceUID
    assert (mask.Rows, mask.Columns) == (image.Rows, image.Columns)


@pytest.mark.parametrize("form", FORMS)
def test_a_series_holds_one_volume_and_never_a_page_of_a_report(form: str) -> None:
    these = make_findings(grid("axial"))
    page = Page(np.zeros((30, 20, 3), np.uint8), b"%PDF SYNTHETIC - RESEARCH USE ONLY\n%%EOF")
    config = FORMS[form].with_values({"report_page": ("sc", "pdf")})
    objects = results.write(these.findings, [source("mr")], PROVENANCE, config, NOW, page=page)
    for series in group_by_series(objects).values():
        shapes = {(ds.get("Rows"), ds.get("Columns"), ds.SOPClassUID, ds.Modality) for ds in series}
        assert len(shapes) == 1
        assert len(series) in (1, 4)
    pages = [ds for ds in objects if "PAGE" in list(ds.get("ImageType") or [])]
    assert len(pages) == 1
    assert len(group_by_series(objects)[pages[0].SeriesInstanceUID]) == 1


@pytest.mark.parametrize("form", FORMS)
def test_numbers_of_series_and_uids_are_all_different(form: str) -> None:
    objects = write_rendition(form)
    assert len({ds.SOPInstanceUID for ds in objects}) == len(objects)
    numbers = {uid: series[0].SeriesNumber for uid, series in group_by_series(objects).items()}
    assert len(set(numbers.values())) == len(numbers)
    assert min(numbers.values()) >= ResultsConfig().series_number_base
