"""Preparation of k-space as a reconstruction problem: refuse bad data, whiten, compress coils, estimate maps, scale."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model_zoo import classical, coils, noise
from model_zoo.operators import Fourier, magnitude, per_element
from pipelines.coil_maps import (
    ESPIRIT,
    CoilModel,
    calibration_sides,
    crop_to_calibration,
    find_block,
    make_coil_model,
    measure_unexplained,
)
from pipelines.contract import KSpace, Refused

__all__ = [
    "Problem",
    "check_acquisition",
    "check_kspace",
    "estimate_noise",
    "find_noise",
    "find_separate",
    "find_signal_level",
    "prepare_acquisition",
    "prepare_image",
]

PRESCAN = "noise pre-scan"
SEPARATE = "none, each coil by itself"
COIL_LOSS = 1e-3
FINEST = 1e-3
"""Least noise over the image's 99th percentile.

Errors of the coils' maps and of single precision exceed any smaller noise, and a solver aiming at it would diverge."""
_ROUNDING = 2.0**-24
"""Share of the largest sample below which noise cannot be distinguished from the rounding of single precision."""
_MAGNITUDES = (1e-15, 1e15)
"""Range of the largest sample: its square stays within single precision."""
_INDEPENDENT = 1e-5
"""Least value of the smallest eigenvalue of the correlation of the coils' noise."""
_LOUDEST = 2.0
_QUIETEST = 1 / 3
"""Limits of the pre-scan's noise over the noise found in the image, any coil. Signal can only raise the latter, so the
lower limit is wider, and holds only where the noise was found beside the signal."""
_NULL_SPACE = "the null space of the calibration data"
_OUTSIDE = "outer k-space and edges of the field of view"


@dataclass(frozen=True)
class Problem:
    """Prepared k-space: white noise of known level, few coils with maps, images with a 99th percentile near one.

    ``A``, ``y`` (slice, coil, a, b); ``sigma_y`` (slice,). ``gain`` (slice, a, b), or (slice, set, set, a, b), turns
    images into the units of the samples (:meth:`in_units`). ``noise_sd`` is the mean noise sd of a component before
    whitening; ``maps_from`` and ``noise_from`` say where maps and noise level come from. ``coil_loss``: largest share
    of the local energy that the compression of the coils loses; ``folded_share``: largest share of the object, in any
    slice, in which two places fold into one; ``unexplained_share``: largest share of the local energy of the coils that
    the maps do not explain. The last two are None where they were not measured: on maps not by ESPIRiT, the share that
    folds on images with the maps of another, the other on images without calibration lines.
    ``separate_coils``: 1 with maps; without maps the number of coils of a slice, which are batch elements of their own.
    """

    A: Fourier
    y: Tensor
    sigma_y: Tensor
    gain: Tensor
    noise_sd: float
    maps_from: str
    noise_from: str
    coil_loss: float = 0.0
    folded_share: float | None = None
    unexplained_share: float | None = None
    separate_coils: int = 1

    @property
    def slice_count(self) -> int:
        return len(self.y) // self.separate_coils

    @property
    def images_per_slice(self) -> int:
        """Number of images that the denoiser sees of a slice: sets of maps, or coils without maps."""
        return self.A.sets * self.separate_coils

    def one_slice(self, i: int) -> Problem:
        """Return the problem of slice ``i``, with all its coils."""
        return self.slices(i * self.separate_coils, (i + 1) * self.separate_coils)

    @property
    def noise_is_known(self) -> bool:
        return self.noise_from == PRESCAN

    def in_units(self, x: Tensor) -> Tensor:
        """Return images (slice, [set,] a, b) in the units of the samples.

        Their magnitude is the root sum of squares of the coils' images as received, as if k-space were complete. Where
        places fold into one, it is thus that of the wrapped image that a scanner shows.
        """
        return torch.einsum("smnab,snab->smab", self.gain.to(x.dtype), x) if self.A.sets > 1 else self.gain * x

    def slices(self, start: int, stop: int) -> Problem:
        """Return the problem of a part of the batch elements."""
        part = slice(start, stop)
        return replace(self, A=self.A.select(part), y=self.y[part], sigma_y=self.sigma_y[part], gain=self.gain[part])

    def select(self, indices: Sequence[int]) -> Problem:
        """Return the problem of the batch elements at ``indices``."""
        one_by_one = [self.slices(i, i + 1) for i in indices]
        A = Fourier(torch.cat([p.A.maps for p in one_by_one]), torch.cat([p.A.mask for p in one_by_one]))
        y, sigma_y, gain = (torch.cat([getattr(p, name) for p in one_by_one]) for name in ("y", "sigma_y", "gain"))
        return replace(self, A=A, y=y, sigma_y=sigma_y, gain=gain)

    def to(self, device: str) -> Problem:
        """Return the problem on a torch device."""
        y, sigma_y, gain = (t.to(device) for t in (self.y, self.sigma_y, self.gain))
        A = Fourier(self.A.maps.to(device), self.A.mask.to(device))
        return replace(self, A=A, y=y, sigma_y=sigma_y, gain=gain)

    def repeat(self, n: int) -> Problem:
        """Return the problem with every batch element repeated n times."""
        y, sigma_y, gain = (t.repeat_interleave(n, 0) for t in (self.y, self.sigma_y, self.gain))
        return replace(self, A=self.A.repeat(n), y=y, sigma_y=sigma_y, gain=gain)


def check_acquisition(images: Sequence[KSpace], coils: str = "maps") -> None:
    """Raise Refused unless every image of the acquisition can be reconstructed honestly.

    One without calibration lines may use the maps of another on the same grid. ``coils``: the option of the route.
    """
    for k in images:
        _check_sizes(k)
    map_source = _choose_map_source(images)
    for k, separate in zip(images, find_separate(images, coils), strict=True):
        if separate:
            check_kspace(k, separate=True)
            continue
        borrows = k is not map_source and map_source.calibration is not None and _share_coil_maps(k, map_source)
        check_kspace(replace(k, calibration=map_source.calibration) if borrows else k, borrows=borrows)


def find_separate(images: Sequence[KSpace], coils: str) -> list[bool]:
    """Return for each image whether its coils are reconstructed by themselves; never so for one coil.

    ``coils``: "maps", "without maps", or "auto": without maps where neither the image nor another on its grid has
    calibration lines.
    """
    source = _choose_map_source(images)
    lacks = [k.calibration is None and not (source.calibration and _share_coil_maps(k, source)) for k in images]
    chosen = {"maps": [False] * len(images), "without maps": [True] * len(images), "auto": lacks}[coils]
    return [separate and k.samples.shape[1] > 1 for k, separate in zip(images, chosen, strict=True)]


def check_kspace(k: KSpace, *, borrows: bool = False, separate: bool = False) -> None:
    """Raise Refused unless the k-space can be reconstructed honestly.

    ``borrows``: with the maps of another image; ``separate``: without maps, each coil by itself.
    """
    _check_sizes(k)
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
    _check_coils(k)
    if count > 1 and k.calibration is None and not separate:
        raise Refused(
            f"k-space: {count} coils, but no fully sampled calibration lines about the centre of k-space; the option "
            'coils = "auto" reconstructs each coil by itself, which is worse, and holds the result for a person'
        )
    if min(k.encoded_fov_mm) <= 0 or min(k.grid.spacing_mm) <= 0:
        raise Refused(
            f"k-space: the field of view {k.encoded_fov_mm} mm or the spacing {k.grid.spacing_mm} mm is not positive"
        )
    if count > 1 and not borrows and not separate:
        _check_calibration(k)


def _check_sizes(k: KSpace) -> None:
    if k.samples.ndim != 4 or k.mask.shape != (k.samples.shape[0], *k.samples.shape[2:]):
        raise Refused(f"k-space: samples {k.samples.shape} and sampling mask {k.mask.shape} contradict each other")
    ranges = zip(k.calibration or (), k.mask.shape[1:], strict=False)
    if any(not 0 <= start < stop <= n for (start, stop), n in ranges):
        raise Refused(f"k-space: calibration lines {k.calibration} are none, or outside the matrix {k.mask.shape[1:]}")


def _check_coils(k: KSpace) -> None:
    """Raise Refused unless each coil, and its noise scan, received a signal of its own that float32 can square."""
    largest = np.abs(k.samples).max(axis=(0, 2, 3))
    for coil in np.flatnonzero(largest == 0):
        raise Refused(f"k-space: coil {coil + 1} of {len(largest)} received nothing: all its samples are zero")
    low, high = _MAGNITUDES
    if not low <= largest.max() <= high:
        raise Refused(f"k-space: the largest sample is {largest.max():.3g}; {low:g} to {high:g} can be reconstructed")
    _check_copies(k.samples)
    if k.noise is not None:
        _check_noise(k, k.noise)


def _check_copies(samples: NDArray[np.complex64]) -> None:
    for coil in range(1, samples.shape[1]):
        for other in range(coil):
            if np.array_equal(samples[:, coil], samples[:, other]):
                raise Refused(f"k-space: coils {other + 1} and {coil + 1} hold the same samples")


def _check_noise(k: KSpace, prescan: NDArray[np.complex64]) -> None:
    count = k.samples.shape[1]
    if prescan.ndim != 2 or prescan.shape[0] != count:
        raise Refused(f"k-space: {count} coils, but the noise pre-scan has shape {prescan.shape}")
    if not _has_noise_covariance(k):
        return
    scaled = torch.from_numpy(prescan).to(torch.complex128)
    sd = scaled.abs().pow(2).mean(dim=1).sqrt()
    if not torch.isfinite(sd).all() or not bool((sd > 0).all()):
        raise Refused("k-space: the noise pre-scan of a coil holds only zeros, or numbers that are not finite")
    correlation = coils.noise_covariance(scaled / sd[:, None])
    if float(torch.linalg.eigvalsh(2 * correlation)[0]) < _INDEPENDENT:
        raise Refused("k-space: the coils' noise in the pre-scan is not independent: one coil repeats others")
    _check_loudness(k, sd / 2**0.5)


def _check_loudness(k: KSpace, sd: Tensor) -> None:
    """Raise Refused where the pre-scan's noise contradicts that in the image: a wrong level spoils more than none."""
    found, source = find_noise(k)
    ratio = sd / found.diagonal().real.sqrt().clamp_min(1e-30)
    loudest, quietest = float(ratio.max()), float(ratio.min())
    advice = "its scale or bandwidth is not that of the image; without it the noise is found in the image"
    if loudest > _LOUDEST:
        raise Refused(
            f"k-space: the noise pre-scan contradicts the data: in coil {int(ratio.argmax()) + 1} it is {loudest:.1f} "
            f"times louder than the noise of the image can be ({source}): {advice}"
        )
    if quietest < _QUIETEST and source == _NULL_SPACE:
        raise Refused(
            f"k-space: the noise pre-scan contradicts the data: in coil {int(ratio.argmin()) + 1} the noise of the "
            f"image is {1 / quietest:.1f} times louder ({source}): {advice}"
        )


def _has_noise_covariance(k: KSpace) -> bool:
    """Return whether the noise pre-scan is long enough for a covariance."""
    return k.noise is not None and k.noise.shape[1] >= 8 * k.noise.shape[0]


def _check_calibration(k: KSpace) -> None:
    if min(calibration_sides(k)) < 4:
        raise Refused(
            f"k-space: only {min(calibration_sides(k))} calibration lines for several coils; at least 4 are needed"
        )
    (a0, a1), (b0, b1) = find_block(k)
    if not k.mask[:, a0:a1, b0:b1].all():
        raise Refused(f"k-space: the calibration block {k.calibration} was not fully sampled")


def prepare_image(k: KSpace, *, coil_loss: float = COIL_LOSS) -> Problem:
    """Whiten, compress at a loss of at most ``coil_loss`` of the local energy anywhere, estimate maps, scale.

    Scale: the prior expects a 99th percentile of magnitude of one. That of the zero-filled image is biased by aliasing
    and noise, so it is taken from a regularised CG-SENSE image.
    """
    return prepare_acquisition([k], coil_loss=coil_loss)[0]


def prepare_acquisition(images: Sequence[KSpace], *, coil_loss: float = COIL_LOSS) -> list[Problem]:
    """:func:`prepare_image` for the images (contrasts, sets) of one acquisition, with the maps of one of them.

    The coils see the same object from the same places whatever the contrast: maps come from the image with the most
    signal in its calibration block, and serve all that share its grid.
    """
    map_source = _choose_map_source(images)
    found = {id(k): estimate_noise(k) for k in images}
    shared = make_coil_model(map_source, coil_loss, found[id(map_source)][0])
    models = [
        shared if _share_coil_maps(k, map_source) else make_coil_model(k, coil_loss, found[id(k)][0]) for k in images
    ]
    problems = [_make_problem(k, model, *found[id(k)]) for k, model in zip(images, models, strict=True)]
    return [
        replace(p, folded_share=None) if model is shared and k is not map_source else p
        for k, model, p in zip(images, models, problems, strict=True)
    ]


def _choose_map_source(images: Sequence[KSpace]) -> KSpace:
    return max(images, key=_calibration_energy)


def _calibration_energy(k: KSpace) -> float:
    if k.calibration is None:
        return 0.0
    return float((np.abs(crop_to_calibration(k, k.samples)).astype(np.float64) ** 2).sum())


def _share_coil_maps(k: KSpace, other: KSpace) -> bool:
    """Return whether two images share coil maps: the same coils over the same slices and field of view."""
    same_samples = k.samples.shape == other.samples.shape
    return same_samples and k.encoded_fov_mm == other.encoded_fov_mm and k.grid.matches(other.grid)


def _make_problem(k: KSpace, coil_model: CoilModel, covariance: Tensor, noise_from: str) -> Problem:
    """Return the problem of one image.

    Whitened by another image's noise, this image's noise is still white; its level follows its bandwidth and averages.
    """
    W, maps = coil_model.W, coil_model.maps
    sigma = float((W @ covariance @ W.conj().T).diagonal().real.mean().sqrt())
    A, y = Fourier(maps, torch.from_numpy(k.mask)), coils.combine_coils(W, torch.from_numpy(k.samples))
    measures = coil_model.maps_from == ESPIRIT
    unexplained = measure_unexplained(k, y, maps, sigma) if measures else None
    level = find_signal_level(A, y)
    if not float(level.max()) > 0:
        raise Refused("k-space: no slice holds a signal that exceeds the noise")
    gain = coil_model.gain()
    physical = float(covariance.diagonal().real.mean().sqrt())
    return Problem(
        A,
        y / level[:, None, None, None],
        (sigma / level).clamp_min(FINEST),
        per_element(level, gain) * gain,
        physical,
        coil_model.maps_from,
        noise_from,
        coil_model.loss,
        coil_model.folded_share,
        unexplained,
    )


def estimate_noise(k: KSpace) -> tuple[Tensor, str]:
    """Return the covariance of the noise per real component, complex128 (coil, coil), and its source."""
    if k.noise is not None and _has_noise_covariance(k):
        return coils.noise_covariance(torch.from_numpy(k.noise)), PRESCAN
    return find_noise(k)


def find_noise(k: KSpace) -> tuple[Tensor, str]:
    """Return the covariance of the noise, estimated from the image's own samples, and the source of the estimate.

    The null space gives the best estimate, with correlations. Signal may raise it, so the other estimates bound it.
    """
    y, mask = torch.from_numpy(k.samples), torch.from_numpy(k.mask)
    least = _ROUNDING * float(np.abs(k.samples).max())
    block = _widest_block(k)
    found = None if block is None else noise.estimate_null_space_covariance(y[..., block[0], block[1]])
    if found is None:
        level = coils.estimate_noise_level(y, mask).clamp_min(least)
        return torch.diag(level.to(torch.complex128) ** 2), _OUTSIDE
    tight = noise.tighten(found.covariance, coils.bound_noise_level(y, mask))
    return tight + least**2 * torch.eye(len(tight)), _NULL_SPACE


def _widest_block(k: KSpace) -> tuple[slice, slice] | None:
    """Return the calibration block where it is fully sampled in every slice and inside the matrix."""
    if k.calibration is None or k.samples.shape[1] < 2:
        return None
    block = tuple(slice(max(start, 0), stop) for start, stop in k.calibration)
    part = k.mask[:, block[0], block[1]]
    return (block[0], block[1]) if part.size and part.all() else None


def find_signal_level(A: Fourier, y: Tensor) -> Tensor:
    """Return the 99th percentile of |x| per slice of a regularised CG-SENSE image, at least a fifth of the largest."""
    x = classical.cg_sense(A, y, ridge=0.05, iterations=8)
    level = torch.quantile(magnitude(x).flatten(1), 0.99, dim=1)
    return level.clamp_min(0.2 * float(level.max()))
