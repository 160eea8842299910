"""The plan of a translation: what it takes, what it refuses and why, and scales that are inverted exactly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from model_zoo.structures import number
from model_zoo.translation import plan as plans
from model_zoo.translation.plan import PlanError
from model_zoo.translation.scales import parse_scale

pytestmark = pytest.mark.fast

HEAD_CT = """
name = "head_ct"
spacing_mm = 1.5
space = "2.5d:5"
sources = [{ name = "t1w", modality = "MR", scale = "percentile:99", required = true }]
targets = [{ name = "ct", modality = "CT", scale = "window:-1024,2000", unit = "[hnsf'U]", code = 1 }]
"""


T1W = {"name": "t1w", "modality": "MR", "scale": "percentile:99"}

UNPAIRED = {"engine": "syndiff", "pairing": "unpaired"}


def make(**changes: Any) -> dict[str, Any]:
    """Return the table of a plan from T1w to FDG, changed."""
    return {
        "name": "fdg",
        "sources": [{"name": "t1w", "modality": "MR", "scale": "percentile:99"}],
        "targets": [{"name": "fdg", "modality": "PT", "scale": "window:0,20", "unit": "g/ml{SUVbw}", "code": 1}],
        **changes,
    }


def test_a_plan_is_read_from_toml_with_its_defaults(tmp_path: Path) -> None:
    path = tmp_path / "plan.toml"
    path.write_text(HEAD_CT)
    plan = plans.read(path)
    assert (plan.name, plan.slices, plan.engine, plan.sources[0].required) == ("head_ct", 5, "regression", True)
    assert plans.parse(plan.model_dump(mode="json")) == plan, "as a bundle keeps it"
    assert hash(plan) == hash(plans.read(path))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"spacing": 1.0}, r"no key 'spacing' is known; known are name, title, .*spacing_mm"),
        ({"sources": [{"name": "t1w", "modality": "MR", "scale": "percentile:99", "need": 1}]}, r"sources\.0\.need"),
        ({"sources": []}, "sources"),
        ({"space": "2.5d:4"}, "space"),
        ({"covariates": ["weight"]}, "covariates: no covariate 'weight'; there are: age, sex"),
        ({"engine": "gan"}, "engine"),
        ({"engine": "syndiff"}, "only syndiff learns without pairs"),
        ({"pairing": "unpaired"}, "the engine regression with pairing"),
        (UNPAIRED | {"space": "2.5d:3"}, 'needs space = "2d" or "3d"'),
        (UNPAIRED | {"covariates": ["age"]}, "the engine syndiff uses no covariates"),
        (UNPAIRED | {"sources": [T1W, T1W | {"name": "t2w"}]}, "makes one target from one source"),
        ({"engine": "adversarial", "space": "2d"}, 'needs space = "3d"'),
        ({"engine": "flow", "space": "2.5d:3"}, 'needs space = "3d"'),
        (
            {"engine": "latent", "space": "2.5d:5", "holes": 0.5, "sources": [T1W], "targets": [T1W | {"code": 1}]},
            "holes: the engine latent fills no slices",
        ),
        (
            {"sources": [{"name": "a", "modality": "MR", "contrast": "t1w", "scale": "minmax"}]},
            r"no scale 'minmax'; there are: tissue:NAME \(white, grey, cerebellum\), percentile:P",
        ),
        (
            {"sources": [{"name": "gd", "modality": "MR", "scale": "percentile:99"}]},
            "gd is an MR series: contrast has to be one of",
        ),
        (
            {"sources": [{"name": "t1w", "modality": "MR", "scale": "tissue:white"}]},
            'needs labels = "structures"',
        ),
        (
            {"targets": [{"name": "fdg", "modality": "PT", "scale": "percentile:99", "unit": "Bq/ml", "code": 1}]},
            'its unit is "1"',
        ),
        ({"targets": [make()["targets"][0], make()["targets"][0] | {"name": "b"}]}, "the code 1 is there twice"),
    ],
)
def test_what_cannot_be_used_is_refused_by_its_key(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(PlanError, match=message):
        plans.parse(make(**changes))


@pytest.mark.parametrize(
    ("source", "target", "reason"),
    [
        ({"modality": "PT"}, {"modality": "CT"}, "PET shows uptake, not the anatomy that CT shows"),
        ({"modality": "PT"}, {"modality": "MR", "contrast": "t1w"}, "PET shows uptake"),
        (
            {"modality": "MR", "contrast": "t1w"},
            {"modality": "MR", "contrast": "t1w-post"},
            "no image without contrast agent shows where the agent goes",
        ),
        (
            {"modality": "MR", "contrast": "t2w"},
            {"modality": "MR", "contrast": "dwi"},
            "no image without diffusion weighting shows restricted diffusion",
        ),
    ],
)
def test_a_target_that_the_sources_do_not_hold_needs_a_stated_reason(
    source: dict[str, str], target: dict[str, str], reason: str
) -> None:
    content = make(
        sources=[{"name": "a", "scale": "percentile:99", **source}],
        targets=[{"name": "b", "scale": "percentile:99", "code": 1, **target}],
    )
    with pytest.raises(PlanError, match=reason):
        plans.parse(content)
    accepted = plans.parse(content | {"accepted_risk": "to show that it fails"})
    assert any(reason in each for each in plans.list_unsupported(accepted))


def test_pet_with_ct_may_become_ct_and_one_contrast_another() -> None:
    sources = [{"name": n, "modality": m, "scale": "percentile:99"} for n, m in (("fdg", "PT"), ("low", "CT"))]
    targets = [{"name": "ct", "modality": "CT", "scale": "window:-1024,2000", "unit": "[hnsf'U]", "code": 1}]
    assert plans.list_unsupported(plans.parse(make(sources=sources, targets=targets))) == []


@pytest.mark.parametrize("text", ["window:-1024,2000", "percentile:99", "tissue:white", "tissue:grey"])
def test_every_scale_is_inverted_exactly(text: str) -> None:
    x = torch.linspace(-50, 900, 20**3, dtype=torch.float64).reshape(20, 20, 20)
    structure = torch.full(x.shape, number("cerebral white matter"), dtype=torch.uint8)
    structure[:10] = number("insula")
    level = parse_scale(text).measure(x, structure)
    torch.testing.assert_close(level.invert(level.apply(x)), x, rtol=0, atol=1e-9)


def test_scales_do_not_follow_the_extremes_of_an_image() -> None:
    x = torch.rand(30, 30, 30, generator=torch.Generator().manual_seed(0)) + 0.5
    with_spike = x.clone()
    with_spike[0, 0, 0] = 1e6
    scale = parse_scale("percentile:99")
    assert scale.measure(with_spike).width == pytest.approx(scale.measure(x).width, rel=1e-3)
    assert scale.measure(x).width == pytest.approx(1.495, abs=0.01)


def test_a_scale_without_its_tissue_is_refused() -> None:
    with pytest.raises(ValueError, match="0 voxels"):
        parse_scale("tissue:white").measure(torch.ones(5, 5, 5), torch.zeros(5, 5, 5, dtype=torch.uint8))
