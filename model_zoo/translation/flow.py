"""Samples of a target: a rectified flow from the mean F with noise, F + kappa e, to what the target can be.

x_t = (1 - t) (F + kappa e) + t T, velocity T - F - kappa e (Liu et al. 2023), with MONAI's ``RFlowScheduler``: its time
runs from 1000 to 0, and its "noise" is here F + kappa e. Samples follow the learned velocity in Euler's steps. Few
steps make their standard deviation too small, because the first one goes towards the mean: on a Gaussian with the sd
kappa, 1, 4 and 8 steps give 0, 0.72 and 0.85 of it (``euler_sd_factor``).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import pairwise
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from model_zoo.networks.mean_and_flow import MeanAndFlow, encode_time
from model_zoo.translation import network as networks
from model_zoo.translation.network import Conditions, Prediction, Sampling, run_on_volume, split_output
from model_zoo.translation.plan import Plan

__all__ = [
    "TIME_STEPS",
    "TransportNetwork",
    "as_flow",
    "compute_flow_error",
    "describe_network",
    "draw_samples",
    "euler_sd_factor",
    "make_scheduler",
    "predict",
]

TIME_STEPS = 1000


class TransportNetwork(Protocol):
    """A network of mean and velocity, as ``networks.mean_and_flow.MeanAndFlow``."""

    stride: int

    def mean(self, x: Tensor, embedding: Tensor, tokens: Tensor | None) -> Tensor:
        """Return the scaled target and log b (b, 2, k, j, i)."""
        ...

    def velocity(self, x: Tensor, embedding: Tensor, tokens: Tensor | None) -> Tensor:
        """Return the velocity (b, 1, k, j, i) for sources, mean and x_t."""
        ...


def describe_network(plan: Plan, size: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``network_def`` of the mean and the velocity."""
    own = {"in_channels": 2 * len(plan.sources), **networks.describe_conditions(plan)}
    return {"_target_": "model_zoo.networks.mean_and_flow.MeanAndFlow", **own, **size}


def as_flow(network: nn.Module) -> MeanAndFlow:
    if not isinstance(network, MeanAndFlow):
        raise TypeError(f"the engine flow needs a network of mean and velocity, not {type(network).__name__}")
    return network


def predict(
    network: nn.Module, plan: Plan, settings: Mapping[str, Any], x: Tensor, c: Conditions, sampling: Sampling
) -> Prediction:
    """Return the mean, the standard deviation of the samples, and the first of them."""
    mean = networks.predict(network, plan, x, c).mean
    found = draw_samples(
        as_flow(network), x, mean, c, kappa=float(settings["kappa"]), steps=sampling.steps,
        samples=sampling.samples, generator=sampling.generator,
    )  # fmt: skip
    return Prediction(mean, found.std(dim=0), found[0])


def make_scheduler() -> Any:
    from monai.networks.schedulers import RFlowScheduler

    return RFlowScheduler(num_train_timesteps=TIME_STEPS, use_discrete_timesteps=False)


def _get_velocity(network: TransportNetwork, x: Tensor, c: Conditions, time: Tensor) -> Tensor:
    """Return the velocity at ``time`` (b,), 1 at the start and 0 at the end, for sources, mean and x_t in ``x``."""
    embedding = torch.cat([c.target, c.brightness, encode_time(time)], dim=1)
    return network.velocity(x, embedding, c.tokens if c.tokens.shape[1] else None).float()


def compute_flow_error(network: TransportNetwork, x: Tensor, target: Tensor, c: Conditions, kappa: float) -> Tensor:
    """Return the squared error of the velocity at random times (b, 1, k, j, i); the mean learns nothing from it.

    ``x`` (b, channels, k, j, i): sources; ``target`` (b, 1, k, j, i). torch's own generator draws noise and times.
    """
    with torch.no_grad():
        embedding = torch.cat([c.target, c.brightness], dim=1)
        mean = split_output(network.mean(x, embedding, c.tokens if c.tokens.shape[1] else None))[0]
    scheduler = make_scheduler()
    start = mean + kappa * torch.randn_like(target)
    time = scheduler.sample_timesteps(target)
    x_t = scheduler.add_noise(target, start, time)
    found = _get_velocity(network, torch.cat([x, mean, x_t], dim=1), c, time / TIME_STEPS)
    return (found - (target - start)).square()


@torch.no_grad()
def draw_samples(
    network: TransportNetwork,
    x: Tensor,
    mean: Tensor,
    c: Conditions,
    *,
    kappa: float,
    steps: int,
    samples: int,
    generator: torch.Generator,
) -> Tensor:
    """Return samples of the scaled target (samples, k, j, i) for sources ``x`` (channels, k, j, i) and their mean."""
    scheduler = make_scheduler()
    scheduler.set_timesteps(steps)
    times = [*scheduler.timesteps.tolist(), 0.0]
    found = []
    for _ in range(samples):
        noise = torch.randn(mean.shape, generator=generator).to(mean)
        x_t = mean + kappa * noise
        for time, after in pairwise(times):

            def run(part: Tensor, time: float = time) -> Tensor:
                return _get_velocity(network, part, c, torch.full((len(part),), time / TIME_STEPS, device=part.device))

            v = run_on_volume(run, torch.cat([x, mean[None], x_t[None]]), network.stride)[0]
            x_t = x_t + v * (time - after) / TIME_STEPS  # the scheduler's step, which takes whole times only
        found.append(x_t)
    return torch.stack(found)


def euler_sd_factor(steps: int, kappa: float, sd: float) -> float:
    """Return the sd of samples after ``steps`` of Euler over the true ``sd``, for a Gaussian target: exact velocity.

    The spread s_t = sqrt((1 - t)^2 kappa^2 + t^2 sd^2) has the velocity s_t' / s_t times the distance from the mean.
    """
    spread = kappa
    for n in range(steps):
        t = n / steps
        slope = (t * sd**2 - (1 - t) * kappa**2) / ((1 - t) ** 2 * kappa**2 + t**2 * sd**2)
        spread *= 1 + slope / steps
    return spread / sd if sd > 0 else math.inf
