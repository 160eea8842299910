"""SynDiff: a target from a source by four steps of adversarial diffusion, trained without pairs (chapter 17).

Steps n = 1 ... 4 of k = T / 4, with the noise of equation 17.19, corrected:

    x_n = sqrt(1 - gamma_n) x_{n-1} + sqrt(gamma_n) e,
    gamma_n = 1 - exp(-beta_min k / T - (beta_max - beta_min) (2 t k - k^2) / (2 T^2)),   t = n k

so that x_n given x_0 has the kept share abar_n = exp(-beta_min t / T - (beta_max - beta_min) t^2 / (2 T^2)). Backwards,
x_{n-1} is drawn from q(x_{n-1} | x_n, x_0) with the generator's estimate of x_0 (17.25 to 17.28), which the opponent
makes such that x_{n-1} looks like a true one.

Without pairs, data do not say which target belongs to a source: every generator that gives each kind of image its own
distribution, and can be inverted, has the same loss (``tests/test_translation_syndiff.py``).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from model_zoo.networks.syndiff import SynDiff
from model_zoo.translation import network as networks
from model_zoo.translation.network import Conditions, Prediction, Sampling
from model_zoo.translation.plan import Plan
from model_zoo.translation.windows import fill_up, run_in_windows

__all__ = [
    "STEPS",
    "Denoiser",
    "as_syndiff",
    "describe_network",
    "diffuse",
    "draw_previous",
    "draw_samples",
    "predict",
    "step_forward",
]

STEPS = 4
BETA_MIN, BETA_MAX = 0.1, 20.0


class Denoiser(Protocol):
    """A generator of x_0 from x_n, the source and n, as ``networks.syndiff.SynDiff.denoise_target``."""

    def __call__(self, x_t: Tensor, source: Tensor, n: Tensor, /) -> Tensor: ...


def _compute_gammas() -> Tensor:
    """Return gamma_n for n = 0 ... 4; the first is 0."""
    k = 1 / STEPS
    exponents = [BETA_MIN * k + (BETA_MAX - BETA_MIN) * (2 * n * k * k - k * k) / 2 for n in range(1, STEPS + 1)]
    return torch.tensor([0.0, *(1 - math.exp(-each) for each in exponents)])


GAMMA = _compute_gammas()
KEPT = (1 - GAMMA).cumprod(dim=0)
"""abar_n."""


def _at(table: Tensor, n: Tensor, like: Tensor) -> Tensor:
    return table.to(like)[n].reshape(-1, *[1] * (like.dim() - 1))


def diffuse(x0: Tensor, n: Tensor, noise: Tensor) -> Tensor:
    """Return x_n of x_0; ``n`` (b,): whole numbers from 0."""
    share = _at(KEPT, n, x0)
    return share.sqrt() * x0 + (1 - share).sqrt() * noise


def step_forward(previous: Tensor, n: Tensor, noise: Tensor) -> Tensor:
    """Return x_n of x_{n-1}."""
    gamma = _at(GAMMA, n, previous)
    return (1 - gamma).sqrt() * previous + gamma.sqrt() * noise


def draw_previous(x_n: Tensor, x0: Tensor, n: Tensor, noise: Tensor) -> Tensor:
    """Draw x_{n-1} from q(x_{n-1} | x_n, x_0), which for n = 1 is x_0."""
    gamma, share, before = _at(GAMMA, n, x0), _at(KEPT, n, x0), _at(KEPT, n - 1, x0)
    mean = before.sqrt() * gamma / (1 - share) * x0 + (1 - gamma).sqrt() * (1 - before) / (1 - share) * x_n
    return mean + (gamma * (1 - before) / (1 - share)).sqrt() * noise


def describe_network(plan: Plan, size: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``network_def`` of the four generators."""
    return {"_target_": "model_zoo.networks.syndiff.SynDiff", "in_channels": 2, "slices": plan.slices, **size}


def as_syndiff(network: nn.Module) -> SynDiff:
    if not isinstance(network, SynDiff):
        raise TypeError(f"the engine syndiff needs its four generators, not {type(network).__name__}")
    return network


@torch.no_grad()
def draw_samples(denoise: Denoiser, source: Tensor, sampling: Sampling, window: int) -> Tensor:
    """Return samples of the scaled target (samples, b, *space) for sources (b, 1, *space), 2 x - 1."""
    size, y = source.shape[2:], fill_up(source, window)
    found = []
    for _ in range(sampling.samples):
        x = _draw_sample(denoise, y, sampling.generator, window)[:, 0]
        for axis, n in enumerate(size, start=1):
            x = x.narrow(axis, 0, n)
        found.append((x + 1) / 2)
    return torch.stack(found)


def _draw_sample(denoise: Denoiser, y: Tensor, generator: torch.Generator, window: int) -> Tensor:
    def draw_noise() -> Tensor:
        return torch.randn(y.shape, generator=generator).to(y)

    x = draw_noise()
    for step in range(STEPS, 0, -1):

        def run(part: Tensor, step: int = step) -> Tensor:
            return denoise(part[:, :1], part[:, 1:], torch.full((len(part),), step, device=part.device))

        x0 = run_in_windows(run, torch.cat([x, y], dim=1), window)
        x = draw_previous(x, x0, torch.full((len(x),), step, device=x.device), draw_noise())
    return x


def predict(
    network: nn.Module, plan: Plan, settings: Mapping[str, Any], x: Tensor, c: Conditions, sampling: Sampling
) -> Prediction:
    """Return mean and standard deviation of the samples, and the first of them."""
    source = networks.stack_slices(x, 1)[:, :1, 0] if plan.slices else x[None, :1]
    found = draw_samples(as_syndiff(network).denoise_target, source, sampling, int(settings["window"]))
    volumes = found if plan.slices else found[:, 0]
    return Prediction(volumes.mean(dim=0), volumes.std(dim=0), volumes[0])
