"""The path of a PET series: in by C-STORE, routed to standard_dose_pet, image, map and segmentation in the archive."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import highdicom as hd
import nibabel
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813 - its usual name
from numpy.typing import NDArray
from pydicom import dcmread
from pydicom.uid import MultiFrameGrayscaleWordSecondaryCaptureImageStorage, ParametricMapStorage, SegmentationStorage

from dicomnode.reading import volumes
from dicomnode.results import marking
from dicomnode.results.provenance import read_record
from model_zoo.data_kit import data_root
from pipelines.contract import Grid, Volume
from tests.installed import deploy_installed
from tests.peers import Node, Orthanc, wait_for, write_config
from tests.peers.process import require_program
from tests.pet_series import FACTOR, write_pet, write_pet_bundle
from tests.series import unpack_series

pytestmark = pytest.mark.slow

WHOLE_BODY_FACTOR = 2.42903e-4
"""SUVbw per Bq/ml of the kit's whole-body series, as its README gives it."""
SLICES = slice(30, 70)
OBJECTS = 4


@dataclass(frozen=True)
class Delivered:
    """A series that was sent, its SUV factor, and the results that reached the archive."""

    sent: list[Path]
    volume: Volume
    suv_factor: float
    results: dict[str, list[Path]]
    node: Node

    def one(self, kind: str) -> Path:
        return self.results[kind][0]


@pytest.fixture(scope="module", params=["FDG template", "real whole body"])
def delivered(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Delivered]:
    folder = tmp_path_factory.mktemp("pet")
    template = request.param == "FDG template"
    sent = _write_template(folder / "in") if template else _unpack_whole_body(folder / "in")
    write_pet_bundle(folder / "node" / "data" / "models")
    with (
        Orthanc(folder / "orthanc") as orthanc,
        Node(deploy_installed(_write_config(folder / "node", orthanc))) as node,
    ):
        _send(node, sent)
        job = node.wait_for_job("done", "dead")
        assert job.state == "done", job.reason
        wait_for(lambda: len(orthanc.instances()) >= OBJECTS, "Orthanc has the results", within_s=120)
        node.wait_until_delivered()
        results: dict[str, list[Path]] = {}
        for number, instance in enumerate(orthanc.instances()):
            path = folder / f"result-{number}.dcm"
            path.write_bytes(orthanc.file(instance))
            results.setdefault(dcmread(path, stop_before_pixels=True).SOPClassUID, []).append(path)
        yield Delivered(sent, volumes.read(sent).volume, FACTOR if template else WHOLE_BODY_FACTOR, results, node)


def test_the_archive_gets_marked_results_in_the_study_that_record_the_suv(delivered: Delivered) -> None:
    source = dcmread(delivered.sent[0], stop_before_pixels=True)
    for kind in (MultiFrameGrayscaleWordSecondaryCaptureImageStorage, ParametricMapStorage, SegmentationStorage):
        ds = dcmread(delivered.one(kind))
        marking.check_marks(ds)
        assert (ds.StudyInstanceUID, ds.PatientID) == (source.StudyInstanceUID, source.PatientID)
        assert ds.FrameOfReferenceUID == source.FrameOfReferenceUID
        references = {item.ReferencedSOPInstanceUID for item in ds.SourceImageSequence}
        assert {dcmread(path, stop_before_pixels=True).SOPInstanceUID for path in delivered.sent} <= references
        record = read_record(ds)
        measurements = {each["name"]: each["value"] for each in record["measurements"]}
        assert measurements["SUVbw factor"] == pytest.approx(delivered.suv_factor, rel=1e-5)
        assert measurements["total activity ratio"] == pytest.approx(1, abs=0.01)


def _find_clean_image(delivered: Delivered) -> Path:
    """Return the one of the two image series that has no label in its pixels."""
    found = delivered.results[MultiFrameGrayscaleWordSecondaryCaptureImageStorage]
    (path,) = [p for p in found if dcmread(p, stop_before_pixels=True).BurnedInAnnotation == "NO"]
    return path


def test_the_image_has_the_sources_geometry_unit_and_activity(delivered: Delivered) -> None:
    path = _find_clean_image(delivered)
    assert dcmread(path, stop_before_pixels=True).RescaleType == "Bq/ml"
    image = sitk.ReadImage(str(path))
    volume = delivered.volume
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    assert np.abs(affine - volume.grid.affine_mm).max() < 1e-3
    array = sitk.GetArrayFromImage(image).astype(np.float64)
    assert array.shape == volume.data.shape
    assert array.sum() / volume.data.sum() == pytest.approx(1, abs=0.02)
    body = volume.data > 0.3 * volume.data.max()
    assert np.corrcoef(array[body], volume.data[body])[0, 1] > 0.75
    assert array[body].mean() / volume.data[body].mean() == pytest.approx(1, abs=0.2)  # the network blurs


def test_the_map_and_the_segmentation_lie_on_the_source(delivered: Delivered) -> None:
    grid = delivered.volume.grid
    pm = hd.imread(str(delivered.one(ParametricMapStorage)))
    mapping = pm.SharedFunctionalGroupsSequence[0].RealWorldValueMappingSequence[0]
    assert mapping.MeasurementUnitsCodeSequence[0].CodeValue == "Bq/ml"
    sd = pm.get_volume()
    assert (
        np.abs(
            _compute_corners_mm(sd.affine, sd.array.shape)
            - _compute_corners_mm(grid.affine_mm[:, [2, 1, 0, 3]], grid.shape)
        ).max()
        < 1e-3
    )
    assert sd.array.shape == grid.shape
    assert (
        0 < np.median(sd.array[delivered.volume.data > 0.3 * delivered.volume.data.max()]) < delivered.volume.data.max()
    )
    seg = hd.seg.segread(str(delivered.one(SegmentationStorage)))
    labels = seg.get_volume(combine_segments=True, allow_missing_positions=True)
    assert labels.array.shape[1:] == grid.shape[1:]
    first = np.linalg.solve(grid.affine_mm, labels.affine @ [0, 0, 0, 1])
    assert np.abs(first[:2]).max() < 1e-3


def _compute_corners_mm(affine: NDArray[np.float64], shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Return the sorted positions of the outermost voxels, in mm; ``affine`` takes (k, j, i, 1)."""
    corners = [affine @ [k, j, i, 1] for k in (0, shape[0] - 1) for j in (0, shape[1] - 1) for i in (0, shape[2] - 1)]
    return np.array(sorted(np.round(corners, 6).tolist()))


def test_no_patient_data_is_in_the_log(delivered: Delivered) -> None:
    source = dcmread(delivered.sent[0], stop_before_pixels=True)
    assert str(source.PatientName).split("^")[0] not in delivered.node.log


def _write_template(folder: Path) -> list[Path]:
    """Write the kit's mean FDG brain as a low-dose scan: Bq/ml, noise, rows from the front."""
    image = nibabel.load(_find_in_kit("fdg-brain-template-chinese/CN_PET_TEMPLATE.nii"))
    affine = np.diag([-1.0, -1, 1, 1]) @ np.asarray(image.affine, np.float64)
    data = np.asarray(image.dataobj, np.float32).transpose(2, 1, 0)[::2]
    data = data[:, ::-1]
    affine[:, 3] = affine @ [0, data.shape[1] - 1, 0, 1]
    affine[:, 1] *= -1
    affine[:, 2] *= 2
    noise = np.random.default_rng(1).normal(size=data.shape)
    low = np.maximum(2e4 * data * (1 + 0.15 * noise), 0).astype(np.float32)
    return write_pet(folder, Grid(data.shape, affine), low)


def _unpack_whole_body(folder: Path) -> list[Path]:
    paths = unpack_series(_find_in_kit("tcia-sts001-fdg-wholebody/raw_bqml.tar.xz"), folder)
    return sorted(paths, key=lambda path: float(dcmread(path, stop_before_pixels=True).ImagePositionPatient[2]))[SLICES]


def _find_in_kit(name: str) -> Path:
    try:
        return data_root() / "pet" / name
    except FileNotFoundError as error:
        pytest.skip(str(error))


def _write_config(folder: Path, orthanc: Orthanc) -> Path:
    route = {
        "name": "pet", "pipeline": "standard_dose_pet", "match": {"Modality": "PT"}, "destinations": ["orthanc"],
        "options": {"dose_fraction": 0.25, "check_dose": False},
    }  # fmt: skip
    return write_config(folder, peers=[orthanc.peer], routes=[route])


def _send(node: Node, paths: list[Path]) -> None:
    program = require_program("/usr/bin/storescu", "dcmtk")
    command = [program, "-R", "-aec", node.peer.ae_title, "127.0.0.1", str(node.peer.port), *map(str, paths)]
    subprocess.run(command, env={**os.environ, "TCP_NODELAY": "1"}, timeout=120, check=True)
