"""Two examinations of one patient: the later is sent by DCMTK, the earlier fetched from the archive.

New lesions go back as results of the later one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import Comprehensive3DSRStorage, SegmentationStorage
from sqlalchemy import select

from db.models import Event
from dicomnode import uids
from dicomnode.results import marking
from pipelines.contract import Grid
from tests.bundles import phantom, phantom_grid, write_anatomy_bundle
from tests.dciodvfy import find_errors_of_file
from tests.dir_phantom import flair_of, lesion_mask, write_dir_bundle, write_flair, write_t1w
from tests.installed import deploy_installed
from tests.peers import Node, Orthanc, wait_for, write_config
from tests.sending import run_dcmtk

pytestmark = pytest.mark.slow

_FLAIR = {"Modality": "MR", "ImageType": "ORIGINAL", "SeriesDescription": "~(?i)flair"}
_T1W = {"Modality": "MR", "ImageType": "ORIGINAL", "SeriesDescription": "~(?i)mprage"}


@dataclass(frozen=True)
class Delivered:
    """The instances that the archive held before, those that were sent, and the results that the archive received."""

    before: list[Path]
    present: list[Path]
    results: list[Path]
    node: Node

    def of(self, kind: str) -> list[Dataset]:
        return [ds for ds in map(dcmread, self.results) if ds.SOPClassUID == kind]


@pytest.fixture(scope="module")
def delivered(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Delivered]:
    folder = tmp_path_factory.mktemp("priors")
    present = _write_examination(folder / "present", "present", "20260101", lesion_mask())
    before = _write_examination(folder / "before", "before", "20250101", lesion_mask("large", "third"))
    write_anatomy_bundle(folder / "node" / "data" / "models")
    write_dir_bundle(folder / "node" / "data" / "models")
    with (
        Orthanc(folder / "orthanc") as orthanc,
        Node(deploy_installed(_write_config(folder / "node", orthanc))) as node,
    ):
        held = {orthanc.upload(path) for path in before}
        orthanc.register_peer(node.peer)
        sent = run_dcmtk("storescu", node.config, node.port, "-R", "+sd", "+r", str(folder / "present"))
        assert sent.returncode == 0, sent.stderr
        job = node.wait_for_job("done", "dead", "refused", "held")
        assert job.state == "done", job.reason
        wait_for(lambda: set(orthanc.instances()) - held, "Orthanc has results", within_s=120)
        node.wait_until_delivered()
        results = []
        for n, instance in enumerate(sorted(set(orthanc.instances()) - held)):
            results.append(folder / f"result-{n}.dcm")
            results[-1].write_bytes(orthanc.file(instance))
        yield Delivered(before, present, results, node)


def test_the_new_lesion_is_in_a_segmentation_of_the_present_study(delivered: Delivered) -> None:
    (new,) = [ds for ds in delivered.of(SegmentationStorage) if ds.SegmentSequence[0].SegmentLabel == "New lesions"]
    frames = np.unpackbits(np.frombuffer(new.PixelData, np.uint8), bitorder="little")
    assert frames.sum() == lesion_mask("small").sum()
    present = dcmread(delivered.present[0], stop_before_pixels=True)
    assert new.FrameOfReferenceUID == present.FrameOfReferenceUID


def test_every_result_is_of_the_present_study_and_names_both(delivered: Delivered) -> None:
    present, before = (_list_uids(paths) for paths in (delivered.present, delivered.before))
    study = dcmread(delivered.present[0], stop_before_pixels=True)
    for ds in map(dcmread, delivered.results):
        marking.check_marks(ds)
        assert (ds.StudyInstanceUID, ds.StudyDate, ds.PatientID) == (
            study.StudyInstanceUID,
            "20260101",
            study.PatientID,
        )
        if ds.SOPClassUID == Comprehensive3DSRStorage:
            assert _list_evidence(ds.PertinentOtherEvidenceSequence, "ReferencedSOPSequence") == before
        else:
            assert {item.ReferencedSOPInstanceUID for item in ds.SourceImageSequence} >= present | before
            others = ds.StudiesContainingOtherReferencedInstancesSequence
            assert _list_evidence(others, "ReferencedInstanceSequence") == before


def test_the_earlier_examination_gives_no_results_of_its_own(delivered: Delivered) -> None:
    assert len(delivered.node.jobs()) == 1
    listed = json.loads(delivered.node.command("studies", "list", "--json").stdout)
    assert {row["study_uid"]: row["state"] for row in listed} == dict.fromkeys(
        [uids.derive("study", "present"), uids.derive("study", "before")], "routed"
    )


def test_explain_and_the_audit_say_which_prior_was_taken(delivered: Delivered) -> None:
    answer = delivered.node.command("studies", "explain", uids.derive("study", "present"), "--json")
    (row,) = json.loads(answer.stdout)
    assert row["why"].endswith(f"prior: study {uids.derive('study', 'before')} for prior_flair, prior_t1w")
    with delivered.node.sessions() as session:
        reasons = [event.detail["reason"] for event in session.scalars(select(Event).where(Event.event == "moved"))]
    assert "flair-to-dir (job 1; prior: study 2 for prior_flair, prior_t1w)" in reasons


def test_no_patient_data_is_in_the_log(delivered: Delivered) -> None:
    source = dcmread(delivered.present[0], stop_before_pixels=True)
    assert str(source.PatientName).split("^")[0] not in delivered.node.log
    assert str(source.PatientID) not in delivered.node.log


def test_dciodvfy_finds_no_error(delivered: Delivered) -> None:
    for path in delivered.results:
        assert find_errors_of_file(path) == [], dcmread(path).SOPClassUID.name


def _write_examination(folder: Path, name: str, date: str, lesions: np.ndarray) -> list[Path]:
    """Write FLAIR and T1w in a study and frame of reference of their own; in the earlier, the head lies elsewhere."""
    grid = phantom_grid()
    if name == "before":
        grid.affine_mm[:3, 3] += (9, 4, -6)
    flair = write_flair(folder / "flair", flair_of(phantom()[1], lesions), key=f"flair {name}")
    t1w = write_t1w(folder / "t1w", key=f"t1w {name}", grid=grid)
    for path in flair:
        _move_to_grid(path, grid)
    for path in (*flair, *t1w):
        ds = dcmread(path)
        ds.StudyInstanceUID, ds.FrameOfReferenceUID = uids.derive("study", name), uids.derive("frame", name)
        ds.StudyDate = date
        ds.save_as(path)
    return [*flair, *t1w]


def _move_to_grid(path: Path, grid: Grid) -> None:
    """Move the slice to its place on the grid."""
    ds = dcmread(path)
    off = grid.affine_mm[:3, 3] - phantom_grid().affine_mm[:3, 3]
    ds.ImagePositionPatient = [f"{value:.6f}" for value in np.array(ds.ImagePositionPatient, float) + off]
    ds.save_as(path)


def _list_uids(paths: list[Path]) -> set[str]:
    return {str(dcmread(path, stop_before_pixels=True).SOPInstanceUID) for path in paths}


def _list_evidence(studies: list[Dataset], instances: str) -> set[str]:
    series = [each for study in studies for each in study.ReferencedSeriesSequence]
    return {str(item.ReferencedSOPInstanceUID) for each in series for item in each[instances].value}


def _write_config(folder: Path, orthanc: Orthanc) -> Path:
    route = {
        "name": "flair-to-dir",
        "pipeline": "synthetic_dir",
        "match": _FLAIR,
        "with": {"t1w": _T1W},
        "prior": {"prior_flair": _FLAIR, "prior_t1w": _T1W},
        "prior_from": "orthanc",
        "destinations": ["orthanc"],
        "options": {"passes": 2},
    }
    return write_config(folder, peers=[orthanc.peer], routes=[route])
