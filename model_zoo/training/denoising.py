"""Training of a denoiser as prior: noise levels, loss and validation, which recipes of all modalities share.

Loss: EDM denoising score matching (Karras et al. 2022).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from model_zoo.denoisers import Denoiser
from model_zoo.training import recipe

__all__ = ["VALIDATION_SIGMAS", "Configuration", "add_noise", "draw_window", "measure_denoising"]

VALIDATION_SIGMAS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)


@dataclass(frozen=True, kw_only=True)
class Configuration(recipe.Configuration):
    """Settings: ``channels``, ``blocks`` of the network; ``patch``: pixels of a side; the noise level is log-normal."""

    channels: tuple[int, ...]
    blocks: int
    patch: int
    patches_per_slice: int = 4
    log_sigma_mean: float = -1.8
    log_sigma_sd: float = 1.6


def draw_window(x: Tensor, size: int, generator: torch.Generator, *, least: float) -> Tensor:
    """Draw a window (size, size) of an image, turned at random, up to five times until it holds more than a little
    tissue: values whose magnitude is above ``least``.
    """
    for _ in range(5):
        j, i = (int(torch.randint(n - size + 1, (1,), generator=generator)) for n in x.shape)
        window = x[j : j + size, i : i + size]
        if float((window.abs() > least).float().mean()) > 0.15:
            break
    turns = int(torch.randint(4, (1,), generator=generator))
    return torch.rot90(window, turns)


def add_noise(x0: Tensor, c: Configuration, generator: torch.Generator) -> dict[str, Tensor]:
    """Return the batch: patches ``x0`` (batch, channel, patch, patch), levels ``sigma`` (batch,), and the ``noise``."""
    sigma = (torch.randn(len(x0), generator=generator) * c.log_sigma_sd + c.log_sigma_mean).exp()
    sigma = sigma.clamp(Denoiser.sigma_min, Denoiser.sigma_max)
    return {"x0": x0, "sigma": sigma, "noise": torch.randn(x0.shape, generator=generator)}


def measure_denoising(D: Denoiser, x0: Tensor, generator: torch.Generator) -> dict[str, float]:
    """Return the PSNR in dB (peak 1) of denoised patches (batch, channel, patch, patch), by noise level."""
    noise = torch.randn(x0.shape, generator=generator).to(next(D.network.parameters()).device)
    x0 = x0.to(noise.device)
    found: dict[str, float] = {}
    for sigma in VALIDATION_SIGMAS:
        level = torch.full((len(x0),), sigma, device=x0.device)
        error = D.denoise_channels(x0 + sigma * noise, level) - x0
        found[f"denoising_psnr_{sigma}_db"] = -10 * math.log10(x0.shape[1] * float(error.detach().square().mean()))
    return found
