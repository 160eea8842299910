"""Unrolled network for reconstruction, trained with supervision: a peer of the methods that take a prior.

After MoDL (Aggarwal 2019): cascades of a small complex U-Net, the same in each, and data consistency by conjugate
gradients.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from model_zoo import classical
from model_zoo.networks.local_unet import LocalUNet
from model_zoo.operators import Fourier
from model_zoo.samplers import enforce_consistency

__all__ = ["UnrolledNetwork"]

FIRST_ERROR = 0.05
"""Error that the U-Net is taken to leave before training; 1 is the 99th percentile of the magnitude."""


class UnrolledNetwork(nn.Module):
    """Images (batch, [set,] a, b), complex64, from the samples ``y`` = A x + noise of ``sigma_y`` (batch,).

    x_0 is the CG-SENSE image; z = x_k + U(x_k, sigma_y); x_k+1 = argmin_x ||x - z||^2 / r_k^2 + ||A x - y||^2 /
    sigma_y^2, with the errors r_k of z learned as U is.
    """

    def __init__(self, cascades: int, channels: tuple[int, ...], blocks: int) -> None:
        super().__init__()
        self.network = LocalUNet(channels=channels, blocks=blocks)
        self.log_errors = nn.Parameter(torch.full((cascades,), math.log(FIRST_ERROR)))
        nn.init.zeros_(self.network.last[-1].weight)  # type: ignore[arg-type]

    def forward(self, A: Fourier, y: Tensor, sigma_y: Tensor) -> Tensor:
        AHy, inside = A.H(y), A.support > 0
        x = classical.cg_sense(A, y, ridge=0.05)
        for log_error in self.log_errors:
            z = (x + _apply(self.network, x, sigma_y)) * inside
            x = enforce_consistency(A, AHy, z, (log_error.exp() / sigma_y).square())
        return x


def _apply(network: LocalUNet, x: Tensor, sigma_y: Tensor) -> Tensor:
    """Return the network's images of ``x``, each by itself, padded with zeros to multiples of its stride."""
    images = x.reshape(-1, *x.shape[-2:])
    na, nb = images.shape[-2:]
    channels = pad(torch.stack([images.real, images.imag], dim=1), (0, -nb % network.stride, 0, -na % network.stride))
    levels = (sigma_y.log() / 4).repeat_interleave(len(images) // len(x))
    out = network(channels.contiguous(memory_format=torch.channels_last), levels).float()[..., :na, :nb]
    return torch.complex(out[:, 0].contiguous(), out[:, 1].contiguous()).reshape(x.shape)
