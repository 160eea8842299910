"""Rays of a fan that were measured from both sides: whether they agree, and in which direction bins are counted."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from model_zoo.ct_geometry import CtGeometry
from pipelines.contract import Refused

__all__ = ["OppositeRays", "check_direction", "compare_opposite_rays", "find_direction"]

_AGREE, _APART = 0.02, 0.5
"""Mean squared difference over that of unrelated rays up to which rays agree; and of both directions, to tell them."""
_LEAST, _ERRORS = 0.001, 5.0
"""Least distance of both directions, in the same unit and in standard errors of the noise."""
_FEWEST_PHOTONS = 10
"""Below it the logarithm of a count is biased, and its variance is not known from the count."""
_MOST_SLICES = 8


@dataclass(frozen=True)
class OppositeRays:
    """Mean squared difference of opposite rays, without that of noise, over twice their variance; ``mirrored``: with
    bins counted backwards; ``error``: the standard error of the noise in both.
    """

    straight: float
    mirrored: float
    error: float

    @property
    def is_told(self) -> bool:
        """True where one direction fits clearly better than the other."""
        low, high = sorted((self.straight, self.mirrored))
        return max(low, 0.0) < _APART * high and high - low > max(_LEAST, _ERRORS * self.error)

    @property
    def is_mirrored(self) -> bool:
        """True where bins are counted against the angle of the fan."""
        return self.is_told and self.mirrored < self.straight


def find_direction(beam: CtGeometry, line_integrals: NDArray[np.float32], counts: NDArray[np.float32]) -> OppositeRays:
    """Return the comparison of both directions of bins.

    Raises Refused where no ray was measured twice, where rays agree in neither direction, and where the directions
    cannot be told apart, as of an object that is the same from both sides.
    """
    found = compare_opposite_rays(beam, line_integrals, counts)
    if found is None:
        raise Refused(
            "projections: no ray was measured from both sides, so the direction in which columns are counted is not "
            "known: an arc of half a turn and the angle of the fan is needed"
        )
    _check_agreement(found)
    if not found.is_told:
        raise Refused(
            "projections: the direction in which columns are counted cannot be told: rays from opposite sides "
            f"differ by {found.straight:.2%} of the variance of rays, and with columns counted backwards by "
            f"{found.mirrored:.2%}"
        )
    return found


def check_direction(beam: CtGeometry, line_integrals: NDArray[np.float32], counts: NDArray[np.float32]) -> None:
    """Raise Refused where rays from opposite sides contradict each other, or show that bins are counted backwards."""
    found = compare_opposite_rays(beam, line_integrals, counts)
    if found is None:
        return
    _check_agreement(found)
    if found.is_mirrored:
        raise Refused(
            f"sinogram: rays from opposite sides differ by {found.straight:.2%} of the variance of rays, and with bins "
            f"counted backwards by {found.mirrored:.2%}: turn the bins over, or change the sign of arc_deg"
        )


def compare_opposite_rays(
    beam: CtGeometry, line_integrals: NDArray[np.float32], counts: NDArray[np.float32]
) -> OppositeRays | None:
    """Compare the rays (slice, view, bin) of a fan with those of the same lines: ray (beta, gamma) is that of
    (beta + pi + 2 gamma, -gamma). ``counts`` gives their noise. Return None where fewer than 1 % were measured twice.
    """
    some = np.unique(np.linspace(0, len(counts) - 1, _MOST_SLICES).astype(int))
    values, photons = line_integrals[some], counts[some]
    straight = _compare(beam, values, photons)
    mirrored = _compare(replace(beam, offset_bins=-beam.offset_bins), values[..., ::-1], photons[..., ::-1])
    if straight is None or mirrored is None:
        return None
    return OppositeRays(straight[0], mirrored[0], float(np.hypot(straight[1], mirrored[1])))


def _check_agreement(found: OppositeRays) -> None:
    least = min(found.straight, found.mirrored)
    if least > _AGREE:
        raise Refused(
            f"projections: rays along the same lines from opposite sides differ by {least:.0%} of the variance of "
            "rays: angles, distances or the central column contradict the values"
        )


def _compare(beam: CtGeometry, values: NDArray[np.float32], counts: NDArray[np.float32]) -> tuple[float, float] | None:
    """Return the mean squared difference without noise, and its standard error, both over twice the variance."""
    beta, gamma = np.meshgrid(beam.view_angles, beam.fan_angles, indexing="ij")
    step = np.deg2rad(beam.arc_deg / beam.views)
    turn = (beta + np.pi + 2 * gamma - beam.view_angles[0]) % (2 * np.pi)
    view = np.rint(turn / step).astype(int)
    if beam.arc_deg > 360 - 1e-6:
        view %= beam.views
    width = beam.bin_mm / (beam.source_mm or 1.0)
    places = np.rint((-gamma - beam.fan_angles[0]) / width).astype(int)
    is_measured = (view < beam.views) & (places >= 0) & (places < beam.bins)
    there = view[is_measured], places[is_measured]
    photons = np.stack([counts[:, is_measured], counts[:, *there]])
    is_certain = (photons >= _FEWEST_PHOTONS).all(axis=0)
    if is_certain.sum() < 0.01 * values.size:
        return None
    here, other = values[:, is_measured][is_certain], values[:, *there][is_certain]
    noise = (1 / photons[:, is_certain].astype(np.float64)).sum(axis=0)
    scale = max(2 * float(np.var(here)), 1e-12)
    excess = float(np.mean((here - other) ** 2)) - float(noise.mean())
    return excess / scale, 2 * float(np.sqrt((noise**2).sum())) / len(noise) / scale
