"""The network of PET synthesis: from two tracers' noisy images, the T1w and the anatomy to their clean images.

An image is each structure's level, painted by its map, plus the output of a ``VolumeUNet``. Levels, and how uncertain
they still are, come from a small head that takes the covariates, the time, the sizes of structures that change with age
and disease, and every structure's mean of x_t: a posterior mean depends mostly on these. It takes no more of the
anatomy than that: label maps are few, and the network would memorise them. Covariates reach the volume part twice: as
tokens for its cross-attention and, with the time, in the vector that scales its features.
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
    """Network of PET synthesis.

    ``tokens`` covariate tokens of ``token_width`` numbers each; ``structures``: number of region maps.

    forward(x, y0, eta, quiet, tokens, maps):
        x (b, tracers, k, j, i): x_t of the residual-shift process; y0 (b, 1, k, j, i): the T1w;
        eta (b,): how far x_t is shifted; quiet (b,): 1 where no noise was added to it;
        tokens (b, tokens, token_width); maps (b, structures, k, j, i): fractions of the structures
    -> E[x0 | x_t, y0, ...] (b, tracers, k, j, i), and log sd of the means of x0 by structure (b, tracers, structures).
    Grey matter, white matter and csf, the sums of ``tissues`` (indices into maps), also enter as channels at full
    resolution, as the maps are averaged before they scale features. ``sizes``: indices into maps of structures whose
    share of the intracranial volume matters, each with its typical value.
    """

    def __init__(
        self,
        tissues: Sequence[Sequence[int]],
        sizes: Sequence[tuple[Sequence[int], float]],
        tracers: int = 2,
        structures: int = 23,
        tokens: int = 7,
        token_width: int = 9,
        channels: Sequence[int] = (64, 128),
        blocks: int = 1,
        unshuffle: int = 4,
        width: int = 64,
        refine: int = 8,
    ) -> None:
        super().__init__()
        self.tissues = [list(indices) for indices in tissues]
        self.sizes = [(list(indices), float(typical)) for indices, typical in sizes]
        self.tracers, self.structures = tracers, structures
        conditions = tokens * token_width + 2 + 2 * FREQUENCIES
        self.embed = nn.Sequential(nn.Linear(conditions, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU())
        self.read = nn.Sequential(nn.Linear(token_width, width), nn.SiLU(), nn.Linear(width, width))
        self.volume = VolumeUNet(
            tracers + 1 + len(self.tissues), tracers, channels, blocks, unshuffle, embedding=width, tokens=width,
            maps=structures, norm="soft", refine=refine,
        )  # fmt: skip
        inputs = conditions + len(self.sizes) + structures * tracers
        last = nn.Linear(2 * width, 2 * tracers * structures)
        self.levels = nn.Sequential(
            nn.Linear(inputs, 2 * width), nn.SiLU(), nn.Linear(2 * width, 2 * width), nn.SiLU(), last
        )
        with torch.no_grad():  # no level, and a log sd well within its limits: beyond them it would have no gradient
            last.weight.zero_()
            last.bias.zero_()
            last.bias[tracers * structures :] = -3.0
        self.stride = self.volume.stride

    def forward(
        self, x: Tensor, y0: Tensor, eta: Tensor, quiet: Tensor, tokens: Tensor, maps: Tensor
    ) -> tuple[Tensor, Tensor]:
        conditions = torch.cat([_time(eta, quiet), tokens.flatten(1)], dim=1)
        tissue = [maps[:, indices].sum(dim=1, keepdim=True) for indices in self.tissues]
        image = self.volume(torch.cat([x, y0, *tissue], dim=1), self.embed(conditions), self.read(tokens), maps)
        with torch.autocast(x.device.type, enabled=False):
            level_and_log_sd = self.levels(torch.cat([conditions, self._summary(x, maps)], dim=1))
            level, log_sd = level_and_log_sd.unflatten(1, (2, self.tracers, self.structures)).unbind(1)
            image = image.float() + torch.einsum("bcs,bs...->bc...", level, maps)
        return image, log_sd.clamp(*LOG_SD)

    def _summary(self, x: Tensor, maps: Tensor) -> Tensor:
        """Return 3 log (share / typical share) of ``sizes``, and the mean of each channel of x by structure: (b, n)."""
        inside = maps.flatten(2)
        volume = inside.sum(dim=2)
        share = torch.stack([volume[:, indices].sum(dim=1) / typical for indices, typical in self.sizes], dim=1)
        sizes = 3 * (share / volume.sum(dim=1, keepdim=True).clamp(min=1.0)).clamp(1e-2, 1e2).log()
        means = torch.einsum("bsv,bcv->bcs", inside, x.flatten(2)) / volume.clamp(min=1.0)[:, None]
        return torch.cat([sizes, means.flatten(1)], dim=1)


def _time(eta: Tensor, quiet: Tensor) -> Tensor:
    """Return sqrt(eta), ``quiet``, and sines and cosines of pi k sqrt(eta): (b, 2 + 2 FREQUENCIES)."""
    root = eta.sqrt()[:, None]
    angles = math.pi * root * torch.arange(1, FREQUENCIES + 1, device=eta.device)
    return torch.cat([root, quiet[:, None], angles.sin(), angles.cos()], dim=1)
