"""Small bright spots under a sparse prior whose posterior mean is known: what estimate, samples and image keep."""

import math
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from model_zoo.bundle import Model
from model_zoo.operators import Fourier
from pipelines import inversion, spread
from pipelines.encoding import PRESCAN, Problem

torch.set_num_threads(1)  # small arrays: threads that wait for each other cost more than they gain

N, SIGMA_Y, SPOT = 64, 0.1, 0.35
PARTS = ((0.95, 0.02), (0.05, 0.6))
"""Probability and sd of the two Gaussians that a pixel of the prior comes from."""
PRIOR_SD = math.sqrt(sum(p * sd**2 for p, sd in PARTS))
OPTIONS = inversion.Options()


def denoise(x: Tensor, variance: Tensor) -> Tensor:
    """Return E[x0 | x] of the prior for x = x0 + noise of ``variance`` in each component."""
    totals = [sd**2 + variance.expand(x.shape) for _, sd in PARTS]
    logits = [math.log(p) - t.log() - x.abs().square() / (2 * t) for (p, _), t in zip(PARTS, totals, strict=True)]
    weights = torch.softmax(torch.stack(logits), dim=0)
    parts = [w * sd**2 / t * x for w, (_, sd), t in zip(weights, PARTS, totals, strict=True)]
    return torch.stack(parts).sum(dim=0)


class SparsePrior(nn.Module):
    """F of the EDM denoiser of the sparse prior: (D - c_skip x) / c_out."""

    stride = 1

    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        sigma = (4 * c_noise).exp()[:, None, None]
        total = sigma.square() + PRIOR_SD**2
        noisy = torch.complex(x[:, 0], x[:, 1]) * total.sqrt()
        F = (denoise(noisy, sigma.square()) - PRIOR_SD**2 / total * noisy) / (sigma * PRIOR_SD * total.rsqrt())
        return torch.stack([F.real, F.imag], dim=1)


def randn(*shape: int, seed: int) -> Tensor:
    return torch.view_as_complex(torch.randn(*shape, 2, generator=torch.Generator().manual_seed(seed)))


def acquire() -> tuple[Problem, Tensor]:
    """Return complete k-space of an image of the prior with 64 spots, where each pixel is by itself, and A^H y."""
    is_bright = torch.rand(1, N, N, generator=torch.Generator().manual_seed(9)) < PARTS[1][0]
    x0 = torch.where(is_bright, PARTS[1][1], PARTS[0][1]) * randn(1, N, N, seed=2)
    x0[:, 4::8, 4::8] = SPOT
    A = Fourier(torch.ones(1, 1, N, N, dtype=torch.complex64), torch.ones(1, N, N, dtype=torch.bool))
    y = A(x0) + SIGMA_Y * randn(1, 1, N, N, seed=1)
    return Problem(A, y, torch.full((1,), SIGMA_Y), torch.ones(1, N, N), SIGMA_Y, "one coil", PRESCAN), A.H(y)


def sparse_model() -> Model:
    return Model("sparse", "1", "", {}, SparsePrior(), {"sigma_data": PRIOR_SD}, "cpu", False)


@cache
def reconstruct() -> dict[str, Tensor]:
    p, zero_filled = acquire()
    model = sparse_model()
    estimate = inversion.estimate_slices(p, model, OPTIONS)
    samples = torch.stack([inversion.draw_samples(p, model, OPTIONS, [n], estimate) for n in range(4)], dim=1)
    share = spread.measure_spread(p, model, model, OPTIONS, 1).share
    return {
        "exact": denoise(zero_filled, torch.tensor(SIGMA_Y**2)),
        "estimate": estimate,
        "image": spread.mix_images(estimate, samples.mean(dim=1), share),
    }


def contrast(x: Tensor) -> float:
    return float(x[:, 4::8, 4::8].real.mean())


def error(x: Tensor) -> float:
    """Return the root mean square difference from the exact posterior mean."""
    return float((x - reconstruct()["exact"]).abs().square().mean().sqrt())


def estimate_as_noise_warrants() -> Tensor:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inversion, "DATA_WEIGHT", 1.0)
        return inversion.estimate_slices(acquire()[0], sparse_model(), OPTIONS)


def test_an_estimate_with_the_warranted_weight_is_no_posterior_mean_and_dims_small_spots() -> None:
    assert contrast(estimate_as_noise_warrants()) < 0.35 * contrast(reconstruct()["exact"])


def test_the_image_keeps_the_contrast_of_the_posterior_mean_and_is_nearer_to_it() -> None:
    found, warranted = reconstruct(), error(estimate_as_noise_warrants())
    assert 0.9 < contrast(found["image"]) / contrast(found["exact"]) < 1.15
    assert error(found["image"]) < 0.4 * warranted
    assert error(found["estimate"]) < 0.3 * warranted


@pytest.mark.parametrize("changes", [{"solver": "adadiff"}, {"across_slices": 1.0}])
def test_an_adapted_prior_and_coupled_slices_keep_the_warranted_weight(changes: dict[str, Any]) -> None:
    """The sd of a coupled estimate is scaled by slices that are estimated with the same weight."""
    p, model = acquire()[0], sparse_model()
    options = inversion.Options(**changes)
    found = inversion.estimate_slices(p, model, options)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inversion, "DATA_WEIGHT", 1.0)
        torch.testing.assert_close(inversion.estimate_slices(p, model, options), found)


def test_an_estimate_across_slices_is_the_image_alone_and_its_sd_explains_what_it_leaves() -> None:
    p, model = acquire()[0], sparse_model()
    mixed, alone = (spread.measure_spread(p, model, model, OPTIONS, 1, is_coupled=c) for c in (False, True))
    assert mixed.share < 0.9
    assert alone.share == 1.0
    assert alone.factor > mixed.factor
