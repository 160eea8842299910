"""Recipe ``standard-dose-pet``: a low-dose PET image and its dose fraction to the noise-free image of that resolution.

Data: brains (five tracers, all stages of the disease model) and torsos (procedural, FDG) as pairs of images
(``simulate.pet.low_dose``): nearly all of a pool of projected scans, whose counts are drawn, thinned and reconstructed
by OSEM anew for each step, the rest of objects of their own with surrogate noise; or a user's reconstructed pairs.
(Trained with surrogate noise, whose texture is the same along all axes, a network does no better on OSEM than a
Gaussian.)
Loss, in units of the noise amplitude A of ``model_zoo.standard_dose``:

    |e| exp(-s) + s  +  w_s e^2 A / mean(A)  +  w_g |grad e|
    +  w_r mean over regions |mean_R(mean - target)| / mean_R(target)
    +  w_c mean over pairs of blocks (1 - cos(f_i - f_j, f'_i - f'_j)),      e = (mean - target) / A

The first two terms aim at the median, which passes over small lesions, and forgive most where activity is high; the
squares aim at the mean. The last term is the line term of the structural consistency of Jiang et al. (``pet_losses``),
here of the images: f are the voxels of a block. Off by default; their two stages, with the terms of features, are
``standard_dose_semi``.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from model_zoo.networks.volume_unet import VolumeUNet
from model_zoo.standard_dose import EMBEDDING, IN_CHANNELS, OUT_CHANNELS, interpret, prepare
from model_zoo.training.dose_items import Configuration, draw_items, list_regions
from model_zoo.training.pet_losses import region_bias, structural_consistency
from model_zoo.training.recipe import Column, Recipe, Source, seeded

__all__ = [
    "CONFIGURATIONS",
    "RECIPE",
    "describe_inference",
    "draw_batch",
    "fidelity_loss",
    "make_network",
    "make_region_maps",
    "validate",
]  # fmt: skip


CONFIGURATIONS = {
    "cpu": Configuration(
        channels=(32, 64, 128), blocks=2, refine=24, patch=32, steps=3600, batch=8, patches_per_object=4, pool=240,
        learning_rate=2e-3, warmup=40, ema=0.995, workers=1, checkpoint_every=50, validate_every=300,
    ),
    "gpu": Configuration(
        channels=(40, 80, 160), blocks=2, patch=48, steps=12000, batch=16, patches_per_object=4, learning_rate=1.5e-3,
        ema=0.999, pool=480, workers=14, checkpoint_every=500, validate_every=2000,
    ),
    "smoke": Configuration(
        channels=(8, 16), blocks=1, patch=16, steps=6, batch=2, learning_rate=1e-3, warmup=2, checkpoint_every=3,
        spacings_mm=(8.0,), pool=1, pool_slices=16,
    ),
}  # fmt: skip


def make_network(c: Configuration) -> nn.Module:
    """Bands of the low dose in, residual, log scale and blend out; dose as embedding, region maps if there are any."""
    return VolumeUNet(
        IN_CHANNELS, OUT_CHANNELS, c.channels, c.blocks, unshuffle=2, embedding=EMBEDDING, maps=len(list_regions(c)),
        norm="soft", refine=c.refine,
    )  # fmt: skip


def draw_batch(c: Configuration, source: Source, generator: torch.Generator) -> dict[str, Tensor]:
    """Draw scaled ``low`` and ``target`` (b, 1, k, j, i), the network's inputs and ``regions`` uint8 (b, k, j, i).

    ``has_regions`` (b,): 1 where the network gets the regions.
    """
    batch = draw_items(c, source, generator)
    maps = make_region_maps(batch["regions"], batch["has_regions"], c)
    return batch | vars(prepare(batch["low"], batch.pop("dose"), batch.pop("spacing_mm"), maps))


def compute_loss(network: nn.Module, batch: dict[str, Tensor], c: Configuration) -> Tensor:
    """Return the sum in the module's docstring."""
    return fidelity_loss(*_estimate(network, batch, c), batch, c)


def fidelity_loss(mean: Tensor, s: Tensor, batch: dict[str, Tensor], c: Configuration) -> Tensor:
    """Return the loss of an estimate ``(mean, s)``."""
    e = (mean - batch["target"]) / batch["amplitude"]
    total = (e.abs() * torch.exp(-s) + s).mean()
    share = batch["amplitude"] / batch["amplitude"].mean(dim=(1, 2, 3, 4), keepdim=True)
    total = total + c.square_weight * (share * e.square()).mean()
    if c.gradient_weight:
        total = total + c.gradient_weight * sum(e.diff(dim=axis).abs().mean() for axis in (2, 3, 4)) / 3
    if c.region_weight:
        total = total + c.region_weight * region_bias(mean, batch["target"], batch["regions"])
    if c.structure_weight:
        total = total + c.structure_weight * structural_consistency(mean, batch["target"])
    return total


def _estimate(network: nn.Module, batch: dict[str, Tensor], c: Configuration) -> tuple[Tensor, Tensor]:
    output = network(
        batch["inputs"], batch["embedding"], None, make_region_maps(batch["regions"], batch["has_regions"], c)
    )
    return interpret(output, batch["copies"], batch["amplitude"])


def make_region_maps(regions: Tensor, has_regions: Tensor, c: Configuration) -> Tensor:
    """Return one map per region (b, r, k, j, i), all zero where ``has_regions`` (b,) is 0."""
    maps = functional.one_hot(regions.long(), len(list_regions(c)) + 1)[..., 1:].movedim(-1, 1)
    return maps * has_regions[:, None, None, None, None]


VALIDATION_DOSES = (0.02, 0.1, 0.3)


def validate(network: nn.Module, c: Configuration, source: Source) -> dict[str, float]:
    """Return numbers on two brains and two torsos at three doses.

    They are the mean squared error in dB below that of the low dose, the mean |bias| of regions in %, and the share of
    voxels within one reported sd (0.76 for a Laplace density).
    """
    device = next(network.parameters()).device
    gained: dict[float, list[float]] = {dose: [] for dose in VALIDATION_DOSES}
    biases, covered = [], []
    for dose in VALIDATION_DOSES:
        for brains in (0.0, 1.0):
            configuration = replace(
                c, batch=2, patches_per_object=1, brains=brains, doses=(dose, dose), pool=2, pool_share=1.0
            )
            with torch.autocast(device.type, enabled=False):
                batch = draw_batch(configuration, source, seeded(c.seed, 10**9, int(1000 * dose), int(brains)))
            batch = {name: value.to(device) for name, value in batch.items()}
            mean, s = _estimate(network, batch, c)
            target = batch["target"]
            ratio = (batch["low"] - target).square().mean() / (mean - target).square().mean()
            gained[dose].append(10 * math.log10(float(ratio)))
            biases.append(float(region_bias(mean, target, batch["regions"])))
            sd = math.sqrt(2) * batch["amplitude"] * s.exp()
            covered.append(float(((mean - target).abs() < sd).float().mean()))
    metrics = {f"gain_db_{dose}": sum(values) / len(values) for dose, values in gained.items()}
    return metrics | {"bias_percent": 100 * sum(biases) / len(biases), "within_sd": sum(covered) / len(covered)}


def describe_inference(c: Configuration) -> dict[str, Any]:
    """Return the network's definition and the settings for ``model_zoo.standard_dose.restore``."""
    return {
        "network_def": {
            "_target_": "model_zoo.networks.volume_unet.VolumeUNet",
            "in_channels": IN_CHANNELS,
            "out_channels": OUT_CHANNELS,
            "channels": list(c.channels),
            "blocks": c.blocks,
            "unshuffle": 2,
            "norm": "soft",
            "refine": c.refine,
            "embedding": EMBEDDING,
            "maps": len(list_regions(c)),
        },
        "regions": list(list_regions(c)),
        "doses": list(c.doses),
        "spacings_mm": [min(c.spacings_mm), max(c.spacings_mm)],
    }


RECIPE = Recipe(
    name="standard-dose-pet",
    bundle="standard_dose_pet",
    configurations=CONFIGURATIONS,
    make_network=make_network,
    draw_batch=draw_batch,
    compute_loss=compute_loss,
    validate=validate,
    describe_inference=describe_inference,
    facts={
        "task": "Standard-dose PET from low-dose PET of brain and torso, with a standard deviation",
        "intended_use": "Research only. Not for diagnosis. Denoising of PET images of known dose fraction.",
        "network_input": {
            "organ": "head or torso",
            "modality": "PET, attenuation corrected, any linear unit",
            "spacing_mm": "isotropic, 2 to 4",
            "dose_fraction": "0.01 to 0.5",
            "scale": "99.9th percentile of the low-dose image inside the body is 1 (model_zoo.standard_dose.scale_of)",
        },
        "input_contract": {
            "pet": [
                {"fact": "modality", "one_of": ["PT"]},
                {"fact": "corrections", "one_of": ["ATTN"]},
                {"fact": "coverage_mm", "between": [60, 2500]},
                {"fact": "coarsest_spacing_mm", "between": [1, 6]},
                {"fact": "dose_fraction", "between": [0.01, 0.5], "otherwise": "hold"},
                {"fact": "tracer", "one_of": ["fluorodeoxyglucose", "fdg", "deoxyglucose"], "otherwise": "hold"},
            ]
        },
        "units": "those of the input; sd in the same",
        "trained_on": "simulation only (SynthSeg label maps, a procedural torso); never on patient images",
        "data_licence": "SynthSeg label maps: Apache-2.0; Allen Human Reference Atlas: CC BY 4.0; no image data",
    },
    columns=(
        Column("low", "image", help="low-dose PET"),
        Column("standard", "image", help="standard-dose PET of the same scan, in the same unit"),
        Column("dose", "number", help="dose of low over dose of standard, 0.01 to 0.5"),
        Column("regions", "labels", required=False, help="region numbers of inference.json's regions, from 1; 0 none"),
    ),
)
