"""``dicomnode export --bids``: a dataset that the BIDS validator accepts, with every voxel in its place."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from nibabel import as_closest_canonical
from numpy.typing import NDArray
from pydicom import Dataset, dcmread
from sqlalchemy import select

from db import readings
from db.models import Job
from db.states import ReadingVerdict
from dicomnode import results
from dicomnode.bids.dataset import Labels, find_suffix
from dicomnode.cli import main
from dicomnode.config.results import ResultsConfig
from dicomnode.errors import NotAllowed
from dicomnode.reading import volumes
from pipelines.contract import Measurement
from tests.findings import NOW, PROVENANCE, PhantomFindings, make_findings
from tests.nifti_files import LPS_TO_RAS
from tests.peers import kspaces
from tests.scanner import make_grid
from tests.series import unpack_series, write_slices
from tests.web_node import Web, web

__all__ = ["web"]

CHARACTERISTICS = {"MMSE": "24 points (covariates.json)", "age": "71.5 years (Patient's Age (0010,1010))", "sex": "F"}
OF_PATIENT = replace(PROVENANCE, parameters={**PROVENANCE.parameters, **CHARACTERISTICS})
VALIDATOR = "bids-validator-deno"
DERIVATIVE = f"derivatives/dicomnode-{PROVENANCE.pipeline}-{PROVENANCE.model_version}"


def find_errors(folder: Path) -> list[str]:
    """Return the errors of the BIDS validator; skip the test where it is missing."""
    program = shutil.which(VALIDATOR) or shutil.which(VALIDATOR, path=str(Path(sys.executable).parent))
    if program is None:
        pytest.skip(f"{VALIDATOR} is missing: install the extra 'test'")
    done = subprocess.run([program, "--json", str(folder)], capture_output=True, text=True, check=False)
    issues = json.loads(done.stdout)["issues"]["issues"]
    return [f"{each['code']} {each['location']}" for each in issues if each["severity"] == "error"]


def set_flair(_: int, ds: Dataset) -> None:
    ds.SeriesDescription, ds.EchoTime, ds.RepetitionTime, ds.InversionTime = "t2 FLAIR sag", "120", "5000", "1650"


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, PhantomFindings]:
    """Write a FLAIR as a scanner sends it, and results on its grid."""
    folder = tmp_path_factory.mktemp("study")
    data = np.random.default_rng(0).integers(0, 4000, (5, 40, 132)).astype(np.uint16)
    grid = make_grid("sagittal", (5, 40, 132), (3.7, 1.3, 0.9), (-31.25, 17.125, 55.5))
    paths = write_slices(folder / "flair", grid, data, edit=set_flair)
    read = volumes.read(paths)
    found = make_findings(read.volume.grid)
    (folder / "results").mkdir()
    findings = [*found.findings, Measurement("plasma p-tau217", 0.62, "pg/ml")]
    for at, ds in enumerate(results.write(findings, read.headers, OF_PATIENT, ResultsConfig(), NOW)):
        ds.save_as(folder / "results" / f"{at}.dcm", enforce_file_format=True)
    return folder, found


@pytest.fixture(scope="module")
def exported(study: tuple[Path, PhantomFindings], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("bids") / "dataset"
    assert main(["export", str(study[0]), str(out), "--bids", "--subject", "A1", "--session", "x"]) == 0
    return out


def load(path: Path) -> NDArray[Any]:
    return np.asarray(as_closest_canonical(nibabel.load(path)).dataobj)


def test_the_validator_finds_no_error_in_raw_data_and_derivatives(exported: Path) -> None:
    assert find_errors(exported) == []
    assert find_errors(exported / DERIVATIVE) == []


def test_the_check_itself_finds_a_broken_dataset(exported: Path, tmp_path: Path) -> None:
    shutil.copytree(exported, tmp_path / "broken")
    (tmp_path / "broken" / "sub-A1" / "ses-x" / "anat" / "sub-A1_ses-x_nonsense.nii.gz").write_bytes(b"x")
    assert find_errors(tmp_path / "broken") != []


def test_raw_images_have_their_voxels_affine_and_facts(study: tuple[Path, PhantomFindings], exported: Path) -> None:
    path = exported / "sub-A1" / "ses-x" / "anat" / "sub-A1_ses-x_FLAIR.nii.gz"
    read = volumes.read(sorted((study[0] / "flair").iterdir())).volume
    image = nibabel.load(path)
    assert np.array_equal(np.asarray(image.dataobj).T, read.data)
    assert image.affine == pytest.approx(LPS_TO_RAS @ read.grid.affine_mm, abs=1e-4)
    assert image.header["descrip"].item() == b"", "a measured image is not marked as synthetic"
    facts = json.loads(path.with_name("sub-A1_ses-x_FLAIR.json").read_text())
    assert (facts["EchoTime"], facts["RepetitionTime"], facts["InversionTime"]) == (0.12, 5.0, 1.65)
    assert facts["Manufacturer"] == "Scanner works"
    assert facts["ImageType"] == ["ORIGINAL", "PRIMARY", "M"], "DERIVED where a NIfTI file was the source"


def test_results_lie_on_the_voxels_of_their_source(study: tuple[Path, PhantomFindings], exported: Path) -> None:
    folder = exported / DERIVATIVE / "sub-A1" / "ses-x" / "anat"
    raw = exported / "sub-A1" / "ses-x" / "anat" / "sub-A1_ses-x_FLAIR.nii.gz"
    grid = study[1].grid
    for pattern, values, tolerance in (
        ("*_dseg.nii.gz", study[1].labels, 0),
        ("*MRImage_synthetic.nii.gz", study[1].image, 0.02),
        ("*Deviation_synthetic.nii.gz", study[1].deviation, 1e-5),
    ):
        (path,) = folder.glob(pattern)
        expected = nibabel.Nifti1Image(values.T, LPS_TO_RAS @ grid.affine_mm)
        assert load(path) == pytest.approx(np.asarray(as_closest_canonical(expected).dataobj), abs=tolerance)
        assert as_closest_canonical(nibabel.load(path)).affine == pytest.approx(
            as_closest_canonical(nibabel.load(raw)).affine, abs=1e-4
        )


def test_every_derivative_names_model_digest_and_source(exported: Path) -> None:
    description = json.loads((exported / DERIVATIVE / "dataset_description.json").read_text())
    assert description["DatasetType"] == "derivative"
    assert [each["Name"] for each in description["GeneratedBy"]] == ["dicomnode", PROVENANCE.model_name]
    assert PROVENANCE.model_digest in description["GeneratedBy"][1]["Description"]
    sidecars = list((exported / DERIVATIVE).rglob("sub-*.json"))
    assert len(sidecars) == 4
    for path in sidecars:
        content = json.loads(path.read_text())
        assert content["SyntheticData"] is True
        assert content["Model"]["WeightsSHA256"] == PROVENANCE.model_digest
        assert content["SourceFiles"] == ["bids:raw:sub-A1/ses-x/anat/sub-A1_ses-x_FLAIR.nii.gz"]
    measurements = json.loads(next((exported / DERIVATIVE).rglob("*measurements*")).read_text())["Measurements"]
    assert {each["name"] for each in measurements} >= {"chi-square", "noise level"}
    for path in (exported / DERIVATIVE).rglob("*.nii.gz"):
        assert nibabel.load(path).header["descrip"].item().startswith(b"SYNTHETIC")


@pytest.mark.parametrize("held", [False, True])
def test_a_study_of_the_node_is_exported_without_held_results(
    web: Web, study: tuple[Path, PhantomFindings], tmp_path: Path, held: bool
) -> None:
    paths = sorted((study[0] / "flair").iterdir())
    assert web.store(paths).status_code == 200
    web.add_results([dcmread(path) for path in sorted((study[0] / "results").iterdir())], held=held)
    web.config.path.write_text(f'[node]\ndata_dir = "{web.config.data_dir}"\n')
    words = ["--config", str(web.config.path), "export", str(dcmread(paths[0]).StudyInstanceUID), str(tmp_path / "out")]
    assert main([*words, "--bids"]) == 0
    assert (tmp_path / "out" / "sub-01" / "anat" / "sub-01_FLAIR.nii.gz").is_file()
    assert len(list((tmp_path / "out").glob("derivatives/*/sub-01/anat/*.nii.gz"))) == (0 if held else 3)
    words[3] = "1.2.3"
    assert main([*words, "--bids"]) == 1


def test_nothing_of_the_patient_is_in_the_dataset(exported: Path) -> None:
    for path in exported.rglob("*"):
        if path.is_file() and not path.name.endswith(".gz"):
            text = path.read_text()
            words = ("Müller", "4711", "19700131", "20260101", "2.25.", "MMSE", "71.5", '"sex"', "p-tau217")
            assert [word for word in words if word in text] == [], path
    sidecar = next((exported / DERIVATIVE).rglob("*_dseg.json"))
    assert json.loads(sidecar.read_text())["Parameters"] == PROVENANCE.parameters, "options stay"


def test_results_of_two_jobs_are_told_apart_by_a_number(study: tuple[Path, PhantomFindings], tmp_path: Path) -> None:
    shutil.copytree(study[0], tmp_path / "in")
    read = volumes.read(sorted((study[0] / "flair").iterdir()))
    other = replace(OF_PATIENT, seed=8, job_key="job-2")
    for at, ds in enumerate(results.write(study[1].findings, read.headers, other, ResultsConfig(), NOW)):
        ds.save_as(tmp_path / "in" / "results" / f"other{at}.dcm", enforce_file_format=True)
    assert main(["export", str(tmp_path / "in"), str(tmp_path / "out"), "--bids"]) == 0
    seeds = {path.name: json.loads(path.read_text())["Seed"] for path in (tmp_path / "out").rglob("*desc-*.json")}
    assert len(seeds) == 8
    assert {seed for name, seed in seeds.items() if "_run-2_desc-" in name} == {8}
    assert {seed for name, seed in seeds.items() if "_run-" not in name} == {PROVENANCE.seed}
    assert find_errors(tmp_path / "out" / DERIVATIVE) == []


@pytest.mark.parametrize(("verdict", "count"), [(ReadingVerdict.ACCEPTED, 3), (ReadingVerdict.REJECTED, 0)])
def test_a_result_that_a_reader_rejected_is_left_out_with_a_row(
    web: Web, study: tuple[Path, PhantomFindings], tmp_path: Path, capsys: pytest.CaptureFixture[str],
    verdict: ReadingVerdict, count: int,
) -> None:  # fmt: skip
    paths = sorted((study[0] / "flair").iterdir())
    assert web.store(paths).status_code == 200
    web.add_results([dcmread(path) for path in sorted((study[0] / "results").iterdir())])
    with web.sessions.begin() as session:
        (job,) = session.scalars(select(Job))
        readings.record(session, job, verdict=verdict, who="AB", reason="", sentence="", now=web.now)
    web.config.path.write_text(f'[node]\ndata_dir = "{web.config.data_dir}"\n')
    words = ["--config", str(web.config.path), "export", str(dcmread(paths[0]).StudyInstanceUID), str(tmp_path / "out")]
    assert main([*words, "--bids", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["left_out"] for row in rows].count("rejected by a reader") == (0 if count else 1)
    sidecars = list((tmp_path / "out").glob("derivatives/*/sub-01/anat/*.json"))
    assert len(list((tmp_path / "out").glob("derivatives/*/sub-01/anat/*.nii.gz"))) == count
    assert [json.loads(path.read_text())["ReaderVerdict"] for path in sidecars] == ["accepted"] * len(sidecars)


def test_results_of_kspace_are_exported_without_a_raw_image(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "in").mkdir()
    raw = kspaces.raw_data(tmp_path / "in" / "raw.dcm", NOW, SeriesDescription="tse")
    findings = make_findings(make_grid("axial", (3, 20, 24), (5, 1, 1), (0, 0, 0))).findings
    for at, ds in enumerate(results.write(findings, [dcmread(raw)], PROVENANCE, ResultsConfig(), NOW)):
        ds.save_as(tmp_path / "in" / f"{at}.dcm", enforce_file_format=True)
    words = ["export", str(tmp_path / "in"), str(tmp_path / "out"), "--bids"]
    assert main([*words, "--json"]) == 0
    rows = {row["series"]: row for row in json.loads(capsys.readouterr().out)}
    (left_out,) = [row["left_out"] for name, row in rows.items() if name.endswith("tse")]
    assert left_out == "k-space: BIDS has no place for it; its results are exported"
    assert sum(bool(row["file"]) for row in rows.values()) >= 3
    assert not (tmp_path / "out" / "participants.tsv").exists()
    assert find_errors(tmp_path / "out") == []
    assert find_errors(tmp_path / "out" / DERIVATIVE) == []
    assert main(words) == 1
    assert "has sub-01 already" in capsys.readouterr().err


def test_a_subject_is_not_written_twice_and_a_session_is_added(
    study: tuple[Path, PhantomFindings], exported: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["export", str(study[0]), str(exported), "--bids", "--subject", "A1", "--session"]
    assert main([*words, "x"]) == 1
    assert "has sub-A1_ses-x already" in capsys.readouterr().err
    assert main([*words, "y"]) == 0
    assert (exported / "participants.tsv").read_text().splitlines() == ["participant_id", "sub-A1"]


def test_what_is_not_exported_is_listed_with_the_reason(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def describe(text: str, modality: str = "MR") -> Any:
        def edit(_: int, ds: Dataset) -> None:
            ds.SeriesDescription, ds.Modality, ds.StudyInstanceUID = text, modality, "1.2.3"
            ds.SeriesNumber = {"localizer": 5, "t1 mprage": 6, "ct": 7}[text]

        return edit

    grid = make_grid("axial", (3, 20, 20), (2, 1, 1), (0, 0, 0))
    for text, modality in (("localizer", "MR"), ("t1 mprage", "MR"), ("ct", "CT")):
        edit = describe(text, modality)
        write_slices(tmp_path / "in" / text, grid, np.ones((3, 20, 20), np.uint16), edit=edit, key=text)
    words = ["export", str(tmp_path / "in"), "--bids", "--json"]
    assert main([*words[:2], str(tmp_path / "a"), *words[2:]]) == 0
    rows = {row["series"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows["6 t1 mprage"]["file"] == "sub-01/anat/sub-01_T1w.nii.gz"
    assert rows["5 localizer"]["left_out"] == "no BIDS suffix is known: state it by --suffix 5=T2w"
    assert "only MR is exported" in rows["7 ct"]["left_out"]
    assert main([*words[:2], str(tmp_path / "b"), *words[2:], "--suffix", "5=T2w"]) == 0
    assert (tmp_path / "b" / "sub-01" / "anat" / "sub-01_T2w.nii.gz").is_file()
    assert main([*words[:2], str(tmp_path / "c"), "--json"]) == 2, "without --bids"


@pytest.mark.parametrize("label", ["a b", "../x", "sub-1", "ä"])
def test_a_label_is_letters_and_digits(label: str) -> None:
    with pytest.raises(NotAllowed, match="letters and digits only"):
        Labels(label)


@pytest.mark.parametrize(
    ("description", "suffix"),
    [("t2_flair_sag", "FLAIR"), ("T1 MPRAGE", "T1w"), ("ax T2 tse", "T2w"), ("t2*_gre", "T2starw"), ("swi", "")],
)
def test_the_suffix_comes_from_the_description(description: str, suffix: str) -> None:
    assert find_suffix({"SeriesDescription": description}) == suffix


@pytest.mark.slow
def test_a_real_series_becomes_a_valid_dataset(kit: Path, tmp_path: Path) -> None:
    unpack_series(kit / "mri" / "t1-dicom-studyforrest" / "dicoms.tar.xz", tmp_path / "in")
    words = ["export", str(tmp_path / "in"), str(tmp_path / "out"), "--bids", "--subject", "sf"]
    assert main([*words, *(["--suffix", f"{n}=T1w"][k] for n in range(1, 20) for k in (0, 1))]) == 0
    assert [path.name for path in (tmp_path / "out").rglob("*.nii.gz")] == ["sub-sf_T1w.nii.gz"]
    assert find_errors(tmp_path / "out") == []
