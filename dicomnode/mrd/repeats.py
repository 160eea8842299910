"""Check of lines that were read more than once: only those that agree to within their noise are averaged."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipelines.contract import Refused

__all__ = ["Place", "check_repeats"]

Place = tuple[int, int, int]
"""Slice, partition, line."""

_TOLERANCE = 0.1
"""Drift between averages, as part of the line's root mean square, that is averaged whatever the noise is: of two
averages 8 degrees of phase, as the drift of the field gives them between minutes, or 14 % of the amplitude."""
_CERTAIN = 6.0
"""Standard deviations of the energy of noise above which a difference is no noise."""
_MOST_NOISE = 0.25
"""Noise energy over signal energy, at most, that differences alone are believed to be where no noise was measured."""


@dataclass(frozen=True)
class _Repeated:
    """The readings of one place, (reading, coil, sample), and their numbers in the file."""

    place: Place
    rows: Sequence[int]
    readings: NDArray[np.complex64]

    @property
    def residual(self) -> NDArray[np.float64]:
        """Energy of the differences from the mean, unbiased: (coil, sample) of one reading's variance."""
        about = np.abs(self.readings - self.readings.mean(axis=0)) ** 2
        return np.asarray(about.sum(axis=0) / (len(self.rows) - 1), np.float64)

    @property
    def signal(self) -> float:
        return float((np.abs(self.readings.mean(axis=0)) ** 2).sum())


def check_repeats(
    samples: Sequence[NDArray[np.complex64]],
    rows_at: Mapping[Place, Sequence[int]],
    noise: NDArray[np.complex64] | None,
) -> None:
    """Refuse readings of one place that differ beyond their noise: they are of different contrasts, or of a patient
    who moved.

    ``noise`` (coil, n): of a noise scan, at the level of one reading. Without it the level is the lesser of what the
    edges of the readouts and the differences themselves allow.
    """
    found = [
        _Repeated(place, rows, np.stack([samples[row] for row in rows]))
        for place, rows in rows_at.items()
        if len(rows) > 1
    ]
    if not found:
        return
    for each in found:
        _check_copies(each)
    variance = _variance(found, (samples[row] for rows in rows_at.values() for row in rows), noise)
    for each in found:
        _check(each, variance)


def _check_copies(found: _Repeated) -> None:
    for n, reading in enumerate(found.readings[1:], 1):
        if (reading == found.readings[0]).all():
            raise Refused(
                f"k-space: acquisitions {found.rows[0]} and {found.rows[n]} hold the same samples: one is a copy, "
                "not another average"
            )


def _variance(
    found: Sequence[_Repeated], lines: Iterable[NDArray[np.complex64]], noise: NDArray[np.complex64] | None
) -> NDArray[np.float64]:
    """Return the variance of the noise of a complex sample, per coil. The median of |n|^2 is ln 2 of the variance."""
    if noise is not None:
        return np.asarray((np.abs(noise) ** 2).mean(axis=1), np.float64)
    differences = np.concatenate([each.residual for each in found], axis=1)
    edges = np.concatenate([_edges(line) for line in lines], axis=1)
    variance = np.minimum(np.median(differences, axis=1), np.median(np.abs(edges) ** 2, axis=1)) / np.log(2)
    noise_energy = float(variance.sum()) * differences.shape[1]
    most = _MOST_NOISE * sum(each.signal for each in found)
    return np.asarray(variance * min(1.0, most / noise_energy if noise_energy > 0 else 1.0), np.float64)


def _edges(line: NDArray[np.complex64]) -> NDArray[np.complex64]:
    width = max(line.shape[1] // 20, 1)
    return np.concatenate([line[:, :width], line[:, -width:]], axis=1)


def _check(found: _Repeated, variance: NDArray[np.float64]) -> None:
    residual = found.residual
    length = residual.shape[1]
    expected = float(variance.sum()) * length
    spread = float(np.sqrt((variance**2).sum() * length / (len(found.rows) - 1)))
    excess = float(residual.sum()) - expected
    if excess > _CERTAIN * spread and excess > _TOLERANCE**2 * found.signal:
        k, z, y = found.place
        raise Refused(
            f"k-space: acquisitions {', '.join(map(str, found.rows[:4]))} are all of line {y}, partition {z}, slice "
            f"{k}, but differ beyond their noise; lines of different contrasts or of a moved patient are not averaged"
        )
