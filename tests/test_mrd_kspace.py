"""MRD -> k-space: a point at a known place in the patient must come out there, whatever the acquisition."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ismrmrd
import numpy as np
import pytest

from dicomnode import mrd
from pipelines.contract import KSpace, Refused
from tests.scanner import ORIENTATIONS, Array, Scan, acquire, reconstruct


def _find_brightest_mm(kspace: KSpace) -> Array:
    found = reconstruct(kspace.samples)
    k, j, i = np.unravel_index(int(found.argmax()), found.shape)
    assert found.shape == kspace.grid.shape
    place: Array = (kspace.grid.affine_mm @ [i, j, k, 1])[:3]
    return place


@pytest.mark.slow
@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("n", [(24, 20, 1), (25, 21, 1)], ids=["even", "odd"])
def test_a_point_in_a_slice_lies_where_the_scanner_saw_it(orientation: str, n: Any, tmp_path: Path) -> None:
    scan = Scan(n=n, directions=ORIENTATIONS[orientation])
    point = scan.place_mm(5, -7, 0)
    scan.points_mm = [point]
    kspace, _ = mrd.to_kspace(acquire(scan, tmp_path / "a.h5"))
    assert np.allclose(_find_brightest_mm(kspace), point, atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_interleaved_slices_are_put_in_the_order_of_space(orientation: str, tmp_path: Path) -> None:
    scan = Scan(slices=5, order=[1, 3, 0, 2, 4], directions=ORIENTATIONS[orientation])
    point = scan.place_mm(-4, 6, 0, slice_number=3)
    scan.points_mm = [point]
    kspace, facts = mrd.to_kspace(acquire(scan, tmp_path / "a.h5"))
    assert np.allclose(_find_brightest_mm(kspace), point, atol=1e-3)
    assert kspace.grid.spacing_mm == pytest.approx((5.0, 2.0, 1.5), abs=1e-4)
    assert kspace.slice_thickness_mm == 4.0
    assert facts["dimensions"] == "2D"


@pytest.mark.slow
@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("n", [(12, 10, 8), (13, 11, 9), (1, 10, 8)], ids=["even", "odd", "one plane"])
def test_a_3d_acquisition_is_cut_into_slices_along_its_readout(orientation: str, n: Any, tmp_path: Path) -> None:
    scan = Scan(n=n, voxel_mm=(1.2, 1.5, 1.8), directions=ORIENTATIONS[orientation], oversampling=2 if n[0] > 1 else 1)
    point = scan.place_mm(3 if n[0] > 1 else 0, -4, 2)
    scan.points_mm = [point]
    kspace, facts = mrd.to_kspace(acquire(scan, tmp_path / "a.h5"))
    assert kspace.samples.shape == (n[0], 2, n[1], n[2])
    assert np.allclose(_find_brightest_mm(kspace), point, atol=1e-3)
    assert facts["dimensions"] == "3D"


def test_readout_oversampling_is_removed_and_keeps_the_noise_as_it_was(tmp_path: Path) -> None:
    generator = np.random.default_rng(1)

    def add_noise(acquisition: Any) -> None:
        shape = (*acquisition.data.shape, 2)
        acquisition.data[:] = generator.normal(size=shape).astype(np.float32).view(np.complex64)[..., 0]

    scan = Scan(n=(64, 60, 1), oversampling=2, edit=add_noise)
    kspace, facts = mrd.to_kspace(acquire(scan, tmp_path / "a.h5"))
    assert facts["readout_oversampling_removed"]
    assert kspace.samples.shape == (1, 2, 60, 64)
    assert kspace.encoded_fov_mm == pytest.approx((120.0, 96.0))
    assert kspace.samples.real.std() == pytest.approx(1.0, rel=0.03)


def test_a_partial_echo_keeps_its_oversampling_and_says_what_is_missing(tmp_path: Path) -> None:
    scan = Scan(oversampling=2, first_sample=9)
    scan.points_mm = [scan.place_mm(5, -7, 0)]
    kspace, facts = mrd.to_kspace(acquire(scan, tmp_path / "a.h5"))
    assert not facts["readout_oversampling_removed"]
    assert kspace.samples.shape[3] == 48
    assert not kspace.mask[:, :, :9].any()
    assert kspace.mask[:, :, 9:].all()
    assert not kspace.samples[:, :, :, :9].any()


def test_partial_fourier_lines_lie_about_the_stated_centre(tmp_path: Path) -> None:
    def renumber(acquisition: Any) -> None:
        acquisition.idx.kspace_encode_step_1 -= 6

    def limits(header: Any) -> None:
        limit = header.encoding[0].encodingLimits.kspace_encoding_step_1
        limit.maximum, limit.center = 13, 4

    scan = Scan(sampled=lambda y, z: y >= 6, edit=renumber, edit_header=limits)
    point = scan.place_mm(5, -7, 0)
    scan.points_mm = [point]
    kspace, _ = mrd.to_kspace(acquire(scan, tmp_path / "a.h5"))
    assert kspace.mask[0, :, 0].tolist() == [False] * 6 + [True] * 14
    assert np.allclose(_find_brightest_mm(kspace), point, atol=1e-3)


def test_samples_to_discard_are_not_measured_ones(tmp_path: Path) -> None:
    def discard(acquisition: Any) -> None:
        acquisition.discard_pre, acquisition.discard_post = 2, 3

    kspace, _ = mrd.to_kspace(acquire(Scan(points_mm=[np.zeros(3)], edit=discard), tmp_path / "a.h5"))
    assert kspace.mask[0, 0].tolist() == [False] * 2 + [True] * 19 + [False] * 3


def test_averages_are_averaged_and_the_noise_scan_is_scaled_with_them(tmp_path: Path) -> None:
    def number(acquisition: Any) -> None:
        if not acquisition.isFlagSet(ismrmrd.ACQ_IS_NOISE_MEASUREMENT):
            acquisition.data[:] = 3.7 + 0.2 * acquisition.idx.average

    scan = Scan(averages=4, noise_samples=70_000 // 2, edit=number)
    kspace, facts = mrd.to_kspace(acquire(scan, tmp_path / "a.h5"))
    assert np.allclose(kspace.samples, 4.0)
    assert facts["averages"] == (4, 4)
    assert kspace.noise is not None
    assert kspace.noise.shape == (2, 35_000)
    assert kspace.noise.real.std() == pytest.approx(0.5, rel=0.02)
    assert facts["noise_level"] == pytest.approx(0.5, rel=0.02)


def test_a_noise_scan_at_another_bandwidth_is_scaled_to_that_of_the_image(tmp_path: Path) -> None:
    def slower(acquisition: Any) -> None:
        acquisition.sample_time_us = 10.0 if acquisition.isFlagSet(ismrmrd.ACQ_IS_NOISE_MEASUREMENT) else 40.0

    scan = Scan(noise_samples=20_000, edit=slower, points_mm=[np.array([12.5, -30.0, 7.25])])
    kspace, _ = mrd.to_kspace(acquire(scan, tmp_path / "a.h5"))
    assert kspace.noise is not None
    assert kspace.noise.real.std() == pytest.approx(0.5, rel=0.02)


def test_calibration_is_the_fully_sampled_block_about_the_centre(tmp_path: Path) -> None:
    scan = Scan(sampled=lambda y, z: y % 4 == 0 or 7 <= y < 14)
    scan.points_mm = [scan.place_mm(0, 0, 0)]
    kspace, facts = mrd.to_kspace(acquire(scan, tmp_path / "a.h5"))
    assert kspace.calibration == ((7, 14), (0, 24))
    assert facts["acceleration"] == pytest.approx(20 / 10)


def test_flags_do_not_narrow_the_block(tmp_path: Path) -> None:
    def flag(acquisition: Any) -> None:
        if 6 <= acquisition.idx.kspace_encode_step_1 < 12:
            acquisition.setFlag(ismrmrd.ACQ_IS_PARALLEL_CALIBRATION_AND_IMAGING)

    scan = Scan(edit=flag, sampled=lambda y, z: y % 4 == 0 or 5 <= y < 16)
    scan.points_mm = [scan.place_mm(0, 0, 0)]
    assert mrd.to_kspace(acquire(scan, tmp_path / "a.h5"))[0].calibration == ((4, 17), (0, 24))


def test_without_a_block_there_is_no_calibration(tmp_path: Path) -> None:
    scan = Scan(sampled=lambda y, z: y % 2 == 0)
    scan.points_mm = [scan.place_mm(0, 0, 0)]
    assert mrd.to_kspace(acquire(scan, tmp_path / "a.h5"))[0].calibration is None


def test_calibration_lines_of_a_separate_scan_are_left_out_and_told(tmp_path: Path) -> None:
    def flag(acquisition: Any) -> None:
        if acquisition.idx.kspace_encode_step_1 % 2:
            acquisition.setFlag(ismrmrd.ACQ_IS_PARALLEL_CALIBRATION)

    def separate(header: Any) -> None:
        header.encoding[0].parallelImaging = ismrmrd.xsd.parallelImagingType(
            accelerationFactor=ismrmrd.xsd.accelerationFactorType(kspace_encoding_step_1=2, kspace_encoding_step_2=1),
            calibrationMode=ismrmrd.xsd.calibrationModeType.SEPARATE)  # fmt: skip

    scan = Scan(edit=flag, edit_header=separate)
    scan.points_mm = [scan.place_mm(0, 0, 0)]
    kspace, facts = mrd.to_kspace(acquire(scan, tmp_path / "a.h5"))
    assert kspace.mask[0, :, 0].tolist() == [True, False] * 10
    assert facts["calibration_lines_left_out"] == 10
    assert facts["acceleration_stated"] == (2, 1)


def test_navigators_and_lines_of_zeros_are_not_the_image(tmp_path: Path) -> None:
    def spoil(acquisition: Any) -> None:
        if acquisition.idx.kspace_encode_step_1 == 3:
            acquisition.setFlag(ismrmrd.ACQ_IS_NAVIGATION_DATA)
        if acquisition.idx.kspace_encode_step_1 == 5:
            acquisition.data[:] = 0

    scan = Scan(edit=spoil)
    scan.points_mm = [scan.place_mm(0, 0, 0)]
    kspace, facts = mrd.to_kspace(acquire(scan, tmp_path / "a.h5"))
    assert np.flatnonzero(~kspace.mask[0, :, 0]).tolist() == [3, 5]
    assert facts["acquisitions_all_zero"] == 1


def test_of_several_contrasts_the_named_one_is_taken(tmp_path: Path) -> None:
    def contrast(acquisition: Any) -> None:
        acquisition.idx.contrast = acquisition.idx.average
        acquisition.data[:] = 1 + acquisition.idx.average

    found = acquire(Scan(averages=2, edit=contrast), tmp_path / "a.h5")
    kspace, facts = mrd.to_kspace(found, contrast=1)
    assert np.allclose(kspace.samples, 2.0)
    assert facts["averages"] == (1, 1)


def test_a_finer_smaller_image_is_delivered_about_the_same_centre(tmp_path: Path) -> None:
    def recon(header: Any) -> None:
        space = header.encoding[0].reconSpace
        space.matrixSize.y, space.fieldOfView_mm.y = 32, 20.0

    scan = Scan(edit_header=recon)
    scan.points_mm = [scan.place_mm(0, 0, 0)]
    kspace, _ = mrd.to_kspace(acquire(scan, tmp_path / "a.h5"))
    assert kspace.encoded_fov_mm == (40.0, 36.0)
    assert kspace.grid.shape == (1, 32, 24)
    assert np.allclose((kspace.grid.affine_mm @ [12, 16, 0, 1])[:3], scan.centre_mm, atol=1e-4)


def test_facts_tell_the_acquisition_and_nobody(tmp_path: Path) -> None:
    scan = Scan(points_mm=[np.array([12.5, -30.0, 7.25])])
    _, facts = mrd.to_kspace(acquire(scan, tmp_path / "a.h5"))
    assert facts["field_strength_t"] == 1.5
    assert (facts["tr_ms"], facts["te_ms"]) == ((2000.0,), (30.0,))
    assert facts["coils"] == 2
    assert not any(fact in str(facts) for fact in ("Müller", "4711", "1970", "815"))


def _echo_by_average(acquisition: Any) -> None:
    acquisition.idx.contrast, acquisition.idx.average = acquisition.idx.average, 0
    acquisition.data[:] *= 1 + acquisition.idx.contrast


def _two_echoes(header: Any) -> None:
    header.sequenceParameters.TE = [20.0, 80.0]


def test_contrasts_come_as_images_of_their_own_each_with_its_echo_time(tmp_path: Path) -> None:
    scan = Scan(averages=2, edit=_echo_by_average, edit_header=_two_echoes, noise_samples=64)
    scan.points_mm = [scan.place_mm(0, 0, 0)]
    (first, facts), (second, other) = mrd.to_images(acquire(scan, tmp_path / "a.h5"))
    assert (first.label, second.label) == ("contrast 1 of 2", "contrast 2 of 2")
    assert (facts["te_ms"], other["te_ms"]) == ((20.0,), (80.0,))
    assert np.allclose(second.samples, 2 * first.samples)
    assert np.allclose(first.grid.affine_mm, second.grid.affine_mm)
    assert np.array_equal(first.noise, second.noise)  # type: ignore[arg-type]  # both were sent


def test_one_image_has_no_label_and_repetitions_are_still_refused(tmp_path: Path) -> None:
    scan = Scan(points_mm=[np.array([12.5, -30.0, 7.25])])
    ((kspace, facts),) = mrd.to_images(acquire(scan, tmp_path / "a.h5"))
    assert kspace.label == ""
    assert "image" not in facts

    def moment(acquisition: Any) -> None:
        acquisition.idx.repetition, acquisition.idx.average = acquisition.idx.average, 0

    with pytest.raises(Refused, match="repetition"):
        mrd.to_images(acquire(Scan(averages=2, edit=moment), tmp_path / "b.h5"))


def test_contrasts_and_sets_are_named_by_both(tmp_path: Path) -> None:
    def both(acquisition: Any) -> None:
        acquisition.idx.contrast, acquisition.idx.set = divmod(acquisition.idx.average, 2)
        acquisition.idx.average = 0

    found = mrd.to_images(acquire(Scan(averages=4, edit=both), tmp_path / "a.h5"))
    assert [kspace.label for kspace, _ in found] == [f"contrast {c} of 2, set {s} of 2" for c in (1, 2) for s in (1, 2)]
