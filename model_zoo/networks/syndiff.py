"""The four generators of SynDiff (Ozbey et al. 2023): two denoise, and two guess the image that has no pair."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

__all__ = ["SynDiff"]


class SynDiff(nn.Module):
    """Generators between a source and a target, each of images (b, 1, *space) as 2 x - 1 of the scaled values.

    ``to_target``, ``to_source``: x_0 from x_t and the image of the other kind, at a step n of ``translation.syndiff``.
    ``guess_target``, ``guess_source``: the image of the other kind, without diffusion. Only ``to_target`` is used
    after training. ``in_channels`` is 2: the source, and 1 where it exists.
    """

    def __init__(self, in_channels: int, slices: int, channels: Sequence[int], blocks: int = 1) -> None:
        super().__init__()
        from monai.networks.nets import DiffusionModelUNet

        if in_channels != 2:
            raise ValueError(f"SynDiff has one source, not {in_channels // 2}")
        self.slices = slices
        self.stride = 2 ** (len(channels) - 1)
        groups = math.gcd(*channels, 16)

        def make(inputs: int) -> nn.Module:
            network: nn.Module = DiffusionModelUNet(
                2 if slices else 3, inputs, 1, num_res_blocks=blocks, channels=channels, norm_num_groups=groups,
                attention_levels=[False] * (len(channels) - 1) + [True], num_head_channels=groups,
            )  # fmt: skip
            return network

        self.to_target, self.to_source = make(2), make(2)
        self.guess_target, self.guess_source = make(1), make(1)

    def denoise_target(self, x_t: Tensor, source: Tensor, n: Tensor) -> Tensor:
        """Return x_0 of the target from x_t and the source. ``n`` (b,): step of x_t."""
        x0: Tensor = self.to_target(torch.cat([x_t, source], dim=1), n)
        return x0.float()

    def denoise_source(self, x_t: Tensor, target: Tensor, n: Tensor) -> Tensor:
        """Return x_0 of the source from x_t and the target."""
        x0: Tensor = self.to_source(torch.cat([x_t, target], dim=1), n)
        return x0.float()

    def translate_to_target(self, source: Tensor) -> Tensor:
        """Return a target for the source, without diffusion."""
        found: Tensor = self.guess_target(source, torch.zeros(len(source), device=source.device))
        return found.float()

    def translate_to_source(self, target: Tensor) -> Tensor:
        """Return a source for the target, without diffusion."""
        found: Tensor = self.guess_source(target, torch.zeros(len(target), device=target.device))
        return found.float()

    def forward(self, x: Tensor) -> Tensor:
        """Return the target after one step from no noise, for sources x (b, 2, k, j, i)."""
        source = x[:, :1, 0] if self.slices else x[:, :1]
        return self.denoise_target(torch.zeros_like(source), source, torch.ones(len(x), device=x.device))
