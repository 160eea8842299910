"""An autoencoder of single images, and a U-Net for the velocity of a flow on its latents, both MONAI's."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

__all__ = ["LatentFlow"]


class LatentFlow(nn.Module):
    """Latents of a target from those of its sources; every image is encoded alone, as 2 x - 1 of its scaled values.

    ``slices``: neighbouring slices of each source, 0 for volumes. Input x (b, in_channels, k, j, i), of slices k is
    their number: values of the sources, then 1 for those that exist. ``encoder_channels``: of the autoencoder, half the
    size from each to the next; ``channels``, ``blocks``: of the U-Net. ``codes``: numbers of targets, beside 0 for
    unknown; ``context``: width of the condition tokens.

    The latents are scaled to mean 0 and standard deviation 1 by ``latent_mean`` and ``latent_sd``, which are measured
    while the autoencoder learns, and are part of the state.
    """

    latent_mean: Tensor
    latent_sd: Tensor
    latent_steps: Tensor

    def __init__(
        self,
        in_channels: int,
        slices: int,
        encoder_channels: Sequence[int],
        latent_channels: int,
        channels: Sequence[int],
        blocks: int = 1,
        codes: int = 1,
        context: int = 1,
    ) -> None:
        super().__init__()
        from monai.networks.nets import AutoencoderKL, DiffusionModelUNet

        self.slices, self.sources, self.context = slices, in_channels // 2, context
        dimensions = 2 if slices else 3
        self.factor = 2 ** (len(encoder_channels) - 1)
        self.stride = self.factor * max(4, 2 ** (len(channels) - 1))  # windows overlap by whole latents
        self.autoencoder = AutoencoderKL(
            dimensions, 1, 1, channels=encoder_channels, num_res_blocks=blocks, latent_channels=latent_channels,
            attention_levels=[False] * len(encoder_channels), norm_num_groups=math.gcd(*encoder_channels, 16),
            with_encoder_nonlocal_attn=False, with_decoder_nonlocal_attn=False,
        )  # fmt: skip
        groups = math.gcd(*channels, 16)
        self.unet = DiffusionModelUNet(
            dimensions, latent_channels * (1 + self.sources * max(slices, 1)) + self.sources, latent_channels,
            num_res_blocks=blocks, channels=channels, attention_levels=[False] * (len(channels) - 1) + [True],
            norm_num_groups=groups, num_head_channels=groups, with_conditioning=True, cross_attention_dim=context,
            num_class_embeds=codes + 1,
        )  # fmt: skip
        self.register_buffer("latent_mean", torch.zeros(latent_channels))
        self.register_buffer("latent_sd", torch.ones(latent_channels))
        self.register_buffer("latent_steps", torch.zeros((), dtype=torch.int64))

    def split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the images (b, images, *space), slices as channels, and which sources exist (b, sources)."""
        values, exists = x[:, : self.sources], x[:, self.sources :].flatten(2).amax(dim=2)
        return values.flatten(1, 2) if self.slices else values, exists

    def reconstruct(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return images (b, 1, *space) after the autoencoder, and mean and sd of their latents; measure their scale."""
        mean, sd = self.autoencoder.encode(images)
        if self.training:
            self._measure_scale(mean.detach().float())
        found: Tensor = self.autoencoder.decode(self.autoencoder.sampling(mean, sd))
        return found, mean, sd

    def _measure_scale(self, z: Tensor) -> None:
        """Move the scale towards that of these latents: by a hundredth, at the start of the training by more."""
        self.latent_steps += 1
        share = max(0.01, 1 / int(self.latent_steps))
        channels = z.movedim(1, 0).flatten(1)
        self.latent_mean.lerp_(channels.mean(dim=1), share)
        self.latent_sd.lerp_(channels.std(dim=1).clamp(min=1e-3), share)

    def encode(self, images: Tensor) -> Tensor:
        """Return the scaled latents (b, images latent_channels, *space / factor) of images (b, images, *space)."""
        z: Tensor = self.autoencoder.encode(images.flatten(0, 1)[:, None])[0].float()
        z = (z - self._align(self.latent_mean, z)) / self._align(self.latent_sd, z)
        return z.reshape(len(images), -1, *z.shape[2:])

    def decode(self, z: Tensor) -> Tensor:
        """Return the images (b, 1, *space) of scaled latents (b, latent_channels, *space / factor)."""
        images: Tensor = self.autoencoder.decode(z * self._align(self.latent_sd, z) + self._align(self.latent_mean, z))
        return images.float()

    def velocity(
        self, z_t: Tensor, sources: Tensor, exists: Tensor, time: Tensor, context: Tensor, codes: Tensor
    ) -> Tensor:
        """Return the velocity of ``z_t`` for the latents of the sources. ``time`` (b,): 1000 at noise, 0 at the target;
        ``context`` (b, tokens, context); ``codes`` (b,): 0 for an unknown target.
        """
        per_source = sources.shape[1] // self.sources
        used = sources * self._align(exists.repeat_interleave(per_source, dim=1), sources)
        maps = self._align(exists, z_t).expand(-1, -1, *z_t.shape[2:])
        v: Tensor = self.unet(torch.cat([z_t, used, maps], dim=1), time, context=context, class_labels=codes)
        return v.float()

    @staticmethod
    def _align(values: Tensor, x: Tensor) -> Tensor:
        """Return values (channels,) or (b, channels) with the further axes of ``x``."""
        return values.reshape(*(values.shape if values.dim() > 1 else (1, -1)), *[1] * (x.dim() - 2))

    def forward(self, x: Tensor) -> Tensor:
        """Return the image after one step from no noise, without conditions: every part of the network runs."""
        images, exists = self.split(x)
        sources = self.encode(images)
        z = torch.zeros_like(sources[:, : len(self.latent_mean)])
        codes, time = (torch.zeros(len(x), dtype=kind, device=x.device) for kind in (torch.int64, torch.float32))
        context = torch.zeros(len(x), 1, self.context, device=x.device)
        return self.decode(z + self.velocity(z, sources, exists, time, context, codes))
