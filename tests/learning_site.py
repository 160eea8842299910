"""Patients with a low-dose and a full-dose PET, in known splits, and a small model to begin with."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import Dataset

from dicomnode import cli, uids
from dicomnode.learning.cases import name_subject
from model_zoo.splits import assign_split
from pipelines.contract import Grid
from tests.pet_series import write_pet

__all__ = ["LEARNING", "ROUTE", "Patient", "find_patients", "train_base", "write_study"]

ROUTE: dict[str, Any] = {
    "name": "pet", "pipeline": "standard_dose_pet", "match": {"Modality": "PT", "SeriesDescription": "~low"},
    "options": {"dose_fraction": 0.1, "check_dose": False},
}  # fmt: skip
LEARNING: dict[str, Any] = {
    "name": "pet", "pipeline": "standard_dose_pet", "configuration": "smoke", "numbers": {"dose": 0.1},
    "with": {"standard": {"Modality": "PT", "SeriesDescription": "~full"}},
}  # fmt: skip
_SPACING_MM = 6.0


@dataclass(frozen=True)
class Patient:
    """Patient ID, and the split in which its hash puts the patient."""

    id: str
    split: str

    @property
    def study_uid(self) -> str:
        return str(uids.derive("study of", self.id))


def find_patients(**wanted_by_split: int) -> list[Patient]:
    """Return so many patients of each split."""
    found: list[Patient] = []
    for number in count(1):
        patient = Patient(f"P-{number}", assign_split(name_subject(f"P-{number}")))
        if sum(each.split == patient.split for each in found) < wanted_by_split.get(patient.split, 0):
            found.append(patient)
        if len(found) == sum(wanted_by_split.values()):
            return sorted(found, key=lambda each: ("train", "validation", "test").index(each.split))
    raise AssertionError("count() ends never")


def write_study(
    folder: Path,
    patient: Patient,
    *,
    names: Sequence[str] = ("low dose", "full dose"),
    edit: Callable[[int, Dataset], None] = lambda k, ds: None,
    size: int = 26,
) -> list[Path]:
    """Write a low-dose series, and full-dose ones of the same place, changed by ``edit``."""
    shape = (size, size, size)
    generator = np.random.default_rng(int(patient.id.removeprefix("P-")))
    axis = np.linspace(-1, 1, size)
    radius = np.sqrt(axis[:, None, None] ** 2 + axis[None, :, None] ** 2 + axis[None, None, :] ** 2)
    activity = 2e4 * (radius < 0.8) * (1 + 0.5 * (radius < 0.4))
    grid = Grid(shape, np.diag([_SPACING_MM, _SPACING_MM, _SPACING_MM, 1.0]))
    paths = []
    for name in names:
        noise = 0.4 if name == "low dose" else 0.1
        values = np.maximum(activity * (1 + noise * generator.normal(size=shape)), 0).astype(np.float32)

        def prepare(k: int, ds: Dataset, name: str = name) -> None:
            ds.StudyInstanceUID, ds.PatientID, ds.SeriesDescription = patient.study_uid, patient.id, name
            ds.FrameOfReferenceUID, ds.PatientName = uids.derive("frame of", patient.id), "Doe^Jane"
            if name != "low dose":
                edit(k, ds)

        paths += write_pet(folder / patient.id / name, grid, values, edit=prepare, key=f"{patient.id} {name}")
    return paths


def train_base(folder: Path, models: Path, version: str = "0.9.0") -> Path:
    """Train a small model on three patients of another site and put it among the installed bundles."""
    lines = ["subject,split,low,standard,dose"]
    for number, split in enumerate(("train", "validation", "test"), 101):
        write_study(folder, Patient(f"P-{number}", split))
        lines.append(f"s{number},{split},P-{number}/low dose,P-{number}/full dose,0.1")
    (folder / "table.csv").write_text("\n".join(lines) + "\n")
    words = ["train", "standard-dose-pet", "--configuration", "smoke", "--manifest", str(folder / "table.csv")]
    assert cli.main([*words, "--out", str(folder / "run"), "--version", version]) == 0
    place = models / "standard_dose_pet" / version
    shutil.copytree(folder / "run" / "bundle", place)
    return place
