"""``dicomnode run`` on NIfTI and DICOM: the same result both ways, as DICOM, NIfTI and one page."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from pydicom import Dataset, dcmread
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage

from dicomnode.cli import main
from dicomnode.datasets import headers
from dicomnode.errors import NotAllowed
from dicomnode.execution.basis import Basis
from dicomnode.execution.processing import TaskResult
from dicomnode.local_runs import saving
from dicomnode.local_runs.candidates import find_candidates
from dicomnode.local_runs.choosing import Choice
from dicomnode.local_runs.running import LocalRun
from dicomnode.reading import volumes
from pipelines.contract import Case, Image
from pipelines.quality import Outcome, Verdict
from tests.bundles import phantom, phantom_grid, write_anatomy_bundle
from tests.dir_phantom import flair_of, lesion_mask, write_dir_bundle, write_flair, write_t1w
from tests.findings import PROVENANCE, grid, make_findings, source
from tests.nifti_files import write_nifti
from tests.peers import write_config
from tests.series import write_slices

pytestmark = pytest.mark.slow

OPTION = ["--option", 'structures=["hippocampus", "insula"]']
SEED = [*OPTION, "--seed", "1"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a node's data folder with tiny bundles."""
    folder = tmp_path_factory.mktemp("data")
    write_anatomy_bundle(folder / "models")
    write_dir_bundle(folder / "models")
    return folder


@pytest.fixture
def config(data: Path, tmp_path: Path) -> Path:
    return write_config(tmp_path / "node", node={"data_dir": str(data)})


def stored_phantom() -> np.ndarray[tuple[int, ...], np.dtype[np.uint16]]:
    return np.round(phantom()[0] * 2300).astype(np.uint16)


SMALL = {
    "anatomy": ["--model", "anatomy@0.0.1"],
    "ms_lesions": ["--model", "synthetic_dir@0.0.1", "--helper", "anatomy@0.0.1"],
}
"""Words that name the tiny bundles."""


def run(config: Path, pipeline: str, *words: str | Path) -> int:
    return main(["--config", str(config), "run", pipeline, *SMALL[pipeline], *map(str, words)])


def run_json(
    config: Path, capsys: pytest.CaptureFixture[str], pipeline: str, *words: str | Path
) -> list[dict[str, Any]]:
    assert run(config, pipeline, *words, "--json") == 0
    rows: list[dict[str, Any]] = json.loads(capsys.readouterr().out)
    return rows


def test_a_nifti_file_gives_what_the_same_head_gives_as_dicom(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_slices(tmp_path / "dicom", phantom_grid(), stored_phantom())
    path = write_nifti(tmp_path / "head.nii.gz", stored_phantom()[::-1], flipped_grid())
    rows = run_json(config, capsys, "anatomy", path, tmp_path / "a", "--modality", "MR", "--nifti", *SEED)
    other = run_json(config, capsys, "anatomy", tmp_path / "dicom", tmp_path / "b", "--nifti", *SEED)
    labels = nibabel.load(tmp_path / "a" / "anatomy_synthetic.nii.gz")
    assert np.array_equal(labels.affine, nibabel.load(path).affine)
    expected = np.asarray(nibabel.load(tmp_path / "b" / "anatomy_synthetic.nii.gz").dataobj)
    assert np.array_equal(np.asarray(labels.dataobj)[..., ::-1], expected)
    assert expected.any()
    assert rows[0]["measurements"] == other[0]["measurements"]


def flipped_grid() -> Any:
    from pipelines.contract import Grid

    grid = phantom_grid()
    flip = np.diag([1.0, 1.0, -1.0, 1.0])
    flip[2, 3] = grid.shape[0] - 1
    return Grid(grid.shape, grid.affine_mm @ flip)


def test_the_result_of_a_nifti_file_is_marked_and_lies_on_the_series_made_of_it(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_nifti(tmp_path / "sub-01_T1w.nii.gz", stored_phantom(), phantom_grid())
    rows = run_json(config, capsys, "anatomy", path, tmp_path / "out", "--fact", "te_ms=3", *OPTION)
    segmentation = dcmread(rows[0]["file"])
    assert (segmentation.SyntheticData, segmentation.PatientID, segmentation.PatientName) == ("YES", "", "")
    source = volumes.read(sorted((tmp_path / "out" / "source-head").iterdir()))
    assert source.headers[0].StudyInstanceUID == segmentation.StudyInstanceUID
    assert np.array_equal(source.volume.data, stored_phantom())
    note = next(each["text"] for each in rows[0]["notes"] if each["name"] == "input without a header")
    assert "names no patient" in note
    assert "ti_ms" in note
    assert "te_ms" not in note


def test_what_nobody_stated_is_said_with_the_option_that_states_it(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_nifti(tmp_path / "sub-01_T1w.nii.gz", stored_phantom(), phantom_grid())
    assert run(config, "anatomy", path, tmp_path / "out", *OPTION) == 0
    shown = capsys.readouterr()
    assert "head: sub-01_T1w.nii.gz (the only one)" in shown.out
    assert "not stated, so not checked: te_ms, ti_ms" in shown.out
    assert re.search(r"Hippocampus\s+[\d.]+", shown.out)


def test_a_file_of_unknown_modality_is_refused(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_nifti(tmp_path / "head.nii.gz", stored_phantom(), phantom_grid())
    assert run(config, "anatomy", path, tmp_path / "out") == 1
    assert "head.nii.gz: its modality is not known; state --modality" in capsys.readouterr().err


def test_a_stated_fact_outside_the_contract_refuses_the_file(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_nifti(tmp_path / "sub-01_FLAIR.nii.gz", flair(), phantom_grid())
    assert run(config, "ms_lesions", path, tmp_path / "out", "--fact", "ti_ms=500") == 1
    assert "Inversion Time (--fact ti_ms=...) is 500 ms" in capsys.readouterr().err


def flair() -> np.ndarray[tuple[int, ...], np.dtype[np.uint16]]:
    return np.round(800 * flair_of(phantom()[1], lesion_mask())).astype(np.uint16)


def test_a_mixed_folder_gives_each_input_its_series(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_flair(tmp_path / "in" / "a", flair_of(phantom()[1], lesion_mask()))
    write_t1w(tmp_path / "in" / "b")
    assert run(config, "ms_lesions", tmp_path / "in", tmp_path / "out", "--page", "--no-dicom") == 0
    shown = capsys.readouterr()
    assert "flair: 3 t2 FLAIR (a) (the only one that fits)" in shown.out
    assert "t1w: 3 t1 mprage (b)" in shown.out
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"ms_lesions_page.html"}


def test_a_nifti_t1w_joins_the_study_of_a_dicom_flair(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = write_flair(tmp_path / "in", flair_of(phantom()[1], lesion_mask()))
    t1w = write_nifti(tmp_path / "t1.nii.gz", stored_phantom(), phantom_grid())
    words = ["--with", f"t1w={t1w}", "--modality", "MR", "--nifti"]
    rows = run_json(config, capsys, "ms_lesions", tmp_path / "in", tmp_path / "out", *words)
    assert dcmread(rows[0]["file"]).PatientID == dcmread(paths[0]).PatientID
    (report,) = [row["file"] for row in rows if row["kind"] == "report"]
    assert "0.0.1, weights SHA-256" in dcmread(report).to_json(), "the helper model"
    made = next((tmp_path / "out" / "source-t1w").iterdir())
    assert headers.read(made).study_uid == headers.read(paths[0]).study_uid
    assert any("NIfTI" in row["kind"] for row in rows)


def test_a_named_input_is_not_used_for_two_subjects(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("sub-01", "sub-02"):
        write_nifti(tmp_path / "in" / f"{name}_FLAIR.nii.gz", flair(), phantom_grid())
    t1w = write_nifti(tmp_path / "t1.nii.gz", stored_phantom(), phantom_grid())
    words = ["--with", f"t1w={t1w}", "--modality", "MR"]
    assert run(config, "ms_lesions", tmp_path / "in", tmp_path / "out", *words) == 1
    assert "--with t1w is of one subject, but IN has images of 2" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_fact_on_one_patient_is_not_used_for_two_subjects(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("sub-01", "sub-02"):
        write_nifti(tmp_path / "in" / f"{name}_FLAIR.nii.gz", flair(), phantom_grid())
    words = ("ms_lesions", tmp_path / "in", tmp_path / "out")
    assert run(config, *words, "--fact", "age_years=41") == 2
    told = " ".join(re.sub(r"[│\s]+", " ", capsys.readouterr().err).split())
    assert "--fact age_years is of one patient, but IN has images of 2" in told
    assert "participants.tsv (columns participant_id, age, sex, weight)" in told
    assert not (tmp_path / "out").exists()
    (tmp_path / "in" / "participants.tsv").write_text("participant_id\tage\nsub-01\t41\nsub-02\t62\n")
    found = find_candidates(tmp_path / "in", {})
    assert [each.attributes["PatientAge"] for each in found] == ["041Y", "062Y"]


def test_an_unclear_cell_is_logged_once_and_refused_where_a_rule_asks_for_it(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    rule = {"fact": "age_years", "between": [18, 100]}
    config = write_config(tmp_path / "node", node={"data_dir": str(data)}, quality={"input_rules": [rule]})
    write_nifti(tmp_path / "in" / "sub-01_T1w.nii.gz", stored_phantom(), phantom_grid())
    (tmp_path / "in" / "participants.tsv").write_text("participant_id\tage\nsub-01\t25-30\n")
    words = ("anatomy", tmp_path / "in", tmp_path / "out")
    why = "participants.tsv: age of sub-01 is '25-30'"
    assert run(config, *words) == 1
    assert f"(--fact head.age_years=...) is not stated, because {why}" in capsys.readouterr().err
    assert sum(why in each.getMessage() for each in caplog.records) == 1
    assert run(config, *words, "--fact", "age_years=12") == 1
    assert "Patient's Age (--fact age_years=...) is 12 years" in capsys.readouterr().err


def test_a_fact_is_not_stated_about_a_dicom_series(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_slices(tmp_path / "dicom", phantom_grid(), stored_phantom())
    assert run(config, "anatomy", tmp_path / "dicom", tmp_path / "out", "--fact", "te_ms=3") == 2
    assert "states facts of NIfTI files" in capsys.readouterr().err


def test_a_refused_subject_ends_no_other_and_every_one_is_named(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    write_nifti(tmp_path / "in" / "sub-01_FLAIR.nii.gz", np.stack([flair(), flair()]), phantom_grid())
    write_nifti(tmp_path / "in" / "sub-02_FLAIR.nii.gz", flair(), phantom_grid())
    write_nifti(tmp_path / "in" / "sub-02_T1w.nii.gz", stored_phantom(), phantom_grid())
    write_nifti(tmp_path / "in" / "sub-03_FLAIR.nii.gz", flair(), phantom_grid(), facts={"InversionTime": 0.5})
    words = ("ms_lesions", tmp_path / "in", tmp_path / "out", "--modality", "MR")
    assert run(config, *words) == 1
    shown = capsys.readouterr()
    assert "dicomnode: sub-01_FLAIR.nii.gz: " in shown.err
    assert [path.name[:3] for path in (tmp_path / "out").iterdir()] == ["002"]
    table = shown.out[shown.out.rindex("subject") :]
    assert re.search(r"sub-01_FLAIR\.nii\.gz\s+REFUSED\s+.*one volume of 3 dimensions is needed", table)
    assert re.search(r"sub-02_FLAIR\.nii\.gz\s+(accepted|HELD)", table)
    assert re.search(r"sub-03_FLAIR\.nii\.gz\s+left out\s+no image of it fits", table)
    assert run(config, *words, "--json") == 1
    rows = json.loads(capsys.readouterr().out)
    assert [(row["verdict"], row["file"]) for row in rows if row["subject"] == "sub-01_FLAIR.nii.gz"] == [
        ("refuse", None)
    ]
    assert all(Path(row["file"]).is_file() for row in rows if row["subject"] == "sub-02_FLAIR.nii.gz")


def test_the_page_is_one_file_with_pictures_numbers_and_the_mark(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_nifti(tmp_path / "sub-01_T1w.nii.gz", stored_phantom(), phantom_grid())
    run_json(config, capsys, "anatomy", path, tmp_path / "out", "--page", *OPTION)
    page = (tmp_path / "out" / "anatomy_page.html").read_text()
    assert page.count("SYNTHETIC - RESEARCH USE ONLY") >= 3
    assert page.count("data:image/png;base64,") >= 2
    assert re.findall(r'(?:src|href)="(?!data:)', page) == []
    assert "<script" not in page
    assert "Hippocampus" in page
    assert "input without a header" in page


def make_object(uid: str, description: str) -> Dataset:
    ds = Dataset()
    ds.SOPClassUID, ds.SOPInstanceUID, ds.SeriesInstanceUID = SecondaryCaptureImageStorage, uid, f"1.2.{description}"
    ds.SeriesNumber, ds.SeriesDescription, ds.Modality, ds.InstanceNumber = 9000, f"SYN DIR: {description}", "OT", 1
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return ds


def test_files_have_names_and_another_run_does_not_overwrite_them(tmp_path: Path) -> None:
    run = LocalRun(Choice({}, ""), {})

    def save(*uids: str) -> list[str]:
        produced = TaskResult([make_object(uid, str(at)) for at, uid in enumerate(uids)], {})
        return [path.name for _, path in saving.save(run, produced, "p", tmp_path, saving.Forms())]

    assert save("1.2.3", "1.2.4") == ["9000_SYN-DIR-0.dcm", "9000_SYN-DIR-1.dcm"]
    assert save("1.2.3", "1.2.4") == ["9000_SYN-DIR-0.dcm", "9000_SYN-DIR-1.dcm"], "the same run again"
    with pytest.raises(NotAllowed, match=r"9000_SYN-DIR-1\.dcm is of another run: choose another folder"):
        save("1.2.3", "1.2.5")


@pytest.mark.parametrize("form", ["nifti", "page"])
def test_nifti_files_and_pages_of_another_run_are_not_overwritten(tmp_path: Path, form: str) -> None:
    def save(seed: int, forms: saving.Forms) -> None:
        found = make_findings(grid("axial")).findings
        case = Case({"mr": next(each.volume for each in found if isinstance(each, Image))}, {})
        basis = Basis(found, case, [source("mr")], replace(PROVENANCE, seed=seed), Verdict(Outcome.ACCEPT, ()), ())
        saving.save(LocalRun(Choice({}, ""), {}), TaskResult([], {}, basis=basis), "p", tmp_path, forms)

    forms = saving.Forms(dicom=False, nifti=form == "nifti", page=form == "page")
    save(1, forms)
    before = {each: each.read_bytes() for each in tmp_path.iterdir()}
    assert before
    with pytest.raises(NotAllowed, match="is of another run: choose another folder"):
        save(2, saving.Forms(dicom=False, nifti=True, page=True))
    assert {each: each.read_bytes() for each in tmp_path.iterdir()} == before, "nothing was written"
    save(1, forms)


def test_the_series_of_another_file_is_not_overwritten(tmp_path: Path) -> None:
    converted, folder = tmp_path / "made", tmp_path / "out"
    converted.mkdir()
    (converted / "1.dcm").write_bytes(b"one")
    made = LocalRun(Choice({}, ""), {}, converted={"t1w": converted})

    def save(uid: str) -> None:
        saving.save(made, TaskResult([make_object(uid, uid)], {}), "p", folder, saving.Forms())

    save("1.2.3")
    save("1.2.3")
    (converted / "1.dcm").write_bytes(b"two")
    with pytest.raises(NotAllowed, match="source-t1w is of another run"):
        save("1.2.4")
    assert (folder / "source-t1w" / "1.dcm").read_bytes() == b"one"
    assert len(list(folder.glob("*.dcm"))) == 1, "nothing was written before"


@pytest.mark.parametrize(
    "helpers",
    [["anatomy"], ["synthetic_dir@0.0.1"], ["anatomy@0.0.1", "anatomy@0.0.2"]],
    ids=["no version", "no helper model of the pipeline", "twice"],
)
def test_a_helper_model_is_named_once_with_its_version(config: Path, tmp_path: Path, helpers: list[str]) -> None:
    path = write_nifti(tmp_path / "sub-01_FLAIR.nii.gz", flair(), phantom_grid())
    words = [word for each in helpers for word in ("--helper", each)]
    assert main(["--config", str(config), "run", "ms_lesions", str(path), str(tmp_path / "out"), *words]) == 2


@pytest.mark.parametrize(
    "words",
    [["--no-dicom"], ["--modality", "US"], ["--fact", "nonsense=1"], ["--with", "nobody=x"], ["--fact", "ct.te_ms=1"]],
)
def test_wrong_words_are_wrong_usage(config: Path, tmp_path: Path, words: list[str]) -> None:
    path = write_nifti(tmp_path / "sub-01_T1w.nii.gz", stored_phantom(), phantom_grid())
    assert run(config, "anatomy", path, tmp_path / "out", *words) == 2


def test_two_visits_of_a_real_patient_are_refused_by_name(
    kit: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = kit / "mri" / "ms-longitudinal-t1-flair" / "patient01"
    config = write_config(tmp_path / "node")
    words = ["run", "ms_lesions", str(folder), str(tmp_path / "out"), "--modality", "MR"]
    assert main(["--config", str(config), *words]) == 1
    error = capsys.readouterr().err
    assert "could be each of: study1_FLAIR.nii.gz, study2_FLAIR.nii.gz; say which by --with flair=PATH" in error
