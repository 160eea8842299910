"""Settings and items of the recipe ``standard-dose-pet``: pairs of a pool of scans, new objects or a user's table.

Nearly all pairs come from the pool, whose counts are drawn, thinned and reconstructed by OSEM anew; the others are of
an object of their own with surrogate noise.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional

from model_zoo import ct_tissues
from model_zoo.simulate.pet import low_dose
from model_zoo.simulate.pet.counts import Scan
from model_zoo.simulate.pet.low_dose import REGIONS, Pair, Reconstruction, ScannedObject
from model_zoo.simulate.pet.torso import Torso, draw_torso
from model_zoo.standard_dose import scale_of
from model_zoo.training import labels, recipe
from model_zoo.training.cohort import Cohort
from model_zoo.training.pet_brains import draw_brain
from model_zoo.training.recipe import Source, seeded

__all__ = [
    "Configuration",
    "PooledScan",
    "choose_patch",
    "draw_items",
    "draw_pooled_pair",
    "label_torso",
    "list_regions",
    "make_pooled_scan",
]

WARP_CELLS = 4
POOLED_LESIONS = 24  # in a torso of the pool: each is one of few


@dataclass(frozen=True, kw_only=True)
class Configuration(recipe.Configuration):
    """``patch``: voxels of a side; ``spacings_mm``: drawn per object; ``patches_per_object``: with a dose each.

    ``brains``: share of brains among the objects, the rest are torsos. ``doses``: limits of the log-uniform fraction.
    ``pool``: scans, projected when first needed, and ``pool_share`` of the objects that come from them.
    ``regions_share``: share of items with region maps as input, of ``labels`` "anatomy" (``low_dose.REGIONS``), "ct"
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
    regions_share: float = 0.6
    labels: Literal["anatomy", "ct", "both"] = "both"
    misplaced_mm: float = 1.5
    target: str = "expected"
    square_weight: float = 2.0
    gradient_weight: float = 0.1
    region_weight: float = 0.05
    structure_weight: float = 0.0
    JSON_KEYS: ClassVar[Mapping[str, str]] = {"regions_share": "told"}


def list_regions(c: Configuration) -> tuple[str, ...]:
    """Return the names of the regions that the network may have as input, in the order of their numbers."""
    return {"anatomy": REGIONS, "ct": ct_tissues.NAMES, "both": REGIONS + ct_tissues.NAMES}[c.labels]


def _draw_brain(
    c: Configuration, source: Source, generator: torch.Generator, spacing_mm: float, finer: int
) -> ScannedObject:
    subject = draw_brain(source, generator, spacing_mm=spacing_mm, finer=finer)
    return labels.label_tissues_by_ct(subject, list_regions(c)) if c.labels == "ct" else subject


def label_torso(c: Configuration, body: Torso, finer: int, generator: torch.Generator) -> ScannedObject:
    subject = low_dose.make_torso(body, finer)
    by_ct = c.labels == "ct" or (c.labels == "both" and _uniform(generator) < 0.5)
    return labels.label_tissues_by_ct(subject, list_regions(c)) if by_ct else subject


def _draw_object(c: Configuration, source: Source, generator: torch.Generator) -> ScannedObject:
    spacing_mm = c.spacings_mm[int(torch.randint(len(c.spacings_mm), (1,), generator=generator))]
    if _uniform(generator) < c.brains:
        finer = 2 if spacing_mm >= 4 else 1
        return _draw_brain(c, source, generator, spacing_mm, finer)
    n = c.patch * 3 // 2
    place = [(2 * _uniform(generator) - 1) * reach for reach in (90.0, 60.0)]
    middle_mm = (place[0], place[1], 40.0 + 460.0 * _uniform(generator))
    body = draw_torso(generator, shape=(n, n, n), spacing_mm=spacing_mm, middle_mm=middle_mm)
    return label_torso(c, body, 1, generator)


def draw_items(c: Configuration, source: Source, generator: torch.Generator) -> dict[str, Tensor]:
    """Draw a batch without the network's inputs: ``low``, ``target``, ``regions``, ``dose`` and ``spacing_mm`` (b,)."""
    drawn_items: list[dict[str, Tensor]] = []
    while len(drawn_items) < c.batch:
        pairs = _draw_pairs(c, source, generator)
        scales = {id(pair): scale_of(pair.low) for pair in pairs}
        drawn_items += [
            _make_item(c, pair, scales[id(pair)], generator) for pair in pairs[: c.batch - len(drawn_items)]
        ]
    return {name: torch.stack([item[name] for item in drawn_items]) for name in drawn_items[0]}


def _draw_pairs(c: Configuration, source: Source, generator: torch.Generator) -> list[Pair]:
    if source.cohort is not None:
        return [_draw_cohort_pair(c, source.cohort, generator)]
    if c.pool and _uniform(generator) < c.pool_share:
        index = int(torch.randint(c.pool, (1,), generator=generator))
        return [draw_pooled_pair(c, make_pooled_scan(c, source, index), generator)] * c.patches_per_object
    subject = _draw_object(c, source, generator)
    return [_draw_surrogate_pair(c, subject, generator) for _ in range(c.patches_per_object)]


def _draw_surrogate_pair(c: Configuration, subject: ScannedObject, generator: torch.Generator) -> Pair:
    post_mm = 3.0 + 3.0 * _uniform(generator)
    return low_dose.draw_surrogate_pair(
        subject,
        _log_uniform(c.doses, generator),
        generator,
        noise=_log_uniform(c.noise, generator),
        resolution_fwhm_mm=math.hypot(4.0 + 2.0 * _uniform(generator), post_mm),
        noise_fwhm_mm=post_mm + 1.0,
        target=c.target,
    )


@dataclass(frozen=True)
class PooledScan:
    """An object of the pool, its scan, its reconstruction, and the image of its expected counts."""

    subject: ScannedObject
    scan: Scan
    reconstruct: Reconstruction
    expected: Tensor


@lru_cache(maxsize=1024)
def make_pooled_scan(c: Configuration, source: Source, index: int) -> PooledScan:
    """Return scan ``index`` of the pool, which depends on the configuration, the source and ``index`` only."""
    generator = seeded(c.seed, 10**8, index)
    spacing_mm = c.spacings_mm[int(torch.randint(len(c.spacings_mm), (1,), generator=generator))]
    if _uniform(generator) < c.brains:
        subject = _draw_brain(c, source, generator, spacing_mm, 2)
    else:
        spacing_mm = max(spacing_mm, 3.0)
        j, i = (4 * math.ceil(side / spacing_mm / 2) for side in (300.0, 420.0))
        shape = (2 * c.pool_slices, j, i)
        body = draw_torso(generator, shape=shape, spacing_mm=spacing_mm / 2, lesions=POOLED_LESIONS)
        subject = label_torso(c, body, 2, generator)
    reconstruct = Reconstruction(
        iterations=2 + int(torch.randint(3, (1,), generator=generator)),
        psf_fwhm_mm=4.5 if _uniform(generator) < 0.3 else 0.0,
        post_fwhm_mm=3.0 + 3.0 * _uniform(generator),
    )
    psf_fwhm_mm = 4.0 + 2.0 * _uniform(generator)
    scan = low_dose.simulate_scan(subject, _log_uniform((1e7, 2e8), generator), generator, psf_fwhm_mm=psf_fwhm_mm)
    none = subject.activity.new_zeros(0)  # no longer needed; the fine grids of the pool would fill the memory
    return PooledScan(
        replace(subject, activity=none, mu_per_cm=none), scan, reconstruct, reconstruct(scan.expected, scan)
    )


def draw_pooled_pair(c: Configuration, p: PooledScan, generator: torch.Generator) -> Pair:
    """Draw counts of a scan anew, and return the pair at a random dose."""
    dose = _log_uniform(c.doses, generator)
    return low_dose.draw_osem_pair(
        p.subject, p.scan, dose, generator, reconstruct=p.reconstruct, target=c.target, expected=p.expected
    )


def _draw_cohort_pair(c: Configuration, cohort: Cohort, generator: torch.Generator) -> Pair:
    """Draw a pair from a row; one image alone stands for both (rows of this recipe have both)."""
    row = cohort.draw_row(generator)
    spacing_mm = c.spacings_mm[int(torch.randint(len(c.spacings_mm), (1,), generator=generator))]
    images = cohort.draw_patch(row, list(row.images), (c.patch,) * 3, spacing_mm, generator)
    low = images["low" if "low" in images else "standard"]
    standard = images["standard" if "standard" in images else "low"]
    none = torch.zeros_like(low)
    regions = images.get("regions", none).round().clamp(0, len(list_regions(c))).to(torch.uint8)
    return Pair(low, standard, regions, none, row.numbers.get("dose", 1.0), spacing_mm)


def _make_item(c: Configuration, pair: Pair, scale: float, generator: torch.Generator) -> dict[str, Tensor]:
    """Draw a random patch, flipped, over the scale of its image, or up to four times that: a bladder may lie outside.

    Its regions are those of another examination, registered and segmented: their borders are off.
    """
    cut = choose_patch(c, pair, generator)
    sides = [axis for axis in (1, 2) if _uniform(generator) < 0.5]
    low, target, regions = (_pad(x[cut], c.patch).flip(sides) for x in (pair.low, pair.target, pair.regions))
    off_voxels = c.misplaced_mm * _uniform(generator) / pair.spacing_mm
    regions = labels.displace_labels(regions, off_voxels, WARP_CELLS, generator)
    scale *= 4.0 ** _uniform(generator) if _uniform(generator) < 0.5 else 1.0
    return {
        "low": low[None] / scale,
        "target": target[None] / scale,
        "regions": regions,
        "has_regions": torch.tensor(float(_uniform(generator) < c.regions_share)),
        "dose": torch.tensor(pair.dose),
        "spacing_mm": torch.tensor(pair.spacing_mm),
    }


def choose_patch(c: Configuration, pair: Pair, generator: torch.Generator) -> tuple[slice, ...]:
    """Choose the place of a patch: anywhere, but ``c.about_lesions`` of those of an object with lesions hold one.

    Lesions are a thousandth of a torso. A network that hardly meets any takes them for noise: trained without this, it
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


def _pad(x: Tensor, size: int) -> Tensor:
    return functional.pad(x, [n for side in reversed(x.shape) for n in (0, size - side)])


def _uniform(generator: torch.Generator) -> float:
    return float(torch.rand(1, generator=generator))


def _log_uniform(limits: tuple[float, float], generator: torch.Generator) -> float:
    return limits[0] * math.exp(math.log(limits[1] / limits[0]) * _uniform(generator))
