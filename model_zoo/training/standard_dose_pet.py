"""Recipe ``standard-dose-pet``: a low-dose PET image and its dose fraction to the noise-free image of that resolution.

Data: brains (five tracers, all stages of the disease model) and torsos (procedural, FDG) as pairs of images
(``simulate.pet.low_dose``): nearly all of a pool of projected scans, whose counts are drawn, thinned and reconstructed
by OSEM anew for each step, the rest of objects of their own with surrogate noise; or a user's reconstructed pairs.
(Taught with surrogate noise, whose texture is the same along all axes, a network is no better on OSEM than a Gaussian.)
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
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from model_zoo import ct_tissues
from model_zoo.networks.volume_unet import VolumeUNet
from model_zoo.simulate.pet import low_dose
from model_zoo.simulate.pet.counts import Scan
from model_zoo.simulate.pet.low_dose import REGIONS, Pair, Reconstruction, ScannedObject
from model_zoo.simulate.pet.torso import Torso, random_torso
from model_zoo.standard_dose import EMBEDDING, IN_CHANNELS, OUT_CHANNELS, interpret, prepare, scale_of
from model_zoo.training import labels, recipe
from model_zoo.training.cohort import Cohort
from model_zoo.training.pet_brains import random_brain
from model_zoo.training.pet_losses import region_bias, structural_consistency
from model_zoo.training.recipe import Column, Recipe, Source, seeded

__all__ = [
    "CONFIGURATIONS", "RECIPE", "Configuration", "describe_inference", "draw_batch", "fidelity", "items",
    "make_network", "names_of", "region_maps", "validate",
]  # fmt: skip

WARP_CELLS = 4
POOLED_LESIONS = 24  # in a torso of the pool: each is one of few


@dataclass(frozen=True, kw_only=True)
class Configuration(recipe.Configuration):
    """``patch``: voxels of a side; ``spacings_mm``: drawn per object; ``patches_per_object``: with a dose each.

    ``brains``: share of brains among the objects, the rest are torsos. ``doses``: limits of the log-uniform fraction.
    ``pool``: scans, projected when first needed, and ``pool_share`` of the objects that come from them.
    ``told``: share of items that are shown region maps, of ``labels`` "anatomy" (``low_dose.REGIONS``), "ct"
    (``ct_tissues``, from the attenuation map) or "both" (half of the torsos by CT, else anatomy). ``misplaced_mm``:
    largest sd of their borders' displacement. ``target``: one of ``low_dose.TARGETS``. ``about_lesions``: share of
    patches, where an object has lesions.
    """

    channels: tuple[int, ...]
    blocks: int
    patch: int
    refine: int = 16
    spacings_mm: tuple[float, ...] = (2.0, 2.5, 3.0, 3.5, 4.0)
    patches_per_object: int = 2
    brains: float = 0.5
    doses: tuple[float, float] = (0.01, 0.5)
    noise: tuple[float, float] = (0.04, 0.2)
    pool: int = 320
    pool_share: float = 0.95
    about_lesions: float = 0.6
    pool_slices: int = 64
    told: float = 0.6
    labels: Literal["anatomy", "ct", "both"] = "both"
    misplaced_mm: float = 1.5
    target: str = "expected"
    square_weight: float = 2.0
    gradient_weight: float = 0.1
    region_weight: float = 0.05
    structure_weight: float = 0.0


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
        IN_CHANNELS, OUT_CHANNELS, c.channels, c.blocks, unshuffle=2, embedding=EMBEDDING, maps=len(names_of(c)),
        norm="soft", refine=c.refine,
    )  # fmt: skip


def names_of(c: Configuration) -> tuple[str, ...]:
    """The regions that the network may be told, in the order of their numbers."""
    return {"anatomy": REGIONS, "ct": ct_tissues.NAMES, "both": REGIONS + ct_tissues.NAMES}[c.labels]


def _brain(
    c: Configuration, source: Source, generator: torch.Generator, spacing_mm: float, finer: int
) -> ScannedObject:
    found = random_brain(source, generator, spacing_mm=spacing_mm, finer=finer)
    return labels.label_tissues_by_ct(found, names_of(c)) if c.labels == "ct" else found


def _torso(c: Configuration, body: Torso, finer: int, generator: torch.Generator) -> ScannedObject:
    found = low_dose.torso(body, finer)
    by_ct = c.labels == "ct" or (c.labels == "both" and _uniform(generator) < 0.5)
    return labels.label_tissues_by_ct(found, names_of(c)) if by_ct else found


def _object(c: Configuration, source: Source, generator: torch.Generator) -> ScannedObject:
    spacing_mm = c.spacings_mm[int(torch.randint(len(c.spacings_mm), (1,), generator=generator))]
    if _uniform(generator) < c.brains:
        finer = 2 if spacing_mm >= 4 else 1
        return _brain(c, source, generator, spacing_mm, finer)
    n = c.patch * 3 // 2
    place = [(2 * _uniform(generator) - 1) * reach for reach in (90.0, 60.0)]
    middle_mm = (place[0], place[1], 40.0 + 460.0 * _uniform(generator))
    body = random_torso(generator, shape=(n, n, n), spacing_mm=spacing_mm, middle_mm=middle_mm)
    return _torso(c, body, 1, generator)


def draw_batch(c: Configuration, source: Source, generator: torch.Generator) -> dict[str, Tensor]:
    """Scaled ``low`` and ``target`` (b, 1, k, j, i), what the network is shown of them, and ``regions`` uint8 (b, k, j,
    i) with ``told`` (b,): 1 where the network may see them."""
    batch = items(c, source, generator)
    maps = region_maps(batch["regions"], batch["told"], c)
    return batch | vars(prepare(batch["low"], batch.pop("dose"), batch.pop("spacing_mm"), maps))


def items(c: Configuration, source: Source, generator: torch.Generator) -> dict[str, Tensor]:
    """The same before the network's end: with ``dose`` and ``spacing_mm`` (b,) in place of what it is shown."""
    found: list[dict[str, Tensor]] = []
    while len(found) < c.batch:
        pairs = _pairs(c, source, generator)
        scales = {id(pair): scale_of(pair.low) for pair in pairs}
        found += [_item(c, pair, scales[id(pair)], generator) for pair in pairs[: c.batch - len(found)]]
    return {name: torch.stack([item[name] for item in found]) for name in found[0]}


def _pairs(c: Configuration, source: Source, generator: torch.Generator) -> list[Pair]:
    if source.cohort is not None:
        return [_cohort_pair(c, source.cohort, generator)]
    if c.pool and _uniform(generator) < c.pool_share:
        index = int(torch.randint(c.pool, (1,), generator=generator))
        return [_counted(c, _pooled(c, source, index), generator)] * c.patches_per_object
    found = _object(c, source, generator)
    return [_surrogate(c, found, generator) for _ in range(c.patches_per_object)]


def _surrogate(c: Configuration, found: ScannedObject, generator: torch.Generator) -> Pair:
    post_mm = 3.0 + 3.0 * _uniform(generator)
    return low_dose.surrogate_pair(
        found,
        _log_uniform(c.doses, generator),
        generator,
        noise=_log_uniform(c.noise, generator),
        resolution_fwhm_mm=math.hypot(4.0 + 2.0 * _uniform(generator), post_mm),
        noise_fwhm_mm=post_mm + 1.0,
        target=c.target,
    )


@dataclass(frozen=True)
class _Pooled:
    """An object of the pool, its scan, how it is reconstructed, and the image of its expected counts."""

    found: ScannedObject
    scan: Scan
    reconstruct: Reconstruction
    expected: Tensor


@lru_cache(maxsize=1024)
def _pooled(c: Configuration, source: Source, index: int) -> _Pooled:
    """Scan ``index`` of the pool; the same whenever it is made."""
    generator = seeded(c.seed, 10**8, index)
    spacing_mm = c.spacings_mm[int(torch.randint(len(c.spacings_mm), (1,), generator=generator))]
    if _uniform(generator) < c.brains:
        found = _brain(c, source, generator, spacing_mm, 2)
    else:
        spacing_mm = max(spacing_mm, 3.0)
        j, i = (4 * math.ceil(side / spacing_mm / 2) for side in (300.0, 420.0))
        shape = (2 * c.pool_slices, j, i)
        body = random_torso(generator, shape=shape, spacing_mm=spacing_mm / 2, lesions=POOLED_LESIONS)
        found = _torso(c, body, 2, generator)
    made = Reconstruction(
        iterations=2 + int(torch.randint(3, (1,), generator=generator)),
        psf_fwhm_mm=4.5 if _uniform(generator) < 0.3 else 0.0,
        post_fwhm_mm=3.0 + 3.0 * _uniform(generator),
    )
    psf_fwhm_mm = 4.0 + 2.0 * _uniform(generator)
    scan = low_dose.simulate_scan(found, _log_uniform((1e7, 2e8), generator), generator, psf_fwhm_mm=psf_fwhm_mm)
    none = found.activity.new_zeros(0)  # it is projected: its fine lattice, times the pool, would fill the memory
    return _Pooled(replace(found, activity=none, mu_per_cm=none), scan, made, made(scan.expected, scan))


def _counted(c: Configuration, p: _Pooled, generator: torch.Generator) -> Pair:
    """A low dose of a scan with counts of its own."""
    dose = _log_uniform(c.doses, generator)
    return low_dose.osem_pair(
        p.found, p.scan, dose, generator, reconstruct=p.reconstruct, target=c.target, expected=p.expected
    )


def _cohort_pair(c: Configuration, cohort: Cohort, generator: torch.Generator) -> Pair:
    """Where a row has one image only, it stands for both (rows of this recipe have both)."""
    row = cohort.row(generator)
    spacing_mm = c.spacings_mm[int(torch.randint(len(c.spacings_mm), (1,), generator=generator))]
    found = cohort.patch(row, list(row.images), (c.patch,) * 3, spacing_mm, generator)
    low = found["low" if "low" in found else "standard"]
    standard = found["standard" if "standard" in found else "low"]
    none = torch.zeros_like(low)
    regions = found.get("regions", none).round().clamp(0, len(names_of(c))).to(torch.uint8)
    return Pair(low, standard, regions, none, row.numbers.get("dose", 1.0), spacing_mm)


def _item(c: Configuration, pair: Pair, scale: float, generator: torch.Generator) -> dict[str, Tensor]:
    """A random patch, flipped, over the scale of its image, or up to four times that: a bladder may lie outside it.
    Its regions are those of another examination, registered and segmented: their borders are off."""
    cut = _place(c, pair, generator)
    sides = [axis for axis in (1, 2) if _uniform(generator) < 0.5]
    low, target, regions = (_padded(x[cut], c.patch).flip(sides) for x in (pair.low, pair.target, pair.regions))
    off_voxels = c.misplaced_mm * _uniform(generator) / pair.spacing_mm
    regions = labels.displace_labels(regions, off_voxels, WARP_CELLS, generator)
    scale *= 4.0 ** _uniform(generator) if _uniform(generator) < 0.5 else 1.0
    return {
        "low": low[None] / scale,
        "target": target[None] / scale,
        "regions": regions,
        "told": torch.tensor(float(_uniform(generator) < c.told)),
        "dose": torch.tensor(pair.dose),
        "spacing_mm": torch.tensor(pair.spacing_mm),
    }


def _place(c: Configuration, pair: Pair, generator: torch.Generator) -> tuple[slice, ...]:
    """Where a patch lies: anywhere, but ``c.about_lesions`` of those of an object with lesions hold one.

    Lesions are a thousandth of a torso. A network that hardly meets any takes them for noise: taught without this, it
    took a third of SUVpeak from those of 1 to 6 ml.
    """
    starts = [_uniform(generator) * (max(0, n - c.patch) + 1) for n in pair.low.shape]
    where = torch.nonzero(pair.lesion)
    if len(where) and _uniform(generator) < c.about_lesions:
        number = pair.lesion[tuple(where[int(_uniform(generator) * len(where))])]
        own = torch.nonzero(pair.lesion == number)
        middle = own[int(_uniform(generator) * len(own))].tolist()
        starts = [m - c.patch * (0.15 + 0.7 * _uniform(generator)) for m in middle]
    sizes = [max(0, n - c.patch) for n in pair.low.shape]
    first = [min(max(0, int(start)), size) for start, size in zip(starts, sizes, strict=True)]
    return tuple(slice(start, start + c.patch) for start in first)


def _padded(x: Tensor, size: int) -> Tensor:
    return functional.pad(x, [n for side in reversed(x.shape) for n in (0, size - side)])


def _uniform(generator: torch.Generator) -> float:
    return float(torch.rand(1, generator=generator))


def _log_uniform(limits: tuple[float, float], generator: torch.Generator) -> float:
    return limits[0] * math.exp(math.log(limits[1] / limits[0]) * _uniform(generator))


def compute_loss(network: nn.Module, batch: dict[str, Tensor], c: Configuration) -> Tensor:
    """The sum in the module's docstring."""
    return fidelity(*_estimate(network, batch, c), batch, c)


def fidelity(mean: Tensor, s: Tensor, batch: dict[str, Tensor], c: Configuration) -> Tensor:
    """The same of an estimate ``(mean, s)``."""
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
    output = network(batch["inputs"], batch["embedding"], None, region_maps(batch["regions"], batch["told"], c))
    return interpret(output, batch["copies"], batch["amplitude"])


def region_maps(regions: Tensor, told: Tensor, c: Configuration) -> Tensor:
    """One map per region (b, r, k, j, i), all zero where the network is not told (b,)."""
    maps = functional.one_hot(regions.long(), len(names_of(c)) + 1)[..., 1:].movedim(-1, 1)
    return maps * told[:, None, None, None, None]


VALIDATION_DOSES = (0.02, 0.1, 0.3)


def validate(network: nn.Module, c: Configuration, source: Source) -> dict[str, float]:
    """On two brains and two torsos at three doses: dB of mean squared error gained over the low dose, mean |bias| in %
    of regions, and the share of voxels within one reported sd (0.76 for a Laplace density)."""
    device = next(network.parameters()).device
    gained: dict[float, list[float]] = {dose: [] for dose in VALIDATION_DOSES}
    biases, covered = [], []
    for dose in VALIDATION_DOSES:
        for brains in (0.0, 1.0):
            fixed = replace(c, batch=2, patches_per_object=1, brains=brains, doses=(dose, dose), pool=2, pool_share=1.0)
            with torch.autocast(device.type, enabled=False):
                batch = draw_batch(fixed, source, seeded(c.seed, 10**9, int(1000 * dose), int(brains)))
            batch = {name: value.to(device) for name, value in batch.items()}
            mean, s = _estimate(network, batch, c)
            target = batch["target"]
            ratio = (batch["low"] - target).square().mean() / (mean - target).square().mean()
            gained[dose].append(10 * math.log10(float(ratio)))
            biases.append(float(region_bias(mean, target, batch["regions"])))
            sd = math.sqrt(2) * batch["amplitude"] * s.exp()
            covered.append(float(((mean - target).abs() < sd).float().mean()))
    found = {f"gain_db_{dose}": sum(values) / len(values) for dose, values in gained.items()}
    return found | {"bias_percent": 100 * sum(biases) / len(biases), "within_sd": sum(covered) / len(covered)}


def describe_inference(c: Configuration) -> dict[str, Any]:
    """Network and what a pipeline must know to feed it (``model_zoo.standard_dose.restore``)."""
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
            "maps": len(names_of(c)),
        },
        "regions": list(names_of(c)),
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
