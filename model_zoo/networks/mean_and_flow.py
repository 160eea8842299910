"""Two 3D U-Nets for one target: its mean from the sources, and the velocity that carries samples from there."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from model_zoo.networks.volume_unet import VolumeUNet

__all__ = ["TIME_FEATURES", "MeanAndFlow", "encode_time"]

TIME_FEATURES = 7


def encode_time(time: Tensor) -> Tensor:
    """Return features (b, 7) of times (b,) in [0, 1]: the time, and its sine and cosine at three frequencies."""
    angles = torch.pi * time[:, None] * torch.tensor([1.0, 2.0, 4.0], device=time.device)
    return torch.cat([time[:, None], angles.sin(), angles.cos()], dim=1)


class MeanAndFlow(nn.Module):
    """``mean``: sources (b, in_channels, k, j, i) to (b, 2, k, j, i); ``velocity``: they, mean and x_t to (b, 1, ...).

    Called, it gives the mean. The arguments are those of ``VolumeUNet``; both networks have one size.
    """

    def __init__(
        self,
        in_channels: int,
        channels: Sequence[int],
        embedding: int,
        tokens: int = 0,
        blocks: int = 1,
        unshuffle: int = 2,
        refine: int = 16,
        refine_blocks: int = 0,
    ) -> None:
        super().__init__()

        def make(inputs: int, outputs: int, conditions: int) -> VolumeUNet:
            return VolumeUNet(
                inputs, outputs, channels=channels, blocks=blocks, unshuffle=unshuffle, refine=refine, norm="soft",
                refine_blocks=refine_blocks, embedding=conditions, tokens=tokens,
            )  # fmt: skip

        self.mean = make(in_channels, 2, embedding)
        self.velocity = make(in_channels + 2, 1, embedding + TIME_FEATURES)
        self.stride = self.mean.stride

    def forward(self, x: Tensor, embedding: Tensor | None = None, tokens: Tensor | None = None) -> Tensor:
        output: Tensor = self.mean(x, embedding, tokens)
        return output
