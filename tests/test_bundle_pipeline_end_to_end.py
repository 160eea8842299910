"""A bundle in the Model Zoo's layout as a route: CT in by C-STORE, its segmentation delivered to a peer."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import highdicom as hd
import numpy as np
import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import CTImageStorage, SegmentationStorage

from dicomnode import checks
from dicomnode.config import load
from dicomnode.execution import processing
from dicomnode.reading import volumes
from dicomnode.results import marking
from dicomnode.results.provenance import read_record
from model_zoo import installing
from model_zoo.installing import Policy
from pipelines.contract import Refused
from tests.monai_bundles import THRESHOLD_HU, write_doubling_bundle, write_spleen_bundle
from tests.peers import Node, StoreScp, write_config
from tests.peers.process import require_program
from tests.scanner import make_grid
from tests.series import write_slices
from tests.web_node import Web

pytestmark = pytest.mark.slow

NAME = "spleen_ct_segmentation"
GRID = make_grid("oblique", (14, 30, 26), (3.0, 2.1, 1.7), (-40, 25, 100))


@dataclass(frozen=True)
class Delivered:
    """Series that was sent, the node that processed it, and the files that the peer received."""

    sent: list[Path]
    node: Node
    received: list[Path]

    def only(self, modality: str) -> Path:
        (path,) = [path for path in self.received if dcmread(path).Modality == modality]
        return path


@pytest.fixture(scope="module")
def delivered(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Delivered]:
    folder = tmp_path_factory.mktemp("bundle")
    sent = write_ct(folder / "in")
    source = write_spleen_bundle(folder / "source" / NAME)
    with StoreScp(folder / "storescp") as peer:
        path = write_config(folder / "node", peers=[peer.peer], routes=[route("storescp")])
        node = Node(path)
        done = node.command("models", "install", str(source), "--yes")
        assert done.returncode == 0, done.stderr
        assert "weights converted from models/model.pt" in done.stdout
        with node:
            _storescu(node, sent)
            job = node.wait_for_job("done", "held", "dead")
            assert job.state == "done", job.reason
            node.wait_until_delivered()
            yield Delivered(sent, node, peer.files())


def test_the_peer_gets_a_marked_segmentation_and_a_report(delivered: Delivered) -> None:
    received = [dcmread(path) for path in delivered.received]
    source = dcmread(delivered.sent[0], stop_before_pixels=True)
    assert {ds.Modality for ds in received} == {"SEG", "SR"}
    for ds in received:
        marking.check_marks(ds)
        assert (ds.StudyInstanceUID, ds.PatientID) == (source.StudyInstanceUID, source.PatientID)
        record = read_record(ds)
        assert (record["pipeline"], record["model"]["name"]) == (f"bundle:{NAME}", NAME)
        assert len(record["model"]["sha256"]) == 64
    report = dcmread(delivered.only("SR"))
    sentences = " ".join(str(each.value) for each in report.iterall() if each.keyword == "TextValue")
    assert "Unknown. The bundle states none" in sentences
    assert "An example, not for diagnosis" in sentences


def test_the_segmentation_lies_on_the_very_voxels_that_are_bright(delivered: Delivered) -> None:
    ds = dcmread(delivered.only("SEG"))
    assert ds.SOPClassUID == SegmentationStorage
    (segment,) = ds.SegmentSequence
    (kind,) = segment.SegmentedPropertyTypeCodeSequence
    assert (segment.SegmentLabel, kind.CodeValue, kind.CodeMeaning) == ("Spleen", "78961009", "Spleen")
    assert hd.color.CIELabColor.from_dicom_value(segment.RecommendedDisplayCIELabValue).to_rgb() == (230, 159, 0)
    source = volumes.read(delivered.sent).volume
    read = hd.seg.segread(str(delivered.only("SEG"))).get_volume(combine_segments=True, allow_missing_positions=True)
    back = np.linalg.solve(source.grid.affine_mm, read.affine)
    found = np.zeros(source.grid.shape, bool)
    for k, j, i in np.argwhere(read.array):
        x, y, z = (back @ [k, j, i, 1])[:3]
        assert max(abs(each - round(each)) for each in (x, y, z)) < 1e-3
        found[round(z), round(y), round(x)] = True
    bright = source.data > THRESHOLD_HU
    dice = 2 * (found & bright).sum() / (found.sum() + bright.sum())
    assert dice > 0.9, "the rest is resampling to 1.5 x 1.5 x 2 mm and back"


def test_explain_list_and_the_pages_name_it(delivered: Delivered, tmp_path: Path) -> None:
    node = delivered.node
    uid = str(dcmread(delivered.sent[0], stop_before_pixels=True).StudyInstanceUID)
    explained = json.loads(node.command("studies", "explain", uid, "--json").stdout)
    assert (explained[0]["route"], explained[0]["pipeline"]) == ("spleen", f"bundle:{NAME}")
    listed = json.loads(node.command("models", "list", "--json").stdout)
    assert NAME in {row["name"] for row in listed}
    found = {each.what: each for each in checks.run(node.config)}
    assert found["route spleen"].detail.startswith(f"bundle:{NAME} with {NAME}@0.5.3")
    with Web(tmp_path) as web:
        _install(write_spleen_bundle(tmp_path / "source" / NAME), web.config.models_dir)
        assert f'<option value="bundle:{NAME}">' in web.get(f"/models/{NAME}@0.5.3", "text/html").text


def test_versions_of_a_bundle_are_deployed_for_its_pipeline(delivered: Delivered, tmp_path: Path) -> None:
    node, pipeline = delivered.node, f"bundle:{NAME}"
    newer = write_spleen_bundle(tmp_path / NAME, version="0.6.0")
    assert node.command("models", "install", str(newer), "--yes").returncode == 0
    for arguments in (
        ("deploy", f"{NAME}@0.5.3", "--pipeline", pipeline),
        ("deploy", f"{NAME}@0.6.0", "--pipeline", pipeline, "--share", "50"),
        ("rollback", pipeline),
    ):
        done = node.command("models", *arguments)
        assert done.returncode == 0, done.stderr
    answer = node.command("models", "deploy", f"{NAME}@0.6.0", "--pipeline", "anatomy")
    assert answer.returncode == 0, "a site's own name may be for any of our pipelines"
    answer = node.command("models", "deploy", "mri_prior@1.0.0", "--pipeline", pipeline)
    assert answer.returncode == 1
    assert "is the model of mri_reconstruction" in answer.stderr


def test_run_makes_the_same_from_a_folder(delivered: Delivered, tmp_path: Path) -> None:
    done = delivered.node.command("run", f"bundle:{NAME}", str(delivered.sent[0].parent), str(tmp_path), "--json")
    rows = json.loads(done.stdout)
    (mask,) = [dcmread(row["file"]) for row in rows if row["kind"] == "segmentation"]
    assert np.array_equal(mask.pixel_array, dcmread(delivered.only("SEG")).pixel_array)


def test_no_patient_data_is_in_the_log(delivered: Delivered) -> None:
    assert "4711" not in delivered.node.log
    assert "ller" not in delivered.node.log


def test_input_contract_and_output_limits_of_the_metadata_hold_and_refuse(tmp_path: Path) -> None:
    config = load(write_config(tmp_path / "node"))
    limits = {"output_limits": {"hold_above": {"segments found": 0.5}}}
    _install(write_spleen_bundle(tmp_path / "a" / NAME, **limits), config.models_dir)
    held = processing.run_task(_make_task(tmp_path, f"bundle:{NAME}"), config, progress=_ignore_progress)
    words = "the number of segments with at least one voxel. Look at the segmentation on the source"
    assert held.held_because == f"segments found is 1, above the limit of 0.5: {words}"
    contract = {"input_contract": {"image": [{"fact": "coarsest_spacing_mm", "between": [0, 2.5]}]}}
    _install(write_spleen_bundle(tmp_path / "b" / NAME, version="2.0.0", **contract), config.models_dir)
    task = replace(_make_task(tmp_path, f"bundle:{NAME}"), model=f"{NAME}@2.0.0")
    with pytest.raises(Refused, match=r"largest voxel spacing .* is 3 mm; spleen_ct_segmentation 2\.0\.0 takes 0 to 2"):
        processing.run_task(task, config, progress=_ignore_progress)


def test_an_image_that_a_bundle_made_is_secondary_capture_with_the_label_in_its_pixels(tmp_path: Path) -> None:
    config = load(write_config(tmp_path / "node", results={"image_kind": "modality"}))
    _install(write_doubling_bundle(tmp_path / "source" / "twice"), config.models_dir)
    task = _make_task(tmp_path, "bundle:twice", modality="MR")
    produced = processing.run_task(task, config, progress=_ignore_progress)
    pictures = [ds for ds in produced.objects if "PixelData" in ds]
    assert [ds.Modality for ds in pictures] == ["MR", "MR"]
    assert {ds.SOPClassUID for ds in pictures} == {"1.2.840.10008.5.1.4.1.1.7.3"}, "never the scanner's class"
    assert [ds.BurnedInAnnotation for ds in pictures] == ["NO", "YES"]
    for ds in produced.objects:
        marking.check_marks(ds)


def write_ct(folder: Path, modality: str = "CT") -> list[Path]:
    """Write a CT of soft tissue of about 0 HU with a bright body that no mirror maps on itself."""
    data = np.random.default_rng(0).normal(0, 8, GRID.shape)
    data[2:7, 5:20, 8:14] += 150
    data[7:10, 5:9, 8:20] += 150

    def as_ct(_: int, ds: Dataset) -> None:
        ds.Modality, ds.BodyPartExamined, ds.ImageType = modality, "ABDOMEN", ["ORIGINAL", "PRIMARY", "AXIAL"]
        if modality == "CT":
            ds.SOPClassUID, ds.RescaleType = CTImageStorage, "HU"
            ds.RescaleSlope, ds.RescaleIntercept = 1, -1024

    return write_slices(folder, GRID, np.round(data + 1024).astype(np.uint16), edit=as_ct)


def route(*destinations: str) -> dict[str, Any]:
    return {
        "name": "spleen",
        "pipeline": f"bundle:{NAME}",
        "match": {"Modality": "CT"},
        "destinations": list(destinations),
    }


def _make_task(folder: Path, pipeline: str, modality: str = "CT") -> processing.Task:
    files = write_ct(folder / "in", modality)
    now = datetime(2026, 11, 20, tzinfo=UTC)
    return processing.Task(
        key="key", pipeline=pipeline, model="", options={}, inputs={"match": files}, seed=1, created_at=now
    )


def _install(source: Path, root: Path) -> None:
    with installing.stage_bundle(source, root, Policy()) as staged:
        staged.commit()


def _ignore_progress(fraction: float, step: str) -> None:
    """Ignore progress."""


def _storescu(node: Node, paths: list[Path]) -> None:
    program = require_program("/usr/bin/storescu", "dcmtk")
    command = [program, "-R", "-aec", node.peer.ae_title, "127.0.0.1", str(node.peer.port), *map(str, paths)]
    subprocess.run(command, env={**os.environ, "TCP_NODELAY": "1"}, timeout=120, check=True)
