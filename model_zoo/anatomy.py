"""Segment the structures of the head by the anatomy model, in an image of any MR contrast.

The network takes a window of isotropic LPS voxels with the brain at its centre, whose 0.5th to 99.5th percentile is 0
to 1. The window is placed about the head first, then about the brain found in it. A ``RefinementCascade`` then fits a
Gaussian mixture to the image on voxels of half the size and corrects the mixture's posterior. The result is the mean
over the image and its mirror image (structures are bilateral), and over four offsets of the first network's grid.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from model_zoo import mixture
from model_zoo.imaging import scale_between_quantiles
from model_zoo.mixture import Mixture
from model_zoo.networks.refinement_cascade import RefinementCascade
from model_zoo.precision import autocast
from model_zoo.structures import BRAIN

if TYPE_CHECKING:
    from model_zoo.bundle import Model

__all__ = [
    "EmptyImage",
    "StructureProbabilities",
    "apply_mixture",
    "extract_window",
    "has_refinement",
    "keep_largest_component",
    "refine",
    "segment",
    "segment_window",
]

CRANIUM_MM = 120.0
"""Extent of the cranium from the vertex down, without the neck: the head is widest there."""
VERTEX_TO_MIDDLE_MM = 82.0
"""Distance from the skin at the vertex to the centre of the brain's box."""
CENTRED_MM = 6.0
PASSES = 3
OFFSETS = 4
"""Shifts of the input by one voxel more each along k, j and i: the shipped network's first level has every fourth.
The voxels that wrap around from the window's other side are far from the brain. Chosen on the validation subjects: mean
Dice 0.812 (0.810 without) over ten scans."""


class EmptyImage(ValueError):
    """An image that holds no object brighter than air."""


@dataclass(frozen=True)
class StructureProbabilities:
    """Class probabilities of a window about the brain.

    ``p`` (class, k, j, i): background and structures; ``component`` bool (k, j, i): the largest connected component of
    structures, outside of which ``p`` is background; ``start``: index of the window's first voxel in the image;
    ``scale``: number of voxels of ``p`` per voxel of the image along each axis.
    """

    p: Tensor
    component: Tensor
    start: tuple[int, int, int]
    scale: int


def segment(
    image: Tensor,
    sample_window: Callable[[tuple[int, int, int], tuple[int, int, int]], Tensor],
    model: Model,
    progress: Callable[[float, str], None] = lambda done, step: None,
) -> StructureProbabilities:
    """Segment the head in ``image`` (k, j, i), as ``segment_window`` takes it.

    ``sample_window(start, shape)`` returns the image in a window of ``image`` (index of its first voxel, and shape) on
    voxels of half the size, for a model with refinement. Raises EmptyImage.
    """
    p, start = segment_window(image, model, lambda done: progress(0.8 * done, "finding the brain"))
    scale = 1
    if has_refinement(model):
        progress(0.8, "refining")
        p = refine(p, sample_window(start, (p.shape[1], p.shape[2], p.shape[3])), model)
        scale = 2
    progress(1.0, "structures")
    return StructureProbabilities(p, keep_largest_component(p), start, scale)


def segment_window(
    image: Tensor, model: Model, progress: Callable[[float], None] = lambda done: None
) -> tuple[Tensor, tuple[int, int, int]]:
    """Return class probabilities (class, k, j, i) of a window about the brain and its first voxel's index in ``image``.

    ``image`` float (k, j, i): LPS (k runs to the vertex), on the model's isotropic voxels, air about zero; the window
    may reach beyond it. Raises EmptyImage.
    """
    spacing_mm = float(model.settings["spacing_mm"])
    centre = _estimate_head_centre(image, spacing_mm)
    for step in range(PASSES):
        progress(step / (PASSES + 1))
        start, x = _network_window(image, centre, model)
        p = _predict(model, x)
        brain = _find_brain_centre(p)
        off = 0.0 if brain is None else max(abs(b + s - m) for b, s, m in zip(brain, start, centre, strict=True))
        if brain is None or off * spacing_mm <= CENTRED_MM or step == PASSES - 1:
            break
        centre = [b + s for b, s in zip(brain, start, strict=True)]
    return _average_over_offsets(model, x), start


def _average_over_offsets(model: Model, x: Tensor) -> Tensor:
    """Return the mean probabilities of the image and its mirror image, each at ``OFFSETS`` shifts of the input."""
    unshifted = []
    for n in range(OFFSETS):
        shifted = x.roll((n, n, n), dims=(-3, -2, -1))
        p = _predict(model, shifted) + _predict(model, shifted.flip(-1)).flip(-1)
        unshifted.append(p.roll((-n, -n, -n), dims=(-3, -2, -1)))
    return torch.stack(unshifted).sum(dim=0).div_(2 * OFFSETS)


def has_refinement(model: Model) -> bool:
    """Return whether ``refine`` can follow ``segment_window``."""
    return isinstance(model.network, RefinementCascade)


def refine(p: Tensor, image: Tensor, model: Model) -> Tensor:
    """Return class probabilities (class, 2 k, 2 j, 2 i) on voxels of half the size.

    ``p`` (class, k, j, i): the result of ``segment_window``; ``image`` (2 k, 2 j, 2 i), of the same extent. The second
    network was trained on images as coarse as ``p``, but sharp. It therefore takes each of the eight grids of every
    second voxel in turn, without blur. Raises TypeError for a model without refinement.
    """
    network = model.network
    if not isinstance(network, RefinementCascade):
        raise TypeError(f"{model.name}@{model.version} has no second network to refine its result")
    m = Mixture(**model.settings["mixture"])
    near = mixture.bounding_box(p[0], 2 * network.second.stride)
    fine = tuple(slice(2 * part.start, 2 * part.stop) for part in near)
    p = p[(slice(None), *near)]
    posterior = apply_mixture(p, scale_between_quantiles(image, *_quantiles(model))[fine], m)
    prior = functional.avg_pool3d(p[None], 2)
    for corner in product((0, 1), repeat=3):
        part = (slice(None), *(slice(first, None, 2) for first in corner))
        x = posterior[part][None].contiguous()
        with torch.no_grad(), autocast(x.device.type):
            refined = functional.softmax(network.refine(x, prior), dim=1)
            refined += functional.softmax(network.refine(x.flip(-1), prior.flip(-1)), dim=1).flip(-1)
        posterior[part] = refined[0] / 2
    return _paste_into(posterior, fine, image.shape)


def _paste_into(p: Tensor, box: tuple[slice, ...], shape: torch.Size) -> Tensor:
    """Return probabilities of a volume of ``shape``: ``p`` (class, k, j, i) in ``box``, background beyond."""
    volume = p.new_zeros(len(p), *shape)
    volume[0] = 1
    volume[(slice(None), *box)] = p
    return volume


def apply_mixture(p: Tensor, x: Tensor, m: Mixture) -> Tensor:
    """Return the mixture's posterior on the grid of ``x`` (2 k, 2 j, 2 i), twice as fine as that of its prior ``p``."""
    fit = mixture.fit_mixture(p, x[::2, ::2, ::2].contiguous(), m)
    prior = functional.interpolate(p[None], scale_factor=2, mode="trilinear", align_corners=False)[0]
    return mixture.multiply_by_densities(prior, mixture.compute_densities(fit, x, m))


def keep_largest_component(p: Tensor) -> Tensor:
    """Return the largest connected component of likely structures, bool (k, j, i), and make ``p`` background elsewhere.

    Voxels are connected by their faces. Equals MONAI's ``get_largest_connected_component_mask`` without its import,
    which takes 3 s of CPU time and 180 MB in every process of a job.
    """
    from scipy import ndimage

    labels, _ = ndimage.label((p.argmax(dim=0) > 0).numpy(force=True))
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    inside = torch.from_numpy((labels > 0) & (labels == sizes.argmax())).to(p.device)
    p[:, ~inside] = 0
    p[0, ~inside] = 1
    return inside


def _predict(model: Model, x: Tensor) -> Tensor:
    """Return class probabilities on the grid of ``x``, interpolated where the network's own is coarser."""
    with torch.no_grad():
        p = functional.softmax(model.network(x).float(), dim=1)
        if p.shape[2:] != x.shape[2:]:
            p = functional.interpolate(p, x.shape[2:], mode="trilinear", align_corners=False)
        return p[0]


def _quantiles(model: Model) -> tuple[float, float]:
    low, high = model.settings.get("percentiles", (0.5, 99.5))
    return low / 100, high / 100


def _estimate_head_centre(image: Tensor, spacing_mm: float) -> list[float]:
    """Estimate the index (k, j, i) of the brain's centre: below the vertex, between the sides of the skull."""
    bright = image > 0.15 * torch.quantile(image.flatten()[::31].float(), 0.98)
    if not bright.any():
        raise EmptyImage("the image holds no object brighter than air")
    _, vertex = _extent(bright, 0)
    cranium = bright[max(round(vertex - CRANIUM_MM / spacing_mm), 0) : round(vertex) + 1]
    return [vertex - VERTEX_TO_MIDDLE_MM / spacing_mm, *(sum(_extent(cranium, axis)) / 2 for axis in (1, 2))]


def _find_brain_centre(p: Tensor) -> list[float] | None:
    """Return the centre (k, j, i) of the bounding box of likely brain; None where there is none."""
    brain = torch.isin(p.argmax(dim=0), torch.tensor(BRAIN, device=p.device))
    return [sum(_extent(brain, axis)) / 2 for axis in range(3)] if brain.any() else None


def _extent(mask: Tensor, axis: int) -> tuple[float, float]:
    """Return the first and last index along ``axis`` of planes with at least a fiftieth of the largest plane's area."""
    area = mask.float().sum(dim=tuple(a for a in range(3) if a != axis))
    inside = torch.nonzero(area >= 0.02 * area.max())
    return float(inside[0]), float(inside[-1])


def _network_window(image: Tensor, centre: list[float], model: Model) -> tuple[tuple[int, int, int], Tensor]:
    """Return the first index (k, j, i) and the values (1, 1, k, j, i) in [0, 1] of the network's window."""
    shape = [int(n) for n in model.settings["shape"]]
    start = [round(m - (n - 1) / 2) for m, n in zip(centre, shape, strict=True)]
    x = scale_between_quantiles(extract_window(image, start, shape), *_quantiles(model))[None, None]
    return (start[0], start[1], start[2]), x.contiguous(memory_format=torch.channels_last_3d)


def extract_window(image: Tensor, start: Sequence[int], shape: Sequence[int]) -> Tensor:
    """Return the part of ``image`` (k, j, i) of ``shape`` that begins at ``start``; zero outside the image."""
    x = image.new_zeros(tuple(shape))
    source = [slice(max(s, 0), max(min(s + n, size), 0)) for s, n, size in zip(start, shape, image.shape, strict=True)]
    target = [slice(t.start - s, t.stop - s) for t, s in zip(source, start, strict=True)]
    x[target[0], target[1], target[2]] = image[source[0], source[1], source[2]]
    return x
