"""Jobs of every pipeline on small series with bundles whose answers are known, and their results in every form."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import Dataset

from dicomnode.config import Config
from dicomnode.config.results import ResultsConfig
from dicomnode.execution import processing
from dicomnode.execution.processing import TaskResult
from tests.bundles import levels, phantom, phantom_grid, write_anatomy_bundle
from tests.ct_bundle import write_ct_bundle
from tests.dir_phantom import flair_of, lesion_mask, write_dir_bundle, write_flair, write_t1w
from tests.findings import NOW
from tests.installed import pin_installed
from tests.peers.kspaces import raw_data
from tests.pet_bundle import sample_phantom, write_pet_bundle
from tests.pet_series import write_pet
from tests.pet_series import write_pet_bundle as write_dose_bundle
from tests.scanner import make_grid
from tests.series import write_slices
from tests.sinograms import PARALLEL, write_raw_data

__all__ = ["FORMS", "PIPELINES", "JobRun", "run_job"]

PIPELINES = (
    "mri_reconstruction", "ct_reconstruction", "pet_synthesis", "standard_dose_pet", "synthetic_dir", "ms_lesions",
    "anatomy",
)  # fmt: skip
FORMS: Mapping[str, ResultsConfig] = {
    "multi-frame": ResultsConfig(report_page=("sc", "pdf")),
    "single-frame": ResultsConfig(image_kind="single", labelled_kind="single"),
    "parametric": ResultsConfig(image_kind="parametric", segmentation_kind="labelmap"),
    "modality": ResultsConfig(image_kind="modality"),
}


@dataclass(frozen=True)
class JobRun:
    """Results of one job and the files that it read."""

    produced: TaskResult
    sent: list[Path]

    def of(self, form: str) -> list[Dataset]:
        """Return the objects in a form of ``FORMS``."""
        return self.produced.objects if form == "multi-frame" else self.produced.renditions[FORMS[form]]


def run_job(pipeline: str, folder: Path) -> JobRun:
    """Run one job of the pipeline and write its results in every form."""
    inputs, options = _write_inputs(pipeline, folder)
    data = {"node": {"data_dir": str(folder)}, "worker": {"device": "cpu"}}
    config = Config.model_validate(data | {"results": FORMS["multi-frame"].model_dump()})
    task = processing.Task(f"key of {pipeline}", pipeline, "", options, inputs, 1, NOW)
    produced = processing.run_task(
        pin_installed(task, config), config, progress=lambda done, step: None, renditions=list(FORMS.values())
    )
    return JobRun(produced, inputs["match"])


def _write_inputs(pipeline: str, folder: Path) -> tuple[dict[str, list[Path]], dict[str, Any]]:
    if pipeline == "mri_reconstruction":
        raw = raw_data(folder / "raw.dcm", NOW, BodyPartExamined="HEAD")
        return {"match": [raw]}, {"steps": 2, "mean_steps": 2, "samples": 2}
    if pipeline == "ct_reconstruction":
        write_ct_bundle(folder / "models")
        return {"match": [write_raw_data(folder / "raw.dcm", PARALLEL, 2)]}, {"steps": 2, "mean_steps": 2, "samples": 2}
    write_anatomy_bundle(folder / "models")
    if pipeline == "standard_dose_pet":
        write_dose_bundle(folder / "models")
        return {"match": _write_pet(folder / "pet")}, {"dose_fraction": 0.25, "check_dose": False}
    if pipeline in ("synthetic_dir", "ms_lesions"):
        write_dir_bundle(folder / "models")
        flair = write_flair(folder / "flair", flair_of(phantom()[1], lesion_mask()))
        return {"match": flair, "t1w": write_t1w(folder / "t1w")}, {}
    if pipeline == "pet_synthesis":
        write_pet_bundle(folder / "models")
    data = np.round(levels(sample_phantom(phantom_grid())) * 2300).astype(np.uint16)
    t1w = write_slices(folder / "t1w", phantom_grid(), data, edit=_edit_t1w)
    return {"match": t1w}, {"samples": 2} if pipeline == "pet_synthesis" else {}


def _edit_t1w(_: int, ds: Dataset) -> None:
    ds.InversionTime, ds.PatientAge, ds.PatientBirthDate = "900", "071Y", "19540615"


def _write_pet(folder: Path) -> list[Path]:
    """Write an oblique, anisotropic PET of a warm ball; each slice has its own decay factor and reference time."""
    grid = make_grid("oblique", (16, 40, 44), (5.0, 4.0, 3.0), (-40.0, 17.5, 33.25))
    k, j, i = np.indices(grid.shape)
    inside = ((k - 8) * 5.0) ** 2 + ((j - 20) * 4.0) ** 2 + ((i - 22) * 3.0) ** 2 < 35.0**2
    noise = np.random.default_rng(5).normal(size=grid.shape)
    bq_ml = np.maximum(np.where(inside, 8000.0, 50.0) * (1 + 0.1 * noise), 0).astype(np.float32)

    def edit(number: int, ds: Dataset) -> None:
        ds.DecayFactor, ds.FrameReferenceTime = f"{1.01 + 0.001 * number:.4f}", f"{1000 * number}"

    return write_pet(folder, grid, bq_ml, edit=edit)
