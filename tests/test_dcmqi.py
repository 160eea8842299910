"""dcmqi, whose readers are DCMTK's and not highdicom's, reads the node's results in the right place and value."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813 - its usual name
from numpy.typing import NDArray

from dicomnode.config.results import ResultsConfig
from tests.findings import CONFIG, PhantomFindings, grid, make_findings, save, write_objects
from tests.scanner import ORIENTATIONS
from tests.test_results_agreement import write_lesion_objects

IS_SR, IS_SEG = "88.34", "66.4"


def _run(program: str, *arguments: str) -> str:
    """Run a program of the package ``dcmqi``, from the folder of this Python or from the path; return its output."""
    in_environment = Path(sys.executable).parent / program
    path = str(in_environment) if in_environment.exists() else shutil.which(program)
    if path is None:
        pytest.skip(f"{program} is not installed (package dcmqi)")
    done = subprocess.run([path, *arguments], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def _object(phantom: PhantomFindings, kind: str, folder: Path, config: ResultsConfig = CONFIG) -> Path:
    ds = next(ds for ds in write_objects(phantom, config) if ds.SOPClassUID.endswith(kind))
    return save(ds, folder)


def _at(image: sitk.Image, phantom: PhantomFindings, index: tuple[int, int, int]) -> Any:
    """Return the value of an image where the grid's voxel (k, j, i) lies in the patient."""
    k, j, i = index
    place = (phantom.grid.affine_mm @ [i, j, k, 1])[:3]
    found_at = image.TransformPhysicalPointToContinuousIndex(place.tolist())
    nearest = [round(n) for n in found_at]
    assert np.allclose(found_at, nearest, atol=0.01), "a voxel's centre lies on a voxel's centre"
    return image[nearest]


def _voxels(mask: NDArray[Any], count: int = 40) -> list[tuple[int, int, int]]:
    listed = np.argwhere(mask)
    return [tuple(int(n) for n in each) for each in listed[:: max(1, len(listed) // count)]]  # type: ignore[misc]


@pytest.mark.slow
@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_a_segmentation_is_read_where_it_lies(orientation: str, tmp_path: Path) -> None:
    phantom = make_findings(grid(orientation))
    path = _object(phantom, IS_SEG, tmp_path)
    _run("segimage2itkimage", "--inputDICOM", str(path), "--outputDirectory", str(tmp_path), "-t", "nifti")
    image = sitk.ReadImage(str(tmp_path / "1.nii.gz"))
    for voxel in _voxels(phantom.labels == 1):
        assert _at(image, phantom, voxel) == 1
    assert int(sitk.GetArrayFromImage(image).sum()) == int(phantom.labels.sum())
    segment = json.loads((tmp_path / "meta.json").read_text())["segmentAttributes"][0][0]
    assert segment["SegmentLabel"] == "Low confidence"


def test_a_lesion_of_a_report_is_read_with_its_finding_site_and_segment(tmp_path: Path) -> None:
    mask, report = write_lesion_objects("binary")
    _run("tid1500reader", "--inputDICOM", str(save(report, tmp_path)), "--outputMetadata", str(tmp_path / "sr.json"))
    groups = json.loads((tmp_path / "sr.json").read_text())["Measurements"]
    by_tracking_id = {group["TrackingIdentifier"]: group for group in groups}
    for item in mask.SegmentSequence:
        group = by_tracking_id[item.TrackingID]
        assert group["TrackingUniqueIdentifier"] == item.TrackingUID
        assert group["Finding"]["CodeMeaning"] == "Lesion of Brain"
        assert group["FindingSite"]["CodeMeaning"] == "Cerebral White Matter"
        assert group["Laterality"]["CodeMeaning"] == {1: "Left", 2: "Right"}[item.SegmentNumber]
        assert group["segmentationSOPInstanceUID"] == mask.SOPInstanceUID
        assert group["ReferencedSegment"] == item.SegmentNumber
        (volume,) = group["measurementItems"]
        assert (volume["quantity"]["CodeValue"], volume["units"]["CodeValue"]) == ("118565006", "mm3")


def test_a_report_s_numbers_are_read(tmp_path: Path) -> None:
    path = _object(make_findings(grid("axial")), IS_SR, tmp_path, ResultsConfig(report=True))
    _run("tid1500reader", "--inputDICOM", str(path), "--outputMetadata", str(tmp_path / "sr.json"))
    groups = json.loads((tmp_path / "sr.json").read_text())["Measurements"]
    values = {item["quantity"]["CodeMeaning"]: float(item["value"]) for g in groups for item in g["measurementItems"]}
    assert values["noise level"] == pytest.approx(0.0125)
    assert values["chi-square"] == pytest.approx(1.02)
