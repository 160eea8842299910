"""A network that fills one missing slice from its neighbours: the cubic interpolation, plus what is learned."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from model_zoo.networks.local_unet import LocalUNet

__all__ = ["SliceFiller"]

_FIRST_LOG_B = -4.0
"""log b of the untrained network: an error of 0.02."""


class SliceFiller(nn.Module):
    """Mean and log b of the middle slice: (b, 2, slices, j, i) -> (b, 2, 1, j, i).

    Input: the slices as 2 x - 1, missing ones filled by cubic interpolation, then 1 where a slice was measured and 0
    where not. The mean is the middle slice of the input plus a residual, which is 0 before training.
    """

    def __init__(self, slices: int, channels: Sequence[int], blocks: int = 1) -> None:
        super().__init__()
        self.inner = LocalUNet(2 * slices, 2, channels, blocks)
        self.stride = self.inner.stride
        for parameter in self.inner.last[-1].parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        found = self.inner(x.flatten(1, 2), torch.zeros(len(x), device=x.device)).float()
        middle = (x[:, 0, x.shape[2] // 2].float() + 1) / 2
        return torch.stack([middle + found[:, 0], _FIRST_LOG_B + found[:, 1]], dim=1)[:, :, None]
