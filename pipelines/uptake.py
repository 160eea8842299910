"""Regional uptake of PET before and after restoration: mean, maximum and peak of regions.

Peak is the highest mean over a ball of 1 ml whose centre lies in the region (QIBA, EARL); voxels at the ball's surface
count by their share in it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, signal

from pipelines.codes import MAXIMUM, MEAN, PEAK, SUV_BW, SUV_BW_UNIT
from pipelines.contract import Code, Finding, Grid, Measurement, Volume

__all__ = ["Region", "Scale", "average_over_ball", "ball_weights", "compare_uptake", "dilate", "find_body"]

PEAK_ML = 1.0
LEAST_VOXELS = 8

_DERIVATIONS = MappingProxyType({"mean": MEAN, "max": MAXIMUM, "peak": PEAK})

Array = NDArray[np.float32]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Region:
    """Region of an image: name, mask (k, j, i) and code."""

    name: str
    mask: Mask
    site: Code | None = None


@dataclass(frozen=True)
class Scale:
    """Scale of the reported numbers.

    ``factor`` per unit of the image gives ``unit``; names begin with ``prefix``; ``quantity``: code of the quantity.
    """

    factor: float
    unit: str
    prefix: str
    quantity: Code | None = None

    @classmethod
    def suv(cls, factor: float) -> Scale:
        """Return the scale of the standardized uptake value by body weight."""
        return cls(factor, SUV_BW_UNIT, "SUV", SUV_BW)


def find_body(image: Volume) -> Mask:
    """Return the mask of the body.

    It holds the voxels above a quarter of the image's mean after a blur of 6 mm (sd), without small islands, filled
    slice by slice.
    """
    blurred = ndimage.gaussian_filter(image.data, [6.0 / mm for mm in image.grid.spacing_mm], mode="nearest")
    labels, count = ndimage.label(blurred > 0.25 * blurred.mean())
    if count == 0:
        return np.zeros(image.data.shape, bool)
    sizes = np.bincount(labels.ravel())[1:]
    large = np.isin(labels, 1 + np.flatnonzero(sizes >= 0.02 * sizes.max()))
    return np.stack([ndimage.binary_fill_holes(plane) for plane in large])


def dilate(mask: Mask, grid: Grid, by_mm: float) -> Mask:
    """Return the mask with all voxels at most ``by_mm`` away from it."""
    dilated: Mask = ndimage.distance_transform_edt(~mask, sampling=grid.spacing_mm) <= by_mm
    return dilated


def average_over_ball(x: Array, grid: Grid, ml: float = PEAK_ML) -> Array:
    """Return the mean over a ball of ``ml`` about each voxel; voxels outside the array do not count."""
    ball = ball_weights(grid, ml)
    total = signal.oaconvolve(x, ball, mode="same")
    weight = signal.oaconvolve(np.ones_like(x), ball, mode="same")
    return np.asarray(total / np.maximum(weight, 1e-3), np.float32)


def ball_weights(grid: Grid, ml: float) -> Array:
    """Return the share of each voxel in the ball, from five places along each axis, normalised to sum one."""
    radius_mm = (3 / (4 * math.pi) * 1000 * ml) ** (1 / 3)
    axes = []
    for mm in grid.spacing_mm:
        n = math.ceil(radius_mm / mm + 0.5)
        axes.append((np.arange(-5 * n - 2, 5 * n + 3) / 5 * mm) ** 2)
    inside = axes[0][:, None, None] + axes[1][:, None] + axes[2] <= radius_mm**2
    k, j, i = (n // 5 for n in inside.shape)
    share = inside.reshape(k, 5, j, 5, i, 5).mean(axis=(1, 3, 5), dtype=np.float32)
    return np.asarray(share / share.sum(), np.float32)


def compare_uptake(
    before: Array, after: Array, peaks: tuple[Array, Array], regions: list[Region], scale: Scale
) -> list[Finding]:
    """Return mean, maximum and peak of each region after and before, and the bias of mean and peak in percent.

    Only numbers of the result have the standard's codes, so that a reader of codes finds one mean of a region, not two.
    """
    measurements: list[Finding] = []
    for region in regions:
        if int(region.mask.sum()) >= LEAST_VOXELS:
            statistics = {"mean": _means, "max": _maxima}
            values = {name: statistic(before, after, region.mask) for name, statistic in statistics.items()}
            values["peak"] = _maxima(*peaks, region.mask)
            measurements += _yield_measurements(region, values, scale)
    return measurements


def _means(before: Array, after: Array, mask: Mask) -> tuple[float, float]:
    return float(before[mask].mean(dtype=np.float64)), float(after[mask].mean(dtype=np.float64))


def _maxima(before: Array, after: Array, mask: Mask) -> tuple[float, float]:
    return float(before[mask].max()), float(after[mask].max())


def _yield_measurements(
    region: Region, values: Mapping[str, tuple[float, float]], scale: Scale
) -> Iterator[Measurement]:
    for name, (before, after) in values.items():
        title = f"{scale.prefix}{name}"
        description = "Mean over a ball of 1 ml, highest in the region" if name == "peak" else ""
        group, site = region.name, region.site
        derivation = _DERIVATIONS[name] if scale.quantity else None
        yield Measurement(
            title, scale.factor * after, scale.unit, description, group, site, scale.quantity, (), derivation
        )
        yield Measurement(f"{title} of the input", scale.factor * before, scale.unit, description, group, site)
        if name != "max":  # of noise the maximum is no estimate of anything
            bias = 100 * (after / before - 1) if before > 0 else math.nan
            yield Measurement(f"{title} bias", bias, "%", "Result against input", group, site)
