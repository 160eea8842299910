"""Training from the weights of a bundle: on a site's own data from a shipped bundle, or again on the same data."""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from dicomnode import cli
from model_zoo import registry
from model_zoo.training import bundle, loop, mri_prior, recipe

RECIPE = mri_prior.RECIPE
SIMULATED = RECIPE.facts["trained_on"]
SMOKE = ["--configuration", "smoke", "--phantom"]


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a bundle to start from."""
    out = tmp_path_factory.mktemp("first")
    run = loop.train(RECIPE, RECIPE.configurations["smoke"], out, sources=recipe.make_simulated_sources(phantom=True))
    bundle.write(RECIPE, run, out / "bundle", version="1.2.3", made_on=date(2026, 1, 2), commit="c0ffee")
    return out / "bundle"


def metadata(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "configs" / "metadata.json").read_text())
    return found


def trained_on(folder: Path, words: str) -> None:
    path = folder / "configs" / "metadata.json"
    path.write_text(json.dumps(metadata(folder) | {"trained_on": words}))


def train(out: Path, start: Path, *words: str) -> int:
    return cli.main(["train", "mri-prior", *SMOKE, "--out", str(out), "--from", str(start), *words])


@pytest.mark.slow
def test_a_run_that_learns_nothing_ends_with_the_weights_it_went_on_from(first: Path, tmp_path: Path) -> None:
    assert train(tmp_path, first, "--set", "learning_rate=0.0") == 0
    before, after = (load_file(folder / registry.WEIGHTS) for folder in (first, tmp_path / "bundle"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.slow
def test_it_learns_and_is_resumed_with_the_same_start_only(first: Path, tmp_path: Path) -> None:
    assert train(tmp_path, first) == 0
    made = metadata(tmp_path / "bundle")
    assert made["weights_sha256"] != metadata(first)["weights_sha256"]
    assert made["configuration"]["start"].startswith(f"mri_prior 1.2.3 ({metadata(first)['weights_sha256']})")
    assert train(tmp_path, first, "--resume") == 0
    assert metadata(tmp_path / "bundle") == made
    assert cli.main(["train", "mri-prior", *SMOKE, "--out", str(tmp_path), "--resume"]) == 1


@pytest.mark.parametrize(
    ("before", "data", "expected", "licence"),
    [
        (SIMULATED, "simulation", SIMULATED, RECIPE.facts["data_licence"]),
        (SIMULATED, "cohort 77", f"mri_prior 1 (aa), trained on {SIMULATED}; then a user's data set (cohort 77)", None),
        ("scans", "simulation", f"mri_prior 1 (aa), trained on scans; then {SIMULATED}", None),
        (
            f"mri_prior 0 (bb), trained on {SIMULATED}; then a user's data set (cohort 7)",
            "simulation",
            f"mri_prior 1 (aa), trained on mri_prior 0 (bb), trained on {SIMULATED}; "
            f"then a user's data set (cohort 7); then {SIMULATED}",
            None,
        ),
        (None, "cohort 77", "a user's data set (cohort 77)", None),
    ],
)
def test_a_bundle_says_what_its_first_weights_were_trained_on(
    before: str | None, data: str, expected: str, licence: str | None
) -> None:
    start = "" if before is None else f"mri_prior 1 (aa), trained on {before}"
    found = dict(RECIPE.facts) | bundle.describe_origin(data, SIMULATED, start)
    assert found["trained_on"] == expected
    assert found["data_licence"] == (licence or "that of the user's data set; weights may carry traces of it")


@pytest.mark.slow
def test_a_card_does_not_call_simulation_only_what_went_on_from_patients(first: Path, tmp_path: Path) -> None:
    trained_on(first, "a user's data set (cohort 77)")
    try:
        assert train(tmp_path, first, "--set", "learning_rate=0.0") == 0
    finally:
        trained_on(first, SIMULATED)
    card = (tmp_path / "bundle" / "docs" / "README.md").read_text()
    assert "cohort 77" in card
    assert "simulation only. They" not in card
    assert not registry.load_from(registry.read_facts(tmp_path / "bundle")).simulation_only


def test_what_cannot_be_gone_on_from_is_named(first: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(tmp_path / "a", tmp_path / "nothing") == 1
    assert "--from" in capsys.readouterr().err
    anatomy = registry.find("anatomy").path
    assert train(tmp_path / "b", anatomy) == 1
    assert "made by the recipe anatomy, not mri-prior" in capsys.readouterr().err
    assert train(tmp_path / "c", first, "--set", "channels=[8,16]") == 1
    assert "do not fit this configuration" in capsys.readouterr().err
    assert not (tmp_path / "c" / "bundle").exists()
