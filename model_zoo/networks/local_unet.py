"""A U-Net without any statistic over space: trained on patches, it works on any size and field of view.

MONAI's diffusion U-Nets normalise by GroupNorm over the whole image: on a full slice, which holds more air than a
training patch, every activation changes its scale. Here each pixel is normalised by its own channels (RMS), the noise
level enters by feature-wise scaling, and no attention is used: the network is local and equivariant to shifts of its
stride.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["LocalUNet"]


class _PixelNorm(nn.Module):
    """Norm x / sqrt(mean over channels of x^2), at each pixel, with a learned gain per channel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        scale = torch.rsqrt(x.float().square().mean(dim=1, keepdim=True) + 1e-4).to(x.dtype)
        return x * scale * self.gain[:, None, None].to(x.dtype)


class _Block(nn.Module):
    """Residual block x + conv(silu(film(conv(silu(norm(x)))))); the second convolution starts at zero."""

    def __init__(self, channels: int, embedding: int) -> None:
        super().__init__()
        self.norm = _PixelNorm(channels)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.film = nn.Linear(embedding, 2 * channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        nn.init.zeros_(self.conv2.weight)
        nn.init.zeros_(self.film.weight)

    def forward(self, x: Tensor, e: Tensor) -> Tensor:
        h = self.conv1(functional.silu(self.norm(x)))
        scale, shift = self.film(e)[:, :, None, None].chunk(2, dim=1)
        changed: Tensor = self.conv2(functional.silu(h * (1 + scale) + shift))
        return x + changed


class _Blocks(nn.ModuleList):
    """Blocks of one width, one after the other."""

    def __init__(self, count: int, channels: int, embedding: int) -> None:
        super().__init__(_Block(channels, embedding) for _ in range(count))

    def forward(self, h: Tensor, e: Tensor) -> Tensor:
        for block in self:
            h = block(h, e)
        return h


class LocalUNet(nn.Module):
    """The network F(x, c_noise): float (batch, in_channels, ny, nx) -> (batch, out_channels, ny, nx).

    The input is pixel-unshuffled by 2, so ``ny`` and ``nx`` must be multiples of ``LocalUNet.stride``.
    ``channels``: width of each level; ``blocks``: residual blocks per level on the way down and again on the way up.
    """

    def __init__(
        self, in_channels: int = 2, out_channels: int = 2, channels: Sequence[int] = (64, 128, 192), blocks: int = 2
    ) -> None:
        super().__init__()
        embedding = 128
        self.stride = 2 ** len(channels)
        self.register_buffer(
            "frequencies", torch.exp(torch.linspace(math.log(0.5), math.log(60.0), 32)), persistent=False
        )
        self.embed = nn.Sequential(nn.Linear(64, embedding), nn.SiLU(), nn.Linear(embedding, embedding), nn.SiLU())
        self.first = nn.Conv2d(4 * in_channels, channels[0], 3, padding=1)
        self.down = nn.ModuleList()
        self.shrink = nn.ModuleList()
        self.grow = nn.ModuleList()
        self.up = nn.ModuleList()
        for here, below in pairwise(channels):
            self.down.append(_Blocks(blocks, here, embedding))
            self.shrink.append(nn.Conv2d(here, below, 2, stride=2))
            self.grow.append(nn.Conv2d(below, 4 * here, 1))
            self.up.append(_Blocks(blocks, here, embedding))
        self.middle = _Blocks(2 * blocks, channels[-1], embedding)
        self.last = nn.Sequential(
            _PixelNorm(channels[0]), nn.SiLU(), nn.Conv2d(channels[0], 4 * out_channels, 3, padding=1)
        )

    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        angles = c_noise[:, None] * self.get_buffer("frequencies")
        e = self.embed(torch.cat([angles.sin(), angles.cos()], dim=1))
        h = self.first(functional.pixel_unshuffle(x, 2))
        skips: list[Tensor] = []
        for level, shrink in zip(self.down, self.shrink, strict=True):
            skips.append(level(h, e))
            h = shrink(skips[-1])
        h = self.middle(h, e)
        for level, grow in zip(reversed(self.up), reversed(self.grow), strict=True):
            h = level(skips.pop() + functional.pixel_shuffle(grow(h), 2), e)
        return functional.pixel_shuffle(self.last(h), 2)
