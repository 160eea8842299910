"""Contradictory or unreconstructible acquisitions are refused; the message names the fault and its place."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import ismrmrd
import numpy as np
import pytest

from dicomnode import mrd
from pipelines.contract import Refused
from tests.scanner import Scan, acquire


def _edit_line_3(change: Callable[[Any], None]) -> Callable[[Any], None]:
    def edit(acquisition: Any) -> None:
        if acquisition.idx.kspace_encode_step_1 == 3:
            change(acquisition)

    return edit


def _set_fields(**values: Any) -> Callable[[Any], None]:
    def change(acquisition: Any) -> None:
        for name, value in values.items():
            setattr(acquisition, name, value)

    return change


def _set_nan(acquisition: Any) -> None:
    acquisition.data[1, 5] = np.nan


def _set_infinite(acquisition: Any) -> None:
    acquisition.data[0, 7] = complex(0, np.inf)


def _exceed_limits(acquisition: Any) -> None:
    acquisition.idx.kspace_encode_step_1 = 99


def _set_other_slice(acquisition: Any) -> None:
    acquisition.idx.slice = 4


def _set_repetition(acquisition: Any) -> None:
    acquisition.idx.repetition = 1


def _remove_coil(acquisition: Any) -> None:
    acquisition.resize(24, 1, 0)


def _add_trajectory(acquisition: Any) -> None:
    acquisition.resize(24, 2, 2)
    acquisition.data[:] = 1


def _set_zeros(acquisition: Any) -> None:
    acquisition.data[:] = 0


def _flag_as_noise(acquisition: Any) -> None:
    acquisition.setFlag(ismrmrd.ACQ_IS_NOISE_MEASUREMENT)


def _flag_as_reverse(acquisition: Any) -> None:
    acquisition.setFlag(ismrmrd.ACQ_IS_REVERSE)


def _remove_direction(acquisition: Any) -> None:
    acquisition.read_dir[:] = (0, 0, 0)


def _slant(acquisition: Any) -> None:
    acquisition.phase_dir[:] = (0.6, 0.8, 0)


def _turn(acquisition: Any) -> None:
    acquisition.read_dir[:] = (0, 0, 1)


def _move(acquisition: Any) -> None:
    acquisition.position[:] = (0, 0, 50)


ACQUISITIONS = {
    "not a number": (_edit_line_3(_set_nan), r"acquisition 3, coil 1, sample 5 is not a finite number"),
    "infinity": (_edit_line_3(_set_infinite), r"acquisition 3, coil 0, sample 7 is not a finite number"),
    "step outside the limits": (_edit_line_3(_exceed_limits), r"encoding step 1 runs from 0 to 99.*allows 0 to 19"),
    "slice outside the limits": (_edit_line_3(_set_other_slice), r"slice counters 0 to 4.*allows 0 to 0"),
    "readout outside the matrix": (_set_fields(center_sample=20), r"acquisition 0 covers columns -8 to 16.* 24"),
    "nothing left of the readout": (_set_fields(discard_pre=20, discard_post=10), r"acquisition 0 covers columns"),
    "centre of k-space discarded": (_set_fields(discard_pre=20), r"acquisition 0 covers columns"),
    "several repetitions": (_edit_line_3(_set_repetition), r"2 values of the counter 'repetition' \(\[0, 1\]\)"),
    "coils differ": (_edit_line_3(_remove_coil), r"acquisition 3 has 1 coils, others have 2"),
    "trajectory in Cartesian data": (_edit_line_3(_add_trajectory), r"carry a trajectory"),
    "unknown encoding": (_edit_line_3(_set_fields(encoding_space_ref=3)), r"encoding 3, the header describes 1"),
    "only zeros": (_set_zeros, r"sampling mask is empty"),
    "only noise": (_flag_as_noise, r"sampling mask is empty"),
    "read backwards": (_edit_line_3(_flag_as_reverse), r"ACQ_IS_REVERSE"),
    "no direction": (_remove_direction, r"read_dir is not a unit vector"),
    "not perpendicular": (_slant, r"not perpendicular"),
    "directions differ": (_edit_line_3(_turn), r"read_dir differs between acquisitions"),
    "positions differ": (_edit_line_3(_move), r"slice 0 state different positions"),
}


@pytest.mark.slow
@pytest.mark.parametrize("what", ACQUISITIONS)
def test_an_acquisition_that_contradicts_is_refused(what: str, tmp_path: Path) -> None:
    edit, reason = ACQUISITIONS[what]
    found = acquire(Scan(edit=edit, points_mm=[np.array([12.5, -30.0, 7.25])]), tmp_path / "a.h5")
    with pytest.raises(Refused, match=reason):
        mrd.to_kspace(found)


def _set_radial(header: Any) -> None:
    header.encoding[0].trajectory = ismrmrd.xsd.trajectoryType.RADIAL


def _set_channels(header: Any) -> None:
    header.acquisitionSystemInformation.receiverChannels = 8


def _remove_matrix(header: Any) -> None:
    header.encoding[0].encodedSpace.matrixSize.y = 0


def _shrink_matrix(header: Any) -> None:
    header.encoding[0].encodedSpace.matrixSize.y = 16


def _remove_limits(header: Any) -> None:
    header.encoding[0].encodingLimits.kspace_encoding_step_1 = None
    header.encoding[0].encodedSpace.matrixSize.y = 16


def _enlarge_view(header: Any) -> None:
    header.encoding[0].reconSpace.fieldOfView_mm.x = 100.0


def _set_nan_view(header: Any) -> None:
    header.encoding[0].encodedSpace.fieldOfView_mm.x = float("nan")


def _add_slices(header: Any) -> None:
    header.encoding[0].encodingLimits.slice.maximum = 2


def _add_partitions(header: Any) -> None:
    header.encoding[0].reconSpace.matrixSize.z = 4


HEADERS = {
    "radial": (_set_radial, r"trajectory 'radial'"),
    "coil count": (_set_channels, r"header says 8 receiver channels, the acquisitions hold 2"),
    "no matrix": (_remove_matrix, r"encodedSpace has matrix \(24, 0, 1\)"),
    "limits beyond the matrix": (_shrink_matrix, r"limits 0 to 19 with centre 10 do not fit the matrix of 16"),
    "lines beyond the matrix": (_remove_limits, r"encoding step 1 runs from 0 to 19, the header allows 0 to 15"),
    "image larger than encoded": (_enlarge_view, r"100.0 mm along x, only 36.0 mm"),
    "field of view not a number": (_set_nan_view, r"encodedSpace has matrix"),
    "missing slices": (_add_slices, r"no samples, or zeros only, of slice \[1, 2\]"),
    "partitions of a 2D encoding": (_add_partitions, r"4 partitions to reconstruct from a 2D encoding"),
}


@pytest.mark.slow
@pytest.mark.parametrize("what", HEADERS)
def test_a_header_that_contradicts_is_refused(what: str, tmp_path: Path) -> None:
    edit, reason = HEADERS[what]
    with pytest.raises(Refused, match=reason):
        mrd.to_kspace(acquire(Scan(edit_header=edit), tmp_path / "a.h5"))


def test_slices_at_one_place_are_refused(tmp_path: Path) -> None:
    def put_together(acquisition: Any) -> None:
        acquisition.position[:] = (0, 0, 0)

    with pytest.raises(Refused, match="two slices lie at the same place"):
        mrd.to_kspace(acquire(Scan(slices=2, edit=put_together), tmp_path / "a.h5"))


def test_slices_unevenly_apart_are_refused(tmp_path: Path) -> None:
    def shift(acquisition: Any) -> None:
        if acquisition.idx.slice == 2:
            acquisition.position[2] += 2

    with pytest.raises(Refused, match=r"5\.000 to 7\.000 mm apart"):
        mrd.to_kspace(acquire(Scan(slices=3, edit=shift), tmp_path / "a.h5"))


def test_a_sheared_stack_is_refused(tmp_path: Path) -> None:
    def shift(acquisition: Any) -> None:
        acquisition.position[0] += 2 * acquisition.idx.slice

    with pytest.raises(Refused, match="not stacked along slice_dir"):
        mrd.to_kspace(acquire(Scan(slices=3, edit=shift), tmp_path / "a.h5"))


def test_a_partial_echo_in_3d_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="readout of line 0, partition 0 is incomplete"):
        mrd.to_kspace(acquire(Scan(n=(12, 10, 8), first_sample=2), tmp_path / "a.h5"))


@pytest.mark.parametrize("content", [b"", b"no HDF5", b"\x89HDF\r\n\x1a\n" + bytes(200)])
def test_what_is_no_hdf5_is_refused(content: bytes) -> None:
    with pytest.raises(Refused, match="not a readable HDF5 file"):
        mrd.read(content)


def test_hdf5_without_acquisitions_is_refused() -> None:
    stream = io.BytesIO()
    with h5py.File(stream, "w") as file:
        file["other"] = [1, 2]
    with pytest.raises(Refused, match="0 groups with 'xml' and 'data'"):
        mrd.read(stream.getvalue())


def test_a_link_out_of_the_file_is_not_followed(tmp_path: Path) -> None:
    acquire(Scan(), tmp_path / "secret.h5")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        group = file.create_group("dataset")
        for name in ("xml", "data"):
            group[name] = h5py.ExternalLink(str(tmp_path / "secret.h5"), f"/dataset/{name}")
    with pytest.raises(Refused, match="link to elsewhere"):
        mrd.read(tmp_path / "a.h5")


def test_a_broken_header_is_refused_without_quoting_it(tmp_path: Path) -> None:
    acquire(Scan(), tmp_path / "a.h5")
    with h5py.File(tmp_path / "a.h5", "r+") as file:
        file["dataset/xml"][0] = b"<ismrmrdHeader><patientName>Miller</patientName>"
    with pytest.raises(Refused, match="does not follow the ISMRMRD schema") as refusal:
        mrd.read(tmp_path / "a.h5")
    assert "Miller" not in str(refusal.value)


def test_fewer_samples_than_announced_are_refused(tmp_path: Path) -> None:
    acquire(Scan(), tmp_path / "a.h5")
    with h5py.File(tmp_path / "a.h5", "r+") as file:
        record = file["dataset/data"][3]
        record["data"] = np.zeros(10, np.float32)
        file["dataset/data"][3] = record
    with pytest.raises(Refused, match="acquisition 3 holds 5 complex samples, its header says 2 coils x 24"):
        mrd.read(tmp_path / "a.h5")
