"""Projections in Raw Data: there and back, geometry in the patient, and refusals of what contradicts itself."""

from __future__ import annotations

import io
import json
import re
import zipfile
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from pydicom import dcmread

from dicomnode import sinogram
from dicomnode.cli import main
from dicomnode.sinogram.arrays import read_array
from model_zoo.ct_geometry import CtGeometry
from model_zoo.radon import make_ray_matrix
from pipelines.contract import Projections, Refused
from tests.ellipses import integrate
from tests.sinograms import BODY, FAN, PARALLEL, PHOTONS, make_counts, make_geometry, npy, write_files


def pack(beam: CtGeometry = PARALLEL, values: Any = None, **changed: Any) -> bytes:
    values = make_counts(beam) if values is None else values
    return sinogram.pack(npy(values), json.dumps(make_geometry(beam, **changed)))


def read(**options: Any) -> Projections:
    return sinogram.read(pack(**options))[0]


def differ(projections: Projections) -> float:
    """Return the root mean square difference from the line integrals of the body along the same rays."""
    exact = integrate(BODY, projections.beam).numpy()
    return float(np.sqrt(np.mean((projections.line_integrals - exact) ** 2)))


@pytest.mark.parametrize("beam", [PARALLEL, FAN], ids=["parallel", "fan"])
def test_an_array_with_its_geometry_gives_the_image_it_was_made_of(beam: CtGeometry) -> None:
    projections = read(beam=beam)
    assert projections.beam == beam
    assert projections.assumptions == ()
    assert differ(projections) < 0.02


def test_line_integrals_and_counts_are_the_same_scan() -> None:
    counts = make_counts(PARALLEL)
    content = sinogram.pack(npy(np.log(PHOTONS / counts)), json.dumps(make_geometry(PARALLEL, values="line integrals")))
    np.testing.assert_allclose(sinogram.read(content)[0].counts, counts, rtol=1e-3)


def test_the_grid_lies_about_the_axis_of_rotation() -> None:
    grid = read(values=make_counts(PARALLEL, 3)).grid
    assert grid.shape == (3, 32, 32)
    middle = grid.affine_mm @ [15.5, 15.5, 0, 1]
    np.testing.assert_allclose(middle[:3], [10.0, -20.0, 30.0], atol=1e-9)
    np.testing.assert_allclose(grid.affine_mm[:3, 0], [0, 7.5, 0], atol=1e-9)
    np.testing.assert_allclose(grid.affine_mm[:3, 2], [-4.0, 0, 0], atol=1e-9)


def test_a_negative_arc_turns_the_other_way() -> None:
    backwards = CtGeometry(PARALLEL.shape, PARALLEL.pixel_mm, 40, 48, 7.0, 180.0, 4.5)
    projections = read(values=make_counts(backwards)[:, ::-1], arc_deg=-180.0, first_deg=4.5 + 39 * 4.5)
    np.testing.assert_allclose(projections.beam.view_angles, backwards.view_angles, atol=1e-12)
    assert differ(projections) < 0.02


@pytest.mark.parametrize(("arc_deg", "first_deg"), [(-360.0, 355.0), (360.0, 0.0)])
def test_a_fan_whose_bins_are_counted_backwards_is_refused(arc_deg: float, first_deg: float) -> None:
    """Either the bins or the views run the other way than stated."""
    values = make_counts(FAN)
    values = values if arc_deg < 0 else values[..., ::-1]
    offset = 0.25 if arc_deg < 0 else -0.25
    with pytest.raises(Refused, match="turn the bins over, or change the sign of arc_deg"):
        pack(FAN, values, arc_deg=arc_deg, first_deg=first_deg, offset_bins=offset)


@pytest.mark.parametrize("beam", [PARALLEL, FAN], ids=["parallel", "fan"])
def test_angles_and_bins_are_counted_as_the_page_says(beam: CtGeometry) -> None:
    """At 0 degrees bins grow towards the last column; with the angle a source below moves towards the first column."""
    pixel = np.zeros((32, 32), np.float32)
    pixel[15:17, 24:26] = 0.02  # 9 pixels from the axis towards the last column
    for view, side in ((0, 1.0), (beam.views // 2 if beam is PARALLEL else beam.views // 4, 0.0)):
        line = make_ray_matrix(beam).project(torch.from_numpy(pixel[None]))[0, view].numpy()
        place = float((line * np.arange(beam.bins)).sum() / line.sum())
        axis = (beam.bins - 1) / 2 - beam.offset_bins
        assert (place - axis) * beam.bin_mm == pytest.approx(side * 9 * beam.pixel_mm, abs=3)
    near, far = (np.count_nonzero(_project_row(beam, i)) for i in (2, 29))
    assert near > far if beam is FAN else near == far


def _project_row(beam: CtGeometry, column: int) -> NDArray[np.float32]:
    """Return the line integrals of a pixel of the middle row in the view a quarter of a turn on."""
    pixel = np.zeros((32, 32), np.float32)
    pixel[14:18, column - 1 : column + 2] = 0.02
    view = beam.views // 2 if beam is PARALLEL else beam.views // 4
    return np.asarray(make_ray_matrix(beam).project(torch.from_numpy(pixel[None]))[0, view].numpy(), np.float32)


def test_a_bin_on_the_detector_is_scaled_to_the_axis() -> None:
    assert read(beam=FAN, bin_mm=12.0, detector_mm=1000.0).beam.bin_mm == pytest.approx(6.0)


def test_what_is_not_stated_is_named() -> None:
    assert len(read(orientation=None, centre_mm=None, water_per_mm=None).assumptions) == 3


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"views": 39}, r"shape \(1, 40, 48\).*39 views"),
        ({"views": 48, "bins": 40}, "48 views, 40 bins"),
        ({"source_mm": 500.0}, "source_mm is stated, but the beam is parallel"),
        ({"beam": "fan"}, "a fan needs source_mm and detector"),
        ({"beam": "fan", "source_mm": 500.0, "detector": "flat"}, "flat detector"),
        ({"beam": "fan", "source_mm": 500.0, "detector": "arc", "detector_mm": 400.0}, "not above source_mm"),
        ({"beam": "fan", "source_mm": 100.0, "detector": "arc"}, "lies within the image"),
        ({"arc_deg": 0}, "arc_deg is 0"),
        ({"arc_deg": 400}, "arc_deg"),
        ({"photons": [1e5, 1e5]}, "2 numbers of photons for 48 bins"),
        ({"photons": 1e3}, "more counts than photons"),
        ({"photons": 0}, "photons"),
        ({"orientation": [1, 0, 0, 1, 0, 0]}, "right angle"),
        ({"pixel_mm": 12.0}, "the image 192 mm"),
        ({"offset_bins": 80.0}, "the bins reach -392 mm"),
        ({"offset_bins": -15.0}, "the bins reach 63 mm"),
        ({"pixels": [1024, 1024], "pixel_mm": 0.2}, "1048576 voxels of 1920 rays"),
        ({"pixels": [4, 4]}, "pixels"),
        ({"values": "line integrals"}, "line integrals from"),
        ({"colour": "red"}, "colour"),
        ({"pixel_mm": None}, "pixel_mm"),
    ],
)
def test_a_geometry_that_contradicts_itself_is_refused(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(Refused, match=message):
        sinogram.pack(npy(make_counts(PARALLEL)), json.dumps(make_geometry(PARALLEL, **changed)))


@pytest.mark.parametrize(
    ("fill", "message"),
    [
        (1j, "not real numbers"),
        (object(), "not real numbers"),
        (np.nan, "not finite"),
        (-1.0, "negative"),
        (0.0, "no ray of view 1 of slice 1 .* 40 views"),
    ],
    ids=["complex", "objects", "nan", "negative", "dark"],
)
def test_values_that_are_no_photons_are_refused(fill: Any, message: str) -> None:
    with pytest.raises(Refused, match=message):
        pack(values=np.full((40, 48), fill))


def test_views_that_detected_nothing_are_no_measured_angles() -> None:
    values = make_counts(PARALLEL, 2)
    values[1, 5:35] = 0
    with pytest.raises(Refused, match="view 6 of slice 2 detected a photon, as in 30 views"):
        pack(values=values)


def test_seven_views_are_too_few() -> None:
    with pytest.raises(Refused, match="7 views; at least 8"):
        pack(beam=replace(PARALLEL, views=7))


def test_a_matrix_of_rays_beyond_the_memory_is_refused() -> None:
    wide = replace(PARALLEL, shape=(1024, 1024), pixel_mm=0.2, bins=61_036, bin_mm=0.01)
    with pytest.raises(Refused, match="has 8 GB, above 8: state fewer pixels"):
        pack(beam=replace(wide, views=8), values=np.ones((8, wide.bins), np.uint8))


@pytest.mark.parametrize("shape", ["(-40,-48)", "(1920, )", "(1," + "1," * 69 + "40, 48)"])
def test_a_shape_that_is_no_array_of_views_is_refused(shape: str) -> None:
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    body = make_counts(PARALLEL).tobytes()
    with pytest.raises(Refused, match=r"the array has the shape .* is expected"):
        read_array(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + body)


def test_a_header_that_promises_more_than_there_is_is_refused() -> None:
    whole = npy(make_counts(PARALLEL))
    huge = whole.replace(b"(1, 40, 48)", b"(9, 9**9,8)")
    odd = whole.replace(b"'shape'", b"'s\\ape'").replace(b"(1, 40", b"~1, 40")  # unbalanced, which tokenize finds
    for damaged in (whole[:-8], whole + b"\0", b"no array", huge, odd):
        with pytest.raises(Refused, match="sinogram"):
            sinogram.pack(damaged, json.dumps(make_geometry(PARALLEL)))


def test_the_example_of_the_page_is_accepted() -> None:
    page = (Path(__file__).parents[1] / "docs/howto/send-projections.md").read_text()
    (example,) = re.findall(r'^    (\{"values".*?\})$', page, re.MULTILINE | re.DOTALL)
    sinogram.pack(npy(np.full((360, 367), 90_000, np.uint32)), example)


def test_another_file_than_a_packed_one_is_refused() -> None:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("projections.npy", npy(make_counts(PARALLEL)))
        archive.writestr("geometry.json", "{}")
    for content in (file.getvalue(), b"PK", b"", pack()[:-30]):
        with pytest.raises(Refused, match="sinogram"):
            sinogram.read(content)


def test_wrapping_again_makes_the_same_object_and_unwrapping_the_same_file(now: datetime) -> None:
    content = pack()
    one, two = (sinogram.wrap(content, now=now, facts={"PatientID": "7"}) for _ in range(2))
    assert one == two
    assert sinogram.is_sinogram(one)
    assert (one.Modality, one.PatientID) == ("CT", "7")
    assert sinogram.unwrap(one) == content
    assert sinogram.wrap(content, now=now, facts={"PatientID": "8"}).SOPInstanceUID != one.SOPInstanceUID


def test_an_altered_file_is_refused(now: datetime) -> None:
    ds = sinogram.wrap(pack(), now=now)
    element = ds.private_block(0x7FE1, "DICOMNODE SINOGRAM 1")[0x01]
    element.value = b"\0" + element.value[1:]
    with pytest.raises(Refused, match="the sinogram file differs from its SHA-256"):
        sinogram.unwrap(ds)


def test_the_commands_wrap_show_and_unwrap(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    array, geometry = write_files(tmp_path, FAN, 2)
    wrapped, back = tmp_path / "scan.dcm", tmp_path / "back.npz"
    stated = ["--geometry", str(geometry), "--set", "PatientID=7"]
    assert main(["sinogram", "wrap", str(array), str(wrapped), *stated]) == 0
    assert dcmread(wrapped).PatientID == "7"
    assert main(["sinogram", "unwrap", str(wrapped), str(back)]) == 0
    with np.load(back) as content:
        np.testing.assert_array_equal(content["projections"], np.load(array))
    capsys.readouterr()
    assert main(["sinogram", "show", str(wrapped)]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["slices"], facts["views"], facts["beam"], facts["missing_deg"]) == (2, 72, "fan", 0)


def test_the_command_refuses_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    array, geometry = write_files(tmp_path, PARALLEL, bins=47)
    assert main(["sinogram", "wrap", str(array), str(tmp_path / "x.dcm"), "--geometry", str(geometry)]) == 1
    assert "47 bins" in capsys.readouterr().err
    assert not (tmp_path / "x.dcm").exists()
