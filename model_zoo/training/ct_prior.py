"""Recipe ``ct-prior``: the denoiser behind CT reconstruction, trained on simulated torsos and heads only.

Data: axial slices of procedural torsos, and of the heads of ``anatomy.TRAIN`` where there are label maps
(``simulate.ct``), at a random pixel size, cut into patches; or slices of a user's CT series, with flips and turns.
Images are (HU + 1000) / 1000: air is 0, water is 1. The loss is that of ``mri-prior``.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from model_zoo.denoisers import Denoiser, training_loss
from model_zoo.networks.local_unet import LocalUNet
from model_zoo.simulate import ct
from model_zoo.training.cohort import Cohort
from model_zoo.training.denoising import Configuration, add_noise, draw_window, measure_denoising
from model_zoo.training.recipe import Column, Recipe, Source, seeded

__all__ = ["CONFIGURATIONS", "RECIPE", "SIGMA_DATA", "draw_ct_slice", "draw_patches"]

SIGMA_DATA = 0.5
"""Standard deviation of the training patches, in units of water."""
LARGEST = 4.0
"""Largest value, 3000 HU: metal and the end of 12-bit CT numbers."""
_PIXEL_MM = (0.8, 2.8)
_HEADS = 0.25
"""Share of heads among the slices."""
_TORSO_MM = (20.0, 580.0)
_HEAD_ROWS = (90, 190)
"""Heights of slices in the torso, and axial planes of a head's label map that hold brain."""

CONFIGURATIONS = {
    "cpu": Configuration(
        channels=(64, 128, 192), blocks=2, steps=8000, batch=16, patch=96, learning_rate=8e-4, log_sigma_mean=-2.2
    ),
    "gpu": Configuration(
        channels=(80, 144, 192), blocks=3, steps=40000, batch=64, patch=128, learning_rate=6e-4, log_sigma_mean=-2.2,
        ema=0.9995, workers=14, checkpoint_every=1000,
    ),
    "smoke": Configuration(
        channels=(16, 32), blocks=1, steps=6, batch=4, patch=32, learning_rate=1e-3, warmup=2, checkpoint_every=3
    ),
}  # fmt: skip


def draw_patches(count: int, c: Configuration, source: Source, generator: torch.Generator) -> Tensor:
    """Draw ``count`` random patches (count, 1, patch, patch) from slices of the source, flipped and turned."""
    found: list[Tensor] = []
    while len(found) < count:
        x = draw_ct_slice(source, generator, size=2 * c.patch)
        short = [max(0, c.patch - n) for n in x.shape]
        x = functional.pad(x, (0, short[1], 0, short[0]))
        for _ in range(min(c.patches_per_slice, count - len(found))):
            window = draw_window(x, c.patch, generator, least=0.1)
            found.append(window.flip(0) if float(torch.rand(1, generator=generator)) < 0.5 else window)
    return torch.stack(found)[:, None]


def draw_ct_slice(source: Source, generator: torch.Generator, *, size: int) -> Tensor:
    """Draw a slice, water 1 and air 0: (size, size) of the simulation, or a whole slice of a user's series."""
    if source.cohort is not None:
        return _scale(_draw_measured_slice(source.cohort, generator))
    low, high = map(math.log, _PIXEL_MM)
    pixel_mm = math.exp(low + (high - low) * float(torch.rand(1, generator=generator)))
    is_head = float(torch.rand(1, generator=generator)) < _HEADS and not source.phantom
    if is_head:
        row = int(torch.randint(*_HEAD_ROWS, (1,), generator=generator))
        subject = source.draw_subject(generator)
        return _scale(ct.make_head_slice(subject, row_mm=row, size=size, pixel_mm=pixel_mm, root=source.root))
    first, last = _TORSO_MM
    height_mm = first + (last - first) * float(torch.rand(1, generator=generator))
    return _scale(ct.draw_torso_slice(generator, size=size, pixel_mm=pixel_mm, height_mm=height_mm))


def _scale(hu: Tensor) -> Tensor:
    return ((hu + 1000) / 1000).clamp(0.0, LARGEST)


def _draw_measured_slice(cohort: Cohort, generator: torch.Generator) -> Tensor:
    """Draw an axial slice of a user's series in HU."""
    values = cohort.read_volume(cohort.draw_row(generator), "image").values
    return values[int(torch.randint(len(values), (1,), generator=generator))]


def _make_network(c: Configuration) -> LocalUNet:
    return LocalUNet(in_channels=1, out_channels=1, channels=c.channels, blocks=c.blocks)


def _make_denoiser(network: nn.Module) -> Denoiser:
    return Denoiser(network, SIGMA_DATA, stride=1)  # patches are multiples of the network's stride: nothing to pad


def _draw_batch(c: Configuration, source: Source, generator: torch.Generator) -> dict[str, Tensor]:
    """Draw noise-free patches ``x0`` (batch, 1, patch, patch), noise levels ``sigma`` (batch,), and the ``noise``."""
    return add_noise(draw_patches(c.batch, c, source, generator), c, generator)


def _compute_loss(network: nn.Module, batch: dict[str, Tensor], _: Configuration) -> Tensor:
    return training_loss(_make_denoiser(network), batch["x0"], batch["sigma"], batch["noise"]).mean()


def _validate(network: nn.Module, c: Configuration, source: Source) -> dict[str, float]:
    """Return the denoising PSNR in dB (peak 1, which is 1000 HU) on 16 patches, by noise level."""
    generator = seeded(c.seed, 10**9)
    return measure_denoising(_make_denoiser(network), draw_patches(16, c, source, generator), generator)


def _describe_inference(c: Configuration) -> dict[str, Any]:
    return {
        "network_def": {
            "_target_": "model_zoo.networks.local_unet.LocalUNet",
            "in_channels": 1,
            "out_channels": 1,
            "channels": list(c.channels),
            "blocks": c.blocks,
        },
        "sigma_data": SIGMA_DATA,
    }


RECIPE = Recipe(
    name="ct-prior",
    bundle="ct_prior",
    configurations=CONFIGURATIONS,
    make_network=_make_network,
    draw_batch=_draw_batch,
    compute_loss=_compute_loss,
    validate=_validate,
    describe_inference=_describe_inference,
    facts={
        "task": "Prior of axial CT slices for reconstruction from few or noisy projections",
        "intended_use": "Research only. Not for diagnosis. Reconstruction of CT by posterior sampling.",
        "trained_on": "simulation only (procedural torsos, and heads of SynthSeg label maps); never on patient images",
        "network_input": {"organ": "torso, head", "scale": "water is 1, air is 0", "channels": "one, real"},
        "input_contract": {
            "projections": [
                {
                    "fact": "body_part",
                    "one_of": ["head", "brain", "skull", "chest", "thorax", "abdomen", "pelvis", "body", "torso"],
                    "otherwise": "hold",
                }
            ]
        },
        "output_limits": {
            "hold_above": {
                "chi-square": 4.0,
                "chi-square, worst slice": 4.0,
                "truncated views": 0.05,
                "object outside": 0.05,
            },
            "hold_below": {"chi-square": 0.1, "chi-square, worst slice": 0.1, "median photons": 10.0},
        },
        "units": "1 (water is 1)",
        "data_licence": "SynthSeg label maps: Apache-2.0; no image data",
    },
    columns=(Column("image", "image", help="a CT series in HU, with little noise and no artefacts"),),
)
