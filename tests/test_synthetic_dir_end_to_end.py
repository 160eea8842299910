"""The path of FLAIR and T1w: in by C-STORE, routed together, DIR, its uncertainty and lesions in the archive."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import highdicom as hd
import numpy as np
import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import (
    MultiFrameGrayscaleWordSecondaryCaptureImageStorage,
    ParametricMapStorage,
    SegmentationStorage,
)

from dicomnode.reading import volumes
from dicomnode.results import marking
from tests.bundles import phantom, phantom_grid, write_anatomy_bundle
from tests.dir_phantom import flair_of, lesion_mask, write_dir_bundle, write_flair, write_t1w
from tests.installed import deploy_installed
from tests.peers import Node, Orthanc, wait_for, write_config
from tests.peers.process import require_program

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Delivered:
    """The instances that were sent, and the results of the study in the archive."""

    flair: list[Path]
    t1w: list[Path]
    results: list[Path]
    node: Node

    def of(self, kind: str) -> list[Dataset]:
        return [ds for ds in map(dcmread, self.results) if ds.SOPClassUID == kind]


@pytest.fixture(scope="module")
def delivered(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Delivered]:
    folder = tmp_path_factory.mktemp("synthetic-dir")
    flair = write_flair(folder / "flair", flair_of(phantom()[1], lesion_mask()))
    t1w = write_t1w(folder / "t1w")
    write_anatomy_bundle(folder / "node" / "data" / "models")
    write_dir_bundle(folder / "node" / "data" / "models")
    with (
        Orthanc(folder / "orthanc") as orthanc,
        Node(deploy_installed(_write_config(folder / "node", orthanc))) as node,
    ):
        _send(node, [*t1w, *flair])
        job = node.wait_for_job("done", "dead")
        assert job.state == "done", job.reason
        wait_for(orthanc.instances, "Orthanc has results", within_s=120)
        node.wait_until_delivered()
        results = []
        for n, instance in enumerate(orthanc.instances()):
            results.append(folder / f"result-{n}.dcm")
            results[-1].write_bytes(orthanc.file(instance))
        yield Delivered(flair, t1w, results, node)


def test_the_archive_gets_images_maps_and_lesions_in_the_study(delivered: Delivered) -> None:
    source = dcmread(delivered.flair[0], stop_before_pixels=True)
    for path in delivered.results:
        ds = dcmread(path)
        marking.check_marks(ds)
        assert (ds.StudyInstanceUID, ds.PatientID) == (source.StudyInstanceUID, source.PatientID)
    assert len(delivered.of(SegmentationStorage)) == 1
    assert len(delivered.of(ParametricMapStorage)) == 1
    assert delivered.of(MultiFrameGrayscaleWordSecondaryCaptureImageStorage)


def test_both_series_are_named_as_sources(delivered: Delivered) -> None:
    (segmentation,) = delivered.of(SegmentationStorage)
    names = {item.ReferencedSOPInstanceUID for item in segmentation.SourceImageSequence}
    sent = {dcmread(path, stop_before_pixels=True).SOPInstanceUID for path in (*delivered.flair, *delivered.t1w)}
    assert names >= sent


def test_the_lesions_open_where_they_are(delivered: Delivered, tmp_path: Path) -> None:
    (segmentation,) = delivered.of(SegmentationStorage)
    path = tmp_path / "seg.dcm"
    segmentation.save_as(path)
    read = hd.seg.segread(str(path)).get_volume(combine_segments=True, allow_missing_positions=True)
    i, j, k = np.argwhere(lesion_mask()).mean(axis=0)[::-1]
    expected = (phantom_grid().affine_mm @ [i, j, k, 1])[:3]
    middle = (read.affine @ [*np.argwhere(read.array > 0).mean(axis=0), 1])[:3]
    assert (read.array > 0).sum() == lesion_mask().sum()
    assert np.abs(middle - expected).max() < 1e-3


def test_the_image_lies_on_the_flair(delivered: Delivered) -> None:
    grid = volumes.read(delivered.flair).volume.grid
    ds = next(
        ds for ds in delivered.of(MultiFrameGrayscaleWordSecondaryCaptureImageStorage) if ds.Rows == grid.shape[1]
    )
    assert (int(ds.NumberOfFrames), ds.Rows, ds.Columns) == grid.shape
    first = ds.PerFrameFunctionalGroupsSequence[0].PlanePositionSequence[0].ImagePositionPatient
    assert np.allclose(np.array(first, float), grid.affine_mm[:3, 3], rtol=0, atol=1e-3)


def test_no_patient_data_is_in_the_log(delivered: Delivered) -> None:
    source = dcmread(delivered.flair[0], stop_before_pixels=True)
    assert str(source.PatientName).split("^")[0] not in delivered.node.log


def _write_config(folder: Path, orthanc: Orthanc) -> Path:
    route = {
        "name": "flair-to-dir",
        "pipeline": "synthetic_dir",
        "match": {"Modality": "MR", "SeriesDescription": "~(?i)flair"},
        "with": {"t1w": {"Modality": "MR", "SeriesDescription": "~(?i)(mprage|t1)"}},
        "destinations": ["orthanc"],
        "options": {"passes": 2},
    }
    return write_config(folder, peers=[orthanc.peer], routes=[route])


def _send(node: Node, paths: list[Path]) -> None:
    program = require_program("/usr/bin/storescu", "dcmtk")
    command = [program, "-R", "-aec", node.peer.ae_title, "127.0.0.1", str(node.peer.port), *map(str, paths)]
    subprocess.run(command, env={**os.environ, "TCP_NODELAY": "1"}, timeout=120, check=True)
