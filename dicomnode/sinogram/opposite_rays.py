"""Rays of a fan that were measured from both sides: whether they agree, and in which direction bins are counted."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from model_zoo.ct_geometry import CtGeometry
from pipelines.contract import Refused

__all__ = ["OppositeRays", "compare_opposite_rays"]

_AGREE, _APART = 0.2, 0.5
"""Mean squared difference over that of unrelated rays up to which rays agree; and of both directions, to tell them."""


@dataclass(frozen=True)
class OppositeRays:
    """Mean squared difference of opposite rays over twice their variance; ``mirrored``: with bins counted backwards."""

    straight: float
    mirrored: float

    @property
    def is_mirrored(self) -> bool:
        """True where bins are counted against the angle of the fan."""
        return self.mirrored < _APART * self.straight


def compare_opposite_rays(beam: CtGeometry, line_integrals: NDArray[np.float32]) -> OppositeRays:
    """Compare the rays (slice, view, bin) of a fan with those of the same lines: ray (beta, gamma) is that of
    (beta + pi + 2 gamma, -gamma).

    Raises Refused where no ray was measured twice, and where rays agree in neither direction.
    """
    straight = _compare(beam, line_integrals)
    mirrored = _compare(replace(beam, offset_bins=-beam.offset_bins), line_integrals[..., ::-1])
    if straight is None or mirrored is None:
        raise Refused(
            "projections: no ray was measured from both sides, so the direction in which columns are counted is not "
            "known: an arc of half a turn and the angle of the fan is needed"
        )
    if min(straight, mirrored) > _AGREE:
        raise Refused(
            f"projections: rays along the same lines from opposite sides differ by {min(straight, mirrored):.0%} of "
            "the variance of rays: angles, distances or the central column contradict the values"
        )
    return OppositeRays(straight, mirrored)


def _compare(beam: CtGeometry, values: NDArray[np.float32]) -> float | None:
    """Return the mean squared difference over twice the variance, or None without opposite rays."""
    beta, gamma = np.meshgrid(beam.view_angles, beam.fan_angles, indexing="ij")
    step = np.deg2rad(beam.arc_deg / beam.views)
    turn = (beta + np.pi + 2 * gamma - beam.view_angles[0]) % (2 * np.pi)
    view = np.rint(turn / step).astype(int)
    if beam.arc_deg > 360 - 1e-6:
        view %= beam.views
    width = beam.bin_mm / (beam.source_mm or 1.0)
    places = np.rint((-gamma - beam.fan_angles[0]) / width).astype(int)
    is_measured = (view < beam.views) & (places >= 0) & (places < beam.bins)
    if is_measured.mean() < 0.01:
        return None
    here = values[:, is_measured]
    there = values[:, view[is_measured], places[is_measured]]
    return float(np.mean((here - there) ** 2) / max(2 * float(np.var(here)), 1e-12))
