"""The smooth multiplicative field of receive coils in an MR image whose structures are known.

log image = level of the structure + field + rest: the field is a sum of cosines no shorter than a wavelength, found
with the levels by weighted least squares in which what does not look like its structure (lesions, partial volume, wrong
labels) loses its weight (Tukey's biweight). After Wells et al., IEEE Trans. Med. Imaging 15, 1996, with the structures
given.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

from model_zoo.structures import STRUCTURES

__all__ = ["FEWEST_VOXELS", "Cosines", "field"]

FEWEST_VOXELS = 1000
WAVELENGTH_MM = 90.0
STEP_MM = 3.0
"""Between the voxels that are asked."""
DAMPING = 1e-3
"""Of the squared coefficients, times the fourth power of their frequency, in units of the weight."""
CUT = 3.0
"""Standard deviations from its structure's level at which a voxel has no say."""
LEAST_SD = 0.03
ROUNDS = 6
LARGEST = 1.2
"""Of the logarithm: a factor of 3.3."""


@dataclass(frozen=True)
class Cosines:
    """Products of cosines over a box 1.3 times as large as the image, so that no edge flattens the field.

    ``axes``: per axis float64 (order + 1, n); ``terms``: orders along (k, j, i), without the constant.
    """

    axes: tuple[Tensor, Tensor, Tensor]
    terms: tuple[tuple[int, int, int], ...]

    @staticmethod
    def over(shape: tuple[int, ...], spacing_mm: float, wavelength_mm: float, device: torch.device) -> Cosines:
        orders = [max(1, round(2.6 * n * spacing_mm / wavelength_mm)) for n in shape]
        axes = [_cosines(n, order, device) for n, order in zip(shape, orders, strict=True)]
        found = [t for t in product(*(range(n + 1) for n in orders)) if 0 < _squared(t, orders) <= 1]
        return Cosines((axes[0], axes[1], axes[2]), tuple((a, b, c) for a, b, c in found))

    def at(self, index: Tensor) -> Tensor:
        """Values (voxel, term) at the voxels ``index`` (3, voxel)."""
        k, j, i = (axis[:, at] for axis, at in zip(self.axes, index, strict=True))
        return torch.stack([k[a] * j[b] * i[c] for a, b, c in self.terms], dim=1)

    def penalty(self) -> Tensor:
        """Fourth power of each term's frequency, 1 at the shortest wavelength."""
        orders = [len(axis) - 1 for axis in self.axes]
        return torch.tensor([_squared(t, orders) ** 2 for t in self.terms], dtype=torch.float64)

    def sum(self, coefficients: Tensor) -> Tensor:
        """Of the terms, (k, j, i)."""
        cube = coefficients.new_zeros([len(axis) for axis in self.axes])
        cube[tuple(torch.tensor(self.terms).T)] = coefficients
        return torch.einsum("abc,ak,bj,ci->kji", cube, *self.axes)


def field(image: Tensor, structure: Tensor, spacing_mm: float = 1.0, *, wavelength_mm: float = WAVELENGTH_MM) -> Tensor:
    """What ``image`` (k, j, i) is to be divided by: float32 (k, j, i), about 1; 1 where too little is known.

    ``structure``: numbers of ``model_zoo.structures`` on the same isotropic voxels; fluid has no say.
    """
    index, own = _interior(image, structure, max(1, round(STEP_MM / spacing_mm)))
    if len(own) < FEWEST_VOXELS:
        return torch.ones_like(image)
    basis = Cosines.over(tuple(image.shape), spacing_mm, wavelength_mm, image.device)
    y, B = image[tuple(index)].double().log(), basis.at(index)
    present, column = own.unique(return_inverse=True)  # type: ignore[no-untyped-call]  # torch leaves it untyped
    A = torch.cat([B, torch.nn.functional.one_hot(column).to(B.dtype)], dim=1)
    penalty = torch.cat([DAMPING * (basis.penalty() + 1e-3), torch.full((len(present),), 1e-9)]).to(A)
    rest, found = y, A.new_zeros(A.shape[1])
    for n in range(ROUNDS):
        middle, sd = _spread(rest, column, len(present))
        z = (rest - middle[column]) / sd[column]
        weight = ((z.abs() < 1) if n == 0 else (1 - (z / CUT) ** 2).clamp(min=0) ** 2) / sd[column] ** 2
        normal = (A * weight[:, None]).T @ A + weight.sum() * torch.diag(penalty)
        found = torch.linalg.solve(normal, A.T @ (weight * y))
        rest = y - A @ found
    return basis.sum(found[: B.shape[1]]).clamp(-LARGEST, LARGEST).exp().to(image.dtype)


def _interior(image: Tensor, structure: Tensor, step: int) -> tuple[Tensor, Tensor]:
    """Every ``step``-th voxel with signal whose six neighbours are of its own solid structure: index, structure."""
    axes = [torch.arange(1, n - 1, step, device=image.device) for n in image.shape]
    index = torch.stack(torch.meshgrid(*axes, indexing="ij")).flatten(1)
    solid = torch.tensor([False] + [s.tissue != "csf" for s in STRUCTURES], device=image.device)
    own = structure[tuple(index)].long()
    kept = solid[own] & (image[tuple(index)] > 0)
    for axis, side in product(range(3), (-1, 1)):
        beside = index.clone()
        beside[axis] += side
        kept &= structure[tuple(beside)].long() == own
    return index[:, kept], own[kept]


def _spread(values: Tensor, column: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Median and robust standard deviation of each structure."""
    middle, sd = values.new_zeros(count), values.new_ones(count)
    for n in range(count):
        here = values[column == n]
        middle[n] = here.median()
        sd[n] = (1.4826 * (here - middle[n]).abs().median()).clamp(min=LEAST_SD)
    return middle, sd


def _cosines(n: int, order: int, device: torch.device) -> Tensor:
    x = ((torch.arange(n, dtype=torch.float64, device=device) + 0.5) / n + 0.15) / 1.3
    return torch.stack([torch.cos(math.pi * m * x) for m in range(order + 1)])


def _squared(term: tuple[int, ...], orders: list[int]) -> float:
    return sum((t / n) ** 2 for t, n in zip(term, orders, strict=True))
