"""DICOM-CT-PD: views become a fan scan, whichever way columns are counted; what is not one fan scan is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import dcmread

from dicomnode import sinogram
from dicomnode.errors import InputRefused
from dicomnode.execution.projections import load_projections
from dicomnode.sinogram.opposite_rays import find_direction
from model_zoo.ct_geometry import CtGeometry
from pipelines.contract import Projections, Refused
from tests.ellipses import Ellipse, integrate
from tests.sinograms import FAN, make_counts, write_ct_pd


def read(folder: Path, **options: Any) -> Projections:
    return load_projections(write_ct_pd(folder, **options))[0]


@pytest.mark.parametrize("mirror", [False, True])
def test_views_become_a_fan_scan_whichever_way_columns_are_counted(mirror: bool, tmp_path: Path) -> None:
    projections = read(tmp_path, mirror=mirror)
    beam = projections.beam
    assert (beam.views, beam.bins, beam.source_mm) == (FAN.views, FAN.bins, 500.0)
    assert beam.bin_mm == pytest.approx(FAN.bin_mm)
    assert beam.offset_bins == pytest.approx(0.25, abs=1e-5)
    assert beam.arc_deg == pytest.approx(360)
    np.testing.assert_allclose(projections.counts, make_counts(FAN), rtol=2e-3)
    assert beam.shape[0] * beam.pixel_mm == pytest.approx(220)
    np.testing.assert_allclose(projections.grid.affine_mm @ [(beam.shape[1] - 1) / 2, (beam.shape[0] - 1) / 2, 0, 1],
                               [0, 0, 12.0, 1], atol=1e-6)  # fmt: skip
    assert any("left and right" in each for each in projections.assumptions)


def test_the_order_of_the_files_does_not_matter(tmp_path: Path) -> None:
    paths = write_ct_pd(tmp_path)
    one, other = (load_projections(each)[0] for each in (paths, paths[::-1]))
    assert one.beam == other.beam
    np.testing.assert_array_equal(one.line_integrals, other.line_integrals)


def test_headers_for_the_writer_hold_neither_pixels_nor_private_elements(tmp_path: Path) -> None:
    _, facts, headers = load_projections(write_ct_pd(tmp_path))
    assert facts == {"modality": "CT", "body_part": "CHEST"}
    assert len(headers) == FAN.views
    assert not any("PixelData" in ds or sinogram.is_ct_pd(ds) for ds in headers)


@pytest.mark.parametrize(
    ("tag", "vr", "value", "message"),
    [
        (0x70371009, "CS", "HELICAL", "helical"),
        (0x7037100A, "CS", "CONEBEAM", "rebin other beams"),
        (0x7029100B, "CS", "FLAT", "DetectorShape is FLAT"),
        (0x7033100E, "CS", "FFSZ", "FlyingFocalSpotMode"),
        (0x70391009, "CS", "NO", "LogFlag"),
        (0x7033100B, "FL", 0.01, "SourceAngularPositionShift"),
        (0x70331061, "US", 2, "several spectra"),
        (0x70331065, "FL", None, "PhotonStatistics .7033,1065. is missing"),
        (0x70331065, "FL", [1.0, 2.0], "2 numbers for 56 columns"),
        (0x70311003, "FL", 2000.0, "not below ConstantRadialDistance"),
        (0x70291011, "US", 55, "a detector of 1 rows and 55 columns"),
        (0x70291010, "US", 2, "2 rows of the detector; one is supported"),
        (0x70311033, "FL", [4.0, 1.0], "contradict the values"),
        (0x70291002, "FL", [12.0, 12.0], "DetectorElementTransverseSpacing has 2 values"),
        (0x70291006, "FL", 0.0, "DetectorElementAxialSpacing is 0; it has to be above 0"),
        (0x70411001, "DS", "0.19", "WaterAttenuationCoefficient is 0.19"),
    ],
)
def test_what_is_not_supported_or_contradicts_itself_is_refused(
    tag: int, vr: str, value: Any, message: str, tmp_path: Path
) -> None:
    with pytest.raises(Refused, match=message):
        read(tmp_path, all={tag: (vr, value)})


@pytest.mark.parametrize("stated", ["220\\220", "0", "-5"])
def test_a_diameter_that_is_no_length_is_refused(stated: str, tmp_path: Path) -> None:
    paths = write_ct_pd(tmp_path)
    ds = dcmread(paths[0])
    ds.ReconstructionDiameter = stated
    ds.save_as(paths[0])
    with pytest.raises(Refused, match=r"ReconstructionDiameter is .*; it is one number above 0"):
        load_projections(paths)


def test_a_detector_on_one_side_of_the_axis_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="does not reach a bin from the axis on both sides"):
        read(tmp_path, all={0x70311033: ("FL", [80.0, 1.0])})


def test_a_first_angle_just_below_nought_is_the_same_turn(tmp_path: Path) -> None:
    one = write_ct_pd(tmp_path / "1")
    moved = {0x70311002: ("FL", 14.0)}
    two = write_ct_pd(tmp_path / "2", all=moved, view_0={0x70311001: ("FL", -1e-8)})
    projections = load_projections([*one, *two])[0]
    np.testing.assert_array_equal(projections.line_integrals[0], projections.line_integrals[1])


def test_another_position_of_the_patient_is_refused(tmp_path: Path) -> None:
    paths = write_ct_pd(tmp_path)
    ds = dcmread(paths[5])
    ds.PatientPosition = "FFS"
    ds.save_as(paths[5])
    with pytest.raises(Refused, match="PatientPosition is FFS"):
        load_projections(paths)


def test_results_do_not_lie_in_the_frame_of_reference_of_a_place_that_is_assumed(tmp_path: Path) -> None:
    paths = write_ct_pd(tmp_path)
    for path in paths:
        ds = dcmread(path)
        ds.FrameOfReferenceUID, ds.PatientPosition = "1.2.3", "HFS"
        ds.save_as(path)
    projections, _, headers = load_projections(paths)
    assert not any("FrameOfReferenceUID" in ds for ds in headers)
    assert any(each.startswith("place") for each in projections.assumptions)
    assert any("z to the head" in each for each in projections.assumptions)


def test_a_missing_view_is_refused(tmp_path: Path) -> None:
    paths = write_ct_pd(tmp_path)
    with pytest.raises(Refused, match=r"5 to 10 degrees apart"):
        load_projections([*paths[:10], *paths[11:30], *paths[31:]])


def test_positions_of_a_helical_scan_are_refused(tmp_path: Path) -> None:
    moved = {f"view_{n}": {0x70311002: ("FL", float(n))} for n in range(FAN.views)}
    with pytest.raises(Refused, match="at 72 positions of the table"):
        read(tmp_path, **moved)


def test_views_of_another_scanner_are_refused(tmp_path: Path) -> None:
    with pytest.raises(Refused, match=r"ConstantRadialDistance is 1000.0 in view 1 and 900.0 in view 6"):
        read(tmp_path, view_5={0x70311031: ("FL", 900.0)})


@pytest.mark.parametrize("mirror", [False, True])
def test_columns_of_an_object_that_is_the_same_from_both_sides_are_refused(mirror: bool) -> None:
    """A disc, and a small insert that the noise hides."""
    disc = [Ellipse(0.0193, (0.0, 0.0), (100.0, 100.0)), Ellipse(0.0193, (40.0, 10.0), (1.0, 1.0))]
    counts = np.random.default_rng(1).poisson(1000 * np.exp(-integrate(disc, FAN).numpy())).astype(np.float32)
    beam = replace(FAN, offset_bins=-FAN.offset_bins) if mirror else FAN
    counts = counts[..., ::-1] if mirror else counts
    with pytest.raises(Refused, match="the direction in which columns are counted cannot be told"):
        find_direction(beam, np.log(1000 / np.maximum(counts, 0.5)), counts)


@pytest.mark.parametrize("mirror", [False, True])
def test_few_photons_do_not_turn_the_columns_over(mirror: bool) -> None:
    counts = make_counts(FAN) // 100
    beam = replace(FAN, offset_bins=-FAN.offset_bins) if mirror else FAN
    counts = counts[..., ::-1] if mirror else counts
    found = find_direction(beam, np.log(1000 / np.maximum(counts, 0.5)), counts)
    assert found.is_mirrored is mirror


def test_a_central_column_that_is_wrong_by_one_coarse_bin_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="contradict the values"):
        read(tmp_path, all={0x70311033: ("FL", [(FAN.bins - 1) / 2 - 1.25 + 1, 1.0])})


def test_an_arc_without_opposite_rays_is_refused(tmp_path: Path) -> None:
    short = CtGeometry(FAN.shape, FAN.pixel_mm, 24, FAN.bins, FAN.bin_mm, 120.0, 0.0, 500.0, 0.25)
    with pytest.raises(Refused, match="measured from both sides"):
        read(tmp_path, beam=short)


def test_another_image_is_refused(tmp_path: Path) -> None:
    paths = write_ct_pd(tmp_path)
    ds = dcmread(paths[3])
    ds.remove_private_tags()
    ds.save_as(paths[3])
    with pytest.raises(InputRefused, match="no view in DICOM-CT-PD"):
        load_projections(paths)
