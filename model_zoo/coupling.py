"""Neighbouring slices of a volume coupled by total variation across them, inside the correction towards the data.

After DiffusionMBIR and the volumetric form of DDS (Chung 2023, 2024): the prior sees slices one by one, and a sweep of
ADMM per diffusion step makes them agree. Differences from them: the ends are Neumann's, so that the first slice does
not depend on the last; the penalty is added to the prior's own estimate with the estimate's variance, so that it fades
as sigma falls and cannot flatten an estimate on which the prior and the data agree; slices are compared in one scale
and phase.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from model_zoo.classical import soft
from model_zoo.operators import LinearOperator, cg
from model_zoo.samplers import data_weight

__all__ = ["CoupledCorrection", "Differences", "slice_factors"]

CHUNK = 8
"""Number of slices to which the operator is applied at a time, which bounds the memory."""


@dataclass(frozen=True)
class Differences:
    """D x = c_(s+1) x_(s+1) - c_s x_s of images (slice, a, b), zero where either slice has c = 0.

    ``factor`` c: complex64 (slice, a, b), which makes neighbouring slices comparable; zero where no coil has signal.
    """

    factor: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """Return D x, (slice - 1, a, b)."""
        return self._both_covered * torch.diff(self.factor * x, dim=0)

    def H(self, z: Tensor) -> Tensor:
        """Return the adjoint D^H z: (slice - 1, a, b) -> (slice, a, b)."""
        z = self._both_covered * z
        none = torch.zeros_like(z[:1])
        return self.factor.conj() * (torch.cat([none, z]) - torch.cat([z, none]))

    @property
    def _both_covered(self) -> Tensor:
        is_covered = self.factor.abs() > 0
        return (is_covered[1:] & is_covered[:-1]).to(torch.float32)


def slice_factors(x: Tensor, gain: Tensor) -> Tensor:
    """Return the factor of :class:`Differences`: ``gain`` (slice, a, b) over its mean inside, phase-aligned.

    Each slice is turned to the phase of the slice before. ``x`` (slice, a, b): a first estimate. Each slice has a scale
    of its own, and 2D excitations a phase of their own.
    """
    level = gain / gain[gain > 0].mean()
    scaled = level * x
    turn = (scaled[1:].conj() * scaled[:-1]).flatten(1).sum(dim=1).angle()
    phase = torch.cat([turn.new_zeros(1), torch.cumsum(turn, 0)])
    return torch.polar(level, phase[:, None, None].expand_as(level).to(level.dtype))


@dataclass
class CoupledCorrection:
    """The correction correct(x0_hat, sigma) for ``samplers.anneal`` on a whole volume (slice, a, b).

    Each call is one sweep of ADMM towards

    argmin_x ||x - x0_hat||^2 / (2 r^2) + ||A x - y||^2 / (2 sigma_y^2) + weight ||D x||_1

    with r^2 the variance of x0 given x at sigma:
    (I + gamma A^H A + rho D^H D) x = x0_hat + gamma A^H y + rho D^H (z - w), gamma = r^2 / sigma_y^2,
    z = soft(D x + w, weight r^2 / rho), w += D x - z. z and w persist from step to step, w as a price, w rho / r^2,
    whose units do not change with r.
    ``weight``: one over the size of a usual difference between slices, in units of the images.
    """

    A: LinearOperator
    y: Tensor
    sigma_y: Tensor
    sigma_data: float
    D: Differences
    weight: float
    rho: float = 1.0
    iterations: int = 8
    _z: Tensor | None = field(default=None, init=False)
    _price: Tensor | None = field(default=None, init=False)

    def __call__(self, x0_hat: Tensor, sigma: float) -> Tensor:
        """Return the corrected volume, and keep z and the price for the next, smaller sigma."""
        r2 = sigma**2 * self.sigma_data**2 / (sigma**2 + self.sigma_data**2)
        gamma = torch.as_tensor(data_weight(sigma, self.sigma_data, self.sigma_y)).reshape(-1, 1, 1)
        D, rho = self.D, self.rho
        z = D(x0_hat) if self._z is None else self._z
        w = torch.zeros_like(z) if self._price is None else self._price * (r2 / rho)
        right_side = x0_hat + gamma * self._AHy() + rho * D.H(z - w)

        def H(x: Tensor) -> Tensor:
            return (x[0] + gamma * self._normal(x[0]) + rho * D.H(D(x[0])))[None]

        x = cg(H, right_side[None], x0_hat[None], iterations=self.iterations)[0]
        self._z = soft(D(x) + w, self.weight * r2 / rho)
        self._price = (w + D(x) - self._z) * (rho / r2)
        return x

    def _AHy(self) -> Tensor:
        return torch.cat([A.H(self.y[part]) for A, part in self._chunks()])

    def _normal(self, x: Tensor) -> Tensor:
        return torch.cat([A.normal(x[part]) for A, part in self._chunks()])

    def _chunks(self) -> list[tuple[LinearOperator, slice]]:
        parts = [slice(start, start + CHUNK) for start in range(0, len(self.y), CHUNK)]
        return [(self.A.select(part), part) for part in parts]
