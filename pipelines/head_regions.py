"""Structures of the head from an MR, registered rigidly to a PET of the same head.

The motion is the one for which three tissues, moved and blurred as PET is, explain the PET best: the share R^2 of its
variance that a linear fit on them explains (a correlation ratio, Roche et al. 1998). The fit takes any tracer, for it
assumes no order of brightness among the tissues.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage, optimize
from torch import Tensor
from torch.nn import functional

from model_zoo.structures import BRAIN, COUNT, STRUCTURES, TISSUE_GROUPS
from pipelines import anatomy, resampling
from pipelines.codes import BRAIN as BRAIN_CODE
from pipelines.codes import encode_structure
from pipelines.contract import Grid, Progress, Volume
from pipelines.uptake import Region

if TYPE_CHECKING:
    from model_zoo.bundle import Model

__all__ = ["HeadRegions", "centre_of_mass_mm", "find_head_regions", "register_to_pet", "rigid_motion"]

COARSE_MM = 5.0
AROUND_MM = 20.0
PET_FWHM_MM = 7.0
LEAST_EXPLAINED = 0.4
LARGEST_SHIFT_MM = 40.0


@dataclass(frozen=True)
class HeadRegions:
    """Structures of a head, registered to a PET.

    ``labels`` uint8 (k, j, i) on ``grid``, which was moved onto the PET; ``on_pet``: the same on the PET's grid.
    ``explained``: R^2; ``shift_mm``: displacement of the brain's middle.
    """

    labels: NDArray[np.uint8]
    grid: Grid
    on_pet: NDArray[np.uint8]
    explained: float
    shift_mm: float

    @property
    def is_registered(self) -> bool:
        """True where the registration is good enough for the regions to be used."""
        return self.explained >= LEAST_EXPLAINED and self.shift_mm <= LARGEST_SHIFT_MM

    @property
    def tissue_names(self) -> tuple[str, ...]:
        """Names of the tissues that a network may be given."""
        return tuple(TISSUE_GROUPS)

    @property
    def description(self) -> str:
        facts = (
            f"moved by {self.shift_mm:.1f} mm the tissues explain {100 * self.explained:.0f} % of the PET's variance"
        )
        if self.is_registered:
            return f"Regions are the structures of the MR, which was registered rigidly: {facts}."
        return f"The MR could not be laid upon the PET ({facts}): no regions were used."

    def resample_fractions(self, names: Sequence[str], onto: Grid) -> Tensor:
        """Return the fractions (r, k, j, i) of the named tissues on a grid; zero for names that are no head tissue."""
        shares = torch.zeros((len(names), *onto.shape))
        for tissue, numbers in TISSUE_GROUPS.items():
            if tissue in names:
                mask = torch.from_numpy(np.isin(self.labels, numbers)).float()[None]
                shares[names.index(tissue)] = resampling.resample(mask, self.grid, onto)[0]
        return shares

    def list_regions(self) -> list[Region]:
        """Return the brain as a whole and every structure, on the PET's grid."""
        regions = [Region(s.name, self.on_pet == s.number, encode_structure(s)) for s in STRUCTURES]
        return [Region("brain", np.isin(self.on_pet, BRAIN), BRAIN_CODE), *regions]


def find_head_regions(mr: Volume, pet: Volume, model: Model, progress: Progress) -> HeadRegions:
    """Find the structures of ``mr`` and register them to ``pet``. Raises Refused where ``mr`` is no image of a head."""
    anatomy.check_head(mr)
    head = anatomy.segment_head(mr, model, lambda done, step: progress(0.8 * done, step))
    progress(0.8, "registration")
    motion, explained, shift_mm = register_to_pet(head.labels, head.grid, pet)
    moved = Grid(head.grid.shape, motion @ head.grid.affine_mm)
    on_pet = resampling.resample_labels(head.labels, moved, pet.grid, COUNT)
    return HeadRegions(head.labels, moved, on_pet, explained, shift_mm)


def register_to_pet(labels: NDArray[np.uint8], grid: Grid, pet: Volume) -> tuple[NDArray[np.float64], float, float]:
    """Return ``(motion, R^2, shift in mm)``; the motion (4, 4) in LPS mm takes ``labels`` to the PET."""
    tissues = torch.stack([torch.from_numpy(np.isin(labels, own)).float() for own in TISSUE_GROUPS.values()])
    middle = centre_of_mass_mm(labels, grid)
    window = _coarse_window(labels, grid)
    image = resampling.resample(torch.from_numpy(pet.data)[None], pet.grid, window)[0]
    coarse = resampling.resample(tissues, grid, window)
    blurred = _blur(coarse, PET_FWHM_MM / 2.355)
    best = np.zeros(6)
    for blur_mm, tolerance in ((8.0, 0.1), (0.0, 0.02)):
        y, x = _blur(image[None], blur_mm)[0], _blur(blurred, blur_mm)

        def residual_variance(p: NDArray[np.float64], x: Tensor = x, y: Tensor = y) -> float:
            return 1 - _explained_variance(x, y, window, np.asarray(np.linalg.inv(rigid_motion(p, middle)), np.float64))

        best = optimize.minimize(
            residual_variance, best, method="Powell", options={"xtol": tolerance, "ftol": 1e-4 * tolerance}
        ).x
    return rigid_motion(best, middle), 1 - residual_variance(best), float(np.linalg.norm(best[:3]) * 10)


def centre_of_mass_mm(labels: NDArray[np.uint8], grid: Grid) -> NDArray[np.float64]:
    """Return the mean place (x, y, z) of all labelled voxels, LPS."""
    k, j, i = (float(index.mean()) for index in np.nonzero(labels))
    return np.asarray((grid.affine_mm @ [i, j, k, 1])[:3])


def _coarse_window(labels: NDArray[np.uint8], grid: Grid) -> Grid:
    """Return the grid of coarse voxels about the brain and its surroundings."""
    k, j, i = (np.array([index.min(), index.max()]) for index in np.nonzero(labels))
    corners = grid.affine_mm @ np.array(np.meshgrid(i, j, k, [1], indexing="ij")).reshape(4, -1)
    low, high = corners[:3].min(axis=1) - AROUND_MM, corners[:3].max(axis=1) + AROUND_MM
    n = np.ceil((high - low) / COARSE_MM).astype(int) + 1
    affine = np.diag([COARSE_MM, COARSE_MM, COARSE_MM, 1.0])
    affine[:3, 3] = low
    return Grid((int(n[2]), int(n[1]), int(n[0])), affine)


def _blur(x: Tensor, sd_mm: float) -> Tensor:
    """Blur images (n, k, j, i) of coarse voxels by a Gaussian.

    Not ``model_zoo.imaging.blur``, which integrates over voxels and is zero outside: motions and results would change.
    """
    sd = sd_mm / COARSE_MM
    return torch.from_numpy(ndimage.gaussian_filter(x.numpy(), (0, sd, sd, sd))) if sd_mm else x


def rigid_motion(p: NDArray[np.float64], middle: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the rigid motion (4, 4) of six parameters of order one.

    ``p``: shifts in cm, then rotations about the patient's axes through ``middle`` in tenths of a radian. Not scipy's
    ``Rotation``: its matrices differ in the last bit, and so would the motions that are found.
    """
    (a, b, c), r = p[3:] / 10, np.eye(4)
    x = np.array([[1, 0, 0], [0, math.cos(a), -math.sin(a)], [0, math.sin(a), math.cos(a)]])
    y = np.array([[math.cos(b), 0, math.sin(b)], [0, 1, 0], [-math.sin(b), 0, math.cos(b)]])
    z = np.array([[math.cos(c), -math.sin(c), 0], [math.sin(c), math.cos(c), 0], [0, 0, 1]])
    r[:3, :3] = z @ y @ x
    r[:3, 3] = middle - r[:3, :3] @ middle + 10 * p[:3]
    return r


def _explained_variance(x: Tensor, y: Tensor, window: Grid, inverse: NDArray[np.float64]) -> float:
    """Return R^2 of ``y`` (k, j, i) on a constant and ``x`` (t, k, j, i), sampled at the places ``inverse`` maps to."""
    to_index = np.linalg.inv(window.affine_mm) @ inverse @ window.affine_mm
    size = np.array(window.shape[::-1])
    scaled = np.diag([*(2 / (size - 1)), 1.0])
    scaled[:3, 3] = -1
    theta = torch.from_numpy((scaled @ to_index @ np.linalg.inv(scaled))[None, :3]).float()
    places = functional.affine_grid(theta, [1, 1, *window.shape], align_corners=True)
    moved = functional.grid_sample(x[None], places, align_corners=True)[0].flatten(1).double()
    A = torch.cat([torch.ones_like(moved[:1]), moved]).T
    b = y.flatten().double()
    gram = A.T @ A + 1e-6 * torch.eye(A.shape[1], dtype=torch.float64)
    fitted = A @ torch.linalg.solve(gram, A.T @ b)
    return 1 - float((b - fitted).square().sum() / (b - b.mean()).square().sum().clamp_min(1e-12))
