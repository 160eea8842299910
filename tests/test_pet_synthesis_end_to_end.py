"""The path of a T1w series and a report with covariates: in by C-STORE, out as amyloid and tau PET in the archive."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import SimpleITK
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import MultiFrameGrayscaleWordSecondaryCaptureImageStorage, ParametricMapStorage

from dicomnode.reading import volumes
from dicomnode.results import marking
from dicomnode.results.provenance import read_record
from model_zoo import registry
from model_zoo.bundle import BundleError
from model_zoo.data_kit import data_root
from pipelines.contract import Grid, Volume
from tests.bundles import centred_grid, levels, write_anatomy_bundle
from tests.covariate_reports import APOE_GENOTYPE, MMSE, number, report, save, text
from tests.installed import deploy_installed
from tests.peers import Node, Orthanc, write_config
from tests.peers.process import require_program
from tests.pet_bundle import sample_phantom, write_pet_bundle
from tests.series import unpack_series, write_slices

pytestmark = pytest.mark.slow

IMAGE, MAP = MultiFrameGrayscaleWordSecondaryCaptureImageStorage, ParametricMapStorage


@dataclass(frozen=True)
class Delivered:
    """A T1w series that was sent with a report, and the results that reached the archive."""

    sent: list[Path]
    volume: Volume
    results: dict[Path, Dataset]
    node: Node

    def of(self, kind: str, words: str = "") -> list[tuple[Path, Dataset]]:
        found = [(p, ds) for p, ds in self.results.items() if ds.SOPClassUID == kind and words in ds.SeriesDescription]
        return sorted(found, key=lambda each: int(each[1].SeriesNumber))


@pytest.fixture(scope="module", params=["phantom, oblique", "real T1w"])
def delivered(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Delivered]:
    folder = tmp_path_factory.mktemp("pet")
    sent = _write_phantom(folder) if request.param.startswith("phantom") else _write_real_head(folder)
    items = number(MMSE, 23, "{score}"), text(APOE_GENOTYPE, "e3/e4")
    sr = save(report(dcmread(sent[0]), *items), folder / "report.dcm")
    with (
        Orthanc(folder / "orthanc") as orthanc,
        Node(deploy_installed(_write_config(folder / "node", orthanc))) as node,
    ):
        _send(node, [*sent, sr])
        job = node.wait_for_job("done", "dead", "held", "refused")
        assert job.state == "done", job.reason
        node.wait_until_delivered()
        results: dict[Path, Dataset] = {}
        for at, instance in enumerate(orthanc.instances()):
            path = folder / f"result-{at}.dcm"
            path.write_bytes(orthanc.file(instance))
            results[path] = dcmread(path)
        yield Delivered(sent, volumes.read(sent).volume, results, node)


def test_the_archive_gets_both_tracers_with_their_maps_in_the_study(delivered: Delivered) -> None:
    source = dcmread(delivered.sent[0], stop_before_pixels=True)
    sent = {dcmread(path, stop_before_pixels=True).SOPInstanceUID for path in delivered.sent}
    images, maps = delivered.of(IMAGE), delivered.of(MAP)
    descriptions = [ds.SeriesDescription for _, ds in images]
    assert len(descriptions) == 8
    assert sum("(florbetapir) from T1w, relative" in words for words in descriptions) == 2
    assert sum("WHAT IF MMSE 15 (not this patient's value)" in words for words in descriptions) == 4
    assert [ds.SeriesDescription.split(" PET")[0] for _, ds in maps] == [
        f"SYN Standard deviation of {target}" for target in ("amyloid", "tau")
    ]
    for _, ds in (*images, *maps):
        marking.check_marks(ds)
        assert (ds.StudyInstanceUID, ds.PatientID) == (source.StudyInstanceUID, source.PatientID)
        assert ds.FrameOfReferenceUID == source.FrameOfReferenceUID
        assert sent <= {item.ReferencedSOPInstanceUID for item in ds.SourceImageSequence}


def test_other_software_reads_them_where_the_t1w_is(delivered: Delivered) -> None:
    """SimpleITK finds the same voxels as in the T1w, and activity where the head is, in thousandths of SUVR."""
    grid = delivered.volume.grid
    bright = delivered.volume.data > np.quantile(delivered.volume.data, 0.8)
    for path, _ in delivered.of(IMAGE, "relative")[::2]:
        image = SimpleITK.ReadImage(str(path))
        assert image.GetSize()[:2] == (grid.shape[2], grid.shape[1])
        places = [image.TransformContinuousIndexToPhysicalPoint(at) for at in ((0.0, 0.0, 0.0), (5.0, 7.0, 3.0))]
        indices = [np.linalg.solve(grid.affine_mm, [*place, 1])[:3] for place in places]
        assert np.allclose(indices, np.round(indices), atol=1e-3)
        data = SimpleITK.GetArrayFromImage(image) / 1000
        if indices[1][2] < indices[0][2]:
            data = data[::-1]
        assert data.shape == grid.shape
        assert 0.1 < float(data[bright].mean()) < 4
        assert float(data[bright].mean()) > 2 * float(data[~bright].mean())


def test_numbers_are_withheld_and_covariates_told(delivered: Delivered) -> None:
    for ds in delivered.results.values():
        record = read_record(ds)
        assert record["parameters"]["MMSE"] == "23 points (report, MMSE (72106-8, LN))"
        assert record["parameters"]["APOE e4 alleles"].startswith("1 (report")
        assert record["parameters"]["age"] == "56 years (Patient's Age (0010,1010))"
        names = {each["name"] for each in record["measurements"]}
        assert "reference factor of tau PET" in names
        assert not {name for name in names if "SUVR" in name or "Centiloid" in name or "probability" in name}


def test_no_patient_data_is_in_the_log(delivered: Delivered) -> None:
    source = dcmread(delivered.sent[0], stop_before_pixels=True)
    assert str(source.PatientName).split("^")[0] not in delivered.node.log
    assert source.PatientID not in delivered.node.log


def _write_phantom(folder: Path) -> list[Path]:
    grid = centred_grid("oblique, left-handed", (2.9, 2.5, 2.5))
    models = folder / "node" / "data" / "models"
    write_anatomy_bundle(models)
    write_pet_bundle(models)
    return write_slices(folder / "in", grid, np.round(levels(sample_phantom(grid)) * 2300).astype(np.uint16))


def _write_real_head(folder: Path) -> list[Path]:
    """Write every fourth slice, with every third row and column: the shipped models see voxels of 2 x 2 x 2.7 mm."""
    try:
        archive = data_root() / "mri" / "t1-dicom-studyforrest" / "dicoms.tar.xz"
        registry.find("pet_synthesis")
    except (FileNotFoundError, BundleError) as error:
        pytest.skip(str(error))
    volume = volumes.read(unpack_series(archive, folder / "kit")).volume
    data = np.ascontiguousarray(volume.data[::4, ::3, ::3])
    grid = Grid(data.shape, volume.grid.affine_mm @ np.diag([3.0, 3.0, 4.0, 1.0]))
    return write_slices(folder / "in", grid, np.clip(data, 0, 65535).astype(np.uint16), key="real")


def _write_config(folder: Path, orthanc: Orthanc) -> Path:
    route = {
        "name": "pet",
        "pipeline": "pet_synthesis",
        "match": {"Modality": "MR"},
        "with": {"covariates": {"Modality": "SR"}},
        "destinations": ["orthanc"],
        "options": {"samples": 2, "what_if_mmse": [15]},
    }
    return write_config(folder, peers=[orthanc.peer], routes=[route])


def _send(node: Node, paths: list[Path]) -> None:
    program = require_program("/usr/bin/storescu", "dcmtk")
    command = [program, "-R", "-aec", node.peer.ae_title, "127.0.0.1", str(node.peer.port), *map(str, paths)]
    subprocess.run(command, env={**os.environ, "TCP_NODELAY": "1"}, timeout=120, check=True)
