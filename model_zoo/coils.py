"""Receive coils: noise whitening, noise level, compression and sensitivity maps, all from the acquired data alone.

k-space is complex64 (slice, coil, a, b), zero where nothing was acquired. A noise standard deviation ``sigma`` is
that of the real and of the imaginary part, each; the variance of a complex sample is therefore 2 sigma^2.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from model_zoo.noise import split_signal
from model_zoo.operators import centred_ifft

__all__ = [
    "CROP",
    "Block",
    "Espirit",
    "bound_noise_level",
    "combine_coils",
    "compression_loss",
    "compression_matrix",
    "estimate_espirit_maps",
    "estimate_espirit_sets",
    "estimate_low_pass_maps",
    "estimate_noise_level",
    "find_object",
    "low_pass_variance",
    "make_low_pass_images",
    "measure_unexplained",
    "noise_covariance",
    "whitening_matrix",
]

CROP = 0.95
"""Smallest ESPIRiT eigenvalue within the object; noise lowers it from one."""
LEAST_SIGNAL = 0.002
"""Smallest singular value of signal over the largest, where no noise is seen."""

Block = tuple[tuple[int, int], tuple[int, int]]


def combine_coils(matrix: Tensor, y: Tensor) -> Tensor:
    """Combine the coils of ``y`` (..., coil, a, b) linearly by ``matrix`` (virtual, coil)."""
    return torch.einsum("vc,...cab->...vab", matrix.to(y.dtype), y)


def noise_covariance(noise: Tensor) -> Tensor:
    """Return Psi = N N^H / (2 n) of noise samples (coil, n): covariance per real component, complex128 (coil, coil)."""
    N = noise.to(torch.complex128)
    return N @ N.conj().T / (2 * N.shape[1])


def whitening_matrix(covariance: Tensor) -> Tensor:
    """Return W = L^-1 with Psi = L L^H: W n has unit variance per real component, coils independent (Roemer 1990)."""
    L = torch.linalg.cholesky(covariance)
    W: Tensor = torch.linalg.solve_triangular(L, torch.eye(len(L), dtype=L.dtype), upper=False)
    return W


def estimate_noise_level(y: Tensor, mask: Tensor) -> Tensor:
    """Estimate the noise sd per coil from the data, where no noise pre-scan was sent; real (coil,).

    There are two estimates, each of which signal can only raise; the smaller of the two counts, per coil:
    the outermost twentieth of the acquired samples in k-space, by the median of |y|^2 (= 2 sigma^2 ln 2 for noise),
    and, where lines are fully sampled along one axis, the power at the edges of the field of view along that axis,
    which lie outside a small head. Samples that a vendor's filter has set to (almost) zero are no measurement of noise
    and are left out.
    """
    return torch.minimum(_outer_level(y, mask)[0], _edge_level(y, mask)[0])


def bound_noise_level(y: Tensor, mask: Tensor) -> Tensor:
    """Return what the noise sd per coil is at most: each estimate of :func:`estimate_noise_level` two standard errors
    higher; real (coil,).
    """
    return torch.minimum(*(level * (1 + 2 * error) for level, error in (_outer_level(y, mask), _edge_level(y, mask))))


def _outer_level(y: Tensor, mask: Tensor) -> tuple[Tensor, float]:
    """Return the level and its relative standard error, 1 / (2 ln 2 sqrt(n)) for the root of a median of n."""
    na, nb = mask.shape[-2:]
    a = (torch.arange(na) - na // 2) / (na / 2)
    b = (torch.arange(nb) - nb // 2) / (nb / 2)
    radius = torch.hypot(a[:, None], b[None, :]).expand(mask.shape)
    power = y.abs().pow(2).transpose(0, 1)
    alive = mask & (power.sum(0) > 1e-12 * power.sum(0).amax())
    cut = torch.quantile(radius[alive][:: max(int(alive.sum()) // 1_000_000, 1)], 0.95)
    outer = alive & (radius >= cut)
    level = torch.sqrt(power[:, outer].median(dim=1).values / (2 * torch.log(torch.tensor(2.0))))
    return level, 1 / (2 * math.log(2) * math.sqrt(int(outer.sum())))


def _edge_level(y: Tensor, mask: Tensor) -> tuple[Tensor, float]:
    """Return the level and its relative standard error, 1 / (2 sqrt(n)) for the root of a mean of n powers."""
    best, error = torch.full((y.shape[1],), torch.inf), 0.0
    for axis in (-2, -1):
        lines = mask.any(dim=axis, keepdim=True)
        if not bool((mask == lines).all()):
            continue
        hybrid = centred_ifft(y, axes=(axis,)).transpose(axis, -1)
        width = max(hybrid.shape[-1] // 16, 1)
        power = hybrid.abs().pow(2).sum(dim=(0, 2))
        count = 2 * width * int(lines.sum())
        error = max(error, 1 / math.sqrt(2 * count))
        for edge in (power[:, :width], power[:, -width:]):
            best = torch.minimum(best, torch.sqrt(edge.sum(dim=1) / count))
    return best, error


def compression_matrix(calibration: Tensor, *, loss: float = 1e-3) -> Tensor:
    """Return the fewest orthonormal combinations of coils that lose at most ``loss`` of the signal anywhere.

    ``calibration``: centres of k-space (slice, coil, a, b), whitened: noise of unit variance per real component. The
    combinations (virtual, coil) are the principal components of the coil covariance (Huang 2008). A unitary transform
    keeps white noise white. The first one sees the whole object, which makes it the phase reference of the maps.
    :func:`compression_loss` measures the loss.
    """
    samples = calibration.transpose(0, 1).flatten(1).to(torch.complex128)
    _, vectors = torch.linalg.eigh(samples @ samples.conj().T)
    M: Tensor = vectors.flip(1).conj().T
    count = next((n for n in range(1, len(M)) if compression_loss(M[:n], calibration) <= loss), len(M))
    return M[:count]


def compression_loss(matrix: Tensor, calibration: Tensor) -> float:
    """Return the largest share of the local energy, beyond noise, that combining coils by ``matrix`` loses.

    In the Hann-windowed image of the calibration data, E(r) = sum_c |I_c(r)|^2 and the energy of the combinations is
    subtracted from it. m = C - V dimensions of white noise of variance w leave m w, with an sd of sqrt(m) w; what
    exceeds m w by three of them is a loss. The largest share is taken where sqrt(E) is above a tenth of its 99th
    percentile.
    """
    window = _hann_window(calibration.shape[-2:])
    images = centred_ifft(calibration * window)
    energy = images.abs().pow(2).sum(dim=1)
    lost = energy - combine_coils(matrix, images).abs().pow(2).sum(dim=1)
    m, w = matrix.shape[1] - matrix.shape[0], 2 * float(window.pow(2).mean())
    inside = energy.sqrt() > 0.1 * torch.quantile(energy.sqrt(), 0.99)
    beyond = (lost - m * w - 3 * m**0.5 * w).clamp_min(0.0)
    return float((beyond / energy.clamp_min(torch.finfo(energy.dtype).tiny))[inside].max())


@dataclass(frozen=True)
class Espirit:
    """Sensitivity maps of one slice, complex64 (set, coil, a, b), and the eigenvalues (set, a, b) in descending order.

    The sets are orthogonal over the coils in every voxel. A map is zero where its eigenvalue is below the limit.
    """

    maps: Tensor
    values: Tensor


def estimate_espirit_maps(
    calibration: Tensor, shape: tuple[int, int], *, kernel: int = 6, threshold: float | None = 0.02, crop: float = CROP
) -> Tensor:
    """Return the first set of :func:`estimate_espirit_sets`; complex64 (coil, *shape)."""
    return estimate_espirit_sets(calibration, shape, kernel=kernel, threshold=threshold, crop=crop).maps[0]


def estimate_espirit_sets(
    calibration: Tensor,
    shape: tuple[int, int],
    *,
    kernel: int = 6,
    count: int = 2,
    threshold: float | None = None,
    crop: float = CROP,
) -> Espirit:
    """Estimate ``count`` sets of sensitivity maps of one slice by ESPIRiT (Uecker 2014).

    ``calibration``: the fully sampled centre of k-space (coil, ca, cb), as acquired. The rows of its block-Hankel
    matrix span the space of all ``kernel`` x ``kernel`` neighbourhoods; V, the right singular vectors above
    ``threshold`` times the largest singular value (None: above white noise, at least LEAST_SIGNAL), project onto it.
    In image space that projection is a Hermitian matrix G(r) in each voxel, whose eigenvectors with eigenvalue one are
    vectors of sensitivities: one, or as many as places fold into the voxel. Voxels below ``crop`` are set to zero.
    sum_c |S_c|^2 = 1 elsewhere; the phase is relative to the first coil.
    """
    V = _kernels(calibration, kernel, threshold)
    correlation = _autocorrelation(V, kernel)
    maps = torch.empty((count, calibration.shape[0], *shape), dtype=torch.complex64)
    values = torch.empty((count, *shape))
    column = _exponentials(shape[1], kernel)
    for start in range(0, shape[0], 16):
        rows = slice(start, start + 16)
        row = _exponentials(shape[0], kernel)[rows]
        G = torch.einsum("cdpq,ap,bq->abcd", correlation, row, column) / kernel**2
        for n in range(count):
            value, vector = _dominant_eigenpair(G)
            G = _deflate(G, vector)
            phased = vector * (vector[..., :1].conj() / vector[..., :1].abs().clamp_min(1e-12))
            maps[n, :, rows] = torch.where(value[..., None] > crop, phased, 0.0).movedim(-1, 0)
            values[n, rows] = value
    return Espirit(maps, values)


def _kernels(calibration: Tensor, kernel: int, threshold: float | None) -> Tensor:
    """Return the leading right singular vectors of the block-Hankel matrix, (coil, kernel, kernel, vector)."""
    coils = calibration.shape[0]
    patches = calibration.to(torch.complex128).unfold(1, kernel, 1).unfold(2, kernel, 1)
    rows = patches.permute(1, 2, 0, 3, 4).reshape(-1, coils * kernel * kernel)
    values, vectors = torch.linalg.eigh(rows.T @ rows.conj())
    is_signal = values > (threshold or LEAST_SIGNAL) ** 2 * values[-1]
    if threshold is None:
        rank = max(split_signal(values.clamp_min(0), len(rows)), 1)  # a slice of noise only has one vector, too
        is_signal &= torch.arange(len(values)) >= len(values) - rank
    V: Tensor = vectors[:, is_signal].reshape(coils, kernel, kernel, -1)
    return V


def _autocorrelation(V: Tensor, kernel: int) -> Tensor:
    """Sum v_c(p) conj(v_d(q)) over kernels, collected by lag p - q: (coil, coil, 2 kernel - 1, 2 kernel - 1)."""
    size = 2 * kernel - 1
    spectrum = torch.fft.fft2(V, s=(size, size), dim=(1, 2))
    power = torch.einsum("cpqk,dpqk->cdpq", spectrum, spectrum.conj())
    lags: Tensor = torch.fft.fftshift(torch.fft.ifft2(power), dim=(-2, -1)).to(torch.complex64)
    return lags


def _exponentials(n: int, kernel: int) -> Tensor:
    lag = torch.arange(-(kernel - 1), kernel)
    r = torch.arange(n) - n // 2
    return torch.exp(2j * torch.pi * r[:, None] * lag[None, :] / n).to(torch.complex64)


def _deflate(G: Tensor, v: Tensor) -> Tensor:
    """Return (I - v v^H) G (I - v v^H) of Hermitian G (..., n, n) and unit vectors v (..., n)."""
    P = torch.eye(v.shape[-1]) - v[..., :, None] * v[..., None, :].conj()
    return P @ G @ P


def _dominant_eigenpair(G: Tensor) -> tuple[Tensor, Tensor]:
    """Return the largest eigenvalue and its eigenvector of Hermitian matrices (..., n, n) without negative eigenvalues.

    Five power iterations with G^8 and one with G: as exact as 41 with G, and three squarings cost less than 36 more
    products with a vector. The trace keeps G^8 within single precision.
    """
    power = G / G.diagonal(dim1=-2, dim2=-1).real.sum(dim=-1)[..., None, None].clamp_min(1e-20)
    for _ in range(3):
        power = power @ power
    _, v = _normalise(G.sum(dim=-1))
    for _ in range(5):
        _, v = _normalise((power @ v[..., None])[..., 0])
    return _normalise((G @ v[..., None])[..., 0])


def _normalise(v: Tensor) -> tuple[Tensor, Tensor]:
    """Return the length of complex vectors (..., n), and the vectors over it."""
    length = (v.real.square() + v.imag.square()).sum(dim=-1).sqrt()
    return length, v / length[..., None].clamp_min(1e-20)


def estimate_low_pass_maps(calibration: Tensor, shape: tuple[int, int], block: Block) -> Tensor:
    """Estimate maps from Hann-windowed calibration lines: coil image over root sum of squares; complex64.

    The result is (coil, *shape). The maps serve calibration blocks too small for ESPIRiT. They follow the object's own
    low-frequency content, so they are biased where the object is dark; the caller reports their use.
    """
    images = make_low_pass_images(calibration, shape, block)
    rss = images.abs().pow(2).sum(0).sqrt()
    maps = images / rss.clamp_min(1e-12)
    maps = maps * (maps[:1].conj() / maps[:1].abs().clamp_min(1e-12))
    return torch.where(rss > 0.05 * rss.amax(), maps, 0.0)


def find_object(images: Tensor) -> Tensor:
    """Return where the root sum of squares of coil images (..., coil, a, b) is above a tenth of its 99th percentile."""
    rss = images.abs().pow(2).sum(-3).sqrt()
    level: Tensor = torch.quantile(rss.flatten(-2), 0.99, dim=-1)
    return rss > 0.1 * level[..., None, None]


def measure_unexplained(maps: Tensor, images: Tensor, variance: float) -> Tensor:
    """Return the 99th percentile, in the object, of the share of the coils' energy that the maps do not explain; real
    (slice,).

    ``maps``: (slice, [set,] coil, a, b). ``images``: coil images of low resolution (slice, coil, a, b), with white
    noise of ``variance`` w. In each voxel a reconstruction can only give vectors of coils that the maps span; the rest
    is lost. C coils and M sets leave noise of mean (C - M) w and sd sqrt(C - M) w in it; what exceeds the mean by five
    of them counts.
    """
    S = maps[:, None] if maps.ndim == 4 else maps
    x = (S.conj() * images[:, None]).sum(dim=2)
    rest = images - (S * x[:, :, None]).sum(dim=1)
    energy, lost = (each.abs().pow(2).sum(dim=1) for each in (images, rest))
    m = S.shape[2] - S.shape[1]
    beyond = (lost - (m + 5 * max(m, 0) ** 0.5) * variance).clamp_min(0.0)
    share, inside = beyond / energy.clamp_min(torch.finfo(energy.dtype).tiny), find_object(images)
    return torch.stack([torch.quantile(one[here], 0.99) for one, here in zip(share, inside, strict=True)])


def make_low_pass_images(calibration: Tensor, shape: tuple[int, int], block: Block) -> Tensor:
    """Return the images of Hann-windowed calibration data (..., coil, ca, cb); complex64 (..., coil, *shape)."""
    (a0, a1), (b0, b1) = block
    y = torch.zeros((*calibration.shape[:-2], *shape), dtype=torch.complex64)
    y[..., a0:a1, b0:b1] = calibration * _hann_window(calibration.shape[-2:])
    return centred_ifft(y)


def low_pass_variance(shape: tuple[int, int], block: Block) -> float:
    """Return the variance of :func:`make_low_pass_images` for white noise of unit variance per real component."""
    sides = [stop - start for start, stop in block]
    return 2 * float(_hann_window(sides).pow(2).sum()) / (shape[0] * shape[1])


def _hann_window(sides: Sequence[int]) -> Tensor:
    return torch.outer(*(torch.hann_window(n + 2)[1:-1] for n in sides))
