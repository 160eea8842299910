"""Head as the network of ``pet_synthesis`` sees it: T1w and structures on its grid, as in its training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model_zoo import pet_synthesis
from model_zoo.pet_synthesis import Conditions
from model_zoo.structures import COUNT
from pipelines import resampling
from pipelines.anatomy import Anatomy
from pipelines.contract import Grid, Refused, Volume

if TYPE_CHECKING:
    from model_zoo.bundle import Model

__all__ = ["Subject", "prepare_subject"]


@dataclass(frozen=True)
class Subject:
    """Head on the network's grid: ``y0`` the scaled T1w and ``structure`` the numbers (k, j, i), ``maps``
    (23, k, j, i) the fractions of the structures."""

    grid: Grid
    y0: Tensor
    maps: Tensor
    structure: Tensor

    @property
    def inside(self) -> Tensor:
        """Mask of the intracranial cavity."""
        return self.maps.sum(0) > 0

    def make_conditions(self, covariates: pet_synthesis.Covariates, device: str) -> Conditions:
        tokens = pet_synthesis.covariate_tokens(covariates)
        return Conditions(*(x.to(device) for x in (self.y0[None, None], tokens[None], self.maps[None])))


def prepare_subject(t1w: Volume, head_anatomy: Anatomy, model: Model) -> Subject:
    """Bring T1w and structures to the network's grid, averaged over its voxels."""
    grid = _network_grid(head_anatomy, model)
    maps = torch.stack([_fraction(head_anatomy, number, grid) for number in range(1, COUNT + 1)])
    image = resampling.resample(torch.from_numpy(t1w.data)[None], t1w.grid, grid)[0]
    within = maps.sum(0) > 0.5
    if not bool(within.any()):
        raise Refused("no brain was found in the T1w image")
    return Subject(grid, pet_synthesis.scale_t1w(image, within), maps, pet_synthesis.most_likely_structures(maps))


def _network_grid(structures: Anatomy, model: Model) -> Grid:
    """Return the grid of the bundle's spacing and shape about the middle of the head, larger where it would cut.

    The first voxel's border is a border of the labels' voxels, so that complete voxels are averaged.
    """
    spacing = float(model.settings["spacing_mm"])
    stride = int(model.network.stride)  # type: ignore[arg-type]  # a module's attributes are untyped
    ends = [_ends(structures.labels > 0, axis) for axis in range(3)]
    ratio = [spacing / own for own in structures.grid.spacing_mm]
    needed = [-(-int(np.ceil((high - low) / r)) // stride) * stride for (low, high), r in zip(ends, ratio, strict=True)]
    k, j, i = (max(n, int(usual)) for n, usual in zip(needed, model.settings["shape"], strict=True))
    middle = [(low + high) // 2 for low, high in ends]
    first = [round(m - n * r / 2) - 0.5 + r / 2 for m, n, r in zip(middle, (k, j, i), ratio, strict=True)]
    affine = np.diag([spacing, spacing, spacing, 1.0])
    affine[:3, 3] = (structures.grid.affine_mm @ [*first[::-1], 1])[:3]
    return Grid((k, j, i), affine)


def _ends(mask: NDArray[np.bool_], axis: int) -> tuple[int, int]:
    """Return the first voxel of the mask along the axis, and the one after the last."""
    at = np.flatnonzero(mask.any(axis=tuple(a for a in range(3) if a != axis)))
    if not at.size:
        raise Refused("no brain was found in the T1w image")
    return int(at[0]), int(at[-1]) + 1


def _fraction(structures: Anatomy, number: int, grid: Grid) -> Tensor:
    """Return the share of the structure in each voxel (k, j, i)."""
    mask = structures.labels == number
    fractions = torch.zeros(grid.shape)
    start, shape = resampling.bounding_box(mask, structures.grid, grid)
    if min(shape) > 0:
        k, j, i = (slice(s, s + n) for s, n in zip(start, shape, strict=True))
        mask_tensor = torch.from_numpy(mask.astype(np.float32))[None]
        fractions[k, j, i] = resampling.resample(mask_tensor, structures.grid, resampling.subgrid(grid, start, shape))[
            0
        ]
    return fractions
