"""KSpace to a problem ready to solve: refuse bad data, whiten, compress coils, estimate maps, scale."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from model_zoo import classical, coils
from model_zoo.operators import Fourier
from pipelines.contract import KSpace, Refused

__all__ = ["Problem", "check", "prepare"]

CALIBRATION = 24
"""Side of the calibration block used, at most; ESPIRiT needs at least MIN_CALIBRATION."""
MIN_CALIBRATION = 12
PRESCAN = "noise pre-scan"


@dataclass(frozen=True)
class Problem:
    """k-space made ready: white noise of known level, few coils with maps, images with 99th percentile near one.

    ``A``, ``y`` (slice, coil, a, b); ``sigma_y`` (slice,). ``gain`` (slice, a, b) turns images back into the units of
    the samples: the root sum of squares of the coils as they were before whitening. ``noise_sd`` is the mean noise sd
    of a component before whitening; ``maps_from`` and ``noise_from`` say where maps and noise level come from.
    """

    A: Fourier
    y: Tensor
    sigma_y: Tensor
    gain: Tensor
    noise_sd: float
    maps_from: str
    noise_from: str

    @property
    def noise_is_known(self) -> bool:
        return self.noise_from == PRESCAN

    def slices(self, start: int, stop: int) -> Problem:
        part = slice(start, stop)
        A = Fourier(self.A.maps[part], self.A.mask[part])
        return replace(self, A=A, y=self.y[part], sigma_y=self.sigma_y[part], gain=self.gain[part])

    def to(self, device: str) -> Problem:
        """The same on a torch device."""
        y, sigma_y, gain = (t.to(device) for t in (self.y, self.sigma_y, self.gain))
        A = Fourier(self.A.maps.to(device), self.A.mask.to(device))
        return replace(self, A=A, y=y, sigma_y=sigma_y, gain=gain)

    def repeat(self, n: int) -> Problem:
        """Every slice n times."""
        y, sigma_y, gain = (t.repeat_interleave(n, 0) for t in (self.y, self.sigma_y, self.gain))
        return replace(self, A=self.A.repeat(n), y=y, sigma_y=sigma_y, gain=gain)


def check(k: KSpace) -> None:
    """Raise Refused unless the k-space can be reconstructed honestly."""
    if k.samples.ndim != 4 or k.mask.shape != (k.samples.shape[0], *k.samples.shape[2:]):
        raise Refused(f"k-space: samples {k.samples.shape} and sampling mask {k.mask.shape} contradict each other")
    slices, count = k.samples.shape[:2]
    if k.grid.shape[0] != slices:
        raise Refused(f"k-space: {slices} slices acquired, but the image grid has {k.grid.shape[0]}")
    if not np.isfinite(k.samples).all():
        raise Refused("k-space: samples are not all finite numbers (NaN or infinity)")
    empty = np.flatnonzero(~k.mask.any(axis=(1, 2)))
    if empty.size:
        raise Refused(f"k-space: nothing was acquired in slice {empty[0] + 1} of {slices} (empty sampling mask)")
    silent = np.flatnonzero(~np.abs(k.samples).any(axis=(1, 2, 3)))
    if silent.size:
        raise Refused(f"k-space: all samples of slice {silent[0] + 1} of {slices} are zero")
    if k.noise is not None and (k.noise.ndim != 2 or k.noise.shape[0] != count):
        raise Refused(f"k-space: {count} coils, but the noise pre-scan has shape {k.noise.shape}")
    if count > 1 and k.calibration is None:
        raise Refused(f"k-space: {count} coils, but no fully sampled calibration lines about the centre of k-space")
    if min(k.encoded_fov_mm) <= 0 or min(k.grid.spacing_mm) <= 0:
        raise Refused(
            f"k-space: the field of view {k.encoded_fov_mm} mm or the spacing {k.grid.spacing_mm} mm is not positive"
        )
    if count > 1:
        _check_calibration(k)


def _check_calibration(k: KSpace) -> None:
    if min(_sides(k)) < 4:
        raise Refused(f"k-space: only {min(_sides(k))} calibration lines for several coils; at least 4 are needed")
    ranges = zip(k.calibration or (), k.mask.shape[1:], strict=True)
    if any(start < 0 or stop > n for (start, stop), n in ranges):
        raise Refused(f"k-space: calibration lines {k.calibration} lie outside the matrix {k.mask.shape[1:]}")
    (a0, a1), (b0, b1) = _block(k)
    if not k.mask[:, a0:a1, b0:b1].all():
        raise Refused(f"k-space: the calibration block {k.calibration} was not fully sampled")


def prepare(k: KSpace, *, coil_energy: float = 0.99) -> Problem:
    """Whiten, compress to ``coil_energy`` of the calibration block's energy, estimate maps, scale.

    Scale: the prior expects a 99th percentile of magnitude of one. That of the zero-filled image is biased by aliasing
    and noise, so it is taken from a regularised CG-SENSE image.
    """
    y, mask = torch.from_numpy(k.samples), torch.from_numpy(k.mask)
    W, noise_sd, noise_from = _whitening(k, y, mask)
    y = coils.mix(W, y)
    if y.shape[1] > 1:
        M = coils.compression(_centre(k, y), energy=coil_energy)
        y, W = coils.mix(M, y), M @ W
    maps, maps_from = _maps(k, y)
    A = Fourier(maps, mask)
    level = _level(A, y)
    gain = level[:, None, None] * _unwhitened_rss(W, maps)
    return Problem(A, y / level[:, None, None, None], 1 / level, gain, noise_sd, maps_from, noise_from)


def _unwhitened_rss(W: Tensor, maps: Tensor) -> Tensor:
    """sqrt(sum_c |(W^+ S)_c|^2): what normalising the maps has divided by, in the coils as they were received.

    Whitening with correlated noise changes the sum of squares from place to place, which would shade the image.
    """
    return coils.mix(torch.linalg.pinv(W), maps).abs().pow(2).sum(dim=1).sqrt()


def _whitening(k: KSpace, y: Tensor, mask: Tensor) -> tuple[Tensor, float, str]:
    """Matrix to noise with unit sd per component, the mean noise sd that it divides by, and what it comes from."""
    if k.noise is not None and k.noise.shape[1] >= 8 * k.noise.shape[0]:
        covariance = coils.noise_covariance(torch.from_numpy(k.noise))
        source = PRESCAN
    else:
        covariance = torch.diag(coils.noise_level(y, mask).to(torch.complex128) ** 2)
        source = "outer k-space and edges of the field of view"
    physical = float(covariance.diagonal().real.mean().sqrt())
    if not physical > 1e-12 * float(np.abs(k.samples).max()):
        raise Refused("k-space: no noise found in the data and no noise pre-scan sent; its level must be known")
    return coils.whitening(covariance), physical, source


def _sides(k: KSpace) -> tuple[int, int]:
    if k.calibration is None:
        return 0, 0
    (a0, a1), (b0, b1) = k.calibration
    return min(a1 - a0, CALIBRATION), min(b1 - b0, CALIBRATION)


def _block(k: KSpace) -> tuple[tuple[int, int], tuple[int, int]]:
    """The part of the calibration block that is used: centred, at most CALIBRATION on a side."""
    found = []
    for n, side, (start, stop) in zip(k.samples.shape[2:], _sides(k), k.calibration or (), strict=True):
        first = min(max(n // 2 - side // 2, start), stop - side)
        found.append((first, first + side))
    return found[0], found[1]


def _centre(k: KSpace, y: Tensor) -> Tensor:
    (a0, a1), (b0, b1) = _block(k)
    return y[..., a0:a1, b0:b1]


def _maps(k: KSpace, y: Tensor) -> tuple[Tensor, str]:
    shape = (y.shape[2], y.shape[3])
    if y.shape[1] == 1:
        return torch.ones(len(y), 1, *shape, dtype=torch.complex64), "one coil"
    block, calibration = _block(k), _centre(k, y)
    if min(_sides(k)) >= MIN_CALIBRATION:
        return torch.stack([coils.espirit(c, shape) for c in calibration]), "ESPIRiT"
    return torch.stack([coils.low_pass_maps(c, shape, block) for c in calibration]), "low-pass calibration images"


def _level(A: Fourier, y: Tensor) -> Tensor:
    """99th percentile of |x| per slice, from a regularised CG-SENSE image; at least a fifth of the largest slice's."""
    x = classical.cg_sense(A, y, ridge=0.05, iterations=8)
    level = torch.quantile(x.abs().flatten(1), 0.99, dim=1)
    return level.clamp_min(0.2 * float(level.max()))
