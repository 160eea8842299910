"""Where structures lie in an image of the head, by the anatomy model, whatever the image's contrast.

The network sees a window of isotropic LPS voxels with the brain in its middle, whose 0.5th to 99.5th percentile is 0 to
1: laid about the head first, then about the brain that was found. The mean over the image and its mirror image is taken
(structures are bilateral). Where the bundle says so, that is then the prior of a Gaussian mixture fitted to the image.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor
from torch.nn import functional

from model_zoo import mixture
from model_zoo.simulate.volumes import normalised
from model_zoo.structures import BRAIN

if TYPE_CHECKING:
    from model_zoo.registry import Model

__all__ = ["by_intensity", "find", "keep_largest"]

CRANIUM_MM = 120.0
"""From the vertex down: where the head is widest, and no neck."""
VERTEX_TO_MIDDLE_MM = 82.0
"""From the skin at the vertex to the middle of the brain's box."""
CENTRED_MM = 6.0
PASSES = 3


def find(
    image: Tensor, model: Model, progress: Callable[[float], None] = lambda done: None
) -> tuple[Tensor, tuple[int, int, int]]:
    """Class probabilities (class, k, j, i) of a window about the brain and the index of its first voxel in ``image``.

    ``image`` float (k, j, i): LPS (k runs to the vertex), on the model's isotropic voxels, air about zero; the window
    may reach beyond it. Raises ValueError where nothing is brighter than air.
    """
    spacing_mm = float(model.settings["spacing_mm"])
    middle = _middle_of_head(image, spacing_mm)
    for step in range(PASSES):
        progress(step / (PASSES + 1))
        start, x = _window(image, middle, model)
        p = _probabilities(model, x)
        brain = _middle_of_brain(p)
        off = 0.0 if brain is None else max(abs(b + s - m) for b, s, m in zip(brain, start, middle, strict=True))
        if brain is None or off * spacing_mm <= CENTRED_MM or step == PASSES - 1:
            break
        middle = [b + s for b, s in zip(brain, start, strict=True)]
    return p.add_(_probabilities(model, x.flip(-1)).flip(-1)).div_(2), start


def by_intensity(p: Tensor, image: Tensor, model: Model) -> Tensor:
    """``p`` (class, k, j, i) as the prior of the bundle's mixture, fitted to ``image`` (k, j, i) on the same voxels."""
    return mixture.posterior(p, normalised(image, *_percentiles(model)), mixture.Mixture(**model.settings["mixture"]))


def keep_largest(p: Tensor) -> Tensor:
    """The largest connected part of what is likeliest a structure, bool (k, j, i); ``p`` is background elsewhere."""
    found = (p.argmax(dim=0) > 0).cpu().numpy()
    parts, count = ndimage.label(found)
    if count > 1:
        found = parts == 1 + np.bincount(parts.ravel())[1:].argmax()
    kept = torch.from_numpy(found).to(p.device)
    p[:, ~kept] = 0
    p[0, ~kept] = 1
    return kept


def _probabilities(model: Model, x: Tensor) -> Tensor:
    """On the lattice of ``x``: interpolated where the network's own is coarser."""
    with torch.no_grad():
        p = functional.softmax(model.network(x).float(), dim=1)
        if p.shape[2:] != x.shape[2:]:
            p = functional.interpolate(p, x.shape[2:], mode="trilinear", align_corners=False)
        return p[0]


def _percentiles(model: Model) -> tuple[float, float]:
    low, high = model.settings.get("percentiles", (0.5, 99.5))
    return low / 100, high / 100


def _middle_of_head(image: Tensor, spacing_mm: float) -> list[float]:
    """Index (k, j, i) about which the brain should lie: below the vertex, between the sides of the cranium."""
    bright = image > 0.15 * torch.quantile(image.flatten()[::31].float(), 0.98)
    if not bright.any():
        raise ValueError("the image holds no object brighter than air")
    _, vertex = _ends(bright, 0)
    cranium = bright[max(round(vertex - CRANIUM_MM / spacing_mm), 0) : round(vertex) + 1]
    return [vertex - VERTEX_TO_MIDDLE_MM / spacing_mm, *(sum(_ends(cranium, axis)) / 2 for axis in (1, 2))]


def _middle_of_brain(p: Tensor) -> list[float] | None:
    """Index (k, j, i) of the middle of the box of what is likeliest brain; None where nothing is."""
    brain = torch.isin(p.argmax(dim=0), torch.tensor(BRAIN, device=p.device))
    return [sum(_ends(brain, axis)) / 2 for axis in range(3)] if brain.any() else None


def _ends(mask: Tensor, axis: int) -> tuple[float, float]:
    """First and last index along ``axis`` of planes that hold at least a fiftieth of what the fullest one does."""
    area = mask.float().sum(dim=tuple(a for a in range(3) if a != axis))
    inside = torch.nonzero(area >= 0.02 * area.max())
    return float(inside[0]), float(inside[-1])


def _window(image: Tensor, middle: list[float], model: Model) -> tuple[tuple[int, int, int], Tensor]:
    """First index (k, j, i) and values (1, 1, k, j, i) in [0, 1] of the network's window about ``middle``."""
    shape = [int(n) for n in model.settings["shape"]]
    start = [round(m - (n - 1) / 2) for m, n in zip(middle, shape, strict=True)]
    x = image.new_zeros(shape)
    there = [slice(max(s, 0), max(min(s + n, size), 0)) for s, n, size in zip(start, shape, image.shape, strict=True)]
    here = [slice(t.start - s, t.stop - s) for t, s in zip(there, start, strict=True)]
    x[here[0], here[1], here[2]] = image[there[0], there[1], there[2]]
    low, high = _percentiles(model)
    x = normalised(x, low, high)[None, None]
    return (start[0], start[1], start[2]), x.contiguous(memory_format=torch.channels_last_3d)
