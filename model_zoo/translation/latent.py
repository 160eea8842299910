"""Samples of a target by a rectified flow in the latents of an autoencoder (CLDM, TauPETGen).

z_t = (1 - t) z + t e, velocity z - e (Liu et al. 2023), for the scaled latents z of the target and noise e, given the
latents of the sources, the target's code and the covariates. Samples follow the learned velocity from noise to the
target in Euler's steps, and are decoded; their mean and standard deviation are the result. Few steps make the standard
deviation too small: on Gaussian latents whose own is 0.3, 4, 8, 16 and 32 steps give 0.59, 0.78, 0.89 and 0.94 of it
(``flow.euler_sd_factor`` with kappa 1).

Guidance w goes beyond what the conditions say: v = v_unknown + w (v - v_unknown). With w above 1 the samples are no
longer those of what the target can be, and their standard deviation is too small.

Images are cut into windows of the size of a training patch, because the networks normalise by the window's values.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from model_zoo.networks.latent_flow import LatentFlow
from model_zoo.translation import network as networks
from model_zoo.translation.flow import TIME_STEPS, make_scheduler
from model_zoo.translation.network import Conditions, Prediction, Sampling
from model_zoo.translation.plan import Plan
from model_zoo.translation.windows import fill_up, run_in_windows

__all__ = ["LatentNetwork", "as_latent", "compute_latent_error", "describe_network", "draw_samples", "predict"]

UNKNOWN = 0.1
"""Share of the training's items whose target and covariates the network does not see."""


class LatentNetwork(Protocol):
    """A network of latents, as ``networks.latent_flow.LatentFlow``."""

    factor: int

    def split(self, x: Tensor) -> tuple[Tensor, Tensor]: ...
    def encode(self, images: Tensor) -> Tensor: ...
    def decode(self, z: Tensor) -> Tensor: ...
    def velocity(
        self, z_t: Tensor, sources: Tensor, exists: Tensor, time: Tensor, context: Tensor, codes: Tensor
    ) -> Tensor: ...


def describe_network(plan: Plan, size: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``network_def`` of the autoencoder and the U-Net."""
    own = {"in_channels": 2 * len(plan.sources), "slices": plan.slices}
    conditions = {"codes": networks.count_codes(plan), "context": networks.context_width(plan)}
    return {"_target_": "model_zoo.networks.latent_flow.LatentFlow", **own, **conditions, **size}


def as_latent(network: nn.Module) -> LatentFlow:
    if not isinstance(network, LatentFlow):
        raise TypeError(f"the engine latent needs a network of latents, not {type(network).__name__}")
    return network


def _number_codes(c: Conditions) -> Tensor:
    """Return the target's number (b,), 0 where it is unknown."""
    return torch.where(c.target.sum(dim=1) > 0, c.target.argmax(dim=1) + 1, 0)


def compute_latent_error(network: LatentNetwork, x: Tensor, target: Tensor, c: Conditions) -> Tensor:
    """Return the squared error of the velocity at random times (b, latents, *space); the autoencoder learns nothing.

    ``x`` (b, channels, k, j, i): sources; ``target`` (b, 1, *space): scaled. torch's own generator draws noise, times
    and the items without conditions.
    """
    with torch.no_grad():
        images, exists = network.split(x)
        z, sources = network.encode(2 * target - 1), network.encode(images)
    c = c.forget(torch.rand(len(x), device=x.device) < UNKNOWN)
    scheduler, noise = make_scheduler(), torch.randn_like(z)
    time = scheduler.sample_timesteps(z)
    z_t = scheduler.add_noise(z, noise, time)
    found = network.velocity(z_t, sources, exists, time, networks.make_context(c), _number_codes(c))
    return (found - (z - noise)).square()


@torch.no_grad()
def draw_samples(network: LatentNetwork, x: Tensor, c: Conditions, sampling: Sampling, window: int) -> Tensor:
    """Return samples of the scaled target (samples, b, *space) for sources ``x`` (b, channels, k, j, i).

    ``c``: of one item. Every window has the training's size ``window``; the noise is that of the whole image.
    """
    images, exists = network.split(x)
    size = images.shape[2:]
    images = fill_up(images, window, network.factor)
    sources = run_in_windows(network.encode, images, window)
    found = []
    for _ in range(sampling.samples):
        z = _draw_latents(network, sources, exists[:1], c, sampling, window // network.factor)
        decoded = run_in_windows(network.decode, z, window // network.factor)[:, 0]
        for axis, n in enumerate(size, start=1):
            decoded = decoded.narrow(axis, 0, n)
        found.append((decoded + 1) / 2)
    return torch.stack(found)


def _draw_latents(
    network: LatentNetwork, sources: Tensor, exists: Tensor, c: Conditions, sampling: Sampling, window: int
) -> Tensor:
    """Return one sample of the scaled latents for those of the sources (b, channels, *space)."""
    scheduler = make_scheduler()
    scheduler.set_timesteps(sampling.steps)
    channels = _count_latents(network, sources, exists)
    z = torch.randn(len(sources), channels, *sources.shape[2:], generator=sampling.generator).to(sources)
    for time, after in pairwise([*scheduler.timesteps.tolist(), 0.0]):

        def run(part: Tensor, time: float = time) -> Tensor:
            return _guide(network, part[:, :channels], part[:, channels:], exists, c, time, sampling.guidance)

        v = run_in_windows(run, torch.cat([z, sources], dim=1), window)
        z = z + v * (time - after) / TIME_STEPS  # the scheduler's step, which takes whole times only
    return z


def _count_latents(network: LatentNetwork, sources: Tensor, exists: Tensor) -> int:
    """Return the channels of one image's latents."""
    images = exists.shape[1] * max(int(getattr(network, "slices", 0)), 1)
    return sources.shape[1] // images


def _guide(
    network: LatentNetwork, z: Tensor, sources: Tensor, exists: Tensor, c: Conditions, time: float, guidance: float
) -> Tensor:
    times, exists = torch.full((len(z),), time, device=z.device), exists.expand(len(z), -1)

    def run(conditions: Conditions) -> Tensor:
        repeated = conditions.repeat(len(z))
        return network.velocity(z, sources, exists, times, networks.make_context(repeated), _number_codes(repeated))

    v = run(c)
    if guidance == 1:
        return v
    unknown = run(c.forget(torch.ones(len(c.target), dtype=torch.bool, device=z.device)))
    return unknown + guidance * (v - unknown)


def predict(
    network: nn.Module, plan: Plan, settings: Mapping[str, Any], x: Tensor, c: Conditions, sampling: Sampling
) -> Prediction:
    """Return mean and standard deviation of the samples, and the first of them."""
    stacked = networks.stack_slices(x, plan.slices) if plan.slices else x[None]
    found = draw_samples(as_latent(network), stacked, c, sampling, int(settings["window"]))
    volumes = found if plan.slices else found[:, 0]
    return Prediction(volumes.mean(dim=0), volumes.std(dim=0), volumes[0])
