"""Linear operators that samplers and solvers invert, that of Cartesian MRI, and conjugate gradients.

Conventions: images are (batch, a, b). Inner products conjugate their first argument and are taken per batch element. In
MRI arrays are complex64, k-space is (batch, coil, a, b), and the centre of either is sample ``n // 2``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, Self

import torch
from torch import Tensor

__all__ = [
    "Fourier",
    "LinearOperator",
    "Precondition",
    "centred_fft",
    "centred_ifft",
    "cg",
    "inner",
    "magnitude",
    "per_element",
]

Precondition = Callable[[Tensor], Tensor]
"""A function r -> M r, M Hermitian positive definite and the same for every call; batched over the first axis."""

_AXES = (-2, -1)


def centred_fft(x: Tensor, axes: tuple[int, ...] = _AXES) -> Tensor:
    """Return F x = fftshift(fft(ifftshift(x))), orthonormal: F^H F = I for odd and even sizes alike."""
    shifted = torch.fft.ifftshift(x, dim=axes)
    k: Tensor = torch.fft.fftshift(torch.fft.fftn(shifted, dim=axes, norm="ortho"), dim=axes)
    return k


def centred_ifft(k: Tensor, axes: tuple[int, ...] = _AXES) -> Tensor:
    """Return F^H k, the inverse and the adjoint of :func:`centred_fft`."""
    shifted = torch.fft.ifftshift(k, dim=axes)
    x: Tensor = torch.fft.fftshift(torch.fft.ifftn(shifted, dim=axes, norm="ortho"), dim=axes)
    return x


def inner(u: Tensor, v: Tensor) -> Tensor:
    """Return <u, v> = sum conj(u) v over all axes but the first; shape (batch,)."""
    return (u.conj() * v).flatten(1).sum(dim=1)


def magnitude(x: Tensor) -> Tensor:
    """Return |x| of images (batch, a, b); of several sets (batch, set, a, b) the root sum of squares, (batch, a, b)."""
    return x.abs() if x.ndim == 3 else x.abs().pow(2).sum(dim=1).sqrt()


class LinearOperator(Protocol):
    """A of y = A x + e, with ||A|| <= 1: what samplers, solvers and measures of fit need of an acquisition.

    Images x and data y are batched over the first axis, and are both real (float32) or both complex (complex64). Data
    that were not acquired are zero. The noise e has one sd in all acquired data of a batch element.
    """

    def __call__(self, x: Tensor) -> Tensor:
        """Return A x; autograd passes through it."""

    def H(self, y: Tensor) -> Tensor:
        """Return A^H y, with <A x, y> = <x, A^H y>."""

    def normal(self, x: Tensor) -> Tensor:
        """Return A^H A x."""

    def precondition(self, gamma: Tensor) -> Precondition | None:
        """Return an approximation of (I + gamma A^H A)^-1 for :func:`cg`, or None where there is none.

        ``gamma``: (batch,) or (1,), not negative.
        """

    @property
    def measured(self) -> Tensor:
        """Number of data acquired per batch element, real or complex ones; shape (batch,) or (1,)."""

    def select(self, part: slice) -> Self:
        """Return the operator of a part of the batch elements."""

    def repeat(self, n: int) -> Self:
        """Return the operator for n images of each batch element, which lie next to each other in the batch."""


@dataclass(frozen=True)
class Fourier:
    """The masked multi-coil Fourier operator A = P F S of Cartesian MRI (Pruessmann 2001).

    ``maps`` S: complex64 (batch, coil, a, b), with sum_c |S_c|^2 <= 1, so that ||A|| <= 1.
    ``mask`` P: bool or 0/1 float (batch, a, b), one where a sample was acquired.
    A batch of one is broadcast against any batch of images.

    Where places fold into one, several sets of maps (batch, set, coil, a, b), orthogonal over the coils in each voxel,
    have an image each, (batch, set, a, b): A x = P F sum_m S_m x_m (soft SENSE, Uecker 2014).
    """

    maps: Tensor
    mask: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """Return A x: image (batch, a, b) -> k-space (batch, coil, a, b), zero where nothing was acquired."""
        return self._P * centred_fft(self._receive(x))

    def H(self, y: Tensor) -> Tensor:
        """Return A^H y: k-space (batch, coil, a, b) -> image (batch, a, b)."""
        return self._combine(centred_ifft(self._P * y))

    def normal(self, x: Tensor) -> Tensor:
        """Return A^H A x; no image is shifted, since the shifts of the two transforms cancel but for the mask's."""
        k = torch.fft.fft2(self._receive(x), norm="ortho")
        P = torch.fft.ifftshift(self._P, dim=_AXES)
        return self._combine(torch.fft.ifft2(P * k, norm="ortho"))

    def _receive(self, x: Tensor) -> Tensor:
        """Return the images of the coils, sum_m S_m x_m."""
        received = self.maps * x[..., None, :, :]
        return received.sum(dim=1) if self.maps.ndim == 5 else received

    def _combine(self, received: Tensor) -> Tensor:
        """Apply the adjoint of :meth:`_receive`."""
        return (self.maps.conj() * (received[:, None] if self.maps.ndim == 5 else received)).sum(dim=-3)

    @property
    def _P(self) -> Tensor:
        return self.mask[:, None].to(self.maps.real.dtype)

    @property
    def sets(self) -> int:
        """Number of sets of maps, and of images per batch element."""
        return self.maps.shape[1] if self.maps.ndim == 5 else 1

    @property
    def support(self) -> Tensor:
        """Support sum_c |S_c|^2, real, of the shape of an image: zero where no coil receives signal."""
        return (self.maps.abs() ** 2).sum(dim=-3)

    @property
    def measured(self) -> Tensor:
        """Number of complex samples acquired per batch element, all coils together; shape (batch,)."""
        return self.mask.flatten(1).sum(dim=1) * self.maps.shape[-3]

    def precondition(self, gamma: Tensor) -> None:
        """Return None: where each sample stands for one frequency, conjugate gradients converge in few iterations."""

    def select(self, part: slice) -> Fourier:
        """Return the operator of a part of the batch elements; a batch of one stays as it is."""
        maps, mask = (t if len(t) == 1 else t[part] for t in (self.maps, self.mask))
        return Fourier(maps, mask)

    def repeat(self, n: int) -> Fourier:
        """Return the operator for n images of each batch element, which lie next to each other in the batch."""
        return Fourier(self.maps.repeat_interleave(n, 0), self.mask.repeat_interleave(n, 0))


def cg(
    H: Callable[[Tensor], Tensor], b: Tensor, x: Tensor, *, iterations: int = 10, tolerance: float = 1e-6,
    precondition: Precondition | None = None,
) -> Tensor:  # fmt: skip
    """Solve H x = b by conjugate gradients from x, H Hermitian positive semi-definite; batched over the first axis.

    Every batch element has its own step sizes and stops for itself when ||b - H x|| <= tolerance ||b||
    (Hestenes & Stiefel 1952, with conjugated inner products). ``precondition`` M approximates H^-1; both norms are then
    those of M, ||r||^2 = <r, M r>.
    """
    M = precondition or (lambda r: r)
    r = b - H(x)
    p = z = M(r)
    rz = inner(r, z).real
    stop = tolerance**2 * inner(b, M(b)).real
    for _ in range(iterations):
        active = rz > stop
        if not bool(active.any()):
            break
        Hp = H(p)
        alpha = torch.where(active, rz / inner(p, Hp).real.clamp_min(torch.finfo(rz.dtype).tiny), 0.0)
        x = x + per_element(alpha, x) * p
        r = r - per_element(alpha, x) * Hp
        z = M(r)
        rz_new = inner(r, z).real
        beta = torch.where(active, rz_new / rz.clamp_min(torch.finfo(rz.dtype).tiny), 0.0)
        p = z + per_element(beta, x) * p
        rz = torch.where(active, rz_new, rz)
    return x


def per_element(scalars: Tensor, like: Tensor) -> Tensor:
    """Return ``scalars`` (batch,) or (1,) with as many axes as ``like`` (batch, ...)."""
    return scalars.reshape(-1, *(1,) * (like.ndim - 1))
