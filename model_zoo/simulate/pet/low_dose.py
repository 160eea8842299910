"""Pairs of a low-dose PET image and its target, of brains and torsos, fast or through the full chain.

``draw_surrogate_pair`` draws noise in the image (``surrogate``); ``draw_osem_pair`` projects a finer object, draws
counts, thins them and reconstructs both. The image that a pair aims at is the expectation of the reconstruction
(infinite dose, same resolution and post-filter), or the standard-dose image with or without the events of the low one.
All three have the same conditional mean for independent events; the expectation is the target with the least noise, and
only a simulator has it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional

from model_zoo import ct_tissues
from model_zoo.imaging import blur
from model_zoo.physics.tissues import TISSUES
from model_zoo.simulate.heads import Head
from model_zoo.simulate.pet.counts import Scan, draw_counts, simulate_prompts, thin_counts
from model_zoo.simulate.pet.osem import osem
from model_zoo.simulate.pet.projector import Geometry
from model_zoo.simulate.pet.surrogate import draw_low_and_standard, draw_low_dose
from model_zoo.simulate.pet.torso import ORGANS, Torso
from model_zoo.structures import STRUCTURES

__all__ = [
    "REGIONS",
    "TARGETS",
    "Pair",
    "Reconstruction",
    "ScannedObject",
    "draw_osem_pair",
    "draw_surrogate_pair",
    "label_by_attenuation",
    "make_brain",
    "make_torso",
    "map_regions",
    "simulate_scan",
]

REGIONS = (
    "grey matter",
    "white matter",
    "csf",
    "lungs",
    "heart",
    "liver",
    "spleen",
    "stomach",
    "kidneys",
    "spine",
    "bone",
    "bladder",
)
"""Anatomy that the network may be told; region r is number r + 1 in label arrays, 0 is everything else."""

TARGETS = ("expected", "independent", "shared")
"""Noise-free expectation; standard dose without, or with, the events of the low dose."""

_MU_BONE, _MU_SOFT = 0.13, 0.096


@dataclass(frozen=True)
class ScannedObject:
    """Scanned object. ``activity`` and ``mu_per_cm``: (k, j, i) with ``finer`` voxels along each axis per voxel of the

    image, whose isotropic ``spacing_mm``, ``regions`` (number in REGIONS or 0) and ``lesion`` (number or 0), both uint8
    (k, j, i), are those of the reconstruction.
    """

    activity: Tensor
    mu_per_cm: Tensor
    regions: Tensor
    lesion: Tensor
    spacing_mm: float
    finer: int


@dataclass(frozen=True)
class Pair:
    """``low`` of dose fraction ``dose`` and its ``target``, (k, j, i) in the object's units, with its regions."""

    low: Tensor
    target: Tensor
    regions: Tensor
    lesion: Tensor
    dose: float
    spacing_mm: float


@dataclass(frozen=True)
class Reconstruction:
    """Settings of the reconstruction: OSEM's ``iterations`` and ``subsets``, resolution modelling, post-filter."""

    iterations: int = 3
    subsets: int = 8
    psf_fwhm_mm: float = 0.0
    post_fwhm_mm: float = 5.0

    def __call__(self, y: Tensor, scan: Scan) -> Tensor:
        return osem(
            y,
            scan,
            iterations=self.iterations,
            subsets=self.subsets,
            psf_fwhm_mm=self.psf_fwhm_mm,
            post_fwhm_mm=self.post_fwhm_mm,
        )


def make_brain(head: Head, activity: Tensor, finer: int) -> ScannedObject:
    """Return a head with ``activity`` (k, j, i) on its own grid, which is ``finer`` times that of the image."""
    names = list(TISSUES)
    mu = torch.full((len(names),), _MU_SOFT)
    mu[names.index("air")], mu[names.index("bone")] = 0.0, _MU_BONE
    regions = map_regions(_take_nearest(head.structure, finer))
    return ScannedObject(
        activity,
        mu[head.tissue.to(torch.int64)],
        regions,
        torch.zeros_like(regions),
        head.spacing_mm * finer,
        finer,
    )


def map_regions(structure: Tensor) -> Tensor:
    """Return the number of the region, uint8, that each structure of the head belongs to; 0 for none."""
    of_structure = torch.zeros(len(STRUCTURES) + 1, dtype=torch.uint8)
    for each in STRUCTURES:
        of_structure[each.number] = 1 + REGIONS.index(each.tissue)
    return of_structure[structure.to(torch.int64)]


def make_torso(body: Torso, finer: int) -> ScannedObject:
    """Return a torso on a grid ``finer`` times that of the image."""
    of_organ = torch.tensor([1 + REGIONS.index(o) if o in REGIONS else 0 for o in ORGANS], dtype=torch.uint8)
    regions = of_organ.to(body.organ.device)[_take_nearest(body.organ, finer).to(torch.int64)]
    return ScannedObject(
        body.activity, body.mu_per_cm, regions, _take_nearest(body.lesion, finer), body.spacing_mm * finer, finer
    )


def label_by_attenuation(scanned_object: ScannedObject) -> ScannedObject:
    """Return the object with regions by its attenuation map: numbers of ``ct_tissues``, as its CT would give them.

    The attenuation map of a head has no fat: there it counts as soft tissue.
    """
    o = scanned_object
    hu = ct_tissues.attenuation_to_hounsfield(_take_nearest(o.mu_per_cm, o.finer).cpu().numpy())
    labels = ct_tissues.remove_thin_lung(ct_tissues.classify(hu))
    return replace(o, regions=torch.from_numpy(labels).to(o.regions.device))


def _take_nearest(labels: Tensor, finer: int) -> Tensor:
    return labels[finer // 2 :: finer, finer // 2 :: finer, finer // 2 :: finer].contiguous()


def draw_surrogate_pair(
    scanned_object: ScannedObject,
    dose: float,
    generator: torch.Generator,
    *,
    noise: float,
    resolution_fwhm_mm: float = 7.0,
    noise_fwhm_mm: float = 6.0,
    target: str = "expected",
) -> Pair:
    """Return a pair without projection. ``noise``: coefficient of variation at dose 1 where activity is the body's
    mean;

    it varies smoothly by about 30 % over the volume, as attenuation makes it. Raises ValueError for another ``target``
    than TARGETS.
    """
    _check_target(target)
    o, spacing = scanned_object, (scanned_object.spacing_mm,) * 3
    x = blur(functional.avg_pool3d(o.activity[None], o.finer)[0], resolution_fwhm_mm, spacing, normalised=True)
    reference = float(x[x > 0.3 * x.mean()].mean())
    coarse = torch.randn((1, 1, 4, 4, 4), generator=generator, device=generator.device)
    varied = torch.exp(0.3 * functional.interpolate(coarse, size=x.shape, mode="trilinear", align_corners=True)[0, 0])
    k = noise**2 * reference * varied.to(x)
    kind = {"fwhm_mm": noise_fwhm_mm, "spacing_mm": o.spacing_mm, "reference": reference}
    if target == "expected":
        low, aim = draw_low_dose(x, dose, k, generator, **kind), x
    else:
        low, aim = draw_low_and_standard(x, dose, k, generator, independent=target == "independent", **kind)
    return Pair(low, aim, o.regions, o.lesion, dose, o.spacing_mm)


def simulate_scan(
    scanned_object: ScannedObject,
    counts: float,
    generator: torch.Generator,
    *,
    psf_fwhm_mm: float = 4.5,
    angles: int = 72,
) -> Scan:
    """Return the scan of an object with ``counts`` prompts at dose 1, sampled as the image is."""
    o = scanned_object
    shape = (o.activity.shape[1] // o.finer, o.activity.shape[2] // o.finer)
    g = Geometry(shape, o.spacing_mm, bins=max(shape), bin_mm=o.spacing_mm, angles=angles)
    return simulate_prompts(
        o.activity,
        o.mu_per_cm,
        g,
        generator,
        slice_mm=o.spacing_mm,
        counts=counts,
        finer=o.finer,
        psf_fwhm_mm=psf_fwhm_mm,
        scatter_fraction=0.28 + 0.08 * _uniform(generator),
        randoms_fraction=0.1 + 0.2 * _uniform(generator),
    )


def draw_osem_pair(
    scanned_object: ScannedObject,
    scan: Scan,
    dose: float,
    generator: torch.Generator,
    *,
    reconstruct: Reconstruction,
    target: str = "expected",
    expected: Tensor | None = None,
) -> Pair:
    """Return a pair through counts and OSEM. ``expected``: the image of the expected counts, where it was made before.

    Raises ValueError for another ``target`` than TARGETS.
    """
    _check_target(target)
    low, rest = thin_counts(draw_counts(scan.expected, generator), dose, generator)
    if target == "expected":
        aim = reconstruct(scan.expected, scan) if expected is None else expected
    elif target == "shared":
        aim = reconstruct(low + rest, scan)
    else:
        aim = reconstruct(draw_counts(scan.expected, generator), scan)
    o = scanned_object
    return Pair(reconstruct(low, scan.at_dose(dose)), aim, o.regions, o.lesion, dose, o.spacing_mm)


def _check_target(target: str) -> None:
    if target not in TARGETS:
        raise ValueError(f"no target {target!r}; there are {', '.join(TARGETS)}")


def _uniform(generator: torch.Generator) -> float:
    return float(torch.rand(1, generator=generator, device=generator.device))
