"""Recipe ``mri-prior``: the complex denoiser behind MRI reconstruction, trained on simulated brain slices only.

Data: random planes through the label maps of ``anatomy.TRAIN`` with random contrast, texture, bias field and phase
(``simulate.slices``), cut into patches; or planes through a user's magnitude volumes, with the same phase, flips and
turns. Loss: EDM denoising score matching (Karras et al. 2022).
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from model_zoo.denoisers import Denoiser, training_loss
from model_zoo.networks.local_unet import LocalUNet
from model_zoo.simulate import anatomy
from model_zoo.simulate.slices import draw_slice, draw_smooth_phase
from model_zoo.training.cohort import Cohort
from model_zoo.training.denoising import Configuration, add_noise, draw_window, measure_denoising
from model_zoo.training.recipe import Column, Recipe, Source, seeded

__all__ = ["CONFIGURATIONS", "RECIPE", "SIGMA_DATA", "Configuration", "draw_complex_slice", "draw_patches"]

SIGMA_DATA = 0.27
"""Standard deviation of one component of the training slices (99th percentile of the magnitude at 1)."""

CONFIGURATIONS = {
    "cpu": Configuration(channels=(64, 128, 192), blocks=2, steps=8000, batch=16, patch=96, learning_rate=8e-4),
    "gpu": Configuration(
        channels=(80, 144, 192),
        blocks=3,
        steps=40000,
        batch=64,
        patch=128,
        learning_rate=6e-4,
        ema=0.9995,
        workers=14,
        checkpoint_every=1000,
    ),
    "smoke": Configuration(
        channels=(16, 32), blocks=1, steps=6, batch=4, patch=48, learning_rate=1e-3, warmup=2, checkpoint_every=3
    ),
}


def draw_patches(count: int, c: Configuration, source: Source, generator: torch.Generator) -> Tensor:
    """Draw ``count`` random patches (count, 2, patch, patch) from slices of the source, flipped and turned."""
    found: list[Tensor] = []
    while len(found) < count:
        x = draw_complex_slice(source, generator)
        short = [max(0, c.patch - n) for n in x.shape]
        x = torch.nn.functional.pad(x, (0, short[1], 0, short[0]))
        for _ in range(min(c.patches_per_slice, count - len(found))):
            found.append(_draw_patch(x, c.patch, generator))
    return torch.stack(found)


def draw_complex_slice(source: Source, generator: torch.Generator) -> Tensor:
    """Draw a complex slice (ny, nx), 99th percentile of the magnitude near 1."""
    if source.cohort is not None:
        return _draw_measured_slice(source.cohort, generator)
    subject = source.draw_subject(generator)
    tissue = _make_phantom() if source.phantom else anatomy.read_tissue_map(subject, source.root)
    return draw_slice(tissue, generator)


def _draw_measured_slice(cohort: Cohort, generator: torch.Generator) -> Tensor:
    """Draw a slice of a user's magnitude volume, across its longest voxel side, with a simulated phase."""
    volume = cohort.read_volume(cohort.draw_row(generator), "image")
    spacing_mm = volume.grid.spacing_mm
    coarsest = max(range(3), key=lambda axis: spacing_mm[axis])
    isotropic = spacing_mm[coarsest] < 1.5 * min(spacing_mm)
    axis = int(torch.randint(3, (1,), generator=generator)) if isotropic else coarsest
    n = volume.values.shape[axis]
    index = n // 8 + int(torch.randint(max(1, n - 2 * (n // 8)), (1,), generator=generator))
    magnitude = volume.values.select(axis, index).clamp(min=0)
    level = torch.quantile(magnitude.flatten(), 0.99).clamp(min=1e-6)
    x = torch.polar(magnitude / level, draw_smooth_phase((magnitude.shape[0], magnitude.shape[1]), generator))
    return x * math.exp(0.15 * float(torch.randn(1, generator=generator)))


@lru_cache(maxsize=1)
def _make_phantom() -> Tensor:
    """Return the phantom's tissues as ``draw_slice`` takes them: (256, 256, 256) at 1 mm."""
    from model_zoo.simulate.phantom import make_phantom

    tissue = make_phantom((64, 64, 64), 4.0).tissue
    return tissue.repeat_interleave(4, 0).repeat_interleave(4, 1).repeat_interleave(4, 2)


def _draw_patch(x: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """Draw one patch (2, size, size)."""
    window = draw_window(x, size, generator, least=0.05)
    if float(torch.rand(1, generator=generator)) < 0.5:
        window = window.flip(0).conj()
    return torch.stack([window.real, window.imag])


def _make_network(c: Configuration) -> LocalUNet:
    return LocalUNet(channels=c.channels, blocks=c.blocks)


def _make_denoiser(network: nn.Module) -> Denoiser:
    return Denoiser(network, SIGMA_DATA, stride=1)  # patches are multiples of the network's stride: nothing to pad


def _draw_batch(c: Configuration, source: Source, generator: torch.Generator) -> dict[str, Tensor]:
    """Draw noise-free patches ``x0`` (batch, 2, patch, patch), noise levels ``sigma`` (batch,), and the ``noise``."""
    return add_noise(draw_patches(c.batch, c, source, generator), c, generator)


def _compute_loss(network: nn.Module, batch: dict[str, Tensor], _: Configuration) -> Tensor:
    return training_loss(_make_denoiser(network), batch["x0"], batch["sigma"], batch["noise"]).mean()


def _validate(network: nn.Module, c: Configuration, source: Source) -> dict[str, float]:
    """Return the denoising PSNR in dB (peak 1) on 16 patches, by noise level."""
    generator = seeded(c.seed, 10**9)
    return measure_denoising(_make_denoiser(network), draw_patches(16, c, source, generator), generator)


def _describe_inference(c: Configuration) -> dict[str, Any]:
    return {
        "network_def": {
            "_target_": "model_zoo.networks.local_unet.LocalUNet",
            "channels": list(c.channels),
            "blocks": c.blocks,
        },
        "sigma_data": SIGMA_DATA,
    }


RECIPE = Recipe(
    name="mri-prior",
    bundle="mri_prior",
    configurations=CONFIGURATIONS,
    make_network=_make_network,
    draw_batch=_draw_batch,
    compute_loss=_compute_loss,
    validate=_validate,
    describe_inference=_describe_inference,
    facts={
        "task": "Prior of complex brain MR slices for reconstruction from undersampled k-space",
        "intended_use": "Research only. Not for diagnosis. Reconstruction of brain MR by posterior sampling.",
        "trained_on": "simulation only (random planes through SynthSeg label maps); never on patient images",
        "network_input": {
            "organ": "head",
            "scale": "99th percentile of the magnitude is 1",
            "channels": "real, imaginary",
        },
        "input_contract": {
            "kspace": [
                {
                    "fact": "body_part",
                    "one_of": ["head", "brain", "skull", "cereb", "crani", "neuro"],
                    "otherwise": "hold",
                },
                {"fact": "field_strength_t", "between": [0.3, 7.1], "otherwise": "hold"},
                {"fact": "acceleration", "between": [1, 16], "otherwise": "hold"},
            ]
        },
        "output_limits": {
            "hold_above": {"chi-square": 4.0, "coil compression loss": 0.002, "unexplained coil energy": 0.1}
        },
        "units": "1 (relative to the 99th percentile of the magnitude)",
        "data_licence": "SynthSeg label maps: Apache-2.0; no image data",
    },
    columns=(Column("image", "image", help="magnitude of a brain MR volume without noise or artefacts, any contrast"),),
)
