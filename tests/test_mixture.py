"""Mixture model of a poor prior and the image: tissues by intensity, structures by place, lesions by the prior."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from model_zoo import mixture
from model_zoo.mixture import GROUPS, Mixture
from model_zoo.simulate import heads
from model_zoo.simulate.phantom import make_phantom
from model_zoo.structures import COUNT, STRUCTURES, number
from model_zoo.training.anatomy import score_structures

SHAPE = (64, 72, 64)


def _scene(*, dark_tissue: bool = False, field: float = 0.0, lesion: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """Return the prior (class, k, j, i), made of the moved and blurred truth, the image in [0, 1] and the truth."""
    structure = make_phantom(SHAPE, 3.0).structure.long()
    truth = functional.one_hot(structure, COUNT + 1).movedim(-1, 0).float()
    prior = heads.gaussian_blur_3d(truth.roll((2, 1), dims=(1, 2)), (2.0, 2.0, 2.0))
    level = torch.full((COUNT + 1,), 0.05)
    for g, names in enumerate(GROUPS):
        level[[number(name) for name in names]] = 0.9 - 0.1 * g if not dark_tissue else 0.25 + 0.1 * g
    image = level[structure]
    if lesion:
        image = torch.where(_lesion(prior), torch.tensor(0.05 if not dark_tissue else 1.0), image)
    ramp = torch.linspace(-1, 1, SHAPE[1])[None, :, None]
    image = image * (1 + field * ramp) + 0.02 * torch.randn(SHAPE, generator=torch.Generator().manual_seed(1))
    return prior, image.clamp(0, 1), structure


def _lesion(prior: Tensor) -> Tensor:
    """Return the mask of almost certain white matter of the prior in some slices."""
    deep = prior[number("cerebral white matter")] > 0.95
    deep[:34] = deep[37:] = False
    return deep


def _mean_dice(p: Tensor, truth: Tensor) -> float:
    scores = score_structures(p.argmax(dim=0), truth)
    return sum(scores.values()) / len(scores)


def test_every_structure_is_in_one_group() -> None:
    assert sorted(name for names in GROUPS for name in names) == sorted(s.name for s in STRUCTURES)


@pytest.mark.slow
@pytest.mark.parametrize("dark_tissue", [False, True], ids=["like T1w", "the other way round"])
def test_the_image_corrects_a_prior_that_is_displaced(dark_tissue: bool) -> None:
    prior, image, truth = _scene(dark_tissue=dark_tissue)
    found = mixture.compute_posterior(prior, image)
    assert torch.allclose(found.sum(dim=0), torch.ones(SHAPE), atol=1e-4)
    assert _mean_dice(found, truth) > _mean_dice(prior, truth) + 0.1
    white = truth == number("cerebral white matter")
    both = (found.argmax(dim=0) == number("cerebral white matter")) & white
    assert both.sum() > 0.95 * white.sum()


@pytest.mark.slow
def test_a_smooth_field_is_found() -> None:
    prior, image, truth = _scene(field=0.25)
    assert _mean_dice(mixture.compute_posterior(prior, image), truth) > _mean_dice(prior, truth) + 0.08
    corrected = mixture.compute_posterior(prior, image).argmax(dim=0)
    without = mixture.compute_posterior(
        prior, image / (1 + 0.25 * torch.linspace(-1, 1, SHAPE[1])[None, :, None])
    ).argmax(dim=0)
    assert (corrected == without).float().mean() > 0.97


@pytest.mark.slow
def test_a_lesion_that_looks_like_nothing_around_it_stays_what_the_prior_says() -> None:
    prior, image, _ = _scene(lesion=True, dark_tissue=True)
    lesion = _lesion(prior)
    assert lesion.sum() > 50
    found = mixture.compute_posterior(prior, image).argmax(dim=0)
    assert (found[lesion] == number("cerebral white matter")).float().mean() > 0.9


@pytest.mark.slow
def test_nothing_is_random_and_the_inputs_stay() -> None:
    prior, image, _ = _scene()
    prior_before, image_before = prior.clone(), image.clone()
    assert torch.equal(mixture.compute_posterior(prior, image), mixture.compute_posterior(prior, image))
    assert torch.equal(prior, prior_before)
    assert torch.equal(image, image_before)


def test_a_prior_that_knows_no_brain_stays_so() -> None:
    prior = torch.zeros(COUNT + 1, *SHAPE)
    prior[0] = 1
    found = mixture.compute_posterior(prior, torch.rand(SHAPE, generator=torch.Generator().manual_seed(2)))
    assert torch.isfinite(found).all()
    assert (found.argmax(dim=0) == 0).all()


@pytest.mark.slow
def test_a_finer_grid_has_the_densities_of_the_one_it_was_fitted_to() -> None:
    prior, image, _ = _scene(field=0.25)
    m = Mixture()
    fit = mixture.fit_mixture(prior, image, m)
    finer = image
    for axis in range(3):
        finer = finer.repeat_interleave(2, axis)
    densities = mixture.compute_densities(fit, image, m)
    assert densities.shape[0] == len(GROUPS) + 1
    assert float((mixture.compute_densities(fit, finer, m)[:, ::2, ::2, ::2] - densities).abs().mean()) < 0.04 * float(
        densities.mean()
    )


@pytest.mark.parametrize("options", [{"order": 0}, {"outlier": 0.0}, {"components": 0}])
def test_a_mixture_that_makes_no_sense_is_refused(options: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="a mixture has"):
        Mixture(**options)


def test_the_box_holds_all_that_may_be_a_structure_and_is_as_wide_as_asked() -> None:
    background = torch.ones(32, 24, 16)
    background[5:9, 0:2, 15] = 0.5
    background[20, 7, 3] = 0.97
    near = mixture.bounding_box(background, 4)
    assert [part.stop - part.start for part in near] == [16, 8, 16]
    assert int((background[near] < 1).sum()) == int((background < 1).sum()) == 9


def test_the_box_is_everything_where_nothing_is() -> None:
    assert mixture.bounding_box(torch.ones(8, 6, 4), 4) == (slice(0, 8), slice(0, 6), slice(0, 4))
