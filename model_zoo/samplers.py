"""Samplers of p(x | y) for y = A x + e with a learned denoiser as prior, each a function with its loop in sight.

Conventions (variance exploding, Karras 2022): ``D(x, sigma)`` estimates x0 from x = x0 + sigma n, where the real and
imaginary parts of n are standard normal, each; so grad log p_sigma(x) = (D(x, sigma) - x) / sigma^2. Likewise the
parts of the measurement noise e have sd ``sigma_y`` each (a number, or one per batch element). ``sigmas`` descend and
end in 0; ``noise(x)`` draws n in the shape of x. Images are complex64 (batch, a, b), a batch being slices, samples or
both, or (batch, set, a, b) where A has sets of maps. Where A is real, so are images, noise and data: float32, with no
imaginary parts. D is called len(sigmas) - 1 times unless said otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from model_zoo.operators import LinearOperator, cg, per_element

__all__ = [
    "Correct",
    "Denoiser",
    "Noise",
    "ald",
    "anneal",
    "data_weight",
    "dds",
    "dps",
    "enforce_consistency",
    "karras_schedule",
    "make_correction",
    "noise_source",
    "posterior_mean",
    "score_mri",
]

Denoiser = Callable[[Tensor, float], Tensor]
Noise = Callable[[Tensor], Tensor]
Correct = Callable[[Tensor, float], Tensor]
"""A function correct(x0_hat, sigma) that moves the denoised image towards the data."""


def karras_schedule(sigma_max: float, sigma_min: float, steps: int, rho: float = 7.0) -> list[float]:
    """Return sigmas with sigma_i^(1/rho) equally spaced from sigma_max to sigma_min, then 0 (Karras 2022, eq. 5)."""
    top, bottom = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    return [(top + i / max(steps - 1, 1) * (bottom - top)) ** rho for i in range(steps)] + [0.0]


def noise_source(seeds: Sequence[int]) -> Noise:
    """Return a noise function with one generator per batch element; complex noise for complex images, else real.

    A result then does not depend on the division of a volume into batches.
    """
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def noise(x: Tensor) -> Tensor:
        shape = (*x.shape[1:], 2) if x.is_complex() else x.shape[1:]
        n = torch.stack([torch.randn(*shape, generator=g) for g in generators])
        return (torch.view_as_complex(n) if x.is_complex() else n).to(x.device)

    return noise


def enforce_consistency(
    A: LinearOperator, AHy: Tensor, x0_hat: Tensor, gamma: float | Tensor, *, iterations: int = 5
) -> Tensor:
    """Return argmin_x ||x - x0_hat||^2 + gamma ||A x - y||^2, from (I + gamma A^H A) x = x0_hat + gamma A^H y.

    With gamma = r^2 / sigma_y^2 it is the mean of x0 given y when x0 ~ N(x0_hat, r^2): measured components move to
    the data as far as their noise warrants, the others stay.
    """
    weight = torch.as_tensor(gamma, dtype=torch.float32, device=x0_hat.device)
    g = per_element(weight, x0_hat)
    M = A.precondition(weight.reshape(-1))
    return cg(lambda x: x + g * A.normal(x), x0_hat + g * AHy, x0_hat, iterations=iterations, precondition=M)


def dds(
    D: Denoiser, A: LinearOperator, y: Tensor, sigmas: Sequence[float], *, sigma_y: float | Tensor, sigma_data: float,
    noise: Noise, start: Tensor | float = 0.0, eta: float = 1.0, iterations: int = 5,
) -> Tensor:  # fmt: skip
    """Sample by decomposed diffusion sampling (Chung 2024) with the data term matched to the noise.

    x0_hat = D(x, sigma); x0_y solves (I + gamma A^H A) x0_y = x0_hat + gamma A^H y with gamma = r^2 / sigma_y^2 and
    r^2 = sigma^2 sigma_data^2 / (sigma^2 + sigma_data^2), the variance of x0 given x; then a DDIM step towards x0_y:
    x' = x0_y + sqrt(sigma'^2 - s^2) (x - x0_y) / sigma + s n, s = eta sigma' sqrt(1 - sigma'^2 / sigma^2).
    eta 0 follows the probability flow, eta 1 is ancestral. Exact in the limit of small steps for a white Gaussian
    prior. (The paper renoises with (x - x0_hat) / sigma, which is not the posterior's noise where y was measured.)

    ``start``: centre of the first state, x = start + sigmas[0] n. Zero serves where sigmas[0] exceeds the images by
    far. An estimate of E[x | y] serves from a sigmas[0] on that exceeds its error by far: the state of an exact sampler
    is a posterior sample plus that noise.
    """
    AHy = A.H(y)
    x = start + sigmas[0] * noise(AHy)
    for sigma, sigma_next in pairwise(sigmas):
        x0_hat = D(x, sigma)
        x0_y = enforce_consistency(A, AHy, x0_hat, data_weight(sigma, sigma_data, sigma_y), iterations=iterations)
        fresh = eta * sigma_next * math.sqrt(1 - (sigma_next / sigma) ** 2)
        remaining = math.sqrt(max(sigma_next**2 - fresh**2, 0.0))
        x = x0_y + remaining / sigma * (x - x0_y)
        if fresh > 0:
            x = x + fresh * noise(x)
    return x


def posterior_mean(
    D: Denoiser, A: LinearOperator, y: Tensor, sigmas: Sequence[float], *, sigma_y: float | Tensor, sigma_data: float,
    start: Tensor, iterations: int = 5,
) -> Tensor:  # fmt: skip
    """Return the annealed estimate of E[x | y]: the loop of :func:`dds` with no noise put back, exact for a Gaussian.

    x <- (I + gamma A^H A)^-1 (D(x, sigma) + gamma A^H y), sigma descending; see :func:`anneal` for other priors. The
    result is deterministic.
    """
    return anneal(
        D, sigmas, start, make_correction(A, y, sigma_y=sigma_y, sigma_data=sigma_data, iterations=iterations)
    )


def anneal(D: Denoiser, sigmas: Sequence[float], start: Tensor, correct: Correct, *, momentum: float = 0.0) -> Tensor:
    """Repeat x <- correct(D(x + momentum (x - x_before), sigma), sigma) with sigma descending, from ``start``.

    Momentum (Polyak 1964) moves on along the last change, since each step removes a part of the aliasing only.

    As D(x, sigma) - x = sigma^2 grad log p_sigma(x), p_sigma the prior blurred by sigma, x stands still where the
    posterior of that prior has its mode. For a Gaussian prior the mode is the mean. For a prior of few, sparse
    structures it lies nearer to the image without them, so that small structures are dimmer than in the mean.
    """
    x = before = start
    for sigma in sigmas[:-1]:
        ahead = x + momentum * (x - before)
        x, before = correct(D(ahead, sigma), sigma), x
    return x


def make_correction(
    A: LinearOperator, y: Tensor, *, sigma_y: float | Tensor, sigma_data: float, iterations: int = 5
) -> Correct:
    """Return :func:`enforce_consistency` with the weight that the noise of the data and the error of x0_hat warrant."""
    AHy = A.H(y)

    def correct(x0_hat: Tensor, sigma: float) -> Tensor:
        return enforce_consistency(A, AHy, x0_hat, data_weight(sigma, sigma_data, sigma_y), iterations=iterations)

    return correct


def dps(
    D: Denoiser, A: LinearOperator, y: Tensor, sigmas: Sequence[float], *, noise: Noise, zeta: float = 3.0,
) -> Tensor:  # fmt: skip
    """Sample by diffusion posterior sampling (Chung 2023): an ancestral step, then a step down the data's misfit.

    The latter is x -= step * grad_x ||y - A D(x, sigma)||, with the norm, not its square. The step is zeta sqrt(n)
    (sigma - sigma'), n real numbers in an image (two in a complex pixel): a multiple of the length of the prior's own
    step, so that one zeta serves all sizes and schedules. The gradient passes through D, which costs about two more
    evaluations. The likelihood is approximated by that of the mean, p(y | x0_hat): on a Gaussian it gives the
    posterior's mean approximately, but not its covariance.
    """
    x = sigmas[0] * noise(A.H(y))
    numbers = x[0].numel() * (2 if x.is_complex() else 1)
    for sigma, sigma_next in pairwise(sigmas):
        with torch.enable_grad():
            x = x.detach().requires_grad_(True)
            x0_hat = D(x, sigma)
            misfit = (y - A(x0_hat)).abs().flatten(1).pow(2).sum(dim=1).sqrt().sum()
            (gradient,) = torch.autograd.grad(misfit, x)
        x, x0_hat = x.detach(), x0_hat.detach()
        fresh = sigma_next * math.sqrt(1 - (sigma_next / sigma) ** 2)
        remaining = math.sqrt(max(sigma_next**2 - fresh**2, 0.0))
        x = x0_hat + remaining / sigma * (x - x0_hat) + fresh * noise(x)
        x = x - zeta * math.sqrt(numbers) * (sigma - sigma_next) * gradient
    return x


def score_mri(
    D: Denoiser, A: LinearOperator, y: Tensor, sigmas: Sequence[float], *, noise: Noise, snr: float = 0.16
) -> Tensor:
    """Sample by Score-MRI (Chung & Ye 2022): predictor, corrector, and data consistency x += A^H (y - A x) after each.

    Predictor x += (sigma^2 - sigma'^2) s + sqrt(sigma^2 - sigma'^2) n; corrector x += e s + sqrt(2 e) n with e = 2 (snr
    ||n|| / ||s||)^2, s the score. One complex prior instead of the paper's real one run twice. Twice len(sigmas) - 1
    calls of D. Consistency is hard: measurement noise is copied, so the result is no sample of p(x | y) when y is
    noisy, and an approximate one otherwise.
    """
    AHy = A.H(y)
    x = sigmas[0] * noise(AHy)
    for sigma, sigma_next in pairwise(sigmas):
        s = (D(x, sigma) - x) / sigma**2
        gap = sigma**2 - sigma_next**2
        x = x + gap * s
        if sigma_next == 0:
            return x + AHy - A.normal(x)
        x = x + math.sqrt(gap) * noise(x)
        x = x + AHy - A.normal(x)
        s = (D(x, sigma_next) - x) / sigma_next**2
        n = noise(x)
        e = 2 * (snr * _norm(n) / _norm(s).clamp_min(1e-12)) ** 2
        x = x + e * s + torch.sqrt(2 * e) * n
        x = x + AHy - A.normal(x)
    return x


def ald(
    D: Denoiser, A: LinearOperator, y: Tensor, sigmas: Sequence[float], *, sigma_y: float | Tensor, noise: Noise,
    inner_steps: int = 3, rate: float = 0.6,
) -> Tensor:  # fmt: skip
    """Sample by Score-ALD (Jalal 2021): annealed Langevin dynamics on the posterior's score.

    ``inner_steps`` times at each sigma: x += h (s + A^H (y - A x) / (sigma_y^2 + sigma^2)) + sqrt(2 h) n with h = rate
    sigma^2 (stable for rate < 1, as the precision is at most 2 / sigma^2); a last D removes the noise left. inner_steps
    (len(sigmas) - 1) + 1 calls of D. The samples are of the posterior as rate -> 0 and inner_steps -> infinity; with
    finite steps their covariance is approximate.
    """
    AHy = A.H(y)
    variance_y = per_element(torch.as_tensor(sigma_y, device=y.device), AHy) ** 2
    x = sigmas[0] * noise(AHy)
    for sigma in sigmas[:-1]:
        h = rate * sigma**2
        for _ in range(inner_steps):
            s = (D(x, sigma) - x) / sigma**2
            likelihood = (AHy - A.normal(x)) / (variance_y + sigma**2)
            x = x + h * (s + likelihood) + math.sqrt(2 * h) * noise(x)
    return D(x, sigmas[-2])


def data_weight(sigma: float, sigma_data: float, sigma_y: float | Tensor) -> float | Tensor:
    """Return r^2 / sigma_y^2, r^2 the variance of x0 given x = x0 + sigma n for data of sd sigma_data."""
    r2 = sigma**2 * sigma_data**2 / (sigma**2 + sigma_data**2)
    return r2 / sigma_y**2


def _norm(x: Tensor) -> Tensor:
    return per_element(x.abs().flatten(1).pow(2).sum(dim=1).sqrt(), x)
