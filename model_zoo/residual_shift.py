"""The residual-shift process: diffusion from an image x0 to another image y0 of the same subject, and back.

    x_t = x0 + eta_t (y0 - x0) + kappa sqrt(eta_t) e,   0 < eta_1 < ... < eta_T = 1,   e ~ N(0, C)         (1)
    x_{t-1} | x_t, x0 ~ N((eta_{t-1} / eta_t) x_t + (alpha_t / eta_t) x0, kappa^2 (eta_{t-1} alpha_t / eta_t) C),
    alpha_t = eta_t - eta_{t-1},  eta_0 = 0                                                                (2)

(ResShift: Yue et al. 2023; as ResDM uses it: model specification, section 1.1). (2) is exact for (1) with any
covariance C of the noise; it drops the shift's own term because y0 cancels. Here eta_T is 1, so that x_T = y0 + kappa e
holds nothing of x0: with the published 0.98 or 0.999 a network that takes a whole volume reads the global level of x0
from x_T in training, and there is none in x_T when sampling.

``f(x, eta)`` estimates E[x0 | x_t, y0]: it has to be trained with a squared error, as the minimiser of an absolute one
is the median. Its output in place of x0 in (2), as in both papers, loses the variance of x0 given x_t and makes samples
of few steps far too alike (sd 0.64 of the true one after four steps on a Gaussian). ``spread(x, eta)`` draws
x0 - E[x0 | x_t], which is added: moments are then exact at any number of steps when x0 given x_t is Gaussian.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor

__all__ = [
    "Estimate",
    "Noise",
    "Spread",
    "extend_to_one",
    "geometric_schedule",
    "linear_schedule",
    "posterior",
    "posterior_mean",
    "sample",
    "sample_second_order",
    "shift",
]

Estimate = Callable[[Tensor, float], Tensor]
Noise = Callable[[Tensor], Tensor]
Spread = Callable[[Tensor, float], Tensor]


def linear_schedule(steps: int = 15, first: float = 0.04, last: float = 0.999) -> list[float]:
    """Return eta_t equally spaced (ResDM)."""
    return torch.linspace(first, last, steps, dtype=torch.float64).tolist()


def geometric_schedule(
    steps: int = 15, *, delta: float = 0.04, kappa: float = 2.0, power: float = 0.3, last: float = 0.99
) -> list[float]:
    """Return the schedule of ResShift, whose sqrt(eta_t) = s1 b^(beta_t).

    beta_t = ((t-1) / (T-1))^power (T-1), b = (last / s1)^(1 / (T-1)), s1 = min(delta / kappa, delta); ``last`` is the
    square root of eta_T. Fifteen steps: delta 0.04; four: delta 0.2.
    """
    s1 = min(delta / kappa, delta)
    roots = (s1 * (last / s1) ** ((t / (steps - 1)) ** power) for t in range(steps))
    return [root**2 for root in roots]


def extend_to_one(etas: Sequence[float]) -> list[float]:
    """Return the schedule with eta_T = 1."""
    return [*etas[:-1], 1.0]


def shift(x0: Tensor, y0: Tensor, eta: float | Tensor, kappa: float, e: Tensor) -> Tensor:
    """Return x_t of (1); ``eta`` a number or a tensor that broadcasts against the images."""
    eta = torch.as_tensor(eta, dtype=x0.dtype, device=x0.device)
    return x0 + eta * (y0 - x0) + kappa * eta.sqrt() * e


def posterior(x: Tensor, x0: Tensor, eta: float, eta_next: float, kappa: float) -> tuple[Tensor, float]:
    """Return mean and variance (in units of C) of x_{t-1} given x_t = ``x`` and x0: (2), eta_{t-1} = ``eta_next``."""
    alpha = eta - eta_next
    return eta_next / eta * x + alpha / eta * x0, kappa**2 * eta_next * alpha / eta


def posterior_mean(f: Estimate, y0: Tensor) -> Tensor:
    """Return E[x0 | y0] in one evaluation: f at eta = 1 with no noise added, for networks trained with that input."""
    return f(y0, 1.0)


def sample(
    f: Estimate, y0: Tensor, etas: Sequence[float], *, kappa: float, noise: Noise, spread: Spread | None = None
) -> Tensor:
    """Sample x0 given y0 by ancestral sampling; ``etas`` ascend and end in 1; len(etas) calls of f.

    Start x_T = y0 + kappa e; the last step returns x0_hat, plus its spread where that is given.
    """
    x = y0 + kappa * math.sqrt(etas[-1]) * noise(y0)
    for eta, eta_next in pairwise([*reversed(etas), 0.0]):
        x0_hat = f(x, eta)
        if spread is not None:
            x0_hat = x0_hat + spread(x, eta)
        mean, variance = posterior(x, x0_hat, eta, eta_next, kappa)
        x = mean + math.sqrt(variance) * noise(x) if eta_next > 0 else x0_hat
    return x


def sample_second_order(f: Estimate, y0: Tensor, etas: Sequence[float], *, kappa: float, noise: Noise) -> Tensor:
    """Sample by the probability flow with a two-step exponential integrator; len(etas) calls of f.

    The integrator is DPM-Solver++ 2M (Lu et al. 2022). With z = (x - eta y0) / (1 - eta) and sigma = kappa sqrt(eta) /
    (1 - eta), (1) is z = x0 + sigma e, and z' = (sigma' / sigma) z + (1 - sigma' / sigma) d. The first step starts from
    infinite sigma, where it is z' = x0_hat + sigma' e with the e of x_T.
    """
    e = noise(y0)
    z, before, h_before = torch.zeros_like(y0), None, math.inf
    for eta, eta_next in pairwise([*reversed(etas), 0.0]):
        x = y0 + kappa * e if eta >= 1 else eta * y0 + (1 - eta) * z
        x0_hat = f(x, eta)
        if eta_next == 0:
            return x0_hat
        sigma_next = kappa * math.sqrt(eta_next) / (1 - eta_next)
        if eta >= 1:
            z = x0_hat + sigma_next * e
            continue
        sigma = kappa * math.sqrt(eta) / (1 - eta)
        h = math.log(sigma / sigma_next)
        d = x0_hat if before is None else x0_hat + h / (2 * h_before) * (x0_hat - before)
        z = sigma_next / sigma * z + (1 - sigma_next / sigma) * d
        before, h_before = x0_hat, h
    raise ValueError("no steps")
