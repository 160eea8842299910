"""MRD in DICOM Raw Data Storage: there and back byte for byte; and arrays without a header made into MRD."""

from __future__ import annotations

from datetime import datetime
from io import BytesIO
from pathlib import Path
from zoneinfo import ZoneInfo

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset
from scipy.io import savemat

from dicomnode import mrd
from dicomnode.cli import main
from dicomnode.mrd.raw_data import FORMAT
from pipelines.contract import Grid, Refused
from tests.dciodvfy import find_errors
from tests.scanner import ORIENTATIONS, Scan, acquire

KIT = "kspace/sigpy-brain-8ch/cartesian_ksp.npy"


def _mrd_bytes(folder: Path) -> bytes:
    acquire(Scan(), folder / "a.h5")
    return (folder / "a.h5").read_bytes()


def _write_and_read(ds: Dataset) -> Dataset:
    file = BytesIO()
    ds.save_as(file, enforce_file_format=True)
    file.seek(0)
    return dcmread(file)


@pytest.mark.parametrize("odd", [False, True])
def test_what_is_wrapped_comes_out_byte_for_byte(odd: bool, tmp_path: Path, now: datetime) -> None:
    content = _mrd_bytes(tmp_path)
    content += b"\0" * ((len(content) % 2) ^ odd)  # HDF5 ignores trailing bytes
    assert mrd.unwrap(_write_and_read(mrd.wrap(content, now=now))) == content


@pytest.mark.parametrize("odd", [False, True])
def test_a_stream_is_wrapped_like_bytes(odd: bool, tmp_path: Path, now: datetime) -> None:
    content = _mrd_bytes(tmp_path) + b"\0" * odd
    assert mrd.unwrap(_write_and_read(mrd.wrap(BytesIO(content), now=now))) == content


def test_patient_study_and_scanner_come_from_the_mrd_header(tmp_path: Path, now: datetime) -> None:
    ds = _write_and_read(mrd.wrap(_mrd_bytes(tmp_path), now=now))
    assert str(ds.PatientName) == "Müller^Jörg"
    assert (ds.PatientID, ds.PatientBirthDate, ds.PatientSex) == ("4711", "19700131", "M")
    assert (ds.StudyInstanceUID, ds.AccessionNumber) == ("1.2.826.0.1.3680043.8.498.1", "815")
    assert (ds.Manufacturer, ds.BodyPartExamined) == ("Scanner works", "HEAD")


def test_what_the_operator_states_goes_before_the_header(tmp_path: Path, now: datetime) -> None:
    facts = {"PatientName": "山田^太郎", "StudyInstanceUID": "1.2.3", "SeriesNumber": "7"}
    ds = _write_and_read(mrd.wrap(_mrd_bytes(tmp_path), now=now, facts=facts))
    assert (str(ds.PatientName), ds.StudyInstanceUID, ds.SeriesNumber) == ("山田^太郎", "1.2.3", 7)
    assert ds.PatientID == "4711"


def test_wrapping_again_makes_the_same_object(tmp_path: Path, now: datetime) -> None:
    content = _mrd_bytes(tmp_path)
    first, second = mrd.wrap(content, now=now), mrd.wrap(content, now=now)
    assert first == second
    assert mrd.wrap(content, now=now, facts={"PatientID": "2"}).SOPInstanceUID != first.SOPInstanceUID


@pytest.mark.parametrize("facts", [{"SOPInstanceUID": "1.2"}, {"Foo": "1"}, {"StudyDate": "yesterday"}])
def test_facts_that_do_not_fit_are_refused(facts: dict[str, str], tmp_path: Path, now: datetime) -> None:
    with pytest.raises(Refused, match=next(iter(facts))):
        mrd.wrap(_mrd_bytes(tmp_path), now=now, facts=facts)


def test_it_is_recognised_with_and_without_private_elements(tmp_path: Path, now: datetime) -> None:
    ds = _write_and_read(mrd.wrap(_mrd_bytes(tmp_path), now=now))
    assert mrd.is_mrd(ds)
    header = _write_and_read(ds)
    header.remove_private_tags()
    assert mrd.is_mrd(header)
    del ds.CreatorVersionUID
    assert mrd.is_mrd(ds)
    ds.SOPClassUID = "1.2.840.10008.5.1.4.1.1.4"
    assert not mrd.is_mrd(ds)
    assert not mrd.is_mrd(Dataset())


def test_an_altered_payload_is_refused(tmp_path: Path, now: datetime) -> None:
    ds = _write_and_read(mrd.wrap(_mrd_bytes(tmp_path), now=now))
    element = ds.private_block(0x7FE1, FORMAT.creator)[0x01]
    element.value = element.value[:1000] + b"x" + element.value[1001:]
    with pytest.raises(Refused, match="SHA-256"):
        mrd.unwrap(ds)
    element.value = element.value[:1000]
    with pytest.raises(Refused, match="1000 are there"):
        mrd.unwrap(ds)


def test_raw_data_of_others_is_refused(tmp_path: Path, now: datetime) -> None:
    ds = mrd.wrap(_mrd_bytes(tmp_path), now=now)
    ds.remove_private_tags()
    with pytest.raises(Refused, match="no MRD file in it"):
        mrd.unwrap(ds)
    with pytest.raises(Refused, match="not a Raw Data"):
        mrd.unwrap(Dataset())


@pytest.mark.slow
@pytest.mark.parametrize("facts", [{}, {"BodyPartExamined": ""}, {"BodyPartExamined": "KNEE"}])
def test_dciodvfy_finds_no_error_in_raw_data(facts: dict[str, str], tmp_path: Path, now: datetime) -> None:
    assert find_errors(mrd.wrap(_mrd_bytes(tmp_path), now=now, facts=facts), tmp_path / "raw.dcm") == []


def test_raw_data_say_when_they_were_made_in_the_zone_of_their_other_times(tmp_path: Path, now: datetime) -> None:
    ds = mrd.wrap(_mrd_bytes(tmp_path), now=now, facts={"TimezoneOffsetFromUTC": "+0900"})
    assert (ds.TimezoneOffsetFromUTC, ds.ContentDate, ds.ContentTime) == ("+0900", "20261120", "170000")
    local = mrd.wrap(_mrd_bytes(tmp_path), now=now.astimezone(ZoneInfo("Europe/Berlin")))
    assert (local.ContentTime, "TimezoneOffsetFromUTC" in local) == ("090000", False)


@pytest.mark.parametrize(("keyword", "value"), [("PatientSex", "W"), ("StudyDate", "20260231"), ("StudyTime", "10:11")])
def test_raw_data_state_nothing_that_breaks_its_rules(keyword: str, value: str, tmp_path: Path, now: datetime) -> None:
    with pytest.raises(Refused, match=f"what was given as {keyword}"):
        mrd.wrap(_mrd_bytes(tmp_path), now=now, facts={keyword: value})


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("layout", ["2d", "3d plane"])
def test_an_array_keeps_its_samples_and_its_grid(orientation: str, layout: mrd.Layout, tmp_path: Path) -> None:
    generator = np.random.default_rng(2)
    slices = 3 if layout == "2d" else 1
    samples = generator.normal(size=(slices, 2, 10, 12, 2)).view(np.complex128)[..., 0].astype(np.complex64)
    samples[:, :, ::3] = 0
    directions = ORIENTATIONS[orientation]
    affine = np.eye(4)
    affine[:3, :3] = directions.T * [1.5, 2.0, 5.0]
    affine[:3, 3] = (-7, 13, 44)
    grid = Grid((slices, 10, 12), affine)
    made = mrd.from_array(samples, grid=grid, slice_thickness_mm=4.0, layout=layout, noise=samples[0, :, 1])
    mrd.write(made, tmp_path / "a.h5")
    kspace, _ = mrd.to_kspace(mrd.read(tmp_path / "a.h5"))
    assert np.array_equal(kspace.samples, samples)
    assert np.array_equal(kspace.mask, samples.any(axis=1))
    assert np.allclose(kspace.grid.affine_mm[:3, [0, 1, 3]], affine[:3, [0, 1, 3]], atol=1e-4)
    assert kspace.grid.shape == grid.shape
    assert kspace.encoded_fov_mm == pytest.approx((20.0, 18.0))
    assert kspace.noise is not None
    assert np.allclose(kspace.noise, samples[0, :, 1])


def test_the_brain_of_the_data_kit_keeps_every_sample(kit: Path, tmp_path: Path) -> None:
    mrd.write(mrd.convert(kit / KIT), tmp_path / "a.h5")
    found = mrd.read(tmp_path / "a.h5")
    kspace, facts = mrd.to_kspace(found)
    assert np.array_equal(kspace.samples[0], np.load(kit / KIT))
    assert kspace.calibration == ((103, 127), (78, 102))
    assert facts["acceleration"] == pytest.approx(8.04, abs=0.01)
    notes = {note.name: note.value for note in found.header.userParameters.userParameterString}
    assert notes["voxel_size"].startswith("assumed: 1.0 x 1.0 x 1.0 mm")


def test_a_roll_to_the_centre_leaves_the_magnitude_of_the_image(tmp_path: Path) -> None:
    generator = np.random.default_rng(4)
    array = generator.normal(size=(16, 14, 2)) + 1j * generator.normal(size=(16, 14, 2))
    array[10, 6] += 50
    savemat(tmp_path / "a.mat", {"kspace": array})
    kspace, _ = mrd.to_kspace(mrd.convert(tmp_path / "a.mat", voxel_mm=(6.0, 2.0, 1.5), slice_thickness_mm=5.0))
    assert kspace.samples.shape == (2, 1, 14, 16)
    assert int(np.abs(kspace.samples[0, 0]).argmax()) == 7 * 16 + 8
    ours = np.abs(np.fft.ifft2(kspace.samples[:, 0]))
    theirs = np.abs(np.fft.ifft2(array.transpose(2, 1, 0)))
    assert np.allclose(ours, theirs, atol=1e-5)
    assert kspace.grid.spacing_mm == pytest.approx((6.0, 2.0, 1.5))
    assert kspace.slice_thickness_mm == 5.0


def test_arrays_of_another_kind_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((3, 4)))
    savemat(tmp_path / "b.mat", {"image": np.zeros((3, 4, 5))})
    (tmp_path / "c.txt").write_text("no array")
    for name, reason in (("a.npy", r"float64 of shape \(3, 4\)"), ("b.mat", "no variable"), ("c.txt", "'.txt'")):
        with pytest.raises(Refused, match=reason):
            mrd.convert(tmp_path / name)


def test_the_commands_convert_wrap_show_and_unwrap(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    generator = np.random.default_rng(5)
    np.save(tmp_path / "k.npy", generator.normal(size=(2, 10, 12, 2)).astype(np.float32).view(np.complex64)[..., 0])
    made, wrapped, back = (str(tmp_path / name) for name in ("k.h5", "k.dcm", "back.h5"))
    assert main(["kspace", "convert", str(tmp_path / "k.npy"), made]) == 0
    assert "assumed" in capsys.readouterr().err
    assert main(["kspace", "wrap", made, wrapped, "--set", "PatientID=17"]) == 0
    assert main(["kspace", "unwrap", wrapped, back]) == 0
    assert Path(made).read_bytes() == Path(back).read_bytes()
    assert main(["kspace", "show", wrapped]) == 0
    assert '"coils": 2' in capsys.readouterr().out
    assert main(["kspace", "unwrap", made, back]) == 1
    assert capsys.readouterr().err.strip().endswith("is not a DICOM file")
    assert main(["kspace", "wrap", made, wrapped, "--set", "PatientID"]) == 2
