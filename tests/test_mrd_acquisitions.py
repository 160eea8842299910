"""Every field and flag of an ISMRMRD acquisition header is used, refused by name, or without effect on the result."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import ismrmrd
import numpy as np
import pytest

from dicomnode import mrd
from pipelines.contract import Refused
from tests.mrd_files import Edit, acquire_scan, edit_line, is_equal, read_refusal, set_field


def _shorten(acquisition: Any) -> None:
    acquisition.resize(20, 2, 0)
    acquisition.data[:] = 1


SHARED: dict[str, Edit] = {
    "measurement_uid": set_field("measurement_uid", 7),
    "number_of_samples": _shorten,
    "center_sample": set_field("center_sample", 11),
    "discard_pre": set_field("discard_pre", 2),
    "discard_post": set_field("discard_post", 2),
    "sample_time_us": set_field("sample_time_us", 6.0),
    "available_channels": set_field("available_channels", 5),
    "channel_mask": set_field("channel_mask", [6] + 15 * [0]),
    "patient_table_position": set_field("patient_table_position", [0.0, 0.0, 5.0]),
}


@pytest.mark.slow
@pytest.mark.parametrize("field", SHARED)
def test_a_field_that_is_one_for_an_image_is_refused_by_name_where_it_differs(field: str, tmp_path: Path) -> None:
    reason = read_refusal(tmp_path, edit=edit_line(3, SHARED[field]))
    assert f"k-space: {field} is" in reason
    assert "acquisition 3" in reason


@pytest.mark.slow
@pytest.mark.parametrize("number", range(8))
def test_a_counter_of_the_user_that_differs_is_refused_by_name(number: int, tmp_path: Path) -> None:
    def change(acquisition: Any) -> None:
        acquisition.idx.user[number] = 1

    assert f"idx.user[{number}] is 0 in acquisition 0 and 1 in acquisition 3" in read_refusal(
        tmp_path, edit=edit_line(3, change)
    )


def _set_numbers(acquisition: Any) -> None:
    y = acquisition.idx.kspace_encode_step_1
    acquisition.scan_counter, acquisition.acquisition_time_stamp = 100 - y, 50 * y
    acquisition.physiology_time_stamp[:] = (y, 2 * y, 0)
    acquisition.user_int[:] = 8 * [y]
    acquisition.user_float[:] = 8 * [y / 3]


def test_order_times_and_numbers_of_the_user_change_nothing(tmp_path: Path) -> None:
    (plain, facts), (numbered, other) = (
        mrd.to_kspace(acquire_scan(tmp_path, **how)) for how in ({}, {"edit": _set_numbers})
    )
    assert is_equal(plain, numbered)
    assert facts == other


def test_a_later_version_of_the_acquisition_header_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="acquisition headers of version 2"):
        acquire_scan(tmp_path, edit=set_field("version", 2))


def test_segments_fill_one_k_space(tmp_path: Path) -> None:
    def segment(acquisition: Any) -> None:
        acquisition.idx.segment = acquisition.idx.kspace_encode_step_1 % 4

    plain, segmented = (mrd.to_kspace(acquire_scan(tmp_path, **how))[0] for how in ({}, {"edit": segment}))
    assert is_equal(plain, segmented)


def _rewrite_table(path: Path, change: Callable[[Any], Any]) -> Path:
    """Replace the table of acquisitions in the file; return its path."""
    with h5py.File(path / "a.h5", "r+") as file:
        table = change(file["dataset/data"][:])
        del file["dataset/data"]
        file["dataset"].create_dataset("data", data=table)
    return path / "a.h5"


def test_fields_in_another_order_are_read_by_their_names(tmp_path: Path) -> None:
    plain = acquire_scan(tmp_path)

    def reverse_fields(table: Any) -> Any:
        names = list(table["head"].dtype.names)[::-1]
        head = np.dtype([(name, table["head"].dtype[name]) for name in names])
        reordered = np.empty(len(table), np.dtype([("head", head), *((n, table.dtype[n]) for n in ("traj", "data"))]))
        for name in names:
            reordered["head"][name] = table["head"][name]
        reordered["traj"], reordered["data"] = table["traj"], table["data"]
        return reordered

    assert np.array_equal(mrd.read(_rewrite_table(tmp_path, reverse_fields)).heads, plain.heads)


def test_a_trajectory_that_no_header_announces_is_refused(tmp_path: Path) -> None:
    acquire_scan(tmp_path)

    def add_trajectory(table: Any) -> Any:
        table["traj"][3] = np.ones(48, np.float32)
        return table

    with pytest.raises(Refused, match="acquisition 3 holds 48 numbers of a trajectory, its header says 0"):
        mrd.read(_rewrite_table(tmp_path, add_trajectory))


def test_two_acquisition_sets_in_one_file_are_refused(tmp_path: Path) -> None:
    acquire_scan(tmp_path)
    with h5py.File(tmp_path / "a.h5", "r+") as file:
        file.copy("dataset", "other")
    with pytest.raises(Refused, match="2 groups with 'xml' and 'data'"):
        mrd.read(tmp_path / "a.h5")


def test_two_xml_headers_are_refused(tmp_path: Path) -> None:
    acquire_scan(tmp_path)
    with h5py.File(tmp_path / "a.h5", "r+") as file:
        text = file["dataset/xml"][0]
        del file["dataset/xml"]
        file["dataset"].create_dataset("xml", data=[text, text], dtype=h5py.special_dtype(vlen=bytes))
    with pytest.raises(Refused, match="2 XML headers"):
        mrd.read(tmp_path / "a.h5")


LEFT_OUT = (
    "ACQ_IS_NOISE_MEASUREMENT", "ACQ_IS_NAVIGATION_DATA", "ACQ_IS_PHASECORR_DATA", "ACQ_IS_HPFEEDBACK_DATA",
    "ACQ_IS_DUMMYSCAN_DATA", "ACQ_IS_RTFEEDBACK_DATA", "ACQ_IS_SURFACECOILCORRECTIONSCAN_DATA",
    "ACQ_IS_PHASE_STABILIZATION_REFERENCE", "ACQ_IS_PHASE_STABILIZATION",
)  # fmt: skip
MARKS = (*range(ismrmrd.ACQ_FIRST_IN_ENCODE_STEP1, ismrmrd.ACQ_LAST_IN_SEGMENT + 1), ismrmrd.ACQ_LAST_IN_MEASUREMENT)


def flag_line(line: int, flag: int, factor: float = 1.0) -> Edit:
    def change(acquisition: Any) -> None:
        acquisition.setFlag(flag)
        acquisition.data[:] *= factor

    return edit_line(line, change)


@pytest.mark.slow
@pytest.mark.parametrize("flag", LEFT_OUT)
def test_lines_that_are_not_of_the_image_are_left_out(flag: str, tmp_path: Path) -> None:
    how = {"edit": flag_line(3, getattr(ismrmrd, flag), 1000.0)}
    without, flagged = (
        mrd.to_kspace(acquire_scan(tmp_path, **each))[0] for each in ({"sampled": lambda y, z: y != 3}, how)
    )
    assert is_equal(without, flagged)


@pytest.mark.slow
@pytest.mark.parametrize("flag", MARKS)
def test_first_and_last_marks_change_nothing(flag: int, tmp_path: Path) -> None:
    plain, flagged = (mrd.to_kspace(acquire_scan(tmp_path, **how))[0] for how in ({}, {"edit": flag_line(3, flag)}))
    assert is_equal(plain, flagged)


@pytest.mark.parametrize("flag", range(ismrmrd.ACQ_COMPRESSION1, ismrmrd.ACQ_COMPRESSION4 + 1))
def test_compressed_samples_are_refused(flag: int, tmp_path: Path) -> None:
    assert "samples of acquisition 3 are compressed" in read_refusal(tmp_path, edit=flag_line(3, flag))


@pytest.mark.parametrize("flag", [32, 40, 52])
def test_flags_that_the_format_does_not_define_are_refused(flag: int, tmp_path: Path) -> None:
    assert f"acquisition 3 carries flag {flag}" in read_refusal(tmp_path, edit=flag_line(3, flag))


@pytest.mark.slow
@pytest.mark.parametrize("number", range(1, 9))
def test_a_flag_of_the_user_on_some_lines_only_is_refused(number: int, tmp_path: Path) -> None:
    flag = ismrmrd.ACQ_USER1 + number - 1
    assert f"ACQ_USER{number}" in read_refusal(tmp_path, edit=flag_line(3, flag))
    plain, flagged = (
        mrd.to_kspace(acquire_scan(tmp_path, **how))[0] for how in ({}, {"edit": lambda a: a.setFlag(flag)})
    )
    assert is_equal(plain, flagged)
