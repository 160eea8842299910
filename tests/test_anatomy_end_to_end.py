"""The path of a series of images: in by C-STORE, through the anatomy pipeline, its segmentation in the archive."""

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
from pydicom.uid import SegmentationStorage

from dicomnode.reading import volumes
from dicomnode.results import marking
from dicomnode.results.provenance import read_record
from model_zoo.data_kit import data_root
from pipelines.contract import Grid, Volume
from tests.bundles import SPACING_MM, phantom, write_anatomy_bundle
from tests.installed import deploy_installed
from tests.peers import Node, Orthanc, wait_for, write_config
from tests.peers.process import require_program
from tests.series import unpack_series, write_slices

pytestmark = pytest.mark.slow

EVERY = 6
"""Step between the slices of the real series that are sent: 4 mm apart, so that the small network is fast."""
STRUCTURES = ("cerebral white matter", "hippocampus")


@dataclass(frozen=True)
class Delivered:
    """Series that was sent, and the segmentation that the archive received with the report."""

    sent: list[Path]
    volume: Volume
    result: Path
    node: Node

    @property
    def ds(self) -> Dataset:
        return dcmread(self.result)


@pytest.fixture(scope="module", params=["phantom", "real T1w"])
def delivered(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Delivered]:
    folder = tmp_path_factory.mktemp("anatomy")
    sent = _write_phantom(folder / "in") if request.param == "phantom" else _unpack_real(folder / "in")
    write_anatomy_bundle(folder / "node" / "data" / "models")
    with (
        Orthanc(folder / "orthanc") as orthanc,
        Node(deploy_installed(_write_routing_config(folder / "node", orthanc))) as node,
    ):
        _storescu(node, sent)
        job = node.wait_for_job("done", "dead")
        assert job.state == "done", job.reason
        wait_for(orthanc.instances, "Orthanc has the result", within_s=120)
        node.wait_until_delivered()
        (instance,) = [each for each in orthanc.instances() if orthanc.dataset(each).Modality == "SEG"]
        path = folder / "result.dcm"
        path.write_bytes(orthanc.file(instance))
        yield Delivered(sent, volumes.read(sent).volume, path, node)


def test_the_archive_gets_one_marked_segmentation_in_the_study(delivered: Delivered) -> None:
    ds, source = delivered.ds, dcmread(delivered.sent[0], stop_before_pixels=True)
    marking.check_marks(ds)
    assert ds.SOPClassUID == SegmentationStorage
    assert (ds.StudyInstanceUID, ds.PatientID) == (source.StudyInstanceUID, source.PatientID)
    assert ds.FrameOfReferenceUID == source.FrameOfReferenceUID
    assert len(ds.SourceImageSequence) == len(delivered.sent)
    record = read_record(ds)
    assert (record["pipeline"], record["model"]["name"], record["acquisition"]["modality"]) == (
        "anatomy",
        "anatomy",
        "MR",
    )
    assert "brain volume" in {each["name"] for each in record["measurements"]}
    assert [segment.SegmentLabel for segment in ds.SegmentSequence] == ["Cerebral white matter", "Hippocampus"]


def test_highdicom_reads_it_where_the_source_is(delivered: Delivered) -> None:
    grid = delivered.volume.grid
    read = hd.seg.segread(str(delivered.result)).get_volume(combine_segments=True, allow_missing_positions=True)
    assert read.array.any()
    assert read.array.shape[1:] == grid.shape[1:]
    for frame in range(read.array.shape[0]):
        first = np.linalg.solve(grid.affine_mm, read.affine @ [frame, 0, 0, 1])
        last = np.linalg.solve(grid.affine_mm, read.affine @ [frame, grid.shape[1] - 1, grid.shape[2] - 1, 1])
        off = np.array([*first[:2], *(last[:2] - [grid.shape[2] - 1, grid.shape[1] - 1]), first[2] - round(first[2])])
        assert np.abs(off).max() * min(grid.spacing_mm) < 1e-3


def test_each_frame_names_the_slice_that_it_lies_on(delivered: Delivered) -> None:
    place = {
        ds.SOPInstanceUID: ds.ImagePositionPatient
        for ds in (dcmread(p, stop_before_pixels=True) for p in delivered.sent)
    }
    for frame in delivered.ds.PerFrameFunctionalGroupsSequence:
        (item,) = frame.DerivationImageSequence[0].SourceImageSequence
        at = frame.PlanePositionSequence[0].ImagePositionPatient
        assert np.allclose(
            np.array(at, float), np.array(place[item.ReferencedSOPInstanceUID], float), rtol=0, atol=1e-3
        )


def test_no_patient_data_is_in_the_log(delivered: Delivered) -> None:
    source = dcmread(delivered.sent[0], stop_before_pixels=True)
    assert str(source.PatientName).split("^")[0] not in delivered.node.log


def _write_phantom(folder: Path) -> list[Path]:
    image, _ = phantom()
    affine = np.diag([SPACING_MM, SPACING_MM, SPACING_MM, 1.0])
    return write_slices(folder, Grid(image.shape, affine), np.round(image * 2300).astype(np.uint16))


def _unpack_real(folder: Path) -> list[Path]:
    try:
        archive = data_root() / "mri" / "t1-dicom-studyforrest" / "dicoms.tar.xz"
    except FileNotFoundError as error:
        pytest.skip(str(error))
    return unpack_series(archive, folder)[::EVERY]


def _write_routing_config(folder: Path, orthanc: Orthanc) -> Path:
    match = {"Modality": "MR", "SOPClassUID": "1.2.840.10008.5.1.4.1.1.4"}
    options = {"structures": list(STRUCTURES)}
    route = {"name": "heads", "pipeline": "anatomy", "match": match, "destinations": ["orthanc"], "options": options}
    return write_config(folder, peers=[orthanc.peer], routes=[route])


def _storescu(node: Node, paths: list[Path]) -> None:
    program = require_program("/usr/bin/storescu", "dcmtk")
    command = [program, "-R", "-aec", node.peer.ae_title, "127.0.0.1", str(node.peer.port), *map(str, paths)]
    subprocess.run(command, env={**os.environ, "TCP_NODELAY": "1"}, timeout=120, check=True)
