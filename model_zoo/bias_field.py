"""The smooth multiplicative field of receive coils in an MR image whose structures are known.

log image = level of the structure + field + residual: the field is a sum of cosines no shorter than a wavelength, found
with the levels by weighted least squares in which voxels unlike their structure (lesions, partial volume, wrong labels)
lose their weight (Tukey's biweight). After Wells et al., IEEE Trans. Med. Imaging 15, 1996, with the structures
given.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

from model_zoo.structures import STRUCTURES

__all__ = ["FEWEST_VOXELS", "CosineBasis", "estimate_bias_field"]

FEWEST_VOXELS = 1000
WAVELENGTH_MM = 90.0
STEP_MM = 3.0
"""Distance between the voxels to which the field is fitted."""
DAMPING = 1e-3
"""Damping of the squared coefficients, times the fourth power of their frequency, in units of the weight."""
CUT = 3.0
"""Distance from its structure's level, in standard deviations, beyond which a voxel has no weight."""
LEAST_SD = 0.03
ROUNDS = 6
LARGEST = 1.2
"""Largest logarithm of the field: a factor of 3.3."""


@dataclass(frozen=True)
class CosineBasis:
    """Products of cosines over a box 1.3 times as large as the image, so that no edge flattens the field.

    ``axes``: per axis float64 (order + 1, n); ``terms``: orders along (k, j, i), without the constant.
    """

    axes: tuple[Tensor, Tensor, Tensor]
    terms: tuple[tuple[int, int, int], ...]

    @staticmethod
    def over(shape: tuple[int, ...], spacing_mm: float, wavelength_mm: float, device: torch.device) -> CosineBasis:
        orders = [max(1, round(2.6 * n * spacing_mm / wavelength_mm)) for n in shape]
        axes = [_cosine_axis(n, order, device) for n, order in zip(shape, orders, strict=True)]
        terms = [t for t in product(*(range(n + 1) for n in orders)) if 0 < _squared_frequency(t, orders) <= 1]
        return CosineBasis((axes[0], axes[1], axes[2]), tuple((a, b, c) for a, b, c in terms))

    def at(self, index: Tensor) -> Tensor:
        """Return the values (voxel, term) at the voxels ``index`` (3, voxel)."""
        k, j, i = (axis[:, voxel] for axis, voxel in zip(self.axes, index, strict=True))
        return torch.stack([k[a] * j[b] * i[c] for a, b, c in self.terms], dim=1)

    def penalty(self) -> Tensor:
        """Return the fourth power of each term's frequency, 1 at the shortest wavelength."""
        orders = [len(axis) - 1 for axis in self.axes]
        return torch.tensor([_squared_frequency(t, orders) ** 2 for t in self.terms], dtype=torch.float64)

    def sum(self, coefficients: Tensor) -> Tensor:
        """Return the sum of the terms times ``coefficients``, (k, j, i)."""
        cube = coefficients.new_zeros([len(axis) for axis in self.axes])
        cube[tuple(torch.tensor(self.terms).T)] = coefficients
        return torch.einsum("abc,ak,bj,ci->kji", cube, *self.axes)


def estimate_bias_field(
    image: Tensor, structure: Tensor, spacing_mm: float = 1.0, *, wavelength_mm: float = WAVELENGTH_MM
) -> Tensor:
    """Estimate the field by which ``image`` (k, j, i) is to be divided: float32 (k, j, i), about 1.

    ``structure``: numbers of ``model_zoo.structures`` on the same isotropic voxels; fluid has no weight. With fewer
    than ``FEWEST_VOXELS`` voxels to fit, the field is 1.
    """
    index, structures = _interior_voxels(image, structure, max(1, round(STEP_MM / spacing_mm)))
    if len(structures) < FEWEST_VOXELS:
        return torch.ones_like(image)
    basis = CosineBasis.over(tuple(image.shape), spacing_mm, wavelength_mm, image.device)
    y, B = image[tuple(index)].double().log(), basis.at(index)
    present, column = structures.unique(return_inverse=True)  # type: ignore[no-untyped-call]  # torch leaves it untyped
    A = torch.cat([B, torch.nn.functional.one_hot(column).to(B.dtype)], dim=1)
    penalty = torch.cat([DAMPING * (basis.penalty() + 1e-3), torch.full((len(present),), 1e-9)]).to(A)
    residual, coefficients = y, A.new_zeros(A.shape[1])
    for n in range(ROUNDS):
        medians, sd = _median_and_sd(residual, column, len(present))
        z = (residual - medians[column]) / sd[column]
        weight = ((z.abs() < 1) if n == 0 else (1 - (z / CUT) ** 2).clamp(min=0) ** 2) / sd[column] ** 2
        normal = (A * weight[:, None]).T @ A + weight.sum() * torch.diag(penalty)
        coefficients = torch.linalg.solve(normal, A.T @ (weight * y))
        residual = y - A @ coefficients
    return basis.sum(coefficients[: B.shape[1]]).clamp(-LARGEST, LARGEST).exp().to(image.dtype)


def _interior_voxels(image: Tensor, structure: Tensor, step: int) -> tuple[Tensor, Tensor]:
    """Return index and structure of every ``step``-th voxel with signal within one solid structure.

    Its six neighbours belong to the same structure.
    """
    axes = [torch.arange(1, n - 1, step, device=image.device) for n in image.shape]
    index = torch.stack(torch.meshgrid(*axes, indexing="ij")).flatten(1)
    solid = torch.tensor([False] + [s.tissue != "csf" for s in STRUCTURES], device=image.device)
    own = structure[tuple(index)].long()
    is_interior = solid[own] & (image[tuple(index)] > 0)
    for axis, side in product(range(3), (-1, 1)):
        neighbour = index.clone()
        neighbour[axis] += side
        is_interior &= structure[tuple(neighbour)].long() == own
    return index[:, is_interior], own[is_interior]


def _median_and_sd(values: Tensor, column: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return median and robust standard deviation of each structure."""
    medians, sd = values.new_zeros(count), values.new_ones(count)
    for n in range(count):
        of_structure = values[column == n]
        medians[n] = of_structure.median()
        sd[n] = (1.4826 * (of_structure - medians[n]).abs().median()).clamp(min=LEAST_SD)
    return medians, sd


def _cosine_axis(n: int, order: int, device: torch.device) -> Tensor:
    x = ((torch.arange(n, dtype=torch.float64, device=device) + 0.5) / n + 0.15) / 1.3
    return torch.stack([torch.cos(math.pi * m * x) for m in range(order + 1)])


def _squared_frequency(term: tuple[int, ...], orders: list[int]) -> float:
    return sum((t / n) ** 2 for t, n in zip(term, orders, strict=True))
