"""The residual-shift process on Gaussians, where every answer is known."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from model_zoo.residual_shift import (
    Estimate,
    Spread,
    extend_to_one,
    geometric_schedule,
    linear_schedule,
    posterior,
    posterior_mean,
    sample,
    sample_second_order,
    shift,
)

KAPPA, MEAN, SD, Y0 = 0.7, 0.4, 0.25, 1.3
COUNT = 200_000


def gaussian(seed: int) -> tuple[Estimate, Spread, torch.Generator]:
    """Return the exact E[x0 | x_t] for x0 ~ N(MEAN, SD^2), and draws of x0 - E[x0 | x_t]."""
    generator = torch.Generator().manual_seed(seed)

    def gain(eta: float) -> float:
        return (1 - eta) * SD**2 / ((1 - eta) ** 2 * SD**2 + KAPPA**2 * eta)

    def f(x: Tensor, eta: float) -> Tensor:
        return MEAN + gain(eta) * (x - eta * Y0 - (1 - eta) * MEAN)

    def spread(x: Tensor, eta: float) -> Tensor:
        variance = SD**2 - gain(eta) * (1 - eta) * SD**2
        return math.sqrt(variance) * torch.randn(x.shape, generator=generator)

    return f, spread, generator


def test_schedules_have_the_published_values() -> None:
    fifteen = [0.0004, 0.0137, 0.0311, 0.0546, 0.085, 0.123, 0.170, 0.226, 0.293, 0.372, 0.463, 0.569, 0.689, 0.826]
    assert geometric_schedule(15) == pytest.approx([*fifteen, 0.980], abs=6e-4)
    assert geometric_schedule(4, delta=0.2) == pytest.approx([0.01, 0.2705, 0.5797, 0.9801], abs=5e-5)
    assert linear_schedule() == pytest.approx([0.04 + t * 0.959 / 14 for t in range(15)])
    assert extend_to_one(linear_schedule())[-1] == 1.0


def test_the_process_has_the_stated_mean_and_variance() -> None:
    generator = torch.Generator().manual_seed(0)
    x0, y0 = torch.full((COUNT,), 0.2), torch.full((COUNT,), 0.9)
    x = shift(x0, y0, 0.3, KAPPA, torch.randn(COUNT, generator=generator))
    assert float(x.mean()) == pytest.approx(0.2 + 0.3 * 0.7, abs=0.004)
    assert float(x.var()) == pytest.approx(KAPPA**2 * 0.3, rel=0.02)


def test_stepping_back_with_the_true_x0_gives_the_marginal_of_every_earlier_time() -> None:
    generator = torch.Generator().manual_seed(1)
    x0, y0 = torch.full((COUNT,), 0.2), torch.full((COUNT,), 0.9)
    etas = extend_to_one(geometric_schedule(4, delta=0.2))
    x = shift(x0, y0, 1.0, KAPPA, torch.randn(COUNT, generator=generator))
    for eta, eta_next in pairwise(reversed(etas)):
        mean, variance = posterior(x, x0, eta, eta_next, KAPPA)
        x = mean + math.sqrt(variance) * torch.randn(COUNT, generator=generator)
        assert float(x.mean()) == pytest.approx(0.2 + eta_next * 0.7, abs=0.006)
        assert float(x.var()) == pytest.approx(KAPPA**2 * eta_next, rel=0.02)


@pytest.mark.parametrize("steps", [1, 4, 15])
def test_with_the_spread_put_back_samples_have_the_exact_moments_at_any_number_of_steps(steps: int) -> None:
    f, spread, generator = gaussian(steps)
    etas = [1.0] if steps == 1 else extend_to_one(geometric_schedule(steps, delta=0.2))
    y0 = torch.full((COUNT,), Y0)
    x = sample(f, y0, etas, kappa=KAPPA, noise=lambda x: torch.randn(x.shape, generator=generator), spread=spread)
    assert float(x.mean()) == pytest.approx(MEAN, abs=0.003)
    assert float(x.std()) == pytest.approx(SD, rel=0.01)


@pytest.mark.parametrize(("steps", "low", "high"), [(4, 0.45, 0.75), (15, 0.8, 0.95)])
def test_without_the_spread_few_steps_are_too_alike(steps: int, low: float, high: float) -> None:
    f, _, generator = gaussian(20 + steps)
    etas = extend_to_one(geometric_schedule(steps, delta=0.2 if steps == 4 else 0.04))
    y0 = torch.full((COUNT,), Y0)
    x = sample(f, y0, etas, kappa=KAPPA, noise=lambda x: torch.randn(x.shape, generator=generator))
    assert float(x.mean()) == pytest.approx(MEAN, abs=0.003)
    assert low < float(x.std()) / SD < high


def test_the_second_order_flow_is_nearly_exact_with_fifteen_steps() -> None:
    f, _, generator = gaussian(40)
    etas = extend_to_one(linear_schedule(15, 0.01, 0.97))
    y0 = torch.full((COUNT,), Y0)
    x = sample_second_order(f, y0, etas, kappa=KAPPA, noise=lambda x: torch.randn(x.shape, generator=generator))
    assert float(x.mean()) == pytest.approx(MEAN, abs=0.005)
    assert float(x.std()) == pytest.approx(SD, rel=0.08)


def test_one_step_from_the_end_is_the_posterior_mean_whatever_y0_is() -> None:
    f, _, _ = gaussian(3)
    assert torch.allclose(posterior_mean(f, torch.full((5,), Y0)), torch.full((5,), MEAN))


def test_a_sampler_calls_the_network_once_per_step() -> None:
    f, _, generator = gaussian(4)
    calls: list[float] = []

    def counted(x: Tensor, eta: float) -> Tensor:
        calls.append(eta)
        return f(x, eta)

    def noise(x: Tensor) -> Tensor:
        return torch.randn(x.shape, generator=generator)

    etas = extend_to_one(geometric_schedule(4, delta=0.2))
    for sampler in (sample, sample_second_order):
        calls.clear()
        sampler(counted, torch.zeros(3), etas, kappa=KAPPA, noise=noise)
        assert calls == etas[::-1]
