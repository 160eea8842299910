"""Matrix, encoding limits and acquired samples agree, or the acquisition is refused by the element that contradicts."""

from __future__ import annotations

import tracemalloc
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from ismrmrd import xsd

from dicomnode import mrd
from dicomnode.mrd.calibration import find_calibration_block
from pipelines.contract import Refused
from tests.mrd_files import Edit, acquire_scan, is_equal, make_smooth, read_refusal


@pytest.mark.parametrize("coils", [1, 4])
@pytest.mark.parametrize("slices", [1, 2])
def test_a_2d_acquisition_whose_matrix_says_partitions_is_refused_for_that(
    coils: int, slices: int, tmp_path: Path
) -> None:
    def set_two_partitions(header: Any) -> None:
        header.encoding[0].encodedSpace.matrixSize.z = 2

    reason = read_refusal(tmp_path, coils=coils, slices=slices, edit_header=set_two_partitions)
    assert "encodedSpace matrixSize z is 2, but every acquisition has kspace_encode_step_2 = 0" in reason


def test_a_matrix_of_lines_of_which_one_was_acquired_is_refused(tmp_path: Path) -> None:
    assert "matrixSize y is 20, but every acquisition has" in read_refusal(tmp_path, sampled=lambda y, z: y == 10)


def test_a_matrix_with_twice_the_columns_acquired_is_refused(tmp_path: Path) -> None:
    def double_columns(header: Any) -> None:
        space = header.encoding[0].encodedSpace
        space.matrixSize.x, space.fieldOfView_mm.x = 48, 72.0

    assert "matrixSize x is 48, but lines of 24 samples" in read_refusal(tmp_path, edit_header=double_columns)


@pytest.mark.parametrize(("space", "axis"), [("encodedSpace", "y"), ("reconSpace", "x"), ("reconSpace", "y")])
def test_a_matrix_that_the_samples_cannot_fill_is_refused(space: str, axis: str, tmp_path: Path) -> None:
    """16 kB of samples announced as 65535 lines took 8 GB."""

    def enlarge(header: Any) -> None:
        setattr(getattr(header.encoding[0], space).matrixSize, axis, 65535)

    reason = read_refusal(tmp_path, edit_header=enlarge)
    assert f"{space} has matrix (" in reason
    assert "65535" in reason
    assert "but each coil has only 480 samples" in reason


def test_slices_announced_without_end_are_refused_at_once(tmp_path: Path) -> None:
    """A set of all announced slices took the whole memory."""

    def announce(header: Any) -> None:
        header.encoding[0].encodingLimits.slice.maximum = 10**11

    tracemalloc.start()
    reason = read_refusal(tmp_path, edit_header=announce)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert "no samples, or zeros only, of slice [1, 2, 3, 4, 5, 6, 7, 8]" in reason
    assert peak < 10_000_000


def replace_in_header(path: Path, old: bytes, new: bytes) -> None:
    with h5py.File(path, "r+") as file:
        xml = file["dataset"]["xml"]
        assert old in xml[0]
        xml[0] = xml[0].replace(old, new)


@pytest.mark.parametrize(
    ("old", "new", "element"),
    [
        (b"<trajectory>cartesian<", b"<trajectory>unknown<", "trajectory"),
        (b"<TR>2000.0<", b"<TR>soon<", "TR"),
        (b"<maximum>19<", b"<maximum>1e1<", "maximum"),
        (b"<receiverChannels>2<", b"<receiverChannels>two<", "receiverChannels"),
    ],
)
def test_text_in_place_of_a_value_is_refused_by_its_element(
    old: bytes, new: bytes, element: str, tmp_path: Path
) -> None:
    """The parser of ismrmrd warns and keeps the text."""
    acquire_scan(tmp_path)
    replace_in_header(tmp_path / "a.h5", old, new)
    with pytest.raises(Refused, match=f"{element} in the XML header holds no value that the ISMRMRD schema allows"):
        mrd.read(tmp_path / "a.h5")


def test_a_date_that_is_none_is_refused_when_the_file_is_wrapped(tmp_path: Path) -> None:
    acquire_scan(tmp_path)
    replace_in_header(tmp_path / "a.h5", b"<patientBirthdate>1970-01-31<", b"<patientBirthdate>soon<")
    assert mrd.read(tmp_path / "a.h5").samples, "it changes no image"
    with pytest.raises(Refused, match="PatientBirthDate is no date or time"):
        mrd.wrap((tmp_path / "a.h5").read_bytes(), now=datetime(2026, 11, 20, tzinfo=UTC))


def test_a_calibration_block_is_sought_among_what_was_sampled() -> None:
    mask = np.zeros((1, 20_000, 16), bool)
    mask[0, 9_990:10_014, 2:15] = True
    samples = np.where(mask, 1, 0)[None].astype(np.complex64)
    tracemalloc.start()
    assert find_calibration_block(samples, mask) == ((9_990, 10_014), (2, 15))
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < 30e6


@pytest.mark.parametrize("field", ["TR", "TE", "TI", "flipAngle_deg", "systemFieldStrength_T"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_fact_that_is_no_finite_number_is_refused_by_name(field: str, value: float, tmp_path: Path) -> None:
    def change(header: Any) -> None:
        if field == "systemFieldStrength_T":
            header.acquisitionSystemInformation.systemFieldStrength_T = value
        else:
            setattr(header.sequenceParameters, field, [value])

    assert read_refusal(tmp_path, edit_header=change) == f"k-space header: {field} is not a finite number"


COUNTERS = ("average", "contrast", "phase", "repetition", "set", *(f"user_{n}" for n in range(8)))


@pytest.mark.slow
@pytest.mark.parametrize("counter", COUNTERS)
def test_a_counter_outside_its_limits_is_refused(counter: str, tmp_path: Path) -> None:
    def limit(header: Any) -> None:
        setattr(header.encoding[0].encodingLimits, counter, xsd.limitType(minimum=0, maximum=1))

    def count(acquisition: Any) -> None:
        name, _, number = counter.partition("_")
        if number:
            acquisition.idx.user[int(number)] = 2
        else:
            setattr(acquisition.idx, name, 2)

    reason = read_refusal(tmp_path, edit_header=limit, edit=count)
    assert f"counter '{counter}' runs from 2 to 2, the header allows 0 to 1" in reason


def test_echoes_counted_as_segments_beyond_their_limit_are_of_one_image(tmp_path: Path) -> None:
    def limit(header: Any) -> None:
        header.encoding[0].encodingLimits.segment = xsd.limitType(minimum=0, maximum=0)

    def count(acquisition: Any) -> None:
        acquisition.idx.segment = acquisition.idx.kspace_encode_step_1 % 4

    counted, plain = (
        mrd.to_kspace(acquire_scan(tmp_path, edit_header=limit, **how))[0] for how in ({"edit": count}, {})
    )
    assert is_equal(counted, plain)


def test_more_samples_than_the_limits_of_the_readout_are_refused(tmp_path: Path) -> None:
    def limit(header: Any) -> None:
        header.encoding[0].encodingLimits.kspace_encoding_step_0 = xsd.limitType(minimum=0, maximum=11, center=6)

    assert "24 samples, the header's limits of kspace_encoding_step_0" in read_refusal(tmp_path, edit_header=limit)


@pytest.mark.slow
@pytest.mark.parametrize("axis", [1, 2])
def test_without_limits_the_centre_is_known_only_where_all_steps_were_acquired(axis: int, tmp_path: Path) -> None:
    def remove_limits(header: Any) -> None:
        setattr(header.encoding[0].encodingLimits, f"kspace_encoding_step_{axis}", None)

    volume = {"n": (12, 10, 8), "edit_header": remove_limits}
    with_limits, without_limits = (
        mrd.to_kspace(acquire_scan(tmp_path, **how))[0] for how in ({"n": (12, 10, 8)}, volume)
    )
    assert is_equal(with_limits, without_limits)
    reason = read_refusal(tmp_path, sampled=lambda y, z: (y, z)[axis - 1] < 6, **volume)
    assert f"do not state kspace_encoding_step_{axis}" in reason


def test_a_stated_centre_far_from_the_strongest_line_is_refused(tmp_path: Path) -> None:
    def move_centre(header: Any) -> None:
        limit = header.encoding[0].encodingLimits.kspace_encoding_step_1
        limit.maximum, limit.center = 12, 3

    def edit(acquisition: Any) -> None:
        make_smooth(acquisition)

    how = {"edit": edit, "sampled": lambda y, z: y <= 12}
    assert mrd.to_kspace(acquire_scan(tmp_path, **how))[0].mask[0, :13].all()
    assert "strongest samples lie at +7 from the stated centre of k-space (kspace_encoding_step_1)" in read_refusal(
        tmp_path, edit_header=move_centre, **how
    )


def test_a_centre_sample_far_from_the_strongest_is_refused(tmp_path: Path) -> None:
    def edit(acquisition: Any) -> None:
        make_smooth(acquisition)
        data = acquisition.data[:, :16].copy()
        acquisition.resize(16, 2, 0)
        acquisition.data[:] = data
        acquisition.center_sample = 4

    assert "(center_sample)" in read_refusal(tmp_path, edit=edit)


def _set_thickness(space: str, value: float) -> Edit:
    def change(header: Any) -> None:
        for name in space.split():
            getattr(header.encoding[0], name).fieldOfView_mm.z = value

    return change


def test_two_slice_thicknesses_in_one_header_are_refused(tmp_path: Path) -> None:
    reason = read_refusal(tmp_path, edit_header=_set_thickness("reconSpace", 15.0))
    assert "is 4.0 mm in encodedSpace and 15.0 mm in reconSpace" in reason


def test_the_extent_of_the_stack_in_place_of_the_thickness_is_refused(tmp_path: Path) -> None:
    reason = read_refusal(tmp_path, slices=3, edit_header=_set_thickness("encodedSpace reconSpace", 15.0))
    assert "fieldOfView_mm z is 15.0 mm, but the slices are 5 mm apart" in reason
