"""Noise covariance of the coils from the null space of the calibration data: what no signal can reach.

The rows of the block-Hankel matrix of fully sampled k-space (all ``kernel`` x ``kernel`` neighbourhoods over all coils)
hold a signal of low rank, because the object is bounded and the coils are smooth (Shin 2014; Uecker 2014), also where
the object is larger than the field of view. White noise in k-space adds Psi (x) I to their covariance G. On the null
space of the signal, with projector P,

    E[P G P] = (1 - r / n) P (Psi (x) I) P,   r: rank of the signal, n: number of rows,

which is linear in Psi and solved for by least squares. The eigenvectors of G separate signal from noise only where the
noise is white over the coils, so the data are whitened by what was found and the step is repeated.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = [
    "NullSpace",
    "estimate_null_space_covariance",
    "fit_covariance",
    "split_signal",
    "tighten",
    "whiten_neighbourhoods",
]

KERNELS = (6, 5, 4)
"""Sides of the neighbourhoods; the largest whose matrix has at most ``COLUMNS`` columns is taken."""
COLUMNS = 800
MOST_COILS = 32
"""Largest number of coils whose correlations are solved for; more have a diagonal covariance."""
SIDES = (128, 48)
"""Largest longer and shorter side of the block that is used, about the centre."""
SLICES = 4
"""Largest number of slices; half of it for more than 300 columns."""
ITERATIONS = 3
MOST_SIGNAL = 0.7
"""Largest rank of the signal over the number of columns; beyond it the null space is too small for an estimate."""


@dataclass(frozen=True)
class NullSpace:
    """Noise covariance per real component, complex128 (coil, coil), and the rank of the signal among the columns."""

    covariance: Tensor
    rank: int
    columns: int


def estimate_null_space_covariance(calibration: Tensor) -> NullSpace | None:
    """Return the noise covariance of fully sampled centres of k-space (slice, coil, a, b), or None where the signal
    leaves no null space: too few coils and samples, or an object too large for them.
    """
    coils, sides = calibration.shape[1], calibration.shape[2:]
    kernel = next((k for k in KERNELS if coils * k * k <= COLUMNS and min(sides) >= k + 2), None)
    if kernel is None:
        return None
    size = kernel * kernel
    calibration = _crop(calibration, SLICES if coils * size <= 300 else SLICES // 2)
    G, n = _neighbourhood_covariances(calibration.to(torch.complex128), kernel)
    if n <= coils * size // 4:
        return None
    W = torch.diag(G.diagonal(dim1=1, dim2=2).real.sum(0).reshape(coils, size).mean(1).clamp_min(1e-300).rsqrt())
    W, psi, ranks = W.to(G.dtype), torch.zeros(coils, coils, dtype=G.dtype), [0]
    for _ in range(ITERATIONS):
        white_psi, ranks = fit_covariance([whiten_neighbourhoods(W, one) for one in G], n, coils)
        inverse = torch.linalg.inv(W)
        psi = _make_positive(inverse @ white_psi @ inverse.conj().T)
        L = torch.linalg.cholesky(psi)
        W = torch.linalg.solve_triangular(L, torch.eye(coils, dtype=L.dtype), upper=False)
    if max(ranks) > MOST_SIGNAL * coils * size:
        return None
    return NullSpace(psi / 2, max(ranks), coils * size)


def tighten(covariance: Tensor, bound: Tensor) -> Tensor:
    """Return the covariance with no coil's sd above ``bound`` (coil,); correlations stay."""
    sd = covariance.diagonal().real.sqrt()
    factor = (bound.to(sd.dtype) / sd).clamp_max(1.0)
    return covariance * torch.outer(factor, factor)


def split_signal(eigenvalues: Tensor, rows: int) -> int:
    """Return how many of the ascending ``eigenvalues`` of a sample covariance from ``rows`` rows are signal.

    Those are signal that exceed the largest of white noise, s^2 (1 + sqrt(p / n))^2 (Marchenko & Pastur 1967), where
    s^2 is the mean of the others over (1 - r / n); both are repeated until they agree.
    """
    p = len(eigenvalues)
    present = min(rows, p)
    level, rank = eigenvalues[-present:].median(), -1
    for _ in range(20):
        above = int((eigenvalues > level * (1 + (p / rows) ** 0.5) ** 2).sum())
        if above == rank:
            break
        rank = min(above, present - 1)
        level = eigenvalues[: p - rank].sum() / ((1 - rank / rows) * (p - rank))
    return rank


def _crop(y: Tensor, slices: int) -> Tensor:
    """Return at most ``slices`` slices, spread evenly, and the middle of the block."""
    count = min(len(y), slices)
    y = y[[(2 * i + 1) * len(y) // (2 * count) for i in range(count)]]
    long = 0 if y.shape[-2] >= y.shape[-1] else 1
    for axis in (0, 1):
        n = y.shape[axis - 2]
        side = min(n, SIDES[0 if axis == long else 1])
        y = y.narrow(axis - 2, n // 2 - side // 2, side)
    return y


def _neighbourhood_covariances(y: Tensor, kernel: int) -> tuple[Tensor, int]:
    """Return the mean of r r^H over all neighbourhoods r = (coil, kernel, kernel) of each slice, and their number."""
    patches = y.unfold(2, kernel, 1).unfold(3, kernel, 1)
    rows = patches.permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)
    return rows.mT @ rows.conj() / rows.shape[1], rows.shape[1]


def whiten_neighbourhoods(W: Tensor, G: Tensor) -> Tensor:
    """Return (W (x) I) G (W (x) I)^H."""
    coils = len(W)
    size = len(G) // coils
    left = (W @ G.reshape(coils, -1)).reshape(coils * size, coils, size)
    both: Tensor = torch.einsum("xcp,dc->xdp", left, W.conj()).reshape(coils * size, -1)
    return both


def fit_covariance(Gs: list[Tensor], n: int, coils: int) -> tuple[Tensor, list[int]]:
    """Return the least-squares Psi of P G P = (1 - r / n) P (Psi (x) I) P over all G, and the ranks r.

    The equations are tested with the matrices E_cd (x) I: sum_p (P G P)[c, p, d, p] = sum M[c, d, e, f] Psi[e, f].
    """
    right, M, ranks = torch.zeros(coils, coils, dtype=Gs[0].dtype), None, []
    for G in Gs:
        eigenvalues, V = torch.linalg.eigh(G)
        eigenvalues = eigenvalues.clamp_min(0)
        rank = split_signal(eigenvalues, n)
        ranks.append(rank)
        null = V[:, : len(G) - min(rank, int(MOST_SIGNAL * len(G)))]
        P = (null @ null.conj().T).reshape(coils, -1, coils, len(G) // coils)
        residual = ((null * eigenvalues[: null.shape[1]]) @ null.conj().T).reshape(P.shape)
        right += torch.einsum("cpdp->cd", residual) / (1 - rank / n)
        letters = "cpes,fsdp->cdef" if coils <= MOST_COILS else "cpds,dscp->cd"
        M = torch.einsum(letters, P, P) + (0 if M is None else M)
    assert M is not None
    if coils > MOST_COILS:
        return torch.diag(torch.linalg.solve(M.real, right.diagonal().real)).to(right.dtype), ranks
    psi: Tensor = torch.linalg.solve(M.reshape(coils**2, -1), right.reshape(-1))
    return psi.reshape(coils, coils), ranks


def _make_positive(psi: Tensor) -> Tensor:
    """Return the Hermitian part with eigenvalues of the correlation matrix of at least 0.05."""
    psi = (psi + psi.conj().T) / 2
    sd = psi.diagonal().real.clamp_min(1e-12 * float(psi.diagonal().real.amax())).sqrt()
    values, vectors = torch.linalg.eigh(psi / torch.outer(sd, sd))
    correlation: Tensor = (vectors * values.clamp_min(0.05)) @ vectors.conj().T
    return correlation * torch.outer(sd, sd)
