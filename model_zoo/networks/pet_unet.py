"""The network behind MRI to PET: two tracers' noisy images, the T1w and anatomy in; their clean images out.

The volume part is a ``VolumeUNet``. Covariates reach it twice: as tokens for its cross-attention and, with the time, in
the vector that scales its features. A second, small head tells how uncertain each structure's mean still is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from model_zoo.networks.volume_unet import VolumeUNet

__all__ = ["PetUNet"]

LOG_SD = (-7.0, 0.0)
FREQUENCIES = 4


class PetUNet(nn.Module):
    """``tokens`` covariate tokens of ``token_width`` numbers each; ``structures``: number of region maps.

    forward(x, y0, eta, quiet, tokens, maps):
        x (b, tracers, k, j, i): x_t of the residual-shift process; y0 (b, 1, k, j, i): the T1w;
        eta (b,): how far x_t is shifted; quiet (b,): 1 where no noise was added to it;
        tokens (b, tokens, token_width); maps (b, structures, k, j, i): fractions of the structures
    -> E[x0 | x_t, y0, ...] (b, tracers, k, j, i), and log sd of the means of x0 by structure (b, tracers, structures).
    Grey matter, white matter and csf, the sums of ``tissues`` (indices into maps), also enter as channels at full
    resolution, as the maps are averaged before they scale features.
    """

    def __init__(
        self,
        tissues: Sequence[Sequence[int]],
        tracers: int = 2,
        structures: int = 23,
        tokens: int = 7,
        token_width: int = 9,
        channels: Sequence[int] = (48, 96, 128),
        blocks: int = 1,
        unshuffle: int = 2,
        width: int = 64,
    ) -> None:
        super().__init__()
        self.tissues = [list(indices) for indices in tissues]
        self.tracers, self.structures = tracers, structures
        known = tokens * token_width + 2 + 2 * FREQUENCIES
        self.embed = nn.Sequential(nn.Linear(known, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU())
        self.read = nn.Sequential(nn.Linear(token_width, width), nn.SiLU(), nn.Linear(width, width))
        self.volume = VolumeUNet(
            tracers + 1 + len(self.tissues), tracers, channels, blocks, unshuffle, embedding=width, tokens=width,
            maps=structures,
        )  # fmt: skip
        self.doubt = nn.Sequential(
            nn.Linear(known, width),
            nn.SiLU(),
            nn.Linear(width, width),
            nn.SiLU(),
            nn.Linear(width, tracers * structures),
        )
        self.stride = self.volume.stride

    def forward(
        self, x: Tensor, y0: Tensor, eta: Tensor, quiet: Tensor, tokens: Tensor, maps: Tensor
    ) -> tuple[Tensor, Tensor]:
        known = torch.cat([_time(eta, quiet), tokens.flatten(1)], dim=1)
        tissue = [maps[:, indices].sum(dim=1, keepdim=True) for indices in self.tissues]
        image = self.volume(torch.cat([x, y0, *tissue], dim=1), self.embed(known), self.read(tokens), maps)
        log_sd = self.doubt(known).unflatten(1, (self.tracers, self.structures))
        return image, log_sd.float().clamp(*LOG_SD)


def _time(eta: Tensor, quiet: Tensor) -> Tensor:
    """(b, 2 + 2 FREQUENCIES): sqrt(eta), whether there is noise, sines and cosines of pi k sqrt(eta)."""
    root = eta.sqrt()[:, None]
    angles = math.pi * root * torch.arange(1, FREQUENCIES + 1, device=eta.device)
    return torch.cat([root, quiet[:, None], angles.sin(), angles.cos()], dim=1)
