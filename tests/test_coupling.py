"""Slices coupled by total variation: operators on dense matrices, the optimum, and the effect on a noisy volume."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from model_zoo import coupling, samplers
from model_zoo.operators import Fourier, inner

torch.set_num_threads(1)  # small arrays: threads that wait for each other cost more than they gain

SLICES, N, SIGMA_Y, SIGMA_DATA = 5, 6, 0.1, 0.3


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.view_as_complex(torch.randn(*shape, 2, generator=torch.Generator().manual_seed(seed)))


def operator(fraction: float = 0.5) -> Fourier:
    S = randn(SLICES, 2, N, N, seed=1)
    S = S / S.abs().pow(2).sum(1, keepdim=True).sqrt()
    return Fourier(S, torch.rand(SLICES, N, N, generator=torch.Generator().manual_seed(2)) < fraction)


def differences() -> coupling.Differences:
    factor = randn(SLICES, N, N, seed=3)
    factor[2, 1] = 0
    return coupling.Differences(factor)


def make_correction(weight: float, A: Fourier, y: Tensor, D: coupling.Differences) -> coupling.CoupledCorrection:
    return coupling.CoupledCorrection(A, y, torch.full((SLICES,), SIGMA_Y), SIGMA_DATA, D, weight, iterations=25)


def test_differences_and_their_adjoint_agree_and_stop_where_a_slice_is_unseen() -> None:
    D = differences()
    x, z = randn(SLICES, N, N, seed=4), randn(SLICES - 1, N, N, seed=5)
    torch.testing.assert_close(inner(D(x)[None], z[None]), inner(x[None], D.H(z)[None]))
    assert float(D(x)[1, 1].abs().max()) == float(D(x)[2, 1].abs().max()) == 0
    assert float(D(x)[0, 1].abs().min()) > 0


def test_the_ends_are_not_neighbours_of_each_other() -> None:
    x = torch.zeros(SLICES, N, N, dtype=torch.complex64)
    x[0] = 1
    D = coupling.Differences(torch.ones_like(x))
    assert float(D.H(D(x))[-1].abs().max()) == 0


@pytest.mark.slow
def test_without_weight_it_is_the_correction_of_single_slices() -> None:
    A, x0 = operator(), randn(SLICES, N, N, seed=6)
    y = A(randn(SLICES, N, N, seed=7))
    expected = samplers.make_correction(A, y, sigma_y=SIGMA_Y, sigma_data=SIGMA_DATA, iterations=60)(x0, 0.2)
    alone = make_correction(0.0, A, y, differences())
    for _ in range(250):
        found = alone(x0, 0.2)
    torch.testing.assert_close(found, expected, atol=2e-4, rtol=1e-3)


@pytest.mark.slow
def test_sweeps_at_one_sigma_reach_the_optimum_of_the_stated_problem() -> None:
    A, x0, D, weight, sigma = operator(), randn(SLICES, N, N, seed=6), differences(), 4.0, 0.2
    y = A(randn(SLICES, N, N, seed=7))
    r2 = sigma**2 * SIGMA_DATA**2 / (sigma**2 + SIGMA_DATA**2)

    def objective(x: Tensor) -> float:
        misfit = (A(x) - y).abs().square().sum() / (2 * SIGMA_Y**2)
        return float((x - x0).abs().square().sum() / (2 * r2) + misfit + weight * D(x).abs().sum())

    sweep = make_correction(weight, A, y, D)
    for _ in range(150):
        x = sweep(x0, sigma)
    least = objective(x)
    assert least < 0.99 * objective(samplers.make_correction(A, y, sigma_y=SIGMA_Y, sigma_data=SIGMA_DATA)(x0, sigma))
    for seed in range(20):
        for size in (1e-3, 1e-2):
            assert objective(x + size * randn(SLICES, N, N, seed=10 + seed)) > least


@pytest.mark.slow
def test_a_price_kept_from_one_sigma_is_the_right_one_at_the_next() -> None:
    A, x0, D = operator(), randn(SLICES, N, N, seed=6), differences()
    y = A(randn(SLICES, N, N, seed=7))
    warm, cold = make_correction(4.0, A, y, D), make_correction(4.0, A, y, D)
    for _ in range(150):
        warm(x0, 0.3)
    for _ in range(150):
        at_once = cold(x0, 0.2)
    after_warm = warm(x0, 0.2)
    for _ in range(149):
        after_warm = warm(x0, 0.2)
    torch.testing.assert_close(after_warm, at_once, atol=2e-3, rtol=1e-3)


def test_scale_and_phase_of_each_slice_are_taken_out_before_slices_are_compared() -> None:
    same = randn(1, N, N, seed=8).repeat(SLICES, 1, 1)
    gain = (1 + torch.arange(SLICES, dtype=torch.float32))[:, None, None].expand(SLICES, N, N).clone()
    phase = torch.polar(torch.ones(SLICES), torch.arange(SLICES) * 1.3)[:, None, None]
    D = coupling.Differences(coupling.slice_factors(same * phase / gain, gain))
    assert float(D(same * phase / gain).abs().max()) < 1e-5


def test_in_a_volume_that_changes_little_the_coupling_lowers_error_and_inconsistency() -> None:
    a, b = torch.meshgrid(torch.linspace(-1, 1, 32), torch.linspace(-1, 1, 32), indexing="ij")
    radius = torch.linspace(0.6, 0.7, 8)[:, None, None]
    truth = ((a**2 + b**2).sqrt() < radius).to(torch.complex64)
    mask = torch.rand(8, 32, 32, generator=torch.Generator().manual_seed(1)) < 0.4
    mask[:, 12:20, 12:20] = True
    A = Fourier(torch.ones(8, 1, 32, 32, dtype=torch.complex64), mask)
    y = A(truth) + 0.05 * mask[:, None] * randn(8, 1, 32, 32, seed=2)
    sigma_y, sigmas = torch.full((8,), 0.05), samplers.karras_schedule(0.5, 0.05, 20)
    D = coupling.Differences(torch.ones_like(truth))

    def shrink(x: Tensor, sigma: float) -> Tensor:
        return x * (SIGMA_DATA**2 / (SIGMA_DATA**2 + sigma**2))

    def error(x: Tensor) -> float:
        return float(torch.linalg.vector_norm(x - truth) / torch.linalg.vector_norm(truth))

    single = samplers.make_correction(A, y, sigma_y=sigma_y, sigma_data=SIGMA_DATA)
    alone = samplers.anneal(shrink, sigmas, A.H(y), single)
    together = samplers.anneal(shrink, sigmas, A.H(y), coupling.CoupledCorrection(A, y, sigma_y, SIGMA_DATA, D, 5.0))
    assert error(together) < 0.85 * error(alone)
    inconsistency = [float(torch.linalg.vector_norm(D(x) - D(truth))) for x in (together, alone)]
    assert inconsistency[0] < 0.7 * inconsistency[1]


@pytest.mark.parametrize("slices", [1, 9])
def test_any_number_of_slices_is_taken(slices: int) -> None:
    A = Fourier(torch.ones(slices, 1, N, N, dtype=torch.complex64), torch.ones(slices, N, N, dtype=torch.bool))
    x = randn(slices, N, N, seed=8)
    D = coupling.Differences(coupling.slice_factors(x, torch.ones(slices, N, N)))
    correct = coupling.CoupledCorrection(A, A(x), torch.full((slices,), SIGMA_Y), SIGMA_DATA, D, 1.0)
    assert bool(torch.isfinite(correct(x, 0.3).abs()).all())
