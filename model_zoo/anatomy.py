"""Where structures lie in an image of the head, by the anatomy model, whatever the image's contrast.

The network sees a window of isotropic LPS voxels with the brain in its middle, whose 0.5th to 99.5th percentile is 0 to
1: laid about the head first, then about the brain that was found. A network of two looks (``networks.two_looks``) then
corrects, on voxels of half the size, what a Gaussian mixture fitted to the image makes of that. The mean over the image
and its mirror image is taken (structures are bilateral), and over four offsets of the first network's lattice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product
from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor
from torch.nn import functional

from model_zoo import mixture
from model_zoo.imaging import scale_between_quantiles
from model_zoo.mixture import Mixture
from model_zoo.networks.two_looks import TwoLooks
from model_zoo.precision import autocast
from model_zoo.structures import BRAIN

if TYPE_CHECKING:
    from model_zoo.bundle import Model

__all__ = ["after_mixture", "find", "keep_largest", "look_again", "looks_twice", "window"]

CRANIUM_MM = 120.0
"""From the vertex down: where the head is widest, and no neck."""
VERTEX_TO_MIDDLE_MM = 82.0
"""From the skin at the vertex to the middle of the brain's box."""
CENTRED_MM = 6.0
PASSES = 3
OFFSETS = 4
"""One voxel more each along k, j and i: the shipped network's first level has every fourth. What comes round from the
window's other side is far from the brain. Chosen on the validation subjects: mean Dice 0.812 (0.810) over ten scans."""


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
    return _mean_answer(model, x), start


def _mean_answer(model: Model, x: Tensor) -> Tensor:
    """Over the image and its mirror image, each at ``OFFSETS`` places of the network's coarse lattice."""
    answers = []
    for n in range(OFFSETS):
        moved = x.roll((n, n, n), dims=(-3, -2, -1))
        p = _probabilities(model, moved) + _probabilities(model, moved.flip(-1)).flip(-1)
        answers.append(p.roll((-n, -n, -n), dims=(-3, -2, -1)))
    return torch.stack(answers).sum(dim=0).div_(2 * OFFSETS)


def looks_twice(model: Model) -> bool:
    """Whether ``look_again`` can follow ``find``."""
    return isinstance(model.network, TwoLooks)


def look_again(p: Tensor, image: Tensor, model: Model) -> Tensor:
    """Class probabilities (class, 2 k, 2 j, 2 i) on voxels of half the size, from ``p`` (class, k, j, i), what ``find``
    gave, and ``image`` (2 k, 2 j, 2 i) of the same extent.

    The second network was taught on images as coarse as ``p``, but sharp. Therefore it sees each of the eight lattices
    of every second voxel in turn, none of them blurred.
    """
    network = model.network
    if not isinstance(network, TwoLooks):
        raise TypeError(f"{model.name}@{model.version} looks once")
    m = Mixture(**model.settings["mixture"])
    near = mixture.box(p[0], 2 * network.second.stride)
    fine = tuple(slice(2 * part.start, 2 * part.stop) for part in near)
    p = p[(slice(None), *near)]
    told = after_mixture(p, scale_between_quantiles(image, *_percentiles(model))[fine], m)
    prior = functional.avg_pool3d(p[None], 2)
    for corner in product((0, 1), repeat=3):
        part = (slice(None), *(slice(first, None, 2) for first in corner))
        x = told[part][None].contiguous()
        with torch.no_grad(), autocast(x.device.type):
            found = functional.softmax(network.again(x, prior), dim=1)
            found += functional.softmax(network.again(x.flip(-1), prior.flip(-1)), dim=1).flip(-1)
        told[part] = found[0] / 2
    return _laid_in(told, fine, image.shape)


def _laid_in(told: Tensor, near: tuple[slice, ...], shape: torch.Size) -> Tensor:
    """``told`` (class, k, j, i) where ``near`` says in a volume of ``shape``; background beyond."""
    found = told.new_zeros(len(told), *shape)
    found[0] = 1
    found[(slice(None), *near)] = told
    return found


def after_mixture(p: Tensor, x: Tensor, m: Mixture) -> Tensor:
    """The mixture's posterior on the lattice of ``x``, twice as fine as that of its prior ``p``."""
    fit = mixture.fitted(p, x[::2, ::2, ::2].contiguous(), m)
    found = functional.interpolate(p[None], scale_factor=2, mode="trilinear", align_corners=False)[0]
    return mixture.weighted(found, mixture.densities(fit, x, m))


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
    x = scale_between_quantiles(window(image, start, shape), *_percentiles(model))[None, None]
    return (start[0], start[1], start[2]), x.contiguous(memory_format=torch.channels_last_3d)


def window(image: Tensor, start: Sequence[int], shape: Sequence[int]) -> Tensor:
    """The part of ``image`` (k, j, i) of ``shape`` that begins at ``start``; zero outside of it."""
    x = image.new_zeros(tuple(shape))
    there = [slice(max(s, 0), max(min(s + n, size), 0)) for s, n, size in zip(start, shape, image.shape, strict=True)]
    here = [slice(t.start - s, t.stop - s) for t, s in zip(there, start, strict=True)]
    x[here[0], here[1], here[2]] = image[there[0], there[1], there[2]]
    return x
