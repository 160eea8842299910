"""The evaluation of contrasts: its baselines know what they say, its scores count as described."""

from __future__ import annotations

from dataclasses import replace
from math import isnan

import pytest
import torch

from model_zoo.bundle import Model
from model_zoo.evaluation import contrast_cases, find_evaluator
from model_zoo.training.translation import CONFIGURATIONS, MR_CONTRASTS, RECIPE, make_network

pytestmark = pytest.mark.fast


@pytest.fixture(scope="module")
def case() -> contrast_cases.ContrastCase:
    return contrast_cases.simulate_case(MR_CONTRASTS, "phantom", 12, None, None)


def test_every_set_of_other_sources_is_listed_once() -> None:
    subsets = contrast_cases.list_subsets(MR_CONTRASTS, "flair")
    assert len(subsets) == len(set(subsets)) == 7
    assert subsets[0] == ("t1w",)
    assert subsets[-1] == ("t1w", "t2w", "pd")


def test_the_target_itself_has_full_contrast_and_no_error(case: contrast_cases.ContrastCase) -> None:
    found = contrast_cases.score_image(case.targets["flair"], case, "flair", 2.0)
    assert found["psnr_db"] == float("inf")
    assert found["contrast"] == pytest.approx(1.0)
    faint = torch.where(case.lesions, 1 + (case.targets["flair"] - 1) / 2, case.targets["flair"])
    level = float(case.targets["flair"][case.near_white].mean())
    true = float(case.targets["flair"][case.lesions & case.inside].mean())
    expected = (1 + (true - 1) / 2 - level) / (true - level)
    assert contrast_cases.score_image(faint, case, "flair", 2.0)["contrast"] == pytest.approx(expected, abs=1e-4)


def test_without_lesions_there_is_no_contrast_of_lesions(case: contrast_cases.ContrastCase) -> None:
    healthy = replace(case, lesions=torch.zeros_like(case.lesions))
    assert isnan(contrast_cases.score_image(case.targets["flair"], healthy, "flair", 2.0)["contrast"])


def test_a_cubic_undoes_a_cubic_and_a_matched_source_has_the_targets_histogram(
    case: contrast_cases.ContrastCase,
) -> None:
    x = case.sources["t2w"]
    made = replace(case, targets={"pd": (0.2 + 0.5 * x - 0.1 * x**2 + 0.02 * x**3) * case.inside})
    fitted = contrast_cases.fit_cubic(made, "pd", ("t2w",))
    assert torch.allclose(fitted[case.inside], made.targets["pd"][case.inside], atol=1e-3)
    matched = contrast_cases.match_source(case, "flair", ("t1w", "t2w"))
    ranks = torch.linspace(0.05, 0.95, 19)
    found, true = (x[case.inside].quantile(ranks) for x in (matched, case.targets["flair"]))
    assert torch.allclose(found, true, atol=0.02)


def test_the_tables_have_a_row_for_every_translation() -> None:
    torch.manual_seed(0)
    network = make_network(CONFIGURATIONS["smoke"]).eval()
    settings = RECIPE.describe_inference(CONFIGURATIONS["smoke"])
    model = Model("mr_contrasts", "0", "0" * 64, {}, network, settings, "cpu")
    found = find_evaluator("mr_contrasts")(model, root=None, quick=True, progress=lambda done, step: None)
    assert [len(table.rows) for table in found.tables] == [28, 28]
    assert "of 28 translations" in found.failures
