"""Repeated lines, calibration lines and the noise scan are averaged, left out or refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ismrmrd
import numpy as np
import pytest
from ismrmrd import xsd

from dicomnode import mrd
from tests.mrd_files import Edit, acquire_scan, make_smooth, read_refusal, set_calibration, set_field


def _add_noise(acquisition: Any, level: float) -> None:
    seed = (acquisition.idx.kspace_encode_step_1, acquisition.idx.average, acquisition.idx.contrast)
    acquisition.data[:] += level * np.random.default_rng(seed).normal(size=(*acquisition.data.shape, 2)) @ [1, 1j]


def _make_calibration(factor: float, level: float = 0.001, counter: str = "") -> Edit:
    """Return an edit whose second average calibrates by its middle lines; the others are zeros and dropped."""

    def change(acquisition: Any) -> None:
        make_smooth(acquisition)
        _add_noise(acquisition, level)
        if acquisition.idx.average == 0:
            return
        acquisition.data[:] *= factor if 6 <= acquisition.idx.kspace_encode_step_1 < 14 else 0
        acquisition.setFlag(ismrmrd.ACQ_IS_PARALLEL_CALIBRATION)
        acquisition.idx.average = 0
        if counter:
            setattr(acquisition.idx, counter, 1)

    return change


@pytest.mark.parametrize("mode", ["embedded", "interleaved"])
def test_calibration_lines_that_differ_beyond_noise_are_not_averaged_into_the_image(mode: str, tmp_path: Path) -> None:
    how = {"averages": 2, "edit_header": set_calibration(mode)}
    assert "differ beyond their noise" in read_refusal(tmp_path, edit=_make_calibration(1.5), **how)
    kspace, facts = mrd.to_kspace(acquire_scan(tmp_path, edit=_make_calibration(1.0), **how))
    assert facts["averages"] == (1, 2)
    assert kspace.samples[0, 0, 10, 12] == pytest.approx(1.0, abs=0.01)


@pytest.mark.slow
@pytest.mark.parametrize("counter", ["contrast", "set", "phase", "repetition"])
@pytest.mark.parametrize("mode", ["embedded", "separate"])
def test_calibration_lines_of_another_image_are_left_out(counter: str, mode: str, tmp_path: Path) -> None:
    edit = _make_calibration(1.5, counter=counter)
    ((kspace, facts),) = mrd.to_images(acquire_scan(tmp_path, averages=2, edit=edit, edit_header=set_calibration(mode)))
    ((plain, _),) = mrd.to_images(acquire_scan(tmp_path, edit=_make_calibration(1.5)))
    assert facts["calibration_lines_left_out"] == 8
    assert np.array_equal(kspace.samples, plain.samples)
    assert kspace.label == ""


@pytest.mark.parametrize("mode", ["separate", "external"])
def test_calibration_lines_of_another_scan_are_left_out(mode: str, tmp_path: Path) -> None:
    _, facts = mrd.to_kspace(
        acquire_scan(tmp_path, averages=2, edit=_make_calibration(1.5), edit_header=set_calibration(mode))
    )
    assert facts["averages"] == (1, 1)
    assert facts["calibration_lines_left_out"] == 8


@pytest.mark.parametrize("mode", [None, "other"])
def test_calibration_lines_of_which_the_header_does_not_tell_the_scan_are_refused(
    mode: str | None, tmp_path: Path
) -> None:
    reason = read_refusal(tmp_path, averages=2, edit=_make_calibration(1.0), edit_header=set_calibration(mode))
    assert "state parallelImaging calibrationMode" in reason


def _make_averages(factor: float, level: float, shift: float = 0.0) -> Edit:
    def change(acquisition: Any) -> None:
        if acquisition.isFlagSet(ismrmrd.ACQ_IS_NOISE_MEASUREMENT):
            acquisition.data[:] *= level
            return
        make_smooth(acquisition)
        if acquisition.idx.average:
            acquisition.data[:] *= factor * np.exp(1j * shift)
        _add_noise(acquisition, level)

    return change


@pytest.mark.slow
@pytest.mark.parametrize("noise_samples", [0, 5000], ids=["no noise scan", "noise scan"])
@pytest.mark.parametrize("level", [0.001, 0.05])
@pytest.mark.parametrize(
    ("factor", "shift"), [(1.5, 0.0), (0.6, 0.0), (1.0, 3.14)], ids=["brighter", "darker", "opposite"]
)
def test_averages_that_differ_beyond_noise_are_refused(
    factor: float, shift: float, level: float, noise_samples: int, tmp_path: Path
) -> None:
    how = {"averages": 2, "noise_samples": noise_samples}
    assert "differ beyond their noise" in read_refusal(tmp_path, edit=_make_averages(factor, level, shift), **how)
    kspace, facts = mrd.to_kspace(acquire_scan(tmp_path, edit=_make_averages(1.01, level), **how))
    assert facts["averages"] == (2, 2)
    assert kspace.samples[0, 0, 10, 12] == pytest.approx(1.005, abs=4 * level)


def test_averages_that_drifted_a_little_are_averaged(tmp_path: Path) -> None:
    kspace, facts = mrd.to_kspace(acquire_scan(tmp_path, averages=2, edit=_make_averages(1.0, 0.001, 0.12)))
    assert facts["averages"] == (2, 2)
    assert abs(kspace.samples[0, 0, 10, 12]) == pytest.approx(np.cos(0.06), abs=0.004)


def test_a_copy_of_a_line_is_no_average(tmp_path: Path) -> None:
    assert "acquisitions 0 and 20 hold the same samples" in read_refusal(tmp_path, averages=2)


def _set_diffusion(dimension: str) -> Edit:
    def change(header: Any) -> None:
        header.sequenceParameters.diffusionDimension = xsd.ismrmrdschema.ismrmrd.diffusionDimensionType(dimension)

    return change


@pytest.mark.parametrize("dimension", ["average", "segment"])
def test_weightings_told_by_averages_or_segments_are_images_of_their_own(dimension: str, tmp_path: Path) -> None:
    def edit(acquisition: Any) -> None:
        _make_averages(1.0, 0.01)(acquisition)
        setattr(acquisition.idx, dimension, acquisition.idx.average)

    how = {"averages": 2, "edit": edit}
    assert f"2 values of the counter '{dimension}'" in read_refusal(
        tmp_path, edit_header=_set_diffusion(dimension), **how
    )
    assert mrd.to_kspace(acquire_scan(tmp_path, **how))[1]["averages"] == (2, 2)


def _edit_noise_scan(change: Edit) -> Edit:
    return lambda a: change(a) if a.isFlagSet(ismrmrd.ACQ_IS_NOISE_MEASUREMENT) else None


NOISE: dict[str, tuple[Edit, str]] = {
    "no dwell time": (set_field("sample_time_us", 0.0), "sample_time_us is 0 in the noise scan and 5 in the image"),
    "negative dwell time": (set_field("sample_time_us", -2.0), "sample_time_us is -2"),
    "dwell time not a number": (set_field("sample_time_us", float("nan")), "sample_time_us is nan"),
    "other channels": (set_field("channel_mask", [6] + 15 * [0]), "channel_mask of the noise scan"),
    "compressed": (lambda a: a.setFlag(ismrmrd.ACQ_COMPRESSION1), "compressed"),
}


@pytest.mark.parametrize("what", NOISE)
def test_a_noise_scan_that_does_not_fit_the_image_is_refused(what: str, tmp_path: Path) -> None:
    change, reason = NOISE[what]
    assert reason in read_refusal(tmp_path, noise_samples=64, edit=_edit_noise_scan(change))


def _set_bandwidth(value: float) -> Edit:
    def change(header: Any) -> None:
        header.acquisitionSystemInformation.relativeReceiverNoiseBandwidth = value

    return change


def test_the_receivers_noise_bandwidth_scales_the_noise_scan(tmp_path: Path) -> None:
    (plain, _), (scaled, _) = (
        mrd.to_kspace(acquire_scan(tmp_path, noise_samples=64, edit_header=_set_bandwidth(value)))
        for value in (1.0, 0.25)
    )
    assert plain.noise is not None
    assert scaled.noise is not None
    assert np.allclose(scaled.noise, 2 * plain.noise)


@pytest.mark.parametrize("value", [0.0, -0.8, float("nan"), float("inf")])
def test_a_noise_bandwidth_that_is_no_positive_number_is_refused(value: float, tmp_path: Path) -> None:
    assert "relativeReceiverNoiseBandwidth" in read_refusal(
        tmp_path, noise_samples=64, edit_header=_set_bandwidth(value)
    )
