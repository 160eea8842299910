"""Which ``covariates.json`` of a folder belongs to which image; one that stands for several patients is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dicomnode.errors import InputRefused
from dicomnode.local_runs.candidates import Candidate, find_candidates, find_reports
from dicomnode.reading.covariates import SIDECAR
from tests.nifti_files import write_nifti
from tests.scanner import make_grid


def write_head(path: Path) -> Path:
    return write_nifti(path, np.ones((3, 4, 5), np.int16), make_grid("axial", (3, 4, 5), (2, 1, 1), (0, 0, 0)))


def write_sidecar(folder: Path) -> Path:
    (folder / SIDECAR).write_text('{"mmse": 24}')
    return folder / SIDECAR


def find_by_name(source: Path) -> dict[str, Candidate]:
    return {each.name: each for each in find_candidates(source, {})}


def test_a_file_is_for_the_images_of_its_folder_and_below(tmp_path: Path) -> None:
    for name in ("sub-01", "sub-02"):
        write_head(tmp_path / name / "anat" / f"{name}_T1w.nii.gz")
    path = write_sidecar(tmp_path / "sub-01")
    found = find_by_name(tmp_path)
    assert find_reports(tmp_path, found["sub-01_T1w.nii.gz"], SIDECAR) == [path.resolve()]
    assert find_reports(tmp_path, found["sub-02_T1w.nii.gz"], SIDECAR) == []


def test_a_file_above_the_input_folder_is_not_taken(tmp_path: Path) -> None:
    write_head(tmp_path / "in" / "sub-01_T1w.nii.gz")
    write_sidecar(tmp_path)
    assert find_reports(tmp_path / "in", find_by_name(tmp_path)["sub-01_T1w.nii.gz"], SIDECAR) == []


@pytest.mark.parametrize("folders", [("", ""), ("a", "b")])
def test_a_file_for_several_subjects_is_refused(tmp_path: Path, folders: tuple[str, str]) -> None:
    for name, folder in zip(("sub-01", "sub-02"), folders, strict=True):
        write_head(tmp_path / folder / f"{name}_T1w.nii.gz")
    write_sidecar(tmp_path)
    with pytest.raises(InputRefused, match=r"covariates\.json in .* has images of 2 studies or subjects below it"):
        find_reports(tmp_path, find_by_name(tmp_path)["sub-01_T1w.nii.gz"], SIDECAR)


def test_several_images_and_results_of_one_subject_share_a_file(tmp_path: Path) -> None:
    for name in ("T1w", "FLAIR"):
        write_head(tmp_path / f"sub-01_{name}.nii.gz")
    write_head(tmp_path / "out" / "anatomy_synthetic.nii.gz")
    (tmp_path / "out" / "anatomy_synthetic.json").write_text('{"SyntheticData": true}')
    path = write_sidecar(tmp_path)
    assert find_reports(tmp_path, find_by_name(tmp_path)["sub-01_T1w.nii.gz"], SIDECAR) == [path.resolve()]
