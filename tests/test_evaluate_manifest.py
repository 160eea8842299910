"""``dicomnode evaluate --manifest``: the recipe's numbers on the test rows of a table, two models side by side."""

from __future__ import annotations

import csv
import json
import math
import re
from dataclasses import replace
from pathlib import Path
from textwrap import dedent
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from dicomnode.cli import main
from model_zoo import registry, training
from model_zoo.evaluation import on_manifest
from model_zoo.evaluation.on_manifest import RowScores
from model_zoo.training import bundle, denoising, loop, manifest, mri_prior
from model_zoo.training.recipe import Source, make_simulated_sources
from tests.bundles import phantom, phantom_grid
from tests.nifti_files import write_nifti
from tests.package_floors import ROOT

pytestmark = pytest.mark.training

SMOKE = ["--configuration", "smoke"]


@pytest.fixture(scope="module")
def small_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train the prior for a few steps, and return the folder of its bundle."""
    from datetime import date

    folder = tmp_path_factory.mktemp("run")
    c = mri_prior.RECIPE.configurations["smoke"]
    run = loop.train(mri_prior.RECIPE, c, folder, sources=make_simulated_sources(phantom=True))
    bundle.write(mri_prior.RECIPE, run, folder / "bundle", version="0.0.1", made_on=date(2026, 1, 2))
    return folder / "bundle"


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Write a table with two heads of the split test, and one that training may read."""
    for name, power in (("a", 1.0), ("b", 0.5), ("c", 2.0)):
        write_nifti(tmp_path / f"{name}.nii.gz", (1000 * phantom()[0] ** power).astype(np.float32), phantom_grid())
    path = tmp_path / "table.csv"
    path.write_text("subject,split,image\ns1,train,a.nii.gz\ns2,test,b.nii.gz\ns3,test,c.nii.gz\n")
    return path


def test_the_rows_of_the_split_test_are_evaluated_and_no_other(
    small_bundle: Path, table: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", str(small_bundle), "--manifest", str(table), *SMOKE, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [(row["line"], row["subject"]) for row in rows] == [(3, "s2"), (4, "s3")]
    scores = rows[0]["scores"]["mri_prior@0.0.1"]
    assert set(scores) == {f"denoising_psnr_{sigma}_db" for sigma in denoising.VALIDATION_SIGMAS}


def test_the_numbers_are_those_of_the_recipe_on_that_row_alone(small_bundle: Path, table: Path) -> None:
    cohort = manifest.read(table, mri_prior.RECIPE.columns, None, ("test",))
    network = registry.load_from(registry.read_facts(small_bundle)).network
    c = mri_prior.RECIPE.configurations["smoke"]
    rows = on_manifest.evaluate_rows(mri_prior.RECIPE, c, cohort, {"m": network}, lambda done, step: None)
    again = on_manifest.evaluate_rows(mri_prior.RECIPE, c, cohort, {"m": network}, lambda done, step: None)
    assert rows == again
    assert rows[0].scores["m"] != rows[1].scores["m"]


def test_a_row_that_fails_is_listed_and_ends_no_evaluation(table: Path) -> None:
    def validate(network: nn.Module, c: Any, source: Source) -> dict[str, float]:
        assert source.cohort is not None
        if source.cohort.rows[0].subject == "s2":
            raise ValueError("math domain error")
        return {"mae": 1.0}

    recipe = replace(mri_prior.RECIPE, validate=validate)
    cohort = manifest.read(table, mri_prior.RECIPE.columns, None, ("test",))
    networks = {"new": nn.Identity(), "old": nn.Identity()}
    c = mri_prior.RECIPE.configurations["smoke"]
    rows = on_manifest.evaluate_rows(recipe, c, cohort, networks, lambda done, step: None)
    assert [(row.subject, row.fault) for row in rows] == [("s2", "math domain error"), ("s3", "")]
    assert on_manifest.compare(rows, "new", "old").title == "Mean of 1 test row"
    only = replace(cohort, rows=tuple(row for row in cohort.rows if row.subject == "s2"))
    with pytest.raises(ValueError, match="line 3, subject s2: math domain error"):
        on_manifest.evaluate_rows(recipe, c, only, networks, lambda done, step: None)


def test_an_old_model_stands_beside_the_new_one(
    small_bundle: Path, table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--manifest", str(table), "--against", "mri_prior@1.0.0", "--out", str(tmp_path / "out"), *SMOKE]
    assert main(["evaluate", str(small_bundle), *words]) == 0
    shown = capsys.readouterr().out
    assert "| number | mri_prior@0.0.1 | mri_prior@1.0.0 | better on |" in shown
    assert "| 0 of 2 |" in shown
    assert "worse on line 3 (s2): denoising_psnr" in shown
    with (tmp_path / "out" / "rows.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert {line["model"] for line in lines} == {"mri_prior@0.0.1", "mri_prior@1.0.0"}
    assert len(lines) == 2 * 2 * len(denoising.VALIDATION_SIGMAS)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--against", "anatomy"], "different recipes: anatomy, mri-prior"),
        (["--manifest", "nowhere.csv"], "there is no such file"),
        (["--quick"], "not for --manifest"),
    ],
)
def test_what_cannot_be_compared_is_refused(
    small_bundle: Path, table: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    assert main(["evaluate", str(small_bundle), "--manifest", str(table), *SMOKE, *words]) == 1
    assert message in capsys.readouterr().err


def test_a_table_without_test_rows_is_refused(
    small_bundle: Path, table: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table.write_text("subject,split,image\ns1,train,a.nii.gz\n")
    assert main(["evaluate", str(small_bundle), "--manifest", str(table), *SMOKE]) == 1
    assert 'no row is in the split "test"' in capsys.readouterr().err


def test_better_is_more_or_less_by_the_name_of_the_number() -> None:
    assert on_manifest.is_better("dice", 0.8, 0.7) is True
    assert on_manifest.is_better("rmse_tau", 0.8, 0.7) is False
    assert on_manifest.is_better("within_sd", 0.8, 0.7) is None
    assert on_manifest.is_better("psnr_db", float("nan"), 0.7) is None


@pytest.mark.parametrize("name", sorted(training.RECIPES))
def test_every_number_of_a_recipe_has_a_direction_or_is_known_to_have_none(name: str) -> None:
    without = {number for number in list_numbers(name) if on_manifest.is_better(number, 2.0, 1.0) is None}
    assert without <= {"within_sd", "within_2_sd", "coverage_80", "coverage_95"}


def list_numbers(name: str) -> set[str]:
    """Return the numbers of the shipped bundle of a recipe, or those of an untrained network where none is shipped."""
    recipe = training.load(name)
    if any(facts.name == recipe.bundle for facts in registry.list_bundles()):
        return set(registry.find(recipe.bundle).metadata["metrics"])
    c = recipe.configurations["smoke"]
    return set(recipe.validate(recipe.make_network(c), c, make_simulated_sources(phantom=True).validation))


def test_a_number_that_a_row_lacks_is_left_out_of_the_mean() -> None:
    rows = [
        RowScores(2, "a", {"new": {"dice": 0.9, "lesion_mae": 0.2}, "old": {"dice": 0.8, "lesion_mae": 0.3}}),
        RowScores(3, "b", {"new": {"dice": 0.7}, "old": {"dice": 0.8}}),
    ]
    table = on_manifest.compare(rows, "new", "old")
    name, *means, better = table.rows[0]
    assert (name, better) == ("dice", "1 of 2")
    assert means == pytest.approx([0.8, 0.8])
    assert table.rows[1] == ("lesion_mae", 0.2, 0.3, "1 of 1")


def test_a_label_map_of_anatomy_has_the_numbers_that_recipes_take(tmp_path: Path) -> None:
    """``dicomnode run anatomy --nifti`` without the option ``structures`` numbers them as model_zoo/structures.py."""
    from model_zoo.structures import STRUCTURES
    from pipelines import anatomy

    options = anatomy.Options()
    assert [s.number for s in options.selected_structures] == list(range(1, len(STRUCTURES) + 1))
    assert torch.tensor([s.number for s in STRUCTURES]).diff().eq(1).all()


def read_sample_tables() -> dict[str, list[dict[str, str]]]:
    """Return the sample tables of docs/training.md by recipe."""
    text = (ROOT / "docs" / "training.md").read_text()
    found = re.findall(r"^`([a-z-]+)`.*:\n\n((?:    .+\n)+)", text, re.MULTILINE)
    return {name: list(csv.DictReader(dedent(block).splitlines())) for name, block in found}


@pytest.mark.parametrize("name", sorted(training.RECIPES))
def test_the_documents_have_a_table_that_fits_the_recipe(name: str) -> None:
    rows = read_sample_tables()[name]
    columns = {column.name: column for column in training.load(name).columns}
    assert {row["split"] for row in rows} == {"train", "validation", "test"}
    assert set(rows[0]) <= {"subject", "split", "resample", *columns}
    assert set(columns) <= set(rows[0]) | {"regions"}, "every column is shown"
    for row in rows:
        assert None not in row, "more cells than columns"
        for key, column in columns.items():
            cell = row.get(key, "")
            assert cell or not column.required, f"{key} is blank"
            assert column.kind != "number" or not cell or math.isfinite(float(cell))
            assert column.kind in ("number", "word") or not cell or "/" in cell
