"""D(x, sigma) -> x0_hat: the minimum-mean-square-error denoiser that every sampler here is built on.

Convention: ``x = x0 + sigma n`` with complex ``n`` whose real and imaginary parts are independent N(0, 1), so the
complex variance is ``2 sigma^2``. Images are complex64 (batch, ny, nx), scaled so that the 99th percentile of ``|x0|``
is 1. Images of a prior for computed tomography are float32, with real ``n``, and water is 1.

Preconditioning (Karras et al. 2022, table 1): with ``sigma_d`` the standard deviation of one component of the data,

    D(x, sigma) = c_skip x + c_out F(c_in x, c_noise),
    c_skip = sigma_d^2 / (sigma^2 + sigma_d^2),   c_out = sigma sigma_d / sqrt(sigma^2 + sigma_d^2),
    c_in = 1 / sqrt(sigma^2 + sigma_d^2),         c_noise = ln(sigma) / 4.

VP samplers use the same D through ``sigma = sqrt(1 - abar) / sqrt(abar)`` and ``x_vp = sqrt(abar) x``.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from model_zoo.precision import autocast

__all__ = ["Denoiser", "training_loss"]


@dataclass(frozen=True)
class Denoiser:
    """An EDM-preconditioned denoiser of complex or real images around ``network``; call it as ``D(x, sigma)``.

    ``stride``: the network's sizes must be multiples of it; images are padded with zeros (air) and cropped back.
    ``bf16``: run the network in bfloat16 (twice as fast where the processor knows it); the skip path stays float32.
    """

    network: nn.Module
    sigma_data: float
    stride: int
    sigma_min: float = 0.002
    sigma_max: float = 20.0
    bf16: bool = False

    def __call__(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        """Return x0_hat of images (batch, ny, nx) or (batch, set, ny, nx), complex64 or float32, each by itself.

        ``sigma``: a number or one per batch element (batch,), clamped to the range.
        """
        if x.ndim == 4:
            levels = torch.as_tensor(sigma, device=x.device).expand(x.shape[0]).repeat_interleave(x.shape[1])
            return self(x.flatten(0, 1), levels).reshape(x.shape)
        level = torch.as_tensor(sigma, dtype=torch.float32, device=x.device).expand(x.shape[0])
        level = level.clamp(self.sigma_min, self.sigma_max)
        ny, nx = x.shape[-2:]
        pad_y, pad_x = -ny % self.stride, -nx % self.stride
        before = (pad_x // 2, pad_y // 2)
        parts = torch.stack([x.real, x.imag], dim=1) if x.is_complex() else x[:, None]
        channels = functional.pad(parts, (before[0], pad_x - before[0], before[1], pad_y - before[1]))
        with autocast(x.device.type, enabled=self.bf16):
            out = self.denoise_channels(channels, level)
        out = out[:, :, before[1] : before[1] + ny, before[0] : before[0] + nx]
        if not x.is_complex():
            return out[:, 0]
        return torch.complex(out[:, 0].contiguous(), out[:, 1].contiguous())

    def denoise_channels(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Denoise (batch, channel, ny, nx), real and imaginary or one real; ``sigma`` (batch,); no padding."""
        s = sigma[:, None, None, None]
        total = s.square() + self.sigma_data**2
        c_skip, c_out = self.sigma_data**2 / total, s * self.sigma_data * total.rsqrt()
        network_input = (x * total.rsqrt()).contiguous(memory_format=torch.channels_last)
        predicted: Tensor = self.network(network_input, sigma.log() / 4)
        return c_skip * x + c_out * predicted.float()


def training_loss(D: Denoiser, x0: Tensor, sigma: Tensor, noise: Tensor) -> Tensor:
    """Return the EDM-weighted loss of denoising score matching per image (batch,).

    The loss is the mean of (sigma^2 + sigma_d^2) / (sigma sigma_d)^2 |D - x0|^2.

    ``x0``, ``noise``: (batch, channel, ny, nx), two channels for complex images, one for real; ``sigma``: (batch,).
    """
    weight = (sigma.square() + D.sigma_data**2) / (sigma * D.sigma_data).square()
    error = D.denoise_channels(x0 + sigma[:, None, None, None] * noise, sigma) - x0
    return weight * error.square().mean(dim=(1, 2, 3))
