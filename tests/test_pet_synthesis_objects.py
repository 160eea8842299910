"""The pipeline pet_synthesis in the node: its record in objects, the refusals of its contract, ``dicomnode run``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset

from dicomnode.cli import main
from dicomnode.config import Config
from dicomnode.errors import InputRefused
from dicomnode.execution import processing
from dicomnode.results import marking
from dicomnode.results.provenance import read_record
from pipelines.contract import Refused
from tests.bundles import levels, phantom_grid, write_anatomy_bundle
from tests.covariate_reports import MMSE, report, save
from tests.covariate_reports import number as counted
from tests.findings import NOW
from tests.installed import pin_installed
from tests.peers import write_config
from tests.pet_bundle import sample_phantom, write_pet_bundle
from tests.series import write_slices

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a node's data folder that holds both bundles."""
    data = tmp_path_factory.mktemp("data")
    write_anatomy_bundle(data / "models")
    write_pet_bundle(data / "models")
    return data


def _set_t1w(k: int, ds: Dataset) -> None:
    """Set the attributes that the input contract demands."""
    ds.InversionTime, ds.PatientAge = "900", "071Y"
    ds.PatientBirthDate = "19550131"


def _write_t1w(folder: Path) -> list[Path]:
    return write_slices(
        folder, phantom_grid(), np.round(levels(sample_phantom(phantom_grid())) * 2300).astype(np.uint16), edit=_set_t1w
    )


def _write_report(images: list[Path], path: Path, score: float = 24) -> Path:
    return save(report(dcmread(images[0]), counted(MMSE, score, "{score}")), path)


def _process(bundles: Path, inputs: dict[str, list[Path]], **options: Any) -> processing.TaskResult:
    config = Config.model_validate({"node": {"data_dir": str(bundles)}, "worker": {"device": "cpu"}})
    task = processing.Task("key", "pet_synthesis", "", {"samples": 2} | options, inputs, 1, NOW)
    return processing.run_task(pin_installed(task, config), config, progress=lambda fraction, step: None)


def test_objects_record_the_covariates_that_were_used(bundles: Path, tmp_path: Path) -> None:
    paths = _write_t1w(tmp_path / "in")
    produced = _process(bundles, {"match": paths, "covariates": [_write_report(paths, tmp_path / "sr.dcm")]})
    for ds in produced.objects:
        marking.check_marks(ds)
        record = read_record(ds)
        assert record["parameters"]["MMSE"] == "24 points (report, MMSE (72106-8, LN))"
        assert record["acquisition"]["covariates"]["plasma p-tau217"] == "unknown (not stated)"
        assert record["parameters"]["anatomy model"].startswith("0.0.1")
    assert any("MMSE = 24 points" in str(ds.get("ImageComments", "")) for ds in produced.objects)


def test_another_score_makes_other_objects_and_a_retry_the_same(bundles: Path, tmp_path: Path) -> None:
    paths = _write_t1w(tmp_path / "in")
    one, again, other = (
        _process(bundles, {"match": paths, "covariates": [_write_report(paths, tmp_path / f"{n}.dcm", score)]})
        for n, score in enumerate((24, 24, 20))
    )
    assert [ds.SOPInstanceUID for ds in one.objects] == [ds.SOPInstanceUID for ds in again.objects]
    assert not {ds.SOPInstanceUID for ds in one.objects} & {ds.SOPInstanceUID for ds in other.objects}


def test_an_age_that_only_the_dates_tell_meets_the_contract(bundles: Path, tmp_path: Path) -> None:
    paths = _write_t1w(tmp_path / "in")
    for path in paths:
        ds = dcmread(path)
        del ds.PatientAge
        ds.PatientBirthDate = "19800101"
        ds.save_as(path)
    produced = _process(bundles, {"match": paths})
    assert produced.report["acquisition"]["age_years"] == pytest.approx(46, abs=0.1)
    assert "Patient's Age (0010,1010) is 46 years" in produced.held_because


def test_a_flair_is_refused_by_its_inversion_time(bundles: Path, tmp_path: Path) -> None:
    paths = _write_t1w(tmp_path / "in")
    for path in paths:
        ds = dcmread(path)
        ds.InversionTime = "2400"
        ds.save_as(path)
    with pytest.raises(
        Refused, match=r"Inversion Time \(0018,0082\) is 2400 ms; pet_synthesis 0.0.1 takes 500 to 1400"
    ):
        _process(bundles, {"match": paths})


def test_a_covariate_that_cannot_be_stops_the_job_with_its_value(bundles: Path, tmp_path: Path) -> None:
    paths = _write_t1w(tmp_path / "in")
    with pytest.raises(InputRefused, match="MMSE is '42'"):
        _process(bundles, {"match": paths, "covariates": [_write_report(paths, tmp_path / "sr.dcm", 42)]})


@pytest.fixture
def folder(bundles: Path, tmp_path: Path) -> tuple[Path, Path]:
    """Write a T1w series and the configuration of a node; return their paths."""
    _write_t1w(tmp_path / "in" / "t1w")
    return tmp_path / "in", write_config(tmp_path / "node", node={"data_dir": str(bundles)})


def _run_command(config: Path, source: Path, *words: str) -> int:
    out = str(source.parent / "out")
    models = ("--model", "pet_synthesis@0.0.1", "--helper", "anatomy@0.0.1")
    options = (*models, "--option", "samples=2", "--json")
    return main(["--config", str(config), "run", "pet_synthesis", str(source), out, *options, *words])


def test_run_takes_reports_and_sidecars_of_the_folder(
    folder: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    source, config = folder
    _write_report(sorted((source / "t1w").iterdir()), source / "report" / "sr.dcm")
    (source / "covariates.json").write_text('{"e4_alleles": "e3/e4"}')
    assert _run_command(config, source) == 0
    row = json.loads(capsys.readouterr().out)[0]
    covariates = row["acquisition"]["covariates"]
    assert covariates["MMSE"].startswith("24 points (report")
    assert covariates["APOE e4 alleles"] == "1 (covariates.json)"


def test_run_takes_a_further_input_by_name(folder: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    source, config = folder
    elsewhere = source.parent / "score.json"
    elsewhere.write_text('{"mmse": 19}')
    assert _run_command(config, source, "--with", f"covariates={elsewhere}") == 0
    assert json.loads(capsys.readouterr().out)[0]["acquisition"]["covariates"]["MMSE"] == "19 points (score.json)"
    assert _run_command(config, source, "--with", f"flair={elsewhere}") == 2
    assert "NAME of: t1w, covariates" in capsys.readouterr().err
