"""The complete path of a study: k-space in by C-STORE from every kind of sender, marked results in two archives."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813 - its usual name
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import (
    Comprehensive3DSRStorage,
    MultiFrameGrayscaleWordSecondaryCaptureImageStorage,
    ParametricMapStorage,
    SegmentationStorage,
)

from dicomnode.cli import main
from dicomnode.config import Peer
from dicomnode.results import marking
from tests.dciodvfy import find_errors
from tests.peers import Node, Orthanc, StoreScp, make_route, wait_for, write_config
from tests.peers.kspaces import PLANES, Acquisition, acquisitions, raw_data
from tests.peers.process import require_program

pytestmark = pytest.mark.slow

OBJECTS = 5  # clean image, labelled image, standard deviation, low-confidence region, report
FAST = {"steps": 3, "mean_steps": 3, "samples": 2}


DCMTK = {**os.environ, "TCP_NODELAY": "1"}


@dataclass(frozen=True)
class Delivered:
    """Contents of the two archives after every sender has sent one acquisition."""

    sent: dict[str, Acquisition]
    results: dict[str, list[Dataset]]
    in_storescp: list[Dataset]
    node: Node
    folder: Path

    def image(self, plane: str, *, labelled: bool = False) -> Dataset:
        (found,) = [
            ds
            for ds in self.results[plane]
            if ds.SOPClassUID == MultiFrameGrayscaleWordSecondaryCaptureImageStorage
            and (ds.BurnedInAnnotation == "YES") == labelled
        ]
        return found


@pytest.fixture(scope="module")
def delivered(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Delivered]:
    folder = tmp_path_factory.mktemp("path")
    sent = acquisitions(folder / "kspace")
    with (
        Orthanc(folder / "orthanc") as orthanc,
        Orthanc(folder / "scanner", ae_title="SCANNER") as scanner,
        StoreScp(folder / "storescp") as storescp,
        Node(_write_delivering_config(folder / "node", orthanc.peer, storescp.peer)) as node,
    ):
        _storescu(node, sent["axial"].path)
        _dcmsend(node, sent["sagittal"].path)
        scanner.send(node.peer, [scanner.upload(sent["coronal"].path)])
        _own_send(node, sent["oblique"].path)
        count = OBJECTS * len(sent)
        wait_for(lambda: len(orthanc.instances()) >= count, "Orthanc has the results", within_s=180)
        wait_for(lambda: len(storescp.files()) >= count, "storescp has the results", within_s=60)
        node.wait_until_delivered()
        studies = {plane: dcmread(each.path).StudyInstanceUID for plane, each in sent.items()}
        held = orthanc.datasets()
        results = {plane: [ds for ds in held if ds.StudyInstanceUID == uid] for plane, uid in studies.items()}
        yield Delivered(sent, results, storescp.datasets(), node, folder)


def test_every_sender_gets_one_set_of_results_in_each_archive(delivered: Delivered) -> None:
    for plane in PLANES:
        kinds = sorted(ds.SOPClassUID for ds in delivered.results[plane])
        image = MultiFrameGrayscaleWordSecondaryCaptureImageStorage
        assert kinds == sorted([image, image, ParametricMapStorage, SegmentationStorage, Comprehensive3DSRStorage])
    in_orthanc = {ds.SOPInstanceUID for held in delivered.results.values() for ds in held}
    assert {ds.SOPInstanceUID for ds in delivered.in_storescp} == in_orthanc
    assert {row.state for row in delivered.node.deliveries()} == {"delivered"}


def test_echoscu_is_answered(delivered: Delivered) -> None:
    program = require_program("/usr/bin/echoscu", "dcmtk")
    command = [program, "-aec", delivered.node.peer.ae_title, "127.0.0.1", str(delivered.node.peer.port)]
    assert subprocess.run(command, env=DCMTK, timeout=30, check=False).returncode == 0


def test_results_carry_every_mark_and_the_patient_of_the_source(delivered: Delivered) -> None:
    for plane, acquisition in delivered.sent.items():
        source = dcmread(acquisition.path)
        series = [ds.SeriesInstanceUID for ds in delivered.results[plane]]
        assert len(set(series)) == OBJECTS
        for ds in delivered.results[plane]:
            marking.check_marks(ds)
            assert ds.PatientName == acquisition.patient_name
            assert (ds.PatientID, ds.StudyInstanceUID) == (source.PatientID, source.StudyInstanceUID)
            assert source.SOPInstanceUID in _find_sources(ds)
        images = [ds for ds in delivered.results[plane] if ds.SOPClassUID != Comprehensive3DSRStorage]
        assert len({ds.FrameOfReferenceUID for ds in images}) == 1


def _find_sources(ds: Dataset) -> set[str]:
    """Return the UIDs of the instances that the result names as its sources."""
    references = [*ds.get("SourceInstanceSequence", []), *ds.get("SourceImageSequence", [])]
    for study in ds.get("CurrentRequestedProcedureEvidenceSequence", []):
        references += [item for series in study.ReferencedSeriesSequence for item in series.ReferencedSOPSequence]
    return {item.ReferencedSOPInstanceUID for item in references}


@pytest.mark.parametrize("plane", PLANES)
def test_simpleitk_reads_the_image_where_the_scanner_measured_it(delivered: Delivered, plane: str) -> None:
    acquisition = delivered.sent[plane]
    path = delivered.folder / f"{plane}-clean.dcm"
    delivered.image(plane).save_as(path, enforce_file_format=True)
    image = sitk.ReadImage(str(path))
    slices, rows, columns = acquisition.grid.shape
    assert image.GetSize() == (columns, rows, slices)
    read = np.empty(acquisition.grid.shape)
    values = sitk.GetArrayFromImage(image)
    for k, j, i in np.ndindex(acquisition.grid.shape):
        where_mm = acquisition.grid.affine_mm @ [i, j, k, 1]
        index = np.array(image.TransformPhysicalPointToContinuousIndex(where_mm[:3].tolist()))
        nearest = np.rint(index).astype(int)
        assert np.abs(index - nearest).max() * min(acquisition.grid.spacing_mm) < 1e-3
        read[k, j, i] = values[tuple(nearest[::-1])]
    for k in range(slices):
        correlations = [
            np.corrcoef(read[k].ravel(), acquisition.magnitude[other].ravel())[0, 1] for other in range(slices)
        ]
        assert max(correlations) == correlations[k] > 0.9, "each slice shows what was measured there"


@pytest.mark.parametrize("plane", PLANES)
def test_dciodvfy_finds_no_error(delivered: Delivered, plane: str) -> None:
    for number, ds in enumerate(delivered.results[plane]):
        assert find_errors(ds, delivered.folder / f"{plane}-{number}.dcm") == [], ds.SOPClassUID.name


def test_no_patient_data_is_in_the_log(delivered: Delivered) -> None:
    log = delivered.node.log
    for acquisition in delivered.sent.values():
        source = dcmread(acquisition.path)
        family = acquisition.patient_name.split("^")[0]
        assert family not in log
        assert f"{source.PatientID} " not in log


def test_the_same_data_again_makes_no_second_set(delivered: Delivered) -> None:
    before = len(delivered.node.jobs())
    _storescu(delivered.node, delivered.sent["axial"].path)
    assert len(delivered.node.jobs()) == before


def test_results_for_a_pacs_that_is_down_arrive_when_it_is_back_though_the_node_restarted(
    tmp_path: Path, now: datetime, orthanc: Orthanc
) -> None:
    path = raw_data(tmp_path / "raw.dcm", now)
    orthanc.kill()
    with Node(_write_delivering_config(tmp_path / "node", orthanc.peer)) as node:
        _own_send(node, path)
        assert node.wait_for_job("done", "dead").state == "done"
        wait_for(lambda: any(row.attempts > 0 for row in node.deliveries()), "a delivery was tried")
        assert node.stop() == 0
        node.start()
        wait_for(lambda: max(row.attempts for row in node.deliveries()) > 2, "it is tried again and again")
        node.kill()
        orthanc.start()
        node.start()
        node.wait_until_delivered()
        assert len(orthanc.instances()) == OBJECTS


def _write_delivering_config(folder: Path, *peers: Peer) -> Path:
    """Write the node.toml of a node that sends every result to all of the peers."""
    return write_config(folder, peers=list(peers), routes=[make_route(*(peer.name for peer in peers), **FAST)])


def _storescu(node: Node, path: Path) -> None:
    program = require_program("/usr/bin/storescu", "dcmtk")
    command = [program, "-R", "-aec", node.peer.ae_title, "127.0.0.1", str(node.peer.port), str(path)]
    subprocess.run(command, env=DCMTK, timeout=60, check=True)


def _dcmsend(node: Node, path: Path) -> None:
    program = require_program("/usr/bin/dcmsend", "dcmtk")
    report = path.with_suffix(".report")
    command = [program, "-aec", node.peer.ae_title, "+crf", str(report), "127.0.0.1", str(node.peer.port), str(path)]
    subprocess.run(command, env=DCMTK, timeout=60, check=True)
    assert "with status SUCCESS  : 1" in report.read_text()  # dcmsend's exit status does not cover the instances


def _own_send(node: Node, path: Path) -> None:
    assert main(["send", str(path), "--to", f"127.0.0.1:{node.peer.port}:{node.peer.ae_title}"]) == 0
