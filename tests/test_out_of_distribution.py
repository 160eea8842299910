"""Out-of-distribution scores: usual data score about one, others higher; by anatomy and by residual of the prior."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from model_zoo import out_of_distribution, registry
from model_zoo.structures import COUNT, number

RNG = np.random.default_rng(5)


def draw_usual_volumes() -> dict[int, float]:
    """Return volumes in ml drawn from the population, with the measurement error that the score expects."""
    usual = json.loads(out_of_distribution.REFERENCE_POPULATION.read_text())["anatomy"]
    covariance = np.array(usual["covariance"]) + out_of_distribution.SEGMENTATION_SD**2 * np.eye(COUNT)
    log_volumes = RNG.multivariate_normal(usual["mean"], covariance)
    return {n: 1500 * float(v) for n, v in enumerate(np.exp(log_volumes), start=1)}


def test_usual_heads_score_about_one() -> None:
    scores = [out_of_distribution.anatomy_score(draw_usual_volumes()) for _ in range(50)]
    assert 0.8 < float(np.median(scores)) < 1.3
    assert max(scores) < 2


def test_the_score_does_not_depend_on_the_size_of_the_head() -> None:
    head = draw_usual_volumes()
    larger = {n: 1.3 * v for n, v in head.items()}
    assert out_of_distribution.anatomy_score(larger) == pytest.approx(out_of_distribution.anatomy_score(head))


@pytest.mark.parametrize(
    ("structure", "factor"), [("lateral ventricles", 12.0), ("cerebellar cortex", 0.1), ("thalamus", 0.0)]
)
def test_a_head_that_lacks_or_swells_a_structure_scores_higher(structure: str, factor: float) -> None:
    head = draw_usual_volumes()
    odd = head | {number(structure): factor * head[number(structure)]}
    assert out_of_distribution.anatomy_score(odd) > 1.5 * out_of_distribution.anatomy_score(head)


@pytest.mark.slow
def test_the_prior_takes_away_what_it_never_saw() -> None:
    D = registry.load("mri_prior").denoiser
    smooth = torch.zeros(8, 64, 64)
    smooth[:, 16:48, 16:48] = 1.0
    checks = smooth * (torch.arange(64) % 2)
    assert out_of_distribution.denoising_error(D, checks, 1) > 3 * out_of_distribution.denoising_error(D, smooth, 1)


def test_an_image_of_nothing_is_told() -> None:
    with pytest.raises(ValueError, match="hold nothing"):
        out_of_distribution.denoising_error(registry.load("mri_prior").denoiser, torch.zeros(8, 16, 16), 1)
