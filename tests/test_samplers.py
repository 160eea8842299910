"""Samplers on a Gaussian prior, whose posterior is known in closed form: mean and covariance."""

from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from model_zoo import samplers, uncertainty
from model_zoo.operators import Fourier

pytestmark = pytest.mark.slow

torch.set_num_threads(1)  # small arrays: threads that wait for each other cost more than they gain

N, SAMPLES, SD, SIGMA_Y = 6, 2000, 0.3, 0.1
FULL, SHORT = samplers.karras_schedule(20.0, 0.005, 100), samplers.karras_schedule(20.0, 0.005, 25)


def gaussian(mean: Tensor, variance: float) -> Callable[[Tensor, float], Tensor]:
    """Return D of a white Gaussian prior: the mean of x0 given x = x0 + sigma n."""
    return lambda x, sigma: mean + variance / (variance + sigma**2) * (x - mean)


def randn(*shape: int, seed: int = 0) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.view_as_complex(torch.randn(*shape, 2, generator=g))


class Problem:
    """Problem of two coils and half of the samples, with the exact posterior of a white Gaussian prior N(mu, SD^2)."""

    def __init__(self, sigma_y: float = SIGMA_Y) -> None:
        S = randn(1, 2, N, N, seed=1)
        S = S / S.abs().pow(2).sum(1, keepdim=True).sqrt()
        self.A = Fourier(S, torch.rand(1, N, N, generator=torch.Generator().manual_seed(2)) < 0.35)
        self.mu = 0.5 * randn(1, N, N, seed=3)
        truth = self.mu + SD * randn(1, N, N, seed=4)
        self.y = self.A(truth) + sigma_y * self.A.mask[:, None] * randn(1, 2, N, N, seed=5)
        basis = torch.eye(N * N, dtype=torch.complex64).reshape(-1, N, N)
        M = self.A(basis).flatten(1).T
        precision = torch.eye(N * N) / SD**2 + M.conj().T @ M / sigma_y**2
        self.covariance = torch.linalg.inv(precision)
        right = self.mu.flatten() / SD**2 + M.conj().T @ self.y.flatten() / sigma_y**2
        self.mean = self.covariance @ right
        self.D = gaussian(self.mu, SD**2)

    def errors(self, x: Tensor) -> tuple[float, float]:
        """Return the distance of the sample mean in posterior sds per pixel, and the relative error of the covariance.

        The covariance is compared by the Frobenius norm.
        """
        flat = x.flatten(1)
        sd = self.covariance.diagonal().real.sqrt()
        shift = float(((flat.mean(0) - self.mean).abs() / sd).pow(2).mean().sqrt())
        centred = flat - flat.mean(0)
        found = centred.T @ centred.conj() / (2 * (len(flat) - 1))
        covariance_error = torch.linalg.matrix_norm(found - self.covariance) / torch.linalg.matrix_norm(self.covariance)
        return shift, float(covariance_error)


def noise() -> samplers.Noise:
    return samplers.noise_source(range(SAMPLES))


def start(y: Tensor) -> Tensor:
    return y.repeat(SAMPLES, 1, 1, 1)


SAMPLING_ERROR = (N * N / (2 * SAMPLES)) ** 0.5
"""What exact samples would show in the covariance, about 0.1."""


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_dds_reproduces_mean_and_covariance_of_the_posterior(eta: float) -> None:
    p = Problem()
    x = samplers.dds(
        p.D,
        p.A.repeat(SAMPLES),
        start(p.y),
        FULL,
        sigma_y=SIGMA_Y,
        sigma_data=SD,
        noise=noise(),
        eta=eta,
        iterations=10,
    )
    shift, covariance_error = p.errors(x)
    assert shift < 0.07
    assert covariance_error < SAMPLING_ERROR + 0.06


def test_dds_from_the_posterior_mean_reproduces_the_posterior_from_little_noise_on() -> None:
    p = Problem()
    x = samplers.dds(
        p.D,
        p.A.repeat(SAMPLES),
        start(p.y),
        samplers.karras_schedule(4 * SD, 0.005, 60),
        sigma_y=SIGMA_Y,
        sigma_data=SD,
        noise=noise(),
        start=p.mean.reshape(1, N, N),
        iterations=10,
    )
    shift, covariance_error = p.errors(x)
    assert shift < 0.07
    assert covariance_error < SAMPLING_ERROR + 0.1


def test_momentum_keeps_the_limit_of_the_estimate_and_reaches_it_in_fewer_steps() -> None:
    M = torch.diag(torch.tensor([0.9, 0.5])).to(torch.complex64)
    b = torch.tensor([1.0 + 1j, 2.0])
    limit = torch.linalg.solve(torch.eye(2) - M, b)

    def distance(momentum: float, steps: int) -> float:
        found = samplers.anneal(lambda x, _: x @ M, [1.0] * steps + [0.0], b, lambda x, _: x + b, momentum=momentum)
        return float((found - limit).abs().max())

    assert distance(0.5, 100) < 1e-4
    assert distance(0.5, 12) < 0.5 * distance(0.0, 12)


def test_posterior_mean_is_the_exact_mean_on_a_gaussian() -> None:
    p = Problem()
    x = samplers.posterior_mean(p.D, p.A, p.y, FULL, sigma_y=SIGMA_Y, sigma_data=SD, start=p.A.H(p.y), iterations=10)
    assert float(((x.flatten() - p.mean).abs()).max()) < 0.02


def test_ald_reproduces_the_posterior_approximately() -> None:
    p = Problem()
    x = samplers.ald(
        p.D, p.A.repeat(SAMPLES), start(p.y), FULL, sigma_y=SIGMA_Y, noise=noise(), inner_steps=5, rate=0.3
    )
    shift, covariance_error = p.errors(x)
    assert shift < 0.15
    assert covariance_error < SAMPLING_ERROR + 0.25


def test_dps_finds_the_mean_approximately_and_its_spread_is_not_the_posterior() -> None:
    p = Problem()
    x = samplers.dps(p.D, p.A.repeat(SAMPLES), start(p.y), FULL, noise=noise(), zeta=1.0)
    assert p.errors(x)[0] < 0.6
    prior_only = samplers.dps(p.D, p.A.repeat(SAMPLES), start(p.y), SHORT, noise=noise(), zeta=0.0)
    assert p.errors(prior_only)[0] > 2 * p.errors(x)[0]


def test_score_mri_samples_the_noiseless_posterior_where_one_coil_measures() -> None:
    p = Problem(1e-3)
    A = Fourier(torch.ones(1, 1, N, N, dtype=torch.complex64), p.A.mask)
    truth = p.mu + SD * randn(1, N, N, seed=4)
    y = A(truth)
    x = samplers.score_mri(p.D, A.repeat(SAMPLES), start(y), FULL, noise=noise())
    torch.testing.assert_close(A(x.mean(0, keepdim=True)), y, atol=1e-3, rtol=1e-3)
    unmeasured = Fourier(A.maps, ~A.mask)
    expected = unmeasured(p.mu)
    k = unmeasured(x)
    missing = unmeasured.mask.flatten()
    deviation = (k - expected).flatten(1)[:, missing]
    assert float((deviation.mean(0)).abs().mean()) < 0.1 * SD
    assert float(deviation.abs().pow(2).mean().sqrt() / (2**0.5 * SD)) == pytest.approx(1.0, abs=0.15)


def test_consistency_is_the_mean_of_two_gaussians() -> None:
    p = Problem()
    gamma = SD**2 / SIGMA_Y**2
    x = samplers.enforce_consistency(p.A, p.A.H(p.y), p.mu, gamma, iterations=40)
    torch.testing.assert_close(x.flatten(), p.mean, atol=1e-4, rtol=1e-3)


def test_consistency_leaves_alone_what_was_not_measured() -> None:
    A = Fourier(torch.ones(1, 1, N, N, dtype=torch.complex64), Problem().A.mask)
    x0, y = randn(1, N, N, seed=6), A(randn(1, N, N, seed=7))
    x = samplers.enforce_consistency(A, A.H(y), x0, 1e4)
    hidden = Fourier(A.maps, ~A.mask)
    torch.testing.assert_close(hidden(x), hidden(x0), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(A(x), y, atol=1e-3, rtol=1e-3)


def test_a_sample_is_the_same_alone_and_in_a_batch() -> None:
    p = Problem()

    def run(seeds: list[int]) -> Tensor:
        y = p.y.repeat(len(seeds), 1, 1, 1)
        A = p.A.repeat(len(seeds))
        source = samplers.noise_source(seeds)
        return samplers.dds(p.D, A, y, SHORT, sigma_y=SIGMA_Y, sigma_data=SD, noise=source)

    together = run([3, 4, 5])
    torch.testing.assert_close(run([4])[0], together[1], atol=1e-5, rtol=1e-5)


def test_schedule_descends_from_top_to_bottom_and_ends_in_zero() -> None:
    sigmas = samplers.karras_schedule(20.0, 0.002, 30)
    assert sigmas[0] == pytest.approx(20.0)
    assert sigmas[-2] == pytest.approx(0.002)
    assert sigmas[-1] == 0
    assert all(a > b for a, b in pairwise(sigmas))


def test_one_pass_mean_and_sd_match_two_passes_also_far_from_zero() -> None:
    x = 1e4 + torch.randn(7, 5, 5, generator=torch.Generator().manual_seed(1))
    mean, sd = uncertainty.mean_and_sd(iter(x))
    torch.testing.assert_close(mean, x.mean(0))
    torch.testing.assert_close(sd, x.std(0), atol=2e-3, rtol=2e-3)
    assert float(uncertainty.mean_and_sd([x[0]])[1].max()) == 0


def test_chi_square_is_one_for_the_truth() -> None:
    A = Fourier(torch.ones(2, 1, 64, 64, dtype=torch.complex64), torch.ones(2, 64, 64, dtype=torch.bool))
    x = randn(2, 64, 64)
    y = A(x) + 0.05 * randn(2, 1, 64, 64, seed=1)
    chi = uncertainty.chi_square(A, x, y, 0.05)
    assert torch.all((chi - 1).abs() < 0.05)


def test_terminal_consistency_changes_only_what_misses_its_data() -> None:
    A = Fourier(torch.ones(2, 1, 64, 64, dtype=torch.complex64), torch.rand(2, 64, 64) < 0.5)
    x = randn(2, 64, 64)
    sigma_y = torch.tensor([0.05, 0.05])
    y = A(x) + 0.05 * A.mask[:, None] * randn(2, 1, 64, 64, seed=1)
    off = x + torch.tensor([0.0, 0.2])[:, None, None] * randn(2, 64, 64, seed=2)
    found = uncertainty.apply_discrepancy_principle(A, y, off, sigma_y, limit=torch.tensor([1e3, 1e3]))
    chi = uncertainty.chi_square(A, found, y, sigma_y)
    assert 0.7 < float(chi[1]) <= 1
    hidden = Fourier(A.maps, ~A.mask)
    torch.testing.assert_close(hidden(found), hidden(off), atol=1e-4, rtol=1e-4)
    limited = uncertainty.apply_discrepancy_principle(A, y, off, sigma_y, limit=torch.tensor([0.5, 0.5]))
    assert float(uncertainty.chi_square(A, limited, y, sigma_y)[1]) > 1
