"""Reconstructions without a learned prior. Images are (batch, a, b); data are those of the operator."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import pad

from model_zoo.operators import LinearOperator, cg

__all__ = [
    "cg_sense",
    "cgls",
    "gradient",
    "gradient_adjoint",
    "haar",
    "l1_wavelet",
    "soft",
    "split_total_variation",
    "total_variation",
    "wavelet",
    "zero_filled",
]

# Orthonormal low-pass filter with four vanishing moments (Daubechies 1988, table 1, N = 4).
DB4 = (
    0.230377813308855, 0.714846570552542, 0.630880767929590, -0.027983769416984,
    -0.187034811718881, 0.030841381835987, 0.032883011666983, -0.010597401784997,
)  # fmt: skip
HAAR = (1 / math.sqrt(2), 1 / math.sqrt(2))


def zero_filled(A: LinearOperator, y: Tensor) -> Tensor:
    """Return A^H y."""
    return A.H(y)


def cg_sense(A: LinearOperator, y: Tensor, *, ridge: float = 1e-3, iterations: int = 20) -> Tensor:
    """Return argmin ||A x - y||^2 + ridge ||x||^2 by conjugate gradients (Pruessmann 2001)."""
    AHy = A.H(y)
    return cg(lambda x: A.normal(x) + ridge * x, AHy, torch.zeros_like(AHy), iterations=iterations)


def cgls(A: LinearOperator, y: Tensor, *, iterations: int = 15) -> Tensor:
    """Return the image after ``iterations`` of conjugate gradients on A^H A x = A^H y from 0 (Hestenes & Stiefel 1952).

    The number of iterations regularises: late ones fit the noise.
    """
    AHy = A.H(y)
    return cg(A.normal, AHy, torch.zeros_like(AHy), iterations=iterations)


def l1_wavelet(
    A: LinearOperator,
    y: Tensor,
    weight: float,
    *,
    iterations: int = 60,
    filter: tuple[float, ...] = DB4,
    levels: int = 3,
) -> Tensor:
    """Return argmin 1/2 ||A x - y||^2 + weight ||W x||_1 by FISTA (Lustig 2007; Beck & Teboulle 2009).

    The step is 1 since ||A|| <= 1. W is the orthonormal wavelet transform with periodic ends; the coarsest scale is not
    penalised.
    """
    AHy = A.H(y)
    W, WH = wavelet(AHy.shape[-2:], filter, levels)
    x = z = AHy
    t = 1.0
    for _ in range(iterations):
        before = x
        bands = W(z + AHy - A.normal(z))
        x = WH([bands[0], *(soft(band, weight) for band in bands[1:])])
        t, t_before = (1 + math.sqrt(1 + 4 * t * t)) / 2, t
        z = x + (t_before - 1) / t * (x - before)
    return x


def total_variation(
    A: LinearOperator, y: Tensor, weight: float, *, iterations: int = 100, start: Tensor | None = None
) -> Tensor:
    """Return argmin 1/2 ||A x - y||^2 + weight ||grad x||_{2,1} by the primal-dual method (Chambolle & Pock 2011).

    The total variation is isotropic. Steps are 1/3 each, since ||A||^2 + ||grad||^2 <= 1 + 8. ``start``: the first
    image, by default A^H y; one near the solution saves iterations where A^H A is far from a projection.
    """
    step = 1 / 3
    x = x_bar = A.H(y) if start is None else start
    p, q = torch.zeros_like(y), gradient(torch.zeros_like(x))
    for _ in range(iterations):
        p = (p + step * (A(x_bar) - y)) / (1 + step)
        q = q + step * gradient(x_bar)
        q = q / (q.abs().pow(2).sum(dim=0).sqrt() / weight).clamp_min(1.0)
        before = x
        x = x - step * (A.H(p) + gradient_adjoint(q))
        x_bar = 2 * x - before
    return x


def split_total_variation(
    A: LinearOperator, y: Tensor, weight: float | Tensor, *, edge: float, sweeps: int = 30, iterations: int = 4,
    start: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Return the minimum of :func:`total_variation` by the split Bregman method (Goldstein & Osher 2009).

    Its sweeps solve (A^H A + rho grad^H grad) x = A^H y + rho grad^H (z - u) by a few preconditioned conjugate
    gradients from the last x, then z = shrink(grad x + u, weight / rho), u += grad x - z. It suits an A^H A that is far
    from a projection, as in CT, where :func:`total_variation` needs thousands of steps.

    ``weight``: above 0, one or (batch,). ``edge``: weight / rho, the difference between neighbours, in units of the
    image, that a sweep sets to 0; it changes the speed, not the minimum. ``start``: the first image, by default 0.
    """
    AHy = A.H(y)
    rho = torch.as_tensor(weight, device=AHy.device).reshape(-1, 1, 1) / edge
    M = A.precondition(1 / (4 * rho.flatten()))
    x = torch.zeros_like(AHy) if start is None else start
    z, u = gradient(x), torch.zeros_like(gradient(x))
    for _ in range(sweeps):
        right_side = AHy + rho * gradient_adjoint(z - u)
        x = cg(
            lambda v: A.normal(v) + rho * gradient_adjoint(gradient(v)), right_side, x,
            iterations=iterations, precondition=M,
        )  # fmt: skip
        moved = gradient(x) + u
        size = moved.abs().square().sum(dim=0).sqrt().clamp_min(1e-20)
        z = moved * (1 - edge / size).clamp_min(0.0)
        u = moved - z
    return x


def soft(x: Tensor, threshold: float) -> Tensor:
    """Return the complex soft threshold of ``x``: |x| less ``threshold``, with the phase of x."""
    magnitude = x.abs()
    return x * ((magnitude - threshold).clamp_min(0.0) / magnitude.clamp_min(1e-20))


def wavelet(
    shape: tuple[int, ...], filter: tuple[float, ...] = DB4, levels: int = 3
) -> tuple[Callable[[Tensor], list[Tensor]], Callable[[list[Tensor]], Tensor]]:
    """Return the wavelet transform W of images of ``shape`` and its adjoint W^H, with W^H W = I.

    W gives [coarsest, details of the coarsest level, ..., details of the finest]. Sides that 2^levels does not divide
    are padded with zeros.
    """
    extra = [-n % 2**levels for n in shape[-2:]]

    def W(x: Tensor) -> list[Tensor]:
        low = pad(x, (0, extra[1], 0, extra[0]))
        details: list[Tensor] = []
        for _ in range(levels):
            (ll, lh), (hl, hh) = (_analyse(part, filter, -1) for part in _analyse(low, filter, -2))
            low, details = ll, [lh, hl, hh, *details]
        return [low, *details]

    def WH(bands: list[Tensor]) -> Tensor:
        low = bands[0]
        for level in range(levels):
            lh, hl, hh = bands[1 + 3 * level : 4 + 3 * level]
            rows = _synthesise(low, lh, filter, -1), _synthesise(hl, hh, filter, -1)
            low = _synthesise(*rows, filter, -2)
        return low[..., : shape[-2], : shape[-1]]

    return W, WH


def haar(shape: tuple[int, ...], levels: int = 3) -> tuple[Callable[..., list[Tensor]], Callable[..., Tensor]]:
    """Return :func:`wavelet` with the Haar filter."""
    return wavelet(shape, HAAR, levels)


def _high_pass(filter: tuple[float, ...]) -> list[float]:
    return [(-1) ** k * h for k, h in enumerate(reversed(filter))]


def _analyse(x: Tensor, filter: tuple[float, ...], axis: int) -> tuple[Tensor, Tensor]:
    """Return c[n] = sum_k h[k] x[2n + k], periodic, for the low- and the high-pass filter."""
    x = x.movedim(axis, -1)
    low, high = (
        sum(h * torch.roll(x, -k, -1)[..., ::2] for k, h in enumerate(taps)) for taps in (filter, _high_pass(filter))
    )
    return torch.as_tensor(low).movedim(-1, axis), torch.as_tensor(high).movedim(-1, axis)


def _synthesise(low: Tensor, high: Tensor, filter: tuple[float, ...], axis: int) -> Tensor:
    """Apply the adjoint of :func:`_analyse`."""
    low, high = low.movedim(axis, -1), high.movedim(axis, -1)
    x = torch.zeros((*low.shape[:-1], 2 * low.shape[-1]), dtype=low.dtype)
    for k, (h, g) in enumerate(zip(filter, _high_pass(filter), strict=True)):
        part = torch.zeros_like(x)
        part[..., ::2] = h * low + g * high
        x = x + torch.roll(part, k, -1)
    return x.movedim(-1, axis)


def gradient(x: Tensor) -> Tensor:
    """Return forward differences along both axes with Neumann ends; (2, batch, a, b)."""
    return torch.stack([torch.diff(x, dim=d, append=x.narrow(d, x.shape[d] - 1, 1)) for d in (-2, -1)])


def gradient_adjoint(q: Tensor) -> Tensor:
    """Return the adjoint of :func:`gradient`: (2, batch, a, b) to (batch, a, b)."""
    total = torch.zeros_like(q[0])
    for part, d in zip(q, (-2, -1), strict=True):
        inside = part.narrow(d, 0, part.shape[d] - 1)
        edge = torch.zeros_like(part.narrow(d, 0, 1))
        total = total - torch.diff(torch.cat([edge, inside, edge], dim=d), dim=d)
    return total
