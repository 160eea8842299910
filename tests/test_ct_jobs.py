"""Jobs of CT reconstruction: projections in, marked results out; what is said without the bundle, and local runs."""

from __future__ import annotations

import tomllib
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813 - its usual name
import torch
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import MultiFrameGrayscaleWordSecondaryCaptureImageStorage, RawDataStorage

from dicomnode.cli import main
from dicomnode.config import Config
from dicomnode.errors import InputRefused, NotFound
from dicomnode.execution import processing
from dicomnode.execution.inputs import load_inputs
from dicomnode.local_runs.candidates import find_candidates
from dicomnode.local_runs.choosing import choose
from dicomnode.results import marking
from dicomnode.routing.routing import MAIN_INPUT
from pipelines import ct_reconstruction, mri_reconstruction
from tests.ct_bundle import write_ct_bundle
from tests.findings import NOW
from tests.installed import pin_installed
from tests.job_results import run_job
from tests.peers import Node, StoreScp, make_route, wait_for, write_config
from tests.peers.kspaces import raw_data
from tests.sinograms import PARALLEL, make_geometry, write_ct_pd, write_raw_data

torch.set_num_threads(1)

QUICK = {"steps": 2, "mean_steps": 2, "samples": 2}


def run(folder: Path, paths: list[Path]) -> processing.TaskResult:
    config = Config.model_validate({"node": {"data_dir": str(folder)}, "worker": {"device": "cpu"}})
    task = processing.Task("key", "ct_reconstruction", "", QUICK, {"match": paths}, 1, NOW)
    return processing.run_task(pin_installed(task, config), config, progress=lambda done, step: None)


def check_geometry(ds: Dataset, path: Path) -> None:
    """Compare with the stated geometry what SimpleITK reads."""
    ds.save_as(path, enforce_file_format=True)
    image = sitk.ReadImage(str(path))
    stated = make_geometry(PARALLEL)
    rows, columns = stated["pixels"]
    middle = image.TransformContinuousIndexToPhysicalPoint([(columns - 1) / 2, (rows - 1) / 2, 0.0])
    np.testing.assert_allclose(middle, stated["centre_mm"], atol=1e-3)
    np.testing.assert_allclose(image.GetSpacing(), [stated["pixel_mm"]] * 2 + [stated["slice_mm"]], atol=1e-3)
    direction = np.array(image.GetDirection()).reshape(3, 3)
    np.testing.assert_allclose(direction[:, :2].T.ravel(), stated["orientation"], atol=1e-6)


def test_projections_become_marked_results_with_their_geometry(tmp_path: Path) -> None:
    done = run_job("ct_reconstruction", tmp_path)
    (source,) = map(dcmread, done.sent)
    for ds in done.produced.objects:
        marking.check_marks(ds)
        assert (ds.PatientID, ds.StudyInstanceUID) == (source.PatientID, source.StudyInstanceUID)
    image = done.produced.objects[0]
    assert image.SourceInstanceSequence[0].ReferencedSOPInstanceUID == source.SOPInstanceUID
    check_geometry(image, tmp_path / "clean.dcm")


def test_views_in_ct_pd_become_results_that_are_held(tmp_path: Path) -> None:
    write_ct_bundle(tmp_path / "models")
    paths = write_ct_pd(tmp_path / "views")
    produced = run(tmp_path, paths)
    assert "left and right" in produced.held_because
    for ds in produced.objects:
        marking.check_marks(ds)
    assert len(produced.objects[0].SourceImageSequence) == len(paths)


def test_without_the_bundle_the_node_says_how_to_make_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scan = write_raw_data(tmp_path / "scan.dcm", PARALLEL)
    assert main(["run", "ct_reconstruction", str(scan), str(tmp_path / "out")]) == 1
    said = capsys.readouterr().err
    assert "no bundle ct_prior" in said
    assert "'dicomnode train ct-prior' makes one" in said


def test_a_local_run_takes_scans_of_ct_and_no_k_space(tmp_path: Path) -> None:
    raw_data(tmp_path / "mr.dcm", NOW)
    inputs = ct_reconstruction.PIPELINE.inputs
    with pytest.raises(NotFound, match="no Raw Data object of CT"):
        choose(inputs, find_candidates(tmp_path, {}), {})
    write_raw_data(tmp_path / "scan.dcm", PARALLEL)
    write_ct_pd(tmp_path / "views")
    found = choose(inputs, find_candidates(tmp_path, {}), {})
    assert sorted(len(each.inputs["projections"].paths) for each in found) == [1, 72]


def test_k_space_is_not_looked_for_in_projections(tmp_path: Path) -> None:
    scan = write_raw_data(tmp_path / "scan.dcm", PARALLEL)
    with pytest.raises(NotFound, match="no Raw Data object and no MRD file"):
        choose(mri_reconstruction.PIPELINE.inputs, find_candidates(tmp_path, {}), {})
    with pytest.raises(InputRefused, match="holds projections of CT, not k-space"):
        load_inputs(mri_reconstruction.PIPELINE, {MAIN_INPUT: [scan]})


def test_the_shipped_route_of_k_space_takes_no_projections() -> None:
    routes = tomllib.loads((Path(__file__).parents[1] / "node.toml").read_text())["routes"]
    (match,) = (each["match"] for each in routes if each["pipeline"] == "mri_reconstruction")
    assert match == {"SOPClassUID": RawDataStorage, "Modality": "MR"}


@pytest.mark.slow
def test_a_scan_sent_to_the_node_comes_back_as_an_image(tmp_path: Path) -> None:
    match = {"SOPClassUID": RawDataStorage, "Modality": "CT"}
    write_ct_bundle(tmp_path / "node" / "data" / "models")
    with StoreScp(tmp_path / "storescp") as pacs:
        route = make_route(pacs.peer.name, **QUICK) | {"pipeline": "ct_reconstruction", "match": match}
        config_path = write_config(tmp_path / "node", peers=[pacs.peer], routes=[route])
        with Node(config_path) as node:
            node.command("send", str(write_raw_data(tmp_path / "scan.dcm", PARALLEL, 2)), "--to", _address(node))
            wait_for(lambda: len(pacs.files()) >= 5, "storescp has the results", within_s=90)
            node.wait_until_delivered()
    clean, *_ = (
        ds
        for ds in pacs.datasets()
        if ds.SOPClassUID == MultiFrameGrayscaleWordSecondaryCaptureImageStorage and ds.BurnedInAnnotation == "NO"
    )
    assert clean.PatientID == "CT1"
    check_geometry(clean, tmp_path / "clean.dcm")


def _address(node: Node) -> str:
    return f"127.0.0.1:{node.peer.port}:{node.peer.ae_title}"
