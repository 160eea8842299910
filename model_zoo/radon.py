"""Parallel-beam and fan-beam computed tomography of one plane: rays, their matrix, and the operator of weighted counts.

Images are attenuation in 1/mm, float32 (batch, j, i), and the middle of the image is the axis of rotation; x runs along
i and y along j. Every ray is the line x cos(theta) + y sin(theta) = t, t in mm. Line integrals (batch, view, bin) have
no unit. Geometry in the plane only: no cone, no helix, one energy, no scatter.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_array
from torch import Tensor

from model_zoo.ct_geometry import WATER_PER_MM, CtGeometry
from model_zoo.operators import Precondition

__all__ = [
    "WATER_PER_MM",
    "CtGeometry",
    "Radon",
    "RayMatrix",
    "build_matrix",
    "make_ray_matrix",
    "take_logarithm",
    "to_attenuation",
    "to_hounsfield",
    "weigh_counts",
]

_ROUNDS = 12
"""Multiplications by P^T P before its norm is bounded; the bound then exceeds the norm by less than 1 %."""


def to_hounsfield(mu_per_mm: Tensor) -> Tensor:
    """Return CT numbers in HU of attenuation in 1/mm."""
    return 1000 * (mu_per_mm / WATER_PER_MM - 1)


def to_attenuation(hu: Tensor) -> Tensor:
    """Return attenuation in 1/mm of CT numbers in HU; none below that of nothing, -1000 HU."""
    return WATER_PER_MM * (1 + hu / 1000).clamp_min(0.0)


@dataclass(frozen=True)
class RayMatrix:
    """Sparse matrix P (rays, pixels) of line integrals in mm, float32, and an upper bound of its norm.

    P^T is the same matrix read the other way, so that it is the exact adjoint and takes no memory of its own: 8 bytes
    an entry, 0.34 GB for 360 views of 367 bins over 256 x 256 pixels.
    """

    geometry: CtGeometry
    matrix: csr_array
    norm: float

    def project(self, x: Tensor) -> Tensor:
        """Return P x: (batch, j, i) -> (batch, view, bin). Autograd passes through it."""
        result: Tensor = _Product.apply(x, self, False)  # type: ignore[no-untyped-call]  # torch's stubs
        return result

    def backproject(self, y: Tensor) -> Tensor:
        """Return P^T y: (batch, view, bin) -> (batch, j, i). Autograd passes through it."""
        result: Tensor = _Product.apply(y, self, True)  # type: ignore[no-untyped-call]  # torch's stubs
        return result

    def multiply(self, values: Tensor, is_transposed: bool) -> Tensor:
        """Return P or P^T times each element of a batch."""
        g = self.geometry
        matrix = self.matrix.T if is_transposed else self.matrix
        columns = np.ascontiguousarray(values.detach().to(torch.float32).flatten(1).numpy().T)
        product = np.ascontiguousarray((matrix @ columns).T)
        return torch.from_numpy(product).reshape(-1, *(g.shape if is_transposed else (g.views, g.bins)))


class _Product(torch.autograd.Function):
    """Product with P or P^T; its gradient is the product with the other one."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, rays: RayMatrix, is_transposed: bool) -> Tensor:
        ctx.rays, ctx.is_transposed = rays, is_transposed
        return rays.multiply(values, is_transposed)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return ctx.rays.multiply(gradient, not ctx.is_transposed), None, None


@lru_cache(maxsize=1)  # a matrix of a clinical scan has several GB
def make_ray_matrix(geometry: CtGeometry) -> RayMatrix:
    """Return the matrix of ``geometry`` and its norm; the last one is kept. Making them costs about 100 projections."""
    matrix = build_matrix(geometry)
    return RayMatrix(geometry, matrix, _bound_norm(matrix))


def build_matrix(geometry: CtGeometry) -> csr_array:
    """Return the line integrals of ``geometry`` as a matrix (view x bin, j x i) in mm, float32, after Joseph (1982).

    A ray is sampled once in each column of pixels that it crosses, or in each row where it is steep; between pixel
    centres the image is interpolated linearly along that column or row, and it is zero outside.
    """
    parts = [_make_view(geometry, theta, t) for theta, t in zip(*geometry.rays, strict=True)]
    ends = np.cumsum(np.concatenate([count for count, _, _ in parts]))
    index = np.int32 if ends[-1] <= np.iinfo(np.int32).max else np.int64
    return csr_array(
        (
            np.concatenate([weights for _, _, weights in parts]),
            np.concatenate([columns for _, columns, _ in parts]).astype(index, copy=False),
            np.concatenate([[0], ends]).astype(index),
        ),
        shape=(geometry.views * geometry.bins, geometry.shape[0] * geometry.shape[1]),
    )


def _make_view(
    g: CtGeometry, theta: NDArray[np.float64], t: NDArray[np.float64]
) -> tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.float32]]:
    """Return the entries of the rays of one view: their number in each ray, their pixels and weights."""
    is_flat = np.abs(np.sin(theta)) >= np.abs(np.cos(theta))
    steep = np.where(is_flat, np.sin(theta), np.cos(theta))[:, None]
    other = np.where(is_flat, np.cos(theta), np.sin(theta))[:, None]
    along = np.where(is_flat, g.shape[1], g.shape[0])[:, None]  # number of columns, or of rows where a ray is steep
    across = np.where(is_flat, g.shape[0], g.shape[1])[:, None]
    step = np.arange(max(g.shape))[None]
    at = (t[:, None] / g.pixel_mm - (step - (along - 1) / 2) * other) / steep + (across - 1) / 2
    low = np.floor(at)
    neighbour = np.stack([low, low + 1], axis=-1)
    share = 1 - np.abs(at[..., None] - neighbour)
    inside = (neighbour >= 0) & (neighbour < across[..., None]) & (share > 0) & (step < along)[..., None]
    pixel = np.where(
        is_flat[:, None, None], neighbour * g.shape[1] + step[..., None], step[..., None] * g.shape[1] + neighbour
    )
    weights = share * (g.pixel_mm / np.abs(steep))[..., None]
    return inside.sum(axis=(1, 2)), pixel[inside].astype(np.int32), weights[inside].astype(np.float32)


def _bound_norm(matrix: csr_array) -> float:
    """Return an upper bound of ||P||: max of (P^T P v) / v, P and v not negative (Collatz & Wielandt)."""
    v = np.ones(matrix.shape[1], np.float32)
    bound = 0.0
    for _ in range(_ROUNDS):
        product = matrix.T @ (matrix @ v)
        is_seen = product > 0
        bound = float((product[is_seen] / v[is_seen]).max(initial=0.0))
        v = np.where(is_seen, product / max(float(product.max()), 1e-30), 1.0).astype(np.float32)
    return float(np.sqrt(bound * (1 + 1e-5)))


@dataclass(frozen=True)
class Radon:
    """The weighted projection A = W P / ||P|| of ``rays``, a ``LinearOperator`` with ||A|| <= 1.

    ``weight`` W: float32 (batch or 1, view, bin), 0 to 1: the noise sd of the best ray over that of each ray, and 0
    where a ray was not measured. The data y = W p / ||P|| of line integrals p then have one noise sd.
    """

    rays: RayMatrix
    weight: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """Return A x: attenuation (batch, j, i) -> data (batch, view, bin)."""
        return self.whiten(self.rays.project(x))

    def H(self, y: Tensor) -> Tensor:
        """Return A^T y: data (batch, view, bin) -> image (batch, j, i)."""
        return self.rays.backproject(self.whiten(y))

    def normal(self, x: Tensor) -> Tensor:
        """Return A^T A x."""
        return self.H(self(x))

    def whiten(self, line_integrals: Tensor) -> Tensor:
        """Return the data y of line integrals p, W p / ||P||; (batch, view, bin) both."""
        return self.weight / self.rays.norm * line_integrals

    def precondition(self, gamma: Tensor) -> Precondition:
        """Return r -> r / (1 + gamma A^T A 1), the diagonal of SIRT (Gregor & Benson 2008).

        Weights of counts differ by far within one image, and A^T A 1 with them. A filter in frequency, the inverse of
        A^T A of even weights, was tried and converges less well than this where gamma is large.
        """
        diagonal = 1 / (1 + gamma.reshape(-1, 1, 1) * self._sensitivity)
        return lambda r: diagonal * r

    @cached_property
    def _sensitivity(self) -> Tensor:
        """A^T A 1, (batch or 1, j, i)."""
        return self.normal(torch.ones((len(self.weight), *self.rays.geometry.shape)))

    @property
    def measured(self) -> Tensor:
        """Number of rays measured per batch element; (batch,) or (1,)."""
        return (self.weight > 0).flatten(1).sum(dim=1)

    def select(self, part: slice) -> Radon:
        """Return the operator of a part of the batch elements; a batch of one stays as it is."""
        return Radon(self.rays, self.weight if len(self.weight) == 1 else self.weight[part])

    def repeat(self, n: int) -> Radon:
        """Return the operator for n images of each batch element, next to each other; one weight stays one."""
        return Radon(self.rays, self.weight if len(self.weight) == 1 else self.weight.repeat_interleave(n, 0))


def take_logarithm(geometry: CtGeometry, counts: Tensor, photons: float) -> tuple[Radon, Tensor, Tensor]:
    """Return A, line integrals p = log(photons / counts), and the noise sd sigma_y of the data y = A.whiten(p).

    ``counts``: photons detected in each ray, (batch, view, bin); ``photons``: those that a ray without an object would
    give. p has variance 1 / counts, to first order; sigma_y is (batch,). A ray without a photon is not measured: its
    weight is 0, and its p that of half a photon, for methods without weights. Below about 10 photons log(counts) is
    biased by 1 / (2 counts), which no weight removes.

    Raises ValueError where a batch element has no photon at all, and for counts that are negative or not finite.
    """
    if not photons > 0:
        raise ValueError("counts and photons must be numbers, and not negative")
    A, sigma_y = weigh_counts(geometry, counts)
    return A, torch.log(photons / torch.where(counts > 0, counts, 0.5)), sigma_y


def weigh_counts(geometry: CtGeometry, counts: Tensor) -> tuple[Radon, Tensor]:
    """Return A with the weights of ``counts``, photons detected (batch, view, bin), and the noise sd sigma_y (batch,).

    sigma_y is that of the data y = A.whiten(p), p the line integrals, whose variance is 1 / counts.

    Raises ValueError where a batch element has no photon at all, and for counts that are negative or not finite.
    """
    if not bool(torch.isfinite(counts).all()) or bool((counts < 0).any()):
        raise ValueError("counts and photons must be numbers, and not negative")
    most = counts.flatten(1).amax(dim=1)
    if bool((most == 0).any()):
        raise ValueError("a scan without a detected photon")
    A = Radon(make_ray_matrix(geometry), (counts / most[:, None, None]).sqrt())
    return A, 1 / (A.rays.norm * most.sqrt())
