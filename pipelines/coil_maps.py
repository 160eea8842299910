"""Coils as a reconstruction uses them: whitened, compressed, with one set of sensitivity maps or two.

Where the object is larger than the field of view, two places fold into one voxel, each with its own sensitivities. Two
sets of maps then explain the data (soft SENSE, Uecker 2014), with an image each.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from scipy.ndimage import median_filter
from torch import Tensor

from model_zoo import coils
from pipelines.contract import KSpace, Refused

__all__ = [
    "CoilModel",
    "absorb_ramp",
    "calibration_sides",
    "crop_to_calibration",
    "find_block",
    "find_peak",
    "make_coil_model",
    "measure_unexplained",
]

CALIBRATION = 24
"""Largest side of the calibration block used; ESPIRiT needs at least MIN_CALIBRATION."""
MIN_CALIBRATION = 12
ESPIRIT, LOW_PASS = "ESPIRiT", "low-pass calibration images"
SETS = 2
LEAST_FOLDED = 0.002
"""Share of the object with a second set of sensitivities from which on two sets are used."""
MOST_UNEXPLAINED = 0.5
"""Largest share of the local energy of the coils outside the maps that is reconstructed.

In simulation it is 0.01 to 0.04 where at most two places fold into a voxel. Where three do, it is 0.6 to 0.9 for
calibration blocks of 24 x 24; for smaller ones, from 0.03 on, with a chi-square above 4. The output gate holds more
than 0.1."""


@dataclass(frozen=True)
class CoilModel:
    """Coils as they are used: ``W`` (virtual, coil) whitens and compresses, ``maps`` (slice, [set,] virtual, a, b).

    ``U`` (coil, virtual) turns virtual coils back into the coils as received: U = L M^H for W = M L^-1, M M^H = I.
    ``loss``: largest share of the local energy that the compression loses.
    """

    W: Tensor
    U: Tensor
    loss: float
    maps: Tensor
    maps_from: str
    folded_share: float | None = None

    def gain(self) -> Tensor:
        """Return what turns images into those of the coils as received: (slice, a, b), or (slice, set, set, a, b).

        For one set it is sqrt(sum_c |(U S)_c|^2), by which normalising the maps has divided. For several sets it is the
        square root of the Hermitian matrix K_mn = sum_c conj(U S_m)_c (U S_n)_c: the root sum of squares over the sets
        of K^(1/2) x is that of the coils' images sum_m U S_m x_m.

        Whitening with correlated noise changes the sum of squares from place to place, which would shade the image. U
        is not the pseudo-inverse of W: that is the shortest of all coil vectors with the same virtual ones, so it
        darkens.
        """
        received = coils.combine_coils(self.U, self.maps)
        if self.maps.ndim == 4:
            return received.abs().pow(2).sum(dim=1).sqrt()
        K = torch.einsum("smcab,sncab->sabmn", received.conj(), received)
        values, V = torch.linalg.eigh(K)
        root = (V * values.clamp_min(0).sqrt()[..., None, :]) @ V.mH
        gain: Tensor = root.movedim((-2, -1), (1, 2))
        return gain


def make_coil_model(k: KSpace, coil_loss: float, covariance: Tensor) -> CoilModel:
    """Return the coils of ``k``: noise of ``covariance`` whitened, compressed at a loss of at most ``coil_loss``."""
    y = torch.from_numpy(k.samples)
    W = coils.whitening_matrix(covariance)
    U = torch.linalg.inv(W)
    if y.shape[1] == 1:
        maps = torch.ones(len(y), 1, *y.shape[2:], dtype=torch.complex64)
        return CoilModel(W, U, 0.0, absorb_ramp(maps, find_peak(k)), "one coil")
    calibration = coils.combine_coils(W, crop_to_calibration(k, y))
    M = coils.compression_matrix(calibration, loss=coil_loss)
    loss = coils.compression_loss(M, calibration)
    calibration, W, U = coils.combine_coils(M, calibration), M @ W, U @ M.conj().T
    found = CoilModel(W, U, loss, *_estimate_maps(k, calibration))
    return replace(found, maps=absorb_ramp(found.maps, find_peak(k)))


def calibration_sides(k: KSpace) -> tuple[int, int]:
    """Return the sides of the used part of the calibration block."""
    if k.calibration is None:
        return 0, 0
    (a0, a1), (b0, b1) = k.calibration
    return min(a1 - a0, CALIBRATION), min(b1 - b0, CALIBRATION)


def find_block(k: KSpace) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return the used part of the calibration block: about the strongest samples, at most CALIBRATION on a side."""
    ranges = []
    for at, side, (start, stop) in zip(find_peak(k), calibration_sides(k), k.calibration or (), strict=True):
        first = min(max(at - side // 2, start), stop - side)
        ranges.append((first, first + side))
    return ranges[0], ranges[1]


def find_peak(k: KSpace) -> tuple[int, int]:
    """Return the place of the strongest samples (a, b), in the calibration block where there is one.

    The median of 3 x 3 samples leaves out a spike, which is one sample or two. The middle is returned where no sample
    has enough neighbours.
    """
    na, nb = k.samples.shape[2:]
    (a0, a1), (b0, b1) = k.calibration or ((0, na), (0, nb))
    energy = np.zeros((a1 - a0, b1 - b0))
    for one in k.samples:
        energy += median_filter((np.abs(one[:, a0:a1, b0:b1]).astype(np.float64) ** 2).sum(axis=0), 3)
    if not energy.any():
        return na // 2, nb // 2
    a, b = np.unravel_index(np.argmax(energy), energy.shape)
    return a0 + int(a), b0 + int(b)


def absorb_ramp(maps: Tensor, peak: tuple[int, int]) -> Tensor:
    """Return the maps times exp(2 pi i d r / n) per axis, d the distance of the strongest samples from the middle.

    An echo off the middle of k-space is a ramp of phase over the image. The prior expects smooth phases, so the maps
    take the ramp.
    """
    for axis, at in zip((-2, -1), peak, strict=True):
        n = maps.shape[axis]
        ramp = torch.exp(2j * torch.pi * (at - n // 2) * (torch.arange(n) - n // 2) / n)
        maps = maps * (ramp[:, None] if axis == -2 else ramp)
    return maps


def crop_to_calibration(k: KSpace, y: Any) -> Any:
    """Return the part of ``y``, an array or tensor (..., a, b), in the calibration block."""
    (a0, a1), (b0, b1) = find_block(k)
    return y[..., a0:a1, b0:b1]


def _estimate_maps(k: KSpace, calibration: Tensor) -> tuple[Tensor, str, float | None]:
    """Return the maps, their source, and the largest share of the object, in any slice, with a second set."""
    shape, block = (k.samples.shape[2], k.samples.shape[3]), find_block(k)
    if min(calibration_sides(k)) < MIN_CALIBRATION:
        maps = torch.stack([coils.estimate_low_pass_maps(c, shape, block) for c in calibration])
        return maps, LOW_PASS, None
    found, shares = zip(*(_estimate_sets(c, shape, block) for c in calibration), strict=True)
    if max(map(len, found)) == 1:
        return torch.cat(found), ESPIRIT, max(shares)
    maps = torch.zeros((len(found), SETS, *found[0].shape[1:]), dtype=torch.complex64)
    for n, one in enumerate(found):
        maps[n, : len(one)] = one
    return maps, ESPIRIT, max(shares)


def _estimate_sets(calibration: Tensor, shape: tuple[int, int], block: coils.Block) -> tuple[Tensor, float]:
    """Return the maps of one slice (set, coil, a, b) that it needs, and the share of the object with a second set."""
    found = coils.estimate_espirit_sets(calibration, shape, count=SETS)
    inside = coils.find_object(coils.make_low_pass_images(calibration, shape, block))
    share = float((found.values[1] > coils.CROP)[inside].float().mean())
    return (found.maps if share > LEAST_FOLDED else found.maps[:1].clone()), share


def measure_unexplained(k: KSpace, y: Tensor, maps: Tensor, sigma: float) -> float | None:
    """Return the largest share of the coils' local energy that the maps do not explain, or None without calibration
    lines for it.

    ``y``: samples of the coils of ``maps`` (slice, coil, a, b) with white noise of ``sigma``. Raises Refused above
    MOST_UNEXPLAINED.
    """
    if min(calibration_sides(k)) < MIN_CALIBRATION:
        return None
    shape, block = (k.samples.shape[2], k.samples.shape[3]), find_block(k)
    variance = sigma**2 * coils.low_pass_variance(shape, block)
    shares = []
    for S, calibration in zip(maps, crop_to_calibration(k, y), strict=True):
        images = coils.make_low_pass_images(calibration, shape, block)
        shares.append(float(coils.measure_unexplained(S[None], images[None], variance)))
    worst = int(np.argmax(shares))
    if shares[worst] > MOST_UNEXPLAINED:
        raise Refused(
            f"k-space: the coils' maps do not explain {100 * shares[worst]:.0f} % of the local energy in slice "
            f"{worst + 1} of {len(shares)}: more than {SETS} places fold into one, the object moved since the maps "
            "were measured, or the calibration lines are damaged"
        )
    return shares[worst]
