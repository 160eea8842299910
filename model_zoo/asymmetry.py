"""Regions of a head that are unlike their mirror image: tumours, infarcts and cavities that fill a part of one side.

The mirror plane is the one for which grey matter, white matter and fluid overlap best with their own mirror images. The
image is divided by a smooth field, clipped, smoothed within the head, and compared with its mirror image. The unit is
the standard deviation of the image's intensities within the brain, so the measure holds for any contrast. A lesion that
both sides share, or that lies on the plane, is not found.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage, optimize
from torch import Tensor
from torch.nn import functional

from model_zoo.structures import TISSUE_GROUPS

__all__ = ["DIFFERENCE", "measure_asymmetric_region", "mirror"]

DIFFERENCE = 0.8
"""Difference from the mirror image, in standard deviations of the intensities within the brain."""
SMOOTHING_MM = 6.0
SPACING_MM = 2.0
_COARSE = 2
_CLIP = 4.0
_RATIOS = (0.3, 3.0)
"""Bounds of the field, and of a voxel over its tissue's median."""
_LARGEST_RESIDUAL = 0.3
_EDGE_VOXELS = 2
"""Rim of the head that is left out: skull-stripping and the subarachnoid space differ between the sides."""
_LEAST_VOXELS = 1000
_MARGIN = 8

Image = NDArray[np.float32]


def measure_asymmetric_region(labels: NDArray[np.uint8], image: Image, spacing_mm: float = 1.0) -> float:
    """Return the volume in ml of the largest connected region that is unlike its mirror image.

    ``labels`` (k, j, i): numbers of ``model_zoo.structures``; ``image``: the same shape, any scale; both isotropic and
    LPS. A region of one side appears on both sides of the mirror image and is counted once. NaN where there is no
    head, or one too small, thin or scattered for a comparison.
    """
    step = max(round(SPACING_MM / spacing_mm), 1)
    tissues = [_reduce(np.isin(labels, own).astype(np.float32), step) for own in TISSUE_GROUPS.values()]
    inside = sum(tissues, np.zeros_like(tissues[0])) > 0.5
    if inside.sum() < _LEAST_VOXELS:
        return float("nan")
    core = ndimage.binary_erosion(inside, iterations=_EDGE_VOXELS)
    plane = _find_mirror_plane(tissues) if core.any() else None
    if plane is None:
        return float("nan")
    levelled = _level(_reduce(image.astype(np.float32), step), tissues, inside, core)
    sigma = SMOOTHING_MM / (step * spacing_mm)
    weight = ndimage.gaussian_filter(inside.astype(np.float32), sigma)
    smooth = ndimage.gaussian_filter(levelled, sigma) / np.maximum(weight, 0.2)
    both = core & (_mirror(inside.astype(np.float32), plane) > 0.9)
    unlike = (np.abs(smooth - _mirror(smooth, plane)) > DIFFERENCE) & both
    return _largest_volume_ml(unlike, plane, step * spacing_mm)


def _largest_volume_ml(unlike: NDArray[np.bool_], plane: NDArray[np.float64], spacing_mm: float) -> float:
    """Return the volume of the largest connected region, half of it where it is its own mirror image."""
    regions, count = ndimage.label(unlike)
    if not count:
        return 0.0
    sizes = np.bincount(regions.ravel())[1:]
    largest = regions == int(np.argmax(sizes)) + 1
    mirrored = _mirror(largest.astype(np.float32), plane) > 0.5
    own_share = float((largest & mirrored).sum()) / float(largest.sum())
    return float(largest.sum()) * spacing_mm**3 / 1000 * (1 - own_share / 2)


def _reduce(x: Image, step: int) -> Image:
    """Return means of blocks of ``step`` voxels along each axis, with a margin of zeros."""
    n = [size // step for size in x.shape]
    blocks = x[: n[0] * step, : n[1] * step, : n[2] * step].reshape(n[0], step, n[1], step, n[2], step)
    return np.pad(blocks.mean(axis=(1, 3, 5)), _MARGIN)


def _find_mirror_plane(tissues: list[Image]) -> NDArray[np.float64] | None:
    """Return the plane's distance along i from the middle of the grid, in voxels, and its slopes along j and k.

    None where no voxel of 4 mm is mostly head.
    """
    coarse = np.stack([ndimage.gaussian_filter(_reduce(tissue, _COARSE), 1.0) for tissue in tissues])
    inside = np.argwhere(coarse.sum(axis=0) > 0.5)
    if not len(inside):
        return None
    start = float(inside[:, 2].mean()) - (coarse.shape[3] - 1) / 2
    volumes = torch.from_numpy(coarse)

    def mismatch(plane: NDArray[np.float64]) -> float:
        return float((volumes - mirror(volumes, plane)).square().sum())

    options = {"xtol": 0.02, "ftol": 1e-3, "maxiter": 4}
    plane = optimize.minimize(mismatch, [start, 0.0, 0.0], method="Powell", options=options).x
    return np.asarray(plane * [_COARSE, 1, 1], np.float64)


def _mirror(x: Image, plane: NDArray[np.float64]) -> Image:
    """Return the image mirrored at the plane (``_find_mirror_plane``)."""
    return np.asarray(mirror(torch.from_numpy(x)[None], plane)[0].numpy(), np.float32)


def mirror(x: Tensor, plane: NDArray[np.float64]) -> Tensor:
    """Return images (n, k, j, i) mirrored at the plane by linear interpolation, 0 beyond their grid.

    ``plane``: its distance along i from the middle of the grid, in voxels, and its slopes along j and k.
    """
    offset, slope_j, slope_k = plane
    normal = np.array([np.sin(slope_k), np.sin(slope_j), 1.0])
    normal /= np.linalg.norm(normal)
    reflection = np.eye(3) - 2 * np.outer(normal, normal)
    last = np.array(x.shape[1:]) - 1.0
    middle = last / 2 + np.array([0, 0, offset])
    matrix = np.empty((3, 4))  # from places between -1 and 1 to such places, axes k, j, i
    matrix[:, :3] = reflection * last / last[:, None]
    matrix[:, 3] = 2 / last * (reflection @ (last / 2 - middle) + middle) - 1
    matrix[:, :3] = matrix[::-1, :3][:, ::-1]
    matrix[:, 3] = matrix[::-1, 3]
    grid = functional.affine_grid(torch.from_numpy(matrix).to(x)[None], [1, 1, *x.shape[1:]], align_corners=True)
    return functional.grid_sample(x[None], grid, align_corners=True)[0]


def _level(x: Image, tissues: list[Image], inside: NDArray[np.bool_], core: NDArray[np.bool_]) -> Image:
    """Return the image within the head without its smooth field, its median zero, in standard deviations.

    The field is the exponential of a polynomial of second order, fitted to grey and white matter.
    """
    pure = [tissue > 0.9 for tissue in tissues[:2]]
    basis, ratio, solid = _quadratic_basis(x.shape), np.zeros_like(x), np.zeros(x.shape, bool)
    for mask in pure:
        level = float(np.median(x[mask])) if mask.any() else 0.0
        if level > 0:
            ratio[mask], solid = np.log(np.clip(x[mask] / level, *_RATIOS)), solid | mask
    used, field = solid, np.zeros_like(x)
    for _ in range(3):
        if used.sum() < _LEAST_VOXELS:
            break
        coefficients = np.linalg.lstsq(basis[used], ratio[used], rcond=None)[0]
        field = np.clip(basis @ coefficients, *np.log(_RATIOS)).astype(np.float32)
        used = solid & (np.abs(ratio - field) < _LARGEST_RESIDUAL)  # a lesion is no part of the field
    y = x * np.exp(-field)
    low, median, high = np.percentile(y[core], [10, 50, 90])
    y = np.clip((y - median) / max((high - low) / 2.56, 1e-6), -_CLIP, _CLIP)
    return np.where(inside, y, 0).astype(np.float32)


def _quadratic_basis(shape: tuple[int, ...]) -> Image:
    k, j, i = np.meshgrid(*(np.linspace(-1, 1, n, dtype=np.float32) for n in shape), indexing="ij")
    return np.stack([np.ones_like(k), k, j, i, k * i, j * i, k * j, i * i, j * j, k * k], axis=-1)
