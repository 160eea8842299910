"""A Raw Data object with two echoes: from its bytes to result series, one set for each echo."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import ismrmrd
import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import MultiFrameGrayscaleWordSecondaryCaptureImageStorage

from dicomnode import mrd
from dicomnode.config import Config
from dicomnode.execution import processing
from model_zoo import registry
from model_zoo.bundle import BundleError
from tests.findings import NOW
from tests.scanner import Scan, acquire


@cache
def require_prior() -> None:
    try:
        registry.load("mri_prior")
    except BundleError as error:
        pytest.skip(f"the prior is not installed: {error}")


def _edit_echoes(acquisition: Any) -> None:
    """Make the second average an echo of half the brightness, with the noise of the noise scan."""
    if acquisition.isFlagSet(ismrmrd.ACQ_IS_NOISE_MEASUREMENT):
        return
    acquisition.idx.contrast, acquisition.idx.average = acquisition.idx.average, 0
    seed = (acquisition.idx.contrast, acquisition.idx.slice, acquisition.idx.kspace_encode_step_1)
    noise = np.random.default_rng(seed).normal(size=(*acquisition.data.shape, 2))
    acquisition.data[:] = acquisition.data / (1 + acquisition.idx.contrast) + noise @ [1, 1j]


def _write_raw_data(folder: Path) -> Path:
    scan = Scan(n=(32, 32, 1), slices=2, averages=2, noise_samples=128, edit=_edit_echoes)
    scan.points_mm = [scan.place_mm(x, y, 0, n) for x in range(-3, 4) for y in range(-3, 4) for n in (0, 1)]
    acquire(scan, folder / "scan.h5")
    path = folder / "scan.dcm"
    mrd.wrap((folder / "scan.h5").read_bytes(), now=NOW).save_as(path, enforce_file_format=True)
    return path


def _process(path: Path, folder: Path) -> processing.TaskResult:
    config = Config.model_validate({"node": {"data_dir": str(folder / "data")}, "worker": {"device": "cpu"}})
    options = {"steps": 2, "mean_steps": 2, "samples": 2}
    task = processing.Task("key", "mri_reconstruction", "", options, {"match": [path]}, 1, NOW)
    return processing.run_task(task, config, progress=lambda fraction, step: None)


def _select_clean(objects: list[Dataset]) -> list[Dataset]:
    """Return the images without a label in their pixels."""
    return [ds for ds in objects if ds.SOPClassUID == MultiFrameGrayscaleWordSecondaryCaptureImageStorage
            and ds.BurnedInAnnotation == "NO"]  # fmt: skip


@pytest.mark.slow
def test_two_echoes_give_two_sets_of_series_and_each_map_refers_to_its_own_image(tmp_path: Path) -> None:
    require_prior()
    produced = _process(_write_raw_data(tmp_path), tmp_path)
    clean = _select_clean(produced.objects)
    assert [ds.SeriesDescription.partition(": ")[0].removeprefix("SYN ") for ds in clean] == [
        "contrast 1 of 2",
        "contrast 2 of 2",
    ]
    brightest = [float(ds.pixel_array.max()) * float(ds.RescaleSlope) for ds in clean]
    assert brightest[1] / brightest[0] == pytest.approx(0.5, rel=0.15)
    assert len({ds.SeriesInstanceUID for ds in produced.objects}) == len({ds.SeriesNumber for ds in produced.objects})
    labels = [ds for ds in produced.objects if ds.Modality == "SEG"]
    referred = [ds.ReferencedSeriesSequence[0].SeriesInstanceUID for ds in labels]
    assert referred == [ds.SeriesInstanceUID for ds in clean]
    groups = [m["name"] for m in produced.report["measurements"]]
    assert groups.count("chi-square") == 3
    assert np.isfinite([m["value"] for m in produced.report["measurements"]]).all()
