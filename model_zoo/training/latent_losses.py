"""Losses of the engine ``latent``: of the autoencoder first, and from the restart on of the velocity of its latents.

    L = mean |x - D(E(x))| + w_s (1 - SSIM) + w_k KL,   x: the target and one source of each item

The autoencoder learns nothing after the restart, so that the latents and their scale stay as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional

from model_zoo import similarity
from model_zoo.training.dir_losses import weighted_mean
from model_zoo.training.translation_losses import measure_ssim
from model_zoo.translation import latent
from model_zoo.translation.network import Conditions, Sampling

if TYPE_CHECKING:
    from torch import nn

    from model_zoo.networks.latent_flow import LatentFlow
    from model_zoo.training.translation import Configuration

__all__ = ["check_patch", "compute_autoencoder_loss", "compute_velocity_loss", "estimate", "make_settings", "measure"]

SAMPLES, STEPS = 8, 10
"""Samples of the validation, and their steps."""


def compute_autoencoder_loss(network: LatentFlow, batch: Mapping[str, Tensor], c: Configuration) -> Tensor:
    target, source = _to_image(batch["target"], c), _draw_source(network, batch["input"], c)
    found, mean, sd = network.reconstruct(torch.cat([2 * target - 1, source]))
    weight = _to_image(batch["weight"], c).repeat(2, *[1] * (target.dim() - 1))
    made, true = (found.float() + 1) / 2, (torch.cat([2 * target - 1, source]) + 1) / 2
    of_target = _to_volume(made[: len(target)], c)
    total = weighted_mean((made - true).abs(), weight)
    total = total + c.ssim_weight * (1 - weighted_mean(measure_ssim(of_target, batch), batch["weight"]))
    mean, variance = mean.float(), sd.float().square()
    return total + c.kl_weight * 0.5 * (mean.square() + variance - variance.log() - 1).mean()


def _draw_source(network: LatentFlow, x: Tensor, c: Configuration) -> Tensor:
    """Return one source of each item, of slices the middle one: (b, 1, *space)."""
    exists: Tensor = network.split(x)[1]
    at = torch.multinomial(exists, 1)[:, 0]
    chosen = x[torch.arange(len(x), device=x.device), at][:, None]
    return chosen[:, :, c.plan.slices // 2] if c.plan.slices else chosen


def _to_image(x: Tensor, c: Configuration) -> Tensor:
    """Return x (b, 1, k, j, i) with the axes of the network: of slices (b, 1, j, i)."""
    return x[:, :, 0] if c.plan.slices else x


def _to_volume(x: Tensor, c: Configuration) -> Tensor:
    return x[:, :, None] if c.plan.slices else x


def compute_velocity_loss(network: LatentFlow, batch: Mapping[str, Tensor], c: Configuration) -> Tensor:
    target = _to_image(batch["target"], c)
    error = latent.compute_latent_error(network, batch["input"], target, Conditions.stack(batch))
    size = error.shape[2:]
    weight = _to_image(batch["weight"], c)
    weight = functional.interpolate(weight, size, mode="area")
    return weighted_mean(error, weight.expand_as(error))


def estimate(network: nn.Module, batch: Mapping[str, Tensor], c: Configuration) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of samples of each item, each (b, 1, k, j, i)."""
    conditions, found = Conditions.stack(batch), []
    sampling = Sampling(1, STEPS, torch.Generator().manual_seed(c.seed))
    for n, x in enumerate(batch["input"]):
        one = Conditions(*(each[n : n + 1] for each in (conditions.target, conditions.brightness, conditions.tokens)))
        repeated = x.expand(SAMPLES, *x.shape)
        (samples,) = latent.draw_samples(latent.as_latent(network), repeated, one, sampling, _window(c))
        found.append(torch.stack([samples.mean(dim=0, keepdim=True), samples.std(dim=0, keepdim=True)]))
    mean, sd = (_to_volume(each, c) for each in torch.stack(found, dim=1))
    return mean, sd


def measure(network: nn.Module, batch: Mapping[str, Tensor], c: Configuration) -> dict[str, float]:
    """Return the PSNR of targets after the autoencoder alone, in dB inside: what no sample can be better than."""
    target = _to_image(batch["target"], c)
    found = _to_volume(latent.as_latent(network).reconstruct(2 * target - 1)[0].float(), c)
    values = [
        similarity.psnr((made + 1) / 2, true, float(span), inside)
        for made, true, span, inside in zip(found, batch["target"], batch["span"], batch["weight"] > 0.5, strict=True)
        if bool(inside.any())
    ]
    return {"autoencoder_psnr_db": sum(values) / len(values)} if values else {}


def _window(c: Configuration) -> int:
    return c.patch_shape[-1]


def check_patch(c: Configuration, stride: int) -> None:
    """Raise ValueError for a patch that the network cannot take."""
    if _window(c) % stride:
        raise ValueError(f"the engine latent needs a patch that is a multiple of {stride}, not {_window(c)}")


def make_settings(c: Configuration) -> dict[str, Any]:
    """Return the size of the windows, and the shape of one for the smoke test."""
    return {"window": _window(c), "shape": list(c.patch_shape)}
