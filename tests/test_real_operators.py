"""Samplers, solvers and measures of fit on real images and data whose shape is not the images': no Fourier in them."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from model_zoo import classical, coupling, samplers, uncertainty
from model_zoo.operators import Precondition, cg, inner

torch.set_num_threads(1)  # small arrays: threads that wait for each other cost more than they gain

SHAPE, DATA, SAMPLES, SD, SIGMA_Y = (3, 4), 9, 600, 0.3, 0.1
SIGMAS = samplers.karras_schedule(20.0, 0.005, 50)
SAMPLING_ERROR = (12 / SAMPLES) ** 0.5
"""What exact samples would show in the covariance, about 0.14."""


@dataclass(frozen=True)
class Matrix:
    """A real matrix (data, pixels) as an operator on images (batch, a, b); data are (batch, data)."""

    matrix: Tensor
    is_exact: bool = False

    def __call__(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.matrix.T

    def H(self, y: Tensor) -> Tensor:
        return (y @ self.matrix).reshape(-1, *SHAPE)

    def normal(self, x: Tensor) -> Tensor:
        return self.H(self(x))

    def precondition(self, gamma: Tensor) -> Precondition | None:
        if not self.is_exact:
            return None
        inverse = torch.linalg.inv(torch.eye(12) + gamma[0] * self.matrix.T @ self.matrix)
        return lambda r: (r.flatten(1) @ inverse).reshape(r.shape)

    @property
    def measured(self) -> Tensor:
        return torch.tensor([len(self.matrix)])

    def select(self, part: slice) -> Matrix:
        return self

    def repeat(self, n: int) -> Matrix:
        return self


def randn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def make_matrix(*, is_exact: bool = False) -> Matrix:
    M = randn(DATA, 12, seed=1)
    return Matrix(M / torch.linalg.matrix_norm(M, 2), is_exact)


class Problem:
    """Nine data of twelve pixels, with the exact posterior of a white Gaussian prior N(mu, SD^2)."""

    def __init__(self) -> None:
        self.A = make_matrix()
        self.mu = 0.5 * randn(1, *SHAPE, seed=3)
        self.truth = self.mu + SD * randn(1, *SHAPE, seed=4)
        self.y = self.A(self.truth) + SIGMA_Y * randn(1, DATA, seed=5)
        M = self.A.matrix
        self.covariance = torch.linalg.inv(torch.eye(12) / SD**2 + M.T @ M / SIGMA_Y**2)
        self.mean = self.covariance @ (self.mu.flatten() / SD**2 + M.T @ self.y.flatten() / SIGMA_Y**2)

    def D(self, x: Tensor, sigma: float) -> Tensor:
        return self.mu + SD**2 / (SD**2 + sigma**2) * (x - self.mu)

    def errors(self, x: Tensor) -> tuple[float, float]:
        """Return the shift of the sample mean in posterior sds per pixel, and the relative error of the covariance."""
        flat = x.flatten(1)
        shift = (flat.mean(0) - self.mean) / self.covariance.diagonal().sqrt()
        difference = torch.linalg.matrix_norm(flat.T.cov() - self.covariance)
        return float(shift.square().mean().sqrt()), float(difference / torch.linalg.matrix_norm(self.covariance))


def test_dds_samples_the_posterior_of_a_real_image() -> None:
    p, noise = Problem(), samplers.noise_source(range(SAMPLES))
    y = p.y.repeat(SAMPLES, 1)
    x = samplers.dds(p.D, p.A, y, SIGMAS, sigma_y=SIGMA_Y, sigma_data=SD, noise=noise, iterations=12)
    shift, covariance_error = p.errors(x)
    assert x.dtype == torch.float32
    assert shift < 0.1
    assert covariance_error < 1.5 * SAMPLING_ERROR


def test_dps_samples_near_the_mean_of_the_posterior_of_a_real_image() -> None:
    p, noise = Problem(), samplers.noise_source(range(300))
    x = samplers.dps(p.D, p.A, p.y.repeat(300, 1), SIGMAS, noise=noise)
    assert p.errors(x)[0] < 0.5 * p.errors(p.mu.expand(300, *SHAPE))[0]


@pytest.mark.parametrize("is_exact", [False, True])
def test_the_annealed_estimate_is_the_mean_of_the_posterior(is_exact: bool) -> None:
    p = Problem()
    A = make_matrix(is_exact=is_exact)
    iterations = 1 if is_exact else 12  # an exact preconditioner solves in one iteration
    x = samplers.posterior_mean(
        p.D, A, p.y, SIGMAS, sigma_y=SIGMA_Y, sigma_data=SD, start=A.H(p.y), iterations=iterations
    )
    torch.testing.assert_close(x.flatten(), p.mean, atol=2e-3, rtol=0)


def test_chi_square_of_the_truth_is_one() -> None:
    A = make_matrix()
    truth = randn(2000, *SHAPE, seed=6)
    y = A(truth) + SIGMA_Y * randn(2000, DATA, seed=7)
    assert float(uncertainty.chi_square(A, truth, y, SIGMA_Y).mean()) == pytest.approx(1.0, abs=0.05)


def test_the_discrepancy_principle_fits_real_data_to_their_noise() -> None:
    p = Problem()
    x = uncertainty.apply_discrepancy_principle(
        p.A, p.y, torch.zeros_like(p.mu), torch.tensor([SIGMA_Y]), limit=torch.tensor([1e6])
    )
    assert float(uncertainty.chi_square(p.A, x, p.y, SIGMA_Y)) == pytest.approx(1.0, abs=0.3)


def test_total_variation_and_wavelets_reach_the_optimum_of_their_problem() -> None:
    A, y = make_matrix(), randn(1, DATA, seed=8)
    W, _ = classical.haar(SHAPE, 1)

    def misfit(x: Tensor) -> Tensor:
        return (A(x) - y).square().sum() / 2

    def tv(x: Tensor) -> Tensor:
        return misfit(x) + 0.1 * classical.gradient(x).square().sum(0).sqrt().sum()

    def l1(x: Tensor) -> Tensor:
        return misfit(x) + 0.1 * sum(band.abs().sum() for band in W(x)[1:])

    for objective, x in (
        (tv, classical.total_variation(A, y, 0.1, iterations=400)),
        (tv, classical.split_total_variation(A, y, 0.1, edge=0.1, sweeps=150, iterations=6)),
        (l1, classical.l1_wavelet(A, y, 0.1, iterations=400, filter=classical.HAAR, levels=1)),
    ):
        least = objective(x)
        for seed in range(10):
            assert objective(x + 1e-2 * randn(1, *SHAPE, seed=seed)) > least - 1e-6


def test_slices_of_real_images_are_coupled() -> None:
    truth = randn(1, *SHAPE, seed=9).repeat(10, 1, 1)
    A = make_matrix()
    y = A(truth) + SIGMA_Y * randn(10, DATA, seed=10)
    x0_hat, D = truth + SD * randn(10, *SHAPE, seed=11), coupling.Differences(torch.ones_like(truth))
    sigma_y = torch.full((10,), SIGMA_Y)
    sweep = coupling.CoupledCorrection(A, y, sigma_y, SD, D, 30.0, iterations=15)
    for _ in range(12):
        x = sweep(x0_hat, 0.5)
    alone = samplers.make_correction(A, y, sigma_y=sigma_y, sigma_data=SD, iterations=12)(x0_hat, 0.5)
    assert x.dtype == torch.float32
    assert torch.linalg.vector_norm(x - truth) < 0.8 * torch.linalg.vector_norm(alone - truth)


def test_preconditioned_cg_solves_the_system_and_the_identity_changes_no_bit() -> None:
    B = randn(12, 12, seed=12)
    H = B @ B.T + torch.diag(torch.logspace(0, 4, 12))
    b, start = randn(2, 12, seed=13), torch.zeros(2, 12)
    diagonal = H.diagonal()

    def residual(iterations: int, precondition: Precondition | None) -> float:
        x = cg(lambda v: v @ H, b, start, iterations=iterations, precondition=precondition)
        r = b - x @ H
        return float(inner(r, r).max().sqrt())

    assert residual(12, lambda r: r / diagonal) < 1e-4
    assert residual(6, lambda r: r / diagonal) < 0.1 * residual(6, None)
    assert residual(6, lambda r: 1.0 * r) == residual(6, None)
